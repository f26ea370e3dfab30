"""How a protocol of this harness is declared: what its parts have in common, and its columns."""

from __future__ import annotations

from benchmarks.features.pool import AdaptivePooling, FixedPooling
from benchmarks.linear.settings import ProbeSettings
from results.schema import Geometry, Protocol, Source

FEATURES = ("feature1", "feature2", "feature3", "feature4", "feature5")

FIXED = {  # for the maps of a 224-pixel image; of a ResNet-50 they leave 9216, 9216, 8192, 9216 and 8192 numbers
    "feature1": FixedPooling(size=112, kernel=10, stride=10, padding=4),
    "feature2": FixedPooling(size=56, kernel=16, stride=8),
    "feature3": FixedPooling(size=28, kernel=13, stride=5),
    "feature4": FixedPooling(size=14, kernel=8, stride=3),
    "feature5": FixedPooling(size=7, kernel=6, stride=1),
}
ADAPTIVE = {  # the same grids from maps of any size
    name: AdaptivePooling(grid=grid) for name, grid in zip(FEATURES, (12, 6, 4, 3, 2), strict=True)
}

AVGPOOL = ("AvgPool", "AvgPool last", "AvgPool best", "AvgPool top-5", "AvgPool last top-5", "AvgPool best top-5")
ORACLE = "AvgPool oracle"
MULTIHEAD = tuple(name.capitalize() for name in FEATURES)

BEST = "best epoch on test"
LAST = "last epoch"

RESIZE_256 = Geometry(mode="shorter", resize=256, crop=224)
CIFAR = Geometry(mode="shorter", resize=32, crop=32)  # the images as they are
SMALL = Geometry(
    mode="shorter", resize=48, crop=48
)  # the embedded drawings, uncropped: one may lie anywhere in its picture

OWN = "this project"


def probe_protocol(
    benchmark: str,
    variant: str,
    settings: ProbeSettings,
    source: Source,
    *,
    dataset: str,
    geometry: Geometry = RESIZE_256,
    columns: tuple[str, ...],
    selection: str,
) -> Protocol:
    """A protocol of heads that are trained on views; data sets with tables of their own show in the benchmark."""
    named = dataset in ("places205", "inat18", "cifar10")
    return Protocol(
        benchmark=f"{benchmark}_{dataset}" if named else benchmark,
        variant=variant,
        harness="multihead" if benchmark == "linear_multihead" else "linear",
        dataset=dataset,
        train_split="train",
        test_split="test" if dataset == "cifar10" else "val",
        geometry=geometry,
        columns=columns,
        primary="AvgPool" if "AvgPool" in columns else "Feature5",
        metric="top-1 accuracy",
        selection=selection,
        params=settings.model_dump(),
        source=source,
    )

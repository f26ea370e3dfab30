"""How a protocol of this harness is declared: what its parts have in common, and its columns."""

from __future__ import annotations

from benchmarks.linear.settings import ProbeSettings
from results.schema import Geometry, Protocol, Source

AVGPOOL = ("AvgPool", "AvgPool last", "AvgPool best", "AvgPool top-5", "AvgPool last top-5", "AvgPool best top-5")
ORACLE = "AvgPool oracle"

BEST = "best epoch on test"
LAST = "last epoch"
RATE = ", rate chosen on a held-out part of train"

RESIZE_256 = Geometry(mode="shorter", resize=256, crop=224)
CIFAR = Geometry(mode="shorter", resize=32, crop=32)  # the images as they are
SMALL = Geometry(
    mode="shorter", resize=48, crop=48
)  # the embedded drawings, uncropped: one may lie anywhere in its picture

OWN = "this project"


def probe_columns(settings: ProbeSettings) -> tuple[str, ...]:
    """Feature1 … for heads on maps; for the one on the vector also the last and best epoch, and a grid's best head."""
    if "embed" not in settings.outputs:
        return tuple(name.capitalize() for name in settings.outputs)
    return (*AVGPOOL, ORACLE) if len(settings.grid) > 1 else AVGPOOL


def selection(settings: ProbeSettings) -> str:
    """How the main column's figure is chosen, by the settings as they are, which an override may have changed."""
    epoch = BEST if settings.choose_epoch == "best" else LAST
    return epoch + (RATE if len(settings.grid) > 1 else "")


def probe_protocol(
    benchmark: str,
    variant: str,
    settings: ProbeSettings,
    source: Source,
    *,
    dataset: str,
    geometry: Geometry = RESIZE_256,
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
        columns=probe_columns(settings),
        primary="AvgPool" if benchmark == "linear_avgpool" else "Feature5",
        metric="top-1 accuracy",
        selection=selection(settings),
        params=settings.model_dump(),
        source=source,
    )

"""The protocols of VOC07 SVM and low-shot SVM: every number with its source."""

from __future__ import annotations

from benchmarks.overrides import typed
from benchmarks.svm.settings import (
    ADAPTIVE_POOLING,
    AP_METRIC,
    FIXED_POOLING,
    LAYERS,
    SELECTIONS,
    FullParams,
    LowShotParams,
    Outputs,
    cost_selection,
    low_shot_column,
)
from results.schema import Geometry, Protocol, Source

_POWERS = tuple(0.5**n for n in range(4, 20))
COSTS_MMSELFSUP = (1.0, 10.0, 100.0, *_POWERS)
COSTS_VISSL = (0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0)
COSTS_FSSB = (*(float(f"1e{n}") for n in range(-7, 3)), *_POWERS)
K = (1, 2, 4, 8, 16, 32, 64, 96)  # 96: VOC07 trainval has 96 images with sheep

_RESIZE_THEN_WARP = Geometry(mode="warp", resize=256, crop=224)
_WARP = Geometry(mode="warp", resize=0, crop=224)
_DEMO_WARP = Geometry(mode="warp", resize=0, crop=96)
# The embedded scenes have seconds per encoder: the early layers of a small net have little to tell them apart by and
# cost as much as the others, and a cost for every decade between the extremes that were ever chosen is enough.
_DEMO_OUTPUTS: Outputs = {
    name: pooling for name, pooling in ADAPTIVE_POOLING.items() if name in ("feature4", "feature5", "embed")
}
K_DEMO = K[:-1]  # at 96 the scenes' negatives are nearly all drawn, and five sets differ little
COSTS_DEMO = (0.01, 0.1, 1.0, 10.0)

_MMSELFSUP = Source(
    repository="open-mmlab/mmselfsup",
    revision="0.x@6faad81",
    note="tools/benchmarks/classification/svm_voc07: LinearSVC, squared hinge, L2, class weight 1:2 -1:1, 3-fold "
    "cross-validation, envelope AP; best layer of the page chosen on test",
)
_VISSL = Source(
    repository="facebookresearch/vissl",
    revision="09270ed",
    note="vissl/utils/svm_utils and configs/config/benchmark: cost base -1 disables the powers",
)
_FSSB = Source(
    repository="facebookresearch/fair_self_supervision_benchmark",
    revision="1e5d165",
    note="tools/svm and its guide: costs 1e-7 to 1e2 by decades and 0.5^4 to 0.5^19",
)
_ADAPTIVE = "costs of mmselfsup 0.x on adaptive grids of 12, 6, 4, 3 and 2, for any encoder and size"


def columns(protocol: Protocol) -> tuple[str, ...]:
    """Those that the protocol's `params` give, which an override may have changed."""
    if protocol.harness == "low-shot-svm":
        return _low_shot_columns(typed(LowShotParams, protocol).k)
    return _full_columns(typed(FullParams, protocol))


def selection(protocol: Protocol) -> str:
    """How the figures are chosen, by the protocol's `params`, which an override may have changed."""
    if protocol.harness == "low-shot-svm":
        return protocol.selection
    return cost_selection(typed(FullParams, protocol))


def metric(protocol: Protocol) -> str:
    """Which average precision the figures are, by the protocol's `params`, which an override may have changed."""
    return protocol.metric if protocol.harness == "low-shot-svm" else AP_METRIC[typed(FullParams, protocol).ap_rule]


def _full_columns(params: FullParams) -> tuple[str, ...]:
    """Where no layer is read, there is none to be the best."""
    best = ("best", "best_oracle") if any(name in LAYERS for name in params.outputs) else ()
    return (*params.outputs, *best)


def _low_shot_columns(k: tuple[int, ...]) -> tuple[str, ...]:
    return tuple(low_shot_column(each, selection) for selection in SELECTIONS for each in k)


def _full(
    variant: str,
    costs: tuple[float, ...],
    source: Source,
    *,
    geometry: Geometry = _RESIZE_THEN_WARP,
    outputs: Outputs = FIXED_POOLING,
    primary: str = "best_oracle",
) -> Protocol:
    params = FullParams(costs=costs, outputs=outputs)
    return Protocol(
        benchmark="voc07_svm",
        variant=variant,
        harness="voc-svm",
        dataset="voc2007",
        train_split="trainval",
        test_split="test",
        geometry=geometry,
        columns=_full_columns(params),
        primary=primary,
        metric=AP_METRIC[params.ap_rule],
        selection=cost_selection(params),
        params=params.model_dump(mode="json"),
        source=source,
    )


def _low_shot(
    variant: str,
    costs: tuple[float, ...],
    source: Source,
    *,
    benchmark: str = "voc07_low_shot_svm",
    dataset: str = "voc2007",
    test_split: str = "test",
    train_split: str = "trainval",
    geometry: Geometry = _RESIZE_THEN_WARP,
    outputs: Outputs = FIXED_POOLING,
    index_sets: str = "seeded",
    k: tuple[int, ...] = K,
) -> Protocol:
    params = LowShotParams.model_validate({"costs": costs, "outputs": outputs, "k": k, "index_sets": index_sets})
    return Protocol(
        benchmark=benchmark,
        variant=variant,
        harness="low-shot-svm",
        dataset=dataset,
        train_split=train_split,
        test_split=test_split,
        geometry=geometry,
        columns=_low_shot_columns(k),
        primary=low_shot_column(k[-1], "oracle"),
        metric="mAP (precision envelope)",
        selection="layer and one cost per k with the best mean mAP on test (oracle); mean over the sets",
        params=params.model_dump(mode="json"),
        source=source,
    )


def _ours(note: str) -> Source:
    return Source(repository="this project", note=note)


PROTOCOLS: tuple[Protocol, ...] = (
    _full("mmselfsup", COSTS_MMSELFSUP, _MMSELFSUP),
    _full("vissl", COSTS_VISSL, _VISSL),
    _full("fssb", COSTS_FSSB, _FSSB),
    _full("adaptive", COSTS_MMSELFSUP, _ours(_ADAPTIVE), outputs=ADAPTIVE_POOLING, primary="best"),
    _full(
        "demo",
        COSTS_DEMO,
        _ours("voc07_svm.adaptive@1 on the embedded scenes, at their size, with the last two layers and four costs"),
        geometry=_DEMO_WARP,
        outputs=_DEMO_OUTPUTS,
        primary="embed",
    ),
    _low_shot("mmselfsup", COSTS_MMSELFSUP, _MMSELFSUP),
    _low_shot("vissl", COSTS_VISSL, _VISSL, geometry=_WARP),  # its low-shot configuration skips the resize to 256
    _low_shot("fssb", COSTS_FSSB, _FSSB, index_sets="files"),
    _low_shot("adaptive", COSTS_MMSELFSUP, _ours(_ADAPTIVE), outputs=ADAPTIVE_POOLING),
    _low_shot(
        "fssb",
        COSTS_FSSB,
        _FSSB,
        benchmark="places205_low_shot_svm",
        dataset="places205",
        train_split="train",
        test_split="val",
    ),
    _low_shot(
        "demo",
        COSTS_DEMO,
        _ours(
            "voc07_low_shot_svm.adaptive@1 on the embedded scenes, at their size, on the pooled vector alone, four "
            "costs and k up to 64"
        ),
        geometry=_DEMO_WARP,
        outputs={"embed": None},
        k=K_DEMO,
    ),
)

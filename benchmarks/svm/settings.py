"""What `Protocol.params` holds for the two SVM benchmarks."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from benchmarks.features.pool import ADAPTIVE_GRIDS, FIXED_224, STAGES, Pooling
from benchmarks.overrides import typed
from results.schema import Frozen, Protocol

LAYERS = STAGES
ApRule = Literal["envelope", "sklearn", "11point"]
AP_METRIC: dict[ApRule, str] = {
    "envelope": "mAP (precision envelope)",
    "sklearn": "mAP (not interpolated)",
    "11point": "mAP (11-point)",
}

Outputs = dict[str, Pooling | None]

FIXED_POOLING: Outputs = {**FIXED_224, "embed": None}
ADAPTIVE_POOLING: Outputs = {**ADAPTIVE_GRIDS, "embed": None}


class SvmParams(Frozen):
    """What both benchmarks share.

    Attributes:
        costs: in the order in which ties are broken, the first wins.
        positive_weight, negative_weight: class weights, factors of the cost.
        tolerance: of the solver, see `solver.solve`. Every model is the optimum to within it.
        outputs: encoder output -> pooling of its maps, None for a vector.
    """

    costs: tuple[float, ...] = Field(min_length=1)
    positive_weight: float = Field(2.0, gt=0, allow_inf_nan=False)
    negative_weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    tolerance: float = Field(1e-5, gt=0, le=1e-2)
    outputs: dict[str, Pooling | None] = Field(min_length=1)

    @field_validator("costs")
    @classmethod
    def _positive_and_distinct(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < cost < float("inf") for cost in value) or len(set(value)) < len(value):
            raise ValueError(f"{value} must be positive, finite and without repeats")
        return value

    @field_validator("outputs")
    @classmethod
    def _maps_are_pooled(cls, value: Outputs) -> Outputs:
        unpooled = [name for name, pooling in value.items() if name in LAYERS and pooling is None]
        if unpooled:
            raise ValueError(f"{', '.join(unpooled)} are maps: say how they are pooled to vectors")
        return value


class FullParams(SvmParams):
    """All of trainval.

    Attributes:
        folds: of the stratified, unshuffled cross-validation that chooses each class's cost.
        ignore_in_train: images whose every instance of a class is difficult train as its negatives, as in the
            published scripts, or take no part. In the test they never take part.
        ap_rule: average precision of the test: area under the precision `envelope` as in the published scripts,
            `sklearn`'s, which does not interpolate, or VOC2007's `11point`. The cost is always chosen by sklearn's.
    """

    folds: int = Field(3, ge=2)
    ignore_in_train: Literal["negative", "drop"] = "negative"
    # Left out of the JSON where it is as it always was, so that older records keep their protocol's hash.
    ap_rule: ApRule = Field("envelope", exclude_if=lambda rule: rule == "envelope")


def cost_selection(params: FullParams) -> str:
    """How each class's cost is chosen, by the params as they are, which an override may have changed."""
    return f"cost per class by {params.folds}-fold CV on trainval"


class LowShotParams(SvmParams):
    """Few positives per class.

    Attributes:
        k: positives per class. A multi-label set has (classes - 1) k negatives to each; of a single-label set k images
            of every class are drawn, which makes the others the negatives.
        sets: independent draws; a figure is their mean, with its spread.
        seed: of the draws.
        index_sets: `seeded` draws by this project, or `files` in the format of the published ones.
        index_sha256: of the files, where there are any: other files are another measurement.
        fixed_cost: the cost of the `fixed` selection.
    """

    k: tuple[int, ...] = Field(min_length=1)
    sets: int = Field(5, ge=1)
    seed: int = Field(0, ge=0)
    index_sets: Literal["seeded", "files"] = "seeded"
    index_sha256: str | None = Field(None, exclude_if=lambda value: value is None)
    fixed_cost: float = Field(1.0, gt=0)

    @field_validator("k")
    @classmethod
    def _ascending(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if min(value) < 1 or len(set(value)) < len(value):
            raise ValueError(f"{value} must be positive and without repeats")
        return tuple(sorted(value))


Selection = Literal["oracle", "fixed", "heldout"]
SELECTIONS: tuple[Selection, ...] = ("oracle", "fixed", "heldout")


def low_shot_column(k: int, selection: Selection) -> str:
    """The table column: `k=8` for the published, oracle selection, `k=8 fixed` and `k=8 heldout` for the others."""
    return f"k={k}" if selection == "oracle" else f"k={k} {selection}"


def required_outputs(protocol: Protocol) -> dict[str, tuple[str, Pooling | None]]:
    """Feature key -> (encoder output, pooling of its maps or None) that a protocol reads."""
    outputs = typed(LowShotParams if "k" in protocol.params else FullParams, protocol).outputs
    return {name: (name, pooling) for name, pooling in outputs.items()}

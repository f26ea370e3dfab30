"""VOC07 SVM: one linear SVM per class on all of trainval, its cost by cross-validation, mean average precision on test.

Goyal et al. 2019, "Scaling and Benchmarking Self-Supervised Visual Representation Learning", section 6.1. The costs,
the poolings and the geometry of each source are the `VARIANTS` of `benchmarks.svm_common`, which the low-shot SVM has
too; `benchmarks.solvers.svm` trains.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from benchmarks.solvers.average_precision import ApRule, AveragePrecisions, average_precisions
from benchmarks.svm_common import VARIANTS, SvmParams, check_labels, leave_out, usable_outputs
from benchmarks.task import FEATURE_MAPS, FeatureTask, InputError, Labels, Outcome, Outputs, RunOptions, Split, progress
from results.schema import Protocol, Score

if TYPE_CHECKING:
    from benchmarks.solvers.svm import ClassModels

TYPICAL_PRODUCTS = 150  # with a Gram matrix or the features, in which a cost is solved; for estimates of time
AP_METRIC: dict[ApRule, str] = {
    "envelope": "mAP (precision envelope)",
    "sklearn": "mAP (not interpolated)",
    "11point": "mAP (11-point)",
}


class VocSvmParams(SvmParams):
    """The numbers of a VOC07 SVM protocol.

    Attributes:
        folds: of the stratified, unshuffled cross-validation that chooses each class's cost.
        ignore_in_train: images whose every instance of a class is difficult train as its negatives, as in the
            published scripts, or are dropped. In the test they are always ignored.
        ap_rule: average precision of the test: area under the precision `envelope` as in the published scripts,
            `sklearn`'s, which does not interpolate, or VOC2007's `11point`. The cost is always chosen by sklearn's.
    """

    folds: int = Field(3, ge=2)
    ignore_in_train: Literal["negative", "drop"] = "negative"
    # Left out of the JSON at its default, so that older records keep their protocol's hash.
    ap_rule: ApRule = Field("envelope", exclude_if=lambda rule: rule == "envelope")

    def columns(self) -> tuple[str, ...]:
        """One per output, and the best of the layers where there are any."""
        return (*self.outputs, *(("best", "best_oracle") if any(name in FEATURE_MAPS for name in self.outputs) else ()))

    def selection(self) -> str:
        return f"cost per class by {self.folds}-fold CV on trainval"

    def metric(self) -> str:
        return AP_METRIC[self.ap_rule]


# ---- protocols -------------------------------------------------------------------------------------------------------


def _protocol(variant: str, *, primary: str = "best_oracle") -> Protocol:
    shared = VARIANTS[variant]
    return Protocol.of(
        VocSvmParams(costs=shared.costs, outputs=shared.outputs, tolerance=shared.tolerance),
        benchmark="voc07_svm",
        variant=variant,
        revision=shared.revision,
        harness="voc-svm",
        dataset="voc2007",
        train_split="trainval",
        test_split="test",
        geometry=shared.geometry,
        primary=primary,
        source=shared.source,
    )


PROTOCOLS = (
    _protocol("mmselfsup"),
    _protocol("vissl"),
    _protocol("fssb"),
    _protocol("adaptive", primary="best"),
    _protocol("demo", primary="embed"),
)


# ---- benchmark -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VocSvm(FeatureTask[VocSvmParams]):
    """Linear SVM per class of VOC07 on frozen features, mean average precision (Goyal et al. 2019, section 6.1)."""

    name = "voc-svm"
    Params = VocSvmParams
    protocols = PROTOCOLS

    def outputs(self, protocol: Protocol) -> Outputs:
        return self.params(protocol).read()

    def check(self, protocol: Protocol, train: Labels, test: Labels) -> None:
        """Raises InputError for splits without images or positives, and classes with too few images for the folds."""
        check_labels(train, test)
        assign_folds(train, self.params(protocol))

    def flops(self, protocol: Protocol, train: Labels, test: Labels, width: int) -> float:
        """The products of every solution in cross-validation."""
        params = self.params(protocol)
        drawn = len(train) * (params.folds - 1) / params.folds
        solutions = len(params.outputs) * len(train.classes) * len(params.costs) * params.folds
        return 2.0 * solutions * TYPICAL_PRODUCTS * drawn * min(drawn, width)

    def run(self, protocol: Protocol, train: Split, test: Split, options: RunOptions) -> Outcome:
        """Train and test on every layer that the encoder has.

        Columns: each output; `best`, the layer of feature1 … feature5 with the highest cross-validated mAP on
        trainval; `best_oracle`, the one with the highest mAP on test, which published tables call "best layer".

        Raises:
            InputError: see `check` and `usable_outputs`.
        """
        from benchmarks.solvers.svm import fit_cross_validated

        check_labels(train.labels, test.labels)
        params = self.params(protocol)
        names = usable_outputs(params, train, test)
        folds = assign_folds(train.labels, params)
        positive, test_targets = train.labels.one_hot().T == 1, test.labels.one_hot().T

        outcome = Outcome(timing=dict.fromkeys(("gram", "cross-validation", "refit", "test"), 0.0))
        results: dict[str, _Layer] = {}
        ticks = progress(range(len(names) * (params.folds + 1)), protocol.id, show=options.progress)
        for name in names:
            models = fit_cross_validated(
                train.features[name],
                positive,
                np.where(positive, params.positive_weight, params.negative_weight),
                folds,
                params.costs,
                tolerance=params.tolerance,
                fold_done=lambda: next(ticks, None),
            )
            began = time.perf_counter()
            decisions = models.decisions(test.features[name])
            ap = average_precisions(decisions, test_targets)
            results[name] = _Layer(models, decisions.T.astype(np.float32), ap)
            for phase, seconds in {**models.seconds, "test": time.perf_counter() - began}.items():
                outcome.timing[phase] += seconds
        next(ticks, None)  # closes the bar
        _report(params, results, train.labels.classes, outcome)
        return outcome


def assign_folds(labels: Labels, params: VocSvmParams) -> NDArray[np.int8]:
    """(C, N) the fold in which an image is held out, -1 where it is dropped.

    Stratified per class and not shuffled, as by scikit-learn.

    Raises:
        InputError: a class has fewer positives or negatives than folds.
    """
    from sklearn.model_selection import StratifiedKFold

    targets = labels.one_hot()
    fold = np.full(targets.T.shape, -1, np.int8)
    for c, name in enumerate(labels.classes):
        images = np.flatnonzero(targets[:, c] >= 0) if params.ignore_in_train == "drop" else np.arange(len(targets))
        positive = targets[images, c] == 1
        for count, what in ((positive.sum(), "positive"), ((~positive).sum(), "negative")):
            if count < params.folds:
                raise InputError(
                    f"{name} has {count} {what} training images, but {params.folds}-fold cross-validation needs "
                    f"{params.folds}: use a larger training split{leave_out(labels)}"
                )
        for i, (_, held_out) in enumerate(StratifiedKFold(params.folds).split(images, positive)):
            fold[c, images[held_out]] = i
    return fold


@dataclass(frozen=True)
class _Layer:
    """One layer's models with their (N, C) decisions and average precisions on the test images."""

    models: ClassModels
    decisions: NDArray[np.float32]
    ap: AveragePrecisions

    @property
    def cv_ap(self) -> NDArray[np.float64]:
        """(C,) cross-validated average precision at the chosen costs."""
        return np.take_along_axis(self.models.cv_ap, self.models.chosen[None], 0)[0]


def _report(params: VocSvmParams, results: dict[str, _Layer], classes: Sequence[str], outcome: Outcome) -> None:
    for name, layer in results.items():
        _add_column(outcome, name, layer, classes, params.selection(), params.ap_rule)
        weights = layer.models.weights.float().cpu()
        outcome.tensors[f"{name}/weight"] = weights[:, :-1].contiguous()
        outcome.tensors[f"{name}/bias"] = weights[:, -1].contiguous()
        outcome.runs.append(
            {
                "column": name,
                "cv_map": 100 * float(layer.cv_ap.mean()),
                "map": 100 * float(layer.ap.envelope.mean()),
                "map_sklearn": 100 * float(layer.ap.step.mean()),
                "map_11point": 100 * float(layer.ap.eleven_point.mean()),
            }
        )
        for c, class_name in enumerate(classes):
            outcome.runs.append(
                {
                    "column": name,
                    "class": class_name,
                    "cost": params.costs[int(layer.models.chosen[c])],
                    "cv_ap": 100 * float(layer.cv_ap[c]),
                    "ap": 100 * float(layer.ap.envelope[c]),
                    "ap_sklearn": 100 * float(layer.ap.step[c]),
                    "ap_11point": 100 * float(layer.ap.eleven_point[c]),
                    "newton_steps": int(layer.models.newton_steps[c]),
                }
            )
    candidates = [name for name in results if name in FEATURE_MAPS]
    if candidates:
        best = max(candidates, key=lambda name: float(results[name].cv_ap.mean()))
        oracle = max(candidates, key=lambda name: float(results[name].ap.by(params.ap_rule).mean()))
        for column, name, criterion in (
            ("best", best, "cross-validated mAP on trainval"),
            ("best_oracle", oracle, "mAP on test (oracle)"),
        ):
            _add_column(outcome, column, results[name], classes, f"{name}, layer by {criterion}", params.ap_rule)
    if params.ap_rule != "envelope":
        outcome.items["ap_rule"] = np.array(params.ap_rule)


def _add_column(
    outcome: Outcome, column: str, layer: _Layer, classes: Sequence[str], selection: str, rule: ApRule
) -> None:
    ap = 100 * layer.ap.by(rule)
    outcome.scores[column] = Score(value=float(ap.mean()), n=len(layer.decisions), selection=selection)
    outcome.per_class[column] = dict(zip(classes, map(float, ap), strict=True))
    outcome.items[f"decision/{column}"] = layer.decisions

"""VOC07 SVM: one linear SVM per class on all of trainval, its cost by cross-validation, mean average precision on test.

Goyal et al. 2019, "Scaling and Benchmarking Self-Supervised Visual Representation Learning", section 6.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.contract import Outcome, Split
from benchmarks.overrides import typed
from benchmarks.progress import progress as with_progress
from benchmarks.svm.average_precision import AveragePrecisions, average_precisions
from benchmarks.svm.clock import Clock
from benchmarks.svm.full_fit import FullFit, FullProblem, fit_layer
from benchmarks.svm.inputs import one_hot, refuse_unmeasurable, usable_outputs
from benchmarks.svm.rows import normalised_rows
from benchmarks.svm.settings import LAYERS, ApRule, FullParams, cost_selection, required_outputs
from results.schema import Protocol, Score

__all__ = ["required_outputs", "run"]

BEST, BEST_ORACLE = "best", "best_oracle"


@dataclass(frozen=True)
class _Layer:
    """What was measured on one layer's features.

    Attributes:
        cost: (C,) chosen costs.
        cv_ap: (C,) cross-validated average precision at them.
        test: average precisions of the classes on the test images.
        decisions: (N, C) float32 on the test images.
        weights: (C, D + 1) float32, the intercept last, for features divided by their norm.
        newton_steps: (C,) of the refit.
    """

    cost: NDArray[np.float64]
    cv_ap: NDArray[np.float64]
    test: AveragePrecisions
    decisions: NDArray[np.float32]
    weights: Tensor
    newton_steps: NDArray[np.int64]


def run(protocol: Protocol, train: Split, test: Split, *, device: str = "cpu", progress: bool = True) -> Outcome:
    """Train and test on every layer that the encoder has.

    Columns: each output; `best`, the layer of feature1 … feature5 with the highest cross-validated mAP on trainval;
    `best_oracle`, the one with the highest mAP on test, which published tables call "best layer".

    Raises:
        InputError: see `usable_outputs` and `assign_folds`; also a class without a positive test image.
    """
    params = typed(FullParams, protocol)
    names = usable_outputs(params, train, test)
    classes = train.labels.classes
    test_targets = one_hot(test.labels.targets, len(classes))
    refuse_unmeasurable(test_targets, classes)
    problem = FullProblem.of(one_hot(train.labels.targets, len(classes)), classes, params, device)

    outcome = Outcome(scores={}, timing={"gram": 0.0, "cross-validation": 0.0, "refit": 0.0, "test": 0.0})
    layers: dict[str, _Layer] = {}
    ticks = iter(with_progress(range(len(names) * (params.folds + 1)), protocol.id, show=progress))
    for name in names:
        fit = fit_layer(train.features[name], problem, params, outcome.timing, ticks)
        layers[name] = _test(fit, test.features[name], test_targets, params, outcome.timing)
    for _ in ticks:  # closes the bar
        pass
    _report(params, layers, classes, outcome)
    return outcome


def _test(
    fit: FullFit, features: NDArray[np.float32], targets: NDArray[np.int8], params: FullParams, timing: dict[str, float]
) -> _Layer:
    clock = Clock(timing)
    device = fit.beta.device
    weights = fit.rows.weights(fit.beta)
    decisions = normalised_rows(features, fit.rows.mean, device).decisions(weights).cpu().numpy()
    layer = _Layer(
        cost=np.array(params.costs)[fit.chosen],
        cv_ap=np.take_along_axis(fit.cv_ap, fit.chosen[None], 0)[0],
        test=average_precisions(decisions, targets.T),
        decisions=decisions.T.astype(np.float32),
        weights=weights.float().cpu(),
        newton_steps=fit.newton_steps,
    )
    clock.lap("test")
    return layer


def _report(params: FullParams, layers: dict[str, _Layer], classes: tuple[str, ...], outcome: Outcome) -> None:
    for name, layer in layers.items():
        _add_column(outcome, name, layer, classes, cost_selection(params), params.ap_rule)
        outcome.tensors[f"{name}/weight"] = layer.weights[:, :-1].contiguous()
        outcome.tensors[f"{name}/bias"] = layer.weights[:, -1].contiguous()
        outcome.runs.append(
            {
                "column": name,
                "cv_map": 100 * float(layer.cv_ap.mean()),
                "map": 100 * float(layer.test.envelope.mean()),
                "map_sklearn": 100 * float(layer.test.step.mean()),
                "map_11point": 100 * float(layer.test.eleven_point.mean()),
            }
        )
        for c, class_name in enumerate(classes):
            outcome.runs.append(
                {
                    "column": name,
                    "class": class_name,
                    "cost": float(layer.cost[c]),
                    "cv_ap": 100 * float(layer.cv_ap[c]),
                    "ap": 100 * float(layer.test.envelope[c]),
                    "ap_sklearn": 100 * float(layer.test.step[c]),
                    "ap_11point": 100 * float(layer.test.eleven_point[c]),
                    "newton_steps": int(layer.newton_steps[c]),
                }
            )
    candidates = [name for name in layers if name in LAYERS]
    if candidates:
        best = max(candidates, key=lambda name: layers[name].cv_ap.mean())
        oracle = max(candidates, key=lambda name: layers[name].test.by(params.ap_rule).mean())
        chosen = ((BEST, best, "cross-validated mAP on trainval"), (BEST_ORACLE, oracle, "mAP on test (oracle)"))
        for column, name, criterion in chosen:
            _add_column(outcome, column, layers[name], classes, f"{name}, layer by {criterion}", params.ap_rule)
    if params.ap_rule != "envelope":
        outcome.items["ap_rule"] = np.array(params.ap_rule)


def _add_column(
    outcome: Outcome, column: str, layer: _Layer, classes: tuple[str, ...], selection: str, rule: ApRule
) -> None:
    ap = 100 * layer.test.by(rule)
    outcome.scores[column] = Score(value=float(ap.mean()), n=len(layer.decisions), selection=selection)
    outcome.per_class[column] = dict(zip(classes, map(float, ap), strict=True))
    outcome.items[f"decision/{column}"] = layer.decisions

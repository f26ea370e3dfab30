"""VOC07 SVM: one linear SVM per class on all of trainval, its cost by cross-validation, mean average precision on test.

Goyal et al. 2019, "Scaling and Benchmarking Self-Supervised Visual Representation Learning", section 6.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.contract import Outcome, Split
from benchmarks.progress import progress as with_progress
from benchmarks.svm.average_precision import AveragePrecisions, average_precisions, step_ap
from benchmarks.svm.clock import Clock
from benchmarks.svm.costs import solve_costs
from benchmarks.svm.folds import NO_FOLD, assign_folds
from benchmarks.svm.gram import Gram, gram
from benchmarks.svm.inputs import one_hot, refuse_unmeasurable, usable_outputs
from benchmarks.svm.preconditioner import Preconditioner, preconditioner
from benchmarks.svm.rows import normalised_rows
from benchmarks.svm.settings import LAYERS, FullParams, params_of, required_outputs
from benchmarks.svm.solver import solve
from results.schema import Protocol, Score

__all__ = ["required_outputs", "run"]

BEST, BEST_ORACLE = "best", "best_oracle"


@dataclass(frozen=True)
class _Problem:
    """Targets, class weights and folds of all classes, the same for every layer.

    Attributes:
        signs: (C, N) +1 or -1.
        weights: (C, N) class weight; 0 where the image takes no part.
        fold: (C, N) where it is held out.
    """

    signs: Tensor
    weights: Tensor
    fold: NDArray[np.int8]

    @classmethod
    def of(cls, targets: NDArray[np.int8], classes: tuple[str, ...], params: FullParams, device: str) -> _Problem:
        fold = assign_folds(targets, classes, params.folds, drop_ignored=params.ignore_in_train == "drop")
        positive = (targets.T == 1).copy()
        weights = np.where(positive, params.positive_weight, params.negative_weight) * (fold != NO_FOLD)
        signs = np.where(positive, 1.0, -1.0)
        return cls(torch.from_numpy(signs).to(device), torch.from_numpy(weights).to(device), fold)


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
    params = params_of(protocol, FullParams)
    names = usable_outputs(params, train, test)
    classes = train.labels.classes
    test_targets = one_hot(test.labels.targets, len(classes))
    refuse_unmeasurable(test_targets, classes)
    problem = _Problem.of(one_hot(train.labels.targets, len(classes)), classes, params, device)

    outcome = Outcome(scores={}, timing={"gram": 0.0, "cross-validation": 0.0, "refit": 0.0, "test": 0.0})
    layers: dict[str, _Layer] = {}
    fits = ((name, fit) for name in names for fit in range(params.folds * len(params.costs) + 1))
    ticks = iter(
        with_progress(fits, protocol.id, total=len(names) * (params.folds * len(params.costs) + 1), show=progress)
    )
    for name in names:
        layers[name] = _measure(
            train.features[name], test.features[name], test_targets, problem, params, outcome.timing, ticks
        )
    for _ in ticks:  # closes the bar
        pass
    _report(protocol, layers, classes, outcome)
    return outcome


def _measure(
    train: NDArray[np.float32],
    test: NDArray[np.float32],
    test_targets: NDArray[np.int8],
    problem: _Problem,
    params: FullParams,
    timing: dict[str, float],
    ticks: Iterator[Any],
) -> _Layer:
    clock = Clock(timing)
    device = problem.signs.device
    rows = normalised_rows(train, device=device)
    kernel = gram(rows)
    clock.lap("gram")
    leading = preconditioner(kernel)
    cv_ap, starts = _cross_validate(kernel, leading, problem, params, ticks)
    chosen = cv_ap.argmax(0)
    every_class = np.arange(len(chosen))
    clock.lap("cross-validation")
    cost = np.array(params.costs)[chosen]
    start = starts[chosen, every_class].double()[None]
    solution = solve(
        kernel,
        problem.signs[None],
        (problem.weights * torch.from_numpy(cost).to(device)[:, None])[None],
        (start, kernel.product(start)),
        leading,
        tolerance=params.tolerance,
    )
    next(ticks, None)
    weights = rows.weights(solution.beta[0])
    clock.lap("refit")
    decisions = normalised_rows(test, rows.mean, device).decisions(weights).cpu().numpy()
    measured = average_precisions(decisions, test_targets.T)
    clock.lap("test")
    return _Layer(
        cost,
        cv_ap[chosen, every_class],
        measured,
        decisions.T.astype(np.float32),
        weights.float().cpu(),
        solution.newton_steps[0].cpu().numpy(),
    )


def _cross_validate(
    kernel: Gram, leading: Preconditioner, problem: _Problem, params: FullParams, ticks: Iterator[Any]
) -> tuple[NDArray[np.float64], Tensor]:
    """(costs, C) mean average precision over the held-out folds, and (costs, C, N) starts for the refit.

    The classes' folds differ a little, so a fold is solved on the images that any class trains on.
    """
    shape = (len(params.costs), *problem.fold.shape)
    cv_ap = np.zeros(shape[:2])
    starts = torch.zeros(shape, device=problem.signs.device)
    signs = problem.signs.cpu().numpy()
    for fold in range(params.folds):
        member = (problem.fold != fold) & (problem.fold != NO_FOLD)
        images = torch.from_numpy(np.flatnonzero(member.any(0))).to(problem.signs.device)
        weights = problem.weights[:, images] * torch.from_numpy(member).to(problem.signs.device)[:, images]
        held_out = np.where(problem.fold == fold, signs > 0, -1).astype(np.int8)
        part = kernel.select(images[None])
        path = solve_costs(
            part,
            problem.signs[None, :, images],
            weights[None],
            params.costs,
            leading=preconditioner(part, leading.restricted(images[None])),
            tolerance=params.tolerance,
        )
        for i, coefficients in path:
            beta = torch.zeros_like(problem.weights)
            beta[:, images] = coefficients[0]
            cv_ap[i] += step_ap(kernel.product(beta[None])[0].cpu().numpy(), held_out) / params.folds
            # An image trains in all folds but one, so this is the mean of its coefficients.
            starts[i] += (beta / (params.folds - 1)).float()
            next(ticks, None)
    return cv_ap, starts


def _report(protocol: Protocol, layers: dict[str, _Layer], classes: tuple[str, ...], outcome: Outcome) -> None:
    for name, layer in layers.items():
        _add_column(outcome, name, layer, classes, protocol.selection)
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
        oracle = max(candidates, key=lambda name: layers[name].test.envelope.mean())
        _add_column(outcome, BEST, layers[best], classes, f"{best}, layer by cross-validated mAP on trainval")
        _add_column(outcome, BEST_ORACLE, layers[oracle], classes, f"{oracle}, layer by mAP on test (oracle)")


def _add_column(outcome: Outcome, column: str, layer: _Layer, classes: tuple[str, ...], selection: str) -> None:
    ap = 100 * layer.test.envelope
    outcome.scores[column] = Score(value=float(ap.mean()), n=len(layer.decisions), selection=selection)
    outcome.per_class[column] = dict(zip(classes, map(float, ap), strict=True))
    outcome.items[f"decision/{column}"] = layer.decisions

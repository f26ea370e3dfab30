"""All classes of one layer on all of trainval: costs by cross-validation, then the final models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.svm.average_precision import step_ap
from benchmarks.svm.clock import Clock
from benchmarks.svm.costs import solve_costs
from benchmarks.svm.folds import NO_FOLD, assign_folds
from benchmarks.svm.gram import Gram, gram
from benchmarks.svm.preconditioner import Preconditioner, preconditioner
from benchmarks.svm.rows import Rows, normalised_rows
from benchmarks.svm.settings import FullParams
from benchmarks.svm.solver import solve


@dataclass(frozen=True)
class FullProblem:
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
    def of(cls, targets: NDArray[np.int8], classes: tuple[str, ...], params: FullParams, device: str) -> FullProblem:
        fold = assign_folds(targets, classes, params.folds, drop_ignored=params.ignore_in_train == "drop")
        positive = (targets.T == 1).copy()
        weights = np.where(positive, params.positive_weight, params.negative_weight) * (fold != NO_FOLD)
        signs = np.where(positive, 1.0, -1.0)
        return cls(torch.from_numpy(signs).to(device), torch.from_numpy(weights).to(device), fold)


@dataclass(frozen=True)
class FullFit:
    """The models of one layer.

    Attributes:
        rows: the training rows.
        beta: (C, N) coefficients over them.
        cv_ap: (costs, C) cross-validated average precision, not interpolated.
        chosen: (C,) index of the first best cost.
        newton_steps: (C,) of the final models.
    """

    rows: Rows
    beta: Tensor
    cv_ap: NDArray[np.float64]
    chosen: NDArray[np.int64]
    newton_steps: NDArray[np.int64]


def fit_layer(
    features: NDArray[np.float32],
    problem: FullProblem,
    params: FullParams,
    timing: dict[str, float],
    ticks: Iterator[Any],
) -> FullFit:
    """Choose costs on (N, D) training features and train the final models."""
    clock = Clock(timing)
    rows = normalised_rows(features, device=problem.signs.device)
    kernel = gram(rows)
    clock.lap("gram")
    leading = preconditioner(kernel)
    cv_ap, starts = _cross_validate(kernel, leading, problem, params, ticks)
    chosen = cv_ap.argmax(0)
    clock.lap("cross-validation")
    cost = torch.tensor(params.costs, dtype=torch.float64)[chosen].to(problem.signs.device)
    start = starts[chosen, np.arange(len(chosen))].double()[None]
    solution = solve(
        kernel,
        problem.signs[None],
        (problem.weights * cost[:, None])[None],
        (start, kernel.product(start)),
        leading,
        tolerance=params.tolerance,
    )
    next(ticks, None)
    clock.lap("refit")
    return FullFit(rows, solution.beta[0], cv_ap, chosen, solution.newton_steps[0].cpu().numpy())


def _cross_validate(
    kernel: Gram, leading: Preconditioner, problem: FullProblem, params: FullParams, ticks: Iterator[Any]
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

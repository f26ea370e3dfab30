"""All classes of one layer on all of trainval: costs by cross-validation, then the final models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
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
from benchmarks.svm.solver import Solution, solve
from benchmarks.svm.threads import map_on_cores


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
    finals = list(
        map_on_cores(
            partial(_final, kernel, leading, problem, params, chosen, starts),
            _halves(len(chosen)),
            problem.signs.device,
        )
    )
    next(ticks, None)
    clock.lap("refit")
    steps = torch.cat([final.newton_steps[0] for final in finals]).cpu().numpy()
    return FullFit(rows, torch.cat([final.beta[0] for final in finals]), cv_ap, chosen, steps)


def _halves(classes: int) -> list[slice]:
    """Classes in as many pieces as keep two cores busy: three folds alone would leave one idle a third of the time."""
    edges = np.linspace(0, classes, 1 + min(2, torch.get_num_threads(), classes)).round().astype(int).tolist()
    return [slice(*edge) for edge in pairwise(edges)]


def _final(
    kernel: Gram,
    leading: Preconditioner,
    problem: FullProblem,
    params: FullParams,
    chosen: NDArray[np.int64],
    starts: Tensor,
    classes: slice,
) -> Solution:
    """The models of some classes at their chosen costs, from (costs, C, N) starts."""
    cost = torch.tensor(params.costs, dtype=torch.float64)[chosen[classes]].to(problem.signs.device)
    start = starts[chosen, np.arange(len(chosen))][classes].double()[None]
    return solve(
        kernel,
        problem.signs[classes][None],
        (problem.weights[classes] * cost[:, None])[None],
        (start, kernel.product(start)),
        leading,
        tolerance=params.tolerance,
    )


def _cross_validate(
    kernel: Gram, leading: Preconditioner, problem: FullProblem, params: FullParams, ticks: Iterator[Any]
) -> tuple[NDArray[np.float64], Tensor]:
    """(costs, C) mean average precision over the held-out folds, and (costs, C, N) starts for the final models."""
    shape = (len(params.costs), *problem.fold.shape)
    cv_ap = np.zeros(shape[:2])
    starts = torch.zeros(shape, device=problem.signs.device)
    work = partial(_fold, kernel, leading, problem, params)
    pieces = [(fold, classes) for classes in _halves(shape[1]) for fold in range(params.folds)]
    for (_, classes), (ap, beta) in zip(pieces, map_on_cores(work, pieces, problem.signs.device), strict=True):
        cv_ap[:, classes] += ap / params.folds
        # An image trains in all folds but one, so this is the mean of its coefficients.
        starts[:, classes] += beta / (params.folds - 1)
        if classes.stop == shape[1]:
            next(ticks, None)
    return cv_ap, starts


def _fold(
    kernel: Gram, leading: Preconditioner, problem: FullProblem, params: FullParams, piece: tuple[int, slice]
) -> tuple[NDArray[np.float64], Tensor]:
    """(costs, C') average precision of some classes on the held-out fold, (costs, C', N) float32 coefficients.

    The classes' folds differ a little, so it is solved on the images that any of them trains on.
    """
    device = problem.signs.device
    fold, classes = piece
    signs, of_class = problem.signs[classes], problem.fold[classes]
    member, held_out = (of_class != fold) & (of_class != NO_FOLD), of_class == fold
    images, others = (torch.from_numpy(np.flatnonzero(which.any(0))).to(device) for which in (member, held_out))
    part = kernel.select(images[None])
    path = solve_costs(
        part,
        signs[None, :, images],
        (problem.weights[classes] * torch.from_numpy(member).to(device))[None, :, images],
        params.costs,
        tolerance=params.tolerance,
        leading=preconditioner(part, leading.restricted(images[None])),
    )
    coefficients = torch.zeros(len(params.costs), *member.shape, device=device)
    found = torch.zeros(len(params.costs), len(member), len(images), dtype=torch.float64, device=device)
    for i, beta in path:
        found[i] = beta[0]
    coefficients[:, :, images] = found.float()
    decisions = kernel.across(found.flatten(0, 1), images, others).unflatten(0, found.shape[:2])
    labels = np.where(held_out, signs.cpu().numpy() > 0, -1).astype(np.int8)[:, others.cpu().numpy()]
    return step_ap(decisions.cpu().numpy(), labels), coefficients

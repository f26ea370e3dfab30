"""One SVM per class on all images, its cost chosen by cross-validation."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.solvers.average_precision import average_precisions
from benchmarks.solvers.gram import Gram, gram, normalised_rows
from benchmarks.solvers.squared_hinge import Solution, solve, solve_costs
from benchmarks.solvers.threads import map_on_cores


@dataclass(frozen=True)
class ClassModels:
    """The models of C classes at their chosen costs.

    Attributes:
        weights: (C, D + 1) float64, the intercept last, for features divided by their norm.
        mean: (D,) float64 mean of the training rows.
        cv_ap: (costs, C) mean average precision on the held-out folds, not interpolated.
        chosen: (C,) index of the first best cost.
        newton_steps: (C,) of the final models.
        seconds: by phase.
    """

    weights: Tensor
    mean: Tensor
    cv_ap: NDArray[np.float64]
    chosen: NDArray[np.int64]
    newton_steps: NDArray[np.int64]
    seconds: dict[str, float] = field(default_factory=dict)

    def decisions(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """(C, N) decision values of (N, D) features."""
        return normalised_rows(features, self.mean, self.mean.device).decisions(self.weights).cpu().numpy()


def fit_cross_validated(
    features: NDArray[np.float32],
    positive: NDArray[np.bool_],
    weights: NDArray[np.float64],
    folds: NDArray[np.int8],
    costs: Sequence[float],
    *,
    tolerance: float,
    device: str = "cpu",
    fold_done: Callable[[], object] = lambda: None,
) -> ClassModels:
    """Choose each class's cost by cross-validation on (N, D) features, then train on all images at that cost.

    Args:
        positive: (C, N) whether an image is a positive of the class; else it is a negative.
        weights: (C, N) class weights, factors of the cost.
        folds: (C, N) the fold in which an image is held out, from 0; -1 where it takes no part.
        tolerance: see `squared_hinge.solve`.
        fold_done: called after each fold and after the final models.
    """
    laps = [time.perf_counter()]
    rows = normalised_rows(features, device=device)
    kernel = gram(rows)
    _ = kernel.leading  # now, and not in several threads at once
    laps.append(time.perf_counter())

    work = _Work(kernel, positive, weights, folds, costs, tolerance)
    shape = (len(costs), *folds.shape)
    count = int(folds.max()) + 1
    cv_ap = np.zeros(shape[:2])
    starts = torch.zeros(shape, device=device)
    pieces = [(fold, classes) for classes in _halves(shape[1]) for fold in range(count)]
    for (_, classes), (ap, beta) in zip(pieces, map_on_cores(work.held_out, pieces, device), strict=True):
        cv_ap[:, classes] += ap / count
        # An image trains in all folds but one, so this is the mean of its coefficients.
        starts[:, classes] += beta / (count - 1)
        if classes.stop == shape[1]:
            fold_done()
    chosen = cv_ap.argmax(0)
    laps.append(time.perf_counter())

    final = partial(work.final, chosen, starts)
    solutions = list(map_on_cores(final, _halves(len(chosen)), device))
    fold_done()
    models = rows.weights(torch.cat([solution.beta[0] for solution in solutions]))
    steps = torch.cat([solution.newton_steps[0] for solution in solutions]).cpu().numpy()
    laps.append(time.perf_counter())
    phases = zip(("gram", "cross-validation", "refit"), pairwise(laps), strict=True)
    return ClassModels(models, rows.mean, cv_ap, chosen, steps, {name: end - begin for name, (begin, end) in phases})


def _halves(classes: int) -> list[slice]:
    """Classes in as many pieces as keep two cores busy: three folds alone would leave one idle a third of the time."""
    edges = np.linspace(0, classes, 1 + min(2, torch.get_num_threads(), classes)).round().astype(int).tolist()
    return [slice(*edge) for edge in pairwise(edges)]


class _Work:
    """The pieces of work that run in parallel, on tensors of one device."""

    def __init__(
        self,
        kernel: Gram,
        positive: NDArray[np.bool_],
        weights: NDArray[np.float64],
        folds: NDArray[np.int8],
        costs: Sequence[float],
        tolerance: float,
    ) -> None:
        device = kernel.shift.device
        self._kernel, self._positive, self._folds, self._costs = kernel, positive, folds, costs
        self._signs = torch.from_numpy(np.where(positive, 1.0, -1.0)).to(device)
        self._weights = torch.from_numpy(weights * (folds >= 0)).to(device)
        self._tolerance = tolerance

    def held_out(self, piece: tuple[int, slice]) -> tuple[NDArray[np.float64], Tensor]:
        """(costs, C') average precision of some classes on one held-out fold, (costs, C', N) float32 coefficients.

        The classes' folds differ a little, so it is solved on the images that any of them trains on.
        """
        fold, classes = piece
        device = self._signs.device
        positive, of_class = self._positive[classes], self._folds[classes]
        member, held_out = (of_class != fold) & (of_class >= 0), of_class == fold
        images, others = (torch.from_numpy(np.flatnonzero(which.any(0))).to(device) for which in (member, held_out))
        path = solve_costs(
            self._kernel.select(images[None]),
            self._signs[classes][None, :, images],
            (self._weights[classes] * torch.from_numpy(member).to(device))[None, :, images],
            self._costs,
            tolerance=self._tolerance,
        )
        found = torch.zeros(len(self._costs), len(member), len(images), dtype=torch.float64, device=device)
        for i, beta in path:
            found[i] = beta[0]
        coefficients = torch.zeros(len(self._costs), *member.shape, device=device)
        coefficients[:, :, images] = found.float()
        decisions = self._kernel.across(found.flatten(0, 1), images, others).unflatten(0, found.shape[:2])
        labels = np.where(held_out, positive, -1).astype(np.int8)[:, others.cpu().numpy()]
        return average_precisions(decisions.cpu().numpy(), labels).step, coefficients

    def final(self, chosen: NDArray[np.int64], starts: Tensor, classes: slice) -> Solution:
        """The models of some classes at their chosen costs, from (costs, C, N) starts."""
        cost = torch.tensor(self._costs, dtype=torch.float64)[chosen[classes]].to(self._signs.device)
        start = starts[chosen, np.arange(len(chosen))][classes].double()[None]
        return solve(
            self._kernel,
            self._signs[classes][None],
            (self._weights[classes] * cost[:, None])[None],
            (start, self._kernel.product(start)),
            tolerance=self._tolerance,
        )

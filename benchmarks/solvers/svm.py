"""The SVMs of the two protocols: `fit_cross_validated` trains one per class on all images, its cost chosen by
cross-validation; `fit_subsets` trains many on drawn subsets of the images. The optimum of each is `squared_hinge`'s.

Both run on the CPU. Newton's steps wait for a decision about every problem, thousands of times in a protocol: on a GPU
each is a stall, and the matrices are small.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, pairwise
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from benchmarks.solvers.average_precision import average_precisions
from benchmarks.solvers.gram import CHUNK_ROWS, Gram, gram, mean_products, normalised_rows
from benchmarks.solvers.squared_hinge import Solution, solve, solve_costs
from pretrain.distributed import cores

Found = TypeVar("Found")

_MODELS_TOGETHER = 32  # per Gram matrix, decided at once
_Decisions = tuple[NDArray[np.float32], NDArray[np.float32]]


# ---- on all images


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
        return normalised_rows(features, self.mean).decisions(self.weights).numpy()


def fit_cross_validated(
    features: NDArray[np.float32],
    positive: NDArray[np.bool_],
    weights: NDArray[np.float64],
    folds: NDArray[np.int8],
    costs: Sequence[float],
    *,
    tolerance: float,
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
    rows = normalised_rows(features)
    kernel = gram(rows)
    _ = kernel.leading  # now, and not in several threads at once
    laps.append(time.perf_counter())

    work = _Work(kernel, positive, weights, folds, costs, tolerance)
    shape = (len(costs), *folds.shape)
    count = int(folds.max()) + 1
    cv_ap = np.zeros(shape[:2])
    starts = torch.zeros(shape)
    pieces = [(fold, classes) for classes in _halves(shape[1]) for fold in range(count)]
    with cores(len(pieces)) as threads:
        for (_, classes), (ap, beta) in zip(pieces, threads.map(work.held_out, pieces), strict=True):
            cv_ap[:, classes] += ap / count
            # An image trains in all folds but one, so this is the mean of its coefficients.
            starts[:, classes] += beta / (count - 1)
            if classes.stop == shape[1]:
                fold_done()
    chosen = cv_ap.argmax(0)
    laps.append(time.perf_counter())

    halves = _halves(len(chosen))
    with cores(len(halves)) as threads:
        solutions = threads.run(partial(work.final, chosen, starts), halves)
    fold_done()
    models = rows.weights(torch.cat([solution.beta[0] for solution in solutions]))
    steps = torch.cat([solution.newton_steps[0] for solution in solutions]).numpy()
    laps.append(time.perf_counter())
    phases = zip(("gram", "cross-validation", "refit"), pairwise(laps), strict=True)
    return ClassModels(models, rows.mean, cv_ap, chosen, steps, {name: end - begin for name, (begin, end) in phases})


def _halves(classes: int) -> list[slice]:
    """Classes in as many pieces as keep two cores busy: three folds alone would leave one idle a third of the time."""
    edges = np.linspace(0, classes, 1 + min(2, torch.get_num_threads(), classes)).round().astype(int).tolist()
    return [slice(*edge) for edge in pairwise(edges)]


class _Work:
    """The pieces of work that run in parallel."""

    def __init__(
        self,
        kernel: Gram,
        positive: NDArray[np.bool_],
        weights: NDArray[np.float64],
        folds: NDArray[np.int8],
        costs: Sequence[float],
        tolerance: float,
    ) -> None:
        self._kernel, self._positive, self._folds, self._costs = kernel, positive, folds, costs
        self._signs = torch.from_numpy(np.where(positive, 1.0, -1.0))
        self._weights = torch.from_numpy(weights * (folds >= 0))
        self._tolerance = tolerance

    def held_out(self, piece: tuple[int, slice]) -> tuple[NDArray[np.float64], Tensor]:
        """(costs, C') average precision of some classes on one held-out fold, (costs, C', N) float32 coefficients.

        The classes' folds differ a little, so it is solved on the images that any of them trains on.
        """
        fold, classes = piece
        positive, of_class = self._positive[classes], self._folds[classes]
        member, held_out = (of_class != fold) & (of_class >= 0), of_class == fold
        images, others = (torch.from_numpy(np.flatnonzero(which.any(0))) for which in (member, held_out))
        path = solve_costs(
            self._kernel.select(images[None]),
            self._signs[classes][None, :, images],
            (self._weights[classes] * torch.from_numpy(member))[None, :, images],
            self._costs,
            tolerance=self._tolerance,
        )
        found = torch.zeros(len(self._costs), len(member), len(images), dtype=torch.float64)
        for i, beta in path:
            found[i] = beta[0]
        coefficients = torch.zeros(len(self._costs), *member.shape)
        coefficients[:, :, images] = found.float()
        decisions = self._kernel.across(found.flatten(0, 1), images, others).unflatten(0, found.shape[:2])
        labels = np.where(held_out, positive, -1).astype(np.int8)[:, others.numpy()]
        return average_precisions(decisions.numpy(), labels).step, coefficients

    def final(self, chosen: NDArray[np.int64], starts: Tensor, classes: slice) -> Solution:
        """The models of some classes at their chosen costs, from (costs, C, N) starts."""
        cost = torch.tensor(self._costs, dtype=torch.float64)[chosen[classes]]
        start = starts[chosen, np.arange(len(chosen))][classes].double()[None]
        return solve(
            self._kernel,
            self._signs[classes][None],
            (self._weights[classes] * cost[:, None])[None],
            (start, self._kernel.product(start)),
            tolerance=self._tolerance,
        )


# ---- on drawn subsets


class Subset(Protocol):
    """Binary problems that are solved together: g sets of n training images, m problems on each."""

    @property
    def images(self) -> NDArray[np.int64]:
        """(g, n) rows of the training features."""

    @property
    def positive(self) -> NDArray[np.bool_]:
        """(g, m, n) whether an image is a positive of the problem; else it is a negative."""

    @property
    def compared(self) -> NDArray[np.int64]:
        """(O,) training images to decide on; the test images are always decided on."""


SubsetT = TypeVar("SubsetT", bound=Subset)


@dataclass(frozen=True)
class SubsetModels:
    """The models of a subset at c of its costs.

    Attributes:
        costs: c indices into the subset's costs.
        compared: (c, g, m, O) float32 decisions on the subset's `compared` images.
        test: (c, g, m, N) float32 decisions on the test images.
    """

    costs: list[int]
    compared: NDArray[np.float32]
    test: NDArray[np.float32]
    _part: Gram
    _beta: Tensor  # (c, g, m, n)

    def weights(self) -> Tensor:
        """(c, g, m, D + 1) float32, the intercept last, for features divided by their norm."""
        places = [self._part.rows(place) for place in range(self._beta.shape[1])]
        return torch.stack(
            [
                torch.stack([rows.weights(beta).float() for rows, beta in zip(places, of_cost, strict=True)])
                for of_cost in self._beta
            ]
        )


def fit_subsets(
    train: NDArray[np.float32],
    test: NDArray[np.float32],
    subsets: Sequence[SubsetT],
    costs: Sequence[Sequence[float]],
    score: Callable[[SubsetT, Iterator[SubsetModels]], Found],
    *,
    class_weights: tuple[float, float],
    tolerance: float,
    all_pairs: bool,
) -> Iterator[Found]:
    """Train on subsets of (N, D) `train` features; yields `score(subset, models)` of every subset, in order.

    Args:
        costs: of each subset.
        score: called in several threads at once. Its second argument yields the models as they are solved, a few costs
            at a time and in an order that suits the solver.
        class_weights: of positives and negatives, factors of the cost.
        tolerance: see `squared_hinge.solve`.
        all_pairs: keep the inner products of all training images with all images, for many problems on a few thousand
            images. Otherwise only the drawn rows are read, and g must be 1.
    """
    rows = (_AllPairs if all_pairs else _DrawnRows)(train, test)

    def models(subset: SubsetT, its_costs: Sequence[float]) -> Iterator[SubsetModels]:
        part = rows.gram(subset.images)
        positive = torch.from_numpy(subset.positive)
        signs = torch.where(positive, 1.0, -1.0).double()
        weights = torch.where(positive, *class_weights).double()
        path = solve_costs(part, signs, weights, its_costs, tolerance=tolerance)
        count, m = subset.positive.shape[:2]
        while solved := list(islice(path, max(1, _MODELS_TOGETHER // m))):
            beta = torch.cat([of_cost for _, of_cost in solved], 1)
            # From (g, c m, images) to (c, g, m, images).
            compared, on_test = (
                values.reshape(count, len(solved), m, values.shape[-1]).swapaxes(0, 1)
                for values in rows.decisions(part, beta, subset.images, subset.compared)
            )
            of_costs = torch.stack([of_cost for _, of_cost in solved])
            yield SubsetModels([cost for cost, _ in solved], compared, on_test, part, of_costs)

    def work(item: tuple[SubsetT, Sequence[float]]) -> Found:
        return score(item[0], models(*item))

    items = list(zip(subsets, costs, strict=True))
    with cores(len(items)) as threads:
        yield from threads.map(work, items)


class _AllPairs:
    """Keeps the inner products of all training images with all images."""

    def __init__(self, train: NDArray[np.float32], test: NDArray[np.float32]) -> None:
        rows = normalised_rows(train)
        test_rows = normalised_rows(test, rows.mean)
        self._whole = gram(rows)
        _ = self._whole.leading  # now, and not in several threads at once
        assert self._whole.dense is not None
        self._cross = torch.cat([self._whole.dense[0], rows.centred @ test_rows.centred.T], 1)
        self._shift = torch.cat([self._whole.shift[0], mean_products(test_rows)])

    def gram(self, images: NDArray[np.int64]) -> Gram:
        """The stack of Gram matrices of (g, n) training images."""
        return self._whole.select(torch.from_numpy(images))

    def decisions(self, part: Gram, beta: Tensor, images: NDArray[np.int64], compared: NDArray[np.int64]) -> _Decisions:
        """(g, m, images) decisions on `compared` and on the test images of (g, m, n) coefficients over `images`."""
        train_images = len(self._whole.whole)
        start = 0 if len(compared) else train_images  # the test images alone are half the work
        cross, shifts = self._cross[:, start:], self._shift[start:]
        found = []
        for of_place, shift, at in zip(beta, part.shift, torch.from_numpy(images), strict=True):
            total = of_place.sum(-1, keepdim=True)
            common = (of_place @ shift)[:, None] + part.constant * total
            found.append((of_place.float() @ cross[at]).double() + total * shifts + common)
        every = torch.stack(found).float().numpy()
        return every[..., compared], every[..., train_images - start :]


class _DrawnRows:
    """Reads only the drawn rows."""

    def __init__(self, train: NDArray[np.float32], test: NDArray[np.float32]) -> None:
        self._train, self._test = train, test

    def gram(self, images: NDArray[np.int64]) -> Gram:
        return gram(normalised_rows(self._train[images[0]]))

    def decisions(self, part: Gram, beta: Tensor, images: NDArray[np.int64], compared: NDArray[np.int64]) -> _Decisions:
        rows = part.rows()
        weights = rows.weights(beta[0])
        signal, constant = weights[:, :-1].float(), (weights[:, :-1] @ rows.mean + weights[:, -1]).float()

        def on(features: NDArray[np.float32], which: NDArray[np.int64]) -> NDArray[np.float32]:
            found = [signal.new_zeros(len(signal), 0)]
            for start in range(0, len(which), CHUNK_ROWS):
                block = normalised_rows(features[which[start : start + CHUNK_ROWS]], rows.mean)
                found.append(functional.linear(signal, block.centred))
            return (torch.cat(found, 1) + constant[:, None]).float().numpy()[None]

        return on(self._train, compared), on(self._test, np.arange(len(self._test)))

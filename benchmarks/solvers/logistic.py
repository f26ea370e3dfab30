"""Logistic regression by full-batch L-BFGS: for every cost C at once, or along a path of penalties.

`fit_logistic` is the one to use. It solves all costs in one set of passes over the rows:

    _Data       the rows on the device, centred, and the principal axes in which weights are expressed: along them the
                Hessian is nearly diagonal, so that few steps are needed
    _Problems   one minimisation per cost (or per cost and class), and what a pass over the rows finds of them
    _minimise   L-BFGS on many problems side by side, each with its own steps; costs of the same rows follow each other
                in ascending order, each from an extrapolation of those before

Large problems in float64 are solved in float32 as far as its rounding allows, and then go on in float64. On a GPU the
float32 products are made of float16 ones (`Halves`).

`logistic_path` is a plain loop around `torch.optim.LBFGS`. The records of `linear-stored` say that it standardises,
counts its iterations and starts its fits as it does, so it stays for them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.solvers.half_precision import Halves
from benchmarks.solvers.linear_heads import target_ranks
from pretrain.distributed import Sender, free_memory, full_precision, row_products, sent
from results.errors import InputError

Loss = Literal["multinomial", "one_vs_rest"]
Track = Callable[[Iterable[None], str], Iterable[None]]  # wraps an iterator, as a progress bar does

# Memory and the shapes of products
RESIDENT_BYTES = 2 * 2**30  # of rows that stay in main memory; on a GPU it is half of what is free
LOGITS_BYTES = 2**26  # of logits in memory at a time
CACHED_BYTES = 2**21  # of logits on a CPU while fitting: exponentials and sums then run in its cache
STATE_BYTES = 4 * 2**30  # of L-BFGS's memory; on a GPU it is half of what is free
LEAST_ROWS = 1024  # of one product, so that it runs at full speed; fewer fits share it where their logits are many
MAX_ROTATED_DIM = 4096  # up to which the principal axes are computed: their time grows with the cube

# Float32 first, where the fits are in float64
SMALL_WORK = 10**8  # rows x dim x classes, above which products are made in float32 as far as that goes
FLOAT32_SHARE = 0.9  # of the tolerance, to which fits go in float32: the rest is for its rounding
HALVES_SHARE = 0.7  # with products of float16, whose sums are truncated
FLOAT32_FLOOR = 3e-7  # but no further: float64 goes on from there

# L-BFGS
HISTORY = 10  # steps that L-BFGS remembers of each problem
LEAST_CURVATURE = 1e-3  # of the largest of any class: no step is based on what a class that is certain everywhere has
MAX_REJECTED = 25  # trial steps in a row, after which a fit has reached the rounding of its dtype
MAX_REJECTED_FLOAT32 = 4  # where float64 can go on

# Starts
MOST_BEYOND = 2.0  # of a line through two solved costs: no further beyond the second than the first is before it
NEAR = 10.01  # ratio of two costs, a decade, within which the weights are nearly a parabola in log C
ABSENT = -1e4  # bias of a class without rows, in place of minus infinity: losses of its held-out rows stay finite


# ---- every cost at once ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """Rows that belong to some of the fits. Fits may share rows, as 1, 2, 4 … images per class of one draw do.

    Attributes:
        rows: (m,) row numbers.
        fits: numbers of the fits that are fitted to them.
    """

    rows: NDArray[np.int64]
    fits: tuple[int, ...]


@dataclass(frozen=True)
class Fits:
    """The classifier of each cost, for features as they are.

    Attributes:
        costs: C of each fit.
        weights: (fits, classes, dim) on the device, in the dtype that was solved in.
        bias: (fits, classes).
        iterations: (fits,) steps of L-BFGS; of one class against the rest, the most of any class.
        gradient: (fits,) largest component of the gradient at the end; a bound on it where the weights of the cost
            before serve as well.
        converged: (fits,) whether it is at most the tolerance.
        passes: over the rows, summed over the fits, in the dtype of the weights; each makes two products.
        single_passes: the same in float32, where the fits are in float64.
    """

    costs: tuple[float, ...]
    weights: Tensor
    bias: Tensor
    iterations: NDArray[np.int64]
    gradient: NDArray[np.float64]
    converged: NDArray[np.bool_]
    passes: float = 0.0
    single_passes: float = 0.0

    def logits(self, rows: NDArray[Any]) -> Tensor:
        """(N, fits, classes) of (N, dim) features, on the device."""
        x = as_tensor(rows).to(self.weights.device, self.weights.dtype)
        fits, classes, dim = self.weights.shape
        return F.linear(x, self.weights.reshape(-1, dim), self.bias.reshape(-1)).view(-1, fits, classes)

    def ranks(self, features: NDArray[Any], targets: NDArray[Any], rows: NDArray[np.int64] | None = None) -> Tensor:
        """(fits, N) how many classes each fit ranks above the true one, on the CPU; of all rows or of `rows`."""
        items = np.arange(len(features)) if rows is None else rows
        chunk = max(1, LOGITS_BYTES // (self.bias.numel() * self.bias.element_size()))
        parts = []
        for part in _parts(items, chunk):
            truth = torch.from_numpy(targets[part]).to(self.bias.device)
            parts.append(target_ranks(self.logits(features[part]), truth).cpu())
        return torch.cat(parts, dim=1)

    def losses(self, features: NDArray[Any], targets: NDArray[Any], rows: NDArray[np.int64]) -> Tensor:
        """(fits,) mean cross-entropy of each multinomial fit over `rows`, float64, on the CPU."""
        total = torch.zeros(len(self.costs), dtype=torch.float64, device=self.bias.device)
        chunk = max(1, LOGITS_BYTES // (self.bias.numel() * 8))
        for part in _parts(rows, chunk):
            truth = torch.from_numpy(targets[part]).to(self.bias.device)[:, None].expand(-1, len(self.costs))
            total += F.cross_entropy(self.logits(features[part]).double().movedim(1, 2), truth, reduction="none").sum(0)
        return (total / len(rows)).cpu()

    def of_classes(self, classes: NDArray[np.int64]) -> Fits:
        """The part of the weights that belongs to these classes."""
        return replace(self, weights=self.weights[:, classes], bias=self.bias[:, classes])

    def with_classes(self, present: NDArray[np.int64], classes: int) -> Fits:
        """The same fits where its classes are the `present` ones of so many; the others are never likely."""
        weights = self.weights.new_zeros(len(self.costs), classes, self.weights.shape[2])
        bias = self.bias.new_full((len(self.costs), classes), ABSENT)
        weights[:, present], bias[:, present] = self.weights, self.bias
        return replace(self, weights=weights, bias=bias)

    def select(self, fits: Sequence[int]) -> Fits:
        """These fits, in this order."""
        index = list(fits)
        return Fits(
            tuple(self.costs[fit] for fit in index),
            self.weights[index],
            self.bias[index],
            self.iterations[index],
            self.gradient[index],
            self.converged[index],
        )


@full_precision()
def fit_logistic(
    features: NDArray[Any],
    targets: NDArray[Any],
    classes: int,
    costs: Sequence[float],
    *,
    sample_rows: NDArray[np.int64] | Sequence[Block] | None = None,
    loss: Loss = "multinomial",
    standardise: bool = False,
    start: Fits | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    chunk: int = 65536,
    tolerance: float = 1e-5,
    max_iterations: int = 1000,
    float32_first: bool | None = None,
    resident_bytes: int | None = None,
    track: Track | None = None,
) -> Fits:
    """Logistic regression with an L2 penalty, as scikit-learn's `LogisticRegression(C=…)`, for every C.

    Minimises C times the summed loss plus |W|² / 2; biases are not penalised. Costs that share their rows are solved
    one after the other, each from the weights and the memory of those before. Fits with rows or starts of their own
    are solved together, and share the products with the features; one that has converged drops out.

    Args:
        features: (N, dim), maybe memory-mapped.
        targets: (N,) class indices; for one against the rest also (N, classes) of 1 present, 0 absent, -1 left out. A
            class that no fitted row has is left out of a multinomial fit, as scikit-learn does.
        costs: C of each fit, in any order.
        sample_rows: rows to fit, all by default. Blocks give each fit rows of its own.
        loss: `multinomial`, for two classes scikit-learn's single logit; or each class against the rest.
        standardise: centre each dimension and divide it by its deviation over the rows (a constant one stays constant).
        start: fits of the same costs to start from, as those of a part of the rows.
        chunk: the most rows on the device at a time, where not all of them fit in `resident_bytes`.
        tolerance: a fit has converged when no component of the gradient of the mean loss + |W|² / (2 C n) is larger;
            it is scikit-learn's `tol`.
        max_iterations: steps of L-BFGS for each fit.
        float32_first: multiply in float32 as long as its rounding allows, where `dtype` is float64; by default where
            the problem is large.
        track: wraps the passes over the rows.

    Raises:
        InputError: a feature is not finite.
        ValueError: a cost is not positive, or a fit has no rows.
    """
    if not len(costs) or min(costs) <= 0 or not np.isfinite(costs).all():
        raise ValueError(f"costs must be positive, got {tuple(costs)}")
    device = torch.device(device)
    if sample_rows is None or isinstance(sample_rows, np.ndarray):
        rows = np.arange(len(features)) if sample_rows is None else sample_rows
        blocks: Sequence[Block] = (Block(rows, tuple(range(len(costs)))),)
    else:
        blocks = sample_rows
    if loss == "multinomial":
        present = np.unique(np.concatenate([targets[block.rows] for block in blocks]))
        if 0 < len(present) < classes:
            # The bias of a class without rows has no minimum, and the search for one ruins the steps of the others.
            found = fit_logistic(
                features, np.searchsorted(present, targets), len(present), costs, sample_rows=blocks,
                standardise=standardise, start=None if start is None else start.of_classes(present), device=device,
                dtype=dtype, chunk=chunk, tolerance=tolerance, max_iterations=max_iterations,
                float32_first=float32_first, resident_bytes=resident_bytes, track=track,
            )  # fmt: skip
            return found.with_classes(present, classes)
    if float32_first is None:
        float32_first = sum(len(block.rows) for block in blocks) * features.shape[1] * classes > SMALL_WORK
    first = torch.float32 if float32_first else dtype
    data = _Data(features, targets, blocks, standardise, device, first, chunk, resident_bytes)
    if first != dtype and device.type == "cuda" and hasattr(torch.ops.aten.mm, "dtype"):  # it came with torch 2.8
        data.halve()
    problems = _Problems(data, classes, np.asarray(costs, np.float64), loss)
    track = track or (lambda passes, _: passes)

    def run(passes: Iterable[None]) -> None:
        for _ in track(passes, "logistic regression, passes over the rows"):
            pass

    stopping = _Stopping(tolerance, max_iterations, MAX_REJECTED)
    goal = stopping
    if first != dtype:
        share = HALVES_SHARE if data.halved else FLOAT32_SHARE
        goal = _Stopping(max(FLOAT32_FLOOR, share * tolerance), max_iterations, MAX_REJECTED_FLOAT32)
    if start is not None:
        problems.begin_from(start)
    if start is None and len(blocks) == 1:
        run(_solve_path(problems, goal))
    else:
        run(_solve_together(problems, goal, problems.numbers))
    if first == dtype:
        return problems.fits(tolerance)
    exact = problems.in_float64()
    exact.gradient = problems.gradient + _float32_error(problems, exact)
    run(_solve_together(exact, stopping, exact.numbers[exact.gradient > tolerance]))
    return replace(exact.fits(tolerance), single_passes=problems.evaluated / problems.per_fit)


def _float32_error(single: _Problems, double: _Problems) -> float:
    """The largest difference of a gradient's component in float32 from float64, at the least and the greatest cost."""
    ends = [int(single.costs.argmin()), int(single.costs.argmax())]
    which = single.numbers.view(-1, single.per_fit)[ends].flatten()
    gradients = [problems.evaluate(problems.weights[which], which).outer_gradient for problems in (single, double)]
    return float((gradients[0] - gradients[1]).abs().max())


# ---- the rows and the objective --------------------------------------------------------------------------------------


class _Data:
    """The rows on the device, centred, and their principal axes.

    Attributes:
        mean, scale: (dim,) by which rows are centred and divided.
        axes: (dim, r) orthonormal directions in which weights are expressed; None for the given dimensions.
        variances: (r,) of the rows along them.
        resident: the chunks of each block, where they fit in memory.
        halved: whether the chunks are `Halves`.
    """

    def __init__(
        self,
        features: NDArray[Any],
        targets: NDArray[Any],
        blocks: Sequence[Block],
        standardise: bool,
        device: torch.device,
        dtype: torch.dtype,
        chunk: int,
        resident_bytes: int | None,
    ) -> None:
        self.features, self.targets, self.blocks = features, targets, blocks
        self.device, self.chunk, self.standardise, self._send = device, chunk, standardise, Sender(device)
        every = np.unique(np.concatenate([block.rows for block in blocks]))
        mean = _mean(features, every, chunk)
        deviation = _deviation(features, every, chunk, mean) if standardise else np.ones_like(mean)
        self._mean, self._scale = torch.from_numpy(mean).to(device), torch.from_numpy(deviation).to(device)
        self._axes: Tensor | None = None
        self._variances = torch.zeros(len(mean), dtype=torch.float64, device=device)
        self.resident: list[list[Tensor | Halves]] | None = None
        self.halved = False
        self._cast(dtype)
        resident_bytes = _room(device, RESIDENT_BYTES) if resident_bytes is None else resident_bytes
        dim, count = len(mean), sum(len(block.rows) for block in blocks)
        fits_in_memory = count * dim * dtype.itemsize <= resident_bytes
        if fits_in_memory:
            self.resident = [[self._load(part) for part in _parts(block.rows, chunk)] for block in blocks]
        if 2 * len(every) <= dim and fits_in_memory:  # weights lie in the span of the rows, which is small
            span, coordinates = torch.linalg.qr(self._load(every).double().T)
            self._variances, turn = torch.linalg.eigh(coordinates @ coordinates.T / len(every))
            self._axes = span @ turn
        elif dim <= MAX_ROTATED_DIM:
            gram = torch.zeros(dim, dim, dtype=torch.float64, device=device)
            for part in _parts(every, min(chunk, 8192)):
                x = self._load(part).T
                gram += row_products(x, x)
            self._variances, self._axes = torch.linalg.eigh(gram / len(every))
        else:
            for part in _parts(every, chunk):
                self._variances += self._load(part).square().sum(dim=0).double() / len(every)
        self._cast(dtype)

    def _cast(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.mean, self.scale = self._mean.to(dtype), self._scale.to(dtype)
        self.axes = None if self._axes is None else self._axes.to(dtype)
        # Rounding leaves nothing meaningful in directions of next to no variance: do not amplify it.
        least = 1e-8 if dtype == torch.float32 else 1e-13
        self.variances = self._variances.clamp_min(float(self._variances.max()) * least + 1e-300).to(dtype)

    def in_float64(self) -> _Data:
        """The same for a few passes in float64: its rows are not kept."""
        other = copy(self)
        other._cast(torch.float64)
        other.resident, other.halved = None, False
        return other

    def halve(self) -> None:
        """Go on with `Halves`, which take as much memory."""
        self.halved = True
        for block in self.resident or ():
            block[:] = [self._operand(x) for x in block]

    def _operand(self, x: Tensor | Halves) -> Tensor | Halves:
        return Halves(x) if self.halved and isinstance(x, Tensor) else x

    def _load(self, rows: NDArray[np.int64]) -> Tensor:
        return _standardised(_rows_of(self.features, rows), self.mean, self.scale, self._send)

    def chunks(self, number: int) -> Iterator[tuple[Tensor | Halves, Tensor]]:
        """(rows, targets) of a block on the device, at most `chunk` rows at a time."""
        for index, part in enumerate(_parts(self.blocks[number].rows, self.chunk)):
            x = self._operand(self._load(part)) if self.resident is None else self.resident[number][index]
            yield x, sent(torch.from_numpy(self.targets[part]), self.device)

    def from_axes(self, weights: Tensor) -> Tensor:
        """Weights (A, width, r) along the axes to weights of the centred, scaled dimensions."""
        return weights if self.axes is None else _rotated(weights, self.axes)

    def to_axes(self, weights: Tensor) -> Tensor:
        """The inverse of `from_axes`, within the span of the axes; also for gradients."""
        return weights if self.axes is None else _rotated(weights, self.axes.T)


def _rotated(weights: Tensor, axes: Tensor) -> Tensor:
    return row_products(weights.flatten(0, 1), axes).view(*weights.shape[:2], len(axes))


class _Problems:
    """Independent minimisations that share the products with the rows: one per cost, or per cost and class.

    Attributes:
        width: logits of a problem: all classes, or the one class that it tells from the rest.
        per_fit: problems of one cost.
        numbers: (problems,) 0, 1, …, those of a cost together.
        members: for each block of rows the numbers of its problems.
        counts: (problems,) labels that are fitted.
        decays: (problems,) factor of |W|² / 2 beside the mean loss: 1 / (C n).
        weights: (problems, width, r + 1) along the axes of the data, the bias of the centred rows last.
        iterations: (problems,) steps of L-BFGS so far.
        gradient: (problems,) largest component in the dimensions of the features, at the weights.
        evaluated: passes over the rows so far, summed over the problems.
    """

    def __init__(self, data: _Data, classes: int, costs: NDArray[np.float64], loss: Loss) -> None:
        self.data, self.costs, self.classes = data, costs, classes
        self.multinomial = loss == "multinomial"
        self.width = classes if self.multinomial else 1
        self.per_fit = 1 if self.multinomial else classes
        count = len(costs) * self.per_fit
        self.numbers = torch.arange(count, device=data.device)
        self.members = [
            torch.tensor([fit * self.per_fit + k for fit in block.fits for k in range(self.per_fit)])
            for block in data.blocks
        ]
        counts = torch.zeros(count, dtype=torch.float64)
        for block, members in zip(data.blocks, self.members, strict=True):
            if self.multinomial or data.targets.ndim == 1:
                counts[members] += len(block.rows)
            else:
                known = (data.targets[block.rows] >= 0).sum(axis=0)
                counts[members] += torch.from_numpy(known).double().repeat(len(block.fits))
        if (counts == 0).any():
            raise ValueError("a fit has no rows")
        # Two classes with a weight vector each, W / 2 and -W / 2, pay half of what scikit-learn's single W pays.
        per_cost = 2.0 if self.multinomial and classes == 2 else 1.0
        cost = torch.from_numpy(costs).repeat_interleave(self.per_fit)
        self.counts = counts.to(data.device)
        self.decays = (per_cost / (cost * counts)).to(data.device)
        self.weights = torch.zeros(count, self.width, len(data.variances) + 1, dtype=data.dtype, device=data.device)
        self.iterations = torch.zeros(count, dtype=torch.int64, device=data.device)
        self.gradient = torch.full((count,), torch.inf, dtype=torch.float64, device=data.device)
        self.evaluated = 0.0

    def begin_from(self, start: Fits) -> None:
        """Take the weights of earlier fits, which are for features as they are."""
        weights = start.weights.to(self.data.device, torch.float64)
        known = start.bias.where(start.bias > ABSENT, 0.0)  # a class may have rows here that had none there
        bias = known.to(self.data.device, torch.float64) + weights @ self.data.mean.double()
        inside = self.data.to_axes((weights * self.data.scale).to(self.data.dtype))
        self.weights[..., :-1] = inside.view(len(self.weights), self.width, -1)
        self.weights[..., -1] = bias.to(self.data.dtype).view(len(self.weights), self.width)

    def in_float64(self) -> _Problems:
        """The same problems, to go on with where these are."""
        other = copy(self)
        other.data, other.evaluated = self.data.in_float64(), 0.0
        outer = self.data.from_axes(self.weights[..., :-1]).double()
        other.weights = torch.cat([other.data.to_axes(outer), self.weights[..., -1:].double()], dim=2)
        return other

    def fits(self, tolerance: float) -> Fits:
        """The weights as they are now, turned back to features as they are."""
        data, count = self.data, len(self.costs)
        weights = data.from_axes(self.weights[..., :-1]).view(count, self.classes, -1) / data.scale
        bias = self.weights[..., -1].view(count, self.classes) - weights @ data.mean
        gradient = self.gradient.view(count, -1).amax(dim=1).cpu().numpy()
        iterations = self.iterations.view(count, -1).amax(dim=1).cpu().numpy()
        costs = tuple(float(cost) for cost in self.costs)
        passes = self.evaluated / self.per_fit
        return Fits(costs, weights, bias, iterations, gradient, gradient <= tolerance, passes)

    def evaluate(self, weights: Tensor, which: Tensor, *, centred: bool = False) -> _Evaluation:
        """The objective of some problems by one pass over the rows.

        Args:
            weights: (A, width, r + 1).
            which: (A,) numbers of the problems.
            centred: whether the centres are found as well, which takes half a pass more.
        """
        data = self.data
        self.evaluated += len(which) * (1.5 if centred else 1.0)
        outer, bias = data.from_axes(weights[..., :-1]), weights[..., -1]
        value = torch.zeros(len(which), dtype=torch.float64, device=data.device)
        # The rounding of a product of some rows is next to nothing; that of a sum of many such would not be.
        gradient, centre = (torch.zeros_like(outer, dtype=torch.float64) for _ in range(2))
        bias_gradient, curvature = (torch.zeros_like(bias, dtype=torch.float64) for _ in range(2))
        cells = (CACHED_BYTES if data.device.type == "cpu" else LOGITS_BYTES) // bias.element_size()  # logits at a time
        for number, members in enumerate(self.members):
            own = torch.isin(which, members.to(which.device)).nonzero()[:, 0]  # those fitted to this block
            for x, labels in data.chunks(number) if len(own) else ():
                for group in own.split(max(1, cells // (LEAST_ROWS * self.width))):
                    stacked, offset = outer[group].flatten(0, 1), bias[group].flatten()
                    residual_sum, spread_sum = (torch.zeros_like(stacked, dtype=torch.float64) for _ in range(2))
                    size = max(1, cells // len(stacked))
                    for rows, truth in zip(x.split(size), labels.split(size), strict=True):
                        logits = _logits(rows, stacked, offset).view(len(rows), -1, self.width)
                        losses, residual, spread = self._pointwise(logits, truth, which[group])
                        value[group] += losses
                        curvature[group] += spread.sum(dim=0)
                        bias_gradient[group] += residual.sum(dim=0)
                        residual_sum += _weighted(rows, residual.flatten(1))
                        if centred:
                            spread_sum += _weighted(rows, spread.flatten(1))
                    gradient[group] += residual_sum.view(len(group), self.width, -1)
                    centre[group] += spread_sum.view(len(group), self.width, -1)
        count = self.counts[which, None]
        decay = self.decays[which, None, None]
        gradient, bias_gradient = gradient / count[..., None] + decay * outer, (bias_gradient / count)[..., None]
        value = value / self.counts[which] + self.decays[which] / 2 * outer.double().square().sum(dim=(1, 2))
        inner = torch.cat([data.to_axes(gradient.to(data.dtype)), bias_gradient.to(data.dtype)], dim=2)
        if not data.standardise:
            gradient = gradient + bias_gradient * data.mean  # of features that are not centred
        outer_gradient = torch.cat([gradient, bias_gradient], dim=2)
        found = _Evaluation(value, inner, outer_gradient, (curvature / count).to(data.dtype))
        if centred:
            centre /= curvature.clamp_min(torch.finfo(data.dtype).tiny)[..., None]
            found = found._replace(centre=data.to_axes(centre.to(data.dtype)))
        return found

    def _pointwise(self, logits: Tensor, labels: Tensor, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the (m, a, width) logits of m rows in some problems give; the logits are overwritten.

        Returns:
            (a,) sums of the losses; p - y, which weights the rows in the gradient, and p (1 - p), which weights them in
            the curvature, both (m, a, width).
        """
        if self.multinomial:
            truth = labels[:, None, None].expand(-1, logits.shape[1], 1)
            log_probability = torch.log_softmax(logits, dim=2)
            losses = -log_probability.gather(2, truth).sum(dim=(0, 2), dtype=torch.float64)
            probability = log_probability.exp_()
            spread = torch.addcmul(probability, probability, probability, value=-1, out=logits)
            residual = probability.scatter_add_(2, truth, probability.new_full((1, 1, 1), -1.0).expand_as(truth))
            return losses, residual, spread
        column = which % self.classes
        present = labels[:, column] if labels.ndim == 2 else (labels[:, None] == column).to(torch.int8)
        known = (present >= 0).to(logits.dtype)[..., None]
        present = (present > 0).to(logits.dtype)[..., None]
        losses = ((F.softplus(logits) - present * logits) * known).sum(dim=(0, 2), dtype=torch.float64)
        logits.sigmoid_()
        spread = (logits - logits.square()) * known
        return losses, logits.sub_(present).mul_(known), spread


def _logits(rows: Tensor | Halves, weights: Tensor, bias: Tensor) -> Tensor:
    """(m, w) of (m, d) rows and (w, d) weights."""
    if isinstance(rows, Tensor):
        return row_products(rows, weights).add_(bias)
    halves = Halves(weights)
    return torch.addcmul(bias, rows.products(halves), rows.inverse * halves.inverse)


def _weighted(rows: Tensor | Halves, weights: Tensor) -> Tensor:
    """(w, d) sums of the (m, d) rows, weighted by the (m, w) weights."""
    if isinstance(rows, Tensor):
        return row_products(weights.T, rows.T)
    halves = Halves(weights)
    return rows.weighted(halves).mul(rows.inverse * halves.inverse)


class _Evaluation(NamedTuple):
    """What one pass finds of A problems.

    Attributes:
        value: (A,) float64.
        gradient: (A, width, r + 1), along the axes.
        outer_gradient: (A, width, dim + 1), float64, the same in the dimensions of the features.
        curvature: (A, width), mean p (1 - p) of the loss.
        centre: (A, width, r), mean of the rows weighted by it.
    """

    value: Tensor
    gradient: Tensor
    outer_gradient: Tensor
    curvature: Tensor
    centre: Tensor | None = None


# ---- L-BFGS on many problems side by side ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Stopping:
    """When a fit ends: at a gradient, after so many steps, or so many trial steps in a row that bring nothing."""

    tolerance: float
    max_iterations: int
    max_rejected: int


class _Memory:
    """The last steps of L-BFGS on each problem, and how they changed its gradient.

    Attributes:
        steps, changes: (HISTORY, A, width, r + 1) of the weights and of the gradient.
        products: (HISTORY, A) of step and change; 0 where there is none.
        newest: (A,) where the last step is.
        centre: (A, width, r), the mean of the rows that each class is uncertain of; 0 where it was not asked for.
    """

    def __init__(self, x: Tensor, decays: Tensor) -> None:
        self.steps, self.changes = (torch.zeros((HISTORY, *x.shape), dtype=x.dtype, device=x.device) for _ in range(2))
        self.products = torch.zeros(HISTORY, len(x), dtype=x.dtype, device=x.device)
        self.newest = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self.centre = torch.zeros_like(x[..., :-1])
        self.decays = decays

    def add(self, of: Tensor, step: Tensor, change: Tensor, product: Tensor) -> None:
        """Remember a step of some problems in place of their oldest."""
        slot = self.newest[of] = (self.newest[of] + 1) % HISTORY
        self.steps[slot, of], self.changes[slot, of] = step, change
        self.products[slot, of] = product.clamp_min(0).to(self.products.dtype)

    def move(self, decays: Tensor) -> None:
        """Go over to other penalties, whose part of a change is known exactly; the loss's curvature hardly differs."""
        self.changes[..., :-1] += (decays - self.decays) * self.steps[..., :-1]
        self.products = (self.steps * self.changes).sum(dim=(2, 3)).clamp_min(0)
        self.decays = decays


def _solve_path(problems: _Problems, stopping: _Stopping) -> Iterator[None]:
    """Solve the costs in ascending order, each from those before; yields after each pass over the rows."""
    order = np.argsort(problems.costs, kind="stable")
    fits = problems.numbers.view(-1, problems.per_fit)
    memory: _Memory | None = None
    for place, fit in enumerate(order):
        if place:
            _extrapolate(problems, order[: place + 1])
            if _take_if_solved(problems, fit, order[place - 1], stopping):
                continue
        memory = yield from _minimise(problems, fits[fit], stopping, memory, path=True)


def _take_if_solved(problems: _Problems, fit: int, solved: int, stopping: _Stopping) -> bool:
    """Take the weights of a solved cost for another if they are its solution too, and say whether they are.

    The gradients differ by the difference of the penalties times the weights. Of large costs, no penalty is felt.
    """
    if problems.per_fit > 1:
        return False
    largest = problems.data.from_axes(problems.weights[[solved], :, :-1]).abs().max()
    bound = problems.gradient[solved] + (problems.decays[fit] - problems.decays[solved]).abs() * largest
    if not bound <= stopping.tolerance:
        return False
    problems.weights[fit], problems.gradient[fit] = problems.weights[solved], bound
    return True


def _extrapolate(problems: _Problems, order: NDArray[np.int64]) -> None:
    """Start the last of these fits on a parabola, or a line, in log C through the three, or two, before it."""
    weights, log_costs = problems.weights.view(len(problems.costs), -1), np.log(problems.costs[order])
    known = list(range(len(order) - 1))[-3:]
    if len(known) == 3 and log_costs[-1] - log_costs[known[0]] > 3 * np.log(NEAR):
        known = known[1:]
    if len(np.unique(log_costs[known])) < len(known):
        known = known[-1:]
    target = log_costs[-1]
    if len(known) == 2:
        target = min(target, log_costs[known[0]] + MOST_BEYOND * (log_costs[known[1]] - log_costs[known[0]]))
    weights[order[-1]] = 0.0
    for this in known:
        share = np.prod(
            [(target - log_costs[other]) / (log_costs[this] - log_costs[other]) for other in known if other != this]
        )
        weights[order[-1]] += float(share) * weights[order[this]]


def _solve_together(problems: _Problems, stopping: _Stopping, which: Tensor) -> Iterator[None]:
    """Solve problems from their weights, as many at a time as memory holds; yields after each pass over the rows."""
    state = problems.weights[0].numel() * problems.weights.element_size() * (2 * HISTORY + 10)
    group = max(1, _room(problems.weights.device, STATE_BYTES) // state)
    for part in which.split(group) if len(which) else ():
        yield from _minimise(problems, part, stopping, None, path=False)


def _minimise(
    problems: _Problems, which: Tensor, stopping: _Stopping, earlier: _Memory | None, *, path: bool
) -> Generator[None, None, _Memory | None]:
    """L-BFGS on the problems `which`, each with its own step length and memory; yields after each pass over the rows.

    Within it, problems are numbered from 0: those whose gradient is too large at the start. A pass evaluates a trial
    step of every problem that is `active`. Where the step lowers the objective enough it is accepted, and the problem
    needs a new direction; where not, it is shortened. A problem ends when its gradient is small enough, or at a limit.

    Args:
        earlier: the memory of the cost before. On a path of costs, a multinomial problem goes on with it.
        path: the problem is one of a path of costs, whose first steps also look for the centres of the classes.

    Returns:
        the memory, for the next cost.
    """
    data, tolerance, limit = problems.data, stopping.tolerance, stopping.max_iterations
    rounding = 10 * torch.finfo(data.dtype).eps
    began = problems.evaluate(problems.weights[which], which)
    yield
    largest = began.outer_gradient.abs().amax(dim=(1, 2))
    problems.gradient[which] = largest
    unsolved = (largest > tolerance).nonzero()[:, 0]
    if not len(unsolved) or limit == 0:
        return earlier
    which = which[unsolved]
    value, gradient = began.value[unsolved], began.gradient[unsolved]
    largest, curvature = largest[unsolved], began.curvature[unsolved]
    x = problems.weights[which]
    decays = problems.decays[which].to(data.dtype)[:, None, None]
    memory = _Memory(x, decays) if earlier is None or not path or problems.per_fit > 1 else earlier
    memory.move(decays)
    rejected, iterations = (torch.zeros(len(x), dtype=torch.int64, device=x.device) for _ in range(2))
    length = torch.ones(len(x), dtype=torch.float64, device=x.device)
    scale = torch.ones(len(x), dtype=x.dtype, device=x.device)
    active = torch.arange(len(x), device=x.device)
    direction = torch.zeros_like(x)

    def precondition(vectors: Tensor, of: Tensor) -> Tensor:
        """The approximate inverse Hessian times the vectors of some problems."""
        inverse = _inverse_hessian(curvature[of], data.variances, decays[of])
        # Where a class has its bias at its own centre, the bias and the weights are nearly independent.
        weights = (vectors[..., :-1] - memory.centre[of] * vectors[..., -1:]) * inverse[..., :-1]
        bias = vectors[..., -1:] * inverse[..., -1:] - (memory.centre[of] * weights).sum(dim=2, keepdim=True)
        return torch.cat([weights, bias], dim=2)

    turning = active  # problems that need a new direction
    while len(active):
        if len(turning):
            direction[turning] = _lbfgs_direction(gradient[turning], precondition, scale[turning], turning, memory)
            length[turning] = 1.0
        d = direction[active]
        trial = x[active] + length[active, None, None].to(x.dtype) * d
        unsettled = path and bool((iterations[active] == 0).any())
        new = problems.evaluate(trial, which[active], centred=unsettled)
        yield
        old_value, old_slope, new_slope = value[active], _dot(gradient[active], d), _dot(new.gradient, d)
        enough = new.value <= old_value + 1e-4 * length[active] * old_slope
        # Near the optimum the values differ by less than their rounding; the slope along the step still tells.
        enough |= (new.value <= old_value + rounding * old_value.abs()) & (new_slope <= -0.8 * old_slope)
        accepted = active[enough]
        if len(accepted):
            step, change = trial[enough] - x[accepted], new.gradient[enough] - gradient[accepted]
            product = _dot(step, change)
            memory.add(accepted, step, change, product)
            x[accepted], value[accepted], gradient[accepted] = trial[enough], new.value[enough], new.gradient[enough]
            largest[accepted] = new.outer_gradient[enough].abs().amax(dim=(1, 2))
            curvature[accepted] = new.curvature[enough]
            if new.centre is not None:
                memory.centre[accepted] = new.centre[enough]
            ratio = product / _dot(precondition(change, accepted), change)
            scale[accepted] = torch.where(ratio > 0, ratio, 1.0).to(x.dtype)
            iterations[accepted] += 1
            rejected[accepted] = 0
        refused = active[~enough]
        if len(refused):
            rejected[refused] += 1
            length[refused] *= _shortening(
                length[refused], old_value[~enough], old_slope[~enough], new.value[~enough], new_slope[~enough]
            )
        unfinished = (largest > tolerance) & (iterations < limit) & (rejected < stopping.max_rejected)
        turning = accepted[unfinished[accepted]]
        active = active[unfinished[active]]
    problems.weights[which], problems.gradient[which] = x, largest
    problems.iterations[which] += iterations
    return memory


def _inverse_hessian(curvature: Tensor, variances: Tensor, decays: Tensor) -> Tensor:
    """(A, width, r + 1): of the mean loss, if its curvature were independent of the features, plus the penalty."""
    floor = LEAST_CURVATURE * curvature.amax(dim=1, keepdim=True)
    curvature = torch.maximum(curvature, floor).clamp_min(torch.finfo(curvature.dtype).tiny ** 0.5)
    inner = 1 / (curvature[..., None] * variances + decays)
    return torch.cat([inner, 1 / curvature[..., None]], dim=2)


def _lbfgs_direction(
    gradient: Tensor, precondition: Callable[[Tensor, Tensor], Tensor], scale: Tensor, which: Tensor, memory: _Memory
) -> Tensor:
    """L-BFGS's direction (Nocedal and Wright 2006, algorithm 7.4) of each problem in `which`."""
    q = -gradient
    found = []
    for age in range(HISTORY):
        slot = (memory.newest[which] - age) % HISTORY
        product = memory.products[slot, which]
        weight = torch.where(product > 0, _dot(memory.steps[slot, which], q).to(q.dtype) / product, 0.0)
        q = q - weight[:, None, None] * memory.changes[slot, which]
        found.append((slot, product, weight))
    q = precondition(q, which) * scale[:, None, None]
    for slot, product, weight in reversed(found):
        back = torch.where(product > 0, _dot(memory.changes[slot, which], q).to(q.dtype) / product, 0.0)
        q = q + (weight - back)[:, None, None] * memory.steps[slot, which]
    return q


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """(A,) inner products, float64."""
    return (a * b).sum(dim=(1, 2), dtype=torch.float64)


def _shortening(length: Tensor, old_value: Tensor, old_slope: Tensor, new_value: Tensor, new_slope: Tensor) -> Tensor:
    """The factor by which a step that went too far is shortened: to the minimum of a cubic, within [0.1, 0.6]."""
    inner = old_slope + new_slope - 3 * (new_value - old_value) / length
    root = (inner.square() - old_slope * new_slope).clamp_min(0).sqrt()
    factor = 1 - (new_slope + root - inner) / (new_slope - old_slope + 2 * root)
    return torch.where(torch.isfinite(factor), factor, 0.1).clamp(0.1, 0.6)


# ---- along a path of penalties, for `linear-stored` ------------------------------------------------------------------


@dataclass(frozen=True)
class PathFit:
    """The classifier for one penalty.

    Attributes:
        weights: (classes, dim + 1) on standardised features, the bias last.
        mean, deviation: (dim,) of the fitted rows, by which features are standardised.
        iterations: of L-BFGS.
        gradient: largest component of the objective's gradient at the end.
    """

    weights: Tensor
    mean: Tensor
    deviation: Tensor
    iterations: int
    gradient: float

    def ranks(self, rows: NDArray[Any], items: NDArray[np.int64], targets: NDArray[Any], chunk: int) -> Tensor:
        """(len(items),) how many classes are ranked above the true one, computed `chunk` rows at a time."""
        parts, send = [], Sender(self.mean.device)
        for part in _parts(items, chunk):
            x = _standardised(rows[part], self.mean, self.deviation, send)
            logits = F.linear(x, self.weights[:, :-1], self.weights[:, -1])
            parts.append(target_ranks(logits[:, None], torch.from_numpy(targets[part]).to(x.device))[0].cpu())
        return torch.cat(parts)

    def on_raw_features(self) -> tuple[Tensor, Tensor]:
        """The same classifier for features as they are: (classes, dim) weight and (classes,) bias, float32."""
        weight = self.weights[:, :-1] / self.deviation
        return weight.float().cpu(), (self.weights[:, -1] - weight @ self.mean).float().cpu()


def logistic_path(
    rows: NDArray[Any],
    items: NDArray[np.int64],
    targets: NDArray[Any],
    classes: int,
    penalties: Iterable[float],
    *,
    device: torch.device,
    dtype: torch.dtype,
    chunk: int,
    max_iterations: int,
    tolerance: float,
    history: int,
    resident_bytes: int | None = None,
) -> Iterator[PathFit]:
    """Minimise mean cross-entropy + penalty / 2 |W|^2 for each penalty, starting from the solution before.

    Args:
        rows: (N, dim), maybe memory-mapped; `items` of them are fitted, standardised by their own mean and deviation.
        targets: (N,) class indices.
        chunk: rows that pass through the device at a time, where not all of them fit in `resident_bytes`.
        tolerance: L-BFGS stops where no component of the gradient is larger.
        history: steps that L-BFGS remembers.

    Raises:
        InputError: a feature is not finite.
    """
    mean64 = _mean(rows, items, chunk)
    deviation64 = _deviation(rows, items, chunk, mean64)
    mean, deviation = (torch.from_numpy(each).to(device, dtype) for each in (mean64, deviation64))
    resident_bytes = _room(device, RESIDENT_BYTES) if resident_bytes is None else resident_bytes
    resident, send = None, Sender(device)
    if len(items) * rows.shape[1] * mean.element_size() <= resident_bytes:
        resident = [_standardised(rows[part], mean, deviation, send) for part in _parts(items, chunk)]
    own_targets = torch.from_numpy(targets[items]).to(device)
    weights = torch.zeros(classes, rows.shape[1] + 1, dtype=dtype, device=device)
    for penalty in penalties:
        weights = weights.clone().requires_grad_()
        solver = torch.optim.LBFGS(
            [weights],
            max_iter=max_iterations,
            tolerance_grad=tolerance,
            tolerance_change=0.0,  # a flat stretch is no optimum
            history_size=history,
            line_search_fn="strong_wolfe",
        )

        def objective(weights: Tensor = weights, penalty: float = penalty) -> Tensor:
            weights.grad = None
            penalised = penalty / 2 * weights[:, :-1].square().sum()
            penalised.backward()
            value, first = penalised.detach(), 0
            chunks = resident or (_standardised(rows[part], mean, deviation, send) for part in _parts(items, chunk))
            for x in chunks:
                logits = F.linear(x, weights[:, :-1], weights[:, -1])
                loss = F.cross_entropy(logits, own_targets[first : first + len(x)], reduction="sum") / len(items)
                loss.backward()
                value, first = value + loss.detach(), first + len(x)
            return value

        solver.step(objective)
        objective()
        assert weights.grad is not None
        iterations, gradient = int(solver.state[weights]["n_iter"]), weights.grad.abs().max().item()
        weights = weights.detach()
        yield PathFit(weights, mean, deviation, iterations, gradient)


# ---- rows and memory -------------------------------------------------------------------------------------------------


def _room(device: torch.device, on_cpu: int) -> int:
    """Bytes that may be filled: half of what is free on a GPU, a fixed number on a CPU."""
    return free_memory(device) // 2 if device.type == "cuda" else on_cpu


def _mean(rows: NDArray[Any], items: NDArray[np.int64], chunk: int) -> NDArray[np.float64]:
    """(dim,) mean of the rows `items`; raises InputError where it is not finite."""
    mean = np.zeros(rows.shape[1])
    for part in _parts(items, chunk):
        mean += rows[part].sum(axis=0, dtype=np.float64) / len(items)
    if not np.isfinite(mean).all():
        raise InputError("a stored feature is not a finite number: the encoder's output overflows; check its card")
    return mean


def _deviation(
    rows: NDArray[Any], items: NDArray[np.int64], chunk: int, mean: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(dim,) standard deviation of the rows `items`, 1 for a constant dimension, which so stays constant."""
    variance = np.zeros(rows.shape[1])
    for part in _parts(items, chunk):
        variance += np.square(rows[part] - mean).sum(axis=0) / len(items)
    deviation = np.sqrt(variance)
    deviation[deviation == 0] = 1.0
    return deviation


def _parts(items: NDArray[np.int64], chunk: int) -> list[NDArray[np.int64]]:
    """The items in runs of about equal length, at most `chunk` each."""
    return np.array_split(items, max(1, -(-len(items) // chunk)))


def _rows_of(features: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[Any]:
    """The rows, as a view where they follow each other: a memory-mapped file is then read once, in order."""
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all():
        return features[rows[0] : rows[-1] + 1]
    return features[rows]


def _standardised(rows: NDArray[Any], mean: Tensor, deviation: Tensor, send: Sender) -> Tensor:
    """(rows - mean) / deviation on the device, which also converts them: fewer bytes are sent."""
    return (send(as_tensor(rows)).to(mean.dtype) - mean).div_(deviation)


def as_tensor(rows: NDArray[Any]) -> Tensor:
    """The rows without a copy where that can be; those of a mapped file are only read."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.ascontiguousarray(rows))

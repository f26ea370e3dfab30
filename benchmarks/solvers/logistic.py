"""Logistic regression by full-batch L-BFGS: for every cost C at once, or along a path of penalties.

`fit_logistic` is the one to use. `logistic_path` standardises, counts its iterations and starts its fits as the records
of `linear-stored` say, and stays for them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.solvers.linear_heads import target_ranks
from results.errors import InputError

RESIDENT_BYTES = 2 * 2**30  # standardised rows that are kept in main memory; on a GPU it is half of what is free


@dataclass(frozen=True)
class Fit:
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
        parts = []
        for part in _parts(items, chunk):
            x = _standardised(rows[part], self.mean, self.deviation)
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
) -> Iterator[Fit]:
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
    mean, deviation = _moments(rows, items, chunk, device, dtype)
    if resident_bytes is None:
        resident_bytes = torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else RESIDENT_BYTES
    resident = None
    if len(items) * rows.shape[1] * mean.element_size() <= resident_bytes:
        resident = [_standardised(rows[part], mean, deviation) for part in _parts(items, chunk)]
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
            chunks = resident or (_standardised(rows[part], mean, deviation) for part in _parts(items, chunk))
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
        yield Fit(weights, mean, deviation, iterations, gradient)


def _moments(
    rows: NDArray[Any], items: NDArray[np.int64], chunk: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    mean = _mean(rows, items, chunk)
    deviation = _deviation(rows, items, chunk, mean)
    return torch.from_numpy(mean).to(device, dtype), torch.from_numpy(deviation).to(device, dtype)


def _mean(rows: NDArray[Any], items: NDArray[np.int64], chunk: int) -> NDArray[np.float64]:
    mean = np.zeros(rows.shape[1])
    for part in _parts(items, chunk):
        mean += rows[part].sum(axis=0, dtype=np.float64) / len(items)
    if not np.isfinite(mean).all():
        raise InputError("a stored feature is not a finite number: the encoder's output overflows; check its card")
    return mean


def _deviation(
    rows: NDArray[Any], items: NDArray[np.int64], chunk: int, mean: NDArray[np.float64]
) -> NDArray[np.float64]:
    variance = np.zeros(rows.shape[1])
    for part in _parts(items, chunk):
        variance += np.square(rows[part] - mean).sum(axis=0) / len(items)
    deviation = np.sqrt(variance)
    deviation[deviation == 0] = 1.0  # a constant dimension stays constant
    return deviation


def _parts(items: NDArray[np.int64], chunk: int) -> list[NDArray[np.int64]]:
    return np.array_split(items, max(1, -(-len(items) // chunk)))


def _standardised(rows: NDArray[Any], mean: Tensor, deviation: Tensor) -> Tensor:
    return (as_tensor(rows).to(mean.device, mean.dtype) - mean) / deviation


def as_tensor(rows: NDArray[Any]) -> Tensor:
    """The rows without a copy where that can be; those of a mapped file are only read."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.ascontiguousarray(rows))


# ---- every cost at once ----------------------------------------------------------------------------------------------

Loss = Literal["multinomial", "one_vs_rest"]
Track = Callable[[Iterable[None], str], Iterable[None]]  # wraps an iterator, as a progress bar does
HISTORY = 10  # steps that L-BFGS remembers of each problem
LOGITS_BYTES = 2**26  # of logits in memory at a time, which also keeps them in the cache of many CPUs
STATE_BYTES = 4 * 2**30  # of L-BFGS's memory; on a GPU it is half of what is free
MAX_ROTATED_DIM = 4096  # up to which the principal axes are computed: their time grows with the cube
SMALL_WORK = 10**8  # rows x dim x classes below which a better start saves little
FLOAT32_TOLERANCE = 1e-5  # a tighter fit in float64 has a part in float32
FLOAT32_SHARE = 0.7  # of the tolerance, to which that part goes: float64 then has little but the check to do
FLOAT32_FLOOR = 3e-7  # but no further
MOST_BEYOND = 2.0  # of a line through two solved costs: no further beyond the second than the first is before it
COARSEST = 2  # costs that start from zero, at least; few, as the largest costs then start from a neighbour
NEAR = 10.01  # ratio of two costs, a decade, within which the weights between them are nearly a cubic in log C
MAX_REJECTED = 25  # trial steps in a row, after which a fit has reached the rounding of its dtype
MAX_REJECTED_FLOAT32 = 4  # in the part in float32 of a fit in float64, which goes on from there


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
        gradient: (fits,) largest component of the gradient at the end.
        converged: (fits,) whether it is at most the tolerance.
        passes: over the rows, summed over the fits, in the dtype of the weights; each makes two products.
        single_passes: the same of the part in float32 that a fit in float64 started from.
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
    max_rejected: int = MAX_REJECTED,
    float32_first: bool | None = None,
    resident_bytes: int | None = None,
    track: Track | None = None,
) -> Fits:
    """Logistic regression with an L2 penalty, as scikit-learn's `LogisticRegression(C=…)`, for every C at once.

    Minimises C times the summed loss plus |W|² / 2; biases are not penalised. The weights of all C are stacked, so that
    one product with the features serves every fit; a fit that has converged drops out. L-BFGS works along the principal
    axes of the features, where a diagonal matrix is near the inverse Hessian: the scale and the correlations of the
    features do not slow it down. Costs are solved from coarse to fine, each starting between its neighbours.

    Args:
        features: (N, dim), maybe memory-mapped.
        targets: (N,) class indices; for one against the rest also (N, classes) of 1 present, 0 absent, -1 left out.
        costs: C of each fit, in any order.
        sample_rows: rows to fit, all by default. Blocks give each fit rows of its own.
        loss: `multinomial`, for two classes scikit-learn's single logit; or each class against the rest.
        standardise: centre each dimension and divide it by its deviation over the rows (a constant one stays constant).
        start: fits of the same costs to start from, as those of a part of the rows.
        chunk: the most rows on the device at a time, where not all of them fit in `resident_bytes`.
        tolerance: a fit has converged when no component of the gradient of the mean loss + |W|² / (2 C n) is larger;
            it is scikit-learn's `tol`.
        max_iterations: steps of L-BFGS for each fit.
        max_rejected: trial steps in a row that bring nothing, after which a fit ends without having converged.
        float32_first: start float64 from the solution in float32; by default on a GPU.
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
    work = sum(len(block.rows) for block in blocks) * features.shape[1] * classes
    single_passes = 0.0
    # On a CPU, float64 takes twice the time of float32, which a second start costs too; on many GPUs up to 64 times.
    if float32_first is None:
        float32_first = device.type == "cuda" and work > SMALL_WORK
    if dtype == torch.float64 and float32_first and tolerance < FLOAT32_TOLERANCE:
        start = fit_logistic(
            features, targets, classes, costs, sample_rows=sample_rows, loss=loss, standardise=standardise,
            start=start, device=device, chunk=chunk, tolerance=max(FLOAT32_FLOOR, FLOAT32_SHARE * tolerance),
            max_iterations=max_iterations, max_rejected=MAX_REJECTED_FLOAT32, resident_bytes=resident_bytes,
            track=track,
        )  # fmt: skip
        single_passes = start.passes
    data = _Data(features, targets, blocks, standardise, device, dtype, chunk, resident_bytes)
    problems = _Problems(data, classes, np.asarray(costs, np.float64), loss)
    if len(blocks) > 1 or start is not None:
        stages = [list(range(len(costs)))]
    else:
        stages = _path(sorted(costs)) if work > SMALL_WORK else _stages(len(costs))
    stopping = _Stopping(tolerance, max_iterations, max_rejected)
    passes = _solve(problems, start, stages, stopping, cubic=work > SMALL_WORK)
    for _ in passes if track is None else track(passes, "logistic regression, passes over the rows"):
        pass
    return replace(problems.fits(tolerance), single_passes=single_passes)


@dataclass(frozen=True)
class _Stopping:
    """When a fit ends: see the arguments of `fit_logistic`."""

    tolerance: float
    max_iterations: int
    max_rejected: int


class _Data:
    """The rows on the device, centred, with their principal axes.

    Attributes:
        mean, scale: (dim,) by which rows are centred and divided.
        axes: (dim, r) orthonormal directions in which weights are expressed; None for the given dimensions.
        variances: (r,) of the rows along them.
        applied: rows are stored as (m, r) already. Otherwise weights are turned for each product, which is cheaper than
            turning the rows.
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
        self.device, self.dtype, self.chunk, self.standardise = device, dtype, chunk, standardise
        every = np.unique(np.concatenate([block.rows for block in blocks]))
        mean = _mean(features, every, chunk)
        deviation = _deviation(features, every, chunk, mean) if standardise else np.ones_like(mean)
        self.mean, self.scale = (torch.from_numpy(array).to(device, dtype) for array in (mean, deviation))
        self.applied = False
        self.axes: Tensor | None = None
        if resident_bytes is None:
            resident_bytes = torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else RESIDENT_BYTES
        dim, count = features.shape[1], sum(len(block.rows) for block in blocks)
        fits_in_memory = count * dim * self.mean.element_size() <= resident_bytes
        if 2 * len(every) <= dim and fits_in_memory:
            # The weights lie in the span of the rows, which is small: an exact reduction.
            axes, coordinates = torch.linalg.qr(self._load(every).double().T)
            variances, turn = torch.linalg.eigh(coordinates @ coordinates.T / len(every))
            self.axes, self.applied = (axes @ turn).to(dtype), True
        elif dim <= MAX_ROTATED_DIM:
            gram = torch.zeros(dim, dim, dtype=torch.float64, device=device)
            for part in _parts(every, min(chunk, 8192)):
                x = self._load(part)
                gram += x.T @ x
            variances, turn = torch.linalg.eigh(gram / len(every))
            self.axes = turn.to(dtype)
        else:
            variances = torch.zeros(dim, dtype=torch.float64, device=device)
            for part in _parts(every, chunk):
                variances += self._load(part).square().sum(dim=0).double() / len(every)
        # Rounding leaves nothing meaningful in directions of next to no variance: do not amplify it.
        least = 1e-8 if dtype == torch.float32 else 1e-13
        self.variances = variances.clamp_min(float(variances.max()) * least + 1e-300).to(dtype)
        self.resident: list[list[Tensor]] | None = None
        if fits_in_memory:
            self.resident = [[self._stored(part) for part in _parts(block.rows, chunk)] for block in blocks]

    def _load(self, rows: NDArray[np.int64]) -> Tensor:
        return _standardised(_rows_of(self.features, rows), self.mean, self.scale)

    def _stored(self, rows: NDArray[np.int64]) -> Tensor:
        x = self._load(rows)
        return x @ self.axes if self.applied and self.axes is not None else x

    def chunks(self, number: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(rows, targets) of a block on the device, at most `size` rows at a time."""
        for index, part in enumerate(_parts(self.blocks[number].rows, self.chunk)):
            x = self._stored(part) if self.resident is None else self.resident[number][index]
            labels = torch.from_numpy(self.targets[part]).to(self.device)
            yield from zip(x.split(size), labels.split(size), strict=True)

    def outwards(self, weights: Tensor) -> Tensor:
        """Weights along the axes to weights of the centred, scaled dimensions."""
        return weights if self.axes is None else weights @ self.axes.T

    def inwards(self, weights: Tensor) -> Tensor:
        """The inverse of `outwards`, within the span of the axes; also for gradients."""
        return weights if self.axes is None else weights @ self.axes


class _Problems:
    """Independent minimisations that share the products with the rows: one per cost, or per cost and class.

    A problem has `width` logits: all classes, or the one class that it tells from the rest.

    Attributes:
        weights: (problems, width, r + 1) along the axes of the data, the bias of the centred rows last.
    """

    def __init__(self, data: _Data, classes: int, costs: NDArray[np.float64], loss: Loss) -> None:
        self.data, self.costs, self.classes = data, costs, classes
        self.multinomial = loss == "multinomial"
        self.width = classes if self.multinomial else 1
        self.per_fit = 1 if self.multinomial else classes
        count = len(costs) * self.per_fit
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
        self.evaluated = 0

    def begin_from(self, start: Fits) -> None:
        weights = start.weights.to(self.data.device, torch.float64)
        bias = start.bias.to(self.data.device, torch.float64) + weights @ self.data.mean.double()
        inside = self.data.inwards((weights * self.data.scale).to(self.data.dtype))
        self.weights[..., :-1] = inside.view(len(self.weights), self.width, -1)
        self.weights[..., -1] = bias.to(self.data.dtype).view(len(self.weights), self.width)

    def fits(self, tolerance: float) -> Fits:
        data, count = self.data, len(self.costs)
        weights = data.outwards(self.weights[..., :-1]).view(count, self.classes, -1) / data.scale
        bias = self.weights[..., -1].view(count, self.classes) - weights @ data.mean
        gradient = self.gradient.view(count, -1).amax(dim=1).cpu().numpy()
        iterations = self.iterations.view(count, -1).amax(dim=1).cpu().numpy()
        costs = tuple(float(cost) for cost in self.costs)
        passes = self.evaluated / self.per_fit
        return Fits(costs, weights, bias, iterations, gradient, gradient <= tolerance, passes)

    def evaluate(self, weights: Tensor, which: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Value, gradient, its largest component and the mean curvature of the loss, one pass over the rows.

        Args:
            weights: (A, width, r + 1).
            which: (A,) numbers of the problems.

        Returns:
            (A,) float64; (A, width, r + 1); (A,) float64 in the dimensions of the features; (A, width).
        """
        data = self.data
        self.evaluated += len(which)
        inner, bias = weights[..., :-1], weights[..., -1]
        outer = inner if data.applied else data.outwards(inner)
        value = torch.zeros(len(which), dtype=torch.float64, device=data.device)
        slope, slope_bias, curvature = torch.zeros_like(outer), torch.zeros_like(bias), torch.zeros_like(bias)
        for number, members in enumerate(self.members):
            own = torch.isin(which, members.to(which.device)).nonzero()[:, 0]
            if not len(own):
                continue
            whole = len(own) == len(which)
            stacked = (outer if whole else outer[own]).flatten(0, 1)
            offset = (bias if whole else bias[own]).flatten()
            total = slope if whole else torch.zeros_like(outer[own])
            size = max(64, LOGITS_BYTES // (len(stacked) * stacked.element_size()))
            for x, labels in data.chunks(number, size):
                logits = torch.addmm(offset, x, stacked.T).view(len(x), len(own), self.width)
                losses, likely = self._pointwise(logits, labels, which[own])
                value[own] += losses
                curvature[own] += likely
                slope_bias[own] += logits.sum(dim=0)
                total.view(len(stacked), -1).addmm_(logits.view(len(x), -1).T, x)
            if not whole:
                slope[own] += total
        count = self.counts[which].to(data.dtype)[:, None]
        decay = self.decays[which].to(data.dtype)[:, None, None]
        slope, slope_bias, curvature = slope / count[..., None], slope_bias / count, curvature / count
        value = value / self.counts[which] + self.decays[which] / 2 * inner.double().square().sum(dim=(1, 2))
        turned = slope if data.applied else data.inwards(slope)
        turned = turned + decay * inner
        given = data.outwards(turned)  # the gradient of the penalty lies in the span, as the weights do
        if not data.standardise:
            given = given + slope_bias[..., None] * data.mean  # of features that are not centred
        largest = torch.maximum(given.abs().amax(dim=(1, 2)), slope_bias.abs().amax(dim=1)).double()
        return value, torch.cat([turned, slope_bias[..., None]], dim=2), largest, curvature

    def _pointwise(self, logits: Tensor, labels: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        """Summed losses (a,) and summed p (1 - p) (a, width); turns (m, a, width) logits into the loss's gradient."""
        if self.multinomial:
            truth = labels[:, None, None].expand(-1, logits.shape[1], 1)
            largest = logits.amax(dim=2, keepdim=True)
            logits.sub_(largest)
            losses = logits.gather(2, truth)
            logits.exp_()
            partition = logits.sum(dim=2, keepdim=True)
            losses = (partition.log() - losses).sum(dim=(0, 2), dtype=torch.float64)
            logits.div_(partition)
            curvature = logits.sum(dim=0) - logits.square().sum(dim=0)
            logits.scatter_add_(2, truth, logits.new_full((1, 1, 1), -1.0).expand_as(truth))
            return losses, curvature
        own = which % self.classes
        present = labels[:, own] if labels.ndim == 2 else (labels[:, None] == own).to(torch.int8)
        known = (present >= 0).to(logits.dtype)[..., None]
        present = (present > 0).to(logits.dtype)[..., None]
        losses = ((F.softplus(logits) - present * logits) * known).sum(dim=(0, 2), dtype=torch.float64)
        logits.sigmoid_()
        curvature = ((logits - logits.square()) * known).sum(dim=0)
        logits.sub_(present).mul_(known)
        return losses, curvature


def _solve(
    problems: _Problems, start: Fits | None, stages: list[list[int]], stopping: _Stopping, *, cubic: bool
) -> Iterator[None]:
    """Minimise every problem, in stages; yields after each pass over the rows."""
    order = np.argsort(problems.costs, kind="stable")
    if start is not None:
        problems.begin_from(start)
    device = problems.weights.device
    free = torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else STATE_BYTES
    group = max(1, free // (problems.weights[0].numel() * problems.weights.element_size() * (2 * HISTORY + 10)))
    done: list[int] = []
    for stage in stages:
        for place in stage if done else ():
            _interpolate(problems, order, place, done, cubic)
        which = np.concatenate([order[place] * problems.per_fit + np.arange(problems.per_fit) for place in stage])
        for part in _parts(np.sort(which), group):
            yield from _minimise(problems, torch.from_numpy(part).to(device), stopping)
        done = sorted({*done, *stage})


def _stages(count: int) -> list[list[int]]:
    """Places in the sorted costs: some spread over all, then those halfway between, and so on."""
    step = 1
    while count // (2 * step) >= COARSEST:
        step *= 2
    stages = [sorted({*range(0, count, step), count - 1})]
    while step > 1:
        step //= 2
        seen = {place for stage in stages for place in stage}
        stages.append([place for place in range(0, count, step) if place not in seen])
    return stages


def _path(costs: Sequence[float]) -> list[list[int]]:
    """As `_stages`, but it first goes up the ascending costs one by one, by a factor of `NEAR` at most.

    From zero, a fit takes the longer the larger its cost is; from a neighbour it takes a few steps.
    """
    step, count = 1, len(costs)
    while 2 * step < count and max(costs[place + 2 * step] / costs[place] for place in range(count - 2 * step)) <= NEAR:
        step *= 2
    stages = [[place] for place in sorted({*range(0, count, step), count - 1})]
    while step > 1:
        step //= 2
        seen = {place for stage in stages for place in stage}
        stages.append([place for place in range(0, count, step) if place not in seen])
    return stages


def _interpolate(problems: _Problems, order: NDArray[np.int64], place: int, done: Sequence[int], cubic: bool) -> None:
    """Start a fit between its solved neighbours, in log C: linearly, or where they are near, by a cubic through four.

    Beyond the last neighbour it starts from that one's weights, or on the line through the last two.
    """
    weights = problems.weights.view(len(order), -1)
    right = next((index for index, other in enumerate(done) if other > place), len(done))
    if right == len(done) and not (cubic and right > 1):
        weights[order[place]] = weights[order[done[-1]]]
        return
    right = min(right, len(done) - 1)
    below, above = order[done[right - 1]], order[done[right]]
    own, low, high = np.log(problems.costs[[order[place], below, above]])
    near = order[list(done[max(0, right - 2) : right + 2])]
    at = np.log(problems.costs[near])
    if cubic and own < high <= low + np.log(NEAR) and len(near) > 2 and (np.diff(at) > 0).all():
        others = [np.delete(at, index) for index in range(len(at))]
        shares = [np.prod((own - other) / (x - other)) for x, other in zip(at, others, strict=True)]
        weights[order[place]] = sum(float(share) * weights[index] for share, index in zip(shares, near, strict=True))
        return
    share = min((own - low) / (high - low), MOST_BEYOND) if high > low else 0.0
    weights[order[place]] = torch.lerp(weights[below], weights[above], float(share))


def _minimise(problems: _Problems, which: Tensor, stopping: _Stopping) -> Iterator[None]:
    """L-BFGS on each problem, with step lengths and memories of its own; yields after each pass over the rows."""
    data, tolerance, limit = problems.data, stopping.tolerance, stopping.max_iterations
    decays = problems.decays[which].to(data.dtype)[:, None, None]
    rounding = 10 * torch.finfo(data.dtype).eps
    x = problems.weights[which]
    value, gradient, largest, curvature = problems.evaluate(x, which)
    yield
    shape = (HISTORY, *x.shape)
    steps, changes = (
        torch.zeros(shape, dtype=x.dtype, device=x.device),
        torch.zeros(shape, dtype=x.dtype, device=x.device),
    )
    products = torch.zeros(HISTORY, len(x), dtype=x.dtype, device=x.device)  # of step and change; 0 where there is none
    newest = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    rejected, iterations = torch.zeros_like(newest), torch.zeros_like(newest)
    length = torch.ones(len(x), dtype=torch.float64, device=x.device)
    scale = torch.ones(len(x), dtype=x.dtype, device=x.device)
    active = ((largest > tolerance) & (limit > 0)).nonzero()[:, 0]
    direction = torch.zeros_like(x)
    fresh = active  # problems that need a new direction
    while len(active):
        if len(fresh):
            inverse = _inverse_hessian(curvature[fresh], data.variances, decays[fresh]) * scale[fresh, None, None]
            direction[fresh] = _two_loops(gradient[fresh], inverse, fresh, steps, changes, products, newest)
            length[fresh] = 1.0
        d = direction[active]
        slope = _dot(gradient[active], d)
        trial = x[active] + length[active, None, None].to(x.dtype) * d
        found, turned, component, bend = problems.evaluate(trial, which[active])
        yield
        ahead = _dot(turned, d)
        before = value[active]
        enough = found <= before + 1e-4 * length[active] * slope
        # Near the optimum the values differ by less than their rounding; the slope along the step still tells.
        enough |= (found <= before + rounding * before.abs()) & (ahead <= -0.8 * slope)
        accepted = active[enough]
        if len(accepted):
            step, change = trial[enough] - x[accepted], turned[enough] - gradient[accepted]
            product = _dot(step, change)
            slot = newest[accepted] = (newest[accepted] + 1) % HISTORY
            steps[slot, accepted], changes[slot, accepted] = step, change
            products[slot, accepted] = product.clamp_min(0).to(x.dtype)
            x[accepted], value[accepted], gradient[accepted] = trial[enough], found[enough], turned[enough]
            largest[accepted], curvature[accepted] = component[enough], bend[enough]
            inverse = _inverse_hessian(bend[enough], data.variances, decays[accepted])
            ratio = product / _dot(change * inverse, change)
            scale[accepted] = torch.where(ratio > 0, ratio, 1.0).to(x.dtype)
            iterations[accepted] += 1
            rejected[accepted] = 0
        refused = active[~enough]
        if len(refused):
            rejected[refused] += 1
            length[refused] *= _shorter(
                length[refused], before[~enough], slope[~enough], found[~enough], ahead[~enough]
            )
        open_ = (largest > tolerance) & (iterations < limit) & (rejected < stopping.max_rejected)
        fresh = accepted[open_[accepted]]
        active = active[open_[active]]
    problems.weights[which], problems.gradient[which] = x, largest
    problems.iterations[which] += iterations


def _inverse_hessian(curvature: Tensor, variances: Tensor, decays: Tensor) -> Tensor:
    """(A, width, r + 1): of the mean loss, if its curvature were independent of the features, plus the penalty."""
    inner = 1 / (curvature[..., None] * variances + decays)
    bias = 1 / curvature.clamp_min(torch.finfo(curvature.dtype).tiny ** 0.5)
    return torch.cat([inner, bias[..., None]], dim=2)


def _two_loops(
    gradient: Tensor, inverse: Tensor, which: Tensor, steps: Tensor, changes: Tensor, products: Tensor, newest: Tensor
) -> Tensor:
    """L-BFGS's direction (Nocedal and Wright 2006, algorithm 7.4) of each problem in `which`."""
    q = -gradient
    found = []
    for age in range(HISTORY):
        slot = (newest[which] - age) % HISTORY
        product = products[slot, which]
        weight = torch.where(product > 0, _dot(steps[slot, which], q).to(q.dtype) / product, 0.0)
        q = q - weight[:, None, None] * changes[slot, which]
        found.append((slot, product, weight))
    q = q * inverse
    for slot, product, weight in reversed(found):
        back = torch.where(product > 0, _dot(changes[slot, which], q).to(q.dtype) / product, 0.0)
        q = q + (weight - back)[:, None, None] * steps[slot, which]
    return q


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """(A,) inner products, float64."""
    return (a * b).sum(dim=(1, 2), dtype=torch.float64)


def _shorter(length: Tensor, before: Tensor, slope: Tensor, found: Tensor, ahead: Tensor) -> Tensor:
    """The factor by which a step that went too far is shortened: to the minimum of a cubic, within [0.1, 0.6]."""
    inner = slope + ahead - 3 * (found - before) / length
    root = (inner.square() - slope * ahead).clamp_min(0).sqrt()
    factor = 1 - (ahead + root - inner) / (ahead - slope + 2 * root)
    return torch.where(torch.isfinite(factor), factor, 0.1).clamp(0.1, 0.6)


def _rows_of(features: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[Any]:
    """The rows, as a view where they follow each other: a memory-mapped file is then read once, in order."""
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all():
        return features[rows[0] : rows[-1] + 1]
    return features[rows]

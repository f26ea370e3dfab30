"""Multinomial logistic regression by full-batch L-BFGS, along a path of penalties."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

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
    mean, variance = np.zeros(rows.shape[1]), np.zeros(rows.shape[1])
    for part in _parts(items, chunk):
        mean += rows[part].sum(axis=0, dtype=np.float64) / len(items)
    if not np.isfinite(mean).all():
        raise InputError("a stored feature is not a finite number: the encoder's output overflows; check its card")
    for part in _parts(items, chunk):
        variance += np.square(rows[part] - mean).sum(axis=0) / len(items)
    deviation = np.sqrt(variance)
    deviation[deviation == 0] = 1.0  # a constant dimension stays constant
    return torch.from_numpy(mean).to(device, dtype), torch.from_numpy(deviation).to(device, dtype)


def _parts(items: NDArray[np.int64], chunk: int) -> list[NDArray[np.int64]]:
    return np.array_split(items, max(1, -(-len(items) // chunk)))


def _standardised(rows: NDArray[Any], mean: Tensor, deviation: Tensor) -> Tensor:
    x = torch.from_numpy(np.ascontiguousarray(rows)).to(mean.device, mean.dtype)
    return (x - mean) / deviation

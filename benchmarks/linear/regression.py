"""Multinomial logistic regression on stored features by full-batch L-BFGS, along a path of penalties."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.contract import InputError, Split
from benchmarks.linear.settings import StoredSettings
from benchmarks.training.ranking import target_ranks

log = logging.getLogger(__name__)

RESIDENT_BYTES = 2 * 2**30  # of rows that are kept in main memory; on a GPU it is half of what is free


@dataclass(frozen=True)
class Fit:
    """The solution for one penalty.

    Attributes:
        weights: (classes, dim + 1) on standardised features, the bias last.
        iterations: of L-BFGS.
        gradient: largest component that is left of the objective's gradient.
    """

    weights: Tensor
    iterations: int
    gradient: float


class Regression:
    """Logistic regression on some rows of a split, standardised by their own mean and deviation.

    Minimises mean cross-entropy + penalty / 2 |W|^2. Rows may be memory-mapped: those that do not fit on the device
    pass through it `settings.chunk` at a time.

    Args:
        items: the rows that are fitted.

    Raises:
        InputError: a feature is not finite.
    """

    def __init__(self, split: Split, items: NDArray[np.int64], settings: StoredSettings, device: torch.device) -> None:
        self.settings, self.device = settings, device
        self.dtype = {"float32": torch.float32, "float64": torch.float64}[settings.dtype]
        self.rows, self.items = split.features[settings.output], items
        self.targets = torch.from_numpy(split.labels.targets[items]).to(device)
        self.classes, self.dim = len(split.labels.classes), self.rows.shape[1]
        self.mean, self.deviation = self._moments()
        room = torch.cuda.mem_get_info(device)[0] / 2 if device.type == "cuda" else RESIDENT_BYTES
        fits = len(items) * self.dim * self.mean.element_size() <= room
        self._resident = [self._standardised(self.rows[part]) for part in self._parts(items)] if fits else None

    def path(self, penalties: Iterable[float]) -> Iterator[Fit]:
        """A solution for each penalty, started from the one before."""
        weights = torch.zeros(self.classes, self.dim + 1, dtype=self.dtype, device=self.device)
        for penalty in penalties:
            fit = self._fit(penalty, weights)
            log.info("penalty %g: %d iterations, gradient %.1e", penalty, fit.iterations, fit.gradient)
            weights = fit.weights
            yield fit

    def _fit(self, penalty: float, start: Tensor) -> Fit:
        weights = start.clone().requires_grad_()
        solver = torch.optim.LBFGS(
            [weights],
            max_iter=self.settings.max_iterations,
            tolerance_grad=self.settings.tolerance,
            tolerance_change=0.0,  # a flat stretch is no optimum
            history_size=self.settings.history,
            line_search_fn="strong_wolfe",
        )

        def objective() -> Tensor:
            solver.zero_grad()
            penalised = penalty / 2 * weights[:, :-1].square().sum()
            penalised.backward()
            value, first = penalised.detach(), 0
            for x in self._chunks():
                logits = F.linear(x, weights[:, :-1], weights[:, -1])
                loss = F.cross_entropy(logits, self.targets[first : first + len(x)], reduction="sum") / len(self.items)
                loss.backward()
                value, first = value + loss.detach(), first + len(x)
            return value

        solver.step(objective)
        objective()
        assert weights.grad is not None
        return Fit(weights.detach(), int(solver.state[weights]["n_iter"]), weights.grad.abs().max().item())

    def ranks(self, split: Split, items: NDArray[np.int64], fit: Fit) -> Tensor:
        """(len(items),) how many classes come before the true one."""
        rows, found = split.features[self.settings.output], []
        for part in self._parts(items):
            logits = F.linear(self._standardised(rows[part]), fit.weights[:, :-1], fit.weights[:, -1])
            targets = torch.from_numpy(split.labels.targets[part]).to(self.device)
            found.append(target_ranks(logits[:, None], targets)[0].cpu())
        return torch.cat(found)

    def on_raw_features(self, fit: Fit) -> tuple[Tensor, Tensor]:
        """The same classifier for features as they are: (classes, dim) weight and (classes,) bias, float32."""
        weight = fit.weights[:, :-1] / self.deviation
        return weight.float().cpu(), (fit.weights[:, -1] - weight @ self.mean).float().cpu()

    def _moments(self) -> tuple[Tensor, Tensor]:
        mean, variance = np.zeros(self.dim), np.zeros(self.dim)
        for part in self._parts(self.items):
            mean += self.rows[part].sum(axis=0, dtype=np.float64) / len(self.items)
        if not np.isfinite(mean).all():
            raise InputError("a stored feature is not a finite number: the encoder's output overflows; check its card")
        for part in self._parts(self.items):
            variance += np.square(self.rows[part] - mean).sum(axis=0) / len(self.items)
        deviation = np.sqrt(variance)
        deviation[deviation == 0] = 1.0  # a constant dimension stays constant
        return (
            torch.from_numpy(mean).to(self.device, self.dtype),
            torch.from_numpy(deviation).to(self.device, self.dtype),
        )

    def _parts(self, items: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        return np.array_split(items, max(1, -(-len(items) // self.settings.chunk)))

    def _chunks(self) -> Iterator[Tensor]:
        if self._resident is not None:
            yield from self._resident
        else:
            yield from (self._standardised(self.rows[part]) for part in self._parts(self.items))

    def _standardised(self, rows: NDArray[np.float32]) -> Tensor:
        x = torch.from_numpy(np.ascontiguousarray(rows)).to(self.device, self.dtype)
        return (x - self.mean) / self.deviation

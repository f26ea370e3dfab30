"""Gram matrices of drawn images and the decisions of models trained on them, for every other image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from benchmarks.svm.gram import Gram, gram
from benchmarks.svm.preconditioner import Preconditioner, preconditioner
from benchmarks.svm.rows import CHUNK_ROWS, Rows, normalised_rows


@dataclass(frozen=True)
class Decisions:
    """(g, m, images) float32 decision values."""

    train: NDArray[np.float32]
    test: NDArray[np.float32]


class Source(Protocol):
    """Where low-shot problems take their rows from."""

    def gram(self, images: NDArray[np.int64]) -> tuple[Gram, Preconditioner | None]:
        """Of (g, n) training images, with a preconditioner where one is at hand."""

    def decisions(self, part: Gram, beta: Tensor, images: NDArray[np.int64], compared: NDArray[np.int64]) -> Decisions:
        """Of (g, m, n) expansions over the (g, n) training `images`, on those `compared` and on all test images."""


class AllPairs:
    """Keeps the inner products of all training images with all images: many problems on a few thousand images."""

    def __init__(self, train: NDArray[np.float32], test: NDArray[np.float32], device: str) -> None:
        rows = normalised_rows(train, device=device)
        test_rows = normalised_rows(test, rows.mean, device)
        self._whole = gram(rows)
        self._leading = preconditioner(self._whole)
        assert self._whole.dense is not None
        self._cross = torch.cat([self._whole.dense[0], rows.centred @ test_rows.centred.T], 1)
        self._shift = torch.cat([self._whole.shift[0], _shift(test_rows)])
        self._device = device

    def gram(self, images: NDArray[np.int64]) -> tuple[Gram, Preconditioner | None]:
        at = torch.from_numpy(images).to(self._device)
        part = self._whole.select(at)
        return part, preconditioner(part, self._leading.restricted(at))

    def decisions(self, part: Gram, beta: Tensor, images: NDArray[np.int64], compared: NDArray[np.int64]) -> Decisions:
        found = []
        start = 0 if len(compared) else part.whole.centred.shape[0]  # the test images alone are half the work
        cross, shifts = self._cross[:, start:], self._shift[start:]
        for of_place, shift, at in zip(beta, part.shift, torch.from_numpy(images).to(self._device), strict=True):
            total = of_place.sum(-1, keepdim=True)
            common = (of_place @ shift)[:, None] + part.constant * total
            found.append((of_place.float() @ cross[at]).double() + total * shifts + common)
        every = _array(torch.stack(found))
        return Decisions(every[..., compared], every[..., part.whole.centred.shape[0] - start :])


class DrawnRows:
    """Reads the drawn rows and no others: few draws from many images, g = 1."""

    def __init__(self, train: NDArray[np.float32], test: NDArray[np.float32], device: str) -> None:
        self._train, self._test, self._device = train, test, device

    def gram(self, images: NDArray[np.int64]) -> tuple[Gram, Preconditioner | None]:
        return gram(normalised_rows(self._train[images[0]], device=self._device)), None

    def decisions(self, part: Gram, beta: Tensor, images: NDArray[np.int64], compared: NDArray[np.int64]) -> Decisions:
        rows = part.rows()
        weights = rows.weights(beta[0])
        signal, constant = weights[:, :-1].float(), (weights[:, :-1] @ rows.mean + weights[:, -1]).float()

        def on(features: NDArray[np.float32], which: NDArray[np.int64]) -> NDArray[np.float32]:
            found = [signal.new_zeros(len(signal), 0)]
            for start in range(0, len(which), CHUNK_ROWS):
                block = normalised_rows(features[which[start : start + CHUNK_ROWS]], rows.mean, self._device)
                found.append(functional.linear(signal, block.centred))
            return _array(torch.cat(found, 1) + constant[:, None])[None]

        return Decisions(on(self._train, compared), on(self._test, np.arange(len(self._test))))


def _shift(rows: Rows) -> Tensor:
    return torch.cat([block.double() @ rows.mean for block in rows.centred.split(CHUNK_ROWS)])


def _array(values: Tensor) -> NDArray[np.float32]:
    return values.float().cpu().numpy()

"""SVMs on drawn subsets of the training images, and their decisions on the other images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from benchmarks.solvers.gram import CHUNK_ROWS, Gram, gram, mean_products, normalised_rows


@dataclass(frozen=True)
class Decisions:
    """(g, m, images) float32 decision values."""

    train: NDArray[np.float32]
    test: NDArray[np.float32]


class SubsetRows(Protocol):
    """Where the problems on subsets take their rows from."""

    def gram(self, images: NDArray[np.int64]) -> Gram:
        """The stack of Gram matrices of (g, n) training images."""

    def decisions(self, part: Gram, beta: Tensor, images: NDArray[np.int64], compared: NDArray[np.int64]) -> Decisions:
        """Decisions of (g, m, n) coefficients over the (g, n) training `images`.

        Args:
            compared: the training images to decide on; the test images are always decided on.
        """


class AllPairs:
    """Keeps the inner products of all training images with all images: many problems on a few thousand images."""

    def __init__(self, train: NDArray[np.float32], test: NDArray[np.float32], device: str) -> None:
        rows = normalised_rows(train, device=device)
        test_rows = normalised_rows(test, rows.mean, device)
        self._whole = gram(rows)
        _ = self._whole.leading  # now, and not in several threads at once
        assert self._whole.dense is not None
        self._cross = torch.cat([self._whole.dense[0], rows.centred @ test_rows.centred.T], 1)
        self._shift = torch.cat([self._whole.shift[0], mean_products(test_rows)])
        self._device = device

    def gram(self, images: NDArray[np.int64]) -> Gram:
        return self._whole.select(torch.from_numpy(images).to(self._device))

    def decisions(self, part: Gram, beta: Tensor, images: NDArray[np.int64], compared: NDArray[np.int64]) -> Decisions:
        train_images = len(self._whole.whole)
        start = 0 if len(compared) else train_images  # the test images alone are half the work
        cross, shifts = self._cross[:, start:], self._shift[start:]
        found = []
        for of_place, shift, at in zip(beta, part.shift, torch.from_numpy(images).to(self._device), strict=True):
            total = of_place.sum(-1, keepdim=True)
            common = (of_place @ shift)[:, None] + part.constant * total
            found.append((of_place.float() @ cross[at]).double() + total * shifts + common)
        every = torch.stack(found).float().cpu().numpy()
        return Decisions(every[..., compared], every[..., train_images - start :])


class DrawnRows:
    """Reads only the drawn rows: few draws from many images, g = 1."""

    def __init__(self, train: NDArray[np.float32], test: NDArray[np.float32], device: str) -> None:
        self._train, self._test, self._device = train, test, device

    def gram(self, images: NDArray[np.int64]) -> Gram:
        return gram(normalised_rows(self._train[images[0]], device=self._device))

    def decisions(self, part: Gram, beta: Tensor, images: NDArray[np.int64], compared: NDArray[np.int64]) -> Decisions:
        rows = part.rows()
        weights = rows.weights(beta[0])
        signal, constant = weights[:, :-1].float(), (weights[:, :-1] @ rows.mean + weights[:, -1]).float()

        def on(features: NDArray[np.float32], which: NDArray[np.int64]) -> NDArray[np.float32]:
            found = [signal.new_zeros(len(signal), 0)]
            for start in range(0, len(which), CHUNK_ROWS):
                block = normalised_rows(features[which[start : start + CHUNK_ROWS]], rows.mean, self._device)
                found.append(functional.linear(signal, block.centred))
            return (torch.cat(found, 1) + constant[:, None]).float().cpu().numpy()[None]

        return Decisions(on(self._train, compared), on(self._test, np.arange(len(self._test))))

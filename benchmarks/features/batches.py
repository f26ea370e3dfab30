"""Batches of decoded images for a frozen pass: in turns with the model on a CPU, by worker processes beside a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.datasets.images import BadImage, Images
from results.schema import Geometry

Map = Callable[[Callable[[int], Any], Sequence[int]], Iterable[Any]]


class Batch(NamedTuple):
    """Consecutive rows of a split.

    Attributes:
        start, stop: the rows.
        readable: those of them whose image could be read.
        images: (len(readable), 3, crop, crop) uint8, RGB.
        unreadable: row -> why, for the others.
    """

    start: int
    stop: int
    readable: list[int]
    images: Tensor
    unreadable: dict[int, str]


class Reader(Dataset[Batch]):
    """Reads ranges of rows. A file that is no readable image is told apart, or with `strict` raises at once."""

    def __init__(self, paths: Sequence[Path], geometry: Geometry, *, strict: bool = False) -> None:
        self.images, self.strict, self.crop = Images(paths, geometry), strict, geometry.crop

    def read(self, rows: Sequence[int], each: Map = map) -> Batch:
        """Rows are consecutive; `each` may read several at a time."""
        found = dict(zip(rows, each(self._one, rows), strict=True))
        images = {row: image for row, image in found.items() if isinstance(image, Tensor)}
        # Channels last in memory, as they were decoded and as the model wants them.
        stacked = torch.empty(len(images), self.crop, self.crop, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
        if images:
            torch.stack(list(images.values()), out=stacked)
        unreadable = {row: why for row, why in found.items() if isinstance(why, str)}
        return Batch(rows[0], rows[-1] + 1, list(images), stacked, unreadable)

    def __getitems__(self, rows: list[int]) -> Batch:
        return self.read(rows)

    def _one(self, row: int) -> Tensor | str:
        try:
            return self.images[row][0]
        except BadImage as error:
            cause = error.__cause__
            if self.strict or (isinstance(cause, OSError) and cause.errno is not None):
                raise  # the system's word, not the decoder's: a disk that went away says nothing about the image
            return str(error)


def batches(reader: Reader, requests: Iterable[Sequence[int]], device: torch.device, workers: int) -> Iterator[Batch]:
    """One batch per request, in order.

    Beside a GPU `workers` processes read ahead. On a CPU reading and computing want the same cores, and computing
    threads that wait for one another at every layer lose more to a reader in their way than the reader gains; so they
    take turns, each with as many threads as torch has (Pillow decodes and resizes outside the interpreter's lock).
    Without workers this thread reads.
    """
    if not workers:
        yield from map(reader.read, requests)
    elif device.type == "cpu":
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            yield from (reader.read(rows, threads.map) for rows in requests)
    else:
        yield from DataLoader(
            reader,
            batch_sampler=requests,  # type: ignore[arg-type]  # any iterable of lists will do
            num_workers=workers,
            collate_fn=_as_it_is,  # type: ignore[arg-type]  # `__getitems__` gives a batch and no list
            pin_memory=device.type == "cuda",
        )


def _as_it_is(batch: Batch) -> Batch:
    return batch

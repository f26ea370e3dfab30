"""Masks: what their values mean in each data set, reading and resizing, and the blocks of pixels that patches cover."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.datasets.dense_sets import label_map
from benchmarks.task import InputError, Labels
from benchmarks.training.classification import require_images
from results.files import open_image
from results.schema import Geometry, Params, Protocol, Source

VOID = 255
SPLITS = {"ade20k": ("training", "validation"), "voc12aug": ("train_aug", "val"), "cityscapes": ("train", "val")}
_CHUNK = 1 << 24  # pixels that are counted at a time
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError)


def squashed(side: int, interpolation: Literal["bilinear", "bicubic"] = "bicubic") -> Geometry:
    """Images whose sides are resized to the same length."""
    return Geometry(mode="warp", resize=0, crop=side, interpolation=interpolation)


def mask_protocol(
    harness: str, variant: str, dataset: str, geometry: Geometry, params: Params, source: Source, **fields: Any
) -> Protocol:
    """A protocol on the usual splits of a data set with masks, measured by mean intersection over union.

    Args:
        fields: the other fields of the protocol.
    """
    train, test = SPLITS[dataset]
    return Protocol.of(
        params,
        benchmark=f"{dataset}_{harness.replace('-', '_')}",
        variant=variant,
        harness=harness,
        dataset=dataset,
        train_split=train,
        test_split=test,
        geometry=geometry,
        source=source,
        **fields,
    )


@dataclass(frozen=True)
class MaskFormat:
    """What the values of a data set's masks mean.

    Attributes:
        classes: names of the classes that are scored.
        first: value of the first of them.
        ignored: values of pixels that are not scored.
        table: (256,) int16 value in the file -> value here, or -1 for one that cannot be.
    """

    classes: tuple[str, ...]
    first: int
    ignored: tuple[int, ...]
    table: NDArray[np.int16]

    @classmethod
    def of(cls, dataset: str, labels: Labels) -> MaskFormat:
        """Of a data set by its id. ADE20K ignores 0 and numbers classes from 1; the others ignore 255 only."""
        first, count = int(dataset == "ade20k"), len(labels.classes)
        table = np.full(256, -1, np.int16)
        translation = label_map(labels) or {value: value for value in (*range(first + count), VOID)}
        for value, meaning in translation.items():
            table[value] = meaning
        return cls(labels.classes, first, (0, VOID) if first else (VOID,), table)

    @property
    def values(self) -> tuple[int, ...]:
        """Those of the classes, in their order, then the ignored ones."""
        return (*range(self.first, self.first + len(self.classes)), *self.ignored)

    def indices(self, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Class indices from 0 on, and 255 where the pixel is ignored."""
        found = mask - np.uint8(self.first)  # wraps 0 to 255, and 255 to 254
        found[np.isin(mask, self.ignored)] = VOID
        return found

    def read(self, file: Path, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """(H, W) values, or those of the mask at this width and height (nearest neighbour).

        Raises:
            InputError: the file is damaged, has several channels, or a value that means nothing.
        """
        try:
            with open_image(file) as image:
                image.load()
                resized = image if size is None else image.resize(size, Image.Resampling.NEAREST)
                values = np.asarray(resized)
        except _DAMAGED as error:
            raise InputError(f"{file} cannot be decoded as a mask ({error}); unpack the data set again") from error
        if values.ndim != 2 or values.dtype != np.uint8:
            raise InputError(f"{file} has {image.mode} pixels; expected 8-bit class numbers, in grey or with a palette")
        found = self.table[values]
        if found.min() < 0:
            odd = int(values[found < 0][0])
            raise InputError(
                f"{file} has the value {odd}, which is not one of the {len(self.classes)} classes; restore the file"
            )
        return found.astype(np.uint8)


def read_masks(files: Sequence[Path], style: MaskFormat, side: int) -> NDArray[np.uint8]:
    """(N, side, side) values of masks that are squashed to a square."""
    found = np.empty((len(files), side, side), np.uint8)
    for row, file in enumerate(files):
        found[row] = style.read(file, (side, side))
    return found


def blocks_of(masks: NDArray[np.uint8], grid: int) -> NDArray[np.uint8]:
    """(N, S, S) masks to (N * grid * grid, (S / grid)^2) pixels of each patch, row by row."""
    count, side = masks.shape[:2]
    edge = side // grid
    cut = masks.reshape(count, grid, edge, grid, edge).transpose(0, 1, 3, 2, 4)
    return np.ascontiguousarray(cut).reshape(count * grid * grid, edge * edge)


def masks_of(blocks: NDArray[np.uint8], grid: int) -> NDArray[np.uint8]:
    """The masks whose `blocks_of` these are."""
    edge = round(blocks.shape[1] ** 0.5)
    cut = blocks.reshape(-1, grid, grid, edge, edge).transpose(0, 1, 3, 2, 4)
    return np.ascontiguousarray(cut).reshape(-1, grid * edge, grid * edge)


def counts_of(blocks: NDArray[np.uint8], values: int = 256) -> NDArray[np.uint16]:
    """(M, values) pixels of each value in each block; larger values are not counted."""
    found = np.zeros((len(blocks), values), np.uint16)
    rows = max(1, _CHUNK // (256 * blocks.shape[1]) * 16)
    for start in range(0, len(blocks), rows):
        part = blocks[start : start + rows].astype(np.int64)
        part += 256 * np.arange(len(part))[:, None]
        counts = np.bincount(part.ravel(), minlength=256 * len(part)).reshape(-1, 256)
        found[start : start + rows] = counts[:, :values]
    return found


def modes_of(blocks: NDArray[np.uint8]) -> NDArray[np.int64]:
    """(M,) the most frequent value of each block, of equals the smallest."""
    found = np.empty(len(blocks), np.int64)
    for start in range(0, len(blocks), 65536):
        part = slice(start, start + 65536)
        found[part] = counts_of(blocks[part]).argmax(axis=1)
    return found


def require_masks(protocol: Protocol, train: Labels, test: Labels) -> None:
    """Raises InputError where a split has no images or not a mask for each, or the splits differ in their classes."""
    require_images(protocol, train, test)
    for labels in (train, test):
        if len(labels.annotations) != len(labels) or not labels.classes:
            raise InputError(
                f"{protocol.id} needs a mask of classes for each image, which {protocol.dataset} does not have: choose "
                "a data set with masks, such as ade20k, voc12aug or cityscapes"
            )
    if train.classes != test.classes:
        raise InputError(
            f"{protocol.id}: the splits of {protocol.dataset} have different classes: give both the same list"
        )


def held_out_images(count: int, fraction: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to train on and a random part to choose by, both ascending. At least one image is held out of two."""
    if count < 2:
        return np.arange(count), np.arange(count)
    held = np.sort(np.random.default_rng(seed).permutation(count)[: max(1, int(fraction * count))])
    return np.setdiff1d(np.arange(count), held), held

"""What the tasks on stored patch features share: their parameters, and the patches of a split, features and masks."""

from __future__ import annotations

import tempfile
import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from benchmarks.dense.masks import (
    Areas,
    MaskFormat,
    add_segmentation,
    areas_of_each,
    held_out_images,
    mask_sheet,
    mean_iou,
    pixel_accuracy,
    require_masks,
)
from benchmarks.features.pool import GlobalAverage, PatchRows
from benchmarks.task import FeatureTask, InputError, Labels, Outcome, Outputs, RunOptions, Split
from results.schema import Params, Protocol, Score

MAPS = ("patches", "feature5", "feature4")  # encoder outputs, the one that is preferred first
# Which blocks of a ViT heads read: the map of its patch tokens, and its class token.
LAYERS = {
    "last": ("patches", "cls"), "last4": ("patches4", "cls_last4"), "last_raw": ("patches_raw", "cls_raw"),
    "even4_raw": ("patches_even4", "cls_even4"),
}  # fmt: skip
Layers = Literal["last", "last4", "last_raw", "even4_raw"]
MEAN = " mean"  # ending of the key of a map's global average, whose width is the map's number of channels
IN_MEMORY = 4 * 2**30  # bytes of changed rows; more lie in a temporary file
COPIED_ROWS = 4096
_CHUNK = 1 << 24  # pixels that are counted at a time


def maps_of(layers: Layers) -> tuple[str, ...]:
    """Encoder outputs that heads can sit on, the one that is preferred first. Stages stand in for the last block."""
    return MAPS if layers == "last" else LAYERS[layers][:1]


class PatchParams(Params):
    """What is measured of an encoder's map.

    Attributes:
        stride: of the map, in pixels, where the encoder has stages: the deepest one that is no coarser. A ViT's patches
            are as its patch size has them.
        storage: of the features on disk.
        heldout: fraction of the training images that settings are chosen by.
        seed: chooses these images.
    """

    stride: int = Field(16, gt=0)
    storage: Literal["float32", "float16"] = "float32"
    heldout: Annotated[float, Field(gt=0, lt=1)] = 0.1
    seed: int = 0


@dataclass(frozen=True)
class PatchTask(FeatureTask[Any]):
    """A benchmark on the stored patch features of images that are squashed to a square."""

    Params: ClassVar[type[PatchParams]] = PatchParams

    def outputs(self, protocol: Protocol) -> Outputs:
        """The patch tokens, or the maps of the last stages, and their means over the map.

        An encoder with stages has several of these maps stored, and its task takes the one of the protocol's stride.
        """
        rows = PatchRows(dtype=self.params(protocol).storage)
        return {name: (name, rows) for name in MAPS} | {f"{name}{MEAN}": (name, GlobalAverage()) for name in MAPS}

    def check(self, protocol: Protocol, train: Labels, test: Labels) -> None:
        """Raises InputError where an image has no mask of classes, or the splits differ in their classes."""
        require_masks(protocol, train, test)


@dataclass(frozen=True)
class Patches:
    """The patches of a split's images.

    Attributes:
        rows: (N * grid * grid, C), image by image, row by row; maybe memory-mapped.
        grid: patches along a side.
        side: of the squashed images, in pixels.
        output: the encoder output that was taken.
    """

    labels: Labels
    rows: NDArray[Any]
    grid: int
    side: int
    output: str
    style: MaskFormat

    @classmethod
    def of(cls, split: Split, protocol: Protocol, stride: int) -> Patches:
        """Of a split with the outputs of `PatchTask.outputs`.

        Raises:
            InputError: the map does not divide the image, or the encoder has no map that is fine enough.
        """
        side = protocol.geometry.crop
        found: list[tuple[str, int, int]] = []
        for name in MAPS:
            if name in split.features:
                channels = split.features[f"{name}{MEAN}"].shape[1]
                grid = round((split.features[name].shape[1] / channels) ** 0.5)
                if grid * grid * channels != split.features[name].shape[1]:
                    raise InputError(f"{name} is not a square map of {channels} channels; choose another encoder")
                found.append((name, grid, channels))
        fine = [each for each in found if each[0] == "patches" or each[1] * stride >= side]
        if not fine:
            raise InputError(
                f"{protocol.id} needs a feature map of stride {stride} or finer, but the encoder has "
                f"{', '.join(f'{grid} x {grid}' for _, grid, _ in found)} for images of {side} pixels; choose another "
                "encoder, or --set stride=32"
            )
        name, grid, channels = fine[0]
        if side % grid:
            raise InputError(
                f"{name} is {grid} x {grid}, which does not divide {side} pixels into whole patches; use --set "
                f"geometry.crop={max(1, round(side / grid)) * grid}"
            )
        rows = split.features[name].reshape(len(split.labels) * grid * grid, channels)
        return cls(split.labels, rows, grid, side, name, MaskFormat.of(protocol.dataset, split.labels))

    @cached_property
    def masks(self) -> NDArray[np.uint8]:
        """(N, side, side) mask values at the size of the squashed images."""
        return read_masks(self.labels.annotations, self.style, self.side)

    @cached_property
    def blocks(self) -> NDArray[np.uint8]:
        """(N * grid * grid, pixels) mask values of each patch."""
        return blocks_of(self.masks, self.grid)

    @cached_property
    def modes(self) -> NDArray[np.int64]:
        """(N * grid * grid,) the most frequent mask value of each patch."""
        return modes_of(self.blocks)

    def of_images(self, images: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of these images, in order."""
        per_image = self.grid**2
        return (images[:, None] * per_image + np.arange(per_image)).ravel()

    def areas(self, predicted: NDArray[np.uint8], images: NDArray[np.int64] | None = None) -> Areas:
        """Areas of predicted masks (n, side, side) of these images, or of all."""
        truth = self.masks if images is None else self.masks[images]
        return areas_of_each(predicted, truth, self.style)


class Standardised:
    """Rows divided by the deviation of some of them, after their mean is subtracted (scikit-learn's StandardScaler)."""

    def __init__(self, rows: NDArray[Any], fitted: NDArray[np.int64]) -> None:
        total, squares = np.zeros(rows.shape[1]), np.zeros(rows.shape[1])
        for part in _parts(fitted):
            total += rows[part].sum(axis=0, dtype=np.float64)
        self.mean = total / len(fitted)
        for part in _parts(fitted):
            squares += np.square(rows[part] - self.mean).sum(axis=0)
        deviation = np.sqrt(squares / len(fitted))
        self.deviation = np.where(deviation == 0, 1.0, deviation)

    def __call__(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """All rows, standardised, as float32."""
        out = space(rows.shape)
        for part in _parts(np.arange(len(rows))):
            out[part[0] : part[-1] + 1] = (rows[part[0] : part[-1] + 1] - self.mean) / self.deviation
        return out


def _parts(items: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return np.array_split(items, max(1, -(-len(items) // COPIED_ROWS)))


def space(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Uninitialised float32 numbers: in memory, or where they are many in a temporary file that vanishes by itself."""
    if 4 * int(np.prod(shape)) <= IN_MEMORY:
        return np.empty(shape, np.float32)
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, np.float32, "w+", shape=shape)


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


@dataclass(frozen=True)
class CapiTask(PatchTask):
    """CAPI's evaluation of a patch classifier: a setting is chosen on held-out training images, then all are used."""

    @abstractmethod
    def settings(self, params: Any) -> list[dict[str, Any]]:
        """What is chosen among, as the rows of the record say it; of equals the first is chosen."""

    @abstractmethod
    def predict(
        self, protocol: Protocol, gallery: Patches, rows: NDArray[np.float32], items: NDArray[np.int64],
        asked: NDArray[np.float32], options: RunOptions, what: str,
    ) -> list[NDArray[np.uint8]]:  # fmt: skip
        """The masks of the images whose patches are `asked`, under each setting.

        Args:
            rows: (M, C) features of the gallery's patches, of which `items` may be used: all of them have a class.
            asked: (Q, C) features.
            what: is done, for the progress bar.
        """

    def run(self, protocol: Protocol, train: Split, test: Split, options: RunOptions) -> Outcome:
        """Choose a setting on held-out training images, then measure every setting of all training patches on the test.

        Raises:
            InputError: the encoder's map does not suit the protocol, or too few patches have a class.
        """
        params = self.params(protocol)
        began = time.perf_counter()
        gallery, queries = Patches.of(train, protocol, params.stride), Patches.of(test, protocol, params.stride)
        kept, held = held_out_images(len(train.labels), params.heldout, params.seed)
        scale = Standardised(gallery.rows, gallery.of_images(kept)) if params.standardise else np.asarray
        rows, query_rows = scale(gallery.rows), scale(queries.rows)
        usable = ~np.isin(gallery.modes, gallery.style.ignored)

        items = gallery.of_images(kept)
        asked = rows[gallery.of_images(held)]
        tried = self.predict(protocol, gallery, rows, items[usable[items]], asked, options, "choosing")
        validation = [mean_iou(gallery.areas(masks, held)) for masks in tried]
        chosen = int(np.argmax(validation))
        selected = time.perf_counter()
        masks = self.predict(protocol, gallery, rows, np.flatnonzero(usable), query_rows, options, "test")
        measured = [queries.areas(each) for each in masks]
        scores = [mean_iou(each) for each in measured]
        best = int(np.argmax(scores))

        outcome = Outcome(seeds=(params.seed,))
        outcome.timing = {"select": selected - began, "test": time.perf_counter() - selected}
        outcome.runs = [
            {"output": gallery.output, "grid": gallery.grid, **setting, "chosen": place == chosen,
             "heldout_mIoU": validation[place], "mIoU": scores[place], "accuracy": pixel_accuracy(measured[place])}
            for place, setting in enumerate(self.settings(params))
        ]  # fmt: skip
        classes, names = queries.style.classes, " and ".join(self.settings(params)[0])
        add_segmentation(outcome, "mIoU", measured[chosen], classes, protocol.selection)
        add_segmentation(outcome, "mIoU oracle", measured[best], classes, f"best {names} on test (oracle)")
        outcome.scores["accuracy"] = Score(
            value=outcome.runs[chosen]["accuracy"], n=len(test.labels), selection=protocol.selection
        )
        outcome.pictures = mask_sheet(test.labels, queries.style, queries.masks, masks[chosen])
        return outcome

"""What the tasks on stored patch features share: their parameters, the rows of a split, and a picture of masks."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from benchmarks.dense.masks import MaskFormat, blocks_of, modes_of, read_masks, require_masks
from benchmarks.dense.scores import Areas, add_segmentation, areas_of_each, pixel_accuracy
from benchmarks.features.pool import GlobalAverage, PatchRows
from benchmarks.task import FeatureTask, InputError, Labels, Outcome, Outputs, Split
from benchmarks.training.trials import mask_figure
from results.files import open_image
from results.schema import Params, Protocol, Score

if TYPE_CHECKING:
    from torch import Tensor

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


def positive_norms(rows: NDArray[Any]) -> NDArray[np.float64]:
    """(N,) L2 norms, where a row of zeros has a tiny one: a patch without any activation is similar to nothing."""
    from benchmarks.solvers.exact_knn import norms

    return np.maximum(norms(rows), float(np.finfo(np.float32).tiny) * 1e6)


def upsampled(scores: NDArray[np.float32], grid: int, size: tuple[int, int], device: str) -> NDArray[np.int64]:
    """(n * grid * grid, K) scores of patches to (n, H, W) best classes, after bilinear interpolation to `size`."""
    import torch
    import torch.nn.functional as F

    maps = torch.from_numpy(np.ascontiguousarray(scores)).to(device)
    maps = maps.view(-1, grid, grid, scores.shape[1]).permute(0, 3, 1, 2)
    step = max(1, 2**26 // (scores.shape[1] * size[0] * size[1]))
    found = [
        best_class(F.interpolate(part, size, mode="bilinear", align_corners=False)).cpu() for part in maps.split(step)
    ]
    return np.asarray(torch.cat(found).numpy())


def best_class(maps: Tensor) -> Tensor:
    """(n, K, H, W) to (n, H, W): the class of the largest number, the first of equals.

    On a CPU, torch's argmax over a dimension that is not the last one is several times slower than this.
    """
    import torch

    if maps.is_cuda:
        return maps.argmax(1)
    best, found = maps[:, 0].clone(), maps.new_zeros((len(maps), *maps.shape[2:]), dtype=torch.int64)
    for number in range(1, maps.shape[1]):
        larger = maps[:, number] > best
        best = maps[:, number].where(larger, best)
        found[larger] = number
    return found


# ---- picture ---------------------------------------------------------------------------------------------------------

SHEET_IMAGES = 6
Masks = NDArray[np.uint8] | Sequence[NDArray[np.uint8]]  # of all images


def mask_sheet(labels: Labels, style: MaskFormat, truth: Masks, predicted: Masks) -> dict[str, bytes]:
    """A PNG named `masks` of test images, their true masks and the predicted ones, evenly spread over the split.

    Args:
        truth, predicted: (H, W) mask values of each image of the split.

    Returns:
        Nothing where an image cannot be opened: the numbers do not depend on the picture.
    """
    chosen = np.unique(np.linspace(0, len(labels) - 1, min(SHEET_IMAGES, len(labels))).round().astype(int)).tolist()
    shown = []
    for row in chosen:
        try:
            with open_image(labels.paths[row]) as image:
                pixels = np.asarray(image.convert("RGB").resize(truth[row].shape[::-1]))
        except (OSError, ValueError, SyntaxError):
            return {}
        shown.append((pixels, style.indices(truth[row]), style.indices(predicted[row])))
    png = BytesIO()
    mask_figure(shown, style.classes).savefig(png, format="png")
    return {"masks": png.getvalue()}


def add_choice(
    outcome: Outcome, queries: Patches, masks: Masks, chosen: tuple[Areas, str], oracle: tuple[Areas, str]
) -> None:
    """Add the columns of CAPI's classifiers and a picture: mean IoU and accuracy as chosen, and the best mean IoU.

    Args:
        masks: of the test images, as chosen.
        chosen, oracle: areas of each test image, and how they were chosen.
    """
    areas, selection = chosen
    add_segmentation(outcome, "mIoU", areas, queries.style.classes, selection)
    add_segmentation(outcome, "mIoU oracle", oracle[0], queries.style.classes, oracle[1])
    outcome.scores["accuracy"] = Score(value=pixel_accuracy(areas), n=len(queries.labels), selection=selection)
    outcome.pictures |= mask_sheet(queries.labels, queries.style, queries.masks, masks)

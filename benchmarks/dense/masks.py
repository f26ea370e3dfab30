"""Masks: what their values mean in each data set, reading them, and the scores and pictures of predicted ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.datasets.dense_sets import label_map
from benchmarks.task import InputError, Labels, Outcome
from benchmarks.training.task import require_images
from benchmarks.training.trials import mask_figure
from results.files import open_image
from results.schema import Geometry, Protocol, Score

if TYPE_CHECKING:
    from torch import Tensor

VOID = 255
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError)
SHEET_IMAGES = 6

Masks = NDArray[np.uint8] | Sequence[NDArray[np.uint8]]  # of all images
Areas = NDArray[np.int64]  # (N, 3, C) pixels of the intersection, the prediction and the truth, per image and class
Rule = Literal["present", "every"]  # mean over the classes that occur, or over all with 0 for one that does not


def squashed(side: int, interpolation: Literal["bilinear", "bicubic"] = "bicubic") -> Geometry:
    """Images whose sides are resized to the same length."""
    return Geometry(mode="warp", resize=0, crop=side, interpolation=interpolation)


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


def areas(predicted: NDArray[np.uint8], truth: NDArray[np.uint8], style: MaskFormat) -> NDArray[np.int64]:
    """(3, C) pixels of one image for each of `style.values`; pixels whose truth is ignored do not count.

    Args:
        predicted, truth: (H, W) mask values.
    """
    counted = ~np.isin(truth, style.ignored)
    predicted, truth = predicted[counted], truth[counted]
    each = (truth[predicted == truth], predicted, truth)
    return np.stack([np.bincount(of, minlength=256) for of in each])[:, list(style.values)]


def areas_of_each(
    predicted: Iterable[NDArray[np.uint8]], truth: Iterable[NDArray[np.uint8]], style: MaskFormat
) -> Areas:
    """`areas` of every image."""
    return np.stack([areas(one, other, style) for one, other in zip(predicted, truth, strict=True)])


def confusions(predicted: NDArray[np.uint8], truth: NDArray[np.uint8], classes: int, ignored: int) -> NDArray[np.int64]:
    """(N, C, C) pixels of each image by true class (first) and predicted class; pixels whose truth is ignored, or no
    class, do not count.

    Args:
        predicted, truth: (N, H, W) class indices.
    """
    found = np.zeros((len(truth), classes, classes), np.int64)
    for row, (one, other) in enumerate(zip(predicted, truth, strict=True)):
        counted = (other != ignored) & (other < classes)
        pairs = other[counted].astype(np.int64) * classes + one[counted]
        found[row] = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    return found


def areas_of_confusions(confusion: NDArray[np.int64]) -> Areas:
    """(N, C, C) confusion matrices to (N, 3, C) areas."""
    return np.stack([np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(1), confusion.sum(2)], axis=1)


def matched(confusion: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N, C, C) the confusion matrices with predicted classes renamed: Hungarian matching by IoU over all images."""
    from scipy.optimize import linear_sum_assignment

    total = confusion.sum(0).astype(np.float64)
    union = total.sum(0, keepdims=True) + total.sum(1, keepdims=True) - total
    overlap = total / np.maximum(union, 1e-8)
    true, predicted = linear_sum_assignment(-overlap)
    renamed = np.empty_like(confusion)
    renamed[:, :, true] = confusion[:, :, predicted]
    return renamed


def class_ious(found: Areas) -> NDArray[np.float64]:
    """(C,) intersection over union of all images together; NaN for a class that is neither predicted nor true."""
    intersection, predicted, truth = found.sum(axis=0).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(intersection / (predicted + truth - intersection))


def mean_iou(found: Areas, rule: Rule = "present") -> float:
    """Mean intersection over union in percent."""
    each = class_ious(found)
    return 100 * float(np.nanmean(each) if rule == "present" else np.nan_to_num(each).mean())


def pixel_accuracy(found: Areas) -> float:
    """Percent of the scored pixels whose class is right."""
    intersection, _, truth = found.sum(axis=(0, 2))
    return 100 * float(intersection / truth)


def add_segmentation(
    outcome: Outcome, column: str, found: Areas, classes: tuple[str, ...], selection: str, rule: Rule = "present"
) -> None:
    """Add a mean-IoU column: score, IoU per class, and the areas of each image, which the bootstrap needs.

    Args:
        found: areas of the classes, and perhaps of ignored values behind them: predicted wrongly they count as classes
            without a true pixel, as in scikit-learn's jaccard_score; never predicted they are left out.
    """
    keep = np.arange(found.shape[2]) < len(classes)
    keep |= found[:, 1].sum(0) > 0
    found = found[:, :, keep]
    each = class_ious(found)
    outcome.scores[column] = Score(value=mean_iou(found, rule), n=len(found), selection=selection)
    outcome.per_class[column] = {
        name: 100 * float(value) for name, value in zip(classes, each, strict=False) if np.isfinite(value)
    }
    largest = found.max(initial=0)
    outcome.items[f"iou/{column}"] = found.astype(np.int32 if largest < 2**31 else np.int64)
    if rule == "every":
        outcome.items["iou_rule"] = np.array(rule)


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

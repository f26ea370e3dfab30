"""Linear heads on maps: the model, what they learn and how they are measured, for masks by pixel and for depth.

`benchmarks.dense.linear` has the numbers, `benchmarks.dense.training` the training.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as TF

from benchmarks.datasets.dense_sets import read_depth
from benchmarks.datasets.images import decode
from benchmarks.dense.masks import VOID, MaskFormat, areas, best_class, mask_sheet, mean_iou
from benchmarks.dense.patches import LAYERS
from benchmarks.encoders.encoder import Encoder
from benchmarks.solvers.linear_heads import HeadBank
from benchmarks.task import Labels, RunOptions, progress
from pretrain.distributed import sent

if TYPE_CHECKING:
    from benchmarks.dense.linear import DepthParams, LinearSegParams


CROP_TRIES = 10


@dataclass
class View:
    """A training view, not yet normalised.

    Attributes:
        image: (3, crop, crop) uint8 RGB.
        target: (crop, crop) class indices (255: ignored), or metres.
        height, width: of the part that holds the image; the rest is padding.
    """

    image: Tensor
    target: Tensor
    height: int
    width: int


def padded_input(encoder: Encoder, views: list[View]) -> Tensor:
    """(N, 3, H, W) normalised views, whose padding is zero after normalisation."""
    x = encoder.normalise(sent(torch.stack([view.image for view in views]), encoder.device))
    for row, view in enumerate(views):
        x[row, :, view.height :] = 0
        x[row, :, :, view.width :] = 0
    return x


def padded(x: Tensor, multiple: int) -> Tensor:
    """Images with zeros on all sides up to a multiple, the odd pixel on the right and below."""
    missing = [-side % multiple for side in x.shape[:-3:-1]]  # width, height
    return F.pad(x, [side for lack in missing for side in (lack // 2, lack - lack // 2)])


class HeadsProblem(ABC):
    """What a dense task adds to the training of heads.

    Attributes:
        held: the training images that heads are chosen by.
        outputs: numbers per position of the map.
        norm: whether the heads have a batch norm.
        class_token: the output that is appended to every position, if one is.
        pad: whether images are padded to whole patches of a ViT.
    """

    outputs: int
    norm: bool = True
    class_token: str | None = None
    pad: bool = False

    def __init__(self, train: Labels, test: Labels, held: NDArray[np.int64], options: RunOptions) -> None:
        self.train, self.test, self.held, self.options = train, test, train.rows(held), options

    @abstractmethod
    def view(self, index: int, rng: np.random.Generator) -> View:
        """A random view of a training image."""

    @abstractmethod
    def backward(self, logits: Tensor, targets: Tensor, step: int) -> Tensor:
        """Backpropagate the loss of each head from (heads, N, outputs, h, w), and return the (heads,) losses."""

    def measure(self, model: HeadsModel, *, held: bool) -> list[NDArray[Any]]:
        """Of each head, what it does on every image of the held-out or of the test images, stacked."""
        labels = self.held if held else self.test
        shown = progress(range(len(labels)), "held-out images" if held else "test", show=self.options.progress)
        by_image = [self.measure_image(model, labels.paths[row], labels.annotations[row]) for row in shown]
        return [np.stack(of_head) for of_head in zip(*by_image, strict=True)]

    @abstractmethod
    def measure_image(self, model: HeadsModel, image: Path, annotation: Path) -> list[NDArray[Any]]:
        """What each head does on one image."""

    @abstractmethod
    def quality(self, found: NDArray[Any]) -> float:
        """One number of what a head does, higher is better."""

    def sheet(self, model: HeadsModel, head: int) -> dict[str, bytes]:
        """Pictures of what one head does, by name."""
        return {}


@dataclass
class HeadsModel:
    """A frozen encoder and the heads on one of its maps."""

    encoder: Encoder
    output: str
    bank: HeadBank
    problem: HeadsProblem

    def maps(self, x: Tensor) -> Tensor:
        """The maps (N, C, h, w) that the heads read of normalised images."""
        names = {self.output, self.problem.class_token or self.output}
        if self.problem.pad:
            x = padded(x, self.encoder.card.patch_size or 1)
        found = self.encoder.outputs(x, names)
        maps = found[self.output].float()
        if self.problem.class_token:
            token = found[self.problem.class_token].float()[:, :, None, None].expand(-1, -1, *maps.shape[2:])
            maps = torch.cat([maps, token], 1)
        return maps

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """(heads, N, outputs, h, w) of normalised images."""
        return on_maps(self.bank, self.maps(x))


def on_maps(bank: HeadBank, maps: Tensor) -> Tensor:
    """(N, C, h, w) maps to (heads, N, outputs, h, w) of every head."""
    count, _, height, width = maps.shape
    found: Tensor = bank(maps.permute(0, 2, 3, 1).flatten(0, 2))
    return found.view(count, height, width, *found.shape[1:]).permute(3, 0, 4, 1, 2)


def dropped(maps: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Maps with a random share of each image's channels zeroed, and the others enlarged (Dropout2d)."""
    if not share:
        return maps
    kept = torch.rand(maps.shape[:2], generator=generator) >= share
    return maps * (sent(kept, maps.device).to(maps) / (1 - share))[:, :, None, None]


class LinearSegmentationProblem(HeadsProblem):
    """Linear segmentation: views of an image and its mask, cross-entropy by pixel, and windows over a test image."""

    def __init__(
        self, params: LinearSegParams, style: MaskFormat, train: Labels, test: Labels, held: NDArray[np.int64],
        options: RunOptions,
    ) -> None:  # fmt: skip
        super().__init__(train, test, held, options)
        self.params, self.style = params, style
        self.outputs, self.pad = len(style.classes), params.pad

    def view(self, index: int, rng: np.random.Generator) -> View:
        mask = self.style.indices(self.style.read(self.train.annotations[index]))
        return masked_view(decode(self.train.paths[index]), mask, self.params, rng)

    def backward(self, logits: Tensor, targets: Tensor, step: int) -> Tensor:
        return backward_pixels(logits, targets.long())

    def measure_image(self, model: HeadsModel, image: Path, annotation: Path) -> list[NDArray[Any]]:
        """(3, C) areas."""
        truth = self.style.read(annotation)
        return [areas(predicted, truth, self.style) for predicted in self.predicted(model, image, truth.shape)]

    def quality(self, found: NDArray[Any]) -> float:
        return mean_iou(found)

    def predicted(self, model: HeadsModel, image: Path, size: tuple[int, ...]) -> list[NDArray[np.uint8]]:
        """Of each head, the mask (H, W) of an image.

        Windows are averaged, then interpolated to the size of the mask. Of several sizes or mirror images, the
        probabilities are averaged.
        """
        picture, params = decode(image), self.params
        passes = [(ratio, mirrored) for ratio in params.test_ratios for mirrored in ((False, True) if params.flip_test
                                                                                     else (False,))]  # fmt: skip
        sums: list[Tensor] = []
        for ratio, mirrored in passes:
            for head, logits in enumerate(self._logits(model, picture, int(params.short_side * ratio), mirrored, size)):
                if len(passes) == 1:
                    sums.append(best_class(logits))
                    continue
                found = (logits.flip(3) if mirrored else logits).softmax(1)
                if head < len(sums):
                    sums[head] += found
                else:
                    sums.append(found)
        best = sums if len(passes) == 1 else [best_class(each) for each in sums]
        return [(each[0].cpu().numpy() + self.style.first).astype(np.uint8) for each in best]

    def _logits(
        self, model: HeadsModel, picture: Image.Image, short_side: int, mirrored: bool, size: tuple[int, ...]
    ) -> Iterator[Tensor]:
        """(1, K, H, W) of each head, of the mirror image where asked for."""
        width, height = short_side_size(picture.size, short_side)
        pixels = TF.pil_to_tensor(TF.resize(picture, [height, width], TF.InterpolationMode.BILINEAR))
        x = model.encoder.normalise((pixels.flip(2) if mirrored else pixels)[None])
        cuts = list(windows(height, width, self.params.crop, self.params.window_stride))
        logits = [model.logits(x[:, :, rows, columns])[:, 0] for rows, columns in cuts]
        for head in range(len(logits[0])):
            total = torch.zeros(self.outputs, height, width, device=x.device)
            count = torch.zeros(height, width, device=x.device)
            for (rows, columns), maps in zip(cuts, logits, strict=True):
                shape = (rows.stop - rows.start, columns.stop - columns.start)
                total[:, rows, columns] += F.interpolate(maps[head][None], shape, mode="bilinear", align_corners=False)[
                    0
                ]
                count[rows, columns] += 1
            yield F.interpolate((total / count)[None], tuple(size), mode="bilinear", align_corners=False)

    def sheet(self, model: HeadsModel, head: int) -> dict[str, bytes]:
        """A picture of a few test images with the masks of one head."""
        rows = np.unique(np.linspace(0, len(self.test) - 1, min(6, len(self.test))).round().astype(np.int64))
        few = self.test.rows(rows)
        truth = [self.style.read(file) for file in few.annotations]
        masks = [self.predicted(model, path, mask.shape)[head] for path, mask in zip(few.paths, truth, strict=True)]
        return mask_sheet(few, self.style, truth, masks)


def backward_pixels(logits: Tensor, targets: Tensor) -> Tensor:
    """Backpropagate each head's cross-entropy and return the (heads,) values.

    Only one head's upsampled logits exist at a time.

    The loss is the mean over all pixels, of which ignored ones count 0 (mmsegmentation's default, and dinov3's).

    Args:
        logits: (heads, N, K, h, w), with a graph behind them.
        targets: (N, H, W) class indices, 255 where ignored.
    """
    leaf = logits.detach().requires_grad_()
    losses = []
    for head in range(len(leaf)):
        upsampled = F.interpolate(leaf[head], targets.shape[1:], mode="bilinear", align_corners=False)
        loss = F.cross_entropy(upsampled, targets, ignore_index=VOID, reduction="sum") / targets.numel()
        loss.backward()
        losses.append(loss.detach())
    logits.backward(leaf.grad)
    return torch.stack(losses)


def short_side_size(size: tuple[int, int], short: int) -> tuple[int, int]:
    """(width, height) with this short side, the long one rounded half up."""
    width, height = size
    if height > width:
        return short, int(short * height / width + 0.5)
    return int(short * width / height + 0.5), short


def masked_view(
    image: Image.Image, indices: NDArray[np.uint8], params: LinearSegParams, rng: np.random.Generator
) -> View:
    """Resize, crop, flip and distort an image and its mask of class indices alike; small ones are padded."""
    low, high = params.ratio
    size = short_side_size(image.size, max(1, int(params.short_side * rng.uniform(low, high))))
    pixels = np.asarray(TF.resize(image, [size[1], size[0]], TF.InterpolationMode.BILINEAR))
    mask = np.asarray(Image.fromarray(indices).resize(size, Image.Resampling.NEAREST))
    for _ in range(CROP_TRIES + 1):  # the last draw is taken as it is
        top = int(rng.integers(max(size[1] - params.crop, 0) + 1))
        left = int(rng.integers(max(size[0] - params.crop, 0) + 1))
        cut = mask[top : top + params.crop, left : left + params.crop]
        counts = np.bincount(cut[cut != VOID], minlength=1)
        if (counts > 0).sum() > 1 and counts.max() < params.most_of_one_class * counts.sum():
            break
    pixels = pixels[top : top + params.crop, left : left + params.crop]
    if rng.random() < params.flip_p:
        pixels, cut = pixels[:, ::-1], cut[:, ::-1]
    height, width = cut.shape
    canvas = torch.zeros(3, params.crop, params.crop, dtype=torch.uint8)
    canvas[:, :height, :width] = distorted(torch.from_numpy(pixels.transpose(2, 0, 1).copy()), params, rng)
    target = torch.full((params.crop, params.crop), VOID, dtype=torch.uint8)
    target[:height, :width] = torch.from_numpy(cut.copy())
    return View(canvas, target, height, width)


def distorted(image: Tensor, params: LinearSegParams, rng: np.random.Generator) -> Tensor:
    """Photometric distortion: brightness, contrast, saturation and hue, each with probability 1/2.

    Contrast comes before saturation and hue, or after them, with equal probability.
    """

    def scaled(pixels: Tensor, factor: float, shift: float) -> Tensor:
        return (pixels.float() * factor + shift).clamp(0, 255).to(torch.uint8)

    if rng.random() < 0.5:
        image = scaled(image, 1.0, rng.uniform(-params.brightness, params.brightness))
    first = rng.random() < 0.5
    if first and rng.random() < 0.5:
        image = scaled(image, rng.uniform(*params.contrast), 0.0)
    if rng.random() < 0.5:
        image = TF.adjust_saturation(image, rng.uniform(*params.saturation))
    if rng.random() < 0.5:
        image = TF.adjust_hue(image, rng.uniform(-params.hue, params.hue))
    if not first and rng.random() < 0.5:
        image = scaled(image, rng.uniform(*params.contrast), 0.0)
    return image


def windows(height: int, width: int, crop: int, stride: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of windows that cover an image; the last ones end at its edge. A small image has one."""
    for row in range(max(height - crop + stride - 1, 0) // stride + 1):
        for column in range(max(width - crop + stride - 1, 0) // stride + 1):
            bottom, right = min(row * stride + crop, height), min(column * stride + crop, width)
            yield slice(max(bottom - crop, 0), bottom), slice(max(right - crop, 0), right)


BORDER = (43, 45, 608, 472)  # left, top, right, bottom of what a 640 x 480 image of NYU shows inside its white border
BINS = 256
LOSS_EPS, LOSS_MEAN, WARMUP = 1e-3, 0.15, 100
EIGEN = (45, 471, 41, 601)  # rows and columns of a 480 x 640 image in which depth is scored


class LinearDepthProblem(HeadsProblem):
    """Linear depth: views of an image and its depth map, the scale-invariant loss, and errors of test images."""

    def __init__(
        self, params: DepthParams, train: Labels, test: Labels, held: NDArray[np.int64], options: RunOptions
    ) -> None:
        super().__init__(train, test, held, options)
        self.params = params
        self.outputs, self.norm, self.pad = BINS, params.norm, params.pad
        self.class_token = LAYERS[params.layers][1] if params.class_token else None

    def view(self, index: int, rng: np.random.Generator) -> View:
        depth = read_depth(self.train.annotations[index])
        return depth_view(decode(self.train.paths[index]), depth, self.params, rng)

    def backward(self, logits: Tensor, targets: Tensor, step: int) -> Tensor:
        losses = torch.stack(
            [
                grouped_loss(
                    _resized(depth_of(each, self.params), targets.shape[1:]), targets, self.params.loss_groups,
                    warm=step < WARMUP,
                )
                for each in logits
            ]
        )  # fmt: skip
        losses.sum().backward()
        return losses.detach()

    def measure_image(self, model: HeadsModel, image: Path, annotation: Path) -> list[NDArray[Any]]:
        """(3,) errors."""
        params, truth = self.params, read_depth(annotation)
        scored = scored_depth(truth, params.scored_low, params.scored_high)
        x = model.encoder.normalise(TF.pil_to_tensor(decode(image))[None])
        found = []
        for logits in model.logits(torch.cat([x, x.flip(3)]) if params.flip_test else x):
            # Over the padded frame, as the source resizes it; its 480 x 640 images need no padding at 16.
            depth = depth_of(logits, params)
            if params.flip_test:
                depth = (depth[:1] + depth[1:].flip(2)) / 2
            predicted = _resized(depth, truth.shape)[0].clamp(params.scored_low, params.scored_high)
            found.append(np.array(depth_errors(predicted.cpu().numpy(), truth, scored)))
        return found

    def quality(self, found: NDArray[Any]) -> float:
        return -float(np.nanmean(found[:, 0]))


def depth_of(logits: Tensor, params: DepthParams) -> Tensor:
    """(N, bins, h, w) to (N, h, w) metres: the mean of equally spaced bins, weighted by relu(logit) + 0.1."""
    if params.upsample > 1:
        # A 1x1 convolution and bilinear interpolation commute, so the bins are enlarged and not the features.
        logits = F.interpolate(logits, scale_factor=params.upsample, mode="bilinear", align_corners=False)
    weights = logits.relu() + 0.1
    bins = torch.linspace(params.low, params.high, logits.shape[1], device=logits.device)
    return torch.einsum("nkhw,k->nhw", weights / weights.sum(1, keepdim=True), bins)


def grouped_loss(predicted: Tensor, truth: Tensor, groups: int, *, warm: bool) -> Tensor:
    """Mean over parts of a batch (N, H, W) of the scale-invariant loss where the true depth is known."""
    loss = masked_loss if predicted.is_cuda else scale_invariant_loss
    count = min(groups, len(truth))
    parts = zip(predicted.tensor_split(count), truth.tensor_split(count), strict=True)
    return torch.stack([loss(p, t, t > 0, warm=warm) for p, t in parts]).mean()


def scale_invariant_loss(predicted: Tensor, truth: Tensor, valid: Tensor, *, warm: bool) -> Tensor:
    """sqrt(var(g) + 0.15 mean(g)²) of the log ratios g of all valid pixels; without the variance in the first steps.

    Next to nothing, and without a gradient, where fewer than two pixels are valid.
    """
    if int(valid.sum()) < 2:
        return (0 * predicted.sum()).clamp(min=1e-6)
    ratio = (predicted[valid] + LOSS_EPS).log() - (truth[valid] + LOSS_EPS).log()
    found = LOSS_MEAN * ratio.mean() ** 2
    if not warm:
        found = found + ratio.var()
    return found.clamp(min=1e-12).sqrt()


def masked_loss(predicted: Tensor, truth: Tensor, valid: Tensor, *, warm: bool) -> Tensor:
    """`scale_invariant_loss` to rounding, without a tensor whose size a GPU must tell: the host does not wait."""
    valid = valid & (valid.sum() > 1)  # one pixel alone has no variance
    count = valid.sum()
    ratio = ((predicted + LOSS_EPS).log() - (truth + LOSS_EPS).log()).where(valid, 0)
    mean = ratio.sum() / count.clamp(min=1)
    found = LOSS_MEAN * mean**2
    if not warm:
        found = found + (ratio - mean).where(valid, 0).square().sum() / (count - 1).clamp(min=1)
    return found.clamp(min=1e-12).sqrt()


def _resized(depth: Tensor, size: tuple[int, ...]) -> Tensor:
    return F.interpolate(depth[:, None], tuple(size), mode="bilinear", align_corners=False)[:, 0]


def depth_view(image: Image.Image, depth: NDArray[np.float32], params: DepthParams, rng: np.random.Generator) -> View:
    """Cut NYU's border off, rotate, mirror, crop and change the colours of an image and its depth map.

    What a rotation turns in from outside is black, and without depth. An image smaller than the crop is padded so.
    """
    width, height = image.size
    left, top, right, bottom = (
        int(edge / side * size) for edge, side, size in zip(BORDER, (640, 480) * 2, (width, height) * 2, strict=True)
    )
    pixels = TF.pil_to_tensor(image)[:, top:bottom, left:right].float() / 255
    metres = torch.from_numpy(depth[top:bottom, left:right].copy())[None]
    if rng.random() < 0.5:
        angle = float(rng.uniform(-params.rotation, params.rotation))
        pixels = TF.rotate(pixels, angle, TF.InterpolationMode.BILINEAR)
        metres = TF.rotate(metres, angle, TF.InterpolationMode.NEAREST)
    if rng.random() < params.flip_p:
        pixels, metres = pixels.flip(2), metres.flip(2)
    tall, wide = params.crop
    down = int(rng.integers(max(pixels.shape[1] - tall, 0) + 1))
    across = int(rng.integers(max(pixels.shape[2] - wide, 0) + 1))
    pixels, metres = (each[:, down : down + tall, across : across + wide] for each in (pixels, metres))
    if rng.random() < 0.5:
        gamma, light = rng.uniform(*params.gamma), rng.uniform(*params.brightness)
        tint = torch.tensor(rng.uniform(*params.colour, 3), dtype=torch.float32)[:, None, None]
        # The source takes the power of values up to 255, not of fractions.
        pixels = ((255 * pixels) ** gamma * light * tint).clamp(0, 255) / 255
    canvas, target = torch.zeros(3, tall, wide, dtype=torch.uint8), torch.zeros(tall, wide)
    rows, columns = pixels.shape[1:]
    canvas[:, :rows, :columns] = (255 * pixels).round().to(torch.uint8)
    target[:rows, :columns] = metres[0]
    return View(canvas, target, rows, columns)


def scored_depth(truth: NDArray[np.float32], low: float, high: float) -> NDArray[np.bool_]:
    """(H, W) pixels inside the Eigen crop, at the image's scale, whose depth lies strictly between the bounds."""
    height, width = truth.shape
    inside = np.zeros(truth.shape, np.bool_)
    top, bottom = (int(edge / 480 * height) for edge in EIGEN[:2])
    left, right = (int(edge / 640 * width) for edge in EIGEN[2:])
    inside[top:bottom, left:right] = True
    return inside & (truth > low) & (truth < high)


def depth_errors(predicted: NDArray[np.float32], truth: NDArray[np.float32], scored: NDArray[np.bool_]) -> list[float]:
    """RMSE in metres, δ1 and AbsRel of one image, as `linear.DEPTH_COLUMNS`; NaN where no pixel is scored."""
    p, t = predicted[scored].astype(np.float64), truth[scored].astype(np.float64)
    if not len(t):
        return [np.nan] * 3
    return [
        float(np.sqrt(np.mean((p - t) ** 2))),
        float(np.mean(np.maximum(p / t, t / p) < 1.25)),
        float(np.mean(np.abs(p - t) / t)),
    ]

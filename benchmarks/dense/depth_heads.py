"""What a linear depth head trains and measures: see `benchmarks.dense.depth` for its numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as TF

from benchmarks.datasets.images import decode
from benchmarks.datasets.nyu import read_depth
from benchmarks.dense.scores import depth_errors, scored_depth
from benchmarks.dense.training import Model, Problem
from benchmarks.dense.views import View
from benchmarks.task import Labels, RunOptions, progress

if TYPE_CHECKING:
    from benchmarks.dense.depth import DepthParams

BORDER = (43, 45, 608, 472)  # left, top, right, bottom of what a 640 x 480 image of NYU shows inside its white border
BINS = 256
LOSS_EPS, LOSS_MEAN, WARMUP = 1e-3, 0.15, 100


class Depth(Problem):
    """Linear depth: views of an image and its depth map, the scale-invariant loss, and errors of test images."""

    def __init__(
        self, params: DepthParams, train: Labels, test: Labels, held: NDArray[np.int64], options: RunOptions
    ) -> None:
        self.params, self.train, self.test, self.options = params, train, test, options
        self.held = train.rows(held)
        self.outputs, self.images = BINS, len(train)
        self.norm, self.class_token, self.pad = params.norm, params.class_token, params.pad

    def view(self, index: int, rng: np.random.Generator) -> View:
        depth = read_depth(self.train.annotations[index])
        return depth_view(decode(self.train.paths[index]), depth, self.params, rng)

    def backward(self, logits: Tensor, targets: Tensor, step: int) -> Tensor:
        valid, loss = targets > 0, masked_loss if logits.is_cuda else scale_invariant_loss
        losses = torch.stack(
            [
                loss(_resized(depth_of(each, self.params), targets.shape[1:]), targets, valid, warm=step < WARMUP)
                for each in logits
            ]
        )
        losses.sum().backward()
        return losses.detach()

    def measure(self, model: Model, *, held: bool) -> list[NDArray[Any]]:
        """For each head, (n, 3) errors of every image."""
        labels, params = (self.held if held else self.test), self.params
        found: list[list[list[float]]] = [[] for _ in range(len(model.bank.weight))]
        shown = progress(range(len(labels)), "held-out images" if held else "test", show=self.options.progress)
        for row in shown:
            truth = read_depth(labels.annotations[row])
            scored = scored_depth(truth, params.scored_low, params.scored_high)
            x = model.encoder.normalise(TF.pil_to_tensor(decode(labels.paths[row]))[None])
            both = torch.cat([x, x.flip(3)]) if params.flip_test else x
            for head, logits in enumerate(model.logits(both)):
                # Over the padded frame, as the source resizes it; its 480 x 640 images need no padding at 16.
                depth = depth_of(logits, params)
                if params.flip_test:
                    depth = (depth[:1] + depth[1:].flip(2)) / 2
                predicted = _resized(depth, truth.shape)[0].clamp(params.scored_low, params.scored_high)
                found[head].append(depth_errors(predicted.cpu().numpy(), truth, scored))
        return [np.array(each) for each in found]

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


def scale_invariant_loss(predicted: Tensor, truth: Tensor, valid: Tensor, *, warm: bool) -> Tensor:
    """sqrt(var(g) + 0.15 mean(g)²) of the log ratios g of all valid pixels; without the variance in the first steps."""
    ratio = (predicted[valid] + LOSS_EPS).log() - (truth[valid] + LOSS_EPS).log()
    found = LOSS_MEAN * ratio.mean() ** 2
    if not warm:
        found = found + ratio.var()
    return found.clamp(min=1e-12).sqrt()


def masked_loss(predicted: Tensor, truth: Tensor, valid: Tensor, *, warm: bool) -> Tensor:
    """`scale_invariant_loss` to rounding, without a tensor whose size a GPU must tell: the host does not wait."""
    count = valid.sum()
    ratio = ((predicted + LOSS_EPS).log() - (truth + LOSS_EPS).log()).where(valid, 0)
    mean = ratio.sum() / count
    found = LOSS_MEAN * mean**2
    if not warm:
        found = found + (ratio - mean).where(valid, 0).square().sum() / (count - 1)
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

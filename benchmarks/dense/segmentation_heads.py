"""What a linear segmentation trains and measures: see `benchmarks.dense.linear` for its numbers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import functional as TF

from benchmarks.datasets.images import decode
from benchmarks.dense.heads import backward_pixels
from benchmarks.dense.masks import MaskFormat
from benchmarks.dense.patches import best_class, mask_sheet
from benchmarks.dense.scores import areas, mean_iou
from benchmarks.dense.training import Model, Problem
from benchmarks.dense.views import View, short_side_size, training_view, windows
from benchmarks.task import Labels, RunOptions, progress

if TYPE_CHECKING:
    from benchmarks.dense.linear import LinearSegParams


class Segmentation(Problem):
    """Linear segmentation: views of an image and its mask, cross-entropy by pixel, and windows over a test image."""

    def __init__(
        self, params: LinearSegParams, style: MaskFormat, train: Labels, test: Labels, held: NDArray[np.int64],
        options: RunOptions,
    ) -> None:  # fmt: skip
        self.params, self.style, self.train, self.test, self.options = params, style, train, test, options
        self.held = train.rows(held)
        self.outputs, self.images, self.pad = len(style.classes), len(train), params.pad

    def view(self, index: int, rng: np.random.Generator) -> View:
        mask = self.style.indices(self.style.read(self.train.annotations[index]))
        return training_view(decode(self.train.paths[index]), mask, self.params, rng)

    def backward(self, logits: Tensor, targets: Tensor, step: int) -> Tensor:
        return backward_pixels(logits, targets.long())

    def measure(self, model: Model, *, held: bool) -> list[NDArray[Any]]:
        """For each head, (n, 3, C) areas."""
        labels = self.held if held else self.test
        found: list[list[NDArray[np.int64]]] = [[] for _ in range(len(model.bank.weight))]
        shown = progress(range(len(labels)), "held-out images" if held else "test", show=self.options.progress)
        for row in shown:
            truth = self.style.read(labels.annotations[row])
            for head, predicted in enumerate(self.predicted(model, labels.paths[row], truth.shape)):
                found[head].append(areas(predicted, truth, self.style))
        return [np.stack(each) for each in found]

    def quality(self, found: NDArray[Any]) -> float:
        return mean_iou(found)

    def predicted(self, model: Model, image: Path, size: tuple[int, ...]) -> list[NDArray[np.uint8]]:
        """Of each head, the mask (H, W) of an image: windows averaged, then interpolated to the size of its mask."""
        picture = decode(image)
        width, height = short_side_size(picture.size, self.params.short_side)
        pixels = TF.pil_to_tensor(TF.resize(picture, [height, width], TF.InterpolationMode.BILINEAR))
        x = model.encoder.normalise(pixels[None])
        cuts = list(windows(height, width, self.params.crop, self.params.window_stride))
        logits = [model.logits(x[:, :, rows, columns])[:, 0] for rows, columns in cuts]
        masks = []
        for head in range(len(logits[0])):
            total = torch.zeros(self.outputs, height, width, device=x.device)
            count = torch.zeros(height, width, device=x.device)
            for (rows, columns), maps in zip(cuts, logits, strict=True):
                shape = (rows.stop - rows.start, columns.stop - columns.start)
                total[:, rows, columns] += F.interpolate(maps[head][None], shape, mode="bilinear", align_corners=False)[
                    0
                ]
                count[rows, columns] += 1
            whole = F.interpolate((total / count)[None], tuple(size), mode="bilinear", align_corners=False)
            masks.append((best_class(whole)[0].cpu().numpy() + self.style.first).astype(np.uint8))
        return masks

    def sheet(self, model: Model, head: int) -> dict[str, bytes]:
        """A picture of a few test images with the masks of one head."""
        rows = np.unique(np.linspace(0, len(self.test) - 1, min(6, len(self.test))).round().astype(np.int64))
        few = self.test.rows(rows)
        truth = [self.style.read(file) for file in few.annotations]
        masks = [self.predicted(model, path, mask.shape)[head] for path, mask in zip(few.paths, truth, strict=True)]
        png = mask_sheet(few, self.style, truth, masks)
        return {"masks": png} if png else {}

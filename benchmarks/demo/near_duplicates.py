"""How alike two drawings are: the line art, the recoloured and the mirrored version of a drawing count as the same.

The descriptor is a map of where edges are: colours, fills and line widths drop out, the drawing's own geometry stays.
Two maps are compared by their normalised correlation, the best over mirroring, shifts and a change of scale.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d, normalize, pad
from torchvision.transforms.functional import gaussian_blur

# All pairs from 0.66 up were looked at: below it, likeness is a coincidence of simple shapes (an apple and a plum, two
# flags with the same stripes) except for the few pairs that related.txt names.
THRESHOLD = 0.66

_CANVAS = 120  # pixels; the drawing's longer side is 96 of them
_POOL = 3  # the maps that are compared have 40 x 40 cells
_SHIFT = 4  # cells, each way
_SCALES = (1.0, 0.88)
_EDGE = 0.06  # a gradient this strong, of a value range of 1 per pixel, counts as a full edge
_VISIBLE = 24  # of 255: alpha above which a pixel belongs to the drawing
_RECTANGLE = 0.97  # opaque share of the bounding box from which the outline says nothing, as of a flag


def similarity(files: list[Path]) -> NDArray[np.float32]:
    """Likeness of every pair of drawings, in [-1, 1], as a symmetric N x N matrix with a zero diagonal."""
    maps = {scale: torch.stack([_edge_map(file, scale) for file in files]) for scale in _SCALES}
    queries = maps[1.0].flatten(1)
    best = torch.zeros(len(files), len(files))
    for scaled in maps.values():
        for keys in (scaled, scaled.flip(2)):
            size = keys.shape[1]
            margin = pad(keys, (_SHIFT,) * 4)
            for dy in range(2 * _SHIFT + 1):
                for dx in range(2 * _SHIFT + 1):
                    shifted = margin[:, dy : dy + size, dx : dx + size].flatten(1)
                    torch.maximum(best, queries @ shifted.T, out=best)
    best = torch.maximum(best, best.T).fill_diagonal_(0)
    return best.numpy()


def _edge_map(file: Path, scale: float) -> Tensor:
    """Where the drawing has edges: (40, 40), zero mean over neighbourhoods, unit norm."""
    with Image.open(file) as opened:
        image = opened.convert("RGBA")
    image = image.crop(image.getchannel("A").point(lambda a: 255 * (a > _VISIBLE)).getbbox())
    rectangle = (np.asarray(image)[..., 3] > 127).mean() > _RECTANGLE
    zoom = 96 * scale / max(image.size)
    width, height = (max(1, round(zoom * side)) for side in image.size)
    pixels = torch.from_numpy(np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)) / np.float32(255))
    colour, alpha = pixels[..., :3].permute(2, 0, 1), pixels[..., 3][None]
    planes = torch.cat([colour * alpha + 1 - alpha, 1 - alpha])  # on white; the outline counts by itself
    left, top = (_CANVAS - width) // 2, (_CANVAS - height) // 2
    margins = (left, _CANVAS - width - left, top, _CANVAS - height - top)
    planes = pad(planes[None], margins, mode="replicate")[0] if rectangle else pad(planes, margins, value=1.0)
    dy, dx = torch.gradient(gaussian_blur(planes, [9, 9], [1.0, 1.0]), dim=(1, 2))
    edges = (torch.hypot(dy, dx).amax(0) / _EDGE).clamp_max(1)
    if rectangle:
        inside = torch.zeros_like(edges)
        inside[top + 3 : top + height - 3, left + 3 : left + width - 3] = 1
        edges = edges * inside
    near = gaussian_blur(edges[None], [13, 13], [1.5, 1.5])
    wide = gaussian_blur(near, [63, 63], [8.0, 8.0])
    cells = avg_pool2d(near - wide, _POOL)[0]
    return normalize(cells.flatten(), dim=0).view_as(cells)

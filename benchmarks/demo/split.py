"""Make `split.tsv`: group near-duplicates, assign each group to train or test. Run `python -m benchmarks.demo.split`.

The file is committed and no other module imports this one, so that the split never changes by itself.

The line art, the recoloured and the mirrored version of a drawing count as the same. The descriptor is a map of edges:
colours, fills and line widths drop out, the drawing's geometry stays. Two maps are compared by their normalised
correlation, the best over mirroring, shifts and a change of scale.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.cluster import DBSCAN
from torch import Tensor
from torch.nn.functional import avg_pool2d, normalize, pad
from torchvision.transforms.functional import gaussian_blur

from benchmarks.demo.scenes import SPLIT_FILE, all_ids, load_drawing, visible_part

RELATED_FILE = Path(__file__).with_name("related.txt")
TEST_SHARE = 0.3
LARGEST_TEST_GROUP = 4  # larger groups go to train: many sources make a better test set than many versions

# Files that show only a renderer's sign for a missing image.
LEFT_OUT = ("animals_birds/duck_yellow_ii_kurt_cagl_", "animals_birds/tux_didier_fabert_01")

# All pairs from 0.66 up were looked at. Below it, likeness is a coincidence of simple shapes (an apple and a plum, two
# flags with the same stripes), except for the few pairs that related.txt lists.
THRESHOLD = 0.66

_CANVAS = 120  # pixels; the drawing's longer side is 96 of them
_POOL = 3  # the maps that are compared have 40 x 40 cells
_SHIFT = 4  # cells, each way
_SCALES = (1.0, 0.88)
_EDGE = 0.06  # a gradient this strong, of a value range of 1 per pixel, counts as a full edge
_RECTANGLE = 0.97  # opaque share of the bounding box above which the outline carries no information, as of a flag


def groups_of(ids: list[str]) -> dict[str, str]:
    """Drawing id -> group id: connected by likeness above the threshold and by `related.txt`."""
    index = {id: row for row, id in enumerate(ids)}
    linked = similarity([load_drawing(id) for id in ids]) > THRESHOLD
    for line in RELATED_FILE.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            first, *others = (index[id] for id in line.split())
            linked[first, others] = linked[others, first] = True
    np.fill_diagonal(linked, True)
    labels = DBSCAN(eps=0.5, min_samples=1, metric="precomputed").fit_predict(1.0 - linked)  # connected components
    first_of: dict[int, str] = {}
    return {id: first_of.setdefault(int(label), id) for id, label in zip(ids, labels, strict=True)}


def sides_of(groups: dict[str, str]) -> dict[str, str]:
    """Group id -> side. Per class about 30 % of the drawings go to test, as whole groups, in the order of a hash.

    A group that spans classes goes to train, because it has no single right answer.
    """
    sizes = Counter(groups.values())
    classes: dict[str, set[str]] = {}
    for id, group in groups.items():
        classes.setdefault(group, set()).add(id.split("/")[0])
    per_class = Counter(id.split("/")[0] for id in groups)
    room = {name: round(TEST_SHARE * n) for name, n in per_class.items()}
    sides = {}
    for group in sorted(sizes, key=lambda g: hashlib.sha256(g.encode()).digest()):
        own, *others = classes[group]
        fits = not others and sizes[group] <= min(LARGEST_TEST_GROUP, room[own])
        if fits:
            room[own] -= sizes[group]
        sides[group] = "test" if fits else "train"
    return sides


def similarity(images: Sequence[Image.Image]) -> NDArray[np.float32]:
    """Likeness of every pair of RGBA drawings in [-1, 1], a symmetric (N, N) matrix with a zero diagonal."""
    maps = {scale: torch.stack([_edge_map(image, scale) for image in images]) for scale in _SCALES}
    queries = maps[1.0].flatten(1)
    best = torch.zeros(len(images), len(images))
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


def _edge_map(image: Image.Image, scale: float) -> Tensor:
    """Map of the drawing's edges: (40, 40), zero mean over neighbourhoods, unit norm."""
    image = visible_part(image)
    rectangle = (np.asarray(image)[..., 3] > 127).mean() > _RECTANGLE
    zoom = 96 * scale / max(image.size)
    width, height = (max(1, round(zoom * side)) for side in image.size)
    pixels = torch.from_numpy(np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)) / np.float32(255))
    colour, alpha = pixels[..., :3].permute(2, 0, 1), pixels[..., 3][None]
    planes = torch.cat([colour * alpha + 1 - alpha, 1 - alpha])  # on white; the outline is a plane of its own
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


def main() -> None:
    """Write `split.tsv`."""
    ids = all_ids()
    groups = groups_of([id for id in ids if id not in LEFT_OUT])
    sides = sides_of(groups)
    lines = ["# drawing, near-duplicate group, side; made by `python -m benchmarks.demo.split`"]
    for id in ids:
        lines.append("\t".join((id, groups[id], sides[groups[id]]) if id in groups else (id, "-", "left_out")))
    SPLIT_FILE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    logging.info("%s: %s", SPLIT_FILE, dict(Counter(sides[group] for group in groups.values())))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()

"""The labelled images that an audit looks at: few classes, many sources, small pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from benchmarks.contract import InputError, Labels
from benchmarks.datasets.imagefolder import read_image_folder
from benchmarks.datasets.images import Images
from benchmarks.progress import progress
from results.schema import Geometry

CLASSES, IMAGES = 20, 2000


@dataclass(frozen=True)
class Sample:
    """N images in random order; every source's first image comes before any source's second.

    Attributes:
        images: (N, 3, size, size) uint8 RGB.
        classes: (N,).
        sources: (N,) numbers; images that share a source, over any chain, have the same one.
        folder: where they were read.
    """

    images: Tensor
    classes: NDArray[np.int64]
    sources: NDArray[np.int64]
    folder: Path

    def __len__(self) -> int:
        return len(self.classes)


def draw_sample(data: Path, size: int, seed: int) -> Sample:
    """At most 20 classes and 2,000 images of the drawings below `data`, or of the image folder `data`.

    Raises:
        InputError: neither is there, or fewer than two classes with two sources each.
    """
    folder = data / "drawings" if (data / "drawings").is_dir() else data
    splits = [split for split in ("val", "test", "train") if (folder / split).is_dir()]
    if not splits:
        raise InputError(f"{data} holds neither the embedded drawings (make demo-data) nor an image folder with train/")
    parts: list[Labels] = []
    for split in splits:  # the training images of a large set are not needed, and listing them takes long
        if sum(len(part) for part in parts) < IMAGES:
            parts.append(read_image_folder(folder, split))
    paths = [path for part in parts for path in part.paths]
    classes = np.concatenate([part.targets for part in parts])
    sources = _joined([group for part in parts for group in part.groups])
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(np.unique(classes))[:CLASSES]
    order = rng.permutation(np.flatnonzero(np.isin(classes, chosen)))
    order = order[np.argsort(_occurrence(sources[order]), kind="stable")][:IMAGES]
    classes, sources = classes[order], sources[order]
    usable = [c for c in np.unique(classes) if len(np.unique(sources[classes == c])) > 1]
    if len(usable) < 2:
        raise InputError(f"{folder} has fewer than two classes of two images or more; an audit compares classes")
    dataset = Images([paths[i] for i in order], Geometry(mode="shorter", resize=size, crop=size))
    pixels = torch.stack([dataset[i][0] for i in progress(range(len(dataset)), "images", show=len(dataset) > 500)])
    return Sample(pixels, classes, sources, folder)


def _joined(groups: list[tuple[str, ...]]) -> NDArray[np.int64]:
    """A number per item, equal where items share a source directly or through others."""
    number = {source: i for i, source in enumerate(dict.fromkeys(s for group in groups for s in group))}
    pairs = np.array([(number[group[0]], number[s]) for group in groups for s in group])
    graph = coo_matrix((np.ones(len(pairs)), pairs.T), shape=(len(number), len(number)))
    component = connected_components(graph, directed=False)[1]
    return np.array([component[number[group[0]]] for group in groups], dtype=np.int64)


def _occurrence(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often each value came before."""
    seen: dict[int, int] = {}
    before = np.empty(len(values), dtype=np.int64)
    for i, value in enumerate(values.tolist()):
        before[i] = seen.get(value, 0)
        seen[value] = before[i] + 1
    return before

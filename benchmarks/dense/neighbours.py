"""Segmentation by the nearest training patches, without training: CAPI's kNN, and Hummingbird's in-context retrieval.

kNN gives a pixel the most frequent label at its place in the nearest patches. Retrieval averages the soft labels of the
nearest patches of a memory, weighted by similarity, and interpolates them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from benchmarks.dense.masks import (
    VOID,
    add_segmentation,
    areas_of_confusions,
    best_class,
    confusions,
    mask_sheet,
    matched,
    mean_iou,
    squashed,
)
from benchmarks.dense.patches import (
    CapiTask,
    Patches,
    PatchParams,
    PatchTask,
    counts_of,
    masks_of,
    space,
)
from benchmarks.task import InputError, Outcome, RunOptions, Split, progress
from benchmarks.training.task import mask_protocol
from results.schema import Geometry, Protocol, Source

Distance = Literal["cosine", "L2"]
VOTES = 1 << 25  # votes that are counted at a time
SUMMED = 1 << 24  # soft labels that are summed at a time


class PatchKnnParams(PatchParams):
    """The numbers of a kNN segmentation.

    Attributes:
        k: neighbour counts, of which one is chosen.
        distances: of which one is chosen.
        standardise: scale features by the mean and standard deviation of the training patches that are not held out.
    """

    k: tuple[int, ...] = Field((1, 3, 10, 30), min_length=1)
    distances: tuple[Distance, ...] = Field(("cosine", "L2"), min_length=1)
    standardise: bool = True

    @field_validator("k")
    @classmethod
    def _ascending(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if min(value) < 1 or max(value) > 255 or len(set(value)) < len(value):
            raise ValueError(f"{value} must be between 1 and 255, without repeats")
        return tuple(sorted(value))


def _knn_protocol(variant: str, dataset: str, side: int, source: Source) -> Protocol:
    return mask_protocol(
        "seg-knn", variant, dataset, squashed(side), PatchKnnParams(), source,
        columns=("mIoU", "accuracy", "mIoU oracle"),
        metric="mean intersection over union at the size of the squashed image",
        selection="k and distance chosen on held-out training images",
    )  # fmt: skip


_CAPI = Source(
    repository="facebookresearch/capi",
    revision="98b4fa1",
    note="eval_segmentation.py, KNNClassifier: images squashed to 224, StandardScaler, per-pixel mode of the "
    "neighbours' label blocks, a random tenth of the training images to choose by. The source searches in bfloat16; "
    "here the search is exact. It states no seed and no setting for networks with stages: seed 0 and a map of stride "
    "16 are this project's own",
)
_VOC_NOTE = Source(
    repository="this project",
    note="ade20k_seg_knn.capi@1 on VOC 2012; the source says that its own VOC does not reproduce the paper",
)
KNN_PROTOCOLS = (
    _knn_protocol("capi", "ade20k", 224, _CAPI),
    _knn_protocol("capi", "voc12aug", 224, _VOC_NOTE),
    _knn_protocol(
        "demo", "ade20k", 96,
        Source(repository="this project", note="ade20k_seg_knn.capi@1 at 96 pixels on the embedded scenes"),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class PatchKnn(CapiTask):
    """Segmentation by the nearest neighbours of frozen patch features (CAPI's kNN)."""

    name = "seg-knn"
    Params = PatchKnnParams
    protocols = KNN_PROTOCOLS

    def settings(self, params: PatchKnnParams) -> list[dict[str, Any]]:
        """By distance, then by k."""
        return [{"distance": distance, "k": k} for distance in params.distances for k in params.k]

    def predict(
        self, protocol: Protocol, gallery: Patches, rows: NDArray[np.float32], items: NDArray[np.int64],
        asked: NDArray[np.float32], options: RunOptions, what: str,
    ) -> list[NDArray[np.uint8]]:  # fmt: skip
        """Vote among the patches nearest to each that is asked.

        Raises:
            InputError: there are fewer patches than neighbours.
        """
        params: PatchKnnParams = self.params(protocol)
        if len(items) < params.k[-1]:
            raise InputError(
                f"{protocol.id} asks for k={params.k[-1]}, but only {len(items)} training patches have a class: "
                f"use --set k={','.join(map(str, [k for k in params.k if k <= len(items)]))}"
            )
        masks: list[NDArray[np.uint8]] = []
        for distance in params.distances:
            near = nearest(rows[items], asked, params.k[-1], distance, options, f"{what}, {distance}")
            voted = votes(gallery.blocks[items], near, params.k, options.device)
            masks += [masks_of(voted[k], gallery.grid) for k in params.k]
        return masks


def nearest(
    rows: NDArray[Any], queries: NDArray[Any], k: int, distance: Distance, options: RunOptions, label: str
) -> NDArray[np.int64]:
    """(Q, k) rows nearest to each query, exactly.

    The Euclidean distance is smallest where q·g - |g|²/2 is largest, a dot product of rows with one more column.
    """
    from benchmarks.solvers.exact_knn import exact_knn

    if distance == "L2":
        longer, asked = space((len(rows), rows.shape[1] + 1)), space((len(queries), rows.shape[1] + 1))
        longer[:, :-1], asked[:, :-1], asked[:, -1] = rows, queries, 1.0
        longer[:, -1] = -np.einsum("nd,nd->n", rows, rows, dtype=np.float64) / 2
        rows, queries = longer, asked
    track = partial(progress, show=options.progress)
    found = exact_knn(
        rows, queries, k, normalise=distance == "cosine", device=options.device,
        gallery_norms=positive_norms(rows), query_norms=positive_norms(queries),
        track=lambda items, text: track(items, f"{label}: {text}"),
    )  # fmt: skip
    return found.indices


def votes(
    blocks: NDArray[np.uint8], indices: NDArray[np.int64], ks: Sequence[int], device: str
) -> dict[int, NDArray[np.uint8]]:
    """For each k, (Q, L) the most frequent value at each place of the blocks of the k nearest, of equals the smallest.

    Args:
        blocks: (M, L) mask values.
        indices: (Q, K) blocks, nearest first.
        ks: ascending, at most 255.
    """
    import torch

    values, compact = np.unique(blocks, return_inverse=True)
    cells = torch.from_numpy(compact.reshape(blocks.shape).astype(np.uint8)).to(device)
    asked = torch.from_numpy(indices).to(device)
    back = torch.from_numpy(values).to(device)
    step = max(1, VOTES // (len(values) * blocks.shape[1]))
    found: dict[int, list[Any]] = {k: [] for k in ks}
    for part in asked.split(step):
        counts = torch.zeros(len(part), len(values), blocks.shape[1], dtype=torch.uint8, device=device)
        one = torch.ones((), dtype=torch.uint8, device=device)
        for place in range(ks[-1]):
            here = cells[part[:, place]].long()[:, None]
            counts.scatter_add_(1, here, one.expand_as(here))
            if place + 1 in ks:
                found[place + 1].append(back[most_votes(counts)].cpu())
    return {k: np.asarray(torch.cat(parts).numpy()) for k, parts in found.items()}


def most_votes(counts: Any) -> Any:
    """(q, C, L) votes to (q, L) int64 numbers of the values with the most votes, of equals the smallest.

    As in `best_class`, argmax is the slower way on a CPU only; on a GPU every mask below would make the host wait.
    """
    if counts.is_cuda:
        return counts.argmax(1)
    best, found = counts[:, 0].clone(), counts.new_zeros(counts[:, 0].shape, dtype=counts.dtype)
    for number in range(1, counts.shape[1]):
        larger = counts[:, number] > best
        best[larger] = counts[:, number][larger]
        found[larger] = number
    return found.long()


class InContextParams(PatchParams):
    """The numbers of a retrieval from a memory of patches.

    Attributes:
        k: neighbours.
        temperature: of the softmax over the neighbours' cosine similarities.
        memory: sizes of the memory in patches, 0 for all of the training images; each has its own columns.
    """

    k: int = Field(30, gt=0)
    temperature: float = Field(0.02, gt=0, allow_inf_nan=False)
    memory: tuple[int, ...] = Field((0,), min_length=1)

    @field_validator("memory")
    @classmethod
    def _distinct(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if min(value) < 0 or len(set(value)) < len(value):
            raise ValueError(f"{value} must have no negative sizes and no repeats")
        return value

    def columns(self) -> tuple[str, ...]:
        """Of each memory, with the classes as predicted and after Hungarian matching."""
        return tuple(f"{column(size)}{ending}" for size in self.memory for ending in ("", " matched"))


def column(size: int) -> str:
    """The table column of a memory of this many patches."""
    return f"mIoU {size:,}".replace(",", " ") if size else "mIoU"


def _retrieval_protocol(
    variant: str, dataset: str, geometry: Geometry, params: InContextParams, source: Source
) -> Protocol:
    return mask_protocol(
        "seg-incontext", variant, dataset, geometry, params, source, primary=params.columns()[0],
        metric="mean intersection over union over all classes, at the size of the squashed image",
        selection="nothing to choose",
    )  # fmt: skip


_SQUASHED = squashed(224, "bilinear")
# Memories of the README's tables, beside the default of all patches.
_README_SIZES = InContextParams(memory=(0, 1024 * 10**3, 1024 * 10**2))
_HUMMINGBIRD = Source(
    repository="vpariza/open-hummingbird-eval",
    revision="5e79da2",
    note="hbird/hbird_eval.py: k 30, softmax of cosine / 0.02, soft labels by class frequency, 255 is class 0 in the "
    "memory, maps upsampled bilinearly, mean over all classes; the search is exact, as by its faiss engine. The source "
    "augments its memory images (random crop, colour jitter), which are not augmented here; it normalises by a std of "
    "(0.229, 0.224, 0.255), for which give --facts std=0.229,0.224,0.255; it reports the matched column. A map of "
    "stride 16 for networks with stages is this project's own choice",
)
RETRIEVAL_PROTOCOLS = (
    _retrieval_protocol("hummingbird", "ade20k", _SQUASHED, _README_SIZES, _HUMMINGBIRD),
    _retrieval_protocol("hummingbird", "voc12aug", _SQUASHED, _README_SIZES, _HUMMINGBIRD),
    _retrieval_protocol("hummingbird", "cityscapes", _SQUASHED, _README_SIZES, _HUMMINGBIRD),
    _retrieval_protocol(
        "demo", "ade20k", squashed(96), InContextParams(memory=(0, 2000)),
        Source(repository="this project", note="ade20k_seg_incontext.hummingbird@1 on the embedded scenes"),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class InContext(PatchTask):
    """In-context segmentation by retrieval from a memory of patches (Hummingbird)."""

    name = "seg-incontext"
    Params = InContextParams
    protocols = RETRIEVAL_PROTOCOLS

    def run(self, protocol: Protocol, train: Split, test: Split, options: RunOptions) -> Outcome:
        """Label the test images by the training patches, once for each size of the memory.

        Raises:
            InputError: the encoder's map does not suit the protocol, or the memory is smaller than k.
        """
        from benchmarks.solvers.exact_knn import exact_knn

        params: InContextParams = self.params(protocol)
        gallery, queries = Patches.of(train, protocol, params.stride), Patches.of(test, protocol, params.stride)
        style = gallery.style
        # ADE20K's 0 is a class that can be predicted but is not scored; elsewhere only 255 is not scored.
        classes, ignored = style.first + len(style.classes), 0 if style.first else VOID
        names = ("other",) * style.first + style.classes
        outcome = Outcome(seeds=(params.seed,))
        labels = soft_labels(gallery.blocks, classes)
        for size in params.memory:
            began = time.perf_counter()
            kept = np.arange(len(gallery.rows))
            if size:
                each = max(1, size // len(train.labels))
                kept = sampled(labels, gallery.grid**2, each, np.random.default_rng((params.seed, options.seed)))[:size]
            if len(kept) < params.k:
                raise InputError(
                    f"{protocol.id} asks for k={params.k}, but the memory has {len(kept)} patches: use a smaller k"
                )
            rows = gallery.rows[kept] if size else gallery.rows
            found = exact_knn(
                rows, queries.rows, params.k, device=options.device, gallery_norms=positive_norms(rows),
                query_norms=positive_norms(queries.rows), track=partial(progress, show=options.progress),
            )  # fmt: skip
            scores = weighted_labels(found.similarities, labels, kept[found.indices], params.temperature)
            masks = upsampled(scores, queries.grid, (queries.side, queries.side), options.device).astype(np.uint8)
            confusion = confusions(masks, queries.masks, classes, ignored)
            for ending, counted in (("", confusion), (" matched", matched(confusion))):
                add_segmentation(
                    outcome, f"{column(size)}{ending}", areas_of_confusions(counted), names,
                    "Hungarian matching of the predicted classes to the true ones on test (oracle)"
                    if ending else protocol.selection,
                    rule="every",
                )  # fmt: skip
            outcome.runs.append(
                {"output": gallery.output, "grid": gallery.grid, "memory": len(kept), "engine": found.engine,
                 "mIoU": mean_iou(areas_of_confusions(confusion), "every")}
            )  # fmt: skip
            outcome.timing[column(size)] = time.perf_counter() - began
            if size == params.memory[0]:
                outcome.pictures = mask_sheet(test.labels, style, queries.masks, masks)
        return outcome


def soft_labels(blocks: NDArray[np.uint8], classes: int) -> NDArray[np.float32]:
    """(M, classes) share of each class in the pixels of each patch; 255 counts as class 0."""
    counted = counts_of(np.where(blocks == VOID, np.uint8(0), blocks), classes)
    return (counted / np.float32(blocks.shape[1])).astype(np.float32)


def sampled(labels: NDArray[np.float32], per_image: int, each: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Rows of `each` patches per image, those with classes that few patches of their image have preferred.

    The weight of a class is the number of the image's patches that show it; a patch scores the sum over its classes
    times a uniform random number, and the lowest scores are taken.
    """
    shown = (labels > 0).reshape(-1, per_image, labels.shape[1])
    weight = shown.sum(1, keepdims=True)
    score = (shown * weight).sum(2) * rng.random(shown.shape[:2])
    rows = np.argsort(score, axis=1, kind="stable")[:, :each]
    return (rows + per_image * np.arange(len(rows))[:, None]).ravel()


def weighted_labels(
    similarities: NDArray[np.float64], labels: NDArray[np.float32], indices: NDArray[np.int64], temperature: float
) -> NDArray[np.float32]:
    """(Q, C) mean of the soft labels of the neighbours (Q, k), weighted by softmax(similarity / temperature)."""
    weights: NDArray[Any] = np.exp((similarities - similarities.max(axis=1, keepdims=True)) / temperature)
    weights /= weights.sum(axis=1, keepdims=True)
    found = np.empty((len(indices), labels.shape[1]), np.float32)
    step = max(1, SUMMED // (indices.shape[1] * labels.shape[1]))
    for start in range(0, len(indices), step):
        part = slice(start, start + step)
        found[part] = np.einsum("qk,qkc->qc", weights[part], labels[indices[part]])
    return found


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

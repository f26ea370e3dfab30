"""In-context segmentation: soft labels of the nearest patches of a memory, weighted by similarity (Hummingbird)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from benchmarks.dense.masks import VOID, counts_of, mask_protocol, squashed
from benchmarks.dense.patches import Patches, PatchParams, PatchTask, mask_sheet, positive_norms, upsampled
from benchmarks.dense.scores import add_segmentation, areas_of_confusions, confusions, matched, mean_iou
from benchmarks.task import InputError, Outcome, RunOptions, Split, progress
from results.schema import Geometry, Protocol, Source

CELLS = 1 << 24  # soft labels that are summed at a time


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


def _protocol(variant: str, dataset: str, geometry: Geometry, params: InContextParams, source: Source) -> Protocol:
    return mask_protocol(
        "seg-incontext", variant, dataset, geometry, params, source, primary=params.columns()[0],
        metric="mean intersection over union over all classes, at the size of the squashed image",
        selection="nothing to choose",
    )  # fmt: skip


_SQUASHED = squashed(224, "bilinear")
# Memories of the README's tables, beside the default of all patches.
_README_SIZES = InContextParams(memory=(0, 1024 * 10**3, 1024 * 10**2))
_SOURCE = Source(
    repository="vpariza/open-hummingbird-eval",
    revision="5e79da2",
    note="hbird/hbird_eval.py: k 30, softmax of cosine / 0.02, soft labels by class frequency, 255 is class 0 in the "
    "memory, maps upsampled bilinearly, mean over all classes; the search is exact, as by its faiss engine. The source "
    "augments its memory images (random crop, colour jitter), which are not augmented here; it normalises by a std of "
    "(0.229, 0.224, 0.255), for which give --facts std=0.229,0.224,0.255; it reports the matched column. A map of "
    "stride 16 for networks with stages is this project's own choice",
)
PROTOCOLS = (
    _protocol("hummingbird", "ade20k", _SQUASHED, _README_SIZES, _SOURCE),
    _protocol("hummingbird", "voc12aug", _SQUASHED, _README_SIZES, _SOURCE),
    _protocol("hummingbird", "cityscapes", _SQUASHED, _README_SIZES, _SOURCE),
    _protocol(
        "demo", "ade20k", squashed(96), InContextParams(memory=(0, 2000)),
        Source(repository="this project", note="ade20k_seg_incontext.hummingbird@1 on the embedded scenes"),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class InContext(PatchTask):
    """In-context segmentation by retrieval from a memory of patches (Hummingbird)."""

    name = "seg-incontext"
    Params = InContextParams
    protocols = PROTOCOLS

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
    step = max(1, CELLS // (indices.shape[1] * labels.shape[1]))
    for start in range(0, len(indices), step):
        part = slice(start, start + step)
        found[part] = np.einsum("qk,qkc->qc", weights[part], labels[indices[part]])
    return found

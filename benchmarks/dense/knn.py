"""kNN segmentation on patches: a pixel gets the most frequent label at its place in the nearest patches (CAPI)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from benchmarks.dense.masks import held_out_images, mask_protocol, masks_of, squashed
from benchmarks.dense.patches import (
    Patches,
    PatchParams,
    PatchTask,
    Standardised,
    add_choice,
    positive_norms,
    space,
)
from benchmarks.dense.scores import Areas, mean_iou, pixel_accuracy
from benchmarks.task import InputError, Outcome, RunOptions, Split, progress
from results.schema import Protocol, Source

Distance = Literal["cosine", "L2"]
CELLS = 1 << 25  # votes that are counted at a time


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


def _protocol(variant: str, dataset: str, side: int, source: Source) -> Protocol:
    return mask_protocol(
        "seg-knn", variant, dataset, squashed(side), PatchKnnParams(), source,
        columns=("mIoU", "accuracy", "mIoU oracle"), primary="mIoU",
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
PROTOCOLS = (
    _protocol("capi", "ade20k", 224, _CAPI),
    _protocol("capi", "voc12aug", 224, _VOC_NOTE),
    _protocol(
        "demo", "ade20k", 96,
        Source(repository="this project", note="ade20k_seg_knn.capi@1 at 96 pixels on the embedded scenes"),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class PatchKnn(PatchTask):
    """Segmentation by the nearest neighbours of frozen patch features (CAPI's kNN)."""

    name = "seg-knn"
    Params = PatchKnnParams
    protocols = PROTOCOLS

    def run(self, protocol: Protocol, train: Split, test: Split, options: RunOptions) -> Outcome:
        """Choose k and distance on held-out training images, then label the test patches by all training patches.

        Raises:
            InputError: the encoder's map does not suit the protocol, or there are fewer patches than neighbours.
        """
        params: PatchKnnParams = self.params(protocol)
        began = time.perf_counter()
        gallery, queries = Patches.of(train, protocol, params.stride), Patches.of(test, protocol, params.stride)
        kept, held = held_out_images(len(train.labels), params.heldout, params.seed)
        scale = Standardised(gallery.rows, gallery.of_images(kept)) if params.standardise else np.asarray
        rows, query_rows = scale(gallery.rows), scale(queries.rows)
        usable = ~np.isin(gallery.modes, gallery.style.ignored)

        def predictions(items: NDArray[np.int64], asked: NDArray[Any], what: str) -> dict[tuple[str, int], Any]:
            items = items[usable[items]]
            if len(items) < params.k[-1]:
                raise InputError(
                    f"{protocol.id} asks for k={params.k[-1]}, but only {len(items)} training patches have a class: "
                    f"use --set k={','.join(map(str, [k for k in params.k if k <= len(items)]))}"
                )
            found: dict[tuple[str, int], Any] = {}
            for distance in params.distances:
                near = nearest(rows[items], asked, params.k[-1], distance, options, f"{what}, {distance}")
                voted = votes(gallery.blocks[items], near, params.k, options.device)
                found |= {(distance, k): masks_of(blocks, gallery.grid) for k, blocks in voted.items()}
            return found

        chosen_rows = gallery.of_images(held)
        tried = predictions(gallery.of_images(kept), rows[chosen_rows], "choosing")
        validation = {key: mean_iou(gallery.areas(masks, held)) for key, masks in tried.items()}
        grid = list(product(params.distances, params.k))
        chosen = max(grid, key=lambda key: validation[key])  # the first of equals
        selected = time.perf_counter()
        masks = predictions(np.arange(len(rows)), query_rows, "test")
        measured: dict[tuple[str, int], Areas] = {key: queries.areas(found) for key, found in masks.items()}

        outcome = Outcome(seeds=(params.seed,))
        outcome.timing = {"select": selected - began, "test": time.perf_counter() - selected}
        outcome.runs = [
            {"output": gallery.output, "grid": gallery.grid, "distance": key[0], "k": key[1], "chosen": key == chosen,
             "heldout_mIoU": validation[key], "mIoU": mean_iou(measured[key]),
             "accuracy": pixel_accuracy(measured[key])}
            for key in grid
        ]  # fmt: skip
        best = max(grid, key=lambda key: mean_iou(measured[key]))
        oracle = measured[best], "best k and distance on test (oracle)"
        add_choice(outcome, queries, masks[chosen], (measured[chosen], protocol.selection), oracle)
        return outcome


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
    step = max(1, CELLS // (len(values) * blocks.shape[1]))
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
    """(q, C, L) votes to (q, L) int64 numbers of the values with the most votes, of equals the smallest."""
    best, found = counts[:, 0].clone(), counts.new_zeros(counts[:, 0].shape, dtype=counts.dtype)
    for number in range(1, counts.shape[1]):
        larger = counts[:, number] > best
        best[larger] = counts[:, number][larger]
        found[larger] = number
    return found.long()

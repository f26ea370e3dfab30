"""What a harness takes and gives: the shapes that `evaluate`, the feature store and the harnesses agree on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from results.schema import Score

Items = Mapping[str, NDArray[Any]]  # see `Outcome.items`


class InputError(Exception):
    """The user's input cannot be used. Its one sentence names the file, the fault and the remedy; exit code 2."""

    def __init__(self, sentence: str) -> None:
        # From a loader's worker torch raises it anew with the worker's whole traceback as the text.
        super().__init__(sentence.rpartition("InputError: ")[2].strip())


class NotApplicableError(InputError):
    """This encoder cannot be measured in this way, however sound it is, as raw pixels have no maps: it is skipped."""


@dataclass(frozen=True)
class Labels:
    """The items of one split, in a fixed order, with what is known of them.

    Attributes:
        ids: N image ids, unique within the split; features are joined on them, never on order.
        paths: N image files. A large set's make each Path when it is asked for (`benchmarks.data.paths`).
        classes: C class names.
        targets: (N,) int64 class indices of a single-label set, or (N, C) int8 of a multi-label one with 1 present,
            0 absent, -1 ignored (VOC: every instance is difficult). (N, 0) where only the annotations hold labels.
        groups: N tuples of source ids. Items that share a source are not independent, and the bootstrap resamples
            sources. Every item is its own source unless the data set's `groups.json` says otherwise.
        annotations: files beside the images: N of them (masks, VOC xml), or one for all (a COCO json), or none.
    """

    ids: tuple[str, ...]
    paths: Sequence[Path]
    classes: tuple[str, ...]
    targets: NDArray[Any]
    groups: tuple[tuple[str, ...], ...]
    annotations: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Split:
    """A split's labels and its features, row by row.

    `features` maps an output's name (`embed`, `feature1` … `feature5`, `head`) to (N, D) float32, maybe memory-mapped.
    """

    labels: Labels
    features: Mapping[str, NDArray[np.float32]]


@dataclass
class Outcome:
    """What a harness measured.

    Attributes:
        scores: one cell per protocol column that this encoder can fill.
        per_class: column -> class -> value, where the metric is a mean over classes.
        runs: trials, grid cells, layers, heads: one flat mapping each.
        seeds: the seeds that were used.
        items: arrays of what happened to each test item, for paired comparisons. Accuracy:
            `correct/<column>` (N,) bool. Average precision: `decision/<column>` (N, C) float32. Any metric, where these
            are too many: `pseudo_value/<column>` (N,) float32. `evaluate` adds targets, ids and groups.
        tensors: trained heads or models by name, saved as safetensors beside the record.
        pictures: PNG files by name, saved beside the record.
        timing: seconds by phase.
    """

    scores: dict[str, Score]
    per_class: dict[str, dict[str, float]] = field(default_factory=dict)
    runs: list[dict[str, Any]] = field(default_factory=list)
    seeds: tuple[int, ...] = ()
    items: dict[str, NDArray[Any]] = field(default_factory=dict)
    tensors: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)
    timing: dict[str, float] = field(default_factory=dict)

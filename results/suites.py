"""Suites: benchmarks with a record per data set and a row per encoder, and the drop from one test set to another.

A suite is told by the names of its benchmarks: `robustness_v2` is the data set `v2` of the suite `robustness`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from results.bootstrap import RESAMPLES, SPREAD, BootstrapWeights, Gain, Outcomes, percentile_interval
from results.rows import Group, variant_text
from results.schema import Protocol


@dataclass(frozen=True)
class Suite:
    """How a table shows a suite.

    Attributes:
        sets: data set -> column title, in the order of the table; others follow.
        baseline: the data set that the drop of the others is measured against; empty for none.
        mean_over: data sets whose mean is a column, where all of them are there.
    """

    title: str
    sets: Mapping[str, str]
    baseline: str = ""
    mean_over: tuple[str, ...] = ()


# The sets of SimCLR's and BYOL's tables.
_TWELVE = (
    "food101", "cifar10", "cifar100", "birdsnap", "sun397", "cars", "aircraft", "voc2007", "dtd", "pets", "caltech101",
    "flowers102",
)  # fmt: skip
SUITES = {
    "transfer": Suite(
        "Transfer",
        {
            "food101": "Food-101", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "birdsnap": "Birdsnap",
            "sun397": "SUN397", "cars": "Cars", "aircraft": "Aircraft", "voc2007": "VOC2007", "dtd": "DTD",
            "pets": "Pets", "caltech101": "Caltech-101", "flowers102": "Flowers", "eurosat": "EuroSAT",
            "resisc45": "RESISC45", "country211": "Country211", "rendered_sst2": "SST2", "gtsrb": "GTSRB",
            "cub200": "CUB-200", "stl10": "STL-10", "svhn": "SVHN", "pcam": "PCAM",
        },
        mean_over=_TWELVE,
    ),
    "retrieval": Suite(
        "Retrieval", {"roxford5k": "ROxford", "rparis6k": "RParis", "copydays": "Copydays", "drawings": "drawings"}
    ),
    "robustness": Suite(
        "Robustness",
        {
            "val": "val", "real": "ReaL", "v2": "V2", "a": "A", "r": "R", "sketch": "Sketch", "objectnet": "ObjectNet",
            "c": "C",
        },
        baseline="val",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class SuiteGroups:
    """The tables of one suite under one variant, revision and set of overrides, by data set in the order of columns."""

    suite: Suite
    name: str
    groups: Mapping[str, Group]

    @property
    def title(self) -> str:
        """The suite and the variant, with a mark where there is another version of the same data."""
        marks = "'" * (len(self.name) - len(self.name.rstrip("'")))
        return f"{self.suite.title}, {variant_text(next(iter(self.groups.values())).protocol)}{marks}"

    def title_of(self, data_set: str) -> str:
        return self.suite.sets.get(data_set, data_set)

    def columns(self) -> tuple[str, ...]:
        """The columns of the protocols, each of which gets a table; top-5 is only in the records."""
        return tuple(dict.fromkeys(column for group in self.groups.values() for column in group.columns))


def suite_of(protocol: Protocol) -> tuple[str, str] | None:
    """The suite of a benchmark and its data set; None for a benchmark of its own."""
    name, _, data_set = protocol.benchmark.partition("_")
    return (name, data_set) if name in SUITES and data_set else None


def suite_groups(groups: Sequence[Group]) -> list[SuiteGroups]:
    """The groups of each suite, one entry per variant."""
    found: dict[str, dict[str, Group]] = {}
    for group in groups:
        place = suite_of(group.protocol)
        if place is None or not group.records:
            continue
        kind, data_set = place
        name = f"{kind}.{group.protocol.id.partition('.')[2]}"
        while data_set in found.setdefault(name, {}):  # another version of the same data
            name += "'"
        found[name][data_set] = group
    entries = []
    for name, of in found.items():
        suite = SUITES[name.partition(".")[0]]
        order = [*(each for each in suite.sets if each in of), *sorted(of.keys() - suite.sets.keys())]
        entries.append(SuiteGroups(suite, name, {each: of[each] for each in order}))
    return entries


def drop(baseline: Outcomes, other: Outcomes, column: str) -> Gain | None:
    """Accuracy on another test set minus that on the baseline, with its interval; None without outcomes of both.

    None as well where the outcomes are not right or wrong for each of some items.

    Images that come from the same file (val, ReaL and C) get the same weight in a resample, so they are paired; the
    others are independent. Paths and suffixes do not count: `n01440764/ILSVRC2012_val_00000293.JPEG` is
    `ILSVRC2012_val_00000293` in every set.
    """
    name = f"correct/{column}"
    if name not in baseline or name not in other:
        return None
    if not all(_right_or_wrong(outcomes, outcomes[name]) for outcomes in (baseline, other)):
        return None
    sides = [_by_source(outcomes, outcomes[name]) for outcomes in (baseline, other)]
    keys = sorted({*sides[0], *sides[1]})
    sums = np.array([[side.get(key, (0.0, 0.0)) for key in keys] for side in sides])  # (2, keys, right and count)
    members = [member for key in keys for member in key]
    joint: dict[str, NDArray[Any]] = {
        "group_offsets": np.cumsum([0, *(len(key) for key in keys)]),
        "group_members": np.array(members),
    }

    def difference(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        of_side = (sums[..., 0] @ weights) / (sums[..., 1] @ weights)
        return np.asarray(of_side[1] - of_side[0])

    value = float(difference(np.ones((len(keys), 1)))[0])
    _, blocks = BootstrapWeights().of(joint, RESAMPLES, 0)
    resampled = value + (np.concatenate([difference(block) for block in blocks]) - value) / SPREAD
    return Gain(value, *percentile_interval(resampled), len(other[name]), len(keys))


def _right_or_wrong(outcomes: Outcomes, right: NDArray[Any]) -> bool:
    """Whether these are (N,) of one or zero with the sources of as many items. Others may have written the file."""
    offsets, members = outcomes.get("group_offsets"), outcomes.get("group_members")
    if offsets is None or members is None or right.ndim != 1 or not len(right) or len(offsets) != len(right) + 1:
        return False
    return right.dtype.kind in "biuf" and bool(((right == 0) | (right == 1)).all())


def _by_source(outcomes: Outcomes, right: NDArray[Any]) -> dict[tuple[str, ...], tuple[float, float]]:
    """Sources of items -> how many of these items are right, and how many there are."""
    names, index = np.unique(outcomes["group_members"], return_inverse=True)
    stems = [str(name).rpartition("/")[2].partition(".")[0] for name in names]
    offsets = outcomes["group_offsets"]
    if len(index) == len(right):  # one source each
        counts, sums = np.bincount(index), np.bincount(index, right)
        found: dict[tuple[str, ...], tuple[float, float]] = {}
        for stem, total, count in zip(stems, sums.tolist(), counts.tolist(), strict=True):
            before = found.get((stem,), (0.0, 0.0))
            found[stem,] = (before[0] + total, before[1] + count)
        return found
    found = {}
    for start, stop, hit in zip(offsets[:-1], offsets[1:], right.tolist(), strict=True):
        key = tuple(sorted({stems[member] for member in index[start:stop]}))
        before = found.get(key, (0.0, 0.0))
        found[key] = (before[0] + hit, before[1] + 1)
    return found

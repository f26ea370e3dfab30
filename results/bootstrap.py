"""Cluster bootstrap over the sources of the test items: how far a score would move with other test data.

Test items that share a source (two scenes with the same drawing in them) are not independent, so sources are
reweighted and an item gets the product of its sources' weights: Owen and Eckles 2012, "Bootstrapping data arrays of
arbitrary order". Weights are independent 1 + SPREAD (E - 1) with E exponential of mean 1: the Bayesian bootstrap of
Rubin 1981, drawn towards one, and the resampled metrics are drawn apart again by 1 / SPREAD. Two reasons:

- A weight is never zero, so no class loses its last positive in a resample, as it would with multinomial weights where
  an item needs all its sources drawn at once.
- The product over m sources has variance (1 + SPREAD^2)^m - 1, which is 31 for five sources at full spread. That
  counts what is independent between items many times over: in the tests' simulation of scenes with one to five drawings
  the standard error of a paired gain is about three times too large at full spread, and less than twice at a quarter.
  Intervals stay conservative. With one source per item the spread makes no difference.

All values here are fractions of one; tables turn them into percent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Outcomes = Mapping[str, NDArray[Any]]
Floats = NDArray[np.float64]

CONFIDENCE = 0.95
RESAMPLES = 1000
SPREAD = 0.25
COLUMN_PREFIXES = ("correct/", "decision/", "iou/", "pseudo_value/")
AP_RULE = "ap_rule"  # the outcome that names the definition of average precision
RULES = ("envelope", "sklearn", "11point")
IOU_RULE = "iou_rule"  # the outcome that says over which classes the intersection over union is averaged
KEPT_VALUES = 16_000_000  # item weights kept from one encoder to the next: 128 MB
BLOCK_VALUES = 4_000_000  # item weights computed at once: 32 MB
AP_BLOCK = 100  # resamples of which the average precisions of all classes are computed at once


@dataclass(frozen=True)
class Replicates:
    """A metric with all weights one, and its `resampled` values (B,) under random weights."""

    value: float
    resampled: Floats

    @property
    def standard_error(self) -> float:
        return float(self.resampled.std(ddof=1))


@dataclass(frozen=True)
class Gain:
    """A difference of two metrics on the same items, and its 95 % percentile interval."""

    value: float
    low: float
    high: float
    n_items: int
    n_sources: int


def measured_columns(outcomes: Outcomes) -> tuple[str, ...]:
    """The columns whose metric the outcomes allow to compute again, sorted."""
    return tuple(sorted(key.split("/", 1)[1] for key in outcomes if key.startswith(COLUMN_PREFIXES)))


def replicates(
    outcomes: Outcomes,
    columns: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    weights: BootstrapWeights | None = None,
) -> dict[str, Replicates]:
    """The metric of each column, with all weights one and under `resamples` reweightings of the sources.

    The weights depend on the seed and the sources alone, so replicates of two encoders on the same items are paired.

    Args:
        outcomes: `correct/<column>` (N,) bool for accuracy, `decision/<column>` (N, C) for mean average precision
            with `targets` (N, C) of 1, 0 and -1 (ignored) by the rule that `ap_rule` names (the envelope without), or
            `iou/<column>` (N, 3, C) for mean intersection over union: pixels of the intersection, the prediction and
            the truth, averaged over the classes that occur, or over all with `iou_rule` "every"; or
            `pseudo_value/<column>` (N,) for any metric: its infinitesimal jackknife, whose weighted mean
            is the metric to first order; the sources of item i are
            `group_members[group_offsets[i]:group_offsets[i + 1]]`.
        weights: keeps the weights of one test set from one call to the next.

    Raises:
        KeyError: the outcomes do not hold a column or the groups.
        ValueError: arrays that do not fit each other.
    """
    items, blocks = (weights or BootstrapWeights()).of(outcomes, resamples, seed)
    metrics = {column: _metric(outcomes, column, items) for column in columns}
    values = {column: float(metric(np.ones((items, 1)))[0]) for column, metric in metrics.items()}
    resampled: dict[str, list[Floats]] = {column: [] for column in columns}
    for block in blocks:
        for column, metric in metrics.items():
            resampled[column].append(metric(block))
    return {
        column: Replicates(value, value + (np.concatenate(resampled[column]) - value) / SPREAD)
        for column, value in values.items()
    }


def mean_replicates(encoders: Sequence[Replicates]) -> Replicates:
    """Replicates of the mean metric of several encoders that were measured on the same items."""
    return Replicates(
        float(np.mean([encoder.value for encoder in encoders])),
        np.mean([encoder.resampled for encoder in encoders], axis=0),
    )


def gain_of(a: Replicates, b: Replicates, size: tuple[int, int]) -> Gain:
    """The paired gain of two replicates with the same weights; `size` is the number of items and of sources."""
    return Gain(a.value - b.value, *percentile_interval(a.resampled - b.resampled), *size)


def percentile_interval(values: NDArray[Any]) -> tuple[float, float]:
    """The ends of the 95 % interval of resampled values."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def size_of(outcomes: Outcomes) -> tuple[int, int]:
    """Test items, and the sources that they come from."""
    groups = _Groups.of(outcomes)
    return groups.items, groups.sources


def in_order_of_ids(outcomes: Outcomes) -> list[NDArray[Any]]:
    """Ids, targets, and sources as offsets and members, with the items in the order of their ids.

    Outcomes that agree on them were measured on the same items and can be paired, whatever the order of the items.
    """
    offsets, members = outcomes["group_offsets"], outcomes["group_members"]
    order = np.argsort(outcomes["ids"], kind="stable")
    sizes = np.diff(offsets)[order]
    ordered = np.concatenate([[0], np.cumsum(sizes)])
    rows = np.repeat(offsets[:-1][order] - ordered[:-1], sizes) + np.arange(len(members))
    return [outcomes["ids"][order], outcomes["targets"][order], ordered, members[rows]]


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

    def difference(weights: Floats) -> Floats:
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


@dataclass(frozen=True)
class _Groups:
    """The sources of each item: those of item i stand in `members` (M,), source indices, from `starts[i]` on."""

    starts: NDArray[np.intp]
    members: NDArray[np.intp]
    sources: int

    @property
    def items(self) -> int:
        return len(self.starts)

    @classmethod
    def of(cls, outcomes: Outcomes) -> _Groups:
        offsets, names = outcomes["group_offsets"], outcomes["group_members"]
        sizes = np.diff(offsets)
        if len(sizes) == 0 or offsets[0] != 0 or offsets[-1] != len(names) or (sizes < 1).any():
            raise ValueError("group_offsets must give every item at least one group member, and use all of them")
        sources, members = np.unique(names, return_inverse=True)
        # a source that is in an item twice (a drawing pasted twice) still has one weight in it
        pairs = np.unique(np.repeat(np.arange(len(sizes)), sizes) * len(sources) + members)
        rows, members = np.divmod(pairs, len(sources))
        return cls(np.searchsorted(rows, np.arange(len(sizes))), members, len(sources))

    def item_weights(self, resamples: int, seed: int) -> Iterator[Floats]:
        """Blocks of (N, b) item weights with `resamples` columns altogether."""
        generator = np.random.default_rng(seed)
        block = max(1, BLOCK_VALUES // max(self.items, self.sources))
        for start in range(0, resamples, block):
            # one resample after the other, so that the block size changes no number
            drawn = generator.standard_exponential((min(block, resamples - start), self.sources)).T
            weights = 1 + SPREAD * (drawn - 1)
            each = np.ascontiguousarray(weights)[self.members]
            alone = len(self.members) == self.items  # one source per item: nothing to multiply
            yield each if alone else np.multiply.reduceat(each, self.starts, axis=0)


class BootstrapWeights:
    """Item weights of the last test set, kept for the next encoder unless the set is large."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] = ()
        self._blocks: list[Floats] = []
        self._items = 0

    @staticmethod
    def keeps(items: int, resamples: int = RESAMPLES) -> bool:
        """Whether the weights of a test set of this size are kept."""
        return items * resamples <= KEPT_VALUES

    def of(self, outcomes: Outcomes, resamples: int, seed: int) -> tuple[int, Iterable[Floats]]:
        """The number of items, and blocks of (N, b) item weights with `resamples` columns altogether."""
        offsets, members = outcomes["group_offsets"], outcomes["group_members"]
        contents = (hashlib.sha256(array.tobytes()).digest() for array in (offsets, members))
        key = (resamples, seed, offsets.dtype.str, members.dtype.str, *contents)
        if key != self._key:
            groups = _Groups.of(outcomes)
            if not self.keeps(groups.items, resamples):
                return groups.items, groups.item_weights(resamples, seed)
            self._blocks, self._items, self._key = list(groups.item_weights(resamples, seed)), groups.items, key
        return self._items, self._blocks


def _metric(
    outcomes: Outcomes, column: str, items: int
) -> WeightedMean | MeanAveragePrecision | MeanIntersectionOverUnion:
    areas, decision = outcomes.get(f"iou/{column}"), outcomes.get(f"decision/{column}")
    if areas is not None:
        if areas.ndim != 3 or areas.shape[:2] != (items, 3):
            raise ValueError(f"iou/{column} has shape {areas.shape}, not ({items}, 3, classes)")
        _refuse_other_than_numbers(f"iou/{column}", areas)
        return MeanIntersectionOverUnion(areas, every=str(outcomes.get(IOU_RULE, "present")) == "every")
    for name in (f"correct/{column}", f"pseudo_value/{column}"):
        if name in outcomes:
            if outcomes[name].shape != (items,):
                raise ValueError(f"{name} has shape {outcomes[name].shape}, but there are {items} items")
            _refuse_other_than_numbers(name, outcomes[name])
            return WeightedMean(outcomes[name])
    if decision is None:
        raise KeyError(f"the outcomes hold no {column!r}; they hold {', '.join(measured_columns(outcomes)) or 'none'}")
    targets = outcomes["targets"]
    if decision.ndim != 2 or decision.shape != targets.shape or len(decision) != items:
        raise ValueError(f"decision/{column} {decision.shape} and targets {targets.shape} do not fit {items} items")
    _refuse_other_than_numbers(f"decision/{column}", decision)
    _refuse_other_than_numbers("targets", targets)
    return MeanAveragePrecision(decision, targets, str(outcomes.get(AP_RULE, "envelope")))


def _refuse_other_than_numbers(name: str, values: NDArray[Any]) -> None:
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{name} holds {values.dtype} values instead of numbers")


class WeightedMean:
    """Weighted mean of (N,) values: of right and wrong items for accuracy, of pseudo-values for another metric."""

    def __init__(self, values: NDArray[Any]) -> None:
        self.values = values.astype(np.float64)

    def __call__(self, weights: Floats) -> Floats:
        """(N, B) item weights to (B,) weighted means."""
        return (self.values @ weights) / weights.sum(axis=0)


class MeanAveragePrecision:
    """Mean over classes of average precision, in one of three definitions.

    Items with equal decisions enter together, so their order does not matter. Classes without a positive item are left
    out of the mean.

    Args:
        decision: (N, C), higher for more confident.
        targets: (N, C) of 1, 0 and -1 (ignored).
        rule: `envelope`, the area under the monotone envelope of precision at every change of recall (VOC2010 and
            later); `sklearn`, precision times change of recall, not interpolated; `11point`, the mean of the envelope
            at recalls 0, 0.1 … 1 (VOC2007).

    Raises:
        ValueError: no class has a positive item, or the rule is unknown.
    """

    def __init__(self, decision: NDArray[Any], targets: NDArray[Any], rule: str = "envelope") -> None:
        if rule not in RULES:
            raise ValueError(f"unknown definition of average precision {rule!r}; known are {', '.join(RULES)}")
        self.rule = rule
        # The sums of item weights over each level of decisions, of all items and of the positives: the levels of one
        # class after those of another. A product with one sparse matrix takes a third of the time that picking the
        # rows out and adding them up takes.
        self.levels: list[int] = []  # of each class
        all_rows, all_ends, positive_rows, positive_ends = [], [], [], []
        for scores, labels in zip(decision.T, targets.T, strict=True):
            rows = np.flatnonzero(labels != -1)
            rows = rows[_descending(scores[rows])]
            positive = labels[rows] == 1
            if not positive.any():
                continue
            ordered = scores[rows]
            last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))  # equal decisions share a level
            found = np.cumsum(positive)[last]
            # recall changes only where a positive enters, and precision between two such levels only falls
            entered = np.flatnonzero(np.diff(found, prepend=0))
            ends = last[entered] + 1
            self.levels.append(len(ends))
            all_rows.append(rows[: ends[-1]])
            all_ends.append(ends)
            positive_rows.append(rows[positive])
            positive_ends.append(found[entered])
        if not self.levels:
            raise ValueError("average precision needs a class with at least one positive item")
        self.of_all = _sums(all_rows, all_ends, len(decision))
        self.of_positives = _sums(positive_rows, positive_ends, len(decision))

    def __call__(self, weights: Floats) -> Floats:
        """(N, B) item weights to (B,) weighted mean average precisions."""
        blocks = range(0, weights.shape[1], AP_BLOCK)
        return np.concatenate([self._of_block(weights[:, start : start + AP_BLOCK]) for start in blocks])

    def _of_block(self, weights: Floats) -> Floats:
        of_all, of_positives = self.of_all @ weights, self.of_positives @ weights
        total = np.zeros(weights.shape[1])
        for start, levels in zip(np.cumsum([0, *self.levels[:-1]]), self.levels, strict=True):
            seen = of_all[start : start + levels].cumsum(axis=0)
            entering = of_positives[start : start + levels]
            found = entering.cumsum(axis=0)
            total += self._of_class(found / seen, entering, found)
        return total / len(self.levels)

    def _of_class(self, precision: Floats, entering: Floats, found: Floats) -> Floats:
        """(levels, B) precision, weight of the positives of a level and of all up to it, to (B,)."""
        if self.rule == "sklearn":
            return np.asarray((precision * entering).sum(axis=0) / found[-1])
        envelope = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
        if self.rule == "envelope":
            return np.asarray((envelope * entering).sum(axis=0) / found[-1])
        below = [(found < (tenth / 10 - 1e-9) * found[-1]).sum(axis=0) for tenth in range(11)]  # 3 of 5 reach 0.6
        return np.take_along_axis(envelope, np.array(below), 0).mean(axis=0)


def _descending(scores: NDArray[Any]) -> NDArray[np.intp]:
    """The order of decisions from the highest down, and of equal ones as they stand."""
    if scores.dtype.kind == "u":  # ranks, of which numpy sorts 16 bits in a tenth of the time of floats
        return np.argsort(scores.max(initial=0) - scores, kind="stable")
    return np.argsort(-scores.astype(np.float64), kind="stable")


def _sums(rows: Sequence[NDArray[np.intp]], ends: Sequence[NDArray[np.intp]], items: int) -> csr_array:
    """(segments, items) matrix whose product with weights adds up the rows of each class from each end to the next."""
    from scipy.sparse import csr_array

    before = np.cumsum([0, *map(len, rows)])
    edges = np.concatenate([[0], *(of_class + start for of_class, start in zip(ends, before[:-1], strict=True))])
    return csr_array((np.ones(before[-1]), np.concatenate(rows), edges), shape=(len(edges) - 1, items))


class MeanIntersectionOverUnion:
    """Intersection over union of all pixels together, mean over the classes that are predicted or true somewhere.

    Args:
        every: the mean is over all classes, and one that is nowhere counts 0.
    """

    def __init__(self, areas: NDArray[Any], *, every: bool = False) -> None:
        pixels = areas.astype(np.float64)
        self.intersection = pixels[:, 0]
        self.union = pixels[:, 1] + pixels[:, 2] - pixels[:, 0]
        present = self.union.any(axis=0)
        if not present.any():
            raise ValueError("intersection over union needs a class that is predicted or true somewhere")
        self.intersection, self.union = self.intersection[:, present], self.union[:, present]
        self.share = float(present.mean()) if every else 1.0

    def __call__(self, weights: Floats) -> Floats:
        """(N, B) item weights to (B,) weighted means."""
        found: Floats = np.mean((self.intersection.T @ weights) / (self.union.T @ weights), axis=0)
        return self.share * found

"""Decide which differences are more than noise of the test sample (paired bootstrap) and of the runs.

The test sample and what differs from run to run (seed, trial, drawn set of labels) are independent, so their variances
add. The bootstrap also works where there is one run only; the spread over runs counts where both sides have several.

Low-shot figures are means over drawn sets of labels, which are the same for every encoder. Their noise has two parts,
either of which alone would understate it. Of the test images: the bootstrap, of the mean over the sets. Of the sets:
Student's t of the differences set by set, since a bootstrap of five would give an interval two thirds as wide. Both
parts hold what happens between an image and a set, so it counts twice and the interval is rather too wide.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit  # the quantile of Student's t

from results.bootstrap import (
    COLUMN_PREFIXES,
    CONFIDENCE,
    RESAMPLES,
    BootstrapWeights,
    Gain,
    Replicates,
    gain_of,
    in_order_of_ids,
    mean_replicates,
    measured_columns,
    replicates,
    size_of,
)
from results.families import family_of
from results.formats import Cell
from results.store import StoredRecord, measured_column

Arrays = dict[str, NDArray[Any]]
Value = TypeVar("Value")

TWO_SIDED = 1.96  # standard errors to each side of a 95 % interval
# A few resamples show, at a tenth of the cost, which rows are far from the best and which are as good: the ends of a
# 95 % interval lie about two standard errors from its middle.
SCREEN_RESAMPLES = 100
FAR, NEAR = 3.5, 1.2  # standard errors
KEPT_REPLICATES = 4096  # arrays of 1000 numbers: 32 MB
NOISE_LINE = (
    "Bold: the best value of a column, and every value that cannot be told from it because the "
    f"{CONFIDENCE:.0%} interval of their difference contains zero. The interval comes from a paired bootstrap over the "
    "test items; where both rows have several runs, it includes their spread. The diff command prints the interval "
    "of any pair."
)


@dataclass(frozen=True)
class Difference:
    """How much better one side is, with its 95 % interval, all in the unit of the score.

    Attributes:
        items, sources: behind the bootstrap; 0 where it rests on runs alone.
        runs: of each side, where their spread is in the interval.
        sets: of labels that a side was measured on, where their spread is in the interval.
    """

    value: float
    low: float
    high: float
    items: int = 0
    sources: int = 0
    runs: tuple[int, int] | None = None
    sets: int = 0

    @property
    def beyond_noise(self) -> bool:
        return self.low > 0 or self.high < 0


def runs_of(records: Sequence[StoredRecord], column: str) -> list[float]:
    """A column's value in each run: of several encoders that share a row, or of the trials within one record."""
    if len(records) > 1:
        return [value for stored in records if (value := stored.record.value(column)) is not None]
    return [value for stored in records for value in stored.record.trials(column)]


def sets_of(records: Sequence[StoredRecord], column: str) -> dict[str, float]:
    """A column's value on each drawn set of labels, the mean over encoders; empty unless all have the same sets."""
    found = [
        {str(run["drawn"]): float(run[column]) for run in stored.record.runs if "drawn" in run and column in run}
        for stored in records
    ]
    if not found or any(of_record.keys() != found[0].keys() for of_record in found):
        return {}
    return {drawn: float(np.mean([of_record[drawn] for of_record in found])) for drawn in found[0]}


def difference(
    cache: ReplicateCache, a: Sequence[StoredRecord], b: Sequence[StoredRecord], column: str
) -> Difference | None:
    """Mean of `a` minus mean of `b` with its interval; None if neither outcomes per item nor runs give its noise.

    The interval covers the test sample if both sides have outcomes per item, the initialisations or trials if both
    have several, and the drawn sets of labels if there are some. From runs alone it is too narrow.
    """
    return cache.differences.get((_paths(a), _paths(b), column), lambda: _difference(cache, a, b, column))


def _difference(
    cache: ReplicateCache, a: Sequence[StoredRecord], b: Sequence[StoredRecord], column: str
) -> Difference | None:
    gain = cache.gain(a, b, column)
    scale = _scale([*a, *b])
    runs, sets = (runs_of(a, column), runs_of(b, column)), (sets_of(a, column), sets_of(b, column))
    intact = all(stored.intact for stored in (*a, *b))
    several = intact and min(map(len, runs)) > 1
    drawn = intact and min(map(len, sets)) > 1
    spread = _spread(a, b, column)
    counts = (len(runs[0]), len(runs[1])) if several else None
    if gain is not None:
        value, low, high = (scale * number for number in (gain.value, gain.low, gain.high))
        low, high = value - float(np.hypot(value - low, spread)), value + float(np.hypot(high - value, spread))
        return Difference(value, low, high, gain.n_items, gain.n_sources, counts, len(sets[0]) if drawn else 0)
    if not several and not drawn:
        return None
    sides = runs if several else [list(side.values()) for side in sets]
    value = float(np.mean(sides[0]) - np.mean(sides[1]))
    return Difference(value, value - spread, value + spread, runs=counts, sets=len(sets[0]) if drawn else 0)


def _spread(a: Sequence[StoredRecord], b: Sequence[StoredRecord], column: str) -> float:
    """Half the interval that runs and drawn sets of labels alone would give; 0 where not both sides have several."""
    if not all(stored.intact for stored in (*a, *b)):
        return 0.0
    runs, sets = (runs_of(a, column), runs_of(b, column)), (sets_of(a, column), sets_of(b, column))
    of_runs = _of_runs(*runs) if min(map(len, runs)) > 1 else 0.0
    return float(np.hypot(of_runs, _of_sets(*sets) if min(map(len, sets)) > 1 else 0.0))


def _screened(cache: ReplicateCache, a: Sequence[StoredRecord], b: Sequence[StoredRecord], column: str) -> float | None:
    """What is clear without all resamples: 1 where A's score is clearly higher, -1 lower, 0 tied; None: not clear.

    Scores that lie far apart by the standard errors in the records are told apart without a look at the outcomes.
    Elsewhere a few resamples may do.
    """
    apart = _apart(a, b, column)
    if apart:
        return apart
    first, second = (cache.mean(side, column, SCREEN_RESAMPLES) for side in (a, b))
    if first is None or second is None or not cache.same_items(a[0], b[0]):
        return None
    value, scale = first.value - second.value, _scale([*a, *b])
    error = float((first.resampled - second.resampled).std(ddof=1))
    if abs(value) < NEAR * error:
        return 0.0
    far = scale * abs(value) > np.hypot(scale * FAR * error, _spread(a, b, column))
    return float(np.sign(value)) if far else None


def _apart(a: Sequence[StoredRecord], b: Sequence[StoredRecord], column: str) -> float:
    """1 or -1 where A's score is far above or below B's whatever the pairing, else 0.

    The standard deviation of a difference is at most the sum of those of its sides.
    """
    records = [stored.record for stored in (*a, *b)]
    if not all(stored.intact for stored in (*a, *b)) or len({record.dataset.fingerprint for record in records}) != 1:
        return 0.0
    means, errors = [], []
    for side in (a, b):
        scores = [stored.record.scores.get(column) for stored in side if stored.record.outcomes_file is not None]
        known = [
            (s.value, s.standard_error) for s in scores if s and s.value is not None and s.standard_error is not None
        ]
        if len(known) < len(side):
            return 0.0
        means.append(float(np.mean([value for value, _ in known])))
        errors.append(float(np.mean([error for _, error in known])))
    value = means[0] - means[1]
    return float(np.sign(value)) if abs(value) > np.hypot(FAR * sum(errors), _spread(a, b, column)) else 0.0


def _of_runs(a: Sequence[float], b: Sequence[float]) -> float:
    """Half the interval of the difference of two means of independent runs: Welch 1947."""
    variances = [float(np.var(side, ddof=1)) / len(side) for side in (a, b)]
    total = sum(variances)
    if total == 0:
        return 0.0
    freedom = total**2 / sum(v**2 / (len(side) - 1) for v, side in zip(variances, (a, b), strict=True))
    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * total**0.5


def _of_sets(a: Mapping[str, float], b: Mapping[str, float]) -> float:
    """Half the interval of the mean of the differences set by set: Student's t.

    Sides that were measured on different sets count as independent runs.
    """
    if a.keys() != b.keys():
        return _of_runs(list(a.values()), list(b.values()))
    values = [value - b[drawn] for drawn, value in a.items()]
    quantile = float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2))
    return quantile * float(np.std(values, ddof=1)) / len(values) ** 0.5


# ---- the best of a column, and what is tied with it


@dataclass(frozen=True)
class Ranking:
    """One column's cells, the best and all tied with it in bold.

    Attributes:
        unknown: records whose difference from the best has no interval; nothing is bold where there are some.
        runs_only: some interval rests on the spread over runs alone.
    """

    cells: tuple[Cell, ...]
    unknown: tuple[StoredRecord, ...] = ()
    runs_only: bool = False


def rank_rows(
    cache: ReplicateCache,
    rows: Sequence[Sequence[StoredRecord]],
    columns: Mapping[str, Sequence[Cell]],
    *,
    higher_is_better: bool,
    opposite: Collection[str] = (),
    compared: Callable[[int], object] = lambda row: None,
) -> dict[str, Ranking]:
    """Compare every row with the best one, in each column.

    Args:
        rows: the records of each row.
        columns: the cells of each column, one per row. A column with fewer than two values stays as it is.
        opposite: columns whose better direction is the other one.
        compared: called after each row, while its outcomes are held.
    """
    signs = {column: 1 if higher_is_better != (column in opposite) else -1 for column in columns}
    best: dict[str, int] = {}
    for column, cells in columns.items():
        filled = {i: signs[column] * cell.value for i, cell in enumerate(cells) if cell.value is not None}
        if len(filled) > 1:
            best[column] = max(filled, key=lambda i: filled[i])
    tied = {column: {i} for column, i in best.items()}
    unknown: dict[str, list[StoredRecord]] = {column: [] for column in best}
    runs_only = set()
    for i, row in enumerate(rows):  # row by row, so that the replicates of one row are held at a time
        for column, first in best.items():
            if i == first or columns[column][i].value is None:
                continue
            sign = signs[column]
            clear = cache.screened(rows[first], row, column)
            if clear is not None:
                if sign * clear <= 0:
                    tied[column].add(i)
                continue
            found = difference(cache, rows[first], row, column)
            if found is None:
                unknown[column] += [*rows[first], *row]
                continue
            if not (found.beyond_noise and sign * found.value > 0):
                tied[column].add(i)
            if not found.items:
                runs_only.add(column)
        compared(i)
    rankings = {}
    for column, cells in columns.items():
        bold = set() if unknown.get(column) else tied.get(column, set())
        marked = tuple(replace(cell, bold=True) if i in bold else cell for i, cell in enumerate(cells))
        rankings[column] = Ranking(marked, tuple(unknown.get(column, ())), column in runs_only)
    return rankings


def ranking_line(rankings: Mapping[str, Ranking]) -> str:
    """What a reader must know of the bold values of a table beyond `NOISE_LINE`; empty where that says it all.

    Args:
        rankings: by column title.
    """
    parts = []
    unknown = {title: one.unknown for title, one in rankings.items() if one.unknown}
    if unknown:
        records = [stored for of in unknown.values() for stored in of]
        which = "" if len(unknown) == len(rankings) else f" in {', '.join(unknown)}"
        parts.append(f"Nothing is bold{which}, because {_why_unknown(records)}.")
    runs_only = [title for title, one in rankings.items() if one.runs_only and not one.unknown]
    if runs_only:
        which = "All columns" if len(runs_only) == len(rankings) else ", ".join(runs_only)
        parts.append(f"{which}: compared by the spread over runs alone, which leaves out the noise of the test sample.")
    return " ".join(parts)


def _why_unknown(records: Sequence[StoredRecord]) -> str:
    """Why a difference between these records has no interval."""
    if not all(stored.intact for stored in records):
        return "edited or damaged records are not compared"
    if not any(family_of(stored.record.protocol.resolved.benchmark).outcomes for stored in records):
        return "this benchmark keeps no outcomes per item and not every row has several runs"
    if any(stored.record.outcomes_file is None for stored in records):
        return "not every record holds outcomes per item; measure again with --force to get them"
    return "not every record holds outcomes per item for it"


def _scale(records: Sequence[StoredRecord]) -> float:
    """Factor from outcomes, which are fractions of one, to scores, which mostly are percent."""
    return 100.0 if all(stored.record.protocol.resolved.unit == "%" for stored in records) else 1.0


def _paths(records: Sequence[StoredRecord]) -> tuple[Path, ...]:
    return tuple(stored.path for stored in records)


class _Recent(Generic[Value]):
    """The values that were asked for last, at most `limit` of them (0: all)."""

    def __init__(self, limit: int = 0) -> None:
        self._limit = limit
        self._values: OrderedDict[object, Value] = OrderedDict()

    def get(self, key: object, compute: Callable[[], Value]) -> Value:
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        value = compute()
        self.put(key, value)
        return value

    def put(self, key: object, value: Value) -> None:
        self._values[key] = value
        while self._limit and len(self._values) > self._limit:
            self._values.popitem(last=False)


@dataclass(frozen=True)
class _TestItems:
    """The test items of a record, as a hash of ids, targets and sources, and how many items and sources there are."""

    digest: bytes
    size: tuple[int, int]


class ReplicateCache:
    """Replicates, gains and differences of records by column, each computed once while memory stays bounded.

    Gains, differences and their screening are a few numbers each and are all kept; of the arrays, those used last are.
    """

    def __init__(self) -> None:
        self.differences: _Recent[Difference | None] = _Recent()
        self._screened: _Recent[float | None] = _Recent()
        self._gains: _Recent[Gain | None] = _Recent()
        self._outcomes: _Recent[Arrays | None] = _Recent(2)
        self._columns: _Recent[tuple[str, ...]] = _Recent()
        self._replicates: _Recent[Replicates | None] = _Recent(KEPT_REPLICATES)
        self._means: _Recent[Replicates | None] = _Recent(KEPT_REPLICATES)
        self._items: _Recent[_TestItems | None] = _Recent()
        self._items_by_bytes: _Recent[_TestItems | None] = _Recent()
        self._weights: dict[int, BootstrapWeights] = {}

    def mean(self, stored: Sequence[StoredRecord], column: str, resamples: int = RESAMPLES) -> Replicates | None:
        """Replicates of the mean score of several encoders; None unless all have outcomes for it, on the same items."""
        if len(stored) == 1:
            return self._one(stored[0], column, resamples)
        return self._means.get((_paths(stored), column, resamples), lambda: self._mean(stored, column, resamples))

    def _mean(self, stored: Sequence[StoredRecord], column: str, resamples: int) -> Replicates | None:
        found = [self._one(each, column, resamples) for each in stored]
        whole = [replicate for replicate in found if replicate is not None]
        fit = len(whole) == len(found) > 0 and all(self.same_items(stored[0], other) for other in stored[1:])
        return mean_replicates(whole) if fit else None

    def screened(self, a: Sequence[StoredRecord], b: Sequence[StoredRecord], column: str) -> float | None:
        return self._screened.get((_paths(a), _paths(b), column), lambda: _screened(self, a, b, column))

    def gain(self, a: Sequence[StoredRecord], b: Sequence[StoredRecord], column: str) -> Gain | None:
        """Gain of the mean of `a` over the mean of `b`; None unless all were measured on the same items."""
        return self._gains.get((_paths(a), _paths(b), column), lambda: self._gain(a, b, column))

    def _gain(self, a: Sequence[StoredRecord], b: Sequence[StoredRecord], column: str) -> Gain | None:
        first, second = self.mean(a, column), self.mean(b, column)
        items = self._items_of(a[0]) if a else None
        if first is None or second is None or items is None or not self.same_items(a[0], b[0]):
            return None
        return gain_of(first, second, items.size)

    def _one(self, stored: StoredRecord, column: str, resamples: int) -> Replicates | None:
        columns = self._columns.get(stored.path, lambda: measured_columns(self._held(stored) or {}))
        measured = measured_column(stored.record, column, columns)
        if measured is None:
            return None
        key = stored.path, measured, resamples
        return self._replicates.get(key, lambda: self._computed(stored, measured, columns, resamples))

    def _computed(
        self, stored: StoredRecord, measured: str, columns: Sequence[str], resamples: int
    ) -> Replicates | None:
        """The replicates of a column. Columns of equal outcomes, and all of a large test set, are computed together."""
        outcomes = self._held(stored) or {}
        items = self._items_of(stored)
        if items is None:
            return None
        shown = [c for c in columns if c in stored.record.protocol.resolved.columns and not c.endswith("top-5")]
        wanted = (
            [measured] if BootstrapWeights.keeps(items.size[0], resamples) else list(dict.fromkeys([measured, *shown]))
        )
        distinct = {_array(outcomes, column): column for column in reversed(wanted)}
        found = self._bootstrap(outcomes, list(distinct.values()), resamples)
        for column in columns:
            same = distinct.get(_array(outcomes, column))
            if same is not None:
                self._replicates.put((stored.path, column, resamples), found.get(same))
        return found.get(distinct[_array(outcomes, measured)])

    def _bootstrap(self, outcomes: Arrays, columns: Sequence[str], resamples: int) -> dict[str, Replicates]:
        weights = self._weights.setdefault(resamples, BootstrapWeights())
        try:
            return dict(replicates(outcomes, columns, resamples=resamples, weights=weights))
        except (KeyError, ValueError, IndexError):  # arrays that do not fit each other
            if len(columns) == 1:
                return {}
            single = [self._bootstrap(outcomes, [column], resamples) for column in columns]
            return {name: one for found in single for name, one in found.items()}

    def _held(self, stored: StoredRecord) -> Arrays | None:
        return self._outcomes.get(stored.path, stored.outcomes)

    def _items_of(self, stored: StoredRecord) -> _TestItems | None:
        return self._items.get(stored.path, lambda: self._described(self._held(stored)))

    def _described(self, outcomes: Arrays | None) -> _TestItems | None:
        try:
            arrays = [(outcomes or {})[name] for name in ("ids", "targets", "group_offsets", "group_members")]
        except KeyError:
            return None
        contents = tuple((array.dtype.str, hashlib.sha256(array.tobytes()).digest()) for array in arrays)
        return self._items_by_bytes.get(contents, lambda: _test_items(outcomes or {}))

    def same_items(self, a: StoredRecord, b: StoredRecord) -> bool:
        """Whether two records were measured on the same test items, targets and sources."""
        first, second = self._items_of(a), self._items_of(b)
        return first is not None and second is not None and first.digest == second.digest


def _test_items(outcomes: Arrays) -> _TestItems | None:
    try:
        ordered = in_order_of_ids(outcomes)
        return _TestItems(_digest(ordered), size_of(outcomes))
    except (ValueError, IndexError):  # arrays that do not fit each other
        return None


def _digest(arrays: Sequence[NDArray[Any]]) -> bytes:
    """A hash of the arrays' values; texts of equal content but different maximum length are equal."""
    digest = hashlib.sha256()
    for array in arrays:
        kind = np.asarray(array)
        if kind.dtype.kind == "U":
            kind = np.char.encode(kind, "utf-8")
            kind = kind.astype(f"S{max(1, int(np.char.str_len(kind).max(initial=0)))}")
        elif kind.dtype.kind in "iub":
            kind = kind.astype(np.int64)
        digest.update(f"{kind.dtype.str}{kind.shape}".encode())
        digest.update(np.ascontiguousarray(kind).tobytes())
    return digest.digest()


def _array(outcomes: Arrays, column: str) -> int:
    """Identity of the array with a column's outcomes: several columns may share one."""
    return next(id(outcomes[prefix + column]) for prefix in COLUMN_PREFIXES if prefix + column in outcomes)

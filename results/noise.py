"""Decide which differences are more than noise of the test sample (paired bootstrap) and of the runs.

The test sample and what differs from run to run (seed, trial, drawn set of labels) are independent, so their variances
add. The bootstrap also works where there is one run only; the spread over runs counts where both sides have several.

Low-shot figures are means over drawn sets of labels, which are the same for every encoder. Their noise has two parts,
either of which alone would understate it. Of the test images: the bootstrap, of the mean over the sets. Of the sets:
Student's t of the differences set by set, since a bootstrap of five would give an interval two thirds as wide. Both
parts hold what happens between an image and a set, so it counts twice and the interval is rather too wide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit  # the quantile of Student's t

from results.bootstrap import (
    COLUMN_PREFIXES,
    CONFIDENCE,
    Gain,
    Replicates,
    align,
    gain_of,
    mean_replicates,
    measured_columns,
    replicates,
    size_of,
)
from results.families import family_of
from results.formats import Cell
from results.store import StoredRecord, measured_column

Arrays = dict[str, NDArray[Any]]

TWO_SIDED = 1.96  # standard errors to each side of a 95 % interval
NOISE_LINE = (
    f"Bold: the best of its column, better than each other row by more than the noise ({CONFIDENCE:.0%}, paired "
    "bootstrap of the outcomes per item, and the spread over runs where both have several)."
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

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


def runs_of(records: Sequence[StoredRecord], column: str) -> list[float]:
    """A column's value in each run: of several encoders that share a row, or of the trials within one record.

    A trial is an entry of `Record.runs` with the key `trial` and the values under the names of the columns. One with
    the key `drawn` is not a run of its own, see `sets_of`.
    """
    if len(records) > 1:
        scores = [stored.record.scores.get(column) for stored in records]
        return [score.value for score in scores if score is not None and score.value is not None]
    trials = [run[column] for stored in records for run in stored.record.runs if "trial" in run and column in run
              and "drawn" not in run]  # fmt: skip
    return [float(value) for value in trials if isinstance(value, int | float)]


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
    gain = cache.gain(a, b, column)
    scale = _scale([*a, *b])
    runs, sets = (runs_of(a, column), runs_of(b, column)), (sets_of(a, column), sets_of(b, column))
    intact = all(stored.intact for stored in (*a, *b))
    several = intact and min(map(len, runs)) > 1
    drawn = intact and min(map(len, sets)) > 1
    spread = float(np.hypot(_of_runs(*runs) if several else 0.0, _of_sets(*sets) if drawn else 0.0))
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


def _of_runs(a: Sequence[float], b: Sequence[float]) -> float:
    """Half the interval of the difference of two means of independent runs: Welch 1947."""
    variances = [float(np.var(side, ddof=1)) / len(side) for side in (a, b)]
    total = sum(variances)
    if total == 0:
        return 0.0
    freedom = total**2 / sum(v**2 / (len(side) - 1) for v, side in zip(variances, (a, b), strict=True))
    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * total**0.5


def _of_sets(a: Mapping[str, float], b: Mapping[str, float] | None = None) -> float:
    """Half the interval of the mean of `a`, or of its differences from `b` set by set: Student's t.

    Sides that were measured on different sets count as independent runs.
    """
    if b is not None and a.keys() != b.keys():
        return _of_runs(list(a.values()), list(b.values()))
    values = [value - (0.0 if b is None else b[drawn]) for drawn, value in a.items()]
    quantile = float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2))
    return quantile * float(np.std(values, ddof=1)) / len(values) ** 0.5


def mark_best(
    cache: ReplicateCache,
    rows: Sequence[Sequence[StoredRecord]],
    cells: Sequence[Cell],
    column: str,
    *,
    higher_is_better: bool,
) -> list[Cell]:
    """One column's cells, the best in bold if it is better than each of the others by more than the noise."""
    sign = 1 if higher_is_better else -1
    filled = [i for i, cell in enumerate(cells) if cell.value is not None]
    marked = list(cells)
    if len(filled) < 2:
        return marked
    best = max(filled, key=lambda i: sign * (cells[i].value or 0.0))
    for other in filled:
        if other != best:
            found = difference(cache, rows[best], rows[other], column)
            if found is None or not (found.beyond_noise and sign * found.value > 0):
                return marked
    marked[best] = replace(cells[best], bold=True)
    return marked


@dataclass(frozen=True)
class Detectable:
    """A smallest detectable difference; `of_sample` if it includes the noise of the test sample."""

    value: float
    of_sample: bool


def smallest_detectable(
    cache: ReplicateCache, rows: Sequence[Sequence[StoredRecord]], column: str
) -> Detectable | None:
    """The smallest difference between two rows beyond the noise: half the 95 % interval, the median over all pairs.

    Without a pair it is that of two independent encoders with a row's noise; None if that is not known.
    """
    pairs = [found for a, b in combinations(rows, 2) if (found := difference(cache, a, b, column)) is not None]
    if pairs:
        return Detectable(median(found.half_width for found in pairs), all(found.items for found in pairs))
    for row in rows:
        replicate = cache.mean(row, column)
        score = row[0].record.scores.get(column) if len(row) == 1 else None
        error = score.standard_error if score is not None else None
        if replicate is not None:
            error = _scale(row) * replicate.standard_error
        if error is not None:
            sets = sets_of(row, column)
            of_sets = _of_sets(sets) if len(sets) > 1 else 0.0
            return Detectable(2**0.5 * float(np.hypot(TWO_SIDED * error, of_sets)), of_sample=True)
    return None


def detectable_line(
    cache: ReplicateCache, asked: Mapping[str, tuple[Sequence[Sequence[StoredRecord]], str]], decimals: int
) -> str:
    """As `Smallest detectable difference between two rows (95%): k=10 5.1, k=20 5.3.`, for the header of a table.

    A difference from runs alone is marked; for an unknown one the reason is given.

    Args:
        asked: by column title, the records of each row and their column. A column without a score is left out.
    """
    found = {
        title: smallest_detectable(cache, rows, column)
        for title, (rows, column) in asked.items()
        if any(_has(stored, column) for row in rows for stored in row)
    }
    texts = {title: f"{title} {one.value:.{decimals}f}" for title, one in found.items() if one is not None}
    whole = [texts[title] for title, one in found.items() if one is not None and one.of_sample]
    partly = [texts[title] for title, one in found.items() if one is not None and not one.of_sample]
    unknown = [title for title, one in found.items() if one is None]
    parts = [", ".join(whole)] if whole else []
    if partly:
        parts.append(f"{', '.join(partly)} by the spread of runs alone, which leaves the test sample out")
    if unknown:
        records = [stored for title in unknown for row in asked[title][0] for stored in row]
        which = "" if len(unknown) == len(found) else f" for {', '.join(unknown)}"
        parts.append(f"not known{which}, {_why_not(records)}")
    return f"Smallest detectable difference between two rows ({CONFIDENCE:.0%}): {'; '.join(parts) or 'no figures'}."


def _has(stored: StoredRecord, column: str) -> bool:
    score = stored.record.scores.get(column)
    return score is not None and score.value is not None


def _why_not(records: Sequence[StoredRecord]) -> str:
    """Why the noise of the test sample cannot be computed from the records."""
    if not any(family_of(stored.record.protocol.resolved.benchmark).outcomes for stored in records):
        return "since this benchmark keeps no outcomes per item and no two rows have two trials each"
    if not all(stored.intact for stored in records):
        return "since edited or damaged records are not used for it"
    if any(stored.record.outcomes_file is None for stored in records):
        return "since the records hold no outcomes per item; measured again with --force they do"
    return "since no outcomes per item are kept for it"


def _scale(records: Sequence[StoredRecord]) -> float:
    """Factor from outcomes, which are fractions of one, to scores, which mostly are percent."""
    return 100.0 if all(stored.record.protocol.resolved.unit == "%" for stored in records) else 1.0


class ReplicateCache:
    """Replicates and paired gains of records by column, each computed once."""

    def __init__(self) -> None:
        self._outcomes: dict[Path, Arrays | None] = {}
        self._replicates: dict[tuple[Path, int], Replicates | None] = {}
        self._means: dict[tuple[tuple[Path, ...], str], Replicates | None] = {}
        self._sizes: dict[Path, tuple[int, int]] = {}
        self._paired: dict[tuple[Path, Path], bool] = {}

    def mean(self, stored: Sequence[StoredRecord], column: str) -> Replicates | None:
        """Replicates of the mean score of several encoders; None unless all have outcomes for it, on the same items."""
        key = tuple(s.path for s in stored), column
        if key not in self._means:
            found = [self._one(s, column) for s in stored]
            whole = [replicate for replicate in found if replicate is not None]
            fit = len(whole) == len(found) > 0 and all(self._same_items(stored[0], other) for other in stored[1:])
            self._means[key] = mean_replicates(whole) if fit else None
        return self._means[key]

    def gain(self, a: Sequence[StoredRecord], b: Sequence[StoredRecord], column: str) -> Gain | None:
        """Gain of the mean of `a` over the mean of `b`; None unless all were measured on the same items."""
        first, second = self.mean(a, column), self.mean(b, column)
        if first is None or second is None or not self._same_items(a[0], b[0]):
            return None
        if a[0].path not in self._sizes:
            self._sizes[a[0].path] = size_of(self._held(a[0]) or {})
        return gain_of(first, second, self._sizes[a[0].path])

    def _one(self, stored: StoredRecord, column: str) -> Replicates | None:
        outcomes = self._held(stored) or {}
        columns = measured_columns(outcomes)
        measured = measured_column(stored.record, column, columns)
        if measured is None or "group_offsets" not in outcomes:
            return None
        if (stored.path, _array(outcomes, measured)) not in self._replicates:
            # weights of a large test set cost more than a metric, so all columns of a page share them
            shown = [c for c in columns if c in stored.record.protocol.resolved.columns and not c.endswith("top-5")]
            self._fill(stored.path, outcomes, list(dict.fromkeys([*shown, measured])))
        return self._replicates[stored.path, _array(outcomes, measured)]

    def _fill(self, path: Path, outcomes: Arrays, columns: list[str]) -> None:
        distinct = {_array(outcomes, column): column for column in columns}
        try:
            found = dict(replicates(outcomes, list(distinct.values())))
        except (KeyError, ValueError, IndexError):  # arrays that do not fit each other
            if len(distinct) > 1:  # the other columns may be usable
                for column in distinct.values():
                    self._fill(path, outcomes, [column])
                return
            found = {}
        for array, column in distinct.items():
            self._replicates[path, array] = found.get(column)

    def _held(self, stored: StoredRecord) -> Arrays | None:
        if stored.path not in self._outcomes:
            self._outcomes[stored.path] = stored.outcomes()
        return self._outcomes[stored.path]

    def _same_items(self, a: StoredRecord, b: StoredRecord) -> bool:
        key = a.path, b.path
        if key not in self._paired:
            first, second = self._held(a), self._held(b)
            try:
                self._paired[key] = first is not None and second is not None and bool(align(second, first))
            except (KeyError, ValueError):
                self._paired[key] = False
        return self._paired[key]


def _array(outcomes: Arrays, column: str) -> int:
    """Identity of the array, held as long as the cache, with a column's outcomes: several columns may share one."""
    return next(id(outcomes[prefix + column]) for prefix in COLUMN_PREFIXES if prefix + column in outcomes)

"""Which differences are more than noise: of the test sample by paired bootstrap, and of the runs where there are some.

The test sample and what differs from run to run (seed, label set, trial) are independent, so their variances add. The
bootstrap also works where there is one run only; the spread over runs counts where both sides have several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median

import numpy as np
from scipy.special import stdtrit  # the quantile of Student's t

from results.bootstrap import CONFIDENCE
from results.cells import Cell
from results.replicates import ReplicateCache
from results.store import StoredRecord

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
    """

    value: float
    low: float
    high: float
    items: int = 0
    sources: int = 0
    runs: tuple[int, int] | None = None

    @property
    def beyond_noise(self) -> bool:
        return self.low > 0 or self.high < 0

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


def runs_of(records: Sequence[StoredRecord], column: str) -> list[float]:
    """A column's value of each run: of several encoders that stand for one, or of the trials within one record.

    A trial is an entry of `Record.runs` with the key `trial` and the values under the names of the columns.
    """
    if len(records) > 1:
        scores = [stored.record.scores.get(column) for stored in records]
        return [score.value for score in scores if score is not None and score.value is not None]
    trials = [run[column] for stored in records for run in stored.record.runs if "trial" in run and column in run]
    return [float(value) for value in trials if isinstance(value, int | float)]


def difference(
    cache: ReplicateCache, a: Sequence[StoredRecord], b: Sequence[StoredRecord], column: str
) -> Difference | None:
    """Of the mean of `a` and the mean of `b`; None where neither outcomes per item nor runs tell how noisy it is."""
    gain = cache.gain(a, b, column)
    scale = _scale([*a, *b])
    runs = runs_of(a, column), runs_of(b, column)
    several = min(map(len, runs)) > 1 and all(stored.intact for stored in (*a, *b))
    spread = 0.0
    if several:
        variances = [float(np.var(side, ddof=1)) / len(side) for side in runs]
        total = sum(variances)
        if total > 0:  # Welch 1947
            freedom = total**2 / sum(v**2 / (len(side) - 1) for v, side in zip(variances, runs, strict=True))
            spread = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * total**0.5
    counts = (len(runs[0]), len(runs[1])) if several else None
    if gain is not None:
        value, low, high = (scale * number for number in (gain.value, gain.low, gain.high))
        low, high = value - float(np.hypot(value - low, spread)), value + float(np.hypot(high - value, spread))
        return Difference(value, low, high, gain.n_items, gain.n_sources, counts)
    if not several:
        return None
    value = float(np.mean(runs[0]) - np.mean(runs[1]))
    return Difference(value, value - spread, value + spread, runs=counts)


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
    first = cells[best]
    marked[best] = Cell(first.value, first.error, first.std, first.text, bold=True)
    return marked


def smallest_detectable(cache: ReplicateCache, rows: Sequence[Sequence[StoredRecord]], column: str) -> float | None:
    """The difference between two rows that just leaves the noise: half the 95 % interval, the median over all pairs.

    Without a pair it is that of two independent encoders with a row's standard error; None where that is not known.
    """
    pairs = [difference(cache, a, b, column) for a, b in combinations(rows, 2)]
    widths = [found.half_width for found in pairs if found is not None]
    if widths:
        return median(widths)
    for row in rows:
        replicate = cache.mean(row, column)
        score = row[0].record.scores.get(column) if len(row) == 1 else None
        if replicate is not None:
            return TWO_SIDED * 2**0.5 * _scale(row) * replicate.standard_error
        if score is not None and score.standard_error is not None:
            return TWO_SIDED * 2**0.5 * score.standard_error
    return None


def detectable_line(found: dict[str, float | None], decimals: int) -> str:
    """As `Smallest detectable difference between two rows (95%): k=10 5.1, k=20 5.3.`, for the header of a table."""
    known = [f"{column} {value:.{decimals}f}" for column, value in found.items() if value is not None]
    if not known:
        return "Smallest detectable difference: not known, the records hold no outcomes per item and no trials."
    return f"Smallest detectable difference between two rows ({CONFIDENCE:.0%}): {', '.join(known)}."


def _scale(records: Sequence[StoredRecord]) -> float:
    """Outcomes are fractions of one, and scores mostly percent."""
    return 100.0 if all(stored.record.protocol.resolved.unit == "%" for stored in records) else 1.0

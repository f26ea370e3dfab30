"""The bootstrap of stored records, computed once per cell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from results.resampling.bootstrap import (
    COLUMN_PREFIXES,
    Gain,
    Replicates,
    align,
    gain_of,
    mean_replicates,
    measured_columns,
    replicates,
    size_of,
)
from results.side_file import measured_column
from results.store import StoredRecord

Arrays = dict[str, NDArray[Any]]


class ReplicateCache:
    """Replicates and paired gains of records, by the columns of their protocols."""

    def __init__(self) -> None:
        self._outcomes: dict[Path, Arrays | None] = {}
        self._replicates: dict[tuple[Path, int], Replicates | None] = {}
        self._means: dict[tuple[tuple[Path, ...], str], Replicates | None] = {}
        self._sizes: dict[Path, tuple[int, int]] = {}
        self._paired: dict[tuple[Path, Path], bool] = {}

    def mean(self, stored: Sequence[StoredRecord], column: str) -> Replicates | None:
        """Of the mean score of several encoders; None unless all have outcomes for the column, on the same items."""
        key = tuple(s.path for s in stored), column
        if key not in self._means:
            found = [self._one(s, column) for s in stored]
            whole = [replicate for replicate in found if replicate is not None]
            fit = len(whole) == len(found) > 0 and all(self._same_items(stored[0], other) for other in stored[1:])
            self._means[key] = mean_replicates(whole) if fit else None
        return self._means[key]

    def gain(self, a: Sequence[StoredRecord], b: Sequence[StoredRecord], column: str) -> Gain | None:
        """Of the mean of `a` over the mean of `b`; None where there is no pairing."""
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
            # the weights of a large test set cost more than a metric, so every column of a page is done with them
            shown = [c for c in columns if c in stored.record.protocol.resolved.columns and not c.endswith("top-5")]
            self._fill(stored.path, outcomes, list(dict.fromkeys([*shown, measured])))
        return self._replicates[stored.path, _array(outcomes, measured)]

    def _fill(self, path: Path, outcomes: Arrays, columns: list[str]) -> None:
        distinct = {_array(outcomes, column): column for column in columns}
        try:
            found = dict(replicates(outcomes, list(distinct.values())))
        except (KeyError, ValueError, IndexError):  # arrays that do not fit each other tell nothing of noise
            if len(distinct) > 1:  # of the others they may
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
    """Which array, held as long as the cache, has a column's outcomes: several columns may share one."""
    return next(id(outcomes[prefix + column]) for prefix in COLUMN_PREFIXES if prefix + column in outcomes)

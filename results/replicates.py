"""The bootstrap of stored records, computed once per cell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from results.bootstrap import Gain, Replicates, align, gain_of, mean_replicates, measured_columns, replicates
from results.side_file import measured_column
from results.store import StoredRecord


class ReplicateCache:
    """Replicates and paired gains of records, by the columns of their protocols."""

    def __init__(self) -> None:
        self._known: dict[tuple[Path, str], Replicates] = {}

    def mean(self, stored: Sequence[StoredRecord], column: str) -> Replicates | None:
        """Of the mean score of several encoders; None unless all have outcomes for the column, on the same items."""
        outcomes = [s.outcomes() for s in stored]
        found = []
        for one, held in zip(stored, outcomes, strict=True):
            if held is None or (replicate := self._one(one, held, column)) is None:
                return None
            found.append(replicate)
        if not found or not _paired([held for held in outcomes if held is not None]):
            return None
        return mean_replicates(found)

    def gain(self, a: Sequence[StoredRecord], b: Sequence[StoredRecord], column: str) -> Gain | None:
        """Of the mean of `a` over the mean of `b`; None where there is no pairing."""
        means = self.mean(a, column), self.mean(b, column)
        if means[0] is None or means[1] is None:
            return None
        examples = [side[0].outcomes() for side in (a, b)]
        first, second = examples
        if first is None or second is None or not _paired([first, second]):
            return None
        return gain_of(means[0], means[1], first)

    def _one(self, stored: StoredRecord, outcomes: dict[str, NDArray[Any]], column: str) -> Replicates | None:
        key = stored.path, column
        if key not in self._known:
            measured = measured_column(stored.record, column, measured_columns(outcomes))
            if measured is None or "group_offsets" not in outcomes:
                return None
            self._known[key] = replicates(outcomes, [measured])[measured]
        return self._known[key]


def _paired(outcomes: Sequence[dict[str, NDArray[Any]]]) -> bool:
    try:
        for other in outcomes[1:]:
            align(other, outcomes[0])
    except (KeyError, ValueError):
        return False
    return True

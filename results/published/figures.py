"""The field's published figures as they were printed, and where each of them belongs among the protocols.

`published.csv` holds the figures. `published_map.csv` says, by source, model, benchmark, data set and metric, under
which protocol and column each was measured, how it was chosen and over how many runs; `unsupported.csv` says why some
belong to no protocol. In these two `*` stands for anything, the first match counts, and unsupported.csv is asked first.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

if TYPE_CHECKING:
    import pandas as pd

PUBLISHED = Path(__file__).parents[1] / "published.csv"
MAP, UNSUPPORTED = PUBLISHED.with_name("published_map.csv"), PUBLISHED.with_name("unsupported.csv")
COLUMNS = ("source", "model", "pretrain_epochs", "benchmark", "dataset", "metric", "value")

Statistic = Literal["value", "mean", "std", "trial", "difference", "layer"]


@dataclass(frozen=True)
class Place:
    """Where a figure belongs.

    Attributes:
        statistic: what the figure is of that column; only a `value` or a `mean` can be compared with a measurement.
        selection: how the figure was chosen, as far as the source says.
        runs: behind the figure; None where the source does not say.
        same_as: ids of protocols that differ from this one in their name and source alone.
        status: `planned` until the protocol can be run.
    """

    protocol: str
    column: str
    statistic: Statistic
    selection: str
    runs: int | None
    same_as: tuple[str, ...]
    status: Literal["runnable", "planned"]
    note: str

    @property
    def benchmark(self) -> str:
        """The protocol's id without variant and revision."""
        return self.protocol.partition(".")[0]


@dataclass(frozen=True)
class Figure:
    """One published number, or word (`feature5`, `n/a`), as it was printed.

    Attributes:
        place: None where it belongs to no protocol, for the `reason` given.
    """

    source: str
    model: str
    epochs: float | None
    benchmark: str
    dataset: str
    metric: str
    text: str
    place: Place | None
    reason: str = ""

    @property
    def number(self) -> float | None:
        try:
            return float(self.text)
        except ValueError:
            return None

    @property
    def decimals(self) -> int:
        """As it was printed."""
        return len(self.text.partition(".")[2])

    def comparable(self, protocol_id: str) -> bool:
        """Whether a measurement under this protocol may be set against it: never one under an override."""
        place = self.place
        return (
            place is not None
            and place.statistic in ("value", "mean")
            and protocol_id in (place.protocol, *place.same_as)
        )


def load_published(path: Path = PUBLISHED) -> pd.DataFrame:
    """One row per published figure.

    Returns:
        text columns `source`, `model`, `benchmark`, `dataset` and `metric`; `pretrain_epochs` (nullable); `value` as
        it was printed, so that 55.70 stays apart from 55.7; `number`, the value as a float, missing where it is none
        ("feature5", "n/a").

    Raises:
        ValueError: the columns are not the expected ones, or an epoch count is no number.
    """
    import pandas as pd

    rows = pd.read_csv(path, dtype="string", keep_default_na=False, na_values={"pretrain_epochs": [""]})
    if tuple(rows.columns) != COLUMNS:
        raise ValueError(f"{path.name} has the columns {', '.join(rows.columns)}, not {', '.join(COLUMNS)}")
    rows["pretrain_epochs"] = pd.to_numeric(rows["pretrain_epochs"]).astype("Float64")
    rows["number"] = pd.to_numeric(rows["value"], errors="coerce").astype("Float64")
    return rows


@cache
def figures() -> tuple[Figure, ...]:
    """Every row of published.csv in its order, with its place.

    Raises:
        ValueError: a row has no place and no reason either.
    """
    places, reasons = _Lookup(_rows(MAP)), _Lookup(_rows(UNSUPPORTED))
    found = []
    for row in _rows(PUBLISHED):
        reason, place = reasons.of(row), None
        if reason is None:
            match = places.of(row)
            if match is None:
                raise ValueError(f"published_map.csv and unsupported.csv know nothing of {' | '.join(row.values())}")
            place = _place(*match)
        found.append(
            Figure(
                source=row["source"],
                model=row["model"],
                epochs=float(row["pretrain_epochs"]) if row["pretrain_epochs"] else None,
                benchmark=row["benchmark"],
                dataset=row["dataset"],
                metric=row["metric"],
                text=row["value"],
                place=place,
                reason="" if reason is None else reason[0]["reason"],
            )
        )
    return tuple(found)


def chosen(
    among: Iterable[Figure], *, source: Iterable[str] = ("*",), model: Iterable[str] = ("*",),
    benchmark: Iterable[str] = ("*",),
) -> list[Figure]:  # fmt: skip
    """The figures whose source, model and benchmark (or protocol id) match one of the patterns each."""
    wanted = [_pattern(patterns) for patterns in (source, model, benchmark)]
    return [
        figure
        for figure in among
        if wanted[0].fullmatch(figure.source)
        and wanted[1].fullmatch(figure.model)
        and any(wanted[2].fullmatch(name) for name in (figure.benchmark, figure.place.protocol if figure.place else ""))
    ]


def _pattern(patterns: Iterable[str]) -> re.Pattern[str]:
    """Of names with brackets and question marks in them: only `*` is special."""
    return re.compile("|".join(re.escape(pattern).replace(r"\*", "(.*)") for pattern in patterns), re.DOTALL)


class _Lookup:
    """The first row of a table of patterns that matches, with what its last `*` stood for."""

    def __init__(self, rows: list[dict[str, str]]) -> None:
        keys = [key for key in ("source", "model", "benchmark", "dataset", "metric") if rows and key in rows[0]]
        self._patterns = [(row, {key: _pattern([row[key]]) for key in keys}) for row in rows]
        self._known: dict[tuple[str, ...], tuple[dict[str, str], str] | None] = {}
        self._keys = keys

    def of(self, figure: Mapping[str, str]) -> tuple[dict[str, str], str] | None:
        key = tuple(figure[name] for name in self._keys)
        if key not in self._known:
            self._known[key] = self._first(figure)
        return self._known[key]

    def _first(self, figure: Mapping[str, str]) -> tuple[dict[str, str], str] | None:
        for row, patterns in self._patterns:
            matches = [pattern.fullmatch(figure[name]) for name, pattern in patterns.items()]
            if all(matches):
                last = matches[-1]
                return row, last.group(1) if last is not None and last.groups() else ""
        return None


def _place(row: dict[str, str], captured: str) -> Place:
    return Place(
        protocol=row["protocol"],
        column=row["column"].replace("*", captured),
        statistic=cast(Statistic, row["statistic"]),
        selection=row["selection"],
        runs=int(row["n"]) if row["n"] else None,
        same_as=tuple(row["same_as"].split()),
        status=cast(Literal["runnable", "planned"], row["status"]),
        note=row["note"],
    )


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))

"""Read the published figures, as they were printed, with the protocol and column that each belongs to.

`published.csv` holds the figures. `published_map.csv` says, by source, model, benchmark, data set and metric, under
which protocol and column each was measured, how it was chosen and over how many runs; `unsupported.csv` says why some
belong to no protocol. In these two `*` stands for any text, the first match counts, and unsupported.csv has precedence.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from results.errors import InputError, did_you_mean
from results.formats import Cell

if TYPE_CHECKING:
    import pandas as pd

PUBLISHED = Path(__file__).with_name("published.csv")
MAP, UNSUPPORTED = PUBLISHED.with_name("published_map.csv"), PUBLISHED.with_name("unsupported.csv")
LETTERS_OF_A_METHOD = 3  # fewest letters of an abbreviated method

Statistic = Literal["value", "mean", "std", "trial", "difference", "layer"]


@dataclass(frozen=True)
class Place:
    """The protocol and column that a figure belongs to.

    Attributes:
        statistic: of that column; only a `value` or a `mean` can be compared with a measurement.
        selection: how the figure was chosen, as far as the source says.
        runs: number of runs behind the figure; None if the source does not say.
        same_as: ids of protocols that differ from this one only in name and source.
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

    @property
    def protocols(self) -> tuple[str, ...]:
        """The protocol's id, and those that differ only in name and source."""
        return self.protocol, *self.same_as

    @property
    def is_score(self) -> bool:
        return self.statistic in ("value", "mean")


@dataclass(frozen=True)
class Figure:
    """One published number, or word (`feature5`, `n/a`), as it was printed.

    Attributes:
        place: None if it belongs to no protocol, for the `reason` given.
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
    def cell(self) -> Cell:
        return Cell(self.number, text=self.text)

    @property
    def epochs_text(self) -> str:
        return "" if self.epochs is None else f"{self.epochs:g}"

    @property
    def decimals(self) -> int:
        return len(self.text.partition(".")[2])

    def fills(self, benchmark: str, column: str, *, layer: bool = False) -> bool:
        """Whether it is the score of a column, or with `layer` names the layer that gave it."""
        place = self.place
        if place is None or (place.benchmark, place.column) != (benchmark, column):
            return False
        return place.statistic == "layer" if layer else place.is_score

    def comparable(self, protocol_id: str) -> bool:
        """Whether a measurement under this protocol may be compared with it; never one under an override."""
        return self.place is not None and self.place.is_score and protocol_id in self.place.protocols


@cache
def figures() -> tuple[Figure, ...]:
    """Every row of published.csv, in its order, with its place.

    Raises:
        ValueError: a row has neither a place nor a reason.
    """
    places, reasons = _Lookup(_rows(MAP)), _Lookup(_rows(UNSUPPORTED))
    found = []
    for row in _rows(PUBLISHED):
        reason, place = reasons.of(row), None
        if reason is None:
            match = places.of(row)
            if match is None:
                about = " | ".join(row.values())
                raise ValueError(f"neither published_map.csv nor unsupported.csv has a row for {about}")
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


def published_figure(model: str, protocol: str | None = None, source: str = "*", column: str | None = None) -> Figure:
    """The one published figure that a model, a protocol or benchmark, a source and a column choose.

    Without a column the first figure of the protocol counts, in the order of published.csv.

    Raises:
        InputError: there is none, or there are several protocols or sources; the message lists the choices.
    """
    known = sorted({figure.model for figure in figures()})
    own = [f for f in figures() if f.model == model or fnmatchcase(f.model, model)]
    if not own:
        raise InputError(f"published.csv has no model {model!r}{did_you_mean(model, known)}")
    own = [f for f in own if f.place is not None and f.number is not None and f.comparable(f.place.protocol)]
    there = own
    own = [f for f in own if fnmatchcase(f.source, source)]
    if protocol is not None:
        wanted = (protocol, f"{protocol}@*")
        own = [f for f in own if f.place and any(
            fnmatchcase(name, text) for name in (f.place.protocol, f.place.benchmark) for text in wanted)]  # fmt: skip
    there = own or there
    if column is not None:
        own = [f for f in own if f.place and f.place.column == column]
    if not own:
        listed = dict.fromkeys(f"{f.place.protocol} {f.place.column} of {f.source}" for f in there if f.place)
        choices = "\n".join(listed) or "none of its figures has a protocol that can be run"
        raise InputError(f"published.csv has no figure of {model} that matches these flags; its figures are\n{choices}")
    for name, values in (
        ("--published", [f.model for f in own]),
        ("--protocol", [f.place.protocol for f in own if f.place]),
    ):
        found = list(dict.fromkeys(values))
        if len(found) > 1:
            raise InputError(f"{model} has several published figures; choose one with {name}:\n" + "\n".join(found))
    same = [f for f in own if f.place and own[0].place and f.place.column == own[0].place.column]
    if len({f.text for f in same}) > 1:  # several sources may print one figure
        choices = "\n".join(f"{f.source}: {f.text}" for f in same)
        raise InputError(f"sources print different figures of {model}; choose one with --source:\n{choices}")
    return same[0]


def _pattern(patterns: Iterable[str]) -> re.Pattern[str]:
    """Pattern in which only `*` is special, because names contain brackets and question marks."""
    return re.compile("|".join(re.escape(pattern).replace(r"\*", "(.*)") for pattern in patterns), re.DOTALL)


class _Lookup:
    """Find the first matching row of a table of patterns, and the text that its last `*` matched."""

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


FIGURE_COLUMNS = {
    "source": "string", "model": "string", "pretrain_epochs": "Float64", "benchmark": "string", "dataset": "string",
    "metric": "string", "value": "string", "number": "Float64", "protocol": "string", "column": "string",
    "statistic": "string", "selection": "string", "runs": "Int64", "status": "string", "reason": "string",
}  # fmt: skip
PLACE_COLUMNS = ("protocol", "column", "statistic", "selection", "runs", "status")


def figures_frame(figures: Iterable[Figure]) -> pd.DataFrame:
    """Published figures with their protocol and column, or the reason why they have none."""
    import pandas as pd

    rows = []
    for figure in figures:
        place = {} if figure.place is None else {name: getattr(figure.place, name) for name in PLACE_COLUMNS}
        about = {"source": figure.source, "model": figure.model, "pretrain_epochs": figure.epochs}
        rows.append(
            {
                **about,
                "benchmark": figure.benchmark,
                "dataset": figure.dataset,
                "metric": figure.metric,
                "value": figure.text,
                "number": figure.number,
                "status": "unsupported",
                "reason": figure.reason,
                **place,
            }
        )
    return pd.DataFrame(rows, columns=list(FIGURE_COLUMNS)).astype(FIGURE_COLUMNS)


@cache
def published_models() -> tuple[str, ...]:
    """The `model` names of published.csv, in its order."""
    return tuple(dict.fromkeys(row["model"] for row in _rows(PUBLISHED)))


@dataclass(frozen=True)
class ModelKey:
    """One model of one method, for names that differ in spelling: sources write a configuration with or without its
    method. `config` is empty if a source names the method alone.
    """

    method: str
    config: str


def letters(text: str) -> str:
    """Lower-case letters and digits of a name, without its punctuation."""
    return re.sub(r"[\W_]+", "", text.lower())


def model_key(model: str) -> ModelKey:
    """Key of a published `model`; `ODC/odc_resnet50_8xb64-steplr-440e_in1k` has the config `resnet50_8xb64-…`."""
    method, _, config = model.partition("/")
    return ModelKey(letters(method), bare_config(config, method))


def bare_config(config: str, method: str) -> str:
    """A configuration's name without the leading method, the data at the end and the file extension."""
    return without_method(re.sub(r"(_in1k)?(\.py)?$", "", config.strip()), method)


def without_method(config: str, method: str) -> str:
    """Drop the method, or an abbreviation of it, from the beginning of a configuration's name."""
    for cut in reversed([found.start() for found in re.finditer(r"[-_]", config)]):
        prefix = letters(config[:cut])
        if len(prefix) >= LETTERS_OF_A_METHOD and letters(method).startswith(prefix):
            return config[cut + 1 :]
    return config

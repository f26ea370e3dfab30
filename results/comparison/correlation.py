"""Which cheap number predicts transfer: rank correlations of every two columns over the encoders that have both.

Encoders are resampled for the intervals, so they speak of other encoders of this kind, not of other test images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau, rankdata

from results.published.figures import Figure
from results.published.models import bare_config
from results.resampling.bootstrap import CONFIDENCE
from results.store import StoredRecord
from results.tables.cells import Cell, Row, Table
from results.tables.groups import FAMILIES
from results.tables.roster import current, roster

RESAMPLES = 2000
FEWEST = 5  # encoders under which an interval would say nothing
# Of a protocol's columns the one that most encoders have, and among equals the first of these.
HEADLINES = ("AvgPool", "k=20", "Feature5", "best_oracle", "embed", "k=96", "AP", "AP50", "AP_box", "mIoU")
LINEAR, DETECTION = "linear_avgpool", "voc0712_det"

Values = dict["Column", dict[str, float]]


@dataclass(frozen=True, order=True)
class Column:
    """A column of a protocol; `protocol` is the first by name of those that differ in their name alone."""

    protocol: str
    name: str
    dataset: str = ""

    @property
    def label(self) -> str:
        return f"{self.protocol} {self.name}" + (f" on {self.dataset}" if self.dataset else "")

    @property
    def benchmark(self) -> str:
        return self.protocol.partition(".")[0]


@dataclass(frozen=True)
class Correlation:
    """Of two columns over the encoders that have both.

    Attributes:
        low, high: percentile interval of Spearman's coefficient; None below `FEWEST` encoders.
        against: pairs of encoders that the two columns put in opposite orders.
        pairs: of encoders with different values in both columns.
    """

    a: Column
    b: Column
    encoders: tuple[str, ...]
    spearman: float
    kendall: float
    low: float | None
    high: float | None
    against: tuple[tuple[str, str], ...]
    pairs: int


def published_values(figures: Iterable[Figure]) -> Values:
    """Column -> model -> figure; the mean where sources of one model differ.

    A model is its method, configuration and epochs, however a source writes them.
    """
    found: dict[Column, dict[str, list[float]]] = {}
    for figure in figures:
        place, number = figure.place, figure.number
        if place is None or number is None or place.statistic not in ("value", "mean"):
            continue
        column = Column(min((place.protocol, *place.same_as)), place.column)
        found.setdefault(column, {}).setdefault(_model(figure), []).append(number)
    return {c: {model: float(np.mean(of)) for model, of in models.items()} for c, models in found.items()}


def measured_values(records: Sequence[StoredRecord], *, embedded: bool) -> Values:
    """Column -> encoder -> score of the newest records; random initialisations of one architecture are one encoder.

    Overridden protocols are left out, and so are columns whose direction is not that higher is better.
    """
    chosen = [s for s in current(records)[0] if s.intact and s.record.dataset.embedded == embedded]
    found: dict[Column, dict[str, list[float]]] = {}
    for entry in roster(chosen):
        for stored in entry.records(chosen):
            record, protocol = stored.record, stored.record.protocol.resolved
            if protocol.overrides or not protocol.higher_is_better:
                continue
            dataset = record.dataset.id if embedded else ""
            for name, score in record.scores.items():
                if score.value is not None:
                    column = Column(protocol.id, name, dataset)
                    found.setdefault(column, {}).setdefault(entry.label, []).append(score.value)
    return {column: {label: float(np.mean(of)) for label, of in rows.items()} for column, rows in found.items()}


def together(published: Values, measured: Values) -> Values:
    """Both, column by column; a measured encoder counts beside the published models."""
    aliases = {Column(c.protocol, c.name): c for c in published}
    merged = {column: dict(models) for column, models in published.items()}
    for column, encoders in measured.items():
        home = aliases.get(column, column)
        merged.setdefault(home, {}).update({f"{label} (measured)": value for label, value in encoders.items()})
    return merged


def headlines(values: Values) -> list[Column]:
    """One column for each protocol and data set, in the order of a model-zoo page."""
    by_protocol: dict[tuple[str, str], list[Column]] = {}
    for column in sorted(values):
        by_protocol.setdefault((column.protocol, column.dataset), []).append(column)

    def rank(column: Column) -> tuple[int, int, str]:
        place = HEADLINES.index(column.name) if column.name in HEADLINES else len(HEADLINES)
        return -len(values[column]), place, column.name

    return sorted((min(columns, key=rank) for columns in by_protocol.values()), key=page_order)


def correlations(values: Mapping[Column, Mapping[str, float]], columns: Sequence[Column]) -> list[Correlation]:
    """Of every two columns that at least three encoders have, and that both tell these apart."""
    found = (_correlation(values, a, b) for a, b in combinations(columns, 2))
    return [correlation for correlation in found if correlation is not None]


def correlation_table(found: Sequence[Correlation], title: str = "Rank correlations") -> Table:
    """A row for each two columns."""
    rows = []
    for one in found:
        interval = "" if one.low is None or one.high is None else f" [{one.low:+.2f}, {one.high:+.2f}]"
        rows.append(
            Row(
                one.a.label,
                (
                    Cell(text=one.b.label),
                    Cell(one.spearman, text=f"{one.spearman:+.2f}{interval}"),
                    Cell(one.kendall, text=f"{one.kendall:+.2f}"),
                    Cell(len(one.encoders), text=str(len(one.encoders))),
                    Cell(len(one.against), text=f"{len(one.against)} of {one.pairs}"),
                ),
            )
        )
    line = (
        f"Over the encoders that have both columns; brackets: {CONFIDENCE:.0%} interval of a bootstrap over encoders, "
        f"not given below {FEWEST} of them. The last column counts the pairs of encoders that the two columns order "
        "against each other."
    )
    return Table(title, (line,), ("Column", "and column", "Spearman", "Kendall", "Encoders", "Pairs against"),
                 tuple(rows))  # fmt: skip


def remark(values: Mapping[Column, Mapping[str, float]]) -> str | None:
    """Whether linear accuracy and VOC detection rise together, which the MoCo v2 note (arXiv:2003.04297) denies.

    Over the encoders of the protocols that the note used; None where fewer than `FEWEST` have both figures.
    """
    sides = [[c for c in values if c.benchmark == name and c.name in wanted] for name, wanted in _REMARKED]
    found = [one for a in sides[0] for b in sides[1] if (one := _correlation(values, a, b)) is not None]
    best = max(found, key=lambda one: len(one.encoders), default=None)
    if best is None or best.low is None or best.high is None:
        return None
    verdict = "does not rise with" if best.against else "rises with"
    text = (
        f"The MoCo v2 note (arXiv:2003.04297) says that linear accuracy is not monotonically related to detection. "
        f"Over {len(best.encoders)} encoders {best.a.label} {verdict} {best.b.label} throughout: Spearman "
        f"{best.spearman:+.2f} [{best.low:+.2f}, {best.high:+.2f}], Kendall {best.kendall:+.2f}, and "
        f"{len(best.against)} of {best.pairs} pairs of encoders stand in opposite orders."
    )
    if best.against:
        first, second = max(best.against, key=lambda pair: _gap(values[best.a], pair) * _gap(values[best.b], pair))
        x, y = values[best.a], values[best.b]
        text += (
            f" The widest: {first} ({x[first]:g} and {y[first]:g}) against {second} ({x[second]:g} and {y[second]:g})."
        )
    return text


_REMARKED = ((LINEAR, ("AvgPool",)), (DETECTION, ("AP",)))


def _gap(column: Mapping[str, float], pair: tuple[str, str]) -> float:
    return abs(column[pair[0]] - column[pair[1]])


def _model(figure: Figure) -> str:
    method, slash, config = figure.model.partition("/")
    name = f"{method}/{bare_config(config, method)}" if slash else figure.model
    return name + (f", {figure.epochs:g} epochs" if figure.epochs and not slash else "")


def page_order(column: Column) -> tuple[int, Column]:
    """Sorts columns as a model-zoo page does."""
    places = [i for i, family in enumerate(FAMILIES) if column.protocol.startswith(family.prefix)]
    return (places[0] if places else len(FAMILIES)), column


def _correlation(values: Mapping[Column, Mapping[str, float]], a: Column, b: Column) -> Correlation | None:
    encoders = tuple(sorted(values[a].keys() & values[b].keys()))
    x, y = (np.array([values[column][encoder] for encoder in encoders]) for column in (a, b))
    if len(encoders) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    orders = np.sign(x[:, None] - x) * np.sign(y[:, None] - y)
    against = tuple((encoders[i], encoders[j]) for i, j in np.argwhere(np.triu(orders) < 0))
    spearman = float(_spearman(x[None], y[None])[0])
    low = high = None
    if len(encoders) >= FEWEST:
        drawn = np.random.default_rng(0).integers(len(encoders), size=(RESAMPLES, len(encoders)))
        tail = (1 - CONFIDENCE) / 2
        low, high = map(float, np.nanquantile(_spearman(x[drawn], y[drawn]), [tail, 1 - tail]))
    kendall = float(kendalltau(x, y).statistic)
    return Correlation(a, b, encoders, spearman, kendall, low, high, against, int(np.triu(orders != 0).sum()))


def _spearman(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """(B, n) and (B, n) to (B,); not a number where a resample has one value throughout."""
    first, second = (ranks - ranks.mean(1, keepdims=True) for ranks in (rankdata(x, axis=1), rankdata(y, axis=1)))
    with np.errstate(invalid="ignore"):
        return (first * second).sum(1) / np.sqrt((first**2).sum(1) * (second**2).sum(1))

"""Compare two encoders in every column that both have, and every two columns over all encoders that have both.

`diff` gives differences with paired intervals of the test sample and the runs. `correlations` gives rank correlations,
to find which cheap number predicts transfer. Their intervals come from resampling trainings: an encoder is one, and the
checkpoints of one run are one together, as they are not independent. They say how far the coefficient would move with
other encoders of this kind, not with other test images.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from results.bootstrap import CONFIDENCE
from results.errors import InputError
from results.families import column_words, family_key, family_of, place_of
from results.formats import Cell, Row, Table, with_interval
from results.noise import Difference, ReplicateCache, difference
from results.plots import LABEL_WIDTH, NothingToDrawError, save_figure
from results.published import Figure, bare_config
from results.rows import (
    EMBEDDED,
    FULL,
    DataKind,
    Group,
    architecture_text,
    current,
    data_kind,
    data_kinds,
    encoder_names,
    grouped,
    matching,
    newest,
    records_by_row,
    refuse_ambiguous,
    table_rows,
)
from results.store import StoredRecord
from results.tables import MARK, score_cell

DIFF_LINE = (
    f"A minus B, with the {CONFIDENCE:.0%} interval of a paired bootstrap over the sources of the test items: both "
    "sides are compared on the same resamples. Where both sides have several runs or drawn sets of labels, the "
    "interval includes their spread. Several encoders on one side are averaged."
)
UNBELIEVED = "unknown: edited or damaged records are not compared"
DIFF_COLUMNS = ("Protocol", "Data", "Column", "A", "B", "A - B", "Verdict", "Items", "Sources")


@dataclass(frozen=True)
class Side:
    """The records that `NAME` or `NAME@COMMIT` stands for: the newest of each encoder, protocol and data set."""

    text: str
    records: tuple[StoredRecord, ...]


def side(records: Sequence[StoredRecord], text: str) -> Side:
    """Select the successful records of the encoders that match a name, a row label or a pattern.

    Args:
        text: `NAME`, or `NAME@COMMIT` for the records of one commit only.

    Raises:
        InputError: no record matches, or those that match are of encoders that must not be averaged.
    """
    successes = [stored for stored in records if stored.record.status == "ok"]
    name, commit = _split(text, successes)
    among = [stored for stored in successes if (stored.record.commit or "").startswith(commit)]
    chosen = current(matching(among, encoder=[name]))[0]
    if not chosen:
        known = ", ".join(sorted({of[-1] for of in encoder_names(successes).values()})) or "none"
        at = f" at commit {commit}" if commit else ""
        raise InputError(f"no encoder matches {name!r}{at}; the records hold {known}")
    refuse_ambiguous(among, [name])
    found = {stored.record.encoder.architecture for stored in chosen}
    if len(found) > 1:
        texts = ", ".join(sorted(map(architecture_text, found)))
        raise InputError(f"{name!r} matches encoders of several architectures, which are never averaged: {texts}")
    return Side(text, tuple(chosen))


def _split(text: str, records: Iterable[StoredRecord]) -> tuple[str, str]:
    """Split `NAME@COMMIT` where a record has this commit; elsewhere the @ belongs to the name."""
    name, at, commit = text.rpartition("@")
    known = any((stored.record.commit or "").startswith(commit) for stored in records)
    if at and re.fullmatch(r"[0-9a-f]{4,40}", commit) and known:
        return name, commit
    return text, ""


def diff(a: Side, b: Side, benchmarks: Sequence[str] = ("*",)) -> list[tuple[DataKind, Table]]:
    """One table for each kind of data on which both sides share a protocol.

    Scores are compared only under the same protocol on the same version of the data.

    Args:
        benchmarks: patterns of benchmark names or protocol ids.
    """
    tables = []
    for kind in data_kinds([*a.records, *b.records]):
        ours, theirs = (_groups(one.records, kind, benchmarks) for one in (a, b))
        cache = ReplicateCache()
        rows = [row for key in ours if key in theirs for row in _diff_rows(cache, ours[key], theirs[key])]
        notes = [
            f"Only {text}: {one[key].example.protocol.id} on {one[key].example.dataset.shown_name}"
            for text, one, other in ((a.text, ours, theirs), (b.text, theirs, ours))
            for key in one
            if key not in other
        ]
        notes += [
            f"{MARK} {text}: {stored.record.protocol.id}: {'; '.join(stored.faults)}"
            for text, one, other in ((a.text, ours, theirs), (b.text, theirs, ours))
            for key in one
            if key in other
            for stored in one[key].records
            if stored.faults
        ]
        if rows:
            title = f"A: {a.text}, B: {b.text}"
            tables.append((kind, Table(title, (DIFF_LINE,), DIFF_COLUMNS, tuple(rows), notes=tuple(notes))))
    return tables


def _groups(records: Sequence[StoredRecord], kind: DataKind, benchmarks: Sequence[str]) -> dict[tuple[str, ...], Group]:
    selected = [stored for stored in matching(records, benchmark=benchmarks) if data_kind(stored.record) == kind]
    return {
        (g.example.protocol.id, g.protocol.content_sha256(), g.example.dataset.fingerprint): g
        for g in grouped(selected, [])
    }


def _diff_rows(cache: ReplicateCache, ours: Group, theirs: Group) -> list[Row]:
    rows, decimals = [], ours.decimals
    family = family_of(ours.protocol.benchmark)
    faulty = any(stored.faults for stored in (*ours.records, *theirs.records))
    label = ours.example.protocol.id + (f" {MARK}" if faulty else "")
    for column in ours.columns:
        a, b = (score_cell(cache, group.records, column).value for group in (ours, theirs))
        if a is None or b is None:
            continue
        found = difference(cache, ours.records, theirs.records, column)
        low, high = (None, None) if found is None else (found.low, found.high)
        gap = with_interval(a - b if found is None else found.value, low, high, decimals)
        better = ours.protocol.higher_is_better != (column in family.opposite)
        says = verdict(found, higher_is_better=None if column in family.undirected else better)
        cells = (
            Cell(text=ours.example.dataset.shown_name),
            Cell(text=column),
            Cell(a, text=f"{a:.{decimals}f}"),
            Cell(b, text=f"{b:.{decimals}f}"),
            Cell(a - b, text=gap),
            Cell(text=UNBELIEVED if faulty else says),
            Cell(text=f"{found.items:,}" if found and found.items else ""),
            Cell(text=f"{found.sources:,}" if found and found.sources else ""),
        )
        rows.append(Row(label, cells))
    return rows


def verdict(found: Difference | None, *, higher_is_better: bool | None) -> str:
    """Which side is better beyond the noise, in words; which is higher where neither direction is better (None)."""
    if found is None:
        return "unknown: no outcomes per item in common, and no repeated runs"
    if not found.beyond_noise:
        return "within the noise"
    if higher_is_better is None:
        return "A is higher" if found.value > 0 else "B is higher"
    return "A is better" if (found.value > 0) == higher_is_better else "B is better"


RESAMPLES = 2000  # of the trainings
MIN_ENCODERS = 5  # trainings; with fewer an interval would be meaningless
# The headline of a protocol is the column that most encoders have; among equals the first of these.
PREFERRED = (
    "AvgPool", "k=20", "Feature5", "best_oracle", "embed", "k=96", "AP", "AP50", "AP_box", "mIoU", "Logistic", "Top-1",
    "RankMe", "LiDAR",
)  # fmt: skip
# Benchmarks that cost a pass over the images and no training: may one of them stand for the others?
CHEAP = ("label_free", "label_free_views", "knn", "ncm")
# The columns of the MoCo v2 note's remark: linear accuracy and VOC detection, by benchmark.
REMARK_COLUMNS = (("linear_avgpool", "AvgPool"), ("voc0712_det", "AP"))

WHITE_TEXT_FROM = 0.72  # correlation beyond which the cell is too dark for black text
MEASURED = " (measured)"  # behind the label of an encoder that stands among published models

Values = dict["Column", dict[str, float]]
Runs = Mapping[str, str]  # label of an encoder -> its training; one that is not listed is a training of its own
NO_RUNS: Runs = MappingProxyType({})


@dataclass(frozen=True, order=True)
class Column:
    """A column of a protocol. Protocols that differ only in their name count as the first of them by name."""

    protocol: str
    name: str
    dataset: str = ""

    @property
    def words(self) -> str:
        """As tables and axes show it: benchmark, variant and column, and the data where not the protocol's own."""
        variant, _, revision = self.protocol.partition(".")[2].partition("@")
        later = "" if revision == "1" else f", revision {revision}"
        rest = self.benchmark.removeprefix(family_key(self.benchmark) or self.benchmark).strip("_").replace("_", " ")
        part = f", {rest}" if rest else ""  # which of a family's benchmarks: a test set of a suite, a schedule
        about = f"{family_of(self.benchmark).title}{part} ({variant}{later}), {column_words(self.name)}"
        return about + (f", {self.dataset}" if self.dataset else "")

    @property
    def benchmark(self) -> str:
        return self.protocol.partition(".")[0]


@dataclass(frozen=True)
class Correlation:
    """The correlation of two columns over the encoders that have both.

    Attributes:
        low, high: percentile interval of Spearman's coefficient; None below `MIN_ENCODERS` trainings.
        discordant: pairs of encoders that the two columns put in opposite orders.
        pairs: number of pairs of encoders that both columns tell apart.
    """

    a: Column
    b: Column
    encoders: tuple[str, ...]
    spearman: float
    kendall: float
    low: float | None
    high: float | None
    discordant: tuple[tuple[str, str], ...]
    pairs: int
    trainings: int


def published_values(figures: Iterable[Figure]) -> Values:
    """Column -> model -> published figure, the mean where the sources of one model differ.

    A model is its method, configuration and epochs, however a source writes them.
    """
    found: dict[Column, dict[str, list[float]]] = {}
    for figure in figures:
        place, number = figure.place, figure.number
        if place is None or number is None or not place.is_score:
            continue
        column = Column(min(place.protocols), place.column)
        found.setdefault(column, {}).setdefault(_model(figure), []).append(number)
    return _means(found)


def _model(figure: Figure) -> str:
    method, slash, config = figure.model.partition("/")
    name = f"{method}/{bare_config(config, method)}" if slash else figure.model
    return name + (f", {figure.epochs:g} epochs" if figure.epochs and not slash else "")


def measured_values(records: Sequence[StoredRecord], *, embedded: bool) -> Values:
    """Column -> encoder -> score of the newest records; random initialisations of one architecture are averaged.

    Leaves out the user's own data, protocols with overrides, and columns in which lower is better.
    """
    kind = EMBEDDED if embedded else FULL
    chosen = [stored for stored in newest(records) if data_kind(stored.record) == kind]
    found: dict[Column, dict[str, list[float]]] = {}
    entries = table_rows(chosen)
    for entry, own in zip(entries, records_by_row(entries, chosen), strict=True):
        for stored in own:
            record, protocol = stored.record, stored.record.protocol.resolved
            if protocol.overrides or not protocol.higher_is_better:
                continue
            dataset = record.dataset.id if embedded else ""
            for name in record.filled_scores:
                column = Column(protocol.id, name, dataset)
                found.setdefault(column, {}).setdefault(entry.label, []).append(float(record.scores[name].value or 0.0))
    return _means(found)


def checkpoint_runs(records: Sequence[StoredRecord]) -> Runs:
    """Label of an encoder, also as `together` marks it -> its training, for checkpoints of one run.

    Checkpoints of one run have the same name but for its epoch, the same initialisation and architecture, and other
    weights.
    """
    runs: dict[str, str] = {}
    for entry in table_rows(newest(records)):
        if not entry.random:
            card = entry.cards[0]
            name = card.name if card.epochs is None else card.name.removesuffix(f", epoch {card.epochs:g}")
            training = f"{name} {card.init or card.weights_sha256} {card.architecture.model_dump_json()}"
            runs |= {entry.label: training, f"{entry.label}{MEASURED}": training}
    return runs


def _means(found: Mapping[Column, Mapping[str, Sequence[float]]]) -> Values:
    return {column: {name: float(np.mean(of)) for name, of in rows.items()} for column, rows in found.items()}


def together(published: Values, measured: Values) -> Values:
    """Published models and measured encoders, column by column; measured names are marked as such."""
    merged = {column: dict(models) for column, models in published.items()}
    for column, encoders in measured.items():
        merged.setdefault(column, {}).update({f"{label}{MEASURED}": value for label, value in encoders.items()})
    return merged


def headlines(values: Values) -> list[Column]:
    """One column for each protocol and data set, in the order of a model-zoo page."""
    by_protocol: dict[tuple[str, str], list[Column]] = {}
    for column in sorted(values):
        by_protocol.setdefault((column.protocol, column.dataset), []).append(column)

    def rank(column: Column) -> tuple[int, int, str]:
        place = PREFERRED.index(column.name) if column.name in PREFERRED else len(PREFERRED)
        return -len(values[column]), place, column.name

    return sorted((min(columns, key=rank) for columns in by_protocol.values()), key=page_order)


def page_order(column: Column) -> tuple[int, Column]:
    """Sort key: the order of a model-zoo page."""
    return place_of(column.protocol.partition(".")[0]), column


def correlations(
    values: Mapping[Column, Mapping[str, float]], columns: Sequence[Column], runs: Runs = NO_RUNS
) -> list[Correlation]:
    """The correlation of every two columns that share at least three encoders and are not constant over them."""
    found = (_correlation(values, a, b, runs) for a, b in combinations(columns, 2))
    return [correlation for correlation in found if correlation is not None]


def cheap_correlations(values: Values, runs: Runs = NO_RUNS, *, every_column: bool = False) -> list[Correlation]:
    """The correlation of every cheap measure with the headline of every other benchmark, or with all its columns.

    All label-free measures count as cheap, and the headlines of nearest neighbours and class means.
    """
    shown = headlines(values)
    cheap = [
        column
        for column in sorted(values, key=page_order)
        if (key := family_key(column.benchmark)) in CHEAP and (column in shown or str(key).startswith("label_free"))
    ]
    asked = sorted(values, key=page_order) if every_column else shown
    others = [column for column in asked if family_key(column.benchmark) not in CHEAP]
    found = (_correlation(values, a, b, runs) for a in cheap for b in others)
    return [correlation for correlation in found if correlation is not None]


def _correlation(
    values: Mapping[Column, Mapping[str, float]], a: Column, b: Column, runs: Runs = NO_RUNS
) -> Correlation | None:
    from scipy.stats import kendalltau

    encoders = tuple(sorted(values[a].keys() & values[b].keys()))
    x, y = (np.array([values[column][encoder] for encoder in encoders]) for column in (a, b))
    if len(encoders) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    orders = np.sign(x[:, None] - x) * np.sign(y[:, None] - y)
    discordant = tuple((encoders[i], encoders[j]) for i, j in np.argwhere(np.triu(orders) < 0))
    low = high = None
    names = [runs.get(encoder, encoder) for encoder in encoders]
    of_training = np.unique(names, return_inverse=True)[1]
    trainings = int(of_training.max()) + 1
    if trainings >= MIN_ENCODERS:
        drawn = np.random.default_rng(0).integers(trainings, size=(RESAMPLES, trainings))
        times = (drawn[:, :, None] == np.arange(trainings)).sum(1)  # how often each training was drawn
        tail = (1 - CONFIDENCE) / 2
        low, high = map(float, np.nanquantile(spearman(x, y, times[:, of_training]), [tail, 1 - tail]))
    return Correlation(
        a=a,
        b=b,
        encoders=encoders,
        spearman=float(spearman(x, y, np.ones((1, len(x))))[0]),
        kendall=float(kendalltau(x, y).statistic),
        low=low,
        high=high,
        discordant=discordant,
        pairs=int(np.triu(orders != 0).sum()),
        trainings=trainings,
    )


def spearman(x: NDArray[np.float64], y: NDArray[np.float64], times: NDArray[Any]) -> NDArray[np.float64]:
    """(B,) Spearman's coefficients of resamples; NaN for a resample in which all values are equal.

    Args:
        x, y: (n,) values.
        times: (B, n) how often a resample holds each of them.
    """
    weights = times.astype(np.float64)
    total = weights.sum(1, keepdims=True)
    centred = []
    for values in (x, y):
        below = (values[:, None] < values) + (values[:, None] == values) / 2
        ranks = weights @ below  # equal values share their mean rank
        centred.append(ranks - (weights * ranks).sum(1, keepdims=True) / total)
    first, second = centred
    with np.errstate(invalid="ignore"):
        spreads = (weights * first**2).sum(1) * (weights * second**2).sum(1)
        return np.where(spreads > 0, (weights * first * second).sum(1) / np.sqrt(spreads), np.nan)


def correlation_table(found: Sequence[Correlation], title: str = "Rank correlations") -> Table:
    rows = []
    for one in found:
        cells = (
            Cell(text=one.b.words),
            Cell(one.spearman, text=with_interval(one.spearman, one.low, one.high, 2)),
            Cell(one.kendall, text=f"{one.kendall:+.2f}"),
            Cell(len(one.encoders), text=_encoders(one)),
            Cell(len(one.discordant), text=f"{len(one.discordant)} of {one.pairs}"),
        )
        rows.append(Row(one.a.words, cells))
    line = (
        f"Over the encoders that have both columns. Brackets: {CONFIDENCE:.0%} interval of a bootstrap over encoders, "
        f"given for at least {MIN_ENCODERS} encoders. Discordant pairs: pairs of encoders that the two columns rank in "
        "opposite orders."
    )
    if any(one.trainings < len(one.encoders) for one in found):
        line += " Checkpoints of one training are resampled together and count as one for the intervals."
    columns = ("First column", "Second column", "Spearman", "Kendall", "Encoders", "Discordant pairs")
    used = dict.fromkeys(
        column.protocol for column in sorted({c for one in found for c in (one.a, one.b)}, key=page_order)
    )
    notes = (f"Protocols: {', '.join(used)}.",) if used else ()
    return Table(title, (line,), columns, tuple(rows), notes=notes)


def _encoders(one: Correlation) -> str:
    """Their number, and that of the trainings if some are checkpoints of one."""
    count = str(len(one.encoders))
    return count if one.trainings == len(one.encoders) else f"{count} from {one.trainings} trainings"


def draw_heat_map(found: Sequence[Correlation], out: Path) -> None:
    """Rank correlations of pairs of columns; each cell prints its coefficient and the number of encoders."""
    if not found:
        raise NothingToDrawError("no two columns have three encoders in common")
    from matplotlib.figure import Figure

    columns = sorted({column for one in found for column in (one.a, one.b)}, key=page_order)
    size = len(columns)
    values = np.full((size, size), np.nan)
    figure = Figure(figsize=(3.4 + 0.68 * size, 2.6 + 0.56 * size), layout="constrained")
    axes = figure.subplots()
    for one in found:
        j, i = sorted((columns.index(one.a), columns.index(one.b)))
        values[i, j] = one.spearman
        axes.text(
            j, i, f"{one.spearman:+.2f}\nn={len(one.encoders)}", ha="center", va="center", fontsize=8,
            color="white" if abs(one.spearman) > WHITE_TEXT_FROM else "#222222"
        )  # fmt: skip
    # Orange to purple through white is safe for colour-blind readers, and the sign is printed in the cell.
    edges = np.arange(size) - 0.5
    mesh = axes.pcolormesh(edges, edges + 1, values[1:, :-1], cmap="PuOr_r", vmin=-1, vmax=1)
    axes.invert_yaxis()
    names = [textwrap.fill(column.words, LABEL_WIDTH) for column in columns]
    axes.set_xticks(range(size - 1), names[:-1], rotation=45, ha="right", fontsize=9)
    axes.set_yticks(range(1, size), names[1:], fontsize=9)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    figure.colorbar(mesh, ax=axes, label="Spearman rank correlation", shrink=0.6)
    save_figure(figure, out)


def remark(values: Mapping[Column, Mapping[str, float]]) -> str | None:
    """Whether linear accuracy and VOC detection rise together; the MoCo v2 note (arXiv:2003.04297) says they do not.

    Of the protocols of the two benchmarks the pair with the most encoders counts. None below `MIN_ENCODERS` encoders.
    """
    sides = [[c for c in values if (c.benchmark, c.name) == wanted] for wanted in REMARK_COLUMNS]
    found = [one for a in sides[0] for b in sides[1] if (one := _correlation(values, a, b)) is not None]
    best = max(found, key=lambda one: len(one.encoders), default=None)
    if best is None or best.low is None or best.high is None:
        return None
    verdict = "do not always rise together" if best.discordant else "always rise together"
    text = (
        "The MoCo v2 note (arXiv:2003.04297) says that linear accuracy is not monotonically related to detection. "
        f"Over {len(best.encoders)} encoders, {best.a.words} and {best.b.words} {verdict}: Spearman "
        f"{with_interval(best.spearman, best.low, best.high, 2)}, Kendall {best.kendall:+.2f}, and "
        f"{len(best.discordant)} of {best.pairs} pairs of encoders are ranked in opposite orders."
    )
    if best.discordant:
        x, y = values[best.a], values[best.b]
        first, second = max(best.discordant, key=lambda pair: _gap(x, pair) * _gap(y, pair))
        text += (
            f" The clearest example: {first} ({x[first]:g} and {y[first]:g}) against {second} ({x[second]:g} and "
            f"{y[second]:g})."
        )
    return text


def _gap(column: Mapping[str, float], pair: tuple[str, str]) -> float:
    return abs(column[pair[0]] - column[pair[1]])

"""Explain why two protocols give one encoder different scores: the contribution of every field that differs.

The records of the protocols in between, with some of A's fields replaced by B's, are corners of a lattice. If every
corner was measured, a field's share of the gap is its Shapley value (Shapley 1953): the mean of its effect over all
orders in which the fields can be switched. If only the stated order and its reverse were measured, the share is the
mean over these two.

A difference from a published score is taken apart the same way: which settings explain how much, and what is left.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations, pairwise
from math import factorial
from pathlib import Path
from typing import Any

import numpy as np

from results.bootstrap import CONFIDENCE, percentile_interval
from results.errors import InputError
from results.families import family_of
from results.files import MAX_TEXT, read_text, write_file
from results.formats import Cell, Row, Table, with_interval
from results.noise import TWO_SIDED, ReplicateCache
from results.plots import LABEL_WIDTH, NothingToDrawError, plain_axes, save_figure, stacked_panels
from results.published import Figure
from results.rows import encoder_names, identity, newest
from results.schema import Protocol, Record
from results.store import StoredRecord

Corner = frozenset[str]  # the steps that have B's values
Steps = Mapping[str, tuple[str, ...]]  # name of a step -> the fields that it switches, mostly one
COLUMN_FIELDS = ("k", "top")  # they decide which columns a protocol has, and change no score


@dataclass(frozen=True)
class Switch:
    """One field, its two values, and the effect on the score of replacing A's value by B's.

    Fields that only go together are one switch: `field`, `a` and `b` list them.

    Attributes:
        forward: effect in the stated order of the fields.
        backward: effect in the reverse order.
        share: its share of the whole gap.
        low, high: interval of the share; None without outcomes per item.
    """

    field: str
    a: str
    b: str
    forward: float
    backward: float
    share: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Explanation:
    """The gap between the scores of one encoder under protocols A and B.

    Attributes:
        orders: number of orders averaged: 2, or n! if every corner was measured.
        records: the records behind it, A's first and B's last.
    """

    encoder: str
    dataset: str
    column: str
    a: str
    b: str
    score_a: float
    score_b: float
    switches: tuple[Switch, ...]
    orders: int
    records: tuple[StoredRecord, ...] = ()
    decimals: int = 2


# ---- which fields differ


def differing(a: Protocol, b: Protocol) -> dict[str, tuple[Any, Any]]:
    """Fields that differ and can change a score: name -> value of A and of B."""
    first, second = fields_of(a), fields_of(b)
    return {
        name: (first.get(name), second.get(name))
        for name in dict.fromkeys((*first, *second))
        if first.get(name) != second.get(name) and name not in COLUMN_FIELDS
    }


def fields_of(protocol: Protocol) -> dict[str, Any]:
    """Splits, geometry and params in one flat dictionary of JSON values."""
    geometry = {f"geometry.{name}": value for name, value in protocol.geometry.model_dump(mode="json").items()}
    splits = {"train_split": protocol.train_split, "test_split": protocol.test_split}
    return {**splits, **geometry, **protocol.model_dump(mode="json")["params"]}


# ---- the explanation


def explanations(
    records: Sequence[StoredRecord], a: str, b: str, column: str | None = None, together: Sequence[str] = ()
) -> list[Explanation]:
    """One explanation for each encoder and data set with records of A, of B and of the protocols in between.

    Args:
        a, b: protocol ids, with their overrides.
        column: a column of both protocols. Default: A's primary column if B has it, else the first common one.
        together: fields that were switched together, as "iterations,steps".

    Raises:
        InputError: no encoder has both, A and B belong to different benchmarks, or a record in between is missing.
    """
    among = newest(records)
    groups: dict[tuple[object, ...], list[StoredRecord]] = {}
    for stored in among:
        record = stored.record
        key = identity(record.encoder), record.dataset.id, record.dataset.fingerprint, record.seeds
        groups.setdefault(key, []).append(stored)
    found, names = [], encoder_names(among)
    for group in groups.values():
        ends = [[s for s in group if s.record.protocol.id == name] for name in (a, b)]
        if all(ends):
            one = _explanation(group, ends[0][-1], ends[1][-1], column, together)
            found.append(replace(one, encoder=names[identity(group[0].record.encoder)][:2][-1]))
    if not found:
        known = ", ".join(sorted({stored.record.protocol.id for stored in among})) or "none"
        raise InputError(f"no encoder has records of both {a} and {b} on the same data; the records hold {known}")
    return found


def _explanation(
    group: Sequence[StoredRecord], a: StoredRecord, b: StoredRecord, column: str | None, together: Sequence[str]
) -> Explanation:
    first, second = a.record.protocol.resolved, b.record.protocol.resolved
    if first.benchmark != second.benchmark:
        raise InputError(f"{first.id} and {second.id} belong to different benchmarks; choose two of one benchmark")
    shown = column or next((c for c in (first.primary, *first.columns) if c in second.columns), None)
    if shown is None or any(stored.record.value(shown) is None for stored in (a, b)):
        which = f"column {column}" if column else "column"
        raise InputError(f"{first.id} and {second.id} have no {which} in common with a score in both records")
    fields = differing(first, second)
    if not fields:
        raise InputError(f"{first.id} and {second.id} do not differ in any field that can change {shown}")
    switched = _steps(fields, together, first, second)
    corners = _corners(group, fields, switched, first, second, shown)
    corners[frozenset()], corners[frozenset(switched)] = a, b
    names = list(switched)
    complete = all(corner in corners for corner in _subsets(names))
    chains = [[frozenset(order[:i]) for i in range(len(names) + 1)] for order in (names, names[::-1])]
    missing = [corner for chain in chains for corner in chain if corner not in corners]
    if missing:
        raise InputError(
            f"{a.record.encoder.name} has no record of {first.id} with {', '.join(sorted(missing[0]))} of {second.id}; "
            f"measure it with: encoder-bench explain --a {first.id} --b {second.id}, and run the command that it prints"
        )
    scores = {corner: float(stored.record.scores[shown].value or 0.0) for corner, stored in corners.items()}
    used = _subsets(names) if complete else list(dict.fromkeys(corner for chain in chains for corner in chain))
    steps = [{next(iter(q - p)): scores[q] - scores[p] for p, q in pairwise(chain)} for chain in chains]
    cache, switches = ReplicateCache(), []
    for name, own in switched.items():
        weights = _shapley_weights(name, names) if complete else _chain_weights(name, chains)
        share = sum(weight * scores[corner] for corner, weight in weights.items())
        low, high = _interval(cache, corners, weights, shown, share)
        of_a, of_b = (_values(protocol, own) for protocol in (first, second))
        switches.append(Switch(name, of_a, of_b, steps[0][name], steps[1][name], share, low, high))
    return Explanation(
        encoder=a.record.encoder.name,
        dataset=a.record.dataset.shown_name,
        column=shown,
        a=first.id,
        b=second.id,
        score_a=scores[frozenset()],
        score_b=scores[frozenset(switched)],
        switches=tuple(switches),
        orders=factorial(len(names)) if complete else 2,
        records=tuple(corners[corner] for corner in sorted(used, key=len)),
    )


def _steps(fields: Mapping[str, object], together: Sequence[str], a: Protocol, b: Protocol) -> Steps:
    """The fields that differ, in their order, as steps: those that were switched together are one."""
    joined = [tuple(name.strip() for name in text.split(",")) for text in together]
    listed = [name for step in joined for name in step]
    for name in listed:
        if name not in fields or listed.count(name) > 1:
            fault = "names it twice" if name in fields else f"{a.id} and {b.id} do not differ in it"
            raise InputError(f"--together {name}: {fault}; the fields are {', '.join(fields)}")
    of_field = {name: step for step in joined for name in step}
    steps = dict.fromkeys(tuple(f for f in fields if f in of_field.get(name, (name,))) for name in fields)
    return {" and ".join(step): step for step in steps}


def _corners(
    group: Sequence[StoredRecord], fields: Mapping[str, tuple[Any, Any]], steps: Steps, a: Protocol, b: Protocol,
    column: str,
) -> dict[Corner, StoredRecord]:  # fmt: skip
    """Records in which every step has A's or B's values, and every other field the common value."""
    shared = fields_of(a)
    found: dict[Corner, StoredRecord] = {}
    for stored in group:
        protocol = stored.record.protocol.resolved
        if protocol.benchmark != a.benchmark or stored.record.value(column) is None:
            continue
        own = fields_of(protocol)
        sides = {step: {own.get(n) == fields[n][1] for n in of} for step, of in steps.items()}
        between = all(own.get(n) in of for n, of in fields.items()) and all(len(s) == 1 for s in sides.values())
        same = all(own.get(n) == v for n, v in shared.items() if n not in fields and n not in COLUMN_FIELDS)
        if between and same and own.keys() <= {*shared, *fields_of(b)}:
            found[frozenset(step for step, (of_b,) in sides.items() if of_b)] = stored
    return found


def _subsets(names: Sequence[str]) -> list[Corner]:
    return [frozenset(chosen) for size in range(len(names) + 1) for chosen in combinations(names, size)]


def _shapley_weights(name: str, names: Sequence[str]) -> dict[Corner, float]:
    """Weights of the corners' scores in the Shapley value of one field."""
    weights: dict[Corner, float] = {}
    for before in _subsets([other for other in names if other != name]):
        weight = factorial(len(before)) * factorial(len(names) - len(before) - 1) / factorial(len(names))
        weights[before | {name}] = weight
        weights[before] = -weight
    return weights


def _chain_weights(name: str, chains: Sequence[Sequence[Corner]]) -> dict[Corner, float]:
    """Weights of the corners' scores in the mean effect of one field over two orders."""
    weights: dict[Corner, float] = {}
    for chain in chains:
        for before, after in pairwise(chain):
            if name in after - before:
                weights[after] = weights.get(after, 0.0) + 0.5
                weights[before] = weights.get(before, 0.0) - 0.5
    return weights


def _interval(
    cache: ReplicateCache, corners: Mapping[Corner, StoredRecord], weights: Mapping[Corner, float], column: str,
    share: float,
) -> tuple[float | None, float | None]:  # fmt: skip
    """Interval of a weighted sum of scores, by paired bootstrap; None unless all have outcomes of the same items."""
    own = [corners[corner] for corner in weights]
    if cache.mean(own, column) is None:
        return None, None
    scale = 100.0 if own[0].record.protocol.resolved.unit == "%" else 1.0
    drawn = [cache.mean([stored], column) for stored in own]
    total = sum(w * one.resampled for w, one in zip(weights.values(), drawn, strict=True) if one is not None)
    centre = sum(w * one.value for w, one in zip(weights.values(), drawn, strict=True) if one is not None)
    low, high = percentile_interval(scale * (np.asarray(total) - centre))
    return share + low, share + high


# ---- in words, as a table, and as a figure

SETTINGS = {
    "geometry.crop": "crop size", "geometry.resize": "resize", "geometry.interpolation": "interpolation",
    "geometry.mode": "resizing mode", "normalise": "normalised features", "temperature": "temperature",
    "train_split": "training images", "test_split": "test images", "features": "layer of the features",
    "costs": "SVM costs tried", "ap_rule": "rule of average precision", "epochs": "epochs",
    "ignore_in_train": "ignored training images",
}  # fmt: skip
IN_HEADING = 3  # settings that a heading names
ENDS, UP, DOWN = "#7f7f7f", "#0072B2", "#D55E00"  # distinct for colour-blind readers; the sign is printed too


def in_words(field: str) -> str:
    """A setting's name for an axis, a heading or a sentence."""
    names = field.split(" and ")  # of settings that were switched together
    return " and ".join(SETTINGS.get(name, name.removeprefix("geometry.").replace("_", " ")) for name in names)


def heading(one: Explanation) -> str:
    """What is explained, without the protocols' ids: the benchmark, its variants, and the settings that differ."""
    family = family_of(one.a.partition(".")[0]).title
    first, second = (_variant(name) for name in (one.a, one.b))
    if first != second:
        return f"{family}: {first} and {second}"
    words = [in_words(switch.field) for switch in one.switches]
    named = " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
    return f"{family}, {first}: effect of {named if len(words) <= IN_HEADING else f'{len(words)} settings'}"


def _variant(name: str) -> str:
    """The variant in a protocol's id, with its revision after the first."""
    variant, _, revision = name.partition("+")[0].partition(".")[2].partition("@")
    return variant if revision in ("", "1") else f"{variant}, revision {revision}"


def explanation_table(one: Explanation) -> Table:
    """A row per field, then the whole gap."""
    form = f"+.{one.decimals}f"
    rows = []
    for switch in one.switches:
        share = Cell(switch.share, text=with_interval(switch.share, switch.low, switch.high, one.decimals))
        steps = (Cell(step, text=f"{step:{form}}") for step in (switch.forward, switch.backward))
        words = in_words(switch.field)
        label = words if words == switch.field else f"{words} ({switch.field})"
        rows.append(Row(label, (Cell(text=switch.a), Cell(text=switch.b), share, *steps)))
    gap = one.score_b - one.score_a
    total = Cell(gap, text=f"{gap:{form}}")
    ends = (Cell(text=f"{one.score_a:.{one.decimals}f}"), Cell(text=f"{one.score_b:.{one.decimals}f}"))
    rows.append(Row("whole gap", (*ends, total, total, total)))
    order = ", ".join(in_words(switch.field) for switch in one.switches)
    how = "this order and its reverse" if one.orders == 2 else f"all {one.orders} orders (Shapley value)"
    lines = (
        f"A: {one.a}; B: {one.b}. {one.encoder} on {one.dataset}, column {one.column}; effects are B minus A.",
        f"Settings are switched from A's value to B's in the order {order}. Share: effect of the setting, averaged "
        f"over {how}, with the {CONFIDENCE:.0%} interval of a paired bootstrap over the sources of the test items. "
        "Where the effects in this order and in reverse differ, the settings interact.",
    )
    columns = ("Setting", "A", "B", "Share", "In this order", "In reverse")
    return Table(heading(one), lines, columns, tuple(rows), one.decimals)


def draw_waterfall(found: Sequence[Explanation], out: Path) -> None:
    """The score under protocol A, the share of every field, and the score under B; a panel per explanation."""
    if not found:
        raise NothingToDrawError("no record has an explained difference between protocols")
    figure, all_axes = stacked_panels([1.4 + 0.55 * (len(one.switches) + 2) for one in found], width=7.5)
    for axes, one in zip(all_axes, found, strict=True):
        shares = [switch.share for switch in one.switches]
        levels = [one.score_a]  # the score after each switch
        for share in shares:
            levels.append(levels[-1] + share)
        steps = [f"{_wrapped(in_words(s.field))}\n{_wrapped(f'{s.a} → {s.b}')}" for s in one.switches]
        labels = ["score under A", *steps, "score under B"]
        lengths, starts = [one.score_a, *shares, one.score_b], [0.0, *levels[:-1], 0.0]
        colours = [ENDS, *(UP if share >= 0 else DOWN for share in shares), ENDS]
        hatches = ["", *("" if share >= 0 else "//" for share in shares), ""]
        axes.barh(range(len(labels)), lengths, left=starts, color=colours, hatch=hatches, edgecolor="white", height=0.6)
        for i, (start, length) in enumerate(zip(starts, lengths, strict=True)):
            text = f"{length:.2f}" if i in (0, len(labels) - 1) else f"{length:+.2f}"
            axes.annotate(text, (max(start, start + length), i), xytext=(4, 0), textcoords="offset points", va="center")
        low, high = min(*levels, one.score_b), max(*levels, one.score_b)
        margin = max(0.2 * (high - low), 0.5)
        axes.set_xlim(low - margin, high + 2 * margin)
        axes.set_yticks(range(len(labels)), labels, fontsize="small")
        axes.invert_yaxis()
        axes.set_xlabel("score (the axis does not start at zero)")
        plain_axes(axes, f"{one.encoder}\n{one.column} on {one.dataset}", grid="x")
    save_figure(figure, out)


def _wrapped(label: str) -> str:
    """A label on several lines, because the id of a protocol lists every changed number."""
    return "\n".join(textwrap.wrap(label.replace("+", " +"), LABEL_WIDTH)).replace(" +", "+")


def _values(protocol: Protocol, names: Sequence[str]) -> str:
    known = fields_of(protocol)
    return " and ".join(_short(known[name]) if name in known else "default" for name in names)


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) > 4:
        return f"{len(value)} values, {min(value):g} to {max(value):g}"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


# ---- questions kept for the report

QUESTIONS_FILE = "explained.jsonl"  # in the folder of the records, which are .json


@dataclass(frozen=True)
class AskedPair:
    """The arguments of `python -m results explain`.

    They are kept in the folder of the records, one per line, so that the report answers them too. The answer is
    computed from the records every time and cannot be out of date.
    """

    a: str
    b: str
    column: str | None = None
    encoder: tuple[str, ...] = ("*",)
    together: tuple[str, ...] = ()


def remember(root: Path, question: AskedPair) -> bool:
    """Add a question to a folder of records; False if it is already there.

    Raises:
        InputError: the file of questions is damaged.
        OSError: the file cannot be written.
    """
    known = remembered(root)
    if question in known:
        return False
    text = "".join(f"{json.dumps(asdict(each), ensure_ascii=False)}\n" for each in (*known, question))
    write_file(root / QUESTIONS_FILE, text)
    return True


def remembered(root: Path) -> list[AskedPair]:
    """The questions of a folder of records, in the order in which they were asked.

    Raises:
        InputError: a line of the file is not a question.
    """
    path = root / QUESTIONS_FILE
    if not path.is_file():
        return []
    found = []
    try:
        text = read_text(path, MAX_TEXT)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no list of questions of `explain` ({error}): remove it") from error
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            asked = json.loads(line)
            listed = {"encoder": tuple(asked["encoder"]), "together": tuple(asked.get("together", ()))}
            question = AskedPair(**{**asked, **listed})
            column = "" if question.column is None else question.column
            names = (question.a, question.b, *question.encoder, *question.together, column)
            if not all(isinstance(name, str) for name in names):
                raise TypeError("a name is not a text")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise InputError(f"{path}, line {number} is not a question of `explain`: remove it ({error})") from None
        found.append(question)
    return found


# ---- a published score and one's own

NAMED = 4  # settings that the sentence names; the table has all


@dataclass(frozen=True)
class Gap:
    """The difference between a measured score and a published figure, taken apart.

    Attributes:
        figure: the published one.
        published: its value.
        as_published: the encoder's score under the published protocol.
        mine: its score under the user's protocol, in the column that the user reports.
        column, mine_column: the published column, and the user's.
        settings: effect of each setting, as (words, points), largest first; they and `selection` add up to
            `mine - as_published`.
        selection: effect of reporting another column, where the user does.
        standard_error: of `as_published`, of the test sample.
        comparable: whether the score was measured on the data of the figure.
    """

    figure: Figure
    published: float
    as_published: float
    mine: float
    column: str
    mine_column: str
    settings: tuple[tuple[str, float], ...]
    selection: float
    standard_error: float | None
    comparable: bool
    dataset: str

    @property
    def explained(self) -> float:
        """What the settings and the choice of the column move the score by."""
        return self.mine - self.as_published

    @property
    def left(self) -> float:
        """What no setting explains: the encoder itself, its input, or the data."""
        return self.as_published - self.published

    @property
    def within_noise(self) -> bool | None:
        """Whether what is left could be the noise of the test sample alone; None if that is not known."""
        return None if self.standard_error is None else abs(self.left) <= TWO_SIDED * self.standard_error


def gap(figure: Figure, published: Record, mine: Record, mine_column: str, explained: Explanation | None) -> Gap:
    """Take the difference apart.

    Args:
        published, mine: the records under the published protocol and under the user's.
        explained: of the figure's column between the two protocols; None where they are the same.
    """
    assert figure.place is not None
    assert figure.number is not None
    column = figure.place.column
    values = [record.scores[name].value for record, name in ((published, column), (mine, column), (mine, mine_column))]
    first, second, last = (float(value) if value is not None else float("nan") for value in values)
    settings = (
        [] if explained is None else [(f"{in_words(s.field)} {s.a} → {s.b}", s.share) for s in explained.switches]
    )
    return Gap(
        figure=figure,
        published=figure.number,
        as_published=first,
        mine=last,
        column=column,
        mine_column=mine_column,
        settings=tuple(sorted(settings, key=lambda one: -abs(one[1]))),
        selection=last - second,
        standard_error=published.scores[column].standard_error,
        comparable=published.dataset.official is not False and not published.dataset.embedded,
        dataset=published.dataset.shown_name,
    )


def sentence(one: Gap, decimals: int = 2) -> str:
    """What explains how much, and what is left."""
    form = f"+.{decimals}f"
    steps = list(one.settings)
    if one.mine_column != one.column:
        steps.append((f"reporting {one.mine_column} instead of {one.column}", one.selection))
    named = "; ".join(f"{words}: {share:{form}}" for words, share in steps[:NAMED])
    rest = steps[NAMED:]
    named += f"; {len(rest)} others: {sum(share for _, share in rest):{form}}" if rest else ""
    settings = f"your settings explain {one.explained:{form}} ({named})" if steps else "no setting differs"
    score = f"{one.mine:.{decimals}f}"
    if not one.comparable:
        return (
            f"The published {one.figure.text} cannot be compared with a score on {one.dataset}; there, "
            f"{settings}, from {one.as_published:.{decimals}f} under the published protocol to {score} under yours."
        )
    total = one.mine - one.published
    direction = "above" if total > 0 else "below"
    noise = {
        None: "; how much of that is noise is not known",
        True: ", which the noise of the test sample alone could give",
        False: ", more than the noise of the test sample",
    }[one.within_noise]
    return (
        f"Your {score} is {abs(total):.{decimals}f} {direction} the published {one.figure.text}: {settings}, and "
        f"{one.left:{form}} is left{noise}."
    )


def advice(one: Gap) -> Sequence[str]:
    """What to do about what is left."""
    if not one.comparable or one.within_noise:
        return ()
    return (
        "What is left is no setting of the protocol. `encoder-bench audit` checks channel order, normalisation and "
        "dead channels; another checkpoint, other training or other images of the data set are the remaining causes.",
    )

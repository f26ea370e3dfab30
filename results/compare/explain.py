"""Explain why two protocols give one encoder different scores: the contribution of every field that differs.

The records of the protocols in between, with some of A's fields replaced by B's, are corners of a lattice. If every
corner was measured, a field's share of the gap is its Shapley value (Shapley 1953): the mean of its effect over all
orders in which the fields can be switched. If only the stated order and its reverse were measured, the share is the
mean over these two.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations, pairwise
from math import factorial
from pathlib import Path
from typing import Any

import numpy as np

from results.bootstrap import CONFIDENCE
from results.errors import InputError
from results.files import write_file
from results.formats import Cell, Row, Table
from results.noise import ReplicateCache
from results.rows import current, encoder_names, identity
from results.schema import Protocol
from results.store import StoredRecord

Corner = frozenset[str]  # the fields that have B's value
COLUMN_FIELDS = ("k", "top")  # they decide which columns a protocol has, and change the score of none


@dataclass(frozen=True)
class Switch:
    """One field, its two values, and the effect on the score of replacing A's value by B's.

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


def explanations(records: Sequence[StoredRecord], a: str, b: str, column: str | None = None) -> list[Explanation]:
    """One explanation for each encoder and data set with records of A, of B and of the protocols in between.

    Args:
        a, b: protocol ids, with their overrides.
        column: a column of both protocols. Default: A's primary column if B has it, else the first common one.

    Raises:
        InputError: no encoder has both, A and B belong to different benchmarks, or a record in between is missing.
    """
    newest = [stored for stored in current(records)[0] if stored.intact]
    groups: dict[tuple[object, ...], list[StoredRecord]] = {}
    for stored in newest:
        record = stored.record
        key = identity(record.encoder), record.dataset.id, record.dataset.fingerprint, record.seeds
        groups.setdefault(key, []).append(stored)
    found, names = [], encoder_names(newest)
    for group in groups.values():
        ends = [[s for s in group if s.record.protocol.id == name] for name in (a, b)]
        if all(ends):
            one = _explanation(group, ends[0][-1], ends[1][-1], column)
            found.append(replace(one, encoder=names[identity(group[0].record.encoder)][:2][-1]))
    if not found:
        known = ", ".join(sorted({stored.record.protocol.id for stored in newest})) or "none"
        raise InputError(f"no encoder has records of both {a} and {b} on the same data; the records hold {known}")
    return found


def _explanation(group: Sequence[StoredRecord], a: StoredRecord, b: StoredRecord, column: str | None) -> Explanation:
    first, second = a.record.protocol.resolved, b.record.protocol.resolved
    if first.benchmark != second.benchmark:
        raise InputError(f"{first.id} and {second.id} belong to different benchmarks; choose two of one benchmark")
    shown = column or next((c for c in (first.primary, *first.columns) if c in second.columns), None)
    if shown is None or not all(shown in stored.record.scores for stored in (a, b)):
        which = f"column {column}" if column else "column"
        raise InputError(f"{first.id} and {second.id} have no {which} in common with a score in both records")
    fields = differing(first, second)
    if not fields:
        raise InputError(f"{first.id} and {second.id} do not differ in any field that can change {shown}")
    corners = _corners(group, fields, first, second, shown)
    corners[frozenset()], corners[frozenset(fields)] = a, b
    names = list(fields)
    complete = all(corner in corners for corner in _subsets(names))
    chains = [[frozenset(order[:i]) for i in range(len(names) + 1)] for order in (names, names[::-1])]
    missing = [corner for chain in chains for corner in chain if corner not in corners]
    if missing:
        raise InputError(
            f"{a.record.encoder.name} has no record of {first.id} with {', '.join(sorted(missing[0]))} of {second.id}; "
            f"measure it with: encoder-bench explain --a {first.id} --b {second.id}"
        )
    scores = {corner: float(stored.record.scores[shown].value or 0.0) for corner, stored in corners.items()}
    used = _subsets(names) if complete else list(dict.fromkeys(corner for chain in chains for corner in chain))
    steps = [{next(iter(q - p)): scores[q] - scores[p] for p, q in pairwise(chain)} for chain in chains]
    cache, switches = ReplicateCache(), []
    for name, (ours, theirs) in fields.items():
        weights = _shapley_weights(name, names) if complete else _chain_weights(name, chains)
        share = sum(weight * scores[corner] for corner, weight in weights.items())
        low, high = _interval(cache, corners, weights, shown, share)
        of_a, of_b = (_short(v) if name in fields_of(p) else "default" for v, p in ((ours, first), (theirs, second)))
        switches.append(Switch(name, of_a, of_b, steps[0][name], steps[1][name], share, low, high))
    return Explanation(
        encoder=a.record.encoder.name,
        dataset=a.record.dataset.shown_name,
        column=shown,
        a=first.id,
        b=second.id,
        score_a=scores[frozenset()],
        score_b=scores[frozenset(fields)],
        switches=tuple(switches),
        orders=factorial(len(names)) if complete else 2,
        records=tuple(corners[corner] for corner in sorted(used, key=len)),
    )


def _corners(
    group: Sequence[StoredRecord], fields: Mapping[str, tuple[Any, Any]], a: Protocol, b: Protocol, column: str
) -> dict[Corner, StoredRecord]:
    """Records in which every differing field has A's or B's value, and every other field the common value."""
    shared = fields_of(a)
    found: dict[Corner, StoredRecord] = {}
    for stored in group:
        protocol = stored.record.protocol.resolved
        score = stored.record.scores.get(column)
        if protocol.benchmark != a.benchmark or score is None or score.value is None:
            continue
        own = fields_of(protocol)
        between = all(own.get(name) in values for name, values in fields.items())
        same = all(own.get(n) == v for n, v in shared.items() if n not in fields and n not in COLUMN_FIELDS)
        if between and same and own.keys() <= {*shared, *fields_of(b)}:
            found[frozenset(name for name, (_, theirs) in fields.items() if own.get(name) == theirs)] = stored
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
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(scale * (np.asarray(total) - centre), [tail, 1 - tail])
    return share + float(low), share + float(high)


# ---- as a table


def explanation_table(one: Explanation) -> Table:
    """A row per field, then the whole gap."""
    form = f"+.{one.decimals}f"
    rows = []
    for switch in one.switches:
        interval = "" if switch.low is None or switch.high is None else f" [{switch.low:{form}}, {switch.high:{form}}]"
        share = Cell(switch.share, text=f"{switch.share:{form}}{interval}")
        steps = (Cell(step, text=f"{step:{form}}") for step in (switch.forward, switch.backward))
        rows.append(Row(switch.field, (Cell(text=switch.a), Cell(text=switch.b), share, *steps)))
    gap = one.score_b - one.score_a
    total = Cell(gap, text=f"{gap:{form}}")
    ends = (Cell(text=f"{one.score_a:.{one.decimals}f}"), Cell(text=f"{one.score_b:.{one.decimals}f}"))
    rows.append(Row("whole gap", (*ends, total, total, total)))
    order = ", ".join(switch.field for switch in one.switches)
    how = "this order and its reverse" if one.orders == 2 else f"all {one.orders} orders (Shapley value)"
    lines = (
        f"A: {one.a}; B: {one.b}. {one.encoder} on {one.dataset}, column {one.column}; effects are B minus A.",
        f"Fields are switched from A's value to B's in the order {order}. Share: effect of the field, averaged over "
        f"{how}, with the {CONFIDENCE:.0%} interval of a paired bootstrap over the sources of the test items. Where "
        "the effects in this order and in reverse differ, the fields interact.",
    )
    columns = ("Field", "A", "B", "Share", "In this order", "In reverse")
    return Table(f"{one.a} against {one.b}", lines, columns, tuple(rows), one.decimals)


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) > 4:
        return f"{len(value)} values, {min(value):g} to {max(value):g}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
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
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            asked = json.loads(line)
            question = AskedPair(**{**asked, "encoder": tuple(asked["encoder"])})
            if not all(isinstance(text, str) for text in (question.a, question.b, *question.encoder)):
                raise TypeError("a name is not a text")
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path}, line {number} is not a question of `explain`: remove it ({error})") from None
        found.append(question)
    return found

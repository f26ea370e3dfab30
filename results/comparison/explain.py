"""Why two protocols give one encoder two scores: what each field that they differ in contributes.

The records of the protocols in between, with some of A's fields replaced by B's, are corners of a lattice. Where all
corners are there, a field's share is its Shapley value (Shapley 1953): the mean of its effect over all orders in which
the fields could be switched. Where only two chains through the lattice are there, it is the mean over these two orders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import factorial
from typing import Any

import numpy as np

from results.errors import InputError
from results.resampling.bootstrap import CONFIDENCE
from results.schema import Protocol
from results.store import StoredRecord
from results.tables.cells import Cell, Row, Table
from results.tables.replicates import ReplicateCache
from results.tables.roster import current, identity

Corner = frozenset[str]
NAMING = ("k", "top")  # fields that say which columns there are, and change no column


@dataclass(frozen=True)
class Switch:
    """One field: its two values, and what turning A's into B's does to the score.

    Attributes:
        forward: its step in the stated order of the fields.
        backward: its step in the reverse of that order.
        share: of the whole gap; `low` and `high` its interval, where the records have outcomes per item.
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
    """The whole gap between two scores of one encoder.

    Attributes:
        orders: 2 where only two chains were measured, else n!.
        records: those that it rests on, A's first and B's last.
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


def explanations(records: Sequence[StoredRecord], a: str, b: str, column: str | None = None) -> list[Explanation]:
    """One for each encoder and data set that has records of both protocols and of those between.

    Args:
        a: protocol id, with its overrides.
        b: likewise.
        column: one that both have; A's primary one, or else the first common one, where this is None.

    Raises:
        InputError: no encoder has both, the two are of different benchmarks, or those between are missing.
    """
    newest = [stored for stored in current(records)[0] if stored.intact]
    groups: dict[tuple[object, ...], list[StoredRecord]] = {}
    for stored in newest:
        record = stored.record
        key = identity(record.encoder), record.dataset.id, record.dataset.fingerprint, record.seeds
        groups.setdefault(key, []).append(stored)
    found = []
    for group in groups.values():
        ends = [[s for s in group if s.record.protocol.id == name] for name in (a, b)]
        if all(ends):
            found.append(_explained(group, ends[0][-1], ends[1][-1], column))
    if not found:
        known = ", ".join(sorted({stored.record.protocol.id for stored in newest})) or "none"
        raise InputError(f"no encoder has records of both {a} and {b} on the same data; the records hold {known}")
    return found


def differing(a: Protocol, b: Protocol) -> dict[str, tuple[Any, Any]]:
    """Fields that can move a number and that the two do not share: name -> both values."""
    first, second = fields_of(a), fields_of(b)
    return {
        name: (first.get(name), second.get(name))
        for name in dict.fromkeys((*first, *second))
        if first.get(name) != second.get(name) and name not in NAMING
    }


def fields_of(protocol: Protocol) -> dict[str, Any]:
    """Splits, geometry and `params`, flat."""
    geometry = {f"geometry.{name}": value for name, value in protocol.geometry.model_dump(mode="json").items()}
    splits = {"train_split": protocol.train_split, "test_split": protocol.test_split}
    return {**splits, **geometry, **protocol.model_dump(mode="json")["params"]}


def explanation_table(one: Explanation) -> Table:
    """A row per field, then the whole gap."""
    form = f"+.{one.decimals}f"
    rows = []
    for switch in one.switches:
        interval = "" if switch.low is None or switch.high is None else f" [{switch.low:{form}}, {switch.high:{form}}]"
        numbers = (switch.forward, switch.backward)
        rows.append(
            Row(
                switch.field,
                (Cell(text=switch.a), Cell(text=switch.b), Cell(switch.share, text=f"{switch.share:{form}}{interval}"),
                 *(Cell(number, text=f"{number:{form}}") for number in numbers)),
            )
        )  # fmt: skip
    gap = one.score_b - one.score_a
    total = Cell(gap, text=f"{gap:{form}}")
    ends = (Cell(text=f"{one.score_a:.{one.decimals}f}"), Cell(text=f"{one.score_b:.{one.decimals}f}"))
    rows.append(Row("all of it", (*ends, total, total, total)))
    order = ", ".join(switch.field for switch in one.switches)
    how = "two orders, this one and its reverse" if one.orders == 2 else f"all {one.orders} orders (Shapley value)"
    lines = (
        f"A: {one.a}, B: {one.b}; {one.encoder} on {one.dataset}, column {one.column}, B minus A.",
        f"Switched in the order {order}. Share: mean effect over {how}, with the {CONFIDENCE:.0%} interval of a paired "
        "bootstrap over the sources of the test items. Where the two orders differ, fields act together.",
    )
    columns = ("Field", "A", "B", "Share", "In this order", "In reverse")
    return Table(f"{one.a} against {one.b}", lines, columns, tuple(rows), one.decimals)


def _explained(group: Sequence[StoredRecord], a: StoredRecord, b: StoredRecord, column: str | None) -> Explanation:
    first, second = a.record.protocol.resolved, b.record.protocol.resolved
    if first.benchmark != second.benchmark:
        raise InputError(f"{first.id} and {second.id} are not protocols of one benchmark")
    shown = column or next((c for c in (first.primary, *first.columns) if c in second.columns), None)
    if shown is None or not all(shown in stored.record.scores for stored in (a, b)):
        raise InputError(f"{first.id} and {second.id} have no column {column or ''} in common that both measured")
    fields = differing(first, second)
    if not fields:
        raise InputError(f"{first.id} and {second.id} differ in nothing that can move {shown}")
    corners = _corners(group, fields, first, second, shown)
    corners[frozenset()], corners[frozenset(fields)] = a, b
    names = list(fields)
    whole = all(corner in corners for corner in _subsets(names))
    chains = [[frozenset(order[:i]) for i in range(len(names) + 1)] for order in (names, names[::-1])]
    missing = [corner for chain in chains for corner in chain if corner not in corners]
    if missing:
        raise InputError(
            f"{a.record.encoder.name} has no record of {first.id} with {', '.join(sorted(missing[0]))} of {second.id}: "
            f"run python -m benchmarks explain --a {first.id} --b {second.id}"
        )
    scores = {corner: float(stored.record.scores[shown].value or 0.0) for corner, stored in corners.items()}
    shown_corners = _subsets(names) if whole else list(dict.fromkeys(c for chain in chains for c in chain))
    used = [corners[corner] for corner in sorted(shown_corners, key=len)]
    steps = [{next(iter(q - p)): scores[q] - scores[p] for p, q in pairwise(c)} for c in chains]
    cache, switches = ReplicateCache(), []
    for name, (ours, theirs) in fields.items():
        weights = _shapley(name, names) if whole else _two_chains(name, chains)
        share = sum(weight * scores[corner] for corner, weight in weights.items())
        low, high = _interval(cache, corners, weights, shown, share)
        of_a, of_b = (_short(v) if name in fields_of(p) else "default" for v, p in ((ours, first), (theirs, second)))
        switches.append(Switch(name, of_a, of_b, steps[0][name], steps[1][name], share, low, high))
    return Explanation(
        a.record.encoder.name, a.record.dataset.id, shown, first.id, second.id, scores[frozenset()],
        scores[frozenset(fields)], tuple(switches), factorial(len(names)) if whole else 2, tuple(used),
    )  # fmt: skip


def _corners(
    group: Sequence[StoredRecord], fields: Mapping[str, tuple[Any, Any]], a: Protocol, b: Protocol, column: str
) -> dict[Corner, StoredRecord]:
    """Records whose every field has the value of A or of B, by the set of those that have B's."""
    shared = fields_of(a)
    found: dict[Corner, StoredRecord] = {}
    for stored in group:
        protocol = stored.record.protocol.resolved
        score = stored.record.scores.get(column)
        if protocol.benchmark != a.benchmark or score is None or score.value is None:
            continue
        own = fields_of(protocol)
        between = all(own.get(name) in values for name, values in fields.items())
        same = all(own.get(n) == v for n, v in shared.items() if n not in fields and n not in NAMING)
        if between and same and own.keys() <= {*shared, *fields_of(b)}:
            found[frozenset(name for name, (_, theirs) in fields.items() if own.get(name) == theirs)] = stored
    return found


def _subsets(names: Sequence[str]) -> list[Corner]:
    return [frozenset(chosen) for size in range(len(names) + 1) for chosen in combinations(names, size)]


def _shapley(name: str, names: Sequence[str]) -> dict[Corner, float]:
    """Weights of the corners' scores in the Shapley value of one field."""
    weights: dict[Corner, float] = {}
    for before in _subsets([other for other in names if other != name]):
        weight = factorial(len(before)) * factorial(len(names) - len(before) - 1) / factorial(len(names))
        weights[before | {name}] = weight
        weights[before] = -weight
    return weights


def _two_chains(name: str, chains: Sequence[Sequence[Corner]]) -> dict[Corner, float]:
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
    """Of a weighted sum of scores on the same test items; nothing where their outcomes are not all there."""
    own = [corners[corner] for corner in weights]
    if cache.mean(own, column) is None:  # on the same items, each with outcomes
        return None, None
    scale = 100.0 if own[0].record.protocol.resolved.unit == "%" else 1.0
    drawn = [cache.mean([stored], column) for stored in own]
    total = sum(w * one.resampled for w, one in zip(weights.values(), drawn, strict=True) if one is not None)
    centre = sum(w * one.value for w, one in zip(weights.values(), drawn, strict=True) if one is not None)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(scale * (np.asarray(total) - centre), [tail, 1 - tail])
    return share + float(low), share + float(high)


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) > 4:
        return f"{len(value)} values, {min(value):g} to {max(value):g}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "none" if value is None else str(value)

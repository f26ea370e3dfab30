"""`encoder-bench explain` and `why`: take the difference of two scores of one encoder apart.

Both measure the encoder under two protocols and under those between them, on shared features. Every field that the two
do not share is switched by itself, or with those that it cannot be without, and where the steps are few every other set
of them too; where they are many, one after the other and once more in reverse. `python -m results explain` reads the
records.

For `why` the first protocol is that of a published figure. Settings do not explain what remains between the figure and
the encoder's score under that protocol.
"""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from pydantic import ValidationError

from benchmarks.registry import find_protocol, with_settings
from benchmarks.task import InputError, RunOptions
from results.explain import differing
from results.schema import Protocol, Record

if TYPE_CHECKING:
    from benchmarks.encoders.encoder import Encoder

log = logging.getLogger("benchmarks")

ALL_SETS_UP_TO = 3  # fields: 8 protocols; a fourth would double that
GEOMETRY = "geometry."  # before the name of one of its fields
SPLITS = ("train_split", "test_split")
Step = tuple[str, ...]  # fields that are switched together
Fields = Mapping[str, tuple[Any, Any]]  # name of a field that differs -> its values in A and in B


@dataclass(frozen=True)
class ExplainFlags:
    """Measure an encoder under two protocols of one benchmark and under those between them; one record for each."""

    a: str
    """protocol id, such as knn.mmselfsup@1"""
    b: str
    """the protocol to compare with"""
    encoder: str
    """encoder, in any form that --encoder of a benchmark takes"""
    data: Path = Path("work/data")
    """root of the data sets"""
    set_a: tuple[str, ...] = ()
    """settings of A to change, such as temperature=0.2 geometry.crop=192"""
    set_b: tuple[str, ...] = ()
    """settings of B to change"""
    dataset: str | None = None
    """data set to use instead of the protocols', such as drawings"""
    name: str | None = None
    """name of the encoder in tables"""
    facts: tuple[str, ...] = ()
    """facts that the checkpoint's keys do not show, such as channels=BGR"""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """print the protocols, and stop"""


def explain_command(
    flags: Annotated[ExplainFlags, tyro.conf.arg(name="")], options: Annotated[RunOptions, tyro.conf.arg(name="")]
) -> int:
    """Measure an encoder under two protocols of one benchmark and under those between them; one record for each."""
    first, second = (
        with_settings(find_protocol(one), changes) for one, changes in ((flags.a, flags.set_a), (flags.b, flags.set_b))
    )
    steps = switching_steps(first, second)
    protocols = _protocols(first, second, steps)
    if flags.dry_run:
        sys.stdout.write("".join(f"would run {protocol.id}\n" for protocol in protocols))
        return 0
    from benchmarks.evaluate import load, require_writable

    require_writable(options)
    encoder = load(flags.encoder, flags.name, flags.facts)
    records = measure_protocols(encoder, protocols, flags.data, flags.dataset, options)
    ends = [record.protocol.id for record in (records[0], records[-1])]
    joined = together(steps)
    more = f" --together {shlex.join(joined)}" if joined else ""
    sys.stdout.write(f"python -m results explain {shlex.join(ends)} --records {options.records}{more}\n")
    return 0


@dataclass(frozen=True)
class WhyFlags:
    """Explain why a score differs from a published one: how much each setting contributes, and what remains."""

    encoder: tyro.conf.Positional[str]
    """encoder, in any form that --encoder of a benchmark takes"""
    published: str
    """model of published.csv, as `encoder-bench published` lists them, or a pattern"""
    data: Path = Path("work/data")
    """root of the data sets"""
    protocol: str | None = None
    """protocol or benchmark of the published figure, if the model has several, such as knn.mmselfsup@1 or knn"""
    source: str = "*"
    """source of the published figure, if there are several"""
    column: str | None = None
    """column of the published figure; default: the first"""
    mine: str | None = None
    """your protocol; default: the published one"""
    settings: Annotated[tuple[str, ...], tyro.conf.arg(name="set")] = ()
    """settings of your protocol that differ, such as temperature=0.2 geometry.crop=192 epochs=10"""
    mine_column: str | None = None
    """the column that you report, such as feature5; default: the published one"""
    dataset: str | None = None
    """data set to use instead of the protocol's, such as drawings; it is not compared with published figures"""
    name: str | None = None
    """name of the encoder in tables"""
    facts: tuple[str, ...] = ()
    """facts that the checkpoint's keys do not show, such as channels=BGR"""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """print the published figure and the protocols, and stop"""


def why_command(
    flags: Annotated[WhyFlags, tyro.conf.arg(name="")], options: Annotated[RunOptions, tyro.conf.arg(name="")]
) -> int:
    """Explain why a score differs from a published one: how much each setting contributes, and what remains."""
    from results.published import published_figure

    figure = published_figure(flags.published, flags.protocol, flags.source, flags.column)
    assert figure.place is not None
    first = find_protocol(figure.place.protocol)
    second = with_settings(find_protocol(flags.mine) if flags.mine else first, flags.settings)
    if first.benchmark != second.benchmark:
        raise InputError(f"the published figure belongs to {first.id}, but {second.id} is a different benchmark")
    column = figure.place.column
    mine_column = flags.mine_column or column
    for protocol, wanted in ((first, column), (second, column), (second, mine_column)):
        if wanted not in protocol.columns:
            raise InputError(f"{protocol.id} has no column {wanted}; it has {', '.join(protocol.columns)}")
    protocols = between(first, second) if differing(first, second) else [first]
    sys.stdout.write(f"published  {figure.text} {column} of {figure.model}, {first.id}: {figure.source}\n")
    if flags.dry_run:
        sys.stdout.write("".join(f"would run  {protocol.id}\n" for protocol in protocols))
        return 0
    from benchmarks.evaluate import load, require_writable
    from results.explain import advice, explanation_table, explanations, gap, sentence
    from results.formats import markdown
    from results.store import read_records

    require_writable(options)
    encoder = load(flags.encoder, flags.name, flags.facts)
    records = measure_protocols(encoder, protocols, flags.data, flags.dataset, options)
    ends = (records[0], records[-1])
    for record, wanted in ((ends[0], column), (ends[1], column), (ends[1], mine_column)):
        if record.value(wanted) is None:
            raise InputError(f"{encoder.card.name} has no score in the column {wanted} of {record.protocol.id}")
    explained = None
    if len(records) > 1:
        # Of this encoder, data and seed alone: the folder may hold others of the same name.
        known = {record.sha256 for record in records}
        own = [stored for stored in read_records(options.records)[0] if stored.record.sha256 in known]
        (explained,) = explanations(
            own, ends[0].protocol.id, ends[1].protocol.id, column, together(switching_steps(first, second))
        )
        sys.stdout.write(markdown(explanation_table(explained)) + "\n")
    found = gap(figure, *ends, mine_column, explained)
    for line in (sentence(found), *advice(found)):
        sys.stdout.write(f"{line}\n")
    return 0


def together(steps: Sequence[Step]) -> tuple[str, ...]:
    """The steps of several fields, as `results explain` takes them."""
    return tuple(",".join(step) for step in steps if len(step) > 1)


def measure_protocols(
    encoder: Encoder, protocols: Sequence[Protocol], data: Path, dataset: str | None, options: RunOptions
) -> list[Record]:
    """The encoder's record under each protocol."""
    from benchmarks.evaluate import evaluate, primary_score, resolve_device

    options, records = replace(options, device=resolve_device(options.device)), []
    for number, protocol in enumerate(protocols, start=1):
        record = evaluate(encoder, protocol, data, dataset=dataset, options=options)
        records.append(record)
        log.info("%d of %d  %s  %s", number, len(protocols), record.protocol.id, primary_score(record))
    return records


def between(a: Protocol, b: Protocol) -> list[Protocol]:
    """A, the protocols with some of its fields replaced by B's, and B.

    Raises:
        InputError: of two benchmarks, with no column in common, or the same in everything that matters.
    """
    return _protocols(a, b, switching_steps(a, b))


def _protocols(a: Protocol, b: Protocol, steps: Sequence[Step]) -> list[Protocol]:
    fields = _differing(a, b)
    return [a, *(_switched(a, fields, names) for names in _corners(steps)), b]


def switching_steps(a: Protocol, b: Protocol) -> list[Step]:
    """The fields that differ, in the order in which they are switched.

    Fields that cannot be switched one by one are one step: a training's length and the drops of its rate, which would
    lie beyond its end, or a grid of rates and the held-out part that chooses among them.

    Raises:
        InputError: see `between`.
    """
    if a.benchmark != b.benchmark or a.harness != b.harness:
        raise InputError(f"{a.id} and {b.id} belong to different benchmarks; choose two protocols of one benchmark")
    if not set(a.columns) & set(b.columns):
        raise InputError(f"{a.id} and {b.id} have no column in common: {', '.join(a.columns)}; {', '.join(b.columns)}")
    fields = _differing(a, b)
    if not fields:
        raise InputError(f"{a.id} and {b.id} do not differ in anything that affects a score")
    _switched(a, fields, list(fields))
    steps: list[Step] = [(name,) for name in fields]
    while tied := _tied(a, b, fields, steps):
        steps = list(dict.fromkeys(tuple(f for f in fields if f in tied) if set(s) <= tied else s for s in steps))
    return steps


def _corners(steps: Sequence[Step]) -> list[list[str]]:
    """The fields that each protocol in between has of B: of every set of few steps, else of two orders of many."""
    if len(steps) <= ALL_SETS_UP_TO:
        sets = [chosen for size in range(1, len(steps)) for chosen in combinations(steps, size)]
    else:
        sets = [tuple(steps[:i]) for i in range(1, len(steps))] + [tuple(steps[i:]) for i in range(1, len(steps))]
    return [_names(chosen) for chosen in sets]


def _tied(a: Protocol, b: Protocol, fields: Fields, steps: Sequence[Step]) -> set[str]:
    """Fields of several steps that only go together; none where every protocol in between can be."""
    for step in steps:
        follow = _followers(a, {name: fields[name][1] for name in step})
        follow |= _followers(b, {name: fields[name][0] for name in step})
        tied = [other for other in steps if other != step and follow & set(other)]
        if tied:
            return set(_names([step, *tied]))
    alone = [*([step] for step in steps), *([other for other in steps if other != step] for step in steps)]
    every = (*map(_names, alone), *_corners(steps))  # alone first, so that two ties of one corner stay two
    cannot = next((set(names) for names in every if not _possible(a, fields, names)), None)
    if cannot is None:
        return set()
    # What of the rest the chosen ones need, and which of the chosen ones need it.
    chosen, rest = ([step for step in steps if (step[0] in cannot) is inside] for inside in (True, False))
    needed = _fewest(rest, lambda few: _possible(a, fields, _names([*chosen, *few])))
    needing = _fewest(chosen, lambda few: not _possible(a, fields, _names(few)))
    return set(_names([*needing, *needed]))


def _fewest(steps: Sequence[Step], holds: Callable[[list[Step]], bool]) -> list[Step]:
    """Some of the steps for which it still holds, as few as that one less would not do."""
    kept, smaller = list(steps), True
    while smaller:
        smaller = False
        for step in list(kept):
            fewer = [each for each in kept if each != step]
            if holds(fewer):
                kept, smaller = fewer, True
    return kept


def _names(steps: Iterable[Step]) -> list[str]:
    return [name for step in steps for name in step]


def _followers(protocol: Protocol, changes: Mapping[str, Any]) -> set[str]:
    """Settings that a run with these changes would adapt, as the drops of a rate follow the epochs."""
    kind, changed = protocol.params_type, {name: value for name, value in changes.items() if _is_setting(name)}
    try:
        before, after = (kind.model_validate({**protocol.params, **values}) for values in ({}, changed))
    except ValidationError:
        return set()
    return {name for name, value in before.following(after).items() if getattr(before, name) != value}


def _possible(a: Protocol, fields: Fields, names: Sequence[str]) -> bool:
    try:
        _switched(a, fields, names)
    except InputError:
        return False
    return True


def _is_setting(name: str) -> bool:
    return not name.startswith(GEOMETRY) and name not in SPLITS


def _differing(a: Protocol, b: Protocol) -> dict[str, tuple[Any, Any]]:
    """Splits, geometry and settings that differ, with the values of A and B, in the order of `results explain`."""
    return {name: (_value(a, name), _value(b, name)) for name in differing(a, b)}


def _value(protocol: Protocol, name: str) -> Any:
    """Of a field, or what it is where the protocol leaves it out."""
    if name.startswith(GEOMETRY):
        return getattr(protocol.geometry, name.removeprefix(GEOMETRY))
    if name in SPLITS:
        return getattr(protocol, name)
    return protocol.params[name] if name in protocol.params else protocol.params_type.model_fields[name].default


def _switched(a: Protocol, fields: Fields, names: Sequence[str]) -> Protocol:
    """A with these fields of B, and an id that names them. No other field follows them."""
    theirs = {name: fields[name][1] for name in names}
    geometry = {name.removeprefix(GEOMETRY): value for name, value in theirs.items() if name.startswith(GEOMETRY)}
    splits = {name: value for name, value in theirs.items() if name in SPLITS}
    settings = {name: value for name, value in theirs.items() if _is_setting(name)}
    return a.changed(geometry=geometry, **splits, **{**a.params, **settings})

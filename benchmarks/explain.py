"""`encoder-bench explain` and `why`: take the difference of two scores of one encoder apart.

Both measure the encoder under two protocols and under those between them, on shared features. Every field that the two
do not share is switched by itself, and where the fields are few every other set of them too; where they are many, one
after the other and once more in reverse. `python -m results explain` reads the records.

For `why` the first protocol is that of a published figure. What remains between the figure and the encoder's score
under its own protocol is no matter of settings.
"""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from benchmarks.registry import find_protocol, with_settings
from benchmarks.task import InputError, RunOptions
from results.compare.explain import COLUMN_FIELDS, differing
from results.schema import Protocol, Record

if TYPE_CHECKING:
    from benchmarks.encoders.encoder import Encoder

log = logging.getLogger("benchmarks")

ALL_SETS_UP_TO = 3  # fields: 8 protocols; a fourth would double that
GEOMETRY = "geometry."  # before the name of one of its fields


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
    protocols = between(first, second)
    if flags.dry_run:
        sys.stdout.write("".join(f"would run {protocol.id}\n" for protocol in protocols))
        return 0
    from benchmarks.evaluate import load

    encoder = load(flags.encoder, flags.name, flags.facts)
    records = measure_protocols(encoder, protocols, flags.data, flags.dataset, options)
    ends = [record.protocol.id for record in (records[0], records[-1])]
    sys.stdout.write(f"python -m results explain {shlex.join(ends)} --records {options.records}\n")
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
    from results.compare.explain import published_figure

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
    from benchmarks.evaluate import load
    from results.compare.explain import advice, explanation_table, explanations, gap, sentence
    from results.formats import markdown
    from results.store import read_records

    encoder = load(flags.encoder, flags.name, flags.facts)
    records = measure_protocols(encoder, protocols, flags.data, flags.dataset, options)
    ends = (records[0], records[-1])
    for record, wanted in ((ends[0], column), (ends[1], column), (ends[1], mine_column)):
        score = record.scores.get(wanted)
        if score is None or score.value is None:
            raise InputError(f"{encoder.card.name} has no score in the column {wanted} of {record.protocol.id}")
    explained = None
    if len(records) > 1:
        # Of this encoder, data and seed alone: the folder may hold others of the same name.
        known = {record.sha256 for record in records}
        own = [stored for stored in read_records(options.records)[0] if stored.record.sha256 in known]
        (explained,) = explanations(own, ends[0].protocol.id, ends[1].protocol.id, column)
        sys.stdout.write(markdown(explanation_table(explained)) + "\n")
    found = gap(figure, *ends, mine_column, explained)
    for line in (sentence(found), *advice(found)):
        sys.stdout.write(f"{line}\n")
    return 0


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
    if a.benchmark != b.benchmark or a.harness != b.harness:
        raise InputError(f"{a.id} and {b.id} belong to different benchmarks; choose two protocols of one benchmark")
    if not set(a.columns) & set(b.columns):
        raise InputError(f"{a.id} and {b.id} have no column in common: {', '.join(a.columns)}; {', '.join(b.columns)}")
    first, second = _fields(a), _fields(b)
    every = dict.fromkeys((*first, *second))
    names = [name for name in every if first.get(name) != second.get(name) and name not in COLUMN_FIELDS]
    if not names:
        raise InputError(f"{a.id} and {b.id} do not differ in anything that affects a score")
    if len(names) <= ALL_SETS_UP_TO:
        sets = [list(chosen) for size in range(1, len(names)) for chosen in combinations(names, size)]
    else:
        sets = [names[:i] for i in range(1, len(names))] + [names[i:] for i in range(1, len(names))]
    return [a, *(_switched(a, b, chosen) for chosen in sets), b]


def _fields(protocol: Protocol) -> dict[str, Any]:
    """Splits, geometry and `params`, flat, in the order in which they are switched."""
    kind = protocol.params_type
    geometry = {f"{GEOMETRY}{name}": value for name, value in protocol.geometry.model_dump().items()}
    splits = {"train_split": protocol.train_split, "test_split": protocol.test_split}
    unstated = {name: kind.model_fields[name].default for name in protocol.settable if name not in protocol.params}
    return {**splits, **geometry, **unstated, **protocol.model_dump(mode="json")["params"]}


def _switched(a: Protocol, b: Protocol, names: list[str]) -> Protocol:
    """A with these fields of B, and an id that names them."""
    theirs = _fields(b)
    geometry = {name.removeprefix(GEOMETRY): theirs[name] for name in names if name.startswith(GEOMETRY)}
    return a.changed(geometry=geometry, **{name: theirs[name] for name in names if not name.startswith(GEOMETRY)})

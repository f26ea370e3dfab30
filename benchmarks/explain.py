"""`encoder-bench explain`: measures the protocols between two, so that their difference can be taken apart.

Every field that the two do not share is switched by itself, and where the fields are few every other set of them too;
where they are many, one after the other and once more in reverse. `python -m results explain` reads the records.
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
from results.schema import Protocol, Record

if TYPE_CHECKING:
    from benchmarks.encoders.encoder import Encoder

log = logging.getLogger("benchmarks")

ALL_SETS_UP_TO = 3  # fields: 8 protocols; a fourth would double that
GEOMETRY = "geometry."  # before the name of one of its fields
NAMING = ("k", "top")  # fields that say which columns there are, and change no column


@dataclass(frozen=True)
class ExplainFlags:
    """Measure an encoder under two protocols of one benchmark and under those between them; one record for each."""

    a: str
    """protocol id, as knn.mmselfsup@1"""
    b: str
    """the protocol to compare with"""
    encoder: str
    """as the benchmarks take it"""
    data: Path = Path("work/data")
    """root of the data sets"""
    set_a: tuple[str, ...] = ()
    """numbers of A to change, as temperature=0.2 or geometry.crop=192"""
    set_b: tuple[str, ...] = ()
    """numbers of B to change"""
    dataset: str | None = None
    """another data set than the protocols', as drawings"""
    name: str | None = None
    """what tables call the encoder"""
    facts: tuple[str, ...] = ()
    """what a checkpoint's keys cannot show, as channels=BGR"""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """name the protocols, and stop"""


def command(
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
    names = [name for name in every if first.get(name) != second.get(name) and name not in NAMING]
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

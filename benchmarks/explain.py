"""`python -m benchmarks explain`: measures the protocols between two, so that their difference can be taken apart.

Every field that the two do not share is switched by itself, and where the fields are few every other set of them too;
where they are many, one after the other and once more in reverse. `python -m results explain` reads the records.
"""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic import ValidationError

from benchmarks.contract import InputError
from benchmarks.evaluation import evaluate
from benchmarks.harnesses import Harness, find_protocol, harness
from benchmarks.options import DATA, Precision
from benchmarks.overrides import first_fault
from results.schema import Geometry, Protocol

log = logging.getLogger("benchmarks")

ALL_SETS_UP_TO = 3  # fields: 8 protocols; a fourth would double that
GEOMETRY = "geometry."  # before the name of one of its fields
NAMING = ("k", "top")  # fields that say which columns there are, and change no column


def command(
    a: str,
    b: str,
    encoder: str,
    data: Path = DATA,
    set_a: tuple[str, ...] = (),
    set_b: tuple[str, ...] = (),
    dataset: str | None = None,
    name: str | None = None,
    facts: tuple[str, ...] = (),
    out: Path = Path("work/records"),
    features: Path = Path("work/features"),
    device: str = "auto",
    seed: int = 0,
    workers: int = 2,
    precision: Precision | None = None,
    batch_size: int | None = None,
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> int:
    """Measures an encoder under two protocols of one benchmark and under those between them; one record for each.

    Args:
        a: protocol id, as knn.mmselfsup@1.
        b: likewise.
        encoder: as the harnesses take it.
        data: root of the data sets.
        set_a: numbers of A to change, as temperature=0.2 or geometry.crop=192.
        set_b: likewise of B.
        dataset: another data set than the protocols', as drawings.
        name: what tables call the encoder.
        facts: what a checkpoint's keys cannot show, as channels=BGR.
        out: folder of the records.
        features: folder of the stored features.
        device: cpu, cuda, cuda:1, …
        seed: of the harness.
        workers: loader processes.
        precision: of the encoder; default the protocol's own.
        batch_size: images at a time in a pass for features.
        dry_run: name the protocols, and stop.
    """
    from benchmarks.bench import headline, resolve_device
    from benchmarks.encoders.load import load_encoder

    first, second = overridden(a, set_a), overridden(b, set_b)
    protocols = between(first, second)
    if dry_run:
        sys.stdout.write("".join(f"would run {protocol.id}\n" for protocol in protocols))
        return 0
    loaded = load_encoder(encoder, name, facts)
    reading: dict[str, Any] = {"workers": workers, "batch_size": batch_size, "precision": precision}
    records = []
    for number, protocol in enumerate(protocols, start=1):
        record = evaluate(
            loaded, protocol, data, dataset=dataset, out=out, features=features, device=resolve_device(device),
            seed=seed, **reading,
        )  # fmt: skip
        records.append(record)
        log.info("%d of %d  %s  %s", number, len(protocols), record.protocol.id, headline(record))
    ends = [record.protocol.id for record in (records[0], records[-1])]
    sys.stdout.write(f"python -m results explain {shlex.join(ends)} --records {out}\n")
    return 0


def between(a: Protocol, b: Protocol) -> list[Protocol]:
    """A, the protocols with some of its fields replaced by B's, and B.

    Raises:
        InputError: of two benchmarks, with no column in common, or the same in everything that matters.
    """
    if a.benchmark != b.benchmark or a.harness != b.harness:
        raise InputError(f"{a.id} and {b.id} are not protocols of one benchmark, so nothing between them can be run")
    if not set(a.columns) & set(b.columns):
        raise InputError(f"{a.id} and {b.id} have no column in common: {', '.join(a.columns)}; {', '.join(b.columns)}")
    first, second = _fields(a), _fields(b)
    every = dict.fromkeys((*first, *second))
    names = [name for name in every if first.get(name) != second.get(name) and name not in NAMING]
    if not names:
        raise InputError(f"{a.id} and {b.id} differ in nothing that can move a score")
    if len(names) <= ALL_SETS_UP_TO:
        sets = [list(chosen) for size in range(1, len(names)) for chosen in combinations(names, size)]
    else:
        sets = [names[:i] for i in range(1, len(names))] + [names[i:] for i in range(1, len(names))]
    return [a, *(_switched(a, b, chosen, harness(a.harness)) for chosen in sets), b]


def overridden(identifier: str, changes: tuple[str, ...]) -> Protocol:
    """The protocol with other `params`, and here, where features are drawn for it alone, another geometry too."""
    protocol = find_protocol(identifier)
    shape = dict(change.partition("=")[::2] for change in changes if change.startswith(GEOMETRY))
    params = tuple(change for change in changes if not change.startswith(GEOMETRY))
    if params:
        protocol = harness(protocol.harness).override(protocol, params)
    return _reshaped(protocol, shape) if shape else protocol


def _fields(protocol: Protocol) -> dict[str, Any]:
    """Splits, geometry and `params`, flat, in the order in which they are switched."""
    geometry = {f"{GEOMETRY}{name}": value for name, value in protocol.geometry.model_dump().items()}
    splits = {"train_split": protocol.train_split, "test_split": protocol.test_split}
    params = protocol.model_dump(mode="json")["params"]
    return {**splits, **geometry, **harness(protocol.harness).unstated(protocol), **params}


def _switched(a: Protocol, b: Protocol, names: list[str], family: Harness) -> Protocol:
    """A with these fields of B, and an id that names them."""
    theirs = _fields(b)
    geometry = {name: theirs[name] for name in names if name.startswith(GEOMETRY)}
    splits = {name: theirs[name] for name in names if name in ("train_split", "test_split")}
    params = {name: theirs[name] for name in names if name not in (*geometry, *splits)}
    protocol = family.override(a, params) if params else a
    protocol = _reshaped(protocol, geometry) if geometry else protocol
    labels = [f"{name}={value}" for name, value in splits.items()]
    return protocol.model_copy(update={**splits, "overrides": tuple(sorted({*protocol.overrides, *labels}))})


def _reshaped(protocol: Protocol, changes: Mapping[str, Any]) -> Protocol:
    """With another geometry, as `{"geometry.crop": 192}`, and an id that names it."""
    named = {name.removeprefix(GEOMETRY): value for name, value in changes.items()}
    unknown = sorted(set(named) - set(Geometry.model_fields))
    if unknown:
        raise InputError(f"{protocol.id} has no {GEOMETRY}{unknown[0]}; it has {', '.join(Geometry.model_fields)}")
    try:
        geometry = Geometry.model_validate({**protocol.geometry.model_dump(), **named})
    except ValidationError as error:
        raise InputError(f"{protocol.id} cannot have {GEOMETRY}{first_fault(error)}") from error
    if geometry.crop < 1 or geometry.resize < 0:
        fault = "a crop has a pixel or more" if geometry.crop < 1 else "a side has no fewer than no pixels"
        where = "crop" if geometry.crop < 1 else "resize"
        raise InputError(f"{protocol.id} cannot have {GEOMETRY}{where}={getattr(geometry, where)}: {fault}")
    new = {n: v for n, v in geometry.model_dump().items() if n in named and v != getattr(protocol.geometry, n)}
    kept = {label for label in protocol.overrides if label.partition("=")[0].removeprefix(GEOMETRY) not in new}
    labels = {f"{GEOMETRY}{name}={value}" for name, value in new.items()}
    return protocol.model_copy(update={"geometry": geometry, "overrides": tuple(sorted(kept | labels))})

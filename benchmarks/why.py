"""`encoder-bench why`: why one's own score differs from a published one.

The encoder is measured under the published figure's protocol, under the user's, and under those between them, on shared
features. The difference of the two scores is attributed to the settings; what remains between the published figure and
the score under its own protocol is no matter of settings.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks.explain import between, measure_protocols
from benchmarks.registry import find_protocol, with_settings
from benchmarks.task import InputError, RunOptions
from results.compare.explain import differing


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


def command(
    flags: Annotated[WhyFlags, tyro.conf.arg(name="")], options: Annotated[RunOptions, tyro.conf.arg(name="")]
) -> int:
    """Explain why a score differs from a published one: how much each setting contributes, and what remains."""
    from results.compare.why import published_figure

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
    from results.compare.explain import explanation_table, explanations
    from results.compare.why import advice, gap, sentence
    from results.formats import markdown
    from results.store import read_records

    encoder = load(flags.encoder, flags.name, flags.facts)
    records = measure_protocols(encoder, protocols, flags.data, flags.dataset, options)
    ends = (records[0], records[-1])
    for record, wanted in ((ends[0], column), (ends[1], column), (ends[1], mine_column)):
        if record.scores[wanted].value is None:
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

"""Scores of the checkpoints of a pretraining run against its epochs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from results.pictures.curves import Curve, Panel, Point, draw
from results.pictures.styles import Styles
from results.store import StoredRecord
from results.tables.roster import current


def draw_score_against_epoch(records: Sequence[StoredRecord], out: Path) -> None:
    """Writes a panel per protocol and data set: the primary column of every run that has checkpoints of several epochs.

    Raises:
        ValueError: no run has.
    """
    draw(epoch_panels(records), out, across="pretraining epochs", styles=Styles(()))


def epoch_panels(records: Sequence[StoredRecord]) -> list[Panel]:
    """The curves: one per run, its points the checkpoints, their spread the standard error of the test sample.

    Checkpoints are of one run when their names differ in `, epoch N` alone, as `make bench-all` names them.
    """
    groups: dict[tuple[str, str, str], dict[str, dict[float, StoredRecord]]] = {}
    for stored in current(records)[0]:
        record = stored.record
        if not stored.intact or not record.encoder.epochs:  # an untrained net has no place on a logarithmic axis
            continue
        key = (record.protocol.id, record.protocol.sha256, record.dataset.fingerprint)
        run = re.sub(r", epoch [\d.e+]+$", "", record.encoder.name)
        groups.setdefault(key, {}).setdefault(run, {})[record.encoder.epochs] = stored
    found = []
    for _, runs in sorted(groups.items()):
        curves = tuple(_curve(name, of_epoch) for name, of_epoch in sorted(runs.items()) if len(of_epoch) > 1)
        curves = tuple(curve for curve in curves if len(curve.points) > 1)
        if curves:
            first = next(iter(next(iter(runs.values())).values())).record
            found.append(Panel(first.protocol.resolved, first.dataset.id, curves))
    return found


def _curve(name: str, of_epoch: dict[float, StoredRecord]) -> Curve:
    points = []
    for epoch, stored in sorted(of_epoch.items()):
        score = stored.record.scores.get(stored.record.protocol.resolved.primary)
        if score is not None and score.value is not None:
            points.append(Point(epoch, score.value, score.standard_error))
    return Curve(name, 1, tuple(points))

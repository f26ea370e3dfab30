"""Low-shot mAP against k, a panel for each way in which the cost was chosen."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from results.atomic import write_file
from results.pictures.styles import Styles
from results.schema import Record
from results.store import StoredRecord
from results.tables.roster import current, roster

SELECTIONS = {
    "fixed": "fixed: the same C for every k",
    "heldout": "heldout: C by images outside the set\n(uses more labels than k)",
    "oracle": "oracle: C by the test images,\nas published figures chose it",
}
_COLUMN = re.compile(r"k=(\d+)(?: (fixed|heldout))?")


@dataclass(frozen=True)
class Band:
    """One encoder under one selection: (K,) k ascending, means over the sets, and the lowest and highest set."""

    label: str
    encoder: str
    k: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def draw_low_shot(records: Sequence[StoredRecord], out: Path, styles: Styles | None = None) -> None:
    """Writes the picture of all encoders in the format that the name of `out` ends in; whole or not at all.

    A line is the mean over the drawn sets, its band reaches from the lowest to the highest of them. Random
    initialisations of one architecture share a line, and their band is over all of their sets.

    Raises:
        ValueError: there is no low-shot record, or there are several protocols or data sets, which share no axis.
    """
    newest = [
        s for s in current(records)[0] if s.intact and s.record.protocol.id.partition(".")[0].endswith("low_shot_svm")
    ]
    asked = {(s.record.protocol.id, s.record.protocol.sha256, s.record.dataset.fingerprint) for s in newest}
    if len(asked) != 1:
        among = ", ".join(sorted(identifier for identifier, _, _ in asked)) or "none"
        raise ValueError(
            f"the low-shot picture needs the records of one protocol on one data set, and there are: {among}"
        )
    bands = {selection: _bands(newest, selection) for selection in SELECTIONS}
    _draw(newest[0].record, bands, styles or Styles(records), out)


def _bands(records: Sequence[StoredRecord], selection: str) -> list[Band]:
    found = []
    for entry in roster(records):
        runs = [_by_k(stored.record, selection) for stored in entry.records(records)]
        shared = sorted(set.intersection(*(set(of_k) for of_k in runs)))
        if not shared:
            continue
        count = f", {len(runs)} initialisations" if len(runs) > 1 else ""
        found.append(
            Band(
                entry.label + count,
                entry.label,
                tuple(shared),
                tuple(sum(of_k[k][0] for of_k in runs) / len(runs) for k in shared),
                tuple(min(of_k[k][1] for of_k in runs) for k in shared),
                tuple(max(of_k[k][2] for of_k in runs) for k in shared),
            )
        )
    return found


def _by_k(record: Record, selection: str) -> dict[int, tuple[float, float, float]]:
    """k -> mean, lowest and highest mAP of the sets, where the record has them for this selection."""
    found = {}
    for run in record.runs:
        column = _COLUMN.fullmatch(str(run.get("score", "")))
        if column and (column[2] or "oracle") == selection:
            found[int(column[1])] = (float(run["map"]), float(run["map_min"]), float(run["map_max"]))
    return found


def _draw(example: Record, bands: dict[str, list[Band]], styles: Styles, out: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    panels = figure.subplots(1, len(bands), sharey=True)
    for axes, (selection, of_selection) in zip(panels, bands.items(), strict=True):
        for band in of_selection:
            style = styles.of(band.encoder)
            axes.fill_between(band.k, band.low, band.high, color=style.colour, alpha=0.2, linewidth=0)
            axes.plot(
                band.k,
                band.mean,
                label=band.label,
                color=style.colour,
                marker=style.marker,
                linestyle=style.dashes,
                markersize=5,
            )
        ticks = sorted({k for band in of_selection for k in band.k})
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(k) for k in ticks])
        axes.minorticks_off()
        axes.set_title(SELECTIONS[selection], fontsize="medium", loc="left")
        axes.set_xlabel("k, positive training images per class")
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    protocol = example.protocol.resolved
    panels[0].set_ylabel(f"{protocol.metric} on {protocol.test_split} ({protocol.unit})")
    sets = protocol.params.get("sets", "drawn")
    figure.suptitle(
        f"{example.protocol.id} on {example.dataset.id}: mean over {sets} sets; band: lowest to highest set",
        fontsize="medium",
    )
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)), frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, format=out.suffix.removeprefix(".") or "png", dpi=150)
    write_file(out, picture.getvalue())

"""The look of every figure: one style per encoder, plain axes, and saving without half-written files."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from results.files import write_file
from results.rows import data_kind, identity, newest, table_rows
from results.store import StoredRecord

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The palette of Okabe and Ito (2008), safe for colour-blind readers; markers and dashes repeat the distinction.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
DASHES = ("-", "--", ":", "-.")
CONTROLS = ("#6e6e6e", "#a3a3a3")  # untrained networks and raw pixels, which other encoders are compared with
LABEL_WIDTH = 38  # characters of a label before it goes on in the next line
_TITLED: ContextVar[bool] = ContextVar("titled", default=True)


@contextmanager
def without_title() -> Iterator[None]:
    """Figures of one panel are drawn without a title: the page or the caption around them has it."""
    token = _TITLED.set(False)
    try:
        yield
    finally:
        _TITLED.reset(token)


def encoder_key(label: str) -> str:
    """Eight hex digits by which a page finds an encoder's lines in its figures."""
    return hashlib.sha256(label.encode()).hexdigest()[:8]


def mark(artist: Artist, label: str) -> None:
    """Name an artist after its encoder, so that a page can dim the others."""
    axes = artist.axes
    assert axes is not None
    panel = next(i for i, each in enumerate(axes.figure.axes) if each is axes)
    place = f"{panel}-{axes.get_children().index(artist)}"
    artist.set_gid(f"encoder-{encoder_key(label)}-{place}")


class NothingToDrawError(ValueError):
    """The records hold nothing that this figure shows."""


class LineStyle(TypedDict):
    """Keyword arguments of `Axes.plot`."""

    color: str
    marker: str
    linestyle: str


def line_style(family: int, member: int = 0) -> LineStyle:
    """The style of a family's member.

    Families differ in colour, marker and dashes, the members of one family in marker and dashes only.
    """
    return {
        "color": COLOURS[family % len(COLOURS)],
        "marker": MARKERS[(family + member) % len(MARKERS)],
        "linestyle": DASHES[(family // len(COLOURS) + member) % len(DASHES)],
    }


class EncoderStyles:
    """One style for each encoder of some records, the same in every figure and on every page.

    The seeds of one training are a family. Untrained networks and raw pixels are grey.

    Attributes:
        by_training: label of an encoder by the source and the epochs that its card states.
        entries: the rows of a table of all these records.
    """

    def __init__(self, records: Sequence[StoredRecord]) -> None:
        self._styles: dict[str, LineStyle] = {}
        self.by_training: dict[tuple[str, float], str] = {}
        families: dict[str, int] = {}
        members: dict[str, int] = {}
        controls = 0
        self.entries = table_rows(newest(records))
        for entry in self.entries:
            name = entry.training
            if entry.random or entry.architecture.name == "pixels":
                style: LineStyle = {**line_style(controls, controls), "color": CONTROLS[controls % len(CONTROLS)]}
                controls += 1
            else:
                family, member = families.setdefault(name, len(families)), members.get(name, 0)
                members[name] = member + 1
                style = line_style(family, member)
            for label in (entry.label, name, *(card.name for card in entry.cards)):
                self._styles.setdefault(label, style)
            for card in entry.cards:
                if card.epochs is not None:
                    self.by_training.setdefault((card.source, card.epochs), entry.label)
        # A part of the records may need fewer words to tell two encoders apart; the shorter label is the same encoder.
        styles = {identity(card): self._styles[entry.label] for entry in self.entries for card in entry.cards}
        for own in _parts(records):
            for entry in table_rows(own):
                if (known := styles.get(identity(entry.cards[0]))) is not None:
                    self._styles.setdefault(entry.label, known)
        self._families = len(families)

    def of(self, label: str) -> LineStyle:
        """The style of a row label or encoder name. An unknown name gets the next free style and keeps it."""
        if label not in self._styles:
            self._styles[label] = line_style(self._families)
            self._families += 1
        return self._styles[label]


def _parts(records: Sequence[StoredRecord]) -> Iterable[list[StoredRecord]]:
    """The records that a page or a figure shows together: of each kind of data, and of each protocol on a data set."""
    parts: dict[Any, list[StoredRecord]] = {}
    for stored in records:
        if stored.intact:
            record = stored.record
            parts.setdefault(data_kind(record), []).append(stored)
            parts.setdefault((record.protocol.sha256, record.dataset.fingerprint), []).append(stored)
    return parts.values()


def stacked_panels(heights: Sequence[float], *, width: float = 6.5, extra: float = 0.0) -> tuple[Figure, list[Axes]]:
    """A figure with one column of panels. Sizes are in inches; `extra` is space for a common label or legend."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, sum(heights) + extra), layout="constrained")
    panels = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)
    return figure, list(panels[:, 0])


def plain_axes(axes: Axes, title: str = "", *, grid: Literal["x", "y"] = "y") -> None:
    """A title on the left, a pale grid, no frame on the right and at the top."""
    if title and (_TITLED.get() or len(axes.figure.axes) > 1):
        axes.set_title(title, fontsize="medium", loc="left")
    axes.grid(axis=grid, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def legend_below(axes: Axes, offset: float) -> None:
    """A legend under the panel; `offset` is its distance in heights of the panel."""
    axes.legend(fontsize="small", frameon=False, loc="upper left", bbox_to_anchor=(0.0, -offset))


def save_figure(figure: Figure, out: Path) -> None:
    """Write a figure in the format of the file's ending (PNG without one), completely or not at all."""
    content, form = io.BytesIO(), out.suffix.removeprefix(".") or "png"
    dated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}  # the same records give the same bytes
    figure.savefig(content, format=form, dpi=150, bbox_inches="tight", metadata=dated.get(form))
    write_file(out, content.getvalue())

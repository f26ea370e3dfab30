"""Figures of the committed records and logs, drawn as the site is built, once for light and once for dark pages."""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from matplotlib import rc_context

from results.plot_style import EncoderStyles, without_title
from results.plots import RecordFigure, draw_pretraining, read_pretraining_logs, record_figures
from results.store import read_records

ROOT = Path(__file__).parents[2]
RECORDS, LOGS = ROOT / "results" / "records", ROOT / "docs" / "examples" / "pretraining"
INK = {"light": "#1b1b1b", "dark": "#e6edf3"}
INKED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")


class DocsFigures:
    """Draws the figures that the pages ask for.

    Attributes:
        drawn: SVG by its path below the site, of every figure so far.
    """

    def __init__(self) -> None:
        self.drawn: dict[str, bytes] = {}
        self._figures: dict[str, RecordFigure] = {}

    def on_page(self, source: str) -> Callable[[str, str], str]:
        """The function `figure(name, about)` for the page with this path below docs/."""

        def figure(name: str, about: str) -> str:
            """A figure of `record_figures`, or `pretraining`, with a caption; `name` may be how its name begins."""
            found = self._find(name)
            parts = [f"{about} {found.caption}".strip()]
            paths = {theme: f"pictures/{found.name}-{theme}.svg" for theme in INK}
            if paths["light"] not in self.drawn:
                self.drawn.update((paths[theme], content) for theme, content in drawn(found.draw).items())
            for theme, path in paths.items():
                link = posixpath.relpath(path, posixpath.dirname(source) or ".")
                parts.append(f"![{found.title}]({link}#only-{theme})")
            return "\n\n".join([*parts[1:], f"*{parts[0]}*"]) + "\n"

        return figure

    def _find(self, name: str) -> RecordFigure:
        if not self._figures:
            embedded = [stored for stored in read_records(RECORDS)[0] if stored.record.dataset.embedded]
            styles, logs = EncoderStyles(embedded), read_pretraining_logs(LOGS)
            curves = partial(draw_pretraining, logs, styles=styles)
            every = [*record_figures(embedded, styles), RecordFigure("pretraining", "Pretraining curves", "", curves)]
            self._figures = {figure.name: figure for figure in every}
        found = [figure for key, figure in self._figures.items() if key.startswith(name)]
        if len(found) != 1:
            raise ValueError(
                f"there are {len(found)} figures whose name begins with {name}: {', '.join(self._figures)}"
            )
        return found[0]


def drawn(draw: Callable[[Path], None]) -> dict[str, bytes]:
    """By theme, the SVG that a function draws: the same bytes every time, in the theme's ink."""
    look = {
        **dict.fromkeys(INKED, INK["light"]),
        "svg.fonttype": "path",
        "svg.hashsalt": "docs",
        "savefig.transparent": True,
    }
    with TemporaryDirectory() as folder, rc_context(look), without_title():
        path = Path(folder) / "figure.svg"
        draw(path)
        light = path.read_bytes()
    return {theme: light.replace(INK["light"].encode(), ink.encode()) for theme, ink in INK.items()}

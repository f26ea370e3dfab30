"""mkdocs hook: pages are Jinja templates that call what makes tables and figures from the code and the records.

A page says `{{ protocols("knn") }}` and gets the declared protocols of the command `knn`; `{{ figure("knn_k", "…") }}`
draws a figure, once for light and once for dark pages. An unknown name stops the build; a protocol that no page shows
is a warning, which `mkdocs build --strict` fails on.
"""

from __future__ import annotations

import logging
import posixpath
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # this checkout's packages, wherever mkdocs was started

import docs_tables  # noqa: E402 - mkdocs puts the hook's own folder on the path
import outputs  # noqa: E402

from results.plots import EncoderStyles, RecordFigure, record_figures  # noqa: E402
from results.report import draw_pretraining, read_pretraining_logs  # noqa: E402
from results.store import read_records  # noqa: E402

log = logging.getLogger("mkdocs.hooks.docs_pages")

# What a reader of docs/ on GitHub is told, in a line of its own; the site leaves it out.
NOTE = (
    "> `{{ … }}` and `:::` stand for tables, pictures and signatures that `make docs` makes from the code. "
    "It writes the site to `work/site`.\n"
)
LOGS = ROOT / "docs" / "examples" / "pretraining"


class Site:
    """What one build has shown so far."""

    def __init__(self) -> None:
        self.protocols = docs_tables.ProtocolPages()
        self.pictures = DocsFigures()
        self.environment = Environment(undefined=StrictUndefined, autoescape=False)  # noqa: S701 - markdown
        plain = (
            docs_tables.benchmark_commands, docs_tables.commands, docs_tables.cost_table, docs_tables.dataset_layouts,
            docs_tables.datasets, docs_tables.decoder_scores, docs_tables.layouts, docs_tables.measured,
            docs_tables.papers, docs_tables.published, docs_tables.recipe_fields, docs_tables.recipes,
            docs_tables.releases, docs_tables.result_commands, docs_tables.so_far, docs_tables.sources,
            docs_tables.unplaced, docs_tables.vit_families, docs_tables.zoo_pages, outputs.help_of, outputs.included,
            outputs.make_help, outputs.notebook, outputs.output, outputs.rendered,
        )  # fmt: skip
        self.environment.globals.update({function.__name__: function for function in plain})
        self.environment.globals.update(
            protocols=self.protocols.tables,
            overview=self.protocols.overview,
            other_protocols=self.protocols.others,
        )

    def page(self, markdown: str, source: str) -> str:
        """The markdown of a page with everything filled in."""
        return self.environment.from_string(markdown.replace(NOTE, "")).render(figure=self.pictures.on_page(source))


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
            paths = {theme: f"pictures/{found.name}-{theme}.svg" for theme in outputs.INK}
            if paths["light"] not in self.drawn:
                self.drawn.update((paths[theme], content) for theme, content in outputs.drawn(found.draw).items())
            for theme, path in paths.items():
                link = posixpath.relpath(path, posixpath.dirname(source) or ".")
                parts.append(f"![{found.title}]({link}#only-{theme})")
            return "\n\n".join([*parts[1:], f"*{parts[0]}*"]) + "\n"

        return figure

    def _find(self, name: str) -> RecordFigure:
        if not self._figures:
            embedded = [stored for stored in read_records(docs_tables.RECORDS)[0] if stored.record.dataset.embedded]
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


_site: Site


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Every build starts anew."""
    global _site
    _site = Site()
    return config


def on_page_markdown(markdown: str, /, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fills a page's tables and figures in."""
    try:
        text = _site.page(markdown, page.file.src_uri)
    except Exception as error:
        raise PluginError(f"docs/{page.file.src_uri}: {type(error).__name__}: {error}") from error
    for path, content in _site.pictures.drawn.items():
        if files.get_file_from_path(path) is None:
            files.append(File.generated(config, path, content=content))
    return text


def on_env(env: Any, /, *, config: MkDocsConfig, files: Files) -> Any:
    """When all pages are read, every protocol must be on one of them."""
    for name in _site.protocols.missing():
        log.warning("no page of docs/ shows the protocol %s", name)
    return env

"""mkdocs hook: pages are Jinja templates that call the tables generated from the code. See docs/*.md.

A page says `{{ protocols("knn") }}` and gets the declared protocols of the command `knn`. An unknown name stops the
build; a protocol that no page shows is a warning, which `mkdocs build --strict` fails on.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # this checkout's packages, wherever mkdocs was started

import benchmark_tables  # noqa: E402 - mkdocs puts the hook's own folder on the path
import costs  # noqa: E402
import figures  # noqa: E402
import inventories  # noqa: E402
import notebook  # noqa: E402

log = logging.getLogger("mkdocs.hooks.docs_pages")

# What a reader of docs/ on GitHub is told, in a line of its own; the site leaves it out.
NOTE = (
    "> `{{ … }}` and `:::` stand for tables, pictures and signatures that `make docs` makes from the code. "
    "It writes the site to `work/site`.\n"
)


class Site:
    """What one build has shown so far."""

    def __init__(self) -> None:
        self.protocols = benchmark_tables.ProtocolPages()
        self.pictures = figures.DocsFigures()
        self.environment = Environment(undefined=StrictUndefined, autoescape=False)  # noqa: S701 - markdown
        plain = (
            inventories.datasets, inventories.dataset_layouts, inventories.layouts, inventories.vit_families,
            inventories.releases, inventories.recipes, inventories.recipe_fields, inventories.help_of,
            inventories.decoder_scores,
            inventories.make_help, inventories.benchmark_commands, inventories.result_commands, inventories.output,
            inventories.rendered, inventories.included, benchmark_tables.sources, benchmark_tables.papers,
            benchmark_tables.zoo_pages, benchmark_tables.unplaced, benchmark_tables.measured, benchmark_tables.so_far,
            benchmark_tables.commands, benchmark_tables.published, costs.cost_table,
        )  # fmt: skip
        self.environment.globals.update({function.__name__: function for function in plain})
        self.environment.globals.update(
            protocols=self.protocols.tables,
            overview=self.protocols.overview,
            other_protocols=self.protocols.others,
            notebook=notebook.page,
        )

    def page(self, markdown: str, source: str) -> str:
        """The markdown of a page with everything filled in."""
        return self.environment.from_string(markdown.replace(NOTE, "")).render(figure=self.pictures.on_page(source))


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

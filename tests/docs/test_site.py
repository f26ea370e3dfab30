"""The site as it is built: strictly, whole, and with nothing loaded from elsewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from benchmarks.encoders.layouts import LAYOUTS
from benchmarks.registry import tasks
from pretrain.recipe import RECIPES
from tests.processes import Program

ROOT = Path(__file__).parents[2]
MKDOCS = "import os; os.chdir(os.environ['START']); from mkdocs.__main__ import cli; cli()"


def build(config: Path, site: Path) -> tuple[int, str]:
    """The exit code of `mkdocs build --strict`, and what it says."""
    arguments = ["build", "--strict", "-f", str(config), "-d", str(site)]
    built = Program(MKDOCS, *arguments, NO_MKDOCS_2_WARNING="1", START=str(config.parent))
    return built.wait(600), built.said


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    code, said = build(ROOT / "mkdocs.yml", folder)
    assert code == 0, said[-4000:]
    return folder


class Loaded(HTMLParser):
    """What a page makes a browser fetch, and its text."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.text = ""
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "link") and values.get("rel") != "canonical":
            self.addresses += [address for name in ("src", "href") if (address := values.get(name))]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.slow
def test_everything_that_can_be_chosen_is_on_its_page(site: Path) -> None:
    benchmarks = "".join(Loaded(page).text for page in (site / "benchmarks").glob("*.html"))
    protocols = [protocol for task in tasks() for protocol in task.protocols]
    assert [p.id for p in protocols if p.id not in benchmarks] == []
    checkpoints, recipes = Loaded(site / "checkpoints.html").text, Loaded(site / "recipes.html").text
    assert [layout.name for layout in LAYOUTS if layout.name not in checkpoints] == []
    assert [path.stem for path in RECIPES.glob("*.toml") if path.stem not in recipes] == []


@pytest.mark.slow
def test_published_figures_are_printed_as_they_were(site: Path) -> None:
    pages = Loaded(site / "published" / "zoo-pages.html").text
    assert "67.56" in pages
    assert "67.58" in pages
    assert "55.7" in Loaded(site / "benchmarks" / "knn.html").text


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere_and_the_search_is_in_the_site(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        elsewhere = [a for a in Loaded(page).addresses if re.match(r"(https?:)?//", a)]
        assert not elsewhere, f"{page.name} loads {elsewhere}"
    assert "temperature" in (site / "search" / "search_index.js").read_text(encoding="utf-8")


def broken(tmp_path: Path, page: str) -> str:
    """What the build says of a site of this one page; it must fail."""
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    config |= {"hooks": [str(ROOT / hook) for hook in config["hooks"]], "plugins": [], "nav": ["index.md", "gone.md"]}
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(page, encoding="utf-8")
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    code, said = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert code == 1, said[-4000:]
    return said


@pytest.mark.slow
def test_broken_links_missing_pages_and_protocols_that_no_page_shows_fail_the_build(tmp_path: Path) -> None:
    said = broken(tmp_path, "# T\n\n[a](nowhere.md) [b](#no-such-heading)\n")
    assert "'nowhere.md'" in said
    assert "#no-such-heading" in said
    assert "'gone.md'" in said
    assert "no page of docs/ shows the protocol knn.mmselfsup@1" in said


@pytest.mark.slow
def test_a_page_that_asks_for_what_there_is_not_is_named(tmp_path: Path) -> None:
    assert "docs/index.md: ValueError: there is no benchmark gone" in broken(
        tmp_path, '# T\n\n{{ protocols("knn", "gone") }}\n'
    )

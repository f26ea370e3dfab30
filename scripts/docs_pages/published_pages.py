"""The pages of published figures, and of what was measured here: tables that `results` computes, as pages."""

from __future__ import annotations

from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path

from markdown_table import table

from benchmarks.harnesses import HARNESSES
from results.formats import markdown
from results.papers import paper_tables
from results.published import figures
from results.store import read_records
from results.tables import markdown_page
from results.zoo_page import markdown_page as zoo_markdown
from results.zoo_page import published_page

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "results" / "records"


def sources() -> str:
    """Every source of published.csv, and how many of its figures belong to a protocol."""
    every, placed = Counter(f.source for f in figures()), Counter(f.source for f in figures() if f.place)
    return table(("Source", "Figures", "With a protocol"), [(s, n, placed[s]) for s, n in every.items()])


def papers() -> str:
    """The MoCo papers' tables from published.csv."""
    return "\n".join(markdown(one, level=2) for one in paper_tables(figures()).values())


def zoo_pages() -> str:
    """The two published MoCo v2 pages, one below the other."""
    names = dict.fromkeys(f.source for f in figures() if fnmatchcase(f.source, "MoCo v2 page *"))
    texts = (zoo_markdown(published_page([f for f in figures() if f.source == name])) for name in names)
    return "\n".join(_deeper(text) for text in texts)


def unplaced() -> str:
    """Why a published figure belongs to no protocol, and how many there are of the kind."""
    counted = Counter((f.reason, f.source, f.benchmark) for f in figures() if f.place is None)
    rows = [(source, benchmark, count, reason) for (reason, source, benchmark), count in counted.items()]
    return table(("Source", "Benchmark there", "Figures", "Why it has no protocol"), rows)


def measured() -> str:
    """The committed records as tables, without the page's own title."""
    stored, bad = read_records(RECORDS)
    page = markdown_page(stored, bad, RECORDS.relative_to(ROOT))
    return page.partition("\n")[2]


def so_far() -> str:
    """By benchmark, how many encoders the committed records measured, on embedded and on full data sets."""
    counted: dict[str, tuple[set[str], set[str]]] = {}
    for harness in HARNESSES:
        for protocol in harness.known():
            counted.setdefault(protocol.benchmark, (set(), set()))
    for stored in read_records(RECORDS)[0]:
        record = stored.record
        if record.status == "ok":
            counted[record.protocol.resolved.benchmark][not record.dataset.embedded].add(record.encoder.name)
    rows = [(f"`{name}`", *(len(names) or "none" for names in of)) for name, of in counted.items() if any(of)]
    without = ", ".join(f"`{name}`" for name, of in counted.items() if not any(of))
    measured_ones = table(("Benchmark", "Encoders on embedded data", "Encoders on full data sets"), rows)
    return f"{measured_ones}\nWithout a committed record: {without or 'none'}.\n"


def _deeper(text: str) -> str:
    """Headings one level down; this site's page has its own title."""
    return "".join(f"#{line}" if line.startswith("#") else line for line in text.splitlines(keepends=True))

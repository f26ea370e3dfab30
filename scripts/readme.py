"""Make what the README shows from the code and the records: its picture, and its table of benchmarks.

python scripts/readme.py          writes docs/pictures/explain-*.svg and the table in README.md
"""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib import rc_context

from benchmarks.registry import TASKS, load_task
from results.compare.explain import explanations, remembered
from results.plot_style import without_title
from results.plots import draw_waterfall
from results.store import read_records

ROOT = Path(__file__).parents[1]
RECORDS, OUT = ROOT / "docs" / "examples" / "explain", ROOT / "docs" / "pictures"
README = ROOT / "README.md"
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
INK = {"light": "#1b1b1b", "dark": "#e6edf3"}


def benchmark_table() -> str:
    """A row per benchmark: what it measures, its data sets, and how many declared variants it has."""
    lines = ["| Kind | Command | What it measures | Data sets | Variants |", "|---|---|---|---|---:|"]
    for heading, names in TASKS.items():
        for name in names:
            task = load_task(name)
            sentence = (task.__doc__ or "").strip().partition("\n")[0].rstrip(".").replace("|", "/")
            protocols = [protocol for protocol in task.protocols if protocol.variant != "demo"]
            data = list(dict.fromkeys(protocol.dataset for protocol in protocols))
            shown = ", ".join(data[:4]) + (f" and {len(data) - 4} more" if len(data) > 4 else "")
            lines.append(f"| {heading} | `{name}` | {sentence} | {shown} | {len(protocols)} |")
    return "\n".join(lines)


def with_table(text: str) -> str:
    """The README with the table as the registry gives it."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{benchmark_table()}\n\n{END}{after}"


def picture(out: Path = OUT) -> None:
    """Write explain-light.svg and explain-dark.svg: one encoder under two protocols, and what each setting moves."""
    records, _ = read_records(RECORDS)
    (question,) = remembered(RECORDS)
    found = explanations(records, question.a, question.b, question.column)
    out.mkdir(parents=True, exist_ok=True)
    for theme, ink in INK.items():
        names = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
        look = {**dict.fromkeys(names, ink), "svg.fonttype": "path", "svg.hashsalt": theme, "savefig.transparent": True}
        with rc_context(look), without_title():
            draw_waterfall(found, out / f"explain-{theme}.svg")


def main() -> int:
    """Write both."""
    picture()
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

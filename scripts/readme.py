"""Make what the README shows from the code and the records: its picture, and its tables of benchmarks and of costs.

python scripts/readme.py          writes docs/pictures/explain-*.svg and the tables in README.md
"""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib import rc_context

from benchmarks.__main__ import COMMANDS
from benchmarks.registry import TASKS, load_task
from results.explain import draw_waterfall, explanations, remembered
from results.plots import without_title
from results.store import read_records

ROOT = Path(__file__).parents[1]
RECORDS, OUT = ROOT / "docs" / "examples" / "explain", ROOT / "docs" / "pictures"
README = ROOT / "README.md"
SEVERAL = "Several benchmarks"
INK = {"light": "#1b1b1b", "dark": "#e6edf3"}


def command_tables() -> str:
    """A table per kind of benchmark: what each one measures, its data sets, and its number of declared variants."""
    tables = []
    for heading, sentences in TASKS.items():
        lines = [f"**{heading}**", "", "| Command | What it measures | Data sets | Variants |", "|---|---|---|---:|"]
        for name, about in sentences.items():
            task, sentence = load_task(name), about.rstrip(".").replace("|", "/")
            protocols = [protocol for protocol in task.protocols if protocol.variant != "demo"]
            data = list(dict.fromkeys(protocol.dataset for protocol in protocols))
            shown = ", ".join(data[:4]) + (f" and {len(data) - 4} more" if len(data) > 4 else "")
            lines.append(f"| `{name}` | {sentence} | {shown} | {len(protocols)} |")
        tables.append("\n".join(lines))
    several = [(name, command.sentence) for name, command in COMMANDS.items() if command.group == SEVERAL]
    lines = [f"**{SEVERAL}**", "", "| Command | What it runs |", "|---|---|"]
    tables.append("\n".join([*lines, *(f"| `{name}` | {sentence} |" for name, sentence in several)]))
    return "\n\n".join(tables)


def with_tables(text: str) -> str:
    """The README with the tables as the registry and the records give them."""
    sys.path.insert(0, str(ROOT / "scripts" / "docs_pages"))
    from docs_tables import cost_table

    for name, made in (("benchmarks", command_tables()), ("costs", cost_table().strip())):
        before, _, rest = text.partition(f"<!-- {name}:begin -->")
        _, _, after = rest.partition(f"<!-- {name}:end -->")
        text = f"{before}<!-- {name}:begin -->\n\n{made}\n\n<!-- {name}:end -->{after}"
    return text


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
    """Write all."""
    picture()
    README.write_text(with_tables(README.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What commands and the cells of the tutorial print, for the pages of the site, and what is written into files.

python scripts/docs_pages/outputs.py docs/tutorial.ipynb     runs the cells and writes what they print into the file
python scripts/docs_pages/outputs.py README.md               writes its tables, and docs/pictures/explain-*.svg

Cells are plain Python. A line `!encoder-bench …` is a command, as in Jupyter; here it runs in the same process.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

from docs_tables import cost_table
from matplotlib import rc_context

from benchmarks.__main__ import COMMANDS
from benchmarks.__main__ import main as encoder_bench
from benchmarks.registry import TASKS, load_task
from results.explain import draw_waterfall, explanations, remembered
from results.plots import without_title
from results.store import read_records

ROOT = Path(__file__).parents[2]
EXPLAINED, PICTURES = ROOT / "docs" / "examples" / "explain", ROOT / "docs" / "pictures"
SEVERAL = "Several benchmarks"
INK = {"light": "#1b1b1b", "dark": "#e6edf3"}
INKED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
WIDTH = "100"
COMMAND = re.compile(r"^( *)!encoder-bench (.*)$", re.MULTILINE)


def help_of(line: str) -> str:
    """What `line --help` prints, as a code block. `line` is as `encoder-bench knn` or `scripts/submit.py`."""
    words = line.removeprefix("python -m ").split()
    package = "benchmarks" if words[0] == "encoder-bench" else words[0]
    main = _script(words[0]) if words[0].endswith(".py") else import_module(f"{package}.__main__").main
    return f"```text\n{_help(main, words[0], words[1:])}\n```\n"


def _help(main: Callable[[list[str]], int], program: str, words: list[str]) -> str:
    printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # a StringIO has no encoding, and gets ASCII frames
    width, argv = os.environ.get("COLUMNS"), sys.argv
    os.environ["COLUMNS"], sys.argv = WIDTH, [program]
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            main([*words, "--help"])
    finally:
        sys.argv = argv
        os.environ.pop("COLUMNS") if width is None else os.environ.update(COLUMNS=width)
    printed.seek(0)
    text = re.sub(r"\x1b\[[0-9;]*m", "", printed.read()).strip()
    if "usage:" not in text:
        raise ValueError(f"{program} {' '.join(words)} --help printed nothing to show")
    return text


@cache
def _script(name: str) -> Callable[[list[str]], int]:
    spec = importlib.util.spec_from_file_location(Path(name).stem, ROOT / name)
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    main: Callable[[list[str]], int] = module.main
    return main


def make_help() -> str:
    """What `make` alone prints."""
    command = ["make", "--no-print-directory", "help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S603 - no input in it
    printed = done.stdout.strip("\n")  # the first line keeps its indent
    return f"```text\n{printed}\n```\n"


def output(line: str, code: int = 0, first: int | None = None) -> str:
    """A command and what it prints, as two code blocks. It is run as the page is built.

    Args:
        line: as `python -m results diff A B`; it is run in the project's folder.
        code: its exit code.
        first: number of lines of the output that are shown; all by default.

    Raises:
        ValueError: another command, or it ends with another exit code.
    """
    lines = _printed(line, code)
    shown = lines[:first] + (["…"] if first and len(lines) > first else [])
    block = "".join(f"{each}\n" for each in ("", "```text", *shown, "```")) if shown else ""
    said = f"\nIt ends with exit code {code}.\n" if code else ""
    return f"```bash\n{line}\n```\n{block}{said}"


def included(path: str) -> str:
    """The text of a file of the project, without its heading, as a command wrote it.

    Raises:
        OSError: it cannot be read.
    """
    text = (ROOT / path).read_text(encoding="utf-8")
    return "\n".join(line for line in text.splitlines() if not line.startswith("#")).strip()


def rendered(line: str, rows: int | None = None) -> str:
    """A command and the first table that it prints, as a table of the page with its title and the lines above it.

    Args:
        line: as for `output`; the command must print markdown.
        rows: number of rows that are shown; all by default.

    Raises:
        ValueError: another command, or one that fails or prints no table.
    """
    lines = _printed(line, 0)
    starts = [number for number, each in enumerate(lines) if each.startswith("|")]
    if not starts:
        raise ValueError(f"{line} prints no table")
    first = starts[0]
    end = next((number for number in range(first, len(lines)) if not lines[number].startswith("|")), len(lines))
    title = max((number for number in range(first) if lines[number].startswith("#")), default=0)
    above = [f"**{each.lstrip('# ')}**" if each.startswith("#") else each for each in lines[title:first]]
    table, count = lines[first:end], end - first - 2
    if rows is not None and count > rows:
        table = [*table[: rows + 2], "", f"The first {rows} of {count} rows."]
    return "\n".join([f"```bash\n{line}\n```\n", *above, *table, ""])


def _printed(line: str, code: int) -> list[str]:
    """The lines that a command of `python -m results` prints in the project's folder."""
    words = shlex.split(line)
    if words[:3] != ["python", "-m", "results"]:
        raise ValueError(f"{line} is not a command of python -m results")
    printed, here = io.StringIO(), Path.cwd()
    try:
        os.chdir(ROOT)
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            ended = import_module("results.__main__").main(words[3:])
    finally:
        os.chdir(here)
    lines = printed.getvalue().rstrip("\n").splitlines()
    if ended != code:
        raise ValueError(f"{line} ended with {ended}, not {code}: {' '.join(lines[-1:])}")
    return lines


def cells(path: Path) -> list[dict[str, Any]]:
    """The cells of a notebook file."""
    return list(json.loads(path.read_text(encoding="utf-8"))["cells"])


def notebook(name: str) -> str:
    """A notebook of docs/ as markdown: text, code, and the output that the file holds."""
    parts = []
    for cell in cells(ROOT / "docs" / name):
        source = "".join(cell["source"]).strip()
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        language = "python" if "\n" in source or not source.startswith("!") else "bash"
        parts.append(f"```{language}\n{source.removeprefix('!') if language == 'bash' else source}\n```")
        if cell["outputs"]:
            parts.append(_shown("".join(cell["outputs"][0]["text"]).strip("\n")))
    return "\n\n".join(parts) + "\n"


def _shown(text: str) -> str:
    """An output: markdown with a table as it is, with bold text for its headings, and anything else as printed."""
    lines = text.splitlines()
    if not any(line.startswith("|") for line in lines):
        return f"```text\n{text}\n```"
    return "\n".join(f"**{line.lstrip('# ')}**" if line.startswith("#") else line for line in lines)


def run(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Run the code cells in the current folder, in one namespace; yields each with what it printed to stdout.

    Raises:
        RuntimeError: a command ended with another code than 0. What a cell raises is raised.
    """
    namespace: dict[str, Any] = {"__name__": "__main__", "_encoder_bench": _command}
    for cell in cells(path):
        if cell["cell_type"] != "code":
            continue
        code = COMMAND.sub(r"\1_encoder_bench(\2)", _quoted("".join(cell["source"])))
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, path.name, "exec"), namespace)  # noqa: S102 - the project's own notebook
        yield cell, printed.getvalue()


def _quoted(source: str) -> str:
    """The arguments of commands as Python strings."""
    return COMMAND.sub(lambda match: f"{match[1]}!encoder-bench {match[2]!r}", source)


def _command(line: str) -> None:
    code = encoder_bench(shlex.split(line))
    if code != 0:
        raise RuntimeError(f"encoder-bench {line} ended with exit code {code}")


def readme_tables() -> str:
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
    several = [(name, command.sentence.rstrip(".")) for name, command in COMMANDS.items() if command.group == SEVERAL]
    lines = [f"**{SEVERAL}**", "", "| Command | What it does |", "|---|---|"]
    tables.append("\n".join([*lines, *(f"| `{name}` | {sentence} |" for name, sentence in several)]))
    return "\n\n".join(tables)


def with_readme_tables(text: str) -> str:
    """The README with the tables as the registry and the records give them."""
    for name, made in (("benchmarks", readme_tables()), ("costs", cost_table().strip())):
        before, _, rest = text.partition(f"<!-- {name}:begin -->")
        _, _, after = rest.partition(f"<!-- {name}:end -->")
        text = f"{before}<!-- {name}:begin -->\n\n{made}\n\n<!-- {name}:end -->{after}"
    return text


def readme_picture(out: Path = PICTURES) -> None:
    """Write explain-light.svg and explain-dark.svg: one encoder under two protocols, and what each setting moves."""
    records, _ = read_records(EXPLAINED)
    (question,) = remembered(EXPLAINED)
    found = explanations(records, question.a, question.b, question.column)
    out.mkdir(parents=True, exist_ok=True)
    for theme, content in drawn(partial(draw_waterfall, found)).items():
        (out / f"explain-{theme}.svg").write_bytes(content)


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


def main(arguments: list[str] | None = None) -> int:
    """Write what the cells print into a notebook, or the tables into the README."""
    (name,) = sys.argv[1:] if arguments is None else arguments
    path = Path(name)
    logging.basicConfig(level=logging.WARNING)
    if path.suffix == ".md":
        readme_picture()
        path.write_text(with_readme_tables(path.read_text(encoding="utf-8")), encoding="utf-8")
        return 0
    content = json.loads(path.read_text(encoding="utf-8"))
    outputs = [printed for _, printed in run(path)]
    codes = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    for number, (cell, printed) in enumerate(zip(codes, outputs, strict=True), 1):
        cell["execution_count"] = number
        lines = printed.splitlines(keepends=True)
        cell["outputs"] = [{"name": "stdout", "output_type": "stream", "text": lines}] if lines else []
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

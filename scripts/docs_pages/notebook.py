"""The tutorial notebook: run its cells, keep what they print, and show it as a page of the site.

python scripts/docs_pages/notebook.py docs/tutorial.ipynb     runs the cells and writes what they print into the file

Cells are plain Python. A line `!encoder-bench …` is a command, as in Jupyter; here it runs in the same process.
"""

from __future__ import annotations

import io
import json
import logging
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
COMMAND = re.compile(r"^( *)!encoder-bench (.*)$", re.MULTILINE)


def cells(path: Path) -> list[dict[str, Any]]:
    """The cells of a notebook file."""
    return list(json.loads(path.read_text(encoding="utf-8"))["cells"])


def page(name: str) -> str:
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
        with redirect_stdout(printed):
            exec(compile(code, path.name, "exec"), namespace)  # noqa: S102 - the project's own notebook
        yield cell, printed.getvalue()


def _quoted(source: str) -> str:
    """The arguments of commands as Python strings."""
    return COMMAND.sub(lambda match: f"{match[1]}!encoder-bench {match[2]!r}", source)


def _command(line: str) -> None:
    from benchmarks.__main__ import main

    code = main(shlex.split(line))
    if code != 0:
        raise RuntimeError(f"encoder-bench {line} ended with exit code {code}")


def main(arguments: list[str] | None = None) -> int:
    """Write what the cells print into the notebook."""
    (name,) = sys.argv[1:] if arguments is None else arguments
    path = Path(name)
    logging.basicConfig(level=logging.WARNING)
    notebook = json.loads(path.read_text(encoding="utf-8"))
    outputs = [printed for _, printed in run(path)]
    codes = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, (cell, printed) in enumerate(zip(codes, outputs, strict=True), 1):
        cell["execution_count"] = number
        lines = printed.splitlines(keepends=True)
        cell["outputs"] = [{"name": "stdout", "output_type": "stream", "text": lines}] if lines else []
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())

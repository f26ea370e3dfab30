"""What a command of `python -m results` prints, run as the page is built: a page cannot show what is no longer so."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
from pathlib import Path

from results.__main__ import main

ROOT = Path(__file__).parents[2]


def output(line: str, code: int = 0, first: int | None = None) -> str:
    """A command and what it prints on a terminal, as two code blocks.

    Args:
        line: as `python -m results diff A B`; it is run in the project's folder.
        code: its exit code.
        first: so many lines of the output alone; with 0 none of it is shown.

    Raises:
        ValueError: another command, or it ends with another exit code.
    """
    words = shlex.split(line)
    if words[:3] != ["python", "-m", "results"]:
        raise ValueError(f"{line} is no command of python -m results")
    printed, here = io.StringIO(), Path.cwd()
    try:
        os.chdir(ROOT)
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            ended = main(words[3:])
    finally:
        os.chdir(here)
    lines = printed.getvalue().rstrip("\n").splitlines()
    if ended != code:
        raise ValueError(f"{line} ended with {ended}, not {code}: {' '.join(lines[-1:])}")
    shown = lines[:first] + (["…"] if first and len(lines) > first else [])
    block = "".join(f"{each}\n" for each in ("", "```text", *shown, "```")) if shown else ""
    said = f"\nIt ends with exit code {code}.\n" if code else ""
    return f"```bash\n{line}\n```\n{block}{said}"

"""Flags read by tyro; what it would refuse in a box over several lines is one sentence here, as all other refusals."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from contextlib import redirect_stderr, redirect_stdout
from difflib import SequenceMatcher
from typing import Any, TypeVar

import tyro
from pydantic import ValidationError

from pretrain.recipe import Recipe

Options = TypeVar("Options")

NEAREST = 3


def parse(kind: type[Options], arguments: list[str], program: str, default: Options | None = None) -> Options:
    """The options in `arguments`; their defaults are the class's own, or those of `default`.

    Raises:
        ValueError: an unknown flag, a missing one, or a value of the wrong type; it names the flag.
        SystemExit: after --help.
    """
    filled = tyro.MISSING_NONPROP if default is None else default
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return tyro.cli(kind, args=arguments, prog=program, default=filled)
    except SystemExit as stop:
        if not stop.code:
            raise
        refused: BaseException = stop
    known = _flags(kind, program, filled)
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        written, _, value = argument.partition("=")
        name = written.replace("_", "-")
        if name.startswith("--") and name not in known:
            nearest = _nearest(name, (flag for flag in known if flag != "--help"))
            raise ValueError(f"there is no flag {name}; {nearest}--help has all")
        value = value or ("" if following.startswith("-") else following)
        if value and _opposite(name) in known:
            raise ValueError(f"{name} takes no value such as {value!r}; its opposite is {_opposite(name)}")
    while refused.__context__ is not None:
        refused = refused.__context__
        if isinstance(refused, ValidationError):  # of fields that do not go together
            raise refused
    raise ValueError(_first_paragraph(said.getvalue()))


def sentence(error: Exception) -> str:
    """What is wrong, on one line."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        where, what = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            what = f"there is no such field; {_nearest(where, _names(Recipe().model_dump()))}docs/recipes.md has all"
        return f"{where}: {what}" if where else what
    # A loader's worker hands its error over with the whole traceback as the text.
    return " ".join(re.split(rf"\n(?:\w+\.)*{type(error).__name__}: ", str(error))[-1].split())


def _flags(kind: type[Any], program: str, default: Any) -> list[str]:
    shown = io.StringIO()
    try:
        with redirect_stdout(shown):
            tyro.cli(kind, args=["--help"], prog=program, default=default)
    except SystemExit:
        return sorted({"--help", *re.findall(r"(?<=[ ,│])--[a-z][\w.-]*", shown.getvalue())})
    raise AssertionError("--help ends the program")


def _opposite(switch: str) -> str:
    before, dot, last = switch.removeprefix("--").rpartition(".")
    return f"--{before}{dot}no-{last}"


def _names(fields: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name, value in fields.items():
        found += _names(value, f"{prefix}{name}.") if isinstance(value, dict) else [f"{prefix}{name}"]
    return found


def _nearest(name: str, known: Iterable[str]) -> str:
    """Says which are nearest. A dotted name's last part counts as much as all of it: some leave `augmentation.` out."""

    def distance(candidate: str) -> float:
        last = [text.removeprefix("--").rpartition(".")[2] for text in (name, candidate)]
        return -max(SequenceMatcher(None, *pair).ratio() for pair in ((name, candidate), last))

    found = sorted(known, key=distance)[:NEAREST]
    return f"the nearest are {', '.join(found)}; " if found else ""


def _first_paragraph(box: str) -> str:
    """The lines above the first rule in tyro's box, which say what is wrong."""
    plain = re.sub(r"\x1b\[[\d;]*m", "", box).splitlines()
    lines = [line.strip("│ ") for line in plain if not line.startswith("╭")]
    ends = [number for number, line in enumerate(lines) if line.startswith(("─", "╰"))]
    return " ".join(lines[: ends[0]] if ends else lines)

"""Command-line parsing shared by all packages: grouped help of commands, and every refusal in one sentence."""

from __future__ import annotations

import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stderr, redirect_stdout, suppress
from difflib import SequenceMatcher
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from results.errors import InputError, did_you_mean, print_error

log = logging.getLogger(__name__)

Options = TypeVar("Options")
EXTRAS = {"jinja2": "report", "markdown_it": "report", "submitit": "cluster"}


def encoder_bench() -> int:
    """The console script: runs `benchmarks.__main__`, and says so where another package has taken that name."""
    try:
        main = import_module("benchmarks.__main__").main
    except (ModuleNotFoundError, AttributeError) as error:
        found = import_module("benchmarks") if find_spec("benchmarks") is not None else None
        if found is not None and hasattr(found, "evaluate"):
            raise  # ours: something else is missing
        place = "is not installed" if found is None else f"at {found.__path__[0]} is another package of that name"
        return print_error(
            "encoder-bench",
            InputError(f"the package `benchmarks` of encoder-bench {place} ({error}); install encoder-bench in an "
                       "environment of its own, or rename or move the other package"),
        )  # fmt: skip
    return int(main())


def start_program() -> None:
    """Set up a command before it imports torch: lines of the log with their time, and OpenMP threads that wait asleep.

    By default a waiting thread spins, and takes from everything else that runs on the same cores. The results are the
    same bits. OpenMP reads the variable once, when torch is imported; loader processes inherit it.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    ignore_missing_glyphs()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")


def ignore_missing_glyphs() -> None:
    """Silence matplotlib's warnings of letters that its font lacks, such as Chinese ones: the picture shows boxes."""
    warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)


@cache
def log_device(name: str) -> None:
    """Log the device that a command runs on, once; under torchrun only rank 0 does."""
    if os.environ.get("RANK", "0") == "0":
        log.info("device: %s", name)


def missing_extra(error: ModuleNotFoundError) -> InputError:
    """The sentence for a package that one of the extras of pyproject.toml installs; another one is raised again."""
    if error.name not in EXTRAS:
        raise error
    extra = EXTRAS[error.name]
    return InputError(
        f"{error.name} is not installed; pip install 'encoder-bench[{extra}]', or in a checkout make setup"
    )


def split_command(
    groups: Mapping[str, Mapping[str, str]], arguments: list[str], program: str, description: str
) -> tuple[str, list[str]]:
    """Return the command and the arguments after it; `--help` prints all commands to stdout and exits with code 0.

    Args:
        groups: by heading, the commands and one sentence about each.

    Raises:
        InputError: no command, or an unknown one.
        SystemExit: after --help.
    """
    names = [name for group in groups.values() for name in group]
    if arguments and arguments[0] in ("-h", "--help"):
        sys.stdout.write(commands_help(groups, program, description))
        raise SystemExit(0)
    if not arguments or arguments[0] not in names:
        fault = f"no command {arguments[0]!r}{did_you_mean(arguments[0], names)}" if arguments else "name a command"
        raise InputError(f"{fault}\ncommands: {', '.join(names)}\n{program} --help says what each one does")
    return arguments[0], arguments[1:]


def commands_help(groups: Mapping[str, Mapping[str, str]], program: str, description: str) -> str:
    """The text of `--help`: one line per command under the heading of its group."""
    width = max(len(name) for group in groups.values() for name in group)
    parts = [f"usage: {program} COMMAND [options]\n\n{description}\n"]
    for heading, group in groups.items():
        parts.append("\n".join([f"{heading}:", *(f"  {name:<{width}}  {line}" for name, line in group.items())]) + "\n")
    parts.append(f"{program} COMMAND --help shows the options of a command.\n")
    return "\n".join(parts)


def first_sentence(kind: type[Any]) -> str:
    """The first line of a class's docstring, for `--help`."""
    return (kind.__doc__ or "").strip().partition("\n")[0]


def parse(kind: type[Options], arguments: list[str], program: str, default: Options | None = None) -> Options:
    """Read `arguments` into a dataclass or pydantic model with tyro; `default` replaces its default values.

    Raises:
        InputError: an unknown or missing flag, a value of the wrong type, or values that do not go together.
        SystemExit: after --help.
    """
    import tyro  # 0.2 s, which a listing of the commands does not need

    filled: Any = tyro.MISSING_NONPROP if default is None else default
    box = io.StringIO()
    if "-h" in arguments or "--help" in arguments:
        encoding = sys.stdout.encoding or "utf-8"
        sys.stdout.write(_help(kind, program, filled).encode(encoding, "replace").decode(encoding))
        raise SystemExit(0)
    try:
        with redirect_stderr(box):
            options = tyro.cli(kind, args=arguments, prog=program, default=filled)
        _refuse_flags_as_values(options, arguments, kind, program, filled)
        return options
    except SystemExit as stop:
        if not stop.code:
            raise
        refusal: BaseException = stop
    except Exception as error:
        # tyro 1.0.0 stumbles over the first word of pydantic's error, which has none.
        fault = error.__context__ if isinstance(error, IndexError) else error
        if type(fault).__name__ != "ValidationError":  # pydantic's, which is not imported here
            raise
        raise InputError(validation_message(fault)) from error
    known = _flags(kind, program, filled)
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        written, _, value = argument.partition("=")
        name = written.replace("_", "-")
        if name.startswith("--") and name not in known:
            raise _no_flag(name, known, program)
        value = value or ("" if following.startswith("-") else following)
        if value and _opposite(name) in known:
            raise InputError(f"{name} takes no value, got {value!r}; its opposite is {_opposite(name)}")
    while refusal.__context__ is not None:
        refusal = refusal.__context__
        if type(refusal).__name__ == "ValidationError":
            raise InputError(validation_message(refusal)) from refusal
    raise InputError(f"{_message(box.getvalue())}\n{program} --help shows what it takes")


def run_script(
    kind: type[Options], work: Callable[[Options], int], name: str, arguments: list[str] | None = None
) -> int:
    """Do the work of `encoder-bench NAME`; 2 and a message on stderr where its flags or its input cannot be used."""
    try:
        return work(parse(kind, sys.argv[1:] if arguments is None else arguments, f"encoder-bench {name}"))
    except (InputError, OSError) as error:
        return print_error(name, error)


def _refuse_flags_as_values(options: object, arguments: list[str], kind: type[Any], program: str, default: Any) -> None:
    """Refuse an unknown flag that tyro before 1.0.14 took for the value of a positional argument."""
    if not hasattr(options, "__dict__"):  # of a function, whose result is a number
        return
    values = [one for value in vars(options).values() for one in (value if isinstance(value, tuple) else (value,))]
    taken = {str(value) for value in values if isinstance(value, (str, Path))}
    for argument in arguments:
        if argument.startswith("--") and argument in taken:
            raise _no_flag(argument, _flags(kind, program, default), program)


def _no_flag(name: str, known: Iterable[str], program: str) -> InputError:
    return InputError(f"no flag {name}{_did_you_mean_flag(name, known)}\n{program} --help lists all flags")


def validation_message(error: Any) -> str:
    """The first fault of a pydantic `ValidationError` as `field: what is wrong`."""
    first = error.errors()[0]
    where, what = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
    return f"{where}: {what}" if where else what


def _flags(kind: type[Any], program: str, default: Any) -> list[str]:
    return sorted({"--help", *re.findall(r"(?<=[ ,])--[a-z][\w.-]*", _help(kind, program, default))})


def _help(kind: type[Any], program: str, default: Any) -> str:
    """tyro's help page, without its frames. Where a flag has no default, it says nothing of None or of an empty one."""
    import tyro

    shown = io.StringIO()
    with redirect_stdout(shown), suppress(SystemExit):
        tyro.cli(kind, args=["--help"], prog=program, default=default, config=(tyro.conf.DisallowNone,))
    page = shown.getvalue()
    without = re.sub(r"\(default:\s*(None)?\)", lambda found: re.sub(r"\S", " ", found[0]), page)
    lines = [after.rstrip() for before, after in zip(page.split("\n"), without.split("\n"), strict=True)
             if after.strip() or not before.strip()]  # fmt: skip
    return "\n".join(lines)


def _opposite(switch: str) -> str:
    before, dot, last = switch.removeprefix("--").rpartition(".")
    return f"--{before}{dot}no-{last}"


def _did_you_mean_flag(name: str, known: Iterable[str]) -> str:
    """As `did_you_mean`. The last part of a dotted flag counts as much as all of it: `--crop` for `--geometry.crop`."""

    def likeness(flag: str) -> float:
        last = [text.removeprefix("--").rpartition(".")[2] for text in (name, flag)]
        return max(SequenceMatcher(None, *pair).ratio() for pair in ((name, flag), last))

    ranked = sorted((flag for flag in known if flag != "--help"), key=likeness, reverse=True)
    close = [flag for flag in ranked if likeness(flag) > max(0.6, likeness(ranked[0]) - 0.1)]
    return f"; did you mean {' or '.join(close[:3])}?" if close else ""


def _message(box: str) -> str:
    """What is wrong, from tyro's box: the part up to its next rule. Without UTF-8 its title has a rule of its own."""
    parts: list[list[str]] = [[]]
    for line in re.sub(r"\x1b\[[\d;]*m", "", box).splitlines():
        text = line.strip("│| ")
        if re.match(r"[╭╰─]|\+-|-{3}", text):  # a rule, and not a flag
            parts.append([])
        else:
            parts[-1] += text.split()
    words = parts[1] if len(parts) > 1 else parts[0]
    message = re.sub(r"'\('([^']+)',\)'", r"'\1'", " ".join(words))  # tyro 1.0.0 prints the tuple of a flag's names
    if message.startswith("Missing from "):
        message = "missing: " + message.partition(": ")[2].replace(" (required)", ";").rstrip(";")
    return message[:1].lower() + message[1:]

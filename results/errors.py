"""The error that every package raises for bad input, and how a command prints it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

MOST_SHOWN = 1600  # characters of a line
CLOSED_PIPE = 141  # exit code of what SIGPIPE ends
INTERRUPTED = 130  # exit code of what SIGINT, Ctrl-C, ends


class InputError(Exception):
    """The user's input cannot be used.

    The message names the file or flag, the fault and the remedy. Commands print it and exit with code 2. Lines after
    the first list the accepted forms. Of a line longer than `MOST_SHOWN` characters, such as one that quotes a damaged
    file, the middle is left out.
    """

    def __init__(self, message: str) -> None:
        # torch raises an exception of a loader's worker again, with the worker's whole traceback as its text.
        text = message.rpartition("InputError: ")[2].strip()
        super().__init__("\n".join(map(_without_middle, text.split("\n"))))


def _without_middle(line: str) -> str:
    """The line, or its beginning (file and fault) and its end (the remedy)."""
    return line if len(line) <= MOST_SHOWN else f"{line[: MOST_SHOWN - 400]} … {line[-397:]}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'knn'?`, or an empty text where no known name is close to the given one."""
    close = get_close_matches(name, list(known), n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(match) for match in close)}?" if close else ""


def first_few(names: Sequence[str]) -> str:
    """The first three names, with an ellipsis if there are more."""
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


_OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|not enough memory|ALLOC_FAILED|bad_alloc",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, numpy, torch or CUDA's libraries says that memory was short."""
    if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__:
        return True
    return isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None


def first_line(text: str) -> str:
    """The first line of a message, where the rest is said elsewhere."""
    return text.partition("\n")[0].rstrip(";")


def sentence_about(subject: str, text: str) -> str:
    """`subject: text`, or the text alone where it begins with the subject, or with the file of `timm:NAME:FILE`."""
    file = subject.rpartition(":")[2]
    return text if text.startswith((f"{subject} ", f"{subject}:", f"{file} ", f"{file}:")) else f"{subject}: {text}"


def print_error(program: str, error: BaseException) -> int:
    """Write `program: message` to stderr and return exit code 2, or that of an interrupted program for Ctrl-C.

    An `OSError` is printed with the file that it is about. The first line stands alone; further lines are indented.
    Of a reader that has seen enough, such as `head`, nothing is said; the code is then that of a closed pipe.
    """
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed when Python ends
        return CLOSED_PIPE
    if isinstance(error, KeyboardInterrupt):
        sys.stderr.write(f"{program}: interrupted; what it stored is kept, and the same command uses it\n")
        return INTERRUPTED
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        text = str(error)
    first, *more = map(without_control, text.splitlines() or [type(error).__name__])
    sys.stderr.write("\n  ".join([f"{program}: {first}", *more]) + "\n")
    return 2


def without_control(line: str) -> str:
    """The text with escapes in place of what would not be shown but obeyed by a terminal; names come from files."""
    return "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in line)

"""Command line of results: `python -m results COMMAND`."""

from __future__ import annotations

import sys

from results.command_line import first_sentence, ignore_missing_glyphs, missing_extra, parse, split_command
from results.errors import InputError, print_error
from results.options import GROUPS

PROGRAM = "python -m results"
ABOUT = "Turn records of measurements, and published figures, into tables, pages, pictures and comparisons."


def main(arguments: list[str] | None = None, program: str = PROGRAM) -> int:
    """Run a command. An input error is printed to stderr and gives exit code 2.

    Args:
        program: how the user calls it, for messages.
    """
    ignore_missing_glyphs()
    given = sys.argv[1:] if arguments is None else arguments
    sentences = {heading: {n: first_sentence(kind) for n, kind in group.items()} for heading, group in GROUPS.items()}
    try:
        name, rest = split_command(sentences, given, program, ABOUT)
        kind = next(group[name] for group in GROUPS.values() if name in group)
        options = parse(kind, rest, f"{program} {name}")

        from results.commands import run  # loads the libraries, which --help does not need

        return run(options)
    except ModuleNotFoundError as error:
        return print_error("results", missing_extra(error))
    except (InputError, OSError, KeyboardInterrupt) as error:
        return print_error("results", error)


if __name__ == "__main__":
    sys.exit(main())

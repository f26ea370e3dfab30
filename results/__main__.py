"""`python -m results`: what was measured and what was published, as pages that nobody typed."""

from __future__ import annotations

import sys

import tyro

from results.commands.options import COMMANDS, AnyCommand


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; 2 and one sentence on stderr where it cannot work."""
    command: AnyCommand = tyro.cli(COMMANDS, args=arguments, prog="python -m results", description=__doc__)

    from results.commands.run import run  # with the libraries, which --help can do without
    from results.errors import InputError, print_error

    try:
        return run(command)
    except (InputError, OSError) as error:
        return print_error("results", error)


if __name__ == "__main__":
    sys.exit(main())

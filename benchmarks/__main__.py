"""`python -m benchmarks COMMAND`: a harness, or one of the commands that prepare what harnesses need."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from importlib import import_module

import tyro

from benchmarks.contract import InputError
from benchmarks.harnesses import HARNESSES
from benchmarks.options import Bench


@dataclass(frozen=True)
class Command:
    """A command beside the harnesses, imported only when asked for.

    `module` has a function `command` whose annotated arguments are the flags (tyro) and whose answer is the exit code.
    """

    name: str
    module: str


# What prepares for harnesses, looks into what they use, or runs several of them.
COMMANDS = (
    Command("audit", "benchmarks.audit"),
    Command("all", "benchmarks.bench_all"),
    Command("check-data", "benchmarks.datasets.check"),
    Command("demo-data", "benchmarks.demo.compose"),
    Command("random-encoder", "benchmarks.encoders.load"),
    Command("explain", "benchmarks.explain"),
    Command("features-gc", "benchmarks.features.gc"),
)


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    commands = {command.name: command for command in COMMANDS}
    names = [*(h.command for h in HARNESSES), *commands]
    if not arguments or arguments[0] not in names:
        sys.stderr.write(f"usage: python -m benchmarks {{{','.join(names)}}} --help\n")
        return 0 if arguments[:1] in (["--help"], ["-h"]) else 2
    name, rest = arguments[0], arguments[1:]
    program = f"python -m benchmarks {name}"
    try:
        if name in commands:
            return int(tyro.cli(import_module(commands[name].module).command, args=rest, prog=program))
        from benchmarks.bench import bench

        return bench(name, tyro.cli(Bench, args=rest, prog=program))
    except InputError as error:
        sys.stderr.write(f"benchmarks: {' '.join(str(error).split())}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"benchmarks: {error.filename or ''}: {error.strerror or error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())

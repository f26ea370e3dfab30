"""`python -m benchmarks COMMAND`: a harness, or one of the commands that prepare what harnesses need."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks.contract import InputError
from benchmarks.harnesses import HARNESSES
from benchmarks.options import DATA, Bench

log = logging.getLogger("benchmarks")


@dataclass
class DemoData:
    """Composes the embedded data: single drawings, scenes in the Pascal VOC layout, the same scenes as COCO."""

    out: Path = DATA
    """data root to write"""
    seed: int = 0
    sheet: Path | None = None
    """also draw a contact sheet of scenes with boxes and masks to this PNG"""


@dataclass
class RandomEncoder:
    """Writes an encoder at random initialisation, its batch-norm statistics taken from images: the fair control."""

    architecture: str
    """as resnet50, or resnet18-w32-k3-nopool"""
    images: Path
    """image folder whose train split the statistics are taken from"""
    out: Path
    """backbone file to write"""
    seed: int = 0
    size: int = 64
    """images are reduced and centre-cropped to this many pixels"""
    threads: int | None = None


COMMANDS = {"demo-data": DemoData, "random-encoder": RandomEncoder}


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    commands = [*(h.command for h in HARNESSES), *COMMANDS]
    if not arguments or arguments[0] not in commands:
        sys.stderr.write(f"usage: python -m benchmarks {{{','.join(commands)}}} --help\n")
        return 0 if arguments[:1] in (["--help"], ["-h"]) else 2
    command, rest = arguments[0], arguments[1:]
    program = f"python -m benchmarks {command}"
    try:
        if command in COMMANDS:
            return _prepare(tyro.cli(COMMANDS[command], args=rest, prog=program))
        from benchmarks.bench import bench

        return bench(command, tyro.cli(Bench, args=rest, prog=program))
    except InputError as error:
        sys.stderr.write(f"benchmarks: {' '.join(str(error).split())}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"benchmarks: {error.filename or ''}: {error.strerror or error}\n")
        return 2


def _prepare(options: DemoData | RandomEncoder) -> int:
    if isinstance(options, DemoData):
        from benchmarks.demo.compose import compose

        compose(options.out, seed=options.seed)
        log.info("composed %s", options.out)
        if options.sheet:
            from benchmarks.demo.sheet import contact_sheet

            contact_sheet(options.out, options.sheet, "trainval")
            log.info("drew %s", options.sheet)
        return 0
    from benchmarks.encoders.random_file import write_random_encoder

    write_random_encoder(options.architecture, options.images, options.out, seed=options.seed, size=options.size)
    log.info("wrote %s", options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Write the backbone of a checkpoint for another library: convert_checkpoint.py IN OUT --to detectron2."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks.encoders.export import CheckpointFormat, convert
from results.command_line import parse
from results.errors import InputError, print_error


@dataclass
class Convert:
    """Convert a checkpoint of any layout that benchmarks read into a file of the same weights for another library.

    The settings that the library must be told (mean, std, channel order, strides) are printed.
    """

    source: tyro.conf.Positional[str]
    """checkpoint, or any other form that `--encoder` takes"""
    out: tyro.conf.Positional[Path]
    """file to write: .pkl for detectron2, .pth for openmmlab and torchvision, .safetensors for this project"""
    to: CheckpointFormat
    name: str | None = None
    """name of the encoder in tables"""
    facts: tuple[str, ...] = ()
    """facts that the checkpoint's keys do not show, as channels=BGR stride_in_1x1=true"""
    force: bool = False
    """replace OUT if it exists"""


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 2 with a message on stderr."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        options = parse(Convert, sys.argv[1:] if arguments is None else arguments, "scripts/convert_checkpoint.py")
        convert(options.source, options.out, options.to, name=options.name, facts=options.facts, force=options.force)
    except (InputError, OSError) as error:
        return print_error("convert-checkpoint", error)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Writes the backbone of a checkpoint for another library: convert_checkpoint.py IN OUT --to detectron2."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks.contract import InputError
from benchmarks.encoders.export.convert import Target, convert


@dataclass
class Convert:
    """Reads any layout that benchmarks read, checks that it is whole, and writes the same weights as the target's file.
    What the target must be told (mean, std, channel order, strides) is printed.
    """

    source: tyro.conf.Positional[str]
    """checkpoint, or what else `--encoder` takes"""
    out: tyro.conf.Positional[Path]
    """file to write: .pkl for detectron2, .pth for openmmlab and torchvision, .safetensors for this project"""
    to: Target
    name: str | None = None
    """what tables call the encoder"""
    facts: tuple[str, ...] = ()
    """what the checkpoint's keys cannot show, as channels=BGR stride_in_1x1=true"""
    force: bool = False
    """replace OUT where it is there"""


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one sentence on what is wrong."""
    options = tyro.cli(Convert, args=arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        convert(options.source, options.out, options.to, name=options.name, facts=options.facts, force=options.force)
    except InputError as error:
        sys.stderr.write(f"convert_checkpoint: {' '.join(str(error).split())}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"convert_checkpoint: {error.filename or ''}: {error.strerror or error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Counts the images in tar shards and writes the index that lets a run begin at any image of them."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from pretrain.command_line import parse, sentence
from pretrain.sources import SHARD_INDEX, count_images


@dataclass
class IndexShards:
    """Writes FOLDER/shards.json, in the format of webdataset's widsindex."""

    folder: tyro.conf.Positional[Path]
    """with the .tar files"""


def main() -> int:
    """Reads the headers of every shard once."""
    try:
        folder = parse(IndexShards, sys.argv[1:], "index_shards.py").folder
        shards = sorted(folder.glob("*.tar"))
        if not shards:
            raise ValueError(f"no .tar file in {folder}")
        entries = [{"url": shard.name, "nsamples": count_images(shard)} for shard in shards]
    except ValueError as error:
        sys.stderr.write(f"index-shards: {sentence(error)}\n")
        return 2
    path = folder / SHARD_INDEX
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"wids_version": 1, "shardlist": entries}, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
    sys.stdout.write(f"wrote {path}: {sum(int(str(e['nsamples'])) for e in entries):,} images\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Count the images in tar shards and write the index from which a run finds any image in them."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from pretrain.data import SHARD_INDEX, count_images
from results.command_line import run_script
from results.errors import InputError
from results.files import write_file


@dataclass
class IndexShards:
    """Write FOLDER/shards.json, in the format of webdataset's widsindex."""

    folder: tyro.conf.Positional[Path]
    """folder of .tar files"""


def index(options: IndexShards) -> int:
    """Read the headers of every shard once."""
    shards = sorted(options.folder.glob("*.tar"))
    if not shards:
        if not options.folder.is_dir():
            raise InputError(f"folder not found: {options.folder}; name the folder of the .tar files")
        raise InputError(f"no .tar file in {options.folder}")
    counts = {shard.name: count_images(shard) for shard in shards}
    entries = [{"url": name, "nsamples": count} for name, count in counts.items()]
    path = options.folder / SHARD_INDEX
    write_file(path, json.dumps({"wids_version": 1, "shardlist": entries}, indent=1) + "\n")
    sys.stdout.write(f"wrote {path}: {sum(counts.values()):,} images\n")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(IndexShards, index, "index-shards"))

"""Count the images in tar shards and write the index from which a run finds any image in them."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from pretrain.data import SHARD_INDEX, count_images
from results.command_line import parse
from results.errors import InputError, print_error
from results.files import write_file


@dataclass
class IndexShards:
    """Write FOLDER/shards.json, in the format of webdataset's widsindex."""

    folder: tyro.conf.Positional[Path]
    """folder of .tar files"""


def main() -> int:
    """Read the headers of every shard once."""
    try:
        folder = parse(IndexShards, sys.argv[1:], "encoder-bench index-shards").folder
        shards = sorted(folder.glob("*.tar"))
        if not shards:
            raise InputError(f"no .tar file in {folder}")
        counts = {shard.name: count_images(shard) for shard in shards}
        entries = [{"url": name, "nsamples": count} for name, count in counts.items()]
        path = folder / SHARD_INDEX
        write_file(path, json.dumps({"wids_version": 1, "shardlist": entries}, indent=1) + "\n")
    except (InputError, OSError) as error:
        return print_error("index-shards", error)
    sys.stdout.write(f"wrote {path}: {sum(counts.values()):,} images\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

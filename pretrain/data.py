"""The images to pretrain on: files in a folder, files in a list, or tar shards. Nothing here needs torch."""

from __future__ import annotations

import io
import json
import re
import struct
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from results.errors import InputError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff"}
SHARD_INDEX = "shards.json"
_METADATA = re.compile("__[^/]*__(/|$)")  # names that webdataset passes over


# What Pillow's decoders raise on files that are damaged in one way or another.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def read_rgb(file: Path | bytes, name: str = "") -> Image.Image:
    """Decodes one file to the pixels that Pillow's `convert("RGB")`, and so torchvision's loader, gives.

    The rule of `benchmarks.datasets.images.decode`, so that pretraining and evaluation see the same pixels, and the
    rule of MoCo's reference: the EXIF orientation is not applied, an alpha channel is dropped, CMYK is converted, of an
    animation the first frame is taken. 16-bit grey is scaled to 8 bits, where Pillow would clip it to white.

    Args:
        file: a path, or the file's bytes with the `name` to call it by.

    Raises:
        InputError: the file is not a whole image, or has 32-bit pixels, whose range is unknown.
    """
    what = name if isinstance(file, bytes) else str(file)
    try:
        image: Image.Image
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            image.load()
    except _DAMAGED as error:
        raise InputError(f"{what} is not a readable image ({error}); repair or remove it") from error
    if image.mode in ("F", "I"):
        raise InputError(f"{what} has 32-bit pixels of unknown range; save it with 8 or 16 bits per channel")
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))  # 257 steps of 16 bits to one of 8
    image.info.pop("transparency", None)  # has no part in the conversion, and Pillow warns about it
    return image.convert("RGB")


@dataclass(frozen=True)
class Files:
    """Images with a path each, in a fixed order.

    Attributes:
        read: opens what a path stands for, in RGB.
    """

    paths: tuple[Path, ...]
    read: Callable[[Path], Image.Image] = read_rgb

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True)
class Shards:
    """Tar files of images in webdataset's layout, with the number of images in each.

    Attributes:
        urls: what webdataset opens: paths, or pipe:, http: and other addresses.
        counts: images per shard.
    """

    urls: tuple[str, ...]
    counts: tuple[int, ...]

    def __len__(self) -> int:
        return sum(self.counts)


def find_images(data: Path) -> Files | Shards:
    """The images of `--data`; labels are not used.

    A folder means every image under its train/ if there is one, else under it, sorted; or its tar shards, with
    shards.json or, without, counted here. A .txt file lists one image per line, relative to the list, and may have a
    label behind each. A .json file is an index of shards as `scripts/index_shards.py` and webdataset's widsindex write
    it: its addresses may lie anywhere.

    Raises:
        InputError: no such folder or file, no image in it, or a list or index that cannot be read.
    """
    if data.suffix == ".txt":
        return _listed(data)
    if data.suffix == ".json":
        return _indexed(data)
    folder = data / "train" if (data / "train").is_dir() else data
    if not folder.is_dir():
        raise InputError(
            f"data folder not found: {folder}\n"
            "--data takes a folder of images or tar shards, a .txt list or a shard index (.json)"
        )
    if (folder / SHARD_INDEX).is_file():
        return _indexed(folder / SHARD_INDEX)
    shards = sorted(folder.glob("*.tar"))
    if shards:
        return _filled({str(shard): count_images(shard) for shard in shards}, folder)
    paths = tuple(sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES))
    if not paths:
        raise InputError(
            f"no image in {folder}\n--data takes a folder of {', '.join(sorted(SUFFIXES))} files or of .tar shards"
        )
    return Files(paths)


def _listed(path: Path) -> Files:
    if not path.is_file():
        raise InputError(f"image list not found: {path}")
    names = []
    for line in filter(None, map(str.strip, path.read_text(encoding="utf-8").splitlines())):
        named = line if is_image(line) else line.rsplit(maxsplit=1)[0]
        if not is_image(named):
            raise InputError(f"{path}: {line!r} names no image ({', '.join(sorted(SUFFIXES))}); correct the line")
        names.append(named)
    if not names:
        raise InputError(f"{path} lists no image; write one path per line")
    first = path.parent / names[0]
    if not first.is_file():
        raise InputError(f"image not found: {first}; the paths in {path} are relative to the folder of the list")
    return Files(tuple(path.parent / name for name in names))


def _indexed(path: Path) -> Shards:
    if not path.is_file():
        raise InputError(f"shard index not found: {path}; scripts/index_shards.py writes one")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["shardlist"]
        urls, counts = [str(e["url"]) for e in entries], [int(e["nsamples"]) for e in entries]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not a shard index (a 'shardlist' of url and nsamples; wrong: {error!r}); write it again with "
            "scripts/index_shards.py"
        ) from error
    here = [url if ":" in url or Path(url).is_absolute() else str(path.parent / url) for url in urls]
    return _filled(dict(zip(here, counts, strict=True)), path)


def _filled(counts: dict[str, int], where: Path) -> Shards:
    filled = {url: count for url, count in counts.items() if count}
    if not filled:
        raise InputError(f"no image in the shards of {where}; --data takes webdataset's layout, images in tar files")
    return Shards(tuple(filled), tuple(filled.values()))


def is_image(name: str) -> bool:
    """Whether the suffix is an image's."""
    return Path(name).suffix.lower() in SUFFIXES


def count_images(shard: Path) -> int:
    """Images in one tar file, from its headers alone.

    Raises:
        InputError: not a whole tar file.
    """
    try:
        with tarfile.open(shard, "r:") as tar:
            return sum(member.isreg() and is_image(member.name) and not _METADATA.match(member.name) for member in tar)
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"{shard} is not a whole tar file ({error}); copy it again") from error

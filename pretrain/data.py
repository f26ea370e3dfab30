"""The images to pretrain on: files in a folder, files in a list, or tar shards. Nothing here needs torch."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import struct
import tarfile
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from results.errors import InputError
from results.files import MAX_PIXELS, PathList, open_image, read_bytes, read_text, require_regular

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff"}
SHARD_INDEX = "shards.json"
MAX_BYTES = 2**28  # of an image in a tar file
SHARDS_LOOKED_AT, MEMBERS_LOOKED_AT = 8, 64  # to see whether shards hold one class each
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
# Folders of photos in the layouts of Pascal VOC and Cityscapes; the images in folders next to them are label masks.
PHOTO_FOLDERS = ("JPEGImages", "leftImg8bit")
FINGERPRINT_IMAGES = 64  # whose content is in a fingerprint
Pixels = NDArray[np.uint8]  # (H, W, 3), RGB
_START, _END = b"\xff\xd8", b"\xff\xd9"  # of a JPEG file
_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended and progressive
_NO_FRAMES = (0xC4, 0xC8, 0xCC)  # other segments among the numbers of the frames
log = logging.getLogger(__name__)
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
        with open_image(file) as image:
            image.load()
    except _DAMAGED as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error  # without the path again
        raise InputError(f"{what} is not a readable image ({reason}); repair or remove it") from error
    if image.mode in ("F", "I"):
        raise InputError(f"{what} has 32-bit pixels of unknown range; save it with 8 or 16 bits per channel")
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))  # 257 steps of 16 bits to one of 8
    image.info.pop("transparency", None)  # has no part in the conversion, and Pillow warns about it
    return image.convert("RGB")


def read_pixels(file: Path | bytes, name: str = "") -> Pixels:
    """The pixels that `read_rgb` gives. Whole grey and YCbCr JPEG files are decoded by OpenCV, all others by Pillow.

    Args:
        file, name: as for `read_rgb`.

    Raises:
        InputError: see `read_rgb`.
    """
    data = file if isinstance(file, bytes) else _content(file)
    if data is not None and _is_common_jpeg(data):
        cv2 = require_cv2()
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
        if pixels is not None:
            return pixels
    return np.array(read_rgb(file, name))


def _content(path: Path) -> bytes | None:
    """None where it cannot be read: `read_rgb` says why."""
    try:
        require_regular(path)
        return path.read_bytes()
    except OSError:
        return None


def _is_common_jpeg(data: bytes) -> bool:
    """Whether it is a JPEG file of 8 bits with one or three channels that does not end early.

    Of a file that was cut off, OpenCV fills up the rest with grey, where Pillow refuses it.
    """
    if not data.startswith(_START) or not data.endswith(_END):
        return False
    at = len(_START)
    while at + 9 < len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in _NO_FRAMES:
            height, width = (int.from_bytes(data[at + offset : at + offset + 2], "big") for offset in (5, 7))
            few = 0 < height * width <= MAX_PIXELS
            return marker in _FRAMES and data[at + 4] == 8 and data[at + 9] in (1, 3) and few
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False


@lru_cache(maxsize=1)
def require_cv2() -> Any:
    """OpenCV's module, on one thread: the loader's workers share the cores.

    Raises:
        InputError: it is not installed, or is too old.
    """
    try:
        import cv2
    except ImportError as error:
        raise InputError(
            "augmentation.engine cv2 needs OpenCV, which is not installed: pip install opencv-python-headless, or "
            "choose the engine pil or tensor"
        ) from error
    module: Any = cv2
    if not hasattr(module, "IMREAD_COLOR_RGB"):
        raise InputError(f"augmentation.engine cv2 needs OpenCV 4.11 or newer, and this is {module.__version__}")
    module.setNumThreads(0)
    return module


@dataclass(frozen=True)
class Files:
    """Images with a path each, in a fixed order.

    Attributes:
        read: opens what a path stands for, in RGB.
    """

    paths: Sequence[Path]
    read: Callable[[Path], Image.Image] = read_rgb

    def __len__(self) -> int:
        return len(self.paths)

    def name_of(self, number: int) -> str:
        """The image's path."""
        return str(self.paths[number])

    def fingerprint(self, root: Path) -> str:
        """Hash of all names relative to `root`, and of the content of some images."""
        digest = hashlib.sha256()
        if isinstance(self.paths, PathList) and self.paths.folder == root:
            digest.update(self.paths.names)  # a second for 100 million of them
        else:
            for path in self.paths:
                name = path.relative_to(root) if path.is_relative_to(root) else path
                digest.update(f"{name.as_posix()}\n".encode(errors="surrogateescape"))
        for number in range(0, len(self), -(-len(self) // FINGERPRINT_IMAGES)):
            path = self.paths[number]
            batch = path.with_name(path.name.partition("#")[0])  # an image in a batch file of CIFAR-10
            source = path if path.is_file() else batch
            digest.update(_content_sha256(source) if source.is_file() else b"missing")
        return digest.hexdigest()


@dataclass(frozen=True)
class Shards:
    """Tar files of images in webdataset's layout, with the number of images in each.

    Attributes:
        urls: the files; with `--remote-shards` also addresses that webdataset opens, as pipe: and http:.
        counts: images per shard.
        remote: those of `urls` that are addresses.
    """

    urls: tuple[str, ...]
    counts: tuple[int, ...]
    remote: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return sum(self.counts)

    def name_of(self, number: int) -> str:
        """The image's place in its shard."""
        for url, count in zip(self.urls, self.counts, strict=True):
            if number < count:
                return f"image {number} of {url}"
            number -= count
        raise IndexError(number)

    def fingerprint(self, root: Path) -> str:
        """Hash of the names, counts and, of local shards, sizes."""
        digest = hashlib.sha256()
        for url, count in zip(self.urls, self.counts, strict=True):
            size = Path(url).stat().st_size if Path(url).is_file() else ""
            digest.update(f"{url.rpartition('/')[2]} {count} {size}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()


@lru_cache(maxsize=8)
def _content_sha256(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def require_batch(images: Files | Shards, batch_size: int) -> None:
    """Refuse fewer images than one batch has.

    Raises:
        InputError: they are fewer.
    """
    if len(images) < batch_size:
        raise InputError(f"{len(images)} images do not fill one batch of {batch_size}; add images or lower batch_size")


def find_images(data: Path, *, remote_shards: bool = False) -> Files | Shards:
    """The images of `--data`; labels are not used.

    A folder means every image under its train/ if there is one, else under it, sorted; or its tar shards, with
    shards.json or, without, counted here. Of a VOC or Cityscapes root only the photos are taken, not the label masks.
    A .txt file lists one image per line, relative to the list, and may have a label behind each. A .json file is an
    index of shards as `encoder-bench index-shards` and webdataset's widsindex write it, of files in its folder.

    Args:
        remote_shards: an index may also name files elsewhere and addresses. A pipe: address runs a shell command.

    Raises:
        InputError: no such folder or file, no image in it, or a list or index that cannot be read.
    """
    if data.suffix == ".txt":
        return _listed(data)
    if data.suffix == ".json":
        return _indexed(data, remote_shards)
    folder = data / "train" if (data / "train").is_dir() else data
    if not folder.is_dir():
        raise InputError(
            f"data folder not found: {folder}\n"
            "--data takes a folder of images or tar shards, a .txt list or a shard index (.json)"
        )
    if (folder / SHARD_INDEX).is_file():
        return _indexed(folder / SHARD_INDEX, remote_shards)
    shards = sorted(shard for shard in folder.glob("*.tar") if shard.is_file())
    if shards:
        return _filled({str(shard): count_images(shard) for shard in shards}, folder)
    names = _below(folder)
    if not names:
        raise InputError(
            f"no image in {folder}\n--data takes a folder of {', '.join(sorted(SUFFIXES))} files or of .tar shards"
        )
    prefix = "" if folder == data else f"{folder.name}/"
    return Files(PathList(data, (prefix + "/".join(parts) for parts in _photos(names, folder))))


def _below(folder: Path) -> list[tuple[str, ...]]:
    """The images below a folder, as the sorted parts of their paths. No Path is made, as they may be millions."""
    found = []
    for where, folders, names in os.walk(folder):
        folders.sort()
        parts = Path(where).relative_to(folder).parts
        found += [(*parts, name) for name in (*names, *folders) if is_image(name)]
    return sorted(found)


def _photos(inside: list[tuple[str, ...]], folder: Path) -> list[tuple[str, ...]]:
    """Leave out the images that lie next to a folder of photos, which are label masks."""
    roots = {parts[: parts.index(name)] for parts in inside for name in PHOTO_FOLDERS if name in parts[:-1]}
    if not roots:
        return inside
    kept = [
        parts
        for parts in inside
        if not any(parts[: len(root)] == root and parts[len(root)] not in PHOTO_FOLDERS for root in roots)
    ]
    if len(kept) < len(inside):
        log.info("%d photos in %s; %d images next to their folders are taken for label masks and left out",
                 len(kept), folder, len(inside) - len(kept))  # fmt: skip
    return kept


def _listed(path: Path) -> Files:
    if not path.is_file():
        raise InputError(f"image list not found: {path}")
    names = []
    try:
        lines = read_text(path).splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file ({error}); write one path per line") from error
    for line in filter(None, map(str.strip, lines)):
        named = line if is_image(line) else line.rsplit(maxsplit=1)[0]
        if not is_image(named):
            raise InputError(f"{path}: {line[:200]!r} names no image ({', '.join(sorted(SUFFIXES))}); correct the line")
        names.append(named)
    if not names:
        raise InputError(f"{path} lists no image; write one path per line")
    first = path.parent / names[0]
    if not first.is_file():
        raise InputError(f"image not found: {first}; the paths in {path} are relative to the folder of the list")
    return Files(PathList(path.parent, names))


def _indexed(path: Path, remote: bool) -> Shards:
    if not path.is_file():
        raise InputError(f"shard index not found: {path}; encoder-bench index-shards writes one")
    try:
        entries = json.loads(read_bytes(path))["shardlist"]
        urls, counts = [str(e["url"]) for e in entries], [int(e["nsamples"]) for e in entries]
    except RecursionError as error:
        raise InputError(f"{path} is nested too deeply; write it again with encoder-bench index-shards") from error
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise InputError(
            f"{path} is not a shard index (a 'shardlist' of url and nsamples; wrong: {error!r}); write it again with "
            "encoder-bench index-shards"
        ) from error
    found: dict[str, int] = {}
    addresses = set()
    for url, count in zip(urls, counts, strict=True):
        file = path.parent / url
        if file.is_file() and (remote or _is_below(file, path.parent)):
            if not 0 <= count <= file.stat().st_size // tarfile.BLOCKSIZE:
                raise InputError(
                    f"{path} says that {file} has {count} images, more or fewer than it can hold; write it again with "
                    "encoder-bench index-shards"
                )
            found[str(file)] = count
        elif not remote:
            raise InputError(
                f"{path} names the shard {url!r}, which is no file in {path.parent}; correct it, or allow files "
                "elsewhere and addresses with --remote-shards (pipe: runs a shell command)"
            )
        elif not _ADDRESS.match(url) or not 0 <= count < 2**40:
            raise InputError(f"{path} names the shard {url!r} with {count} images; correct the address or the number")
        else:
            found[url] = count
            addresses.add(url)
    return _filled(found, path, addresses)


def _is_below(file: Path, folder: Path) -> bool:
    """Whether a path lies below a folder as it is written; a symbolic link in the folder may point anywhere."""
    return Path(os.path.normpath(file.absolute())).is_relative_to(os.path.normpath(folder.absolute()))


def _filled(counts: dict[str, int], where: Path, addresses: Set[str] = frozenset()) -> Shards:
    filled = {url: count for url, count in counts.items() if count}
    if not filled:
        raise InputError(f"no image in the shards of {where}; --data takes webdataset's layout, images in tar files")
    return Shards(tuple(filled), tuple(filled.values()), frozenset(addresses & filled.keys()))


def is_image(name: str) -> bool:
    """Whether the suffix is an image's."""
    name = name.rpartition("/")[2]
    dot = name.rfind(".")
    return dot > 0 and name[dot:].lower() in SUFFIXES


def count_images(shard: Path) -> int:
    """Images in one tar file, from its headers alone.

    Raises:
        InputError: not a whole tar file.
    """
    try:
        with tarfile.open(shard, "r:") as tar:
            return sum(map(_holds_image, tar))
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"{shard} is not a whole tar file ({error}); copy it again") from error


def seem_sorted_by_class(shards: Shards) -> bool:
    """Whether each of some local shards holds one class only, by the folder or the name before "_" of its first images.

    Batches of such shards hold few classes, and the negatives of a query are of its own class too often.
    """
    local = [url for url in shards.urls if url not in shards.remote]
    classes: list[str] = []
    for url in local[:: max(1, len(local) // SHARDS_LOOKED_AT)]:
        try:
            with Path(url).open("rb") as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
                names = [member.name for member in islice(filter(_holds_image, tar), MEMBERS_LOOKED_AT)]
        except (tarfile.TarError, OSError):  # is refused when it is read
            return False
        own = {name.rpartition("/")[0] or name.partition("_")[0] for name in names}
        if len(names) < 2 or len(own) > 1:
            return False
        classes += own
    return len(set(classes)) > 1


def read_members(stream: IO[bytes], url: str) -> Iterator[dict[str, Any]]:
    """The images in a tar file in order, as webdataset's `group_by_keys` takes them.

    Raises:
        InputError: not a whole tar file, or an image of more than `MAX_BYTES`.
    """
    try:
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                if _holds_image(member):
                    if member.size > MAX_BYTES:
                        raise InputError(f"{member.name} in {url} has {member.size:,} bytes, too many for an image")
                    opened = tar.extractfile(member)
                    assert opened is not None  # it is a regular file
                    yield {"fname": member.name, "data": opened.read(), "__url__": url}
                tar.members.clear()  # type: ignore[attr-defined]  # they would pile up
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"{url} is not a whole tar file ({error}); copy it again") from error


def _holds_image(member: tarfile.TarInfo) -> bool:
    """Whether a member is an image. A sparse file is not one: a few bytes can stand for gigabytes."""
    whole = member.isreg() and not member.issparse()
    return whole and is_image(member.name) and not _METADATA.match(member.name)

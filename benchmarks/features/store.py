"""Features on disk, addressed by everything that could change a number in them."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from benchmarks.contract import InputError, Split
from benchmarks.features.address import Wanted, file_key
from benchmarks.features.extract import widths
from benchmarks.features.fill import Pass, Settings
from benchmarks.features.join import join
from benchmarks.features.shards import Claims, Partial, write_json

log = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
_NAMED = 5


class FeatureStore:
    """A folder of features. The same address, no work; anything that could change a number changes the address.

    Every output lies in a file of its own below the address, so a protocol that needs one more output costs one more
    pass and no other file. Any number of processes may fill one address at once, the ranks of torchrun among them:
    each takes shards that no other has, and all return when all shards are there. A shard is the same whoever
    computes it. After a kill the finished shards stay.

    Images that cannot be read do not stop a pass of hours. They are left out of the split, told by name and count,
    and listed beside the features; the caller sees a shorter split and must mark the number.

    Args:
        root: the folder.
        settings: how passes are made.
    """

    def __init__(self, root: Path, settings: Settings = Settings()) -> None:  # noqa: B008 - it is immutable
        self.root, self.settings = root, settings

    def get(self, wanted: Sequence[Wanted]) -> list[Split]:
        """The splits with (N, D) float32 memory maps, computed where they are not there yet.

        Row i is image i of the split's labels, joined by id. These are the wanted labels without the images that
        could not be read.

        Raises:
            InputError: see `fill`; with `strict`, an image that could not be read in an earlier pass either.
        """
        self.fill(wanted)
        return [self._read(want) for want in wanted]

    def fill(self, wanted: Iterable[Wanted]) -> None:
        """Computes what is not there yet: one pass per address for everything that is wanted of it.

        Raises:
            InputError: the disk has or leaves too little room, features are NaN or infinite, maps do not fit a pooling
                kernel, no image can be read; with `strict`, any image cannot.
        """
        passes = list(self._passes(wanted))
        needed = sum(part.bytes_to_write() for _, parts in passes for part in parts.values())
        if not passes:
            return
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"the features cannot go to {self.root} ({error.strerror}); set --features to another folder"
            ) from error
        free = shutil.disk_usage(self.root).free
        log.info("features to compute: %s in %s, where %s are free", gib(needed), self.root, gib(free))
        if needed > free:
            raise InputError(
                f"the features need {gib(needed)} in {self.root}, where {gib(free)} are free; make room or set "
                "--features to another disk"
            )
        for want, parts in passes:
            try:
                self._compute(want, parts)
            except OSError as error:
                if error.errno in _READ_ONLY:
                    raise InputError(
                        f"{error.filename or self.root} may not be written ({error.strerror}); set --features to a "
                        "folder that may"
                    ) from error
                if error.errno not in _FULL:
                    raise
                left = sum(part.bytes_to_write() for part in parts.values())
                raise InputError(
                    f"{self.root} is full, and the features of {want.encoder.card.name} need another {gib(left)}; make "
                    "room and run the same command again, finished shards are kept"
                ) from error

    def _compute(self, want: Wanted, parts: Mapping[str, Partial]) -> None:
        folder = self.root / want.address
        folder.mkdir(exist_ok=True)
        if not (folder / "ids.json").is_file():
            write_json(folder / "meta.json", _meta(want))
            write_json(folder / "ids.json", want.labels.ids)
        with Claims(folder) as claims:
            try:
                Pass(want, parts, claims, self.settings).run()
            except BaseException:
                _tidy(folder, parts.values(), claims)
                raise

    def bytes_to_write(self, wanted: Iterable[Wanted]) -> dict[str, int]:
        """Disk that `fill` would take, per file name of an output."""
        sizes: dict[str, int] = defaultdict(int)
        for _, parts in self._passes(wanted):
            for key, part in parts.items():
                sizes[key] += part.bytes_to_write()
        return dict(sizes)

    def _passes(self, wanted: Iterable[Wanted]) -> Iterator[tuple[Wanted, dict[str, Partial]]]:
        """One per address that lacks something, with the file -> output of all who want it and its lacking files."""
        by_address: dict[str, list[Wanted]] = defaultdict(list)
        for want in wanted:
            by_address[want.address].append(want)
        for address, same in by_address.items():
            folder, first = self.root / address, same[0]
            outputs = {key: output for want in same for key, output in want.files.items()}
            lacking = {key: output for key, output in outputs.items() if not (folder / f"{key}.npy").is_file()}
            if lacking:
                dims = widths(first.encoder, first.geometry, lacking)
                yield (
                    first.with_outputs(lacking),
                    {key: Partial(folder, key, len(first.labels), dims[key]) for key in lacking},
                )

    def _read(self, want: Wanted) -> Split:
        folder = self.root / want.address
        with suppress(OSError):  # a store that may only be read is as good
            os.utime(folder / "meta.json")
        split, unreadable = join(folder, want.labels, {k: file_key(*output) for k, output in want.outputs.items()})
        if unreadable:
            names = ", ".join(list(unreadable)[:_NAMED]) + (", …" if len(unreadable) > _NAMED else "")
            told = f"{len(unreadable)} of {len(want.labels)} images of {want.about} cannot be read: {names}"
            if self.settings.strict:
                raise InputError(f"{told}; repair them or leave them out of the lists ({folder} says why)")
            log.warning("%s; they are left out, %s/*.json say why", told, folder)
        return split


def gib(size: float) -> str:
    """For people: `0.3 MiB`, `12.0 GiB`."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.1f} MiB"


def _meta(want: Wanted) -> dict[str, object]:
    return {
        **want.description,
        "encoder": want.encoder.card.model_dump(mode="json"),
        "about": want.about,
        "count": len(want.labels),
    }


def _tidy(folder: Path, parts: Iterable[Partial], claims: Claims) -> None:
    """Leaves nothing behind where no shard was finished and nobody else is at work."""
    for part in parts:
        part.close()
    if any(part.started for part in parts) or list(folder.glob("*.npy")) or not claims.take_all():
        return
    shutil.rmtree(folder, ignore_errors=True)

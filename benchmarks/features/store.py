"""The feature store: features on disk, at an address made of everything that could change a number in them.

The command `features-gc` lists what is stored, and removes what no record refers to.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.datasets.images import require_nvjpeg
from benchmarks.encoders.forms import expand
from benchmarks.encoders.load import load_encoder
from benchmarks.features.extract import FEATURES_VERSION, ExtractionPass, FeatureRequest, file_key, widths
from benchmarks.features.shards import (
    PartialOutput,
    ShardClaims,
    as_float_rows,
    read_absent,
    read_ids,
    read_json,
    read_output,
    shard_rows,
)
from benchmarks.task import InputError, Labels, RunOptions, Split, StoredFormat, one_bar
from results.files import DISK_FULL
from results.schema import Record, canonical_sha256
from results.store import read_records

if TYPE_CHECKING:
    from benchmarks.features.pool import Pooling

log = logging.getLogger(__name__)

_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
_NAMED_IMAGES = 5
# Addresses, and leftovers of killed runs of versions before 2. Nothing else in the folder belongs to the store.
_STORE_FOLDER = re.compile(r"[0-9a-f]{24}|\.[0-9a-f]+\.\d+\.partial")
# Data sets whose images are stored as those of another (`Labels.stored_as`), so that a record's fingerprint is not that
# of stored features. Everything that could be theirs is kept.
_STORED_AS_ANOTHER = ("imagenet_real",)


def stored_dtype(pooling: Pooling | None, stored: StoredFormat = "fp32") -> str:
    """The type of an output's numbers on disk."""
    name = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}[stored]
    if pooling is None:
        return name
    from benchmarks.features.pool import PatchRows

    return pooling.dtype if isinstance(pooling, PatchRows) else name


class FeatureStore:
    """A folder of features, computed once per address.

    Every output has a file of its own at the address, so a protocol that needs one more output costs one more pass and
    one more file. Several processes may fill one address at once, such as the ranks of torchrun: each takes shards that
    no other process has, and all return when all shards are there. A shard is the same whoever computes it. Finished
    shards survive a kill.

    An unreadable image does not stop a pass of hours. It is left out of the split, reported by name and count, and
    listed next to the features; the caller gets a shorter split and must mark the number.

    Args:
        options: `features` is the folder; `batch_size`, `workers`, `strict` and `progress` say how to extract.
    """

    def __init__(self, options: RunOptions) -> None:
        self.root, self.options = options.features, options

    def get(self, requests: Sequence[FeatureRequest]) -> list[Split]:
        """The splits with (N, D) memory maps, float32 or float16, computed where they are missing.

        Features in bfloat16, which NumPy does not have, are mapped too, and widened when they are read: `WidenedRows`.

        Row i is image i of the split's labels, joined by id. These are the requested labels without the images that
        could not be read.

        Raises:
            InputError: see `fill`; with `strict`, also an image that could not be read in an earlier pass.
        """
        self.fill(requests)
        return [self._read(request) for request in requests]

    def fill(self, requests: Iterable[FeatureRequest]) -> None:
        """Compute what is missing, in one pass per address for all requests.

        Raises:
            InputError: the disk has too little room or gets full, features are NaN or infinite, a pooling kernel does
                not fit the maps, or no image can be read; with `strict`, any image cannot be read.
        """
        passes = list(self._passes(requests))
        if not passes:
            return
        for each in passes:
            if each.request.geometry.decoder == "nvjpeg":
                require_nvjpeg(each.request.encoder.device)
        needed = sum(part.bytes_to_write() for each in passes for part in each.parts.values())
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"cannot store features in {self.root} ({error.strerror}); set --features to another folder"
            ) from error
        free = shutil.disk_usage(self.root).free
        log.info("features to compute: %s in %s, where %s are free", gib(needed), self.root, gib(free))
        if needed > free:
            raise InputError(
                f"the features need {gib(needed)} in {self.root}, but only {gib(free)} are free; free disk space, or "
                "set --features to another disk"
            )
        total = sum(len(shard_rows(shard, each.rows)) for each in passes for shard in each.incomplete())
        with one_bar(total, passes[0].label, show=self.options.progress) as advance:
            for each in passes:
                self._run(each, advance)

    def _run(self, each: ExtractionPass, advance: Callable[[int], None]) -> None:
        try:
            each.run(advance)
        except OSError as error:
            if error.errno in _READ_ONLY:
                raise InputError(
                    f"cannot write {error.filename or self.root} ({error.strerror}); set --features to a folder "
                    "that you may write"
                ) from error
            if error.errno not in DISK_FULL:
                if self.root not in Path(str(error.filename)).parents:
                    raise
                raise InputError(
                    f"cannot use {error.filename} ({error.strerror}); remove the folder {each.folder}"
                ) from error
            left = sum(part.bytes_to_write() for part in each.parts.values())
            raise InputError(
                f"{self.root} is full, and the features of {each.request.encoder.card.name} need {gib(left)} more; "
                "free disk space and run the same command again, finished shards are kept"
            ) from error

    def bytes_to_write(self, requests: Iterable[FeatureRequest]) -> dict[str, int]:
        """Disk space that `fill` would need, by file name of the output."""
        sizes: dict[str, int] = defaultdict(int)
        for each in self._passes(requests):
            for key, part in each.parts.items():
                sizes[key] += part.bytes_to_write()
        return dict(sizes)

    def _passes(self, requests: Iterable[FeatureRequest]) -> Iterator[ExtractionPass]:
        """One pass per address with missing outputs, for all requests of this address."""
        by_address: dict[str, list[FeatureRequest]] = defaultdict(list)
        for request in requests:
            by_address[request.address].append(request)
        for address, same in by_address.items():
            folder, first = self.root / address, same[0]
            outputs = {key: output for request in same for key, output in request.files.items()}
            missing = {key: output for key, output in outputs.items() if not (folder / f"{key}.npy").is_file()}
            if missing:
                dims = widths(first.encoder, first.geometry, missing)
                parts = {
                    key: PartialOutput(folder, key, len(first.images), dims[key], stored_dtype(pooling, first.stored))
                    for key, (_, pooling) in missing.items()
                }
                yield ExtractionPass(first.with_outputs(missing), folder, parts, self.options)

    def _read(self, request: FeatureRequest) -> Split:
        folder = self.root / request.address
        with suppress(OSError):  # a read-only store will do
            os.utime(folder / "meta.json")
        files = {key: file_key(*output) for key, output in request.outputs.items()}
        split, unreadable = _join(folder, request.labels, files)
        if unreadable:
            names = ", ".join(list(unreadable)[:_NAMED_IMAGES]) + (", …" if len(unreadable) > _NAMED_IMAGES else "")
            fault = f"{len(unreadable)} of {len(request.labels)} images of {request.about} cannot be read: {names}"
            if self.options.strict:
                raise InputError(f"{fault}; repair them or remove them from the lists (reasons in {folder})")
            _warn_once(f"{fault}; they are left out, for the reasons in {folder}/*.json")
        return split


@cache
def _warn_once(text: str) -> None:
    """Log a warning, but only for the first of the benchmarks that read the same features."""
    log.warning("%s", text)


def gib(size: float) -> str:
    """A size for people: `0.3 MiB`, `12.0 GiB`."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.1f} MiB"


def _join(folder: Path, labels: Labels, files: Mapping[str, str]) -> tuple[Split, dict[str, str]]:
    """The images of `labels` that have a row in every output, and the other images: id -> reason.

    The features stay memory-mapped where their rows are those of the labels in order. Otherwise they are copied: an
    image could be read in one pass and not in another, or the labels are in another order.

    Args:
        files: feature key -> name of its file, without suffix.

    Raises:
        InputError: the files do not hold the images of their lists, or no image is left.
    """
    requested = set(labels.ids)
    try:
        ids = read_ids(folder)
        absent = {key: read_absent(folder, file) for key, file in files.items()}
        unreadable = {id: reason for reasons in absent.values() for id, reason in reasons.items() if id in requested}
        if len(unreadable) == len(requested):  # numpy cannot map the empty arrays
            raise InputError(f"none of the {len(requested)} images can be read: {next(iter(unreadable.values()))}")
        features = {key: read_output(folder, file, ids, absent[key]) for key, file in files.items()}
    except (OSError, ValueError) as error:
        raise InputError(f"the features in {folder} are damaged ({error}); remove that folder") from error
    if unreadable:
        labels = labels.rows([row for row, id in enumerate(labels.ids) if id not in unreadable])
    for key, file in files.items():
        stored = tuple(id for id in ids if id not in absent[key])
        if len(features[key]) != len(stored) or not requested.issubset({*stored, *unreadable}):
            raise InputError(f"{folder / file}.npy does not hold the images that it should; remove {folder}")
        if stored != labels.ids:
            row_of = {id: row for row, id in enumerate(stored)}
            features[key] = features[key][[row_of[id] for id in labels.ids]]
        features[key] = as_float_rows(features[key])
    return Split(labels, features), unreadable


@dataclass(frozen=True)
class StoredFeatures:
    """One folder of the store.

    Attributes:
        meta: description of the features; None where it cannot be read.
        size: bytes on disk of complete outputs.
        unfinished: bytes on disk of unfinished outputs.
        used: time of the last use.
        busy: another process is filling it.
    """

    folder: Path
    meta: dict[str, Any] | None
    size: int
    unfinished: int
    used: float
    busy: bool

    @property
    def foreign(self) -> bool:
        """Whether the folder is a link, or not one of the store's. Such a folder is never removed."""
        return _STORE_FOLDER.fullmatch(self.folder.name) is None or self.folder.is_symlink()


def features_gc_command(
    features: Path = Path("work/features"),
    records: Path = Path("work/records"),
    encoder: tuple[str, ...] = (),
    delete: bool = False,
) -> int:
    """List stored features that no record refers to, and remove them with --delete.

    Features are in use if a record was measured on them (same encoder, images, geometry and precision), or if they are
    of one of the given encoders. Unfinished features of processes that are no longer alive are removed too; otherwise
    the next run would resume them.

    Args:
        features: folder of the stored features.
        records: folder of the records.
        encoder: encoders (or globs) whose features are in use too, such as those of a run without a record yet.
        delete: remove unused features.
    """
    if features.exists() and not features.is_dir():
        raise InputError(f"expected a folder, but {features} is a file; choose another with --features")
    stored = scan(features)
    found, bad = read_records(records) if records.is_dir() else ((), ())
    if bad:
        log.warning("%d files in %s are not readable records and are ignored: %s, …", len(bad), records, bad[0].path)
    weights = {load_encoder(each).card.weights_sha256 for each in expand(encoder)}
    unused = {entry.folder for entry in stored if not entry.foreign}
    unused -= in_use(stored, [each.record for each in found], weights)
    if delete and not records.is_dir() and any(entry.meta and entry.folder in unused for entry in stored):
        raise InputError(f"{records} is not a folder, so all features would count as unused; give --records")
    freed = 0
    for entry in stored:
        remove = entry.folder in unused and not entry.busy
        state = "busy" if entry.busy else "kept" if entry.foreign else "unused" if remove else "used"
        left = f", and {gib(entry.unfinished)} unfinished" if entry.unfinished and not entry.busy else ""
        sys.stdout.write(f"{state:6}  {gib(entry.size):>10}{left}  {_summary(entry)}\n")
        if entry.busy or entry.foreign:
            continue
        freed += entry.size + entry.unfinished if remove else entry.unfinished
        if delete:
            _remove(entry.folder if remove else entry.folder / "partial")
    verb = "removed" if delete else "can be removed with --delete"
    sys.stdout.write(f"{gib(sum(e.size + e.unfinished for e in stored))} in {features}, {gib(freed)} {verb}\n")
    return 0


def _remove(folder: Path) -> None:
    try:
        if folder.exists():
            shutil.rmtree(folder)
    except OSError as error:
        raise InputError(f"cannot remove {error.filename or folder} ({error.strerror}); remove it yourself") from error


def scan(root: Path) -> list[StoredFeatures]:
    """The folders of the store, by the time of their last use."""
    folders = sorted(entry for entry in root.iterdir() if entry.is_dir()) if root.is_dir() else []
    entries = []
    for folder in folders:
        try:
            meta = _checked_meta(read_json(folder / "meta.json"))
            used = (folder / "meta.json").stat().st_mtime
        except (OSError, ValueError):
            meta, used = None, folder.stat().st_mtime
        busy = False
        if (folder / "claims").is_file() and _STORE_FOLDER.fullmatch(folder.name):
            with ShardClaims(folder) as claims:
                busy = not claims.take_all()
        unfinished = _size_on_disk(folder / "partial")
        entries.append(StoredFeatures(folder, meta, _size_on_disk(folder) - unfinished, unfinished, used, busy))
    return sorted(entries, key=lambda entry: entry.used)


def _checked_meta(meta: Any) -> dict[str, Any]:
    """A description of stored features.

    Raises:
        ValueError: it is something else.
    """
    kinds = {"version": int, "weights": str | None, "images": str, "geometry": dict, "precision": str, "about": str,
             "count": int, "encoder": dict}  # fmt: skip
    if not isinstance(meta, dict) or not all(isinstance(meta.get(name), kind) for name, kind in kinds.items()):
        raise ValueError("not a description of features")
    inner = (meta["encoder"].get("name"), *(meta["geometry"].get(name) for name in ("mode", "resize", "crop")))
    if not all(isinstance(value, str | int) for value in inner):
        raise ValueError("not a description of features")
    return meta


def in_use(
    stored: Collection[StoredFeatures], records: Collection[Record], weights: Collection[str | None]
) -> set[Path]:
    """Folders with features of one of the records or one of the encoders (by `weights_sha256`)."""
    valid = [(entry.folder, entry.meta) for entry in stored if entry.meta and entry.meta["version"] == FEATURES_VERSION]
    used = {folder for folder, meta in valid if meta["weights"] in weights}
    for record in records:
        protocol = record.protocol.resolved
        precision = next((o.partition("=")[2] for o in protocol.overrides if o.startswith("precision=")), "fp32")
        of_train, of_test = (
            [
                (folder, meta)
                for folder, meta in valid
                if (meta["weights"], meta["geometry"], meta["precision"])
                == (record.encoder.weights_sha256, geometry.model_dump(mode="json"), precision)
            ]
            for geometry in (protocol.geometry, protocol.test_geometry or protocol.geometry)
        )
        if any(override.startswith("unreadable=") for override in protocol.overrides):
            # The record's fingerprint is that of the readable images only, so compare the names of the splits.
            splits = {f"{record.dataset.id} {name}" for name in (protocol.train_split, protocol.test_split)}
            used |= {folder for folder, meta in (*of_train, *of_test) if meta["about"] in splits}
            continue
        if record.dataset.id in _STORED_AS_ANOTHER:
            splits = {protocol.train_split, protocol.test_split}
            used |= {folder for folder, meta in (*of_train, *of_test) if meta["about"].rpartition(" ")[2] in splits}
            continue
        for train, test in product(of_train, of_test):
            if canonical_sha256([train[1]["images"], test[1]["images"]]) == record.dataset.fingerprint:
                used |= {train[0], test[0]}
    return used


def _summary(entry: StoredFeatures) -> str:
    last = datetime.fromtimestamp(entry.used, UTC).date()
    meta = entry.meta
    if entry.foreign:
        kind = f"a link to {entry.folder.readlink()}" if entry.folder.is_symlink() else "not made by this store"
        return f"{entry.folder.name}  {kind}, never removed by this command"
    if meta is None:
        return f"{entry.folder.name}  unknown, {last}"
    geometry = meta["geometry"]
    outputs = ", ".join(sorted(file.stem for file in entry.folder.glob("*.npy"))) or "nothing complete"
    version = "" if meta["version"] == FEATURES_VERSION else f"  of version {meta['version']}"
    return (
        f"{entry.folder.name}  {meta['encoder']['name']}  {meta['about']}, {meta['count']:,} images  "
        f"{geometry['mode']} {geometry['resize']} to {geometry['crop']} {geometry['interpolation']}  "
        f"{meta['precision']}  {outputs}  last used {last}{version}"
    )


def _size_on_disk(folder: Path) -> int:
    """Bytes that the files below a folder occupy. A sparse file occupies less than its length."""
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())

"""The `features-gc` command: list the stored features, and remove those that no record refers to."""

from __future__ import annotations

import logging
import re
import shutil
import sys
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.encoders.forms import expand
from benchmarks.encoders.load import load_encoder
from benchmarks.features.shards import ShardClaims, read_json
from benchmarks.features.store import FEATURES_VERSION, gib
from benchmarks.task import InputError
from results.schema import Record, canonical_sha256
from results.store import read_records

log = logging.getLogger(__name__)

# Addresses, and leftovers of killed runs of versions before 2. Nothing else in the folder belongs to the store.
_STORE_FOLDER = re.compile(r"[0-9a-f]{24}|\.[0-9a-f]+\.\d+\.partial")
# Data sets whose images are stored as those of another (`Labels.stored_as`), so that a record's fingerprint is not that
# of stored features. Everything that could be theirs is kept.
_STORED_AS_ANOTHER = ("imagenet_real",)


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


def command(
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

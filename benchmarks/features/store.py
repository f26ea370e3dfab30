"""The feature store: features on disk, at an address made of everything that could change a number in them."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from benchmarks.datasets.images import require_nvjpeg
from benchmarks.datasets.lists import fingerprint
from benchmarks.encoders.encoder import Encoder
from benchmarks.features.extract import Extract, ImageBatch, Reader, default_batch_size, extractor, read_batches, widths
from benchmarks.features.shards import (
    PartialOutput,
    ShardClaims,
    as_float_rows,
    read_absent,
    read_ids,
    read_output,
    shard_of,
    shard_rows,
    widened,
    write_json,
)
from benchmarks.task import InputError, Labels, Outputs, Precision, RunOptions, Split, StoredFormat, one_bar
from results.files import DISK_FULL
from results.schema import Geometry, canonical_sha256

if TYPE_CHECKING:
    from benchmarks.features.pool import Pooling

log = logging.getLogger(__name__)

# Raised by hand when extraction itself changes a number; a test holds golden vectors against it.
FEATURES_VERSION = 2
MAX_UNWRITTEN_BATCHES = 2

_POLL_SECONDS = 0.5
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
_NAMED_IMAGES = 5


@dataclass(frozen=True)
class FeatureRequest:
    """Outputs of one encoder on one split.

    Attributes:
        outputs: feature key -> (encoder output, pooling of its maps or None for a vector).
        about: the data set and its split, for people.
        stored: number format on disk of all outputs but patch rows, whose pooling says it.
    """

    encoder: Encoder
    labels: Labels
    geometry: Geometry
    outputs: Outputs
    precision: Precision = "fp32"
    about: str = ""
    stored: StoredFormat = "fp32"

    @property
    def images(self) -> Labels:
        """What is stored: the split itself, or the one whose features serve for it."""
        return self.labels.stored_as or self.labels

    @cached_property
    def description(self) -> dict[str, object]:
        """Everything that could change a number; the encoder's name could not.

        Left out are the device, the libraries, the number of threads and the batch size: they may change the order of
        the same float32 sums. With these four equal, features are equal bit for bit.
        """
        card = self.encoder.card
        head = {} if card.head is None else {"head": card.head}  # the hash of the weights is the backbone's only
        stored = {} if self.stored == "fp32" else {"stored": self.stored}
        return {
            **head,
            **stored,
            "version": FEATURES_VERSION,
            "weights": card.weights_sha256,
            "architecture": card.architecture.model_dump(mode="json"),
            "input": [card.mean, card.std, card.value_range, card.channels],
            "embed": card.embed,
            "images": fingerprint(self.images),
            "geometry": self.geometry.model_dump(mode="json"),
            "precision": self.precision,
        }

    @cached_property
    def address(self) -> str:
        """Name of the folder in the store."""
        return canonical_sha256(self.description)[:24]

    @property
    def files(self) -> dict[str, tuple[str, Pooling | None]]:
        """File name without suffix -> output, as in `outputs`. The same output under two keys is one file."""
        return {file_key(*output): output for output in self.outputs.values()}

    def with_outputs(self, outputs: Outputs) -> FeatureRequest:
        """The same request for other outputs, without computing the images' fingerprint again."""
        other = replace(self, outputs=outputs)
        other.__dict__.update(description=self.description, address=self.address)
        return other


def file_key(output: str, pooling: Pooling | None) -> str:
    """File name of an output, without suffix."""
    return output if pooling is None else f"{output}-{canonical_sha256(pooling.model_dump(mode='json'))[:8]}"


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
            log.warning("%s; they are left out, for the reasons in %s/*.json", fault, folder)
        return split


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


class ExtractionPass:
    """One pass of an encoder over a split, shared by all processes that make it."""

    def __init__(
        self, request: FeatureRequest, folder: Path, parts: Mapping[str, PartialOutput], options: RunOptions
    ) -> None:
        self.request, self.folder, self.parts, self.options = request, folder, parts, options
        self.rows = len(request.images)
        self.batch_size = options.batch_size or default_batch_size(request.encoder.device, request.geometry.crop)
        self.label = f"features of {request.encoder.card.name}"
        self.advance: Callable[[int], None] = lambda images: None  # moves a progress bar
        self.missing: dict[int, Outputs] = {}  # shard -> the outputs that it lacks
        self.unreadable: dict[int, dict[int, str]] = defaultdict(dict)  # shard -> row -> reason
        self.written: dict[int, int] = defaultdict(int)  # shard -> number of rows

    def incomplete(self) -> list[int]:
        """Shards that lack an output."""
        return [shard for shard in range(next(iter(self.parts.values())).shards) if self._missing_outputs(shard)]

    def run(self, advance: Callable[[int], None]) -> None:
        """Return when every shard is on disk, whichever process computed it.

        Args:
            advance: is told of so many more images.
        """
        self.advance = advance
        self.folder.mkdir(exist_ok=True)
        if not (self.folder / "ids.json").is_file():
            meta = {
                **self.request.description,
                "encoder": self.request.encoder.card.model_dump(mode="json"),
                "about": self.request.about,
                "count": self.rows,
            }
            write_json(self.folder / "meta.json", meta)
            write_json(self.folder / "ids.json", self.request.images.ids)
        with ShardClaims(self.folder) as claims:
            try:
                self._run(claims)
            except BaseException:
                self._remove_if_empty(claims)
                raise

    def _run(self, claims: ShardClaims) -> None:
        request = self.request
        for part in self.parts.values():
            part.allocate()
        reader = Reader(request.images.paths, request.geometry, strict=self.options.strict)
        announced = False
        with (
            extractor(request.encoder, request.geometry, request.outputs, request.precision) as extract,
            ThreadPoolExecutor(1) as writer,
        ):
            while missing := self.incomplete():
                if not self._extract_free_shards(missing, claims, reader, extract, writer):
                    if not announced:
                        log.info("%s: waiting for other processes", self.label)
                    announced = True
                    time.sleep(_POLL_SECONDS)
        for part in self.parts.values():
            part.complete(request.images.ids)

    def _extract_free_shards(
        self, shards: list[int], claims: ShardClaims, reader: Reader, extract: Extract, writer: ThreadPoolExecutor
    ) -> bool:
        """Compute those of the shards that no other process has; False where there are none."""
        writes: deque[Future[None]] = deque()
        read = read_batches(
            reader, self._rows_to_read(shards, claims), self.request.encoder.device, self.options.loaders
        )
        for batch in read:
            self.advance(batch.stop - batch.start)
            outputs = self.missing[shard_of(batch.start)]
            vectors = extract(batch.images, outputs) if batch.readable else {}
            # In a thread of its own, so that the model waits for neither the device's answer nor the disk.
            writes.append(writer.submit(self._write, batch, vectors, outputs, claims))
            while len(writes) > MAX_UNWRITTEN_BATCHES:
                writes.popleft().result()
        for write in writes:
            write.result()
        return bool(writes)

    def _missing_outputs(self, shard: int) -> Outputs:
        return {key: self.request.outputs[key] for key, part in self.parts.items() if not part.done(shard)}

    def _rows_to_read(self, shards: Iterable[int], claims: ShardClaims) -> Iterator[range]:
        """Rows per batch. A shard is claimed only when the reader comes to it."""
        for shard in shards:
            if not claims.take(shard):
                continue
            self.missing[shard] = self._missing_outputs(shard)
            if not self.missing[shard]:  # another process finished it in the meantime
                claims.release(shard)
                continue
            rows = shard_rows(shard, self.rows)
            for start in range(0, len(rows), self.batch_size):
                yield rows[start : start + self.batch_size]

    def _write(self, batch: ImageBatch, vectors: Mapping[str, Tensor], outputs: Outputs, claims: ShardClaims) -> None:
        shard = shard_of(batch.start)
        self.unreadable[shard].update(batch.unreadable)
        readable = np.array(batch.readable, dtype=np.int64) - batch.start
        for key in outputs:
            part = self.parts[key]
            rows = np.zeros((batch.stop - batch.start, part.width), np.float32)
            if len(readable):
                rows[readable] = vectors[key].cpu().numpy()
            stored = part.encoded(rows)
            bad = np.flatnonzero(~np.isfinite(widened(stored)).all(axis=1))
            if len(bad):
                remedy = "" if self.request.precision == "fp32" else ", or use --precision fp32"
                remedy += "" if self.request.stored == "fp32" else ", or use --stored fp32"
                raise InputError(
                    f"{self.request.encoder.card.name}: {len(bad)} of {len(rows)} images have NaN or infinite {key}, "
                    f"the first is {self.request.images.ids[batch.start + bad[0]]}; check the weights{remedy}"
                )
            part.write(batch.start, stored)
        # Counted, because the write of an earlier batch may have failed.
        self.written[shard] += batch.stop - batch.start
        if self.written[shard] == len(shard_rows(shard, self.rows)):
            for key in outputs:
                self.parts[key].finish(shard, self.unreadable[shard])
            claims.release(shard)

    def _remove_if_empty(self, claims: ShardClaims) -> None:
        """Remove the folder after an error where no shard is finished and no other process is at work."""
        for part in self.parts.values():
            part.close()
        if any(part.started for part in self.parts.values()) or list(self.folder.glob("*.npy")):
            return
        if claims.take_all():
            shutil.rmtree(self.folder, ignore_errors=True)

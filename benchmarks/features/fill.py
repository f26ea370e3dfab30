"""One pass of an encoder over a split, shared by however many processes make it."""

from __future__ import annotations

import logging
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from benchmarks.contract import InputError
from benchmarks.features.address import Wanted
from benchmarks.features.batches import Batch, Reader, batches
from benchmarks.features.extract import Extract, Outputs, default_batch_size, extractor
from benchmarks.features.shards import Claims, Partial, shard_of, shard_rows
from benchmarks.progress import progress

log = logging.getLogger(__name__)

_UNWRITTEN_BATCHES = 2
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Settings:
    """How a pass is made; nothing of it changes what a feature means.

    Attributes:
        batch_size: images at a time; default by the device and the size of the images.
        workers: loader processes beside a GPU. On a CPU reading takes turns with the model on torch's threads, and 0
            keeps it in one.
        strict: stop at the first image that cannot be read.
        show: the progress.
    """

    batch_size: int | None = None
    workers: int = 2
    strict: bool = False
    show: bool = True

    def __post_init__(self) -> None:
        """Raises InputError where a number means nothing."""
        if self.batch_size is not None and self.batch_size < 1:
            raise InputError(f"--batch-size {self.batch_size}: give 1 or more, or leave it out")
        if self.workers < 0:
            raise InputError(f"--workers {self.workers}: give 0 or more")


class Pass:
    """One encoder over the shards of one split that nobody else has."""

    def __init__(self, want: Wanted, parts: Mapping[str, Partial], claims: Claims, settings: Settings) -> None:
        self.want, self.parts, self.claims, self.settings = want, parts, claims, settings
        self.rows = len(want.labels)
        self.batch_size = settings.batch_size or default_batch_size(want.encoder.device, want.geometry.crop)
        self.outputs: dict[int, Outputs] = {}  # shard -> what it lacks
        self.unreadable: dict[int, dict[int, str]] = defaultdict(dict)  # shard -> row -> why
        self.written: dict[int, int] = defaultdict(int)  # shard -> rows

    def run(self) -> None:
        """Returns when every shard is on the disk, whoever computed it."""
        for part in self.parts.values():
            part.allocate()
        reader = Reader(self.want.labels.paths, self.want.geometry, strict=self.settings.strict)
        shards = range(next(iter(self.parts.values())).shards)
        told = False
        with (
            extractor(self.want.encoder, self.want.geometry, self.want.outputs, self.want.precision) as extract,
            ThreadPoolExecutor(1) as writer,
        ):
            while lacking := [shard for shard in shards if self._lacks(shard)]:
                if not self._take_part(lacking, reader, extract, writer):
                    if not told:
                        log.info("features of %s: waiting for other processes", self.want.encoder.card.name)
                    told = True
                    time.sleep(_POLL_SECONDS)
        for part in self.parts.values():
            part.complete(self.want.labels.ids)

    def _take_part(self, shards: list[int], reader: Reader, extract: Extract, writer: ThreadPoolExecutor) -> bool:
        """Computes those of the shards that nobody else has; False where that is none."""
        writes: deque[Future[None]] = deque()
        read = batches(reader, self._requests(shards), self.want.encoder.device, self.settings.workers)
        total = sum(-(-len(shard_rows(shard, self.rows)) // self.batch_size) for shard in shards)
        label = f"features of {self.want.encoder.card.name}"
        for batch in progress(read, label, total=total, show=self.settings.show):
            outputs = self.outputs[shard_of(batch.start)]
            vectors = extract(batch.images, outputs) if batch.readable else {}
            writes.append(writer.submit(self._write, batch, vectors, outputs))
            while len(writes) > _UNWRITTEN_BATCHES:
                writes.popleft().result()
        for write in writes:
            write.result()
        return bool(writes)

    def _lacks(self, shard: int) -> Outputs:
        return {key: self.want.outputs[key] for key, part in self.parts.items() if not part.done(shard)}

    def _requests(self, shards: Iterable[int]) -> Iterator[range]:
        """Rows to read next. A shard is taken when the reader comes to it, and not before."""
        for shard in shards:
            if not self.claims.take(shard):
                continue
            self.outputs[shard] = self._lacks(shard)
            if not self.outputs[shard]:  # done since the list was made
                self.claims.release(shard)
                continue
            rows = shard_rows(shard, self.rows)
            for start in range(0, len(rows), self.batch_size):
                yield rows[start : start + self.batch_size]

    def _write(self, batch: Batch, vectors: Mapping[str, Tensor], outputs: Outputs) -> None:
        """In a thread of its own, so that neither the device's answer nor the disk keeps the model waiting."""
        shard = shard_of(batch.start)
        self.unreadable[shard].update(batch.unreadable)
        places = np.array(batch.readable, dtype=np.int64) - batch.start
        for key in outputs:
            part = self.parts[key]
            rows = np.zeros((batch.stop - batch.start, part.width), np.float32)
            if len(places):
                rows[places] = vectors[key].cpu().numpy()
            bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
            if len(bad):
                remedy = "" if self.want.precision == "fp32" else ", or use --precision fp32"
                raise InputError(
                    f"{self.want.encoder.card.name}: {len(bad)} of {len(rows)} images have NaN or infinite {key}, the "
                    f"first is {self.want.labels.ids[batch.start + bad[0]]}; check the weights{remedy}"
                )
            part.write(batch.start, rows)
        # Counted, as a batch before this one may have failed to be written.
        self.written[shard] += batch.stop - batch.start
        if self.written[shard] == len(shard_rows(shard, self.rows)):
            for key in outputs:
                self.parts[key].finish(shard, self.unreadable[shard])
            self.claims.release(shard)

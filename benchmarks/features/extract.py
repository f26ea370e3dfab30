"""Extraction of features: what is requested, batches of images, folding of batch norms, and passes over a split."""

from __future__ import annotations

import logging
import shutil
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.data import Dataset

from benchmarks.datasets.images import BadImage, EncodedImage, Images, decode_cropped, read_encoded
from benchmarks.datasets.lists import fingerprint
from benchmarks.encoders.encoder import Encoder
from benchmarks.features.shards import PartialOutput, ShardClaims, shard_of, shard_rows, widened, write_json
from benchmarks.task import InputError, Labels, Outputs, Precision, RunOptions, StoredFormat
from pretrain.distributed import AUTOCAST, DataLoader, full_float32, sent
from results.schema import Geometry, canonical_sha256

if TYPE_CHECKING:
    from benchmarks.features.pool import Pooling

log = logging.getLogger(__name__)

Extract = Callable[[Tensor, Outputs], dict[str, Tensor]]
Map = Callable[[Callable[[int], Any], Sequence[int]], Iterable[Any]]

# Raised by hand when extraction itself changes a number; a test holds golden vectors against it.
FEATURES_VERSION = 2
MAX_UNWRITTEN_BATCHES = 2
FOLD_TOLERANCE = 1e-3  # of an output's largest value: above rounding in the deepest networks, below any wrong fold

_POLL_SECONDS = 0.5
# Pixels of a batch. On a CPU, the maps of a batch this small stay in the last-level cache (ResNet-50 at 224 pixels: 8
# images). It must not depend on the number of threads: sums may be ordered differently in a batch of another size.
_CPU_BATCH_PIXELS = 8 * 224**2
_GPU_BATCH_PIXELS = 256 * 224**2


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


class ImageBatch(NamedTuple):
    """Consecutive rows of a split.

    Attributes:
        start, stop: the rows.
        readable: the rows whose image could be read.
        images: (len(readable), 3, crop, crop) uint8, RGB.
        unreadable: the rows whose image could not be read, with the reason.
        encoded: the bytes of further rows, which the device is to decode, joined.
        encoded_sizes: bytes and pixels of each of these rows.
    """

    start: int
    stop: int
    readable: list[int]
    images: Tensor
    unreadable: dict[int, str]
    encoded: Tensor
    encoded_sizes: dict[int, tuple[int, int]]


class Reader(Dataset[ImageBatch]):
    """Reads ranges of rows. An unreadable image is reported in the batch, or with `strict` raised at once.

    With the decoder nvjpeg most images are left to `decode_batch`.
    """

    def __init__(self, paths: Sequence[Path], geometry: Geometry, *, strict: bool = False) -> None:
        self.images, self.strict, self.geometry = Images(paths, geometry), strict, geometry
        self.crop, self.on_device = geometry.crop, geometry.decoder == "nvjpeg"

    def read(self, rows: Sequence[int], map_rows: Map = map) -> ImageBatch:
        """Read consecutive rows; `map_rows` may read several at a time."""
        read = self.read_encoded if self.on_device else self.read_one
        found = dict(zip(rows, map_rows(read, rows), strict=True))
        images = {row: image for row, image in found.items() if isinstance(image, Tensor)}
        # Channels last in memory, as they are decoded and as the model needs them.
        stacked = torch.empty(len(images), self.crop, self.crop, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
        if images:
            torch.stack(list(images.values()), out=stacked)
        unreadable = {row: reason for row, reason in found.items() if isinstance(reason, str)}
        encoded = {row: file for row, file in found.items() if isinstance(file, EncodedImage)}
        # One tensor, because each one takes a file descriptor on its way from a loader process.
        joined = torch.cat([file.data for file in encoded.values()]) if encoded else torch.empty(0, dtype=torch.uint8)
        sizes = {row: (len(file.data), file.pixels) for row, file in encoded.items()}
        return ImageBatch(rows[0], rows[-1] + 1, list(images), stacked, unreadable, joined, sizes)

    def __getitems__(self, rows: list[int]) -> ImageBatch:
        return self.read(rows)

    def read_encoded(self, row: int) -> EncodedImage | Tensor | str:
        """The image's file, where the device can be expected to decode it; else as `read_one`."""
        return read_encoded(self.images.paths[row]) or self.read_one(row)

    def read_one(self, row: int) -> Tensor | str:
        """The image, or why it cannot be decoded."""
        try:
            return self.images[row][0]
        except BadImage as error:
            cause = error.__cause__
            if self.strict or (isinstance(cause, OSError) and cause.errno is not None):
                raise  # the system's error, not the decoder's: a failing disk says nothing about the image
            return str(error)


def read_batches(
    reader: Reader, requests: Iterable[Sequence[int]], device: torch.device, workers: int
) -> Iterator[ImageBatch]:
    """One batch per request, in order, with nothing left to decode."""
    batches = _read_batches(reader, requests, device, workers)
    return _decoded_ahead(batches, reader, device) if reader.on_device else batches


def _decoded_ahead(batches: Iterable[ImageBatch], reader: Reader, device: torch.device) -> Iterator[ImageBatch]:
    """The batches, each decoded on a stream of its own while the encoder works on the one before."""
    # The host waits for it before it decodes the next batch, so its short kernels go before the encoder's.
    stream = torch.cuda.Stream(device, priority=-1)
    waiting: tuple[ImageBatch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            decoded = decode_batch(batch, reader, device)
            done = stream.record_event()
        if waiting is not None:
            yield _arrived(*waiting)
        waiting = decoded, done
    if waiting is not None:
        yield _arrived(*waiting)


def _arrived(batch: ImageBatch, done: torch.cuda.Event) -> ImageBatch:
    """The batch for the current stream, which waits for the event; the host does not."""
    if batch.readable:
        current = torch.cuda.current_stream(batch.images.device)
        current.wait_event(done)
        batch.images.record_stream(current)  # so that its memory is not given away too early
    return batch


def decode_batch(batch: ImageBatch, reader: Reader, device: torch.device) -> ImageBatch:
    """The batch with all its images on the device. What that cannot decode, this process reads."""
    sizes = batch.encoded_sizes.values()
    parts = batch.encoded.split([length for length, _ in sizes]) if sizes else ()
    files = [EncodedImage(part, pixels) for part, (_, pixels) in zip(parts, sizes, strict=True)]
    images: dict[int, Tensor] = dict(zip(batch.readable, sent(batch.images, device), strict=True))
    unreadable = dict(batch.unreadable)
    for row, image in zip(batch.encoded_sizes, decode_cropped(files, reader.geometry, device), strict=True):
        found = reader.read_one(row) if image is None else image
        if isinstance(found, str):
            unreadable[row] = found
        else:
            images[row] = sent(found, device)
    rows = sorted(images)
    stacked = torch.stack([images[row] for row in rows]) if rows else batch.images
    return batch._replace(
        readable=rows, images=stacked, unreadable=unreadable, encoded=batch.encoded[:0], encoded_sizes={}
    )


def _read_batches(
    reader: Reader, requests: Iterable[Sequence[int]], device: torch.device, workers: int
) -> Iterator[ImageBatch]:
    """One batch per request, in order.

    On a GPU, `workers` processes read ahead. On a CPU, reading and computing need the same cores, and computing threads
    that wait for each other at every layer lose more to a reader than the reader gains. So they take turns, each with
    all of torch's threads (Pillow decodes and resizes outside the interpreter's lock). Without workers, this thread
    reads.
    """
    if not workers:
        yield from map(reader.read, requests)
    elif device.type == "cpu":
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            yield from (reader.read(rows, threads.map) for rows in requests)
    else:
        yield from DataLoader(
            reader,
            batch_sampler=requests,  # any iterable of lists works
            num_workers=workers,
            collate_fn=_unchanged,  # `__getitems__` returns a batch, not a list
            pin_memory=device.type == "cuda",
        )


def _unchanged(batch: ImageBatch) -> ImageBatch:
    return batch


def default_batch_size(device: torch.device, crop: int) -> int:
    """Images per batch, by the kind of device and the image size only."""
    return max(1, (_CPU_BATCH_PIXELS if device.type == "cpu" else _GPU_BATCH_PIXELS) // crop**2)


@contextmanager
def extractor(encoder: Encoder, geometry: Geometry, outputs: Outputs, precision: Precision) -> Iterator[Extract]:
    """A function of (N, 3, crop, crop) uint8 images and some of `outputs` that returns (N, D) float32 per key.

    fp32 is float32 throughout, without TF32. bf16 and fp16 are torch's autocast; pooling is always float32. Batch norms
    are folded inside the context.
    """
    names = {output for output, _ in outputs.values()}

    def extract(images: Tensor, requested: Outputs) -> dict[str, Tensor]:
        # Entered per call: in the generator, these modes of the thread would leak into its caller.
        with (
            torch.inference_mode(),
            _exact_convolutions(),
            torch.autocast(encoder.device.type, AUTOCAST.get(precision), enabled=precision in AUTOCAST),
        ):
            found = encoder.outputs(encoder.normalise(images), {output for output, _ in requested.values()})
            vectors = {}
            for key, (output, pooling) in requested.items():
                value = found[output].float()
                vectors[key] = _pooled(value, pooling)
            return vectors

    with folded(encoder, names, geometry.crop):
        yield extract


@contextmanager
def _exact_convolutions() -> Iterator[None]:
    """cuDNN, its deterministic kernels, and IEEE float32: for the features and for the check of a fold."""
    cudnn = torch.backends.cudnn
    before = cudnn.enabled, cudnn.benchmark, cudnn.deterministic
    cudnn.enabled, cudnn.benchmark, cudnn.deterministic = True, False, True
    try:
        with full_float32():
            yield
    finally:
        cudnn.enabled, cudnn.benchmark, cudnn.deterministic = before


def _pooled(value: Tensor, pooling: Pooling | None) -> Tensor:
    if pooling is None:
        return value
    from benchmarks.features.pool import pool

    return pool(value, pooling)


def widths(encoder: Encoder, geometry: Geometry, outputs: Outputs) -> dict[str, int]:
    """D of each output's (N, D) features, from one blank image.

    Raises:
        NotApplicableError: a pooling kernel does not fit the encoder's maps.
    """
    blank = torch.zeros(1, 3, geometry.crop, geometry.crop, dtype=torch.uint8)
    with torch.inference_mode():
        found = encoder.outputs(encoder.normalise(blank), {output for output, _ in outputs.values()})
        return {key: _pooled(found[output], pooling).shape[1] for key, (output, pooling) in outputs.items()}


@contextmanager
def folded(encoder: Encoder, names: set[str], size: int) -> Iterator[bool]:
    """Fold every batch norm in eval mode into its convolution, and undo it afterwards. Yields whether any is folded.

    This saves one pass over the maps per convolution, and in bfloat16 one rounding, as the fold itself is made in
    float32. A blank pass shows which norm follows which convolution, so any network will do. If something else reads
    the output of such a convolution, the fold gives other numbers; so it is kept only where the outputs `names` of a
    noise image agree before and after.
    """
    device = encoder.device
    noise = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = encoder.normalise(noise)
    with _exact_convolutions():
        pairs, plain = _convolutions_with_norm(encoder, batch, names)
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    parents = {
        id(child): (parent, name) for parent in encoder.module.modules() for name, child in parent.named_children()
    }
    try:
        for convolution, norm in pairs:
            merged = fuse_conv_bn_eval(convolution, norm).to(device).to(memory_format=torch.channels_last)
            for old, new in ((convolution, merged), (norm, nn.Identity())):
                parent, name = parents[id(old)]
                replaced.append((parent, name, old))
                setattr(parent, name, new)
        with _exact_convolutions():
            kept = not pairs or _agree(plain, encoder.outputs(batch, names))
        if not kept:
            _restore(replaced)
        yield kept and bool(pairs)
    finally:
        _restore(replaced)


def _restore(replaced: list[tuple[nn.Module, str, nn.Module]]) -> None:
    for parent, name, old in reversed(replaced):
        setattr(parent, name, old)
    replaced.clear()


def _agree(plain: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> bool:
    return all(
        bool((plain[name] - found[name]).abs().amax() <= FOLD_TOLERANCE * plain[name].abs().amax()) for name in plain
    )


def _convolutions_with_norm(
    encoder: Encoder, batch: Tensor, names: set[str]
) -> tuple[list[tuple[nn.Conv2d, nn.BatchNorm2d]], dict[str, Tensor]]:
    """(convolution, norm) where the norm's input is the convolution's output, each called once; and the outputs."""
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # holds the tensor, so that no other tensor gets its id
    calls: dict[nn.Module, int] = {}
    found: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        calls[module] = calls.get(module, 0) + 1
        if isinstance(module, nn.Conv2d):
            made[id(output)] = (module, output)
        elif isinstance(module, nn.BatchNorm2d) and id(inputs[0]) in made and module.running_mean is not None:
            found.append((made[id(inputs[0])][0], module))

    kinds = (nn.Conv2d, nn.BatchNorm2d)
    hooks = [m.register_forward_hook(note) for m in encoder.module.modules() if type(m) in kinds]
    try:
        outputs = encoder.outputs(batch, names)
    finally:
        for hook in hooks:
            hook.remove()
    # In-place activations may have overwritten convolution outputs by now, but neither weights nor norms.
    return [(c, n) for c, n in found if calls[c] == calls[n] == 1], dict(outputs)


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

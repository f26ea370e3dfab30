"""The contract of a benchmark: what a task is given, what it returns, and the options of a run.

A benchmark is one file with a subclass of `FeatureTask` (works on stored features of both splits) or `ImageTask` (works
on the encoder and the images), its `Params`, and its protocols. `benchmarks.registry` lists the classes, and
`benchmarks.evaluate` runs them.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
import tyro
from numpy.typing import NDArray
from pydantic import ValidationError
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from results.errors import InputError as InputError  # the name under which benchmarks import it
from results.schema import Params, Protocol, Record, Score

if TYPE_CHECKING:
    from benchmarks.encoders.encoder import Encoder
    from benchmarks.features.pool import Pooling

log = logging.getLogger("benchmarks")

ItemT = TypeVar("ItemT")
ParamsT = TypeVar("ParamsT", bound=Params)
Precision = Literal["fp32", "bf16", "fp16"]
StoredFormat = Literal["fp32", "fp16", "bf16"]
Items = Mapping[str, NDArray[Any]]  # see `Outcome.items`
Outputs = Mapping[str, "tuple[str, Pooling | None]"]  # feature key -> encoder output, pooling of its maps or None
FEATURE_MAPS = ("feature1", "feature2", "feature3", "feature4", "feature5")  # encoder outputs at strides 2 to 32
# Maps of a ViT's patch tokens: of the last block, of the last four together, and without the final norm of the last
# block, of the last ones of each quarter of the depth, and the mean of the last six.
TOKEN_MAPS = ("patches", "patches4", "patches_raw", "patches_even4", "patches_mean6")
TOKEN_VECTORS = (
    "cls",
    "cls_last4",
    "cls_raw",
    "cls_even4",
    "patch_mean",
)  # what else a ViT's tokens give, one vector per image


@cache
def log_once(text: str) -> None:
    """Log what a plan, a run and every further encoder come to again, the first time only."""
    log.info("%s", text)


class NotApplicableError(InputError):
    """This encoder cannot be measured by this benchmark (raw pixels have no feature maps): it is skipped."""


@dataclass(frozen=True)
class RunOptions:
    """How a run is made. Nothing here changes what a number means; what could is shown in the protocol's id."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1, …; auto is the GPU where there is one"""
    workers: int | None = None
    """processes of each rank that load images; default 2 on a CPU, and on a GPU the rank's share of the cores"""
    batch_size: int | None = None
    """images per batch of feature extraction; chosen from device and image size by default"""
    precision: Precision | None = None
    """precision of the encoder; the protocol's own by default, fp32 for stored features"""
    stored: StoredFormat = "fp32"
    """number format of stored features: fp16 and bf16 take half the disk, and show in the protocol's id"""
    seed: int = 0
    """seed of everything that the benchmark draws"""
    strict: bool = False
    """stop at the first unreadable image instead of leaving it out and marking the record"""
    force: bool = False
    """measure again although there is a record"""
    progress: Annotated[bool, tyro.conf.Suppress] = True
    """show progress bars"""
    store: Annotated[bool, tyro.conf.Suppress] = True
    """False leaves no file behind: no record, no features and no heads (see `benchmarks.evaluate.evaluate`)"""
    records: Annotated[Path, tyro.conf.arg(name="out")] = Path("work/records")
    """folder of the records"""
    features: Path = Path("work/features")
    """folder of the stored features"""

    def __post_init__(self) -> None:
        """Raises InputError for a number that cannot be used, or a folder that is a file."""
        if self.batch_size is not None and self.batch_size < 1:
            raise InputError(f"--batch-size must be at least 1, got {self.batch_size}")
        if self.workers is not None and self.workers < 0:
            raise InputError(f"--workers must be at least 0, got {self.workers}")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"--seed must be between 0 and {2**32 - 1}, got {self.seed}")
        for flag, folder in (("--out", self.records), ("--features", self.features)):
            if folder.exists() and not folder.is_dir():
                raise InputError(f"expected a folder, but {folder} is a file; choose another with {flag}")

    def with_precision(self, stated: Precision | None) -> RunOptions:
        """The options with the precision that the user states for the protocol, also where it is the protocol's own."""
        return self if stated is None or self.precision is not None else replace(self, precision=stated)

    @property
    def loaders(self) -> int:
        """`workers`, or as many as suit `device`."""
        if self.workers is not None:
            return self.workers
        from pretrain.distributed import CPU_WORKERS, default_workers

        return default_workers(self.device) if self.device.startswith("cuda") else CPU_WORKERS


@dataclass(frozen=True)
class Labels:
    """The items of one split, in a fixed order, with what is known of them.

    Attributes:
        ids: N image ids, unique within the split; features are joined on them, never on order.
        paths: N image files; for a large set, each Path is made when asked for (`results.files.PathList`).
        classes: C class names.
        targets: (N,) int64 class indices of a single-label set, or (N, C) int8 of a multi-label one with 1 present,
            0 absent, -1 ignored (VOC: every instance is difficult). (N, 0) where only the annotations hold labels.
        groups: N tuples of source ids. Items that share a source are not independent, and the bootstrap resamples
            sources. Every item is its own source unless the data set's `groups.json` says otherwise.
        annotations: files beside the images: N of them (masks, VOC xml), or one for all (a COCO json), or none.
        stored_as: a split with the same images and others under the same ids, whose stored features serve for these.
    """

    ids: tuple[str, ...]
    paths: Sequence[Path]
    classes: tuple[str, ...]
    targets: NDArray[Any]
    groups: tuple[tuple[str, ...], ...]
    annotations: tuple[Path, ...] = ()
    stored_as: Labels | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def one_hot(self) -> NDArray[np.int8]:
        """(N, C) int8 of 1 present, 0 absent, -1 ignored, of a single-label or a multi-label set."""
        if self.targets.ndim == 2:
            return self.targets.astype(np.int8)
        return (self.targets[:, None] == np.arange(len(self.classes))).astype(np.int8)

    def rows(self, rows: Sequence[int] | NDArray[np.int64]) -> Labels:
        """The labels of these rows, in this order."""
        each = len(self.annotations) == len(self)
        return replace(
            self,
            ids=tuple(self.ids[row] for row in rows),
            paths=tuple(self.paths[row] for row in rows),
            targets=self.targets[np.asarray(rows, np.int64)],
            groups=tuple(self.groups[row] for row in rows),
            annotations=tuple(self.annotations[row] for row in rows) if each else self.annotations,
        )


@dataclass(frozen=True)
class Split:
    """A split's labels and its features, row by row.

    `features` maps an output's name (`embed`, `feature1` … `feature5`, `head`) to (N, D) float32, maybe memory-mapped.
    """

    labels: Labels
    features: Mapping[str, NDArray[np.float32]]


@dataclass
class Outcome:
    """What a task measured.

    Attributes:
        scores: one score per protocol column that this encoder can fill.
        per_class: column -> class -> value, where the metric is a mean over classes.
        runs: trials, grid cells, layers, heads: one flat mapping each.
        seeds: the seeds that were used.
        items: arrays of what happened to each test item, for paired comparisons. Accuracy:
            `correct/<column>` (N,) bool. Average precision: `decision/<column>` (N, C) float32. Any metric, where these
            are too many: `pseudo_value/<column>` (N,) float32. `evaluate` adds targets, ids and groups.
        tensors: trained heads or models by name, saved as safetensors beside the record.
        pictures: PNG files by name, saved beside the record.
        timing: seconds by phase.
    """

    scores: dict[str, Score] = field(default_factory=dict)
    per_class: dict[str, dict[str, float]] = field(default_factory=dict)
    runs: list[dict[str, Any]] = field(default_factory=list)
    seeds: tuple[int, ...] = ()
    items: dict[str, NDArray[Any]] = field(default_factory=dict)
    tensors: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)
    timing: dict[str, float] = field(default_factory=dict)

    def add_accuracy(self, column: str, right: NDArray[np.bool_], selection: str) -> None:
        """Add a column of accuracy, from whether each of the (N,) test items is right."""
        self.scores[column] = Score(value=100 * float(right.mean()), n=len(right), selection=selection)
        self.items[f"correct/{column}"] = right


SECONDS_BETWEEN_LOG_LINES = 30.0


class _Bar:
    """Counts images in a bar of a terminal, or in a line of the log every half a minute."""

    def __init__(self, description: str) -> None:
        self.description, self.done, self.total, self.told = description, 0, 0, time.monotonic()
        self.drawn = tqdm(desc=description, leave=False, total=0, unit="img") if sys.stderr.isatty() else None

    def advance(self, count: int) -> None:
        self.done += count
        if self.drawn is not None:
            self.drawn.update(count)
        elif time.monotonic() - self.told > SECONDS_BETWEEN_LOG_LINES:
            self.told = time.monotonic()
            log.info("%s: %d of %d images", self.description, self.done, self.total)

    def grow(self, total: int) -> None:
        self.total += total
        if self.drawn is not None:
            self.drawn.total = self.total
            self.drawn.refresh()


_open_bar: _Bar | None = None


@contextmanager
def one_bar(total: int, description: str, *, show: bool) -> Iterator[Callable[[int], None]]:
    """One bar for all that is done within it; gives the function that moves it by so many images.

    Within a bar, `one_bar` makes that one longer, and `progress` states its description in it.
    """
    global _open_bar
    if not show:
        yield lambda count: None
    elif _open_bar is not None:
        _open_bar.grow(total)
        yield _open_bar.advance
    else:
        _open_bar = bar = _Bar(description)
        bar.grow(total)
        try:
            with logging_redirect_tqdm() if bar.drawn is not None else nullcontext():
                yield bar.advance
        finally:
            _open_bar = None
            if bar.drawn is not None:
                bar.drawn.close()


def progress(
    items: Iterable[ItemT], description: str, *, total: int | None = None, show: bool = True
) -> Iterator[ItemT]:
    """Yields the items and says how far it is."""
    if show and _open_bar is not None and _open_bar.drawn is not None:
        _open_bar.drawn.set_postfix_str(description)
        yield from items
        return
    if not show or sys.stderr.isatty():
        yield from tqdm(items, desc=description, total=total, leave=False, disable=not show)
        return
    if total is None:
        total = len(items) if isinstance(items, Sized) else None
    told = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - told > SECONDS_BETWEEN_LOG_LINES:
            told = time.monotonic()
            log.info("%s: %d%s", description, done, f" of {total}" if total else "")


@dataclass(frozen=True)
class Task(ABC, Generic[ParamsT]):
    """One benchmark. The first line of a subclass's docstring is its sentence in `--help`.

    A flag that only one benchmark understands is a dataclass field of its subclass, with a docstring below it.

    Attributes:
        name: the command, and `Protocol.harness` of its protocols.
        Params: types the `params` of its protocols.
        protocols: every declared protocol, the default first.
        demo_variant: the variant that runs on the embedded data when the user names no protocol.
        fits_image_size: whether images may be resized to a size that the encoder takes; the id then says so.
        suite: without a named protocol, the command runs every data set of the variant that is there.
        half_on_gpu: whether protocols in float32 run in bfloat16 on a GPU, which their id then shows, unless the user
            states a precision.
    """

    name: ClassVar[str]
    Params: ClassVar[type[Params]]
    protocols: ClassVar[tuple[Protocol, ...]]
    demo_variant: ClassVar[str] = "demo"
    fits_image_size: ClassVar[bool] = True
    suite: ClassVar[bool] = False
    half_on_gpu: ClassVar[bool] = False

    def suite_variant(self) -> str:
        """Of a suite: the variant that runs on every data set when the user names no protocol."""
        return self.protocols[0].variant

    def params(self, protocol: Protocol) -> ParamsT:
        """The protocol's `params`, typed.

        Raises:
            InputError: values out of range, or that do not go together.
        """
        try:
            return self.Params.model_validate(protocol.params)  # type: ignore[return-value]  # ClassVars have no TypeVar
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            text = first["msg"].removeprefix("Value error, ")
            raise InputError(f"{protocol.id}: {where + ': ' if where else ''}{text}") from error

    @abstractmethod
    def outputs(self, protocol: Protocol) -> Outputs:
        """What the protocol reads of an encoder: feature key -> (encoder output, pooling of its maps or None).

        An encoder needs at least one of them; those that it does not have are left out.
        """

    def resolve(self, protocol: Protocol) -> Protocol:
        """The protocol as the task's own flags change it.

        Raises:
            InputError: a flag that this protocol has no use for.
        """
        return protocol

    def for_encoder(self, protocol: Protocol, encoder: Encoder) -> Protocol:
        """The protocol with an id that tells what the task's own flags make of it with this encoder."""
        return protocol

    def adapted(self, protocol: Protocol, train: Labels, test: Labels) -> Protocol:
        """The protocol adapted to the size of the user's own data; published protocols are never adapted.

        What it changes shows in the id, as everything that the user changes.
        """
        return protocol

    def check_encoder(self, protocol: Protocol, encoder: Encoder) -> None:
        """Refuse an encoder by what is known of it, before any data is read.

        Raises:
            NotApplicableError: this encoder cannot be measured under this protocol.
        """

    def check(self, protocol: Protocol, train: Labels, test: Labels) -> None:
        """Refuse what the labels alone show, before anything is computed.

        Raises:
            InputError: a class without positives, more neighbours than images, and the like.
        """

    def default_protocol(self, *, embedded: bool, dataset: str | None = None) -> Protocol:
        """The protocol to use when the user names none: the data set's if it has one, else the benchmark's default.

        Raises:
            InputError: no protocol is for the embedded data.
        """
        first = self.protocols[0]
        variant = self.demo_variant if embedded else first.variant
        candidates = (
            *(p for p in self.protocols if p.dataset == dataset and p.variant == variant),
            # A data set that the published variant does not know may have a protocol of another variant.
            *(p for p in self.protocols if p.dataset == dataset and p.variant != self.demo_variant),
            *(p for p in self.protocols if p.benchmark == first.benchmark and p.variant == variant),
            *(p for p in self.protocols if p.variant == variant),
        )
        if not candidates:
            raise InputError(f"{self.name} has no protocol for the embedded data; choose one with --protocol")
        return candidates[0]

    def cells(self, protocol: Protocol) -> tuple[Protocol, ...]:
        """The protocols of a grid's cells, each of which gets its own record; empty without such a grid."""
        return ()

    def summarise(self, protocol: Protocol, cells: Sequence[Record], items: Callable[[int], Items]) -> Outcome:
        """The outcome of a grid.

        Args:
            cells: records of `self.cells(protocol)`, in their order.
            items: per-item arrays of a cell, by its number.
        """
        raise NotImplementedError(f"{self.name} has no grid with a record per cell")


@dataclass(frozen=True)
class FeatureTask(Task[ParamsT]):
    """A benchmark on stored features. Features are extracted once and shared by every task that reads them."""

    def flops(self, protocol: Protocol, train: Labels, test: Labels, width: int) -> float | None:
        """Approximate number of floating-point operations of `run` on features of this width; None if unknown."""
        return None

    @abstractmethod
    def run(self, protocol: Protocol, train: Split, test: Split, options: RunOptions) -> Outcome:
        """Measure the features of `test` with those of `train`.

        Args:
            options: `device` is a concrete one here, as cpu or cuda:0.

        Raises:
            InputError: the splits cannot be measured under this protocol.
        """


@dataclass(frozen=True)
class ImageTask(Task[ParamsT]):
    """A benchmark that runs the encoder on the images: trained heads, fine-tuning, detection, segmentation.

    Attributes:
        passes_per_step: cost of a training step per image, in forward passes of the encoder: 3 where it is trained
            (forward and backward), 1 where it is frozen.
    """

    passes_per_step: ClassVar[int] = 3

    @abstractmethod
    def run(
        self, protocol: Protocol, encoder: Encoder, train: Labels, test: Labels, workdir: Path, options: RunOptions
    ) -> Outcome:
        """Train on `train` and measure on `test`.

        Args:
            encoder: on `options.device`.
            workdir: folder of this run's resumable state; a killed run continues from there.
            options: `device` is a concrete one here, as cpu or cuda:0.

        Raises:
            InputError: the splits cannot be measured under this protocol.
            NotApplicableError: the encoder cannot.
        """

    def amount(self, protocol: Protocol, train: Labels, test: Labels) -> tuple[int, int]:
        """How many images one run trains on and evaluates, each as often as it is seen; of a grid, one cell."""
        params = protocol.params
        trials, epochs = int(params.get("trials") or 1), int(params.get("epochs") or 1)
        iterations = int(params.get("iterations") or 0)
        length = iterations or epochs
        evaluations = math.ceil(length / int(params.get("evaluate_every") or (length if iterations else 1)))
        held = round(float(params.get("heldout") or 0) * len(train)) if iterations else 0
        trained = iterations * int(params["batch_size"]) if iterations else epochs * len(train)
        return trials * trained, trials * (evaluations * len(test) + held)

    def shortened(self, protocol: Protocol, steps: int, batch_size: int) -> Protocol | None:
        """The protocol with a training of so many steps of so many images, to be timed; None where there is none.

        Where its length is counted in epochs, the number of training images sets the number of steps.
        """
        return None

    def shared_pass(self, protocol: Protocol) -> str | None:
        """A key: protocols with equal keys can be trained in one pass over the images. None: always alone."""
        return None

    def run_together(
        self,
        protocols: Sequence[Protocol],
        encoder: Encoder,
        train: Labels,
        test: Labels,
        workdirs: Sequence[Path],
        options: RunOptions,
    ) -> list[Outcome]:
        """`run` for protocols of one `shared_pass`, maybe of several tasks; each outcome is what it gets alone."""
        return [
            self.run(protocol, encoder, train, test, workdir, options)
            for protocol, workdir in zip(protocols, workdirs, strict=True)
        ]

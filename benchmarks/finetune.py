"""Fine-tuning of the whole network: semi-supervised on 1 % and 10 % of ImageNet's labels, and end to end on all.

Read top to bottom: parameters, protocols with their sources, one cell of a grid, the summary of its cells. The network
and its training loop are in `benchmarks.training.finetuning`, the flags and the checks of labels that it shares with
the probes in `benchmarks.training.task`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from benchmarks.datasets.lists import fingerprint
from benchmarks.task import InputError, Items, Labels, Outcome, Outputs, RunOptions
from benchmarks.training.task import (
    NotNegative,
    Rates,
    TrainingParams,
    TrainingTask,
    classification_protocol,
    finite,
    held_out,
    split_held_out,
    warmup_cosine,
)
from results.schema import Geometry, Protocol, Record, Source, canonical_sha256

if TYPE_CHECKING:
    from benchmarks.encoders.encoder import Encoder
    from benchmarks.training.finetuning import FineTuneState
    from benchmarks.training.images import Views

# ---- parameters ------------------------------------------------------------------------------------------------------

COLUMNS = ("Top-1", "Top-5", "Top-1 best")
ORACLE_COLUMNS = ("Top-1 oracle", "Top-5 oracle")

LAST = "last epoch"
BEST = "best epoch on test (oracle)"
CHOSEN_HELD_OUT = "; rates chosen on a held-out part of train, then trained on all of it"
CHOSEN_ON_TEST = "; rates chosen on test (oracle)"


def _is_off(value: float | None) -> bool:
    return value is None or value is False or (value == 0 and not isinstance(value, bool))


class FineTuneParams(TrainingParams):
    """The encoder's network and a fresh linear layer on its embedding, trained together.

    Every batch norm takes its statistics over the whole batch, on however many ranks that lies. A grid has a cell for
    each pair of `lrs` and `head_multipliers`; each cell is a protocol of its own, with one of each.

    Attributes:
        lrs: rates of the backbone, for the whole batch.
        head_multipliers: the linear layer's rate is that many times the backbone's.
        weight_decay: of every parameter, those of batch norms and biases too.
        head_init: `normal` draws the weights from N(0, 0.01) and sets the bias to 0, `near_zero` from N(0, 2e-5);
            `default` is torch's.
        layer_decay: rate of a ViT's layer as a share of the next one's; weight decay then spares vectors, positions and
            class token.
        mean_pool: the linear layer reads the mean of a ViT's patch tokens after a new norm, in place of the final one.
        drop_path: chance that a sample skips the last block's branches, growing towards it from the first.
        mixup, cutmix: of the Beta distribution of the share that an image keeps; 0 is off. Each process mixes its part
            of the batch.
        smoothing: share of the truth that is spread over all classes.
        warmup: epochs in which the rate grows from 0, before half a cosine down to `min_lr`; both change at every step.
        min_lr: of layers whose rate is not scaled.
        labelled: fraction of every class of train that is labelled, at least one image; 1 is all of train.
        heldout: fraction of the labelled images that the cell is chosen by. A cell is trained twice: without that part,
            for the choice, and on all. With 0 a cell is trained once, and only the choice on test is left.
    """

    lrs: Rates
    head_multipliers: Rates = (1.0,)
    weight_decay: NotNegative
    head_init: Literal["normal", "default", "near_zero"] = "normal"
    optimiser: Literal["sgd", "adamw"] = Field("sgd", exclude_if=lambda name: name == "sgd")
    layer_decay: float | None = Field(None, gt=0.0, le=1.0, exclude_if=_is_off)
    mean_pool: bool = Field(False, exclude_if=_is_off)
    drop_path: float = Field(0.0, ge=0.0, lt=1.0, exclude_if=_is_off)
    mixup: NotNegative = Field(0.0, exclude_if=_is_off)
    cutmix: NotNegative = Field(0.0, exclude_if=_is_off)
    smoothing: float = Field(0.0, ge=0.0, lt=1.0, exclude_if=_is_off)
    warmup: NotNegative | None = Field(None, exclude_if=_is_off)
    min_lr: NotNegative = Field(0.0, exclude_if=_is_off)
    labelled: float = Field(1.0, gt=0.0, le=1.0)

    @property
    def grid(self) -> tuple[tuple[float, float], ...]:
        """The (rate, head multiplier) of every cell."""
        return tuple((lr, multiplier) for lr in self.lrs for multiplier in self.head_multipliers)

    @model_validator(mode="after")
    def _layers_have_no_head_rate(self) -> Self:
        if self.layer_decay is not None and (self.head_multipliers != (1.0,) or not self.mean_pool):
            raise ValueError("layer_decay sets the head's rate too, and needs mean_pool: leave head_multipliers at 1")
        return self

    def following(self, after: Self) -> dict[str, Any]:
        """Drops and warm-up stay at the same share of the run."""
        moved = super().following(after)
        if moved and self.warmup is not None:
            moved["warmup"] = self.warmup * after.epochs / self.epochs
        return moved

    def rate_factor(self, step: int, steps_per_epoch: int) -> float:
        """The factor of every learning rate at `step`."""
        if self.warmup is None:
            return super().rate_factor(step, steps_per_epoch)
        warmup = round(self.warmup * steps_per_epoch)
        factor = warmup_cosine(step, self.epochs * steps_per_epoch, warmup, "before")
        floor = self.min_lr / max(self.lrs)
        return factor if step < warmup else floor + (1 - floor) * factor

    def columns(self) -> tuple[str, ...]:
        """Columns; a grid also has those of the best cell on test."""
        return (*COLUMNS, *ORACLE_COLUMNS) if len(self.grid) > 1 else COLUMNS

    def selection(self) -> str:
        """One cell leaves nothing to choose; without a held-out part the only choice is that on test."""
        if len(self.grid) == 1:
            return LAST
        return LAST + (CHOSEN_HELD_OUT if self.heldout else CHOSEN_ON_TEST)


# ---- protocols -------------------------------------------------------------------------------------------------------

OWN = "this project"
RESIZE_256 = Geometry(mode="shorter", resize=256, crop=224)
SMALL = Geometry(mode="shorter", resize=48, crop=48)  # uncropped: a drawing may lie anywhere in its picture


_protocol = partial(classification_protocol, primary="Top-1")


def _semi_supervised(percent: int, weight_decay: float, small_fraction: float) -> tuple[Protocol, Protocol]:
    """The published grid on a list of ImageNet's images, and a small one on the embedded drawings."""
    name, benchmark = f"semi-{percent}pct", f"semi_supervised_{percent}pct"
    grid = FineTuneParams(
        lrs=(0.001, 0.01, 0.1),
        head_multipliers=(1.0, 10.0, 100.0),
        epochs=20,
        drops=(12, 16),
        gamma=0.2,
        evaluate_every=5,
        heldout=0.1,
        weight_decay=weight_decay,
    )
    published = _protocol(
        name,
        "mmselfsup",
        grid,
        Source(
            repository="open-mmlab/mmselfsup",
            revision="0.x 6faad81",
            note=f"imagenet/imagenet_{percent}percent, nine files: 4 x 64 images, SyncBN, SGD 0.9, x0.2 at 12 and 16 "
            f"of 20 epochs, decay {weight_decay:g}; the published figure is the best of the nine on val (oracle). "
            "Held-out part and the interval of evaluation are this project's",
        ),
        RESIZE_256,
        benchmark=benchmark,
        train_split=f"train-{percent}pct",
    )
    small = _protocol(
        name,
        "demo",
        grid.changed(
            lrs=(0.01, 0.1),
            head_multipliers=(1.0, 10.0),
            batch_size=32,
            heldout=0.3,  # a tenth of fifty drawings would choose by chance
            evaluate_every=20,  # the test drawings outnumber the labelled ones by far
            labelled=small_fraction,
        ),
        Source(
            repository=OWN,
            note=f"{benchmark}.mmselfsup@1 made small: {small_fraction:.0%} of each class of the embedded drawings are "
            "labelled, four cells, batches of 32",
        ),
        SMALL,
        "drawings",
        benchmark=benchmark,
    )
    return published, small


# PyTorch's ImageNet example, which the paper calls the typical implementation: batch 256, momentum 0.9, decay 1e-4.
_TYPICAL = FineTuneParams(
    lrs=(0.03,), weight_decay=1e-4, epochs=100, drops=(70, 90), head_init="default", evaluate_every=10
)
_IMAGENET = "last table of the appendix: {}; the schedule, which it does not give, is that of appendix A.6"
_INAT18 = "appendix A.6: {} for 100 epochs, x0.1 at 70 % and 90 % of training, else PyTorch's typical ResNet training"

# MAE's recipe: RandAugment, erasing, mixup and CutMix, AdamW with a rate per layer. Rates are blr x 1024 / 256.
_MAE = FineTuneParams(
    lrs=(2e-3,),
    weight_decay=0.05,
    batch_size=1024,
    epochs=100,
    warmup=5,
    min_lr=1e-6,
    head_init="near_zero",
    optimiser="adamw",
    layer_decay=0.65,
    mean_pool=True,
    drop_path=0.1,
    auto_augment="rand-m9-mstd0.5-inc1",
    erasing=0.25,
    mixup=0.8,
    cutmix=1.0,
    smoothing=0.1,
)
_MAE_LARGE = _MAE.changed(lrs=(4e-3,), layer_decay=0.75, epochs=50, drop_path=0.2)
_BICUBIC = RESIZE_256.model_copy(update={"interpolation": "bicubic"})

MAE_PROTOCOLS = (
    *(
        _protocol(
            "finetune",
            variant,
            params,
            Source(
                repository="facebookresearch/mae",
                revision="efb2a80",
                note=f"FINETUNE.md, {model}; main_finetune.py, util/lr_decay.py, util/lr_sched.py; there in float16, "
                "and the last incomplete batch of an epoch is dropped",
            ),
            _BICUBIC,
            benchmark="finetune_imagenet",
        )
        for variant, params, model in (
            ("mae_base", _MAE, "ViT-Base"),
            ("mae_large", _MAE_LARGE, "ViT-Large"),
            ("mae_huge", _MAE_LARGE.changed(drop_path=0.3), "ViT-Huge"),
        )
    ),
    _protocol(
        "finetune",
        "mae_demo",
        _MAE.changed(lrs=(5e-4,), epochs=20, batch_size=32, evaluate_every=10),
        Source(repository=OWN, note="finetune_imagenet.mae_base@1 made small, on the embedded drawings"),
        SMALL,
        "drawings",
        benchmark="finetune_imagenet",
    ),
)

END_TO_END_PROTOCOLS = (
    *(
        _protocol(
            "finetune",
            variant,
            _TYPICAL.changed(lrs=(lr,)),
            Source(
                repository="arXiv:1911.05722 (MoCo v1)",
                note=f"{note.format(rate)}; batch norms over the whole batch, whatever the ranks",
            ),
            RESIZE_256,
            dataset,
            benchmark=f"finetune_{dataset}",
        )
        for dataset, variant, lr, note, rate in (
            ("imagenet", "mocov1", 0.03, _IMAGENET, "0.03"),
            ("imagenet", "mocov1_scratch", 0.1, _IMAGENET, "0.1 from random initialisation"),
            ("inat18", "mocov1", 0.025, _INAT18, "0.025"),
            ("inat18", "mocov1_scratch", 0.1, _INAT18, "0.1 from random initialisation"),
        )
    ),
    _protocol(
        "finetune",
        "demo",
        _TYPICAL.changed(epochs=20, drops=(14, 18), batch_size=32),
        Source(repository=OWN, note="finetune_imagenet.mocov1@1 made small, on the embedded drawings"),
        SMALL,
        "drawings",
        benchmark="finetune_imagenet",
    ),
)

# ---- tasks -----------------------------------------------------------------------------------------------------------

LABELLED_SEED = 0  # chooses the labelled items of train: part of the protocol, so that every run has the same


@dataclass(frozen=True)
class FineTune(TrainingTask[FineTuneParams]):
    """Fine-tuning of the whole network with a fresh linear classifier."""

    Params = FineTuneParams

    def for_encoder(self, protocol: Protocol, encoder: Encoder) -> Protocol:
        """Another id where batch norms have the statistics of a part of the batch."""
        from benchmarks.training.loop import has_batch_norm

        if self.accumulate == 1 or not has_batch_norm(encoder.module):
            return protocol
        return protocol.changed(label=f"accumulate={self.accumulate}")

    def outputs(self, protocol: Protocol) -> Outputs:
        return {"embed": ("embed", None)}

    def cells(self, protocol: Protocol) -> tuple[Protocol, ...]:
        grid = self.params(protocol).grid
        if len(grid) == 1:
            return ()
        return tuple(protocol.changed(lrs=(lr,), head_multipliers=(multiplier,)) for lr, multiplier in grid)

    def amount(self, protocol: Protocol, train: Labels, test: Labels) -> tuple[int, int]:
        """A cell that is chosen by a held-out part of the labelled images is trained twice."""
        params = self.params(protocol)
        labelled = round(params.labelled * len(train))
        held = round(params.heldout * labelled)
        evaluations = math.ceil(params.epochs / params.evaluate_every)
        twice = labelled - held if held else 0
        return params.epochs * (labelled + twice), evaluations * (len(test) + held)

    def shortened(self, protocol: Protocol, steps: int, batch_size: int) -> Protocol:
        """One epoch on all labels at a rate without drops."""
        return protocol.changed(epochs=1, drops=(), batch_size=batch_size, labelled=1.0, heldout=0.0)

    def check(self, protocol: Protocol, train: Labels, test: Labels) -> None:
        """Raises InputError for labels that do not fit, no image to hold out, or drops after the end of the run."""
        super().check(protocol, train, test)
        params = self.params(protocol)
        if params.heldout:
            own = train if params.labelled == 1 else train.rows(labelled_items(train, params))
            split_held_out(protocol, own, params.heldout, 0)

    def run(
        self, protocol: Protocol, encoder: Encoder, train: Labels, test: Labels, workdir: Path, options: RunOptions
    ) -> Outcome:
        """Train one cell of a grid: a copy of the encoder on `train`, measured on `test`.

        With a held-out part, another copy is trained before without it and measured on it, for the choice among cells.
        Under torchrun the protocol's batch is split over the ranks, whose outcomes are equal.

        Raises:
            InputError: the labels do not fit the protocol.
            NotApplicableError: the encoder cannot be trained.
        """
        from benchmarks.training.finetuning import FineTuning
        from benchmarks.training.images import TrainingImages, Views
        from pretrain import distributed

        params, seed = self.params(protocol), options.seed
        self.check(protocol, train, test)
        encoder.to(distributed.join(options.device))
        labelled = labelled_items(train, params)
        key = canonical_sha256(
            [protocol.content_sha256(), encoder.card.weights_sha256, fingerprint(train), fingerprint(test), seed]
        )
        own = train if len(labelled) == len(train) else train.rows(labelled)
        images = TrainingImages(own.paths)
        views = Views(images, own.targets, protocol.geometry, params, seed)
        ((lr, multiplier),) = params.grid

        def fine_tune(part: str, items: NDArray[np.int64], measured: Views, tested: NDArray[np.int64]) -> FineTuneState:
            training = FineTuning(
                params,
                encoder,
                len(train.classes),
                views,
                items,
                measured,
                tested,
                path=workdir / f"{part}.pt",
                key=key,
                workers=options.loaders,
                seed=seed,
                parts=self.accumulate,
            )
            return training.train(f"lr {lr:g}, head x{multiplier:g}, {part}", show=options.progress)

        outcome = Outcome(seeds=(seed,))
        row: dict[str, Any] = {"lr": lr, "head_multiplier": multiplier, "train_items": len(labelled)}
        if self.accumulate > 1:
            row["accumulate"] = self.accumulate
        if params.heldout:
            kept, held = split_held_out(protocol, own, params.heldout, seed)
            fixed = Views(images, own.targets, protocol.geometry, None, seed)
            state = fine_tune("without held-out part", kept, fixed, held)
            row |= {
                "heldout_items": len(held),
                "heldout_top1": 100 * state.top1[-1],
                "heldout_loss": finite(state.loss[-1]),
            }
            outcome.timing |= {f"{phase} for the choice": seconds for phase, seconds in state.timing.items()}
        test_views = Views(TrainingImages(test.paths), test.targets, protocol.geometry, None, seed)
        state = fine_tune("all", np.arange(len(labelled)), test_views, np.arange(len(test)))
        outcome.timing |= state.timing
        _score(outcome, state, row)
        return outcome

    def summarise(self, protocol: Protocol, cells: Sequence[Record], items: Callable[[int], Items]) -> Outcome:
        """The cell that does best on the held-out part, and as the oracle the one that does best on test.

        By held-out accuracy, then by loss; of equals the first of the grid.

        Raises:
            InputError: a cell's record has not the numbers that the choice rests on.
        """
        rows = [_row_of(record) for record in cells]
        outcome = Outcome()
        chosen = None
        held = ["heldout_top1" in row for row in rows]
        if any(held) and not all(held):
            lacking = cells[held.index(False)].protocol.id
            raise InputError(f"the record of {lacking} has no held-out part; measure the grid again with --force")
        if all(held):
            loss = [math.inf if row["heldout_loss"] is None else row["heldout_loss"] for row in rows]
            chosen = min(range(len(rows)), key=lambda cell: (-rows[cell]["heldout_top1"], loss[cell], cell))
            _copy_cell(outcome, protocol, cells[chosen], items(chosen), "", CHOSEN_HELD_OUT)
        oracle = max(range(len(rows)), key=lambda cell: (rows[cell]["last_top1"], -cell))
        _copy_cell(outcome, protocol, cells[oracle], items(oracle), " oracle", CHOSEN_ON_TEST)
        outcome.runs = [row | {"chosen": cell == chosen, "oracle": cell == oracle} for cell, row in enumerate(rows)]
        for record in cells:
            for phase, seconds in record.timing.items():
                outcome.timing[f"{phase}, all cells"] = outcome.timing.get(f"{phase}, all cells", 0.0) + seconds
        return outcome


@dataclass(frozen=True)
class SemiSupervised1Percent(FineTune):
    """Semi-supervised classification: fine-tuning on 1 % of ImageNet's labels."""

    name = "semi-1pct"
    protocols = _semi_supervised(1, 5e-4, 0.1)


@dataclass(frozen=True)
class SemiSupervised10Percent(FineTune):
    """Semi-supervised classification: fine-tuning on 10 % of ImageNet's labels."""

    name = "semi-10pct"
    protocols = _semi_supervised(10, 1e-4, 0.3)


@dataclass(frozen=True)
class FineTuneImageNet(FineTune):
    """End-to-end fine-tuning on all labels of ImageNet or iNaturalist 2018."""

    name = "finetune"
    protocols = (*END_TO_END_PROTOCOLS, *MAE_PROTOCOLS)


def labelled_items(train: Labels, params: FineTuneParams) -> NDArray[np.int64]:
    """The items of train that have labels under these parameters."""
    if params.labelled == 1:
        return np.arange(len(train))
    return held_out(train, params.labelled, LABELLED_SEED)[1]


def _score(outcome: Outcome, state: FineTuneState, row: dict[str, Any]) -> None:
    """Scores, per-item outcomes and the run's row, `row` extended, of a training that has ended."""
    from benchmarks.solvers.linear_heads import top_k_percent

    assert state.last is not None
    assert state.best is not None
    row |= {f"last_top{k}": top_k_percent(state.last, k) for k in (1, 5)}
    row |= {f"best_top{k}": top_k_percent(state.best, k) for k in (1, 5)}
    outcome.runs.append(row | {"best_epoch": state.best_epoch, "train_loss": finite(state.train_loss)})
    for column, ranks, k, selection in (
        ("Top-1", state.last, 1, LAST),
        ("Top-5", state.last, 5, LAST),
        ("Top-1 best", state.best, 1, BEST),
    ):
        outcome.add_accuracy(column, (ranks < k).numpy(), selection)


def _row_of(record: Record) -> dict[str, Any]:
    """The run of a cell's record, which may be of another version of this program, or of somebody else."""
    row = dict(record.runs[0]) if record.runs else {}
    score = record.scores.get("Top-1")
    held = [row[name] for name in ("heldout_top1", "heldout_loss") if row.get(name) is not None]
    numbers = [row.get("last_top1"), None if score is None else score.value, *held]
    if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
        fault = "has no accuracy of its last epoch, or of the held-out part, that is a number"
    elif abs(numbers[0] - numbers[1]) > 1e-3:
        fault = f"has an accuracy of {numbers[1]:.3f} and a run of {numbers[0]:.3f}"
    elif "heldout_top1" in row and (row["heldout_top1"] is None or "heldout_loss" not in row):
        fault = "has no accuracy and loss of the held-out part"
    else:
        return row
    raise InputError(f"the record of {record.protocol.id} {fault}; measure the grid again with --force")


def _copy_cell(outcome: Outcome, protocol: Protocol, record: Record, items: Items, suffix: str, chosen_by: str) -> None:
    """Add the cell's scores and items under the protocol's columns, and how the cell was chosen to their selection."""
    for name, score in record.scores.items():
        column = name + suffix
        if column in protocol.columns:
            outcome.scores[column] = score.model_copy(update={"selection": score.selection + chosen_by})
            if f"correct/{name}" in items:
                outcome.items[f"correct/{column}"] = items[f"correct/{name}"]

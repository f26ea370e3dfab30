"""Fine-tuning from an encoder and two lists of images to scores: one cell of a grid, or what its cells come to."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.contract import InputError, Items, Labels, Outcome
from benchmarks.datasets.lists import fingerprint
from benchmarks.encoders.encoder import Encoder
from benchmarks.finetune.checkpoint import State
from benchmarks.finetune.protocols import BEST, HELD_OUT, LAST, ON_TEST, columns, selection
from benchmarks.finetune.settings import FineTuneSettings, finetune_settings
from benchmarks.finetune.train import FineTuning
from benchmarks.overrides import override
from benchmarks.training.check import check_single_label
from benchmarks.training.held_out import held_out
from benchmarks.training.loader import Images, Views
from benchmarks.training.ranking import percent
from pretrain import distributed
from results.schema import Protocol, Record, Score, canonical_sha256

log = logging.getLogger(__name__)

LABELLED_SEED = 0  # which items of train are labelled: part of the protocol, so that every run has the same


def required_outputs(protocol: Protocol) -> dict[str, tuple[str, None]]:
    """The embedding, on which the classifier sits."""
    return {"embed": ("embed", None)}


def cells(protocol: Protocol) -> list[Protocol]:
    """The protocol of every cell of a grid; none where there is nothing to choose."""
    grid = finetune_settings(protocol).grid
    if len(grid) == 1:
        return []
    return [
        override(protocol, {"lrs": (lr,), "head_multipliers": (multiplier,)}, FineTuneSettings, columns, selection)
        for lr, multiplier in grid
    ]


def run(
    protocol: Protocol,
    encoder: Encoder,
    train: Labels,
    test: Labels,
    *,
    device: str = "cpu",
    workers: int = 2,
    workdir: Path,
    seed: int = 0,
    progress: bool = True,
) -> Outcome:
    """Train a copy of the encoder on `train` and measure it on `test`, and before, for the choice, on held-out images.

    A run that was killed goes on from its last epoch in `workdir`. Under torchrun the protocol's batch is split over
    the ranks, whose outcomes are equal; rank 0 writes the state.

    Raises:
        InputError: the labels do not fit the protocol.
        NotApplicableError: the encoder cannot be trained.
    """
    settings = finetune_settings(protocol)
    late = [drop for drop in settings.drops if drop >= settings.epochs]
    if settings.schedule == "step" and late:
        log.warning("%s: the rate never drops at %s, as there are %d epochs; --set drops with the epochs",
                    protocol.id, ", ".join(map(str, late)), settings.epochs)  # fmt: skip
    check_single_label(protocol, train, test)
    encoder.to(distributed.join(device))
    labelled = _labelled(train, settings)
    key = canonical_sha256(
        [protocol.content_sha256(), encoder.card.weights_sha256, fingerprint(train), fingerprint(test), seed]
    )
    images = Images(train.paths if len(labelled) == len(train) else [train.paths[i] for i in labelled])
    targets = train.targets[labelled]
    views = Views(images, targets, protocol.geometry, settings, seed)
    ((lr, multiplier),) = settings.grid
    row: dict[str, Any] = {"lr": lr, "head_multiplier": multiplier, "train_items": len(labelled)}

    def tune(part: str, items: NDArray[np.int64], measured: Views, tested: NDArray[np.int64]) -> State:
        tuning = FineTuning(
            settings,
            encoder,
            len(train.classes),
            views,
            items,
            measured,
            tested,
            state=workdir / f"{part}.pt",
            key=key,
            workers=workers,
            seed=seed,
        )
        return tuning.train(f"lr {lr:g}, head x{multiplier:g}, {part}", show=progress)

    outcome = Outcome(scores={}, seeds=(seed,))
    if settings.heldout:
        kept, held = held_out(_take(train, labelled), settings.heldout, seed)
        if not len(held):
            raise InputError(f"{protocol.id}: no class has two labelled images, so none can be held out: give more")
        state = tune("without held-out part", kept, Views(images, targets, protocol.geometry, None, seed), held)
        row |= {
            "heldout_items": len(held),
            "heldout_top1": 100 * state.top1[-1],
            "heldout_loss": _finite(state.loss[-1]),
        }
        outcome.timing |= {f"{phase} for the choice": seconds for phase, seconds in state.timing.items()}
    tested = Views(Images(test.paths), test.targets, protocol.geometry, None, seed)
    state = tune("all", np.arange(len(labelled)), tested, np.arange(len(test)))
    outcome.timing |= state.timing
    assert state.last is not None
    assert state.best is not None
    row |= {f"last_top{k}": percent(state.last, k) for k in (1, 5)}
    row |= {f"best_top{k}": percent(state.best, k) for k in (1, 5)}
    outcome.runs.append(row | {"best_epoch": state.best_epoch, "train_loss": _finite(state.train_loss)})
    for title, ranks, k, how in (
        ("Top-1", state.last, 1, LAST),
        ("Top-5", state.last, 5, LAST),
        ("Top-1 best", state.best, 1, BEST),
    ):
        _score(outcome, title, ranks, k, how)
    return outcome


def summary(protocol: Protocol, records: Sequence[Record], items: Callable[[int], Items]) -> Outcome:
    """What the cells of a grid come to: the one that does best on the held-out part, and apart the best on test.

    By held-out accuracy, then by loss; of equals the first of the grid.

    Args:
        records: of the cells, in their order.
        items: per-item arrays of a cell, by its number.
    """
    rows = [dict(record.runs[0]) for record in records]
    outcome = Outcome(scores={})
    chosen = None
    if all("heldout_top1" in row for row in rows):
        loss = [math.inf if row["heldout_loss"] is None else row["heldout_loss"] for row in rows]
        chosen = min(range(len(rows)), key=lambda cell: (-rows[cell]["heldout_top1"], loss[cell], cell))
        _copy(outcome, records[chosen], items(chosen), "", HELD_OUT)
    oracle = max(range(len(rows)), key=lambda cell: (rows[cell]["last_top1"], -cell))
    _copy(outcome, records[oracle], items(oracle), " oracle", ON_TEST)
    outcome.scores = {title: score for title, score in outcome.scores.items() if title in protocol.columns}
    outcome.items = {key: array for key, array in outcome.items.items() if key.partition("/")[2] in protocol.columns}
    outcome.runs = [row | {"chosen": cell == chosen, "oracle": cell == oracle} for cell, row in enumerate(rows)]
    for record in records:
        for phase, seconds in record.timing.items():
            outcome.timing[f"{phase}, all cells"] = outcome.timing.get(f"{phase}, all cells", 0.0) + seconds
    return outcome


def _copy(outcome: Outcome, record: Record, items: Items, suffix: str, cell: str) -> None:
    """The cell's scores; how its epoch was chosen stays, and how the cell was is added."""
    for title, score in record.scores.items():
        outcome.scores[title + suffix] = score.model_copy(update={"selection": score.selection + cell})
        if f"correct/{title}" in items:
            outcome.items[f"correct/{title}{suffix}"] = items[f"correct/{title}"]


def _score(outcome: Outcome, title: str, ranks: Tensor, k: int, selection: str) -> None:
    outcome.scores[title] = Score(value=percent(ranks, k), n=len(ranks), selection=selection)
    outcome.items[f"correct/{title}"] = (ranks < k).numpy()


def _labelled(train: Labels, settings: FineTuneSettings) -> NDArray[np.int64]:
    """The items of train that have labels here."""
    if settings.labelled == 1:
        return np.arange(len(train))
    return held_out(train, settings.labelled, LABELLED_SEED)[1]


def _take(labels: Labels, items: NDArray[np.int64]) -> Labels:
    return replace(
        labels,
        ids=tuple(labels.ids[i] for i in items),
        paths=tuple(labels.paths[i] for i in items),
        targets=labels.targets[items],
        groups=tuple(labels.groups[i] for i in items),
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

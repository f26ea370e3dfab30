"""What all probes with trained heads share: their parameters' interface, one pass for several protocols, their scores.

A probe trains banks of heads on a frozen encoder (`benchmarks.training.probes`). Linear, attentive and grid probes
differ in what their heads read and are, which their params say.
"""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from pydantic import Field

from benchmarks.datasets.lists import fingerprint
from benchmarks.features.pool import Pooling
from benchmarks.task import InputError, Labels, Outcome, RunOptions
from benchmarks.training.task import (
    Decays,
    NotNegative,
    Rates,
    TrainingParams,
    TrainingTask,
    ViewParams,
    finite,
    split_held_out,
    warmup_cosine,
)
from results.schema import Protocol, canonical_sha256

if TYPE_CHECKING:
    from benchmarks.encoders.encoder import Encoder
    from benchmarks.solvers.linear_heads import Bank, BankAdamW, BankOptimiser, Factor
    from benchmarks.training.probes import Probe

log = logging.getLogger("benchmarks")

BEST = "best epoch on test"
LAST = "last epoch"
HELD_OUT = "rate and epoch chosen on a held-out part of train"
RATE = ", rate chosen on a held-out part of train"
RATE_BY_LOSS = ", rate with the lowest loss on a held-out part of train"
ORACLE = "best head and epoch on test (oracle)"

# ---- parameters ------------------------------------------------------------------------------------------------------


class HeadsParams(TrainingParams):
    """Parameters of banks of heads: each bank has one head for each pair of `lrs` and `weight_decays`.

    Attributes:
        iterations: length of the run where the schedule counts iterations; its other lengths are iterations too then.
        choose_epoch: which evaluation the primary score is: the last, each head's best on the held-out part, or the
            best on test, as the field often reports.
    """

    lrs: Rates
    weight_decays: Decays = (0.0,)
    iterations: int | None = Field(None, gt=0)
    choose_epoch: Literal["best", "last", "heldout"]

    @property
    def grid(self) -> tuple[tuple[float, float], ...]:
        """The (rate, weight decay) of every head of a bank."""
        return tuple((lr, decay) for lr in self.lrs for decay in self.weight_decays)

    @property
    def length(self) -> int:
        return self.iterations if self.iterations is not None else self.epochs

    def total_steps(self, steps_per_epoch: int) -> int:
        return self.iterations if self.iterations is not None else super().total_steps(steps_per_epoch)

    @abstractmethod
    def reads(self, names: Collection[str]) -> dict[str, tuple[tuple[str, Pooling | None], ...]]:
        """Name of a bank -> the features that its heads read, of an encoder with outputs of these names."""

    @abstractmethod
    def bank(self, name: str, shapes: Sequence[tuple[int, ...]], channels: int, classes: int, seed: int) -> Bank:
        """A new bank.

        Args:
            shapes: of what it reads, without the images' axis.
            channels: of the (first) output that it reads.

        Raises:
            NotApplicableError: its heads cannot read features of these shapes.
        """

    @abstractmethod
    def optimiser_of(self, bank: Bank) -> BankOptimiser | BankAdamW:
        """The optimiser of a bank."""

    @abstractmethod
    def column_of(self, bank: str) -> str:
        """The column of a bank's chosen head; banks of one column are chosen among together."""

    @property
    def chosen_by(self) -> Literal["accuracy", "loss"]:
        """What the held-out part chooses a head by."""
        return "accuracy"

    def head_factor(self, step: int, steps_per_epoch: int) -> Factor:
        """The factor of every head's rate at `step`, or of each head's."""
        return self.rate_factor(step, steps_per_epoch)


class WarmupParams(HeadsParams):
    """Heads under a rate that warms up and then falls along a half cosine, changed at every step.

    Attributes:
        warmup: length of the warm-up, in epochs or iterations.
        warmup_lr: the rate at its start; 0, or the same for every head.
        clock: the sources count steps differently by one. `before` is MAE's, at the steps done before; `after` is
            V-JEPA's, this step included; `both` is CAPI's, from exactly 0 to exactly 0.
    """

    warmup: NotNegative = 0.0
    warmup_lr: NotNegative = 0.0
    clock: Literal["before", "after", "both"] = "before"
    choose_epoch: Literal["heldout", "last"] = "heldout"

    def selection(self) -> str:
        """How the main column's score is chosen."""
        if self.choose_epoch == "heldout":
            return HELD_OUT
        return LAST + (RATE if self.heldout else "")

    def following(self, after: Self) -> dict[str, Any]:
        """The warm-up stays at the same share of the run."""
        if self.length == after.length:
            return {}
        return super().following(after) | {"warmup": self.warmup * after.length / self.length}

    def head_factor(self, step: int, steps_per_epoch: int) -> Factor:
        """The factor of every head's rate at `step`, or of each head's."""
        unit = 1 if self.iterations is not None else steps_per_epoch
        total, warmup = self.length * unit, round(self.warmup * unit)
        progress = warmup_cosine(step, total, warmup, self.clock)
        if self.warmup_lr == 0 or progress >= 1 or step + (self.clock == "after") >= warmup:
            return progress
        return tuple((self.warmup_lr + progress * (lr - self.warmup_lr)) / lr for lr, _ in self.grid)


# ---- the task --------------------------------------------------------------------------------------------------------

ParamsT = TypeVar("ParamsT", bound=HeadsParams)

# Probes that agree on these can be trained in one pass over the images.
ONE_PASS_FIELDS = (*ViewParams.model_fields, "batch_size", "epochs", "iterations", "heldout", "precision")

# What a protocol for image folders makes of a small folder.
STEPS_PER_EPOCH, SMALLEST_BATCH = 16, 16
FEWEST_STEPS, MOST_EPOCHS = 2000, 100


@dataclass(frozen=True)
class ProbeTask(TrainingTask[ParamsT]):
    """Heads trained on views of the images, the encoder frozen."""

    accumulate: int = 1
    """parts in which a batch passes through encoder and heads, for less memory; the step stays the same"""

    passes_per_step = 1

    def params(self, protocol: Protocol) -> ParamsT:
        """The typed params of a protocol of this task, or of another probe that shares its pass."""
        if protocol.harness == self.name:
            return super().params(protocol)
        return protocol.params_type.model_validate(protocol.params)  # type: ignore[return-value]

    def adapted(self, protocol: Protocol, train: Labels, test: Labels) -> Protocol:
        """On the user's own image folder, batch and epochs fit its size; elsewhere the id names another size."""
        params = self.params(protocol)
        if protocol.variant != "imagefolder":
            return super().adapted(protocol, train, test)
        changes = fitted_to(round(len(train) * (1 - params.heldout)), params)
        own = {label.partition("=")[0] for label in protocol.overrides}
        changes = {name: value for name, value in changes.items() if name not in own}
        if own & {"epochs", "iterations", "drops"}:
            changes.pop("epochs", None)
        if changes:
            listed = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in changes.items())
            log.info("%s: %s for %d training images", protocol.id, listed, len(train))
        return protocol.changed(**changes)

    def check(self, protocol: Protocol, train: Labels, test: Labels) -> None:
        """Raises InputError for labels that do not fit, no image to hold out, or drops or warm-up beyond the run."""
        super().check(protocol, train, test)
        params = self.params(protocol)
        if isinstance(params, WarmupParams) and params.warmup > params.length:
            raise InputError(f"{protocol.id}: warmup={params.warmup:g} is longer than the training of {params.length}")
        counted = protocol.params.get("iterations") is not None
        if counted and any(label.startswith("epochs=") for label in protocol.overrides):
            log.warning("%s: epochs has no effect, as iterations sets the length of the run", protocol.id)
        split_held_out(protocol, train, params.heldout, 0)

    def amount(self, protocol: Protocol, train: Labels, test: Labels) -> tuple[int, int]:
        """Features of the images that are evaluated are computed once, and kept."""
        params = self.params(protocol)
        held = round(params.heldout * len(train))
        kept = len(train) - held
        steps = params.total_steps(math.ceil(kept / params.batch_size))
        return round(steps * kept / math.ceil(kept / params.batch_size)), len(test) + held

    def shared_pass(self, protocol: Protocol) -> str:
        params = self.params(protocol).model_dump(mode="json", include=set(ONE_PASS_FIELDS))
        splits = [protocol.dataset, protocol.train_split, protocol.test_split]
        return canonical_sha256([protocol.geometry.model_dump(mode="json"), splits, params])

    def run(
        self, protocol: Protocol, encoder: Encoder, train: Labels, test: Labels, workdir: Path, options: RunOptions
    ) -> Outcome:
        """Train the protocol's heads on `train` and measure them on `test`.

        Under torchrun the protocol's batch is split over the ranks, whose outcomes are equal.

        Raises:
            InputError: the labels do not fit the protocol.
            RuntimeError: a tensor of the encoder changed during training, although it should be frozen.
        """
        return self.run_together([protocol], encoder, train, test, [workdir], options)[0]

    def run_together(
        self,
        protocols: Sequence[Protocol],
        encoder: Encoder,
        train: Labels,
        test: Labels,
        workdirs: Sequence[Path],
        options: RunOptions,
    ) -> list[Outcome]:
        """`run` for protocols of one `shared_pass`, maybe of several probes: each outcome is the same as alone."""
        from benchmarks.training.loop import frozen
        from benchmarks.training.probes import FrozenFeatures, ImageStream, Probe, train_probes
        from pretrain import distributed

        for protocol in protocols:
            self.check(protocol, train, test)
        params: list[HeadsParams] = [self.params(protocol) for protocol in protocols]
        geometry, seed = protocols[0].geometry, options.seed
        keys = [key for each in params for read in each.reads(encoder.names).values() for key in read]
        device = distributed.join(options.device)
        features = FrozenFeatures(encoder, keys, geometry.crop, device, params[0].precision, self.accumulate)
        kept, held = split_held_out(protocols[0], train, params[0].heldout, seed)
        images = ImageStream(params[0], geometry, features, train, kept, held, test, workers=options.loaders, seed=seed)
        data = [fingerprint(train), fingerprint(test)]
        with frozen(encoder) as weights:
            probes = [
                Probe(
                    each,
                    images,
                    len(train.classes),
                    key=canonical_sha256([protocol.content_sha256(), weights, *data, seed]),
                    path=workdir / "resume.pt",
                )
                for each, protocol, workdir in zip(params, protocols, workdirs, strict=True)
            ]
            train_probes(probes, images, show=options.progress)
        outcomes = [outcome_of(probe, protocol) for probe, protocol in zip(probes, protocols, strict=True)]
        if self.accumulate > 1:
            for outcome in outcomes:
                outcome.runs = [{**row, "accumulate": self.accumulate} for row in outcome.runs]
        return outcomes


def fitted_to(images: int, params: TrainingParams) -> dict[str, Any]:
    """The batch size and epochs that give so many training images enough steps, where the params' own do not.

    The batch is halved until an epoch has `STEPS_PER_EPOCH` steps, and epochs are added, in tens, until the run has
    `FEWEST_STEPS`, but no more than `MOST_EPOCHS`.
    """
    batch = params.batch_size
    while batch > SMALLEST_BATCH and images < STEPS_PER_EPOCH * batch:
        batch //= 2
    needed = 10 * math.ceil(FEWEST_STEPS / math.ceil(max(images, 1) / batch) / 10)
    epochs = max(params.epochs, min(needed, MOST_EPOCHS))
    return {
        name: value
        for name, value, before in (("batch_size", batch, params.batch_size), ("epochs", epochs, params.epochs))
        if value != before
    }


# ---- scores ----------------------------------------------------------------------------------------------------------

Head = tuple[str, int]  # name of a bank, and a head of it


def outcome_of(probe: Probe, protocol: Protocol) -> Outcome:
    """Rows of every head; scores, per-item outcomes and tensors of the chosen one of each column."""
    outcome = Outcome(seeds=(probe.images.seed,), timing=dict(probe.state.timing))
    columns: dict[str, list[Head]] = {}
    for name in probe.trainer.banks:
        heads = [(name, head) for head in range(len(probe.params.grid))]
        columns.setdefault(probe.params.column_of(name), []).extend(heads)
    for column, heads in columns.items():
        chosen = _choose(probe, heads)
        outcome.runs += [_row(probe, head, head == chosen) for head in heads]
        _add_scores(outcome, protocol, probe, column, heads, chosen)
        bank, number = chosen
        tensors = probe.state.best_tensors.get(bank) or probe.trainer.banks[bank].tensors()
        outcome.tensors |= {f"{column}/{name}": tensor[number].clone() for name, tensor in tensors.items()}
    return outcome


def _choose(probe: Probe, heads: Sequence[Head]) -> Head:
    """The head that does best on the held-out part of train, at the last evaluation or at its own best.

    By accuracy, then by loss, or by loss alone; of equals the first of the grid.
    """
    if not all(bank in probe.state.heldout for bank, _ in heads):
        return heads[0]

    def order(at: int) -> tuple[float, float, int]:
        accuracy, loss = _held_out(probe, heads[at])
        return -accuracy * (probe.params.chosen_by == "accuracy"), loss if math.isfinite(loss) else math.inf, at

    return heads[min(range(len(heads)), key=order)]


def _held_out(probe: Probe, head: Head) -> tuple[float, float]:
    """Accuracy and loss of a head on the held-out part, at the evaluation that it is chosen by."""
    bank, number = head
    if probe.params.choose_epoch == "heldout":
        _, accuracy, loss = probe.state.kept_at[bank][:, number].tolist()
    else:
        accuracy, loss = probe.state.heldout[bank][-1][:, number].tolist()
    return accuracy, loss


def _row(probe: Probe, head: Head, chosen: bool) -> dict[str, Any]:
    from benchmarks.solvers.linear_heads import top_k_percent

    bank, number = head
    state, (lr, decay) = probe.state, probe.params.grid[number]
    last, best = state.last[bank][number], state.best[bank][number]
    row: dict[str, Any] = {"output": bank, "lr": lr, "weight_decay": decay, "chosen": chosen}
    row |= {f"last_top{k}": top_k_percent(last, k) for k in (1, 5)}
    row |= {f"best_top{k}": top_k_percent(best, k) for k in (1, 5)}
    row |= {
        "best_epoch": int(state.best_epoch[bank][number]),
        "train_loss": finite(float(state.train_loss[bank][number])),
    }
    if bank in state.kept:
        row |= {
            "kept_epoch": int(state.kept_at[bank][0, number]),
            "kept_top1": top_k_percent(state.kept[bank][number], 1),
        }
    if bank in state.heldout:
        accuracy, loss = _held_out(probe, head)
        row |= {"heldout_top1": 100 * accuracy, "heldout_loss": finite(loss)}
    return row


def _add_scores(
    outcome: Outcome, protocol: Protocol, probe: Probe, column: str, heads: Sequence[Head], chosen: Head
) -> None:
    """Scores and per-item outcomes of those columns of one title that the protocol has."""
    state, params = probe.state, probe.params
    bank, number = chosen
    last, best = state.last[bank][number], state.best[bank][number]
    several = len(heads) > 1
    chosen_by = (RATE if params.chosen_by == "accuracy" else RATE_BY_LOSS) if several else ""
    reported = {"best": best, "last": last, "heldout": state.kept[bank][number] if bank in state.kept else last}
    candidates = [
        (column, reported[params.choose_epoch], params.selection() or ""),
        (f"{column} last", last, LAST + chosen_by),
        (f"{column} best", best, f"{BEST} (oracle){chosen_by}"),
    ]
    if several or params.choose_epoch == "heldout":
        oracle = max(heads, key=lambda head: int((state.best[head[0]][head[1]] < 1).sum()))
        candidates.append((f"{column} oracle", state.best[oracle[0]][oracle[1]], ORACLE))
    for name, ranks, selection in candidates:
        for title, k in ((name, 1), (f"{name} top-5", 5)):
            if title in protocol.columns:
                outcome.add_accuracy(title, (ranks < k).numpy(), selection)

"""Train one recipe in one folder: the loop over epochs, what is saved when, and what a dry run says of it."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch
from pydantic import ValidationError
from torch import nn
from tqdm import tqdm

from pretrain import distributed
from pretrain.data import Files, Shards, find_images, seem_sorted_by_class
from pretrain.mechanism import Batch, batch_norm_text
from pretrain.monitor import (
    CURVES,
    EVENTS,
    LOG,
    ONLINE_TRAIN,
    Events,
    MonitorRow,
    OnlineProbe,
    collapse,
    draw_monitor_curves,
    row_text,
    write_log,
)
from pretrain.recipe import Recipe
from pretrain.safe_pickle import read_pickled
from pretrain.trainer import Stepper, Trainer
from pretrain.weight_files import write_backbone
from results.errors import InputError
from results.files import remove_partials, replacing, write_file
from results.schema import EncoderCard

log = logging.getLogger(__name__)

RESUME, BACKBONE, RECIPE = "resume.pt", "backbone.safetensors", "recipe.json"
# Pixels of the batch that a dry run measures. A GPU has nothing to do for most of a step of a smaller one.
SMALL_BATCH = {"cpu": 8 * 224**2, "cuda": 32 * 224**2}
SAVE_SECONDS = 60.0  # between the saves that the recipe asks for, so that a kill costs about a minute
SAVE_SHARE = 0.05  # of the time at most, where a save takes long
QUIET_SECONDS = 30.0


class PretrainRun:
    """One pretraining run in one folder.

    Args:
        data: where the images are, see `find_images`; its name is in the card.
        images: the images, where they have been found already.
        out: takes recipe.json, log.csv, tensorboard/, resume.pt, numbered checkpoints, backbone.safetensors and, at the
            end, curves.png.
        workers: loader processes of this rank.
        warm_start: see `Trainer`.
        max_unreadable: share of the images that may be unreadable.
        monitor: columns of the log for a backbone; run by all ranks every `monitor_every` epochs and after the last.
        probe: learns from the features of every batch, without any effect on the encoder.

    Attributes:
        seconds: of training, without the monitor and the saves, over all processes that worked on it.

    Raises:
        InputError: `out` holds a run of another recipe or on other images, or a resume file that cannot be used.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: Path,
        out: Path,
        *,
        device: torch.device,
        images: Files | Shards | None = None,
        workers: int = 2,
        warm_start: Path | None = None,
        max_unreadable: float = 0.01,
        monitor: Callable[[nn.Module], MonitorRow] | None = None,
        monitor_every: int = 10,
        probe: OnlineProbe | None = None,
    ) -> None:
        self.recipe, self.data, self.out = recipe, data, out
        self.monitor, self.monitor_every, self.probe = monitor, monitor_every, probe
        self.first = distributed.rank() == 0
        found = find_images(data) if images is None else images
        self.fingerprint = found.fingerprint(data)
        if self.first and isinstance(found, Shards) and seem_sorted_by_class(found):
            log.warning("the shards seem to be sorted by class, so that batches hold few classes; write them shuffled")
        state = self._saved_state()
        self._log_settings(device, len(found), workers)
        self.trainer = Trainer(recipe, found, device, workers, warm_start, max_unreadable)
        if probe is not None:
            probe.start(self.trainer.encoder.backbone.channels)
        self.wait = DataWait(device)
        self.seconds = 0.0
        self.rows: list[MonitorRow] = []
        self.collapsed = False  # as of the last epoch, so that it is said once
        if state is not None:
            self._resume(state)
        self.told = self.saved = time.monotonic()
        self.saving = 0.0  # seconds that the last save took

    def run(self) -> Path:
        """Trains to the end, or goes on from where the last process stopped. Returns the backbone file.

        Raises:
            InputError: more images than allowed cannot be read.
            FloatingPointError: the loss is no longer finite.
        """
        trainer, path = self.trainer, self.out / BACKBONE
        if self.first:
            remove_partials(self.out)
            write_file(self.out / RECIPE, self.recipe.model_dump_json(indent=1) + "\n")
        if trainer.step >= trainer.total and path.is_file():
            return path
        trainer.prepare()
        trainer.loader.arrived = self.wait.over
        batches = trainer.batches()
        with (
            distributed.stop_signals() as stop,
            Events(self.out / EVENTS, trainer.step, write=self.first) as events,
            tqdm(total=trainer.total, initial=trainer.step, unit="step", desc=self.recipe.name or "pretrain",
                 disable=not (self.first and sys.stderr.isatty())) as bar,
        ):  # fmt: skip
            while trainer.step < trainer.total:
                row = self._epoch(batches, bar, stop)
                self.rows.append(row)
                events.add(row, trainer.step)
                fault = collapse(row)
                if self.first and fault and not self.collapsed:
                    log.warning("epoch %d: the encoder has collapsed: %s", len(self.rows), fault)
                self.collapsed = bool(fault)
                bar.set_postfix(loss=f"{row['loss']:.3f}", acc=f"{row['accuracy']:.3f}")
                self._tell(bar, f"epoch {len(self.rows)} of {self.recipe.epochs}: {row_text(row)}")
                self._save_epoch(len(self.rows), stop())
        if self.first:
            draw_monitor_curves(self.out / CURVES, self.rows, self.recipe.name)
            self._write_backbone(path, self.recipe.epochs)
        return path

    def _epoch(self, batches: Iterator[Batch], bar: tqdm[Any], stop: Callable[[], bool]) -> MonitorRow:
        """The rest of the current epoch. Returns its row.

        Raises:
            Stopped: a signal asked for it; the state is saved.
        """
        trainer = self.trainer
        epoch = trainer.step // trainer.epoch_steps
        began, step = self.seconds, trainer.step
        while trainer.step < (epoch + 1) * trainer.epoch_steps:
            asked = time.monotonic()
            self.wait.begins()
            batch = next(batches)
            self.wait.ends()
            trainer.update(batch)
            if self.probe is not None:
                self.probe.update(trainer.encoder.features, batch.indices)
            self.seconds += time.monotonic() - asked
            bar.update()
            if trainer.step % trainer.epoch_steps:
                self._tell(bar, lambda: f"step {trainer.step}: loss {(trainer.sums[0] / trainer.sums[3]).item():.4g}")
                if stop() and self.first:
                    self._save_and_stop()
                if self._save_is_due():
                    self._save()
        asked = time.monotonic()
        row = self._row(epoch + 1)
        self.seconds += time.monotonic() - asked  # a GPU has worked on what it was given until here
        seconds, steps = max(self.seconds - began, 1e-9), trainer.step - step
        row["images_per_second"] = steps * self.recipe.batch_size / seconds
        row["data_share"] = self.wait.seconds() / seconds
        trainer.sums.zero_()
        if self.probe is not None and (right := self.probe.accuracy()) is not None:
            row[ONLINE_TRAIN] = right
        trainer.average_batch_norms()
        trainer.loader.count_unreadable(distributed.union(trainer.loader.unreadable))
        last = epoch + 1 == self.recipe.epochs
        if self.monitor and (last or (epoch + 1) % self.monitor_every == 0):
            row |= self.monitor(trainer.encoder.backbone)
        return row

    def _row(self, epoch: int) -> MonitorRow:
        trainer = self.trainer
        sums = distributed.mean(trainer.sums)
        self._require_finite(sums)
        loss, accuracy, spread, steps = sums.tolist()  # the one host sync of an epoch
        return {
            "epoch": epoch,
            "loss": loss / steps,
            "chance_loss": trainer.model.chance_loss,
            "accuracy": accuracy / steps,
            "lr": trainer.optimizer.param_groups[0]["lr"],
            "spread": spread / steps,
            "queue_fill": trainer.model.fill(trainer.step * self.recipe.batch_size),
        }

    def _require_finite(self, sums: torch.Tensor) -> None:
        if not sums[0].isfinite():
            saved = self.out / RESUME
            raise FloatingPointError(
                f"the loss is {sums[0].item()} in epoch {(self.trainer.step - 1) // self.trainer.epoch_steps + 1}: "
                + (f"the last finite state is in {saved}" if saved.is_file() else "no state had been saved yet")
                + "; lower lr, or use precision = 'fp32'"
            )

    def _tell(self, bar: tqdm[Any], text: str | Callable[[], str]) -> None:
        """Write a log line every half a minute where there is no bar."""
        if self.first and bar.disable and time.monotonic() - self.told > QUIET_SECONDS:
            self.told = time.monotonic()
            log.info("%s", text if isinstance(text, str) else text())

    def _saved_state(self) -> dict[str, Any] | None:
        """What an earlier process saved of this run."""
        path = self.out / RESUME
        state = load_resume(path)
        if state is None:
            return None
        try:
            recipe = Recipe.model_validate_json(state["trainer"]["recipe"])
            fingerprint = state["trainer"].get("images", self.fingerprint)  # older files do not have it
        except ValidationError:
            recipe = None  # with fields or values that recipes no longer have
        except (LookupError, TypeError, AttributeError) as error:
            raise unusable_resume(path, error) from error
        if recipe != self.recipe:
            raise InputError(
                f"{self.out} holds a run of another recipe (see its {RECIPE}); give a new --out, or remove it"
            )
        if fingerprint != self.fingerprint:
            raise InputError(
                f"{self.out} holds a run on other images than those of {self.data}; give the images that it began "
                "with, a new --out, or remove it"
            )
        return state

    def _resume(self, state: dict[str, Any]) -> None:
        try:
            self.trainer.load(state["trainer"])
            self.seconds, self.rows = float(state["seconds"]), list(state["rows"])
            restored = self.probe and "probe" in state and self.probe.load(state["probe"])
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise unusable_resume(self.out / RESUME, error) from error
        log.info("resuming at step %d", self.trainer.step)
        if restored is False:
            log.warning("the saved run has no online probe of these classes: a new one starts at step %d",
                        self.trainer.step)  # fmt: skip

    def _log_settings(self, device: torch.device, images: int, workers: int) -> None:
        if self.first:
            model = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
            log.info("%s on %s%s, %s, %s augmentation, %d images, %d loader workers on each of %d ranks; %s",
                     self.recipe.name or "pretraining", device, model, self.recipe.precision,
                     self.recipe.augmentation.engine, images, workers,
                     distributed.world_size(), batch_norm_text(self.recipe))  # fmt: skip

    def _save_is_due(self) -> bool:
        return time.monotonic() - self.saved > max(SAVE_SECONDS, self.saving / SAVE_SHARE)

    def _save_and_stop(self) -> NoReturn:
        self._save()
        stopped = distributed.Stopped(self.out / RESUME)
        log.warning("%s", stopped)
        raise stopped

    def _save_epoch(self, epoch: int, stop: bool) -> None:
        """After a whole epoch: the resume file now and then, a numbered one as often as the recipe says."""
        last, marked = epoch == self.recipe.epochs, epoch in self.recipe.marked_epochs
        asked = last or marked or epoch % self.recipe.save_every_epochs == 0
        if asked or self._save_is_due():
            self._save()
        if asked and self.first and (marked or self.recipe.keep_last):
            keep(self.out, epoch, self.recipe.keep_last, self.recipe.marked_epochs)
        if marked and self.first:
            self._write_backbone(numbered(self.out, epoch).with_suffix(Path(BACKBONE).suffix), epoch)
        if stop and self.first and not last:
            self._save_and_stop()

    def _save(self) -> None:
        began = time.monotonic()
        if self.first:
            self._require_finite(self.trainer.sums)  # a state that has diverged must not replace the last good one
            trainer = {**self.trainer.state(), "images": self.fingerprint}
            state = {
                "recipe": trainer["recipe"],  # at the top, with "epochs", for readers of the encoders
                "epochs": len(self.rows),
                "trainer": trainer,
                "seconds": self.seconds,
                "rows": self.rows,
            }
            if self.probe is not None:
                state["probe"] = self.probe.state()
            save_resume(self.out / RESUME, state)
            write_log(self.out / LOG, self.rows)
        self.saved = time.monotonic()
        self.saving = self.saved - began

    def _write_backbone(self, path: Path, epochs: int) -> None:
        recipe, backbone = self.recipe, self.trainer.encoder.backbone.state_dict()
        card = EncoderCard(
            name=recipe.name,
            source=f"recipe {recipe.name}, seed {recipe.seed}",
            architecture=recipe.architecture,
            layout="encoder-bench",
            keys_matched=len(backbone),
            mean=recipe.mean,
            std=recipe.std,
            method=recipe.method,
            epochs=epochs,
            pretrain_data=self.data.name,
            pretrain_seconds=round(self.seconds, 1),
            init=f"seed {recipe.seed}",
            licence="Apache-2.0",
        )
        write_backbone(path, backbone, card)


def save_resume(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings, containers of them) atomically: a kill leaves the old file whole.

    Raises:
        OSError: the file cannot be written; the error names it.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.save(state, file)


def load_resume(path: Path) -> dict[str, Any] | None:
    """Read what `save_resume` wrote, on the CPU; None where there is no file. Only tensors and plain values are read.

    The checksum of every part of the archive is verified, which `torch.load` does not do.

    Raises:
        InputError: damaged, or not a resume file.
    """
    if not path.exists():
        return None
    try:
        return dict(read_pickled(path, verify=True))
    except (InputError, TypeError, ValueError) as error:
        raise unusable_resume(path, error.__cause__ or error) from error


def unusable_resume(path: Path, error: BaseException) -> InputError:
    """The refusal of a resume file that cannot be used."""
    reason = " ".join(str(error).replace(str(path), "it").split())[:200] or type(error).__name__
    return InputError(
        f"{path} is damaged or not a resume file of this project ({reason}); remove it to start anew, or replace it by "
        "one of the epoch_*.pt files next to it"
    )


def numbered(out: Path, epoch: int) -> Path:
    """The checkpoint after `epoch` whole epochs."""
    return out / f"epoch_{epoch:04d}.pt"


def keep(out: Path, epoch: int, last: int, marked: Container[int]) -> None:
    """Keep the resume file, just written, as that of `epoch`, and delete all but the `last` of the unmarked ones.

    A hard link costs no space until the resume file moves on; where the file system has none it is a copy.
    """
    path = numbered(out, epoch)
    with replacing(path) as temporary:
        try:
            temporary.hardlink_to(out / RESUME)
        except OSError:
            shutil.copyfile(out / RESUME, temporary)
    there = sorted((int(p.stem.removeprefix("epoch_")), p) for p in out.glob("epoch_*.pt"))
    unmarked = [p for number, p in there if number not in marked]
    for old in unmarked[: max(0, len(unmarked) - last)]:
        old.unlink()


class DataWait:
    """Seconds of an epoch in which the device had nothing to do because no batch was there.

    On a CPU these are the seconds of the loader. A GPU works on while the host asks for the next batch, so there it is
    the time, by its own clock, between the end of an update and the arrival of the next batch, if that came later.
    """

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.total = self.began = 0.0
        self.gaps: list[tuple[Any, Any]] = []

    def begins(self) -> None:
        """The host asks for a batch; all work before it has been given to the device."""
        self.began = time.monotonic()
        if self.cuda:
            self.idle = torch.cuda.Event(enable_timing=True)
            self.idle.record()

    def over(self) -> None:
        """The batch has arrived on the host."""
        if self.cuda:
            arrived = torch.cuda.Event(enable_timing=True)
            arrived.record()
            self.gaps.append((self.idle, arrived))

    def ends(self) -> None:
        """The batch is ready, augmented and on the device, or will be."""
        if not self.cuda:
            self.total += time.monotonic() - self.began

    def seconds(self) -> float:
        """Since the last call. To be asked when the device has finished."""
        total = self.total + sum(idle.elapsed_time(arrived) for idle, arrived in self.gaps) / 1000
        self.total, self.gaps = 0.0, []
        return total


def plan_run(recipe: Recipe, data: Path, images: int, out: Path, device: torch.device) -> str:
    """The report of `--dry-run`. The time is measured on a small batch of noise, without the augmentation."""
    steps = recipe.epochs * (recipe.epoch_steps or images // recipe.batch_size)
    batch = small_batch(recipe, device.type)
    with distributed.full_float32():
        stepper = Stepper(recipe.changed(batch_size=batch), device, images)
        stepper.step()  # warms up
        hours = stepper.timed() / batch * recipe.batch_size * steps / 3600
    trained = [p for name in stepper.model.trained for p in stepper.model.get_submodule(name).parameters()]
    parameters = sum(p.numel() for p in trained)
    keys = sum(t.nbytes for t in stepper.model.state_dict().values()) - sum(p.nbytes for p in trained)
    disk = parameters * 8 + keys  # weights and momentum; the memory of keys, and weights without momentum
    there = ", which exists: the run would resume" if (out / RESUME).is_file() else ""
    return (
        f"recipe      {recipe.name}: {recipe.mechanism}, {recipe.architecture.name}, {recipe.epochs} epochs, "
        f"batch {recipe.batch_size}\n"
        f"data        {data}: {images:,} images, {steps:,} steps\n"
        f"out         {out}: {disk / 2**20:.0f} MiB for the resume file{there}\n"
        f"memory      {(parameters * 12 + keys) / 2**20:.0f} MiB for weights, gradients, optimiser and keys, and the "
        "activations\n"
        f"time        about {hours:.2g} hours on this {device.type}, measured on one batch of {batch}\n"
    )


def small_batch(recipe: Recipe, device: str = "cpu") -> int:
    """A part of the recipe's batch that the queue and split batch norms can take, of about `SMALL_BATCH` pixels."""
    total, parts = recipe.batch_size, recipe.split_bn
    possible = [n for n in range(2 * parts, total + 1, parts) if total % n == 0] or [total]
    wanted = SMALL_BATCH.get(device, SMALL_BATCH["cpu"]) // recipe.augmentation.crop**2
    return max((n for n in possible if n <= wanted), default=possible[0])

"""A run in its folder: the loop over epochs, what is saved when, and what it says on the way."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from pretrain import distributed, mechanisms
from pretrain.checkpoint import (
    RESUME,
    keep,
    load_resume,
    numbered,
    remove_partials,
    save_resume,
    write_backbone,
    write_text,
)
from pretrain.contrast import Batch
from pretrain.recipe import Recipe
from pretrain.sources import Files, Shards, find_images
from pretrain.trainer import Trainer, finite
from pretrain.watch import CURVES, EVENTS, KNN, LOG, Events, Row, as_text, draw_curves, write_log
from results.schema import EncoderCard

log = logging.getLogger(__name__)

BACKBONE, RECIPE = "backbone.safetensors", "recipe.json"
SAVE_SECONDS = 60.0  # between the saves that the recipe asks for, so that a kill costs about a minute
SAVE_SHARE = 0.05  # of the time at most, where a save takes long
QUIET_SECONDS = 30.0


class Run:
    """One pretraining run in one folder.

    Args:
        recipe: what to do.
        data: where the images are, see `find_images`; the card names it.
        images: what to learn from, where `data` need not be looked into.
        out: takes recipe.json, log.csv, tensorboard/, resume.pt, numbered checkpoints, backbone.safetensors and, at the
            end, curves.png.
        workers: loader processes of this rank.
        warm_start: see `Trainer`.
        monitor: accuracy in percent of a backbone, run by rank 0 every `monitor_every` epochs and after the last.

    Attributes:
        seconds: of training, without the monitor and the saves, over all processes that worked on it.
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
        monitor: Callable[[nn.Module], float] | None = None,
        monitor_every: int = 10,
    ) -> None:
        self.recipe, self.data, self.out = recipe, data, out
        self.monitor, self.monitor_every = monitor, monitor_every
        self.first = distributed.rank() == 0
        found = find_images(data) if images is None else images
        self.trainer = Trainer(recipe, found, device, workers, warm_start)
        self.seconds = 0.0
        self.rows: list[Row] = []
        self.told = self.saved = time.monotonic()
        self.saving = 0.0  # seconds that the last save took

    def run(self) -> Path:
        """Trains to the end, or goes on from where the last process stopped. Returns the backbone file.

        Raises:
            ValueError: `out` holds a run of another recipe.
            FloatingPointError: the loss is no longer finite.
        """
        trainer, path = self.trainer, self.out / BACKBONE
        self._begin()
        if trainer.step >= trainer.total and path.is_file():
            return path
        trainer.prepare()
        batches = trainer.batches()
        with (
            Events(self.out / EVENTS, trainer.step, write=self.first) as events,
            tqdm(total=trainer.total, initial=trainer.step, unit="step", desc=self.recipe.name or "pretrain",
                 disable=not (self.first and sys.stderr.isatty())) as bar,
        ):  # fmt: skip
            while trainer.step < trainer.total:
                row = self._epoch(batches, bar)
                self.rows.append(row)
                events.add(row, trainer.step)
                bar.set_postfix(loss=f"{row['loss']:.3f}", acc=f"{row['accuracy']:.3f}")
                self._tell(bar, f"epoch {len(self.rows)} of {self.recipe.epochs}: {as_text(row)}")
                self._save_epoch(len(self.rows))
        if self.first:
            draw_curves(self.out / CURVES, self.rows, self.recipe.name)
            self._write_backbone(path, self.recipe.epochs)
        return path

    def _epoch(self, batches: Iterator[Batch], bar: tqdm[Any]) -> Row:
        """The rest of the current epoch. Returns its row."""
        trainer = self.trainer
        epoch = trainer.step // trainer.epoch_steps
        began, step, waited = self.seconds, trainer.step, 0.0
        while trainer.step < (epoch + 1) * trainer.epoch_steps:
            asked = time.monotonic()
            batch = next(batches)
            got = time.monotonic()
            trainer.update(batch)
            now = time.monotonic()
            waited, self.seconds = waited + got - asked, self.seconds + now - asked
            bar.update()
            if trainer.step % trainer.epoch_steps:
                self._tell(bar, lambda: f"step {trainer.step}: loss {self._mean_loss():.4g}")
                if self._save_is_due():
                    self._save()
        seconds, steps = max(self.seconds - began, 1e-9), trainer.step - step
        row = self._row(epoch + 1)
        row["images_per_second"], row["data_share"] = steps * self.recipe.batch_size / seconds, waited / seconds
        trainer.sums.zero_()
        last = epoch + 1 == self.recipe.epochs
        if self.monitor and self.first and (last or (epoch + 1) % self.monitor_every == 0):
            row[KNN] = self.monitor(trainer.encoder.backbone)
        return row

    def _row(self, epoch: int) -> Row:
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

    def _mean_loss(self) -> float:
        return (self.trainer.sums[0] / self.trainer.sums[3]).item()

    def _require_finite(self, sums: torch.Tensor) -> None:
        if not finite(sums):
            raise FloatingPointError(
                f"the loss is {sums[0].item()} in epoch {(self.trainer.step - 1) // self.trainer.epoch_steps + 1}: "
                f"lower lr, or use precision = 'fp32'; the last finite state is in {self.out / RESUME}"
            )

    def _tell(self, bar: tqdm[Any], text: str | Callable[[], str]) -> None:
        """A log line every half a minute where there is no bar."""
        if self.first and bar.disable and time.monotonic() - self.told > QUIET_SECONDS:
            self.told = time.monotonic()
            log.info("%s", text if isinstance(text, str) else text())

    def _begin(self) -> None:
        if self.first:
            remove_partials(self.out)
        state = load_resume(self.out / RESUME)
        if state is None:
            if self.first:
                write_text(self.out / RECIPE, self.recipe.model_dump_json(indent=1) + "\n")
            return
        if state["trainer"]["recipe"] != self.recipe.model_dump_json():
            raise ValueError(
                f"{self.out} holds a run of another recipe (see its {RECIPE}); give a new --out, or remove it"
            )
        self.trainer.load(state["trainer"])
        self.seconds, self.rows = state["seconds"], state["rows"]
        log.info("going on at step %d", self.trainer.step)

    def _save_is_due(self) -> bool:
        return time.monotonic() - self.saved > max(SAVE_SECONDS, self.saving / SAVE_SHARE)

    def _save_epoch(self, epoch: int) -> None:
        """After a whole epoch: the resume file now and then, a numbered one as often as the recipe says."""
        last, marked = epoch == self.recipe.epochs, epoch in self.recipe.marked_epochs
        asked = last or marked or epoch % self.recipe.save_every_epochs == 0
        if asked or self._save_is_due():
            self._save()
        if asked and self.first and (marked or self.recipe.keep_last):
            keep(self.out, epoch, self.recipe.keep_last, self.recipe.marked_epochs)
        if marked and self.first:
            self._write_backbone(numbered(self.out, epoch).with_suffix(Path(BACKBONE).suffix), epoch)

    def _save(self) -> None:
        began = time.monotonic()
        if self.first:
            self._require_finite(self.trainer.sums)  # a state that has diverged must not replace the last good one
            state = {"trainer": self.trainer.state(), "seconds": self.seconds, "rows": self.rows}
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
            method=mechanisms.method(recipe),
            epochs=epochs,
            pretrain_data=self.data.name,
            pretrain_seconds=round(self.seconds, 1),
            init=f"seed {recipe.seed}",
            licence="Apache-2.0",
        )
        write_backbone(path, backbone, card)

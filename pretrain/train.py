"""The training loop: restartable at every step, the same on a CPU, a GPU and many ranks."""

from __future__ import annotations

import csv
import logging
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from pretrain import distributed
from pretrain.backbone_file import read_backbone, write_backbone
from pretrain.checkpoint import load_resume, save_resume
from pretrain.images import ViewPairs, find_images
from pretrain.moco import MoCo, QueryEncoder
from pretrain.recipe import Recipe
from results.schema import EncoderCard

log = logging.getLogger(__name__)

RESUME, BACKBONE, LOG = "resume.pt", "backbone.safetensors", "log.csv"
SAVE_EVERY_SECONDS = 60.0  # between the saves that the recipe asks for, so that a kill costs a minute at most


def learning_rate(recipe: Recipe, epoch: float) -> float:
    """The rate at `epoch`, which counts from 0 and may be fractional. The reference moves it once an epoch."""
    if epoch < recipe.warmup_epochs:
        return recipe.lr * epoch / recipe.warmup_epochs
    if recipe.schedule == "step":
        return recipe.lr * math.prod(0.1 for at in recipe.steps_at if epoch >= at)
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * epoch / recipe.epochs))


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Joins the ranks that torchrun started; does nothing without it."""
    if "RANK" not in os.environ:
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


class Run:
    """One pretraining run in one folder.

    Args:
        recipe: what to do.
        data: the images, see `find_images`.
        out: takes recipe.json, log.csv, resume.pt, backbone.safetensors.
        warm_start: a backbone file whose weights (not schedule, head or queue) the query encoder starts from.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: Path,
        out: Path,
        *,
        device: torch.device,
        workers: int = 2,
        warm_start: Path | None = None,
    ) -> None:
        self.recipe, self.data, self.out, self.device = recipe, data, out, device
        torch.manual_seed(recipe.seed)
        shuffles = torch.Generator(device).manual_seed(recipe.seed)
        self.view_generator = torch.Generator(device).manual_seed(recipe.seed * 65_537 + distributed.rank())
        self.model = MoCo(recipe, shuffles)
        if warm_start:
            self._start_from(warm_start)
        self.model.to(device).to(memory_format=torch.channels_last)
        self.pairs = ViewPairs(recipe, find_images(data), device, self.view_generator, workers)
        self.optimizer = torch.optim.SGD(
            self.model.encoder_q.parameters(), recipe.lr, momentum=recipe.sgd_momentum, weight_decay=recipe.weight_decay
        )
        self.step = 0  # over all epochs
        self.seconds = 0.0
        self.rows: list[dict[str, float]] = []

    def run(self) -> Path:
        """Trains to the end, or goes on from where the last process stopped. Returns the backbone file.

        Raises:
            ValueError: `out` holds a run of another recipe.
            FloatingPointError: the loss is no longer finite.
        """
        if not self._resume() and distributed.rank() == 0:
            self.out.mkdir(parents=True, exist_ok=True)
            (self.out / "recipe.json").write_text(self.recipe.model_dump_json(indent=1) + "\n", encoding="utf-8")
        total = self.recipe.epochs * self.pairs.steps
        if self.step >= total and (self.out / BACKBONE).is_file():
            return self.out / BACKBONE
        if distributed.world_size() > 1:
            # Only the query encoder is wrapped: the queue is kept equal by gathering keys, not by broadcasting it.
            self.model.encoder_q = DistributedDataParallel(self.model.encoder_q)
        self.model.train()
        interactive = sys.stderr.isatty()
        bar = tqdm(total=total, initial=self.step, unit="step", desc=self.recipe.name or "pretrain",
                   disable=not interactive or distributed.rank() > 0)  # fmt: skip
        started = saved = told = time.monotonic()
        before = self.seconds
        while self.step < total:
            epoch, first = divmod(self.step, self.pairs.steps)
            sums = torch.zeros(3, device=self.device)  # loss, accuracy, steps
            waiting = 0.0
            asked = time.monotonic()
            for views in self.pairs.epoch(epoch, first):
                waiting += time.monotonic() - asked
                sums += self._train_step(*views)
                self.step += 1
                bar.update()
                asked = time.monotonic()
                self.seconds = before + asked - started
                if asked - saved > SAVE_EVERY_SECONDS and self.step % self.pairs.steps:
                    self._save()
                    saved = time.monotonic()
            row = self._row(epoch, sums, waiting / max(self.seconds - before, 1e-9))
            self.rows.append(row)
            bar.set_postfix(loss=f"{row['loss']:.3f}", acc=f"{row['accuracy']:.3f}")
            if not interactive and time.monotonic() - told > 30:
                told = time.monotonic()
                log.info("epoch %d of %d: %s", epoch + 1, self.recipe.epochs, _text(row))
            if (epoch + 1) % self.recipe.save_every_epochs == 0 or time.monotonic() - saved > SAVE_EVERY_SECONDS:
                self._save()
                saved = time.monotonic()
        bar.close()
        self._save()
        return self._write_backbone()

    def _train_step(self, view_q: torch.Tensor, view_k: torch.Tensor) -> torch.Tensor:
        """One update. Returns (loss, accuracy, 1) without waiting for the device."""
        per = self.pairs.steps
        epoch = self.step / per if self.recipe.schedule_per == "step" else float(self.step // per)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, epoch)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            loss, accuracy = self.model(view_q, view_k)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return torch.stack([loss.detach(), accuracy, torch.ones_like(accuracy)])

    def _row(self, epoch: int, sums: torch.Tensor, waiting: float) -> dict[str, float]:
        loss, accuracy, steps = sums.tolist()  # the one host sync of an epoch
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} in epoch {epoch + 1}: lower lr, or use precision = 'fp32'; "
                f"the last finite state is in {self.out / RESUME}"
            )
        return {
            "epoch": epoch + 1,
            "loss": loss / steps,
            "chance_loss": math.log(self.recipe.queue_size + 1),
            "accuracy": accuracy / steps,
            "lr": self.optimizer.param_groups[0]["lr"],
            "images_per_second": self.step * self.recipe.batch_size / max(self.seconds, 1e-9),
            "data_share": waiting,
            "queue_fill": min(1.0, self.step * self.recipe.batch_size / self.recipe.queue_size),
        }

    def _query_encoder(self) -> QueryEncoder:
        encoder = self.model.encoder_q
        inner = encoder.module if isinstance(encoder, DistributedDataParallel) else encoder
        assert isinstance(inner, QueryEncoder)
        return inner

    def _save(self) -> None:
        if distributed.rank() > 0:
            return
        model = {k.replace("encoder_q.module.", "encoder_q."): v for k, v in self.model.state_dict().items()}
        save_resume(
            self.out / RESUME,
            {
                "recipe": self.recipe.model_dump_json(),
                "model": model,
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "seconds": self.seconds,
                "rows": self.rows,
                "shuffles": self.model.generator.get_state(),
                "views": self.view_generator.get_state(),
            },
        )
        with (self.out / LOG).open("w", newline="", encoding="utf-8") as file:
            if self.rows:
                writer = csv.DictWriter(file, list(self.rows[0]))
                writer.writeheader()
                writer.writerows(self.rows)

    def _resume(self) -> bool:
        state = load_resume(self.out / RESUME)
        if state is None:
            return False
        if Recipe.model_validate_json(state["recipe"]) != self.recipe:
            raise ValueError(
                f"{self.out} holds a run of another recipe (see its recipe.json); give a new --out, or remove it"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.rows = state["step"], state["seconds"], state["rows"]
        self.model.generator.set_state(state["shuffles"])
        if distributed.rank() == 0:  # other ranks draw new views: bit-identity is promised for one process
            self.view_generator.set_state(state["views"])
        log.info("going on at step %d", self.step)
        return True

    def _start_from(self, path: Path) -> None:
        tensors, _ = read_backbone(path)
        for encoder in (self.model.encoder_q, self.model.encoder_k):
            assert isinstance(encoder, QueryEncoder)
            encoder.backbone.load_state_dict(tensors)

    def _write_backbone(self) -> Path:
        path = self.out / BACKBONE
        if distributed.rank() == 0:
            write_backbone(path, self._query_encoder().backbone.state_dict(), self._card())
        return path

    def _card(self) -> EncoderCard:
        recipe = self.recipe
        return EncoderCard(
            name=recipe.name,
            source=f"recipe {recipe.name}, seed {recipe.seed}",
            architecture=recipe.architecture,
            layout="encoder-bench",
            keys_matched=len(self._query_encoder().backbone.state_dict()),
            mean=recipe.mean,
            std=recipe.std,
            method="MoCo v2" if recipe.head == "mlp" else "MoCo v1",
            epochs=recipe.epochs,
            pretrain_data=self.data.name,
            pretrain_seconds=round(self.seconds, 1),
            init=f"seed {recipe.seed}",
            licence="Apache-2.0",
        )


def _text(row: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "epoch")

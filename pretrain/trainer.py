"""A recipe's model, data and optimiser as they stand at one step: what moves, and what a resume file must hold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pretrain import distributed, mechanisms
from pretrain.checkpoint import read_backbone
from pretrain.contrast import Batch, ProjectedEncoder
from pretrain.loader import Loader
from pretrain.recipe import Recipe
from pretrain.schedule import build_optimizer, learning_rate
from pretrain.sources import Files, Shards

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Trainer:
    """Model, loader, optimiser and counters.

    Args:
        recipe: what to do.
        images: what to learn from.
        workers: loader processes of this rank.
        warm_start: a backbone file whose weights (not schedule, head or queue) the encoders start from.

    Attributes:
        step: over all epochs.
        sums: loss, accuracy, spread and steps of the current epoch so far, on the device.
    """

    def __init__(
        self,
        recipe: Recipe,
        images: Files | Shards,
        device: torch.device,
        workers: int,
        warm_start: Path | None = None,
    ) -> None:
        self.recipe, self.device = recipe, device
        torch.manual_seed(recipe.seed)
        self.shuffles = torch.Generator(device).manual_seed(recipe.seed)
        self.view_generator = torch.Generator(device).manual_seed(recipe.seed * 65_537 + distributed.rank())
        self.model = mechanisms.build(recipe, self.shuffles, len(images))
        if warm_start:
            self._start_from(warm_start)
        if recipe.sync_bn and distributed.world_size() > 1:
            self._join_batch_norms()
        self.model.to(device).to(memory_format=torch.channels_last)
        self.loader = Loader(recipe, images, device, self.view_generator, workers)
        self.epoch_steps = recipe.epoch_steps or self.loader.steps
        self.total = recipe.epochs * self.epoch_steps
        self.optimizer = build_optimizer(recipe, [self.model.get_submodule(name) for name in self.model.trained])
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
        self.step = 0
        self.sums = torch.zeros(4, device=device)

    def prepare(self) -> None:
        """To be called once, after any `load`: compiles the encoders where the recipe asks, and joins the ranks."""
        if self.recipe.compile:
            for encoder in (m for m in self.model.children() if isinstance(m, ProjectedEncoder)):
                encoder.compile()
        if distributed.world_size() > 1:
            # Only what is trained is wrapped: memories are kept equal by gathering keys, not by broadcasting them.
            for name in self.model.trained:
                wrapped = DistributedDataParallel(getattr(self.model, name), forward_sync_buffers=False)
                setattr(self.model, name, wrapped)
        self.model.train()

    def batches(self) -> Iterator[Batch]:
        """Batches from the current step on, pass after pass over the data."""
        while True:
            number, first = divmod(self.step, self.loader.steps)
            yield from self.loader.epoch(number, first)

    def update(self, batch: Batch) -> None:
        """One step, counted and added to `sums` without waiting for the device."""
        recipe = self.recipe
        epoch = self.step / self.epoch_steps
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(recipe, epoch if recipe.schedule_per == "step" else float(int(epoch)))
        with torch.autocast(self.device.type, AUTOCAST.get(recipe.precision), enabled=recipe.precision in AUTOCAST):
            loss, accuracy, spread = self.model(batch)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.sums += torch.stack([loss.detach().float(), accuracy, spread, torch.ones_like(accuracy)])
        self.step += 1

    @property
    def encoder(self) -> ProjectedEncoder:
        """The encoder whose backbone is the result."""
        encoder = self.model.encoder_q
        inner = encoder.module if isinstance(encoder, DistributedDataParallel) else encoder
        assert isinstance(inner, ProjectedEncoder)
        return inner

    def state(self) -> dict[str, Any]:
        """Tensors and plain values, from which `load` goes on bit by bit in a single process."""
        wrapped = tuple(f"{name}.module." for name in self.model.trained)
        model = {
            next((key.replace(w, w.removesuffix("module."), 1) for w in wrapped if key.startswith(w)), key): value
            for key, value in self.model.state_dict().items()
        }
        return {
            "recipe": self.recipe.model_dump_json(),
            "model": model,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "sums": self.sums,
            "shuffles": self.shuffles.get_state(),
            "views": self.view_generator.get_state(),
            "split": self._split(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Goes on from a `state` of the same recipe.

        Raises:
            ValueError: in the middle of a pass over shards, with another number of ranks or loader workers.
        """
        if state["split"] != self._split() and state["step"] % self.loader.steps:
            ranks, workers = state["split"]
            raise ValueError(
                f"the run stopped inside a pass over shards that were dealt to {ranks} ranks of {workers} loader "
                f"workers: go on with as many (--workers {workers})"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        self.sums = state["sums"].to(self.device)
        self.shuffles.set_state(state["shuffles"])
        if distributed.rank() == 0:
            self.view_generator.set_state(state["views"])
        else:  # not in the file: bit-identity is promised for one process
            self.view_generator.manual_seed((self.recipe.seed + self.step) * 65_537 + distributed.rank())

    def _split(self) -> list[int]:
        """What the order of shards depends on beside the seed; nothing for files."""
        return [distributed.world_size(), self.loader.workers] if isinstance(self.loader.images, Shards) else []

    def _start_from(self, path: Path) -> None:
        tensors, _ = read_backbone(path)
        for encoder in self.model.children():
            if isinstance(encoder, ProjectedEncoder):
                encoder.backbone.load_state_dict(tensors)

    def _join_batch_norms(self) -> None:
        if self.device.type != "cuda":
            raise ValueError("sync_bn over several ranks needs GPUs: start one process, or set sync_bn = false")
        self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)


def finite(sums: Tensor) -> bool:
    """Whether every loss of the epoch so far was finite."""
    return bool(sums[0].isfinite())

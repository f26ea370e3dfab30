"""One trial: an FCN on the encoder, trained by mmengine's runner and measured on the test images."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader, Subset

from benchmarks.contract import InputError, Labels
from benchmarks.encoders.encoder import Encoder
from benchmarks.progress import progress as with_progress
from benchmarks.segmentation import backbone, scenes
from benchmarks.segmentation.config import model_config, optimisation, pipelines
from benchmarks.segmentation.mmsegmentation import quiet, register, use_device
from benchmarks.segmentation.score import areas
from benchmarks.segmentation.settings import SegmentationSettings
from benchmarks.training.sync_norm import synchronise
from pretrain import distributed

log = logging.getLogger(__name__)

KEPT = 2  # a checkpoint that was being written when the run was killed leaves the one before


class Trial:
    """A training run with its own seed and folder; under torchrun every rank has its share of each batch.

    Args:
        workers: loader processes; 0 loads in this one.
        folder: of the checkpoints, from which a killed run goes on.

    Raises:
        InputError: the batch cannot be split evenly, or images lack their masks.
    """

    def __init__(
        self, settings: SegmentationSettings, encoder: Encoder, train: Labels, test: Labels, *, seed: int,
        device: str, workers: int, folder: Path,
    ) -> None:  # fmt: skip
        register()
        self.settings, self.encoder, self.seed, self.folder = settings, encoder, seed, folder
        self.device = distributed.join(device)
        use_device(self.device.type)
        if self.device.type == "cuda" and self.device.index is not None:
            torch.cuda.set_device(self.device)  # mmengine takes the current one
        if settings.precision != "fp32" and self.device.type == "cpu":
            raise InputError(
                f"mmengine trains in {settings.precision} on a GPU alone; leave the precision at fp32 here"
            )
        self.rank, self.ranks = distributed.rank(), distributed.world_size()
        if settings.batch_size % self.ranks:
            raise InputError(
                f"a batch of {settings.batch_size} cannot be split evenly over {self.ranks} ranks; start another "
                "number of them, or --set batch_size, which the protocol's id will show"
            )
        training, testing = pipelines(settings)
        common: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0, "collate_fn": _collate}
        self.train_loader: DataLoader[Any] = DataLoader(
            scenes.Scenes(train, settings.classes, training, seed=seed),
            batch_size=settings.batch_size // self.ranks,
            sampler=scenes.Draws(len(train), self.rank, self.ranks),
            **common,
        )
        mine = Subset(scenes.Scenes(test, settings.classes, testing), range(self.rank, len(test), self.ranks))
        self.test_loader: DataLoader[Any] = DataLoader(mine, batch_size=1, **common)
        self.test_items = len(test)

    def train(self, *, progress: bool = True) -> nn.Module:
        """The trained model. A run that was killed goes on from its last whole checkpoint.

        Raises:
            FloatingPointError: the loss is not finite any more.
        """
        last = _last_whole_checkpoint(self.folder)
        with quiet():
            runner = self._runner(last, progress=progress)
            runner.train()
        trained: nn.Module = getattr(runner.model, "module", runner.model)
        return trained

    def _runner(self, last: Path | None, *, progress: bool) -> Any:
        """mmengine's runner before its first iteration, or before that after the checkpoint `last`."""
        from mmengine.hooks import Hook
        from mmengine.runner import Runner

        settings, seed, encoder, rank, ranks = self.settings, self.seed, self.encoder, self.rank, self.ranks
        done = 0
        if last is not None:
            log.info("goes on from %s", last)
            done = int(last.stem.partition("_")[2])
        bar = with_progress(range(settings.iterations), f"segmentation, trial {seed}", show=progress and self.rank == 0)
        for _ in range(done):
            next(bar)

        class EveryIteration(Hook):
            """Makes dropout a function of seed and iteration, so that a run that goes on is the run that went on."""

            def before_train(self, runner: Runner) -> None:
                if runner.iter == 0:  # mmengine initialises and wraps models on its way here
                    backbone.check(encoder, getattr(runner.model, "module", runner.model).backbone)

            def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
                torch.manual_seed((seed << 32) + runner.iter * ranks + rank)

            def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
                next(bar, None)
                number, loss = runner.iter + 1, kwargs["outputs"]["loss"]
                # As seldom as a checkpoint is written, and before it is: to look at a loss waits for the GPU.
                if (number % settings.checkpoint_every == 0 or number == settings.iterations) and not loss.isfinite():
                    raise FloatingPointError(f"the loss is {float(loss)} after {number} iterations; lower lr")

            def after_train(self, runner: Runner) -> None:
                for _ in bar:  # closes it
                    pass

        wrapper, schedule = optimisation(settings)
        # Its own way of wrapping a model names a GPU.
        wrap = {"model_wrapper_cfg": {"broadcast_buffers": False, "device_ids": None}}
        return Runner(
            model=self.build(),
            cfg=wrap if self.ranks > 1 and self.device.type == "cpu" else None,
            work_dir=str(self.folder),
            train_dataloader=self.train_loader,
            train_cfg={"type": "IterBasedTrainLoop", "max_iters": settings.iterations,
                       "val_interval": settings.iterations},
            optim_wrapper=wrapper,
            param_scheduler=list(schedule),
            default_scope="mmseg",
            default_hooks={
                "checkpoint": {"type": "CheckpointHook", "by_epoch": False, "interval": settings.checkpoint_every,
                               "max_keep_ckpts": KEPT},
                "logger": {"type": "LoggerHook", "interval": 50, "log_metric_by_epoch": False},
                "sampler_seed": None,
            },
            custom_hooks=[EveryIteration()],
            launcher="pytorch" if self.ranks > 1 else "none",
            env_cfg={"cudnn_benchmark": True},
            randomness={"seed": seed},
            log_level="ERROR",
            log_processor={"by_epoch": False},
            load_from=str(last) if last else None,
            resume=last is not None,
            experiment_name=f"{self.folder.parent.name}-{self.folder.name}-{os.getpid()}",
        )  # fmt: skip

    def build(self) -> nn.Module:
        """The model before its first step: heads at random, the encoder's weights in the backbone."""
        from mmengine.config import ConfigDict
        from mmseg.registry import MODELS

        many, cuda = self.ranks > 1, self.device.type == "cuda"
        config = model_config(self.settings, self.encoder.card, synchronised=many and cuda)
        torch.manual_seed(self.seed)
        model: nn.Module = MODELS.build(ConfigDict(config))
        model.init_weights()  # type: ignore[operator]  # of mmengine's BaseModule
        backbone.transfer(self.encoder, model.backbone)  # type: ignore[arg-type]
        return synchronise(model, self.device) if many and not cuda else model

    @torch.no_grad()
    def measure(
        self, model: nn.Module, *, progress: bool = True, look: Callable[[int, Any], None] | None = None
    ) -> NDArray[np.int64]:
        """(N, 3, C) areas of every test image.

        Args:
            look: is shown the index and the prediction (mmseg's data sample) of every image.
        """
        model.eval()
        found = torch.zeros(self.test_items, 3, self.settings.classes, dtype=torch.int64)
        shown = with_progress(self.test_loader, "test", show=progress and self.rank == 0)
        for number, batch in enumerate(shown):
            (sample,) = model.test_step(batch)  # type: ignore[operator]
            index = self.rank + number * self.ranks
            truth = sample.gt_sem_seg.data[0]
            predicted = sample.pred_sem_seg.data[0].to(truth.device)
            found[index] = areas(predicted, truth, self.settings.classes).cpu()
            if look:
                look(index, sample)
        return distributed.sum_(found.to(self.device)).cpu().numpy()


def _collate(items: list[dict[str, Any]]) -> Any:
    from mmengine.dataset import pseudo_collate

    return pseudo_collate(items)


def _last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of this run that can be read; one that was being written at a kill cannot."""
    for path in sorted(folder.glob("iter_*.pth"), key=lambda p: int(p.stem.partition("_")[2]), reverse=True):
        try:
            torch.load(path, map_location="cpu", weights_only=False, mmap=True)  # this run wrote it
        except Exception as error:
            log.warning("%s cannot be read and is passed over: %s", path, error)
        else:
            return path
    return None

"""One trial: an FCN on the encoder, trained by mmengine's runner and measured on the test images."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader, Subset

from benchmarks.contract import Labels
from benchmarks.encoders.encoder import Encoder
from benchmarks.progress import progress as with_progress
from benchmarks.segmentation import backbone, scenes
from benchmarks.segmentation.config import model_config, optimisation, pipelines
from benchmarks.segmentation.score import areas
from benchmarks.segmentation.settings import SegmentationSettings

log = logging.getLogger(__name__)

KEPT = 2  # a checkpoint that was being written when the run was killed leaves the one before


@cache
def register() -> None:
    """Imports mmsegmentation, whose models and transforms the registries then find, and adds this harness's own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of operators that only a full mmcv compiles, and that no FCN has
        from mmengine.logging import MMLogger
        from mmengine.registry import init_default_scope
        from mmseg.utils import register_all_modules

        register_all_modules(init_default_scope=False)
        init_default_scope("mmseg")
        MMLogger.get_instance("mmengine", log_level="ERROR")  # at its own level it lists every tensor's initialisation
    backbone.register()
    scenes.register()


class Trial:
    """A training run with its own seed and folder.

    Args:
        device: `cpu`, or the kind of accelerator that mmengine finds.
        workers: loader processes; 0 loads in this one.
        folder: of the checkpoints, from which a killed run goes on.
    """

    def __init__(
        self, settings: SegmentationSettings, encoder: Encoder, train: Labels, test: Labels, *, seed: int,
        device: str, workers: int, folder: Path,
    ) -> None:  # fmt: skip
        register()
        self.settings, self.encoder, self.seed, self.folder = settings, encoder, seed, folder
        self.rank, self.ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self._device(device)
        training, testing = pipelines(settings)
        common: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0, "collate_fn": _collate}
        self.train_loader: DataLoader[Any] = DataLoader(
            scenes.Scenes(train, training, seed=seed),
            batch_size=settings.batch_size // self.ranks,
            sampler=scenes.Draws(len(train), self.rank, self.ranks),
            **common,
        )
        mine = Subset(scenes.Scenes(test, testing), range(self.rank, len(test), self.ranks))
        self.test_loader: DataLoader[Any] = DataLoader(mine, batch_size=1, **common)
        self.test_items = len(test)

    def run(self, *, progress: bool = True) -> NDArray[np.int64]:
        """(N, 3, C) areas of every test image after the last iteration; see `score.areas`."""
        model = self.train(progress=progress)
        return self.measure(model, progress=progress)

    def train(self, *, progress: bool = True) -> nn.Module:
        """The trained model. A run that was killed goes on from its last whole checkpoint."""
        from mmengine.hooks import Hook
        from mmengine.runner import Runner

        settings, seed, encoder = self.settings, self.seed, self.encoder
        bar = iter(with_progress(range(settings.iterations), f"segmentation, trial {seed}", show=progress))

        class EveryIteration(Hook):
            """Makes dropout a function of seed and iteration, so that a run that goes on is the run that went on."""

            def before_train(self, runner: Runner) -> None:
                if runner.iter == 0:  # mmengine initialises and wraps models on its way here
                    backbone.check(encoder, getattr(runner.model, "module", runner.model).backbone)

            def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
                torch.manual_seed((seed << 32) + runner.iter)

            def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
                next(bar, None)

        wrapper, schedule = optimisation(settings)
        last = _last_whole_checkpoint(self.folder)
        torch.manual_seed(seed)
        runner = Runner(
            model=self.build(),
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
            env_cfg={"cudnn_benchmark": True, "dist_cfg": {"backend": "nccl" if _cuda() else "gloo"}},
            randomness={"seed": seed},
            log_level="ERROR",
            log_processor={"by_epoch": False},
            load_from=str(last) if last else None,
            resume=last is not None,
            experiment_name=f"trial-{seed}-{os.getpid()}",
        )  # fmt: skip
        if last is not None:
            log.info("goes on from %s", last)
            for _ in range(int(last.stem.partition("_")[2])):
                next(bar, None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the two libraries, on every run
            runner.train()
        for _ in bar:  # closes it
            pass
        trained: nn.Module = getattr(runner.model, "module", runner.model)
        return trained

    def build(self) -> nn.Module:
        """The model before its first step: heads at random, the encoder's weights in the backbone."""
        from mmengine.config import ConfigDict
        from mmseg.registry import MODELS

        config = model_config(self.settings, self.encoder.card, synchronised=self.ranks > 1)
        torch.manual_seed(self.seed)
        model: nn.Module = MODELS.build(ConfigDict(config))
        model.init_weights()  # type: ignore[operator]  # of mmengine's BaseModule
        backbone.transfer(self.encoder, model.backbone)  # type: ignore[arg-type]
        return model

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
        for number, batch in enumerate(with_progress(self.test_loader, "test", show=progress)):
            (sample,) = model.test_step(batch)  # type: ignore[operator]
            index = self.rank + number * self.ranks
            truth = sample.gt_sem_seg.data[0]
            predicted = sample.pred_sem_seg.data[0].to(truth.device)
            found[index] = areas(predicted, truth, self.settings.classes).cpu()
            if look:
                look(index, sample)
        if self.ranks > 1:
            gathered = found.cuda() if _cuda() else found
            torch.distributed.all_reduce(gathered)
            found = gathered.cpu()
        return found.numpy()

    @staticmethod
    def _device(device: str) -> None:
        """mmengine takes the accelerator that it finds unless it is told otherwise in this one place."""
        import mmengine.device.utils as found

        kind, _, number = device.partition(":")
        found.DEVICE = kind
        if kind == "cuda" and number:
            torch.cuda.set_device(int(number))


def _cuda() -> bool:
    from mmengine.device import get_device

    return bool(get_device() == "cuda")


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

"""One trial: a detector on the encoder, trained by detectron2's trainer and hooks and measured on the test images."""

from __future__ import annotations

import logging
import os
import warnings
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.contract import InputError, Labels
from benchmarks.detection import backbone
from benchmarks.detection.config import build, configuration
from benchmarks.detection.evaluators import Scores, evaluator
from benchmarks.detection.loader import inference_loader, train_loader
from benchmarks.detection.scenes import Scene, for_training
from benchmarks.detection.settings import DetectionSettings
from benchmarks.encoders.encoder import Encoder
from benchmarks.encoders.export.detectron2 import write_detectron2
from benchmarks.progress import progress as with_progress
from benchmarks.training.memory_format import safe_memory_format
from pretrain.distributed import join, rank, world_size

log = logging.getLogger(__name__)

KEPT = 2  # a checkpoint that was being written when the run was killed leaves the one before


class Trial:
    """A training run with its own seed and folder.

    Args:
        train, test: images with their objects (see `benchmarks.detection.scenes`).
        labels: of the test images, for the evaluator.
        workers: loader processes; 0 loads in this one.
        folder: of the weights that detectron2 reads and of the checkpoints, from which a killed run goes on.
    """

    def __init__(
        self, settings: DetectionSettings, encoder: Encoder, train: list[Scene], test: list[Scene], labels: Labels, *,
        seed: int, device: str, workers: int, folder: Path,
    ) -> None:  # fmt: skip
        self.settings, self.encoder, self.test, self.labels = settings, encoder, test, labels
        self.seed, self.workers, self.folder = seed, workers, folder
        self.device = join(device)
        self.rank, self.ranks = rank(), world_size()
        self.cfg = configuration(
            settings, encoder.card, len(labels.classes), ranks=self.ranks, gpu=self.device.type == "cuda"
        ).clone()
        self.cfg.defrost()
        self.cfg.MODEL.DEVICE = str(self.device)
        self.cfg.freeze()
        if self.cfg.SOLVER.IMS_PER_BATCH % self.ranks:
            raise InputError(
                f"the total batch of {self.cfg.SOLVER.IMS_PER_BATCH} does not split over {self.ranks} processes; take "
                "a number of them that divides it, or --set scaled_batch=… with the rate scaled along"
            )
        if settings.precision == "fp16" and self.device.type != "cuda":
            raise InputError("--set precision=fp16 needs a GPU; take bf16 or fp32")
        if self.ranks > 1:
            _join_detectron2()
        self.train_scenes: list[Scene] = _quietly(partial(for_training, train, settings))

    def train(self, *, progress: bool = True) -> nn.Module:
        """The trained model. A run that was killed goes on from its last whole checkpoint."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside detectron2
            return self._train(progress)

    def build(self) -> nn.Module:
        """The model before its first step: heads at random, the encoder's weights in the backbone.

        Raises:
            RuntimeError: a tensor of the backbone is not the encoder's.
        """
        from detectron2.checkpoint import DetectionCheckpointer

        torch.manual_seed(self.seed)
        model = build(self.cfg)
        file = self.folder / f"encoder-{self.rank}.pkl"
        write_detectron2(self.encoder, file)
        _quietly(lambda: DetectionCheckpointer(model).load(str(file)))
        backbone.check(self.encoder, model)
        if not self.cfg.MODEL.KEYPOINT_ON:  # whose loss takes views that ask for the ordinary layout
            model.to(memory_format=safe_memory_format(model, self.device))
        return model

    def _train(self, progress: bool) -> nn.Module:
        from detectron2.checkpoint import DetectionCheckpointer
        from detectron2.engine import AMPTrainer, SimpleTrainer, create_ddp_model, hooks
        from detectron2.solver import build_lr_scheduler, build_optimizer

        class _Bf16Trainer(SimpleTrainer):
            """Needs no scaling of gradients, and works on a CPU, which detectron2's AMPTrainer does not."""

            def run_step(self) -> None:
                # Entered anew for every step: until it is left, weights are cast once and for all.
                with torch.autocast(device, torch.bfloat16):
                    super().run_step()

        cfg, seed, device = self.cfg, self.seed, self.device.type
        model = self.build()
        optimiser = build_optimizer(cfg, model)
        wrapped = model
        if self.ranks > 1:
            own = {} if device == "cuda" else {"device_ids": None}
            wrapped = create_ddp_model(model, broadcast_buffers=False, **own)
        trainer: Any
        if self.settings.precision == "fp16":
            trainer = AMPTrainer(wrapped, (), optimiser, precision=torch.float16)
        elif self.settings.precision == "bf16":
            trainer = _Bf16Trainer(wrapped, (), optimiser)
        else:
            trainer = SimpleTrainer(wrapped, (), optimiser)
        trainer.gather_metric_period = 20
        iterations = cfg.SOLVER.MAX_ITER
        bar = iter(with_progress(range(iterations), f"detection, trial {seed}", show=progress))
        own_rank = self.rank

        class EveryIteration(hooks.HookBase):
            """Makes the sampling of boxes a function of seed and iteration, so that a run that goes on is the same."""

            def before_step(self) -> None:
                torch.manual_seed((seed << 40) + (own_rank << 32) + self.trainer.iter)

            def after_step(self) -> None:
                next(bar, None)

        trainer.register_hooks([EveryIteration(), hooks.LRScheduler(optimiser, build_lr_scheduler(cfg, optimiser))])
        if cfg.TEST.PRECISE_BN.ENABLED:
            # Batches that training does not draw; deterministic, so that a run that goes on has the same statistics.
            other = self._loader(seed=seed + 1_000_003, first=0, workers=0)
            trainer.register_hooks([hooks.PreciseBN(0, wrapped, other, cfg.TEST.PRECISE_BN.NUM_ITER)])
        checkpointer = DetectionCheckpointer(wrapped, str(self.folder), trainer=weakref.proxy(trainer))
        if self.rank == 0:
            trainer.register_hooks(
                [hooks.PeriodicCheckpointer(checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD, max_to_keep=KEPT)]
            )
        first = _resume(checkpointer, self.folder, trainer)
        for _ in range(first):
            next(bar, None)
        if first < iterations:
            trainer.data_loader = self._loader(seed=seed, first=first, workers=self.workers)
            _quietly(lambda: trainer.train(first, iterations))
        for _ in bar:  # closes it
            pass
        return model

    def _loader(self, *, seed: int, first: int, workers: int) -> Any:
        how = {"seed": seed, "rank": self.rank, "ranks": self.ranks, "workers": workers, "first": first}
        return _quietly(partial(train_loader, self.train_scenes, self.cfg, **how))

    @torch.no_grad()
    def measure(
        self, model: nn.Module, *, progress: bool = True, look: Callable[[Scene, Any], None] | None = None
    ) -> Scores:
        """Scores on the test images, the same on every rank.

        Args:
            look: is shown every image with its objects and detectron2's `Instances` of it.
        """
        from detectron2.utils import comm

        model.eval()
        own = evaluator(self.settings, self.labels)
        own.reset()
        scenes = {scene["image_id"]: scene for scene in self.test}
        loader = inference_loader(self.test, self.cfg, rank=self.rank, ranks=self.ranks, workers=self.workers)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for inputs in with_progress(loader, "test", show=progress):
                outputs = model(inputs)
                if look:
                    look(scenes[inputs[0]["image_id"]], outputs[0]["instances"].to("cpu"))
                own.process(inputs, outputs)
            scores: Scores = comm.all_gather(own.evaluate())[0]
        return scores


def _join_detectron2() -> None:
    """Tells detectron2, which did not start the ranks itself, how many of them are on this machine."""
    from detectron2.utils import comm

    if comm._LOCAL_PROCESS_GROUP is None:
        comm.create_local_process_group(int(os.environ.get("LOCAL_WORLD_SIZE", world_size())))


def _resume(checkpointer: Any, folder: Path, trainer: Any) -> int:
    """The iteration to go on with: after the newest checkpoint of this run that can be read, 0 without one."""
    for path in sorted(folder.glob("model_*.pth"), key=lambda p: p.stat().st_mtime, reverse=True):
        try:
            torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:
            log.warning("%s cannot be read and is passed over: %s", path, error)
            continue
        _quietly(partial(checkpointer.load, str(path)))
        log.info("goes on from %s", path)
        return int(trainer.iter) + 1
    return 0


def _quietly(what: Callable[[], Any]) -> Any:
    """Runs it with detectron2's and fvcore's own log lines held back."""
    kept = {name: logging.getLogger(name).level for name in ("detectron2", "fvcore")}
    for name in kept:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        return what()
    finally:
        for name, level in kept.items():
            logging.getLogger(name).setLevel(level)

"""One trial: a detector on the encoder, trained by detectron2's trainer and hooks and measured on the test images."""

from __future__ import annotations

import logging
import os
import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.detection.data import (
    ImageDict,
    inference_loader,
    mappers,
    on_device,
    train_loader,
    training_scenes,
    vit_mappers,
)
from benchmarks.detection.metrics import evaluator
from benchmarks.detection.model import (
    RELATIVE,
    build,
    check_backbone,
    configuration,
    grid_of,
    vit_configuration,
    vit_run_configuration,
)
from benchmarks.detection.protocols import DetectionParams, VitDetectionParams
from benchmarks.encoders.encoder import Encoder
from benchmarks.encoders.export import write_detectron2
from benchmarks.encoders.vit_export import vit_shape, vit_tensors
from benchmarks.task import InputError, Labels, RunOptions
from benchmarks.task import progress as with_progress
from benchmarks.training.loop import safe_memory_format
from benchmarks.training.trials import (
    KEPT_CHECKPOINTS,
    Sheet,
    Trial,
    TrialScores,
    last_whole_checkpoint,
    quiet,
    require_same_tensors,
)
from pretrain import distributed
from pretrain.safe_pickle import read_pickled
from results.files import replacing

log = logging.getLogger(__name__)

LOGGERS = ("detectron2", "fvcore")


class DetectionTrial(Trial):
    """See `Trial`. detectron2 also reads the encoder's weights from the folder.

    Args:
        train, test: scenes (see `benchmarks.detection.data`).
        labels: of the test images, for the evaluator.

    Raises:
        InputError: the batch cannot be split evenly, the precision needs a GPU, or no training image shows an object.
    """

    def __init__(
        self, params: DetectionParams | VitDetectionParams, encoder: Encoder, train: list[ImageDict],
        test: list[ImageDict], labels: Labels, seed: int, folder: Path, options: RunOptions,
    ) -> None:  # fmt: skip
        batch = params.solver().batch_size if isinstance(params, DetectionParams) else params.batch_size
        super().__init__(encoder, batch, seed, folder, options)
        self.params, self.test, self.labels = params, test, labels
        with quiet(*LOGGERS):
            self.cfg, self.mappers = self.configure()
            self.train_scenes = training_scenes(train, params)
        if params.precision == "fp16" and self.device.type != "cuda":
            raise InputError("--set precision=fp16 needs a GPU; use bf16 or fp32")
        if self.ranks > 1:
            from detectron2.utils import comm

            if comm._LOCAL_PROCESS_GROUP is None:  # detectron2 did not start the ranks itself
                comm.create_local_process_group(int(os.environ.get("LOCAL_WORLD_SIZE", self.ranks)))

    @abstractmethod
    def configure(self) -> tuple[Any, tuple[Any, Any]]:
        """What detectron2's loaders, schedule and hooks read, as a CfgNode; the mappers of training and of testing."""

    @quiet(*LOGGERS)
    def train(self, *, progress: bool = True) -> nn.Module:
        with distributed.stop_signals() as stop:
            return self._train(progress, stop)

    def _train(self, progress: bool, stop: Callable[[], bool]) -> nn.Module:
        from detectron2.checkpoint import DetectionCheckpointer
        from detectron2.engine import AMPTrainer, SimpleTrainer, create_ddp_model, hooks
        from detectron2.solver import build_lr_scheduler

        class Bf16Trainer(SimpleTrainer):
            """Works on a CPU too, unlike detectron2's AMPTrainer. bfloat16 needs no scaling of gradients."""

            def run_step(self) -> None:
                # Entered for every step: inside one context, weights would be cast only once.
                with torch.autocast(device, torch.bfloat16):
                    super().run_step()

        cfg, seed, device, own_rank, folder = self.cfg, self.seed, self.device.type, self.rank, self.folder
        model = self.build()
        optimiser = self.optimiser(model)
        wrapped = model
        if self.ranks > 1:
            where = {} if device == "cuda" else {"device_ids": None}
            wrapped = create_ddp_model(model, broadcast_buffers=False, **where)
        trainer: Any
        if self.params.precision == "fp16":
            trainer = AMPTrainer(wrapped, (), optimiser, precision=torch.float16)
        else:
            trainer = (Bf16Trainer if self.params.precision == "bf16" else SimpleTrainer)(wrapped, (), optimiser)
        trainer.gather_metric_period = 20
        iterations = cfg.SOLVER.MAX_ITER
        bar = iter(with_progress(range(iterations), f"detection, trial {seed}", show=progress))

        class Checkpoints(DetectionCheckpointer):
            """Written atomically, and read without running what a file may hold."""

            def save(self, name: str, **more: Any) -> None:
                parts = {"model": self.model, **self.checkpointables}
                path = Path(self.save_dir) / f"{name}.pth"
                with replacing(path) as temporary, temporary.open("wb") as file:
                    torch.save({key: part.state_dict() for key, part in parts.items()} | more, file)
                self.tag_last_checkpoint(f"{name}.pth")

            def _torch_load(self, file: str) -> Any:
                return read_pickled(Path(file), verify=True)

        class EveryIteration(hooks.HookBase):
            """Seeds the sampling of boxes by iteration, so that a resumed run gives the same result."""

            def before_step(self) -> None:
                torch.manual_seed((seed << 40) + (own_rank << 32) + self.trainer.iter)

            def after_step(self) -> None:
                next(bar, None)

        trainer.register_hooks([EveryIteration(), hooks.LRScheduler(optimiser, build_lr_scheduler(cfg, optimiser))])
        if cfg.TEST.PRECISE_BN.ENABLED:
            # Other batches than those of training, the same ones in a resumed run.
            other = self._loader(seed=seed + 1_000_003, first=0, workers=0)
            trainer.register_hooks([hooks.PreciseBN(0, wrapped, other, cfg.TEST.PRECISE_BN.NUM_ITER)])
        checkpointer = Checkpoints(wrapped, str(self.folder), trainer=weakref.proxy(trainer))
        first = 0

        class StopOnSignal(hooks.HookBase):
            """After all other hooks. Only rank 0 stops, as the other ranks may be in the next step already."""

            def after_step(self) -> None:
                if stop() and own_rank == 0 and self.trainer.iter + 1 < iterations:
                    checkpointer.save(f"model_{self.trainer.iter:07d}")
                    raise distributed.Stopped(folder)

        def batches() -> Iterator[Any]:
            loader = self._loader(seed=seed, first=first, workers=self.workers)
            for inputs in loader:
                yield on_device(inputs, self.device)

        periodic = hooks.PeriodicCheckpointer(checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD, max_to_keep=KEPT_CHECKPOINTS)
        if self.rank == 0:
            trainer.register_hooks([periodic])
        trainer.register_hooks([StopOnSignal()])
        newest_first = sorted(self.folder.glob("model_*.pth"), key=lambda path: path.stat().st_mtime, reverse=True)
        last = last_whole_checkpoint(newest_first, partial(read_pickled, verify=True))
        if last is not None:
            checkpointer.load(str(last))
            log.info("continuing from %s", last)
            first = int(trainer.iter) + 1
            older = [path for path in reversed(newest_first) if path.stat().st_mtime <= last.stat().st_mtime]
            periodic.recent_checkpoints = list(map(str, older))
        for _ in range(first):
            next(bar, None)
        if first < iterations:
            trainer.data_loader = batches()
            trainer.train(first, iterations)
        for _ in bar:  # closes it
            pass
        return model

    @abstractmethod
    def optimiser(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimiser, with the rates before the schedule."""

    @abstractmethod
    def build(self) -> nn.Module:
        """The model before its first step: heads at random, the encoder's weights in the backbone.

        Raises:
            RuntimeError: a tensor of the backbone is not the encoder's.
        """

    def _loader(self, *, seed: int, first: int, workers: int) -> Any:
        return train_loader(
            self.train_scenes, self.cfg, self.mappers[0], seed=seed, rank=self.rank, ranks=self.ranks, workers=workers,
            first=first,
        )  # fmt: skip

    def test_loader(self) -> Any:
        """This rank's share of the test images."""
        return inference_loader(
            self.test, self.cfg, self.mappers[1], rank=self.rank, ranks=self.ranks, workers=self.workers
        )

    @quiet()
    @torch.no_grad()
    def measure(self, model: nn.Module, *, progress: bool = True, sheet: Sheet | None = None) -> TrialScores:
        from detectron2.utils import comm

        model.eval()
        own = evaluator(self.params, self.labels)
        own.reset()
        scenes = {scene["image_id"]: scene for scene in self.test}
        for inputs in with_progress(self.test_loader(), "test", show=progress):
            outputs = model(inputs)
            if sheet:
                sheet.look(scenes[inputs[0]["image_id"]], outputs[0]["instances"].to("cpu"))
            own.process(inputs, outputs)
        scores: TrialScores = comm.all_gather(own.evaluate())[0]
        return scores


class ResNetDetectionTrial(DetectionTrial):
    """A detector on a ResNet, see `DetectionTrial`."""

    params: DetectionParams

    def configure(self) -> tuple[Any, tuple[Any, Any]]:
        cfg = configuration(
            self.params, self.encoder.card, len(self.labels.classes), ranks=self.ranks, gpu=self.device.type == "cuda"
        ).clone()
        cfg.defrost()
        cfg.MODEL.DEVICE = str(self.device)
        cfg.freeze()
        return cfg, mappers(cfg)

    def optimiser(self, model: nn.Module) -> torch.optim.Optimizer:
        from detectron2.solver import build_optimizer

        found: torch.optim.Optimizer = build_optimizer(self.cfg, model)
        return found

    def build(self) -> nn.Module:
        from detectron2.checkpoint import DetectionCheckpointer

        torch.manual_seed(self.seed)
        model = build(self.cfg)
        file = self.folder / f"encoder-{self.rank}.pkl"
        write_detectron2(self.encoder, file)
        DetectionCheckpointer(model).load(str(file))
        check_backbone(self.encoder, model)
        if not self.cfg.MODEL.KEYPOINT_ON:  # the keypoint loss takes views that need contiguous maps
            model.to(memory_format=safe_memory_format(model, self.device))
        return model


class VitDetectionTrial(DetectionTrial):
    """ViTDet on a ViT, see `DetectionTrial`.

    Raises:
        NotApplicableError: detectron2's ViT cannot hold the encoder.
    """

    params: VitDetectionParams

    def configure(self) -> tuple[Any, tuple[Any, Any]]:
        self.shape = vit_shape(self.encoder, "detectron2")
        card = self.encoder.card
        return vit_run_configuration(self.params, card, str(self.device)), vit_mappers(self.params, card)

    def build(self) -> nn.Module:
        from detectron2.config import instantiate

        torch.manual_seed(self.seed)
        config = vit_configuration(self.params, self.encoder.card, self.shape, len(self.labels.classes))
        model: nn.Module = instantiate(config)
        net: Any = model.backbone.net  # type: ignore[union-attr]
        weights = self._tensors()
        fresh = {name: tensor for name, tensor in net.state_dict().items() if name.endswith(RELATIVE)}
        net.load_state_dict({**fresh, **weights}, strict=True)
        self.check_backbone(model)
        return model.to(self.device)

    def check_backbone(self, model: Any) -> None:
        """Compare every tensor of the built detector's ViT with the encoder's; raises as `require_same_tensors`."""
        loaded = {n: t for n, t in model.backbone.net.state_dict().items() if not n.endswith(RELATIVE)}
        require_same_tensors(self.encoder.card.name, loaded, self._tensors())

    def _tensors(self) -> dict[str, torch.Tensor]:
        kept = self.params.cls == "kept"
        return vit_tensors(self.encoder, "detectron2", grid_of(self.params), class_token=kept)

    def optimiser(self, model: nn.Module) -> torch.optim.Optimizer:
        from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate
        from detectron2.solver.build import get_default_optimizer_params

        params = self.params
        spared = {} if params.positions_decay else {"pos_embed": {"weight_decay": 0.0}, "tokens": {"weight_decay": 0.0}}
        if params.norm_weight_decay is not None:
            spared |= {"gamma": {"weight_decay": params.norm_weight_decay}}
        groups = get_default_optimizer_params(
            model,
            base_lr=params.lr,
            weight_decay=params.weight_decay,
            weight_decay_norm=params.norm_weight_decay,
            lr_factor_func=partial(
                get_vit_lr_decay_rate, num_layers=self.shape.depth, lr_decay_rate=params.layer_decay
            ),
            overrides=spared,
        )
        return torch.optim.AdamW(groups, lr=params.lr, betas=(0.9, params.beta2), weight_decay=params.weight_decay)

"""One trial: a network on the encoder, trained by mmengine's runner and measured on the test images; its data loading.

Order and random numbers of training images are a function of the seed and the number of the draw, so that a resumed run
gives the same result as an uninterrupted one.
"""

from __future__ import annotations

import logging
import os
import random
from abc import abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import Dataset, Sampler, Subset

from benchmarks.datasets.dense_sets import label_map
from benchmarks.encoders.encoder import Encoder
from benchmarks.encoders.export import backbone_tensors
from benchmarks.encoders.vit_export import VitShape, rotary_positions, vit_shape, vit_tensors
from benchmarks.segmentation.model import (
    grid_of,
    model_config,
    optimisation,
    pipelines,
    register,
    register_vit,
    use_device,
    vit_model_config,
    vit_optimisation,
)
from benchmarks.task import InputError, Labels, RunOptions
from benchmarks.task import progress as with_progress
from benchmarks.training.loop import synchronise
from benchmarks.training.trials import (
    IGNORED,
    KEPT_CHECKPOINTS,
    Sheet,
    Trial,
    TrialScores,
    last_whole_checkpoint,
    quiet,
    require_same_tensors,
)
from pretrain import distributed
from pretrain.distributed import DataLoader
from pretrain.safe_pickle import read_pickled
from results.files import open_image, replacing

if TYPE_CHECKING:
    from benchmarks.segmentation.task import SegmentationParams, VitSegmentationParams

log = logging.getLogger(__name__)

LOG_EVERY = 50  # iterations between two readings of the losses, each of which waits for the GPU


class ClassIndices:
    """A step after `LoadAnnotations` that turns the mask's values into class indices.

    Args:
        translation: value of a mask -> class index or 255; None where masks hold class indices already.
        reduce_zero_label: masks hold class indices plus 1, and 0 is ignored, as in ADE20K.

    Raises:
        InputError: the mask is not an (H, W) map, differs in size from its image, or has a value that is not a class.
    """

    def __init__(self, translation: dict[int, int] | None, classes: int, *, reduce_zero_label: bool = False) -> None:
        self.classes = classes
        self.table = np.full(256, -1, dtype=np.int16)
        first = int(reduce_zero_label)
        plain = {n + first: n for n in range(classes)} | dict.fromkeys((*range(first), IGNORED), IGNORED)
        for value, index in (translation or plain).items():
            self.table[value] = index
        self.numbered = f"{first} to {classes - 1 + first}"

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        mask, file = results["gt_seg_map"], results["seg_map_path"]
        if mask.ndim != 2:
            raise InputError(
                f"{file} has {mask.shape[-1]} channels and is not a map of class indices; use the masks as their owner "
                "publishes them, as PNGs with a palette or in grey"
            )
        if mask.shape != tuple(results["ori_shape"]):
            (height, width), (tall, wide) = mask.shape, results["ori_shape"]
            raise InputError(
                f"{file} has {width} by {height} pixels but its image has {wide} by {tall}; unpack the data set again"
            )
        found = self.table[mask]
        if found.min() < 0:
            odd = int(mask[found < 0][0])
            raise InputError(
                f"{file} has the value {odd}, but classes are numbered {self.numbered} and ignored pixels are "
                f"{IGNORED}; restore the mask"
            )
        results["gt_seg_map"] = found.astype(np.uint8)
        return results


class MaskedImages(Dataset[dict[str, Any]]):
    """(image, mask) through a pipeline of mmsegmentation; the masks are the annotations of the labels.

    Args:
        classes: number of them.
        seed: None takes items by index. Otherwise item n is the n-th draw of an endless series of shuffled epochs, and
            its random numbers depend only on `seed` and n, in every worker and after a restart.

    Raises:
        InputError: there is not a mask for each image, or an item cannot be read or used.
    """

    def __init__(
        self,
        labels: Labels,
        classes: int,
        pipeline: list[dict[str, Any]],
        seed: int | None = None,
        *,
        reduce_zero_label: bool = False,
    ) -> None:
        from mmcv.transforms import Compose

        if len(labels.annotations) != len(labels):
            raise InputError(
                "the data set does not have a mask for each image; choose one with masks, as voc2012_seg or cityscapes"
            )
        self.paths, self.masks, self.seed = labels.paths, labels.annotations, seed
        checked = ClassIndices(label_map(labels), classes, reduce_zero_label=reduce_zero_label)
        steps = [(step, checked) if step["type"] == "LoadAnnotations" else (step,) for step in pipeline]
        self.pipeline = Compose([step for group in steps for step in group])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, item: int) -> dict[str, Any]:
        index = item
        if self.seed is not None:
            epoch, place = divmod(item, len(self))
            index = int(np.random.default_rng((self.seed, epoch)).permutation(len(self))[place])
            draw = np.random.SeedSequence((self.seed, item)).generate_state(2)
            np.random.seed(draw[0])
            random.seed(int(draw[1]))
        image, mask = self.paths[index], self.masks[index]
        files = {"img_path": str(image), "seg_map_path": str(mask)}
        try:
            packed: dict[str, Any] = self.pipeline({**files, "reduce_zero_label": False, "seg_fields": []})
        except InputError:
            raise
        except Exception as error:
            for file in (image, mask):
                _require_readable(file)
            raise RuntimeError(f"{image} and {mask.name} can be read, but fail in the pipeline: {error}") from error
        return packed


class Draws(Sampler[int]):
    """Every `ranks`-th draw from `rank` on, without end. mmengine calls `skip` when it resumes a run."""

    def __init__(self, items: int, rank: int = 0, ranks: int = 1) -> None:
        self.items, self.next, self.ranks = items, rank, ranks

    def __len__(self) -> int:
        """Length of an epoch, by which mmengine counts; the iteration itself has no end."""
        return self.items // self.ranks

    def skip(self, count: int) -> None:
        """Skip `count` draws of this rank."""
        self.next += count * self.ranks

    def __iter__(self) -> Iterator[int]:
        draw = self.next
        while True:
            yield draw
            draw += self.ranks


class TrainingLoader(DataLoader[Any]):
    """Endless batches, on the device already where that is a GPU: it copies them from page-locked memory, and the host
    does not wait.
    """

    device = torch.device("cpu")

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            if self.device.type == "cuda":
                batch["inputs"] = [distributed.sent(image, self.device) for image in batch["inputs"]]
                for sample in batch["data_samples"]:
                    sample.gt_sem_seg.data = distributed.sent(sample.gt_sem_seg.data, self.device)
            yield batch


def _require_readable(file: Path) -> None:
    try:
        with open_image(file) as opened:
            opened.load()
    except Exception as error:  # Pillow raises nearly anything on a damaged file
        reason = " ".join(str(error).replace(str(file), "").split())
        raise InputError(f"{file} cannot be read as an image ({reason}); unpack the data set again") from error


class SegmentationTrial(Trial):
    """See `Trial`.

    Raises:
        InputError: the batch cannot be split evenly, the precision needs a GPU, or images lack masks.
    """

    def __init__(
        self, params: SegmentationParams | VitSegmentationParams, encoder: Encoder, train: Labels, test: Labels,
        seed: int, folder: Path, options: RunOptions,
    ) -> None:  # fmt: skip
        register()
        from mmengine.dataset import pseudo_collate

        super().__init__(encoder, params.batch_size, seed, folder, options)
        self.params, self.test = params, test
        use_device(self.device.type)
        if self.device.type == "cuda" and self.device.index is not None:
            torch.cuda.set_device(self.device)  # mmengine takes the current one
        if params.precision != "fp32" and self.device.type == "cpu":
            raise InputError(f"mmengine trains in {params.precision} only on a GPU; use precision=fp32 on a CPU")
        training, testing = pipelines(params)
        common: dict[str, Any] = {
            "num_workers": self.workers,
            "persistent_workers": self.workers > 0,
            "pin_memory": self.device.type == "cuda",
            "collate_fn": pseudo_collate,
        }
        self.train_loader = TrainingLoader(
            MaskedImages(train, params.classes, training, seed=seed, reduce_zero_label=params.reduce_zero_label),
            batch_size=params.batch_size // self.ranks,
            sampler=Draws(len(train), self.rank, self.ranks),
            **common,
        )
        self.train_loader.device = self.device
        tested = MaskedImages(test, params.classes, testing, reduce_zero_label=params.reduce_zero_label)
        mine = Subset(tested, range(self.rank, len(test), self.ranks))
        self.test_loader: DataLoader[Any] = DataLoader(mine, batch_size=1, **common)

    @quiet()
    def train(self, *, progress: bool = True) -> nn.Module:
        newest_first = sorted(checkpoints(self.folder), key=_iterations, reverse=True)
        last = last_whole_checkpoint(newest_first, partial(read_pickled, verify=True))
        with distributed.stop_signals() as stop:
            runner = self._runner(last, stop, progress=progress)
            runner.train()
        trained: nn.Module = getattr(runner.model, "module", runner.model)
        return trained

    def _runner(self, last: Path | None, stop: Callable[[], bool], *, progress: bool) -> Any:
        """mmengine's runner before its first iteration, or after the checkpoint `last`."""
        from mmengine.hooks import Hook, RuntimeInfoHook
        from mmengine.runner import Runner

        params, seed, check, rank, ranks = self.params, self.seed, self.check_backbone, self.rank, self.ranks
        folder = self.folder
        if last is not None:
            log.info("continuing from %s", last)
        bar = with_progress(range(params.iterations), f"segmentation, trial {seed}", show=progress and self.rank == 0)
        first = _iterations(last) if last else 0
        for _ in range(first):
            next(bar)

        class SafeRunner(Runner):
            """Writes checkpoints atomically, and reads tensors and numbers alone; mmengine runs code in the file."""

            def save_checkpoint(self, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
                if rank == 0:
                    with replacing(Path(out_dir) / filename) as temporary:
                        super().save_checkpoint(out_dir, temporary.name, *args, **kwargs)

            def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
                stored = read_pickled(Path(filename), verify=True)
                model: Any = self.model
                getattr(model, "module", model).load_state_dict(stored["state_dict"])
                self._has_loaded = True
                # Not the configuration, which mmengine would run as Python, nor the messages for its logs.
                place = {name: int(stored["meta"][name]) for name in ("epoch", "iter")}
                whole = sorted(n for n in map(_iterations, checkpoints(folder)) if n <= place["iter"])
                messages = {"log_scalars": {}, "runtime_info": {"keep_ckpt_ids": whole}, "resumed_keys": {}}
                return {**stored, "meta": place, "message_hub": messages}

        class EveryIteration(Hook):
            """Seeds dropout by iteration, so that a resumed run gives the same result as an uninterrupted one."""

            def before_train(self, runner: Runner) -> None:
                if runner.iter == 0:  # after mmengine initialised and wrapped the model
                    check(getattr(runner.model, "module", runner.model).backbone)

            def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
                torch.manual_seed((seed << 32) + runner.iter * ranks + rank)

            def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
                next(bar, None)
                number, loss = runner.iter + 1, kwargs["outputs"]["loss"]
                # Before every checkpoint, not more often: reading the loss waits for the GPU.
                saved = number % params.checkpoint_every == 0 or number == params.iterations or stop()
                if saved and not loss.isfinite():
                    raise FloatingPointError(f"the loss is {float(loss)} after {number} iterations; lower lr")

            def after_train(self, runner: Runner) -> None:
                for _ in bar:  # closes it
                    pass

        class StopOnSignal(Hook):
            """After all other hooks. Only rank 0 stops, as the other ranks may be in the next iteration already."""

            priority = "LOWEST"

            def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
                done = runner.iter + 1
                if stop() and rank == 0 and done < params.iterations:
                    runner.save_checkpoint(str(folder), f"iter_{done}.pth", by_epoch=False, meta={"iter": done})
                    raise distributed.Stopped(folder)

        class LossesNowAndThen(RuntimeInfoHook):
            """Does not read the losses of every iteration."""

            def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
                if self.every_n_train_iters(runner, LOG_EVERY):
                    super().after_train_iter(runner, *args, **kwargs)

        wrapper, schedule = self.optimisation()
        # By default mmengine's wrapper names a GPU.
        wrap = {"model_wrapper_cfg": {"broadcast_buffers": False, "device_ids": None}}
        runner = SafeRunner(
            model=self.build(),
            cfg=wrap if self.ranks > 1 and self.device.type == "cpu" else None,
            work_dir=str(self.folder),
            train_dataloader=self.train_loader,
            train_cfg={"type": "IterBasedTrainLoop", "max_iters": params.iterations,
                       "val_interval": params.iterations},
            optim_wrapper=wrapper,
            param_scheduler=schedule,
            default_scope="mmseg",
            default_hooks={
                "checkpoint": {"type": "CheckpointHook", "by_epoch": False, "interval": params.checkpoint_every,
                               "max_keep_ckpts": KEPT_CHECKPOINTS},
                "logger": {"type": "LoggerHook", "interval": LOG_EVERY, "log_metric_by_epoch": False},
                "runtime_info": LossesNowAndThen(),
                "sampler_seed": None,
            },
            custom_hooks=[EveryIteration(), StopOnSignal()],
            launcher="pytorch" if self.ranks > 1 else "none",
            env_cfg={"cudnn_benchmark": True},
            randomness={"seed": seed},
            log_level="ERROR",
            log_processor={"by_epoch": False},
            load_from=str(last) if last else None,
            resume=last is not None,
            experiment_name=f"{self.folder.parent.name}-{self.folder.name}-{os.getpid()}",
        )  # fmt: skip
        return runner

    def build(self) -> nn.Module:
        """The model before its first step: heads at random, the encoder's weights in the backbone."""
        from mmengine.config import ConfigDict
        from mmseg.registry import MODELS

        many, cuda = self.ranks > 1, self.device.type == "cuda"
        config = self.model_config(synchronised=many and cuda)
        torch.manual_seed(self.seed)
        model: nn.Module = MODELS.build(ConfigDict(config))
        model.init_weights()  # type: ignore[operator]  # of mmengine's BaseModule
        self.transfer(model.backbone)  # type: ignore[arg-type]
        return synchronise(model, self.device) if many and not cuda else model

    @abstractmethod
    def model_config(self, *, synchronised: bool) -> dict[str, Any]:
        """The model in the form of mmsegmentation's registry."""

    @abstractmethod
    def optimisation(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The optimiser's wrapper and the learning-rate schedule."""

    @abstractmethod
    def tensors(self) -> dict[str, torch.Tensor]:
        """The encoder's weights by their names in the backbone."""

    def transfer(self, backbone: nn.Module) -> None:
        """Copy the encoder's weights into the backbone. Each must have every tensor of the other."""
        backbone.load_state_dict(self.tensors(), strict=True)

    def check_backbone(self, backbone: nn.Module) -> None:
        """Compare every tensor of the backbone with the encoder's; raises as `require_same_tensors`."""
        require_same_tensors(self.encoder.card.name, backbone.state_dict(), self.tensors())

    @torch.no_grad()
    def measure(self, model: nn.Module, *, progress: bool = True, sheet: Sheet | None = None) -> TrialScores:
        model.eval()
        found = torch.zeros(len(self.test), 3, self.params.classes, dtype=torch.int64)
        shown = with_progress(self.test_loader, "test", show=progress and self.rank == 0)
        for number, batch in enumerate(shown):
            (sample,) = model.test_step(batch)  # type: ignore[operator]
            index = self.rank + number * self.ranks
            truth = sample.gt_sem_seg.data[0]
            predicted = sample.pred_sem_seg.data[0].to(truth.device)
            found[index] = areas(predicted, truth, self.params.classes).cpu()
            if sheet:
                sheet.look(index, sample)
        per_image = distributed.sum_(found.to(self.device)).cpu().numpy()
        return score(per_image, self.test.classes)


class FcnTrial(SegmentationTrial):
    """An FCN on a ResNet, see `SegmentationTrial`."""

    params: SegmentationParams

    def model_config(self, *, synchronised: bool) -> dict[str, Any]:
        return model_config(self.params, self.encoder.card, synchronised=synchronised)

    def optimisation(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        return optimisation(self.params)

    def tensors(self) -> dict[str, torch.Tensor]:
        return backbone_tensors(self.encoder, "mmsegmentation")


class VitSegmentationTrial(SegmentationTrial):
    """UPerNet or a linear head on a ViT, see `SegmentationTrial`.

    Raises:
        NotApplicableError: mmsegmentation's ViT cannot hold the encoder.
    """

    params: VitSegmentationParams

    @property
    def shape(self) -> VitShape:
        """Of the encoder."""
        return vit_shape(self.encoder, "mmsegmentation")

    def model_config(self, *, synchronised: bool) -> dict[str, Any]:
        register_vit()
        return vit_model_config(self.params, self.encoder.card, self.shape, synchronised=synchronised)

    def optimisation(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        return vit_optimisation(self.params, self.shape.depth)

    def tensors(self) -> dict[str, torch.Tensor]:
        return vit_tensors(self.encoder, "mmsegmentation", grid_of(self.params, self.shape))

    def transfer(self, backbone: nn.Module) -> None:
        backbone.rope = rotary_positions(self.encoder)  # type: ignore[assignment]
        super().transfer(backbone)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints that mmengine wrote."""
    return [path for path in folder.glob("iter_*.pth") if path.stem[5:].isdecimal()]


def _iterations(checkpoint: Path) -> int:
    return int(checkpoint.stem.partition("_")[2])


# ---- scores ----------------------------------------------------------------------------------------------------------


def areas(predicted: torch.Tensor, truth: torch.Tensor, classes: int) -> torch.Tensor:
    """(3, C) int64 pixels of the intersection, the prediction and the truth, by class. Ignored pixels do not count.

    Args:
        predicted, truth: (H, W) class indices.
    """
    counted = truth != IGNORED
    predicted, truth = predicted[counted].long(), truth[counted].long()
    each = (truth[predicted == truth], predicted, truth)
    return torch.stack([torch.bincount(of, minlength=classes)[:classes] for of in each])


def score(per_image: NDArray[np.int64], classes: tuple[str, ...]) -> TrialScores:
    """Scores over all pixels of a test set (one confusion matrix, not a mean over images).

    IoU has no value for a class that is in neither prediction nor truth, accuracy none for one that the truth lacks.

    Args:
        per_image: (N, 3, C) areas.
        classes: C names.
    """
    intersection, predicted, truth = per_image.sum(axis=0).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        iou = 100 * intersection / (predicted + truth - intersection)
        accuracy = 100 * intersection / truth
        pixels = float(100 * intersection.sum() / truth.sum())
    scores = TrialScores(areas=per_image)
    scores.add("mIoU", classes, iou)
    scores.add("mAcc", classes, accuracy)
    scores.columns |= {"mIoU": float(np.nanmean(iou)), "mAcc": float(np.nanmean(accuracy)), "aAcc": pixels}
    return scores

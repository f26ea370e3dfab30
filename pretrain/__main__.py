"""`python -m pretrain --recipe NAME --data DIR --out DIR`; every field of the recipe is a flag as well."""

from __future__ import annotations

import argparse
import logging
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import tyro
from numpy.typing import NDArray

from pretrain.data import Files, Shards, find_images, require_batch, require_cv2
from pretrain.recipe import Recipe, load_recipe
from results.command_line import parse, start_program
from results.errors import InputError, is_out_of_memory, print_error
from results.files import locked_folder

if TYPE_CHECKING:  # torch takes seconds to import, which help and refusals need not wait for
    import torch
    from PIL import Image
    from torch import Tensor, nn

    from benchmarks.solvers.logistic import Fits
    from benchmarks.task import Labels
    from benchmarks.training.task import ViewParams
    from pretrain.monitor import Features, Labelled, OnlineProbe

log = logging.getLogger("pretrain")

OUT_OF_MEMORY = "out of memory; lower batch_size, augmentation.crop, queue_size or architecture.width, or use more GPUs"
PROBE_C = 1.0  # of the monitor's linear probe, one value for all epochs
MONITOR_K, MONITOR_TEMPERATURE = 20, 0.07  # the best k of the published protocol, and its temperature


@dataclass
class PretrainFlags:
    """Pretrain an encoder and write OUT/backbone.safetensors with its card.

    A killed run resumes when it is started again.
    """

    data: Path
    """folder of images, of tar shards or of CIFAR-10's batches, with or without train/ in it; a .txt list; a .json
    index of shards"""
    settings: Annotated[Recipe, tyro.conf.arg(name="")]
    out: Path | None = None
    """folder of this run; default work/pretrain/RECIPE"""
    recipe: str = "mocov2_resnet50_8xb32-coslr-200e_in1k"
    """name in pretrain/recipes, or a .toml file"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, …; auto uses a GPU if there is one"""
    workers: int | None = None
    """loader processes of each rank; default 2 on a CPU, and on a GPU the rank's share of the cores"""
    threads: int | None = None
    """CPU threads of this process; torch's default without it"""
    warm_start: Path | None = None
    """backbone.safetensors whose weights the training starts from"""
    monitor: Annotated[Path | None, tyro.conf.arg(aliases=["--knn-monitor"])] = None
    """labelled image folder with train/ and val/ or test/, or CIFAR-10's batches: accuracy of kNN and a linear probe
    on the held-out split during training, and rank and spread of the features; an online probe learns from every batch
    where the training images are in folders of these classes; under torchrun write --knn-monitor, as torchrun reads
    --monitor as a flag of its own"""
    monitor_every: int = 10
    """epochs between two runs of the monitor"""
    scale_lr: bool = False
    """multiply the recipe's lr by --batch-size over the recipe's own batch, which recipe.json then shows as lr"""
    max_unreadable: float = 0.01
    """share of the images that may be unreadable; they are skipped and listed in the log"""
    remote_shards: bool = False
    """let an index of shards name files outside of its folder and addresses (pipe:, http:, …); pipe: runs a shell
    command"""
    dry_run: bool = False
    """report what would run and what it needs, and stop"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; exit code 2 and a message on stderr when the input cannot be used."""
    arguments = sys.argv[1:] if arguments is None else arguments
    start_program()
    try:
        # The recipe's name comes first: its values are the defaults of all the other flags.
        finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        finder.add_argument("--recipe", default=PretrainFlags.recipe, nargs="?", const=PretrainFlags.recipe)
        name = finder.parse_known_args(arguments)[0].recipe
        default = PretrainFlags(tyro.MISSING, load_recipe(name), recipe=name)
        command = parse(PretrainFlags, arguments, "python -m pretrain", default)
        if command.scale_lr:
            own, asked = default.settings, command.settings
            if asked.lr != own.lr:
                raise InputError("--lr and --scale-lr both set the learning rate; use only one of them")
            command = replace(command, settings=asked.changed(lr=own.lr * asked.batch_size / own.batch_size))
        return _run(command, _stated(arguments, name))
    except (InputError, FloatingPointError, OSError, KeyboardInterrupt) as error:
        return print_error("pretrain", error)
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            return print_error("pretrain", InputError(OUT_OF_MEMORY))
        if not type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
            raise
        fault = f"--compile does not work here, leave it out: {str(error).splitlines()[0]}"
        return print_error("pretrain", InputError(fault))


# What a GPU has another default for, and the flag that says otherwise.
BY_DEVICE = {"precision": "--precision", "engine": "--augmentation.engine"}


def _stated(arguments: list[str], name: str) -> set[str]:
    """Which of `BY_DEVICE` the user's flags or own recipe state. A published recipe states its augmentation engine."""
    flags = {argument.partition("=")[0].replace("_", "-") for argument in arguments}
    stated = {field for field, flag in BY_DEVICE.items() if flag in flags}
    while name.endswith(".toml"):
        own = tomllib.loads(Path(name).read_text(encoding="utf-8"))
        stated |= {field for field in BY_DEVICE if field in own or field in own.get("augmentation", {})}
        if "parent" not in own:
            return stated
        name = own["parent"]
        if not name.endswith(".toml"):
            return stated
    return stated | {"engine"}


def _for_device(recipe: Recipe, stated: set[str], out: Path, device: torch.device) -> Recipe:
    """The recipe as it runs on this device, which recipe.json then says.

    On a GPU, bfloat16 instead of float32, and in one's own recipes the tensor engine instead of PIL. On any device that
    does not multiply bfloat16 itself, float32 instead. A flag or one's own recipe can say otherwise. A run that was
    begun goes on as it began, on whatever device.
    """
    from pretrain.distributed import has_fast_bf16
    from pretrain.train import RECIPE

    def with_(precision: str, engine: str) -> Recipe:
        augmentation = recipe.augmentation.model_dump() | ({} if "engine" in stated else {"engine": engine})
        changes = {} if "precision" in stated else {"precision": precision}
        return recipe.changed(augmentation=augmentation, **changes)

    with suppress(OSError, ValueError):
        begun = Recipe.model_validate_json((out / RECIPE).read_text(encoding="utf-8"))
        if with_(begun.precision, begun.augmentation.engine) == begun:
            return begun
    fast, what = has_fast_bf16(device), "GPU" if device.type == "cuda" else "CPU" if device.type == "cpu" else "device"
    precision, engine = recipe.precision, recipe.augmentation.engine
    if not fast and precision == "bf16":
        precision = "fp32"
    elif fast and device.type == "cuda":
        precision, engine = "bf16" if precision == "fp32" else precision, "tensor"
    changed = with_(precision, engine)
    if changed.precision == "bf16" != recipe.precision:
        log.info("bf16 instead of the recipe's fp32, as this is a GPU; --precision fp32 keeps it")
    if changed.precision == "fp32" != recipe.precision:
        log.info("fp32 instead of the recipe's bf16, as this %s has no bfloat16 arithmetic and would take up to 25 "
                 "times as long; --precision bf16 keeps it", what)  # fmt: skip
    if changed.augmentation.engine != recipe.augmentation.engine:
        log.info("the tensor engine for the augmentation, as this is a GPU; --augmentation.engine pil is PIL's")
    return changed


def _run(command: PretrainFlags, stated: set[str]) -> int:
    for flag, value, least in (
        ("--workers", command.workers, 0), ("--threads", command.threads, 1),
        ("--monitor-every", command.monitor_every, 1),
    ):  # fmt: skip
        if value is not None and value < least:
            raise InputError(f"{flag} must be at least {least}, got {value}")
    if not 0 <= command.max_unreadable <= 1:
        raise InputError(f"--max-unreadable is a share from 0 to 1, got {command.max_unreadable:g}")
    recipe, out = command.settings, command.out or Path("work/pretrain") / command.settings.name
    if recipe.augmentation.engine == "cv2":
        require_cv2()
    images = _images(command.data, command.remote_shards)
    require_batch(images, recipe.batch_size)
    labelled = classes = None
    if command.monitor:
        gallery, queries, names = _monitor_splits(command.monitor)
        labelled = gallery, queries
        classes = _training_classes(command.data, images, names)

    import torch

    from pretrain.distributed import default_workers, own_device, process_group, rank
    from pretrain.monitor import OnlineProbe
    from pretrain.train import PretrainRun, plan_run

    if command.threads is not None:
        torch.set_num_threads(command.threads)
    if command.dry_run:
        device = own_device(command.device)
        recipe = _for_device(recipe, stated, out, device)
        sys.stdout.write(plan_run(recipe, command.data, len(images), out, device))
        return 0
    with ExitStack() as stack:
        device = stack.enter_context(process_group(command.device))
        recipe = _for_device(recipe, stated, out, device)
        if rank() == 0:
            stack.enter_context(locked_folder(out))
        workers = default_workers(device) if command.workers is None else command.workers
        probe = OnlineProbe(*classes, device) if classes and recipe.batch_size > 1 else None
        if labelled and not probe and rank() == 0:
            log.info("no online probe: the training images are not in folders of the monitor's classes")
        run = PretrainRun(
            recipe,
            command.data,
            out,
            device=device,
            images=images,
            workers=workers,
            warm_start=command.warm_start,
            max_unreadable=command.max_unreadable,
            monitor=_Watch(labelled, recipe, device, workers, probe) if labelled else None,
            monitor_every=command.monitor_every,
            probe=probe,
        )
        path = run.run()
    if run.first:
        log.info("wrote %s (%.0f s of training, %.0f images/s)", path, run.seconds,
                 run.trainer.step * recipe.batch_size / max(run.seconds, 1e-9))  # fmt: skip
    return 0


def _images(data: Path, remote_shards: bool) -> Files | Shards:
    """What `find_images` finds, or CIFAR-10's training images in the batches of its owner."""
    return _labelled(_labels(data, "train"))[0] if _is_cifar10(data) else find_images(data, remote_shards=remote_shards)


def _is_cifar10(folder: Path) -> bool:
    from benchmarks.datasets.batch_files import CIFAR10

    return CIFAR10.find(folder, "train") is not None


def _labelled(labels: Labels) -> Labelled:
    from benchmarks.datasets.images import decode

    return Files(tuple(labels.paths), decode), labels.targets


def _labels(root: Path, split: str) -> Labels:
    from benchmarks.datasets.batch_files import read_cifar10
    from benchmarks.datasets.lists import read_image_folder

    return (read_cifar10 if _is_cifar10(root) else read_image_folder)(root, split)


def _training_classes(data: Path, images: Files | Shards, names: Sequence[str]) -> tuple[NDArray[np.int64], int] | None:
    """The monitor's class of every training image, -1 where it has none, and their number; None without two classes.

    The class of a file is the last folder of its path that is a class of the monitor's; CIFAR-10's batches hold theirs.
    """
    if _is_cifar10(data):
        own = _labels(data, "train")
        found = own.targets if own.classes == tuple(names) else None
    elif isinstance(images, Files):
        index = {name: number for number, name in enumerate(names)}
        found = np.array([class_of(path, index) for path in images.paths], np.int64)
    else:
        found = None
    if found is None or len(np.unique(found[found >= 0])) < 2:
        return None
    return found, len(names)


def class_of(path: Path, index: Mapping[str, int]) -> int:
    """The number of the last folder of a path that is in `index`; -1 where none is."""
    return next((index[name] for name in reversed(path.parts[:-1]) if name in index), -1)


def _monitor_splits(root: Path) -> tuple[Labelled, Labelled, tuple[str, ...]]:
    """Gallery and queries of the monitor, and the names of its classes."""
    gallery, queries = _labels(root, "train"), _labels(root, "val" if (root / "val").is_dir() else "test")
    return _labelled(gallery), _labelled(queries), gallery.classes


class _Watch:
    """What one pass over labelled images shows of a backbone: kNN, a linear probe, rank and spread of the features.

    And what random views of a hundred of the gallery show, the same views in every pass: LiDAR and alignment.

    Everything is computed from features without gradients, so that the training does not notice it. The ranks share
    gallery and queries, and every rank must call it.

    Args:
        online: the probe that learns during the training; only asked here.
    """

    def __init__(
        self,
        labelled: tuple[Labelled, Labelled],
        recipe: Recipe,
        device: torch.device,
        workers: int,
        online: OnlineProbe | None,
    ) -> None:
        from pretrain.monitor import KnnMonitor

        self.device, self.online = device, online
        self.right = self.online_right = self.asked = 0
        self.also: dict[str, float] = {}
        self.monitor = KnnMonitor(*labelled, self._classify, recipe, device, workers)

    def __call__(self, backbone: nn.Module) -> dict[str, float]:
        """The columns of log.csv."""
        import torch

        from pretrain import distributed
        from pretrain.monitor import KNN, ONLINE, PROBE

        self.right = self.online_right = self.asked = 0
        accuracy = self.monitor(backbone)
        counts = torch.tensor([self.right, self.online_right, self.asked], device=self.device)
        right, online, asked = distributed.sum_(counts).tolist()
        found = {KNN: accuracy, PROBE: 100 * right / max(1, asked)}
        found |= {ONLINE: 100 * online / max(1, asked)} if self.online else {}
        return found | self.also | distributed.value_of_first(self._views(backbone) if distributed.rank() == 0 else {})

    def _views(self, backbone: nn.Module) -> dict[str, float]:
        """LiDAR and alignment; nothing of a gallery of one image."""
        from benchmarks.label_free import (
            MONITORED_VIEWS,
            VIEW_PROTOCOLS,
            LabelFreeViewParams,
            evenly_spaced,
            view_measures,
        )
        from pretrain.monitor import DrawnViews, evaluating

        params = LabelFreeViewParams.model_validate(VIEW_PROTOCOLS[0].params)
        files, _ = self.monitor.gallery
        rows = evenly_spaced(len(files), params.images)
        if len(rows) < 2:
            return {}
        some = replace(files, paths=tuple(files.paths[int(row)] for row in rows))
        images = DrawnViews(some, params.views, partial(_view, params, self.monitor.recipe.augmentation.crop))
        with evaluating(backbone):
            features = self.monitor.features_of(backbone, images, len(images))
        found = view_measures(features.reshape(len(rows), params.views, -1), params.delta, str(self.device))
        return {name: found[column] for column, name in MONITORED_VIEWS.items()}

    def _classify(
        self,
        gallery: Tensor,
        classes: NDArray[np.int64],
        queries: Features,
        targets: NDArray[np.int64],
        device: torch.device,
    ) -> NDArray[np.bool_]:
        """The kNN classifier of the monitor. The parts of the gallery visit every rank, and stay on rank 0 alone, which
        fits the probe and describes the features.
        """
        from pretrain import distributed

        kept: list[Features] = []

        def parts() -> Iterator[tuple[int, Features]]:
            for first, part in distributed.every_part(gallery, len(classes)):
                rows = part.cpu().numpy()
                if distributed.rank() == 0:
                    kept.append(rows)
                yield first, rows

        right = _classify(parts(), classes, queries, targets, device)
        fit, self.also = None, {}
        if distributed.rank() == 0:
            whole = np.concatenate(kept)
            fit, self.also = _fit_probe(whole, classes, str(device)), _label_free(whole, str(device))
        fit, self.also = distributed.value_of_first((fit, self.also))
        assert fit is not None
        self.asked = len(queries)
        self.right = _right(fit, classes, queries, targets, device) if self.asked else 0
        self.online_right = self.online.right(queries, targets) if self.online else 0
        return right


def _view(params: ViewParams, crop: int, image: Image.Image, number: int, view: int) -> NDArray[np.uint8]:
    """(crop, crop, 3), drawn from the image's number and the view's alone."""
    from benchmarks.training.images import training_view, view_rng
    from results.schema import Geometry

    geometry = Geometry(mode="shorter", resize=crop, crop=crop)
    return training_view(image, params, geometry, view_rng(0, view, number))[0]


def _fit_probe(gallery: Features, classes: NDArray[np.int64], device: str) -> Fits:
    """Logistic regression on the gallery's standardised features, in main memory."""
    from benchmarks.solvers.logistic import fit_logistic

    fit = fit_logistic(
        gallery,
        classes,
        int(classes.max()) + 1,
        [PROBE_C],
        standardise=True,
        device=device,
        tolerance=1e-3,
        max_iterations=200,
    )
    return replace(fit, weights=fit.weights.cpu(), bias=fit.bias.cpu())


def _right(
    fit: Fits, classes: NDArray[np.int64], queries: Features, targets: NDArray[np.int64], device: torch.device
) -> int:
    """How many queries the probe classifies right."""
    fit = replace(fit, weights=fit.weights.to(device), bias=fit.bias.to(device))
    known = targets <= classes.max()
    ranks = fit.ranks(queries, np.where(known, targets, 0))[0].numpy()
    return int(((ranks == 0) & known).sum())


def _label_free(gallery: Features, device: str) -> dict[str, float]:
    from benchmarks.label_free import MONITORED, PROTOCOLS, LabelFreeParams, evenly_spaced, measures

    params = LabelFreeParams.model_validate(PROTOCOLS[0].params)
    found = measures(gallery[evenly_spaced(len(gallery), params.samples)], params, device)
    return {name: value for column, name in MONITORED.items() if (value := found[column]) is not None}


def _classify(
    gallery: Iterable[tuple[int, Features]], classes: NDArray[np.int64], queries: Features, targets: NDArray[np.int64],
    device: torch.device,
) -> NDArray[np.bool_]:  # fmt: skip
    """(Q,) whether each query is right by its neighbours in a gallery that comes in parts; all parts are taken."""
    from benchmarks.solvers.exact_knn import vote_ranks
    from benchmarks.solvers.sharded_knn import knn_in_parts

    k = min(MONITOR_K, len(classes))
    found = knn_in_parts(gallery, queries, k, device=str(device))
    if not len(queries):
        return np.zeros(0, np.bool_)
    ranks = vote_ranks(
        found.similarities,
        classes[found.indices],
        targets,
        ks=(k,),
        temperature=MONITOR_TEMPERATURE,
        num_classes=int(classes.max()) + 1,
    )
    return ranks[k] == 0


if __name__ == "__main__":
    # Under a profiler sys.modules["__main__"] is the profiler, where the annotations of the flags cannot be resolved.
    from pretrain.__main__ import main as main_of_module

    sys.exit(main_of_module())

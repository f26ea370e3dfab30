"""Speed of pretraining: the whole step, MoCo's own work in it, views and augmentation, and the end-to-end mechanism."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.augment import Cv2Views, PilCrops, PilViews, normalise_pixels
from pretrain.augment_tensor import BatchedViews
from pretrain.data import Files, read_pixels, read_rgb
from pretrain.mechanism import Batch
from pretrain.moco import MoCo
from pretrain.recipe import Augmentation, Recipe, load_recipe
from pretrain.trainer import Stepper, Trainer, measure_cost

from .features import decode_by_cv2, write_jpegs
from .measurement import (
    Entries,
    SpeedEntry,
    alternately,
    count_products,
    entry,
    fast_precision,
    limit_of,
    not_installed,
    rates,
    rounds,
    seconds_of,
)

CPU = torch.device("cpu")
PRECISION = fast_precision()
AUTOCAST = torch.bfloat16 if PRECISION == "bf16" else None
BATCH = 32 if AUTOCAST else 16  # a smaller one where float32 makes every step take longer
STEPS = 2 if AUTOCAST else 1
SECONDS = 12.0  # of repetitions
WORKERS = (0, 2)  # loader workers: next to an update that wants every core they may cost more than they bring
FILES = 32  # of which views are made
PLAIN = "plain torchvision"
# Table 3 of the v2 note (8 V100, batch 256): hours of 200 epochs, and GB of one GPU.
NOTE_HOURS, NOTE_GB = (53.0, 65.0), (5.0, 7.4)
# Units of one forward pass: MoCo runs two and one backward pass of two units; end-to-end both of each.
UNITS = (4, 6)
GB = 1e9


def entries() -> Entries:
    return {
        "pretrain-step": measure_step,
        "moco-overhead": measure_overhead,
        "views": measure_views,
        "augment": measure_augmentation,
        "end-to-end": measure_end_to_end,
    }


def moco_v2(**changes: Any) -> Recipe:
    """MoCo v2's recipe at a small batch."""
    base = load_recipe("mocov2_resnet50_8xb32-coslr-200e_in1k").model_dump()
    augmentation = {**base["augmentation"], **changes.pop("augmentation", {})}
    return Recipe(**{**base, "batch_size": BATCH, **changes, "augmentation": augmentation})


def photographs(folder: Path, number: int) -> Files:
    """JPEG files of ImageNet's usual size, with coarse shapes and some grain."""
    random = np.random.default_rng(0)
    paths = []
    for i in range(number):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((500, 375), 3)
        grain = random.normal(0, 8, (375, 500, 3))
        pixels = (np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8)
        paths.append(folder / f"{i:03d}.jpg")
        Image.fromarray(pixels).save(paths[-1], quality=90)
    return Files(tuple(paths))


def measure_step() -> SpeedEntry:
    """Images from files to updated weights; a few steps with everything that they need, the loader's start included.

    Each side has the same cores and runs with every number of loader workers in turn; its best one counts.
    """
    own = moco_v2(precision=PRECISION, augmentation={"engine": "tensor"})
    plain = moco_v2()
    with tempfile.TemporaryDirectory() as folder:
        files = photographs(Path(folder), BATCH * STEPS)
        ours, theirs = {}, {}
        for workers in WORKERS:
            fast = Trainer(own, files, CPU, workers)
            fast.prepare()
            fast.update(next(fast.loader.epoch(0)))  # warm
            theirs[workers] = seconds_of(_PlainStep(plain, files, workers).run) / STEPS
            ours[workers] = statistics.median(seconds_of(lambda run=fast: _run(run)) for _ in range(2)) / STEPS  # type: ignore[misc]
        loader = Trainer(own, files, CPU, 0).loader
        alone = seconds_of(lambda: list(loader.epoch(2))) / STEPS
    stepper = Stepper(own, CPU)
    stepper.step()
    update, passes = (
        min(times) for times in zip(*((stepper.timed(), sum(bare_passes(stepper))) for _ in range(2)), strict=True)
    )
    step = min(ours.values())
    return entry(
        "pretrain-step",
        ours=step,
        baseline=min(theirs.values()),
        described="float32, NCHW, all augmentation by PIL in loader workers, tensors updated one by one",
        limit_s=passes,
        limit=f"the encoders' bare passes in {PRECISION}",
        note=f"seconds per step of {BATCH} images at 224 pixels, {BATCH / step:.1f} images/s, over {STEPS} steps from "
        f"files to updated weights; with {_by_workers(ours)} against {_by_workers(theirs)}, the best of each side "
        f"counts; measured alone: bare passes {passes:.2f} s, the whole update {update:.2f} s, decoding and "
        f"augmentation in the process itself {alone:.2f} s",
    )


def _run(trainer: Trainer) -> None:
    for batch in trainer.loader.epoch(1):
        trainer.update(batch)


def _by_workers(seconds: dict[int, float]) -> str:
    return ", ".join(f"{workers} workers {s:.2f} s" for workers, s in seconds.items())


class _PlainStep:
    """The pretraining step as it is commonly written: float32, NCHW, PIL in loader workers, a loop over parameters."""

    def __init__(self, recipe: Recipe, files: Files, workers: int) -> None:
        self.trainer = Trainer(recipe, files, CPU, workers)
        self.trainer.model.to(memory_format=torch.contiguous_format).train()

    def run(self) -> None:
        trainer = self.trainer
        model = trainer.model
        assert isinstance(model, MoCo)
        for batch in trainer.loader.epoch(1):
            view_q, view_k = (view.contiguous() for view in batch.views)
            loss = self.loss(model, Batch((view_q, view_k), batch.indices))
            trainer.optimizer.zero_grad()
            loss.backward()
            trainer.optimizer.step()

    def loss(self, model: MoCo, batch: Batch) -> Tensor:
        q = model.encoder_q(batch.views[0])
        with torch.no_grad():
            for k_parameter, q_parameter in zip(
                model.encoder_k.parameters(), model.encoder_q.parameters(), strict=True
            ):
                k_parameter.data = k_parameter.data * model.key_momentum + q_parameter.data * (1 - model.key_momentum)
            k = model.encoder_k(batch.views[1])
        positive = torch.einsum("nc,nc->n", q, k)[:, None]
        negative = torch.einsum("nc,ck->nk", q, model.queue.clone().detach())
        logits = torch.cat([positive, negative], dim=1) / model.temperature
        start = int(model.queue_ptr)
        model.queue[:, start : start + len(k)] = k.T
        model.queue_ptr[0] = (start + len(k)) % model.queue.shape[1]
        return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))


def measure_overhead() -> SpeedEntry:
    """EMA, queue, logits, loss and shuffle, on stand-ins for the encoders, beside the encoders' passes."""
    stepper = Stepper(moco_v2(precision=PRECISION), CPU)
    model = stepper.model
    assert isinstance(model, MoCo)
    stepper.step()
    bare_passes(stepper)
    passes = statistics.median([sum(bare_passes(stepper)) for _ in rounds(3, SECONDS / 2)])
    ema = statistics.median(seconds_of(model.update_key_encoder) for _ in range(9))
    count = sum(parameter.numel() for parameter in model.encoder_q.parameters())
    stand_in = _StandIn(BATCH, 128)
    model.add_module("encoder_q", stand_in)
    model.add_module("encoder_k", stand_in)

    def own() -> None:
        with torch.autocast("cpu", AUTOCAST, enabled=AUTOCAST is not None):
            loss = model(stepper.batch).loss
        loss.backward()

    own()
    rest = statistics.median(seconds_of(own) for _ in range(9))
    weights = torch.zeros(2, count)
    moved = min(seconds_of(lambda: weights[0].lerp_(weights[1], 0.001)) for _ in range(9))
    products, _ = limit_of(count_products(own))
    return entry(
        "moco-overhead",
        ours=ema + rest,
        baseline=passes,
        described="the bare passes: query forward and backward, key forward",
        limit_s=moved + products,
        limit="EMA of as many numbers in one piece, and the products with the queue forward and backward",
        note=f"{100 * (ema + rest) / passes:.1f} % on top of the passes, to stay below 5 %: "
        f"EMA {1000 * ema:.0f} ms, shuffle, logits over 65,536 keys, loss and queue {1000 * rest:.0f} ms; "
        f"batch {BATCH}, 224 pixels, {PRECISION}",
    )


def bare_passes(stepper: Stepper) -> tuple[float, float, float]:
    """Seconds of the query's forward pass, of its backward pass, and of the key's forward pass without gradient."""
    model, images = stepper.model, stepper.batch.views[0]
    assert isinstance(model, MoCo)
    times = [time.perf_counter()]
    with torch.autocast("cpu", AUTOCAST, enabled=AUTOCAST is not None):
        q = model.encoder_q(images)
        times.append(time.perf_counter())
    q.sum().backward()
    times.append(time.perf_counter())
    with torch.autocast("cpu", AUTOCAST, enabled=AUTOCAST is not None), torch.no_grad():
        model.encoder_k(images)
    times.append(time.perf_counter())
    forward, backward, key = (after - before for before, after in pairwise(times))
    return forward, backward, key


class _StandIn(nn.Module):
    def __init__(self, n: int, dim: int) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(F.normalize(torch.randn(n, dim), dim=1))

    def forward(self, images: Tensor) -> Tensor:
        return self.embeddings * 1


def measure_views(files: int = FILES) -> SpeedEntry:
    """Both views of MoCo v2 of each file on one core, from the file to a normalised batch.

    Ours is the cv2 engine, or the tensor engine where OpenCV is not installed. The baseline is the list of the
    reference, image by image. albumentations with cv2 does the same list where it is installed.
    """
    recipe = moco_v2()
    a, mean, std = recipe.augmentation, recipe.mean, recipe.std
    pil, crops = PilViews(a, mean, std), PilCrops(a)
    batched = BatchedViews(a, mean, std, torch.Generator().manual_seed(0))
    by_cv2 = Cv2Views(a) if find_spec("cv2") else None
    other = albumentations_views(a, mean, std)

    def batches(views: list[tuple[torch.Tensor, ...]], finish: Callable[[torch.Tensor], Any]) -> None:
        for number in range(recipe.views):
            finish(torch.stack([view[number] for view in views]))

    with tempfile.TemporaryDirectory() as folder:
        paths = write_jpegs(Path(folder), files)
        timers: dict[str, Callable[[], Any]] = {}
        if by_cv2 is not None:
            timers["the cv2 engine"] = lambda: batches(
                [by_cv2(read_pixels(path)) for path in paths],
                lambda views: normalise_pixels(views, batched.mean, batched.std),
            )
        timers["the tensor engine"] = lambda: batches([crops(read_rgb(path)) for path in paths], batched.recoloured)
        timers[PLAIN] = lambda: batches([pil(read_rgb(path)) for path in paths], torch.Tensor.contiguous)
        if other is not None:
            timers["albumentations with cv2"] = lambda: [other(path) for path in paths]
        if by_cv2 is not None:
            timers["decoding by cv2"] = lambda: [read_pixels(path) for path in paths]
        timers["decoding by PIL"] = lambda: [read_rgb(path) for path in paths]
        seconds = alternately(timers)
    decoding = min((name for name in seconds if name.startswith("decoding")), key=lambda name: seconds[name])
    ours = next(iter(timers))
    missing = [] if by_cv2 else ["opencv-python-headless"]
    missing += [] if other else ["albumentations"]
    return entry(
        "views",
        ours=seconds[ours],
        baseline=seconds[PLAIN],
        described="torchvision's transforms on PIL images, one by one, as the reference",
        limit_s=seconds[decoding],
        limit=decoding,
        note=f"{ours}; {recipe.views} views each of {files} JPEGs of 500x375 at {a.crop}, views per CPU second of one "
        f"core: {rates(timers, seconds, recipe.views * files)}{not_installed(missing)}",
    )


def albumentations_views(
    a: Augmentation, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Callable[[Path], list[NDArray[np.float32]]] | None:
    """The same list of MoCo v2 by albumentations, decoded by cv2; None where it is not installed."""
    if not (find_spec("albumentations") and find_spec("cv2")):
        return None
    import albumentations
    import cv2

    cv2.setNumThreads(1)
    views: Any = albumentations.Compose(
        [
            albumentations.RandomResizedCrop((a.crop, a.crop), scale=a.crop_area, ratio=a.crop_aspect),
            albumentations.ColorJitter(
                (1 - a.brightness, 1 + a.brightness), (1 - a.contrast, 1 + a.contrast),
                (1 - a.saturation, 1 + a.saturation), (-a.hue, a.hue), p=a.jitter_p,
            ),
            albumentations.ToGray(p=a.grayscale_p),
            albumentations.GaussianBlur(blur_limit=0, sigma_limit=a.blur_sigma, p=a.blur_p),
            albumentations.HorizontalFlip(p=a.flip_p),
            albumentations.Normalize(mean, std),
        ]
    )  # fmt: skip

    def both(path: Path) -> list[NDArray[np.float32]]:
        image = decode_by_cv2(path, cv2.IMREAD_COLOR)
        return [np.ascontiguousarray(views(image=image)["image"].transpose(2, 0, 1)) for _ in range(2)]

    return both


def measure_augmentation() -> SpeedEntry:
    """Views of decoded pictures on one core: the PIL list, and crops by PIL with the rest on batches."""
    recipe = moco_v2()
    with tempfile.TemporaryDirectory() as folder:
        pictures = [read_rgb(path) for path in photographs(Path(folder), BATCH).paths]
    a = recipe.augmentation
    pil, crops = PilViews(a, recipe.mean, recipe.std, views=1), PilCrops(a, views=1)
    batched = BatchedViews(a, recipe.mean, recipe.std, torch.Generator().manual_seed(0))

    def ours() -> None:
        batched.recoloured(torch.stack([crops(picture)[0] for picture in pictures]))

    def theirs() -> None:
        torch.stack([pil(picture)[0] for picture in pictures])

    seconds = alternately({"ours": ours, "theirs": theirs, "crops": lambda: [crops(picture) for picture in pictures]})
    mine, other = seconds["ours"], seconds["theirs"]
    return entry(
        "augment",
        ours=mine,
        baseline=other,
        described="the same list by PIL, image by image",
        limit_s=seconds["crops"],
        limit="the crops, which both do by PIL",
        note=f"{BATCH} views of 500 x 375 pixels at 224 on one core, without the decoding: {BATCH / mine:.0f} against "
        f"{BATCH / other:.0f} views/s",
    )


def measure_end_to_end() -> SpeedEntry:
    """A step of MoCo and of the end-to-end mechanism, the peak memory of each in a process of its own, and the parts.

    Time: the passes of one encoder by themselves. Memory: what autograd keeps, and the tensors that stay.
    """
    recipes = [moco_v2(precision=PRECISION, mechanism=mechanism) for mechanism in ("momentum", "end-to-end")]
    peaks = [measure_cost(recipe, "cpu", 1).peak_gib * 2**30 for recipe in recipes]
    steppers = [Stepper(recipe, CPU) for recipe in recipes]
    for stepper in steppers:
        stepper.step()
    times = [[stepper.timed() for stepper in steppers] for _ in rounds(3, SECONDS)]
    ours, theirs = (statistics.median(column) for column in zip(*times, strict=True))
    passes = [bare_passes(steppers[0]) for _ in rounds(3, SECONDS / 2)]
    forward, backward, forward_only = (statistics.median(column) for column in zip(*passes, strict=True))
    staying = [sum(_lasting(stepper).values()) for stepper in steppers]
    kept = [_kept(stepper, AUTOCAST) for stepper in steppers]
    kept_fp32 = [_kept(stepper, None) for stepper in steppers]
    counted = [sum(parts) for parts in zip(staying, kept, strict=True)]
    note = [sum(parts) for parts in zip(staying, kept_fp32, strict=True)]
    return entry(
        "end-to-end",
        ours=ours,
        baseline=theirs,
        described="the end-to-end mechanism, both encoders back-propagated through",
        limit_s=forward + backward + forward_only,
        limit="MoCo's passes alone: query forward and backward, key forward",
        note=f"time {_ratio((ours, theirs))}, by units of a forward pass {_ratio(UNITS)}, because "
        f"a backward pass took {backward / forward:.2f} forward passes and "
        f"the key's forward pass without gradient {forward_only / forward:.2f}, by which the passes alone are "
        f"{_ratio((forward + backward + forward_only, 2 * (forward + backward)))}, and the end-to-end mechanism's SGD "
        f"moves twice the weights; peak memory {_gb(peaks)}, because the keys' encoder keeps its activations "
        f"({_gb(kept)}) and has gradients and momentum (tensors that stay: {_gb(staying)}), both together "
        f"{_gb(counted)}, while what else a peak holds is of the moment and the same; Table 3 of the v2 note (8 V100, "
        f"float32, 32 images on each) has time {_ratio(NOTE_HOURS)}, by the units of which {100 * _elsewhere():.0f} % "
        f"of MoCo's step went elsewhere than into passes, and memory {_ratio(NOTE_GB)}: in float32 the same count is "
        f"{_gb(note)}, and the {NOTE_GB[0] - note[0] / GB:.1f} and {NOTE_GB[1] - note[1] / GB:.1f} GB up to the note's "
        "are what a GPU's process holds beside it",
    )


def _elsewhere() -> float:
    """The share f / (4 + f) of MoCo's step outside the passes for which 6 + f to 4 + f units are the note's ratio."""
    ratio = NOTE_HOURS[1] / NOTE_HOURS[0]
    outside = (UNITS[1] - UNITS[0] * ratio) / (ratio - 1)
    return outside / (UNITS[0] + outside)


def _lasting(stepper: Stepper) -> dict[int, int]:
    """Bytes of weights, gradients, optimiser and queue by their address."""
    tensors = list(stepper.model.state_dict().values())
    tensors += [p.grad for p in stepper.model.parameters() if p.grad is not None]
    tensors += [state["momentum_buffer"] for state in stepper.optimizer.state.values()]
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


def _kept(stepper: Stepper, autocast: torch.dtype | None) -> int:
    """Bytes that autograd keeps of a step's forward passes, beside what stays anyway."""
    lasting, kept = _lasting(stepper), {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in lasting:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", autocast, enabled=autocast is not None),
    ):
        loss = stepper.model(stepper.batch).loss  # holds what is counted until the end
    total = sum(kept.values())
    del loss
    return total


def _ratio(pair: tuple[float, float]) -> str:
    return f"1 to {pair[1] / pair[0]:.2f}"


def _gb(pair: list[int] | list[float]) -> str:
    return f"{pair[0] / GB:.2f} to {pair[1] / GB:.2f} GB, {_ratio((pair[0], pair[1]))}"

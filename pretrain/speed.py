"""Pairs of `make speed`: the whole step, MoCo's own work in it, the augmentation, and the end-to-end mechanism."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.augment import PilCrops, PilViews
from pretrain.augment_batched import BatchedViews
from pretrain.contrast import Batch
from pretrain.cost import Stepper, measure
from pretrain.moco import MoCo
from pretrain.recipe import Recipe, load_recipe
from pretrain.sources import Files, read_rgb
from pretrain.trainer import Trainer

BATCH, STEPS = 32, 2
WORKERS = (0, 2)  # loader workers: beside an update that wants every core they may cost more than they bring
CPU = torch.device("cpu")
# Table 3 of the v2 note (8 V100, batch 256): 53 and 65 hours, 5.0 and 7.4 GB.
NOTE_TIME, NOTE_MEMORY = 65 / 53, 7.4 / 5.0
# Units of one forward pass: MoCo runs two and one backward pass of two units; end-to-end both of each.
UNITS_MOCO, UNITS_END_TO_END = 4, 6


def pairs() -> dict[str, Callable[[], dict[str, Any]]]:
    """What can be measured, by name."""
    return {
        "pretrain-step": measure_step,
        "moco-overhead": measure_overhead,
        "augment": measure_augmentation,
        "end-to-end": measure_end_to_end,
    }


def measure_step() -> dict[str, Any]:
    """Images from files to updated weights; a few steps with everything that they need, the loader's start included.

    Each side has the same cores and runs with every number of loader workers in turn; its best one counts.
    """
    own = _recipe(precision="bf16", augmentation={"engine": "tensor"})
    plain = _recipe()
    with tempfile.TemporaryDirectory() as folder:
        files = _photographs(Path(folder), BATCH * STEPS)
        ours, theirs = {}, {}
        for workers in WORKERS:
            fast = Trainer(own, files, CPU, workers)
            fast.prepare()
            fast.update(next(fast.loader.epoch(0)))  # warm
            theirs[workers] = _seconds(_PlainStep(plain, files, workers).run) / STEPS
            ours[workers] = statistics.median(_seconds(lambda run=fast: _run(run)) for _ in range(2)) / STEPS  # type: ignore[misc]
        loader = Trainer(own, files, CPU, 0).loader
        alone = _seconds(lambda: list(loader.epoch(2))) / STEPS
    stepper = Stepper(own, CPU)
    stepper.step()
    update, passes = (
        min(times) for times in zip(*((stepper.timed(), _bare_passes(stepper)) for _ in range(2)), strict=True)
    )
    step = min(ours.values())
    return _entry(
        "pretrain-step",
        step,
        min(theirs.values()),
        "float32, NCHW, all augmentation by PIL in loader workers, tensors updated one by one",
        passes,
        "the encoders' bare passes in bfloat16",
        f"seconds per step of {BATCH} images at 224 pixels, {BATCH / step:.1f} images/s, over {STEPS} steps from files "
        f"to updated weights; with {_by_workers(ours)} against {_by_workers(theirs)}, the best of each side counts; "
        f"measured alone: bare passes {passes:.2f} s, the whole update {update:.2f} s, decoding and augmentation in "
        f"the process itself {alone:.2f} s",
    )


def measure_overhead() -> dict[str, Any]:
    """EMA, queue, logits, loss and shuffle, on stand-ins for the encoders, beside the encoders' passes."""
    stepper = Stepper(_recipe(precision="bf16"), CPU)
    model = stepper.model
    assert isinstance(model, MoCo)
    stepper.step()
    _bare_passes(stepper)
    passes = statistics.median(_bare_passes(stepper) for _ in range(3))
    ema = statistics.median(_seconds(model.update_key_encoder) for _ in range(9))
    stand_in = _StandIn(BATCH, 128)
    model.add_module("encoder_q", stand_in)
    model.add_module("encoder_k", stand_in)

    def own() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(stepper.batch).loss
        loss.backward()

    own()
    rest = statistics.median(_seconds(own) for _ in range(9))
    return _entry(
        "moco-overhead",
        ema + rest,
        passes,
        "the bare passes: query forward and backward, key forward",
        0.05 * passes,
        "5 % of the passes",
        f"{100 * (ema + rest) / passes:.1f} % on top of the passes: EMA {1000 * ema:.0f} ms, shuffle, logits over "
        f"65,536 keys, loss and queue {1000 * rest:.0f} ms; batch {BATCH}, 224 pixels, bfloat16",
    )


def measure_augmentation() -> dict[str, Any]:
    """Views of decoded pictures on one core: the PIL list, and crops by PIL with the rest on batches."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    recipe = _recipe()
    with tempfile.TemporaryDirectory() as folder:
        pictures = [read_rgb(path) for path in _photographs(Path(folder), BATCH).paths]
    a = recipe.augmentation
    pil, crops = PilViews(a, recipe.mean, recipe.std, views=1), PilCrops(a, views=1)
    batched = BatchedViews(a, recipe.mean, recipe.std, torch.Generator().manual_seed(0))

    def ours() -> None:
        batched.recoloured(torch.stack([crops(picture)[0] for picture in pictures]))

    def theirs() -> None:
        torch.stack([pil(picture)[0] for picture in pictures])

    try:
        ours()
        theirs()
        rounds = [(_seconds(ours), _seconds(theirs)) for _ in range(7)]
        crop = statistics.median(_seconds(lambda: [crops(picture) for picture in pictures]) for _ in range(5))
    finally:
        torch.set_num_threads(threads)
    mine, other = (statistics.median(column) for column in zip(*rounds, strict=True))
    return _entry(
        "augment",
        mine,
        other,
        "the same list by PIL, image by image",
        crop,
        "the crops, which both do by PIL",
        f"{BATCH} views of 500 x 375 pixels at 224 on one core, without the decoding: {BATCH / mine:.0f} against "
        f"{BATCH / other:.0f} views/s",
    )


def measure_end_to_end() -> dict[str, Any]:
    """A step of MoCo and of the end-to-end mechanism, and the peak memory of each in a process of its own."""
    recipes = [_recipe(precision="bf16", mechanism=mechanism) for mechanism in ("momentum", "end-to-end")]
    moco, end_to_end = (measure(recipe, "cpu", 1) for recipe in recipes)
    steppers = [Stepper(recipe, CPU) for recipe in recipes]
    for stepper in steppers:
        stepper.step()
    rounds = [[stepper.timed() for stepper in steppers] for _ in range(3)]
    ours, theirs = (statistics.median(column) for column in zip(*rounds, strict=True))
    bound = UNITS_END_TO_END / UNITS_MOCO
    (kept, fixed), (kept_both, fixed_both) = map(_held, steppers)
    # The share f of MoCo's step outside the passes at which 6 + f to 4 + f units are the note's ratio.
    outside = (UNITS_END_TO_END - UNITS_MOCO * NOTE_TIME) / (NOTE_TIME - 1)
    return _entry(
        "end-to-end",
        ours,
        theirs,
        "the end-to-end mechanism, both encoders back-propagated through",
        theirs / bound,
        f"{UNITS_MOCO} units of a forward pass against {UNITS_END_TO_END}, 1 to {bound:.2f}",
        f"time 1 to {theirs / ours:.2f}, peak memory {moco.peak_gib:.1f} to {end_to_end.peak_gib:.1f} GiB, 1 to "
        f"{end_to_end.peak_gib / moco.peak_gib:.2f}; kept for the backward pass {kept:.2f} to {kept_both:.2f} GiB, "
        f"weights, gradients, momentum and queue {fixed:.2f} to {fixed_both:.2f} GiB, both together 1 to "
        f"{(kept_both + fixed_both) / (kept + fixed):.2f}, what else the peak holds is of the moment; Table 3 of the "
        f"v2 note has 1 to {NOTE_TIME:.2f} and 1 to {NOTE_MEMORY:.2f} on 8 V100 at batch 256: by the units its time "
        f"means that {100 * outside / (UNITS_MOCO + outside):.0f} % of MoCo's step went elsewhere than into passes",
    )


def _recipe(**changes: Any) -> Recipe:
    base = load_recipe("mocov2_resnet50_8xb32-coslr-200e_in1k").model_dump()
    augmentation = {**base["augmentation"], **changes.pop("augmentation", {})}
    return Recipe(**{**base, "batch_size": BATCH, **changes, "augmentation": augmentation})


def _photographs(folder: Path, number: int) -> Files:
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


def _run(trainer: Trainer) -> None:
    for batch in trainer.loader.epoch(1):
        trainer.update(batch)


def _bare_passes(stepper: Stepper) -> float:
    """Query forward and backward, key forward without gradient."""
    model, images = stepper.model, stepper.batch.views[0]
    assert isinstance(model, MoCo)

    def passes() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            q = model.encoder_q(images)
            with torch.no_grad():
                model.encoder_k(images)
        q.sum().backward()

    return _seconds(passes)


def _by_workers(seconds: dict[int, float]) -> str:
    return ", ".join(f"{workers} workers {s:.2f} s" for workers, s in seconds.items())


def _held(stepper: Stepper) -> tuple[float, float]:
    """GiB that stay through a step: what autograd keeps of the forward pass; weights, gradients, momentum and queue."""
    own = list(stepper.model.state_dict().values())
    own += [p.grad for p in stepper.model.parameters() if p.grad is not None]
    own += [state["momentum_buffer"] for state in stepper.optimizer.state.values()]
    fixed = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in own}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in fixed:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        loss = stepper.model(stepper.batch).loss  # holds what is counted until the end
    total = sum(kept.values()), sum(fixed.values())
    del loss
    return total[0] / 2**30, total[1] / 2**30


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


class _StandIn(nn.Module):
    """An encoder without work."""

    def __init__(self, n: int, dim: int) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(F.normalize(torch.randn(n, dim), dim=1))

    def forward(self, images: Tensor) -> Tensor:
        return self.embeddings * 1


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


def _entry(name: str, ours: float, baseline: float, what: str, limit_s: float, limit: str, note: str) -> dict[str, Any]:
    return {
        "name": name,
        "ours_s": ours,
        "baseline_s": baseline,
        "baseline": what,
        "ratio": baseline / ours,
        "limit_s": limit_s,
        "limit": limit,
        "note": f"{note}; {torch.get_num_threads()} threads",
    }

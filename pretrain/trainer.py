"""The training step of a recipe: model, optimiser and gradients, on batches of a loader or on noise to time it."""

from __future__ import annotations

import logging
import multiprocessing
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pretrain import distributed
from pretrain.baselines import EndToEnd, MemoryBank, SimCLR
from pretrain.data import Files, Shards
from pretrain.distributed import AUTOCAST, full_float32
from pretrain.loader import Loader
from pretrain.mechanism import Batch, Mechanism, PartLoss, ProjectedEncoder
from pretrain.moco import MoCo
from pretrain.recipe import Recipe
from pretrain.weight_files import read_backbone
from results.errors import InputError

log = logging.getLogger(__name__)

NOISE_IMAGES = 65_536  # vectors in a memory bank; the time of a step does not depend on their number


class Trainer:
    """Model, loader, optimiser and counters.

    Args:
        images: the images to learn from.
        workers: loader processes of this rank.
        max_unreadable: share of the images that may be unreadable.
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
        max_unreadable: float = 0.01,
    ) -> None:
        self.recipe, self.device = recipe, device
        torch.manual_seed(recipe.seed)
        self.shuffles = torch.Generator(device).manual_seed(recipe.seed)
        self.view_generator = torch.Generator(device).manual_seed(recipe.seed * 65_537 + distributed.rank())
        self.model = build_mechanism(recipe, self.shuffles, len(images))
        if warm_start:
            self._start_from(warm_start)
        if recipe.sync_bn and distributed.world_size() > 1:
            if device.type != "cuda":
                raise InputError("sync_bn over several ranks needs GPUs; start one process, or set sync_bn = false")
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        self.model.to(device).to(memory_format=torch.channels_last)
        self.loader = Loader(recipe, images, device, self.view_generator, workers, max_unreadable)
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
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # every batch has the same size
        if distributed.world_size() > 1:
            # Only what is trained is wrapped: memories are kept equal by gathering keys, not by broadcasting them.
            for name in self.model.trained:
                encoder = getattr(self.model, name)
                # The symmetric loss and accumulation call an encoder several times.
                once = not self.recipe.symmetric and self.recipe.accumulate == 1
                setattr(self.model, name, distributed.wrapped(encoder, static_graph=once))
        self.model.train()

    def batches(self) -> Iterator[Batch]:
        """Batches from the current step on, pass after pass over the data."""
        return self.loader.batches(*divmod(self.step, self.loader.steps))

    def update(self, batch: Batch) -> None:
        """One step, counted and added to `sums` without waiting for the device."""
        recipe = self.recipe
        epoch = self.step / self.epoch_steps
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate(epoch if recipe.schedule_per == "step" else float(int(epoch)))
        self.optimizer.zero_grad(set_to_none=True)
        loss, accuracy, spread = backward(self.model, batch, recipe, self.scaler.scale)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.sums += torch.stack([loss, accuracy, spread, torch.ones_like(accuracy)])
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
            InputError: in the middle of a pass over shards, in the order of an older version.
        """
        if state["split"] != self._split() and state["step"] % self.loader.steps:
            raise InputError(
                "the run stopped inside a pass over shards in the order of an older version of this program; finish it "
                "with that version, or begin again in a new --out"
            )
        self.model.load_state_dict(state["model"])
        self._load_optimizer(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        self.sums = state["sums"].to(self.device)
        seed = self.recipe.seed + self.step
        restored = _restore(self.shuffles, state["shuffles"], seed)
        if distributed.rank() == 0:
            restored &= _restore(self.view_generator, state["views"], seed * 65_537)
        else:  # not in the file: bit-identity is promised for one process
            self.view_generator.manual_seed(seed * 65_537 + distributed.rank())
        if not restored:
            log.warning(
                "the run comes from another kind of device, whose random states do not fit: from here on the shuffles "
                "and views are not those of an uninterrupted run"
            )

    def _load_optimizer(self, state: dict[str, Any]) -> None:
        """All but how the optimiser is computed, which depends on the device."""
        own = [dict(group) for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state)
        for group, before in zip(self.optimizer.param_groups, own, strict=True):
            for key in {"fused", "foreach"} & before.keys():
                group[key] = before[key]

    def _split(self) -> list[int]:
        """The number of streams of shards, which their order depends on besides the seed; empty for files."""
        return [self.loader.streams] if isinstance(self.loader.images, Shards) else []

    def average_batch_norms(self) -> None:
        """Give every rank the mean of all ranks' running statistics, as one process with all parts has them."""
        if distributed.world_size() == 1:
            return
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for statistics in (module.running_mean, module.running_var):
                    assert statistics is not None
                    statistics.copy_(distributed.mean(statistics))

    def _start_from(self, path: Path) -> None:
        if not path.is_file():
            raise InputError(f"--warm-start file not found: {path}")
        tensors, _ = read_backbone(path)
        for encoder in self.model.children():
            if isinstance(encoder, ProjectedEncoder):
                own = encoder.backbone.state_dict()
                differ = sorted(
                    name
                    for name in own.keys() | tensors.keys()
                    if name not in own or name not in tensors or own[name].shape != tensors[name].shape
                )
                if differ:
                    raise InputError(
                        f"--warm-start {path} is of another architecture or width than the recipe's "
                        f"{self.recipe.architecture.name} of width {self.recipe.architecture.width}: {len(differ)} "
                        f"tensors do not fit, the first is {differ[0]}"
                    )
                encoder.backbone.load_state_dict(tensors)


def backward(
    model: Mechanism, batch: Batch, recipe: Recipe, scale: Callable[[Tensor], Tensor] = lambda loss: loss
) -> PartLoss:
    """Add the gradients of one step, in as many parts as the recipe accumulates. Returns the loss, without gradient.

    Args:
        scale: of the loss, for the gradients of fp16.
    """
    parts, device = recipe.accumulate, batch.indices.device.type
    losses, found = model.losses(batch, parts), []
    for part in range(parts):
        for name in model.trained if parts > 1 else ():
            encoder = getattr(model, name)
            if isinstance(encoder, DistributedDataParallel):  # as its no_sync(): the ranks add up once, at the end
                encoder.require_backward_grad_sync = part == parts - 1
        with torch.autocast(device, AUTOCAST.get(recipe.precision), enabled=recipe.precision in AUTOCAST):
            loss = next(losses)
        scale(loss.loss / parts if parts > 1 else loss.loss).backward()
        found.append(torch.stack([loss.loss.detach().float(), loss.accuracy, loss.spread]))
    next(losses, None)  # what is to be done after the last part's backward pass
    return PartLoss(*(torch.stack(found).mean(0) if parts > 1 else found[0]).unbind())


def _restore(generator: torch.Generator, state: Tensor, seed: int) -> bool:
    """Set a generator's state; one of another kind of device is replaced by `seed`. Returns whether it fitted."""
    if state.dtype == torch.uint8 and state.shape == generator.get_state().shape:
        generator.set_state(state)
        return True
    generator.manual_seed(seed)
    return False


def build_mechanism(recipe: Recipe, generator: torch.Generator, images: int) -> Mechanism:
    """The recipe's mechanism, freshly initialised from torch's default generator.

    Args:
        generator: of everything that the mechanism draws later.
        images: number of images in the data set.
    """
    if recipe.mechanism == "memory-bank":
        return MemoryBank(recipe, generator, images)
    if recipe.mechanism == "end-to-end":
        return EndToEnd(recipe, generator)
    return SimCLR(recipe) if recipe.mechanism == "simclr" else MoCo(recipe, generator)


def build_optimizer(recipe: Recipe, modules: Iterable[nn.Module]) -> torch.optim.Optimizer:
    """Over all parameters of the modules.

    SGD decays every parameter, as MoCo's reference does. LARS leaves biases and norms out of decay and adaptation.
    """
    parameters = [p for module in modules for p in module.parameters()]
    settings: dict[str, Any] = {"lr": recipe.lr, "momentum": recipe.sgd_momentum}
    if recipe.optimizer == "sgd":
        fused = parameters[0].is_cuda or None  # None: torch's own choice
        sgd = torch.optim.SGD(parameters, **settings, weight_decay=recipe.weight_decay, fused=fused)
        for p in parameters if fused else ():
            # Else torch allocates them in the first step without filling them, and fp16 skips it where it overflows.
            sgd.state[p]["momentum_buffer"] = torch.zeros_like(p)
        return sgd
    matrices = [p for p in parameters if p.ndim > 1]
    vectors = [p for p in parameters if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay, "adapt": True},
        {"params": vectors, "weight_decay": 0.0, "adapt": False},
    ]
    return LARS(groups, **settings)


class LARS(torch.optim.Optimizer):
    """SGD with a rate per tensor (You et al. 2017, arXiv 1708.03888), in the form that SimCLR's release uses.

    The gradient with weight decay is scaled by trust * |w| / |g + decay w| before it enters the momentum buffer, and
    the rate is inside the buffer.

    Args:
        params: groups with `weight_decay` and `adapt`; a group without `adapt` is plain SGD.
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], lr: float, momentum: float, trust_coefficient: float = 0.001
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": 0.0, "adapt": True, "trust": trust_coefficient}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            parameters: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            gradients = [p.grad for p in parameters if p.grad is not None]
            if not parameters:
                continue
            for p in parameters:
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            buffers: list[Tensor] = [self.state[p]["momentum_buffer"] for p in parameters]
            moves = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
            if group["adapt"]:
                w, g = torch.stack(torch._foreach_norm(parameters)), torch.stack(torch._foreach_norm(moves))
                rates = torch.where((w > 0) & (g > 0), group["trust"] * w / g, 1.0)
                torch._foreach_mul_(moves, list(rates.unbind()))
            torch._foreach_mul_(moves, group["lr"])
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, moves)
            torch._foreach_sub_(parameters, buffers)
        return loss


@dataclass(frozen=True)
class Cost:
    """Of one training step.

    Attributes:
        seconds: median.
        peak_gib: the process's growth since before the model (CPU), or what the allocator held (GPU).
    """

    mechanism: str
    batch: int
    seconds: float
    peak_gib: float


class Stepper:
    """A model with its optimiser and one batch of noise.

    Args:
        recipe: its batch_size images are one step of this one process.
        images: vectors in a memory bank.
    """

    def __init__(self, recipe: Recipe, device: torch.device, images: int = NOISE_IMAGES) -> None:
        self.recipe, self.device = recipe, device
        torch.manual_seed(0)
        self.model: Mechanism = build_mechanism(recipe, torch.Generator(device).manual_seed(0), images)
        self.model.to(device).to(memory_format=torch.channels_last).train()
        self.optimizer = build_optimizer(recipe, [self.model.get_submodule(name) for name in self.model.trained])
        n, crop = recipe.batch_size, recipe.augmentation.crop
        noise = torch.randn(n, 3, crop, crop, device=device).contiguous(memory_format=torch.channels_last)
        self.batch = Batch((noise,) * self.model.views, torch.arange(n, device=device))

    def step(self) -> None:
        """One whole update."""
        self.optimizer.zero_grad(set_to_none=True)
        backward(self.model, self.batch, self.recipe)
        self.optimizer.step()

    def timed(self) -> float:
        """Seconds of a step, to its end on the device."""
        self._wait()  # for the step before
        began = time.perf_counter()
        self.step()
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def measure_cost(recipe: Recipe, device: str, steps: int) -> Cost:
    """The cost of a step, measured in a process of its own after one step that warms up."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure, recipe.model_dump_json(), device, torch.get_num_threads(), steps).result()


def _measure(recipe_json: str, device_name: str, threads: int, steps: int) -> Cost:
    torch.set_num_threads(threads)
    recipe, device = Recipe.model_validate_json(recipe_json), torch.device(device_name)
    before = _largest_resident()
    with full_float32():
        stepper = Stepper(recipe, device)
        seconds = [stepper.timed() for _ in range(steps + 1)][1:]
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _largest_resident() - before
    return Cost(recipe.mechanism, recipe.batch_size, statistics.median(seconds), peak / 2**30)


def _largest_resident() -> int:
    """Bytes of the largest resident set that this process has had.

    Linux hands what getrusage says on to the programs that a process starts, so that a small child of a large process
    would seem large from its beginning; the high-water mark in /proc begins anew.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        found = re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text(encoding="ascii"), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

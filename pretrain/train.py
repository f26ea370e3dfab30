"""Train one recipe in one folder: the trainer with its optimiser, the loop over epochs, and what is saved when."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from pretrain import distributed
from pretrain.baselines import EndToEnd, MemoryBank, SimCLR
from pretrain.checkpoint import RESUME, keep, load_resume, numbered, save_resume, unusable_resume
from pretrain.data import Files, Shards, find_images, seem_sorted_by_class
from pretrain.loader import Loader
from pretrain.mechanism import Batch, Mechanism, PartLoss, ProjectedEncoder, batch_norm_text
from pretrain.moco import MoCo
from pretrain.monitor import (
    CURVES,
    EVENTS,
    LOG,
    ONLINE_TRAIN,
    Events,
    MonitorRow,
    OnlineProbe,
    collapse,
    draw_monitor_curves,
    row_text,
    write_log,
)
from pretrain.recipe import Recipe
from pretrain.weight_files import read_backbone, write_backbone
from results.errors import InputError
from results.files import remove_partials, write_file
from results.schema import EncoderCard

log = logging.getLogger(__name__)

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
BACKBONE, RECIPE = "backbone.safetensors", "recipe.json"
SAVE_SECONDS = 60.0  # between the saves that the recipe asks for, so that a kill costs about a minute
SAVE_SHARE = 0.05  # of the time at most, where a save takes long
QUIET_SECONDS = 30.0


class PretrainRun:
    """One pretraining run in one folder.

    Args:
        data: where the images are, see `find_images`; its name is in the card.
        images: the images, where they have been found already.
        out: takes recipe.json, log.csv, tensorboard/, resume.pt, numbered checkpoints, backbone.safetensors and, at the
            end, curves.png.
        workers: loader processes of this rank.
        warm_start: see `Trainer`.
        max_unreadable: share of the images that may be unreadable.
        monitor: columns of the log for a backbone; run by all ranks every `monitor_every` epochs and after the last.
        probe: learns from the features of every batch, without any effect on the encoder.

    Attributes:
        seconds: of training, without the monitor and the saves, over all processes that worked on it.

    Raises:
        InputError: `out` holds a run of another recipe or on other images, or a resume file that cannot be used.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: Path,
        out: Path,
        *,
        device: torch.device,
        images: Files | Shards | None = None,
        workers: int = 2,
        warm_start: Path | None = None,
        max_unreadable: float = 0.01,
        monitor: Callable[[nn.Module], MonitorRow] | None = None,
        monitor_every: int = 10,
        probe: OnlineProbe | None = None,
    ) -> None:
        self.recipe, self.data, self.out = recipe, data, out
        self.monitor, self.monitor_every, self.probe = monitor, monitor_every, probe
        self.first = distributed.rank() == 0
        found = find_images(data) if images is None else images
        self.fingerprint = found.fingerprint(data)
        if self.first and isinstance(found, Shards) and seem_sorted_by_class(found):
            log.warning("the shards seem to be sorted by class, so that batches hold few classes; write them shuffled")
        state = self._saved_state()
        self._log_settings(device, len(found), workers)
        self.trainer = Trainer(recipe, found, device, workers, warm_start, max_unreadable)
        if probe is not None:
            probe.start(self.trainer.encoder.backbone.channels)
        self.wait = DataWait(device)
        self.seconds = 0.0
        self.rows: list[MonitorRow] = []
        self.collapsed = False  # as of the last epoch, so that it is said once
        if state is not None:
            self._resume(state)
        self.told = self.saved = time.monotonic()
        self.saving = 0.0  # seconds that the last save took

    def run(self) -> Path:
        """Trains to the end, or goes on from where the last process stopped. Returns the backbone file.

        Raises:
            InputError: more images than allowed cannot be read.
            FloatingPointError: the loss is no longer finite.
        """
        trainer, path = self.trainer, self.out / BACKBONE
        if self.first:
            remove_partials(self.out)
            write_file(self.out / RECIPE, self.recipe.model_dump_json(indent=1) + "\n")
        if trainer.step >= trainer.total and path.is_file():
            return path
        trainer.prepare()
        trainer.loader.arrived = self.wait.over
        batches = trainer.batches()
        with (
            distributed.stop_signals() as stop,
            Events(self.out / EVENTS, trainer.step, write=self.first) as events,
            tqdm(total=trainer.total, initial=trainer.step, unit="step", desc=self.recipe.name or "pretrain",
                 disable=not (self.first and sys.stderr.isatty())) as bar,
        ):  # fmt: skip
            while trainer.step < trainer.total:
                row = self._epoch(batches, bar, stop)
                self.rows.append(row)
                events.add(row, trainer.step)
                fault = collapse(row)
                if self.first and fault and not self.collapsed:
                    log.warning("epoch %d: the encoder has collapsed: %s", len(self.rows), fault)
                self.collapsed = bool(fault)
                bar.set_postfix(loss=f"{row['loss']:.3f}", acc=f"{row['accuracy']:.3f}")
                self._tell(bar, f"epoch {len(self.rows)} of {self.recipe.epochs}: {row_text(row)}")
                self._save_epoch(len(self.rows), stop())
        if self.first:
            draw_monitor_curves(self.out / CURVES, self.rows, self.recipe.name)
            self._write_backbone(path, self.recipe.epochs)
        return path

    def _epoch(self, batches: Iterator[Batch], bar: tqdm[Any], stop: Callable[[], bool]) -> MonitorRow:
        """The rest of the current epoch. Returns its row.

        Raises:
            Stopped: a signal asked for it; the state is saved.
        """
        trainer = self.trainer
        epoch = trainer.step // trainer.epoch_steps
        began, step = self.seconds, trainer.step
        while trainer.step < (epoch + 1) * trainer.epoch_steps:
            asked = time.monotonic()
            self.wait.begins()
            batch = next(batches)
            self.wait.ends()
            trainer.update(batch)
            if self.probe is not None:
                self.probe.update(trainer.encoder.features, batch.indices)
            self.seconds += time.monotonic() - asked
            bar.update()
            if trainer.step % trainer.epoch_steps:
                self._tell(bar, lambda: f"step {trainer.step}: loss {(trainer.sums[0] / trainer.sums[3]).item():.4g}")
                if stop() and self.first:
                    self._save_and_stop()
                if self._save_is_due():
                    self._save()
        asked = time.monotonic()
        row = self._row(epoch + 1)
        self.seconds += time.monotonic() - asked  # a GPU has worked on what it was given until here
        seconds, steps = max(self.seconds - began, 1e-9), trainer.step - step
        row["images_per_second"] = steps * self.recipe.batch_size / seconds
        row["data_share"] = self.wait.seconds() / seconds
        trainer.sums.zero_()
        if self.probe is not None and (right := self.probe.accuracy()) is not None:
            row[ONLINE_TRAIN] = right
        trainer.average_batch_norms()
        trainer.loader.count_unreadable(distributed.union(trainer.loader.unreadable))
        last = epoch + 1 == self.recipe.epochs
        if self.monitor and (last or (epoch + 1) % self.monitor_every == 0):
            row |= self.monitor(trainer.encoder.backbone)
        return row

    def _row(self, epoch: int) -> MonitorRow:
        trainer = self.trainer
        sums = distributed.mean(trainer.sums)
        self._require_finite(sums)
        loss, accuracy, spread, steps = sums.tolist()  # the one host sync of an epoch
        return {
            "epoch": epoch,
            "loss": loss / steps,
            "chance_loss": trainer.model.chance_loss,
            "accuracy": accuracy / steps,
            "lr": trainer.optimizer.param_groups[0]["lr"],
            "spread": spread / steps,
            "queue_fill": trainer.model.fill(trainer.step * self.recipe.batch_size),
        }

    def _require_finite(self, sums: torch.Tensor) -> None:
        if not sums[0].isfinite():
            saved = self.out / RESUME
            raise FloatingPointError(
                f"the loss is {sums[0].item()} in epoch {(self.trainer.step - 1) // self.trainer.epoch_steps + 1}: "
                + (f"the last finite state is in {saved}" if saved.is_file() else "no state had been saved yet")
                + "; lower lr, or use precision = 'fp32'"
            )

    def _tell(self, bar: tqdm[Any], text: str | Callable[[], str]) -> None:
        """Write a log line every half a minute where there is no bar."""
        if self.first and bar.disable and time.monotonic() - self.told > QUIET_SECONDS:
            self.told = time.monotonic()
            log.info("%s", text if isinstance(text, str) else text())

    def _saved_state(self) -> dict[str, Any] | None:
        """What an earlier process saved of this run."""
        path = self.out / RESUME
        state = load_resume(path)
        if state is None:
            return None
        try:
            recipe = Recipe.model_validate_json(state["trainer"]["recipe"])
            fingerprint = state["trainer"].get("images", self.fingerprint)  # older files do not have it
        except ValidationError:
            recipe = None  # with fields or values that recipes no longer have
        except (LookupError, TypeError, AttributeError) as error:
            raise unusable_resume(path, error) from error
        if recipe != self.recipe:
            raise InputError(
                f"{self.out} holds a run of another recipe (see its {RECIPE}); give a new --out, or remove it"
            )
        if fingerprint != self.fingerprint:
            raise InputError(
                f"{self.out} holds a run on other images than those of {self.data}; give the images that it began "
                "with, a new --out, or remove it"
            )
        return state

    def _resume(self, state: dict[str, Any]) -> None:
        try:
            self.trainer.load(state["trainer"])
            self.seconds, self.rows = float(state["seconds"]), list(state["rows"])
            restored = self.probe and "probe" in state and self.probe.load(state["probe"])
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise unusable_resume(self.out / RESUME, error) from error
        log.info("resuming at step %d", self.trainer.step)
        if restored is False:
            log.warning("the saved run has no online probe of these classes: a new one starts at step %d",
                        self.trainer.step)  # fmt: skip

    def _log_settings(self, device: torch.device, images: int, workers: int) -> None:
        if self.first:
            model = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
            log.info("%s on %s%s, %s, %s augmentation, %d images, %d loader workers on each of %d ranks; %s",
                     self.recipe.name or "pretraining", device, model, self.recipe.precision,
                     self.recipe.augmentation.engine, images, workers,
                     distributed.world_size(), batch_norm_text(self.recipe))  # fmt: skip

    def _save_is_due(self) -> bool:
        return time.monotonic() - self.saved > max(SAVE_SECONDS, self.saving / SAVE_SHARE)

    def _save_and_stop(self) -> NoReturn:
        self._save()
        stopped = distributed.Stopped(self.out / RESUME)
        log.warning("%s", stopped)
        raise stopped

    def _save_epoch(self, epoch: int, stop: bool) -> None:
        """After a whole epoch: the resume file now and then, a numbered one as often as the recipe says."""
        last, marked = epoch == self.recipe.epochs, epoch in self.recipe.marked_epochs
        asked = last or marked or epoch % self.recipe.save_every_epochs == 0
        if asked or self._save_is_due():
            self._save()
        if asked and self.first and (marked or self.recipe.keep_last):
            keep(self.out, epoch, self.recipe.keep_last, self.recipe.marked_epochs)
        if marked and self.first:
            self._write_backbone(numbered(self.out, epoch).with_suffix(Path(BACKBONE).suffix), epoch)
        if stop and self.first and not last:
            self._save_and_stop()

    def _save(self) -> None:
        began = time.monotonic()
        if self.first:
            self._require_finite(self.trainer.sums)  # a state that has diverged must not replace the last good one
            trainer = {**self.trainer.state(), "images": self.fingerprint}
            state = {
                "recipe": trainer["recipe"],  # at the top, with "epochs", for readers of the encoders
                "epochs": len(self.rows),
                "trainer": trainer,
                "seconds": self.seconds,
                "rows": self.rows,
            }
            if self.probe is not None:
                state["probe"] = self.probe.state()
            save_resume(self.out / RESUME, state)
            write_log(self.out / LOG, self.rows)
        self.saved = time.monotonic()
        self.saving = self.saved - began

    def _write_backbone(self, path: Path, epochs: int) -> None:
        recipe, backbone = self.recipe, self.trainer.encoder.backbone.state_dict()
        card = EncoderCard(
            name=recipe.name,
            source=f"recipe {recipe.name}, seed {recipe.seed}",
            architecture=recipe.architecture,
            layout="encoder-bench",
            keys_matched=len(backbone),
            mean=recipe.mean,
            std=recipe.std,
            method=recipe.method,
            epochs=epochs,
            pretrain_data=self.data.name,
            pretrain_seconds=round(self.seconds, 1),
            init=f"seed {recipe.seed}",
            licence="Apache-2.0",
        )
        write_backbone(path, backbone, card)


class DataWait:
    """Seconds of an epoch in which the device had nothing to do because no batch was there.

    On a CPU these are the seconds of the loader. A GPU works on while the host asks for the next batch, so there it is
    the time, by its own clock, between the end of an update and the arrival of the next batch, if that came later.
    """

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.total = self.began = 0.0
        self.gaps: list[tuple[Any, Any]] = []

    def begins(self) -> None:
        """The host asks for a batch; all work before it has been given to the device."""
        self.began = time.monotonic()
        if self.cuda:
            self.idle = torch.cuda.Event(enable_timing=True)
            self.idle.record()

    def over(self) -> None:
        """The batch has arrived on the host."""
        if self.cuda:
            arrived = torch.cuda.Event(enable_timing=True)
            arrived.record()
            self.gaps.append((self.idle, arrived))

    def ends(self) -> None:
        """The batch is ready, augmented and on the device, or will be."""
        if not self.cuda:
            self.total += time.monotonic() - self.began

    def seconds(self) -> float:
        """Since the last call. To be asked when the device has finished."""
        total = self.total + sum(idle.elapsed_time(arrived) for idle, arrived in self.gaps) / 1000
        self.total, self.gaps = 0.0, []
        return total


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

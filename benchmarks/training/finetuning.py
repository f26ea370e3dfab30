"""Fine-tuning of a whole network: a trainable copy of the encoder with a new classifier, SGD, evaluations, restart."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.encoders.encoder import BackboneWithHead, Encoder
from benchmarks.solvers.linear_heads import target_ranks
from benchmarks.task import NotApplicableError, progress
from benchmarks.training.images import (
    FixedBatches,
    TrainingBatches,
    Views,
    batch_loader,
    erase,
    erase_rng,
    mix,
    mix_rng,
    network_input,
)
from benchmarks.training.loop import SAVE_STEPS, TrainingState, safe_memory_format, synchronise, usable
from pretrain import distributed

if TYPE_CHECKING:
    from benchmarks.finetune import FineTuneParams

HEAD_STD = 0.01
NEAR_ZERO = 2e-5  # of MAE's linear layer
_TRIAL_IMAGES = 2

Call = Callable[[Any, Tensor], Any]


def _forward(module: Any, x: Tensor) -> Any:
    outputs = module(x)
    return outputs["embed"] if isinstance(outputs, dict) else outputs


def _before_classifier(module: Any, x: Tensor) -> Any:
    return module.forward_head(module.forward_features(x), pre_logits=True)  # timm's models


_CALLS: tuple[Call, ...] = (_forward, _before_classifier)


@dataclass(frozen=True)
class RateGroup:
    """Parameters that are trained alike.

    Attributes:
        scale: of the backbone's rate.
        decayed: whether weight decay applies.
    """

    parameters: list[nn.Parameter]
    scale: float
    decayed: bool
    names: tuple[str, ...] = ()


class Classifier(nn.Module):
    """Images to logits, by a trainable copy of the encoder's network and a linear layer on its embedding.

    Args:
        crop: side of the images.
        seed: seed of the linear layer's initial weights.
        mean_pool: replace the final norm of a ViT by a new one on the mean of its patch tokens, as MAE does.
        drop_path: of the last block of a ViT; those of the others grow towards it (Huang et al. 2016).

    Raises:
        NotApplicableError: the encoder has no weights, or its embedding does not come from calling its module.
    """

    def __init__(
        self,
        encoder: Encoder,
        classes: int,
        crop: int,
        head_init: Literal["normal", "default", "near_zero"],
        seed: int,
        *,
        mean_pool: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.name = encoder.card.name
        self.backbone = deepcopy(encoder.module)
        if not any(True for _ in self.backbone.parameters()):
            raise NotApplicableError(f"{self.name} has no weights, so there is nothing to fine-tune")
        noise = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (_TRIAL_IMAGES, 3, crop, crop), dtype=torch.uint8, generator=noise)
        x = encoder.normalise(images)
        expected = encoder.outputs(x, ("embed",))["embed"]
        self.memory_format = safe_memory_format(self.backbone, encoder.device)
        self.backbone.to(memory_format=self.memory_format)
        x = x.contiguous(memory_format=self.memory_format)
        self._call = self._mean_of_patches() if mean_pool else self._find_call(x, expected)
        if drop_path:
            _add_drop_path(self.vit, drop_path)
        self._unfreeze(x)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.fc = nn.Linear(self.fc_norm.weight.shape[0] if mean_pool else expected.shape[1], classes)
            if head_init != "default":
                nn.init.normal_(self.fc.weight, 0, HEAD_STD if head_init == "normal" else NEAR_ZERO)
                nn.init.zeros_(self.fc.bias)
        self.fc.to(encoder.device)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised (N, 3, H, W) images to (N, classes)."""
        logits: Tensor = self.fc(self._call(self.backbone, x.contiguous(memory_format=self.memory_format)))
        return logits

    def groups(self, head_scale: float = 1.0) -> list[RateGroup]:
        """The trained parameters of the backbone, and those of the linear layer, at `head_scale` times its rate."""
        backbone = [p for p in self.backbone.parameters() if p.requires_grad]
        return [RateGroup(backbone, 1.0, decayed=True), RateGroup(list(self.fc.parameters()), head_scale, decayed=True)]

    def layer_groups(self, decay: float) -> list[RateGroup]:
        """The trained parameters of a ViT by layer, each layer's rate `decay` times that of the next (as in BEiT).

        Layer 0 are patches, positions and class token, layer i + 1 is block i, and everything after the blocks comes
        last. Weight decay spares vectors, and what the model itself exempts.
        """
        vit, last = self.vit, len(self.vit.blocks) + 1
        exempt = vit.no_weight_decay()
        found: dict[tuple[int, bool], list[tuple[str, nn.Parameter]]] = {}
        own = [(name, p) for name, p in vit.named_parameters() if p.requires_grad]
        rest = [
            (f"{part}.{name}", p) for part in ("fc_norm", "fc") for name, p in getattr(self, part).named_parameters()
        ]
        for name, parameter in [*own, *rest]:
            if name in ("cls_token", "pos_embed") or name.startswith("patch_embed"):
                layer = 0
            else:
                layer = int(name.split(".")[1]) + 1 if name.startswith("blocks.") else last
            decayed = parameter.ndim > 1 and name not in exempt
            found.setdefault((layer, decayed), []).append((name, parameter))
        return [
            RateGroup([p for _, p in named], decay ** (last - layer), decayed, tuple(name for name, _ in named))
            for (layer, decayed), named in found.items()
        ]

    @property
    def vit(self) -> Any:
        """The backbone as a plain vision transformer.

        Raises:
            NotApplicableError: it is not one.
        """
        module: Any = self.backbone.backbone if isinstance(self.backbone, BackboneWithHead) else self.backbone
        if not all(hasattr(module, part) for part in ("blocks", "norm", "num_prefix_tokens", "no_weight_decay")):
            raise NotApplicableError(f"{self.name} is not a plain vision transformer, whose layers this recipe needs")
        return module

    def _mean_of_patches(self) -> Call:
        vit = self.vit
        vit.norm, vit.fc_norm = nn.Identity(), nn.Identity()
        norm = nn.LayerNorm(vit.embed_dim, eps=1e-6).to(next(vit.parameters()).device)
        self.fc_norm = norm

        def embed(backbone: Any, x: Tensor) -> Any:
            return norm(vit.forward_features(x)[:, vit.num_prefix_tokens :].mean(dim=1))

        return embed

    @torch.no_grad()
    def _find_call(self, x: Tensor, expected: Tensor) -> Call:
        """The way to call the module that gives the encoder's embedding."""
        self.backbone.eval()
        for call in _CALLS:
            try:
                embedding = call(self.backbone, x)
            except (AttributeError, KeyError, TypeError):
                continue  # not a module of this kind
            alike = isinstance(embedding, Tensor) and embedding.shape == expected.shape
            if alike and torch.allclose(embedding, expected, rtol=1e-3, atol=1e-5):
                return call
        raise NotApplicableError(
            f"{self.name} cannot be fine-tuned: calling its module does not give its embedding; give one whose forward "
            "does"
        )

    def _unfreeze(self, x: Tensor) -> None:
        """Train the parameters that the embedding depends on, and not, say, a classifier that the module carries."""
        self.backbone.requires_grad_(True)
        self._call(self.backbone, x).float().sum().backward()
        for parameter in self.backbone.parameters():
            parameter.requires_grad_(parameter.grad is not None)
            parameter.grad = None


def _add_drop_path(vit: Any, last: float) -> None:
    from torchvision.ops import StochasticDepth

    rates = torch.linspace(0, last, len(vit.blocks)).tolist()
    for block, rate in zip(vit.blocks, rates, strict=True):
        block.drop_path1, block.drop_path2 = (StochasticDepth(rate, "row") if rate else nn.Identity() for _ in range(2))


@dataclass
class FineTuneState(TrainingState):
    """A network after `steps` steps, see `TrainingState`.

    Attributes:
        network, optimiser: their state dicts.
        train_loss: mean over the last epoch.
        top1, loss: of every evaluation.
        last, best: (N,) ranks of the true class at the last and the best evaluation so far.
        loss_sum, images_seen: of the current epoch, where the state was saved inside it.
    """

    network: dict[str, Any] = field(default_factory=dict)
    optimiser: dict[str, Any] = field(default_factory=dict)
    train_loss: float = 0.0
    top1: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    last: Tensor | None = None
    best: Tensor | None = None
    best_epoch: int = 0
    loss_sum: Tensor | None = None
    images_seen: int = 0


def soft_cross_entropy(logits: Tensor, targets: Tensor, partners: Tensor, share: float, smoothing: float) -> Tensor:
    """The summed cross-entropy of images that are `share` of their own class and else of their partner's.

    Args:
        logits: (N, classes).
        targets, partners: (N,) classes of the images, and of those that they are mixed with.
        smoothing: share of the truth that is spread over all classes (Szegedy et al. 2016).
    """

    def against(truth: Tensor) -> Tensor:
        return F.cross_entropy(logits, truth, reduction="sum", label_smoothing=smoothing)

    return against(targets) if share == 1 else share * against(targets) + (1 - share) * against(partners)


@contextmanager
def _seeded(seed: int, step: int, device: torch.device) -> Iterator[None]:
    """Draw what torch draws inside from the seed, the step and the rank, so that a restart needs no random state."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(hash((seed, step, distributed.rank())) % 2**63)
        yield


class FineTuning:
    """One training of a network, resumed from `path` where there is a state with this key.

    Args:
        params: of one cell of the grid.
        train, items: random views, and the images among them that are trained on.
        test, tested: deterministic views, and the images among them that are measured.
        parts: parts of this rank's batch whose gradients are computed one after the other, and added.
    """

    def __init__(
        self,
        params: FineTuneParams,
        encoder: Encoder,
        classes: int,
        train: Views,
        items: NDArray[Any],
        test: Views,
        tested: NDArray[Any],
        *,
        path: Path,
        key: str,
        workers: int,
        seed: int,
        parts: int = 1,
    ) -> None:
        self.params, self.encoder, self.device, self.workers = params, encoder, encoder.device, workers
        self.parts = parts
        self.train_views, self.test_views, self.tested, self.path = train, test, tested, path
        self.classifier = Classifier(
            encoder,
            classes,
            train.geometry.crop,
            params.head_init,
            seed,
            mean_pool=params.mean_pool,
            drop_path=params.drop_path,
        )
        self.seed, self.classes = seed, classes
        self.network: nn.Module = self.classifier
        if distributed.world_size() > 1:
            synchronise(self.classifier, self.device)
            # Every rank computes the same batch statistics, so there is nothing to broadcast.
            self.network = distributed.wrapped(self.classifier)
        ((lr, multiplier),) = params.grid
        layered = params.layer_decay is not None
        groups = (
            self.classifier.layer_groups(params.layer_decay or 1.0) if layered else self.classifier.groups(multiplier)
        )
        self.rates = tuple(lr * group.scale for group in groups)
        grouped = [
            {"params": group.parameters, "weight_decay": params.weight_decay if group.decayed else 0.0}
            for group in groups
        ]
        self.optimiser: torch.optim.Optimizer
        fused = self.device.type == "cuda" or None  # None: torch's own choice
        if params.optimiser == "adamw":
            self.optimiser = torch.optim.AdamW(grouped, lr=lr, fused=fused)
        else:
            momentum, nesterov = params.momentum, params.nesterov
            self.optimiser = torch.optim.SGD(grouped, lr=lr, momentum=momentum, nesterov=nesterov, fused=fused)
        self.state = FineTuneState.load(path, key)
        if self.state.steps:
            with usable(path):
                self.classifier.load_state_dict(self.state.network)
                self.optimiser.load_state_dict(self.state.optimiser)
        self.steps_per_epoch = -(-len(items) // params.batch_size)
        self.sampler = TrainingBatches(
            items, params.batch_size, seed, self.state.steps, params.total_steps(self.steps_per_epoch)
        )

    def train(self, description: str, *, show: bool = True) -> FineTuneState:
        """Train to the end from the state's step.

        Raises:
            Stopped: a signal asked for it; the state is saved.
        """
        with distributed.stop_signals() as stop:
            return self._train(description, show, stop)

    def _train(self, description: str, show: bool, stop: Callable[[], bool]) -> FineTuneState:
        loader = batch_loader(self.train_views, self.sampler, self.workers, self.device)
        shown = progress(loader, description, total=len(self.sampler), show=show and distributed.rank() == 0)
        loss_sum, seen, started = torch.zeros((), device=self.device), self.state.images_seen, time.perf_counter()
        if self.state.loss_sum is not None:
            loss_sum += self.state.loss_sum.to(self.device)
        step = self.state.steps - 1
        for step, (images, lighting, targets) in enumerate(shown, start=self.state.steps):
            length = self.sampler.batch_length(step)
            # Summed over ranks now, so that rank 0 can save without the others.
            loss_sum += distributed.sum_(self._step(images, lighting, targets, step, length) * length)
            seen += length
            if (step + 1) % self.steps_per_epoch:
                if stop() and distributed.rank() == 0:
                    break
                if (step + 1) % self.steps_per_epoch % SAVE_STEPS == 0:
                    self.state.add_time("train", started)
                    started = time.perf_counter()
                    self.state.loss_sum, self.state.images_seen = loss_sum.cpu(), seen
                    self._save(step)
                continue
            self.state.train_loss = float(loss_sum) / seen
            self.state.add_time("train", started)
            self._end_epoch(step)
            loss_sum, seen, started = torch.zeros((), device=self.device), 0, time.perf_counter()
            if stop() and distributed.rank() == 0:
                break
        if step + 1 < self.sampler.last_step:  # on rank 0
            if self.state.steps <= step:
                self.state.add_time("train", started)
                self.state.loss_sum, self.state.images_seen = loss_sum.cpu(), seen
                self._save(step)
            raise distributed.Stopped(self.path)
        return self.state

    def _step(self, images: Tensor, lighting: Tensor, targets: Tensor, step: int, length: int) -> Tensor:
        """One update; returns this rank's share of the mean loss."""
        factor = self.params.rate_factor(step, self.steps_per_epoch)
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.network.train()
        params, targets = self.params, targets.to(self.device, non_blocking=True)
        x = network_input(
            self.encoder, images.to(self.device, non_blocking=True), lighting if params.lighting else None
        )
        if params.erasing:
            erase(x, params.erasing, erase_rng(self.seed, step), distributed.own_slice(length), length)
        x, share = mix(x, params.mixup, params.cutmix, mix_rng(self.seed, step, distributed.rank()))
        self.optimiser.zero_grad(set_to_none=True)
        with _seeded(self.seed, step, self.device) if params.drop_path else nullcontext():
            loss = self._backward(x, targets, share, length)
        self.optimiser.step()
        return loss

    def _backward(self, x: Tensor, targets: Tensor, share: float, length: int) -> Tensor:
        """Add up the gradients of the parts of a batch; returns this rank's share of the mean loss."""
        ranks, losses = distributed.world_size(), []
        # As many on every rank, because synchronised batch norms wait for each other; none is empty on all of them.
        parts = min(self.parts, -(-length // ranks))
        split = zip(*(each.tensor_split(parts) for each in (x, targets, targets.flip(0))), strict=True)
        for number, (images, own, partners) in enumerate(split, start=1):
            alone = isinstance(self.network, DistributedDataParallel) and number < parts
            with self.network.no_sync() if alone else nullcontext():  # type: ignore[operator]  # of DDP
                logits = self._logits(self.network, images)
                loss = soft_cross_entropy(logits, own, partners, share, self.params.smoothing) / length
                # Gradients are averaged over ranks, and the loss of the whole batch is the sum of their shares.
                (loss * ranks).backward()
            losses.append(loss.detach())
        return torch.stack(losses).sum() if parts > 1 else losses[0]

    def _logits(self, network: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.params.precision == "bf16"):
            logits: Tensor = network(x)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _end_epoch(self, step: int) -> None:
        """Evaluate if it is due, and write the state."""
        state, epoch = self.state, (step + 1) // self.steps_per_epoch
        if epoch % self.params.evaluate_every == 0 or epoch == self.params.epochs:
            started = time.perf_counter()
            self._evaluate(epoch)
            state.add_time("evaluate", started)
        state.loss_sum, state.images_seen = None, 0
        self._save(step)

    def _save(self, step: int) -> None:
        state = self.state
        state.steps = step + 1
        if distributed.rank() == 0:
            state.network, state.optimiser = self.classifier.state_dict(), self.optimiser.state_dict()
            state.save(self.path)

    @torch.no_grad()
    def _evaluate(self, epoch: int) -> None:
        self.classifier.eval()
        ranks = torch.zeros(len(self.tested), dtype=torch.int32, device=self.device)
        loss = torch.zeros((), device=self.device)
        start = distributed.own_slice(len(self.tested)).start
        sampler = FixedBatches(self.tested)
        for images, _, labels in batch_loader(self.test_views, sampler, self.workers, self.device):
            targets = labels.to(self.device, non_blocking=True)
            logits = self._logits(
                self.classifier, network_input(self.encoder, images.to(self.device, non_blocking=True))
            )
            ranks[start : start + len(targets)] = target_ranks(logits[:, None], targets)[0].int()
            loss += F.cross_entropy(logits, targets, reduction="sum")
            start += len(targets)
        state = self.state
        state.last = distributed.sum_(ranks).short().cpu()
        top1 = float((state.last < 1).double().mean())
        if top1 > max(state.top1, default=-1.0):
            state.best, state.best_epoch = state.last, epoch
        state.evaluated.append(epoch)
        state.top1.append(top1)
        state.loss.append(float(distributed.sum_(loss)) / len(self.tested))

"""What each training loop needs: a state to continue from, a frozen encoder, a safe memory layout, batch norms."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from benchmarks.task import InputError, NotApplicableError
from pretrain.distributed import sum_with_gradient
from pretrain.safe_pickle import read_pickled
from results.files import replacing

if TYPE_CHECKING:
    from benchmarks.encoders.encoder import Encoder

log = logging.getLogger(__name__)

SAVE_STEPS = 1000  # inside a longer epoch: minutes on a GPU
_ONEDNN_BLOCK = 16  # float32 channels in oneDNN's widest vector of 512 bits


@dataclass
class TrainingState:
    """A training after `steps` steps, written after every epoch and, inside a long one, every `SAVE_STEPS` steps.

    It holds no random state: the order of an epoch and the draws of a view follow from the seed.

    Attributes:
        key: a hash of protocol, encoder, data and seed. A state with another key is not used.
        evaluated: epochs (from 1) that were evaluated.
        timing: seconds by phase.
    """

    key: str
    steps: int = 0
    evaluated: list[int] = field(default_factory=list)
    timing: dict[str, float] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path, key: str) -> Self:
        """The state in the file if it has this key, else a new one.

        Raises:
            InputError: the file is damaged.
        """
        if path.is_file():
            with usable(path):
                stored = read_pickled(path, verify=True)
                if stored["key"] == key:
                    log.info("resuming after step %d of %s", stored["steps"], path)
                    return cls(**stored)
            log.info("%s belongs to another run and will be replaced", path)
        return cls(key)

    def save(self, path: Path) -> None:
        """Write the state atomically.

        Raises:
            OSError: the file cannot be written, and the old one is whole.
        """
        with replacing(path) as temporary, temporary.open("wb") as file:  # given a path, torch hides the disk's error
            torch.save({f.name: getattr(self, f.name) for f in fields(self)}, file)

    def add_time(self, phase: str, started: float) -> None:
        """Add the seconds since `started` (a `time.perf_counter()`) to a phase."""
        self.timing[phase] = self.timing.get(phase, 0.0) + time.perf_counter() - started


@contextmanager
def usable(path: Path) -> Iterator[None]:
    """Turn the errors of using a state that is damaged or not this training's into one that names the remedy."""
    try:
        yield
    except (InputError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).replace(str(path), "it").split())[:200] or type(error).__name__
        raise InputError(
            f"{path} cannot be continued from ({reason}); remove it to start this training anew"
        ) from error


@contextmanager
def frozen(encoder: Encoder) -> Iterator[str]:
    """Check that no tensor of the encoder changes in here; gives their `module_sha256`.

    Raises:
        RuntimeError: one has changed, although the encoder should be frozen.
    """
    before = module_sha256(encoder.module)
    yield before
    if module_sha256(encoder.module) != before:
        raise RuntimeError(f"{encoder.card.name} changed while its heads were trained: it was not frozen")


def module_sha256(module: nn.Module) -> str:
    """SHA-256 over name, dtype, shape and bytes of every parameter and buffer (BN statistics among them).

    Buffers of whole numbers, which count calls or batches, are left out: they change no output of a frozen network.
    """
    digest = hashlib.sha256()
    buffers = [(name, buffer) for name, buffer in module.named_buffers() if buffer.is_floating_point()]
    for name, tensor in sorted([*module.named_parameters(), *buffers]):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(raw.view(torch.uint8).numpy().tobytes() if raw.numel() else b"")
    return digest.hexdigest()


def safe_memory_format(module: nn.Module, device: torch.device) -> torch.memory_format:
    """channels_last, in which convolutions are fastest, unless its backward pass would go wrong.

    On x86 CPUs, oneDNN's weight gradient of a strided 1x1 convolution on channels_last maps writes past its workspace
    where there are fewer channels than one of its blocks holds (uxlfoundation/oneDNN issue 6035; torch 2.14 has it).
    The result is a crash, or wrong gradients without one. ResNets have such convolutions in their shortcuts; those of
    the published widths have 64 channels there and more.
    """
    narrow = any(
        isinstance(m, nn.Conv2d)
        and max(m.kernel_size) == 1
        and max(m.stride) > 1
        and m.in_channels // m.groups < _ONEDNN_BLOCK
        for m in module.modules()
    )
    return torch.contiguous_format if device.type == "cpu" and narrow else torch.channels_last


def has_batch_norm(module: nn.Module) -> bool:
    """Whether the outputs of the module in training depend on the batch that an image is in."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules())


class SyncedBatchNorm(nn.BatchNorm2d):
    """`nn.SyncBatchNorm` for CPUs, which torch's does not support; a rank may have no image of a last small batch."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        assert self.num_batches_tracked is not None
        wide = x.float()
        # Mean first, then squares about it: E[x^2] - E[x]^2 would lose digits.
        count = sum_with_gradient(wide.new_full((), float(wide[:, 0].numel())))
        mean = sum_with_gradient(wide.sum(dim=(0, 2, 3))) / count
        var = sum_with_gradient((wide - mean[:, None, None]).square().sum(dim=(0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
        normalised = (wide - mean[:, None, None]) * (var + self.eps).rsqrt()[:, None, None]
        return (normalised * self.weight[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def synchronise(network: nn.Module, device: torch.device) -> nn.Module:
    """The network with synchronised batch norms, of the same names, parameters and buffers.

    Raises:
        NotApplicableError: it has batch norms of another kind, which do more than normalise.
    """
    kinds = {type(m) for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    other = sorted(kind.__name__ for kind in kinds - {nn.BatchNorm2d})
    if other:
        raise NotApplicableError(
            f"{', '.join(other)} cannot be synchronised over ranks: train this encoder in one process"
        )
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return converted
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncedBatchNorm
    return network

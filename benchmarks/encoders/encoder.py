"""`Encoder`, a frozen backbone with named outputs, and the strict filling of networks and projection heads."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from itertools import chain
from typing import Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.encoders.layouts import Rules
from benchmarks.task import InputError
from pretrain.distributed import sent
from pretrain.weight_files import weights_sha256
from results.errors import first_few
from results.schema import EncoderCard

_SPARE_NUMBERS = 1 << 24  # that a network computes beside its weights: indices of relative positions, rotary tables
NetworkT = TypeVar("NetworkT", bound=nn.Module)
Forward = Callable[[Tensor, Collection[str]], dict[str, Tensor]]


class Encoder:
    """A frozen backbone in eval mode.

    Args:
        card: describes the encoder; its mean, std, range and channel order are applied by `normalise`.
        module: holds every weight; moved by `to`, never trained.
        forward: maps normalised (N, 3, H, W) images and output names to those tensors, or more.
        names: the outputs that exist. feature1 … feature5 are maps (N, C, H, W): the last ones at 1/2 to 1/32 of the
            image in a network of stride 32, otherwise the stem and the four stages. embed is (N, D), head the
            projection of it. A ViT has, each after its final norm, if it has one, and without class and register
            tokens, patches (N, D, H/p, W/p) of the last block, patches4 (N, 4D, H/p, W/p) of the last four, the
            earliest first, and patch_mean (N, D) of the last; with a class token also cls (N, D) and cls_last4
            (N, 4D). Those of timm also have patches_raw and cls_raw, of the last block without the norm, and
            patches_even4 and cls_even4, of the last block of each quarter of the depth without it, and patches_mean6,
            the mean of the last six blocks without it.
        head: the projection head, which maps embed to the output head.
        freeze: put the module into eval mode for good. Without it, the module is the caller's: it is frozen only
            inside `borrowed`.
    """

    def __init__(
        self,
        card: EncoderCard,
        module: nn.Module,
        forward: Forward,
        names: Collection[str],
        *,
        head: nn.Module | None = None,
        freeze: bool = True,
    ) -> None:
        self.card, self._forward, self._head = card, forward, head
        self.module = module if head is None else BackboneWithHead(module, head)
        self.names = frozenset(names) if head is None else frozenset({*names, "head"})
        self.device, self.dtype = device_and_dtype(module)
        if freeze:
            self.module.eval().requires_grad_(False)

    @property
    def backbone(self) -> nn.Module:
        """The module without its projection head."""
        return self.module.backbone if isinstance(self.module, BackboneWithHead) else self.module

    @contextmanager
    def borrowed(self) -> Iterator[Self]:
        """Freeze the module, and give it back exactly as it was, also after an exception (see `preserved`)."""
        device = self.device
        with preserved(self.module):
            self.module.eval().requires_grad_(False)
            try:
                yield self
            finally:
                self.device = device

    @property
    def parameters(self) -> int:
        """Number of parameters of the module, without buffers."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    def has(self, name: str) -> bool:
        """Whether `outputs` can return this output."""
        return name in self.names

    def to(self, device: str | torch.device) -> Self:
        """Move the weights, in the channels_last layout that is fastest for convolutions.

        Raises:
            InputError: there is no such device, or it has too little memory.
        """
        try:
            if _with_index(torch.device(device)) != _with_index(self.device):
                self.module.to(torch.device(device))
            self.module.to(memory_format=torch.channels_last)
        except (RuntimeError, AssertionError) as error:  # torch raises the latter where it was built without CUDA
            reason = " ".join(str(error).split())[:160]
            raise InputError(f"cannot use the device {device} ({reason}); choose another, such as cpu") from error
        self.device = torch.device(device)
        return self

    def normalise(self, images: Tensor) -> Tensor:
        """Map (N, 3, H, W) uint8 RGB to the network's input, by the card's channel order, range, mean and std."""
        x = images.to(self.device, non_blocking=True).to(torch.float32, memory_format=torch.channels_last)
        if self.card.channels == "BGR":
            x = x.flip(1)
        mean, std = (sent(torch.tensor(v), x.device)[:, None, None] for v in (self.card.mean, self.card.std))
        return ((x * (self.card.value_range / 255) - mean) / std).to(self.dtype)

    @torch.no_grad()
    def outputs(self, images: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        """The named outputs of normalised images (N, 3, H, W).

        Raises:
            KeyError: an output that this encoder does not have.
        """
        missing = sorted(set(names) - self.names)
        if missing:
            raise KeyError(f"{self.card.name} has no {', '.join(missing)}; it has {', '.join(sorted(self.names))}")
        self.module.eval()
        if self._head is None or "head" not in names:
            found = self._forward(images, names)
        else:
            found = self._forward(images, {*names, "embed"} - {"head"})
            found["head"] = self._head(found["embed"])
        return {name: found[name] for name in names}


def fitted_size(card: EncoderCard, size: int) -> int:
    """The image size nearest to `size`, and not below it, that the encoder takes: its only one, or whole patches."""
    if card.input_size:
        return card.input_size
    patch = card.patch_size or 1
    return -(-size // patch) * patch


def image_sizes(module: nn.Module) -> dict[str, int | None]:
    """Patch and input size for the card, of a module with a patch embedding as timm's or DINOv2's."""
    embedding = getattr(module, "patch_embed", None)
    side, image = (getattr(embedding, name, None) for name in ("patch_size", "img_size"))
    side, image = (value[0] if isinstance(value, tuple) else value for value in (side, image))
    fixed = bool(getattr(embedding, "strict_img_size", False))
    return {
        "patch_size": side if isinstance(side, int) else None,
        "input_size": image if isinstance(image, int) and fixed else None,
    }


def device_and_dtype(module: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where a module lives, and the dtype of the images that it takes: those of its first floating-point tensor."""
    for tensor in chain(module.parameters(), module.buffers()):
        if tensor.is_floating_point():
            return tensor.device, tensor.dtype
    return torch.device("cpu"), torch.float32


def _with_index(device: torch.device) -> torch.device:
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


@contextmanager
def preserved(module: nn.Module) -> Iterator[None]:
    """Give a module back exactly as it was, also after an exception.

    Restored are the mode of every submodule; device, memory layout, requires_grad and gradient of every parameter; the
    contents of buffers; attributes and hooks of every submodule; and the states of the random number generators of
    torch, numpy and Python. Parameters keep their storage, so that optimisers and tied weights stay valid. Their values
    are not copied: nothing inside may train them. Inside, gradients can be computed whatever the caller's mode is.

    Raises:
        InputError: the module has parameters without a shape yet.
    """
    if any(nn.parameter.is_lazy(tensor) for tensor in chain(module.parameters(), module.buffers())):
        raise InputError(
            f"{type(module).__name__} has lazy layers without weights; call it once on a batch of images before"
        )
    parts = [_SavedModule(each) for each in module.modules()]
    buffers = {id(buffer) for buffer in module.buffers()}
    tensors = {id(each): each for each in chain(module.parameters(), module.buffers())}
    saved = [_SavedTensor(each, keep_values=key in buffers) for key, each in tensors.items()]
    generators = torch.get_rng_state(), np.random.get_state(), random.getstate()
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for part in parts:
            part.restore()
        for tensor in saved:
            tensor.restore()
        torch.set_rng_state(generators[0])
        np.random.set_state(generators[1])
        random.setstate(generators[2])
        if on_gpus:
            torch.cuda.set_rng_state_all(on_gpus)


class _SavedModule:
    """Mode, attributes and tables (hooks, parameters, submodules) of one module, without its submodules' own."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.training, self.attributes = module, module.training, dict(module.__dict__)
        self.tables = {key: value.copy() for key, value in self.attributes.items() if _is_table(key, value)}

    def restore(self) -> None:
        attributes = self.module.__dict__
        for name in attributes.keys() - self.attributes.keys():
            del attributes[name]
        attributes.update(self.attributes)
        for name, entries in self.tables.items():
            table = self.attributes[name]
            table.clear()
            table.update(entries)
        if self.module.training != self.training:  # torchscript keeps the mode elsewhere
            self.module.training = self.training


def _is_table(name: str, value: object) -> bool:
    """Whether an attribute is one of the dictionaries that torch keeps in every module."""
    return isinstance(value, dict) and (name.endswith("_hooks") or name in ("_parameters", "_buffers", "_modules"))


class _SavedTensor:
    """One parameter or buffer: its storage, layout, requires_grad and gradient, and the values of a buffer."""

    def __init__(self, tensor: Tensor, *, keep_values: bool) -> None:
        self.tensor, self.data, self.requires_grad, self.grad = tensor, tensor.data, tensor.requires_grad, tensor.grad
        self.grad_data = None if tensor.grad is None else tensor.grad.data
        self.values = tensor.data.clone() if keep_values else None

    @torch.no_grad()
    def restore(self) -> None:
        if not _same_place(self.tensor, self.data):
            self.tensor.data = self.data
        if self.values is not None and not torch.equal(self.data, self.values):
            self.data.copy_(self.values)
        if self.tensor.requires_grad != self.requires_grad:
            self.tensor.requires_grad_(self.requires_grad)
        if self.grad is not None and self.grad_data is not None and not _same_place(self.grad, self.grad_data):
            self.grad.data = self.grad_data
        if self.tensor.grad is not self.grad:
            self.tensor.grad = self.grad


def _same_place(tensor: Tensor, data: Tensor) -> bool:
    return (tensor.device, tensor.data_ptr(), tensor.stride()) == (data.device, data.data_ptr(), data.stride())


class BackboneWithHead(nn.Module):
    """A backbone and its projection head in one module, so that both move together."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head


def filled(
    build: Callable[[], NetworkT], tensors: Mapping[str, Tensor], source: str, surplus: tuple[str, ...] = ()
) -> tuple[NetworkT, int]:
    """The network that `build` makes, with all tensors loaded, and their number.

    Only `num_batches_tracked` may be missing. Tensors that the network lacks are left out where their names begin with
    one of `surplus`, such as a classifier's.

    What a file claims of its network (in names, shapes and its card) may be anything; its bytes are what they are. So
    the tensors are compared with a plan of the network that takes no memory, before it is built.

    Raises:
        InputError: names and shapes do not agree one to one (with counts and the first few names), a weight is not a
            floating-point number, or the network has far more numbers than the file.
    """
    with torch.device("meta"):
        plan = build()
    own = plan.state_dict()
    tensors = {name: tensor for name, tensor in tensors.items() if name in own or not name.startswith(surplus)}
    needed = {name for name in own if not name.endswith("num_batches_tracked")}
    missing = sorted(needed - set(tensors))
    unused = sorted(set(tensors) - set(own))
    misshapen = sorted(n for n in set(own) & set(tensors) if own[n].shape != tensors[n].shape)
    if missing or unused or misshapen:
        faults = [
            f"{len(names)} {fault} ({first_few(names)})"
            for names, fault in ((missing, "missing"), (unused, "left over"), (misshapen, "of another shape"))
            if names
        ]
        fitting = len(needed - set(missing) - set(misshapen))
        incomplete = " or incomplete" if not unused and not misshapen else ""
        raise InputError(
            f"{source} fills {fitting} of the backbone's {len(needed)} tensors: {'; '.join(faults)}; "
            f"it is a checkpoint of another architecture{incomplete}"
        )
    integers = [n for n in sorted(needed) if own[n].is_floating_point() and not tensors[n].is_floating_point()]
    if integers:
        raise InputError(
            f"{source} holds integers in {len(integers)} tensors ({', '.join(integers[:3])}); it is quantised, give "
            "the floating-point checkpoint"
        )
    numbers = sum(tensor.numel() for tensor in chain(plan.parameters(), plan.buffers()))
    there = sum(tensor.numel() for tensor in tensors.values())
    if numbers > 2 * there + _SPARE_NUMBERS:
        raise InputError(f"{source} has {there:,} numbers, and its network would need {numbers:,}; the file is damaged")
    network = build()
    network.load_state_dict(tensors, strict=False)
    return network, len(tensors)


def projection_head(tensors: Mapping[str, Tensor], width: int) -> nn.Sequential | None:
    """The projection head on `width` features, where its tensors show its whole structure, otherwise None.

    That is a linear layer, or a Sequential of linear layers and batch norms with ReLU at the indices without tensors:
    the heads of MoCo v1 to v3, SimCLR, SimSiam, SwAV, Barlow Twins, VICReg and solo-learn. DINO's head, with GELU and
    a weight-normalised last layer, is not, and neither is a head whose input is not the backbone's output.
    """
    parts: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = re.fullmatch(r"(?:(\d{1,2})\.)?(weight|bias|running_mean|running_var|num_batches_tracked)", key)
        if match is None:
            return None
        parts.setdefault(int(match[1] or 0), {})[match[2]] = tensor
    if not parts:
        return None
    layers = [_head_layer(parts.get(index, {})) for index in range(min(parts), max(parts) + 1)]
    built = [layer for layer in layers if layer is not None]
    first = built[0] if len(built) == len(layers) else None
    if not isinstance(first, nn.Linear) or first.in_features != width:
        return None
    return nn.Sequential(*built).eval().requires_grad_(False)


def _head_layer(own: Mapping[str, Tensor]) -> nn.Module | None:
    layer: nn.Module
    if not own:
        return nn.ReLU()
    if any(not tensor.numel() for tensor in own.values()):  # its shape may be any
        return None
    if "running_mean" in own and own["running_mean"].ndim == 1:
        layer = nn.BatchNorm1d(len(own["running_mean"]), affine="weight" in own)
    elif "weight" in own and own["weight"].ndim == 2:
        layer = nn.Linear(own["weight"].shape[1], own["weight"].shape[0], bias="bias" in own)
    else:
        return None
    state = layer.state_dict()
    if not set(state) - {"num_batches_tracked"} <= set(own) <= set(state):
        return None
    if any(own[name].shape != state[name].shape for name in own):
        return None
    layer.load_state_dict(dict(own), strict=False)
    return layer


def head_summary(head: nn.Sequential | None) -> str | None:
    """Widths and the first digits of the weights' hash, such as "2048-2048-128 with ReLU (1a2b3c4d)"."""
    if head is None:
        return None
    linear = [layer for layer in head if isinstance(layer, nn.Linear)]
    widths = "-".join(str(width) for width in (linear[0].in_features, *(layer.out_features for layer in linear)))
    kinds = {nn.BatchNorm1d: "batch norm", nn.ReLU: "ReLU"}
    present = [text for kind, text in kinds.items() if any(isinstance(layer, kind) for layer in head)]
    return f"{widths}{' with ' + ' and '.join(present) if present else ''} ({weights_sha256(head.state_dict())[:8]})"


def renamed(name: str, rules: Rules) -> str:
    """The name after all rules."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns, with `*` for anything, is that of the whole name."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)

"""`Encoder`, a frozen backbone with named outputs, and the strict filling of networks and projection heads."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Self

import torch
from torch import Tensor, nn

from benchmarks.task import InputError
from pretrain.resnet import weights_sha256
from results.schema import EncoderCard

Forward = Callable[[Tensor, Collection[str]], dict[str, Tensor]]


class Encoder:
    """A frozen backbone in eval mode.

    Args:
        card: describes the encoder; its mean, std, range and channel order are applied by `normalise`.
        module: holds every weight; moved by `to`, never trained.
        forward: maps normalised (N, 3, H, W) images and output names to tensors.
        names: the outputs that exist. feature1 … feature5 are maps (N, C, H, W): the last ones at 1/2 to 1/32 of the
            image in a network of stride 32, otherwise the stem and the four stages. embed is (N, D), head the
            projection of it.
    """

    def __init__(self, card: EncoderCard, module: nn.Module, forward: Forward, names: Collection[str]) -> None:
        self.card, self.module, self._forward, self.names = card, module, forward, frozenset(names)
        self.device = torch.device("cpu")
        module.eval().requires_grad_(False)

    def has(self, name: str) -> bool:
        """Whether `outputs` can return this output."""
        return name in self.names

    def to(self, device: str | torch.device) -> Self:
        """Move the weights, in the channels_last layout that is fastest for convolutions.

        Raises:
            InputError: there is no such device, or it has too little memory.
        """
        try:
            self.module.to(torch.device(device)).to(memory_format=torch.channels_last)
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
        mean, std = (torch.tensor(v, device=x.device)[:, None, None] for v in (self.card.mean, self.card.std))
        return (x * (self.card.value_range / 255) - mean) / std

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
        return self._forward(images, names)


class BackboneWithHead(nn.Module):
    """A backbone and its projection head in one module, so that both move together."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head


def fill(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> int:
    """Load all tensors of `module`, and return how many. Only `num_batches_tracked` may be missing.

    Raises:
        InputError: names and shapes do not agree one to one (with counts and the first few names), or a weight is not
            a floating-point number. Nothing is loaded then.
    """
    own = module.state_dict()
    needed = {name for name in own if not name.endswith("num_batches_tracked")}
    missing = sorted(needed - set(tensors))
    unused = sorted(set(tensors) - set(own))
    misshapen = sorted(n for n in set(own) & set(tensors) if own[n].shape != tensors[n].shape)
    if missing or unused or misshapen:
        faults = [
            f"{len(names)} {fault} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
            for names, fault in ((missing, "missing"), (unused, "left over"), (misshapen, "of another shape"))
            if names
        ]
        filled = len(needed) - len(missing) - len([n for n in misshapen if n in needed])
        raise InputError(
            f"{source} fills {filled} of the backbone's {len(needed)} tensors: {'; '.join(faults)}; "
            "it is a checkpoint of another architecture"
        )
    integers = [n for n in sorted(needed) if own[n].is_floating_point() and not tensors[n].is_floating_point()]
    if integers:
        raise InputError(
            f"{source} holds integers in {len(integers)} tensors ({', '.join(integers[:3])}); it is quantised, give "
            "the floating-point checkpoint"
        )
    module.load_state_dict(dict(tensors), strict=False)
    return len(tensors)


def projection_head(tensors: Mapping[str, Tensor], width: int) -> nn.Sequential | None:
    """The projection head on `width` features, where its tensors show its whole structure, otherwise None.

    That is a linear layer, or a Sequential of linear layers and batch norms with ReLU at the indices without tensors:
    the heads of MoCo v1 to v3, SimCLR, SimSiam, SwAV, Barlow Twins, VICReg and solo-learn. DINO's head, with GELU and
    a weight-normalised last layer, is not, and neither is a head whose input is not the backbone's output.
    """
    keys = {key: re.fullmatch(r"(?:(\d+)\.)?(weight|bias|running_mean|running_var|num_batches_tracked)", key)
            for key in tensors}  # fmt: skip
    if not tensors or not all(keys.values()):
        return None
    indices = sorted({int(match[1] or 0) for match in keys.values() if match})
    layers: list[nn.Module] = []
    for index in range(indices[0], indices[-1] + 1):
        prefix = f"{index}." if any(match and match[1] for match in keys.values()) else ""
        layer = _head_layer(
            {
                key.removeprefix(prefix): tensors[key]
                for key, match in keys.items()
                if match and int(match[1] or 0) == index
            }
        )
        if layer is None:
            return None
        layers.append(layer)
    if not isinstance(layers[0], nn.Linear) or layers[0].in_features != width:
        return None
    return nn.Sequential(*layers).eval().requires_grad_(False)


def _head_layer(own: Mapping[str, Tensor]) -> nn.Module | None:
    layer: nn.Module
    if not own:
        return nn.ReLU()
    if "running_mean" in own:
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

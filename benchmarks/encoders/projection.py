"""The projection head of a checkpoint, where its tensors show its whole structure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from pretrain.checkpoint import weights_sha256


def projection(tensors: Mapping[str, Tensor], width: int) -> nn.Sequential | None:
    """The head on `width` features: linear, or a Sequential of linear layers and batch norms with ReLU in the gaps.

    A gap is an index without tensors. So are the heads of MoCo v1 to v3, SimCLR, SimSiam, SwAV, Barlow Twins, VICReg
    and solo-learn's; DINO's, with GELU and a weight-normalised last layer, is not. None for another structure, and
    where its input is not the backbone's output.
    """
    keys = {key: re.fullmatch(r"(?:(\d+)\.)?(weight|bias|running_mean|running_var|num_batches_tracked)", key)
            for key in tensors}  # fmt: skip
    if not tensors or not all(keys.values()):
        return None
    indices = sorted({int(match[1] or 0) for match in keys.values() if match})
    layers: list[nn.Module] = []
    for index in range(indices[0], indices[-1] + 1):
        prefix = f"{index}." if any(match and match[1] for match in keys.values()) else ""
        own = {
            key.removeprefix(prefix): tensors[key]
            for key, match in keys.items()
            if match and int(match[1] or 0) == index
        }
        layer = _layer(own)
        if layer is None:
            return None
        layers.append(layer)
    if not isinstance(layers[0], nn.Linear) or layers[0].in_features != width:
        return None
    return nn.Sequential(*layers).eval().requires_grad_(False)


def _layer(own: Mapping[str, Tensor]) -> nn.Module | None:
    layer: nn.Module
    if not own:
        return nn.ReLU()
    if "running_mean" in own:
        layer = nn.BatchNorm1d(len(own["running_mean"]), affine="weight" in own)
    elif "weight" in own and own["weight"].ndim == 2:
        layer = nn.Linear(own["weight"].shape[1], own["weight"].shape[0], bias="bias" in own)
    else:
        return None
    needed = {name for name in layer.state_dict() if name != "num_batches_tracked"}
    if not needed <= set(own) <= set(layer.state_dict()):
        return None
    if any(own[name].shape != layer.state_dict()[name].shape for name in own):
        return None
    layer.load_state_dict(dict(own), strict=False)
    return layer


def described(head: nn.Sequential) -> str:
    """As "2048-2048-128 with ReLU (1a2b3c4d)": the widths, and the first digits of the weights' hash."""
    linear = [layer for layer in head if isinstance(layer, nn.Linear)]
    widths = "-".join(str(width) for width in (linear[0].in_features, *(layer.out_features for layer in linear)))
    kinds = {nn.BatchNorm1d: "batch norm", nn.ReLU: "ReLU"}
    present = [text for kind, text in kinds.items() if any(isinstance(layer, kind) for layer in head)]
    return f"{widths}{' with ' + ' and '.join(present) if present else ''} ({weights_sha256(head.state_dict())[:8]})"

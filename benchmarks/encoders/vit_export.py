"""A plain vision transformer for mmsegmentation's and detectron2's own ViT: its shape, and its tensors by their names.

Positions are interpolated by the encoder's own rule to the grid that the engine trains on, so that the engine, which
would interpolate otherwise, finds nothing to do.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.encoders.encoder import Encoder
from benchmarks.task import NotApplicableError

VitEngine = Literal["mmsegmentation", "detectron2"]
Rotary = Literal["none", "pairs", "halves"]
Biases = Literal["all", "not of keys", "none"]


class QuickGelu(nn.Module):
    """x * sigmoid(1.702 x), of OpenAI's CLIP."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class KeysWithoutBias(nn.Linear):
    """Queries, keys and values in one layer, whose keys never get a bias, as in DINOv3."""

    def forward(self, input: Tensor) -> Tensor:
        queries, _, values = self.bias.chunk(3)
        return nn.functional.linear(input, self.weight, torch.cat([queries, torch.zeros_like(queries), values]))


class Gate(nn.Module):
    """silu(a) * b of the halves a and b of the channels: between the two layers of a gated MLP."""

    def forward(self, x: Tensor) -> Tensor:
        gate, gated = x.chunk(2, -1)
        return nn.functional.silu(gate) * gated


def rotated(x: Tensor, table: Tensor, rotary: Rotary) -> Tensor:
    """(..., L, C) queries or keys turned by (..., L, 2 C) sines and cosines of their places.

    Args:
        rotary: which two channels are turned together: neighbours (`pairs`), or one of each half (`halves`).
    """
    sines, cosines = table.chunk(2, -1)
    if rotary == "halves":
        first, second = x.chunk(2, -1)
        turned = torch.cat([-second, first], -1)
    else:
        turned = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
    return (x * cosines + turned * sines).to(x.dtype)


ACTIVATIONS: dict[str, type[nn.Module]] = {"GELU": nn.GELU, "QuickGELU": QuickGelu}


@dataclass(frozen=True)
class VitShape:
    """A plain vision transformer in numbers.

    Attributes:
        hidden: width of the MLP's hidden layer.
        patch: side of a patch in pixels.
        registers: number of tokens between the class token and the patches.
        layer_scale: every branch is multiplied by a trained vector.
        norm_before: there is a norm before the first block, as in CLIP.
        activation: a key of `ACTIVATIONS`; of an ungated MLP.
        gated: the MLP has a gate (`Gate`).
        positions: they are added to the patches.
        rotary: how queries and keys are turned by their places, if they are.
        biases: which of queries, keys and values have one.
    """

    width: int
    depth: int
    heads: int
    hidden: int
    patch: int
    norm_eps: float
    class_token: bool
    registers: int
    layer_scale: bool
    norm_before: bool
    patch_bias: bool
    activation: str
    gated: bool = False
    positions: bool = True
    rotary: Rotary = "none"
    biases: Biases = "all"

    def quarters(self) -> tuple[int, ...]:
        """The last block of each quarter of the depth, from 0."""
        return tuple(self.depth * part // 4 - 1 for part in (1, 2, 3, 4))


_RELATIVE: dict[VitEngine, str] = {
    "detectron2": "its relative positions are products with the query, for rows and columns apart",
    "mmsegmentation": "its ViT has none",
}


def vit_shape(encoder: Encoder, engine: VitEngine) -> VitShape:
    """The shape of an encoder; NotApplicableError where it has parts that the engine's own ViT does not have."""
    name: str = encoder.card.name
    module: Any = encoder.backbone
    parts = ("blocks", "patch_embed", "pos_embed", "num_prefix_tokens")
    if not encoder.has("patches") or not all(hasattr(module, part) for part in parts):
        raise NotApplicableError(
            f"{name}: these protocols are for vision transformers; for a ResNet use voc-seg, cityscapes-seg, voc-det "
            "or coco-det"
        )
    block, attention = module.blocks[0], module.blocks[0].attn
    act = type(getattr(block.mlp, "act", None)).__name__
    activation = act if act in ACTIVATIONS else None
    tensors = module.state_dict()
    gated = _is_gated(block.mlp)
    of_block = {name.removeprefix("blocks.0.") for name in tensors if name.startswith("blocks.0.")}
    lacking = {
        "positions that are added to the patches or rotary": not any("relative_position" in name for name in tensors)
        and (module.pos_embed is not None or _rotary(module) != "none")
        and _rotary(module) is not None,
        "an MLP of two layers with GELU, or one with a gate by SiLU": gated
        or (
            activation is not None and _named(of_block, "mlp.") == {*_weight_and_bias("fc1"), *_weight_and_bias("fc2")}
        ),
        "one layer for queries, keys and values, and one behind them": _named(of_block, "attn.")
        - {"qkv.bias", "q_bias", "v_bias"}
        == {"qkv.weight", *_weight_and_bias("proj")}
        and getattr(attention, "num_heads", 0) * getattr(attention, "head_dim", 0) == module.embed_dim,
        "layer norms": {*_weight_and_bias("norm1"), *_weight_and_bias("norm2")} <= of_block,
        "one class token at most": not hasattr(module, "dist_token"),
        "positions for any image size": bool(getattr(module, "dynamic_img_size", False)),
    }
    if engine == "mmsegmentation":
        lacking["an MLP that is a whole number of times as wide as the tokens"] = (
            gated or activation is None or block.mlp.fc1.out_features % module.embed_dim == 0
        )
    missing = [words for words, holds in lacking.items() if not holds]
    if missing:
        reason = ""
        if any("relative_position" in name for name in tensors):
            reason = (
                f"; the relative biases of BEiT are one number per head and pair of places, and {_RELATIVE[engine]}"
            )
        elif any(type(part).__name__.startswith("RmsNorm") for part in (block.norm1, getattr(module, "norm", None))):
            reason = "; norms by the root mean square, as AIMv2's, have no mean and no bias"
        raise NotApplicableError(f"{name} cannot be {engine}'s ViT, which needs {', '.join(missing)}{reason}")
    return VitShape(
        width=module.embed_dim,
        depth=len(module.blocks),
        heads=attention.num_heads,
        hidden=block.mlp.fc2.in_features,
        patch=int(encoder.card.patch_size or 0),
        norm_eps=block.norm1.eps,
        class_token=module.cls_token is not None,
        registers=module.reg_token.shape[1] if getattr(module, "reg_token", None) is not None else 0,
        layer_scale=bool({"ls1.gamma", "gamma_1"} & of_block),
        norm_before="norm_pre.weight" in tensors,
        patch_bias="patch_embed.proj.bias" in tensors,
        activation=activation or "GELU",
        gated=gated,
        positions=module.pos_embed is not None,
        rotary=_rotary(module) or "none",
        biases="all" if "attn.qkv.bias" in of_block else "not of keys" if "attn.q_bias" in of_block else "none",
    )


def _named(names: set[str], prefix: str) -> set[str]:
    return {name.removeprefix(prefix) for name in names if name.startswith(prefix)}


def _weight_and_bias(layer: str) -> tuple[str, str]:
    return f"{layer}.weight", f"{layer}.bias"


def _is_gated(mlp: nn.Module) -> bool:
    """Whether it is timm's gated MLP with biases, in one of its two forms, and computes what `Gate` does."""
    from timm.layers.mlp import GluMlp, SwiGLU

    if type(getattr(mlp, "act", None)) is not nn.SiLU:
        return False
    layers = {GluMlp: ("fc1", "fc2"), SwiGLU: ("fc1_g", "fc1_x", "fc2")}.get(type(mlp), ())
    names = {name for layer in layers for name in _weight_and_bias(layer)}
    return bool(layers) and set(mlp.state_dict()) == names and not getattr(mlp, "gate_last", False)


def _rotary(module: Any) -> Rotary | None:
    """How timm's network turns queries and keys; None where it differs from block to block."""
    rope = getattr(module, "rope", None)
    if rope is None:
        return "none"
    attention = module.blocks[0].attn
    if getattr(module, "rope_mixed", False) or rope.get_embed(shape=(2, 2)).shape != (4, 2 * attention.head_dim):
        return None
    return "halves" if getattr(attention, "rotate_half", False) else "pairs"


def rotary_positions(encoder: Encoder) -> nn.Module | None:
    """A copy of what computes the encoder's rotary positions; its `get_embed(shape=…)` gives the table of `rotated`."""
    rope = getattr(encoder.backbone, "rope", None)
    return None if rope is None else copy.deepcopy(rope)


def vit_tensors(encoder: Encoder, engine: VitEngine, grid: int, *, class_token: bool = True) -> dict[str, Tensor]:
    """The encoder's weights by the names of the engine's ViT, on the CPU. The final norm is not among them.

    Args:
        grid: patches per side that the positions are for.
        class_token: detectron2's ViT keeps it, where the encoder has one; mmsegmentation's always does.
    """
    module: Any = encoder.backbone
    own = {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}
    prefix, positions = _positions(module, grid)
    found = {name: own[name] for name in own if name.startswith(("patch_embed.proj.", "blocks.", "norm_pre."))}
    found = _as_two_layers(found)
    if engine == "detectron2":
        tokens = prefix if class_token or module.cls_token is None else prefix[:, 1:]
        found |= {"pos_embed": positions} if module.pos_embed is not None else {}
        if _rotary(module) != "none":
            found["rotary_table"] = module.rope.get_embed(shape=(grid, grid)).detach().cpu()
        return found | ({"patch_embed.tokens": tokens} if tokens.shape[1] else {})
    renamed = {_mmsegmentation_name(name): tensor for name, tensor in found.items()}
    blank = torch.zeros_like(positions[:, :1])
    token, registers = blank, prefix
    if module.cls_token is not None:
        token, registers = own["cls_token"], prefix[:, 1:]
        of_prefix = module.pos_embed is None or module.no_embed_class
        blank = prefix[:, :1] - token if of_prefix else own["pos_embed"][:, :1]
    if registers.shape[1]:
        renamed["patch_embed.registers"] = registers
    return {**renamed, "cls_token": token, "pos_embed": torch.cat([blank, positions], 1)}


def _as_two_layers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """LayerScale by one name, a gated MLP with one layer before its gate, and one bias of queries, keys and values."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        block, _, part = name.rpartition(".mlp.fc1_g.")
        if ".mlp.fc1_x." in name or name.endswith(".attn.v_bias"):
            continue  # joined to the other
        if block:
            found[f"{block}.mlp.fc1.{part}"] = torch.cat([tensor, tensors[f"{block}.mlp.fc1_x.{part}"]])
        elif name.endswith(".attn.q_bias"):
            values = tensors[name.replace(".q_bias", ".v_bias")]
            found[name.replace(".q_bias", ".qkv.bias")] = torch.cat([tensor, torch.zeros_like(tensor), values])
        else:
            found[re.sub(r"\.gamma_([12])$", r".ls\1.gamma", name)] = tensor
    return found


@torch.no_grad()
def _positions(module: Any, grid: int) -> tuple[Tensor, Tensor]:
    """(1, P, D) class token and registers with their positions, and (1, grid * grid, D) positions of the patches."""
    weight = module.patch_embed.proj.weight
    none = torch.zeros(1, grid, grid, module.embed_dim, device=weight.device, dtype=weight.dtype)
    found = module._pos_embed(none)
    tokens = (found[0] if isinstance(found, tuple) else found).cpu()  # rotary positions come beside the tokens
    return tokens[:, : module.num_prefix_tokens], tokens[:, module.num_prefix_tokens :]


def _mmsegmentation_name(name: str) -> str:
    """`blocks.1.attn.qkv.weight` becomes `layers.1.attn.attn.in_proj_weight`."""
    for timm, theirs in (
        ("patch_embed.proj.", "patch_embed.projection."),
        ("norm_pre.", "ln_pre."),
        ("blocks.", "layers."),
        (".norm", ".ln"),
        (".attn.qkv.", ".attn.attn.in_proj_"),
        (".attn.proj.", ".attn.attn.out_proj."),
        (".mlp.fc1.", ".ffn.layers.0.0."),
        (".mlp.fc2.", ".ffn.layers.1."),
        (".ls1.gamma", ".attn.proj_drop.weight"),
        (".ls2.gamma", ".ffn.gamma2.weight"),
    ):
        name = name.replace(timm, theirs)
    return name

"""A plain vision transformer for mmsegmentation's and detectron2's own ViT: its shape, and its tensors by their names.

Positions are interpolated by the encoder's own rule to the grid that the engine trains on, so that the engine, which
would interpolate otherwise, finds nothing to do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.encoders.encoder import BackboneWithHead, Encoder
from benchmarks.task import NotApplicableError

VitEngine = Literal["mmsegmentation", "detectron2"]


class QuickGelu(nn.Module):
    """x * sigmoid(1.702 x), of OpenAI's CLIP."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


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
        activation: a key of `ACTIVATIONS`.
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

    def quarters(self) -> tuple[int, ...]:
        """The last block of each quarter of the depth, from 0."""
        return tuple(self.depth * part // 4 - 1 for part in (1, 2, 3, 4))


def vit_shape(encoder: Encoder, engine: VitEngine) -> VitShape:
    """The shape of an encoder that the engine's own ViT can hold.

    Raises:
        NotApplicableError: it is not a ViT, or has parts that the engine's does not have.
    """
    name, module = encoder.card.name, _module(encoder)
    parts = ("blocks", "patch_embed", "pos_embed", "num_prefix_tokens")
    if not encoder.has("patches") or not all(hasattr(module, part) for part in parts):
        raise NotApplicableError(
            f"{name}: these protocols are for vision transformers; for a ResNet use voc-seg, cityscapes-seg, voc-det "
            "or coco-det"
        )
    block = module.blocks[0]
    activation = {"GELU": "GELU", "QuickGELU": "QuickGELU"}.get(type(getattr(block.mlp, "act", None)).__name__)
    tensors = module.state_dict()
    registers = module.reg_token.shape[1] if getattr(module, "reg_token", None) is not None else 0
    scaled = "blocks.0.ls1.gamma" in tensors
    lacking = {
        "positions that are added to the patches": module.pos_embed is not None
        and getattr(module, "rope", None) is None
        and not any(".relative_position" in tensor for tensor in tensors),
        "an MLP of two layers with GELU": activation is not None
        and {f"blocks.0.mlp.{part}" for part in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")}
        == {tensor for tensor in tensors if tensor.startswith("blocks.0.mlp.")},
        "one layer for queries, keys and values": {"blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.bias"} <= set(tensors)
        and not any(".attn.q_norm." in tensor for tensor in tensors),
        "one class token at most": not hasattr(module, "dist_token"),
        "positions for any image size": bool(getattr(module, "dynamic_img_size", False)),
    }
    if engine == "mmsegmentation":
        lacking["an MLP that is a whole number of times as wide as the tokens"] = (
            activation is None or block.mlp.fc1.out_features % module.embed_dim == 0
        )
    missing = [words for words, holds in lacking.items() if not holds]
    if missing:
        raise NotApplicableError(f"{name} cannot be {engine}'s ViT, which needs {', '.join(missing)}")
    return VitShape(
        width=module.embed_dim,
        depth=len(module.blocks),
        heads=block.attn.num_heads,
        hidden=block.mlp.fc1.out_features,
        patch=int(encoder.card.patch_size or 0),
        norm_eps=block.norm1.eps,
        class_token=module.cls_token is not None,
        registers=registers,
        layer_scale=scaled,
        norm_before="norm_pre.weight" in tensors,
        patch_bias="patch_embed.proj.bias" in tensors,
        activation=activation or "GELU",
    )


def vit_tensors(encoder: Encoder, engine: VitEngine, grid: int, *, class_token: bool = True) -> dict[str, Tensor]:
    """The encoder's weights by the names of the engine's ViT, on the CPU. The final norm is not among them.

    Args:
        grid: patches per side that the positions are for.
        class_token: detectron2's ViT keeps it, where the encoder has one; mmsegmentation's always does.
    """
    module = _module(encoder)
    own = {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}
    prefix, positions = _positions(module, grid)
    found = {name: own[name] for name in own if name.startswith(("patch_embed.proj.", "blocks.", "norm_pre."))}
    if engine == "detectron2":
        tokens = prefix if class_token or module.cls_token is None else prefix[:, 1:]
        return {**found, "pos_embed": positions} | ({"patch_embed.tokens": tokens} if tokens.shape[1] else {})
    renamed = {_mmsegmentation_name(name): tensor for name, tensor in found.items()}
    blank = torch.zeros_like(positions[:, :1])
    token, registers = blank, prefix
    if module.cls_token is not None:
        token, registers = own["cls_token"], prefix[:, 1:]
        blank = prefix[:, :1] - token if module.no_embed_class else own["pos_embed"][:, :1]
    if registers.shape[1]:
        renamed["patch_embed.registers"] = registers
    return {**renamed, "cls_token": token, "pos_embed": torch.cat([blank, positions], 1)}


def _module(encoder: Encoder) -> Any:
    return encoder.module.backbone if isinstance(encoder.module, BackboneWithHead) else encoder.module


@torch.no_grad()
def _positions(module: Any, grid: int) -> tuple[Tensor, Tensor]:
    """(1, P, D) class token and registers with their positions, and (1, grid * grid, D) positions of the patches."""
    weight = module.patch_embed.proj.weight
    none = torch.zeros(1, grid, grid, module.embed_dim, device=weight.device, dtype=weight.dtype)
    tokens = module._pos_embed(none).cpu()
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

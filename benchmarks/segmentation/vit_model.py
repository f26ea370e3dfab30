"""mmsegmentation's ViT with the encoder's weights, its heads, its optimiser, and one trial of them."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.encoders.vit_export import (
    ACTIVATIONS,
    Biases,
    Gate,
    Rotary,
    VitShape,
    rotary_positions,
    rotated,
    vit_shape,
    vit_tensors,
)
from benchmarks.segmentation.model import optimiser_wrapper, register
from benchmarks.segmentation.protocols import VitSegmentationParams, blocks_read
from benchmarks.segmentation.train import SegmentationTrial
from benchmarks.training.trials import quiet
from results.schema import EncoderCard

BACKBONE = "CardVitAsInMAE"


class CardAttention(nn.Module):
    """Attention of (L, N, D) tokens with the tensors of torch's, with rotary positions or without biases of keys.

    Attributes:
        table: of the patches' places (see `rotated`), set before each pass of a network with rotary positions.
    """

    def __init__(self, width: int, heads: int, rotary: Rotary, biases: Biases) -> None:
        super().__init__()
        self.heads, self.rotary, self.biases = heads, rotary, biases
        self.table: Tensor | None = None
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * width, width))
        self.in_proj_bias: nn.Parameter | None = None
        if biases != "none":
            self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, query: Tensor, **_: Any) -> tuple[Tensor, None]:
        bias: Tensor | None = self.in_proj_bias
        if bias is not None and self.biases == "not of keys":
            queries, _keys, values = bias.chunk(3)
            bias = torch.cat([queries, torch.zeros_like(queries), values])
        joined = nn.functional.linear(query.transpose(0, 1), self.in_proj_weight, bias)
        q, k, v = joined.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if self.table is not None:
            first = q.shape[2] - len(self.table)  # tokens before the patches are not turned
            q, k = (
                torch.cat([part[:, :, :first], rotated(part[:, :, first:], self.table, self.rotary)], 2)
                for part in (q, k)
            )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        projected: Tensor = self.out_proj(mixed)
        return projected.transpose(0, 1), None


@cache
def register_vit() -> None:
    """Add the backbone to mmsegmentation's registry: its own ViT, and what encoders have besides."""
    register()
    with quiet():
        from mmcv.cnn.bricks.scale import LayerScale
        from mmseg.models.backbones import VisionTransformer
        from mmseg.registry import MODELS

    class CardVitAsInMAE(VisionTransformer):
        """mmsegmentation's ViT with registers, LayerScale, gates, rotary positions and the encoder's activation.

        mmsegmentation's layer-wise decay knows a ViT by the word MAE in the name of its class.

        Args:
            gated: width of a gated MLP; 0 for one without a gate.
            positions, rotary, biases: as in `VitShape`.
        """

        def __init__(
            self, registers: int, layer_scale: bool, activation: str, frozen: bool, gated: int, positions: bool,
            rotary: Rotary, biases: Biases, **kwargs: Any,
        ) -> None:  # fmt: skip
            super().__init__(**kwargs)
            width, heads = self.pos_embed.shape[-1], kwargs["num_heads"]
            self.frozen, self.rotary = frozen, rotary
            self.rope: Any = None
            self.patch_embed.registers = None
            if registers:  # below the patch embedding, so that they have the rate of the first layer
                self.patch_embed.registers = nn.Parameter(torch.zeros(1, registers, width))
            for layer in self.layers:
                layer.ffn.layers[0][1] = ACTIVATIONS[activation]()
                if gated:
                    layer.ffn.layers[0][0], layer.ffn.layers[0][1] = nn.Linear(width, 2 * gated), Gate()
                    layer.ffn.layers[1] = nn.Linear(gated, width)
                if rotary != "none" or biases != "all":
                    layer.attn.attn = CardAttention(width, heads, rotary, biases)
                if layer_scale:
                    layer.attn.proj_drop, layer.ffn.gamma2 = LayerScale(width), LayerScale(width)
            self.requires_grad_(not frozen)
            if not self.with_cls_token:
                self.cls_token.requires_grad_(False)  # it is cut off before the first block
            if not positions:
                self.pos_embed.requires_grad_(False)  # they are zero

        def _pos_embeding(self, patched_img: Any, hw_shape: Any, pos_embed: Any) -> Any:
            tokens = super()._pos_embeding(patched_img, hw_shape, pos_embed)
            registers = self.patch_embed.registers
            if registers is None:
                return tokens
            return torch.cat([tokens[:, :1], registers.expand(len(tokens), -1, -1), tokens[:, 1:]], 1)

        def forward(self, inputs: Any) -> tuple[Any, ...]:
            if self.patch_embed.registers is None and self.rotary == "none":
                maps: tuple[Any, ...] = super().forward(inputs)
                return maps
            return self._with_other_parts(inputs)

        def _with_other_parts(self, inputs: Any) -> tuple[Any, ...]:
            x, (height, width) = self.patch_embed(inputs)
            table = None if self.rope is None else self.rope.get_embed(shape=(height, width))
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
            x = self._pos_embeding(x, (height, width), self.pos_embed)
            x = x if self.with_cls_token else x[:, 1:]
            x = self.pre_ln(x) if self.pre_norm else x
            before, maps = x.shape[1] - height * width, []
            for number, layer in enumerate(self.layers):
                if table is not None:
                    layer.attn.attn.table = table
                x = layer(x)
                if number in self.out_indices:
                    maps.append(x[:, before:].mT.unflatten(2, (height, width)).contiguous())
            return tuple(maps)

        def train(self, mode: bool = True) -> Any:
            return super().train(mode and not self.frozen)

    MODELS.register_module(module=CardVitAsInMAE)


def model_config(
    params: VitSegmentationParams, card: EncoderCard, shape: VitShape, *, synchronised: bool
) -> dict[str, Any]:
    """The model in the form of mmsegmentation's registry.

    Args:
        synchronised: batch norms share their statistics over ranks; one process has ordinary ones.
    """
    norm = {"type": "SyncBN" if synchronised else "BN", "requires_grad": True}
    scale = 255 / card.value_range
    mean, std = ([round(value * scale, 6) for value in values] for values in (card.mean, card.std))
    blocks = blocks_read(params, card.name, shape.depth)
    shared: dict[str, Any] = {
        "num_classes": params.classes,
        "norm_cfg": norm,
        "align_corners": False,
        "dropout_ratio": params.dropout,
    }
    loss = {"type": "CrossEntropyLoss", "use_sigmoid": False}
    model: dict[str, Any] = {
        "type": "EncoderDecoder",
        "data_preprocessor": {
            "type": "SegDataPreProcessor", "mean": mean, "std": std, "bgr_to_rgb": card.channels == "RGB",
            "pad_val": 0, "seg_pad_val": 255, "size": [params.crop] * 2,
        },
        "pretrained": None,
        "backbone": {
            "type": BACKBONE,
            "img_size": (grid_of(params, shape) * shape.patch,) * 2,
            "patch_size": shape.patch,
            "patch_bias": shape.patch_bias,
            "embed_dims": shape.width,
            "num_layers": shape.depth,
            "num_heads": shape.heads,
            "mlp_ratio": 1 if shape.gated else shape.hidden // shape.width,
            "out_indices": list(blocks),
            "with_cls_token": shape.class_token,
            "pre_norm": shape.norm_before,
            "norm_cfg": {"type": "LN", "eps": shape.norm_eps},
            "act_cfg": {"type": "GELU"},
            "drop_path_rate": params.drop_path,
            "registers": shape.registers,
            "layer_scale": shape.layer_scale,
            "activation": shape.activation,
            "frozen": params.frozen,
            "gated": shape.hidden if shape.gated else 0,
            "positions": shape.positions,
            "rotary": shape.rotary,
            "biases": shape.biases,
        },
        "train_cfg": {},
        "test_cfg": {"mode": "slide", "crop_size": [params.crop] * 2, "stride": [params.window_stride] * 2},
    }  # fmt: skip
    if params.head == "linear":
        model["decode_head"] = shared | {
            "type": "FCNHead", "in_channels": [shape.width] * 4, "in_index": [0, 1, 2, 3],
            "input_transform": "resize_concat", "channels": 4 * shape.width, "num_convs": 0, "concat_input": False,
            "loss_decode": loss | {"loss_weight": 1.0},
        }  # fmt: skip
    else:
        model["neck"] = {
            "type": "Feature2Pyramid", "embed_dim": shape.width, "rescales": [4, 2, 1, 0.5], "norm_cfg": norm,
        }  # fmt: skip
        model["decode_head"] = shared | {
            "type": "UPerHead", "in_channels": [shape.width] * 4, "in_index": [0, 1, 2, 3],
            "pool_scales": (1, 2, 3, 6), "channels": params.head_channels or shape.width,
            "loss_decode": loss | {"loss_weight": 1.0},
        }  # fmt: skip
    if params.auxiliary_channels:
        model["auxiliary_head"] = shared | {
            "type": "FCNHead", "in_channels": shape.width, "in_index": 2, "channels": params.auxiliary_channels,
            "num_convs": 1, "concat_input": False, "loss_decode": loss | {"loss_weight": params.auxiliary_weight},
        }  # fmt: skip
    return model


def optimisation(params: VitSegmentationParams, depth: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The optimiser's wrapper and the learning-rate schedule."""
    optimiser = {
        "type": "AdamW", "lr": params.lr, "betas": (0.9, params.beta2), "weight_decay": params.weight_decay,
    }  # fmt: skip
    wrapper = optimiser_wrapper(optimiser, params.precision)
    if params.layer_decay is not None:
        wrapper["constructor"] = "LearningRateDecayOptimizerConstructor"
        wrapper["paramwise_cfg"] = {
            "num_layers": depth, "decay_rate": params.layer_decay, "decay_type": "layer_wise",
        }  # fmt: skip
    schedule: list[dict[str, Any]] = [
        {"type": "PolyLR", "eta_min": 0.0, "power": params.power, "begin": params.warmup_iterations,
         "end": params.iterations, "by_epoch": False}
    ]  # fmt: skip
    if params.warmup_iterations:
        schedule.insert(0, {"type": "LinearLR", "start_factor": params.warmup_factor, "by_epoch": False, "begin": 0,
                            "end": params.warmup_iterations})  # fmt: skip
    return wrapper, schedule


def grid_of(params: VitSegmentationParams, shape: VitShape) -> int:
    """Patches per side of a crop; mmsegmentation pads it to whole patches at the right and at the bottom."""
    return -(-params.crop // shape.patch)


class VitSegmentationTrial(SegmentationTrial):
    """See `SegmentationTrial`.

    Raises:
        NotApplicableError: mmsegmentation's ViT cannot hold the encoder.
    """

    params: VitSegmentationParams

    @property
    def shape(self) -> VitShape:
        """Of the encoder."""
        return vit_shape(self.encoder, "mmsegmentation")

    def model_config(self, *, synchronised: bool) -> dict[str, Any]:
        register_vit()
        return model_config(self.params, self.encoder.card, self.shape, synchronised=synchronised)

    def optimisation(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        return optimisation(self.params, self.shape.depth)

    def tensors(self) -> dict[str, torch.Tensor]:
        return vit_tensors(self.encoder, "mmsegmentation", grid_of(self.params, self.shape))

    def transfer(self, backbone: nn.Module) -> None:
        backbone.rope = rotary_positions(self.encoder)  # type: ignore[assignment]
        super().transfer(backbone)

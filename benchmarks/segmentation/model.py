"""What mmsegmentation builds of a protocol and an encoder: networks, views, optimisers and schedules.

The FCN on a ResNet is mmsegmentation's configuration, changed; the ViT with UPerNet or a linear head is written here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.encoders.export import ResNetShape, openmmlab_settings, resnet_shape
from benchmarks.encoders.vit_export import ACTIVATIONS, Biases, Gate, Rotary, VitShape, rotated
from benchmarks.task import InputError, NotApplicableError
from benchmarks.training.trials import quiet, require_packages
from results.schema import EncoderCard

if TYPE_CHECKING:
    from benchmarks.segmentation.task import SegmentationParams, VitSegmentationParams


def require_library() -> None:
    """Raises InputError where mmsegmentation is not installed, or does not work with the installed torch."""
    require_packages("segmentation", "mmengine", "mmcv", "mmseg")
    try:
        register()
    except (ImportError, AssertionError, AttributeError) as error:  # versions that do not go together
        raise InputError(
            f"mmsegmentation is installed but cannot be imported ({error}); run `make setup-transfer`"
        ) from error


@cache
def register() -> None:
    """Import mmsegmentation and add this project's backbones and transform to its registries."""
    with quiet():
        from mmcv.transforms import BaseTransform, Resize
        from mmengine.logging import MMLogger
        from mmengine.registry import init_default_scope
        from mmseg.models import ResNet, ResNeXt
        from mmseg.registry import MODELS, TRANSFORMS
        from mmseg.utils import register_all_modules

        register_all_modules(init_default_scope=False)
        init_default_scope("mmseg")
        MMLogger.get_instance("mmengine", log_level="ERROR")  # its own level lists every tensor's initialisation

    class CardStem:
        """Replaces the one stem that mmsegmentation's networks know."""

        def __init__(
            self, stem_kernel: int, stem_stride: int, stem_padding: int | None, max_pool: bool, **kwargs: Any
        ) -> None:
            super().__init__(**kwargs)
            padding = stem_kernel // 2 if stem_padding is None else stem_padding
            channels = self.stem_channels  # type: ignore[attr-defined]  # of mmsegmentation's ResNet
            self.conv1 = nn.Conv2d(3, channels, stem_kernel, stem_stride, padding, bias=False)
            if not max_pool:
                self.maxpool = nn.Identity()

    class CardResNet(CardStem, ResNet):
        pass

    class CardResNeXt(CardStem, ResNeXt):
        pass

    class RandomRelativeResize(BaseTransform):
        """Multiplies the sides of image and mask by one random factor; mmsegmentation's resizes towards one size."""

        def __init__(self, ratio_range: Sequence[float]) -> None:
            self.ratio_range = ratio_range

        def transform(self, results: dict[str, Any]) -> dict[str, Any]:
            low, high = self.ratio_range
            factor = low + (high - low) * np.random.random_sample()
            resized: dict[str, Any] = Resize(scale_factor=factor, keep_ratio=True).transform(results)
            return resized

    for kind in (CardResNet, CardResNeXt):
        MODELS.register_module(module=kind)
    TRANSFORMS.register_module(module=RandomRelativeResize)


def use_device(kind: str) -> None:
    """Make mmengine train on this kind of device; by itself it takes an accelerator where it finds one."""
    import mmengine.device.utils as found

    found.DEVICE = kind


def resnet_settings(card: EncoderCard) -> tuple[dict[str, Any], ResNetShape]:
    """What mmsegmentation must know of the encoder's ResNet, and its shape.

    Raises:
        NotApplicableError: the encoder is not a ResNet, or is a wide one.
    """
    architecture = card.architecture
    try:
        facts, network = openmmlab_settings(card), resnet_shape(architecture)
    except InputError as error:
        raise NotApplicableError(f"{card.name}: segmentation protocols are for ResNets: {error}") from error
    if network.groups == 1 and network.group_width != architecture.width:
        raise NotApplicableError(
            f"{card.name}: mmsegmentation's ResNet cannot have the wide 3x3 convolutions of {architecture.name}; use "
            "another ResNet"
        )
    return facts, network


def model_config(params: SegmentationParams, card: EncoderCard, *, synchronised: bool) -> dict[str, Any]:
    """The model in the form of mmsegmentation's registry.

    Args:
        synchronised: batch norms share their statistics over ranks; one process has ordinary ones.

    Raises:
        NotApplicableError: the encoder is not a ResNet, or is a wide one.
    """
    architecture = card.architecture
    facts, network = resnet_settings(card)
    import mmseg
    from mmengine.config import Config

    file = Path(mmseg.__file__).parent / ".mim" / "configs" / params.base
    model: dict[str, Any] = Config.fromfile(file).to_dict()["model"]
    norm = {"type": "SyncBN" if synchronised else "BN", "requires_grad": True}
    model["pretrained"] = None
    model["backbone"] |= facts["backbone"] | {
        "type": f"Card{facts['backbone']['type']}",
        "stem_kernel": architecture.stem_kernel,
        "stem_stride": architecture.stem_stride,
        "stem_padding": architecture.stem_padding,
        "max_pool": architecture.max_pool,
        "strides": list(params.strides),
        "dilations": list(params.dilations),
        "contract_dilation": params.contract_dilation,
        "norm_cfg": norm | facts["norm_cfg"],
    }
    channels = [architecture.width * 2**stage * (4 if network.bottleneck else 1) for stage in range(4)]
    shared = {"num_classes": params.classes, "norm_cfg": norm, "align_corners": params.align_corners,
              "dropout_ratio": params.dropout}  # fmt: skip
    model["decode_head"] |= shared | {
        "in_channels": channels[3],
        "channels": params.head_channels,
        "num_convs": params.head_convs,
        "dilation": params.head_dilation,
        "concat_input": params.head_concat,
    }
    if params.auxiliary_channels:
        model["auxiliary_head"] |= shared | {"in_channels": channels[2], "channels": params.auxiliary_channels}
        model["auxiliary_head"]["loss_decode"]["loss_weight"] = params.auxiliary_weight
    else:
        del model["auxiliary_head"]
    windows = {"crop_size": [params.crop] * 2, "stride": [params.window_stride] * 2}
    model["test_cfg"] = {"mode": "slide", **windows} if params.inference == "windows" else {"mode": "whole"}
    model["data_preprocessor"] |= facts["data_preprocessor"] | {"size": [params.crop] * 2}
    return model


def pipelines(params: SegmentationParams | VitSegmentationParams) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The transforms of training and of testing. The ground truth of a test image keeps its own size."""
    load: list[dict[str, Any]] = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}]
    resize: dict[str, Any]
    if params.scale is None:
        resize = {"type": "RandomRelativeResize", "ratio_range": params.ratio}
    else:
        resize = {"type": "RandomResize", "scale": params.scale, "ratio_range": params.ratio, "keep_ratio": True}
    crop = {"type": "RandomCrop", "crop_size": (params.crop,) * 2, "cat_max_ratio": params.most_of_one_class}
    train = [*load, resize, crop, {"type": "RandomFlip", "prob": params.flip_p}]
    if params.photometric:
        train.append({"type": "PhotoMetricDistortion"})
    test = [load[0]]
    if params.scale is not None:
        test.append({"type": "Resize", "scale": params.scale, "keep_ratio": True})
    pack = {"type": "PackSegInputs"}
    return [*train, pack], [*test, load[1], pack]


def optimisation(params: SegmentationParams) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The optimiser's wrapper and the learning-rate schedule."""
    optimiser = {"type": "SGD", "lr": params.lr, "momentum": params.momentum, "weight_decay": params.weight_decay}
    if params.schedule == "poly":
        schedule = {"type": "PolyLR", "eta_min": params.lr_min, "power": params.power, "begin": 0,
                    "end": params.iterations, "by_epoch": False}  # fmt: skip
    else:
        schedule = {"type": "MultiStepLR", "milestones": list(params.drops), "gamma": params.gamma,
                    "by_epoch": False}  # fmt: skip
    return optimiser_wrapper(optimiser, params.precision), [schedule]


def optimiser_wrapper(optimiser: dict[str, Any], precision: str) -> dict[str, Any]:
    """mmengine's wrapper of an optimiser, under autocast where the precision is not float32."""
    wrapper: dict[str, Any] = {"type": "OptimWrapper", "optimizer": optimiser, "clip_grad": None}
    if precision != "fp32":
        wrapper |= {"type": "AmpOptimWrapper", "dtype": {"bf16": "bfloat16", "fp16": "float16"}[precision]}
    if precision == "bf16":  # it has float32's range, and a scaler reads a value in every step
        wrapper["loss_scale"] = {"enabled": False}
    return wrapper


VIT_BACKBONE = "CardVitAsInMAE"


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


def vit_model_config(
    params: VitSegmentationParams, card: EncoderCard, shape: VitShape, *, synchronised: bool
) -> dict[str, Any]:
    """The model in the form of mmsegmentation's registry.

    Args:
        synchronised: batch norms share their statistics over ranks; one process has ordinary ones.
    """
    norm = {"type": "SyncBN" if synchronised else "BN", "requires_grad": True}
    scale = 255 / card.value_range
    mean, std = ([round(value * scale, 6) for value in values] for values in (card.mean, card.std))
    blocks = params.blocks_of(card.name, shape.depth)
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
            "type": VIT_BACKBONE,
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


def vit_optimisation(params: VitSegmentationParams, depth: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
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

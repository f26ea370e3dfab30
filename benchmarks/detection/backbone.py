"""detectron2's ResNets with the stem, width and blocks that an encoder's card names, and the heads that hold res5."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.encoders.encoder import Encoder
from benchmarks.encoders.export.detectron2 import detectron2_name
from benchmarks.encoders.export.resnet_facts import backbone_tensors

HEAD = "Res5ROIHeadsExtraNorm"
BACKBONE, FPN, RETINANET_FPN = "build_card_backbone", "build_card_fpn_backbone", "build_card_retinanet_fpn_backbone"


def defaults(cfg: Any) -> None:
    """Adds what detectron2's configuration has no key for."""
    from detectron2.config import CfgNode

    cfg.ENCODER = CfgNode(
        {
            "BOTTLENECK": True, "STEM_KERNEL": 7, "STEM_STRIDE": 2, "STEM_PADDING": 3, "MAX_POOL": True,
            "BN_EPS": 1e-5, "EXTRA_NORM": False, "REDUCE_CHANNELS": 0, "PAD_DIVISOR": 0, "RPN_LOW_QUALITY": 0.0,
        }
    )  # fmt: skip


def _stage(cfg: Any, number: int) -> list[Any]:
    """The blocks of res`number`."""
    from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock, ResNet

    nets = cfg.MODEL.RESNETS
    depths = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
    blocks = depths[nets.DEPTH][number - 2]
    dilation = nets.RES5_DILATION if number == 5 else 1
    first = 1 if number == 2 or dilation == 2 else 2
    out = nets.RES2_OUT_CHANNELS * 2 ** (number - 2)
    how: dict[str, Any] = {"norm": nets.NORM}
    if cfg.ENCODER.BOTTLENECK:
        how |= {
            "bottleneck_channels": nets.NUM_GROUPS * nets.WIDTH_PER_GROUP * 2 ** (number - 2),
            "num_groups": nets.NUM_GROUPS,
            "stride_in_1x1": nets.STRIDE_IN_1X1,
            "dilation": dilation,
        }
    stage: list[Any] = ResNet.make_stage(
        BottleneckBlock if cfg.ENCODER.BOTTLENECK else BasicBlock,
        blocks,
        stride_per_block=[first] + [1] * (blocks - 1),
        in_channels=nets.STEM_OUT_CHANNELS if number == 2 else out // 2,
        out_channels=out,
        **how,
    )
    return stage


def _set_eps(module: nn.Module, eps: float) -> None:
    norm: Any
    for norm in module.modules():
        if hasattr(norm, "running_mean") and hasattr(norm, "eps"):
            norm.eps = eps


@cache
def register() -> None:
    """Makes the backbones and the heads known to detectron2; done once."""
    from detectron2.layers import CNNBlockBase, Conv2d, get_norm
    from detectron2.modeling import BACKBONE_REGISTRY, ROI_HEADS_REGISTRY
    from detectron2.modeling.backbone import fpn
    from detectron2.modeling.backbone.resnet import ResNet
    from detectron2.modeling.roi_heads import Res5ROIHeads

    class CardStem(CNNBlockBase):
        def __init__(self, cfg: Any, in_channels: int) -> None:
            encoder, channels = cfg.ENCODER, cfg.MODEL.RESNETS.STEM_OUT_CHANNELS
            super().__init__(in_channels, channels, encoder.STEM_STRIDE * (2 if encoder.MAX_POOL else 1))
            self.conv1 = Conv2d(
                in_channels, channels, encoder.STEM_KERNEL, encoder.STEM_STRIDE, encoder.STEM_PADDING, bias=False,
                norm=get_norm(cfg.MODEL.RESNETS.NORM, channels),
            )  # fmt: skip
            self.max_pool = encoder.MAX_POOL

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            x = F.relu_(self.conv1(images))
            return F.max_pool2d(x, 3, 2, 1) if self.max_pool else x

    class CardResNet(ResNet):
        def __init__(self, cfg: Any, in_channels: int) -> None:
            stages = [_stage(cfg, number) for number in (2, 3, 4, 5)]
            super().__init__(
                CardStem(cfg, in_channels), stages, out_features=cfg.MODEL.RESNETS.OUT_FEATURES,
                freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
            )  # fmt: skip
            self._divisor = cfg.ENCODER.PAD_DIVISOR
            _set_eps(self, cfg.ENCODER.BN_EPS)
            channels = cfg.ENCODER.REDUCE_CHANNELS
            if channels:  # R50-dilated-C5
                self.reduce = Conv2d(
                    self._out_feature_channels["res5"], channels, 3, padding=1, bias=False,
                    norm=get_norm(cfg.MODEL.RESNETS.NORM, channels), activation=F.relu,
                )  # fmt: skip
                self._out_feature_channels["res5"] = channels

        @property
        def size_divisibility(self) -> int:
            return self._divisor

        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            maps: dict[str, torch.Tensor] = super().forward(images)
            return {**maps, "res5": self.reduce(maps["res5"])} if hasattr(self, "reduce") else maps

    def resnet(cfg: Any, input_shape: Any) -> Any:
        return CardResNet(cfg, input_shape.channels)

    def pyramid(cfg: Any, input_shape: Any) -> Any:
        bottom_up, top = resnet(cfg, input_shape), fpn.LastLevelMaxPool()
        # Its own name for the last level supposes a stem of stride 4.
        top.in_feature = f"p{int(math.log2(bottom_up.output_shape()[cfg.MODEL.FPN.IN_FEATURES[-1]].stride))}"
        return fpn.FPN(
            bottom_up, cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.FPN.OUT_CHANNELS, norm=cfg.MODEL.FPN.NORM, top_block=top,
            fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
        )  # fmt: skip

    def retinanet_pyramid(cfg: Any, input_shape: Any) -> Any:
        bottom_up, channels = resnet(cfg, input_shape), cfg.MODEL.FPN.OUT_CHANNELS
        return fpn.FPN(
            bottom_up, cfg.MODEL.FPN.IN_FEATURES, channels, norm=cfg.MODEL.FPN.NORM,
            top_block=fpn.LastLevelP6P7(bottom_up.output_shape()["res5"].channels, channels),
            fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
        )  # fmt: skip

    class Res5ROIHeadsExtraNorm(Res5ROIHeads):
        """Its res5 is the encoder's own kind of block; detectron2's builds bottlenecks for every depth."""

        @classmethod
        def _build_res5_block(cls, cfg: Any) -> tuple[nn.Sequential, int]:
            blocks = nn.Sequential(*_stage(cfg, 5))
            channels = blocks[-1].out_channels
            _set_eps(blocks, cfg.ENCODER.BN_EPS)
            if cfg.ENCODER.EXTRA_NORM:
                blocks.add_module("norm", get_norm(cfg.MODEL.RESNETS.NORM, channels))
            return blocks, channels  # type: ignore[return-value]

    for name, builder in ((BACKBONE, resnet), (FPN, pyramid), (RETINANET_FPN, retinanet_pyramid)):
        builder.__name__ = name
        BACKBONE_REGISTRY.register(builder)
    ROI_HEADS_REGISTRY.register(Res5ROIHeadsExtraNorm)


def check(encoder: Encoder, model: nn.Module) -> None:
    """Compares every backbone tensor of a built detector with the encoder's, res5 of the box head among them.

    Raises:
        RuntimeError: one differs, is missing or has no origin, named. That is a fault of this project or of detectron2.
    """
    weights = {detectron2_name(name): t for name, t in backbone_tensors(encoder, "detectron2").items()}
    loaded = {}
    for name, tensor in model.state_dict().items():
        for prefix in ("backbone.bottom_up.", "backbone.", "roi_heads."):
            own = name.removeprefix(prefix)
            if own != name and own.partition(".")[0] in ("stem", "res2", "res3", "res4", "res5"):
                loaded[own] = tensor
                break
    new = {name for name in loaded if name.startswith("res5.norm.")}  # the extra norm
    # A frozen norm counts no batches.
    unused = {name for name in weights if name.endswith("num_batches_tracked") and name not in loaded}
    differing = sorted((set(loaded) - new) ^ (set(weights) - unused)) or [
        name for name in sorted(set(loaded) - new) if not torch.equal(loaded[name].cpu(), weights[name])
    ]
    if differing:
        raise RuntimeError(
            f"{encoder.card.name}: {len(differing)} tensors of the detector's backbone ({', '.join(differing[:3])}) "
            "are not the checkpoint's"
        )

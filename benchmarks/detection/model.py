"""The detectors: detectron2's configurations changed by a protocol and an encoder's card, and the networks they build.

For a ResNet, the backbones and the res5 box head registered here have the stem, width and blocks that the card names.
For a ViT, ViTDet's backbone has the parts that its encoder has besides detectron2's.
"""

from __future__ import annotations

import math
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.detection import densepose
from benchmarks.detection.protocols import DetectionParams, VitDetectionParams
from benchmarks.encoders.encoder import Encoder
from benchmarks.encoders.export import ResNetShape, backbone_tensors, detectron2_name, detectron2_settings, resnet_shape
from benchmarks.encoders.vit_export import (
    ACTIVATIONS,
    Biases,
    Gate,
    KeysWithoutBias,
    Rotary,
    VitShape,
    rotated,
)
from benchmarks.task import InputError, NotApplicableError
from benchmarks.training.trials import require_same_tensors
from results.schema import EncoderCard

HEAD = "Res5ROIHeadsExtraNorm"
BACKBONES = {  # detectron2's name -> that of the same network with the encoder's stem, width and blocks
    "build_resnet_backbone": "build_card_backbone",
    "build_resnet_fpn_backbone": "build_card_fpn_backbone",
    "build_retinanet_resnet_fpn_backbone": "build_card_retinanet_fpn_backbone",
}
STRIDE = 16  # pixels of the detector's image from one patch to the next, for every encoder
RELATIVE = (".rel_pos_h", ".rel_pos_w")  # tensors of the detector's ViT that the encoder does not have


def resnet_settings(card: EncoderCard) -> tuple[dict[str, Any], ResNetShape]:
    """What detectron2 must know of the encoder's ResNet, and its shape.

    Raises:
        NotApplicableError: the encoder is not a ResNet, or is one that detectron2 cannot build.
    """
    try:
        return detectron2_settings(card), resnet_shape(card.architecture)
    except InputError as error:
        raise NotApplicableError(f"{card.name}: detection protocols are for ResNets: {error}") from error


def configuration(params: DetectionParams, card: EncoderCard, classes: int, *, ranks: int = 1, gpu: bool = True) -> Any:
    """The resolved configuration (a CfgNode).

    Args:
        classes: number of them in the data set.
        ranks: number of processes. One process has ordinary batch norms in place of synchronised ones.
        gpu: whether it trains on GPUs. Without them, detectron2's synchronised norm takes the place of torch's.

    Raises:
        InputError: detectron2 does not have a key of `params.config`.
        NotApplicableError: the encoder is not a ResNet.
    """
    architecture = card.architecture
    facts, network = resnet_settings(card)
    from detectron2 import model_zoo

    cfg = model_zoo.get_config(params.base)
    cfg.defrost()
    add_defaults(cfg)
    if params.task == "densepose":
        densepose.defaults(cfg)
    solver = params.solver()
    padding = architecture.stem_kernel // 2 if architecture.stem_padding is None else architecture.stem_padding
    changes: dict[str, Any] = {
        **facts,
        "MODEL.WEIGHTS": "",
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.BACKBONE.NAME": BACKBONES[cfg.MODEL.BACKBONE.NAME],
        "MODEL.RESNETS.NORM": _norm(params.norm, ranks, gpu),
        "MODEL.FPN.NORM": _norm(params.fpn_norm, ranks, gpu),
        "MODEL.ROI_BOX_HEAD.NORM": _norm(params.box_norm, ranks, gpu),
        "MODEL.ROI_MASK_HEAD.NORM": _norm(params.mask_norm, ranks, gpu),
        "MODEL.MASK_ON": params.masks,
        "MODEL.KEYPOINT_ON": params.keypoints,
        "MODEL.ROI_HEADS.NUM_CLASSES": classes,
        "MODEL.RETINANET.NUM_CLASSES": classes,
        "INPUT.MIN_SIZE_TRAIN": tuple(params.min_sizes),
        "INPUT.MAX_SIZE_TRAIN": params.max_size,
        "INPUT.MIN_SIZE_TEST": params.test_min_size,
        "INPUT.MAX_SIZE_TEST": params.test_max_size,
        "SOLVER.IMS_PER_BATCH": solver.batch_size,
        "SOLVER.BASE_LR": solver.lr,
        "SOLVER.MAX_ITER": solver.iterations,
        "SOLVER.STEPS": solver.steps,
        "SOLVER.GAMMA": params.gamma,
        "SOLVER.MOMENTUM": params.momentum,
        "SOLVER.WEIGHT_DECAY": params.weight_decay,
        "SOLVER.WEIGHT_DECAY_NORM": params.norm_weight_decay,
        "SOLVER.WARMUP_ITERS": solver.warmup_iterations,
        "SOLVER.WARMUP_FACTOR": params.warmup_factor,
        "SOLVER.CHECKPOINT_PERIOD": params.checkpoint_every,
        "SOLVER.AMP.ENABLED": params.precision == "fp16",
        "TEST.PRECISE_BN.ENABLED": params.precise_bn > 0,
        "TEST.PRECISE_BN.NUM_ITER": params.precise_bn or cfg.TEST.PRECISE_BN.NUM_ITER,
        "TEST.EVAL_PERIOD": 0,
        "ENCODER.BOTTLENECK": network.bottleneck,
        "ENCODER.STEM_KERNEL": architecture.stem_kernel,
        "ENCODER.STEM_STRIDE": architecture.stem_stride,
        "ENCODER.STEM_PADDING": padding,
        "ENCODER.MAX_POOL": architecture.max_pool,
        "ENCODER.BN_EPS": architecture.bn_eps,
        "ENCODER.EXTRA_NORM": params.extra_norm,
        "ENCODER.REDUCE_CHANNELS": params.reduce_channels,
        "ENCODER.PAD_DIVISOR": params.pad_divisor,
        "ENCODER.RPN_LOW_QUALITY": params.rpn_low_quality,
    }
    if cfg.MODEL.ROI_HEADS.NAME == "Res5ROIHeads" and cfg.MODEL.META_ARCHITECTURE != "RetinaNet":
        changes["MODEL.ROI_HEADS.NAME"] = HEAD
    for key, value in {**changes, **params.config}.items():
        try:
            cfg.merge_from_list([key, value])
        except (KeyError, AssertionError, ValueError) as error:
            raise InputError(f"detectron2's configuration cannot have {key}={value!r}: {error}") from error
    _name_levels(cfg)
    cfg.freeze()
    return cfg


def _name_levels(cfg: Any) -> None:
    """Rename a pyramid's levels after a stem of stride 1 or 2; a name says the stride, as p2 for stride 4."""
    stride = cfg.ENCODER.STEM_STRIDE * (2 if cfg.ENCODER.MAX_POOL else 1)
    shift = int(math.log2(stride)) - 2
    for part in (cfg.MODEL.RPN, cfg.MODEL.ROI_HEADS, cfg.MODEL.RETINANET):
        part.IN_FEATURES = [f"p{int(n[1:]) + shift}" if n.startswith("p") else n for n in part.IN_FEATURES]
    if densepose.is_on(cfg):
        cfg.MODEL.ROI_DENSEPOSE_HEAD.DECODER_COMMON_STRIDE = stride


def _norm(name: str, ranks: int, gpu: bool) -> str:
    if "SyncBN" not in name:
        return name
    return "BN" if ranks == 1 else name if gpu else "naiveSyncBN"


def build(cfg: Any) -> nn.Module:
    """The detector with random weights, the backbone included."""
    from detectron2.modeling import build_model

    register()
    model: nn.Module = build_model(cfg)
    if cfg.ENCODER.RPN_LOW_QUALITY:
        _raise_low_quality(model, cfg.ENCODER.RPN_LOW_QUALITY)
    return model


def _raise_low_quality(model: Any, least: float) -> None:
    """Make an object's best anchor positive only from the overlap `least` on; detectron2 does so at any overlap."""
    matcher = model.proposal_generator.anchor_matcher
    every = matcher.set_low_quality_matches_

    def only_good(labels: torch.Tensor, overlaps: torch.Tensor) -> None:
        # No overlap is the best of a row of NaNs; to leave the row out, the host would wait for a GPU.
        every(labels, overlaps.masked_fill(overlaps.amax(dim=1, keepdim=True) < least, math.nan))

    matcher.set_low_quality_matches_ = only_good


def add_defaults(cfg: Any) -> None:
    """Add keys for what detectron2's configuration cannot express."""
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
    """Add the backbones and the box head to detectron2's registries, once."""
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
        # detectron2 names the last level for a stem of stride 4.
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
        """Builds res5 from the encoder's kind of block; detectron2's builds bottlenecks for every depth."""

        @classmethod
        def _build_res5_block(cls, cfg: Any) -> tuple[nn.Sequential, int]:
            blocks = nn.Sequential(*_stage(cfg, 5))
            channels = blocks[-1].out_channels
            _set_eps(blocks, cfg.ENCODER.BN_EPS)
            if cfg.ENCODER.EXTRA_NORM:
                blocks.add_module("norm", get_norm(cfg.MODEL.RESNETS.NORM, channels))
            return blocks, channels  # type: ignore[return-value]

    for name, builder in zip(BACKBONES.values(), (resnet, pyramid, retinanet_pyramid), strict=True):
        builder.__name__ = name
        BACKBONE_REGISTRY.register(builder)
    ROI_HEADS_REGISTRY.register(Res5ROIHeadsExtraNorm)


def check_backbone(encoder: Encoder, model: nn.Module) -> None:
    """Compare every backbone tensor of a built detector with the encoder's, including res5 in the box head.

    Raises:
        RuntimeError: see `require_same_tensors`.
    """
    weights = {detectron2_name(name): tensor for name, tensor in backbone_tensors(encoder, "detectron2").items()}
    loaded = {}
    for name, tensor in model.state_dict().items():
        for prefix in ("backbone.bottom_up.", "backbone.", "roi_heads."):
            own = name.removeprefix(prefix)
            if own != name and own.partition(".")[0] in ("stem", "res2", "res3", "res4", "res5"):
                if not own.startswith("res5.norm."):  # the extra norm is not pretrained
                    loaded[own] = tensor
                break
    # A frozen norm counts no batches.
    unused = {name for name in weights if name.endswith("num_batches_tracked") and name not in loaded}
    require_same_tensors(encoder.card.name, loaded, {n: t for n, t in weights.items() if n not in unused})


def vit_configuration(params: VitDetectionParams, card: EncoderCard, shape: VitShape, classes: int) -> Any:
    """detectron2's own lazy configuration of ViTDet, changed by the protocol and the encoder's card."""
    from detectron2 import model_zoo

    model: Any = model_zoo.get_config("common/models/mask_rcnn_vitdet.py").model
    scale = 255 / card.value_range
    model.pixel_mean, model.pixel_std = ([round(v * scale, 6) for v in values] for values in (card.mean, card.std))
    model.input_format = card.channels
    net, tokens = model.backbone.net, tokens_of(params, shape)
    if not is_plain(shape, tokens):
        net._target_ = card_vit()
        net.tokens, net.layer_scale, net.norm_before = tokens, shape.layer_scale, shape.norm_before
        net.patch_bias, net.gated = shape.patch_bias, shape.hidden if shape.gated else 0
        net.rotary, net.biases = shape.rotary, shape.biases
        net.use_abs_pos, net.qkv_bias = shape.positions, shape.biases != "none"
    # Positions come interpolated to the grid.
    net.img_size = net.pretrain_img_size = grid_of(params) * shape.patch
    net.pretrain_use_cls_token = False
    net.patch_size, net.embed_dim, net.depth, net.num_heads = shape.patch, shape.width, shape.depth, shape.heads
    net.mlp_ratio = (shape.hidden + 0.5) / shape.width  # detectron2 rounds down
    net.norm_layer = partial(nn.LayerNorm, eps=shape.norm_eps)
    net.act_layer = ACTIVATIONS[shape.activation]
    net.drop_path_rate, net.use_rel_pos = params.drop_path, params.relative_positions
    net.window_size = params.window
    net.window_block_indexes = [n for n in range(shape.depth) if n not in shape.quarters()] if params.window else []
    channels = params.pyramid_channels
    model.backbone.out_channels, model.backbone.square_pad = channels, params.image_size
    rpn, heads = model.proposal_generator, model.roi_heads
    rpn.head.in_channels = channels
    rpn.anchor_generator.sizes = [[size] for size in params.anchor_sizes]
    rpn.post_nms_topk = (params.proposals, params.proposals)
    rpn.pre_nms_topk = (2 * params.proposals, params.proposals)
    heads.num_classes, heads.batch_size_per_image = classes, params.rois
    heads.box_head.input_shape.channels = heads.mask_head.input_shape.channels = channels
    heads.box_head.conv_dims, heads.mask_head.conv_dims = [channels] * 4, [channels] * 5
    heads.box_head.fc_dims = [params.fc_channels]
    heads.box_predictor.input_shape.channels = params.fc_channels
    return model


def grid_of(params: VitDetectionParams) -> int:
    """Patches per side of the detector's square."""
    return params.image_size // STRIDE


def tokens_of(params: VitDetectionParams, shape: VitShape) -> int:
    """Number of tokens besides the patches in the detector's ViT."""
    return shape.registers + int(shape.class_token and params.cls == "kept")


def vit_run_configuration(params: VitDetectionParams, card: EncoderCard, device: str) -> Any:
    """What detectron2's loaders, schedule and hooks read, as a CfgNode."""
    from detectron2.config import get_cfg

    cfg = get_cfg()
    cfg.MODEL.DEVICE, cfg.MODEL.MASK_ON, cfg.MODEL.KEYPOINT_ON = device, True, False
    cfg.INPUT.FORMAT = card.channels
    solver = cfg.SOLVER
    solver.IMS_PER_BATCH, solver.BASE_LR = params.batch_size, params.lr
    solver.MAX_ITER, solver.STEPS, solver.GAMMA = params.iterations, params.steps, 0.1
    solver.WARMUP_ITERS, solver.WARMUP_FACTOR = params.warmup_iterations, params.warmup_factor
    solver.CHECKPOINT_PERIOD = params.checkpoint_every
    cfg.TEST.PRECISE_BN.ENABLED = False
    cfg.freeze()
    return cfg


def is_plain(shape: VitShape, tokens: int) -> bool:
    """Whether detectron2's ViT holds an encoder as it is.

    Args:
        tokens: besides the patches.
    """
    others = tokens or shape.layer_scale or shape.norm_before or shape.gated or shape.rotary != "none"
    return shape.patch == STRIDE and shape.patch_bias and shape.positions and shape.biases == "all" and not others


class LayerScale(nn.Module):
    """Multiplies by a trained vector."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


@cache
def card_vit() -> Any:
    """The backbone's class, which takes the arguments of detectron2's ViT and a few more."""
    from detectron2.modeling.backbone.utils import add_decomposed_rel_pos, window_partition, window_unpartition
    from detectron2.modeling.backbone.vit import Block, ViT

    class CardBlock(Block):
        """detectron2's block on (N, T + H * W, D) tokens, of which the first T are not patches."""

        def __init__(self, layer_scale: bool, gated: int, rotary: Rotary, biases: Biases, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            width = kwargs["dim"]
            scale: Any = LayerScale if layer_scale else nn.Identity
            self.ls1, self.ls2, self.rotary = scale(width), scale(width), rotary
            if biases == "not of keys":
                self.attn.qkv = KeysWithoutBias(width, 3 * width)
            if gated:  # its second layer has the right width already
                self.mlp.fc1, self.mlp.act = nn.Linear(width, 2 * gated), Gate()

        def forward(self, x: Tensor, grid: tuple[int, int], table: Tensor | None = None) -> Tensor:
            x = x + self.drop_path(self.ls1(self._attended(self.norm1(x), grid, table)))
            return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))

        def _attended(self, x: Tensor, grid: tuple[int, int], table: Tensor | None) -> Tensor:
            if not self.window_size:
                return self._attention(x, grid, table if table is None else table[None])
            number, side = x.shape[1] - grid[0] * grid[1], self.window_size
            windows, padded = window_partition(x[:, number:].unflatten(1, grid), side)
            copies = x[:, :number].repeat_interleave(len(windows) // len(x), 0)
            if table is not None:
                table = self._in_windows(table.unflatten(0, grid)[None])
            y = self._attention(torch.cat([copies, windows.flatten(1, 2)], 1), (side, side), table)
            patches = window_unpartition(y[:, number:].unflatten(1, (side, side)), side, padded, grid)
            tokens = y[:, :number].unflatten(0, (len(x), -1)).mean(1)
            return torch.cat([tokens, patches.flatten(1, 2)], 1)

        def _in_windows(self, table: Tensor) -> Tensor:
            """(windows, side * side, 2 C) of the (1, rows, columns, 2 C) table; padding is not turned."""
            windows, _ = window_partition(table, self.window_size)
            inside, _ = window_partition(torch.ones_like(table[..., :1]), self.window_size)
            sines, cosines = windows.chunk(2, -1)
            return torch.cat([sines, cosines + (1 - inside)], -1).flatten(1, 2)

        def _attention(self, x: Tensor, grid: tuple[int, int], table: Tensor | None = None) -> Tensor:
            """As detectron2's Attention, which takes patches only.

            Args:
                table: (1 or windows, patches, 2 C) for `rotated`.
            """
            of, (batch, length, _) = self.attn, x.shape
            number = length - grid[0] * grid[1]
            q, k, v = of.qkv(x).unflatten(2, (3, of.num_heads, -1)).permute(2, 0, 3, 1, 4).flatten(1, 2)
            turned_q, turned_k = q, k
            if table is not None:
                places = table.repeat(batch // len(table), 1, 1).repeat_interleave(of.num_heads, 0)
                turned_q, turned_k = (
                    torch.cat([part[:, :number], rotated(part[:, number:], places, self.rotary)], 1) for part in (q, k)
                )
            weights = (turned_q * of.scale) @ turned_k.mT
            if of.use_rel_pos:
                between = weights[:, number:, number:].contiguous()
                between = add_decomposed_rel_pos(between, q[:, number:], of.rel_pos_h, of.rel_pos_w, grid, grid)
                of_patches = torch.cat([weights[:, number:, :number], between], 2)
                weights = torch.cat([weights[:, :number], of_patches], 1)
            mixed = (weights.softmax(-1) @ v).unflatten(0, (batch, -1)).transpose(1, 2).flatten(2)
            projected: Tensor = of.proj(mixed)
            return projected

    class CardViT(ViT):
        """detectron2's ViT with LayerScale, a norm before the blocks, other tokens and patches of other sizes.

        ViTDet is made for patches of 16 pixels: its pyramid has strides of 4 to 32. An encoder with patches of P pixels
        sees the detector's image resized by P / 16, so that the grid of its patches and all strides stay as they are:
        1024 pixels become 896 for patches of 14. Boxes, anchors and masks keep the pixels of the detector's image.

        Tokens besides the patches attend together with them. In a block with windows, every window has its own copy of
        these tokens, and the mean over the windows goes on to the next block. Relative positions are those between
        patches. Rotary positions are those of the whole map in every block, so that a window sees its patches where
        they are in the image.

        Args:
            tokens: besides the patches, trained.
            gated: width of a gated MLP; 0 for one without a gate.
            rotary, biases: as in `VitShape`.
        """

        def __init__(
            self, tokens: int, layer_scale: bool, norm_before: bool, patch_bias: bool, gated: int = 0,
            rotary: Rotary = "none", biases: Biases = "all", **kwargs: Any,
        ) -> None:  # fmt: skip
            super().__init__(**kwargs)
            width, norm = kwargs["embed_dim"], kwargs["norm_layer"]
            if not patch_bias:
                self.patch_embed.proj.register_parameter("bias", None)
            if tokens:  # below the patch embedding, so that they have the rate of the first layer
                self.patch_embed.tokens = nn.Parameter(torch.zeros(1, tokens, width))
            self.tokens = tokens
            self.norm_pre = norm(width) if norm_before else nn.Identity()
            rates = torch.linspace(0, kwargs["drop_path_rate"], kwargs["depth"]).tolist()
            windowed, side = kwargs["window_block_indexes"], kwargs["img_size"] // kwargs["patch_size"]
            self.blocks = nn.ModuleList(
                CardBlock(
                    layer_scale, gated, rotary, biases, dim=width, num_heads=kwargs["num_heads"],
                    mlp_ratio=kwargs["mlp_ratio"],
                    qkv_bias=kwargs["qkv_bias"], drop_path=rate, norm_layer=norm, act_layer=kwargs["act_layer"],
                    use_rel_pos=kwargs["use_rel_pos"], window_size=kwargs["window_size"] if n in windowed else 0,
                    input_size=(side, side),
                )
                for n, rate in enumerate(rates)
            )  # fmt: skip
            if rotary != "none":
                self.register_buffer("rotary_table", torch.zeros(side * side, 2 * width // kwargs["num_heads"]))
            self.rotary = rotary
            self.patch_size = kwargs["patch_size"]
            self._out_feature_strides = dict.fromkeys(self._out_features, STRIDE)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            if self.patch_size != STRIDE:
                sides = [side * self.patch_size // STRIDE for side in x.shape[-2:]]
                x = nn.functional.interpolate(x, sides, mode="bilinear", antialias=True)
            x = self.patch_embed(x)
            grid = x.shape[1:3]
            x = (x if self.pos_embed is None else x + self.pos_embed.unflatten(1, grid)).flatten(1, 2)
            if self.tokens:
                x = torch.cat([self.patch_embed.tokens.expand(len(x), -1, -1), x], 1)
            x = self.norm_pre(x)
            table = None if self.rotary == "none" else self.rotary_table
            for block in self.blocks:
                x = block(x, grid, table)
            return {self._out_features[0]: x[:, self.tokens :].mT.unflatten(2, grid)}

    return CardViT

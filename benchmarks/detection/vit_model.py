"""detectron2's ViTDet with the encoder's weights, its views and its optimiser, and one trial of them.

ViTDet is made for patches of 16 pixels: its pyramid has strides of 4 to 32. An encoder with patches of P pixels sees
the detector's image resized by P / 16, so that the grid of its patches and all strides stay as they are: 1024 pixels
become 896 for patches of 14. Boxes, anchors and masks keep the pixels of the detector's image.

Tokens besides the patches attend together with them. In a block with windows, every window has its own copy of these
tokens, and the mean over the windows goes on to the next block. Relative positions are those between patches. Rotary
positions are those of the whole map in every block, so that a window sees its patches where they are in the image.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.detection.data import ImageDict
from benchmarks.detection.protocols import VitDetectionParams
from benchmarks.detection.train import DetectionTrial
from benchmarks.encoders.vit_export import (
    ACTIVATIONS,
    Biases,
    Gate,
    KeysWithoutBias,
    Rotary,
    VitShape,
    rotated,
    vit_shape,
    vit_tensors,
)
from benchmarks.training.trials import require_same_tensors
from results.schema import EncoderCard

STRIDE = 16  # pixels of the detector's image from one patch to the next, for every encoder
RELATIVE = (".rel_pos_h", ".rel_pos_w")  # tensors of the detector's ViT that the encoder does not have


# ---- the detector


def model_config(params: VitDetectionParams, card: EncoderCard, shape: VitShape, classes: int) -> Any:
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


def run_config(params: VitDetectionParams, card: EncoderCard, device: str) -> Any:
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


def views(params: VitDetectionParams, card: EncoderCard) -> tuple[Any, Any]:
    """The mappers of training (large-scale jitter, cut to the square) and of testing."""
    from detectron2.data import DatasetMapper
    from detectron2.data import transforms as T

    side = params.image_size
    training = [
        T.RandomFlip(horizontal=True),
        T.ResizeScale(params.scales[0], params.scales[1], target_height=side, target_width=side),
        T.FixedSizeCrop(crop_size=(side, side), pad=False),
    ]
    testing = [T.ResizeShortestEdge(short_edge_length=side, max_size=side)]
    train: Any = DatasetMapper(
        is_train=True, augmentations=training, image_format=card.channels, use_instance_mask=True,
        instance_mask_format="bitmask", recompute_boxes=True,
    )  # fmt: skip
    return Bitmaps(train), DatasetMapper(is_train=False, augmentations=testing, image_format=card.channels)


class Bitmaps:
    """A mapper that gets polygons as bitmaps: detectron2 needs another package to cut polygons."""

    def __init__(self, mapper: Any) -> None:
        self.mapper = mapper

    def __call__(self, scene: ImageDict) -> Any:
        from pycocotools import mask as rle

        annotations = []
        for found in scene["annotations"]:
            shape = found.get("segmentation")
            if isinstance(shape, list):
                parts = rle.frPyObjects(shape, scene["height"], scene["width"])
                found = {**found, "segmentation": rle.merge(parts)}
            annotations.append(found)
        return self.mapper({**scene, "annotations": annotations})


class VitDetectionTrial(DetectionTrial):
    """See `DetectionTrial`.

    Raises:
        NotApplicableError: detectron2's ViT cannot hold the encoder.
    """

    params: VitDetectionParams

    def configure(self) -> tuple[Any, tuple[Any, Any]]:
        self.shape = vit_shape(self.encoder, "detectron2")
        card = self.encoder.card
        return run_config(self.params, card, str(self.device)), views(self.params, card)

    def build(self) -> nn.Module:
        from detectron2.config import instantiate

        torch.manual_seed(self.seed)
        config = model_config(self.params, self.encoder.card, self.shape, len(self.labels.classes))
        model: nn.Module = instantiate(config)
        net: Any = model.backbone.net  # type: ignore[union-attr]
        weights = self._tensors()
        fresh = {name: tensor for name, tensor in net.state_dict().items() if name.endswith(RELATIVE)}
        net.load_state_dict({**fresh, **weights}, strict=True)
        self.check_backbone(model)
        return model.to(self.device)

    def check_backbone(self, model: Any) -> None:
        """Compare every tensor of the built detector's ViT with the encoder's; raises as `require_same_tensors`."""
        loaded = {n: t for n, t in model.backbone.net.state_dict().items() if not n.endswith(RELATIVE)}
        require_same_tensors(self.encoder.card.name, loaded, self._tensors())

    def _tensors(self) -> dict[str, torch.Tensor]:
        kept = self.params.cls == "kept"
        return vit_tensors(self.encoder, "detectron2", grid_of(self.params), class_token=kept)

    def optimiser(self, model: nn.Module) -> torch.optim.Optimizer:
        from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate
        from detectron2.solver.build import get_default_optimizer_params

        params = self.params
        spared = {} if params.positions_decay else {"pos_embed": {"weight_decay": 0.0}, "tokens": {"weight_decay": 0.0}}
        if params.norm_weight_decay is not None:
            spared |= {"gamma": {"weight_decay": params.norm_weight_decay}}
        groups = get_default_optimizer_params(
            model,
            base_lr=params.lr,
            weight_decay=params.weight_decay,
            weight_decay_norm=params.norm_weight_decay,
            lr_factor_func=partial(
                get_vit_lr_decay_rate, num_layers=self.shape.depth, lr_decay_rate=params.layer_decay
            ),
            overrides=spared,
        )
        return torch.optim.AdamW(groups, lr=params.lr, betas=(0.9, params.beta2), weight_decay=params.weight_decay)


# ---- detectron2's ViT with LayerScale, a norm before the blocks, registers, and patches of other sizes


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
        """See the head of this file.

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

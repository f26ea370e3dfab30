"""detectron2's ViTDet with the encoder's weights, its views and its optimiser, and one trial of them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.detection.data import ImageDict, inference_loader, train_loader
from benchmarks.detection.metrics import coco_evaluator
from benchmarks.detection.protocols import VitDetectionParams
from benchmarks.detection.train import LOGGERS, DetectionTrial, tell_detectron2_of_ranks
from benchmarks.detection.vit_backbone import STRIDE, card_vit, is_plain
from benchmarks.encoders.encoder import Encoder
from benchmarks.encoders.vit_export import ACTIVATIONS, VitShape, vit_shape, vit_tensors
from benchmarks.task import InputError, Labels, RunOptions
from benchmarks.training.trials import Trial, quiet, require_same_tensors
from results.schema import EncoderCard

RELATIVE = (".rel_pos_h", ".rel_pos_w")  # what the detector's ViT has and the encoder has not


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
        net.patch_bias = shape.patch_bias
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
    """Tokens besides the patches that the detector's ViT has."""
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

    def __init__(
        self, params: VitDetectionParams, encoder: Encoder, train: list[ImageDict], test: list[ImageDict],
        labels: Labels, seed: int, folder: Path, options: RunOptions,
    ) -> None:  # fmt: skip
        Trial.__init__(self, encoder, params.batch_size, seed, folder, options)
        from detectron2.data.build import filter_images_with_only_crowd_annotations

        self.vit, self.test, self.labels, self.precision = params, test, labels, params.precision
        self.shape = vit_shape(encoder, "detectron2")
        self.cfg = run_config(params, encoder.card, str(self.device))
        if params.precision == "fp16" and self.device.type != "cuda":
            raise InputError("--set precision=fp16 needs a GPU; use bf16 or fp32")
        if self.ranks > 1:
            tell_detectron2_of_ranks()
        with quiet(*LOGGERS):
            self.train_scenes = filter_images_with_only_crowd_annotations(train)
            self.train_mapper, self.test_mapper = views(params, encoder.card)
        if not self.train_scenes:
            raise InputError("no image of the train split shows an object; look at it with `make check-data`")

    def build(self) -> nn.Module:
        """The model before its first step: heads at random, the encoder's weights in the backbone.

        Raises:
            RuntimeError: a tensor of the backbone is not the encoder's.
        """
        from detectron2.config import instantiate

        torch.manual_seed(self.seed)
        config = model_config(self.vit, self.encoder.card, self.shape, len(self.labels.classes))
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
        kept = self.vit.cls == "kept"
        return vit_tensors(self.encoder, "detectron2", grid_of(self.vit), class_token=kept)

    def optimiser(self, model: nn.Module) -> torch.optim.Optimizer:
        from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate
        from detectron2.solver.build import get_default_optimizer_params

        params = self.vit
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

    def evaluator(self) -> Any:
        return coco_evaluator(self.labels, ("bbox", "segm"))

    def test_loader(self) -> Any:
        return inference_loader(
            self.test, self.cfg, rank=self.rank, ranks=self.ranks, workers=self.workers, mapper=self.test_mapper
        )

    def _loader(self, *, seed: int, first: int, workers: int) -> Any:
        return train_loader(
            self.train_scenes, self.cfg, seed=seed, rank=self.rank, ranks=self.ranks, workers=workers, first=first,
            mapper=self.train_mapper,
        )  # fmt: skip

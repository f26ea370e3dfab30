"""detectron2's own configuration with a protocol and an encoder's card laid over it, and the model that it builds."""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import Any

import torch

from benchmarks.contract import InputError, NotApplicableError
from benchmarks.detection import backbone, densepose
from benchmarks.detection.settings import DetectionSettings
from benchmarks.encoders.export.detectron2 import detectron2_facts
from benchmarks.encoders.export.resnet_facts import numbers
from results.schema import EncoderCard


def require_library() -> None:
    """Raises InputError where detectron2 is not installed."""
    if not find_spec("detectron2"):
        raise InputError("detection needs detectron2, which is not installed; run `make setup-transfer`")


def configuration(
    settings: DetectionSettings, card: EncoderCard, classes: int, *, ranks: int = 1, gpu: bool = True
) -> Any:
    """The resolved configuration (a CfgNode).

    Args:
        classes: of the data set.
        ranks: processes; in one, synchronised norms are ordinary ones.
        gpu: whether it runs on one; torch synchronises no norm elsewhere, and detectron2's own takes its place.

    Raises:
        InputError: a key of `settings.config` that detectron2 does not have.
        NotApplicableError: the encoder is no ResNet.
    """
    architecture = card.architecture
    try:
        facts, network = detectron2_facts(card), numbers(architecture)
    except InputError as error:
        raise NotApplicableError(f"{card.name}: detection protocols are for ResNets: {error}") from error
    from detectron2 import model_zoo

    cfg = model_zoo.get_config(settings.base)
    cfg.defrost()
    backbone.defaults(cfg)
    if settings.task == "densepose":
        densepose.defaults(cfg)
    solver = settings.solved()
    padding = architecture.stem_kernel // 2 if architecture.stem_padding is None else architecture.stem_padding
    laid_over: dict[str, Any] = {
        **facts,
        "MODEL.WEIGHTS": "",
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.BACKBONE.NAME": _BACKBONES[cfg.MODEL.BACKBONE.NAME],
        "MODEL.RESNETS.NORM": _norm(settings.norm, ranks, gpu),
        "MODEL.FPN.NORM": _norm(settings.fpn_norm, ranks, gpu),
        "MODEL.ROI_BOX_HEAD.NORM": _norm(settings.box_norm, ranks, gpu),
        "MODEL.ROI_MASK_HEAD.NORM": _norm(settings.mask_norm, ranks, gpu),
        "MODEL.MASK_ON": settings.masks,
        "MODEL.KEYPOINT_ON": settings.keypoints,
        "MODEL.ROI_HEADS.NUM_CLASSES": classes,
        "MODEL.RETINANET.NUM_CLASSES": classes,
        "INPUT.MIN_SIZE_TRAIN": tuple(settings.min_sizes),
        "INPUT.MAX_SIZE_TRAIN": settings.max_size,
        "INPUT.MIN_SIZE_TEST": settings.test_min_size,
        "INPUT.MAX_SIZE_TEST": settings.test_max_size,
        "SOLVER.IMS_PER_BATCH": solver.batch_size,
        "SOLVER.BASE_LR": solver.lr,
        "SOLVER.MAX_ITER": solver.iterations,
        "SOLVER.STEPS": solver.steps,
        "SOLVER.GAMMA": settings.gamma,
        "SOLVER.MOMENTUM": settings.momentum,
        "SOLVER.WEIGHT_DECAY": settings.weight_decay,
        "SOLVER.WEIGHT_DECAY_NORM": settings.norm_weight_decay,
        "SOLVER.WARMUP_ITERS": solver.warmup_iterations,
        "SOLVER.WARMUP_FACTOR": settings.warmup_factor,
        "SOLVER.CHECKPOINT_PERIOD": settings.checkpoint_every,
        "SOLVER.AMP.ENABLED": settings.precision == "fp16",
        "TEST.PRECISE_BN.ENABLED": settings.precise_bn > 0,
        "TEST.PRECISE_BN.NUM_ITER": settings.precise_bn or cfg.TEST.PRECISE_BN.NUM_ITER,
        "TEST.EVAL_PERIOD": 0,
        "ENCODER.BOTTLENECK": network.bottleneck,
        "ENCODER.STEM_KERNEL": architecture.stem_kernel,
        "ENCODER.STEM_STRIDE": architecture.stem_stride,
        "ENCODER.STEM_PADDING": padding,
        "ENCODER.MAX_POOL": architecture.max_pool,
        "ENCODER.BN_EPS": architecture.bn_eps,
        "ENCODER.EXTRA_NORM": settings.extra_norm,
        "ENCODER.REDUCE_CHANNELS": settings.reduce_channels,
        "ENCODER.PAD_DIVISOR": settings.pad_divisor,
        "ENCODER.RPN_LOW_QUALITY": settings.rpn_low_quality,
    }
    if cfg.MODEL.ROI_HEADS.NAME == "Res5ROIHeads" and cfg.MODEL.META_ARCHITECTURE != "RetinaNet":
        laid_over["MODEL.ROI_HEADS.NAME"] = backbone.HEAD
    for key, value in {**laid_over, **settings.config}.items():
        try:
            cfg.merge_from_list([key, value])
        except (KeyError, AssertionError, ValueError) as error:
            raise InputError(f"detectron2's configuration cannot have {key}={value!r}: {error}") from error
    _name_levels(cfg)
    cfg.freeze()
    return cfg


def _name_levels(cfg: Any) -> None:
    """A pyramid's levels are named by their strides (p2 has stride 4), which a stem of stride 1 or 2 halves."""
    stride = cfg.ENCODER.STEM_STRIDE * (2 if cfg.ENCODER.MAX_POOL else 1)
    shift = int(math.log2(stride)) - 2
    for part in (cfg.MODEL.RPN, cfg.MODEL.ROI_HEADS, cfg.MODEL.RETINANET):
        part.IN_FEATURES = [f"p{int(n[1:]) + shift}" if n.startswith("p") else n for n in part.IN_FEATURES]
    if densepose.is_on(cfg):
        cfg.MODEL.ROI_DENSEPOSE_HEAD.DECODER_COMMON_STRIDE = stride


_BACKBONES = {
    "build_resnet_backbone": backbone.BACKBONE,
    "build_resnet_fpn_backbone": backbone.FPN,
    "build_retinanet_resnet_fpn_backbone": backbone.RETINANET_FPN,
}


def _norm(name: str, ranks: int, gpu: bool) -> str:
    if "SyncBN" not in name:
        return name
    return "BN" if ranks == 1 else name if gpu else "naiveSyncBN"


def build(cfg: Any) -> torch.nn.Module:
    """The detector before its first step, its backbone still at random."""
    from detectron2.modeling import build_model

    backbone.register()
    model: torch.nn.Module = build_model(cfg)
    if cfg.ENCODER.RPN_LOW_QUALITY:
        _raise_low_quality(model, cfg.ENCODER.RPN_LOW_QUALITY)
    return model


def _raise_low_quality(model: Any, least: float) -> None:
    """An object's best anchor is positive only where the two overlap by `least`; detectron2 takes it however low."""
    matcher = model.proposal_generator.anchor_matcher
    every = matcher.set_low_quality_matches_

    def only_good(labels: torch.Tensor, overlaps: torch.Tensor) -> None:
        every(labels, overlaps[overlaps.max(dim=1).values >= least])

    matcher.set_low_quality_matches_ = only_good

"""mmsegmentation's own configuration with a protocol and an encoder's card laid over it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.contract import InputError, NotApplicableError
from benchmarks.encoders.export.openmmlab import openmmlab_facts
from benchmarks.encoders.export.resnet_facts import numbers
from benchmarks.segmentation.settings import SegmentationSettings
from results.schema import EncoderCard


def base_config(name: str) -> dict[str, Any]:
    """A configuration that mmsegmentation ships, its parents resolved."""
    import mmseg
    from mmengine.config import Config

    return dict(Config.fromfile(Path(mmseg.__file__).parent / ".mim" / "configs" / name).to_dict())


def model_config(settings: SegmentationSettings, card: EncoderCard, *, synchronised: bool) -> dict[str, Any]:
    """The model as mmsegmentation's registry takes it.

    Args:
        synchronised: batch norms share their statistics over ranks; one process has the ordinary ones.

    Raises:
        NotApplicableError: the encoder is no ResNet, or a wide one.
    """
    architecture = card.architecture
    try:
        facts, network = openmmlab_facts(card), numbers(architecture)
    except InputError as error:
        raise NotApplicableError(f"{card.name}: segmentation protocols are for ResNets: {error}") from error
    if network.groups == 1 and network.group_width != architecture.width:
        raise NotApplicableError(
            f"{card.name} is {architecture.name}, whose wide 3x3 convolutions mmsegmentation's ResNet does not have; "
            "segmentation protocols are for the other ResNets"
        )
    model: dict[str, Any] = base_config(settings.base)["model"]
    norm = {"type": "SyncBN" if synchronised else "BN", "requires_grad": True}
    model["pretrained"] = None
    model["backbone"] |= facts["backbone"] | {
        "type": f"Card{facts['backbone']['type']}",
        "stem_kernel": architecture.stem_kernel,
        "stem_stride": architecture.stem_stride,
        "stem_padding": architecture.stem_padding,
        "max_pool": architecture.max_pool,
        "strides": list(settings.strides),
        "dilations": list(settings.dilations),
        "contract_dilation": settings.contract_dilation,
        "norm_cfg": norm | facts["norm_cfg"],
    }
    channels = [architecture.width * 2**stage * (4 if network.bottleneck else 1) for stage in range(4)]
    shared = {"num_classes": settings.classes, "norm_cfg": norm, "align_corners": settings.align_corners,
              "dropout_ratio": settings.dropout}  # fmt: skip
    model["decode_head"] |= shared | {
        "in_channels": channels[3],
        "channels": settings.head_channels,
        "num_convs": settings.head_convs,
        "dilation": settings.head_dilation,
        "concat_input": settings.head_concat,
    }
    if settings.auxiliary_channels:
        model["auxiliary_head"] |= shared | {"in_channels": channels[2], "channels": settings.auxiliary_channels}
        model["auxiliary_head"]["loss_decode"]["loss_weight"] = settings.auxiliary_weight
    else:
        del model["auxiliary_head"]
    windows = {"crop_size": [settings.crop] * 2, "stride": [settings.window_stride] * 2}
    model["test_cfg"] = {"mode": "slide", **windows} if settings.inference == "windows" else {"mode": "whole"}
    model["data_preprocessor"] |= facts["data_preprocessor"] | {"size": [settings.crop] * 2}
    return model


def pipelines(settings: SegmentationSettings) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The transforms of training and of testing. The ground truth of a test image keeps its own size."""
    load: list[dict[str, Any]] = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}]
    resize: dict[str, Any]
    if settings.scale is None:
        resize = {"type": "RandomRelativeResize", "ratio_range": settings.ratio}
    else:
        resize = {"type": "RandomResize", "scale": settings.scale, "ratio_range": settings.ratio, "keep_ratio": True}
    crop = {"type": "RandomCrop", "crop_size": (settings.crop,) * 2, "cat_max_ratio": settings.most_of_one_class}
    train = [*load, resize, crop, {"type": "RandomFlip", "prob": settings.flip_p}]
    if settings.photometric:
        train.append({"type": "PhotoMetricDistortion"})
    test = [load[0]]
    if settings.scale is not None:
        test.append({"type": "Resize", "scale": settings.scale, "keep_ratio": True})
    pack = {"type": "PackSegInputs"}
    return [*train, pack], [*test, load[1], pack]


def optimisation(settings: SegmentationSettings) -> tuple[dict[str, Any], Sequence[dict[str, Any]]]:
    """The optimiser's wrapper and the schedule of its rate."""
    optimiser = {"type": "SGD", "lr": settings.lr, "momentum": settings.momentum,
                 "weight_decay": settings.weight_decay}  # fmt: skip
    wrapper: dict[str, Any] = {"type": "OptimWrapper", "optimizer": optimiser, "clip_grad": None}
    if settings.precision != "fp32":
        kind = {"bf16": "bfloat16", "fp16": "float16"}[settings.precision]
        wrapper |= {"type": "AmpOptimWrapper", "dtype": kind}
    if settings.schedule == "poly":
        schedule = {"type": "PolyLR", "eta_min": settings.lr_min, "power": settings.power, "begin": 0,
                    "end": settings.iterations, "by_epoch": False}  # fmt: skip
    else:
        schedule = {"type": "MultiStepLR", "milestones": list(settings.drops), "gamma": settings.gamma,
                    "by_epoch": False}  # fmt: skip
    return wrapper, [schedule]

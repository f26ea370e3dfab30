"""The FCN: mmsegmentation's configuration changed by a protocol and an encoder's card, and the encoder's weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from benchmarks.encoders.export import ResNetShape, openmmlab_settings, resnet_shape
from benchmarks.segmentation.protocols import SegmentationParams, VitSegmentationParams
from benchmarks.task import InputError, NotApplicableError
from benchmarks.training.trials import quiet, require_packages
from results.schema import EncoderCard


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

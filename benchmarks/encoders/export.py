"""Write encoders for other libraries: detectron2, OpenMMLab, torchvision, and this project's own safetensors file.

The weights stay as they are. The functions `…_settings` return what else the other library must be told, as the first
convolution keeps the card's order of channels. All refuse an encoder that is not a ResNet of this project with an
`InputError`; the functions `write_…` also raise an `OSError` that names a file which cannot be written.
"""

from __future__ import annotations

import io
import logging
import pickle
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.encoders.encoder import Encoder
from benchmarks.encoders.load import load_encoder
from benchmarks.task import InputError
from pretrain.resnet import STAGES, ResNet
from pretrain.weight_files import CARD_KEY, write_backbone
from results.files import replacing, write_file
from results.schema import Architecture, EncoderCard

log = logging.getLogger(__name__)

CheckpointFormat = Literal["detectron2", "openmmlab", "torchvision", "safetensors"]


def convert(
    source: str | Path,
    out: Path,
    to: CheckpointFormat,
    *,
    name: str | None = None,
    facts: Sequence[str] = (),
    force: bool = False,
) -> EncoderCard:
    """Write the backbone of `source` for another library, with the same weights, and return its card.

    The written file can be read like any other; converting it again gives the same tensors.

    Args:
        facts: what the checkpoint's keys do not show (see `load_encoder`).
        force: replace `out`.

    Raises:
        InputError: `source` cannot be loaded, is not a ResNet or holds NaN; `out` exists, cannot be written, or has the
            wrong suffix.
    """
    writer = WRITERS[to]
    if out.suffix not in writer.suffixes:
        raise InputError(f"{out} must end in {' or '.join(writer.suffixes)} for {to}; rename it")
    if out.is_dir():
        raise InputError(f"{out} is a folder; give the name of a file")
    if out.exists() and not force:
        raise InputError(f"{out} exists; give another name, or --force to replace it")
    encoder = load_encoder(source, name, facts)
    card = encoder.card
    damaged = [n for n, t in encoder.module.state_dict().items() if t.is_floating_point() and not t.isfinite().all()]
    if damaged:
        raise InputError(
            f"{source} holds NaN or infinite numbers in {len(damaged)} tensors ({', '.join(damaged[:3])}); it is "
            "damaged, take another checkpoint of the run"
        )
    try:
        writer.write(encoder, out)
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())[:160]
        raise InputError(f"cannot write {out} ({reason}); free disk space, or choose another place") from error
    log.info("wrote %s from %s (%s), channels in the order %s", out, source, card.layout, card.channels)
    log.info("settings: %s", writer.settings(card))
    if card.assumed:
        log.warning("assumed, because nothing in %s says so: %s", source, ", ".join(card.assumed))
    if card.not_shown:
        log.warning("networks of the same keys as %s may differ in: %s", source, ", ".join(card.not_shown))
    unsupported = writer.unsupported(card)
    if unsupported:
        log.warning("%s's own builder cannot make this network (%s); use this project's", to, ", ".join(unsupported))
    return card


# ---- the ResNet and its card -----------------------------------------------------------------------------------------


def backbone_tensors(encoder: Encoder, target: str) -> dict[str, Tensor]:
    """The backbone by torchvision's names, on the CPU and contiguous, without the projection head."""
    if not isinstance(encoder.backbone, ResNet):
        raise InputError(
            f"{encoder.card.name} is {encoder.card.architecture.name}, but {target} needs a ResNet "
            f"({', '.join(STAGES)}); give a checkpoint of one"
        )
    return {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.backbone.state_dict().items()}


def _backbone_card(encoder: Encoder) -> EncoderCard:
    return encoder.card.model_copy(update={"head": None})


@dataclass(frozen=True)
class ResNetShape:
    """A ResNet in the numbers of other libraries: stage 1 has `groups` groups of `group_width` channels."""

    depth: int
    groups: int
    group_width: int
    bottleneck: bool


def resnet_shape(architecture: Architecture) -> ResNetShape:
    """The numbers of one of `STAGES`."""
    depth = re.search(r"\d+", architecture.name)
    if architecture.name not in STAGES or depth is None:
        raise InputError(f"{architecture.name} is not a ResNet; give one of {', '.join(STAGES)}")
    block, _, groups, base_width = STAGES[architecture.name]
    return ResNetShape(int(depth[0]), groups, base_width * architecture.width // 64, block.expansion > 1)


def _pixels255(card: EncoderCard) -> tuple[list[float], list[float]]:
    """Mean and std for pixels of 0 to 255, in the order of the card's channels."""
    scale = 255 / card.value_range
    # Rounded to more digits than float32 has: 123.675, not 123.67499999999998.
    return [round(value * scale, 6) for value in card.mean], [round(value * scale, 6) for value in card.std]


def _differences(architecture: Architecture, allowed: Collection[str] = ()) -> list[str]:
    """How the network differs from torchvision's, in words; fields `allowed` are left out."""
    kernel, padding = architecture.stem_kernel, architecture.stem_padding
    found = {
        "width": architecture.width != 64 and f"width {architecture.width}",
        "stem_kernel": kernel != 7 and f"a stem of {kernel}x{kernel}",
        "stem_stride": architecture.stem_stride != 2 and f"stem stride {architecture.stem_stride}",
        "stem_padding": padding is not None and padding != kernel // 2 and f"stem padding {padding}",
        "max_pool": not architecture.max_pool and "no max-pool",
        "stride_in_1x1": architecture.stride_in_1x1 and "the stride in the first 1x1 convolution",
        "bn_eps": architecture.bn_eps != 1e-5 and f"batch-norm eps {architecture.bn_eps:g}",
    }
    return [words for name, words in found.items() if words and name not in allowed]


# ---- detectron2 ------------------------------------------------------------------------------------------------------


def write_detectron2(encoder: Encoder, path: Path) -> None:
    """Write a .pkl for `MODEL.WEIGHTS`: numpy arrays by the names of `build_resnet_backbone`, and the card as JSON."""
    contents = {
        "model": {detectron2_name(n): t.numpy() for n, t in backbone_tensors(encoder, "detectron2").items()},
        "__author__": "encoder-bench",
        "matching_heuristics": True,
        CARD_KEY: _backbone_card(encoder).model_dump_json(),
    }
    with replacing(path) as temporary, temporary.open("wb") as file:
        pickle.dump(contents, file, protocol=4)


def detectron2_name(name: str) -> str:
    """`layer1.0.bn2.weight` becomes `res2.0.conv2.norm.weight`, and `bn1.bias` becomes `stem.conv1.norm.bias`."""

    def renamed(part: str) -> str:
        shortcut = {"downsample.0": "shortcut", "downsample.1": "shortcut.norm"}
        return shortcut.get(part) or (f"conv{part[2:]}.norm" if part.startswith("bn") else part)

    block = re.fullmatch(r"layer(\d)\.(\d+)\.(\w+(?:\.\d)?)\.(\w+)", name)
    if block is None:
        part, _, tensor = name.partition(".")
        return f"stem.{renamed(part)}.{tensor}"
    stage, index, part, tensor = block.groups()
    return f"res{int(stage) + 1}.{index}.{renamed(part)}.{tensor}"


def detectron2_settings(card: EncoderCard) -> dict[str, Any]:
    """The card as keys of detectron2's config. Mean and std are in the order of `INPUT.FORMAT`."""
    shape, width = resnet_shape(card.architecture), card.architecture.width
    mean, std = _pixels255(card)
    return {
        "INPUT.FORMAT": card.channels,
        "MODEL.PIXEL_MEAN": mean,
        "MODEL.PIXEL_STD": std,
        "MODEL.RESNETS.DEPTH": shape.depth,
        "MODEL.RESNETS.NUM_GROUPS": shape.groups,
        "MODEL.RESNETS.WIDTH_PER_GROUP": shape.group_width,
        "MODEL.RESNETS.STEM_OUT_CHANNELS": width,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": width * (4 if shape.bottleneck else 1),
        "MODEL.RESNETS.STRIDE_IN_1X1": card.architecture.stride_in_1x1,
    }


def unsupported_by_detectron2(card: EncoderCard) -> list[str]:
    """What detectron2's own `build_resnet_backbone` has no setting for, in words."""
    bottleneck = resnet_shape(card.architecture).bottleneck
    return _differences(card.architecture, ("stride_in_1x1", *(("width",) if bottleneck else ())))


# ---- OpenMMLab: mmsegmentation, mmdetection, mmpretrain --------------------------------------------------------------


def write_openmmlab(encoder: Encoder, path: Path) -> None:
    """Write a .pth for `init_cfg=dict(type="Pretrained", checkpoint=…)` of a backbone, with the card as JSON."""
    tensors, card = backbone_tensors(encoder, "OpenMMLab"), _backbone_card(encoder)
    _save_torch({"meta": {}, "state_dict": tensors, CARD_KEY: card.model_dump_json()}, path)


def _save_torch(contents: object, path: Path) -> None:
    whole = io.BytesIO()  # torch.save to a path hides the error of a full disk
    torch.save(contents, whole)
    write_file(path, whole.getvalue())


def openmmlab_settings(card: EncoderCard) -> dict[str, dict[str, Any]]:
    """The card as arguments of the backbone, of its norms and of the data preprocessor.

    OpenMMLab's loaders give BGR, so RGB encoders need `bgr_to_rgb`; mean and std are then in RGB order.
    """
    shape, architecture = resnet_shape(card.architecture), card.architecture
    mean, std = _pixels255(card)
    backbone: dict[str, Any] = {
        "type": "ResNet",
        "depth": shape.depth,
        "stem_channels": architecture.width,
        "base_channels": architecture.width,
        "style": "caffe" if architecture.stride_in_1x1 else "pytorch",
    }
    if shape.groups > 1:
        backbone |= {"type": "ResNeXt", "groups": shape.groups, "base_width": shape.group_width}
    return {
        "backbone": backbone,
        "norm_cfg": {"eps": architecture.bn_eps},
        "data_preprocessor": {"mean": mean, "std": std, "bgr_to_rgb": card.channels == "RGB"},
    }


def unsupported_by_openmmlab(card: EncoderCard) -> list[str]:
    """What OpenMMLab's own ResNet has no setting for, in words."""
    shape = resnet_shape(card.architecture)
    # Its ResNeXt ignores `base_width` where there is one group.
    wide = ["wide 3x3 convolutions"] if shape.groups == 1 and shape.group_width != card.architecture.width else []
    return [*wide, *_differences(card.architecture, ("width", "stride_in_1x1", "bn_eps"))]


# ---- torchvision and this project's own file -------------------------------------------------------------------------


def write_torchvision(encoder: Encoder, path: Path) -> None:
    """Write a .pth for the torchvision model of the same name, with only `fc` missing.

    A state dict has no place for a card, so mean, std, range and channel order must be passed on in another way.

    Raises:
        InputError: also where torchvision would load it and run it differently.
    """
    tensors = backbone_tensors(encoder, "torchvision")
    differences = _differences(encoder.card.architecture)
    if differences:
        raise InputError(
            f"torchvision's {encoder.card.architecture.name} cannot be {encoder.card.name}, which has "
            f"{', '.join(differences)}; write safetensors instead"
        )
    _save_torch(tensors, path)


def write_safetensors(encoder: Encoder, path: Path) -> None:
    """Write the backbone and its card."""
    write_backbone(path, backbone_tensors(encoder, "this project's file"), _backbone_card(encoder))


def _pixel_settings(card: EncoderCard) -> str:
    return f"mean {card.mean}, std {card.std} on 0 to {card.value_range:g}, {card.channels}"


@dataclass(frozen=True)
class Writer:
    """How to write for one target, and what to tell the user."""

    write: Callable[[Encoder, Path], None]
    suffixes: tuple[str, ...]
    settings: Callable[[EncoderCard], object] = _pixel_settings
    unsupported: Callable[[EncoderCard], list[str]] = lambda card: []


WRITERS: dict[CheckpointFormat, Writer] = {
    "detectron2": Writer(write_detectron2, (".pkl",), detectron2_settings, unsupported_by_detectron2),
    "openmmlab": Writer(write_openmmlab, (".pth", ".pt"), openmmlab_settings, unsupported_by_openmmlab),
    "torchvision": Writer(write_torchvision, (".pth", ".pt")),
    "safetensors": Writer(write_safetensors, (".safetensors",)),
}

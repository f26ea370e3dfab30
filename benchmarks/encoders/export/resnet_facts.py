"""What every target asks of an encoder: that it is a ResNet, its tensors, and what another library's builder lacks."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor

from benchmarks.contract import InputError
from benchmarks.encoders.encoder import Encoder
from benchmarks.encoders.resnet import ProjectedResNet
from pretrain.resnet import STAGES, ResNet
from results.schema import Architecture, EncoderCard


def backbone_tensors(encoder: Encoder, target: str) -> dict[str, Tensor]:
    """The backbone in torchvision's names, on the CPU and contiguous; a projection head stays behind.

    Raises:
        InputError: the encoder is no ResNet of this project.
    """
    module = encoder.module.backbone if isinstance(encoder.module, ProjectedResNet) else encoder.module
    if not isinstance(module, ResNet):
        raise InputError(
            f"{encoder.card.name} is {encoder.card.architecture.name}, and {target} takes a ResNet "
            f"({', '.join(STAGES)}); give a checkpoint of one"
        )
    return {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}


def written_card(encoder: Encoder) -> EncoderCard:
    """The card that goes into the file: of the backbone alone."""
    return encoder.card.model_copy(update={"head": None})


@dataclass(frozen=True)
class Numbers:
    """A ResNet in the numbers that libraries describe it by: `group_width` channels in each of `groups` in stage 1."""

    depth: int
    groups: int
    group_width: int
    bottleneck: bool


def numbers(architecture: Architecture) -> Numbers:
    """Raises InputError where it is no ResNet."""
    depth = re.search(r"\d+", architecture.name)
    if architecture.name not in STAGES or depth is None:
        raise InputError(f"{architecture.name} is no ResNet; there are {', '.join(STAGES)}")
    block, _, groups, base_width = STAGES[architecture.name]
    return Numbers(int(depth[0]), groups, base_width * architecture.width // 64, block.expansion > 1)


def pixels255(card: EncoderCard) -> tuple[list[float], list[float]]:
    """Mean and std for pixels of 0 to 255, in the order of the card's channels."""
    scale = 255 / card.value_range
    # Rounded beyond what float32 holds: 123.675, not 123.67499999999998.
    return [round(value * scale, 6) for value in card.mean], [round(value * scale, 6) for value in card.std]


def differs(architecture: Architecture, allowed: Collection[str] = ()) -> list[str]:
    """How the network differs from the plain one, in words; fields `allowed` are left out."""
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

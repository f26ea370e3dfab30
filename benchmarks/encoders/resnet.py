"""Encoders around `pretrain.resnet.ResNet`: strictly filled, or at random initialisation."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor, nn

from benchmarks.contract import InputError
from benchmarks.encoders.encoder import FEATURES, Encoder
from pretrain.checkpoint import weights_sha256
from pretrain.resnet import STAGES, ResNet
from results.schema import Architecture, EncoderCard


class ProjectedResNet(nn.Module):
    """A backbone and its projection head in one module, so that both move together."""

    def __init__(self, backbone: ResNet, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head


def resnet_encoder(card: EncoderCard, backbone: ResNet, head: nn.Module | None = None) -> Encoder:
    """Stem and stages as feature1 … feature5, their last global average as embed, and the projection of it as head."""

    def forward(images: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        stages = backbone.stages(images)
        outputs = dict(zip(FEATURES, stages, strict=True))
        outputs["embed"] = stages[-1].mean(dim=(2, 3))
        if head is not None and "head" in names:
            outputs["head"] = head(outputs["embed"])
        return {name: outputs[name] for name in names}

    if head is None:
        return Encoder(card, backbone, forward, (*FEATURES, "embed"))
    return Encoder(card, ProjectedResNet(backbone, head), forward, (*FEATURES, "embed", "head"))


def fill(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> int:
    """Loads every tensor of `module`, or nothing, and returns how many. Only `num_batches_tracked` may be absent.

    Raises:
        InputError: with counts and the first few names, unless names and shapes agree one to one; or a weight that is
            not a floating-point number.
    """
    own = module.state_dict()
    needed = {name for name in own if not name.endswith("num_batches_tracked")}
    missing = sorted(needed - set(tensors))
    unused = sorted(set(tensors) - set(own))
    shapes = sorted(n for n in set(own) & set(tensors) if own[n].shape != tensors[n].shape)
    if missing or unused or shapes:
        faults = [
            f"{len(names)} {what} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
            for names, what in ((missing, "missing"), (unused, "left over"), (shapes, "of another shape"))
            if names
        ]
        good = len(needed) - len(missing) - len([n for n in shapes if n in needed])
        raise InputError(
            f"{source} fills {good} of the backbone's {len(needed)} tensors: {'; '.join(faults)}; "
            "it is a checkpoint of another architecture"
        )
    whole = [n for n in sorted(needed) if own[n].is_floating_point() and not tensors[n].is_floating_point()]
    if whole:
        raise InputError(
            f"{source} holds whole numbers in {len(whole)} tensors ({', '.join(whole[:3])}); it is quantised"
        )
    module.load_state_dict(dict(tensors), strict=False)
    return len(tensors)


def parse_architecture(text: str) -> Architecture:
    """`resnet18`, with `-w32` (width), `-k3` (stem kernel), `-s1` (stem stride) and `-nopool` where they differ.

    Raises:
        InputError: an unknown name or part.
    """
    name, *parts = text.split("-")
    if name not in STAGES:
        raise InputError(f"unknown architecture {name!r} in {text!r}; known are {', '.join(STAGES)}")
    fields: dict[str, int | bool] = {}
    letters = {"w": "width", "k": "stem_kernel", "s": "stem_stride"}
    for part in parts:
        number = re.fullmatch(r"([wks])(\d+)", part)
        if part == "nopool":
            fields["max_pool"] = False
        elif number:
            fields[letters[number[1]]] = int(number[2])
        else:
            raise InputError(
                f"unknown part {part!r} in {text!r}; parts are wN, kN, sN and nopool, as resnet18-w32-k3-nopool"
            )
    return Architecture(name=name, **fields)


def random_resnet(architecture: Architecture, seed: int) -> Encoder:
    """The network as a MoCo run with this seed finds it before its first step, batch norms at their initial values."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = ResNet(architecture)
    card = EncoderCard(
        name=f"random init ({architecture.name}, seed {seed})",
        source="random initialisation",
        architecture=architecture,
        weights_sha256=weights_sha256(backbone.state_dict()),
        layout="none",
        keys_matched=len(backbone.state_dict()),
        method="random",
        epochs=0,
        init=f"seed {seed}",
    )
    return resnet_encoder(card, backbone)


@torch.no_grad()
def recalibrated(encoder: Encoder, batches: Iterable[Tensor]) -> Encoder:
    """The encoder with the batch-norm statistics of its own activations on `batches` of uint8 images.

    At their initial values (mean 0, variance 1) the norms of a random network do nothing, which no trained network
    has to bear; with statistics of the data the comparison with a trained one is fair. Plain averages over batches.
    """
    norms = [m for m in encoder.module.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's name for a cumulative average
    encoder.module.train()
    for batch in batches:
        encoder.module(encoder.normalise(batch))
    encoder.module.eval()
    for norm in norms:
        norm.momentum = 0.1
    encoder.card = encoder.card.model_copy(
        update={
            "weights_sha256": weights_sha256(encoder.module.state_dict()),
            "source": "random initialisation, batch-norm statistics of the data",
        }
    )
    return encoder

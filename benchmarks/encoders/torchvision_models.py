"""`torchvision:ARCH[:FILE]`: torchvision's ResNets, from a file or with the weights that torchvision itself loads."""

from __future__ import annotations

from pathlib import Path

import torchvision

from benchmarks.contract import InputError
from benchmarks.encoders.checkpoint import load_checkpoint
from benchmarks.encoders.encoder import Encoder
from benchmarks.encoders.layouts.facts import PIXELS, Facts
from benchmarks.encoders.resnet import fill, resnet_encoder
from pretrain.checkpoint import weights_sha256
from pretrain.resnet import STAGES, ResNet
from results.schema import Architecture, EncoderCard


def torchvision_encoder(text: str, facts: Facts) -> Encoder:
    """As `torchvision:resnet50:resnet50.pth`. The file must hold that architecture, in whatever layout.

    Raises:
        InputError: not one of the ResNets, a file that does not fit, or weights that torchvision cannot load.
    """
    name, _, file = text.removeprefix("torchvision:").partition(":")
    if name not in STAGES:
        raise InputError(f"torchvision:{name} is none of {', '.join(STAGES)}; give another network as timm:NAME")
    # torchvision's own code: what it fixes needs no guess.
    network = Facts({"stem_stride": 2, "max_pool": True, "stride_in_1x1": False, "bn_eps": 1e-5, "architecture": name})
    if file:
        return load_checkpoint(Path(file).expanduser(), network.under(facts))
    weights = torchvision.models.get_model_weights(name).DEFAULT
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
    except Exception as error:  # of the network, the file system or a damaged download
        raise InputError(
            f"torchvision cannot load its weights of {name} ({' '.join(str(error).split())[:120]}); connect to the "
            f"network once, or give a file: torchvision:{name}:FILE"
        ) from error
    backbone = ResNet(Architecture(name=name))
    tensors = {key: tensor for key, tensor in state.items() if not key.startswith("fc.")}
    matched = fill(backbone, tensors, str(weights))
    transform = weights.transforms()
    card = EncoderCard(
        name=f"torchvision {weights}", source=f"torchvision {torchvision.__version__}, {weights}",
        architecture=Architecture(name=name), weights_sha256=weights_sha256(backbone.state_dict()),
        layout="torchvision", keys_matched=matched, keys_unused=len(state) - len(tensors), mean=tuple(transform.mean),
        std=tuple(transform.std), interpolation=transform.interpolation.value, method="supervised",
        pretrain_data="ImageNet-1k",
    )  # fmt: skip
    known = Facts({**{field: getattr(card, field) for field in PIXELS}, **facts.values})
    return resnet_encoder(known.card(card, PIXELS), backbone)

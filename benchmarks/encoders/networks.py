"""Encoders around networks that are not timm's: ResNets, torchvision's other networks, and CAPI's ViT."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck

from benchmarks.encoders.encoder import Encoder, filled, image_sizes
from benchmarks.encoders.forms import PIXELS, TORCHVISION_NETWORKS, CardOverrides
from benchmarks.task import FEATURE_MAPS, InputError
from pretrain.resnet import STAGES, ResNet
from pretrain.weight_files import weights_sha256
from results.schema import Architecture, EncoderCard

CAPI = "capi"  # the name of its architecture
CAPI_MARK = "encoder.blocks.0.residual1.fn.q_proj.weight"
CAPI_EPS = 1e-5
LAST_BLOCKS = 4  # of patches4
MAX_BLOCKS = 256  # of a CAPI, ten times those of the largest release

_TORCHVISION = "torchvision:"  # of the architecture's name


def resnet_encoder(card: EncoderCard, backbone: ResNet, head: nn.Module | None = None) -> Encoder:
    """Stem and stages as feature1 … feature5, their last global average as embed, and the projection of it as head."""

    def forward(images: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        stages = backbone.stages(images)
        outputs = dict(zip(FEATURE_MAPS, stages, strict=True))
        outputs["embed"] = stages[-1].mean(dim=(2, 3))
        return outputs

    return Encoder(card, backbone, forward, (*FEATURE_MAPS, "embed"), head=head)


def is_resnet(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of a torchvision ResNet."""
    return "conv1.weight" in tensors and any(name.startswith("layer1.0.conv") for name in tensors)


def infer_resnet(tensors: Mapping[str, Tensor], source: str) -> Architecture:
    """Name, width and stem kernel from the shapes. Strides, max-pool and the like keep their defaults.

    Raises:
        InputError: no known ResNet has these shapes.
    """
    stem, first, grouped = (tensors.get(n) for n in ("conv1.weight", "layer1.0.conv1.weight", "layer1.0.conv2.weight"))
    if stem is None or first is None or grouped is None or {stem.ndim, first.ndim, grouped.ndim} != {4}:
        raise InputError(
            f"{source} lacks the stem or the first block of a ResNet; it is incomplete or of another kind, give "
            "another checkpoint"
        )
    found = [match for match in (re.match(r"layer([1-4])\.(\d+)\.", name) for name in tensors) if match]
    depths = tuple(max((int(m[2]) + 1 for m in found if m[1] == stage), default=0) for stage in "1234")
    width, kernel = stem.shape[0], stem.shape[2]
    block = Bottleneck if any(name.startswith("layer1.0.conv3.") for name in tensors) else BasicBlock
    inner = first.shape[0]
    groups = max(inner // max(grouped.shape[1], 1), 1)
    per_group = inner * 64 // (groups * width) if block is Bottleneck else 64
    for name, known in STAGES.items():
        if known == (block, depths, groups, per_group):
            return Architecture(name=name, width=width, stem_kernel=kernel)
    raise InputError(
        f"{source} is a ResNet of {'-'.join(map(str, depths))} {block.__name__} blocks with {groups} groups of width "
        f"{per_group}, which is not one of {', '.join(STAGES)}; give --facts architecture=timm:NAME, or wrap it as "
        "my_package.my_module:build"
    )


def unfold_statistics(backbone: dict[str, Tensor], eps: float) -> bool:
    """Make Caffe2's tensors those of a ResNet, and return whether batch-norm statistics were folded.

    The zero biases of convolutions are removed. Batch norms that were folded into scale and bias get neutral
    statistics: (x - 0) / sqrt(1 - eps + eps) is x, as in detectron2's frozen batch norm.
    """
    biases = [name for name in backbone if name.endswith(".bias")]
    norms = [name for name in biases if "bn" in name or "downsample.1" in name]
    for name in set(biases) - set(norms):
        if not backbone[name].any():
            del backbone[name]
    folded = not any(name.endswith("running_mean") for name in backbone)
    if folded:
        for name in norms:
            zeros = torch.zeros_like(backbone[name])
            norm = name.removesuffix("bias")
            backbone[f"{norm}running_mean"], backbone[f"{norm}running_var"] = zeros, zeros + (1 - eps)
    return folded


def random_resnet(architecture: Architecture, seed: int) -> Encoder:
    """The network as a MoCo run with this seed has it before its first step, batch norms at their initial values."""
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
    """The encoder with batch-norm statistics of its own activations on `batches` of uint8 images.

    At their initial values (mean 0, variance 1) the batch norms of a random network do not normalise anything, and no
    trained network has that handicap. With statistics of the data, the comparison with a trained network is fair.
    The statistics are plain averages over batches.
    """
    norms = [m for m in encoder.module.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
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


def pretrained_torchvision(name: str, overrides: CardOverrides) -> Encoder:
    """The ResNet with the weights that torchvision itself loads, from its cache or the network."""
    weights = torchvision.models.get_model_weights(name).DEFAULT
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
    except Exception as error:  # of the network, the file system or a damaged download
        raise InputError(
            f"torchvision cannot load its weights of {name} ({' '.join(str(error).split())[:120]}); connect to the "
            f"network once, or give a file: torchvision:{name}:FILE"
        ) from error
    backbone, matched = filled(lambda: ResNet(Architecture(name=name)), state, str(weights), ("fc.",))
    transform = weights.transforms()
    card = EncoderCard(
        name=f"torchvision {weights}", source=f"torchvision {torchvision.__version__}, {weights}",
        architecture=Architecture(name=name), weights_sha256=weights_sha256(backbone.state_dict()),
        layout="torchvision", keys_matched=matched, keys_unused=len(state) - matched,
        mean=tuple(transform.mean), std=tuple(transform.std), interpolation=transform.interpolation.value,
        method="supervised", pretrain_data="ImageNet-1k",
    )  # fmt: skip
    known = CardOverrides({field: getattr(card, field) for field in PIXELS}).then(overrides)
    return resnet_encoder(known.apply_to_card(card, PIXELS), backbone)


def torchvision_keys(architecture: str) -> set[str]:
    """The tensor names of a network before its classifier."""
    with torch.device("meta"):
        return set(_torchvision_network(architecture).state_dict())


def torchvision_encoder(card: EncoderCard, tensors: Mapping[str, Tensor], source: str) -> Encoder:
    """A strictly filled network (see `filled`). A classifier in the file is left out."""
    if card.architecture.name.removeprefix(_TORCHVISION) not in TORCHVISION_NETWORKS:
        raise InputError(f"{source} is of {card.architecture.name[:60]!a}, which is not one of "
                         f"{', '.join(TORCHVISION_NETWORKS)}")  # fmt: skip
    module, matched = filled(lambda: _torchvision_network(card.architecture.name), tensors, source, ("classifier.",))
    module.eval()
    with torch.no_grad():
        stages, width = _maps_by_stride(module["features"], torch.zeros(1, 3, 64, 64))

    def forward(images: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = {}
        x = images
        for number, layer in enumerate(module["features"]):
            x = layer(x)
            if number in stages:
                outputs[stages[number]] = x
        return outputs | {"embed": x.mean((2, 3))}

    update = {
        "weights_sha256": weights_sha256(module.state_dict()),
        "keys_matched": matched,
        "keys_unused": card.keys_unused + len(tensors) - matched,
        "embed": f"global average of the last features ({width}-d)",
    }
    return Encoder(card.model_copy(update=update), module, forward, (*stages.values(), "embed"))


def _torchvision_network(architecture: str) -> Any:
    network: Any = torchvision.models.get_model(architecture.removeprefix(_TORCHVISION), weights=None)
    return nn.ModuleDict({"features": network.features})


def _maps_by_stride(features: nn.Sequential, images: Tensor) -> tuple[dict[int, str], int]:
    """Number of a layer -> name of its map, the last layer at each stride of 2 to 32; and the channels of the last."""
    last: dict[int, int] = {}
    x = images
    for number, layer in enumerate(features):
        x = layer(x)
        last[images.shape[-1] // x.shape[-1]] = number
    return {last[2**n]: name for n, name in enumerate(FEATURE_MAPS, start=1) if 2**n in last}, x.shape[1]


def is_capi(tensors: Collection[str]) -> bool:
    """Whether tensors have the names of CAPI's encoder."""
    return CAPI_MARK in tensors and "registers" in tensors


class _Patches(nn.Conv2d):
    """A convolution that says the side of its patches, as timm's patch embedding does."""

    def __init__(self, width: int, side: int) -> None:
        super().__init__(3, width, side, side)
        self.patch_size = (side, side)


class _Rotation(nn.Module):
    """Turns the channels of each head by angles that are linear in a token's place."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.freqs = nn.Parameter(torch.zeros(2, size))

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * angles.cos() + torch.cat([-second, first], -1) * angles.sin()


class _Attention(nn.Module):
    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.q_proj, self.k_proj, self.v_proj, self.proj = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.rope = _Rotation(size)

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        query, key, value = (
            layer(x).unflatten(2, (-1, self.size)).transpose(1, 2) for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        angles = places @ self.rope.freqs
        found = F.scaled_dot_product_attention(self.rope(query, angles), self.rope(key, angles), value)
        mixed: Tensor = self.proj(found.transpose(1, 2).flatten(2))
        return mixed


class _Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, _places: Tensor) -> Tensor:
        found: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return found


class _Residual(nn.Module):
    def __init__(self, width: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm, self.fn = nn.RMSNorm(width, eps=CAPI_EPS), fn

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        found: Tensor = x + self.fn(self.norm(x), places)
        return found


class CapiVit(nn.Module):
    """CAPI's encoder (facebookresearch/capi 98b4fa1, model.py), with attention heads of `size` channels.

    It has no class token and no position embedding. Queries and keys are turned by angles that follow from each token's
    place between 0 and 1; register tokens have places along the edge of the image. Norms divide by the root mean
    square, and the last one has no weights. The tensors keep the names of the source; the decoder is left out.
    """

    def __init__(self, width: int, depth: int, size: int, hidden: int, side: int, registers: int) -> None:
        super().__init__()
        self.patch_embed = _Patches(width, side)
        self.registers = nn.Parameter(torch.zeros(1, registers, width))
        blocks = nn.ModuleList(
            nn.ModuleDict(
                {"residual1": _Residual(width, _Attention(width, size)),
                 "residual2": _Residual(width, _Mlp(width, hidden))}
            )
            for _ in range(depth)
        )  # fmt: skip
        self.encoder = nn.ModuleDict({"blocks": blocks})
        self.enc_norm = nn.RMSNorm(width, eps=CAPI_EPS, elementwise_affine=False)

    def maps(self, images: Tensor, last: int) -> list[Tensor]:
        """(N, D, H/p, W/p) patch tokens after each of the last blocks, through the final norm."""
        patches = self.patch_embed(images)
        rows, columns = patches.shape[2:]
        x = torch.cat([self.registers.expand(len(images), -1, -1), patches.flatten(2).mT], 1)
        places = self._places(rows, columns, x)
        found: list[Tensor] = []
        blocks: nn.ModuleList = self.encoder["blocks"]  # type: ignore[assignment]
        for number, block in enumerate(blocks):
            for part in block.values():  # type: ignore[operator]
                x = part(x, places)
            if number >= len(blocks) - last:
                found.append(self.enc_norm(x)[:, self.registers.shape[1] :].mT.unflatten(2, (rows, columns)))
        return found

    def _places(self, rows: int, columns: int, like: Tensor) -> Tensor:
        """(T, 2) of the registers, clockwise along the edge that the patches span, and of the patches."""
        down, across = (torch.linspace(0, 1, n, device=like.device, dtype=like.dtype) for n in (rows, columns))
        patches = torch.cartesian_prod(down, across)
        steps = torch.arange(self.registers.shape[1] // 4, device=like.device, dtype=like.dtype)
        forth = steps / max(len(steps), 1)
        none, one = torch.zeros_like(forth), torch.ones_like(forth)
        sides = ((forth, none), (one, forth), (1 - forth, one), (none, 1 - forth))
        edge = torch.cat([torch.stack(side, 1) for side in sides])
        low, high = patches.min(0).values, patches.max(0).values
        return torch.cat([low + edge * (high - low), patches])


def capi_encoder(card: EncoderCard, tensors: Mapping[str, Tensor], source: str) -> Encoder:
    """A strictly filled encoder (see `filled`); embed is the mean of its patch tokens."""
    if card.architecture.pooling not in (None, "mean"):
        raise InputError(f"{source} is CAPI's encoder, which has no class token; choose --facts embed=mean")
    module, matched = _build_capi(tensors, source)
    four = len(module.encoder["blocks"]) >= LAST_BLOCKS  # type: ignore[arg-type]
    names = tuple(name for name in ("patches", "patches4", "patch_mean", "embed") if four or name != "patches4")

    def forward(images: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        maps = module.maps(images, LAST_BLOCKS if "patches4" in names else 1)
        mean = maps[-1].mean((2, 3))
        return {"patches": maps[-1], "patches4": torch.cat(maps, 1), "patch_mean": mean, "embed": mean}

    update = {
        "keys_matched": matched,
        "weights_sha256": weights_sha256(module.state_dict()),
        "architecture": card.architecture.model_copy(update={"name": CAPI, "pooling": None}),
        "embed": f"mean of the patch tokens after the last norm ({module.registers.shape[2]}-d)",
        **image_sizes(module),
    }
    return Encoder(card.model_copy(update=update), module, forward, names)


def _build_capi(tensors: Mapping[str, Tensor], source: str) -> tuple[CapiVit, int]:
    """The network, filled, of the sizes that the tensors have; the rotations show the size of a head."""
    names = ("patch_embed.weight", "registers", "encoder.blocks.0.residual1.fn.rope.freqs",
             "encoder.blocks.0.residual2.fn.fc1.weight")  # fmt: skip
    shapes = [tuple(tensors[name].shape) if name in tensors else () for name in names]
    if [len(shape) for shape in shapes] != [4, 3, 2, 2]:
        raise InputError(f"{source} has names of CAPI's encoder but not its tensors {', '.join(names)}")
    (width, _, _, side), (_, registers, _), (_, size), (hidden, _) = shapes
    blocks = {int(match[1]) for match in (re.match(r"encoder\.blocks\.(\d{1,9})\.", name) for name in tensors) if match}
    if not size or width % size or registers % 4:
        raise InputError(
            f"{source} has {registers} registers and heads of {size} of {width} channels; CAPI's registers are a "
            "multiple of 4, and its heads divide the width"
        )
    if len(blocks) <= max(blocks) or len(blocks) > MAX_BLOCKS:
        raise InputError(f"{source} has {len(blocks)} blocks, one of them number {max(blocks)}; the file is damaged")
    return filled(lambda: CapiVit(width, len(blocks), size, hidden, side, registers), tensors, source)

"""CAPI's vision transformer (facebookresearch/capi 98b4fa1, model.py), which timm does not have.

It has no class token and no position embedding. Queries and keys are turned by angles that follow from each token's
place between 0 and 1; register tokens have places along the edge of the image. Norms divide by the root mean square,
and the last one has no weights. The encoder's tensors keep the names of the source; the decoder is left out.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.encoders.encoder import Encoder, filled, image_sizes
from benchmarks.task import InputError
from pretrain.weight_files import weights_sha256
from results.schema import EncoderCard

NAME = "capi"  # of the architecture
MARK = "encoder.blocks.0.residual1.fn.q_proj.weight"
EPS = 1e-5
LAST_BLOCKS = 4  # of patches4
MAX_BLOCKS = 256  # ten times those of the largest release


def is_capi(tensors: Collection[str]) -> bool:
    """Whether tensors have the names of CAPI's encoder."""
    return MARK in tensors and "registers" in tensors


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
        self.norm, self.fn = nn.RMSNorm(width, eps=EPS), fn

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        found: Tensor = x + self.fn(self.norm(x), places)
        return found


class CapiVit(nn.Module):
    """The encoder, with attention heads of `size` channels."""

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
        self.enc_norm = nn.RMSNorm(width, eps=EPS, elementwise_affine=False)

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
    module, matched = _build(tensors, source)
    four = len(module.encoder["blocks"]) >= LAST_BLOCKS  # type: ignore[arg-type]
    names = tuple(name for name in ("patches", "patches4", "patch_mean", "embed") if four or name != "patches4")

    def forward(images: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        maps = module.maps(images, LAST_BLOCKS if "patches4" in names else 1)
        mean = maps[-1].mean((2, 3))
        return {"patches": maps[-1], "patches4": torch.cat(maps, 1), "patch_mean": mean, "embed": mean}

    update = {
        "keys_matched": matched,
        "weights_sha256": weights_sha256(module.state_dict()),
        "architecture": card.architecture.model_copy(update={"name": NAME, "pooling": None}),
        "embed": f"mean of the patch tokens after the last norm ({module.registers.shape[2]}-d)",
        **image_sizes(module),
    }
    return Encoder(card.model_copy(update=update), module, forward, names)


def _build(tensors: Mapping[str, Tensor], source: str) -> tuple[CapiVit, int]:
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

"""A vision transformer in plain operations, with random weights: no timm, no fused attention, one head at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class PlainVit:
    """A network of one family.

    Attributes:
        positions: `all` has one for the class token too, `patches` has none for it, `none` has none at all.
        away: how positions are interpolated at other image sizes: `offset`, `antialias`, `bilinear` or `square`.
        rotary: DINOv3's rotary positions; `counted` is PE's; `relative` is BEiT's table of biases.
        pool_heads: of the attention pooling; 0 is `heads`.
    """

    width: int = 48
    depth: int = 5
    heads: int = 3
    patch: int = 16
    grid: int = 3
    class_token: bool = True
    registers: int = 0
    positions: str = "all"
    away: str = "antialias"
    scale: bool = False
    qkv_bias: bool = True
    key_bias: bool = True
    gated: bool = False
    rms: bool = False
    pre_norm: bool = False
    activation: str = "gelu"
    eps: float = 1e-6
    rotary: bool = False
    relative: bool = False
    pooling_head: bool = False
    pool_heads: int = 0
    counted: bool = False
    final_norm: bool = True

    @property
    def hidden(self) -> int:
        return 4 * self.width

    def weights(self, seed: int = 0) -> dict[str, Tensor]:
        """By short names: `norm1.w` of block 2 is `2.norm1.w`."""
        draw = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=draw) * 0.1

        def norm(name: str) -> dict[str, Tensor]:
            found = {f"{name}.w": 1 + normal(self.width)}
            return found if self.rms else {**found, f"{name}.b": normal(self.width)}

        def linear(name: str, into: int, of: int, bias: bool = True) -> dict[str, Tensor]:
            return {f"{name}.w": normal(into, of), **({f"{name}.b": normal(into)} if bias else {})}

        d, plain = self.width, not self.rms  # AIMv2 has no bias anywhere but in the patch convolution
        found = {"patch.w": normal(d, 3, self.patch, self.patch)}
        found |= {} if self.pre_norm else {"patch.b": normal(d)}
        found |= {"cls": normal(1, 1, d)} if self.class_token else {}
        found |= {"reg": normal(1, self.registers, d)} if self.registers else {}
        places = self.grid**2 + (self.positions == "all" and self.class_token)
        found |= {"pos": normal(1, places, d)} if self.positions != "none" else {}
        found |= norm("pre") if self.pre_norm or self.rms else {}
        for i in range(self.depth):
            found |= norm(f"{i}.norm1") | norm(f"{i}.norm2")
            found |= linear(f"{i}.qkv", 3 * d, d, self.qkv_bias)
            if self.qkv_bias and not self.key_bias:
                found[f"{i}.qkv.b"][d : 2 * d] = 0
            found |= linear(f"{i}.proj", d, d, plain) | linear(f"{i}.fc1", self.hidden, d, plain)
            found |= linear(f"{i}.gate", self.hidden, d, plain) if self.gated else {}
            found |= linear(f"{i}.fc2", d, self.hidden, plain)
            found |= {f"{i}.scale1": 1 + normal(d), f"{i}.scale2": 1 + normal(d)} if self.scale else {}
            found |= {f"{i}.table": normal((2 * self.grid - 1) ** 2 + 3, self.heads)} if self.relative else {}
        found |= norm("norm") if self.final_norm else {}
        if self.pooling_head:
            found |= {"head.probe": normal(1, 1, d)} | linear("head.qkv", 3 * d, d) | linear("head.proj", d, d)
            found |= norm("head.norm") | linear("head.fc1", self.hidden, d) | linear("head.fc2", d, self.hidden)
        return found

    def blocks(self, w: dict[str, Tensor], images: Tensor) -> list[Tensor]:
        """(N, T, D) tokens after each block, each through the final norm."""
        maps = F.conv2d(images, w["patch.w"], w.get("patch.b"), stride=self.patch)
        height, width = maps.shape[2:]
        x = maps.flatten(2).transpose(1, 2)
        if self.rms:
            x = self._norm(w, "pre", x)
        if self.positions != "none":
            patches, of_class = self._positions(w["pos"], height, width)
            x = x + patches
        parts = []
        if self.class_token:
            parts.append(w["cls"] + (of_class if self.positions == "all" else 0))
        parts += [w["reg"]] if self.registers else []
        x = torch.cat([*(part.expand(len(x), -1, -1) for part in parts), x], 1)
        if self.pre_norm:
            x = self._norm(w, "pre", x)
        found = []
        for i in range(self.depth):
            attended = self._attention(w, i, self._norm(w, f"{i}.norm1", x), height, width)
            x = x + attended * (w[f"{i}.scale1"] if self.scale else 1)
            x = x + self._mlp(w, f"{i}.", self._norm(w, f"{i}.norm2", x)) * (w[f"{i}.scale2"] if self.scale else 1)
            found.append(self._norm(w, "norm", x) if self.final_norm else x)
        return found

    def pooled(self, w: dict[str, Tensor], tokens: Tensor) -> Tensor:
        """SigLIP's attention pooling of the last block's normed tokens."""
        d = self.width
        q = F.linear(w["head.probe"], w["head.qkv.w"][:d], w["head.qkv.b"][:d]).expand(len(tokens), -1, -1)
        k, v = F.linear(tokens, w["head.qkv.w"][d:], w["head.qkv.b"][d:]).chunk(2, -1)
        x = F.linear(self._heads(q, k, v, heads=self.pool_heads), w["head.proj.w"], w["head.proj.b"])
        return (x + self._mlp(w, "head.", self._norm(w, "head.norm", x)))[:, 0]

    def _norm(self, w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
        if self.rms:
            return x / (x.square().mean(-1, keepdim=True) + self.eps).sqrt() * w[f"{name}.w"]
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + self.eps).sqrt() * w[f"{name}.w"] + w[f"{name}.b"]

    def _positions(self, pos: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        patches, of_class = pos[:, -(self.grid**2) :], pos[:, :1]
        if (height, width) == (self.grid, self.grid):
            return patches, of_class
        maps = patches.transpose(1, 2).reshape(1, -1, self.grid, self.grid)
        if self.away == "offset":
            scale = (height + 0.1) / self.grid, (width + 0.1) / self.grid
            maps = F.interpolate(maps, scale_factor=scale, mode="bicubic")
        elif self.away == "bilinear":
            maps = F.interpolate(maps, size=(height, width), mode="bilinear")
        elif self.away == "square":
            maps = F.interpolate(maps, size=(max(height, width),) * 2, mode="bilinear")[:, :, :height, :width]
        else:
            maps = F.interpolate(maps, size=(height, width), mode="bicubic", antialias=True)
        return maps.flatten(2).transpose(1, 2), of_class

    def _attention(self, w: dict[str, Tensor], i: int, x: Tensor, height: int, width: int) -> Tensor:
        q, k, v = F.linear(x, w[f"{i}.qkv.w"], w.get(f"{i}.qkv.b")).chunk(3, -1)
        if self.counted:
            q, k = (self._turned_by_count(part, height, width) for part in (q, k))
        if self.rotary:
            q, k = (self._rotated(part, height, width) for part in (q, k))
        bias = self._relative_bias(w[f"{i}.table"]) if self.relative else None
        return F.linear(self._heads(q, k, v, bias), w[f"{i}.proj.w"], w.get(f"{i}.proj.b"))

    def _heads(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, heads: int = 0) -> Tensor:
        heads = heads or self.heads
        size = self.width // heads
        found = []
        for head in range(heads):
            at = slice(head * size, (head + 1) * size)
            scores = q[..., at] @ k[..., at].transpose(1, 2) / math.sqrt(size)
            weights = (scores if bias is None else scores + bias[:, :, head]).softmax(-1)
            found.append(weights @ v[..., at])
        return torch.cat(found, -1)

    def _relative_bias(self, table: Tensor) -> Tensor:
        """(T, T, heads): by the distance of two patches, and one each for class to patch, patch to class, class."""
        side, count = 2 * self.grid - 1, self.grid**2 + 1
        index = torch.full((count, count), len(table) - 1)
        index[0, 1:], index[1:, 0] = len(table) - 3, len(table) - 2
        for a in range(count - 1):
            for b in range(count - 1):
                rows, columns = a // self.grid - b // self.grid, a % self.grid - b % self.grid
                index[a + 1, b + 1] = (rows + self.grid - 1) * side + columns + self.grid - 1
        return table[index]

    def _rotated(self, x: Tensor, height: int, width: int) -> Tensor:
        """DINOv3: patches are turned by angles of their row and column in -1 to 1, other tokens are not."""
        size = self.width // self.heads
        periods = (100 ** (2 * torch.arange(size // 4) / (size // 2))).bfloat16().float()
        rows, columns = (2 * (torch.arange(n) + 0.5) / n - 1 for n in (height, width))
        prefix = x.shape[1] - height * width
        turned = x.clone()
        for number in range(height * width):
            angles = torch.cat([rows[number // width] / periods, columns[number % width] / periods]) * 2 * math.pi
            sin, cos = angles.sin().repeat(2), angles.cos().repeat(2)
            for head in range(self.heads):
                part = x[:, prefix + number, head * size : (head + 1) * size]
                half = torch.cat([-part[:, size // 2 :], part[:, : size // 2]], 1)
                turned[:, prefix + number, head * size : (head + 1) * size] = part * cos + half * sin
        return turned

    def _turned_by_count(self, x: Tensor, height: int, width: int) -> Tensor:
        """PE: pairs of channels are turned by the number of the column, then of the row, from 1 with a class token."""
        size, first = self.width // self.heads, int(self.class_token)
        turned = x.clone()
        for number in range(height * width):
            for half, place in enumerate((number % width + first, number // width + first)):
                for pair in range(size // 4):
                    angle = place / 10000 ** (pair / (size // 4))
                    sin, cos = math.sin(angle), math.cos(angle)
                    for head in range(self.heads):
                        at = head * size + half * size // 2 + 2 * pair
                        a, b = x[:, first + number, at], x[:, first + number, at + 1]
                        turned[:, first + number, at] = a * cos - b * sin
                        turned[:, first + number, at + 1] = b * cos + a * sin
        return turned

    def _mlp(self, w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
        first = F.linear(x, w[f"{name}fc1.w"], w.get(f"{name}fc1.b"))
        if self.gated:
            first = F.silu(F.linear(x, w[f"{name}gate.w"], w.get(f"{name}gate.b"))) * first
        elif self.activation == "quick_gelu":
            first = first * torch.sigmoid(1.702 * first)
        elif self.activation == "gelu_tanh":
            first = 0.5 * first * (1 + torch.tanh(math.sqrt(2 / math.pi) * (first + 0.044715 * first**3)))
        else:
            first = 0.5 * first * (1 + torch.erf(first / math.sqrt(2)))
        return F.linear(first, w[f"{name}fc2.w"], w.get(f"{name}fc2.b"))


def plain_capi(w: dict[str, Tensor], images: Tensor, heads: int) -> list[Tensor]:
    """(N, D, rows, columns) of CAPI's patch tokens after each block, from the tensors of its encoder by their names."""

    def norm(x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()

    maps = F.conv2d(images, w["patch_embed.weight"], w["patch_embed.bias"], stride=w["patch_embed.weight"].shape[-1])
    rows, columns = maps.shape[2:]
    registers = w["registers"].shape[1]
    side = registers // 4
    edge = [(i / side, 0.0) for i in range(side)] + [(1.0, i / side) for i in range(side)]
    edge += [(1 - i / side, 1.0) for i in range(side)] + [(0.0, 1 - i / side) for i in range(side)]
    places = edge + [(r / (rows - 1), c / (columns - 1)) for r in range(rows) for c in range(columns)]
    x = torch.cat([w["registers"].expand(len(images), -1, -1), maps.flatten(2).transpose(1, 2)], 1)
    found = []
    for block in range(1 + max(int(name.split(".")[2]) for name in w if name.startswith("encoder.blocks."))):
        at = f"encoder.blocks.{block}.residual"
        y = norm(x) * w[f"{at}1.norm.weight"]
        q, k, v = (F.linear(y, w[f"{at}1.fn.{part}_proj.weight"]) for part in "qkv")
        size = q.shape[2] // heads
        mixed = []
        for head in range(heads):
            parts = [part[:, :, head * size : (head + 1) * size] for part in (q, k, v)]
            for which in (0, 1):
                part, turned = parts[which], []
                for token, (down, across) in enumerate(places):
                    angle = down * w[f"{at}1.fn.rope.freqs"][0] + across * w[f"{at}1.fn.rope.freqs"][1]
                    one = part[:, token]
                    half = torch.cat([-one[:, size // 2 :], one[:, : size // 2]], 1)
                    turned.append(one * angle.cos() + half * angle.sin())
                parts[which] = torch.stack(turned, 1)
            scores = parts[0] @ parts[1].transpose(1, 2) / math.sqrt(size)
            mixed.append(scores.softmax(-1) @ parts[2])
        x = x + F.linear(torch.cat(mixed, 2), w[f"{at}1.fn.proj.weight"])
        y = F.linear(norm(x) * w[f"{at}2.norm.weight"], w[f"{at}2.fn.fc1.weight"])
        x = x + F.linear(0.5 * y * (1 + torch.erf(y / math.sqrt(2))), w[f"{at}2.fn.fc2.weight"])
        found.append(norm(x)[:, registers:].transpose(1, 2).reshape(len(images), -1, rows, columns))
    return found

"""detectron2's ViT with LayerScale, a norm before the blocks, registers, and patches of other sizes.

ViTDet is made for patches of 16 pixels: its pyramid has strides of 4 to 32. An encoder with patches of P pixels sees
the detector's image resized by P / 16, so that the grid of its patches and all strides stay as they are: 1024 pixels
become 896 for patches of 14. Boxes, anchors and masks keep the pixels of the detector's image.

Tokens besides the patches attend together with them. In a block with windows, every window has its own copy of these
tokens, and the mean over the windows goes on to the next block. Relative positions are those between patches.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.encoders.vit_export import VitShape

STRIDE = 16  # pixels of the detector's image from one patch to the next, for every encoder


def is_plain(shape: VitShape, tokens: int) -> bool:
    """Whether detectron2's ViT holds an encoder as it is.

    Args:
        tokens: besides the patches.
    """
    return shape.patch == STRIDE and shape.patch_bias and not (tokens or shape.layer_scale or shape.norm_before)


class LayerScale(nn.Module):
    """Multiplies by a trained vector."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


@cache
def card_vit() -> Any:
    """The class of the backbone. It takes the arguments of detectron2's ViT and those of its own."""
    from detectron2.modeling.backbone.utils import add_decomposed_rel_pos, window_partition, window_unpartition
    from detectron2.modeling.backbone.vit import Block, ViT

    class CardBlock(Block):
        """detectron2's block on (N, T + H * W, D) tokens, of which the first T are not patches."""

        def __init__(self, layer_scale: bool, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            scale: Any = LayerScale if layer_scale else nn.Identity
            self.ls1, self.ls2 = scale(kwargs["dim"]), scale(kwargs["dim"])

        def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
            x = x + self.drop_path(self.ls1(self._attended(self.norm1(x), grid)))
            return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))

        def _attended(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
            if not self.window_size:
                return self._attention(x, grid)
            number, side = x.shape[1] - grid[0] * grid[1], self.window_size
            windows, padded = window_partition(x[:, number:].unflatten(1, grid), side)
            copies = x[:, :number].repeat_interleave(len(windows) // len(x), 0)
            y = self._attention(torch.cat([copies, windows.flatten(1, 2)], 1), (side, side))
            patches = window_unpartition(y[:, number:].unflatten(1, (side, side)), side, padded, grid)
            tokens = y[:, :number].unflatten(0, (len(x), -1)).mean(1)
            return torch.cat([tokens, patches.flatten(1, 2)], 1)

        def _attention(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
            """As detectron2's Attention, which takes patches only."""
            of, (batch, length, _) = self.attn, x.shape
            number = length - grid[0] * grid[1]
            q, k, v = of.qkv(x).unflatten(2, (3, of.num_heads, -1)).permute(2, 0, 3, 1, 4).flatten(1, 2)
            weights = (q * of.scale) @ k.mT
            if of.use_rel_pos:
                between = weights[:, number:, number:].contiguous()
                between = add_decomposed_rel_pos(between, q[:, number:], of.rel_pos_h, of.rel_pos_w, grid, grid)
                of_patches = torch.cat([weights[:, number:, :number], between], 2)
                weights = torch.cat([weights[:, :number], of_patches], 1)
            mixed = (weights.softmax(-1) @ v).unflatten(0, (batch, -1)).transpose(1, 2).flatten(2)
            projected: Tensor = of.proj(mixed)
            return projected

    class CardViT(ViT):
        """See this module.

        Args:
            tokens: besides the patches, trained.
        """

        def __init__(self, tokens: int, layer_scale: bool, norm_before: bool, patch_bias: bool, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            width, norm = kwargs["embed_dim"], kwargs["norm_layer"]
            if not patch_bias:
                self.patch_embed.proj.register_parameter("bias", None)
            if tokens:  # below the patch embedding, so that they have the rate of the first layer
                self.patch_embed.tokens = nn.Parameter(torch.zeros(1, tokens, width))
            self.tokens = tokens
            self.norm_pre = norm(width) if norm_before else nn.Identity()
            rates = torch.linspace(0, kwargs["drop_path_rate"], kwargs["depth"]).tolist()
            windowed, side = kwargs["window_block_indexes"], kwargs["img_size"] // kwargs["patch_size"]
            self.blocks = nn.ModuleList(
                CardBlock(
                    layer_scale, dim=width, num_heads=kwargs["num_heads"], mlp_ratio=kwargs["mlp_ratio"],
                    qkv_bias=kwargs["qkv_bias"], drop_path=rate, norm_layer=norm, act_layer=kwargs["act_layer"],
                    use_rel_pos=kwargs["use_rel_pos"], window_size=kwargs["window_size"] if n in windowed else 0,
                    input_size=(side, side),
                )
                for n, rate in enumerate(rates)
            )  # fmt: skip
            self.patch_size = kwargs["patch_size"]
            self._out_feature_strides = dict.fromkeys(self._out_features, STRIDE)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            if self.patch_size != STRIDE:
                sides = [side * self.patch_size // STRIDE for side in x.shape[-2:]]
                x = nn.functional.interpolate(x, sides, mode="bilinear", antialias=True)
            x = self.patch_embed(x)
            grid = x.shape[1:3]
            x = (x + self.pos_embed.unflatten(1, grid)).flatten(1, 2)
            if self.tokens:
                x = torch.cat([self.patch_embed.tokens.expand(len(x), -1, -1), x], 1)
            x = self.norm_pre(x)
            for block in self.blocks:
                x = block(x, grid)
            return {self._out_features[0]: x[:, self.tokens :].mT.unflatten(2, grid)}

    return CardViT

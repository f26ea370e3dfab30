"""Names of ConvNeXt's and Swin's own files, as timm names the same tensors.

timm's networks are the same, but their stages begin with the downsampling that Swin's own stages end with, and some
tensors have other names. Files that have timm's names already are left as they are. Nothing is resized: a file for
another image size or window is refused when the network is filled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_CONVNEXT = (
    (r"^downsample_layers\.0\.", "stem."),
    (r"^downsample_layers\.(\d+)\.(\d+)\.", r"stages.\1.downsample.\2."),
    (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.pwconv([12])\.", r".mlp.fc\1."),
    (r"\.grn\.gamma$", ".mlp.grn.weight"),
    (r"\.grn\.beta$", ".mlp.grn.bias"),
    (r"^norm\.", "head.norm."),
)
CONVNEXT_MARK, SWIN_MARK = "downsample_layers.0.0.weight", "layers.0.downsample.reduction.weight"
_SWIN_BUFFERS = ("relative_position_index", "relative_coords_table", "attn_mask")  # timm computes them


def stage_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a ConvNeXt or a Swin by timm's names where they have those of its own code, or as they are.

    The classifier of either, and the norms of single stages in DINOv3's ConvNeXt, are left out.
    """
    if CONVNEXT_MARK in tensors:
        found = {}
        for key, tensor in tensors.items():
            name = key
            for pattern, replacement in _CONVNEXT:
                name = re.sub(pattern, replacement, name)
            if not key.startswith(("head.", "norms.")):
                found[name] = tensor.flatten() if ".grn." in name else tensor
        return found
    if any(name.endswith(".relative_position_bias_table") and name.startswith("layers.") for name in tensors):
        own = SWIN_MARK in tensors
        later = {name: re.sub(r"^layers\.(\d+)\.downsample\.", _in_the_next, name) if own else name for name in tensors}
        return {
            later[name]: tensor
            for name, tensor in tensors.items()
            if not name.endswith(_SWIN_BUFFERS) and not name.startswith("head.")
        }
    return dict(tensors)


def _in_the_next(match: re.Match[str]) -> str:
    return f"layers.{int(match[1]) + 1}.downsample."

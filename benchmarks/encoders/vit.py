"""The architecture of a vision transformer from the shapes of its tensors, as a timm model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from benchmarks.contract import InputError
from results.schema import Architecture

# Width of the tokens to the name of the size (ViT, Table 1; DeiT for the two small ones). Heads of 64 are usual, and
# shapes do not show them.
SIZES = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge"}


def infer_vit(tensors: Mapping[str, Tensor], source: str) -> tuple[Architecture, dict[str, Tensor]]:
    """The timm model that has these shapes, and the tensors as it holds them.

    Raises:
        InputError: no such model in timm.
    """
    import timm

    patch = tensors.get("patch_embed.proj.weight")
    if patch is None or patch.ndim != 4:
        raise InputError(f"{source} is neither a ResNet nor a ViT; give --facts architecture=timm:NAME")
    size, side = SIZES.get(patch.shape[0], f"of width {patch.shape[0]}"), patch.shape[-1]
    registers = tensors["reg_token"].shape[1] if "reg_token" in tensors else 0
    ending = f"_patch{side}_224"
    if "blocks.0.ls1.gamma" in tensors:  # DINOv2 scales its layers, and alone has registers there
        ending = f"_patch{side}{f'_reg{registers}' if registers else ''}_dinov2"
    elif registers:
        ending = f"_patch{side}_reg{registers}_224"
    name = f"vit_{size}{ending}"
    if not timm.is_model(name):
        raise InputError(
            f"{source} has the shapes of {name}, which timm does not have; give --facts architecture=timm:NAME"
        )
    return Architecture(name=f"timm:{name}"), timm_dinov2(tensors)


def timm_dinov2(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """DINOv2's tensors as timm holds them: no mask token, and with registers the class token's position is added to it.

    DINOv2 inserts registers after the positions are added, so its position embedding counts the class token alone.
    """
    kept = {name: tensor for name, tensor in tensors.items() if name != "mask_token"}
    patches = kept["pos_embed"].shape[1] if "pos_embed" in kept else 0
    if "reg_token" in kept and round((patches - 1) ** 0.5) ** 2 == patches - 1:
        kept["cls_token"] = kept["cls_token"] + kept["pos_embed"][:, :1]
        kept["pos_embed"] = kept["pos_embed"][:, 1:]
    return kept

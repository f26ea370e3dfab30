"""The families of vision transformers: how their files name tensors, and what their keys do not show.

A *naming scheme* turns the names of one code base into timm's. A *family* then says how timm's model has to be built so
that it computes what the family's own code computes: number of heads, positions at other image sizes, activation, and
which tokens make `embed`. `NAMINGS` and `FAMILIES` list them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.encoders.encoder import matches, renamed
from benchmarks.encoders.layouts import Rules
from benchmarks.task import InputError
from results.errors import did_you_mean
from results.schema import EncoderCard

Tensors = dict[str, Tensor]


# ---- naming schemes --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VitNaming:
    """How one code base names the tensors of a vision transformer.

    Attributes:
        patch: the name of the patch convolution's weight. What stands before it in a file is the prefix of the tower.
        rules: (pattern, replacement) pairs, applied in turn.
        ignore: patterns of names that belong to training or to a head, beyond those of `_OF_TRAINING`.
        finish: what renaming alone cannot do, such as joining queries, keys and values.
    """

    name: str
    patch: str
    rules: Rules
    ignore: tuple[str, ...] = ()
    finish: Callable[[Tensors], Tensors] = dict


def _timm_names(tensors: Tensors) -> Tensors:
    """DINOv3's, DINOv2's and DeiT III's own names, which differ from timm's in a few places."""
    if any(name.startswith("rope_embed.") for name in tensors):
        return _dinov3_names(tensors)
    rules = [(r"\.mlp\.w12\.", ".mlp.fc1."), (r"\.mlp\.w3\.", ".mlp.fc2.")]
    if not any(name.endswith("relative_position_bias_table") or name.startswith("reg_") for name in tensors):
        rules.append((r"^(blocks\.\d+)\.gamma_([12])$", r"\1.ls\2.gamma"))  # DeiT III
    return class_position_folded(_renamed(tensors, rules))


def _renamed(tensors: Tensors, rules: Rules) -> Tensors:
    return {renamed(name, rules): tensor for name, tensor in tensors.items()}


def _dinov3_names(tensors: Tensors) -> Tensors:
    """The keys have no bias: a mask in the file makes its part zero."""
    found: Tensors = {}
    for name, tensor in tensors.items():
        if name.endswith(".qkv.bias"):
            query, key, value = tensor.chunk(3)
            mask = tensors.get(f"{name}_mask", torch.ones_like(tensor)).chunk(3)[1]
            if (key * mask).any():
                raise InputError(
                    f"{name} has a key bias, which timm's DINOv3 does not have; wrap the model as "
                    "my_package.my_module:build"
                )
            found[name.replace("qkv.bias", "q_bias")], found[name.replace("qkv.bias", "v_bias")] = query, value
        elif not name.endswith(".qkv.bias_mask"):
            found[name] = tensor
    gated = [(r"\.mlp\.w1\.", ".mlp.fc1_g."), (r"\.mlp\.w2\.", ".mlp.fc1_x."), (r"\.mlp\.w3\.", ".mlp.fc2.")]
    return _renamed(found, [(r"\.ls([12])\.gamma$", r".gamma_\1"), *gated])


def class_position_folded(tensors: Tensors) -> Tensors:
    """DINOv2's registers as timm has them: the class token includes its position.

    DINOv2 inserts registers after it adds positions, so its position embedding has one place for the class token only.
    """
    kept = dict(tensors)
    places = kept["pos_embed"].shape[1] if "pos_embed" in kept else 0
    if "reg_token" in kept and "cls_token" in kept and places > 1 and round((places - 1) ** 0.5) ** 2 == places - 1:
        kept["cls_token"] = kept["cls_token"] + kept["pos_embed"][:, :1]
        kept["pos_embed"] = kept["pos_embed"][:, 1:]
    return kept


def _joined(tensors: Tensors) -> Tensors:
    """Queries, keys and values as one tensor. Without a bias of the keys, those of the others stay apart."""
    found = {name: tensor for name, tensor in tensors.items() if not re.search(r"\.attn\.[qkv]\.", name)}
    for name in (name for name in tensors if name.endswith(".attn.q.weight")):
        block = name.removesuffix("q.weight")
        found[f"{block}qkv.weight"] = torch.cat([tensors[f"{block}{part}.weight"] for part in "qkv"])
        biases = {part: tensors[f"{block}{part}.bias"] for part in "qkv" if f"{block}{part}.bias" in tensors}
        if len(biases) == 3:
            found[f"{block}qkv.bias"] = torch.cat(list(biases.values()))
        else:
            found |= {f"{block}{part}_bias": bias for part, bias in biases.items()}
    return found


def _clip_names(tensors: Tensors) -> Tensors:
    """Tokens and positions get the leading dimensions of timm's, and the projections of SigLIP's head are split."""
    found: Tensors = {}
    for name, tensor in _joined(tensors).items():
        if name == "cls_token" and tensor.ndim == 1:
            tensor = tensor[None, None]
        if name == "pos_embed" and tensor.ndim == 2:
            tensor = tensor[None]
        joined = re.fullmatch(r"attn_pool\.in_proj_(weight|bias)", name)
        if joined:
            width = len(tensor) // 3
            found[f"attn_pool.q.{joined[1]}"], found[f"attn_pool.kv.{joined[1]}"] = tensor[:width], tensor[width:]
        else:
            found[name] = tensor
    return found


def _radio_names(tensors: Tensors) -> Tensors:
    """The matrix of the patches as a convolution, and the first of the tokens without a position as the class token."""
    found = dict(tensors)
    matrix, tokens = found["patch_embed.proj.weight"], found.pop("tokens", None)
    side = round((matrix.shape[1] / 3) ** 0.5)
    if matrix.ndim == 2 and 3 * side**2 == matrix.shape[1]:
        found["patch_embed.proj.weight"] = matrix.unflatten(1, (3, side, side))
    found.setdefault("patch_embed.proj.bias", matrix.new_zeros(len(matrix)))
    if tokens is not None and tokens.ndim == 2:
        found |= {"cls_token": tokens[None, :1], "reg_token": tokens[None, 1:]}
        if len(tokens) == 1:
            del found["reg_token"]
    return found


def radio_facts(
    tensors: Mapping[str, Mapping[str, Tensor]], values: Mapping[str, Any], source: str
) -> tuple[list[int], dict[str, Any]]:
    """Which of RADIO's class tokens make its summary, and the mean and standard deviation that its network applies.

    Raises:
        InputError: nothing in the file says it, or the file has parts that are not applied here.
    """
    found = {key: tensor for mapping in tensors.values() for key, tensor in mapping.items()}
    if any(".parametrizations." in key for key in found):
        raise InputError(
            f"{source} is a RADIO with spectral reparametrisation; save it with its own enable_spectral_reparam.py "
            "first, or give the model.safetensors of the Hugging Face hub"
        )
    if any(re.search(r"(^|[._])feature_normalizer\.(mean|tx)$", key) for key in found):
        raise InputError(
            f"{source} is a RADIO with a feature normaliser, which is not supported; give the version without it, or "
            "wrap the model as my_package.my_module:build"
        )
    facts: dict[str, Any] = {"value_range": 1.0, "channels": "RGB"}
    for name in ("mean", "std"):
        of_file = [tensor for key, tensor in found.items() if key.endswith(f"input_conditioner.norm_{name}")]
        if of_file and of_file[0].numel() == 3:
            facts[name] = tuple(round(float(value), 8) for value in of_file[0].flatten())
    indices = [tensor for key, tensor in found.items() if key.endswith("summary_idxs")]
    if indices and indices[0].numel() <= _MAX_SUMMARY:
        return [int(place) for place in indices[0].flatten()], facts
    if values.get("cls_token_per_teacher") is False or any("inner.patch_generator." in key for key in found):
        return [0], facts
    teachers = values.get("teachers")
    if not isinstance(teachers, list):
        raise InputError(
            f"{source} is a RADIO, and does not say which of its class tokens make the summary; give the model folder "
            "of the Hugging Face hub as hf:FOLDER, or the whole checkpoint with its args"
        )
    places: dict[str, int] = {}
    for place, teacher in enumerate(teachers):
        if teacher.get("use_summary", True):
            places.setdefault(str(teacher.get("name")), place)
    return sorted(places.values()), facts


def with_summary_first(tensors: Tensors, summary: Sequence[int], source: str) -> Tensors:
    """RADIO's tensors by timm's names, with the class tokens of its summary before its other ones."""
    own = [tensors[name] for name in ("cls_token", "reg_token") if name in tensors]
    if not own:
        raise InputError(f"{source} is a RADIO without class tokens; give another version")
    tokens = torch.cat(own, 1)
    count = tokens.shape[1]
    if not summary or max(summary) >= count or min(summary) < 0:
        raise InputError(f"{source} has {count} tokens, of which its summary takes {summary}; the file is damaged")
    order = [*summary, *(place for place in range(count) if place not in summary)]
    found = {name: tensor for name, tensor in tensors.items() if name != "reg_token"}
    return found | {"cls_token": tokens[:, order[:1]]} | ({"reg_token": tokens[:, order[1:]]} if count > 1 else {})


_MAX_SUMMARY = 64  # tokens; releases have up to four
_OF_TRAINING = ("mask_token", "masked_embed", "decoder_*", "local_cls_norm.*", "*relative_position_index", "lm_head.*",
                "fc.*", "head.*", "head_dist.*", "classifier.*", "pos_embed_cached")  # fmt: skip

NAMINGS = (
    VitNaming(
        "timm's names", "patch_embed.proj.weight",
        ((r"^(register_tokens|storage_tokens)$", "reg_token"), (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.")),
        finish=_timm_names,
    ),
    VitNaming(
        "transformers' ViT names", "embeddings.patch_embeddings.projection.weight",
        (
            (r"^embeddings\.(cls_token|mask_token)$", r"\1"),
            (r"^embeddings\.position_embeddings$", "pos_embed"),
            (r"^embeddings\.register_tokens$", "reg_token"),
            (r"^embeddings\.distillation_token$", "dist_token"),
            (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
            (r"^encoder\.layer\.", "blocks."),
            (r"^encoder\.relative_position_bias\.", "rel_pos_bias."),
            (r"\.attention\.attention\.relative_position_bias\.", ".attn."),
            (r"\.attention\.attention\.([qkv])(uery|ey|alue)\.", r".attn.\1."),
            (r"\.attention\.output\.dense\.", ".attn.proj."),
            (r"\.intermediate\.dense\.", ".mlp.fc1."),
            (r"\.output\.dense\.", ".mlp.fc2."),
            (r"\.layernorm_before\.", ".norm1."),
            (r"\.layernorm_after\.", ".norm2."),
            (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
            (r"\.lambda_([12])$", r".gamma_\1"),
            (r"\.mlp\.weights_in\.", ".mlp.fc1."),
            (r"\.mlp\.weights_out\.", ".mlp.fc2."),
            (r"^layernorm\.", "norm."),
            (r"^pooler\.layernorm\.", "fc_norm."),
        ),
        ("pooler.dense.*", "decoder.*"), lambda tensors: class_position_folded(_joined(tensors)),
    ),
    VitNaming(
        "transformers' DINOv3 names", "embeddings.patch_embeddings.weight",
        (
            (r"^embeddings\.(cls_token|mask_token)$", r"\1"),
            (r"^embeddings\.register_tokens$", "reg_token"),
            (r"^embeddings\.patch_embeddings\.", "patch_embed.proj."),
            (r"^(model\.)?layer\.", "blocks."),
            (r"\.attention\.([qkv])_proj\.", r".attn.\1."),
            (r"\.attention\.o_proj\.", ".attn.proj."),
            (r"\.layer_scale([12])\.lambda1$", r".gamma_\1"),
            (r"\.mlp\.gate_proj\.", ".mlp.fc1_g."),
            (r"\.mlp\.down_proj\.", ".mlp.fc2."),
        ),
        ("rope_embeddings.*",), lambda tensors: _gated(_joined(tensors)),
    ),
    VitNaming(
        "transformers' CLIP names", "embeddings.patch_embedding.weight",
        (
            (r"^embeddings\.class_embedding$", "cls_token"),
            (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
            (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
            (r"^pre_layrnorm\.", "norm_pre."),
            (r"^post_layernorm\.", "norm."),
            (r"^encoder\.layers\.", "blocks."),
            (r"\.layer_norm([12])\.", r".norm\1."),
            (r"\.self_attn\.([qkv])_proj\.", r".attn.\1."),
            (r"\.self_attn\.out_proj\.", ".attn.proj."),
            (r"^head\.probe$", "attn_pool.latent"),
            (r"^head\.attention\.out_proj\.", "attn_pool.proj."),
            (r"^head\.attention\.in_proj", "attn_pool.in_proj"),
            (r"^head\.layernorm\.", "attn_pool.norm."),
            (r"^head\.mlp\.", "attn_pool.mlp."),
        ),
        ("embeddings.position_ids",), _clip_names,
    ),
    VitNaming(
        "transformers' AIMv2 names", "embeddings.patch_embed.weight",
        (
            (r"^embeddings\.patch_embed\.", "patch_embed.proj."),
            (r"^embeddings\.rms_norm\.", "patch_embed.norm."),
            (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
            (r"^encoder\.layers\.", "blocks."),
            (r"\.attention\.([qkv])_proj\.", r".attn.\1."),
            (r"\.attention\.out_proj\.", ".attn.proj."),
            (r"\.rms_norm([12])\.", r".norm\1."),
            (r"\.ffn\.gate_proj\.", ".mlp.fc1_g."),
            (r"\.ffn\.up_proj\.", ".mlp.fc1_x."),
            (r"\.ffn\.down_proj\.", ".mlp.fc2."),
            (r"^rms_norm\.", "norm."),
        ),
        ("head.*", "embeddings.position_ids"), _clip_names,
    ),
    VitNaming(
        "AIMv2's names", "preprocessor.patchifier.proj.weight",
        (
            (r"^preprocessor\.patchifier\.", "patch_embed."),
            (r"^preprocessor\.pos_embed$", "pos_embed"),
            (r"^trunk\.post_trunk_norm\.", "norm."),
            (r"^trunk\.", ""),
            (r"\.norm_([12])\.", r".norm\1."),
            (r"\.mlp\.fc1\.", ".mlp.fc1_g."),
            (r"\.mlp\.fc3\.", ".mlp.fc1_x."),
        ),
        ("head.*",),
    ),
    VitNaming(
        "RADIO's names", "patch_generator.embedder.weight",
        (
            (r"^patch_generator\.embedder\.", "patch_embed.proj."),
            (r"^patch_generator\.pos_embed$", "pos_embed"),
            (r"^patch_generator\.cls_token\.token$", "tokens"),
            (r"\.ls([12])\.grandma$", r".ls\1.gamma"),
            (r"\.mlp\.w12\.", ".mlp.fc1."),
            (r"\.mlp\.w3\.", ".mlp.fc2."),
        ),
        finish=_radio_names,
    ),
    VitNaming(
        "CLIP's names", "conv1.weight",
        (
            (r"^conv1\.", "patch_embed.proj."),
            (r"^class_embedding$", "cls_token"),
            (r"^positional_embedding$", "pos_embed"),
            (r"^ln_pre\.", "norm_pre."),
            (r"^ln_post\.", "norm."),
            (r"^transformer\.resblocks\.", "blocks."),
            (r"\.ln_([12])\.", r".norm\1."),
            (r"\.attn\.in_proj_", ".attn.qkv."),
            (r"\.attn\.out_proj\.", ".attn.proj."),
            (r"\bmlp\.c_fc\.", "mlp.fc1."),
            (r"\bmlp\.c_proj\.", "mlp.fc2."),
            (r"\.ls_([12])\.gamma$", r".gamma_\1"),
            (r"^attn_pool\.probe$", "attn_pool.latent"),
            (r"^attn_pool\.attn\.qkv\.", "attn_pool.in_proj_"),
            (r"^attn_pool\.attn\.proj\.", "attn_pool.proj."),
            (r"^attn_pool\.layernorm\.", "attn_pool.norm."),
        ),
        (), _clip_names,
    ),
)  # fmt: skip


def _gated(tensors: Tensors) -> Tensors:
    """DINOv3's plain MLP has up_proj as its first layer, the gated one as its ungated half."""
    gated = any(".mlp.fc1_g." in name for name in tensors)
    return {name.replace(".mlp.up_proj.", ".mlp.fc1_x." if gated else ".mlp.fc1."): t for name, t in tensors.items()}


def find_naming(names: Collection[str]) -> VitNaming | None:
    """The scheme of these tensor names, which have no prefix, if it is that of a vision transformer."""
    for naming in NAMINGS:
        if naming.patch in names and (naming.patch != "conv1.weight" or "positional_embedding" in names):
            return naming
    return None


def tower_prefixes(names: Collection[str]) -> list[str]:
    """The prefixes under which vision transformers are found, the shortest first."""
    found = {
        name.removesuffix(naming.patch)
        for naming in NAMINGS
        for name in names
        if name.endswith(naming.patch) and (name == naming.patch or name.removesuffix(naming.patch)[-1] == ".")
    }
    within = {prefix: {n.removeprefix(prefix) for n in names if n.startswith(prefix)} for prefix in found}
    return sorted((prefix for prefix, below in within.items() if find_naming(below)), key=lambda p: (len(p), p))


def as_timm(tensors: Mapping[str, Tensor], source: str) -> tuple[Tensors, int]:
    """The tensors under timm's names, and how many were left out because they belong to training or to a head."""
    naming = find_naming(tensors)
    if naming is None:
        raise InputError(f"{source} is neither a ResNet nor a ViT; give --facts architecture=timm:NAME")
    kept = {renamed(name, naming.rules): t for name, t in tensors.items() if not matches(name, naming.ignore)}
    found = {name: tensor for name, tensor in kept.items() if not matches(name, _OF_TRAINING)}
    return naming.finish(found), len(tensors) - len(found)


# ---- families --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VitFamily:
    """What keys do not show of a vision transformer.

    Attributes:
        name: as in --facts family=.
        recognised: by what a file is recognised, in words.
        sizes: width -> word for the size in timm's names.
        base: timm's name, with {size} and {patch}.
        heads: width -> heads, where they are not those of timm's model of this name. None: nothing fixes them, and the
            user has to say.
        pixels: table of releases.toml with mean and std; None where nothing fixes them.
        embed: tokens that make the embedding in the authors' own evaluation: cls, mean, cls+mean, or map for an
            attention pooling; None for timm's choice.
        embed_too: other tokens that they also evaluate.
        last_norm: what norms the tokens after the last block: `norm`; `fc_norm` where some files have that in its
            place, for the mean of the patch tokens; `optional` where some files have none; `none`.
        one_size: the network takes one image size only.
        positions: how positions are interpolated where the authors' code differs from timm's: `offset` by a scale
            factor with 0.1 added and no antialiasing, as DINO; `bilinear` without antialiasing, and rotary coordinates
            that count patches, as PE; `square` bilinearly to a square of the longer side, of which the upper left part
            is used, as RADIO. DINOv3's files decide by themselves.
        asks: fields that the user must give, because files of this family differ in them and keys do not show it.
        assumes: fields that the card lists as assumed where neither the file nor the user says them.
        assumed: what the family's own code leaves open, in words.
        source: where this was read.
    """

    name: str
    title: str
    recognised: str
    sizes: Mapping[int, str]
    base: str
    source: str
    heads: Mapping[int, int] | None = None
    fixed_heads: bool = True
    pixels: str | None = "imagenet"
    embed: str | None = None
    embed_too: tuple[str, ...] = ()
    last_norm: Literal["norm", "fc_norm", "optional", "none"] = "norm"
    one_size: bool = False
    positions: str | None = None
    asks: tuple[str, ...] = ()
    assumes: tuple[str, ...] = ()
    assumed: str = "nothing"


_COMMON = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge"}
_ONE_SIZE = "positions at other image sizes: timm's interpolation, because the authors' code takes one size only"

FAMILIES = (
    VitFamily(
        "dino", "DINO", "`teacher` and `student` with `backbone.` (training file)",
        _COMMON, "vit_{size}_patch{patch}_224",
        "facebookresearch/dino 7c446df vision_transformer.py, eval_knn.py, eval_linear.py", embed="cls",
        embed_too=("cls+mean",), positions="offset",
    ),
    VitFamily(
        "ibot", "iBOT", "`masked_embed`", _COMMON, "vit_{size}_patch{patch}_224",
        "bytedance/ibot c24f870 models/vision_transformer.py", embed="cls", embed_too=("cls+mean",), positions="offset",
    ),
    VitFamily(
        "dinov2", "DINOv2", "`ls1.gamma`, and a position for the class token",
        {**_COMMON, 1536: "giant"}, "vit_{size}_patch{patch}_dinov2",
        "facebookresearch/dinov2 b8931f7 models/vision_transformer.py, hub/backbones.py",
        embed="cls", embed_too=("cls+mean",), positions="offset",
    ),
    VitFamily(
        "dinov2-registers", "DINOv2 with registers", "`register_tokens` and `ls1.gamma`",
        {**_COMMON, 1536: "giant"}, "vit_{size}_patch{patch}_reg4_dinov2",
        "facebookresearch/dinov2 b8931f7 hub/backbones.py: no offset, antialiased", embed="cls",
        embed_too=("cls+mean",),
    ),
    VitFamily(
        "dinov3", "DINOv3", "`storage_tokens` and `rope_embed.periods`",
        {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge_plus", 4096: "7b"},
        "vit_{size}_patch{patch}_dinov3", "facebookresearch/dinov3 6876159 models/vision_transformer.py", embed="cls",
        embed_too=("cls+mean",),
        assumed="the satellite models (SAT-493M) have another mean and std. Its own files of width 1024 show which "
        "they are by `local_cls_norm`; in other files of width 1024 or 4096 the web models' are listed as assumed",
    ),
    VitFamily(
        "franca", "Franca", "DINOv2's names with a gated MLP at DINOv2's MLP widths, or `matryoshka_projections`",
        {**_COMMON, 1536: "giant"}, "vit_{size}_patch{patch}_dinov2",
        "valeoai/Franca 24f8c60 franca/models/vision_transformer.py, hub/backbones.py", embed="cls", positions="offset",
        assumed="the giant model without its heads has DINOv2's keys: add --facts family=franca; a DINOv2 of your own "
        "with a gated MLP and another width than 1536 has Franca's: add --facts family=dinov2. Either changes only the "
        "method in the card. RASA's projection is not part of it",
    ),
    VitFamily(
        "mae", "MAE", "`decoder_embed` (training file), or transformers' `vit_mae`", _COMMON,
        "vit_{size}_patch{patch}_224", "facebookresearch/mae efb2a80 models_vit.py, main_linprobe.py", embed="cls",
        last_norm="fc_norm", assumed=_ONE_SIZE,
    ),
    VitFamily(
        "mocov3", "MoCo v3", "`base_encoder.` and `momentum_encoder.`", _COMMON, "vit_{size}_patch{patch}_224",
        "facebookresearch/moco-v3 c349e6e vits.py", heads={384: 12, 768: 12}, embed="cls", assumed=_ONE_SIZE,
    ),
    VitFamily(
        "deit-distilled", "DeiT with distillation", "`dist_token`; transformers' `deit`", _COMMON,
        "deit_{size}_distilled_patch{patch}_224",
        "timm 1.0.31 models/deit.py", embed="cls", assumed=_ONE_SIZE,
    ),
    VitFamily(
        "deit3", "DeiT III", "`gamma_1`, and positions without one for the class token", {**_COMMON, 512: "medium"},
        "deit3_{size}_patch{patch}_224", "timm 1.0.31 models/deit.py", embed="cls", assumed=_ONE_SIZE,
    ),
    VitFamily(
        "deit", "DeiT", "as a plain file, only by --facts family=deit", _COMMON,
        "deit_{size}_patch{patch}_224", "timm 1.0.31 models/deit.py", embed="cls", assumed=_ONE_SIZE,
    ),
    VitFamily(
        "beit", "BEiT, BEiT v2", "`relative_position_bias_table`", {768: "base", 1024: "large"},
        "beit_{size}_patch{patch}_224", "timm 1.0.31 models/beit.py", pixels="half", embed="mean",
        last_norm="fc_norm", one_size=True,
    ),
    VitFamily(
        "ijepa", "I-JEPA", "`target_encoder` without a class token",
        {**_COMMON, 1408: "giant"}, "vit_{size}_patch{patch}_gap_224",
        "facebookresearch/ijepa 52c1ae9 src/models/vision_transformer.py", embed="mean",
        assumed="positions at other image sizes: timm's interpolation, because the authors' own takes a class token",
    ),
    VitFamily(
        "clip", "CLIP, OpenCLIP", "`ln_pre` and `class_embedding`",
        {384: "xsmall", 768: "base", 1024: "large", 1280: "huge", 1408: "giant", 1664: "gigantic"},
        "vit_{size}_patch{patch}_clip_224", "timm 1.0.31 models/vision_transformer.py; open_clip_torch 3.3.0",
        pixels="clip", embed="cls", asks=("activation",),
        assumed=f"`embed` is before the projection to text (`head`); {_ONE_SIZE}",
    ),
    VitFamily(
        "siglip", "SigLIP", "`attn_pool.latent`, or transformers' `head.probe`",
        {768: "base", 1024: "large", 1152: "so400m"}, "vit_{size}_patch{patch}_siglip_224",
        "timm 1.0.31 models/vision_transformer.py; transformers 5.24.0 models/siglip", pixels="half", embed="map",
        assumes=("activation",), assumed=f"{_ONE_SIZE}. Activation: transformers' files have GELU's tanh form, and so "
        "have some of timm's, whose keys do not show it: as `timm:MODEL:FILE` or from a config.json it is known",
    ),
    VitFamily(
        "aimv2", "AIMv2", "`preprocessor.patchifier`", {1024: "large", 1536: "huge", 2048: "1b", 3072: "3b"},
        "aimv2_{size}_patch{patch}_224", "apple/ml-aim bd9e068; timm 1.0.31 models/vision_transformer.py",
        pixels="clip", embed="mean", embed_too=("mean6",),
        assumed=f"{_ONE_SIZE}. AIM's probes read the mean of the last six blocks: add --facts embed=mean6, or "
        "--set tokens=mean6 to the attentive probe",
    ),
    VitFamily(
        "pe", "PE Core", "`ln_pre` and `attn_pool.probe`; timm's names with `norm_pre` and `attn_pool.latent`",
        {192: "tiny_patch16_384", 384: "small_patch16_384", 768: "base_patch16_224", 1024: "large_patch14_336",
         1536: "gigantic_patch14_448"}, "vit_pe_core_{size}",
        "facebookresearch/perception_models 3e352cc core/vision_encoder", pixels="half", embed="map",
        positions="bilinear", assumed="`embed` is before the projection to text (`head`); the authors squash images",
    ),
    VitFamily(
        "pe-spatial", "PE Spatial, PE Lang", "`ln_pre`, and no norm after the last block",
        {192: "tiny_patch16_512", 384: "small_patch16_512", 768: "base_patch16_512", 1024: "large_patch14_448",
         1536: "gigantic_patch14_448"}, "vit_pe_spatial_{size}",
        "facebookresearch/perception_models 3e352cc core/vision_encoder", pixels="half", embed="mean",
        last_norm="none", positions="bilinear", assumed="the authors pool nothing: `embed` is this project's choice",
    ),
    VitFamily(
        "radio", "RADIO, C-RADIO", "`patch_generator.embedder`",
        {768: "base_patch16_radio_v3", 1024: "large_patch16_radio_v3", 1152: "so400m_patch16_radio_v4",
         1280: "huge_patch16_radio_v3", 1536: "giant_patch16_radio_v3"}, "vit_{size}",
        "NVlabs/RADIO c0f3701 radio/radio_model.py, vit_patch_generator.py", pixels="clip", embed="cls",
        last_norm="optional", positions="square",
        assumed="`embed` and `cls` are the summary, all of its class tokens; positions with align_corners=False, as in "
        "its code today (its first C-RADIOv3 code had True); no adaptor is applied",
    ),
    VitFamily(
        "capi", "CAPI", "`registers` and `residual1`", {}, "",
        "facebookresearch/capi 98b4fa1 model.py, eval_classification.py", embed="mean",
        assumed="its global representation comes from the decoder and is not given",
    ),
    VitFamily(
        "plain", "any other ViT of timm's names", "`patch_embed.proj.weight`", _COMMON, "vit_{size}_patch{patch}_224",
        "timm 1.0.31 models/vision_transformer.py", fixed_heads=False, pixels=None,
        last_norm="fc_norm",
        assumed="mean, std, range, channels and positions; the number of heads has to be given",
    ),
)  # fmt: skip
FAMILY_NAMES = tuple(map(attrgetter("name"), FAMILIES))

_OF_LAYOUT = {
    "facebookresearch/dino": "dino", "bytedance/ibot": "ibot", "facebookresearch/moco-v3": "mocov3",
    "facebookresearch/ijepa": "ijepa",
}  # fmt: skip


def family_named(name: str) -> VitFamily:
    """The family of this name."""
    if name in FAMILY_NAMES:
        return FAMILIES[FAMILY_NAMES.index(name)]
    raise InputError(
        f"--facts family={name}: no such family{did_you_mean(name, FAMILY_NAMES)}\nfamilies: {', '.join(FAMILY_NAMES)}"
    )


def family_of_card(card: EncoderCard) -> VitFamily | None:
    """The family that a loaded encoder's network belongs to, or the method where several families share the network."""
    base = card.architecture.name.removeprefix("timm:").partition("-")[0]
    found = [family for family in FAMILIES if family.base and re.fullmatch(_pattern(family), base)]
    named = [family for family in found if family.title == card.method]
    return next(iter(named or (found if len(found) == 1 else ())), None)


def _pattern(family: VitFamily) -> str:
    """Of timm's names for its models, at any image size."""
    sizes = "|".join(family.sizes.values())
    name = family.base.format(size="SIZE", patch="PATCH").replace("_224", "_SIDE")
    return name.replace("SIZE", f"(?:{sizes})(?:_plus)?").replace("PATCH", r"\d+").replace("SIDE", r"\d+") + "(_qkvb)?"


_WITH_SATELLITE_MODELS = (1024, 4096)  # widths of which DINOv3 has web and satellite models
_SATELLITE_SHOWS = 1024  # the width at which only the satellite model was trained with `local_cls_norm`


def family_pixels(family: VitFamily, width: int, keys: Collection[str]) -> str | None:
    """The table of releases.toml with mean and std; None where neither the family nor the file's keys fix them."""
    if family.name != "dinov3" or width not in _WITH_SATELLITE_MODELS:
        return family.pixels
    of_its_own_code = any(key.endswith("storage_tokens") for key in keys)
    if width != _SATELLITE_SHOWS or not of_its_own_code:
        return None
    return "sat-493m" if any("local_cls_norm." in key for key in keys) else family.pixels


_GIANT = 1536  # the width of DINOv2's model with a gated MLP


def is_swiglu(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the first layer of the MLP, by timm's names, holds two halves of which one is the other's gate."""
    first, second = (tensors.get(f"blocks.0.mlp.{name}.weight") for name in ("fc1", "fc2"))
    return first is not None and second is not None and first.shape[0] == 2 * second.shape[1]


def find_family(tensors: Mapping[str, Tensor], keys: Collection[str], layout: str) -> VitFamily:
    """The family of a vision transformer, by its tensors under timm's names, the file's own keys and its layout."""

    def has(ending: str, among: Collection[str]) -> bool:
        return any(key.endswith(ending) for key in among)

    scaled, of_training = has(".ls1.gamma", tensors), has("mask_token", keys)
    gated = "blocks.0.mlp.fc1_g.weight" in tensors
    positions = tensors.get("pos_embed")
    without_class = positions is not None and round(positions.shape[1] ** 0.5) ** 2 == positions.shape[1]
    gated_by_silu = is_swiglu(tensors)
    before = "norm_pre.weight" in tensors
    marks = {
        "radio": has("patch_generator.embedder.weight", keys),
        "pe": before and "attn_pool.latent" in tensors,
        "pe-spatial": before and "norm.weight" not in tensors and "fc_norm.weight" not in tensors,
        "franca": scaled
        and (
            has("matryoshka_projections.0.weight", keys)
            or (gated_by_silu and "reg_token" not in tensors and tensors["cls_token"].shape[-1] != _GIANT)
        ),
        "beit": has("relative_position_bias_table", tensors),
        "dinov3": "reg_token" in tensors and "blocks.0.gamma_1" in tensors and positions is None,
        "siglip": "attn_pool.latent" in tensors,
        "aimv2": gated and "cls_token" not in tensors,
        "clip": "norm_pre.weight" in tensors and "cls_token" in tensors,
        "deit-distilled": "dist_token" in tensors,
        "dinov2-registers": scaled and "reg_token" in tensors and "cls_token" in tensors,
        "deit3": scaled and not of_training and without_class and "cls_token" in tensors,
        "dinov2": scaled and "cls_token" in tensors,
        "ibot": has("masked_embed", keys),
        "mae": has("decoder_embed.weight", keys),
    }
    if layout.startswith("lightly ViT"):  # timm's network whatever the method, so that a LayerScale is not DINOv2's
        found = family_named("mae" if marks["mae"] else "plain")
        return replace(found, base="vit_{size}_patch{patch}_dinov2") if scaled else found  # timm's with LayerScale
    named = _OF_LAYOUT.get(layout) or next((name for name, found in marks.items() if found), "plain")
    return family_named(named)


def refuse_unsupported(tensors: Mapping[str, Mapping[str, Tensor]], source: str) -> None:
    """Raises InputError for a model that is known by its keys, in any mapping of a file, and that nothing computes."""
    found = _unsupported(tensors)
    if found is not None:
        title, reason = found
        raise InputError(
            f"{source} is {title}, which is not supported: {reason}; wrap the model as my_package.my_module:build"
        )


def _unsupported(tensors: Mapping[str, Mapping[str, Tensor]]) -> tuple[str, str] | None:
    """Such a model's name, and why it is not supported; None for others."""
    found = {key: tensor for mapping in tensors.values() for key, tensor in mapping.items()}

    def has(ending: str) -> bool:
        return any(key.endswith(ending) for key in found)

    if any("levels." in key and ".pos_emb_funct." in key for key in found):
        return "an E-RADIO", "its stages of convolutions and windowed attention are neither a ViT nor a model of timm"
    generated = any("patch_generator." in key for key in found)
    if has("input_conditioner.norm_mean") and has("patch_embed.proj.weight") and not generated:
        return (
            "a RADIO v1 without a patch generator",
            "its first code forms summary and positions in another way than the later ones, which are read here",
        )
    if has("preprocessor.patchifier.proj.weight") and has(".mlp.fc1.weight") and not has(".mlp.fc3.weight"):
        return "an AIM v1", "timm has no model with its layer norms and plain MLP; AIMv2 is supported"
    if any(key.endswith(("patch_embed.proj.weight", "patch_embeddings.proj.weight")) and tensor.ndim == 5
           for key, tensor in found.items()):  # fmt: skip
        jepa = any("target_encoder" in place.split("/") for place in tensors) or has("target_encoder.norm.weight")
        jepa = jepa or {"encoder", "predictor"} <= {part for place in tensors for part in place.split("/")}
        title = ("a V-JEPA" if has("pos_embed") else "a V-JEPA 2") if jepa else "a video model such as V-JEPA"
        return title, "its patches span several frames, and how one image becomes a video is not fixed by its keys"
    return None

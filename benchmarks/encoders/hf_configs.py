"""What the config beside the weights says, in a folder of transformers, timm or open_clip as the hub stores it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.encoders.forms import OPEN_CLIP, CardOverrides
from benchmarks.task import InputError

MAX_BYTES = 1_000_000  # of a config, which has a few thousand

# transformers' model_type -> family (see `benchmarks.encoders.vit_families`). None: the type is used by several.
_FAMILIES: dict[str, str | None] = {
    "vit": None, "vit_mae": "mae", "deit": "deit-distilled", "dinov2": "dinov2",
    "dinov2_with_registers": "dinov2-registers", "dinov3_vit": "dinov3", "beit": "beit", "data2vec-vision": "beit",
    "ijepa": "ijepa", "clip": "clip", "clip_vision_model": "clip", "siglip": "siglip", "siglip_vision_model": "siglip",
    "aimv2_vision_model": "aimv2", "aimv2": "aimv2",
}  # fmt: skip
# What transformers takes for an entry that a config leaves out: older versions wrote only what differs from it.
_SIGLIP = {"hidden_act": "gelu_pytorch_tanh", "num_attention_heads": 12}
_CLIP = {"hidden_act": "quick_gelu", "num_attention_heads": 12}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "siglip": _SIGLIP, "siglip_vision_model": _SIGLIP, "clip": _CLIP, "clip_vision_model": _CLIP,
    "aimv2": {"num_attention_heads": 8}, "aimv2_vision_model": {"num_attention_heads": 8},
}  # fmt: skip
_ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "quick_gelu": "quick_gelu",
                "silu": None}  # fmt: skip


def model_name(weights: Path) -> str:
    """How the hub calls the model of one of `HUB_WEIGHTS`, which are named alike in every folder."""
    folder = weights.absolute().parent
    if folder.parent.name == "snapshots":  # of the hub's cache: models--ORG--NAME/snapshots/REVISION
        return folder.parent.parent.name.rpartition("--")[2]
    return folder.name


def read_config(weights: Path) -> CardOverrides:
    """What the configuration next to one of `HUB_WEIGHTS` says; nothing without one, or without a model type in it.

    That is the family of the vision transformer where the model type fixes it, number of heads, epsilon, activation,
    mean and std, and `architecture` for a model of timm. open_clip's own weights are read by open_clip's own config,
    where both configs are there.

    Raises:
        InputError: it is damaged, or of a model that is no vision transformer known here.
    """
    path, of_open_clip = weights.parent / "config.json", weights.parent / OPEN_CLIP
    if of_open_clip.is_file() and (weights.name.startswith("open_clip_") or not path.is_file()):
        return CardOverrides(_of_open_clip(_read(of_open_clip), of_open_clip))
    if not path.is_file():
        return CardOverrides()
    config = _read(path)
    if "architecture" in config and "pretrained_cfg" in config:
        of_timm = {"architecture": f"timm:{config['architecture']}"}
        return CardOverrides(of_timm | _pixels(config["pretrained_cfg"], "mean", "std"))
    kind = config.get("model_type")
    if not isinstance(kind, str) or not kind:  # RADIO's code on the hub has no type
        return CardOverrides()
    if kind not in _FAMILIES:
        raise InputError(
            f"{path} describes a {kind[:60]!a}, which is not a supported vision transformer ({', '.join(_FAMILIES)}); "
            "wrap it as my_package.my_module:build"
        )
    vision, family = config.get("vision_config"), _FAMILIES[kind]
    network = _DEFAULTS.get(kind, {}) | (vision if isinstance(vision, dict) else config)
    values = _network(network, path) | ({"family": family} if family else {})
    images = weights.parent / "preprocessor_config.json"
    pixels = _read(images) if images.is_file() else {}
    if pixels.get("do_normalize") is not False:
        values |= _pixels(pixels, "image_mean", "image_std")
    return CardOverrides(values)


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} is larger than 1 MB, too large for a configuration file; download it again")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read {path} ({' '.join(str(error).split())[:120]}); download it again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object; download it again")
    return content


def _network(config: dict[str, Any], path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    heads, epsilon = config.get("num_attention_heads"), config.get("layer_norm_eps")
    if type(heads) is int and heads > 0:
        found["num_heads"] = heads
    if isinstance(epsilon, float) and not 0 <= epsilon < 1:
        raise InputError(f"{path} has layer_norm_eps {epsilon}, which is out of range; download it again")
    if isinstance(epsilon, float) and epsilon > 0:
        found["norm_eps"] = epsilon
    activation = config.get("hidden_act")
    if isinstance(activation, str):
        if activation not in _ACTIVATIONS:
            raise InputError(
                f"{path} has the activation {activation[:60]!a}, which is not one of {', '.join(_ACTIVATIONS)}"
            )
        if _ACTIVATIONS[activation]:
            found["activation"] = _ACTIVATIONS[activation]
    return found


def _pixels(config: object, mean: str, std: str) -> dict[str, Any]:
    """Mean and std of images from 0 to 1, where the config has three numbers of each by these names."""
    found = [_three(config.get(name)) if isinstance(config, dict) else None for name in (mean, std)]
    return {} if None in found else {"mean": found[0], "std": found[1], "value_range": 1.0, "channels": "RGB"}


def _three(value: object) -> tuple[float, ...] | None:
    numbers = value if isinstance(value, list) else []
    if len(numbers) != 3 or not all(isinstance(n, int | float) and abs(n) < 1e6 for n in numbers):
        return None
    return tuple(map(float, numbers))


# What open_clip's vision_cfg may say that makes another network than timm's CLIP, with the value that changes nothing.
_ELSEWHERE = {
    "attentional_pool": False, "no_ln_pre": False, "input_patchnorm": False, "final_ln_after_pool": False,
    "global_average_pool": False, "pool_type": "tok", "act_kwargs": None, "norm_kwargs": None, "attn_type": None,
    "block_type": None, "qk_norm": False,
}  # fmt: skip


def _of_open_clip(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """open_clip's own ViT, or a model of timm as the vision tower; other towers are refused."""
    model = config.get("model_cfg")
    vision = model.get("vision_cfg") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(vision, dict):
        raise InputError(f"{path} has no model_cfg with a vision_cfg; download it again")
    pixels = _pixels(config.get("preprocess_cfg"), "mean", "std")
    of_timm = vision.get("timm_model_name")
    if isinstance(of_timm, str):
        return {"architecture": f"timm:{of_timm}", **pixels}
    for name, plain in _ELSEWHERE.items():
        if vision.get(name) not in (plain, None):
            raise InputError(
                f"{path} has {name} in its vision_cfg, which is not supported; wrap the model as "
                "my_package.my_module:build"
            )
    width, head_width = vision.get("width", 768), vision.get("head_width", 64)
    if isinstance(vision.get("layers"), list) or type(width) is not int or type(head_width) is not int:
        raise InputError(
            f"{path} describes a ResNet or another tower than a ViT, which is not supported; wrap the model as "
            "my_package.my_module:build"
        )
    if not 0 < head_width <= width or width % head_width:
        raise InputError(f"{path} has heads of {head_width} channels for tokens of {width}; download it again")
    activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
    return {"family": "clip", "num_heads": width // head_width, "activation": activation, **pixels}

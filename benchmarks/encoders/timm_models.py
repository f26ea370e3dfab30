"""Encoders around timm's models: stages where a model has them, and timm's own pooled features as embed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.contract import InputError
from benchmarks.encoders.encoder import FEATURES, Encoder
from benchmarks.encoders.layouts.facts import PIXELS, Facts
from benchmarks.encoders.projection import described, projection
from benchmarks.encoders.resnet import fill
from pretrain.checkpoint import weights_sha256
from results.schema import Architecture, EncoderCard

REDUCTIONS = {2: "feature1", 4: "feature2", 8: "feature3", 16: "feature4", 32: "feature5"}


def timm_encoder(
    card: EncoderCard, tensors: Mapping[str, Tensor], source: str, *, head: Mapping[str, Tensor] | None = None
) -> Encoder:
    """A timm model, strictly filled; the classifier that it may have in the file is left aside.

    Args:
        card: `architecture.name` is `timm:NAME`; where it has not met its weights yet, mean and std become timm's for
            the model.
        head: tensors of a projection head.

    Raises:
        InputError: no such model, or a tensor missing, left over or of another shape.
    """
    model = _build(card.architecture, tensors)
    classifier = _classifier(model)
    own = model.state_dict()
    kept = {n: t for n, t in tensors.items() if n in own or not n.startswith(classifier)}
    matched = fill(model, kept, source)
    found = projection(head or {}, model.head_hidden_size or model.num_features)
    update = {
        "weights_sha256": weights_sha256(model.state_dict()),
        "keys_matched": matched,
        "keys_unused": card.keys_unused + len(tensors) - len(kept) + (0 if found else len(head or {})),
        "head": described(found) if found else None,
    }
    cfg = model.pretrained_cfg
    pixels = {"mean": tuple(cfg["mean"]), "std": tuple(cfg["std"]), "interpolation": cfg["interpolation"]}
    if card.weights_sha256 is not None:  # a card that came with the file knows its pixels
        pixels = {}
    return _wrapped(card.model_copy(update={**pixels, **update}), model, found)


def pretrained_timm(name: str, facts: Facts) -> Encoder:
    """`timm:NAME` with the weights that timm itself loads, from its cache or the network.

    Raises:
        InputError: no such model, or timm cannot load its weights.
    """
    import timm

    bare = name.removeprefix("timm:")
    _require(bare)
    try:
        model: Any = timm.create_model(bare, pretrained=True, num_classes=0)
    except Exception as error:  # of the network, the hub, the file system or timm itself
        raise InputError(
            f"timm cannot load the pretrained weights of {bare} ({' '.join(str(error).split())[:120]}); connect to the "
            f"network once, or give a file: timm:{bare}:FILE"
        ) from error
    cfg = model.pretrained_cfg
    state = model.state_dict()
    card = EncoderCard(
        name=bare, source=f"timm {timm.__version__}, {cfg['architecture']}.{cfg['tag']}",
        architecture=facts.network(Architecture(name=f"timm:{bare}")), weights_sha256=weights_sha256(state),
        layout="timm", keys_matched=len(state), mean=tuple(cfg["mean"]), std=tuple(cfg["std"]),
        interpolation=cfg["interpolation"], licence=cfg.get("license"),
    )  # fmt: skip
    known = Facts({"value_range": 1.0, "channels": "RGB", "mean": card.mean, "std": card.std}).under(facts)
    return _wrapped(known.card(card, PIXELS), model, None)


def timm_keys(name: str) -> set[str]:
    """The tensor names of a timm model.

    Raises:
        InputError: no such model.
    """
    with torch.device("meta"):
        return set(_create(name.removeprefix("timm:")).state_dict())


def _require(bare: str) -> None:
    import timm

    if not timm.is_model(bare):
        near = timm.list_models(f"*{bare.partition('_')[0]}*")[:3]
        raise InputError(
            f"timm {timm.__version__} has no model {bare!r}; "
            f"{'it has ' + ', '.join(near) if near else 'timm.list_models() names those that it has'}"
        )


def _create(bare: str, **kwargs: Any) -> Any:
    import timm

    _require(bare)
    return timm.create_model(bare, pretrained=False, num_classes=0, **kwargs)


def _build(architecture: Architecture, tensors: Mapping[str, Tensor]) -> Any:
    """The model, empty; a ViT at the image size of its position embedding, which it interpolates for other sizes."""
    from timm.models.vision_transformer import VisionTransformer

    bare = architecture.name.removeprefix("timm:")
    with torch.device("meta"):
        plan = _create(bare)
    if not isinstance(plan, VisionTransformer):
        return _create(bare)
    kwargs: dict[str, Any] = {"dynamic_img_size": True}
    if architecture.num_heads:
        kwargs["num_heads"] = architecture.num_heads
    positions, patch = tensors.get("pos_embed"), tensors.get("patch_embed.proj.weight")
    if (
        positions is not None
        and positions.ndim == 3
        and patch is not None
        and patch.ndim == 4
        and plan.pos_embed is not None
    ):
        prefix = plan.pos_embed.shape[1] - plan.patch_embed.num_patches
        kwargs["img_size"] = round(max(positions.shape[1] - prefix, 1) ** 0.5) * patch.shape[-1]
    return _create(bare, **kwargs)


def _classifier(model: Any) -> tuple[str, ...]:
    named = model.pretrained_cfg.get("classifier") or ()
    return tuple(f"{name}." for name in ([named] if isinstance(named, str) else named))


def _wrapped(card: EncoderCard, model: Any, head: nn.Module | None) -> Encoder:
    info = getattr(model, "feature_info", None)
    reductions = [stage["reduction"] for stage in info] if isinstance(info, list) else []
    staged = len(set(reductions)) == len(reductions) > 0 and hasattr(model, "forward_intermediates")
    stages = tuple(REDUCTIONS.get(reduction, "") for reduction in reductions) if staged else ()
    features = tuple(name for name in FEATURES if name in stages)

    def forward(images: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = {}
        if set(names) & set(features):
            last, maps = model.forward_intermediates(images)
            outputs = dict(zip(stages, maps, strict=True))
            if {"embed", "head"} & set(names):
                outputs["embed"] = model.forward_head(last)
        else:
            outputs["embed"] = model(images)
        if head is not None and "head" in names:
            outputs["head"] = head(outputs["embed"])
        return {name: outputs[name] for name in names}

    card = card.model_copy(update={"embed": _embed(model)})
    module = model if head is None else nn.ModuleDict({"backbone": model, "head": head})
    return Encoder(card, module, forward, (*features, "embed", *(["head"] if head is not None else [])))


def _embed(model: Any) -> str:
    """How timm's `forward_head` makes one vector of the last features, in words."""
    pool = getattr(model, "global_pool", None)
    kind = getattr(pool, "pool_type", pool)
    width = model.head_hidden_size if getattr(model, "head_hidden_size", None) else model.num_features
    words = {
        "token": "class token after the last norm",
        "avg": "mean of the patch tokens" if hasattr(model, "cls_token") else "global average of the last stage",
        "map": "attention pooling of the tokens",
    }
    how = words.get(kind) if isinstance(kind, str) else None
    return f"{how or 'pooling of the last stage'}, as timm's forward_head gives it ({width}-d)"

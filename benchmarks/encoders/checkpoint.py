"""From a weight file of any layout to an `Encoder`: recognise the layout by the keys, infer the network, fill it."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from benchmarks.encoders.capi import NAME, capi_encoder, is_capi
from benchmarks.encoders.card_facts import (
    NOT_SHOWN_BY_VIT_KEYS,
    OF_RESNETS,
    OF_VITS,
    PIXELS,
    CardOverrides,
    not_shown_by_resnet_keys,
    overrides_of_card,
    overrides_of_recipe,
    overrides_of_release,
    pixels_of,
)
from benchmarks.encoders.encoder import Encoder, fill, fitting, head_summary, projection_head
from benchmarks.encoders.forms import parse_architecture
from benchmarks.encoders.hf_configs import OPEN_CLIP
from benchmarks.encoders.layouts import LAYOUTS, NAMING_SCHEMES, CheckpointLayout, Pick, stage_names
from benchmarks.encoders.resnet import (
    infer_resnet,
    is_resnet,
    resnet_encoder,
    torchvision_encoder,
    torchvision_keys,
)
from benchmarks.task import InputError
from pretrain.backbone import CARD_KEY
from pretrain.resnet import STAGES, ResNet, weights_sha256
from pretrain.weight_files import WeightFile, read_weights
from results.errors import is_out_of_memory
from results.schema import Architecture, EncoderCard

if TYPE_CHECKING:
    from benchmarks.encoders.hf_configs import HubConfig
    from benchmarks.encoders.vit_families import VitFamily

log = logging.getLogger(__name__)

# Where several mappings of a file match a layout, such as a model and its moving average: the first of these, then any.
PREFERRED_MAPPINGS = ("state_dict", "model", "model_state", "model_state_dict", "teacher", "target", "")


@dataclass(frozen=True)
class RecognisedCheckpoint:
    """A checkpoint with a known layout.

    Attributes:
        layout: its row of the table.
        name: name of the layout, and of the chosen encoder where the file has several.
        backbone: tensors by torchvision's or timm's names.
        head: tensors of the projection head, without their prefix.
        unused: number of other tensors in the file.
        keys: all keys of the mapping that was read, as they are in the file.
    """

    layout: CheckpointLayout
    name: str
    backbone: dict[str, Tensor]
    head: dict[str, Tensor]
    unused: int
    keys: tuple[str, ...]


def load_checkpoint(path: Path, overrides: CardOverrides) -> Encoder:
    """Read, recognise and strictly load a file. The card names the layout and lists what is only assumed.

    Args:
        overrides: from the user; they prevail over the file's own card and the table of releases.

    Raises:
        InputError: the file is unsafe or damaged, has no known layout, does not fill its network, or does not show
            something that only the user can say.
    """
    file = read_weights(path)
    try:
        return _load(file, overrides)
    except InputError:
        raise
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise InputError(f"{path} does not fit into memory; end other programs, or take another machine") from error
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"{path}: its tensors do not go together ({reason}); it is damaged or of another network, name it with "
            "--facts architecture=timm:NAME"
        ) from error


def _load(file: WeightFile, overrides: CardOverrides) -> Encoder:
    path = file.path
    if file.card is not None:
        return _with_own_card(file, file.card, overrides)
    if not overrides.architecture and not _may_be_resnet(file):
        _refuse_unsupported(file)
    config = _config_beside(path)
    if config is not None and "architecture" in config.values.values and not overrides.architecture:
        overrides = config.values.then(overrides)
    if overrides.architecture and overrides.architecture.startswith("torchvision:"):
        encoder = _named_torchvision(file, overrides.architecture, overrides)
    elif overrides.architecture and overrides.architecture.startswith("timm:"):
        encoder = _named_timm(file, overrides.architecture, overrides)
    else:
        found = recognise(file, overrides.pick)
        resnet = is_resnet(found.backbone)
        of_capi = not resnet and is_capi(found.backbone)
        if overrides.architecture and not resnet:
            raise InputError(
                f"{path} has the layout {found.name}, which is not a {overrides.architecture}; give another file, or "
                "--facts architecture=timm:NAME"
            )
        encoder = (_resnet if resnet else _capi if of_capi else _vit)(file, found, overrides)
    card = encoder.card
    assumed = f"; assumed: {', '.join(card.assumed)}" if card.assumed else ""
    assumed += f"; not shown by the keys: {', '.join(card.not_shown)}" if card.not_shown else ""
    log.info("%s: %s, %s, %d tensors filled, %d unused%s", path.name, card.layout, card.architecture.name,
             card.keys_matched, card.keys_unused, assumed)  # fmt: skip
    return encoder


def _may_be_resnet(file: WeightFile) -> bool:
    return any("layer1.0." in name for tensors in file.tensors.values() for name in tensors)


def _refuse_unsupported(file: WeightFile) -> None:
    """Raises InputError for a model that is known by its keys, and that nothing here computes."""
    from benchmarks.encoders.vit_families import unsupported_model

    found = unsupported_model(file.tensors)
    if found is not None:
        title, reason = found
        raise InputError(
            f"{file.path} is {title}, which is not supported: {reason}; wrap the model as my_package.my_module:build"
        )


def _config_beside(path: Path) -> HubConfig | None:
    if not any((path.parent / name).is_file() for name in ("config.json", OPEN_CLIP)):
        return None
    from benchmarks.encoders.hf_configs import read_config

    return read_config(path)


# ---- recognise the layout --------------------------------------------------------------------------------------------


def recognise(file: WeightFile, pick: str | None = None) -> RecognisedCheckpoint:
    """Read the file by the first layout of the table whose marks it has all of.

    Args:
        pick: which encoder, where the file has several (`student`, `encoder_k`, …); the layout's first by default.

    Raises:
        InputError: no layout matches, the file has no such encoder, or two keys mean the same tensor.
    """
    mappings = {where: _without_wrapper_prefix(tensors) for where, tensors in file.tensors.items()}
    for layout in LAYOUTS:
        options = _encoders_of(layout, mappings, file.keys)
        if options:
            break
    else:
        layout, options = _vit_under_any_prefix(mappings)
    if not options:
        total = sum(len(tensors) for tensors in mappings.values())
        names = [f"{where}/{key}".lstrip("/") for where, tensors in mappings.items() for key in tensors]
        raise InputError(
            f"{file.path} has no backbone in a known layout: {total} tensors, the first are "
            f"{', '.join(names[:3]) or 'none'}; name the network with --facts architecture=timm:NAME, or wrap it as "
            "my_package.my_module:build"
        )
    chosen = pick or next(iter(options))
    if chosen not in options:
        raise InputError(
            f"{file.path} has the layout {layout.name}, which has no {pick!r}; pick one of {', '.join(options)}"
        )
    place = options[chosen]
    tensors = mappings[place.mapping]
    head_prefixes = tuple(place.head.split("|")) if place.head else ()
    head = {key.removeprefix(h): t for h in head_prefixes for key, t in tensors.items() if key.startswith(h)}
    backbone: dict[str, Tensor] = {}
    for key, name in _backbone_names(layout, place, tensors, head_prefixes):
        if name in backbone:
            raise InputError(f"{file.path}: two keys mean {name}, one of them is {key}; the file is damaged")
        backbone[name] = tensors[key]
    total = sum(len(tensors) for tensors in mappings.values())
    label = layout.name if len(options) == 1 else f"{layout.name}: {chosen}"
    return RecognisedCheckpoint(layout, label, backbone, head, total - len(backbone) - len(head), tuple(tensors))


def _vit_under_any_prefix(mappings: Mapping[str, Mapping[str, Tensor]]) -> tuple[CheckpointLayout, dict[str, Pick]]:
    """The vision transformers of a file whose layout is not in the table, by the path of their keys.

    A teacher comes first and a student last, as methods with both evaluate the teacher.
    """
    from benchmarks.encoders.vit_families import find_naming, tower_prefixes

    order = {name: number for number, name in enumerate(PREFERRED_MAPPINGS)}
    found: dict[str, Pick] = {}
    names = "a vision transformer"
    for place in sorted(mappings, key=lambda place: order.get(place, len(order))):
        for prefix in tower_prefixes(mappings[place]):
            naming = find_naming([k.removeprefix(prefix) for k in mappings[place] if k.startswith(prefix)])
            if naming is not None and not found:
                names = naming.name
            found["/".join(part for part in (place, prefix.rstrip(".")) if part) or "model"] = Pick(place, prefix)

    def rank(name: str) -> int:
        words = ("teacher", "target"), ("student", "momentum", "ema", "predictor", "decoder")
        return 0 if any(w in name for w in words[0]) else 2 if any(w in name for w in words[1]) else 1

    ordered = {name: found[name] for name in sorted(found, key=rank)}
    return CheckpointLayout(names, "", (), {}), ordered


def best_mapping(file: WeightFile, names: Collection[str], pick: str | None = None) -> RecognisedCheckpoint:
    """The mapping of the file that has most of a network's tensor names, where its layout is not in the table.

    Args:
        pick: path of another mapping.
    """
    mappings = {where: _without_wrapper_prefix(tensors) for where, tensors in file.tensors.items()} or {"": {}}
    best = pick if pick is not None else max(mappings, key=lambda where: len(set(mappings[where]) & set(names)))
    if best not in mappings:
        raise InputError(f"{file.path} has no {best!r}; pick one of {', '.join(mappings)}")
    total = sum(len(tensors) for tensors in mappings.values())
    layout = CheckpointLayout("the network's own names", "", (), {})
    unused = total - len(mappings[best])
    return RecognisedCheckpoint(layout, layout.name, mappings[best], {}, unused, tuple(mappings[best]))


def _without_wrapper_prefix(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes that DistributedDataParallel and torch.compile put in front of every key."""
    bare = dict(tensors)
    for prefix in ("module.", "_orig_mod.", "module."):
        if bare and all(key.startswith(prefix) for key in bare):
            bare = {key.removeprefix(prefix): tensor for key, tensor in bare.items()}
    return bare


def _encoders_of(
    layout: CheckpointLayout, mappings: Mapping[str, Mapping[str, Tensor]], top_keys: Collection[str]
) -> dict[str, Pick]:
    """The encoders of the file under this layout, by name; empty where the file has another layout."""

    def present(mark: str, place: str) -> bool:
        if mark.startswith("@"):
            return mark[1:] in top_keys
        where, _, pattern = mark.rpartition("/")
        return any(fnmatchcase(key, pattern) for key in mappings.get(place if where == "*" else where, ()))

    any_mapping = any(mark.startswith("*/") for mark in layout.marks)
    order = {name: number for number, name in enumerate(PREFERRED_MAPPINGS)}
    places = sorted(mappings, key=lambda place: order.get(place, len(order))) if any_mapping else [""]
    places = [place for place in places if all(present(mark, place) for mark in layout.marks)]
    options: dict[str, Pick] = {}
    for place in places:
        for name, pick in layout.picks.items():
            mapping = place if pick.mapping == "*" else pick.mapping
            if any(key.startswith(pick.prefix) for key in mappings.get(mapping, ())):
                if len(places) > 1:
                    name = place or name if len(layout.picks) == 1 else f"{place}.{name}"
                options[name] = Pick(mapping, pick.prefix, pick.head)
    return options


def _backbone_names(
    layout: CheckpointLayout, place: Pick, tensors: Collection[str], head_prefixes: tuple[str, ...]
) -> Iterator[tuple[str, str]]:
    """The file's key and torchvision's or timm's name of each tensor of the backbone."""
    for key in tensors:
        if not key.startswith(place.prefix) or (head_prefixes and key.startswith(head_prefixes)):
            continue
        name = key.removeprefix(place.prefix)
        if any(fnmatchcase(name, pattern) for pattern in layout.ignore):
            continue
        for pattern, replacement in NAMING_SCHEMES[layout.names]:
            name = re.sub(pattern, replacement, name)
        yield key, name


# ---- build and fill the network --------------------------------------------------------------------------------------


def _with_own_card(file: WeightFile, card: EncoderCard, overrides: CardOverrides) -> Encoder:
    """A file of this project: the card says everything, and only what it lists as assumed is assumed."""
    source, tensors = str(file.path), file.tensors[""]
    asked = overrides.architecture or card.architecture.name
    if asked.partition("-")[0] != card.architecture.name.partition("-")[0]:
        raise InputError(f"{source} holds a {card.architecture.name}, not a {asked}; give another file")
    overrides.refuse(["pick"], f"{source} holds one encoder")
    _refuse_fields_of_other_networks(overrides, card.architecture.name, source)
    card = card.model_copy(update={"architecture": overrides.apply_to_network(card.architecture)})
    card = overrides_of_card(card).then(overrides).apply_to_card(card, card.assumed)
    if card.architecture.name.startswith("torchvision:"):
        return torchvision_encoder(card, tensors, source)
    if card.architecture.name == NAME:
        return capi_encoder(card, tensors, source)
    if card.architecture.name not in STAGES:
        from benchmarks.encoders.timm_models import timm_encoder

        return timm_encoder(card, tensors, source)
    backbone = fitting(lambda: ResNet(card.architecture), tensors, source)
    fill(backbone, tensors, source)
    return resnet_encoder(card, backbone)


def _refuse_fields_of_other_networks(overrides: CardOverrides, architecture: str, source: str) -> None:
    """Such a value would change nothing, and nobody would notice."""
    others = (*OF_VITS, "family") if architecture in STAGES else OF_RESNETS
    overrides.refuse(others, f"{source} is a {architecture}, which has no such setting")


def _known_without_user(
    file: WeightFile, found: RecognisedCheckpoint, architecture: Architecture, stem_kernel: int | None
) -> CardOverrides:
    """The values that the layout, the table of releases and the file's own metadata fix."""
    author = file.values.get("__author__")
    known = overrides_of_release(found.layout.name, architecture, found.keys, author, stem_kernel)
    if found.layout.method:
        known = CardOverrides({"method": found.layout.method}).then(known)
    epochs = file.values.get(found.layout.epochs or "")
    if isinstance(epochs, int):
        known = known.then(CardOverrides({"epochs": epochs}))
    recipe = file.values.get("recipe")
    if isinstance(recipe, str) and found.layout.name == "encoder-bench run":
        known = known.then(overrides_of_recipe(recipe))
    return known


def _resnet(file: WeightFile, found: RecognisedCheckpoint, overrides: CardOverrides) -> Encoder:
    source, tensors = str(file.path), dict(found.backbone)
    if overrides.architecture:
        stem = tensors["conv1.weight"]
        shown = {"width": stem.shape[0], "stem_kernel": stem.shape[-1]}
        architecture = parse_architecture(overrides.architecture).model_copy(update=shown)
    else:
        architecture = infer_resnet(tensors, source)
    _refuse_fields_of_other_networks(overrides, architecture.name, source)
    own = _embedded_card(file)
    known = _known_without_user(file, found, architecture, architecture.stem_kernel)
    if own is not None:
        known = known.then(overrides_of_card(own, assumed=True))
    of_file = known.values
    known = known.then(overrides)
    bottleneck = any(".conv3." in name for name in tensors)
    small_stem = architecture.stem_kernel < 7
    subject = f"{source} has the layout {found.name}"
    required = [name for name in found.layout.required if bottleneck or name != "stride_in_1x1"]
    if small_stem:
        subject += f", with a stem of {architecture.stem_kernel}x{architecture.stem_kernel}"
        required += ["stem_stride", "max_pool"]
    known.require(required, subject)
    architecture = known.apply_to_network(architecture)
    layout = found.name
    if found.layout.names == "caffe2" and unfold_statistics(tensors, architecture.bn_eps):
        layout += ", statistics folded into the norms"
    backbone = fitting(lambda: ResNet(architecture), tensors, source)
    matched = fill(backbone, tensors, source)
    head = projection_head(found.head, backbone.channels)
    card = EncoderCard(
        name=file.path.name.partition(".")[0],
        source=f"checkpoint {file.path.name}",
        architecture=architecture,
        weights_sha256=weights_sha256(backbone.state_dict()),
        layout=layout,
        keys_matched=matched,
        keys_unused=found.unused + (0 if head else len(found.head)),
        head=head_summary(head),
    )
    if own is not None:
        if own.weights_sha256 not in (None, card.weights_sha256):
            raise InputError(
                f"{source}: the weights are not those that its card describes; write or copy the file again"
            )
        seen = ("architecture", "weights_sha256", "layout", "keys_matched", "keys_unused", "head")
        card = known.apply_to_card(own.model_copy(update={name: getattr(card, name) for name in seen}), ())
        assumed = tuple(name for name in own.assumed if name not in overrides.values)
        return resnet_encoder(card.model_copy(update={"assumed": assumed}), backbone, head)
    needed = [*PIXELS, "stem_stride", "max_pool", "bn_eps"]
    needed += ["stem_padding"] if small_stem else []
    needed += ["stride_in_1x1"] if bottleneck else []
    confirmed = overrides.architecture or all(name in of_file for name in needed if name in OF_RESNETS)
    not_shown = () if confirmed else not_shown_by_resnet_keys(architecture.name)
    card = card.model_copy(update={"not_shown": not_shown})
    return resnet_encoder(known.apply_to_card(card, needed), backbone, head)


def unfold_statistics(backbone: dict[str, Tensor], eps: float) -> bool:
    """Make Caffe2's tensors those of a ResNet, and return whether batch-norm statistics were folded.

    The zero biases of convolutions are removed. Batch norms that were folded into scale and bias get neutral
    statistics: (x - 0) / sqrt(1 - eps + eps) is x, as in detectron2's frozen batch norm.
    """
    biases = [name for name in backbone if name.endswith(".bias")]
    norms = [name for name in biases if "bn" in name or "downsample.1" in name]
    for name in set(biases) - set(norms):
        if not backbone[name].any():
            del backbone[name]
    folded = not any(name.endswith("running_mean") for name in backbone)
    if folded:
        for name in norms:
            zeros = torch.zeros_like(backbone[name])
            norm = name.removesuffix("bias")
            backbone[f"{norm}running_mean"], backbone[f"{norm}running_var"] = zeros, zeros + (1 - eps)
    return folded


def _embedded_card(file: WeightFile) -> EncoderCard | None:
    """The card that `benchmarks.encoders.export` writes into other libraries' files."""
    text = file.values.get(CARD_KEY)
    try:
        return EncoderCard.model_validate_json(text) if isinstance(text, str) else None
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{file.path} has a card that cannot be read ({reason}); write the file again") from error


def _vit(file: WeightFile, found: RecognisedCheckpoint, overrides: CardOverrides) -> Encoder:
    """A vision transformer of any family (see `benchmarks.encoders.vit_families`)."""
    from benchmarks.encoders.timm_models import heads_are_known, vit_architecture
    from benchmarks.encoders.vit_families import family_named, find_family

    source = str(file.path)
    found, of_file = _with_radios_summary(file, _tower(found, source))
    config = _config_beside(file.path)
    name = overrides.family or (config.family if config else None)
    family = family_named(name) if name else find_family(found.backbone, found.keys, found.layout.name)
    architecture = vit_architecture(family, found.backbone, source)
    architecture = architecture.model_copy(update={"name": f"{architecture.name}{of_file.get('ending', '')}"})
    _refuse_fields_of_other_networks(overrides, architecture.name, source)
    known = _known_of_family(family, architecture, found)
    known = known.then(_known_without_user(file, found, architecture, None))
    known = known.then(CardOverrides({name: of_file[name] for name in PIXELS if name in of_file}))
    known = known.then(config.values if config else CardOverrides()).then(overrides)
    asked = list(family.asks)
    if not heads_are_known(architecture, family):
        asked.append("num_heads")
    if "input_resolution" in found.keys:  # OpenAI's own files keep it
        known = CardOverrides({"activation": "quick_gelu"}).then(known)
    known.require(asked, f"{source} is a vision transformer ({found.name}; {family.title})", _family_remedy(family))
    needed = [*PIXELS] if family.pixels else [*PIXELS, "positions"]
    return _timm(file, architecture, found, known, needed)


def _capi(file: WeightFile, found: RecognisedCheckpoint, overrides: CardOverrides) -> Encoder:
    """CAPI's encoder, whose keys and shapes show everything but the pixels, which its code fixes."""
    source = str(file.path)
    overrides.refuse([*OF_RESNETS, *(n for n in OF_VITS if n != "pooling")], f"{source} is CAPI's encoder, whose code "
                     "fixes them")  # fmt: skip
    known = CardOverrides({"method": "CAPI"}).then(pixels_of("imagenet")).then(overrides)
    card = EncoderCard(
        name=file.path.name.partition(".")[0],
        source=f"checkpoint {file.path.name}",
        architecture=known.apply_to_network(Architecture(name=NAME)),
        layout=found.name,
        keys_unused=found.unused + len(found.head),
    )
    return capi_encoder(known.apply_to_card(card, PIXELS), found.backbone, source)


def _with_radios_summary(file: WeightFile, found: RecognisedCheckpoint) -> tuple[RecognisedCheckpoint, dict[str, Any]]:
    """For RADIO, the class tokens of the summary in front, and what the file says beside its network.

    Its tokens have no positions, so that their order changes nothing but what `embed` takes.

    Raises:
        InputError: the file does not say which tokens make the summary, or holds what is not applied here.
    """
    from benchmarks.encoders.vit_families import find_family, radio_facts

    if find_family(found.backbone, found.keys, found.layout.name).name != "radio":
        return found, {}
    first, facts = radio_facts(file.tensors, file.values, str(file.path))
    own = [found.backbone[n] for n in ("cls_token", "reg_token") if n in found.backbone]
    if not own:
        raise InputError(f"{file.path} is a RADIO without class tokens; give another version")
    tokens = torch.cat(own, 1)
    count = tokens.shape[1]
    if not first or max(first) >= count or min(first) < 0:
        raise InputError(f"{file.path} has {count} tokens, of which its summary takes {first}; the file is damaged")
    order = [*first, *(place for place in range(count) if place not in first)]
    backbone = {n: t for n, t in found.backbone.items() if n != "reg_token"}
    backbone |= {"cls_token": tokens[:, order[:1]]} | ({"reg_token": tokens[:, order[1:]]} if count > 1 else {})
    return replace(found, backbone=backbone), facts | ({"ending": f"-s{len(first)}"} if len(first) > 1 else {})


def _family_remedy(family: VitFamily) -> str:
    """Naming the family is another way to say what keys do not show."""
    from benchmarks.encoders.vit_families import FAMILY_NAMES

    if family.pixels:
        return ""
    return f", or its family where it has the usual sizes, as --facts family=dino ({', '.join(FAMILY_NAMES)})"


def _tower(found: RecognisedCheckpoint, source: str) -> RecognisedCheckpoint:
    """The vision transformer below the found prefix, by timm's names. Other tensors are counted as unused."""
    from benchmarks.encoders.vit_families import as_timm, tower_prefixes

    prefixes = tower_prefixes(found.backbone)
    prefix = prefixes[0] if prefixes else ""
    below = {key.removeprefix(prefix): t for key, t in found.backbone.items() if key.startswith(prefix)}
    outside = len(found.backbone) - len(below)
    head = found.head
    if "proj" in below and not head:  # CLIP's projection, as a matrix from the left
        head = {"weight": below.pop("proj").mT.contiguous()}
    tensors, left_out = as_timm(below, source)
    return replace(found, backbone=tensors, head=head, unused=found.unused + outside + left_out)


def _known_of_family(family: VitFamily, architecture: Architecture, found: RecognisedCheckpoint) -> CardOverrides:
    """What the family's own code fixes."""
    from benchmarks.encoders.vit_families import family_pixels

    values: dict[str, object] = {"num_heads": architecture.num_heads, "positions": architecture.positions}
    values = {name: value for name, value in values.items() if value is not None}
    if family.embed in ("cls", "mean") and not architecture.name.endswith("-avg"):
        values["pooling"] = family.embed
    if family.name not in ("plain", "deit", "beit", "clip"):
        values["method"] = family.title
    pixels = family_pixels(family, found.backbone["patch_embed.proj.weight"].shape[0], found.keys)
    if pixels is None and family.pixels:
        values |= {"value_range": 1.0, "channels": "RGB"}  # only mean and std are in doubt
    return CardOverrides(values).then(pixels_of(pixels) if pixels else CardOverrides())


def _named_torchvision(file: WeightFile, name: str, overrides: CardOverrides) -> Encoder:
    """A file of a network of torchvision that is no ResNet, with torchvision's tensor names."""
    overrides.refuse([*OF_RESNETS, *OF_VITS, "family"], f"{file.path} is a {name}, which has no such setting")
    found = best_mapping(file, torchvision_keys(name), overrides.pick)
    card = EncoderCard(
        name=file.path.name.partition(".")[0], source=f"checkpoint {file.path.name}",
        architecture=Architecture(name=name), layout=found.name, keys_unused=found.unused,
    )  # fmt: skip
    encoder = torchvision_encoder(card, found.backbone, str(file.path))
    encoder.card = overrides.apply_to_card(encoder.card, PIXELS)
    return encoder


def _named_timm(file: WeightFile, name: str, overrides: CardOverrides) -> Encoder:
    """A file of a timm model that the user names: in a known layout, or with the model's own tensor names."""
    from benchmarks.encoders.timm_models import timm_keys
    from benchmarks.encoders.vit_families import family_named, find_family, tower_prefixes

    _refuse_fields_of_other_networks(overrides, name, str(file.path))
    try:
        found = recognise(file, overrides.pick)
    except InputError:
        found = best_mapping(file, timm_keys(name), overrides.pick)
    known = _config_beside(file.path)
    overrides = (known.values if known else CardOverrides()).then(overrides)
    named = stage_names(found.backbone)
    if named.keys() != found.backbone.keys():
        left_out = len(found.backbone) - len(named)
        found = replace(found, backbone=named, unused=found.unused + left_out)
        return _timm(file, Architecture(name=name), found, overrides, PIXELS)
    if not tower_prefixes(found.backbone):
        return _timm(file, Architecture(name=name), found, overrides, PIXELS)
    found, of_file = _with_radios_summary(file, _tower(found, str(file.path)))
    family = find_family(found.backbone, found.keys, found.layout.name)
    family = family_named(overrides.family) if overrides.family else family
    name += of_file.get("ending", "")
    overrides = CardOverrides({field: of_file[field] for field in PIXELS if field in of_file}).then(overrides)
    if family.pixels:
        width = found.backbone["patch_embed.proj.weight"].shape[0]
        fixed = Architecture(name=name, num_heads=(family.heads or {}).get(width), positions=family.positions)
        overrides = _known_of_family(family, fixed, found).then(overrides)
    return _timm(file, Architecture(name=name), found, overrides, PIXELS)


def _timm(
    file: WeightFile,
    architecture: Architecture,
    found: RecognisedCheckpoint,
    known: CardOverrides,
    needed: Sequence[str],
) -> Encoder:
    card = EncoderCard(
        name=file.path.name.partition(".")[0],
        source=f"checkpoint {file.path.name}",
        architecture=known.apply_to_network(architecture),
        layout=found.name,
        keys_unused=found.unused,
    )
    from benchmarks.encoders.timm_models import timm_encoder

    # A file of an unknown family may have been trained with any pixels: ImageNet's are the most frequent.
    named_by_user = "positions" not in needed
    encoder = timm_encoder(card, found.backbone, str(file.path), head=found.head, pixels_are_known=not named_by_user)
    encoder.card = known.apply_to_card(encoder.card, needed)
    if "positions" in needed:  # of a family that nothing names
        encoder.card = encoder.card.model_copy(update={"not_shown": NOT_SHOWN_BY_VIT_KEYS})
    return encoder

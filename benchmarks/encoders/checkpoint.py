"""From a weight file of any layout to an `Encoder` with its card, in the order in which this file is written.

`pretrain.weight_files` reads the tensors and runs nothing that is in the file. `recognise` finds the layout by the keys
(`layouts`). Then the network is inferred from names and shapes, or the user names it; what these do not show comes from
the layout, releases.toml, the config of a hub folder and the user, each over the one before; and the network is filled
strictly (`encoder.filled`). A file of this project has a card that says all this.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from torch import Tensor

from benchmarks.encoders import vit_families
from benchmarks.encoders.encoder import Encoder, filled, head_summary, matches, projection_head, renamed
from benchmarks.encoders.forms import (
    HUB_WEIGHTS,
    NOT_SHOWN_BY_VIT_KEYS,
    OF_RESNETS,
    OF_VITS,
    PIXELS,
    CardOverrides,
    not_shown_by_resnet_keys,
    overrides_of_card,
    overrides_of_recipe,
    overrides_of_release,
    parse_architecture,
    pixels_of,
)
from benchmarks.encoders.hf_configs import model_name, read_config
from benchmarks.encoders.layouts import CLASSIFIER, LAYOUTS, NAMING_SCHEMES, CheckpointLayout, Pick
from benchmarks.encoders.networks import (
    CAPI,
    capi_encoder,
    infer_resnet,
    is_capi,
    is_resnet,
    resnet_encoder,
    torchvision_encoder,
    torchvision_keys,
    unfold_statistics,
)
from benchmarks.encoders.timm_models import (
    heads_are_known,
    stage_names,
    timm_encoder,
    timm_keys,
    usual_heads,
    vit_architecture,
)
from benchmarks.encoders.vit_families import VitFamily
from benchmarks.task import InputError, log_once
from pretrain.resnet import STAGES, ResNet
from pretrain.weight_files import CARD_KEY, WeightFile, read_weights, weights_sha256
from results.errors import is_out_of_memory
from results.schema import Architecture, EncoderCard

log = logging.getLogger(__name__)

# Where several mappings of a file match a layout, such as a model and its moving average: the first of these, then any.
PREFERRED_MAPPINGS = ("state_dict", "model", "model_state", "model_state_dict", "teacher", "target", "")
_CHOSEN = "%s holds %s: %s is taken, --facts pick=NAME takes another"


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
    part = re.search(r"-\d{5}-of-(\d{5})\.", path.name)
    if part and int(part[1]) > 1:
        raise InputError(
            f"{path} is one of {int(part[1])} files that hold the model together; give their folder as "
            f"hf:{path.parent}, or their index, which ends in .index.json"
        )
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
    may_be_resnet = any("layer1.0." in name for tensors in file.tensors.values() for name in tensors)
    if not overrides.architecture and not may_be_resnet:
        vit_families.refuse_unsupported(file.tensors, str(path))
    config = read_config(path) if path.name in HUB_WEIGHTS else CardOverrides()
    named = overrides.architecture or config.architecture or ""
    if named.startswith("torchvision:"):
        encoder = _named_torchvision(file, named, overrides)
    elif named.startswith("timm:"):
        encoder = _named_timm(file, named, config, overrides)
    else:
        found = recognise(file, overrides.pick)
        if is_resnet(found.backbone):
            encoder = _resnet(file, found, overrides)
        elif named:
            raise InputError(
                f"{path} has the layout {found.name}, which is not a {named}; give another file, or "
                "--facts architecture=timm:NAME"
            )
        elif is_capi(found.backbone):
            encoder = _capi(file, found, overrides)
        else:
            encoder = _vit(file, found, config, overrides)
    card = encoder.card
    assumed = f"; assumed: {', '.join(card.assumed)}" if card.assumed else ""
    assumed += f"; not shown by the keys: {', '.join(card.not_shown)}" if card.not_shown else ""
    counts = f"{card.keys_matched} tensors filled, {card.keys_unused} unused"
    log_once(f"{path.name}: {card.layout}, {card.architecture.name}, {counts}{assumed}")
    return encoder


# ---- recognise the layout --------------------------------------------------------------------------------------------


def recognise(file: WeightFile, pick: str | None = None) -> RecognisedCheckpoint:
    """Read the file by the first layout of the table whose marks it has all of.

    Args:
        pick: which encoder, where the file has several (`student`, `encoder_k`, …); the layout's first by default.

    Raises:
        InputError: no layout matches, the file has no such encoder, or two keys mean the same tensor.
    """
    mappings = _mappings(file)
    for layout in LAYOUTS:
        options = _encoders_of(layout, mappings, file.keys)
        if options:
            break
    else:
        layout, options = _vit_under_any_prefix(mappings)
        if not options:
            layout, options = _resnet_under_any_prefix(mappings, pick, str(file.path))
    total = sum(len(tensors) for tensors in mappings.values())
    if not options:
        raise InputError(_without_backbone(file, mappings, total))
    chosen = pick or next(iter(options))
    if chosen not in options:
        raise InputError(
            f"{file.path} has the layout {layout.name}, which has no {pick!r}; pick one of {', '.join(options)}"
        )
    if pick is None and len(options) > 1:
        log.info(_CHOSEN, file.path.name, ", ".join(options), chosen)
    place = options[chosen]
    tensors = mappings[place.mapping]
    heads = tuple(place.head.split("|")) if place.head else ()
    head = {key.removeprefix(h): tensor for h in heads for key, tensor in tensors.items() if key.startswith(h)}
    backbone: dict[str, Tensor] = {}
    if place.prefix == "beit.":  # transformers' masked BEiT has its norm next to the tower
        backbone |= {key: tensor for key, tensor in tensors.items() if key.startswith("layernorm.")}
    for key, tensor in tensors.items():
        name = key.removeprefix(place.prefix)
        if not key.startswith(place.prefix) or key.startswith(heads) or matches(name, layout.ignore):
            continue
        name = renamed(name, NAMING_SCHEMES[layout.names])
        if name in backbone:
            raise InputError(f"{file.path}: two keys mean {name}, one of them is {key}; the file is damaged")
        backbone[name] = tensor
    label = layout.name if len(options) == 1 else f"{layout.name}: {chosen}"
    return RecognisedCheckpoint(layout, label, backbone, head, total - len(backbone) - len(head), tuple(tensors))


def _without_backbone(file: WeightFile, mappings: Mapping[str, Mapping[str, Tensor]], total: int) -> str:
    """What is wrong with a file in which no layout finds a backbone, and what to do."""
    if not total:
        what = "the state of an optimizer" if "param_groups" in file.keys else "no tensor that has a name"
        return f"{file.path} holds {what}; give the checkpoint with the network's weights"
    names = [f"{where}/{key}".lstrip("/") for where, tensors in mappings.items() for key in tensors]
    return (
        f"{file.path} has no backbone in a known layout: {total} tensors, the first are {', '.join(names[:3])}; name "
        "the network with --facts architecture=timm:NAME, or wrap it as my_package.my_module:build"
    )


def _mappings(file: WeightFile) -> dict[str, dict[str, Tensor]]:
    """The mappings, preferred ones first, with keys free of what DistributedDataParallel and torch.compile add.

    A compiled part of a network has `_orig_mod.` in the middle of its keys. A `module.` is removed only from the front
    of all keys, because there are networks with a part of this name.
    """
    found: dict[str, dict[str, Tensor]] = {}
    order = {name: number for number, name in enumerate(PREFERRED_MAPPINGS)}
    for where, bare in sorted(file.tensors.items(), key=lambda item: order.get(item[0], len(order))):
        plain = {key.replace("_orig_mod.", ""): tensor for key, tensor in bare.items()}
        bare = plain if len(plain) == len(bare) else bare
        for _ in range(2):
            if bare and all(key.startswith("module.") for key in bare):
                bare = {key.removeprefix("module."): tensor for key, tensor in bare.items()}
        found[where] = bare
    return found


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
    places = [p for p in (mappings if any_mapping else [""]) if all(present(mark, p) for mark in layout.marks)]
    options: dict[str, Pick] = {}
    for place in places:
        for name, pick in layout.picks.items():
            mapping = place if pick.mapping == "*" else pick.mapping
            if any(key.startswith(pick.prefix) for key in mappings.get(mapping, ())):
                if len(places) > 1:
                    name = place or name if len(layout.picks) == 1 else f"{place}.{name}"
                options[name] = replace(pick, mapping=mapping)
    return options


def _vit_under_any_prefix(mappings: Mapping[str, Mapping[str, Tensor]]) -> tuple[CheckpointLayout, dict[str, Pick]]:
    """The vision transformers of a file whose layout is not in the table, by the path of their keys.

    A teacher comes first and a student last, as methods with both evaluate the teacher.
    """
    found: dict[str, Pick] = {}
    names = "a vision transformer"
    for place, tensors in mappings.items():
        for prefix in vit_families.tower_prefixes(tensors):
            naming = vit_families.find_naming([k.removeprefix(prefix) for k in tensors if k.startswith(prefix)])
            if naming is not None and not found:
                names = naming.name
            found["/".join(part for part in (place, prefix.rstrip(".")) if part) or "model"] = Pick(place, prefix)

    def rank(name: str) -> int:
        if any(word in name for word in ("teacher", "target")):
            return 0
        return 2 if any(word in name for word in ("student", "momentum", "ema", "predictor", "decoder")) else 1

    return CheckpointLayout(names, "", ()), {name: found[name] for name in sorted(found, key=rank)}


def _resnet_under_any_prefix(
    mappings: Mapping[str, Mapping[str, Tensor]], pick: str | None, source: str
) -> tuple[CheckpointLayout, dict[str, Pick]]:
    """The ResNets with torchvision's names of a file whose layout is not in the table, by the path of their keys.

    Raises:
        InputError: there are several, and the user picks none: nothing says which one the method evaluates.
    """
    first = "conv1.weight"
    found = {
        _path(place, key.removesuffix(first)): Pick(place, key.removesuffix(first))
        for place, tensors in mappings.items()
        for key in tensors
        if key.endswith(f".{first}")
        and f"{key.removesuffix(first)}bn1.weight" in tensors
        and f"{key.removesuffix(first)}layer1.0.{first}" in tensors
    }
    if len(found) > 1 and pick is None:
        raise _several(source, found)
    return CheckpointLayout("a ResNet of torchvision's names", "", (), ignore=CLASSIFIER), found


def _several(source: str, names: Iterable[str]) -> InputError:
    return InputError(f"{source} holds several networks; choose one with --facts pick=NAME: {', '.join(names)}")


def _path(mapping: str, prefix: str) -> str:
    """How a network of the file is called: the path of its mapping, and the prefix of its keys."""
    return "/".join(part for part in (mapping, prefix.rstrip(".")) if part)


def best_mapping(file: WeightFile, names: Collection[str], pick: str | None = None) -> RecognisedCheckpoint:
    """The tensors of the file that have most of a network's names, where its layout is not in the table.

    They are those of one mapping, below a prefix that all of them share, such as `model.backbone.`.

    Args:
        pick: path of another mapping, or of a mapping and a prefix.
    """
    mappings = _mappings(file) or {"": {}}
    shared = Counter(
        (place, key.removesuffix(tail))
        for place, tensors in mappings.items()
        for key in tensors
        for tail in _tails(key)
        if tail in names
    )
    most = max(shared.values(), default=0)
    likely = {_path(*there): Pick(*there) for there, count in shared.items() if count == most}
    found = {place: Pick(place) for place in mappings} | likely
    best = pick if pick is not None else next(iter(likely or found))
    if best not in found:
        raise InputError(f"{file.path} has no {best!r}; pick one of {', '.join(found)}")
    if pick is None and len(likely) > 1:
        if len({place.mapping for place in likely.values()}) < len(likely):
            raise _several(str(file.path), likely)
        log.info(_CHOSEN, file.path.name, ", ".join(likely), best)
    place = found[best]
    tensors = {
        k.removeprefix(place.prefix): t for k, t in mappings[place.mapping].items() if k.startswith(place.prefix)
    }
    unused = sum(len(tensors) for tensors in mappings.values()) - len(tensors)
    layout = CheckpointLayout("the network's own names", "", ())
    return RecognisedCheckpoint(layout, layout.name, tensors, {}, unused, tuple(tensors))


def _tails(key: str) -> list[str]:
    """The key, and what is left of it without its first parts, at most four."""
    parts = key.split(".", 4)
    return [".".join(parts[start:]) for start in range(len(parts))]


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
    if card.architecture.name == CAPI:
        return capi_encoder(card, tensors, source)
    if card.architecture.name not in STAGES:
        return timm_encoder(card, tensors, source)
    return resnet_encoder(card, filled(lambda: ResNet(card.architecture), tensors, source)[0])


def _refuse_fields_of_other_networks(overrides: CardOverrides, architecture: str, source: str) -> None:
    """Such a value would change nothing, and nobody would notice."""
    others = (*OF_VITS, "family") if architecture in STAGES else OF_RESNETS
    overrides.refuse(others, f"{source} is a {architecture}, which has no such setting")


def _known_without_user(file: WeightFile, found: RecognisedCheckpoint, architecture: Architecture) -> CardOverrides:
    """The values that the layout, the table of releases and the file's own metadata fix."""
    of_release = overrides_of_release(found.layout.name, architecture, found.keys, file.values.get("__author__"))
    values = {"method": found.layout.method} if found.layout.method else {}
    known = CardOverrides(values).then(of_release)
    epochs = file.values.get(found.layout.epochs or "")
    if isinstance(epochs, int):
        known = known.then(CardOverrides({"epochs": epochs}))
    recipe = file.values.get("recipe")
    if isinstance(recipe, str) and found.layout.name == "encoder-bench run":
        known = known.then(overrides_of_recipe(recipe))
    return known


def _card(file: WeightFile, found: RecognisedCheckpoint, architecture: Architecture) -> EncoderCard:
    """What the file's name and layout say; its network fills in the rest."""
    return EncoderCard(
        name=model_name(file.path) if file.path.name in HUB_WEIGHTS else file.path.name.partition(".")[0],
        source=f"checkpoint {file.path.name}",
        architecture=architecture,
        layout=found.name,
        keys_unused=found.unused,
    )


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
    known = _known_without_user(file, found, architecture)
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
    if found.layout.names == "caffe2" and unfold_statistics(tensors, architecture.bn_eps):
        found = replace(found, name=f"{found.name}, statistics folded into the norms")
    backbone, matched = filled(lambda: ResNet(architecture), tensors, source)
    head = projection_head(found.head, backbone.channels)
    seen = {
        "weights_sha256": weights_sha256(backbone.state_dict()),
        "keys_matched": matched,
        "keys_unused": found.unused + (0 if head else len(found.head)),
        "head": head_summary(head),
    }
    card = _card(file, found, architecture).model_copy(update=seen)
    if own is not None:
        if own.weights_sha256 not in (None, card.weights_sha256):
            raise InputError(
                f"{source}: the weights are not those that its card describes; write or copy the file again"
            )
        own_card = own.model_copy(update={**seen, "architecture": architecture, "layout": found.name})
        card = known.apply_to_card(own_card, ())
        assumed = tuple(name for name in own.assumed if name not in overrides.values)
        return resnet_encoder(card.model_copy(update={"assumed": assumed}), backbone, head)
    needed = [*PIXELS, "stem_stride", "max_pool", "bn_eps"]
    needed += ["stem_padding"] if small_stem else []
    needed += ["stride_in_1x1"] if bottleneck else []
    confirmed = overrides.architecture or all(name in of_file for name in needed if name in OF_RESNETS)
    not_shown = () if confirmed else not_shown_by_resnet_keys(architecture.name)
    card = card.model_copy(update={"not_shown": not_shown})
    return resnet_encoder(known.apply_to_card(card, needed), backbone, head)


def _embedded_card(file: WeightFile) -> EncoderCard | None:
    """The card that `benchmarks.encoders.export` writes into other libraries' files."""
    text = file.values.get(CARD_KEY)
    try:
        return EncoderCard.model_validate_json(text) if isinstance(text, str) else None
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{file.path} has a card that cannot be read ({reason}); write the file again") from error


def _vit(file: WeightFile, found: RecognisedCheckpoint, config: CardOverrides, overrides: CardOverrides) -> Encoder:
    """A vision transformer of any family (see `benchmarks.encoders.vit_families`)."""
    source = str(file.path)
    found, of_radio, ending = _tower(file, found)
    family = _family(found, overrides.family or config.family)
    architecture = vit_architecture(family, found.backbone, source)
    architecture = architecture.model_copy(update={"name": f"{architecture.name}{ending}"})
    _refuse_fields_of_other_networks(overrides, architecture.name, source)
    known = _known_of_family(family, architecture, found).then(_known_without_user(file, found, architecture))
    known = known.then(of_radio).then(config).then(overrides)
    if "input_resolution" in found.keys:  # OpenAI's own files keep it
        known = CardOverrides({"activation": "quick_gelu"}).then(known)
    asked = [*family.asks, *([] if heads_are_known(architecture, family) else ["num_heads"])]
    names = ", ".join(vit_families.FAMILY_NAMES)  # to name the family is another way to say what keys do not show
    remedy, of_family = "", f"{found.name}; {family.title}"
    if not family.pixels:  # nothing but timm's names
        remedy = f", or its family where it has the usual sizes, as --facts family=dino ({names})"
        remedy, of_family = usual_heads(architecture) + remedy, found.name
    known.require(asked, f"{source} is a vision transformer ({of_family})", remedy)
    return _timm(file, architecture, found, known, family.assumes, nothing_names_it=not family.pixels)


def _family(found: RecognisedCheckpoint, name: str | None = None) -> VitFamily:
    if name:
        return vit_families.family_named(name)
    return vit_families.find_family(found.backbone, found.keys, found.layout.name)


def _capi(file: WeightFile, found: RecognisedCheckpoint, overrides: CardOverrides) -> Encoder:
    """CAPI's encoder, whose keys and shapes show everything but the pixels, which its code fixes."""
    fixed = [*OF_RESNETS, *(name for name in OF_VITS if name != "pooling")]
    overrides.refuse(fixed, f"{file.path} is CAPI's encoder, whose code fixes them")
    known = CardOverrides({"method": "CAPI"}).then(pixels_of("imagenet")).then(overrides)
    card = known.apply_to_card(_card(file, found, known.apply_to_network(Architecture(name=CAPI))), PIXELS)
    card = card.model_copy(update={"keys_unused": found.unused + len(found.head)})
    return capi_encoder(card, found.backbone, str(file.path))


def _tower(file: WeightFile, found: RecognisedCheckpoint) -> tuple[RecognisedCheckpoint, CardOverrides, str]:
    """The vision transformer in the backbone, by timm's names. Other tensors are counted as unused.

    Returns:
        it, what the file says of the pixels, and the ending of the architecture's name; both only of RADIO, whose class
        tokens of the summary come first. They have no positions, so that their order changes nothing but `embed`.

    Raises:
        InputError: the names are not those of a vision transformer; or for RADIO, the file does not say which tokens
            make the summary, or holds what is not applied here.
    """
    source = str(file.path)
    prefix = next(iter(vit_families.tower_prefixes(found.backbone)), "")
    below = {key.removeprefix(prefix): t for key, t in found.backbone.items() if key.startswith(prefix)}
    outside, head = len(found.backbone) - len(below), found.head
    if "proj" in below and not head:  # CLIP's projection, as a matrix from the left
        head = {"weight": below.pop("proj").mT.contiguous()}
    tensors, left_out = vit_families.as_timm(below, source)
    found = replace(found, backbone=tensors, head=head, unused=found.unused + outside + left_out)
    if _family(found).name != "radio":
        return found, CardOverrides(), ""
    summary, pixels = vit_families.radio_facts(file.tensors, file.values, source)
    backbone = vit_families.with_summary_first(found.backbone, summary, source)
    ending = f"-s{len(summary)}" if len(summary) > 1 else ""
    return replace(found, backbone=backbone), CardOverrides(pixels), ending


def _known_of_family(family: VitFamily, architecture: Architecture, found: RecognisedCheckpoint) -> CardOverrides:
    """What the family's own code fixes."""
    values: dict[str, object] = {"num_heads": architecture.num_heads, "positions": architecture.positions}
    values = {name: value for name, value in values.items() if value is not None}
    if family.embed in ("cls", "mean") and not architecture.name.endswith("-avg"):
        values["pooling"] = family.embed
    if family.name not in ("plain", "deit", "beit", "clip"):
        values["method"] = family.title
    if family.name == "siglip" and found.layout.name == "transformers' CLIP names":
        values["activation"] = "gelu_tanh"  # transformers' default
    pixels = vit_families.family_pixels(family, found.backbone["patch_embed.proj.weight"].shape[0], found.keys)
    if pixels is None and family.pixels:
        values |= {"value_range": 1.0, "channels": "RGB"}  # only mean and std are in doubt
    return CardOverrides(values).then(pixels_of(pixels) if pixels else CardOverrides())


def _named_torchvision(file: WeightFile, name: str, overrides: CardOverrides) -> Encoder:
    """A file of a network of torchvision that is no ResNet, with torchvision's tensor names."""
    overrides.refuse([*OF_RESNETS, *OF_VITS, "family"], f"{file.path} is a {name}, which has no such setting")
    found = best_mapping(file, torchvision_keys(name), overrides.pick)
    encoder = torchvision_encoder(_card(file, found, Architecture(name=name)), found.backbone, str(file.path))
    encoder.card = overrides.apply_to_card(encoder.card, PIXELS)
    return encoder


def _named_timm(file: WeightFile, name: str, config: CardOverrides, overrides: CardOverrides) -> Encoder:
    """A file of a timm model that the user names: in a known layout, or with the model's own tensor names."""
    _refuse_fields_of_other_networks(overrides, name, str(file.path))
    try:
        found = recognise(file, overrides.pick)
    except InputError:
        found = best_mapping(file, timm_keys(name), overrides.pick)
    known, architecture = config.then(overrides), Architecture(name=name)
    named = stage_names(found.backbone)
    if named.keys() != found.backbone.keys():
        found = replace(found, backbone=named, unused=found.unused + len(found.backbone) - len(named))
    elif vit_families.tower_prefixes(found.backbone):
        found, of_radio, ending = _tower(file, found)
        family = _family(found, overrides.family)
        architecture, known = Architecture(name=f"{name}{ending}"), of_radio.then(known)
        if family.pixels:
            heads = (family.heads or {}).get(found.backbone["patch_embed.proj.weight"].shape[0])
            fixed = architecture.model_copy(update={"num_heads": heads, "positions": family.positions})
            known = _known_of_family(family, fixed, found).then(known)
    return _timm(file, architecture, found, known)


def _timm(
    file: WeightFile,
    architecture: Architecture,
    found: RecognisedCheckpoint,
    known: CardOverrides,
    assumes: tuple[str, ...] = (),
    *,
    nothing_names_it: bool = False,
) -> Encoder:
    """A model of timm.

    Args:
        assumes: fields of the network that are listed as assumed where nothing is known of them.
        nothing_names_it: neither the user nor the keys say what it is. It may have been trained with any pixels:
            ImageNet's are the most frequent.
    """
    card = _card(file, found, known.apply_to_network(architecture))
    source = str(file.path)
    encoder = timm_encoder(card, found.backbone, source, head=found.head, pixels_are_known=nothing_names_it)
    encoder.card = known.apply_to_card(encoder.card, (*PIXELS, *assumes, *(("positions",) if nothing_names_it else ())))
    if nothing_names_it:
        encoder.card = encoder.card.model_copy(update={"not_shown": NOT_SHOWN_BY_VIT_KEYS})
    return encoder

"""From a weight file of any layout to an `Encoder`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.contract import InputError
from benchmarks.encoders.encoder import Encoder
from benchmarks.encoders.infer_resnet import infer_resnet, is_resnet
from benchmarks.encoders.layouts.facts import NETWORK, PIXELS, Facts, card_facts, recipe_facts, release_facts
from benchmarks.encoders.layouts.recognise import Found, recognise, unfold_statistics, unrecognised
from benchmarks.encoders.projection import described, projection
from benchmarks.encoders.resnet import fill, parse_architecture, resnet_encoder
from benchmarks.encoders.timm_models import timm_encoder, timm_keys
from benchmarks.encoders.vit import infer_vit, timm_dinov2
from benchmarks.encoders.weight_files.untrusted import Contents, read_weights
from pretrain.checkpoint import CARD_KEY, weights_sha256
from pretrain.resnet import STAGES, ResNet
from results.schema import Architecture, EncoderCard

log = logging.getLogger(__name__)


def load_checkpoint(path: Path, facts: Facts | None = None) -> Encoder:
    """Reads, recognises and strictly loads a file. The card says which layout it was and what is only assumed.

    Args:
        facts: what the user says; it prevails over the file's card and the table of releases.

    Raises:
        InputError: the file is unsafe, damaged, of no known layout, does not fill its network, or leaves out what only
            the user can say.
    """
    facts = facts or Facts()
    contents = read_weights(path)
    if contents.card is not None:
        return _own(contents, contents.card, facts)
    if facts.architecture and facts.architecture.startswith("timm:"):
        encoder = _named_timm(contents, facts.architecture, facts)
    else:
        found = recognise(contents, facts.pick)
        resnet = is_resnet(found.backbone)
        if facts.architecture and not resnet:
            raise InputError(
                f"{path} is of the layout {found.name}, which is no {facts.architecture}; give another file, or "
                "architecture=timm:NAME"
            )
        encoder = (_resnet if resnet else _transformer)(contents, found, facts)
    card = encoder.card
    assumed = f"; assumed: {', '.join(card.assumed)}" if card.assumed else ""
    log.info("%s: %s, %s, %d tensors filled, %d unused%s", path.name, card.layout, card.architecture.name,
             card.keys_matched, card.keys_unused, assumed)  # fmt: skip
    return encoder


def _own(contents: Contents, card: EncoderCard, facts: Facts) -> Encoder:
    """A file that carries its card: nothing is recognised or assumed that the card does not say is."""
    source, tensors = str(contents.path), contents.tensors[""]
    asked = facts.architecture or card.architecture.name
    if asked.partition("-")[0] != card.architecture.name:
        raise InputError(f"{source} says that it is {card.architecture.name}, not {asked}; give another file")
    facts.refuse(["pick"], f"{source} holds one encoder")
    _refuse_other_networks(facts, card.architecture.name, source)
    card = card.model_copy(update={"architecture": facts.network(card.architecture)})
    card = card_facts(card).under(facts).card(card, card.assumed)
    if card.architecture.name not in STAGES:
        return timm_encoder(card, tensors, source)
    backbone = ResNet(card.architecture)
    fill(backbone, tensors, source)
    return resnet_encoder(card, backbone)


def _refuse_other_networks(facts: Facts, architecture: str, source: str) -> None:
    """Facts that this kind of network does not have would change nothing, and nobody would notice."""
    others = ("num_heads",) if architecture in STAGES else tuple(name for name in NETWORK if name != "num_heads")
    facts.refuse(others, f"{source} is {architecture}, which has no such thing")


def _released(contents: Contents, found: Found, architecture: Architecture, kernel: int | None) -> Facts:
    values = contents.values
    known = release_facts(found.layout.name, architecture, found.keys, values.get("__author__"), kernel)
    if found.layout.method:
        known = Facts({"method": found.layout.method}).under(known)
    epochs = values.get(found.layout.epochs or "")
    if isinstance(epochs, int):
        known = known.under(Facts({"epochs": epochs}))
    recipe = values.get("recipe")
    return known.under(recipe_facts(recipe)) if isinstance(recipe, str) and "run" in found.layout.name else known


def _resnet(contents: Contents, found: Found, facts: Facts) -> Encoder:
    source, tensors = str(contents.path), dict(found.backbone)
    if facts.architecture:
        stem = tensors["conv1.weight"]
        shown = {"width": stem.shape[0], "stem_kernel": stem.shape[-1]}
        architecture = parse_architecture(facts.architecture).model_copy(update=shown)
    else:
        architecture = infer_resnet(tensors, source)
    _refuse_other_networks(facts, architecture.name, source)
    own = _carried(contents)
    known = _released(contents, found, architecture, architecture.stem_kernel)
    if own is not None:
        known = known.under(card_facts(own, assumed=True))
    known = known.under(facts)
    bottleneck = any(".conv3." in name for name in tensors)
    small = architecture.stem_kernel < 7
    what = f"{source} is of the layout {found.name}"
    required = [name for name in found.layout.required if bottleneck or name != "stride_in_1x1"]
    if small:
        what += f", with a stem of {architecture.stem_kernel}x{architecture.stem_kernel}"
        required += ["stem_stride", "max_pool"]
    known.require(required, what)
    architecture = known.network(architecture)
    layout = found.name
    if found.layout.names == "caffe2" and unfold_statistics(tensors, architecture.bn_eps):
        layout += ", statistics folded into the norms"
    backbone = ResNet(architecture)
    matched = fill(backbone, tensors, source)
    head = projection(found.head, backbone.channels)
    card = EncoderCard(
        name=contents.path.name.partition(".")[0],
        source=f"checkpoint {contents.path.name}",
        architecture=architecture,
        weights_sha256=weights_sha256(backbone.state_dict()),
        layout=layout,
        keys_matched=matched,
        keys_unused=found.unused + (0 if head else len(found.head)),
        head=described(head) if head else None,
    )
    asked = [*PIXELS, "stem_stride", "max_pool", "bn_eps"]
    asked += ["stem_padding"] if small else []
    asked += ["stride_in_1x1"] if bottleneck else []
    if own is not None:
        if own.weights_sha256 not in (None, card.weights_sha256):
            raise InputError(
                f"{source}: the weights are not those that its card describes; write or copy the file again"
            )
        met = ("architecture", "weights_sha256", "layout", "keys_matched", "keys_unused", "head")
        card = known.card(own.model_copy(update={name: getattr(card, name) for name in met}), ())
        left = tuple(name for name in own.assumed if name not in facts.values)
        return resnet_encoder(card.model_copy(update={"assumed": left}), backbone, head)
    return resnet_encoder(known.card(card, asked), backbone, head)


def _carried(contents: Contents) -> EncoderCard | None:
    """The card that this project's own writers put into other libraries' files."""
    text = contents.values.get(CARD_KEY)
    try:
        return EncoderCard.model_validate_json(text) if isinstance(text, str) else None
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{contents.path} carries a card that cannot be read ({reason}); write the file again"
        ) from error


def _transformer(contents: Contents, found: Found, facts: Facts) -> Encoder:
    architecture, tensors = infer_vit(found.backbone, str(contents.path))
    _refuse_other_networks(facts, architecture.name, str(contents.path))
    known = _released(contents, found, architecture, None).under(facts)
    return _timm(contents, architecture.name, replace(found, backbone=tensors), known, [*PIXELS, "num_heads"])


def _named_timm(contents: Contents, name: str, facts: Facts) -> Encoder:
    """A file of a timm model whose name the user gives: its layout may be known, else its keys are the model's."""
    _refuse_other_networks(facts, name, str(contents.path))
    try:
        found = recognise(contents, facts.pick)
    except InputError:
        found = unrecognised(contents, timm_keys(name), facts.pick)
    if found.layout.names == "dinov2":
        found = replace(found, backbone=timm_dinov2(found.backbone))
    return _timm(contents, name, found, facts, PIXELS)


def _timm(contents: Contents, name: str, found: Found, known: Facts, asked: Sequence[str]) -> Encoder:
    card = EncoderCard(
        name=contents.path.name.partition(".")[0],
        source=f"checkpoint {contents.path.name}",
        architecture=known.network(Architecture(name=name)),
        layout=found.name,
        keys_unused=found.unused,
    )
    encoder = timm_encoder(card, found.backbone, str(contents.path), head=found.head)
    encoder.card = known.card(encoder.card, asked)
    return encoder

"""From what the user writes after `--encoder` to an `Encoder`."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import nn

from benchmarks.contract import InputError
from benchmarks.encoders.checkpoint import load_checkpoint
from benchmarks.encoders.efficientnet_lite import efficientnet_lite0
from benchmarks.encoders.encoder import Encoder
from benchmarks.encoders.layouts.facts import NETWORK, Facts, parse_facts
from benchmarks.encoders.own_module import built_encoder, module_encoder
from benchmarks.encoders.pixels import raw_pixels
from benchmarks.encoders.resnet import parse_architecture, random_resnet
from benchmarks.encoders.timm_models import pretrained_timm
from benchmarks.encoders.torchvision_models import torchvision_encoder

FORMS = (
    "a checkpoint of any known layout, torchvision:ARCH[:FILE], timm:NAME[:FILE], random:ARCH[:SEED], "
    "package:efficientnet-lite0, pixels, or my_package.my_module:build"
)


def load_encoder(
    encoder: str | Path | nn.Module | Encoder, name: str | None = None, facts: Sequence[str] = ()
) -> Encoder:
    """The encoder, frozen, on the CPU.

    Args:
        name: replaces the card's.
        facts: what a checkpoint's keys cannot show, as `channels=BGR`, `stride_in_1x1=true`, `architecture=resnet50`,
            or which of its encoders is meant, as `pick=teacher` (see `benchmarks.encoders.layouts.facts`).

    Raises:
        InputError: the form is unknown, the file is missing, unsafe or does not fit, or facts for what is no file.
    """
    loaded = _load(encoder, parse_facts(facts))
    if name:
        loaded.card = loaded.card.model_copy(update={"name": name})
    return loaded


def _load(encoder: str | Path | nn.Module | Encoder, facts: Facts) -> Encoder:
    if isinstance(encoder, Encoder):
        return encoder
    text = str(encoder) if isinstance(encoder, str | Path) else ""
    if text == "random":  # the chance baseline of the protocols, which are defined for it
        text = "random:resnet50:0"
    if text.startswith("torchvision:"):
        return torchvision_encoder(text, facts)
    if text.startswith("timm:"):
        model, _, file = text.removeprefix("timm:").partition(":")
        if not file:
            return pretrained_timm(model, facts)
        return load_checkpoint(_file(file), Facts({**facts.values, "architecture": f"timm:{model}"}))
    if text in _PLAIN or text.startswith("random:"):
        facts.refuse(list(facts.values), f"they describe a checkpoint, and {text} is none")
        return _without_file(text)
    if isinstance(encoder, nn.Module) or _IMPORTED.fullmatch(text):
        facts.refuse(["architecture", "pick", *NETWORK], f"{text or 'a module'} is no checkpoint")
        built = module_encoder(encoder) if isinstance(encoder, nn.Module) else built_encoder(text)
        built.card = facts.card(built.card, built.card.assumed)
        return built
    return load_checkpoint(_file(text), facts)


_PLAIN = ("pixels", "package:efficientnet-lite0")
_IMPORTED = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def _file(text: str) -> Path:
    path = Path(text).expanduser()
    if not text or not (path.exists() or path.is_symlink()):
        raise InputError(f"no encoder {text!r}: there is no such file; give {FORMS}")
    return path


def _without_file(text: str) -> Encoder:
    if text == "pixels":
        return raw_pixels()
    if text == "package:efficientnet-lite0":
        return efficientnet_lite0()
    architecture, _, seed = text.removeprefix("random:").partition(":")
    if not re.fullmatch(r"\d*", seed):
        raise InputError(f"{text}: the seed is {seed!r}, and should be a number")
    return random_resnet(parse_architecture(architecture), int(seed or 0))


def expand(encoders: Iterable[str]) -> list[str]:
    """Globs to the files they match, in order; anything else, and a file whose name looks like a glob, as it is.

    Raises:
        InputError: a glob that matches nothing.
    """
    found: list[str] = []
    for encoder in encoders:
        pattern = str(Path(encoder).expanduser())
        if not any(c in encoder for c in "*?[") or Path(pattern).exists():
            found.append(encoder)
            continue
        matches = sorted(glob.glob(pattern))  # noqa: PTH207 - the pattern may be absolute
        if not matches:
            raise InputError(f"no file matches {encoder!r}; correct the pattern, and quote it")
        found.extend(matches)
    return found

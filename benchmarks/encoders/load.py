"""From what the user writes after `--encoder` to an `Encoder`."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable
from pathlib import Path

from torch import nn

from benchmarks.contract import InputError
from benchmarks.encoders.efficientnet_lite import efficientnet_lite0
from benchmarks.encoders.encoder import Encoder
from benchmarks.encoders.own_module import built_encoder, module_encoder
from benchmarks.encoders.pixels import raw_pixels
from benchmarks.encoders.resnet import load_resnet_file, parse_architecture, random_resnet

FORMS = (
    "a backbone.safetensors file, random:ARCH[:SEED], package:efficientnet-lite0, pixels, or my_package.my_module:build"
)


def load_encoder(encoder: str | Path | nn.Module | Encoder, name: str | None = None) -> Encoder:
    """The encoder, frozen, on the CPU; `name` replaces the card's.

    Raises:
        InputError: the form is unknown, the file is missing or does not fit.
    """
    loaded = _load(encoder)
    if name:
        loaded.card = loaded.card.model_copy(update={"name": name})
    return loaded


def _load(encoder: str | Path | nn.Module | Encoder) -> Encoder:
    if isinstance(encoder, Encoder):
        return encoder
    if isinstance(encoder, nn.Module):
        return module_encoder(encoder)
    text = str(encoder)
    if text == "pixels":
        return raw_pixels()
    if text == "package:efficientnet-lite0":
        return efficientnet_lite0()
    if text.startswith("random:"):
        architecture, _, seed = text.removeprefix("random:").partition(":")
        if not re.fullmatch(r"\d*", seed):
            raise InputError(f"{text}: the seed is {seed!r}, and should be a number")
        return random_resnet(parse_architecture(architecture), int(seed or 0))
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", text):
        return built_encoder(text)
    path = Path(text)
    if not path.is_file():
        raise InputError(f"no encoder {text!r}: there is no such file; give {FORMS}")
    return load_resnet_file(path)


def expand(encoders: Iterable[str]) -> list[str]:
    """Globs to the files they match, in order; anything else as it is.

    Raises:
        InputError: a glob that matches nothing.
    """
    found: list[str] = []
    for encoder in encoders:
        if not any(c in encoder for c in "*?["):
            found.append(encoder)
            continue
        matches = sorted(glob.glob(encoder))  # noqa: PTH207 - the pattern may be absolute
        if not matches:
            raise InputError(f"no file matches {encoder!r}")
        found.extend(matches)
    return found

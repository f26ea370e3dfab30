"""What the keys of a checkpoint do not show: overrides of the encoder card by the user, the file or a known release."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from benchmarks.task import InputError
from results.errors import did_you_mean
from results.published import published_models
from results.schema import Architecture, EncoderCard

RELEASES = Path(__file__).with_name("releases.toml")

OF_RESNETS = ("stem_stride", "stem_padding", "max_pool", "stride_in_1x1", "bn_eps")
OF_VITS = ("num_heads", "positions", "activation", "norm_eps", "pooling")
NETWORK = (*OF_RESNETS, *OF_VITS)
PIXELS = ("mean", "std", "value_range", "channels")
HISTORY = ("method", "epochs", "pretrain_data", "licence", "published_as")
NAMES = ("architecture", "pick", "family", *NETWORK, *PIXELS, *HISTORY)
SHORT = {"heads": "num_heads", "embed": "pooling"}  # other names of fields

# What no key of a network shows, beyond the fields that are asked for or listed as assumed.
_SAME_KEYS = {"resnet18": "resnetblur18", "resnet50": "resnetblur50 and resnetaa50"}  # of timm


def not_shown_by_resnet_keys(name: str) -> tuple[str, ...]:
    """How networks with the keys and shapes of a torchvision ResNet may differ from it."""
    others = f" (timm's {_SAME_KEYS[name]})" if name in _SAME_KEYS else ""
    return f"blurred or averaged downsampling{others}", "other activations than ReLU", "dilation instead of stride"


NOT_SHOWN_BY_VIT_KEYS = ("activation", "epsilon of the norms", "which tokens make embed")

_FREE_TEXT = ("method", "pretrain_data", "licence", "published_as")  # values that may contain blanks
_MAY_BE_ZERO = ("mean", "stem_padding", "epochs")
_EXAMPLES = {
    "channels": "BGR", "mean": "103.53,116.28,123.675", "std": "1,1,1", "value_range": "255", "stride_in_1x1": "true",
    "max_pool": "false", "stem_stride": "1", "num_heads": "N", "activation": "quick_gelu",
}  # fmt: skip


@dataclass(frozen=True)
class CardOverrides:
    """Known values, by field of `Architecture` and `EncoderCard`. Fields without one keep their default, as assumed.

    `architecture`, `pick` and `family` (of a vision transformer) can only come from the user.
    """

    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def architecture(self) -> str | None:
        return self.values.get("architecture")

    @property
    def pick(self) -> str | None:
        return self.values.get("pick")

    @property
    def family(self) -> str | None:
        return self.values.get("family")

    def then(self, stronger: CardOverrides) -> CardOverrides:
        """Both, with the values of `stronger` where they differ."""
        return CardOverrides({**self.values, **stronger.values})

    def apply_to_network(self, architecture: Architecture) -> Architecture:
        """The architecture with the known values."""
        known = {name: self.values[name] for name in NETWORK if name in self.values}
        if known.get("stem_padding") == architecture.stem_kernel // 2:
            known["stem_padding"] = None  # the default; equal networks must have equal architectures
        return architecture.model_copy(update=known)

    def apply_to_card(self, card: EncoderCard, needed: Sequence[str]) -> EncoderCard:
        """The card with the known values. Fields of `needed` without a known value are listed as assumed."""
        known = {name: self.values[name] for name in (*PIXELS, *HISTORY) if name in self.values}
        assumed = tuple(name for name in needed if name not in self.values)
        return card.model_copy(update={**known, "assumed": assumed})

    def refuse(self, names: Sequence[str], reason: str) -> None:
        """Raises InputError where one of these fields has a value."""
        given = [name for name in names if name in self.values]
        if given:
            raise InputError(f"--facts {', '.join(given)}: {reason}; leave {'it' if len(given) == 1 else 'them'} out")

    def require(self, needed: Sequence[str], subject: str, otherwise: str = "") -> None:
        """Raises InputError with an example of the flag, or another remedy, where one of these fields has no value."""
        missing = [name for name in needed if name not in self.values]
        if missing:
            examples = " ".join(f"{name}={_EXAMPLES[name]}" for name in missing)
            raise InputError(
                f"{subject}, and its keys do not show {', '.join(missing)}; add --facts {examples}{otherwise}"
            )


def parse_card_overrides(texts: Sequence[str]) -> CardOverrides:
    """The values of `--facts`: one or several `name=value` in each text, separated by blanks.

    Values of method, pretrain_data, licence and published_as may contain blanks themselves.

    Raises:
        InputError: an unknown name, a value of the wrong type, two values for one name, or a `published_as` that is not
            in results/published.csv.
    """
    texts_of: dict[str, str] = {}
    for name, value in (pair for text in texts for pair in _pairs(text)):
        if texts_of.setdefault(name, value) != value:
            raise InputError(f"--facts {name}: given as {texts_of[name]} and as {value}; keep one of them")
    values: dict[str, Any] = {n: v.split(",") if n in ("mean", "std") else v for n, v in texts_of.items()}
    blank = {"name": "", "source": "", "architecture": {"name": ""}}
    fields = {name: value for name, value in values.items() if name in (*PIXELS, *HISTORY)}
    network = {name: value for name, value in values.items() if name in NETWORK}
    try:
        card = EncoderCard.model_validate({**blank, **fields})
        architecture = Architecture.model_validate({"name": "", **network})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        remedy = "write three numbers, such as 0.5,0.5,0.5" if name in ("mean", "std") else first["msg"]
        raise InputError(f"--facts {name}={texts_of[name]}: {remedy}") from error
    typed = {name: getattr(card if name in fields else architecture, name) for name in (*fields, *network)}
    for name, value in typed.items():
        numbers = value if isinstance(value, tuple) else (value,)
        if any(isinstance(n, int | float) and not _in_range(name, n) for n in numbers):
            bound = "finite" if name == "mean" else "0 or more" if name in _MAY_BE_ZERO else "above 0"
            raise InputError(f"--facts {name}={texts_of[name]}: must be {bound}")
    if "published_as" in values:
        _check_published(values["published_as"])
    return CardOverrides({**values, **typed})


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    for part in re.split(rf"\s+(?=(?:{'|'.join((*NAMES, *SHORT))})=)", text.strip()):
        name, _, value = part.partition("=")
        name = SHORT.get(name, name)
        words = value.split()
        # In a value with blanks, `tau=0.2` is one of its words, and `chanels=BGR` a misspelt name.
        misspelt = [word for word in words[1:] if "=" in word and get_close_matches(word.partition("=")[0], NAMES)]
        if name not in NAMES or misspelt or (len(words) != 1 and not (words and name in _FREE_TEXT)):
            wrong = misspelt[0] if misspelt else part
            hint = did_you_mean(wrong.partition("=")[0], NAMES) if wrong.partition("=")[0] not in NAMES else ""
            raise InputError(f"--facts {wrong}: expected name=value{hint}\nnames: {', '.join(NAMES)}")
        yield name, " ".join(words)


def _in_range(name: str, number: float) -> bool:
    if isinstance(number, bool) or name == "mean":
        return math.isfinite(number)
    return math.isfinite(number) and (number > 0 or (name in _MAY_BE_ZERO and number == 0))


def _check_published(model: str) -> None:
    """A file's own card is not checked: it may name a model of another version's published.csv."""
    known = published_models()
    if model in known:
        return
    lowered = {name.lower(): name for name in known}
    containing = [name for name in known if model.lower() in name.lower()]
    close = [*containing, *(lowered[name] for name in get_close_matches(model.lower(), lowered, n=3, cutoff=0.5))]
    similar = f"\nsimilar names: {', '.join(dict.fromkeys(close[:5]))}" if close else ""
    raise InputError(
        f"--facts published_as={model}: results/published.csv has no such model; leave it out for an encoder that was "
        f"not published{similar}"
    )


def overrides_of_card(card: EncoderCard, *, assumed: bool = False) -> CardOverrides:
    """The values of a file's own card, with or without those that it lists as assumed."""
    values = {
        **{name: getattr(card.architecture, name) for name in NETWORK},
        **{name: getattr(card, name) for name in (*PIXELS, *HISTORY)},
    }
    return CardOverrides(
        {name: value for name, value in values.items() if value is not None and (assumed or name not in card.assumed)}
    )


def overrides_of_recipe(text: str) -> CardOverrides:
    """The values of the resolved recipe (JSON) in this project's own resume file."""
    recipe = json.loads(text)
    network = {name: recipe["architecture"][name] for name in NETWORK if name in recipe["architecture"]}
    fixed = {"bn_eps": 1e-5, "stride_in_1x1": False, "stem_padding": None, "value_range": 1.0, "channels": "RGB"}
    return CardOverrides({**fixed, **network, "mean": tuple(recipe["mean"]), "std": tuple(recipe["std"])})


@cache
def _releases() -> dict[str, Any]:
    return tomllib.loads(RELEASES.read_text(encoding="utf-8"))


def pixels_of(name: str) -> CardOverrides:
    """Mean, std, range and channel order of a table `pixels` of releases.toml."""
    values = _releases()["pixels"][name]
    return CardOverrides({**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})


def overrides_of_release(layout: str, architecture: Architecture, keys: Sequence[str], author: object) -> CardOverrides:
    """The values of all rows of releases.toml that match the layout's name, the network, the file's keys and author.

    Later rows are over earlier ones.
    """
    table = _releases()
    kernel = None if architecture.name.startswith("timm:") else architecture.stem_kernel
    values: dict[str, Any] = {}
    for row in table["release"]:
        matches = (
            layout in row["layout"]
            and kernel == row.get("stem_kernel", kernel)
            and architecture.name in row.get("architecture", [architecture.name])
            and author in row.get("author", [author])
            and ("has" not in row or any(fnmatchcase(key, row["has"]) for key in keys))
        )
        if matches:
            values |= table["network"].get(row.get("network"), {}) | table["pixels"].get(row.get("pixels"), {})
            values |= row.get("facts", {})
    for name in ("mean", "std"):
        if name in values:
            values[name] = tuple(values[name])
    return CardOverrides(values)

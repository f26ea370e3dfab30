"""What a checkpoint's keys cannot show: from the user, the file's card, the table of releases, or assumed."""

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

from benchmarks.contract import InputError
from results.published import published_models
from results.schema import Architecture, EncoderCard

NETWORK = ("stem_stride", "stem_padding", "max_pool", "stride_in_1x1", "bn_eps", "num_heads")
PIXELS = ("mean", "std", "value_range", "channels")
HISTORY = ("method", "epochs", "pretrain_data", "licence", "published_as")
NAMES = ("architecture", "pick", *NETWORK, *PIXELS, *HISTORY)
_WORDS = ("method", "pretrain_data", "licence", "published_as")  # whose values may have blanks
_MAY_BE_ZERO = ("mean", "stem_padding", "epochs")


@dataclass(frozen=True)
class Facts:
    """What is known, by field of `Architecture` and `EncoderCard`; what is not there is assumed.

    `architecture` and `pick` are the user's alone.
    """

    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def architecture(self) -> str | None:
        return self.values.get("architecture")

    @property
    def pick(self) -> str | None:
        return self.values.get("pick")

    def under(self, stronger: Facts) -> Facts:
        """Both, `stronger` where they differ."""
        return Facts({**self.values, **stronger.values})

    def network(self, architecture: Architecture) -> Architecture:
        """The architecture with what is known of it."""
        known = {name: self.values[name] for name in NETWORK if name in self.values}
        if known.get("stem_padding") == architecture.stem_kernel // 2:
            known["stem_padding"] = None  # the same network, said in the same way
        return architecture.model_copy(update=known)

    def card(self, card: EncoderCard, asked: Sequence[str]) -> EncoderCard:
        """The card with what is known; of the fields `asked` the others are marked as assumed."""
        known = {name: self.values[name] for name in (*PIXELS, *HISTORY) if name in self.values}
        assumed = tuple(name for name in asked if name not in self.values)
        return card.model_copy(update={**known, "assumed": assumed})

    def refuse(self, names: Sequence[str], what: str) -> None:
        """Raises InputError where one of these is given, which `what` does not have."""
        given = [name for name in names if name in self.values]
        if given:
            raise InputError(f"--facts {', '.join(given)}: {what}; leave {'it' if len(given) == 1 else 'them'} out")

    def require(self, needed: Sequence[str], what: str) -> None:
        """Raises InputError, naming the flags, where one of them is not known."""
        missing = [name for name in needed if name not in self.values]
        if missing:
            examples = " ".join(f"{name}={_EXAMPLES[name]}" for name in missing)
            raise InputError(f"{what}, and its keys do not show {', '.join(missing)}; give them, as --facts {examples}")


_EXAMPLES = {
    "channels": "BGR", "mean": "103.53,116.28,123.675", "std": "1,1,1", "value_range": "255", "stride_in_1x1": "true",
    "max_pool": "false", "stem_stride": "1", "num_heads": "6",
}  # fmt: skip


def parse_facts(texts: Sequence[str]) -> Facts:
    """`name=value` texts, one or several (between blanks) in each. What only describes may have blanks itself.

    Raises:
        InputError: an unknown name, a value that does not fit it, two values for one name, or a published model that
            is none. A file's own card may name one, as another version's published.csv may have had it.
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
        wish = "write three numbers, as 0.5,0.5,0.5" if name in ("mean", "std") else first["msg"]
        raise InputError(f"--facts {name}={texts_of[name]}: {wish}") from error
    typed = {name: getattr(card if name in fields else architecture, name) for name in (*fields, *network)}
    for name, value in typed.items():
        numbers = value if isinstance(value, tuple) else (value,)
        if any(isinstance(n, int | float) and not _sensible(name, n) for n in numbers):
            bound = "finite" if name == "mean" else "0 or more" if name in _MAY_BE_ZERO else "above 0"
            raise InputError(f"--facts {name}={texts_of[name]}: write what is {bound}")
    _refuse_unpublished(values.get("published_as"))
    return Facts({**values, **typed})


def _refuse_unpublished(model: str | None) -> None:
    known = published_models()
    if model is None or model in known:
        return
    lowered = {name.lower(): name for name in known}
    holding = [name for name in known if model.lower() in name.lower()]
    near = [*holding, *(lowered[name] for name in get_close_matches(model.lower(), lowered, n=3, cutoff=0.5))]
    named = f"near it are {', '.join(dict.fromkeys(near[:5]))}" if near else "nothing there is near it"
    raise InputError(
        f"--facts published_as={model}: no model of results/published.csv; {named}; leave it out for an encoder that "
        "nobody published"
    )


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    for part in re.split(rf"\s+(?=(?:{'|'.join(NAMES)})=)", text.strip()):
        name, _, value = part.partition("=")
        words = value.split()
        # Of a value with blanks: `tau=0.2` is one of its words, `chanels=BGR` a slip.
        slips = [word for word in words[1:] if "=" in word and get_close_matches(word.partition("=")[0], NAMES)]
        if name not in NAMES or slips or (len(words) != 1 and not (words and name in _WORDS)):
            raise InputError(
                f"--facts {slips[0] if slips else part}: write name=value, with a name of {', '.join(NAMES)}"
            )
        yield name, " ".join(words)


def _sensible(name: str, number: float) -> bool:
    """Of a fact's number; a flag's always is."""
    if isinstance(number, bool) or name == "mean":
        return math.isfinite(number)
    return math.isfinite(number) and (number > 0 or (name in _MAY_BE_ZERO and number == 0))


def card_facts(card: EncoderCard, *, assumed: bool = False) -> Facts:
    """What a file's own card says, with or without what it marks as assumed."""
    named = {
        **{n: getattr(card.architecture, n) for n in NETWORK},
        **{n: getattr(card, n) for n in (*PIXELS, *HISTORY)},
    }
    return Facts(
        {name: value for name, value in named.items() if value is not None and (assumed or name not in card.assumed)}
    )


def recipe_facts(text: str) -> Facts:
    """What the resolved recipe in this project's own resume file says."""
    recipe = json.loads(text)
    network = {name: recipe["architecture"][name] for name in NETWORK if name in recipe["architecture"]}
    known = {"bn_eps": 1e-5, "stride_in_1x1": False, "stem_padding": None, "value_range": 1.0, "channels": "RGB"}
    return Facts({**known, **network, "mean": tuple(recipe["mean"]), "std": tuple(recipe["std"])})


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("releases.toml").read_text(encoding="utf-8"))


def release_facts(
    layout: str, architecture: Architecture, keys: Sequence[str], author: object, stem_kernel: int | None
) -> Facts:
    """Every row of releases.toml that fits, later rows over earlier ones.

    Args:
        stem_kernel: of a ResNet; None for other networks.
    """
    table = _table()
    values: dict[str, Any] = {}
    for row in table["release"]:
        fits = (
            layout in row["layout"]
            and stem_kernel == row.get("stem_kernel", stem_kernel)
            and architecture.name in row.get("architecture", [architecture.name])
            and author in row.get("author", [author])
            and ("has" not in row or any(fnmatchcase(key, row["has"]) for key in keys))
        )
        if fits:
            values |= table["network"].get(row.get("network"), {}) | table["pixels"].get(row.get("pixels"), {})
            values |= row.get("facts", {})
    for name in ("mean", "std"):
        if name in values:
            values[name] = tuple(values[name])
    if values.get("num_heads") == "standard":  # known to be what timm has
        values["num_heads"] = None
    return Facts(values)

"""What may stand after `--encoder` and `--facts`, and what is wrong with it at first sight, without importing torch.

`--facts` says what the keys of a checkpoint do not show. The file itself, the configuration of a hub folder and the
table of known releases may say it too: `CardOverrides` holds it, whoever said it.
"""

from __future__ import annotations

import glob
import json
import math
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from benchmarks.task import InputError
from results.errors import did_you_mean
from results.published import published_models
from results.schema import Architecture, EncoderCard

FORMS = (
    "a checkpoint of any known layout",
    "torchvision:ARCH[:FILE]",
    "timm:NAME[:FILE]",
    "hf:FOLDER",
    "random:ARCH[:SEED]",
    "package:efficientnet-lite0",
    "pixels",
    "my_package.my_module:build",
)
NAMED = ("pixels", "package:efficientnet-lite0")  # that stand for one encoder

RESNETS = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext50_32x8d",
    "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2",
)  # fmt: skip
"""the keys of `pretrain.resnet.STAGES`"""
# As in `pretrain.recipe`: a group of a ResNeXt needs at least one channel.
NARROWEST = {"resnext50_32x4d": 16, "resnext50_32x8d": 8, "resnext101_32x8d": 8, "resnext101_64x4d": 16}
WIDEST = 512

TORCHVISION_NETWORKS = (
    "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", *(f"efficientnet_b{n}" for n in range(8)),
    "efficientnet_v2_s", "efficientnet_v2_m", "efficientnet_v2_l",
)  # fmt: skip
"""networks of torchvision that are read from a file"""

HUB_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "open_clip_model.safetensors", "pytorch_model.bin",
               "pytorch_model.bin.index.json", "open_clip_pytorch_model.bin")  # fmt: skip
OPEN_CLIP = "open_clip_config.json"

RELEASES = Path(__file__).with_name("releases.toml")

OF_RESNETS = ("stem_stride", "stem_padding", "max_pool", "stride_in_1x1", "bn_eps")
OF_VITS = ("num_heads", "positions", "activation", "norm_eps", "pooling")
NETWORK = (*OF_RESNETS, *OF_VITS)
PIXELS = ("mean", "std", "value_range", "channels")
HISTORY = ("method", "epochs", "pretrain_data", "licence", "published_as")
FACTS = ("architecture", "pick", "family", *NETWORK, *PIXELS, *HISTORY)
SHORT = {"heads": "num_heads", "embed": "pooling"}  # other names of fields

# What no key of a network shows, beyond the fields that are asked for or listed as assumed.
_SAME_KEYS = {"resnet18": "resnetblur18", "resnet50": "resnetblur50 and resnetaa50"}  # of timm
NOT_SHOWN_BY_VIT_KEYS = ("activation", "epsilon of the norms", "which tokens make embed")

_FREE_TEXT = ("method", "pretrain_data", "licence", "published_as")  # values that may contain blanks
_MAY_BE_ZERO = ("mean", "stem_padding", "epochs")
_EXAMPLES = {
    "channels": "BGR", "mean": "103.53,116.28,123.675", "std": "1,1,1", "value_range": "255", "stride_in_1x1": "true",
    "max_pool": "false", "stem_stride": "1", "num_heads": "N", "activation": "quick_gelu",
}  # fmt: skip


def refuse_at_sight(encoders: Sequence[str], facts: Sequence[str] = ()) -> None:
    """Raise what `load_encoder` would say of wrong facts, and of encoders whose names show that none can be loaded.

    Where one of several can be loaded, the others are reported when their turn comes.
    """
    parse_card_overrides(facts)
    errors = []
    for encoder in encoders:
        try:
            if encoder.startswith("timm:"):
                require_timm_name(encoder.split(":")[1])
            parse_form(encoder)
            return
        except InputError as error:
            errors.append(error)
    if errors:
        raise errors[0]


@dataclass(frozen=True)
class Form:
    """What stands after `--encoder`: its kind, a name or text, and the existing file of a checkpoint."""

    kind: Literal["checkpoint", "torchvision", "timm", "random", "named", "function"]
    text: str
    file: Path | None = None


def parse_form(encoder: str) -> Form:
    """Raises InputError for a missing file and for an unknown architecture."""
    kind, _, rest = encoder.partition(":")
    if encoder in NAMED:
        return Form("named", encoder)
    if kind == "random":
        random_form(rest)
        return Form("random", rest)
    if kind == "torchvision":
        return Form("torchvision", *torchvision_form(rest))
    if kind == "timm":
        name, _, file = rest.partition(":")
        return Form("timm", name, existing_file(file) if file else None)
    if kind == "hf":
        return Form("checkpoint", encoder, hub_weights(rest))
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", encoder):  # my_package.my_module:build
        return Form("function", encoder)
    return Form("checkpoint", encoder, existing_file(encoder))


def existing_file(text: str) -> Path:
    """The path of an existing file or link."""
    path = Path(text).expanduser()
    if not text or not (path.exists() or path.is_symlink()):
        raise InputError("\n".join([f"encoder file not found: {text!r}{_meant(text)}; --encoder takes", *FORMS]))
    return path


def _meant(text: str) -> str:
    """What a name that is no file may stand for: a network of torchvision or timm, or a model of the hub."""
    if text in RESNETS:
        return f"; did you mean 'torchvision:{text}' or 'random:{text}'?"
    if text in TORCHVISION_NETWORKS:
        return f"; did you mean 'torchvision:{text}:FILE'?"
    if text.partition(".")[0] in timm_names():
        return f"; did you mean 'timm:{text}'?"
    if re.fullmatch(r"[\w-]+/[\w.-]+", text) and not Path(text).suffix:
        return f"; a model of the Hugging Face hub is given as hf:FOLDER after `hf download {text} --local-dir FOLDER`"
    return did_you_mean(text, NAMED)


def hub_weights(text: str) -> Path:
    """The weight file of `hf:FOLDER`, which must have a config beside it."""
    folder = Path(text).expanduser()
    if not folder.is_dir():
        remedy = f"hf download {text} --local-dir FOLDER" if text.count("/") == 1 else "hf download NAME"
        raise InputError(
            f"hf:{text}: folder not found, and this command downloads nothing; download the model with `{remedy}` and "
            "give hf:FOLDER"
        )
    configs = [name for name in ("config.json", OPEN_CLIP) if (folder / name).is_file()]
    if not configs:
        raise InputError(f"{folder} has no config.json or {OPEN_CLIP}; give a model folder of the Hugging Face hub")
    for name in HUB_WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    none = f"{folder} has none of {', '.join(HUB_WEIGHTS)}"
    others = sorted(file for file in folder.iterdir() if file.suffix in (".pt", ".pth", ".safetensors"))
    if others:
        raise InputError(f"{none}; give its file itself, as --encoder {others[0]}")
    raise InputError(f"{none}; download the whole model")


def require_timm_name(name: str) -> None:
    """Raises InputError for a model that timm's source does not name; importing timm to ask it takes seconds."""
    names = timm_names()
    # Without the tag of its weights, and the sizes in which a file's network differs from it, as cards name them.
    bare = re.sub(r"(-([dlmprs]\d+|avg|swiglu))+$", "", name).partition(".")[0]
    if not names or bare in names:
        return
    meant = did_you_mean(bare, names) or "; timm.list_models() lists them"
    raise InputError(f"timm {version('timm')} has no model {name!r}{meant}")


@cache
def timm_names() -> frozenset[str]:
    """The models that the source of timm registers, old names among them; none where timm is not installed."""
    spec = find_spec("timm")
    if spec is None or not spec.submodule_search_locations:
        return frozenset()
    found: set[str] = set()
    for file in Path(spec.submodule_search_locations[0], "models").glob("*.py"):
        source = file.read_text(encoding="utf-8")
        found.update(re.findall(r"^@register_model\s+def (\w+)\(", source, re.MULTILINE))
        for renamed in re.findall(
            r"^register_model_deprecations\(__name__, \{(.*?)^\}", source, re.MULTILINE | re.DOTALL
        ):
            found.update(re.findall(r"^\s*['\"](\w+)['\"]:", renamed, re.MULTILINE))
    return frozenset(found)


def random_form(text: str) -> tuple[Architecture, int]:
    """Architecture and seed of `ARCH[:SEED]`; the default is the chance baseline of the published protocols."""
    architecture, _, seed = (text or "resnet50:0").partition(":")
    if not re.fullmatch(r"\d*", seed):
        raise InputError(f"random:{text}: the seed must be a number, got {seed!r}")
    if len(seed) > 19 or int(seed or 0) >= 2**63:
        raise InputError(f"random:{text[:100]}: the seed must be below 2**63, got {seed[:40]}")
    return parse_architecture(architecture), int(seed or 0)


def torchvision_form(text: str) -> tuple[str, Path | None]:
    """Network and file of `NETWORK[:FILE]`."""
    name, _, file = text.partition(":")
    if name in RESNETS or (name in TORCHVISION_NETWORKS and file):
        return name, existing_file(file) if file else None
    known = f"{', '.join(RESNETS)}, nor with a file one of {', '.join(TORCHVISION_NETWORKS)}"
    remedy = f"give torchvision:{name}:FILE" if name in TORCHVISION_NETWORKS else "give another network as timm:NAME"
    raise InputError(f"torchvision:{name} is not one of {known}; {remedy}")


def parse_architecture(text: str) -> Architecture:
    """`resnet18`, with `-w32` (width), `-k3` (stem kernel), `-s1` (stem stride) and `-nopool` where they differ.

    Raises:
        InputError: an unknown name or part.
    """
    name, *parts = text.split("-")
    if name not in RESNETS:
        raise InputError(f"unknown architecture {name!r} in {text!r}; choose from {', '.join(RESNETS)}")
    fields: dict[str, int | bool] = {}
    letters = {"w": "width", "k": "stem_kernel", "s": "stem_stride"}
    for part in parts:
        number = re.fullmatch(r"([wks])(\d+)", part)
        value = int(number[2][-9:]) if number and len(number[2].lstrip("0")) <= 9 else 0
        if part == "nopool":
            fields["max_pool"] = False
        elif number and 0 < value <= WIDEST:
            fields[letters[number[1]]] = value
        elif number:
            raise InputError(f"{part[:40]!r} in {text[:100]!r} is out of range; numbers are 1 to {WIDEST}")
        else:
            raise InputError(
                f"unknown part {part!r} in {text!r}; parts are wN, kN, sN and nopool, as in resnet18-w32-k3-nopool"
            )
    architecture = Architecture(name=name, **fields)
    narrowest = NARROWEST.get(name, 1)
    if architecture.width < narrowest:
        raise InputError(f"{text!r} is too narrow: a {name} has a width of at least {narrowest}")
    return architecture


def expand(encoders: Iterable[str], name: str | None = None) -> list[str]:
    """Replace globs by the matching files, in order. Names of existing files are never taken for globs.

    Args:
        name: the user's name of the encoder in tables.

    Raises:
        InputError: a glob that matches nothing, or a name for several encoders.
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
    if name and len(found) > 1:
        raise InputError(f"--name is for one encoder, but there are {len(found)}; leave it out")
    return found


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
        raise InputError(f"--facts {_as_written(name, texts)}={texts_of[name]}: {remedy}") from error
    typed = {name: getattr(card if name in fields else architecture, name) for name in (*fields, *network)}
    for name, value in typed.items():
        numbers = value if isinstance(value, tuple) else (value,)
        if any(isinstance(n, int | float) and not _in_range(name, n) for n in numbers):
            bound = "finite" if name == "mean" else "0 or more" if name in _MAY_BE_ZERO else "above 0"
            raise InputError(f"--facts {name}={texts_of[name]}: must be {bound}")
    if "published_as" in values:
        _check_published(values["published_as"])
    return CardOverrides({**values, **typed})


def _as_written(name: str, texts: Sequence[str]) -> str:
    """The shorter name of a field where the user wrote that one."""
    return next((short for short, of in SHORT.items() if of == name and f"{short}=" in " ".join(texts)), name)


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    for part in re.split(rf"\s+(?=(?:{'|'.join((*FACTS, *SHORT))})=)", text.strip()):
        name, _, value = part.partition("=")
        name = SHORT.get(name, name)
        words = value.split()
        # In a value with blanks, `tau=0.2` is one of its words, and `chanels=BGR` a misspelt name.
        misspelt = [word for word in words[1:] if "=" in word and get_close_matches(word.partition("=")[0], FACTS)]
        if name not in FACTS or misspelt or (len(words) != 1 and not (words and name in _FREE_TEXT)):
            wrong = misspelt[0] if misspelt else part
            name = wrong.partition("=")[0]
            unknown = "=" in wrong and name not in FACTS
            fault = f"unknown name {name!r}" if unknown else "expected name=value"
            hint = did_you_mean(name, FACTS) if name not in FACTS else ""
            raise InputError(f"--facts {wrong}: {fault}{hint}\nnames: {', '.join(FACTS)}")
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


def not_shown_by_resnet_keys(name: str) -> tuple[str, ...]:
    """How networks with the keys and shapes of a torchvision ResNet may differ from it."""
    others = f" (timm's {_SAME_KEYS[name]})" if name in _SAME_KEYS else ""
    return f"blurred or averaged downsampling{others}", "other activations than ReLU", "dilation instead of stride"

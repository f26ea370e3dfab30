"""What may stand after `--encoder`, and what is wrong with it at first sight: no torch is imported here."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from benchmarks.encoders.card_facts import parse_card_overrides
from benchmarks.encoders.hf_configs import hub_weights
from benchmarks.task import InputError
from results.errors import did_you_mean
from results.schema import Architecture

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
NAMES = ("pixels", "package:efficientnet-lite0")  # that stand for one encoder

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
    if encoder in NAMES:
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
        meant = did_you_mean(text, NAMES)
        raise InputError("\n".join([f"encoder file not found: {text!r}{meant}; --encoder takes", *FORMS]))
    return path


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


def expand(encoders: Iterable[str]) -> list[str]:
    """Replace globs by the matching files, in order. Names of existing files are never taken for globs.

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

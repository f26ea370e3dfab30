"""Data sets, checkpoint layouts, recipes and commands: tables of what there is."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmark_tables import table

from benchmarks.datasets.registry import DATASETS
from benchmarks.encoders.forms import RELEASES
from benchmarks.encoders.layouts import LAYOUTS
from benchmarks.encoders.vit_families import FAMILIES, VitFamily
from pretrain.recipe import RECIPES, Augmentation, Recipe
from results.schema import Architecture


def datasets() -> str:
    """Name, folder below the root, splits with their published counts, classes."""
    rows = []
    for name, info in DATASETS.items():
        splits = ", ".join(f"{split} {count:,}" if count else split for split, count in info.splits.items())
        rows.append((f"`{name}`", f"`{info.folder or '.'}`", splits, info.classes or "", info.how_to_get))
    return table(("Name", "Below the root", "Splits and images", "Classes", "Comes from"), rows)


def dataset_layouts() -> str:
    """The layouts of the sets that are found in several, in the order in which they are tried."""
    rows = [
        (f"`{name}`", f"`{layout.description.replace('`', '')}`")
        for name, info in DATASETS.items()
        if info.layouts
        for layout in info.layouts.layouts
    ]
    return table(("Data set", "Layout"), rows)


def layouts() -> str:
    """The table of checkpoint layouts, in the order in which they are tried."""
    rows = [
        (
            layout.name,
            " ".join(layout.marks).replace("*/", ""),
            list(layout.picks),
            any(pick.head for pick in layout.picks.values()),
            list(layout.required),
            layout.source,
        )
        for layout in LAYOUTS
    ]
    columns = ("Layout", "Recognised by", "Encoders in it, the default first", "Head read", "Must be told", "Source")
    return table(columns, rows)


_EMBED = {"cls": "class token", "mean": "mean of patches", "map": "attention pooling", None: "as timm's model",
          "cls+mean": "class token and mean of patches", "mean6": "mean of the last six blocks"}  # fmt: skip
_PATCHES = {
    "norm": "after `norm`",
    "fc_norm": "after `norm`; in files with `fc_norm` instead, before any norm",
    "optional": "after `norm`, where the file has one",
    "none": "before any norm, as the network has none there",
}
_POSITIONS = {
    "offset": "bicubic, by a scale factor with 0.1 added",
    "bilinear": "bilinear; rotary ones count patches",
    "square": "bilinear to a square, cut to the image",
    None: "as timm's",
}
_PIXELS = {"imagenet": "ImageNet's", "half": "0.5 and 0.5", "clip": "CLIP's", None: "assumed to be ImageNet's"}


def vit_families() -> str:
    """The families of vision transformers, in the order in which they are tried."""
    differences = vit_differences()
    columns = ("Family", "Recognised by", "`embed`", "`patches`: the last block's", "Other image sizes", "Mean and std",
               "Heads", "Difference to another forward pass", "Assumed or open", "Source")  # fmt: skip
    return table(columns, [vit_family(family, differences[family.name]) for family in FAMILIES])


def vit_family(family: VitFamily, difference: str) -> tuple[str, ...]:
    """A row of `vit_families`."""
    embed = "summary: the class tokens that the file names" if family.name == "radio" else _EMBED[family.embed]
    if family.last_norm == "fc_norm":
        embed += ", then `fc_norm` where the file has it" if family.embed == "mean" else ""
        embed += "; mean of patches, then `fc_norm`, in files with that" if family.embed != "mean" else ""
    if family.embed_too:
        embed += f" (the authors also use: {', '.join(_EMBED[each] for each in family.embed_too)})"
    sizes = "none: that of the file only" if family.one_size else _POSITIONS[family.positions]
    heads = "known for its usual widths" if family.fixed_heads else "asked for"
    return (
        f"{family.title} (`{family.name}`)",
        family.recognised,
        embed,
        _PATCHES[family.last_norm],
        "rotary" if family.name in ("dinov3", "capi") else sizes,
        "the file's, otherwise CLIP's" if family.name == "radio" else _PIXELS[family.pixels],
        "shown by the keys" if family.name == "capi" else heads,
        difference,
        family.assumed,
        family.source,
    )


def vit_differences() -> dict[str, str]:
    """By family: the differences to forward passes of other code that `scripts/vit_differences.py` keeps."""
    found: dict[str, list[str]] = {}
    for row in json.loads((Path(__file__).parent / "vit_differences.json").read_text(encoding="utf-8")):
        by_hand = "" if "measured_by" in row else f"; † {row['date']}"
        note = f" ({row['note']})" if row["note"] else ""
        found.setdefault(row["family"], []).append(f"{row['difference']:g}: {row['code']}{note}{by_hand}")
    return {family: ", ".join(texts) for family, texts in found.items()}


def decoder_scores() -> str:
    """What each decoder of JPEG files does to scores, as `scripts/decoder_scores.py` has measured it."""
    rows = json.loads((Path(__file__).parent / "decoder_scores.json").read_text(encoding="utf-8"))
    protocols = list(rows[0]["scores"])
    columns = ("Encoder", "Size of the files", "Decoder", "Distance to Pillow's pixels", *(f"`{p}`" for p in protocols))
    shown = sorted(rows, key=lambda row: (row["encoder"], row["size"]))  # a stable sort: decoders stay in their order
    return table(
        columns,
        [
            (f"`{row['encoder']}`", row["size"], f"`{row['decoder']}` ({row['package']})", f"{row['distance']:.2f}",
             *(f"{row['scores'][p]:.2f}" for p in protocols))
            for row in shown
        ],
    )  # fmt: skip


def releases() -> str:
    """Facts about released checkpoints that their keys do not show, with their sources."""
    rows = tomllib.loads(RELEASES.read_text(encoding="utf-8"))["release"]
    return table(
        ("Layouts", "Only where", "Source"),
        [(row["layout"], _only(row), row["source"]) for row in rows],
    )


def _only(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("architecture", "stem_kernel", "has", "author") if name in row}


def recipes() -> str:
    """Every recipe with its parent and the fields that it states."""
    rows = []
    for path in sorted(RECIPES.glob("*.toml")):
        own = tomllib.loads(path.read_text(encoding="utf-8"))
        parent = own.pop("parent", None)
        about = [line[1:].strip() for line in _comment(path)]
        states = ", ".join(f"{name}={value}" for name, value in _flat(own) if name != "citation")
        rows.append((f"`{path.stem}`", " ".join(about), f"`{parent}`" if parent else "", states))
    return table(("Recipe", "What it is", "Parent", "What it states"), rows)


def _comment(path: Path) -> Iterator[str]:
    """The comment's first paragraph."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#") or line.strip() == "#":
            return
        yield line


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def recipe_fields() -> str:
    """Every field with its default, which is MoCo v2's."""
    rows = []
    for model, prefix in ((Recipe, ""), (Architecture, "architecture."), (Augmentation, "augmentation.")):
        for name, field in model.model_fields.items():
            if name in ("architecture", "augmentation"):
                continue
            default = "resnet50" if prefix + name == "architecture.name" else field.get_default()
            rows.append((f"`{prefix}{name}`", default, field.description or ""))
    return table(("Field", "Default", "Meaning"), rows)


def benchmark_commands() -> list[str]:
    """The commands of `encoder-bench` that are no benchmark."""
    return list(import_module("benchmarks.__main__").COMMANDS)


def result_commands() -> list[str]:
    """The commands of `python -m results`."""
    return [name for group in import_module("results.options").GROUPS.values() for name in group]

"""Data sets, checkpoint layouts, recipes and commands: tables of what there is, and what commands print."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from markdown_table import table

from benchmarks.datasets.registry import DATASETS
from benchmarks.encoders.card_facts import RELEASES
from benchmarks.encoders.layouts import LAYOUTS
from benchmarks.encoders.vit_families import FAMILIES, VitFamily
from pretrain.recipe import RECIPES, Augmentation, Recipe
from results.schema import Architecture

ROOT = Path(__file__).parents[2]
WIDTH = "100"


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


def help_of(line: str) -> str:
    """What `line --help` prints, as a code block. `line` is as `encoder-bench knn` or `scripts/submit.py`."""
    words = line.removeprefix("python -m ").split()
    package = "benchmarks" if words[0] == "encoder-bench" else words[0]
    main = _script(words[0]) if words[0].endswith(".py") else import_module(f"{package}.__main__").main
    return f"```text\n{_help(main, words[0], words[1:])}\n```\n"


def _help(main: Callable[[list[str]], int], program: str, words: list[str]) -> str:
    printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # a StringIO has no encoding, and gets ASCII frames
    width, argv = os.environ.get("COLUMNS"), sys.argv
    os.environ["COLUMNS"], sys.argv = WIDTH, [program]
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            main([*words, "--help"])
    finally:
        sys.argv = argv
        os.environ.pop("COLUMNS") if width is None else os.environ.update(COLUMNS=width)
    printed.seek(0)
    text = re.sub(r"\x1b\[[0-9;]*m", "", printed.read()).strip()
    if "usage:" not in text:
        raise ValueError(f"{program} {' '.join(words)} --help printed nothing to show")
    return text


@cache
def _script(name: str) -> Callable[[list[str]], int]:
    spec = importlib.util.spec_from_file_location(Path(name).stem, ROOT / name)
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    main: Callable[[list[str]], int] = module.main
    return main


def make_help() -> str:
    """What `make` alone prints."""
    command = ["make", "--no-print-directory", "help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S603 - no input in it
    printed = done.stdout.strip("\n")  # the first line keeps its indent
    return f"```text\n{printed}\n```\n"


def benchmark_commands() -> list[str]:
    """The commands of `encoder-bench` that are no benchmark."""
    return list(import_module("benchmarks.__main__").COMMANDS)


def result_commands() -> list[str]:
    """The commands of `python -m results`."""
    return [name for group in import_module("results.options").GROUPS.values() for name in group]


def output(line: str, code: int = 0, first: int | None = None) -> str:
    """A command and what it prints, as two code blocks. It is run as the page is built.

    Args:
        line: as `python -m results diff A B`; it is run in the project's folder.
        code: its exit code.
        first: number of lines of the output that are shown; all by default.

    Raises:
        ValueError: another command, or it ends with another exit code.
    """
    lines = _printed(line, code)
    shown = lines[:first] + (["…"] if first and len(lines) > first else [])
    block = "".join(f"{each}\n" for each in ("", "```text", *shown, "```")) if shown else ""
    said = f"\nIt ends with exit code {code}.\n" if code else ""
    return f"```bash\n{line}\n```\n{block}{said}"


def included(path: str) -> str:
    """The text of a file of the project, without its heading, as a command wrote it.

    Raises:
        OSError: it cannot be read.
    """
    text = (ROOT / path).read_text(encoding="utf-8")
    return "\n".join(line for line in text.splitlines() if not line.startswith("#")).strip()


def rendered(line: str, rows: int | None = None) -> str:
    """A command and the first table that it prints, as a table of the page with its title and the lines above it.

    Args:
        line: as for `output`; the command must print markdown.
        rows: number of rows that are shown; all by default.

    Raises:
        ValueError: another command, or one that fails or prints no table.
    """
    lines = _printed(line, 0)
    starts = [number for number, each in enumerate(lines) if each.startswith("|")]
    if not starts:
        raise ValueError(f"{line} prints no table")
    first = starts[0]
    end = next((number for number in range(first, len(lines)) if not lines[number].startswith("|")), len(lines))
    title = max((number for number in range(first) if lines[number].startswith("#")), default=0)
    above = [f"**{each.lstrip('# ')}**" if each.startswith("#") else each for each in lines[title:first]]
    table, count = lines[first:end], end - first - 2
    if rows is not None and count > rows:
        table = [*table[: rows + 2], "", f"The first {rows} of {count} rows."]
    return "\n".join([f"```bash\n{line}\n```\n", *above, *table, ""])


def _printed(line: str, code: int) -> list[str]:
    """The lines that a command of `python -m results` prints in the project's folder."""
    words = shlex.split(line)
    if words[:3] != ["python", "-m", "results"]:
        raise ValueError(f"{line} is not a command of python -m results")
    printed, here = io.StringIO(), Path.cwd()
    try:
        os.chdir(ROOT)
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            ended = import_module("results.__main__").main(words[3:])
    finally:
        os.chdir(here)
    lines = printed.getvalue().rstrip("\n").splitlines()
    if ended != code:
        raise ValueError(f"{line} ended with {ended}, not {code}: {' '.join(lines[-1:])}")
    return lines

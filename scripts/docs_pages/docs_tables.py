"""The tables of the docs: protocols and costs, published figures and records, data sets, layouts and recipes."""

from __future__ import annotations

import inspect
import json
import math
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from pydantic import BaseModel

from benchmarks.datasets.registry import DATASETS
from benchmarks.encoders.forms import RELEASES
from benchmarks.encoders.layouts import LAYOUTS
from benchmarks.encoders.vit_families import FAMILIES, VitFamily
from benchmarks.registry import TASK_NAMES, AnyTask, load_task, tasks
from benchmarks.task import ImageTask, Labels
from pretrain.recipe import RECIPES, Augmentation, Recipe
from results.formats import markdown
from results.published import Figure, figures
from results.published_tables import paper_tables
from results.schema import Architecture, Protocol
from results.store import read_records
from results.tables import markdown_page
from results.zoo_page import published_page, zoo_markdown

ROOT = Path(__file__).parents[2]
RECORDS, DOCS = ROOT / "results" / "records", ROOT / "docs" / "benchmarks"
_HIDDEN = {"benchmark", "variant", "revision", "harness", "source", "overrides"}
_FIRST = ("dataset", "train_split", "test_split", "metric", "primary", "selection")

GPU_RATE, CORE_RATE, CORES, SIDE = 1000, 10, 16, 224
# Giga-operations of a pass at 224 pixels: `_ops` of torchvision's ResNet50_Weights and ViT_B_16_Weights, IMAGENET1K_V1.
RESNET50_OPS, VIT_B_OPS = 4.089, 17.564
FOR_VIT_B = ("vit-det", "vit-seg")
# Numbers of images only for this estimate; what decides whether data is complete is in benchmarks/datasets/registry.py.
# ADE20K: README of CSAILVision/sceneparsing. Oxford: 5,062 images (the data set's page at VGG), of which 55 queries and
# 15 new ones leave the database (arXiv:1803.11285).
SIZES = {"ade20k": {"training": 20_210, "validation": 2_000}, "roxford5k": {"database": 4_992, "queries": 70}}
YOUR_IMAGES = 1000  # a data set of the user's own: time for that many


class ProtocolPages:
    """Writes the tables of benchmarks, and keeps in mind which protocols have been shown."""

    def __init__(self) -> None:
        self.shown: set[str] = set()

    def missing(self) -> list[str]:
        """Ids of protocols that no page has shown."""
        return sorted({protocol.id for protocol in every_protocol()} - self.shown)

    def tables(self, *names: str) -> str:
        """The protocols of these commands: for each benchmark its variants next to each other."""
        unknown = [name for name in names if name not in TASK_NAMES]
        if unknown:
            raise ValueError(f"there is no benchmark {unknown[0]}")
        found = [protocol for name in names for protocol in load_task(name).protocols]
        self.shown |= {protocol.id for protocol in found}
        benchmarks = dict.fromkeys(protocol.benchmark for protocol in found)
        tables = [_benchmark(name, [p for p in found if p.benchmark == name]) for name in benchmarks]
        return "\n".join(tables) + _meaning(names)

    def others(self) -> str:
        """The protocols of commands that have no page of their own, so that a new benchmark needs none."""
        pages = "".join(page.read_text(encoding="utf-8") for page in sorted(DOCS.glob("*.md")))
        paged = {
            name for names in re.findall(r"protocols\(([^)]+)\)", pages) for name in re.findall(r'"([^"]+)"', names)
        }
        own = [name for name in TASK_NAMES if name not in paged]
        return "".join(f"## {name}\n\n{load_task(name).__doc__}\n{self.tables(name)}" for name in own)

    def overview(self) -> str:
        """One line per benchmark and data set."""
        rows = []
        for task in tasks():
            for benchmark in dict.fromkeys(p.benchmark for p in task.protocols):
                of = [p for p in task.protocols if p.benchmark == benchmark]
                sets = dict.fromkeys(p.dataset for p in of)
                names = ", ".join(p.variant for p in of)
                rows.append((f"`{task.name}`", f"`{benchmark}`", plain(list(sets)), names, of[0].metric))
        return table(("Command", "Benchmark", "Data sets", "Variants", "Metric"), rows)


def every_protocol() -> Iterator[Protocol]:
    """Those that a command runs."""
    for task in tasks():
        yield from task.protocols


def commands(*names: str) -> str:
    """Commands as they are typed."""
    return ", ".join(f"`encoder-bench {name}`" for name in names)


def _benchmark(name: str, variants: list[Protocol]) -> str:
    fields = [_fields(protocol) for protocol in variants]
    keys = list(dict.fromkeys(key for one in fields for key in one))
    differing = [key for key in keys if len({plain(one.get(key, "")) for one in fields}) > 1]
    shared = [key for key in keys if key not in differing]
    parts = [f"\n### {name}\n"]
    if differing:
        parts.append("What differs between the variants:\n")
        rows = [(f"`{key}`", *(one.get(key, "") for one in fields)) for key in differing]
        parts.append(table(("", *(f"`{p.variant}@{p.revision}`" for p in variants)), rows))
    title = "What they share" if differing else f"`{variants[0].id}`"
    shared_rows = table(("", "Value"), [(f"`{key}`", fields[0].get(key, "")) for key in shared])
    parts.append(f'??? note "{title}"\n\n{_indented(shared_rows)}' if differing else f"{title}\n\n{shared_rows}")
    sources = [
        f"- `{p.id}`: {cell(p.source.repository)}{f' ({p.source.revision})' if p.source.revision else ''}"
        f"{': ' + cell(p.source.note) if p.source.note else ''}"
        for p in variants
    ]
    return "\n".join([*parts, "Where the numbers were read:\n", *sources, ""])


def _indented(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines())


def _fields(protocol: Protocol) -> dict[str, Any]:
    content = protocol.model_dump(mode="json", exclude=_HIDDEN)
    params, columns = content.pop("params"), content.pop("columns")
    first = {name: content.pop(name) for name in _FIRST}
    fields = protocol.params_type.model_fields
    stated = {**params, **{name: fields[name].default for name in protocol.settable if name not in params}}
    return {**first, **_flat(content), **_flat(stated), "columns": columns}


def _flat(content: Mapping[str, Any], prefix: str = "", depth: int = 2) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, Mapping) and depth > 1:
            flat |= _flat(value, f"{prefix}{name}.", depth - 1)
        else:
            flat[prefix + name] = value
    return flat


def _meaning(commands: Sequence[str]) -> str:
    """What the params of these commands' protocols say of each field, in docstrings and descriptions."""
    seen: dict[str, str] = {}
    for kind in dict.fromkeys(load_task(name).Params for name in commands):
        for model in kind.__mro__:
            if issubclass(model, BaseModel) and model.__module__.startswith("benchmarks."):
                described = {n: f.description for n, f in model.model_fields.items() if f.description}
                seen = {**described, **_attributes(model), **seen}
    if not seen:
        return ""
    rows = table(("Field", "Meaning"), [(f"`{name}`", text) for name, text in seen.items()])
    return f'\n??? note "What the fields mean"\n\n{_indented(rows)}'


def _attributes(model: type[BaseModel]) -> dict[str, str]:
    """The section `Attributes:` of a docstring, where `a, b: text` speaks of two."""
    section = inspect.cleandoc(model.__doc__ or "").partition("Attributes:\n")[2].partition("\n\n")[0]
    entries = re.split(r"\n(?=    \w)", "\n" + section)[1:]
    pairs = (entry.strip().partition(": ") for entry in entries)
    return {name: " ".join(text.split()) for names, _, text in pairs for name in names.split(", ")}


def cost_rows() -> list[tuple[str, str, str, str, str, str]]:
    """Command, protocol, passes, time on one GPU and on CPUs, and the median of the committed records."""
    measured: dict[str, list[float]] = {}
    for stored in read_records(RECORDS)[0]:
        record = stored.record
        if record.status == "ok" and "total" in record.timing:
            measured.setdefault(record.protocol.resolved.harness, []).append(record.timing["total"])
    found = []
    for kind in tasks():
        task = load_task(kind.name)()
        protocol = task.protocols[0]
        passes = encoder_passes(task, protocol)
        work = (passes or YOUR_IMAGES) * (VIT_B_OPS / RESNET50_OPS if task.name in FOR_VIT_B else 1)
        per = "" if passes else f" per {YOUR_IMAGES:,}"
        seconds = measured.get(task.name)
        found.append(
            (
                f"`{task.name}`",
                f"`{protocol.id}`",
                _count(passes) if passes else "1 per image",
                _time(work / GPU_RATE) + per,
                _time(work / CORE_RATE / CORES) + per,
                _time(median(seconds)) if seconds else "",
            )
        )
    return found


def cost_table() -> str:
    """What the published variant of each benchmark costs: estimated for full data, and measured on the embedded data.

    An estimate counts the images that pass through the encoder. A training step of the encoder counts as three passes,
    and an image of another size counts by its pixels. Both rates are this project's assumptions for a ResNet-50 at 224
    pixels. A protocol that is made for a ViT-B/16 takes longer by the ratio of the two networks' operations.
    """
    head = ("Command", "Protocol", "Passes", "One GPU", f"{CORES} CPU cores", "Measured")
    return table(head, cost_rows())


def encoder_passes(task: AnyTask, protocol: Protocol) -> float | None:
    """Passes of images of 224 x 224 pixels; None for a folder of the user's own images, each of which passes once.

    Raises:
        ValueError: the number of images of a public data set is not known.
    """
    splits = {**DATASETS[protocol.dataset].splits, **SIZES.get(protocol.dataset, {})}
    sizes = splits.get(protocol.train_split), splits.get(protocol.test_split)
    if None in sizes and not protocol.params.get("iterations"):
        if DATASETS[protocol.dataset].folder or isinstance(task, ImageTask):
            raise ValueError(f"{protocol.id} needs the number of images of {protocol.dataset}: add it to SIZES")
        return None
    pixels = (protocol.geometry.crop / SIDE) ** 2
    if not isinstance(task, ImageTask):
        read = sizes[:1] if protocol.train_split == protocol.test_split else sizes
        return pixels * sum(size or 0 for size in read)
    trained, evaluated = task.amount(protocol, *(_labels(size or 1) for size in sizes))
    return pixels * (trained * task.passes_per_step + (evaluated if sizes[1] else 0))


def _labels(size: int) -> Labels:
    """As many items as a split has, of which only the number is read."""
    return Labels(("",) * size, (Path(),) * size, (), np.zeros((0, 0)), ())


def _count(passes: float) -> str:
    return f"{passes / 1e6:.3g} M" if passes >= 1e6 else f"{passes / 1e3:.3g} k"


def _time(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{float(f'{seconds / size:.2g}'):g} {unit}"
    return f"{max(1, round(seconds))} s"


def published(pattern: str) -> str:
    """The published figures that belong to the matching protocols, folded up, with how each was chosen."""
    placed = [f for f in figures() if f.place is not None and fnmatchcase(f.place.protocol, pattern)]
    comparable = [f for f in placed if f.place is not None and f.place.statistic in ("value", "mean")]
    if not comparable:
        return "No figure was published under these protocols, as far as `results/published.csv` goes.\n"
    sources = list(dict.fromkeys(f.source for f in comparable))
    rows = [_published_row(f, sources.index(f.source) + 1) for f in comparable]
    columns = ("Model", "Epochs", "Protocol", "Column", "Figure", "How chosen", "Runs", "Source")
    listed = "\n".join(f"{number}. {cell(source)}" for number, source in enumerate(sources, 1))
    body = f"{table(columns, rows)}\nSources:\n\n{listed}\n"
    return f'??? note "{len(comparable)} published figures from {len(sources)} sources"\n\n{_indented(body)}'


def _published_row(figure: Figure, source: int) -> tuple[Any, ...]:
    place = figure.place
    assert place is not None
    epochs = "" if figure.epochs is None else figure.epochs
    runs = "" if place.runs is None else place.runs
    return (figure.model, epochs, f"`{place.protocol}`", place.column, figure.text, place.selection, runs, source)


def sources() -> str:
    """Every source of published.csv, and how many of its figures belong to a protocol."""
    every, placed = Counter(f.source for f in figures()), Counter(f.source for f in figures() if f.place)
    return table(("Source", "Figures", "With a protocol"), [(s, n, placed[s]) for s, n in every.items()])


def papers() -> str:
    """The MoCo papers' tables from published.csv."""
    return "\n".join(markdown(one, level=2) for one in paper_tables(figures()).values())


def zoo_pages() -> str:
    """The two published MoCo v2 pages, one below the other."""
    names = dict.fromkeys(f.source for f in figures() if fnmatchcase(f.source, "MoCo v2 page *"))
    texts = (zoo_markdown(published_page([f for f in figures() if f.source == name])) for name in names)
    return "\n".join(_deeper(text) for text in texts)


def unplaced() -> str:
    """Why a published figure belongs to no protocol, and how many there are of the kind."""
    counted = Counter((f.reason, f.source, f.benchmark) for f in figures() if f.place is None)
    rows = [(source, benchmark, count, reason) for (reason, source, benchmark), count in counted.items()]
    return table(("Source", "Benchmark there", "Figures", "Why it has no protocol"), rows)


def measured() -> str:
    """The committed records as tables, without the page's own title."""
    stored, bad = read_records(RECORDS)
    page = markdown_page(stored, bad, Path("results/records"))
    return page.partition("\n")[2]


def so_far() -> str:
    """By benchmark, how many encoders the committed records measured, on embedded and on full data sets."""
    counted: dict[str, tuple[set[str], set[str]]] = {}
    for protocol in every_protocol():
        counted.setdefault(protocol.benchmark, (set(), set()))
    for stored in read_records(RECORDS)[0]:
        record = stored.record
        if record.status == "ok":
            counted[record.protocol.resolved.benchmark][not record.dataset.embedded].add(record.encoder.name)
    rows = [(f"`{name}`", *(len(names) or "none" for names in of)) for name, of in counted.items() if any(of)]
    without = [f"`{name}`" for name, of in counted.items() if not any(of)]
    measured_ones = table(("Benchmark", "Encoders on embedded data", "Encoders on full data sets"), rows)
    rest = f'\n??? note "Without a committed record: {len(without)}"\n    {", ".join(without)}\n' if without else ""
    return measured_ones + rest


def _deeper(text: str) -> str:
    """Headings one level down; this site's page has its own title."""
    return "".join(f"#{line}" if line.startswith("#") else line for line in text.splitlines(keepends=True))


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
        states = ", ".join(f"{name}={value}" for name, value in _stated(own) if name != "citation")
        rows.append((f"`{path.stem}`", " ".join(about), f"`{parent}`" if parent else "", states))
    return table(("Recipe", "What it is", "Parent", "What it states"), rows)


def _comment(path: Path) -> Iterator[str]:
    """The comment's first paragraph."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#") or line.strip() == "#":
            return
        yield line


def _stated(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _stated(value, f"{prefix}{name}.")
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


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table; what could be markup in a cell is shown as it is. Texts in backticks stay code."""
    lines = [_line(columns), _line(["---"] * len(columns)), *(_line([cell(v) for v in row]) for row in rows)]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def cell(value: Any) -> str:
    """One line; numbers as short as they are exact, lists by commas."""
    text = plain(value).replace("\n", " ").replace("|", "\\|")
    parts = text.split("`")  # what stands between two backticks is code, and code needs no escape
    code = len(parts) % 2 == 1
    return "`".join(part if code and i % 2 else _escaped(part) for i, part in enumerate(parts))


def _escaped(text: str) -> str:
    return text.replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_").replace("[", "\\[")


def plain(value: Any) -> str:
    """A value as a reader writes it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {plain(part)}" for name, part in value.items() if part not in (None, 0))
    if isinstance(value, list | tuple):
        return ", ".join(f"({plain(v)})" if isinstance(v, list | tuple) else v for v in _shortened(value))
    return str(value)


def _shortened(values: Sequence[Any]) -> Iterator[Any]:
    """Halvings from one number to the next, three or more, as `0.5^4 … 0.5^19`; the other values as texts."""
    rest = list(values)
    while rest:
        run = 1
        while run < len(rest) and isinstance(rest[run], float) and rest[run] * 2 == rest[run - 1] < 1:
            run += 1
        if run > 2 and math.log2(rest[0]).is_integer():
            yield f"0.5^{-math.log2(rest[0]):.0f} … 0.5^{-math.log2(rest[run - 1]):.0f}"
        else:
            run = 1
            yield rest[0] if isinstance(rest[0], list | tuple) else plain(rest[0])
        del rest[:run]

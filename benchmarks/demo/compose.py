"""Compose the embedded data: single drawings, the same corrupted, scenes in four layouts, a contact sheet."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from xml.etree import ElementTree as ET

import numpy as np
from filelock import FileLock

from benchmarks.datasets.lists import GROUPS_FILE
from benchmarks.datasets.registry import EMBEDDED_STAMP
from benchmarks.demo.scenes import (
    ARCHIVE,
    SPLIT_FILE,
    Scene,
    SceneSplit,
    Single,
    generator,
    instances,
    paint,
    paint_single,
    plan_scene,
    plan_singles,
    scene_pools,
)
from benchmarks.demo.writers import (
    VOID,
    Annotation,
    CocoWriter,
    VocWriter,
    coco_annotations,
    write_ade20k,
    write_corrupted,
    write_nyu,
)
from benchmarks.task import InputError
from benchmarks.task import progress as shown
from results.files import open_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

YEAR = "2007"
SHEET_COLUMNS = 6
THREADS = 2  # Pillow encodes and resamples outside the interpreter lock


@dataclass(frozen=True)
class Counts:
    """Numbers of scenes (trainval is train and val), and of single and corrupted drawings per class; None for all."""

    train: int = 1200
    val: int = 400
    test: int = 800
    drawings_per_class: int | None = None
    corrupted_per_class: int | None = 12


def compose(out: Path, *, seed: int = 0, progress: bool = True, counts: Counts | None = None) -> None:
    """Write `drawings/`, `drawings-c/`, `VOCdevkit/VOC2007/`, `coco/`, `ADEChallengeData2016/` and `nyu/` below `out`.

    The bytes are the same for the same seed and counts.

    An intact part is left alone. Each part is composed in another folder and then moved into place, so that a run can
    be killed at any time and started again.

    Raises:
        InputError: one of the folders exists and was not composed by this function.
    """
    counts = counts or Counts()
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out / ".composing.lock"):
        stamp = _Stamp(out, _key(seed, counts))
        parts: dict[str, Callable[[Path], None]] = {
            "drawings": lambda folder: _compose_drawings(folder, seed, counts, progress),
            "drawings-c": lambda folder: _compose_corrupted(folder, out, seed, counts, progress),
            f"VOCdevkit/VOC{YEAR}": lambda folder: _compose_voc(folder, seed, counts, progress),
            "coco": lambda folder: _compose_coco(folder, out, seed, counts, progress),
            "ADEChallengeData2016": lambda folder: _compose_from_voc(write_ade20k, folder, out),
            "nyu": lambda folder: _compose_from_voc(write_nyu, folder, out),
        }
        for name, write in parts.items():
            if stamp.intact(name):
                continue
            stamp.claim(name)
            aside = out / ".composing"
            shutil.rmtree(aside, ignore_errors=True)
            write(aside)
            shutil.rmtree(out / name, ignore_errors=True)
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            aside.replace(out / name)
            stamp.complete(name)


def plan_scenes(seed: int, counts: Counts) -> Iterator[Scene]:
    """The scenes of all splits, numbered from 1: train, val, test."""
    pools = scene_pools()
    sizes: tuple[tuple[SceneSplit, int], ...] = (("train", counts.train), ("val", counts.val), ("test", counts.test))
    splits = [split for split, size in sizes for _ in range(size)]
    return (plan_scene(seed, number, split, pools[split]) for number, split in enumerate(splits, start=1))


def _compose_drawings(folder: Path, seed: int, counts: Counts, progress: bool) -> None:
    singles = plan_singles(counts.drawings_per_class)

    def write(single: Single) -> None:
        file = folder / single.path
        file.parent.mkdir(parents=True, exist_ok=True)
        paint_single(single, seed).save(file)

    for _ in _each(write, singles, len(singles), "single drawings", progress):
        pass
    _write_groups(folder, {single.path.as_posix(): {single.drawing.group} for single in singles})


def _compose_corrupted(folder: Path, out: Path, seed: int, counts: Counts, progress: bool) -> None:
    """The first view of every val drawing, as ImageNet-C is made of ImageNet's val."""
    folder.mkdir(parents=True, exist_ok=True)
    classes = sorted((out / "drawings" / "val").iterdir())
    drawings = [file for each in classes for file in sorted(each.glob("*_0.png"))[: counts.corrupted_per_class]]

    def write(drawing: Path) -> None:
        write_corrupted(drawing, folder, seed)

    for _ in _each(write, drawings, len(drawings), "corrupted drawings", progress):
        pass


def _compose_voc(folder: Path, seed: int, counts: Counts, progress: bool) -> None:
    writer = VocWriter(folder, YEAR)

    def write(scene: Scene) -> tuple[str, set[str]]:
        image_id = writer.add(scene, paint(scene, seed), instances(scene))
        return image_id, {placement.drawing.group for placement in scene.placements}

    sources = dict(_each(write, plan_scenes(seed, counts), _scenes(counts), f"VOC{YEAR} scenes", progress))
    writer.finish()
    _write_groups(folder, sources)


def _compose_coco(folder: Path, out: Path, seed: int, counts: Counts, progress: bool) -> None:
    writer = CocoWriter(folder)
    pictures = out / f"VOCdevkit/VOC{YEAR}/JPEGImages"

    def describe(scene: Scene) -> tuple[Scene, list[Annotation]]:
        return scene, coco_annotations(instances(scene))

    for scene, found in _each(describe, plan_scenes(seed, counts), _scenes(counts), "COCO annotations", progress):
        writer.add(scene, pictures / f"{scene.number:06d}.jpg", found)
    writer.finish()


def _compose_from_voc(write: Callable[[Path, Path], dict[str, str]], folder: Path, out: Path) -> None:
    voc = out / f"VOCdevkit/VOC{YEAR}"
    groups = json.loads((voc / GROUPS_FILE).read_text(encoding="utf-8"))
    folder.mkdir(parents=True)
    _write_groups(folder, {id: set(groups[scene]) for id, scene in write(voc, folder).items()})


def _scenes(counts: Counts) -> int:
    return counts.train + counts.val + counts.test


def _each(
    work: Callable[[Item], Result], items: Iterable[Item], total: int, description: str, progress: bool
) -> Iterator[Result]:
    """The results in the order of the items."""
    with ThreadPoolExecutor(THREADS) as pool:
        yield from shown(pool.map(work, items), description, total=total, show=progress)


def _write_groups(folder: Path, sources: dict[str, set[str]]) -> None:
    content = {id: sorted(found) for id, found in sorted(sources.items())}
    (folder / GROUPS_FILE).write_text(json.dumps(content, indent=0) + "\n", encoding="utf-8")


def _key(seed: int, counts: Counts) -> str:
    """A hash of everything that decides the bytes: settings, the source of this package, drawings and split."""
    digest = hashlib.sha256(json.dumps([seed, asdict(counts)]).encode())
    sources = [Path(__file__).with_name(f"{module}.py") for module in ("compose", "scenes", "writers")]
    for file in (*sources, SPLIT_FILE, ARCHIVE):
        digest.update(file.read_bytes())
    return digest.hexdigest()


class _Stamp:
    """`embedded.json`: the composed parts, a hash of their settings, and a digest of each that shows damage."""

    def __init__(self, out: Path, key: str) -> None:
        self.out, self.key = out, key
        self.file = out / EMBEDDED_STAMP
        try:
            content = json.loads(self.file.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            content = {}
        # Part -> digest; empty while the part is being composed, or if other settings composed it.
        self.parts: dict[str, str] = dict(content.get("parts", {}))
        if content.get("key") != key:
            self.parts = dict.fromkeys(self.parts, "")

    def intact(self, name: str) -> bool:
        return bool(self.parts.get(name)) and self.parts[name] == _digest(self.out / name)

    def claim(self, name: str) -> None:
        if name not in self.parts and (self.out / name).exists():
            raise InputError(
                f"{self.out / name} exists and was not composed here; choose another --out or move it away"
            )
        self._write({**self.parts, name: ""})

    def complete(self, name: str) -> None:
        self._write({**self.parts, name: _digest(self.out / name)})

    def _write(self, parts: dict[str, str]) -> None:
        self.parts = parts
        content = {"composed_from": "openclipart12 (public domain)", "key": self.key, "parts": parts}
        aside = self.file.with_suffix(".partial")
        aside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        aside.replace(self.file)


def _digest(folder: Path) -> str:
    """SHA-256 over the names and sizes of all files."""
    lines = sorted(f"{f.relative_to(folder).as_posix()} {f.stat().st_size}\n" for f in folder.rglob("*") if f.is_file())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


# ---- contact sheet and command ---------------------------------------------------------------------------------------


def contact_sheet(root: Path, out: Path, split: str, n: int = 24) -> None:
    """Draw `n` scenes of a VOC split with boxes, class names, flags (D difficult, T truncated) and masks into a PNG.

    Args:
        root: the data root that `compose` wrote.
        split: as in ImageSets/Main, such as trainval.

    Raises:
        InputError: the scenes are not there.
    """
    from matplotlib.figure import Figure

    folder = root / "VOCdevkit" / f"VOC{YEAR}"
    listing = folder / "ImageSets" / "Main" / f"{split}.txt"
    if not listing.is_file():
        raise InputError(f"{listing} is missing; compose the data first")
    ids = listing.read_text(encoding="utf-8").split()
    chosen = sorted(generator(0, "sheet").permutation(len(ids))[:n])
    rows = -(-n // SHEET_COLUMNS)
    figure = Figure(figsize=(3 * SHEET_COLUMNS, 3 * rows), layout="constrained")
    for position in range(n):
        axis = figure.add_subplot(rows, SHEET_COLUMNS, 1 + position)
        axis.set_axis_off()
        if position < len(chosen):
            _draw_scene(axis, folder, ids[chosen[position]])
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".partial")
    figure.savefig(partial, format="png", dpi=110)
    partial.replace(out)


def _draw_scene(axis: Axes, folder: Path, image_id: str) -> None:
    import matplotlib as mpl
    from matplotlib.patches import Rectangle

    with open_image(folder / "JPEGImages" / f"{image_id}.jpg") as image:
        axis.imshow(np.asarray(image))
    with open_image(folder / "SegmentationObject" / f"{image_id}.png") as image:
        labels = np.asarray(image)
    overlay = np.zeros((*labels.shape, 4))
    overlay[labels == VOID] = (1, 1, 1, 0.9)
    tree = ET.parse(folder / "Annotations" / f"{image_id}.xml")  # noqa: S314 - written by the composer
    for number, element in enumerate(tree.findall("object"), start=1):
        colour = mpl.colormaps["tab10"](number - 1)
        overlay[labels == number] = (*colour[:3], 0.3)
        left, top, right, bottom = (
            int(element.findtext(f"bndbox/{edge}", "")) for edge in ("xmin", "ymin", "xmax", "ymax")
        )
        # Here pixel centres are whole numbers from 0; the file counts from 1 and includes both ends.
        box = Rectangle((left - 1.5, top - 1.5), right - left + 1, bottom - top + 1, fill=False, ec=colour, lw=1.2)
        axis.add_patch(box)
        flags = [flag for flag, name in (("D", "difficult"), ("T", "truncated")) if element.findtext(name) == "1"]
        text = " ".join([element.findtext("name", ""), *flags])
        axis.text(left - 1, top - 2, text, fontsize=5, color="white", va="bottom",
                  bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.8})  # fmt: skip
    axis.imshow(overlay)
    axis.set_title(image_id, fontsize=5, pad=6)


def command(out: Path = Path("work/data"), seed: int = 0, sheet: Path | None = None) -> int:
    """Compose the embedded data: single drawings, corrupted ones, scenes as Pascal VOC, COCO, ADE20K and NYU Depth.

    Args:
        out: data root to write.
        seed: seed of the pictures.
        sheet: also draw a contact sheet of scenes with boxes and masks to this PNG file.
    """
    compose(out, seed=seed)
    log.info("composed %s", out)
    if sheet:
        contact_sheet(out, sheet, "trainval")
        log.info("drew %s", sheet)
    return 0

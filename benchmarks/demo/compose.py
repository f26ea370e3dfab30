"""Composes the embedded data: single drawings, scenes in the Pascal VOC layout, and the same scenes as COCO."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from benchmarks.datasets.lists import GROUPS_FILE
from benchmarks.datasets.registry import EMBEDDED_STAMP
from benchmarks.demo.coco_writer import Annotation, CocoWriter, annotate
from benchmarks.demo.drawings import SPLIT_FILE
from benchmarks.demo.painting import paint
from benchmarks.demo.scenes import Scene, SceneSplit, instances, plan_scene, scene_pools
from benchmarks.demo.singles import Single, paint_single, plan_singles
from benchmarks.demo.voc_writer import VocWriter
from benchmarks.progress import progress as shown
from benchmarks.task import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")

YEAR = "2007"
THREADS = 2  # Pillow encodes and resamples outside the interpreter lock


@dataclass(frozen=True)
class Counts:
    """How much to compose. Trainval is train and val; `drawings_per_class` None takes all of them."""

    train: int = 1200
    val: int = 400
    test: int = 800
    drawings_per_class: int | None = None


def compose(out: Path, *, seed: int = 0, progress: bool = True, counts: Counts | None = None) -> None:
    """Writes `drawings/`, `VOCdevkit/VOC2007/` and `coco/` below `out`, the same bytes for the same seed and counts.

    A part that is there and intact is left alone. Each part is composed aside and then moved into place, so that a run
    may be killed at any time and started again.

    Raises:
        InputError: one of the folders exists and was not composed by this function.
    """
    counts = counts or Counts()
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out / ".composing.lock"):
        stamp = _Stamp(out, _key(seed, counts))
        parts: dict[str, Callable[[Path], None]] = {
            "drawings": lambda folder: _compose_drawings(folder, seed, counts, progress),
            f"VOCdevkit/VOC{YEAR}": lambda folder: _compose_voc(folder, seed, counts, progress),
            "coco": lambda folder: _compose_coco(folder, out, seed, counts, progress),
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


def plan(seed: int, counts: Counts) -> Iterator[Scene]:
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


def _compose_voc(folder: Path, seed: int, counts: Counts, progress: bool) -> None:
    writer = VocWriter(folder, YEAR)

    def write(scene: Scene) -> tuple[str, set[str]]:
        image_id = writer.add(scene, paint(scene, seed), instances(scene))
        return image_id, {placement.drawing.group for placement in scene.placements}

    sources = dict(_each(write, plan(seed, counts), _scenes(counts), f"VOC{YEAR} scenes", progress))
    writer.finish()
    _write_groups(folder, sources)


def _compose_coco(folder: Path, out: Path, seed: int, counts: Counts, progress: bool) -> None:
    writer = CocoWriter(folder)
    pictures = out / f"VOCdevkit/VOC{YEAR}/JPEGImages"

    def describe(scene: Scene) -> tuple[Scene, list[Annotation]]:
        return scene, annotate(instances(scene))

    for scene, found in _each(describe, plan(seed, counts), _scenes(counts), "COCO annotations", progress):
        writer.add(scene, pictures / f"{scene.number:06d}.jpg", found)
    writer.finish()


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
    """Changes whenever something that decides the bytes does: settings, the composer's source, the split."""
    digest = hashlib.sha256(json.dumps([seed, asdict(counts)]).encode())
    here = Path(__file__).parent
    for file in sorted([SPLIT_FILE, *(f for f in here.glob("*.py") if f.name not in _NO_INFLUENCE)]):
        digest.update(file.read_bytes())
    return digest.hexdigest()


_NO_INFLUENCE = ("near_duplicates.py", "sheet.py", "split.py")


class _Stamp:
    """`embedded.json`: what was composed here, with which settings, and how to tell that it is still whole."""

    def __init__(self, out: Path, key: str) -> None:
        self.out, self.key = out, key
        self.file = out / EMBEDDED_STAMP
        try:
            content = json.loads(self.file.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            content = {}
        # Part -> digest; empty while it is being composed, and for what other settings gave.
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

"""Places205 as its two archives unpack, as mm lists and as class folders."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tests.layouts.pictures import plain, save

CLASSES = ("a/abbey", "a/airport_terminal", "o/office")
IMAGES = Path("data/vision/torralba/deeplearning/images256")


def write_places205(root: Path, layout: Literal["owner", "mm", "folders"] = "owner") -> Path:
    """Writes `root`/places205: 3 classes with 8 train and 4 val images each. Returns the folder."""
    folder = root / "places205"
    lists: dict[str, list[str]] = {"train": [], "val": []}
    for split, per_class in (("train", 8), ("val", 4)):
        for target, name in enumerate(CLASSES):
            for number in range(per_class):
                file = f"gsun_{(target + 1) * 7919 + number + (500 if split == 'val' else 0):032x}.jpg"
                below = {
                    "owner": IMAGES / name,
                    "mm": Path(split, name),
                    "folders": Path(split, name.partition("/")[2]),
                }[layout]
                save(plain(target, len(lists[split]) + (900 if split == "val" else 0)), folder / below / file)
                lists[split].append(f"{name}/{file} {target}")
    for split, lines in lists.items():
        if layout != "folders":
            where = {"owner": f"trainvalsplit_places205/{split}_places205.csv", "mm": f"meta/{split}.txt"}[layout]
            (folder / where).parent.mkdir(parents=True, exist_ok=True)
            (folder / where).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder

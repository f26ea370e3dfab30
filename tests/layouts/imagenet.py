"""ILSVRC 2012 as its owner, mm's list files, VISSL's .npy lists and SimCLR's subsets lay it out."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from tests.layouts.pictures import plain, save

WNIDS = ("n01440764", "n01443537", "n01484850")
TRAIN_PER_CLASS = 8
VAL_PER_CLASS = 4


def write_imagenet(root: Path, layout: Literal["folders", "mm", "vissl"] = "folders", subsets: bool = True) -> Path:
    """Writes `root`/imagenet: 3 classes with 8 train and 4 val images each. Returns the folder.

    `folders` has both splits in wnid folders; `mm` and `vissl` have a flat val, with meta/{train,val}.txt resp.
    {train,val}_{images,labels}.npy. The 1 % subset holds one image of each class, the 10 % one two.
    """
    folder = root / "imagenet"
    train = [f"{w}/{w}_{10 * n + 26}.JPEG" for w in WNIDS for n in range(TRAIN_PER_CLASS)]
    targets = [WNIDS.index(name[:9]) for name in train]
    for seed, (name, target) in enumerate(zip(train, targets, strict=True)):
        save(plain(target, seed), folder / "train" / name)
    val = []  # (flat name, target): the classes are mixed, as in the real val
    for number in range(VAL_PER_CLASS * len(WNIDS)):
        name, target = f"ILSVRC2012_val_{number + 1:08d}.JPEG", (2 * number) % len(WNIDS)
        where = folder / "val" / WNIDS[target] if layout == "folders" else folder / "val"
        save(plain(target, 1000 + number), where / name)
        val.append((name, target))
    if layout == "mm":
        _lines(folder / "meta" / "train.txt", [f"{n} {t}" for n, t in zip(train, targets, strict=True)])
        _lines(folder / "meta" / "val.txt", [f"{n} {t}" for n, t in val])
    if layout == "vissl":
        np.save(folder / "train_images.npy", np.array([str(folder / "train" / name) for name in train]))
        np.save(folder / "train_labels.npy", np.array(targets))
        np.save(folder / "val_images.npy", np.array([str(folder / "val" / name) for name, _ in val]))
        np.save(folder / "val_labels.npy", np.array([target for _, target in val]))
    if subsets:
        for percent, per_class in ((1, 1), (10, 2)):
            chosen = [name for n, name in enumerate(train) if n % TRAIN_PER_CLASS < per_class]
            if layout == "mm":
                lines = [f"{name} {WNIDS.index(name[:9])}" for name in chosen]
                _lines(folder / "meta" / f"train_{percent}percent.txt", lines)
            else:
                _lines(folder / "imagenet_subsets" / f"{percent}percent.txt", [n.partition("/")[2] for n in chosen])
    return folder


def _lines(file: Path, lines: list[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

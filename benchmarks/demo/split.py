"""Makes `split.tsv`: groups the near-duplicates and gives each group a side. Run by `python -m benchmarks.demo.split`.

The file is committed and nothing at run time depends on this module, so that the split never moves by itself.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from pathlib import Path

import numpy as np
from sklearn.cluster import DBSCAN

from benchmarks.demo.drawings import ROOT, SPLIT_FILE
from benchmarks.demo.near_duplicates import THRESHOLD, similarity

RELATED_FILE = Path(__file__).parent / "related.txt"
TEST_SHARE = 0.3
LARGEST_TEST_GROUP = 4  # larger ones train: a test set of many sources says more than one of many versions

# Files whose picture is the renderer's own sign for a missing image.
LEFT_OUT = ("animals_birds/duck_yellow_ii_kurt_cagl_", "animals_birds/tux_didier_fabert_01")


def groups_of(ids: list[str]) -> dict[str, str]:
    """Drawing id -> group id, by likeness above the threshold and by `related.txt`, transitively."""
    index = {id: row for row, id in enumerate(ids)}
    linked = similarity([ROOT / f"{id}.png" for id in ids]) > THRESHOLD
    for line in RELATED_FILE.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            first, *others = (index[id] for id in line.split())
            linked[first, others] = linked[others, first] = True
    np.fill_diagonal(linked, True)
    labels = DBSCAN(eps=0.5, min_samples=1, metric="precomputed").fit_predict(1.0 - linked)  # connected components
    first_of: dict[int, str] = {}
    return {id: first_of.setdefault(int(label), id) for id, label in zip(ids, labels, strict=True)}


def sides_of(groups: dict[str, str]) -> dict[str, str]:
    """Group id -> side. Per class about 30 % of the drawings go to test, as whole groups, in an order set by a hash.

    A group that spans classes trains: a drawing filed under two classes has no single right answer to be tested on.
    """
    sizes = Counter(groups.values())
    classes: dict[str, set[str]] = {}
    for id, group in groups.items():
        classes.setdefault(group, set()).add(id.split("/")[0])
    per_class = Counter(id.split("/")[0] for id in groups)
    room = {name: round(TEST_SHARE * n) for name, n in per_class.items()}
    sides = {}
    for group in sorted(sizes, key=lambda g: hashlib.sha256(g.encode()).digest()):
        own, *others = classes[group]
        fits = not others and sizes[group] <= min(LARGEST_TEST_GROUP, room[own])
        if fits:
            room[own] -= sizes[group]
        sides[group] = "test" if fits else "train"
    return sides


def main() -> None:
    """Write `split.tsv`."""
    ids = sorted(f"{file.parent.name}/{file.stem}" for file in ROOT.glob("*/*.png"))
    groups = groups_of([id for id in ids if id not in LEFT_OUT])
    sides = sides_of(groups)
    lines = ["# drawing, near-duplicate group, side; made by `python -m benchmarks.demo.split`"]
    for id in ids:
        lines.append("\t".join((id, groups[id], sides[groups[id]]) if id in groups else (id, "-", "left_out")))
    SPLIT_FILE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    logging.info("%s: %s", SPLIT_FILE, dict(Counter(sides[group] for group in groups.values())))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()

"""The sheet of queries and neighbours."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.knn import SHEET_QUERIES, neighbour_sheet, sheet_queries
from benchmarks.task import Labels


def labels(folder: Path, targets: list[int], classes: int) -> Labels:
    paths = []
    for number, target in enumerate(targets):
        paths.append(folder / f"{number}.png")
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (20, 30), (20 * target % 255, 90, 120)).save(paths[-1])
    ids = tuple(map(str, range(len(targets))))
    return Labels(ids, tuple(paths), tuple(f"class {c}" for c in range(classes)), np.array(targets),
                  tuple((i,) for i in ids))  # fmt: skip


def test_it_is_a_picture_with_a_row_per_class(tmp_path: Path) -> None:
    train, test = labels(tmp_path / "train", [0, 1, 2, 0, 1, 2], 3), labels(tmp_path / "test", [0, 1, 2, 2], 3)
    png = neighbour_sheet(train, test, np.array([[0, 3], [4, 1], [5, 0], [2, 5]]))
    assert png is not None
    with Image.open(BytesIO(png)) as sheet:
        assert sheet.size[1] == pytest.approx(495, abs=2)  # three rows
    assert sheet_queries(test) == [0, 1, 2]


def test_many_classes_are_sampled_evenly(tmp_path: Path) -> None:
    many = Labels((), (), (), np.arange(1000) % 500, ())
    rows = sheet_queries(many)
    assert len(rows) == SHEET_QUERIES
    assert rows[0] == 0
    assert rows[-1] == 499


def test_a_missing_image_costs_the_picture_and_not_the_number(tmp_path: Path) -> None:
    train, test = labels(tmp_path / "train", [0, 1], 2), labels(tmp_path / "test", [0, 1], 2)
    (tmp_path / "train" / "0.png").unlink()
    assert neighbour_sheet(train, test, np.array([[0], [1]])) is None

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.contract import InputError, Labels
from benchmarks.data.fingerprint import fingerprint


@pytest.fixture
def labels(tmp_path: Path) -> Labels:
    paths = []
    for number in range(3):
        paths.append(tmp_path / f"{number}.png")
        paths[-1].write_bytes(b"x" * (10 + number))
    ids = ("0", "1", "2")
    return Labels(ids, tuple(paths), ("a", "b"), np.array([0, 1, 1]), tuple((id,) for id in ids))


def test_it_changes_with_everything_that_was_read(labels: Labels) -> None:
    variants = [
        labels,
        replace(labels, ids=("0", "1", "3")),
        replace(labels, ids=("0", "12", "")),
        replace(labels, classes=("a", "c")),
        replace(labels, classes=("ab",)),
        replace(labels, targets=np.array([0, 1, 0])),
        replace(labels, targets=np.array([0, 1, 1], dtype=np.int8)),
        replace(labels, targets=np.array([[0, 1, 1]])),
        replace(labels, paths=labels.paths[::-1]),
    ]
    assert len({fingerprint(variant) for variant in variants}) == len(variants)
    labels.paths[1].write_bytes(b"longer than before")
    assert fingerprint(labels) not in {fingerprint(variant) for variant in variants[1:]}


def test_it_does_not_depend_on_where_the_files_lie(labels: Labels, tmp_path: Path) -> None:
    before = fingerprint(labels)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved = replace(labels, paths=tuple(path.rename(elsewhere / path.name) for path in labels.paths))
    assert fingerprint(moved) == before
    assert len(before) == 64


def test_a_missing_file_is_named(labels: Labels) -> None:
    labels.paths[2].unlink()
    with pytest.raises(InputError, match=r"2\.png does not exist"):
        fingerprint(labels)

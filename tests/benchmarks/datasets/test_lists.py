import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.datasets import lists
from benchmarks.datasets.batch_files import read_cifar10
from benchmarks.datasets.lists import fingerprint
from benchmarks.task import InputError, Labels
from results.files import PathList
from tests.layouts.cifar10 import write_cifar10


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


def test_it_is_the_one_that_published_records_hold(labels: Labels) -> None:
    assert fingerprint(labels) == "8a322cb8606258566fe0f90997b53b00db2c3e0b9a583998ee00814b8373094e"


def test_the_contents_of_annotations_count(labels: Labels, tmp_path: Path) -> None:
    mask = tmp_path / "0.xml"
    mask.write_text("one")
    annotated = replace(labels, annotations=(mask,))
    before = fingerprint(annotated)
    assert before != fingerprint(labels)
    mask.write_text("two")  # of the same size
    assert fingerprint(annotated) == before  # of one object it is computed once
    assert fingerprint(replace(annotated)) != before
    mask.unlink()
    with pytest.raises(InputError, match=r"0\.xml does not exist"):
        fingerprint(replace(annotated))


@pytest.mark.parametrize("layout", ["python", "binary"])
def test_the_contents_of_batch_files_count(tmp_path: Path, layout) -> None:
    write_cifar10(tmp_path, layout=layout)
    batch = next(tmp_path.glob("cifar10/*/test_batch*"))
    before = fingerprint(read_cifar10(tmp_path / "cifar10", "test"))
    content = bytearray(batch.read_bytes())
    content[3000] ^= 1  # of a pixel
    batch.write_bytes(content)
    assert fingerprint(read_cifar10(tmp_path / "cifar10", "test")) != before
    labels = read_cifar10(tmp_path / "cifar10", "test")
    batch.unlink()
    with pytest.raises(InputError, match=r"test_batch.* does not exist"):
        fingerprint(labels)


def test_paths_made_when_asked_for_count_as_those_made_before(labels: Labels, tmp_path: Path) -> None:
    lazy = PathList(tmp_path, [path.name for path in labels.paths])
    assert lazy == labels.paths
    assert lazy[1:] == labels.paths[1:]
    assert lazy != labels.paths[1:]
    assert list(lazy.strings()) == [str(path) for path in labels.paths]
    assert fingerprint(replace(labels, paths=lazy)) == fingerprint(labels)


def test_sizes_of_large_sets_are_remembered_until_a_folder_or_a_drawn_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(lists, "REMEMBERED_FROM", 20)
    monkeypatch.setattr(lists, "LOOKED_AT", 10)
    folder = tmp_path / "images"
    folder.mkdir()
    names = tuple(f"{number:02}.png" for number in range(20))
    for name in names:
        (folder / name).write_bytes(b"x" * 7)
    labels = Labels(names, PathList(folder, names), ("a",), np.zeros(20, np.int64), tuple((name,) for name in names))
    asked: list[int] = []
    ask = lists._sizes_by_asking
    monkeypatch.setattr(
        lists, "_sizes_by_asking", lambda paths, batches: (asked.append(len(paths)), ask(paths, batches))[1]
    )

    def again() -> str:
        return fingerprint(replace(labels))  # of one object it is computed once

    plain = again()
    assert asked == [20]
    assert not (tmp_path / "cache").exists()  # a folder changed a moment ago, and could change again unnoticed

    os.utime(folder, (1e9, 1e9))
    assert [again() for _ in range(3)] == [plain] * 3
    assert asked == [20, 20, 10, 10]

    (kept,) = (tmp_path / "cache" / "encoder-bench" / "sizes").iterdir()
    kept.write_bytes(kept.read_bytes()[:-1] + b"\x01")  # damaged: not believed
    assert again() == plain
    for name in names[:11]:  # rewritten in their place: at least one of ten that are drawn
        (folder / name).write_bytes(b"x" * 8)
    changed = again()
    assert changed != plain

    (folder / names[0]).unlink()
    with pytest.raises(InputError, match=r"00\.png does not exist"):
        again()
    (folder / names[0]).write_bytes(b"x" * 9)
    assert again() not in (plain, changed)


def test_a_cache_folder_that_cannot_be_written_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "a.png").write_bytes(b"x")
    labels = Labels(("a",), PathList(tmp_path, ["a.png"]), ("a",), np.zeros(1, np.int64), (("a",),))
    plain = fingerprint(labels)
    os.utime(tmp_path, (1e9, 1e9))
    monkeypatch.setattr(lists, "REMEMBERED_FROM", 1)
    monkeypatch.setattr(lists, "LOOKED_AT", 1)
    assert fingerprint(replace(labels)) == plain

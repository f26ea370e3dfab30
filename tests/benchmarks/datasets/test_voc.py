from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.datasets.registry import find_dataset
from benchmarks.datasets.voc import CLASSES, read_voc_classification
from benchmarks.demo.compose import Counts, compose
from benchmarks.task import InputError
from tests.layouts.voc12aug import write_voc12aug

LISTS = {
    "trainval.txt": "000009\n000005\n000012\n",
    "train.txt": "000005\n",
    # Neither the order of lines nor the spacing is the list's.
    "dog_trainval.txt": "000005 -1\n000012  0\n000009  1\n",
    "cat_trainval.txt": "000012  1\n000005  1\n000009 -1\n",
    "dog_train.txt": "000005 -1\n",
    "cat_train.txt": "000005  1\n",
}


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    folder = tmp_path / "VOC2007" / "ImageSets" / "Main"
    folder.mkdir(parents=True)
    for name, text in LISTS.items():
        (folder / name).write_text(text)
    images = tmp_path / "VOC2007" / "JPEGImages"
    images.mkdir()
    for id in ("000005", "000009", "000012"):
        (images / f"{id}.jpg").write_bytes(b"x")
    return folder


def _read(lists: Path, split: str = "trainval"):
    return read_voc_classification(lists.parents[2], "2007", split)


def test_labels_are_joined_on_the_image_id(lists: Path) -> None:
    labels = _read(lists)
    assert labels.ids == ("000005", "000009", "000012")
    assert labels.classes == ("cat", "dog")
    assert labels.targets.dtype == np.int8
    assert labels.targets.tolist() == [[1, 0], [0, 1], [1, -1]]
    assert [path.name for path in labels.paths] == ["000005.jpg", "000009.jpg", "000012.jpg"]


def test_train_is_not_taken_for_trainval(lists: Path) -> None:
    labels = _read(lists, "train")
    assert (labels.ids, labels.classes, labels.targets.tolist()) == (("000005",), ("cat", "dog"), [[1, 0]])


def test_groups_beside_the_data_are_honoured(lists: Path) -> None:
    (lists.parents[1] / "groups.json").write_text(json.dumps({"000005": ["a", "b"]}))
    assert _read(lists, "train").groups == (("a", "b"),)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("cat_trainval.txt", "000012  1\n000005  2\n000009 -1\n", r"cat_trainval\.txt line 2: .*found '000005 2'"),
        ("cat_trainval.txt", "000012  1\n000005\n000009 -1\n", r"cat_trainval\.txt line 2: .*found '000005'"),
        ("cat_trainval.txt", "000012  1\n\n000009 -1\n", r"cat_trainval\.txt line 2: "),
        ("cat_trainval.txt", "000012  1\n000012  1\n000009 -1\n", r"line 2: image 000012 occurs twice"),
        ("cat_trainval.txt", "000012  1\n000077  1\n000009 -1\n", r"line 2: image 000077 is not in the split's list"),
        ("cat_trainval.txt", "000012  1\n000009 -1\n", r"cat_trainval\.txt has no line for image 000005 \(1 missing\)"),
        ("cat_trainval.txt", "000012  +\n000005  1\n000009 -1\n", r"cat_trainval\.txt line 1"),
        ("trainval.txt", "000005\n000005\n", r"trainval\.txt line 2: 000005 occurs twice"),
        ("trainval.txt", "000005 1\n", r"trainval\.txt line 1: expected one image id, found 2 fields"),
        ("trainval.txt", "", r"trainval\.txt lists no image"),
    ],
)
def test_malformed_lines_are_named(lists: Path, name: str, text: str, message: str) -> None:
    (lists / name).write_text(text)
    with pytest.raises(InputError, match=message):
        _read(lists)


def test_missing_and_binary_files_are_named(lists: Path) -> None:
    with pytest.raises(InputError, match=r"test\.txt is missing"):
        _read(lists, "test")
    (lists / "test.txt").write_text("000005\n")
    with pytest.raises(InputError, match=r"Main has no <class>_test\.txt"):
        _read(lists, "test")
    (lists / "dog_trainval.txt").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(InputError, match=r"dog_trainval\.txt is not a text file"):
        _read(lists)
    (lists / "dog_trainval.txt").write_text(LISTS["dog_trainval.txt"])
    (lists.parents[1] / "JPEGImages" / "000009.jpg").unlink()
    with pytest.raises(InputError, match=r"JPEGImages lacks 1 of the 3 images of trainval\.txt, first 000009\.jpg"):
        _read(lists)


def test_the_embedded_scenes_have_their_own_classes_and_the_masks_follow_them(tmp_path: Path) -> None:
    compose(
        tmp_path, progress=False, counts=Counts(train=4, val=2, test=4, drawings_per_class=4, corrupted_per_class=0)
    )
    labels = find_dataset("voc2007_seg", tmp_path).read("test")
    shown = find_dataset("voc2007", tmp_path).read("test")
    assert labels.classes == ("background", *shown.classes)
    for mask, targets in zip(labels.annotations, shown.targets, strict=True):
        with Image.open(mask) as image:
            values = set(np.unique(np.asarray(image)).tolist()) - {0, 255}
        assert values <= {1 + int(c) for c in np.flatnonzero(targets != 0)}
        assert values


def test_vocs_masks_have_vocs_classes_whatever_lists_are_there(tmp_path: Path) -> None:
    write_voc12aug(tmp_path)
    assert find_dataset("voc12aug", tmp_path).read("val").classes == CLASSES

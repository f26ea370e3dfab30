import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.datasets.registry import EMBEDDED_STAMP, find_dataset, is_embedded, is_official
from benchmarks.evaluate import load, prepare
from benchmarks.registry import find_protocol, load_task
from benchmarks.task import InputError, Labels, RunOptions
from results.schema import DatasetRef


def _folder(root: Path) -> Path:
    for split in ("train", "val"):
        (root / split / "a").mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(root / split / "a" / "1.png")
    return root


@pytest.mark.parametrize(("name", "below"), [("imagefolder", ""), ("drawings", "drawings"), ("imagenet", "imagenet")])
def test_image_folders_are_found_and_read(tmp_path: Path, name: str, below: str) -> None:
    folder = _folder(tmp_path / below)
    spec = find_dataset(name, tmp_path)
    assert (spec.id, spec.folder) == (name, folder)
    assert spec.read("val").ids == ("val/a/1.png",)


def test_voc_is_found_and_read(tmp_path: Path) -> None:
    folder = tmp_path / "VOCdevkit" / "VOC2007"
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    (folder / "JPEGImages").mkdir()
    (folder / "JPEGImages" / "000001.jpg").touch()
    (folder / "ImageSets" / "Main" / "test.txt").write_text("000001\n")
    (folder / "ImageSets" / "Main" / "dog_test.txt").write_text("000001  1\n")
    labels = find_dataset("voc2007", tmp_path).read("test")
    assert (labels.ids, labels.classes) == (("000001",), ("dog",))


def test_what_is_not_there_is_said_with_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"unknown data set 'voc07'; did you mean 'voc2007'.*\nknown: .*drawings, .*voc2007"
    ):
        find_dataset("voc07", tmp_path)
    with pytest.raises(InputError, match=r"voc2007 not found: .*VOCdevkit/VOC2007 is not a folder"):
        find_dataset("voc2007", tmp_path)
    (tmp_path / "imagenet").mkdir()
    with pytest.raises(InputError, match=r"imagenet has no split train: expected train/<class>/<image>"):
        find_dataset("imagenet", tmp_path).read("train")


def test_composed_data_are_known_by_their_stamp(tmp_path: Path) -> None:
    inside = _folder(tmp_path / "drawings")
    assert not is_embedded(tmp_path)
    assert not is_embedded(inside)
    (tmp_path / EMBEDDED_STAMP).write_text(json.dumps({}))
    assert is_embedded(tmp_path)
    assert is_embedded(inside)
    assert not is_embedded(inside / "train")


def _labels(ids: list[str], classes: int) -> Labels:
    names = tuple(f"class {number}" for number in range(classes))
    return Labels(tuple(ids), (), names, np.zeros(len(ids), np.int64), ())


def test_the_owners_ids_decide_what_is_official() -> None:
    assert is_official(_labels(["a"] * 4, 2), "imagefolder", "val") is False
    assert is_official(_labels(["a"] * 4, 2), "coco_keypoints", "val") is None  # no count is known
    ids = [f"val/n{number % 7:08d}/ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 50_001)]
    assert is_official(_labels(ids, 1000), "imagenet", "val")
    assert not is_official(_labels(ids[:-1], 1000), "imagenet", "val")
    assert not is_official(_labels([*ids[:-1], "val/n00000001/mine.JPEG"], 1000), "imagenet", "val")
    # Photos in VOC's layout, as many as VOC has and named as VOC names its own.
    mine = [f"{number:06d}" for number in range(1, 4953)]
    assert not is_official(_labels(mine, 20), "voc2007", "test")
    assert not is_official(_labels([f"photo{number}" for number in range(11_540)], 20), "voc2012", "trainval")
    assert is_official(_labels([f"2008_{number:06d}" for number in range(11_540)], 20), "voc2012", "trainval")
    assert is_official(_labels([f"{number:012d}" for number in range(5000)], 80), "coco", "val")
    assert not is_official(_labels([f"{number:012d}" for number in range(4999)], 80), "coco", "val")


def test_own_photos_in_the_layout_of_voc_are_recorded_as_own(data: Path, tmp_path: Path) -> None:
    root = tmp_path / "my photos"
    shutil.copytree(data, root)
    protocol = find_protocol("voc07_svm.demo@1")
    task = load_task(protocol.harness)()

    def reference() -> DatasetRef:
        return prepare(task, protocol, load("pixels"), root, options=RunOptions(device="cpu")).dataset

    published = reference()
    assert (published.embedded, published.official, published.own) == (True, None, False)
    (root / EMBEDDED_STAMP).unlink()
    own = reference()
    assert (own.embedded, own.official, own.folder, own.own) == (False, False, "my photos", True)
    assert own.fingerprint == published.fingerprint
    assert "official" not in published.model_dump_json()

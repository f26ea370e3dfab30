import json
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.datasets.registry import EMBEDDED_STAMP, find_dataset, is_embedded
from benchmarks.task import InputError


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

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.datasets.lists import read_image_folder
from benchmarks.task import InputError


def _image(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(file)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("train/b/2.png", "train/b/1.jpg", "train/a/x.PNG", "train/a/deep/y.png", "val/b/1.png"):
        _image(tmp_path / name)
    (tmp_path / "train" / "a" / "notes.txt").write_text("no image")
    _image(tmp_path / "train" / ".cache" / "z.png")
    return tmp_path


def test_items_are_sorted_and_named_by_their_path(root: Path) -> None:
    labels = read_image_folder(root, "train")
    assert labels.ids == ("train/a/deep/y.png", "train/a/x.PNG", "train/b/1.jpg", "train/b/2.png")
    assert labels.paths == tuple(root / id for id in labels.ids)
    assert labels.classes == ("a", "b")
    assert labels.targets.dtype == np.int64
    assert labels.targets.tolist() == [0, 0, 1, 1]
    assert labels.groups == tuple((id,) for id in labels.ids)


def test_a_split_without_a_class_keeps_the_indices_of_train(root: Path) -> None:
    labels = read_image_folder(root, "val")
    assert labels.classes == ("a", "b")
    assert labels.targets.tolist() == [1]


def test_groups_beside_the_data_are_honoured(root: Path) -> None:
    file = root / "groups.json"
    file.write_text(json.dumps({"val/b/1.png": ["p", "q"]}))
    assert read_image_folder(root, "val").groups == (("p", "q"),)
    with pytest.raises(InputError, match=r"groups\.json does not list train/a/deep/y\.png"):
        read_image_folder(root, "train")
    for broken in ("[1]", "{", '{"val/b/1.png": 3}'):
        file.write_text(broken)
        with pytest.raises(InputError, match=r"groups\.json is not a JSON object of lists"):
            read_image_folder(root, "val")


def test_wrong_layouts_are_named(root: Path) -> None:
    with pytest.raises(InputError, match=r"test is missing: .*<root>/<split>/<class>/<image>"):
        read_image_folder(root, "test")
    (root / "flat").mkdir()
    _image(root / "flat" / "1.png")
    with pytest.raises(InputError, match=r"flat has no class folders"):
        read_image_folder(root, "flat")
    _image(root / "val" / "zebra" / "1.png")
    with pytest.raises(InputError, match=r"zebra is a class that .*train does not have"):
        read_image_folder(root, "val")
    (root / "train" / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty contains no image"):
        read_image_folder(root, "train")


def test_a_link_to_a_folder_is_followed_unless_it_leads_back(root: Path) -> None:
    (root / "train" / "b" / "more").symlink_to(root / "val" / "b")
    assert "train/b/more/1.png" in read_image_folder(root, "train").ids
    (root / "train" / "b" / "up").symlink_to("..")
    with pytest.raises(InputError, match=r"train/b/up is a link to a folder that contains it; remove the link"):
        read_image_folder(root, "train")


def test_names_in_any_script_and_suffixes_in_any_case_are_read(tmp_path: Path) -> None:
    for name in ("train/ネコ/ä ö.JPEG", "train/Ägypten/1.Jpg"):
        _image(tmp_path / name)
    assert read_image_folder(tmp_path, "train").ids == ("train/Ägypten/1.Jpg", "train/ネコ/ä ö.JPEG")

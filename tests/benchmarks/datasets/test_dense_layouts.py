"""ADE20K and NYU Depth in their owners' layouts, on tiny copies, and as the embedded data has them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.datasets.check import command
from benchmarks.datasets.dense_sets import ADE20K_CLASSES, read_ade20k, read_depth, read_nyu
from benchmarks.datasets.registry import find_dataset
from benchmarks.demo.writers import BACKGROUND_DEPTH, FIRST_DEPTH, NEARER
from benchmarks.task import InputError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split, names in (("training", ("b", "a")), ("validation", ("c",))):
        for kind, ending in (("images", "jpg"), ("annotations", "png")):
            folder = tmp_path / "ADEChallengeData2016" / kind / split
            folder.mkdir(parents=True)
            for name in names:
                Image.new("RGB" if kind == "images" else "L", (6, 4), 0).save(folder / f"ADE_{name}.{ending}")
    nyu = tmp_path / "nyu" / "bathroom_0001"
    nyu.mkdir(parents=True)
    for number in (2, 1):
        Image.new("RGB", (6, 4)).save(nyu / f"rgb_{number}.jpg")
        Image.fromarray(np.full((4, 6), 2500, np.uint16)).save(nyu / f"sync_depth_{number}.png")
    lines = [f"/bathroom_0001/rgb_{n}.jpg /bathroom_0001/sync_depth_{n}.png 518.8579\n" for n in (2, 1)]
    (tmp_path / "nyu" / "nyu_train.txt").write_text("".join(lines))
    (tmp_path / "nyu" / "nyu_test.txt").write_text(lines[0].replace(" /", " ").removeprefix("/"))
    return tmp_path


def test_ade20k_in_its_owners_layout(root: Path) -> None:
    found = read_ade20k(root / "ADEChallengeData2016", "training")
    assert found.ids == ("ADE_a", "ADE_b")
    assert found.classes == ADE20K_CLASSES
    assert found.annotations[1] == root / "ADEChallengeData2016/annotations/training/ADE_b.png"
    with pytest.raises(InputError, match="has no split train"):
        read_ade20k(root / "ADEChallengeData2016", "train")
    found.annotations[0].unlink()
    with pytest.raises(InputError, match=r"lacks 1 of the 2 .* first ADE_a\.png"):
        read_ade20k(root / "ADEChallengeData2016", "training")


def test_nyu_in_the_layout_of_bts(root: Path) -> None:
    found = read_nyu(root / "nyu", "train")
    assert found.ids == ("bathroom_0001/rgb_1", "bathroom_0001/rgb_2")
    assert read_depth(found.annotations[0]).tolist() == np.full((4, 6), 2.5).tolist()
    assert read_nyu(root / "nyu", "test").ids == ("bathroom_0001/rgb_2",)
    with pytest.raises(InputError, match=r"has no nyu_val\.txt"):
        read_nyu(root / "nyu", "val")
    Image.new("L", (6, 4)).save(found.annotations[0])
    with pytest.raises(InputError, match="expected a 16-bit PNG"):
        read_depth(found.annotations[0])
    (root / "nyu" / "nyu_test.txt").write_text("a.jpg b.png\n")
    with pytest.raises(InputError, match=r"line 1: expected an image, a depth map and a focal length"):
        read_nyu(root / "nyu", "test")


@pytest.mark.parametrize("dataset", ["ade20k", "nyu_depth"])
def test_check_data_knows_them(root: Path, dataset: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(root, dataset, quiet=True) == 0
    image = find_dataset(dataset, root).read("training" if dataset == "ade20k" else "train").annotations[0]
    image.write_bytes(image.read_bytes()[:40])
    assert command(root, dataset, quiet=True) == 1
    assert "cannot be decoded as a mask" in capsys.readouterr().out


@pytest.mark.slow
def test_the_embedded_data_has_both(data: Path, tmp_path: Path) -> None:
    voc = data / "VOCdevkit" / "VOC2007"
    scenes = find_dataset("ade20k", data).read("training")
    depths = find_dataset("nyu_depth", data).read("train")
    assert scenes.classes[0] == "background"
    assert len(scenes.classes) == 13
    assert len(scenes) == len(depths) == 10
    assert set(scenes.ids) <= set((voc / "ImageSets" / "Segmentation" / "trainval.txt").read_text().split())
    assert scenes.groups == depths.groups
    mask = np.asarray(Image.open(scenes.annotations[0]))
    original = np.asarray(Image.open(voc / "SegmentationClass" / f"{scenes.ids[0]}.png"))
    assert np.array_equal(mask, np.where(original == 255, 0, original + 1))
    order = np.asarray(Image.open(voc / "SegmentationObject" / f"{scenes.ids[0]}.png"))
    depth = read_depth(depths.annotations[0])
    assert np.unique(depth[(order == 0) | (order == 255)]).tolist() == [BACKGROUND_DEPTH]
    for number in set(np.unique(order)) - {0, 255}:
        assert depth[order == number].max() == pytest.approx(FIRST_DEPTH * NEARER ** (int(number) - 1), abs=1e-3)
    copy = tmp_path / "copy"
    shutil.copytree(data / "nyu", copy)
    assert read_nyu(copy, "test").ids == find_dataset("nyu_depth", data).read("test").ids

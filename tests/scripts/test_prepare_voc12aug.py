from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat

from benchmarks.datasets.registry import find_dataset
from scripts.prepare import main
from tests.layouts.voc12aug import write_voc12aug


def prepared(*arguments: str) -> int:
    return main(["prepare-voc12aug", *arguments])


def test_what_it_writes_is_what_mm_publishes(tmp_path: Path) -> None:
    expected = find_written(tmp_path / "aug", "aug")
    write_voc12aug(tmp_path, layout="sbd")
    assert prepared("--data", str(tmp_path), "--expected", "14") == 0
    labels = find_dataset("voc12aug", tmp_path).read("train_aug")
    assert labels.ids == expected.ids
    for mine, its in zip(labels.annotations, expected.annotations, strict=True):
        with Image.open(mine) as one, Image.open(its) as other:
            assert one.mode == other.mode == "P"
            assert np.array_equal(np.asarray(one), np.asarray(other))
            assert one.getpalette() == other.getpalette()
    voc = tmp_path / "VOCdevkit" / "VOC2012"
    lists = voc / "ImageSets" / "Segmentation"
    assert len((lists / "aug.txt").read_text().split()) == 6
    assert not list(voc.rglob("*.partial"))


def test_masks_are_those_that_scipy_reads(tmp_path: Path) -> None:
    folder = write_voc12aug(tmp_path, layout="sbd")
    assert prepared("--data", str(tmp_path), "--expected", "14") == 0
    mats = tmp_path / "VOCdevkit" / "VOCaug" / "dataset" / "cls"
    written = sorted((folder / "SegmentationClassAug").iterdir())
    assert len(written) == 6
    for file in written:
        theirs = loadmat(mats / f"{file.stem}.mat", simplify_cells=True)["GTcls"]
        assert len(theirs["Boundaries"]) == 20  # sparse matrices, which are passed over
        with Image.open(file) as mask:
            assert np.array_equal(np.asarray(mask), theirs["Segmentation"])


def find_written(root: Path, layout: str):
    write_voc12aug(root, layout=layout)
    return find_dataset("voc12aug", root).read("train_aug")


def test_another_number_of_images_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_voc12aug(tmp_path, layout="sbd")
    assert prepared("--data", str(tmp_path)) == 2
    assert "list 14 training images, expected 10582" in capsys.readouterr().err
    assert not (folder / "SegmentationClassAug").exists()
    assert not (folder / "ImageSets" / "Segmentation" / "aug.txt").exists()


def test_damaged_masks_are_named_and_a_second_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_voc12aug(tmp_path, layout="sbd")
    mat = tmp_path / "VOCdevkit" / "VOCaug" / "dataset" / "cls" / "2009_000103.mat"
    good = mat.read_bytes()
    arguments = ["--data", str(tmp_path), "--expected", "14"]
    mat.write_bytes(b"nothing")
    assert prepared(*arguments) == 2
    assert "2009_000103.mat cannot be read as a MATLAB file" in capsys.readouterr().err
    savemat(mat, {"GTcls": {"Segmentation": np.zeros((3, 3), np.uint8)}})
    assert prepared(*arguments) == 2
    assert "2009_000103.mat is not a mask of 64 by 48 pixels" in capsys.readouterr().err
    masks = [{"Segmentation": np.full((48, 64), value)} for value in (21, -1, 0.5, np.nan)]
    for wrong in (3, {"Segmentation": "text"}, {"Boundaries": 1}, *masks):
        savemat(mat, {"GTcls": wrong})
        assert prepared(*arguments) == 2
        assert "2009_000103.mat is not a mask of 64 by 48 pixels with values below 21" in capsys.readouterr().err
    mat.unlink()
    assert prepared(*arguments) == 2
    assert "2009_000103.mat is missing; unpack" in capsys.readouterr().err
    assert not (folder / "ImageSets" / "Segmentation" / "aug.txt").exists()
    written = {file: file.stat().st_mtime_ns for file in (folder / "SegmentationClassAug").iterdir()}
    assert len(written) == 2
    mat.write_bytes(good)
    assert prepared(*arguments) == 0
    assert all(file.stat().st_mtime_ns == time for file, time in written.items())
    assert len(find_dataset("voc12aug", tmp_path).read("train_aug")) == 14


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_voc12aug(tmp_path, layout="sbd")
    (folder / "SegmentationClassAug").touch()
    assert prepared("--data", str(tmp_path), "--expected", "14") == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "Not a directory" in said[0]
    assert "SegmentationClassAug" in said[0]
    assert not (folder / "ImageSets" / "Segmentation" / "aug.txt").exists()

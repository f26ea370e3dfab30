from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.__main__ import main
from benchmarks.datasets import check, registry
from benchmarks.datasets.check import check_split
from benchmarks.datasets.registry import DATASETS, EMBEDDED_STAMP, find_dataset
from benchmarks.task import InputError
from tests.layouts.cityscapes import write_cityscapes
from tests.layouts.coco import write_coco
from tests.layouts.imagenet import write_imagenet
from tests.layouts.voc import write_voc

COMPLETE, DAMAGED, UNUSABLE = 0, 1, 2


@pytest.fixture
def embedded(tmp_path: Path) -> Path:
    """A root to which the published counts do not apply."""
    (tmp_path / EMBEDDED_STAMP).write_text("{}")
    return tmp_path


def _check(root: Path, *flags: str) -> int:
    return main(["check-data", "--data", str(root), "--quiet", *flags])


def test_every_data_set_says_what_is_published_and_where() -> None:
    assert all(info.how_to_get and info.splits for info in DATASETS.values())


def test_a_whole_set(embedded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_imagenet(embedded)
    assert _check(embedded, "--dataset", "imagenet") == COMPLETE
    out = capsys.readouterr().out
    assert "train        complete: 24 images of 3 classes" in out
    assert "24 decoded; layout train/<class>/<image>" in out
    assert "train-1pct   complete: 3 images" in out


def test_own_data_are_complete_and_not_the_published(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_imagenet(tmp_path, subsets=False)
    assert _check(tmp_path, "--dataset", "imagenet") == COMPLETE
    out = capsys.readouterr().out
    assert (
        "train        complete, not the published data (24 images where its owner publishes 1,281,167, 3 classes where "
        "its owner publishes 1,000): 24 images" in out
    )
    assert "train-1pct   not there (optional)" in out
    assert "available from image-net.org" in out


def test_published_counts_that_are_met(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_imagenet(tmp_path, subsets=False)
    known = replace(DATASETS["imagenet"], splits={"train": 24, "val": 12}, classes=3)
    monkeypatch.setattr(registry, "DATASETS", {**DATASETS, "imagenet": known})
    assert _check(tmp_path, "--dataset", "imagenet") == COMPLETE


def test_damage_is_told_by_name(embedded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_imagenet(embedded)
    first, second, third = sorted((folder / "val").rglob("*.JPEG"))[:3]
    first.write_bytes(first.read_bytes()[:200])
    second.write_bytes(b"")
    third.write_text("<html>")
    assert _check(embedded, "--dataset", "imagenet") == DAMAGED
    out = capsys.readouterr().out
    assert "val          damaged: 12 images" in out
    assert f"1 files empty:\n      {second}" in out
    assert "3 files damaged:" in out
    for file in (first, second, third):
        assert f"{file} cannot be decoded" in out
    assert "train        complete" in out


def test_a_sample_by_default_and_all_when_asked(embedded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_imagenet(embedded)
    monkeypatch.setattr(check, "DECODED", 2)  # the first and the last
    sorted((folder / "train").rglob("*.JPEG"))[5].write_text("<html>")
    dataset = find_dataset("imagenet", embedded)
    some = check_split(dataset, "train", show=False)
    every = check_split(dataset, "train", all_images=True, show=False)
    assert (some.decoded, some.complete) == (2, True)
    assert (every.decoded, every.complete) == (24, False)


def test_a_class_without_an_image(embedded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_imagenet(embedded, layout="mm", subsets=False)
    listing = folder / "meta" / "val.txt"
    listing.write_text("".join(f"{line}\n" for line in listing.read_text().splitlines() if not line.endswith(" 1")))
    assert _check(embedded, "--dataset", "imagenet") == DAMAGED
    assert "1 classes without an image:\n      n01443537" in capsys.readouterr().out


def test_damaged_annotations(embedded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    voc = write_voc(embedded)
    (voc / "Annotations" / "000001.xml").write_text("<annotation>")
    Image.new("P", (3, 3)).save(voc / "SegmentationClass" / "000002.png")
    assert _check(embedded, "--dataset", "voc2007_det") == DAMAGED
    assert "000001.xml is not a VOC annotation" in capsys.readouterr().out
    assert _check(embedded, "--dataset", "voc2007_seg") == DAMAGED
    assert "000002.png is 3 by 3, but its image 64 by 48" in capsys.readouterr().out
    assert _check(embedded, "--dataset", "voc2007") == COMPLETE


def test_missing_parts_and_unusable_sets(embedded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        InputError, match=r"not a folder; put the data there or change --data;\navailable from the COCO page"
    ):
        check.command(embedded, "coco", quiet=True)
    assert _check(embedded, "--dataset", "coco") == UNUSABLE
    folder = write_coco(embedded)
    (folder / "val2017").rename(folder / "elsewhere")
    assert _check(embedded, "--dataset", "coco") == DAMAGED
    out = capsys.readouterr().out
    assert "val          unusable" in out
    assert "has instances_val2017.json but no folder val2017" in out
    (folder / "annotations").rename(folder / "labels")
    assert _check(embedded, "--dataset", "coco") == UNUSABLE


def test_the_table_of_all(embedded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _check(embedded) == UNUSABLE  # nothing at all
    capsys.readouterr()
    write_imagenet(embedded)
    write_cityscapes(embedded)
    assert _check(embedded) == COMPLETE
    *missing, there = capsys.readouterr().out.strip().split("\n\n")
    assert [line.split()[0] for line in there.splitlines()] == [n for n in DATASETS if n in there.split()]
    assert {line.split()[0] for line in there.splitlines()} == {"imagenet", "cityscapes", "cityscapes_instances"}
    lines = {line.split()[0]: line for part in (*missing, there) for line in part.splitlines()}
    assert set(lines) == set(DATASETS)
    assert "complete" in lines["imagenet"]
    assert "train 24, val 12, train-1pct 3, train-10pct 6" in lines["imagenet"]
    assert re.search(r"not there +from the COCO page", lines["coco"])
    (embedded / "places205" / "holiday").mkdir(parents=True)
    assert _check(embedded) == UNUSABLE
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert "unusable" in lines["places205"]
    assert "found holiday/" in lines["places205"]
    with pytest.raises(InputError, match="is not a folder; set --data"):
        check.command(embedded / "none")


def test_an_image_folder_is_its_own_root(tmp_path: Path) -> None:
    folder = write_imagenet(tmp_path, subsets=False)
    assert _check(folder, "--dataset", "imagefolder") == COMPLETE


def test_json_is_the_annotation_of_all_images(embedded: Path) -> None:
    write_coco(embedded)
    file = embedded / "coco" / "annotations" / "instances_val2017.json"
    assert _check(embedded, "--dataset", "coco") == COMPLETE
    file.write_text(json.dumps({"images": []}))
    assert _check(embedded, "--dataset", "coco") == DAMAGED

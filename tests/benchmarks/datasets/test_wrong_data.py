"""What is wrong with a data set is said in one sentence: the place, the fault, the remedy."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.datasets.lists import fingerprint
from benchmarks.datasets.registry import find_dataset
from benchmarks.task import InputError
from tests.layouts.cifar10 import write_cifar10
from tests.layouts.cityscapes import write_cityscapes
from tests.layouts.coco import write_coco
from tests.layouts.imagenet import write_imagenet
from tests.layouts.inat18 import write_inat18
from tests.layouts.lvis import write_lvis
from tests.layouts.places205 import write_places205
from tests.layouts.voc import write_voc
from tests.layouts.voc12aug import write_voc12aug

FOLDERS = ("imagenet", "places205", "inat2018", "cifar10", "coco", "lvis", "cityscapes", "VOCdevkit/VOC2012")
NAMES = ("imagenet", "places205", "inat18", "cifar10", "coco", "lvis_v1", "cityscapes", "voc2012_seg")


@pytest.mark.parametrize(("folder", "name"), list(zip(FOLDERS, NAMES, strict=True)))
def test_a_folder_of_something_else_is_described(tmp_path: Path, folder: str, name: str) -> None:
    (tmp_path / folder / "holiday").mkdir(parents=True)
    with pytest.raises(InputError) as caught:
        find_dataset(name, tmp_path).read("train")
    sentence = str(caught.value)
    assert str(tmp_path / folder) in sentence
    assert name == "voc2012_seg" or ("expected" in sentence and "found holiday/" in sentence)
    assert ";" in sentence  # and the remedy
    assert "\n" not in sentence


def _rewrite(file: Path, change: Callable[[str], str]) -> None:
    file.write_text(change(file.read_text(encoding="utf-8")), encoding="utf-8")


def test_lists_of_imagenet(tmp_path: Path) -> None:
    folder = write_imagenet(tmp_path, layout="mm")
    read = find_dataset("imagenet", tmp_path).read
    listing = folder / "meta" / "val.txt"
    good = listing.read_text(encoding="utf-8")
    first, rest = good.split("\n", 1)
    for text, message in (
        ("", r"val\.txt lists no image"),
        (first.split()[0] + "\n" + rest, r"val\.txt line 1: expected a path and a label, found 'ILSVRC"),
        (first.replace(" 0", " dog") + "\n" + rest, r"val\.txt line 1: expected a path and a label"),
        (first + "\n" + good, r"val\.txt lists ILSVRC2012_val_00000001\.JPEG twice"),
        (
            first.replace(" 0", " 3") + "\n" + rest,
            r"val\.txt gives .*00000001\.JPEG the label 3 \(1 such\).* 3 classes",
        ),
        (first.replace(" 0", " -1") + "\n" + rest, r"the label -1 \(1 such\)"),
        (good + "gone.JPEG 0\n", r"lacks 1 of the 13 images of val\.txt, first val/gone\.JPEG; complete"),
    ):
        listing.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=message):
            read("val")
    listing.write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(InputError, match=r"val\.txt is not a text file"):
        read("val")
    listing.write_text(good.replace(" ", ","), encoding="utf-8")  # commas will do
    assert len(read("val")) == 12


def test_lists_whose_labels_are_not_the_folders(tmp_path: Path) -> None:
    folder = write_places205(tmp_path)
    read = find_dataset("places205", tmp_path).read
    listing = folder / "trainvalsplit_places205" / "train_places205.csv"
    good = listing.read_text(encoding="utf-8")
    listing.write_text(good.replace(" 0", " 1", 1), encoding="utf-8")
    with pytest.raises(InputError, match=r"gives images of a/abbey and of a/airport_terminal the label 1"):
        read("train")
    listing.write_text(good.replace(" 2", " 9", 1), encoding="utf-8")
    with pytest.raises(InputError, match=r"gives images of o/office several labels"):
        read("train")
    listing.write_text(good, encoding="utf-8")
    (folder / "data").rename(folder / "pictures")
    with pytest.raises(InputError, match=r"train_places205\.csv but no images: expected data/vision/torralba"):
        read("train")


def test_places_sorted_by_initial_is_not_taken_for_class_folders(tmp_path: Path) -> None:
    folder = write_places205(tmp_path, layout="mm")
    for split in ("train", "val"):
        (folder / "meta" / f"{split}.txt").unlink()
    with pytest.raises(InputError, match=r"has no split train: expected trainvalsplit_places205.* found meta/, train/"):
        find_dataset("places205", tmp_path).read("train")


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    images = {
        "places205": (write_places205, "train", "gsun_00000000000000000000000000001eef.jpg"),
        "inat18": (write_inat18, "train", "00000000000000000000000000019919.jpg"),
        "coco": (write_coco, "train", "000000000285.jpg"),
        "lvis_v1": (write_lvis, "train", "000000000285.jpg"),
        "voc12aug": (write_voc12aug, "train_aug", "2009_000101.jpg"),
        "voc2012_seg": (write_voc12aug, "val", "2008_000009.jpg"),
    }
    for name, (write, split, lost) in images.items():
        write(tmp_path / name)
        next((tmp_path / name).rglob(lost)).unlink()
        with pytest.raises(InputError, match=rf"lacks 1 of the \d+ images of .*first .*{lost}; "):
            find_dataset(name, tmp_path / name).read(split)


def test_a_missing_mask_is_named(tmp_path: Path) -> None:
    masks = sorted(write_cityscapes(tmp_path).glob("gtFine/val/frankfurt/*_labelTrainIds.png"))
    masks[-1].unlink()
    with pytest.raises(InputError, match=rf"gtFine/val lacks 1 of the 4 .*first frankfurt/{masks[-1].name}"):
        find_dataset("cityscapes", tmp_path).read("val")
    voc = write_voc(tmp_path)
    (voc / "SegmentationClass" / "000001.png").unlink()
    with pytest.raises(InputError, match=r"SegmentationClass lacks 1 of the 12 .*first 000001\.png"):
        find_dataset("voc2007_seg", tmp_path).read("trainval")
    (voc / "Annotations" / "000001.xml").unlink()
    with pytest.raises(InputError, match=r"Annotations lacks 1 of the 12 .*first 000001\.xml"):
        find_dataset("voc2007_det", tmp_path).read("trainval")


def test_arrays_of_vissl(tmp_path: Path) -> None:
    folder = write_imagenet(tmp_path, layout="vissl")
    read = find_dataset("imagenet", tmp_path).read
    names, targets = np.load(folder / "val_images.npy"), np.load(folder / "val_labels.npy")
    np.save(folder / "val_images.npy", names.astype(object), allow_pickle=True)
    with pytest.raises(InputError, match=r"val_images\.npy holds Python objects, and reading them could run code"):
        read("val")
    np.save(folder / "val_images.npy", names.astype("S"))
    assert len(read("val")) == 12
    moved = np.array([name.replace(str(folder), "/on/another/machine") for name in names])
    np.save(folder / "val_images.npy", moved)  # what follows /val/ is there
    assert len(read("val")) == 12
    np.save(folder / "val_labels.npy", targets[:-1])
    with pytest.raises(InputError, match=r"val_labels\.npy holds 11 labels of type int64 for the 12 paths"):
        read("val")
    np.save(folder / "val_labels.npy", targets.astype(float))
    with pytest.raises(InputError, match=r"of type float64"):
        read("val")
    (folder / "val_labels.npy").write_text("labels")
    with pytest.raises(InputError, match=r"val_labels\.npy is not a \.npy file"):
        read("val")
    (folder / "val_labels.npy").unlink()
    with pytest.raises(InputError, match=r"val_labels\.npy is missing"):
        read("val")


def test_arrays_may_point_outside_of_the_root(tmp_path: Path) -> None:
    folder = write_imagenet(tmp_path, layout="vissl")
    elsewhere = tmp_path / "disk" / "val"
    elsewhere.parent.mkdir()
    (folder / "val").rename(elsewhere)
    names = np.load(folder / "val_images.npy")
    np.save(folder / "val_images.npy", np.array([str(elsewhere / Path(name).name) for name in names]))
    labels = find_dataset("imagenet", tmp_path).read("val")
    assert all(path.parent == elsewhere for path in labels.paths)
    assert labels.ids[0] == "val/ILSVRC2012_val_00000001.JPEG"


def test_subsets(tmp_path: Path) -> None:
    folder = write_imagenet(tmp_path)
    read = find_dataset("imagenet", tmp_path).read
    listing = folder / "imagenet_subsets" / "1percent.txt"
    for text, message in (
        ("n99999999_1.JPEG\n", r"1percent\.txt line 1: .* has no class folder for n99999999_1\.JPEG"),
        ("n01440764_999.JPEG\n", r"lacks 1 of the 1 images of 1percent\.txt, first n01440764/n01440764_999\.JPEG"),
        ("n01440764_26.JPEG\nn01440764_26.JPEG\n", r"lists n01440764/n01440764_26\.JPEG twice"),
        ("n01443537/n01443537_26.JPEG 2\n", r"line 1: label 2 for .* whose folder is class 1 of 3"),
    ):
        listing.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=message):
            read("train-1pct")
    listing.unlink()
    with pytest.raises(InputError, match=r"has no list for train-1pct: expected one of imagenet_subsets/1percent\.txt"):
        read("train-1pct")


def test_json_of_inat(tmp_path: Path) -> None:
    file = write_inat18(tmp_path) / "val2018.json"
    good = json.loads(file.read_text(encoding="utf-8"))
    read = find_dataset("inat18", tmp_path).read

    def changed(**parts: object) -> None:
        file.write_text(json.dumps({**good, **parts}), encoding="utf-8")

    cases: list[tuple[dict[str, object], str]] = [
        ({"images": []}, r"val2018\.json lists no image"),
        ({"annotations": good["annotations"][1:]}, r"has no annotation for train_val2018/.* \(1 such\)"),
        ({"annotations": [*good["annotations"], good["annotations"][0]]}, r"several annotations of one image"),
        ({"images": [*good["images"], good["images"][0]]}, r"lists train_val2018/.* twice"),
        ({"categories": good["categories"][:2]}, r"the label \d+ .* but there are 2 classes"),
        ({"annotations": [{"id": 1}]}, r"is not the competition's json \(KeyError"),
    ]
    for parts, message in cases:
        changed(**parts)
        with pytest.raises(InputError, match=message):
            read("val")
    file.write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"is not the competition's json"):
        read("val")


def test_json_of_coco(tmp_path: Path) -> None:
    file = write_coco(tmp_path) / "annotations" / "instances_val2017.json"
    good = json.loads(file.read_text(encoding="utf-8"))
    read = find_dataset("coco", tmp_path).read
    strange = {**good["annotations"][0], "category_id": 55}
    cases: list[tuple[dict[str, object], str]] = [
        ({"images": []}, r"lists no image"),
        ({"images": [*good["images"], good["images"][0]]}, r"lists 000000002037\.jpg twice"),
        ({"images": [*good["images"], {**good["images"][0], "file_name": "x.jpg"}]}, r"several images the same id"),
        ({"images": [{"id": 1}]}, r"has malformed image entries"),
        ({"annotations": [strange]}, r"annotates the unknown image or category 55"),
    ]
    for parts, message in cases:
        file.write_text(json.dumps({**good, **parts}), encoding="utf-8")
        with pytest.raises(InputError, match=message):
            read("val")
    for text in ("[]", "{", '{"images": []}'):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=r"is not a COCO json"):
            read("val")
    (tmp_path / "coco" / "train2017").rename(tmp_path / "coco" / "pictures")
    with pytest.raises(InputError, match=r"instances_train2017\.json but no folder train2017"):
        read("train")


def test_voc12aug_that_was_not_prepared(tmp_path: Path) -> None:
    folder = write_voc12aug(tmp_path, layout="sbd")
    read = find_dataset("voc12aug", tmp_path).read
    with pytest.raises(InputError, match=r"has no SegmentationClassAug.*encoder-bench prepare-voc12aug"):
        read("train_aug")
    assert len(read("val")) == 4
    with pytest.raises(InputError, match=r"has no split test; it has train_aug and val"):
        read("test")
    write_voc12aug(tmp_path)
    val = (folder / "ImageSets" / "Segmentation" / "val.txt").read_text(encoding="utf-8")
    _rewrite(folder / "ImageSets" / "Segmentation" / "trainaug.txt", lambda text: text + val)
    with pytest.raises(InputError, match=r"trainaug\.txt lists 4 images of val\.txt"):
        read("train_aug")


class _Runs:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("true",)


def test_batches_of_cifar10(tmp_path: Path) -> None:
    batch = write_cifar10(tmp_path) / "cifar-10-batches-py" / "data_batch_3"
    read = find_dataset("cifar10", tmp_path).read
    good = batch.read_bytes()
    content = pickle.loads(good, encoding="bytes")
    cases: list[tuple[bytes, str]] = [
        (pickle.dumps(_Runs()), r"data_batch_3 cannot be read \(it names posix\.system\)"),
        (good[:100], r"data_batch_3 cannot be read"),
        (b"", r"data_batch_3 cannot be read"),
        (b"(" * 20_000, r"\(it unfolds to too much data, or is nested too deeply\): the file is not a batch of CIFAR"),
        (
            b"(iposix\nsystem\n.",
            r"\(it has an operation that neither arrays nor plain values need\): the file is not",
        ),
        (pickle.dumps([1]), r"data_batch_3 holds a list"),
        (pickle.dumps({**content, b"labels": [11] * 4}, 2), r"labels, or some outside of 0 to 9"),
        (pickle.dumps({**content, b"labels": ["a"] * 4}, 2), r"labels that are not numbers"),
        (pickle.dumps({**content, b"labels": [1]}, 2), r"has no image of 3072 bytes for every label"),
        (pickle.dumps({b"labels": []}, 2), r"has no image of 3072 bytes"),
        (pickle.dumps({**content, b"data": np.array([None] * 4)}, 2), r"numpy data of type 'O8'"),
        (pickle.dumps({**content, b"data": content[b"data"].astype(">i2")}, 2), r"has no image of 3072 bytes"),
        (good.replace(b"U\x02u1", b"U\x02O8").replace(b"u1", b"O8"), r"numpy data of type 'O8'"),  # pointers
        (b"\x80\x02}(" + b")" + b"\x85q\x00h\x00h\x00\x86" * 40 + b"K\x01u.", r"a mapping has a tuple as a key"),
        (b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b".", r"cannot be read"),  # a bytearray of a terabyte
        (b"\x80\x02cnumpy\ndtype\n}X\x01\x00\x00\x00aK\x01sb.", r"it calls or changes an object"),
    ]
    for number, (damaged, message) in enumerate(cases):
        batch.write_bytes(damaged)
        os.utime(batch, ns=(number, number))
        with pytest.raises(InputError, match=message):
            read("train")
    batch.unlink()
    with pytest.raises(InputError, match=r"data_batch_3 is missing; unpack the CIFAR-10 page"):
        read("train")
    binary = write_cifar10(tmp_path / "b", layout="binary") / "cifar-10-batches-bin" / "test_batch.bin"
    binary.write_bytes(binary.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"test_batch\.bin has 30729 bytes, which is not a multiple of 3073"):
        find_dataset("cifar10", tmp_path / "b").read("test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["images"][0].update(id="285"), "ids must be whole numbers"),
        (lambda c: c["images"][0].update(file_name=[1]), "ids must be whole numbers and names text"),
        (lambda c: c["categories"][0].update(id=None), "ids must be whole numbers"),
        (lambda c: c["annotations"][0].update(image_id=[1]), "ids must be whole numbers"),
        (lambda c: c["annotations"][0].update(category_id="1"), "ids must be whole numbers"),
        (lambda c: c.update(images={"a": 1}), "malformed image entries"),
    ],
)
def test_types_of_coco(tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str) -> None:
    file = write_coco(tmp_path) / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match=rf"instances_val2017\.json has .*{message}"):
        find_dataset("coco", tmp_path).read("val")


def test_json_that_is_nested_too_deeply(tmp_path: Path) -> None:
    coco, inat = write_coco(tmp_path), write_inat18(tmp_path)
    for file, name in ((coco / "annotations" / "instances_val2017.json", "coco"), (inat / "val2018.json", "inat18")):
        file.write_text("[" * 200_000, encoding="utf-8")
        with pytest.raises(InputError, match=rf"{file.name} is nested too deeply"):
            find_dataset(name, tmp_path).read("val")
    folder = write_imagenet(tmp_path)
    (folder / "groups.json").write_text('{"a":' * 200_000, encoding="utf-8")
    with pytest.raises(InputError, match=r"groups\.json is nested too deeply"):
        find_dataset("imagenet", tmp_path).read("val")


def test_names_that_are_not_utf8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_imagenet(tmp_path, subsets=False)
    first = min((folder / "val" / "n01440764").iterdir())
    first.rename(first.with_name(os.fsdecode(b"\xff.JPEG")))
    labels = find_dataset("imagefolder", folder).read("val")
    with pytest.raises(InputError, match=r"val/n01440764/\\udcff\.JPEG is not UTF-8; rename"):
        fingerprint(labels)
    (folder / "val" / "n01440764" / os.fsdecode(b"\xff.JPEG")).write_text("damaged")
    assert main(["check-data", "--data", str(folder), "--dataset", "imagefolder", "--quiet"]) == 1
    assert "\\udcff.JPEG cannot be decoded" in capsys.readouterr().out


def test_a_named_pipe_among_the_images(tmp_path: Path) -> None:
    folder = write_imagenet(tmp_path, subsets=False)
    os.mkfifo(folder / "val" / "n01440764" / "a.png")
    with pytest.raises(InputError, match=r"a\.png is not a regular file"):
        fingerprint(find_dataset("imagefolder", folder).read("val"))

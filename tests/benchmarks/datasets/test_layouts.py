"""Every data set in the layouts that people have, from a few images written exactly so."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.datasets.images import decode
from benchmarks.datasets.lists import fingerprint
from benchmarks.datasets.registry import DATASETS, find_dataset
from benchmarks.task import InputError, Labels
from tests.layouts.cifar10 import CLASSES as CIFAR10_CLASSES
from tests.layouts.cifar10 import write_cifar10
from tests.layouts.cityscapes import write_cityscapes
from tests.layouts.coco import write_coco
from tests.layouts.densepose import write_densepose
from tests.layouts.imagenet import WNIDS, write_imagenet
from tests.layouts.inat18 import write_inat18
from tests.layouts.lvis import write_lvis
from tests.layouts.places205 import write_places205
from tests.layouts.voc import write_voc
from tests.layouts.voc12aug import write_voc12aug

# writer, its arguments, data set, {split: images}, classes, annotations: 0, 1 for all, or None for one each
CASES: list[tuple[Callable[..., Path], dict[str, object], str, dict[str, int], int, int | None]] = [
    *((write_imagenet, {"layout": layout}, "imagenet",
       {"train": 24, "val": 12, "train-1pct": 3, "train-10pct": 6}, 3, 0) for layout in ("folders", "mm", "vissl")),
    *((write_places205, {"layout": layout}, "places205", {"train": 24, "val": 12}, 3, 0)
      for layout in ("owner", "mm", "folders")),
    (write_inat18, {}, "inat18", {"train": 24, "val": 12}, 3, 0),
    (write_cifar10, {"layout": "python"}, "cifar10", {"train": 20, "test": 10}, 10, 0),
    (write_cifar10, {"layout": "binary"}, "cifar10", {"train": 20, "test": 10}, 10, 0),
    (write_voc, {}, "voc2007", {"train": 8, "val": 4, "trainval": 12, "test": 8}, 20, 0),
    (write_voc, {"year": "2012"}, "voc2012", {"train": 8, "val": 4, "trainval": 12}, 20, 0),
    (write_voc, {}, "voc2007_det", {"trainval": 12, "test": 8}, 20, None),
    (write_voc, {}, "voc2007_seg", {"trainval": 12, "test": 8}, 21, None),
    (write_voc12aug, {}, "voc2012_seg", {"train": 8, "val": 4}, 21, None),
    (write_voc12aug, {}, "voc12aug", {"train_aug": 14, "train": 14, "val": 4}, 21, None),
    (write_coco, {}, "coco", {"train": 12, "val": 6, "val2017": 6}, 4, 1),
    (write_coco, {}, "coco_keypoints", {"train": 12, "val": 6}, 1, 1),
    (write_densepose, {}, "coco_densepose", {"train": 12}, 1, 2),
    (write_densepose, {}, "coco_densepose", {"val": 6}, 1, 1),
    (write_lvis, {"version": "v1"}, "lvis_v1", {"train": 10, "val": 5}, 4, 1),
    (write_lvis, {"version": "v0.5"}, "lvis_v0.5", {"train": 10, "val": 5}, 4, 1),
    (write_cityscapes, {}, "cityscapes", {"train": 8, "val": 4, "test": 4}, 19, None),
    (write_cityscapes, {}, "cityscapes_instances", {"train": 8, "val": 4}, 8, None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("write", "arguments", "name", "splits", "classes", "annotations"),
    CASES,
    ids=[f"{case[2]}-{'-'.join(map(str, case[1].values()))}" for case in CASES],
)
def test_it_is_read_whole(tmp_path: Path, write, arguments, name: str, splits, classes: int, annotations) -> None:
    write(tmp_path, **arguments)
    spec = find_dataset(name, tmp_path)
    for split, images in splits.items():
        labels = spec.read(split)
        assert len(labels) == len(set(labels.ids)) == len(labels.paths) == len(labels.targets) == images
        assert list(labels.ids) == sorted(labels.ids)
        assert len(labels.classes) == len(set(labels.classes)) == classes
        assert len(labels.annotations) == (images if annotations is None else annotations)
        assert all(file.is_file() for file in labels.annotations)
        assert len(labels.groups) == images
        for path in labels.paths:
            assert decode(path).mode == "RGB"
        again = spec.read(split)
        assert again.ids == labels.ids
        assert fingerprint(again) == fingerprint(labels)


def test_every_data_set_has_a_layout_test() -> None:
    tests = [*Path(__file__).parent.glob("test_*.py"), *Path(__file__).parents[1].glob("test_retrieval.py")]
    others = "".join(file.read_text(encoding="utf-8") for file in tests)
    elsewhere = {name for name in DATASETS if f'"{name}"' in others.replace(Path(__file__).read_text("utf-8"), "")}
    assert set(DATASETS) - {case[2] for case in CASES} - elsewhere <= {"drawings", "imagefolder", "voc0712"}


def test_the_colour_of_every_image_is_that_of_its_label(tmp_path: Path) -> None:
    """The writers paint the class, so a wrong join of images and labels shows."""
    written = {
        "imagenet": (write_imagenet, ("folders", "mm", "vissl"), ("train", "val", "train-10pct")),
        "places205": (write_places205, ("owner", "mm", "folders"), ("train", "val")),
        "cifar10": (write_cifar10, ("python", "binary"), ("train", "test")),
    }
    colours = [(200, 40, 40), (40, 180, 60), (50, 70, 210), (210, 200, 40), (180, 60, 200)]
    colours += [(40, 190, 200), (240, 140, 30), (120, 80, 40), (120, 120, 220), (160, 220, 140)]

    def check(labels: Labels) -> None:
        for path, target in zip(labels.paths, labels.targets, strict=True):
            mean = np.asarray(decode(path), float).mean(axis=(0, 1))
            assert np.abs(mean - colours[target]).max() < 6, path

    for name, (write, layouts, splits) in written.items():
        for layout in layouts:
            root = tmp_path / f"{name}-{layout}"
            write(root, layout=layout)
            for split in splits:
                check(find_dataset(name, root).read(split))
    write_inat18(tmp_path)
    for split in ("train", "val"):
        check(find_dataset("inat18", tmp_path).read(split))


def test_the_two_forms_of_cifar10_hold_the_same(tmp_path: Path) -> None:
    write_cifar10(tmp_path / "a", layout="python")
    write_cifar10(tmp_path / "b", layout="binary")
    for split in ("train", "test"):
        first, second = (find_dataset("cifar10", tmp_path / root).read(split) for root in ("a", "b"))
        assert (first.ids, first.classes) == (second.ids, second.classes)
        assert np.array_equal(first.targets, second.targets)
        for one, other in zip(first.paths, second.paths, strict=True):
            assert np.array_equal(np.asarray(decode(one)), np.asarray(decode(other)))


def python2_batch(pixels: np.ndarray, labels: list[int]) -> bytes:
    """A batch as Python 2 pickles it, which is how its owner publishes it: texts and bytes are the same."""
    rows, size = len(pixels), pixels.size
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
    array += b"K" + bytes([rows]) + b"M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
    array += b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array += b"\x89T" + size.to_bytes(4, "little") + pixels.tobytes() + b"tb"
    listed = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(U\x0bbatch_labelU\x01aU\x06labels" + listed + b"U\x04data" + array + b"u."


def test_batches_of_python_2(tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path) / "cifar-10-batches-py"
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3072), dtype=np.uint8)
    (folder / "test_batch").write_bytes(python2_batch(pixels, [3, 0, 9]))
    names = b"".join(b"U" + bytes([len(name)]) + name.encode() for name in CIFAR10_CLASSES)
    (folder / "batches.meta").write_bytes(b"\x80\x02}U\x0blabel_names](" + names + b"es.")
    labels = find_dataset("cifar10", tmp_path).read("test")
    assert labels.targets.tolist() == [3, 0, 9]
    assert labels.classes == CIFAR10_CLASSES
    for path, row in zip(labels.paths, pixels, strict=True):
        assert np.array_equal(np.asarray(decode(path)).transpose(2, 0, 1).ravel(), row)


def test_cifar10_test_is_never_the_training_batches(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    spec = find_dataset("cifar10", tmp_path)
    assert {id.partition("#")[0] for id in spec.read("test").ids} == {"test_batch"}
    assert {id.partition("#")[0] for id in spec.read("train").ids} == {f"data_batch_{n}" for n in range(1, 6)}
    with pytest.raises(InputError, match="CIFAR-10 has no split val; it has train and test"):
        spec.read("val")


def test_a_subset_has_the_ids_and_classes_of_train(tmp_path: Path) -> None:
    write_imagenet(tmp_path, layout="folders")
    spec = find_dataset("imagenet", tmp_path)
    train, subset = spec.read("train"), spec.read("train-10pct")
    assert set(subset.ids) < set(train.ids)
    assert subset.classes == train.classes == WNIDS
    of_train = dict(zip(train.ids, train.targets, strict=True))
    assert [of_train[id] for id in subset.ids] == subset.targets.tolist()


def test_voc_0712_joins_the_years(tmp_path: Path) -> None:
    write_voc(tmp_path)
    with pytest.raises(InputError, match=r"VOC2012 is not a folder"):
        find_dataset("voc0712", tmp_path)
    write_voc(tmp_path, "2012")
    spec = find_dataset("voc0712", tmp_path)
    trainval, test = spec.read("trainval"), spec.read("test")
    assert len(trainval) == 24
    assert len(test) == 8
    assert [path.stem for path in trainval.paths] == [xml.stem for xml in trainval.annotations] == list(trainval.ids)
    for labels, year in ((find_dataset("voc2007", tmp_path).read("trainval"), "VOC2007"),):
        assert np.array_equal(trainval.targets[: len(labels)], labels.targets)
        assert year in str(trainval.annotations[0])


def test_voc12aug_takes_the_masks_of_voc_for_its_own_images(tmp_path: Path) -> None:
    write_voc12aug(tmp_path)
    labels = find_dataset("voc12aug", tmp_path).read("train_aug")
    where = {mask.parent.name for id, mask in zip(labels.ids, labels.annotations, strict=True) if id < "2009"}
    added = {mask.parent.name for id, mask in zip(labels.ids, labels.annotations, strict=True) if id > "2009"}
    assert (where, added) == ({"SegmentationClass"}, {"SegmentationClassAug"})
    (tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation/trainaug.txt").unlink()  # mm's aug.txt beside train.txt
    assert find_dataset("voc12aug", tmp_path).read("train_aug").ids == labels.ids


def test_coco_says_what_is_on_an_image(tmp_path: Path) -> None:
    folder = write_coco(tmp_path)
    labels = find_dataset("coco", tmp_path).read("train")
    content = json.loads((folder / "annotations" / "instances_train2017.json").read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    for row, id in enumerate(labels.ids):
        shown = {names[a["category_id"]] for a in content["annotations"] if a["image_id"] == int(id)}
        assert {name for name, present in zip(labels.classes, labels.targets[row], strict=True) if present} == shown
    assert not labels.targets[-1].any()  # an image without an object


def test_lvis_finds_images_of_both_folders_of_coco(tmp_path: Path) -> None:
    write_lvis(tmp_path, "v1")
    labels = find_dataset("lvis_v1", tmp_path).read("val")
    assert {path.parent.name for path in labels.paths} == {"train2017", "val2017"}


def test_cityscapes_without_derived_masks_says_how_to_map_the_owners(tmp_path: Path) -> None:
    from PIL import Image

    from benchmarks.datasets.dense_sets import label_map

    write_cityscapes(tmp_path / "derived")
    write_cityscapes(tmp_path / "own", train_ids=False)
    derived = find_dataset("cityscapes", tmp_path / "derived").read("val")
    own = find_dataset("cityscapes", tmp_path / "own").read("val")
    assert label_map(derived) is None
    mapping = label_map(own)
    assert mapping is not None
    for one, other in zip(own.annotations, derived.annotations, strict=True):
        mapped = np.vectorize(mapping.__getitem__)(np.asarray(Image.open(one)))
        assert np.array_equal(mapped, np.asarray(Image.open(other)))


def test_which_layout_was_recognised_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_imagenet(tmp_path, layout="mm")
    spec = find_dataset("imagenet", tmp_path)
    with caplog.at_level(logging.INFO):
        spec.read("val")
    assert "val has the layout a list meta/val.txt" in caplog.text
    assert spec.layout("train") == "train/<class>/<image>"


def test_a_count_that_is_not_the_published_one_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_imagenet(tmp_path)
    find_dataset("imagenet", tmp_path).read("val")
    assert "has 12 images, but its owner publishes 50000" in caplog.text

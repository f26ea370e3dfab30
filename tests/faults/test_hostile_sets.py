"""Every list, annotation and index that a data set is read from, damaged: one sentence, or read as it is."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.datasets.dense_sets import read_depth
from benchmarks.datasets.lists import fingerprint
from benchmarks.datasets.registry import find_dataset
from benchmarks.dense.masks import MaskFormat
from pretrain.data import find_images
from results.errors import InputError
from tests.benchmarks.datasets.test_imagenet_variants import objectnet
from tests.faults.guard import check
from tests.layouts.cityscapes import write_cityscapes
from tests.layouts.coco import write_coco
from tests.layouts.densepose import write_densepose
from tests.layouts.imagenet import write_imagenet
from tests.layouts.inat18 import write_inat18
from tests.layouts.lvis import write_lvis
from tests.layouts.pictures import plain, save
from tests.layouts.places205 import write_places205
from tests.layouts.voc import write_voc
from tests.layouts.voc12aug import write_voc12aug


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        write: writes a whole data set below a folder.
        file: the file that is damaged, as a pattern below the folder; the first one counts.
        read: reads what the file belongs to.
    """

    write: Callable[[Path], object]
    file: str
    read: Callable[[Path], object]


def labels(name: str, split: str, task: str = "") -> Callable[[Path], object]:
    """Reads a split, its fingerprint and, for a detection task, its scenes."""

    def read(folder: Path) -> None:
        found = find_dataset(name, folder).read(split)
        fingerprint(found)
        if task:
            from benchmarks.detection.data import read_scenes

            read_scenes(found, task)  # type: ignore[arg-type]

    return read


def grouped(folder: Path) -> None:
    write_imagenet(folder, subsets=False)
    found = find_dataset("imagenet", folder).read("val")
    (folder / "imagenet/groups.json").write_text(json.dumps({each: [each] for each in found.ids}), encoding="utf-8")


def real(folder: Path) -> None:
    for number in (1, 2):
        save(plain(0, number), folder / f"imagenet/val/n01440764/ILSVRC2012_val_{number:08d}.JPEG")
    (folder / "imagenet/real.json").write_text(json.dumps([[0]] * 50_000), encoding="utf-8")


def stl10(folder: Path) -> None:
    (folder / "stl10_binary").mkdir()
    for part, count in (("train", 5), ("test", 8)):
        np.zeros((count, 3, 96, 96), np.uint8).tofile(folder / f"stl10_binary/{part}_X.bin")
        np.ones(count, np.uint8).tofile(folder / f"stl10_binary/{part}_y.bin")
    (folder / "stl10_binary/class_names.txt").write_text("a\nb\n", encoding="utf-8")


def nyu(folder: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        save(plain(0, 1), folder / "nyu" / name)
        Image.fromarray(np.full((40, 48), 999, np.uint16)).save(folder / "nyu" / f"{name[0]}.png")
    (folder / "nyu/nyu_test.txt").write_text("a.jpg a.png 518.8\nb.jpg b.png 518.8\n", encoding="utf-8")


def shards(folder: Path) -> None:
    (folder / "0.tar").write_bytes(bytes(10240))
    (folder / "shards.json").write_text(json.dumps({"shardlist": [{"url": "0.tar", "nsamples": 1}]}), encoding="utf-8")


def image_list(folder: Path) -> None:
    save(plain(0, 1), folder / "a.jpg")
    (folder / "list.txt").write_text("a.jpg 0\n" * 3, encoding="utf-8")


MASKS = MaskFormat(("a", "b"), 0, (255,), np.arange(256, dtype=np.int16))
KINDS: dict[str, Kind] = {
    "iNaturalist json": Kind(write_inat18, "inat2018/train2018.json", labels("inat18", "train")),
    "Places list": Kind(write_places205, "**/*train*.*", labels("places205", "train")),
    "mm list": Kind(lambda f: write_imagenet(f, layout="mm", subsets=False), "**/val.txt", labels("imagenet", "val")),
    "vissl array": Kind(lambda f: write_imagenet(f, layout="vissl"), "**/val_labels.npy", labels("imagenet", "val")),
    "groups json": Kind(grouped, "imagenet/groups.json", labels("imagenet", "val")),
    "ReaL json": Kind(real, "imagenet/real.json", labels("imagenet_real", "val")),
    "ObjectNet json": Kind(objectnet, "**/folder_to_objectnet_label.json", labels("objectnet", "val")),
    "ObjectNet list": Kind(objectnet, "**/imagenet_to_label_2012_v2", labels("objectnet", "val")),
    "COCO json": Kind(write_coco, "**/instances_val2017.json", labels("coco", "val", "coco")),
    "keypoints json": Kind(write_coco, "**/person_keypoints_val2017.json", labels("coco_keypoints", "val", "coco")),
    "LVIS json": Kind(write_lvis, "**/lvis_v1_val.json", labels("lvis_v1", "val", "lvis")),
    "DensePose json": Kind(
        write_densepose, "**/densepose_minival2014.json", labels("coco_densepose", "val", "densepose")),
    "VOC ids": Kind(write_voc, "**/Main/trainval.txt", labels("voc2007", "trainval")),
    "VOC classes": Kind(write_voc, "**/Main/aeroplane_trainval.txt", labels("voc2007", "trainval")),
    "VOC xml": Kind(write_voc, "**/000001.xml", labels("voc2007_det", "trainval", "voc")),
    "VOC aug ids": Kind(write_voc12aug, "**/Segmentation/*aug.txt", labels("voc12aug", "train_aug")),
    "Cityscapes json": Kind(
        write_cityscapes, "**/val/**/*_polygons.json", labels("cityscapes_instances", "val", "cityscapes")),
    "STL-10 images": Kind(stl10, "**/test_X.bin", labels("stl10", "test")),
    "STL-10 labels": Kind(stl10, "**/test_y.bin", labels("stl10", "test")),
    "STL-10 classes": Kind(stl10, "**/class_names.txt", labels("stl10", "test")),
    "NYU list": Kind(nyu, "nyu/nyu_test.txt", labels("nyu_depth", "test")),
    "depth map": Kind(nyu, "nyu/a.png", lambda folder: read_depth(folder / "nyu/a.png")),
    "mask": Kind(write_voc, "**/SegmentationClass/000001.png",
                 lambda folder: MASKS.read(next(folder.rglob("SegmentationClass/000001.png")), (8, 8))),
    "shard index": Kind(shards, "shards.json", find_images),
    "image list": Kind(image_list, "list.txt", lambda folder: find_images(folder / "list.txt")),
}  # fmt: skip


def other(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Another content, made from the whole one."""

    def damage(file: Path) -> None:
        file.write_bytes(change(file.read_bytes()))

    return damage


def instead(make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Something else in the file's place."""

    def damage(file: Path) -> None:
        file.unlink()
        make(file)

    return damage


def flipped(content: bytes) -> bytes:
    changed, draws = bytearray(content), np.random.default_rng(0)
    for at in draws.integers(0, len(content), 20):
        changed[at] ^= 1 << int(draws.integers(0, 8))
    return bytes(changed)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "a pipe": instead(os.mkfifo),
    "a device": instead(lambda file: file.symlink_to("/dev/zero")),
    "a folder": instead(Path.mkdir),
    "a terabyte": lambda file: os.truncate(file, 1 << 40),
    "empty": other(lambda _: b""),
    "half": other(lambda content: content[: len(content) // 2]),
    "no UTF-8": other(lambda content: b"\xff\xfe" + content + b"\xff"),
    "zero bytes": other(lambda _: bytes(1000)),
    "a line of 20 MB": other(lambda _: b"a" * 20_000_000),
    "open brackets": other(lambda _: b"[" * 200_000),
    "open braces": other(lambda _: b'{"a":' * 200_000),
    "a number": other(lambda _: b"3"),
    "nothing": other(lambda _: b"null"),
    "a list of lists": other(lambda _: b"[[1]]"),
    "texts for numbers": other(lambda content: re.sub(rb"(?<=[: ,\[])\d+(?=[,}\]\s])", b'"a"', content)),
    "nan for numbers": other(lambda content: re.sub(rb"(?<=[: ,\[])\d+(?=[,}\]\s])", b"NaN", content)),
    "lists for numbers": other(lambda content: re.sub(rb"(?<=[: ,\[])\d+(?=[,}\]\s])", b"[[]]", content)),
    "10**400 for numbers": other(lambda content: re.sub(rb"(?<=[: ,\[>])\d+(?=[<,}\]\s])", b"1" + b"0" * 400, content)),
    "minus one for numbers": other(lambda content: re.sub(rb"(?<=[: ,\[>])\d+(?=[<,}\]\s])", b"-1", content)),
    "other names": other(
        lambda content: re.sub(rb"(jpe?g|png)\b", b"../../../../../../etc/passwd", content, flags=re.I)
    ),
    "flipped bits": other(flipped),
}
QUICK = (("COCO json", "10**400 for numbers"), ("VOC xml", "a pipe"), ("groups json", "lists for numbers"),
         ("mask", "flipped bits"), ("image list", "no UTF-8"), ("shard index", "a device"),
         ("VOC xml", "a terabyte"), ("NYU list", "open brackets"))  # fmt: skip


def damaged(kind: str, damage: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        what = KINDS[kind]
        what.write(folder)
        file = sorted(folder.glob(what.file))[0]
        DAMAGES[damage](file)
        try:
            what.read(folder)
        except OSError as error:  # the command line says it in a sentence, too
            raise InputError(str(error)) from error

    return read


@pytest.mark.parametrize(("kind", "damage"), QUICK)
def test_a_damaged_file_of_a_data_set_is_one_sentence(kind: str, damage: str, tmp_path: Path) -> None:
    check(damaged(kind, damage), tmp_path)


@pytest.mark.faults
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_damaged_file_of_a_data_set_is_one_sentence(kind: str, damage: str, tmp_path: Path) -> None:
    check(damaged(kind, damage), tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_file_is_read(kind: str, tmp_path: Path) -> None:
    KINDS[kind].write(tmp_path)
    assert sorted(tmp_path.glob(KINDS[kind].file))
    KINDS[kind].read(tmp_path)

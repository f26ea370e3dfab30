"""Every set of the transfer suite on a tiny copy in exactly its layout, and against torchvision's own reader."""

from __future__ import annotations

import csv
import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from benchmarks.datasets.images import decode
from benchmarks.datasets.registry import find_dataset
from benchmarks.datasets.transfer_sets import TRANSFER_SETS
from benchmarks.task import InputError


def picture(file: Path, class_number: int = 0) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (5, 4), (40 * class_number, 100, 0)).save(file)


def lines(file: Path, *texts: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{text}\n" for text in texts))


def food101(root: Path) -> None:
    for part, number in (("train", 2), ("test", 1)):
        listed = {name: [f"{name}/{part}{i}" for i in range(number)] for name in ("apple_pie", "waffles")}
        lines(root / f"food-101/meta/{part}.json", json.dumps(listed))
        for target, files in enumerate(listed.values()):
            for file in files:
                picture(root / f"food-101/images/{file}.jpg", target)


def cars(root: Path) -> None:
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    names = np.array(["Audi", "BMW"], dtype=object)
    savemat(folder / "devkit/cars_meta.mat", {"class_names": names})
    for part, file in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        rows = np.array([("00002.jpg", 1), ("00001.jpg", 2)], dtype=[("fname", object), ("class", object)])
        savemat(folder / file, {"annotations": rows})
        for name, target in rows:
            picture(folder / f"cars_{part}/{name}", int(target) - 1)


def aircraft(root: Path) -> None:
    folder = root / "fgvc-aircraft-2013b/data"
    lines(folder / "variants.txt", "707-320", "A 380")
    for part, ids in (("train", "12"), ("val", "34"), ("test", "56")):
        lines(folder / f"images_variant_{part}.txt", f"000{ids[0]} 707-320", f"000{ids[1]} A 380")
        for target, number in enumerate(ids):
            picture(folder / f"images/000{number}.jpg", target)


def dtd(root: Path) -> None:
    for part in ("train", "val", "test"):
        lines(root / f"dtd/dtd/labels/{part}1.txt", f"banded/banded_{part}.jpg", f"woven/woven_{part}.jpg")
        for target, name in enumerate(("banded", "woven")):
            picture(root / f"dtd/dtd/images/{name}/{name}_{part}.jpg", target)


def pets(root: Path) -> None:
    folder = root / "oxford-iiit-pet"
    for part, first in (("trainval", 1), ("test", 3)):
        rows = [f"{name}_{first + i} {target + 1} 1 1" for target, name in enumerate(("Abyssinian", "great_pyrenees"))
                for i in range(2)]  # fmt: skip
        lines(folder / f"annotations/{part}.txt", *rows)
        for row in rows:
            picture(folder / f"images/{row.split()[0]}.jpg", int(row.split()[1]) - 1)


def sun397(root: Path) -> None:
    folder = root / "SUN397"
    lines(folder / "ClassName.txt", "/a/abbey", "/s/stadium/football")
    for part, number in (("Training", 1), ("Testing", 2)):
        files = [f"/a/abbey/sun_a{number}.jpg", f"/s/stadium/football/sun_s{number}.jpg"]
        lines(folder / f"{part}_01.txt", *files)
        for target, file in enumerate(files):
            picture(folder / file[1:], target)


def flowers102(root: Path) -> None:
    folder = root / "flowers-102"
    folder.mkdir()
    savemat(folder / "imagelabels.mat", {"labels": np.array([1, 2, 1, 2, 1, 2])})
    savemat(folder / "setid.mat", {"trnid": np.array([1, 2]), "valid": np.array([3, 4]), "tstid": np.array([6, 5])})
    for number in range(1, 7):
        picture(folder / f"jpg/image_{number:05d}.jpg", (number - 1) % 2)


def caltech101(root: Path) -> None:
    for target, (name, count) in enumerate((("accordion", 33), ("yin_yang", 31))):
        for number in range(1, count + 1):
            picture(root / f"caltech101/101_ObjectCategories/{name}/image_{number:04d}.jpg", target)
    picture(root / "caltech101/101_ObjectCategories/BACKGROUND_Google/image_0001.jpg")


def eurosat(root: Path) -> None:
    for target, name in enumerate(("AnnualCrop", "River")):
        for number in range(3):
            picture(root / f"eurosat/2750/{name}/{name}_{number}.jpg", target)


def folders(folder: str, *parts: str) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        for part in parts:
            for target, name in enumerate(("one", "two")):
                picture(root / folder / part / name / f"{part}.png", target)

    return write


def gtsrb(root: Path) -> None:
    folder = root / "gtsrb"
    for target in range(2):
        picture(folder / f"GTSRB/Training/0000{target}/00000_00000.ppm", target)
        picture(folder / f"GTSRB/Final_Test/Images/0000{target}.ppm", target)
    with (folder / "GT-final_test.csv").open("w", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerows([["Filename", "Width", "ClassId"], ["00000.ppm", 5, 0], ["00001.ppm", 5, 1]])


def voc2007_cls(root: Path) -> None:
    folder = root / "VOCdevkit/VOC2007"
    for part, ids in (("train", ("000005", "000007")), ("val", ("000001", "000002")), ("test", ("000003", "000004"))):
        lines(folder / f"ImageSets/Main/{part}.txt", *ids)
        lines(folder / f"ImageSets/Main/cat_{part}.txt", f"{ids[0]}  1", f"{ids[1]} -1")
        lines(folder / f"ImageSets/Main/dog_{part}.txt", f"{ids[0]}  0", f"{ids[1]}  1")
        for id in ids:
            picture(folder / f"JPEGImages/{id}.jpg")


def cub200(root: Path) -> None:
    folder = root / "CUB_200_2011"
    files = ["002.Laysan/b.jpg", "001.Black/a.jpg", "001.Black/c.jpg", "002.Laysan/d.jpg"]
    lines(folder / "images.txt", *(f"{number} {file}" for number, file in enumerate(files, 1)))
    lines(folder / "image_class_labels.txt", *(f"{number} {int(file[:3])}" for number, file in enumerate(files, 1)))
    lines(folder / "train_test_split.txt", "1 1", "2 0", "3 1", "4 0")
    lines(folder / "classes.txt", "1 001.Black", "2 002.Laysan")
    for file in files:
        picture(folder / "images" / file, int(file[:3]) - 1)


def striped(target: int, side: int) -> np.ndarray:
    """(side, side, 3), the class in the first pixel and other values in its row and column."""
    pixels = np.zeros((side, side, 3), np.uint8)
    pixels[..., 0] = 40 * target
    pixels[0, 1:, 0], pixels[1:, 0, 1], pixels[..., 2] = 11, 22, 33
    return pixels


def stl10(root: Path) -> None:
    folder = root / "stl10_binary"
    lines(folder / "class_names.txt", "airplane", "bird")
    for part, targets in (("train", (1, 0)), ("test", (0, 1))):
        images = np.stack([striped(target, 96).transpose(2, 1, 0) for target in targets])  # planes of columns
        images.tofile(folder / f"{part}_X.bin")
        np.array([target + 1 for target in targets], np.uint8).tofile(folder / f"{part}_y.bin")


def svhn(root: Path) -> None:
    (root / "svhn").mkdir()
    for part, digits in (("train", (10, 5)), ("test", (3, 10))):
        images = np.stack([striped(digit % 10, 32) for digit in digits], axis=-1)
        labels = np.array(digits, np.uint8)[:, None]
        savemat(root / f"svhn/{part}_32x32.mat", {"X": images, "y": labels}, do_compression=True)


def pcam(root: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="PatchCamelyon needs h5py")
    (root / "pcam").mkdir()
    for part in ("train", "valid", "test"):
        for kind, values in (
            ("x", np.stack([striped(target, 96) for target in (1, 0)])),
            ("y", np.array([1, 0], np.uint8).reshape(-1, 1, 1, 1)),
        ):
            with h5py.File(root / f"pcam/camelyonpatch_level_2_split_{part}_{kind}.h5", "w") as file:
                file[kind] = values


WRITERS: dict[str, Callable[[Path], None]] = {
    "food101": food101, "cars": cars, "aircraft": aircraft, "dtd": dtd, "pets": pets, "sun397": sun397,
    "flowers102": flowers102, "caltech101": caltech101, "eurosat": eurosat, "gtsrb": gtsrb,
    "cub200": cub200, "stl10": stl10, "svhn": svhn, "pcam": pcam,
    "voc2007_cls": voc2007_cls, "birdsnap": folders("birdsnap", "train", "test"),
    "resisc45": folders("resisc45", "train", "test"), "country211": folders("country211", "train", "valid", "test"),
    "rendered_sst2": lambda root: [
        picture(root / f"rendered-sst2/{part}/{name}/{part}.png", target)
        for part in ("train", "valid", "test") for target, name in enumerate(("negative", "positive"))
    ] and None,
}  # fmt: skip
# name -> images of trainval, of its validation part, of test
COUNTS = {"food101": (4, 0, 2), "caltech101": (60, 0, 4), "eurosat": (6, 0, 0), "pets": (4, 0, 4)} | dict.fromkeys(
    ("cars", "sun397", "gtsrb", "birdsnap", "resisc45", "cub200", "stl10", "svhn"), (2, 0, 2)
)
TORCHVISION: dict[str, Callable[[Path], Any]] = {
    "food101": lambda root: datasets.Food101(root, "test"),
    "cars": lambda root: datasets.StanfordCars(root, "test"),
    "aircraft": lambda root: datasets.FGVCAircraft(root, "test"),
    "dtd": lambda root: datasets.DTD(root, "test"),
    "pets": lambda root: datasets.OxfordIIITPet(root, "test"),
    "country211": lambda root: datasets.Country211(root, "test"),
    "rendered_sst2": lambda root: datasets.RenderedSST2(root, "test"),
    "gtsrb": lambda root: datasets.GTSRB(root, "test"),
    "stl10": lambda root: datasets.STL10(root, "test"),
    "svhn": lambda root: datasets.SVHN(root / "svhn", "test"),
    "pcam": lambda root: datasets.PCAM(root, "test"),
}


@pytest.mark.parametrize("name", [*TRANSFER_SETS, "voc2007_cls"])
def test_a_tiny_copy_is_read(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    train, held, test = COUNTS.get(name, (4, 2, 2))
    found = find_dataset(name, tmp_path)
    trainval = found.read("trainval")
    assert len(trainval) == len(set(trainval.ids)) == train
    assert sum(id.startswith("val/") for id in trainval.ids) == held
    assert len(trainval.classes) == (10 if name == "svhn" else 2)
    splits = [trainval]
    if test:
        splits.append(found.read("test"))
        assert len(splits[1]) == test
        assert not set(map(str, trainval.paths)) & set(map(str, splits[1].paths))
        assert splits[1].classes == trainval.classes
    for labels in splits:
        for path, target in zip(labels.paths, labels.targets, strict=True):
            image = decode(path)
            if name != "voc2007_cls":
                assert abs(image.getpixel((0, 0))[0] - 40 * target) < 6, path
    with pytest.raises(InputError, match="no split nothing"):
        found.read("nothing")


@pytest.mark.parametrize("name", TORCHVISION)
def test_the_items_are_torchvisions(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for checked in (datasets.STL10, datasets.SVHN):  # by the MD5 of the owner's files
        monkeypatch.setattr(checked, "_check_integrity", lambda self: True)
    WRITERS[name](tmp_path)
    labels, theirs = find_dataset(name, tmp_path).read("test"), TORCHVISION[name](tmp_path)
    assert len(labels) == len(theirs)
    found = zip(labels.paths, labels.targets, strict=True)

    def shown(items: Any) -> list[tuple[bytes, int]]:
        return sorted((np.asarray(image).tobytes(), int(target)) for image, target in items)

    assert shown((decode(path), target) for path, target in found) == shown(theirs)


def test_voc_keeps_difficult_images_apart(tmp_path: Path) -> None:
    voc2007_cls(tmp_path)
    labels = find_dataset("voc2007_cls", tmp_path).read("trainval")
    assert labels.ids == ("train/000005", "train/000007", "val/000001", "val/000002")
    assert labels.targets.tolist() == [[1, -1], [0, 1]] * 2


def test_own_splits_are_drawn_once_and_apart(tmp_path: Path) -> None:
    caltech101(tmp_path)
    found = find_dataset("caltech101", tmp_path)
    assert np.bincount(found.read("trainval").targets).tolist() == [30, 30]
    assert np.bincount(found.read("test").targets).tolist() == [3, 1]
    assert found.read("trainval").ids == found.read("trainval").ids


def test_cifar100_has_fine_labels(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    pixels = np.zeros((3, 3072), np.uint8)
    pixels[:, :1024] = np.array([[9], [8], [7]])
    for part in ("train", "test"):
        batch = {b"data": pixels, b"fine_labels": [99, 0, 5], b"coarse_labels": [1, 1, 1]}
        (folder / part).write_bytes(pickle.dumps(batch, protocol=2))
    names = {b"fine_label_names": [f"class {i}".encode() for i in range(100)], b"coarse_label_names": [b"one"]}
    (folder / "meta").write_bytes(pickle.dumps(names, protocol=2))
    labels = find_dataset("cifar100", tmp_path).read("train")
    assert labels.ids == ("train#0", "train#1", "train#2")
    assert labels.targets.tolist() == [99, 0, 5]
    assert [decode(path).getpixel((3, 3)) for path in labels.paths] == [(9, 0, 0), (8, 0, 0), (7, 0, 0)]


@pytest.mark.parametrize(("name", "file"), [("stl10", "test_X.bin"), ("svhn", "test_32x32.mat"),
                                            ("pcam", "camelyonpatch_level_2_split_test_x.h5")])  # fmt: skip
def test_a_damaged_array_file_is_named(name: str, file: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    folder = find_dataset(name, tmp_path).folder
    beyond = folder / f"{file}#000007"
    with pytest.raises(InputError, match="no number 7"):
        decode(beyond)
    (folder / file).unlink()
    (folder / file).write_bytes(b"what is not an array")
    for read in (lambda: decode(beyond), lambda: find_dataset(name, tmp_path).read("test")):
        with pytest.raises(InputError, match=file):
            read()
    (folder / file).unlink()
    with pytest.raises(InputError, match=file):
        find_dataset(name, tmp_path).read("test")


def test_patch_camelyon_without_h5py_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    for kind in "xy":
        lines(tmp_path / f"pcam/camelyonpatch_level_2_split_test_{kind}.h5", "not read")
    with pytest.raises(InputError, match="needs h5py, which is not installed: pip install h5py"):
        find_dataset("pcam", tmp_path).read("test")


def test_cub_without_a_split_of_an_image_is_refused(tmp_path: Path) -> None:
    cub200(tmp_path)
    lines(tmp_path / "CUB_200_2011/train_test_split.txt", "1 1", "2 0", "3 1")
    with pytest.raises(InputError, match=r"image 4 of images\.txt has no class or no split"):
        find_dataset("cub200", tmp_path).read("test")


@pytest.mark.parametrize("name", sorted(set(WRITERS) - {"birdsnap", "resisc45", "caltech101", "eurosat", "pcam"}))
def test_a_missing_list_is_named(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    folder = find_dataset(name, tmp_path).folder
    for file in [*folder.rglob("*.txt"), *folder.rglob("*.json"), *folder.rglob("*.mat"), *folder.rglob("*.csv")]:
        file.unlink()
    if name in ("country211", "rendered_sst2"):
        (folder / "test").rename(folder / "elsewhere")
    with pytest.raises(InputError, match=str(folder)):
        find_dataset(name, tmp_path).read("test")

"""Classification sets of transfer suites, each in the folder in which torchvision keeps it: a train split and test.

An id is `<part>/<file>`, where the part is `train`, `val` or `test`. The train split holds the validation part that the
owner publishes, so that a benchmark can choose its settings by it and then use both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.datasets.batch_files import ListedImages, pcam, stl10, svhn
from benchmarks.datasets.lists import (
    class_count,
    class_folders,
    first_file,
    folder_contents,
    images_below,
    labels_below,
    read_lines,
)
from benchmarks.datasets.safe_readers import read_mat
from benchmarks.datasets.voc import joined, read_voc_classification
from benchmarks.task import InputError, Labels

TEST = "test"
SPLIT_SEED = 0  # of splits that no owner publishes

_MAX_MAT = 2**25  # bytes of a .mat file, unpacked; those of Stanford Cars have a tenth of it
_CALTECH_TRAIN = 30  # images of each class
_EUROSAT = (1000, 500)  # images of each class in train and in test, as in CLIP's split
_BACKGROUND = "BACKGROUND_Google"


TRAINVAL = {"trainval": {"train": "train"}, TEST: {TEST: TEST}}
_WITH_VAL = {"trainval": {"train": "train", "val": "val"}, TEST: {TEST: TEST}}
_AS_TRAINVAL = {"trainval": {"train": "trainval"}, TEST: {TEST: TEST}}
_WITH_VALID = {"trainval": {"train": "train", "val": "valid"}, TEST: {TEST: TEST}}


@dataclass(frozen=True)
class TransferSet:
    """A set of the suite.

    Attributes:
        folder: below the data root.
        owner: for error messages.
        parts: split -> parts of the owner that it holds, as ids begin -> the owner's name for it.
        items: (folder, the owner's name of a part) -> its items.
        images: published counts of trainval and test.
        classes: published number of them.
        how_to_get: for people.
    """

    folder: str
    owner: str
    parts: Mapping[str, Mapping[str, str]]
    items: Callable[[Path, str], ListedImages]
    images: tuple[int | None, int | None]
    classes: int
    how_to_get: str

    def read(self, folder: Path, split: str) -> Labels:
        """The items of a split in the order of the parts and their files.

        Raises:
            InputError: the split is unknown, a file is missing or malformed, or the parts differ in their classes.
        """
        if split not in self.parts:
            raise InputError(f"{folder.name} has no split {split}; it has {' and '.join(self.parts)}")
        ids: list[str] = []
        files: list[str] = []
        targets: list[int] = []
        classes: list[str] | None = None
        for part, own in self.parts[split].items():
            try:
                found, labels, names = self.items(folder, own)
            except InputError:
                raise
            except Exception as error:  # a reader of another library raises nearly anything at a malformed file
                reason = " ".join(str(error).split()).partition(" You can use download")[0] or type(error).__name__
                raise InputError(
                    f"{folder} cannot be read as {self.owner} ({type(error).__name__}: {reason}); found "
                    f"{folder_contents(folder)}; unpack it again"
                ) from error
            if classes is not None and names != classes:
                raise InputError(f"{folder}: the parts of {split} have different classes; unpack {self.owner} again")
            classes = names
            order = sorted(range(len(found)), key=found.__getitem__)
            ids += [f"{part}/{found[row]}" for row in order]
            files += [found[row] for row in order]
            targets += [labels[row] for row in order]
        if not ids or not classes:
            raise InputError(f"{folder}: {split} has no images; unpack {self.owner} again")
        numbers = np.array(targets, np.int64)
        if numbers.min() < 0 or numbers.max() >= len(classes):
            raise InputError(
                f"{folder}: {split} has labels outside its {len(classes)} classes; unpack {self.owner} again"
            )
        return labels_below(folder, files, classes, numbers, ids=ids)


# ---- torchvision's readers; their lists are private, and a test holds them to what these give -----------------------


def _torchvision(name: str, folder: Path, part: str, **options: Any) -> ListedImages:
    """What a reader of torchvision finds that has its files and labels in lists of its own."""
    from torchvision import datasets

    opened: Any = vars(datasets)[name](str(folder.parent), split=part, download=False, **options)
    own = vars(opened)
    files = own.get("_image_files", own.get("_images"))
    if files is None:
        files, labels = zip(*own.get("_samples", own.get("samples")), strict=True)
    else:
        labels = own["_labels"]
    classes = own.get("classes") or [str(n) for n in range(class_count(folder, np.array(labels, np.int64)))]
    names = [Path(file).relative_to(folder).as_posix() for file in files]
    return names, [int(label) for label in labels], list(classes)


# ---- sets that torchvision has no reader for, or checks by the md5 of whole archives ---------------------------------


def _chosen(folder: Path, below: str, choose: Callable[[int, list[str]], list[str]], without: str = "") -> ListedImages:
    """The images of `below/<class>/<image>` that `choose` takes of each class, from its number and its images."""
    names = [name for name in class_folders(folder / below) if name != without]
    if not names:
        raise InputError(f"{folder / below} has no class folders: expected {below}/<class>/<image>")
    files: list[str] = []
    targets: list[int] = []
    for number, name in enumerate(names):
        chosen = choose(number, images_below(folder / below / name))
        files += [f"{below}/{name}/{image}" for image in chosen]
        targets += [number] * len(chosen)
    return files, targets, names


def _folders(folder: Path, part: str) -> ListedImages:
    """`<part>/<class>/<image>`."""
    return _chosen(folder, part, lambda _, images: images)


def _drawn(folder: Path, part: str, *, below: str, train: int, test: int | None, without: str = "") -> ListedImages:
    """Class folders without a published split: so many images of each class, drawn by this project's seed."""

    def choose(number: int, images: list[str]) -> list[str]:
        order = np.random.default_rng((SPLIT_SEED, number)).permutation(len(images))
        rows = order[:train] if part == "train" else order[train : None if test is None else train + test]
        return [images[row] for row in rows]

    return _chosen(folder, below, choose, without)


def _flowers(folder: Path, part: str) -> ListedImages:
    """Oxford Flowers: `setid.mat` and `imagelabels.mat`, of which torchvision checks the md5."""
    name = {"train": "trnid", "val": "valid", TEST: "tstid"}[part]
    ids = _whole_numbers(folder / "setid.mat", name)
    labels = _whole_numbers(folder / "imagelabels.mat", "labels")
    if len(ids) and not 1 <= ids.min() <= ids.max() <= len(labels):
        raise InputError(f"{folder / 'setid.mat'} numbers images that imagelabels.mat does not have; unpack both again")
    classes = [f"{number:03d}" for number in range(1, 1 + class_count(folder / "imagelabels.mat", labels - 1))]
    return [f"jpg/image_{number:05d}.jpg" for number in ids], (labels[ids - 1] - 1).tolist(), classes


def _whole_numbers(file: Path, name: str) -> NDArray[np.int64]:
    """A row of a .mat file."""
    found = read_mat(file, (name,), _MAX_MAT)[name]
    if not isinstance(found, np.ndarray) or not np.array_equal(found, np.rint(found)):
        raise InputError(f"{file}: {name} holds no whole numbers; unpack it again")
    return found.reshape(-1).astype(np.int64)


def _cars(folder: Path, part: str) -> ListedImages:
    """Stanford Cars: a structure for each image, with its file and its class from 1 on; the classes are in the devkit.

    The paths are torchvision's.
    """
    file, below = {
        "train": (folder / "devkit/cars_train_annos.mat", "cars_train"),
        TEST: (folder / "cars_test_annos_withlabels.mat", "cars_test"),
    }[part]
    meta = folder / "devkit/cars_meta.mat"
    annotations = read_mat(file, ("annotations",), _MAX_MAT)["annotations"]
    names = read_mat(meta, ("class_names",), _MAX_MAT)["class_names"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{meta} has no names of classes; unpack it again")
    if not isinstance(annotations, dict) or not {"fname", "class"} <= annotations.keys():
        raise InputError(f"{file} has no images and classes; unpack it again")
    files, classes = annotations["fname"], annotations["class"]
    numbers = [int(each.item()) for each in classes if isinstance(each, np.ndarray) and each.size == 1]
    if len(numbers) < len(classes) or not all(isinstance(each, str) for each in files):
        raise InputError(f"{file} has an image without a name or a class; unpack it again")
    return [f"{below}/{each}" for each in files], [n - 1 for n in numbers], [str(name) for name in names]


def _sun(folder: Path, part: str) -> ListedImages:
    """SUN397: the owner's first partition, `Training_01.txt` and `Testing_01.txt`, beside `ClassName.txt`."""
    classes = [line.lstrip("/").partition("/")[2] for line in read_lines(folder / "ClassName.txt")]
    index = {name: number for number, name in enumerate(classes)}
    name = {"train": "Training_01.txt", TEST: "Testing_01.txt"}[part]
    file = first_file(folder, (name, f"Partitions/{name}"))
    if file is None:
        raise InputError(f"{folder} has no {name}; unpack the owner's Partitions.zip there")
    files = [line.lstrip("/") for line in read_lines(file)]
    targets = []
    for each in files:
        place = each.partition("/")[2].rpartition("/")[0]
        if place not in index:
            raise InputError(f"{file} lists {each}, whose class is not in ClassName.txt; restore both lists")
        targets.append(index[place])
    return files, targets, classes


def _cub(folder: Path, part: str) -> ListedImages:
    """CUB-200-2011: `images.txt`, `image_class_labels.txt`, `train_test_split.txt` and `classes.txt`, all by number."""
    named, label_of, in_train, class_names = (
        _by_number(folder / f"{name}.txt") for name in ("images", "image_class_labels", "train_test_split", "classes")
    )
    numbers = {number: row for row, number in enumerate(class_names)}
    files, targets = [], []
    for number, file in named.items():
        if number not in label_of or label_of[number] not in numbers or in_train.get(number) not in ("0", "1"):
            raise InputError(f"{folder}: image {number} of images.txt has no class or no split; restore all four lists")
        if (in_train[number] == "1") == (part == "train"):
            files.append(f"images/{file}")
            targets.append(numbers[label_of[number]])
    return files, targets, list(class_names.values())


def _by_number(file: Path) -> dict[str, str]:
    """Lines of a number and a text."""
    found = {}
    for line in read_lines(file):
        number, _, text = line.partition(" ")
        if not number.isdecimal() or not text.strip():
            raise InputError(f"{file}: {line!r} is not a number and a text; restore the list")
        found[number] = text.strip()
    return found


# ---- Pascal VOC 2007 ------------------------------------------------------------------------------------------------


def read_voc2007(folder: Path, split: str) -> Labels:
    """VOC2007 for classification: trainval as train and then val, so that val can choose; test.

    Raises:
        InputError: see `benchmarks.datasets.voc.read_voc_classification`.
    """
    parts = {"trainval": ("train", "val"), TEST: (TEST,)}.get(split)
    if parts is None:
        raise InputError(f"VOC2007 has no split {split} here; it has trainval and test")
    year = folder.name.removeprefix("VOC")
    found = [read_voc_classification(folder.parent, year, part) for part in parts]
    if any(labels.classes != found[0].classes for labels in found):
        raise InputError(f"{folder}: train and val have different classes; unpack the devkit again")
    ids = tuple(f"{part}/{id}" for part, labels in zip(parts, found, strict=True) for id in labels.ids)
    return replace(joined(found), ids=ids)


# ---- the table ------------------------------------------------------------------------------------------------------


# Counts are those of the papers' tables as third parties repeat them.
TRANSFER_SETS: Mapping[str, TransferSet] = {
    "food101": TransferSet(
        "food-101", "Food-101", TRAINVAL, partial(_torchvision, "Food101"), (75_750, 25_250), 101,
        "the Food-101 page (data.vision.ee.ethz.ch/cvl): food-101.tar.gz",
    ),
    "birdsnap": TransferSet(
        "birdsnap", "Birdsnap", TRAINVAL, _folders, (None, None), 500,
        "the Birdsnap page (thomasberg.org): its images as birdsnap/{train,test}/<class>/",
    ),
    "sun397": TransferSet(
        "SUN397", "SUN397", TRAINVAL, _sun, (19_850, 19_850), 397,
        "the SUN page (vision.princeton.edu/projects/2010/SUN): SUN397.tar.gz, and Partitions.zip in SUN397/",
    ),
    "cars": TransferSet(
        "stanford_cars", "Stanford Cars", TRAINVAL, _cars, (8144, 8041), 196,
        "copies of Stanford Cars: devkit/, cars_{train,test}/, cars_test_annos_withlabels.mat in stanford_cars/",
    ),
    "aircraft": TransferSet(
        "fgvc-aircraft-2013b", "FGVC Aircraft", _WITH_VAL, partial(_torchvision, "FGVCAircraft"), (6667, 3333), 100,
        "the FGVC Aircraft page (robots.ox.ac.uk/~vgg/data/fgvc-aircraft): fgvc-aircraft-2013b.tar.gz",
    ),
    "dtd": TransferSet(
        "dtd", "DTD", _WITH_VAL, partial(_torchvision, "DTD", partition=1), (3760, 1880), 47,
        "the DTD page (robots.ox.ac.uk/~vgg/data/dtd): dtd-r1.0.1.tar.gz, unpacked in dtd/",
    ),
    "pets": TransferSet(
        "oxford-iiit-pet", "Oxford-IIIT Pet", _AS_TRAINVAL, partial(_torchvision, "OxfordIIITPet"), (3680, 3669), 37,
        "the Oxford-IIIT Pet page (robots.ox.ac.uk/~vgg/data/pets): images/ and annotations/ in oxford-iiit-pet/",
    ),
    "caltech101": TransferSet(
        "caltech101", "Caltech-101", TRAINVAL,
        partial(_drawn, below="101_ObjectCategories", train=_CALTECH_TRAIN, test=None, without=_BACKGROUND),
        (101 * _CALTECH_TRAIN, None), 101,
        "the Caltech-101 page (data.caltech.edu): 101_ObjectCategories in caltech101/",
    ),
    "flowers102": TransferSet(
        "flowers-102", "Oxford Flowers-102", _WITH_VAL, _flowers, (2040, 6149), 102,
        "the Flowers-102 page (robots.ox.ac.uk/~vgg/data/flowers/102): jpg/, imagelabels.mat, setid.mat",
    ),
    "eurosat": TransferSet(
        "eurosat", "EuroSAT", TRAINVAL, partial(_drawn, below="2750", train=_EUROSAT[0], test=_EUROSAT[1]),
        (10_000, 5000), 10, "github.com/phelber/EuroSAT: the RGB images, 2750/ in eurosat/",
    ),
    "resisc45": TransferSet(
        "resisc45", "RESISC45", TRAINVAL, _folders, (None, None), 45,
        "the RESISC45 page (gcheng-nwpu.github.io): its images as resisc45/{train,test}/<class>/",
    ),
    "country211": TransferSet(
        "country211", "Country211", _WITH_VALID, partial(_torchvision, "Country211"), (None, None), 211,
        "github.com/openai/CLIP, data/country211.md: country211.tgz",
    ),
    "rendered_sst2": TransferSet(
        "rendered-sst2", "Rendered SST2", _WITH_VAL, partial(_torchvision, "RenderedSST2"), (None, None), 2,
        "github.com/openai/CLIP, data/rendered-sst2.md: rendered-sst2.tgz",
    ),
    "gtsrb": TransferSet(
        "gtsrb", "GTSRB", TRAINVAL, partial(_torchvision, "GTSRB"), (None, None), 43,
        "the GTSRB page (benchmark.ini.rub.de): GTSRB/Training, GTSRB/Final_Test and GT-final_test.csv in gtsrb/",
    ),
    "cub200": TransferSet(
        "CUB_200_2011", "CUB-200-2011", TRAINVAL, _cub, (5994, 5794), 200,
        "the CUB-200-2011 page (data.caltech.edu/records/20098): CUB_200_2011.tgz",
    ),
    "stl10": TransferSet(
        "stl10_binary", "STL-10", TRAINVAL, stl10, (None, None), 10,
        "the STL-10 page (cs.stanford.edu/~acoates/stl10): stl10_binary.tar.gz",
    ),
    "svhn": TransferSet(
        "svhn", "SVHN", TRAINVAL, svhn, (None, None), 10,
        "the SVHN page (ufldl.stanford.edu/housenumbers): train_32x32.mat and test_32x32.mat in svhn/",
    ),
    "pcam": TransferSet(
        "pcam", "PatchCamelyon", _WITH_VALID, pcam, (None, None), 2,
        "github.com/basveeling/pcam: camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5 in pcam/; needs h5py",
    ),
}  # fmt: skip

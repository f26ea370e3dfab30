"""Hostile files that say what is in a data set, a model's folder or a recipe: .mat, .npy, pickles, lists and JSON."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.io import savemat

from benchmarks.__main__ import main
from benchmarks.datasets.batch_files import read_batch_image
from benchmarks.datasets.dense_sets import read_visible_objects
from benchmarks.datasets.lists import read_list
from benchmarks.datasets.registry import find_dataset
from benchmarks.datasets.retrieval import read_ground_truth
from benchmarks.encoders.load import load_encoder
from benchmarks.low_shot_sets import read_sets
from benchmarks.task import InputError, Labels
from pretrain.recipe import load_recipe
from tests.faults.guard import Case, check
from tests.faults.test_hostile_data import npy_header
from tests.layouts.cifar10 import write_cifar10
from tests.layouts.mat import header, matrix, part
from tests.layouts.voc12aug import write_voc12aug

CASES: dict[str, Case] = {}

# ---- MATLAB files ----------------------------------------------------------------------------------------------------


def svhn(content: Callable[[], bytes]) -> Case:
    def read(folder: Path) -> None:
        (folder / "svhn").mkdir()
        (folder / "svhn/test_32x32.mat").write_bytes(content())
        find_dataset("svhn", folder).read("test")

    return read


def packed_zeros(start: bytes, count: int) -> bytes:
    """A zlib stream of some bytes and then so many zeros, made from one block again and again."""
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = stream.compress(start) + stream.flush(zlib.Z_FULL_FLUSH)
    block = stream.compress(bytes(1 << 24)) + stream.flush(zlib.Z_FULL_FLUSH)
    return b"\x78\x01" + first + block * (count >> 24)


def unfolding(kind: int, stored: int, shape: tuple[int, ...], count: int, name: bytes = b"X") -> bytes:
    """A variable of zeros that take a thousandth of their bytes in the file."""
    inside = matrix(kind, shape, name=name)[8:] + struct.pack("<II", stored, count)
    content = packed_zeros(struct.pack("<II", 14, len(inside) + count) + inside, count)
    return header() + struct.pack("<II", 15, len(content)) + content


def nested_cells(count: int) -> bytes:
    """Each says that it is as long as the file, so that no length has to be counted."""
    cell = part(6, struct.pack("<II", 1, 0)) + part(5, struct.pack("<ii", 1, 1)) + part(1, b"")
    inside = (cell + struct.pack("<II", 14, 2**31)) * count
    start = part(6, struct.pack("<II", 1, 0)) + part(5, struct.pack("<ii", 1, 1)) + part(1, b"X")
    return header() + struct.pack("<II", 14, len(start + inside) + 8) + start + struct.pack("<II", 14, 2**31) + inside


def saved(**variables: Any) -> bytes:
    opened = io.BytesIO()
    savemat(opened, variables, do_compression=True)
    return opened.getvalue()


PIXELS = np.zeros((32, 32, 3, 2), np.uint8)
GOOD = saved(X=PIXELS, y=np.ones((2, 1), np.uint8))
CASES |= {
    "mat: images that unfold to 2 GB": svhn(lambda: unfolding(9, 2, (32, 32, 3, 10**6), 1 << 31)),
    "mat: labels that unfold to 2 GB": svhn(lambda: unfolding(9, 2, (1 << 30, 2), 1 << 31)),
    "mat: bytes that become doubles": svhn(lambda: unfolding(6, 2, (1, 15 << 24), 15 << 24)),
    "mat: 2**60 numbers": svhn(lambda: header() + matrix(6, (2**30, 2**30), part(2, b"a"), name=b"X")),
    "mat: a negative size": svhn(lambda: header() + matrix(6, (-1, -8), part(2, b"a" * 8), name=b"X")),
    "mat: cells 100,000 deep": svhn(lambda: nested_cells(100_000)),
    "mat: cells without an end": svhn(lambda: header() + matrix(1, (2**30, 1), name=b"X")),
    "mat: a structure of 2**31 fields": svhn(
        lambda: header() + matrix(2, (1, 1), part(5, struct.pack("<i", 1)), part(1, b"a" * 99), name=b"X")),
    "mat: a function": svhn(lambda: header() + matrix(16, (1, 1), name=b"X")),
    "mat: an object": svhn(lambda: header() + matrix(3, (1, 1), name=b"X")),
    "mat: complex labels": svhn(lambda: saved(X=PIXELS, y=np.ones(2, complex))),
    "mat: text in place of labels": svhn(lambda: saved(X=PIXELS, y="ab")),
    "mat: other pixels": svhn(lambda: saved(X=PIXELS.astype(float), y=[1, 2])),
    "mat: labels that are not numbers": svhn(lambda: saved(X=PIXELS, y=[np.nan, np.inf])),
    "mat: a million variables": svhn(lambda: header() + matrix(9, (0, 0), part(2, b"")) * 1_000_000),
    "mat: a million empty elements": svhn(lambda: header() + bytes(8_000_000)),
    "mat: of version 7.3": svhn(lambda: b"MATLAB 7.3 MAT-file".ljust(512) + b"\x89HDF\r\n\x1a\n" + bytes(99)),
    "mat: of version 4": svhn(lambda: struct.pack("<5i", 0, 3, 3, 0, 2) + b"X\0" + bytes(72)),
    "mat: empty": svhn(lambda: b""),
}  # fmt: skip
CASES |= {f"mat: cut at {end}": svhn(lambda end=end: GOOD[:end]) for end in (130, 140, 200, len(GOOD) - 9)}  # type: ignore[misc]
for seed in range(12):
    flipped = bytearray(GOOD)
    for at in np.random.default_rng(seed).integers(124, len(GOOD), 3):
        flipped[at] ^= 1 << seed % 8
    CASES[f"mat: flipped bits, {seed}"] = svhn(lambda flipped=flipped: bytes(flipped))  # type: ignore[misc]


def cars(annotations: Callable[[], bytes]) -> Case:
    def read(folder: Path) -> None:
        (folder / "stanford_cars/devkit").mkdir(parents=True)
        (folder / "stanford_cars/devkit/cars_meta.mat").write_bytes(
            saved(class_names=np.array(["a", "b"], dtype=object))
        )
        (folder / "stanford_cars/cars_test_annos_withlabels.mat").write_bytes(annotations())
        find_dataset("cars", folder).read("test")

    return read


def flowers(labels: Any, ids: Any) -> Case:
    def read(folder: Path) -> None:
        (folder / "flowers-102").mkdir()
        savemat(folder / "flowers-102/imagelabels.mat", {"labels": labels})
        savemat(folder / "flowers-102/setid.mat", {"tstid": ids})
        find_dataset("flowers102", folder).read("test")

    return read


def sbd(content: Callable[[], bytes]) -> Case:
    """A mask of SBD, which `prepare-voc12aug` converts."""

    def read(folder: Path) -> None:
        write_voc12aug(folder, layout="sbd")
        (folder / "VOCdevkit/VOCaug/dataset/cls/2009_000101.mat").write_bytes(content())
        assert main(["prepare-voc12aug", "--data", str(folder), "--expected", "14"]) == 2

    return read


def nested_structures(count: int) -> bytes:
    inside = np.zeros((1, 1))
    for _ in range(count):
        inside = {"Segmentation": inside}  # type: ignore[assignment]
    return saved(GTcls=inside)


def gtcls(field: bytes) -> bytes:
    """A structure GTcls of one field."""
    fields = part(5, struct.pack("<i", 32)) + part(1, b"Segmentation".ljust(32, b"\0"))
    return matrix(2, (1, 1), fields, field, name=b"GTcls")


SPARSE_START = part(6, struct.pack("<II", 5, 0)) + part(5, struct.pack("<ii", 2**31 - 1, 2**31 - 1)) + part(1, b"")
CASES |= {
    "sbd: a mask that unfolds to 2 GB": sbd(lambda: unfolding(9, 2, (1 << 16, 1 << 15), 1 << 31, b"GTcls")),
    "sbd: bytes that become doubles": sbd(lambda: header() + gtcls(matrix(6, (1, 31 << 20), part(2, bytes(31 << 20))))),
    "sbd: a sparse matrix of 2**62": sbd(lambda: header() + gtcls(part(14, SPARSE_START))),
    "sbd: a sparse matrix that ends before its name": sbd(
        lambda: header() + gtcls(struct.pack("<II", 14, 8) + SPARSE_START)),
    "sbd: structures 30 deep": sbd(lambda: nested_structures(30)),
    "sbd: no structure": sbd(lambda: saved(GTcls="text")),
    "sbd: empty": sbd(lambda: b""),
}  # fmt: skip

CASES |= {
    "cars: a million empty cells": cars(lambda: header() + matrix(1, (10**6, 1), struct.pack("<II", 14, 0) * 10**6,
                                                                  name=b"annotations")),
    "cars: numbers in place of structures": cars(lambda: saved(annotations=np.arange(3))),
    "cars: a class that is a text": cars(lambda: saved(annotations={"fname": "a.jpg", "class": "b"})),
    "cars: a class of 10**18": cars(lambda: saved(annotations={"fname": "a.jpg", "class": 1e18})),
    "cars: a class that is no number": cars(lambda: saved(annotations={"fname": "a.jpg", "class": np.nan})),
    "cars: no file": cars(lambda: saved(annotations={"class": 1})),
    "flowers: a class of 10**15": flowers([1, 10.0**15], [1]),
    "flowers: a class that is no number": flowers([1, np.nan], [1]),
    "flowers: an image of 10**15": flowers([1, 2], [10.0**15]),
    "flowers: an image number 0": flowers([1, 2], [0]),
    "flowers: texts": flowers("abc", "def"),
}  # fmt: skip

# ---- HDF5 files ------------------------------------------------------------------------------------------------------


def pcam(images: Callable[[Any], object] | None = None, labels: Callable[[Any], object] | None = None) -> Case:
    """PatchCamelyon's test split, one of its files written by a function of the open file. All images are read."""

    def read(folder: Path) -> None:
        import h5py

        (folder / "pcam").mkdir()
        files = {kind: folder / f"pcam/camelyonpatch_level_2_split_test_{kind}.h5" for kind in "xy"}
        with h5py.File(files["x"], "w") as file:
            (images or (lambda f: f.create_dataset("x", data=PATCHES)))(file)
        with h5py.File(files["y"], "w") as file:
            (labels or (lambda f: f.create_dataset("y", data=np.ones((2, 1, 1, 1), np.uint8))))(file)
        with pytest.raises(InputError):
            [read_batch_image(path) for path in find_dataset("pcam", folder).read("test").paths]

    return read


def external(file: Any) -> None:
    file.create_dataset("x", PATCHES.shape, "u1", external=[("/etc/passwd", 0, PATCHES.nbytes)])


def virtual(file: Any) -> None:
    import h5py

    layout = h5py.VirtualLayout(PATCHES.shape, "u1")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", PATCHES.shape)
    file.create_virtual_dataset("x", layout)


def linked(file: Any) -> None:
    import h5py

    file["x"] = h5py.ExternalLink("/etc/passwd", "x")


def linked_softly(file: Any) -> None:
    import h5py

    file["x"] = h5py.SoftLink("/x")


def bomb(file: Any, name: str = "x", shape: tuple[int, ...] = (2, 96, 96, 3)) -> None:
    """A part of a few kilobytes that unfolds to 2 GB, which the file does not declare."""
    packed = packed_zeros(b"", 2 << 30)
    found = file.create_dataset(name, shape, "u1", chunks=shape, compression="gzip")
    found.id.write_direct_chunk((0,) * len(shape), packed)


def packed_twice(file: Any) -> None:
    import h5py

    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk(PATCHES.shape)
    plist.set_deflate(9)
    plist.set_deflate(9)
    space = h5py.h5s.create_simple(PATCHES.shape)
    h5py.h5d.create(file.id, b"x", h5py.h5t.NATIVE_UINT8, space, plist)


PATCHES = np.zeros((2, 96, 96, 3), np.uint8)
LONG = (2**20 + 1, 96, 96, 3)
PCAM_CASES: dict[str, Case] = {
    "pcam: images of another file": pcam(external),
    "pcam: images of a virtual file": pcam(virtual),
    "pcam: a link to another file": pcam(linked),
    "pcam: a link to itself": pcam(linked_softly),
    "pcam: more images than there are": pcam(lambda f: f.create_dataset("x", LONG, "u1", chunks=(1, 96, 96, 3))),
    "pcam: 10**15 images": pcam(lambda f: f.create_dataset("x", (10**15, 96, 96, 3), "u1", chunks=(1, 96, 96, 3))),
    "pcam: 10**15 labels": pcam(labels=lambda f: f.create_dataset("y", (10**15,), "u1", chunks=(1000,))),
    "pcam: labels of 10**6 each": pcam(
        labels=lambda f: f.create_dataset("y", (2, 10**6, 10**3), "u1", chunks=(1, 9, 9))),
    "pcam: a part that unfolds to 2 GB": pcam(bomb),
    "pcam: labels that unfold to 2 GB": pcam(labels=lambda f: bomb(f, "y", (2, 1, 1, 1))),
    "pcam: images packed twice": pcam(packed_twice),
    "pcam: parts of a gigabyte": pcam(
        lambda f: f.create_dataset("x", (9, 96, 96, 3), "u1", chunks=(40_000, 96, 96, 3), maxshape=(None, 96, 96, 3))),
    "pcam: texts": pcam(lambda f: f.create_dataset("x", data=["a", "b"])),
    "pcam: structures": pcam(lambda f: f.create_dataset("x", data=np.zeros(2, [("a", "u1")]))),
    "pcam: one number": pcam(lambda f: f.create_dataset("x", data=np.uint8(3))),
    "pcam: a folder": pcam(lambda f: f.create_group("x")),
    "pcam: numbers that are not whole": pcam(lambda f: f.create_dataset("x", data=PATCHES.astype(float))),
    "pcam: nothing": pcam(lambda f: None),
}  # fmt: skip
if find_spec("h5py"):  # the extra [pcam]
    CASES |= PCAM_CASES

# ---- pickles and arrays ----------------------------------------------------------------------------------------------

SHARED = b"]q\x00" + b"".join(b"0](%se" % (b"h%c" % (n - 1) * 50) + b"q%c" % n for n in range(1, 7))


def ground_truth(body: Callable[[], bytes]) -> Case:
    def read(folder: Path) -> None:
        (folder / "gnd.pkl").write_bytes(b"\x80\x02" + body() + b".")
        read_ground_truth(folder / "gnd.pkl")

    return read


def truth(images: bytes, queries: bytes, answers: bytes) -> bytes:
    return b"}(U\x06imlist" + images + b"U\x07qimlist" + queries + b"U\x03gnd" + answers + b"u"


BOX = b"U\x03bbx](K\x00K\x00K\x01K\x01eU\x04hard]U\x04junk]"
NAMES = b"](U\x01aU\x01be"
ZEROS = pickle.dumps(np.zeros(16 << 20, np.uint8), 2)[2:-1]
CASES |= {
    "ground truth: images that are shared lists": ground_truth(lambda: truth(SHARED, NAMES, b"]")),
    "ground truth: an answer of shared lists": ground_truth(
        lambda: truth(NAMES, b"](U\x01ae", b"](}(" + BOX + b"U\x04easy" + SHARED + b"ue")),
    "ground truth: a long answer under 1,000 names": ground_truth(
        lambda: truth(b"](" + b"U\x01a" * 1000 + b"e", b"](" + b"U\x01a" * 1000 + b"e",
                      b"](}(" + BOX + b"U\x04easy" + ZEROS + b"uq\xff" + b"h\xff" * 999 + b"e")),
    "ground truth: an answer of 10,000 digits": ground_truth(
        lambda: truth(NAMES, b"](U\x01ae", b"](}(" + BOX + b"U\x04easy](\x8a\xff" + b"\x7f" * 255 + b"eue")),
    "ground truth: 30 million lists": ground_truth(lambda: b"]" * 30_000_000),
    "ground truth: a command": ground_truth(lambda: b"cos\nsystem\nU\x09touch ran\x85R"),
}  # fmt: skip


def batch_of_lists(folder: Path) -> None:
    (write_cifar10(folder) / "cifar-10-batches-py/test_batch").write_bytes(b"\x80\x02" + b"]" * 60_000_000 + b".")
    find_dataset("cifar10", folder).read("test")


def drawn(content: Callable[[], bytes]) -> Case:
    """A published label file of the low-shot SVMs."""

    def read(folder: Path) -> None:
        (folder / "train_targets_sample1_k1.npy").write_bytes(content())
        labels = Labels(("a", "b"), (folder / "a", folder / "b"), ("x", "y"), np.arange(2), (("a",), ("b",)))
        read_sets(labels, folder, k=(1,), sets=1)

    return read


def zipped() -> bytes:
    opened = io.BytesIO()
    np.savez(opened, a=np.zeros(3))
    return opened.getvalue()


def array(kind: str, shape: str, data: bytes = b"") -> bytes:
    return npy_header(f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}}}") + data


CASES |= {
    "a batch of 60 million lists": batch_of_lists,
    "drawn: an archive": drawn(zipped),
    "drawn: half an archive": drawn(lambda: zipped()[:60]),
    "drawn: objects": drawn(lambda: array("'|O'", "(2, 2)", pickle.dumps([None] * 4))),
    "drawn: texts": drawn(lambda: array("'<U1'", "(2, 2)", bytes(16))),
    "drawn: structures": drawn(lambda: array("[('a', '<i4')]", "(2, 2)", bytes(16))),
    "drawn: dates": drawn(lambda: array("'<M8[s]'", "(2, 2)", bytes(32))),
    "drawn: 10**15 numbers": drawn(lambda: array("'<i8'", "(1000000000000000,)")),
    "drawn: no numbers": drawn(lambda: array("'<f8'", "(2, 2)", np.full(4, np.nan).tobytes())),
    "drawn: a pickle": drawn(lambda: pickle.dumps(1)),
    "drawn: a header of brackets": drawn(lambda: npy_header("(" * 100)),
    "drawn: empty": drawn(lambda: b""),
}

# ---- lists, JSON and TOML --------------------------------------------------------------------------------------------


def listed(text: str) -> Case:
    def read(folder: Path) -> None:
        (folder / "val.txt").write_text(text, encoding="utf-8")
        (folder / "gtsrb/GTSRB/Final_Test/Images").mkdir(parents=True)
        (folder / "gtsrb/GT-final_test.csv").write_text("Filename;ClassId\n" + text.replace(" ", ";"), encoding="utf-8")
        try:
            find_dataset("gtsrb", folder).read("test")
        finally:
            names, targets = read_list(folder / "val.txt")
            from benchmarks.datasets.lists import class_names

            class_names(folder / "val.txt", names, targets)

    return read


def piped(folder: Path) -> None:
    (folder / "nyu").mkdir()
    os.mkfifo(folder / "nyu/nyu_test.txt")
    find_dataset("nyu_depth", folder).read("test")


def endless(folder: Path) -> None:
    (folder / "SUN397").mkdir()
    (folder / "SUN397/ClassName.txt").symlink_to("/dev/zero")
    find_dataset("sun397", folder).read("test")


def polygons(content: Callable[[], object]) -> Case:
    def read(folder: Path) -> None:
        (folder / "a_polygons.json").write_text(json.dumps(content()), encoding="utf-8")
        read_visible_objects(folder / "a_instanceIds.png")

    return read


def outline(corners: object) -> dict[str, object]:
    return {"label": "car", "polygon": corners}


def hub(config: str, pixels: str = "{}") -> Case:
    """A model's folder as the hub has it."""

    def read(folder: Path) -> None:
        (folder / "config.json").write_text(config, encoding="utf-8")
        (folder / "preprocessor_config.json").write_text(pixels, encoding="utf-8")
        save_file({"embeddings.cls_token": torch.zeros(1, 1, 8)}, folder / "model.safetensors")
        load_encoder(f"hf:{folder}")

    return read


def recipe(text: str) -> Case:
    def read(folder: Path) -> None:
        (folder / "a.toml").write_text(text.replace("HERE", str(folder / "a.toml")), encoding="utf-8")
        load_recipe(str(folder / "a.toml"))

    return read


SIZE = {"imgHeight": 2048, "imgWidth": 4096}
CASES |= {
    "listed: a class of 10**12": listed("a.jpg 1000000000000\n"),
    "listed: a class of 10**30": listed("a.jpg " + "9" * 30 + "\n"),
    "listed: a class of 10,000 digits": listed("a.jpg " + "9" * 10_000 + "\n"),
    "listed: a class below 0": listed("a.jpg -5\n"),
    "listed: zero bytes": listed("\0 0\n"),
    "a list that is a pipe": piped,
    "a list without an end": endless,
    "polygons: a million objects": polygons(lambda: {**SIZE, "objects": [outline([[0, 0], [9, 9], [0, 9]])] * 10**6}),
    "polygons: 100,000 objects": polygons(lambda: {**SIZE, "objects": [outline([[0, 0], [9, 9], [0, 9]])] * 10**5}),
    "polygons: 10**12 pixels": polygons(lambda: {"imgHeight": 10**6, "imgWidth": 10**6, "objects": []}),
    "polygons: corners far away": polygons(lambda: {**SIZE, "objects": [outline([[1e300, 0], [0, 1], [1, 1]])]}),
    "polygons: corners that are texts": polygons(lambda: {**SIZE, "objects": [outline("abc")]}),
    "polygons: no list": polygons(lambda: {**SIZE, "objects": 3}),
    "hub: deep JSON": hub("[" * 100_000),
    "hub: a list": hub("[1]"),
    "hub: an epsilon of 10**400": hub('{"model_type": "vit_mae", "layer_norm_eps": 1' + "0" * 400 + "}"),
    "hub: an epsilon that is not finite": hub('{"model_type": "vit_mae", "layer_norm_eps": 1e999}'),
    "hub: 10**18 heads": hub('{"model_type": "vit_mae", "num_attention_heads": 1000000000000000000}'),
    "hub: a mean of 10**400": hub(
        '{"model_type": "vit_mae"}', '{"image_mean": [1, 1, 1' + "0" * 400 + '], "image_std": [1, 1, 1]}'),
    "hub: a deviation of 0": hub('{"model_type": "vit_mae"}', '{"image_mean": [0, 0, 0], "image_std": [0, 0, NaN]}'),
    "hub: a timm model of the net": hub('{"architecture": "hf-hub:evil/model", "pretrained_cfg": {}}'),
    "hub: a timm model that is a list": hub('{"architecture": [1], "pretrained_cfg": 3}'),
    "hub: half a character": hub('{"model_type": "\\ud800"}'),
    "hub: 2 MB": hub(" " * 2_000_000 + "{}"),
    "recipe: brackets in brackets": recipe("a = " + "[" * 100_000),
    "recipe: its own parent": recipe('parent = "HERE"'),
    "recipe: a parent that is a number": recipe("parent = 3"),
    "recipe: dates": recipe("epochs = 1979-05-27"),
    "recipe: a number of 10,000 digits": recipe("epochs = " + "9" * 10_000),
}  # fmt: skip

# ---- the test --------------------------------------------------------------------------------------------------------

QUICK = (
    "mat: bytes that become doubles", "mat: cells 100,000 deep", "mat: flipped bits, 0",
    "sbd: a sparse matrix of 2**62", "flowers: a class of 10**15",
    "ground truth: images that are shared lists", "drawn: an archive", "listed: a class of 10**12",
    "a list that is a pipe", "hub: a mean of 10**400", "recipe: brackets in brackets",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_a_hostile_list_is_refused(name: str, tmp_path: Path) -> None:
    check(CASES[name], tmp_path)


@pytest.mark.faults
@pytest.mark.parametrize("name", sorted(CASES.keys() - set(QUICK)))
def test_every_hostile_list_is_refused(name: str, tmp_path: Path) -> None:
    check(CASES[name], tmp_path)

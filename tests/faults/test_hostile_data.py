"""Hostile and damaged data files: none runs code, takes 1 GB or 10 s, or ends in anything but one sentence."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.datasets.images import decode
from benchmarks.datasets.lists import fingerprint
from benchmarks.datasets.registry import find_dataset
from benchmarks.detection.data import read_scenes
from pretrain.data import Shards, find_images, read_members, read_rgb
from results.errors import InputError
from tests.faults.guard import Case, check, one_sentence
from tests.layouts.cifar10 import write_cifar10
from tests.layouts.coco import SIZE, write_coco
from tests.layouts.imagenet import write_imagenet
from tests.layouts.voc import write_voc

CASES: dict[str, Case] = {}
SIZE_OF_COCO = [SIZE[1], SIZE[0]]  # of the images, height first


# ---- images ----------------------------------------------------------------------------------------------------------


def encoded(kind: str, size: tuple[int, int] = (32, 24), mode: str = "RGB") -> bytes:
    opened = io.BytesIO()
    Image.new(mode, size, 3).save(opened, kind)
    return opened.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 2) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def image(content: bytes | Callable[[], bytes], name: str = "a.png") -> Case:
    """A function makes its content in the test: every run of the suite imports this file."""

    def read(folder: Path) -> None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content())
        both(folder / name)

    return read


def both(path: Path) -> None:
    """Read an image as benchmarks and as pretraining do; each may refuse it."""
    for reader in (decode, read_rgb):
        try:
            reader(path)
        except InputError as error:
            one_sentence(error)


def postscript(folder: Path) -> bytes:
    """EPS that a Ghostscript without its sandbox would run."""
    command = f"(%pipe%touch {folder}/ran) (w) file closefile"
    return f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{command}\nshowpage\n".encode()


for kind in ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF"):
    whole = encoded(kind)
    CASES[f"half a {kind}"] = image(whole[: len(whole) // 2])
    for seed in range(3):
        flips = random.Random(f"{kind} {seed}")
        flipped = bytearray(whole)
        for _ in range(8):
            flipped[flips.randrange(len(flipped))] ^= 1 << flips.randrange(8)
        CASES[f"{kind} with flipped bits, {seed}"] = image(bytes(flipped))
CASES |= {
    "empty image": image(b""),
    "pixels of a whole continent": image(png(2**31 - 1, 2**31 - 1)),
    "a bomb below Pillow's limit": image(
        lambda: png(13_000, 13_000, chunk(b"IDAT", zlib.compress(bytes(13_000 * 13_000 // 2), 1)), depth=8, colour=6)
    ),
    "an image at our limit": image(lambda: encoded("PNG", (10_000, 10_000), "L")),
    "no pixels": image(png(0, 0)),
    "text of a gigabyte": image(lambda: png(4, 4, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**28), 9)))),
    "profile of a gigabyte": image(lambda: png(4, 4, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**28), 9)))),
    "a chunk that claims 4 GB": image(png(4, 4)[:33] + b"\xff\xff\xff\xffIDAT" + bytes(9)),
    "TIFF whose directories form a circle": image(b"II*\0\x08\0\0\0\0\0\x08\0\0\0"),
    "TIFF of 2^32 strips": image(b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 0x111, 4, 2**32 - 1, 8) + bytes(4)),
    "PPM of 10^12 pixels": image(b"P6 1000000 1000000 255\n", "a.ppm"),
    "BMP of a negative size": image(encoded("BMP")[:18] + struct.pack("<ii", -1, -(2**31)) + encoded("BMP")[26:]),
    "PostScript": lambda folder: image(postscript(folder))(folder),
    "PostScript in a JPEG": lambda folder: image(postscript(folder), "a.jpg")(folder),
    "an image that is a web page": image(b"<html><script>alert(1)</script>"),
    "an SVG with an entity": image(b'<!DOCTYPE s [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>'),
}


def _named_pipe(folder: Path) -> None:
    os.mkfifo(folder / "a.png")
    both(folder / "a.png")


def _device(folder: Path) -> None:
    (folder / "a.png").symlink_to("/dev/zero")
    both(folder / "a.png")


def _pipe_in_a_set(folder: Path) -> None:
    root = write_imagenet(folder, subsets=False)
    os.mkfifo(root / "val" / "n01440764" / "a.png")
    fingerprint(find_dataset("imagefolder", root).read("val"))


CASES |= {"a named pipe": _named_pipe, "a device": _device, "a named pipe in a data set": _pipe_in_a_set}


# ---- CIFAR-10 --------------------------------------------------------------------------------------------------------


class Runs:
    """A pickle that runs a command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.folder}/ran",)


def batch(make: Callable[[bytes, Path], bytes], name: str = "test_batch") -> Case:
    def read(folder: Path) -> None:
        file = write_cifar10(folder) / "cifar-10-batches-py" / name
        file.write_bytes(make(file.read_bytes(), folder))
        decode(find_dataset("cifar10", folder).read("test").paths[0])

    return read


NESTED = b"\x80\x02]q\x00" + b"".join(b"]q%c(h%ch%ce" % (n, n - 1, n - 1) for n in range(1, 60)) + b"."
CASES |= {
    "a batch that runs a command": batch(lambda good, folder: pickle.dumps(Runs(folder))),
    "names that run a command": batch(lambda good, folder: pickle.dumps(Runs(folder)), "batches.meta"),
    "a batch of pointers": batch(lambda good, _: good.replace(b"u1", b"O8")),
    "a batch of objects": batch(lambda good, _: pickle.dumps({b"data": np.array([None]), b"labels": [1]}, 2)),
    "a batch of structured types": batch(
        lambda good, _: pickle.dumps({b"data": np.zeros(4, "u1,O"), b"labels": [1]}, 2)
    ),
    "half a batch": batch(lambda good, _: good[: len(good) // 2]),
    "keys of nested tuples": batch(lambda *_: b"\x80\x02})\x85q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"K\x01s."),
    "nested shared lists": batch(lambda *_: NESTED),
    "labels of nested shared lists": batch(lambda *_: b"\x80\x02}X\x06\0\0\0labels" + NESTED[2:-1] + b"s."),
    "bytes of 4 GB": batch(lambda *_: b"\x80\x04B\xff\xff\xff\xffabc."),
    "bytes of a terabyte": batch(lambda *_: b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b"abc."),
    "a frame of a terabyte": batch(lambda *_: b"\x80\x04\x95" + (2**40).to_bytes(8, "little") + b"abc."),
    "a bytearray of a terabyte": batch(lambda *_: b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b"abc."),
    "a memo of 2^31": batch(lambda *_: b"\x80\x02]r\xff\xff\xff\x7f."),
    "attributes of a class": batch(lambda *_: b"\x80\x02cnumpy\nndarray\n}X\x01\0\0\0aK\x01sb."),
    "an extension of the registry": batch(lambda *_: b"\x80\x02\x82\x01."),
    "an array of 10^18 bytes": batch(lambda good, _: good.replace(b"M\x00\x0c", b"J\xff\xff\xff\x7f")),
    "numbers of 10,000 digits": batch(lambda *_: b"I" + b"9" * 10_000 + b"\n."),
    "a module of a megabyte": batch(lambda *_: b"c" + b"a" * 2**20 + b"\nb\n."),
}


# ---- lists and annotations -------------------------------------------------------------------------------------------


def coco(text: str) -> Case:
    def read(folder: Path) -> None:
        file = write_coco(folder) / "annotations" / "instances_val2017.json"
        file.write_text(text.replace("{GOOD}", file.read_text(encoding="utf-8")), encoding="utf-8")
        labels = find_dataset("coco", folder).read("val")
        fingerprint(labels)
        read_scenes(labels, "coco")

    return read


def coco_with(change: Callable[[dict[str, list[dict[str, object]]]], object]) -> Case:
    def read(folder: Path) -> None:
        content = json.loads((write_coco(folder) / "annotations" / "instances_val2017.json").read_bytes())
        change(content)
        coco(json.dumps(content))(folder)

    return read


def masked(mask: object) -> Case:
    return coco_with(lambda content: content["annotations"][0].update(segmentation=mask))


def voc(old: str, new: str) -> Case:
    def read(folder: Path) -> None:
        file = write_voc(folder) / "Annotations" / "000001.xml"
        text = file.read_text(encoding="utf-8")
        assert old in text
        file.write_text(text.replace(old, new), encoding="utf-8")
        read_scenes(find_dataset("voc2007_det", folder).read("trainval"), "voc")

    return read


def npy(content: bytes) -> Case:
    def read(folder: Path) -> None:
        (write_imagenet(folder, layout="vissl") / "val_labels.npy").write_bytes(content)
        find_dataset("imagenet", folder).read("val")

    return read


def npy_header(text: str) -> bytes:
    padded = text.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded


LAUGHS = "<!DOCTYPE a [<!ENTITY a0 'ha'>{}]><annotation>".format(
    "".join(f"<!ENTITY a{n} '{f'&a{n - 1};' * 10}'>" for n in range(1, 12))
)
CASES |= {
    "deep JSON": coco("[" * 500_000),
    "deep objects": coco('{"a":' * 500_000),
    "JSON that is a number": coco("1e999"),
    "JSON of strings": coco('{"images": "abc", "categories": "abc", "annotations": "abc"}'),
    "an id that is a text": coco_with(lambda c: c["images"][0].update(id="1")),
    "an id that is a list": coco_with(lambda c: c["images"][0].update(id=[1])),
    "an id that is not a number": coco_with(lambda c: c["annotations"][0].update(image_id=float("nan"))),
    "half a character": coco_with(lambda c: c["categories"][0].update(name="\ud800")),
    "a zero byte in a name": coco_with(lambda c: c["images"][0].update(file_name="a\0b.jpg")),
    "a name of a megabyte": coco_with(lambda c: c["images"][0].update(file_name="a" * 2**20)),
    "a name that leaves the folder": coco_with(lambda c: c["images"][0].update(file_name="../../../../etc/passwd")),
    "a mask that is a text": masked("abc"),
    "a mask of numbers": masked([1, 2, 3]),
    "a mask of texts": masked([["a"] * 6]),
    "a mask of nan": masked([[float("nan")] * 6]),
    "a mask of 10**400": masked([[10**400] * 6]),
    "a mask without run lengths": masked({"a": 1}),
    "a mask of 10**12 pixels": masked({"counts": [1], "size": [10**6, 10**6]}),
    "a mask that is longer than its image": masked({"counts": [10**6, 10**6], "size": SIZE_OF_COCO}),
    "a mask of negative run lengths": masked({"counts": [-5, 3], "size": SIZE_OF_COCO}),
    "a mask of run lengths that are texts": masked({"counts": ["a"], "size": SIZE_OF_COCO}),
    "a mask of packed nonsense": masked({"counts": "zzzzzz", "size": SIZE_OF_COCO}),
    "a mask of packed numbers": masked({"counts": 3, "size": SIZE_OF_COCO}),
    "keypoints that are a text": coco_with(lambda c: c["annotations"][0].update(keypoints="abc")),
    "four keypoint numbers": coco_with(lambda c: c["annotations"][0].update(keypoints=[1, 2, 3, 4])),
    "no keypoints": coco_with(lambda c: c["annotations"][0].update(keypoints=None)),
    "a height that is a text": coco_with(lambda c: c["images"][0].update(height="a")),
    "a width of 10**18": coco_with(lambda c: c["images"][0].update(width=10**18)),
    "a box of nan": coco_with(lambda c: c["annotations"][0].update(bbox=[float("nan")] * 4)),
    "a box of 10**400": coco_with(lambda c: c["annotations"][0].update(bbox=[10**400] * 4)),
    "a box of texts": coco_with(lambda c: c["annotations"][0].update(bbox="abcd")),
    "a box far away": coco_with(lambda c: c["annotations"][0].update(bbox=[-5000, -5000, 10, 10])),
    "a box of negative size": coco_with(lambda c: c["annotations"][0].update(bbox=[9, 9, -5, 5])),
    "a crowd of nested lists": coco_with(lambda c: c["annotations"][0].update(iscrowd=[[]])),
    "a crowd of minus one": coco_with(lambda c: c["annotations"][0].update(iscrowd=-1)),
    "a box of two numbers": coco_with(lambda c: c["annotations"][0].update(bbox=[1, 2])),
    "a VOC box far away": voc("<xmin>", "<xmin>99999"),
    "a VOC image without a size": voc("<size>", "<sise>"),
    "a VOC object of no class": voc("<name>", "<name>" + "a" * 2**20),
    "a billion laughs": voc("<annotation>", LAUGHS + "&a11;"),
    "an external entity": voc(
        "<annotation>", "<!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><annotation><folder>&x;</folder>"
    ),
    "deep xml": voc("<annotation>", "<annotation>" + "<a>" * 100_000),
    "a width that is a word": voc("<width>", "<width>a"),
    "a box that never ends": voc("<xmin>", "<xmin>inf"),
    "labels that run a command": npy(b"\x93NUMPY" + pickle.dumps(1)),
    "labels that are objects": npy(npy_header("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}") + b"cos\n."),
    "labels of 10^15": npy(npy_header("{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000000,)}")),
    "labels whose header is code": npy(npy_header("__import__('os').system('touch ran')")),
    "labels of a negative shape": npy(npy_header("{'descr': '<i8', 'fortran_order': False, 'shape': (-1,)}")),
    "labels with a header of 65 kB": npy(b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65_535),
}


# ---- tar shards ------------------------------------------------------------------------------------------------------


def tar(content: bytes, name: str = "0.tar") -> Case:
    def read(folder: Path) -> None:
        (folder / name).write_bytes(content)
        index = json.dumps({"shardlist": [{"url": name, "nsamples": 1}]})
        for text in (None, index):
            if text:
                (folder / "shards.json").write_text(text, encoding="utf-8")
            try:
                consume(find_images(folder))
            except InputError as error:
                one_sentence(error)

    return read


def consume(shards: object) -> None:
    assert isinstance(shards, Shards)
    for url in shards.urls:
        with Path(url).open("rb") as stream:
            for member in read_members(stream, url):
                read_rgb(member["data"], member["fname"])


def member(name: str, content: bytes, **fields: object) -> bytes:
    opened = io.BytesIO()
    with tarfile.open(fileobj=opened, mode="w") as written:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        for field, value in fields.items():
            setattr(info, field, value)
        written.addfile(info, io.BytesIO(content) if info.isreg() and info.size == len(content) else None)
    return opened.getvalue()


def index(url: str, count: int = 1) -> Case:
    def read(folder: Path) -> None:
        text = json.dumps({"shardlist": [{"url": url.replace("HERE", str(folder)), "nsamples": count}]})
        (folder / "shards.json").write_text(text, encoding="utf-8")
        consume(find_images(folder))

    return read


SPARSE = {"GNU.sparse.major": "0", "GNU.sparse.size": str(2**40), "GNU.sparse.map": f"0,1,{2**40 - 1},1"}
CASES |= {
    "half a tar file": tar(member("a.png", encoded("PNG"))[:700]),
    "a member that claims a terabyte": tar(member("a.png", b"", size=2**40)),
    "a member that is a device": tar(member("a.png", b"", type=tarfile.CHRTYPE)),
    "a member that is a link": tar(member("a.png", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")),
    "a member that leaves the folder": tar(member("../../a.png", encoded("PNG"))),
    "a sparse member of a terabyte": tar(member("a.png", b"ab", pax_headers=SPARSE)),
    "a tar file of PostScript": lambda folder: tar(member("a.png", postscript(folder)))(folder),
    "a tar file of zeros": tar(bytes(2**20)),
    "a gzip in a tar's place": tar(zlib.compress(bytes(2**20), wbits=31)),
    "a tar file named as a command": lambda folder: tar(
        member("a.png", encoded("PNG")), "pipe:touch ran; .tar"
    )(folder),
    "an index that runs a command": index("pipe:touch HERE/ran"),
    "an index of the net": index("http://localhost:1/0.tar"),
    "an index of another folder": index("/etc/passwd"),
    "an index of a million million images": index("0.tar", 10**12),
    "an index of minus one image": index("0.tar", -1),
}  # fmt: skip


# ---- the test --------------------------------------------------------------------------------------------------------


@pytest.fixture
def ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ghostscript that leaves a trace."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/work/ran\n", encoding="ascii")
    (tools / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")


QUICK = (
    "half a JPEG", "PostScript", "a named pipe", "a batch that runs a command", "a batch of pointers",
    "keys of nested tuples", "deep JSON", "an id that is a text", "a box that never ends", "a mask of 10**12 pixels",
    "a sparse member of a terabyte", "a tar file named as a command", "an index that runs a command",
)  # fmt: skip


def test_the_corpus_is_large() -> None:
    assert len(CASES) >= 100
    assert set(QUICK) <= CASES.keys()


@pytest.mark.usefixtures("ghostscript")
@pytest.mark.parametrize("name", QUICK)
def test_a_hostile_file_is_refused(name: str, tmp_path: Path) -> None:
    check(CASES[name], tmp_path)


@pytest.mark.faults
@pytest.mark.usefixtures("ghostscript")
@pytest.mark.parametrize("name", sorted(CASES.keys() - set(QUICK)))
def test_every_hostile_file_is_refused(name: str, tmp_path: Path) -> None:
    check(CASES[name], tmp_path)

"""Folders, lists and shard indices, and what is said of those that cannot be used."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.datasets.images import decode
from pretrain.data import Files, Shards, count_images, find_images, read_rgb, seem_sorted_by_class
from pretrain.loader import Loader
from pretrain.recipe import load_recipe
from results.errors import InputError
from results.files import PathList
from tests.pretrain import tiny_runs


def write_image(path: Path, colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), colour).save(path)
    return path


def write_shard(path: Path, names: list[str]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name in names:
            data = io.BytesIO()
            Image.new("RGB", (4, 4)).save(data, "PNG")
            member = tarfile.TarInfo(name)
            member.size = len(data.getvalue())
            tar.addfile(member, io.BytesIO(data.getvalue()))
    return path


def test_a_folder_gives_its_train_images_sorted(tmp_path: Path) -> None:
    for name in ("train/b/2.png", "train/a/1.jpg", "val/a/3.png"):
        write_image(tmp_path / name)
    assert find_images(tmp_path) == Files((tmp_path / "train/a/1.jpg", tmp_path / "train/b/2.png"))


@pytest.mark.parametrize("inner", ["", "VOCdevkit/VOC2007/"])
def test_label_masks_of_a_devkit_are_not_taken_for_photos(tmp_path: Path, inner: str) -> None:
    """Of a VOC root only JPEGImages, of Cityscapes only leftImg8bit; folders without these are taken whole."""
    voc = tmp_path / "voc"
    photo = write_image(voc / inner / "JPEGImages/000001.jpg")
    for mask in ("SegmentationClass/000001.png", "SegmentationObject/000001.png", "SegmentationClassAug/2.png"):
        write_image(voc / inner / mask)
    assert find_images(voc) == Files((photo,))
    assert len(find_images(voc / inner / "SegmentationClass")) == 1  # asked for by name
    street = write_image(tmp_path / "cityscapes/leftImg8bit/train/x/x_leftImg8bit.png")
    write_image(tmp_path / "cityscapes/gtFine/train/x/x_gtFine_labelIds.png")
    assert find_images(tmp_path / "cityscapes") == Files((street,))


def test_a_fingerprint_tells_other_images_apart_and_not_another_place(tmp_path: Path) -> None:
    for folder, colour in (("one", "red"), ("same", "red"), ("other", "blue")):
        for name in ("train/a/1.png", "train/a/2.png"):
            write_image(tmp_path / folder / name, colour)
        write_shard(tmp_path / folder / "0.tar", ["a.png"] if colour == "red" else ["a.png", "b.png"])
    for kind in ("", "0.tar"):
        prints = []
        for folder in ("one", "same", "other"):
            root = tmp_path / folder
            images = Shards((str(root / kind),), (1 if folder != "other" else 2,)) if kind else find_images(root)
            prints.append(images.fingerprint(root))
        assert prints[0] == prints[1] != prints[2]


def test_a_list_names_files_relative_to_itself_and_may_have_labels(tmp_path: Path) -> None:
    write_image(tmp_path / "train" / "a picture.png")
    write_image(tmp_path / "train" / "b.JPEG".replace("JPEG", "jpeg"))
    listed = tmp_path / "train.txt"
    listed.write_text("train/b.jpeg 17\n\ntrain/a picture.png\n", encoding="utf-8")
    assert find_images(listed) == Files((tmp_path / "train/b.jpeg", tmp_path / "train/a picture.png"))


def test_shards_are_counted_or_indexed(tmp_path: Path) -> None:
    one = write_shard(tmp_path / "0.tar", ["a.png", "a.cls", "b.png", "__meta__/x.png"])
    two = write_shard(tmp_path / "1.tar", ["c.png"])
    write_shard(tmp_path / "2.tar", ["no-image.txt"])
    assert count_images(one) == 2
    assert find_images(tmp_path) == Shards((str(one), str(two)), (2, 1))
    index = tmp_path / "shards.json"
    entries = [{"url": "0.tar", "nsamples": 2}, {"url": "1.tar", "nsamples": 1}]
    index.write_text(json.dumps({"wids_version": 1, "shardlist": entries}), encoding="utf-8")
    expected = Shards((str(one), str(two)), (2, 1))
    assert find_images(index) == find_images(tmp_path) == expected
    assert len(expected) == 3


def write_index(folder: Path, url: str, count: int = 1) -> Path:
    index = folder / "shards.json"
    index.write_text(json.dumps({"shardlist": [{"url": url, "nsamples": count}]}), encoding="utf-8")
    return index


@pytest.mark.parametrize("url", ["pipe:touch ran", "http://localhost/0.tar", "s3://b/0.tar", "../0.tar", "{elsewhere}"])
def test_an_index_names_files_of_its_folder_only(tmp_path: Path, url: str) -> None:
    write_shard(tmp_path / "0.tar", ["a.png"])
    folder = tmp_path / "data"
    folder.mkdir()
    url = url.replace("{elsewhere}", str(tmp_path / "0.tar"))
    with pytest.raises(InputError, match=r"is no file in .*--remote-shards"):
        find_images(write_index(folder, url).parent)
    found = find_images(folder, remote_shards=True)
    assert isinstance(found, Shards)
    assert found.counts == (1,)
    assert len(found.remote) == (not url.endswith("0.tar") or "://" in url)


def test_a_shard_named_as_a_command_is_only_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_shard(tmp_path / "pipe:touch ran; true .tar", ["a.png", "b.png"])
    images = find_images(Path())
    assert isinstance(images, Shards)
    assert not images.remote
    recipe = load_recipe("mocov2_resnet18w32_demo").changed(
        batch_size=2, queue_size=2, split_bn=1, augmentation={"engine": "pil", "stored_size": None, "crop": 8}
    )
    batches = list(Loader(recipe, images, torch.device("cpu"), torch.Generator(), 0).epoch(0))
    assert len(batches) == 1
    assert not (tmp_path / "ran").exists()


def test_the_command_runs_no_address_of_an_index_without_the_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And with `--remote-shards` it does what the address says."""
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data"
    data.mkdir()
    write_shard(tmp_path / "0.tar", [f"{number:02}.png" for number in range(16)])
    write_index(data, f"pipe:touch {tmp_path}/ran; cat {tmp_path}/0.tar", 16)
    flags = ("--augmentation.engine", "pil", "--augmentation.stored-size", "None", "--epochs", "1")
    assert tiny_runs.run(data, tmp_path / "out", *flags) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "is no file in" in last
    assert "--remote-shards (pipe: runs a shell command)" in last
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out" / "backbone.safetensors").exists()
    assert tiny_runs.run(data, tmp_path / "out", *flags, "--remote-shards") == 0
    assert (tmp_path / "ran").exists()
    assert (tmp_path / "out" / "backbone.safetensors").is_file()


@pytest.mark.parametrize("count", [-1, 10**6, 10**400])
def test_an_index_with_an_impossible_count_is_refused(tmp_path: Path, count: int) -> None:
    write_shard(tmp_path / "0.tar", ["a.png"])
    with pytest.raises(InputError, match="write it again with"):
        find_images(write_index(tmp_path, "0.tar", count))


def test_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.png is not a readable image \(not a regular file\)"):
        read_rgb(tmp_path / "a.png")


def test_postscript_is_no_image(tmp_path: Path) -> None:
    """Pillow would start Ghostscript for it."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(InputError, match="is not a readable image"):
        read_rgb(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("nothing", None, "data folder not found"),
        ("empty/", None, "no image in"),
        ("missing.txt", None, "image list not found"),
        ("list.txt", "label only", "names no image"),
        ("list.txt", "\n", "lists no image"),
        ("list.txt", "gone.png", "image not found: .*gone.png"),
        ("missing.json", None, "shard index not found"),
        ("index.json", "[]", "is not a shard index"),
        ("index.json", '{"shardlist": [{"url": "a.tar"}]}', "nsamples"),
        ("index.json", '{"shardlist": []}', "no image in the shards"),
        ("index.json", "[" * 100_000, "nested too deeply"),
        ("index.json", '{"shardlist": [{"url": "a.tar", "nsamples": 1e999}]}', "is not a shard index"),
        ("bad/0.tar", "no tar", "not a whole tar file"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, name: str, content: str | None, sentence: str) -> None:
    path = tmp_path / name
    if name.endswith("/"):
        path.mkdir()
    if content is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=sentence):
        find_images(path.parent if path.suffix == ".tar" else path)


def write_kinds(folder: Path) -> list[Path]:
    """A file of each kind whose pixels a reader could understand in more than one way."""
    random = np.random.default_rng(0)
    colours = Image.fromarray(random.integers(0, 256, (8, 6, 3), dtype=np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown a quarter turn to the right
    with_alpha = Image.fromarray(random.integers(0, 256, (8, 6, 4), dtype=np.uint8))
    colours.save(folder / "turned.jpg", exif=turned)
    colours.convert("CMYK").save(folder / "cmyk.jpg")
    with_alpha.save(folder / "rgba.png")
    with_alpha.convert("LA").save(folder / "la.png")
    colours.quantize(8).save(folder / "palette.png", transparency=0)
    Image.fromarray(random.integers(0, 65536, (8, 6), dtype=np.uint16)).save(folder / "deep.png")
    colours.save(folder / "animation.webp", save_all=True, append_images=[Image.new("RGB", (6, 8))], lossless=True)
    colours.convert("1").save(folder / "bits.png")
    return sorted(folder.iterdir())


def test_images_are_what_the_benchmarks_read(tmp_path: Path) -> None:
    """An encoder is pretrained on the pixels that it is evaluated on: one rule for orientation, alpha and depth."""
    kinds = write_kinds(tmp_path)
    assert len(kinds) == 8
    for path in kinds:
        ours, theirs = read_rgb(path), decode(path)
        assert ours.mode == "RGB"
        assert np.array_equal(np.asarray(ours), np.asarray(theirs)), path.name
        assert np.array_equal(np.asarray(ours), np.asarray(read_rgb(path.read_bytes()))), path.name
    assert read_rgb(tmp_path / "turned.jpg").size == (6, 8)  # as stored
    with Image.open(tmp_path / "rgba.png") as image:
        assert np.array_equal(np.asarray(read_rgb(tmp_path / "rgba.png")), np.asarray(image)[..., :3])  # alpha dropped


@pytest.mark.parametrize(
    ("name", "content", "fault"), [("a.jpg", b"nonsense", "is not a readable image"), ("a.tif", None, "32-bit pixels")]
)
def test_what_is_no_image_is_called_by_its_name(tmp_path: Path, name: str, content: bytes | None, fault: str) -> None:
    if content is None:
        Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / name)
        content = (tmp_path / name).read_bytes()
    with pytest.raises(InputError, match=f"{name} in 0.tar .*{fault}"):
        read_rgb(content, f"{name} in 0.tar")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("dog/{}.jpg", "cat/{}.jpg"), True),
        (("n01_{}.jpg", "n02_{}.jpg"), True),
        (("{}.jpg", "{}.jpg"), False),  # nothing is known
        (("all/{}.jpg", "all/{}.jpg"), False),
    ],
)
def test_shards_that_are_sorted_by_class_are_noticed(names: tuple[str, ...], expected: bool, tmp_path: Path) -> None:
    for number, name in enumerate(names):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as tar:
            for image in range(3):
                tar.addfile(tarfile.TarInfo(name.format(10 * number + image)))
    shards = Shards((str(tmp_path / "0.tar"), str(tmp_path / "1.tar")), (3, 3))
    assert seem_sorted_by_class(shards) is expected


def test_a_list_of_paths_is_one_buffer(tmp_path: Path) -> None:
    names = [f"class {number % 3}/ä{number}.jpg" for number in range(1000)]
    paths = PathList(tmp_path, names)
    assert paths == tuple(tmp_path / name for name in names)
    assert paths[-1] == tmp_path / names[-1]
    assert paths[10:13] == tuple(tmp_path / name for name in names[10:13])
    with pytest.raises(IndexError):
        paths[1000]
    # What a worker gets: the names and 8 bytes each. Pickled Paths take several times as much.
    assert len(pickle.dumps(paths)) < sum(len(name.encode()) + 1 for name in names) + 8 * len(names) + 1000
    assert pickle.loads(pickle.dumps(paths)) == paths
    folder = tmp_path / "train"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    found = find_images(tmp_path)
    assert isinstance(found, Files)
    assert isinstance(found.paths, PathList)

"""Folders, lists and shard indices, and what is said of those that cannot be used."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from pretrain.sources import Files, Shards, count_images, find_images, read_rgb


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
    entries = [{"url": "0.tar", "nsamples": 2}, {"url": "pipe:cat elsewhere.tar", "nsamples": 5}]
    index.write_text(json.dumps({"wids_version": 1, "shardlist": entries}), encoding="utf-8")
    expected = Shards((str(one), "pipe:cat elsewhere.tar"), (2, 5))
    assert find_images(index) == find_images(tmp_path) == expected
    assert len(expected) == 7


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("nothing", None, "no folder"),
        ("empty/", None, "no image below"),
        ("missing.txt", None, "no list"),
        ("list.txt", "label only", "names no image"),
        ("list.txt", "\n", "lists no image"),
        ("list.txt", "gone.png", "no file .*gone.png"),
        ("missing.json", None, "no shard index"),
        ("index.json", "[]", "is no shard index"),
        ("index.json", '{"shardlist": [{"url": "a.tar"}]}', "nsamples"),
        ("index.json", '{"shardlist": []}', "no image in the shards"),
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
    with pytest.raises((FileNotFoundError, ValueError), match=sentence):
        find_images(path.parent if path.suffix == ".tar" else path)


def test_transparency_is_laid_on_white_and_bytes_are_called_by_their_name(tmp_path: Path) -> None:
    clear = tmp_path / "clear.png"
    Image.new("RGBA", (2, 2), (10, 20, 30, 0)).save(clear)
    assert read_rgb(clear).getpixel((0, 0)) == (255, 255, 255)
    assert read_rgb(clear.read_bytes()).getpixel((0, 0)) == (255, 255, 255)
    with pytest.raises(ValueError, match=r"a.jpg in 0.tar is not a readable image"):
        read_rgb(b"nonsense", "a.jpg in 0.tar")

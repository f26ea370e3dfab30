"""Stored features that changed on the disk: refused or computed again, never used."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.__main__ import main
from benchmarks.encoders.load import load_encoder
from benchmarks.features import shards
from benchmarks.features.extract import FeatureRequest
from benchmarks.features.shards import PartialOutput
from benchmarks.features.store import FeatureStore
from benchmarks.task import InputError, Labels
from results.schema import Geometry
from tests.benchmarks.features.run_options import options

SENTENCE = r"the features in .* are damaged \(.*{}.*\); remove that folder"


def features(labels: Labels, root: Path) -> NDArray[np.float32]:
    geometry = Geometry(mode="shorter", resize=24, crop=24)
    request = FeatureRequest(load_encoder("pixels"), labels, geometry, {"embed": ("embed", None)})
    (split,) = FeatureStore(options(root, batch_size=2)).get([request])
    return split.features["embed"]


@pytest.fixture
def stored(labels: Labels, small_shards: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one folder of a store with features of all images."""
    monkeypatch.setattr(shards, "_verified", set())
    features(labels, tmp_path / "store")
    shards._verified.clear()  # as in another process
    (folder,) = (tmp_path / "store").iterdir()
    return folder


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_a_flipped_bit_is_refused(labels: Labels, stored: Path) -> None:
    flip(stored / "embed.npy", -5)
    with pytest.raises(InputError, match=SENTENCE.format("1 of 6 parts of embed.npy have another checksum")):
        features(labels, stored.parent)


def test_permuted_and_replaced_ids_are_refused(labels: Labels, stored: Path) -> None:
    ids = json.loads((stored / "ids.json").read_text(encoding="utf-8"))
    (stored / "ids.json").write_text(json.dumps([ids[1], ids[0], *ids[2:]]), encoding="utf-8")
    with pytest.raises(InputError, match=SENTENCE.format("lists of its images")):
        features(labels, stored.parent)


def test_checksums_are_compared_once_in_a_process_and_features_stay_mapped(
    labels: Labels, stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums = shards.shard_sums
    calls: list[int] = []
    monkeypatch.setattr(shards, "shard_sums", lambda rows: calls.append(len(rows)) or sums(rows))
    assert isinstance(features(labels, stored.parent), np.memmap)
    assert isinstance(features(labels, stored.parent), np.memmap)
    assert calls == [22]


def test_features_of_older_versions_get_checksums_when_they_are_read(
    labels: Labels, stored: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = (stored / "embed.sums.json").read_bytes()
    (stored / "embed.sums.json").unlink()
    caplog.set_level("INFO")
    features(labels, stored.parent)
    assert (stored / "embed.sums.json").read_bytes() == before
    assert caplog.text.count("has no checksums yet and gets them now") == 1


def test_checksums_are_those_of_the_rows_that_are_left(labels: Labels, stored: Path) -> None:
    whole = features(labels, stored.parent)
    for number in (3, 9):
        labels.paths[number].write_bytes(b"")
    part = features(labels, stored.parent.with_name("other"))
    shards._verified.clear()
    assert np.array_equal(features(labels, stored.parent.with_name("other")), part)
    assert np.array_equal(part, np.delete(whole, [3, 9], axis=0))


@pytest.mark.parametrize("old", [False, True])
def test_a_part_that_changed_before_the_rest_was_computed_is_computed_again(
    labels: Labels, stored: Path, old: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a stop with two parts on the disk, one of which loses a bit; marks of older versions have no checksum."""
    expected = np.array(features(labels, stored.parent))
    root = tmp_path / "other"
    finish, finished = PartialOutput.finish, []

    def stopping(self: PartialOutput, shard: int, unreadable: dict[int, str]) -> None:
        if len(finished) == 2:
            raise KeyboardInterrupt
        finish(self, shard, unreadable)
        finished.append(shard)

    monkeypatch.setattr(PartialOutput, "finish", stopping)
    with pytest.raises(KeyboardInterrupt):
        features(labels, root)
    monkeypatch.undo()
    monkeypatch.setattr(shards, "SHARD_ROWS", 4)
    (folder,) = root.iterdir()
    marks = [folder / "partial" / f"embed.{shard:05}" for shard in finished]
    if old:
        for mark in marks:
            mark.write_text("{}", encoding="utf-8")
    else:
        flip(folder / "partial" / "embed.npy", 200 + 4 * expected.shape[1] * 4)
        with pytest.raises(InputError, match=r"is not what was written .*run the same command again"):
            features(labels, root)
    assert np.array_equal(features(labels, root), expected)


@pytest.mark.parametrize("content", [b"", b"[]", b"3", b'{"a": 1}', b"[" * 100_000, b"\xff", b'["a", 3]', b"null"])
@pytest.mark.parametrize("name", ["ids.json", "embed.json", "embed.sums.json", "embed.npy"])
def test_garbage_in_the_folder_is_one_sentence(name: str, content: bytes, labels: Labels, stored: Path) -> None:
    if (name, content) == ("embed.json", b'{"a": 1}'):
        content = b'{"a": "b"}'
    (stored / name).write_bytes(content)
    with pytest.raises(InputError, match=SENTENCE.format("")) as refused:
        features(labels, stored.parent)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["embed.npy", "embed.00000"])
def test_garbage_among_unfinished_features_is_one_sentence(name: str, labels: Labels, stored: Path) -> None:
    (stored / "embed.npy").unlink()
    partial = stored / "partial"
    partial.mkdir(exist_ok=True)
    (partial / name).write_bytes(b"[1]")
    with pytest.raises(InputError, match=r"remove|run the same command again") as refused:
        features(labels, stored.parent)
    assert "\n" not in str(refused.value)


def test_files_in_the_place_of_folders_are_one_sentence(labels: Labels, stored: Path) -> None:
    for path in sorted(stored.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    stored.rmdir()
    stored.write_bytes(b"")
    with pytest.raises(InputError, match=r"cannot use .* \(File exists\); remove the folder"):
        features(labels, stored.parent)


@pytest.mark.parametrize(
    "content", ["[]", "3", "{}", '{"version": 2}', "[" * 100_000, '{"version": "a", "geometry": 3}']
)
def test_features_gc_lists_what_it_cannot_read(
    content: str, stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (stored / "meta.json").write_text(content, encoding="utf-8")
    assert main(["features-gc", "--features", str(stored.parent), "--records", str(tmp_path / "records")]) == 0
    assert f"{stored.name}  unknown" in capsys.readouterr().out

"""Files that are no readable image: told by name and count, left out, marked in the record, never replaced."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.__main__ import main
from benchmarks.encoders.load import load_encoder
from benchmarks.features.extract import FeatureRequest
from benchmarks.features.pool import AdaptivePooling
from benchmarks.features.shards import read_json
from benchmarks.features.store import FeatureStore
from benchmarks.task import InputError, Labels
from results.schema import Geometry, Record
from results.store import read_records
from tests.benchmarks.features.run_options import options

EMBED = {"embed": ("embed", None)}


def request(labels: Labels, outputs=EMBED) -> FeatureRequest:  # type: ignore[no-untyped-def]
    geometry = Geometry(mode="shorter", resize=24, crop=24)
    return FeatureRequest(load_encoder("random:resnet18-w8-k3-nopool:0"), labels, geometry, outputs, about="some train")


def damage(*paths: Path) -> None:
    """The same size as before, so that the data's fingerprint stays."""
    for path in paths:
        path.write_bytes(b"<html>404 Not Found</html>".ljust(path.stat().st_size))


@pytest.mark.parametrize("workers", [0, 2])
def test_they_are_left_out_and_named(
    labels: Labels, tmp_path: Path, small_shards: int, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    (sound,) = FeatureStore(options(tmp_path / "sound")).get([request(labels)])
    bad = [0, 9, 12, 13, 14, 15]  # a whole shard among them
    damage(*(labels.paths[row] for row in bad))
    store = FeatureStore(options(tmp_path / "store", workers=workers, batch_size=3))
    for _ in range(2):  # the second time from the disk
        (split,) = store.get([request(labels)])
        kept = [row for row in range(22) if row not in bad]
        assert split.labels.ids == tuple(labels.ids[row] for row in kept)
        assert split.labels.paths == tuple(labels.paths[row] for row in kept)
        assert split.labels.groups == tuple(labels.groups[row] for row in kept)
        assert np.array_equal(split.labels.targets, labels.targets[kept])
        assert np.allclose(split.features["embed"], sound.features["embed"][kept], rtol=1e-5, atol=1e-6)
        (message,) = caplog.messages  # of both times
        assert "6 of 22 images of some train cannot be read: 00.png, 09.png, 12.png, 13.png, 14.png, …" in message
    (folder,) = (tmp_path / "store").iterdir()
    listed = read_json(folder / "embed.json")
    assert list(listed) == [labels.ids[row] for row in bad]
    assert "does not recognise the format" in listed["09.png"]


def test_an_output_that_has_a_row_for_them_is_cut_to_the_common_images(labels: Labels, tmp_path: Path) -> None:
    store = FeatureStore(options(tmp_path / "store"))
    (whole,) = store.get([request(labels)])
    damage(labels.paths[5])
    both = {**EMBED, "f": ("feature4", AdaptivePooling(grid=1))}
    (split,) = store.get([request(labels, both)])
    kept = [row for row in range(22) if row != 5]
    assert len(split.labels) == len(split.features["f"]) == 21
    assert np.array_equal(split.features["embed"], whole.features["embed"][kept])


def test_strict_stops_at_the_first_and_also_at_what_an_earlier_pass_left_out(labels: Labels, tmp_path: Path) -> None:
    damage(labels.paths[7], labels.paths[9])
    strict = FeatureStore(options(tmp_path / "store", strict=True))
    with pytest.raises(InputError, match=r"07\.png cannot be decoded"):
        strict.get([request(labels)])
    FeatureStore(options(tmp_path / "store")).get([request(labels)])
    with pytest.raises(InputError, match=r"2 of 22 images .*07\.png, 09\.png; repair them"):
        strict.get([request(labels)])


def test_a_disk_that_goes_away_is_no_bad_image(labels: Labels, tmp_path: Path) -> None:
    want = request(labels)
    assert want.address  # every file was there when the data was listed
    labels.paths[7].unlink()
    with pytest.raises(InputError, match=r"07\.png does not exist"):
        FeatureStore(options(tmp_path / "store")).get([want])


def test_none_readable_is_refused(labels: Labels, tmp_path: Path) -> None:
    damage(*labels.paths)
    for _ in range(2):
        with pytest.raises(InputError, match="none of the 22 images can be read"):
            FeatureStore(options(tmp_path / "store")).get([request(labels)])


def records(out: Path) -> dict[str, Record]:
    return {each.record.protocol.id: each.record for each in read_records(out / "records")[0]}


@pytest.mark.slow
def test_the_record_says_how_many_are_missing(
    small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(small_data, tmp_path / "data")
    command = ["knn", "--encoder", "pixels", "--data", str(data), "--out", str(tmp_path / "records"), "--features",
               str(tmp_path / "features"), "--device", "cpu", "--workers", "0"]  # fmt: skip
    assert main(command) == 0
    damage(sorted((data / "drawings" / "val").rglob("*.png"))[0], *sorted((data / "drawings/train").rglob("*.png"))[:2])
    shutil.rmtree(tmp_path / "features")
    assert main([*command, "--force", "--strict"]) == 2
    assert "cannot be decoded" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0
    found = records(tmp_path)
    assert sorted(found) == ["knn.demo@1", "knn.demo@1+unreadable=3"]
    whole, cut = found["knn.demo@1"], found["knn.demo@1+unreadable=3"]
    assert cut.dataset.train_items == whole.dataset.train_items - 2
    assert cut.dataset.test_items == whole.dataset.test_items - 1
    assert cut.scores["k=20"].n == cut.dataset.test_items
    assert cut.dataset.fingerprint != whole.dataset.fingerprint
    (path,) = (tmp_path / "records").rglob("*unreadable*.json")
    written = path.stat().st_mtime_ns
    for old in (tmp_path / "records").rglob("knn.demo@1-*.json"):
        old.unlink()
    assert main(command) == 0  # measured before, under its marked name
    assert path.stat().st_mtime_ns == written
    assert sorted(records(tmp_path)) == ["knn.demo@1+unreadable=3"]


def test_what_looks_odd_but_is_sound_is_read(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise).convert("CMYK").save(tmp_path / "cmyk.jpg")
    Image.fromarray(noise[..., :3]).save(tmp_path / "rotated.jpg", exif=exif)
    Image.fromarray(noise[..., 0].astype(np.uint16) * 257).save(tmp_path / "sixteen.png")
    Image.fromarray(noise).quantize(16).save(tmp_path / "palette.png", transparency=0)
    Image.fromarray(noise[:1, :1, :3]).save(tmp_path / "pixel.png")
    Image.fromarray(noise[..., :3]).save(tmp_path / "truncated.jpg")
    content = (tmp_path / "truncated.jpg").read_bytes()
    (tmp_path / "truncated.jpg").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.jpg").write_text("no image", encoding="utf-8")
    paths = tuple(sorted(tmp_path.iterdir()))
    ids = tuple(path.name for path in paths)
    labels = Labels(ids, paths, ("a",), np.zeros(len(ids), np.int64), tuple((id,) for id in ids))
    (split,) = FeatureStore(options(tmp_path / "store")).get([request(labels)])
    assert set(ids) - set(split.labels.ids) == {"truncated.jpg", "text.jpg"}

from __future__ import annotations

import os
import shutil
import signal
import time
from multiprocessing import get_context
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.features.shards import ShardClaims, read_json, write_json
from benchmarks.features.store import in_use, scan
from results.store import read_records

ENCODERS = ("random:resnet18-w8-k3-nopool:0", "random:resnet18-w8-k3-nopool:1")


@pytest.fixture(scope="module")
def once_measured(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("measured")
    command = ["knn", "--encoder", *ENCODERS, "--data", str(small_data), "--out", str(root / "records"),
               "--features", str(root / "features"), "--device", "cpu", "--workers", "0"]  # fmt: skip
    assert main(command) == 0
    return root


@pytest.fixture
def measured(once_measured: Path, tmp_path: Path) -> Path:
    """Features and records of two encoders, which a test may change."""
    shutil.copytree(once_measured, tmp_path, dirs_exist_ok=True)
    return tmp_path


def collect(root: Path, *flags: str) -> int:
    return main(["features-gc", "--features", str(root / "features"), "--records", str(root / "records"), *flags])


def folders(root: Path) -> set[str]:
    return {folder.name for folder in (root / "features").iterdir()}


def of(root: Path, encoder: str) -> set[str]:
    found = {folder: read_json(folder / "meta.json")["encoder"]["name"] for folder in (root / "features").iterdir()}
    return {folder.name for folder, name in found.items() if f"seed {encoder[-1]})" in name}


@pytest.mark.slow
def test_what_records_stand_on_is_kept(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = folders(measured)
    assert len(before) == 4
    assert collect(measured, "--delete") == 0
    assert folders(measured) == before
    told = capsys.readouterr().out
    assert told.count("used  ") == 4
    assert "drawings train" in told
    assert "shorter 48 to 48 bilinear  fp32  embed" in told


def test_what_nothing_uses_is_listed_and_only_then_removed(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep, drop = (of(measured, encoder) for encoder in ENCODERS)
    for record in (measured / "records").rglob("*.json"):
        if "seed_1" in str(record) or "seed 1" in record.read_text(encoding="utf-8"):
            record.unlink()
    assert collect(measured) == 0
    assert capsys.readouterr().out.count("unused") == 2
    assert folders(measured) == keep | drop
    assert collect(measured, "--encoder", ENCODERS[1], "--delete") == 0  # it is at hand, if without a record
    assert folders(measured) == keep | drop
    assert collect(measured, "--delete") == 0
    assert folders(measured) == keep


def test_features_of_other_versions_and_of_data_that_changed_are_unused(measured: Path) -> None:
    first, second = (sorted(of(measured, encoder)) for encoder in ENCODERS)
    for name, change in ((first[0], {"version": 1}), (second[0], {"images": "0" * 64})):
        meta = measured / "features" / name / "meta.json"
        write_json(meta, {**read_json(meta), **change})
    assert collect(measured, "--delete") == 0
    # A pair of splits is used or not: without its train split a test split belongs to no record.
    assert folders(measured) == set(first[:0])


def test_leftovers_go_unless_their_process_lives(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = measured / "features" / sorted(folders(measured))[0]
    (folder / "partial").mkdir(exist_ok=True)
    (folder / "partial" / "feature4.npy").write_bytes(b"1" * 2**20)

    def hold() -> None:
        ShardClaims(folder).take(0)
        (measured / "held").touch()
        time.sleep(60)

    process = get_context("fork").Process(target=hold)
    process.start()
    while not (measured / "held").exists():
        time.sleep(0.01)
    assert collect(measured, "--delete") == 0
    assert "busy" in capsys.readouterr().out
    assert (folder / "partial" / "feature4.npy").is_file()
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert collect(measured) == 0
    assert "1.0 MiB unfinished" in capsys.readouterr().out
    assert collect(measured, "--delete") == 0
    assert not (folder / "partial").exists()
    assert (folder / "embed.npy").is_file()


def test_an_empty_store_and_folders_of_unknown_origin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert collect(tmp_path) == 0
    (tmp_path / "features" / ".3fe.17.partial").mkdir(parents=True)
    (tmp_path / "features" / ".3fe.17.partial" / "embed.npy").write_bytes(b"1" * 5000)
    assert collect(tmp_path) == 0
    assert "unknown" in capsys.readouterr().out
    assert collect(tmp_path, "--delete") == 0
    assert folders(tmp_path) == set()


def test_nothing_but_the_stores_own_folders_is_ever_removed(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, elsewhere = measured / "features", measured / "elsewhere"
    mine = store / "my notes" / "deep"
    mine.mkdir(parents=True)
    (mine / "text.txt").write_text("mine", encoding="utf-8")
    moved = store / sorted(folders(measured) - {"my notes"})[0]
    moved.rename(elsewhere)
    moved.symlink_to(elsewhere)
    for record in (measured / "records").rglob("*.json"):
        record.unlink()
    assert collect(measured, "--delete") == 0
    told = capsys.readouterr().out
    assert folders(measured) == {"my notes", moved.name}
    assert (mine / "text.txt").read_text(encoding="utf-8") == "mine"
    assert (elsewhere / "embed.npy").is_file()
    assert "not made by this store, never removed" in told
    assert f"a link to {elsewhere}, never removed" in told


def test_records_that_are_not_there_do_not_make_everything_unused(
    measured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = folders(measured)
    (measured / "records").rename(measured / "other")
    assert collect(measured, "--delete") == 2
    assert "so all features would count as unused; give --records" in capsys.readouterr().err
    assert folders(measured) == before
    assert collect(measured) == 0  # a list does no harm
    (measured / "file").touch()
    assert main(["features-gc", "--features", str(measured / "file")]) == 2
    assert "is a file; choose another with --features" in capsys.readouterr().err


def test_features_that_serve_for_other_labels_of_the_same_images_are_kept(measured: Path) -> None:
    """ReaL's record, whose fingerprint is of its own labels, keeps val's features; that of another set does not."""
    listed = [stored for stored in scan(measured / "features") if stored.meta]
    records = [stored.record for stored in read_records(measured / "records")[0]]
    for dataset, kept in (("imagenet_real", 4), ("imagenet_v2", 0)):
        changed = [
            each.model_copy(
                update={"dataset": each.dataset.model_copy(update={"id": dataset, "fingerprint": "0" * 64})}
            )
            for each in records
        ]
        assert len(in_use(listed, changed, set())) == kept

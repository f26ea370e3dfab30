"""What a run refuses, in one sentence that names it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pretrain.tiny_runs import FLAGS, run


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--queue-size", "40"], "not a multiple of batch_size"),
        (["--queue-size", "8"], "lower batch_size or lengthen the queue"),
        (["--batch-size", "64", "--queue-size", "64"], "33 images do not fill one batch of 64"),
        (["--split-bn", "3"], "does not split into split_bn"),
        (["--workers", "-1"], "--workers must be at least 0, got -1"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--threads", "-2"], "--threads must be at least 1, got -2"),
        (["--monitor-every", "0"], "--monitor-every must be at least 1, got 0"),
        (["--max-unreadable", "1.5"], "--max-unreadable is a share from 0 to 1, got 1.5"),
        (["--seed", "99999999999999999999"], "seed"),
        (["--augmentation.crop-area", "2", "1"], "crop_area must be two ascending numbers"),
    ],
)
def test_impossible_settings_are_refused_in_one_sentence(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], sentence: str
) -> None:
    assert run(images, tmp_path / "out", *flags) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_damaged_image_is_named(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = images / "train" / "things" / "00.png"
    bad.write_bytes(bad.read_bytes()[:60])
    assert run(images, tmp_path / "out", "--epochs", "1") == 2
    assert "00.png is not a readable image" in capsys.readouterr().err


def test_a_damaged_image_is_named_from_a_loader_worker_too(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "train" / "things" / "00.png").write_bytes(b"nonsense")
    flags = ["--augmentation.engine", "pil", "--augmentation.stored-size", "None", "--workers", "1"]
    assert run(images, tmp_path / "out", *flags) == 2
    error = capsys.readouterr().err
    assert "00.png is not a readable image" in error
    assert "Traceback" not in error


def test_a_diverging_loss_stops_the_run_and_keeps_the_last_state(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(images, tmp_path / "out", "--epochs", "8", "--lr", "1e12", "--precision", "fp32") == 2
    assert "lower lr" in capsys.readouterr().err


def test_a_monitor_without_labelled_images_is_refused(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(images, tmp_path / "out", "--monitor", str(tmp_path / "nowhere")) == 2
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.nightly
def test_compiling_without_a_compiler_is_refused(images: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pretrain", "--data", str(images), "--out", str(tmp_path / "out"), *FLAGS]
    environment = {**os.environ, "CXX": "/nowhere/g++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run([*command, "--epochs", "1", "--compile"], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "pretrain: --compile does not work here" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr

"""Whole runs on small folders: learning, killing, going on, and refusing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain.__main__ import main
from pretrain.backbone_file import read_backbone, weights_sha256
from pretrain.checkpoint import load_resume, save_resume

FLAGS = [
    "--recipe", "mocov2_resnet18w32_demo", "--architecture.width", "8", "--batch-size", "16", "--queue-size", "32",
    "--split-bn", "2", "--workers", "0", "--device", "cpu", "--threads", "1", "--save-every-epochs", "1",
]  # fmt: skip


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images" / "train" / "things"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(33):  # one more than two batches: the incomplete last one is dropped
        coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        coarse.resize((40, 40)).save(folder / f"{number:02d}.png")
    return tmp_path / "images"


def run(images: Path, out: Path, *flags: str) -> int:
    return main(["--data", str(images), "--out", str(out), *FLAGS, *flags])


@pytest.mark.parametrize("engine", ["tensor", "pil"])
def test_run_writes_log_resume_file_and_a_backbone_with_its_card(images: Path, tmp_path: Path, engine: str) -> None:
    flags = ["--augmentation.engine", "pil", "--augmentation.stored-size", "None"] if engine == "pil" else []
    assert run(images, tmp_path / "out", "--epochs", "2", *flags) == 0
    tensors, card = read_backbone(tmp_path / "out" / "backbone.safetensors")
    assert card is not None
    assert card.weights_sha256 == weights_sha256(tensors)
    assert (card.epochs, card.architecture.width, card.method) == (2, 8, "MoCo v2")
    log = (tmp_path / "out" / "log.csv").read_text(encoding="utf-8").splitlines()
    assert len(log) == 3
    assert log[0].startswith("epoch,loss,chance_loss,accuracy,lr")
    assert not list((tmp_path / "out").glob(".*"))


def test_a_run_killed_again_and_again_ends_bit_identical(images: Path, tmp_path: Path) -> None:
    """SIGKILL at several moments, then to the end: weights, optimiser, queue, generators and log are the same."""
    assert run(images, tmp_path / "whole", "--epochs", "6") == 0
    command = [sys.executable, "-m", "pretrain", "--data", str(images), "--out", str(tmp_path / "cut"), *FLAGS,
               "--epochs", "6"]  # fmt: skip
    resume = tmp_path / "cut" / "resume.pt"
    kills = 0
    for wanted in (2, 4, 8):  # steps after which to kill
        process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            time.sleep(0.002)
            if resume.is_file() and (load_resume(resume) or {})["step"] >= wanted:
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
        process.wait()
    assert kills >= 1
    assert run(images, tmp_path / "cut", "--epochs", "6") == 0
    whole, cut = load_resume(tmp_path / "whole" / "resume.pt"), load_resume(resume)
    assert whole is not None
    assert cut is not None
    for name, tensor in whole["model"].items():
        assert torch.equal(tensor, cut["model"][name]), name
    for one, two in zip(whole["optimizer"]["state"].values(), cut["optimizer"]["state"].values(), strict=True):
        assert torch.equal(one["momentum_buffer"], two["momentum_buffer"])
    assert torch.equal(whole["views"], cut["views"])
    assert torch.equal(whole["shuffles"], cut["shuffles"])
    assert [r["loss"] for r in whole["rows"]] == [r["loss"] for r in cut["rows"]]
    backbones = [read_backbone(tmp_path / run_ / "backbone.safetensors")[0] for run_ in ("whole", "cut")]
    assert weights_sha256(backbones[0]) == weights_sha256(backbones[1])


def test_resume_in_the_middle_of_an_epoch_goes_on_there(images: Path, tmp_path: Path) -> None:
    """The first half of an epoch is not repeated: order and views are those of an undisturbed run."""
    from pretrain.recipe import load_recipe
    from pretrain.train import Run

    recipe = load_recipe("mocov2_resnet18w32_demo").model_copy(
        update={"batch_size": 8, "queue_size": 32, "split_bn": 2, "epochs": 2, "precision": "fp32"}
    )
    whole = Run(recipe, images, tmp_path / "a", device=torch.device("cpu"), workers=0)
    whole.run()
    first = Run(recipe, images, tmp_path / "b", device=torch.device("cpu"), workers=0)
    (tmp_path / "b").mkdir()
    first.model.train()
    for views, _ in zip(first.pairs.epoch(0), range(2), strict=False):
        first._train_step(*views)
        first.step += 1
        if first.step == 2:
            break
    first._save()
    second = Run(recipe, images, tmp_path / "b", device=torch.device("cpu"), workers=0)
    second.run()
    for one, two in zip(whole.model.state_dict().values(), second.model.state_dict().values(), strict=True):
        assert torch.equal(one, two)


def test_a_kill_while_saving_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "resume.pt"
    save_resume(path, {"step": 1})

    def full_disk(state: object, file: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_resume(path, {"step": 2})
    assert load_resume(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["resume.pt"]


def test_a_finished_run_is_not_repeated(images: Path, tmp_path: Path) -> None:
    assert run(images, tmp_path / "out", "--epochs", "1") == 0
    written = (tmp_path / "out" / "backbone.safetensors").stat().st_mtime_ns
    assert run(images, tmp_path / "out", "--epochs", "1") == 0
    assert (tmp_path / "out" / "backbone.safetensors").stat().st_mtime_ns == written


def test_warm_start_takes_the_weights_only(images: Path, tmp_path: Path) -> None:
    assert run(images, tmp_path / "first", "--epochs", "1") == 0
    backbone = tmp_path / "first" / "backbone.safetensors"
    assert run(images, tmp_path / "second", "--epochs", "1", "--lr", "0", "--weight-decay", "0",
               "--warm-start", str(backbone)) == 0  # fmt: skip
    before, after = read_backbone(backbone)[0], read_backbone(tmp_path / "second" / "backbone.safetensors")[0]
    assert torch.equal(before["conv1.weight"], after["conv1.weight"])


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--queue-size", "40"], "not a multiple of batch_size"),
        (["--batch-size", "64", "--queue-size", "64"], "33 images do not fill one batch of 64"),
        (["--split-bn", "3"], "does not split into split_bn"),
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


def test_another_recipe_in_the_same_folder_is_refused(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(images, tmp_path / "out", "--epochs", "1") == 0
    assert run(images, tmp_path / "out", "--epochs", "1", "--lr", "0.5") == 2
    assert "another recipe" in capsys.readouterr().err


def test_a_damaged_image_is_named(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = images / "train" / "things" / "00.png"
    bad.write_bytes(bad.read_bytes()[:60])
    assert run(images, tmp_path / "out", "--epochs", "1") == 2
    assert "00.png is not a readable image" in capsys.readouterr().err


def test_a_diverging_loss_stops_the_run_and_keeps_the_last_state(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(images, tmp_path / "out", "--epochs", "8", "--lr", "1e12", "--precision", "fp32") == 2
    assert "lower lr" in capsys.readouterr().err


def test_dry_run_says_what_it_would_take_and_writes_nothing(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(images, tmp_path / "out", "--dry-run") == 0
    plan = capsys.readouterr().out
    assert "33 images" in plan
    assert "hours" in plan
    assert not (tmp_path / "out").exists()


def test_unknown_flag_is_named(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run(images, tmp_path / "out", "--augmentation.blur-q", "1")
    assert stop.value.code == 2
    assert "blur-q" in capsys.readouterr().err

"""The online probe: it learns, resumes bit by bit, and leaves the encoder bit by bit as it is without a probe."""

from __future__ import annotations

import csv
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from pretrain.__main__ import class_of
from pretrain.monitor import PROBE_LR, UNKNOWN, OnlineProbe
from pretrain.train import load_resume
from pretrain.trainer import Trainer
from tests.pretrain.tiny_runs import CPU, assert_same_end, run

MONITOR = ["--monitor-every", "2", "--epochs", "2"]


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Dark and light squares with a little noise: 17 of each class to train on, 4 held out."""
    random = np.random.default_rng(0)
    for split, count in (("train", 17), ("val", 4)):
        for name, level in (("dark", 60), ("light", 190)):
            folder = tmp_path / "labelled" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(level - 40, level + 40, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return tmp_path / "labelled"


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "log.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", [(), ("--mechanism", "simclr")])
def test_a_run_with_the_probe_has_the_weights_of_one_without(
    labelled: Path, tmp_path: Path, mechanism: tuple[str, ...]
) -> None:
    assert run(labelled, tmp_path / "alone", "--epochs", "2", *mechanism) == 0
    assert run(labelled, tmp_path / "probed", *MONITOR, "--monitor", str(labelled), *mechanism) == 0
    assert_same_end(tmp_path / "alone", tmp_path / "probed")
    rows = rows_of(tmp_path / "probed")
    assert [bool(row["online_probe"]) for row in rows] == [False, True]
    assert all(0 <= float(row["online_probe_train"]) <= 100 for row in rows)
    state = (load_resume(tmp_path / "probed" / "resume.pt") or {})["probe"]
    assert state["weight"].abs().max() > 0
    assert state["weight"].abs().max() <= 1.01 * PROBE_LR * 4  # Adam's steps: two in each of two epochs
    assert "probe" not in (load_resume(tmp_path / "alone" / "resume.pt") or {})


@pytest.mark.slow
def test_a_resumed_run_has_the_probe_of_an_uninterrupted_one(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    flags = [*MONITOR, "--monitor", str(labelled)]
    assert run(labelled, tmp_path / "whole", *flags) == 0
    update = Trainer.update

    def signalled(self: Trainer, batch) -> None:  # type: ignore[no-untyped-def]
        update(self, batch)
        if self.step == 3:  # within the second epoch
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", signalled)
        with pytest.raises(SystemExit):
            run(labelled, tmp_path / "cut", *flags)
    half = (load_resume(tmp_path / "cut" / "resume.pt") or {})["probe"]
    assert half["sums"][1] == 16  # the views of the step that the epoch has seen
    assert run(labelled, tmp_path / "cut", *flags) == 0
    assert "online probe" not in caplog.text
    assert_same_end(tmp_path / "whole", tmp_path / "cut")
    for name in ("online_probe", "online_probe_train", "knn", "probe"):
        assert [row[name] for row in rows_of(tmp_path / "whole")] == [row[name] for row in rows_of(tmp_path / "cut")]
    first, second = ((load_resume(tmp_path / name / "resume.pt") or {})["probe"] for name in ("whole", "cut"))
    assert torch.equal(first["weight"], second["weight"])
    assert torch.equal(first["norm"]["running_var"], second["norm"]["running_var"])
    moments = (state["optimizer"]["state"][0]["exp_avg_sq"] for state in (first, second))
    assert torch.equal(next(moments), next(moments))


@pytest.mark.slow
def test_a_probe_joins_a_run_that_began_without_one(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    update = Trainer.update

    def signalled(self: Trainer, batch) -> None:  # type: ignore[no-untyped-def]
        update(self, batch)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", signalled)
        with pytest.raises(SystemExit):
            run(labelled, tmp_path / "out", "--epochs", "2")
    assert run(labelled, tmp_path / "out", "--epochs", "2", "--monitor", str(labelled)) == 0
    assert "a new one starts at step 1" in caplog.text
    assert rows_of(tmp_path / "out")[1]["online_probe"]


@pytest.mark.slow
def test_images_without_the_monitors_classes_have_no_online_probe(
    images: Path, labelled: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert run(images, tmp_path / "out", "--epochs", "1", "--monitor", str(labelled)) == 0
    assert "no online probe: the training images are not in folders of the monitor's classes" in caplog.text
    assert "online_probe" not in rows_of(tmp_path / "out")[0]
    index = {"cat": 0, "dog": 1}
    assert [class_of(Path(p), index) for p in ("dog/x/cat/1.png", "dog/x/1.png", "x/cat", "cat.png")] == [0, 1, -1, -1]


def test_the_probe_takes_the_steps_of_a_plain_softmax_regression() -> None:
    """Against the gradient written out and Adam's own formula (Kingma and Ba, Algorithm 1), in float64; 1e-4."""
    random = np.random.default_rng(1)
    classes = random.integers(0, 3, 40)
    classes[:4] = UNKNOWN
    rows = random.normal(size=(40, 5)).astype(np.float32) * 3 + 1 + 4 * np.eye(3, 5)[classes].astype(np.float32)
    probe = OnlineProbe(classes, 3, CPU)
    probe.start(5)
    weight, first, second = np.zeros((3, 6)), np.zeros((3, 6)), np.zeros((3, 6))
    right = known = 0
    for step in range(1, 21):
        picked = random.permutation(40)[:20]
        x = rows[picked].astype(np.float64)
        x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
        x = np.concatenate([x, np.ones((20, 1))], axis=1)  # the bias
        logits = x @ weight.T
        shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        target, labelled = classes[picked], classes[picked] != UNKNOWN
        right += int((logits.argmax(1) == target).sum())
        known += int(labelled.sum())
        gradient = ((shares - np.eye(3)[target]) * labelled[:, None]).T @ x / labelled.sum()
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        weight -= PROBE_LR * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        probe.update(torch.from_numpy(rows[picked]), torch.from_numpy(picked))
    assert np.allclose(np.c_[probe.weight.detach(), probe.bias.detach()], weight, atol=1e-4 * np.abs(weight).max())
    assert probe.accuracy() == pytest.approx(100 * right / known)
    assert probe.accuracy() is None  # of a new epoch


def test_the_probe_learns_held_out_rows_and_draws_nothing() -> None:
    random = np.random.default_rng(2)
    classes = random.integers(0, 4, 400)
    centres = random.normal(size=(4, 16)) * 2
    rows = (centres[classes] + random.normal(size=(400, 16))).astype(np.float32)
    before = torch.get_rng_state()
    probe = OnlineProbe(classes[:300], 4, CPU)
    probe.start(16)
    encoder = torch.from_numpy(rows).requires_grad_()
    for start in 30 * [*range(0, 300, 50)]:
        some = torch.arange(start, start + 50)
        probe.update(F.relu(encoder[some] + 100) - 100, some)
    assert torch.equal(torch.get_rng_state(), before)
    assert encoder.grad is None
    assert probe.right(rows[300:], classes[300:]) >= 95
    assert probe.right(rows[:0], classes[:0]) == 0
    assert probe.load({**probe.state(), "weight": torch.zeros(5, 16)}) is False

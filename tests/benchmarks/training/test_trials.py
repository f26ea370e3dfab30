"""The mean over trials, the checkpoint to resume from, and the checks of libraries and transferred weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.detection.protocols import VOC_PROTOCOLS
from benchmarks.encoders.load import load_encoder
from benchmarks.task import InputError, Labels, Outcome, RunOptions
from benchmarks.training.trials import (
    Sheet,
    Trial,
    TrialScores,
    last_whole_checkpoint,
    require_packages,
    require_same_tensors,
    run_trials,
)

OPTIONS = RunOptions(device="cpu", workers=0, progress=False, seed=5)


class FixedTrial(Trial):
    """Measures what the test says."""

    def __init__(self, scores: TrialScores, seed: int, folder: Path) -> None:
        super().__init__(load_encoder("random:resnet18-w8:0"), 4, seed, folder, OPTIONS)
        self.scores = scores

    def train(self, *, progress: bool = True) -> nn.Module:
        return nn.Identity()

    def measure(self, model: nn.Module, *, progress: bool = True, sheet: Sheet | None = None) -> TrialScores:
        if sheet:
            sheet.look(self.seed, None)
        return self.scores


class Seeds(Sheet):
    def look(self, item: Any, predicted: Any) -> None:
        self.chosen.append(item)

    def draw(self, plt: Any) -> Any:
        return plt.figure()


def scores(ap50: list[float], ap: float | None, ap75: list[float]) -> TrialScores:
    found = TrialScores(columns={"AP": ap})
    for column, values in (("AP50", ap50), ("AP75", ap75)):
        found.add(column, ("cat", "dog"), np.array(values))
    return found


def run(of: list[TrialScores], folder: Path) -> tuple[Outcome, Seeds, list[tuple[int, str]]]:
    empty = Labels(ids=(), paths=(), classes=("cat", "dog"), targets=np.zeros((0, 0)), groups=())
    sheet, started = Seeds(empty.classes), []

    def start(seed: int, where: Path) -> Trial:
        started.append((seed, where.name))
        return FixedTrial(of[len(started) - 1], seed, where)

    encoder = load_encoder("random:resnet18-w8:0")
    protocol = VOC_PROTOCOLS[0].changed(trials=len(of))
    outcome = run_trials(protocol, encoder, empty, empty, folder, OPTIONS, start=start, sheet=sheet)
    return outcome, sheet, started


def test_scores_are_means_over_trials_of_following_seeds(tmp_path: Path) -> None:
    nan = float("nan")
    outcome, sheet, started = run([scores([10, 30], None, [1, nan]), scores([20, 60], 8.0, [3, 5])], tmp_path)
    assert started == [(5, "trial-5"), (6, "trial-6")]
    assert outcome.seeds == (5, 6)
    assert sheet.chosen == [5]
    assert outcome.pictures["sheet"].startswith(b"\x89PNG")
    assert (outcome.scores["AP50"].value, outcome.scores["AP50"].std) == (30, 10)
    assert (outcome.scores["AP"].value, outcome.scores["AP"].std) == (8, None)
    assert outcome.per_class == {"AP50": {"cat": 15, "dog": 45}, "AP75": {"cat": 2}}
    assert outcome.runs[1] == {"trial": 6, "AP50": 40, "AP": 8, "AP75": 4}


def test_a_column_without_any_value_is_empty(tmp_path: Path) -> None:
    nan = float("nan")
    outcome, _, _ = run([scores([1, 2], None, [nan, nan])], tmp_path)
    assert outcome.scores["AP75"].value is None
    assert outcome.per_class["AP75"] == {}


def test_a_batch_that_cannot_be_split_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretrain.distributed.world_size", lambda: 3)
    with pytest.raises(InputError, match="total batch of 4 cannot be split evenly over 3 processes"):
        FixedTrial(TrialScores(), 0, tmp_path)


def test_the_newest_readable_checkpoint_is_found(tmp_path: Path) -> None:
    files = [tmp_path / f"{n}.pth" for n in (3, 2, 1)]
    for file in files[1:]:
        torch.save({"n": file.stem}, file)
    files[0].write_bytes(files[1].read_bytes()[:100])
    assert last_whole_checkpoint(files, lambda path: torch.load(path, weights_only=True)) == files[1]
    assert last_whole_checkpoint(files[:1], lambda path: torch.load(path, weights_only=True)) is None


def test_missing_packages_are_named() -> None:
    require_packages("this", "numpy", "torch")
    with pytest.raises(InputError, match="this needs no_such, nor_this, which are not installed; run `make setup-tr"):
        require_packages("this", "numpy", "no_such", "nor_this")


def test_tensors_that_differ_are_named() -> None:
    ours = {"a": torch.zeros(2), "b": torch.ones(1)}
    require_same_tensors("an encoder", dict(ours), ours)
    with pytest.raises(RuntimeError, match="an encoder: 1 of the backbone's tensors are not the checkpoint's: b"):
        require_same_tensors("an encoder", {**ours, "b": torch.zeros(1)}, ours)
    with pytest.raises(RuntimeError, match="2 of the backbone's tensors are not the checkpoint's: b, c"):
        require_same_tensors("an encoder", {"a": ours["a"], "c": ours["b"]}, ours)

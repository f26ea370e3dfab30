"""One's own image folder: `all` runs what suits it, fitted to its size, without naming a protocol."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.low_shot_svm import LowShotSvm
from benchmarks.task import InputError
from results.store import read_records
from tests.reference.linear_tiny import tiny_labels

ENCODER = "random:resnet18-w8-k3-nopool:0"


def run(command: str, folder: Path, out: Path, *flags: str) -> int:
    return main([command, "--encoder", ENCODER, "--data", str(folder), "--out", str(out / "records"),
                 "--features", str(out / "features"), "--device", "cpu", "--workers", "0", *flags])  # fmt: skip


@pytest.mark.slow
def test_all_runs_every_benchmark_of_an_image_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "photos"
    tiny_labels(folder, "train", 12, seed=0)
    tiny_labels(folder, "val", 4, seed=1)
    assert run("all", folder, tmp_path, "--set", "geometry.resize=18", "geometry.crop=16") == 0
    told = capsys.readouterr().out
    assert "done: 10" in told
    assert "skipped: 1" in told  # the grid on class tokens, which a ResNet does not have
    total, *phases = map(float, re.findall(r" (\d+\.\d) s", told.partition("\ntime: ")[2].join("  ")))
    assert len(phases) > 5
    assert sum(phases) < total + 0.05 * len(phases)  # the pass that the probes share is counted once
    records, bad = read_records(tmp_path / "records")
    assert not bad
    shape = "+geometry.crop=16+geometry.resize=18"
    assert {stored.record.protocol.id for stored in records} >= {
        f"knn.imagefolder@1{shape}+k=10,20",
        f"linear_avgpool.imagefolder@1+batch_size=16+drops=60,80+epochs=100{shape}",
        f"linear_stored.imagefolder@1{shape}",
        f"imagefolder_low_shot_svm.embed@1{shape}+k=1,2,4,8",
    }
    for stored in records:
        assert stored.record.status == "ok"
        assert stored.record.scores[stored.record.protocol.resolved.primary].value is not None


@pytest.mark.parametrize("command", ["knn", "linear"])
def test_a_command_recognises_an_image_folder(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.estimate.describe", lambda run, _: [f"would run  {run.protocol.id}"])
    tiny_labels(tmp_path / "photos", "train", 12, seed=0)
    tiny_labels(tmp_path / "photos", "val", 4, seed=1)
    assert run(command, tmp_path / "photos", tmp_path, "--dry-run") == 0
    (told,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("would run"))
    assert told.split()[-1].startswith({"knn": "knn.imagefolder@1", "linear": "linear_avgpool.imagefolder@1"}[command])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (None, "has train/, but {0}/val is missing; put the images to test on there, in a folder per class"),
        ("test", "has train/ and test/, but no val/; rename {0}/test to {0}/val"),
        ("validation", "has train/ and validation/, but no val/; rename {0}/validation to {0}/val"),
        ("flat", "has folders of images, but no train/ and val/; move the images of each class to train/ and val/"),
    ],
)
@pytest.mark.parametrize("command", ["knn", "frozen"])
def test_a_folder_that_is_almost_an_image_folder_is_told_what_it_lacks(
    command: str, change: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    tiny_labels(folder, "train", 2, seed=0)
    if change == "flat":
        folder = (folder / "train").rename(tmp_path / "flat")
    elif change:
        tiny_labels(folder, change, 2, seed=1)
    assert run(command, folder, tmp_path) == 2
    assert capsys.readouterr().err == f"encoder-bench: {folder} {said.format(folder)}\n"


def test_low_shot_leaves_out_the_k_that_leave_no_image_outside(tmp_path: Path) -> None:
    task = LowShotSvm()
    protocol = task.default_protocol(embedded=False, dataset="imagefolder")
    train, test = tiny_labels(tmp_path, "train", 4, seed=0), tiny_labels(tmp_path, "val", 2, seed=1)
    assert task.adapted(protocol, train, test).params["k"] == (1, 2)
    assert task.adapted(protocol.changed(k=(3,)), train, test).params["k"] == (3,)  # as the user says
    with pytest.raises(InputError, match="blue has 4 positive training images, but k=96 needs 96"):
        task.check(protocol, train, test)
    single = train.rows([0, 4, 8])
    with pytest.raises(InputError, match="no class has more than k=1 training images"):
        task.check(task.adapted(protocol, single, test), single, test)
    without_blue = train.rows(range(4, 12))
    with pytest.raises(InputError, match=r"blue has 0 positive .* leave the class out"):
        task.check(task.adapted(protocol, without_blue, test), without_blue, test)

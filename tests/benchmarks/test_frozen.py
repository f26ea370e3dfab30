"""The frozen suite as a command: its plan, one set of features for all, and its records."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.__main__ import frozen_suite, main
from benchmarks.datasets.registry import Dataset
from benchmarks.evaluate import primary_score
from benchmarks.label_free import LabelFree
from benchmarks.task import log_once
from results.schema import Score
from results.store import read_records
from tests.results.factory_records import card, record

ENCODER = "random:resnet18-w8-k3-nopool:0"


def frozen(data: Path, out: Path, *flags: str, encoder: str = ENCODER) -> int:
    where = ["--out", str(out / "records"), "--features", str(out / "features"), "--device", "cpu", "--workers", "0"]
    return main(["frozen", encoder, str(data), *where, *flags])


def test_the_plan_counts_images_and_bytes_and_a_dry_run_writes_nothing(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[object] = []
    monkeypatch.setattr("benchmarks.estimate.solving_seconds", lambda run, folder: tried.append(run))
    assert frozen(data, tmp_path, "--dry-run") == 0
    assert not tried  # a try of the SVMs takes as long as their run
    told = capsys.readouterr().out
    assert told.count("extract  ") == 2  # drawings, and the scenes of the SVMs
    assert "images of drawings" in told
    assert "embed" in told
    for protocol in ("knn.demo@1", "logistic.demo@2", "ncm.demo@1", "few_shot.demo@1", "voc07_svm.demo@1"):
        assert f"measure  {protocol}" in told
    assert "skipped  voc07_low_shot_svm.demo@1" in told  # these few scenes lack positives, and that is said
    assert "total    about" in told
    assert not list(tmp_path.iterdir())


def test_an_encoder_that_is_refused_does_not_stop_the_plan_or_the_run_of_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images_of(tmp_path / "own", 4)
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"no weights")
    where = ["--out", str(tmp_path / "records"), "--features", str(tmp_path / "features")]
    words = ["--data", str(tmp_path / "own"), "--device", "cpu", "--workers", "0", *where]
    for dry in (["--dry-run"], []):
        assert main(["frozen", "--encoder", str(broken), ENCODER, *words, *dry]) == 2
        told = capsys.readouterr().out
        assert f"refused {broken} is neither a torch" in told
        assert "plan for random init" in told
        assert "measure  ncm.imagefolder@1" in told
    assert f"failed: 1\n  {broken} is neither" in told
    assert "done: 5" in told
    assert main(["frozen", str(broken), *words]) == 2
    refused = capsys.readouterr()
    assert refused.out == ""
    assert refused.err.startswith(f"encoder-bench: {broken} is neither a torch")


@pytest.mark.parametrize("flags", [["--dry-run"], pytest.param([], marks=pytest.mark.slow)])
def test_on_a_voc_devkit_alone_the_svms_run_and_the_rest_is_skipped(
    flags: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(data / "VOCdevkit", tmp_path / "voc" / "VOCdevkit")
    assert frozen(tmp_path / "voc", tmp_path, *flags, encoder="random:resnet18") == 0
    told = capsys.readouterr().out
    assert "measure  voc07_svm.mmselfsup@1" in told
    for protocol in ("knn.mmselfsup@1", "logistic.imagenet@1", "ncm.imagenet@1", "few_shot.imagenet@1"):
        assert f"skipped  {protocol}: data set imagenet not found: " in told
    assert "failed" not in told
    if not flags:
        assert "done: 1\n" in told
        assert "skipped: 5\n" in told  # the low-shot SVMs want more positives


@pytest.mark.parametrize("flags", [["--dry-run"], []])
def test_an_encoder_whose_maps_do_not_fit_the_svms_is_measured_by_the_rest(
    flags: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(data / "VOCdevkit", tmp_path / "root" / "VOCdevkit")
    images_of(tmp_path / "root" / "imagenet", 2)
    assert frozen(tmp_path / "root", tmp_path, *flags) == 0
    told = capsys.readouterr().out
    assert "measure  ncm.imagenet@1" in told
    assert "skipped  voc07_svm.mmselfsup@1: the 16x16 pooling kernel is for 56x56 maps" in told
    assert "failed" not in told


def test_nothing_to_measure_is_said_in_one_sentence_after_the_reasons(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images_of(tmp_path / "own", 2)
    (tmp_path / "own" / "val" / "round").rename(tmp_path / "own" / "val" / "oval")
    for flags in (["--dry-run"], []):
        assert frozen(tmp_path / "own", tmp_path, *flags) == 2
        told = capsys.readouterr()
        assert told.out.count("  skipped  ") == 5
        assert told.out.count("train does not have; the folders must match") == 5
        assert told.err == "encoder-bench: nothing can be measured here, for the reasons above\n"


def test_each_split_is_listed_once(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[tuple[str, str]] = []
    read = Dataset.read
    monkeypatch.setattr(Dataset, "read", lambda self, split: (listed.append((self.id, split)), read(self, split))[1])
    assert frozen(data, tmp_path, "--dry-run") == 0
    assert len(listed) == len(set(listed)) == 4  # train and test of drawings and of VOC07


def test_protocols_on_one_data_set_share_the_geometry_of_knn(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
    questions = frozen_suite(tmp_path)
    assert [q.protocol.benchmark for q in questions] == [
        "knn", "logistic", "ncm", "few_shot", "imagefolder_low_shot_svm",
    ]  # fmt: skip
    assert len({repr(q.protocol.geometry) for q in questions}) == 1


@pytest.mark.slow
def test_features_are_extracted_once_and_every_benchmark_leaves_a_record(small_data: Path, tmp_path: Path) -> None:
    flags = ["--dataset", "drawings"]
    assert frozen(small_data, tmp_path, *flags) == 0
    found = {stored.record.protocol.resolved.benchmark for stored in read_records(tmp_path / "records")[0]}
    assert found == {"knn", "logistic", "ncm", "few_shot"}
    assert len(list((tmp_path / "features").iterdir())) == 2  # train and val


@pytest.mark.parametrize("command", ["knn", "all", "probes", "dense", "transfer"])
def test_encoder_and_data_may_stand_without_their_flags_in_every_command(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, ENCODER, str(tmp_path / "nowhere"), "--out", str(tmp_path / "records")]) == 2
    assert "nowhere is not a folder; set --data to the root of the data sets" in capsys.readouterr().err


def test_a_protocol_is_refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert frozen(data, tmp_path, "--protocol", "knn.demo") == 2
    assert "frozen takes no --protocol" in capsys.readouterr().err


def images_of(root: Path, count: int, splits: tuple[str, ...] = ("train", "val")) -> None:
    rng = np.random.default_rng(0)
    for split in splits:
        for kind in ("round", "square"):
            (root / split / kind).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / kind / f"{number}.png")


def test_a_folder_without_any_data_is_refused_in_one_sentence_before_the_encoder_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert frozen(tmp_path / "empty", tmp_path) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "empty is no image folder with train/ and val/, and has none of the data sets of these bench" in told.err
    images_of(tmp_path / "own", 1)
    for part in ("train", "val"):
        assert frozen(tmp_path / "own" / part, tmp_path) == 2
        assert f"{part} is a part of an image folder; give the folder above it: --data" in capsys.readouterr().err


def test_unreadable_images_are_reported_once_and_not_by_every_benchmark(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images_of(tmp_path / "own", 6)
    (tmp_path / "own" / "train" / "round" / "0.png").write_bytes(b"")
    with caplog.at_level("WARNING"):
        assert frozen(tmp_path / "own", tmp_path) == 0
    told = [record.getMessage() for record in caplog.records if "cannot be read" in record.getMessage()]
    assert len(told) == 1
    assert told[0].startswith("1 of 12 images of imagefolder train cannot be read: train/round/0.png; they are left")


def test_what_the_plan_has_said_of_the_data_the_run_and_the_next_encoder_do_not_repeat(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images_of(tmp_path / "own", 7)
    where = ["--out", str(tmp_path / "records"), "--features", str(tmp_path / "features"), "--device", "cpu"]
    log_once.cache_clear()
    with caplog.at_level("INFO"):
        assert main(["frozen", "--encoder", ENCODER, "pixels", "--data", str(tmp_path / "own"), *where]) == 0
    for said in (
        "the gallery has 14 images: k = ",
        "the smallest class has 7 images: n up to ",
        "the smallest class, ",
    ):
        assert sum(said in line for line in caplog.messages) == 1


def test_probes_on_own_images_are_those_that_have_a_protocol_for_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images_of(tmp_path / "own", 2)
    assert main(["probes", ENCODER, str(tmp_path / "own"), "--out", str(tmp_path / "records"), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert re.findall(r"^protocol   (\w+)\.imagefolder", told, re.MULTILINE) == ["linear_avgpool", "attentive"]
    assert "missing" not in told


def test_a_score_without_a_unit_is_logged_without_one() -> None:
    scores = {"RankMe": Score(value=4.306, unit="1", selection="nothing to choose")}
    assert primary_score(record(card("a"), LabelFree.protocols[0], scores=scores)) == "RankMe 4.31"

"""What makes two jobs the same, and what is refused before any work is done."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.__main__ import main
from benchmarks.evaluate import Run, cached_record, load, prepare, require_writable
from benchmarks.registry import find_protocol, load_task
from benchmarks.task import InputError, RunOptions
from results.command_line import log_device
from results.store import read_records, record_path

ENCODER = "random:resnet18-w8-k3-nopool:0"
FSSB = "voc07_low_shot_svm.fssb@2"


def question(identifier: str, data: Path, index_files: Path) -> Run:
    task = load_task("low-shot-svm")(index_files=index_files)
    return prepare(task, find_protocol(identifier), load(ENCODER), data, options=RunOptions(device="cpu"))


def test_other_low_shot_files_are_another_record(data: Path, tmp_path: Path) -> None:
    keys = []
    for value in (0, 1, 1):
        np.save(tmp_path / "train_targets_sample1_k1.npy", np.full((2, 2), value))
        keys.append(question(FSSB, data, tmp_path).key)
    assert keys[0] != keys[1]
    assert keys[1] == keys[2]


def test_files_for_a_protocol_that_reads_none_are_refused(data: Path, tmp_path: Path) -> None:
    for identifier in ("voc07_low_shot_svm.mmselfsup@1", "voc07_low_shot_svm.demo@1"):
        with pytest.raises(InputError, match="draws its own low-shot sets and cannot use --index-files"):
            question(identifier, data, tmp_path)


@pytest.mark.parametrize("command", ["knn", "all"])
def test_what_could_not_be_written_is_refused_before_it_is_measured(
    command: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    base = [command, "--encoder", ENCODER, "--data", str(data), "--features", str(tmp_path / "features")]
    assert main([*base, "--out", str(tmp_path / "file")]) == 2
    assert f"expected a folder, but {tmp_path / 'file'} is a file" in capsys.readouterr().err
    assert main([*base, "--out", str(tmp_path / "out"), "--threads", "-1"]) == 2
    assert "--threads must be at least 1, got -1" in capsys.readouterr().err
    assert not (tmp_path / "features").exists()


@pytest.mark.slow
def test_either_engine_of_knn_is_chosen_on_the_command_line_and_gives_the_same_numbers(
    data: Path, tmp_path: Path
) -> None:
    found = {}
    for engine in ("faiss", "torch"):
        out = tmp_path / engine
        assert main(["knn", "--encoder", ENCODER, "--data", str(data), "--out", str(out), "--engine", engine,
                     "--features", str(tmp_path / "features"), "--device", "cpu", "--workers", "0",
                     "--protocol", "knn.demo", "--set", "k=1,2,3"]) == 0  # fmt: skip
        (stored,), _ = read_records(out)
        assert stored.record.runs[0]["engine"].startswith(engine)
        found[engine] = {name: score.value for name, score in stored.record.scores.items()}
    assert found["faiss"] == found["torch"]
    assert main(["voc-svm", "--encoder", ENCODER, "--data", str(data), "--engine", "torch"]) == 2


def own_photos(root: Path) -> Path:
    for split in ("train", "val"):
        for kind in ("cat", "dog"):
            (root / split / kind).mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (8, 8), (i, len(kind), len(split))).save(root / split / kind / f"{i}.png")
    return root


def test_a_record_of_ones_own_images_names_their_folder_and_no_other_does(data: Path, tmp_path: Path) -> None:
    options = RunOptions(device="cpu", records=tmp_path / "records", features=tmp_path / "features")
    task, folder = load_task("knn")(), own_photos(tmp_path / "my photos")
    own = prepare(task, find_protocol("knn.imagefolder@1").changed(k=(1,)), load(ENCODER), folder, options=options)
    assert (own.dataset.own, own.dataset.folder) == (True, "my photos")
    embedded = prepare(task, find_protocol("knn.demo@1"), load(ENCODER), data, options=options)
    assert (embedded.dataset.own, embedded.dataset.folder) == (False, None)


def test_a_record_of_a_newer_version_is_refused_before_measuring(data: Path, tmp_path: Path) -> None:
    for force in (False, True):
        options = RunOptions(device="cpu", records=tmp_path, features=tmp_path / "features", force=force)
        run = prepare(load_task("knn")(), find_protocol("knn.demo@1"), load(ENCODER), data, options=options)
        path = record_path(tmp_path, run.encoder.card, run.protocol, run.dataset, (options.seed,))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"schema_version": 99}')
        with pytest.raises(InputError, match=r"written by a newer version of this program \(schema 99"):
            cached_record(run)


@pytest.mark.parametrize(("precision", "arithmetic"), [("bf16", "bfloat16"), ("fp16", "float16")])
def test_half_precision_on_a_cpu_without_it_warns_once(
    precision: str, arithmetic: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from benchmarks.evaluate import _warn_if_slow

    for fast, warnings in ((True, 0), (False, 1)):
        monkeypatch.setattr(f"pretrain.distributed.has_fast_{precision}", lambda _, fast=fast: fast)
        _warn_if_slow.cache_clear()
        for _ in range(2):
            _warn_if_slow(precision, "cpu", "linear.a@1")
            _warn_if_slow("fp32", "cpu", "linear.a@1")
        assert len(caplog.messages) == warnings
    says = f"linear.a@1 runs the encoder in {precision}, and cpu has no {arithmetic} arithmetic"
    assert caplog.messages[0].startswith(says)
    _warn_if_slow.cache_clear()


def test_the_log_begins_with_the_device_once_and_then_precision_and_loaders(
    small_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    log_device.cache_clear()
    where = ["--out", str(tmp_path / "records"), "--features", str(tmp_path / "features")]
    assert main(["knn", "--encoder", "pixels", "--data", str(small_data), "--device", "cpu", "--workers", "0",
                 "--set", "k=1", *where]) == 0  # fmt: skip
    assert caplog.messages[:2] == ["device: cpu", "precision of the protocol, 0 loader processes"]
    assert [line for line in caplog.messages if line.startswith("device")] == ["device: cpu"]


@pytest.mark.parametrize("flag", ["--out", "--features"])
@pytest.mark.parametrize(
    "command",
    [
        ["knn"], ["all"], ["frozen"], ["probes"], ["transfer"],
        ["explain", "--a", "knn.demo", "--b", "knn.demo", "--set-b", "temperature=0.5"],
        ["why", "--published", "MoCo v2/resnet50_8xb32-coslr-200e", "--protocol", "knn", "--column", "k=10"],
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_a_folder_that_cannot_be_written_is_refused_before_an_encoder_is_loaded(
    command: list[str],
    flag: str,
    small_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Root may write everywhere, but not in /proc."""
    monkeypatch.setattr("benchmarks.encoders.load.load_encoder", lambda *_: pytest.fail("an encoder was loaded"))
    folders = {"--out": str(tmp_path / "records"), "--features": str(tmp_path / "features"), flag: "/proc/none"}
    where = [word for pair in folders.items() for word in pair]
    encoder = ["pixels"] if command[0] == "why" else ["--encoder", "pixels"]
    assert main([command[0], *encoder, *command[1:], "--data", str(small_data), "--device", "cpu", *where]) == 2
    told = capsys.readouterr()
    assert "is not a writable folder (" in told.err
    assert f"choose another with {flag}" in told.err
    assert len(told.err.splitlines()) == 1
    assert "plan" not in told.out
    assert list(tmp_path.iterdir()) == []


def test_ranks_leave_the_look_at_the_folders_to_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    options = RunOptions(records=Path("/proc/none"))
    with pytest.raises(InputError, match="cannot write to /proc/none"):
        require_writable(options)
    monkeypatch.setenv("RANK", "1")
    require_writable(options)


def test_an_endless_name_is_refused_before_anything_is_measured() -> None:
    with pytest.raises(InputError, match="more than 500 characters; give it a shorter one: --name"):
        load("pixels", name="a" * 501)

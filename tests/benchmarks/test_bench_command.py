"""The commands as a user types them, on a small composition: records, skipping, failing, dry runs, one-line errors."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import InputError, RunOptions, evaluate
from benchmarks.__main__ import main
from benchmarks.registry import TASK_NAMES, TASKS, find_protocol, load_task, tasks
from pretrain.resnet import ResNet
from results.command_line import first_sentence
from results.schema import Architecture, Record
from results.store import read_records

ENCODER = "random:resnet18-w8-k3-nopool:0"


def run(command: str, data: Path, out: Path, *flags: str, encoder: tuple[str, ...] = (ENCODER,)) -> int:
    return main([command, "--encoder", *encoder, "--data", str(data), "--out", str(out / "records"),
                 "--features", str(out / "features"), "--device", "cpu", "--workers", "0", *flags])  # fmt: skip


def records(out: Path) -> list[Record]:
    stored, bad = read_records(out / "records")
    assert not bad
    assert all(s.intact for s in stored)
    return [s.record for s in stored]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["knn", "linear", "multihead", "linear-stored", "voc-svm"])
def test_every_harness_writes_a_whole_record_on_embedded_data(command: str, data: Path, tmp_path: Path) -> None:
    assert run(command, data, tmp_path) == 0
    (record,) = records(tmp_path)
    protocol = record.protocol.resolved
    assert protocol.variant == "demo"
    assert record.status == "ok"
    assert record.dataset.embedded
    primary = record.scores[protocol.primary]
    assert primary.value is not None
    assert 0 <= primary.value <= 100
    assert set(record.scores) <= set(protocol.columns)
    assert torch.__version__.startswith(record.versions["torch"])
    assert str(tmp_path) not in record.model_dump_json()  # no path of this machine
    assert record.outcomes_file is not None
    assert primary.standard_error is not None


@pytest.mark.slow
def test_facts_on_the_command_line_reach_the_card(data: Path, tmp_path: Path) -> None:
    net = ResNet(Architecture(name="resnet18", width=8, stem_kernel=3, stem_stride=2, max_pool=False))
    torch.save({"state_dict": net.state_dict()}, tmp_path / "plain.pth")
    encoder = (str(tmp_path / "plain.pth"),)
    assert run("knn", data, tmp_path, encoder=encoder) == 2
    flags = ("--facts", "max_pool=false", "stem_stride=2", "channels=BGR")
    assert run("knn", data, tmp_path, *flags, encoder=encoder) == 0
    (record,) = records(tmp_path)
    assert (record.encoder.channels, record.encoder.architecture.stem_stride) == ("BGR", 2)
    assert "mean" in record.encoder.assumed
    assert run("knn", data, tmp_path, *flags, "--dry-run", encoder=encoder) == 0


@pytest.mark.slow
def test_what_has_a_record_is_skipped_and_force_measures_again(data: Path, tmp_path: Path) -> None:
    assert run("knn", data, tmp_path) == 0
    (path,) = (tmp_path / "records").rglob("*.json")
    first = path.stat().st_mtime_ns
    assert run("knn", data, tmp_path) == 0
    assert path.stat().st_mtime_ns == first
    assert run("knn", data, tmp_path, "--force") == 0
    assert path.stat().st_mtime_ns > first
    assert len(records(tmp_path)) == 1


@pytest.mark.slow
def test_a_bad_encoder_does_not_stop_the_others(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("knn", data, tmp_path, encoder=("no_such_file.pth", "pixels")) == 2
    assert "no_such_file.pth" in capsys.readouterr().err
    assert [r.encoder.name for r in records(tmp_path)] == ["raw pixels"]


def test_a_dry_run_refuses_what_the_run_would_after_the_plan_of_the_others(
    small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"no weights")
    dry = ("--dry-run", "--set", "k=1")
    assert run("knn", small_data, tmp_path, *dry, encoder=(str(broken), "no_such_file.pth", "pixels")) == 2
    told = capsys.readouterr().out
    assert f"refused    {broken} is neither a torch" in told
    assert "refused    no_such_file.pth: encoder file not found" in told
    assert "would run  raw pixels under knn.demo@1" in told
    assert run("knn", small_data, tmp_path, *dry, encoder=(str(broken),)) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"encoder-bench: {broken}")
    assert run("multihead", small_data, tmp_path, "--dry-run", encoder=("pixels",)) == 2  # which has no maps
    assert "missing    raw pixels has none of feature1" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["knn", "frozen", "audit"])
def test_one_name_for_two_encoders_is_refused_before_the_plan(
    command: str, small_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [command, "--encoder", "pixels", ENCODER, "--name", "one", "--data", str(small_data), "--dry-run"]
    assert main(words) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "--name is for one encoder, but there are 2; leave it out" in told.err


@pytest.mark.slow
def test_a_harness_that_fails_leaves_a_failed_record_which_is_retried(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("out of luck")

    with monkeypatch.context() as patch:
        patch.setattr("benchmarks.knn.Knn.run", broken)
        assert run("knn", data, tmp_path, encoder=(ENCODER, "pixels")) == 1
    assert "out of luck" in capsys.readouterr().err
    assert {(r.status, r.error) for r in records(tmp_path)} == {("failed", "RuntimeError: out of luck")}
    assert run("knn", data, tmp_path) == 0
    assert {r.encoder.name: r.status for r in records(tmp_path)}["raw pixels"] == "failed"
    assert sorted(r.status for r in records(tmp_path)) == ["failed", "ok"]


def test_dry_run_measures_and_writes_nothing(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("knn", data, tmp_path, "--dry-run") == 0
    plan = capsys.readouterr().out
    assert "knn.demo@1" in plan
    assert "time" in plan
    assert "disk" in plan
    assert list(tmp_path.iterdir()) == []


def test_dry_run_says_which_data_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("voc-svm", tmp_path, tmp_path / "out", "--dry-run") == 2
    assert "data set voc2007 not found" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--protocol", "knn.dinno@1"], "no protocol 'knn.dinno@1'; did you mean 'knn.dino@1'"),
        (["--protocol", "voc07_svm.demo@1"], "is run by `encoder-bench voc-svm`"),
        (["--dataset", "imagenet22k"], "unknown data set 'imagenet22k'; did you mean 'imagenet'"),
    ],
)
def test_mistakes_get_one_sentence(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], sentence: str
) -> None:
    assert run("knn", data, tmp_path, *flags) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.startswith("encoder-bench: ")
    assert len(error.splitlines()) <= 2


def test_a_damaged_image_is_named_with_loader_workers_too(
    small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(small_data, tmp_path / "data")
    victim = sorted((tmp_path / "data" / "drawings" / "val").rglob("*.png"))[0]
    victim.write_bytes(victim.read_bytes()[:40])
    assert run("knn", tmp_path / "data", tmp_path, "--workers", "1", "--strict") == 2
    error = capsys.readouterr().err
    assert victim.name in error
    assert len(error.splitlines()) == 1


def test_unknown_command_lists_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["knm"]) == 2
    assert "no command 'knm'; did you mean 'ncm' or 'knn'" in capsys.readouterr().err


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 6, 5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).relu().mean((2, 3))


@pytest.mark.slow
def test_evaluate_from_python_takes_a_module_and_reads_its_record_the_second_time(data: Path, tmp_path: Path) -> None:
    options = RunOptions(records=tmp_path / "records", features=tmp_path / "features", workers=0, progress=False)
    first = evaluate(Small(), "knn.demo@1", data, name="mine", options=options)
    assert first.encoder.name == "mine"
    assert "mean" in first.encoder.assumed
    again = evaluate(Small(), "knn.demo", data, name="mine", options=options)
    assert again == first
    with pytest.raises(InputError, match="no protocol"):
        evaluate(Small(), "knn@7", data)


@pytest.mark.slow
def test_knn_record_equals_a_plain_count_over_the_stored_outcomes(data: Path, tmp_path: Path) -> None:
    """The score in the record is the mean of what its side file says of every test item."""
    assert run("knn", data, tmp_path) == 0
    (path,) = (tmp_path / "records").rglob("*.json")
    record = json.loads(path.read_text(encoding="utf-8"))
    from results.store import StoredRecord, read_record

    stored = read_record(path)
    assert isinstance(stored, StoredRecord)
    outcomes = stored.outcomes()
    assert outcomes is not None
    assert np.isclose(record["scores"]["k=20"]["value"], 100 * outcomes["correct/k=20"].mean())
    assert len(outcomes["ids"]) == record["dataset"]["test_items"]


def test_protocol_ids_are_unique_and_found_with_and_without_revision() -> None:
    protocols = [p for task in tasks() for p in task.protocols]
    identifiers = [p.id for p in protocols]
    assert len(set(identifiers)) == len(identifiers)
    for protocol in protocols:
        assert find_protocol(protocol.id) == protocol


@pytest.mark.slow
def test_help_imports_neither_torch_nor_a_benchmark() -> None:
    code = (
        "import atexit, sys; from benchmarks.__main__ import main\n"
        "atexit.register(lambda: print(sorted({'torch', 'benchmarks.knn', 'benchmarks.linear'} & set(sys.modules))))\n"
        "main(['--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("[]\n"), done.stdout[-300:]
    assert "  knn                Weighted k-nearest-neighbour" in done.stdout


def test_the_help_page_has_the_first_line_of_every_benchmark() -> None:
    shown = {name: sentence for sentences in TASKS.values() for name, sentence in sentences.items()}
    assert shown == {name: first_sentence(load_task(name)) for name in TASK_NAMES}


@pytest.mark.slow
def test_probes_runs_three_benchmarks_in_one_pass_and_skips_what_an_encoder_has_not(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("probes", data, tmp_path, "--set", "epochs=2", encoder=(ENCODER, "pixels")) == 0
    found = {(r.encoder.name, r.protocol.resolved.benchmark) for r in records(tmp_path)}
    assert found == {
        ("random init (resnet18, seed 0)", "linear_avgpool"),
        ("random init (resnet18, seed 0)", "linear_multihead"),
        ("random init (resnet18, seed 0)", "attentive"),
        ("raw pixels", "linear_avgpool"),
        ("raw pixels", "attentive"),  # on its patches
    }
    error = capsys.readouterr().err
    assert error.startswith("encoder-bench: skipped: raw pixels has none of feature1")
    assert len(error.splitlines()) == 1
    both = {r.protocol.resolved.benchmark: r.scores for r in records(tmp_path)}
    assert run("multihead", data, tmp_path / "alone", "--set", "epochs=2") == 0
    (alone,) = records(tmp_path / "alone")
    assert alone.scores == both["linear_multihead"]
    assert run("probes", data, tmp_path, "--protocol", "knn.demo@1") == 2


def test_an_encoder_that_no_protocol_can_be_asked_of_is_not_success(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("multihead", data, tmp_path, encoder=("pixels",)) == 2
    assert "skipped" in capsys.readouterr().err
    assert list(tmp_path.rglob("*.json")) == []


def test_protocols_lists_those_of_a_command_in_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["protocols", "seg-knn"]) == 0
    ids = [row.split()[0] for row in capsys.readouterr().out.splitlines()]
    assert ids == ["ade20k_seg_knn.capi@1", "voc12aug_seg_knn.capi@1", "ade20k_seg_knn.demo@1"]
    assert main(["protocols", "label_free*"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert {row.split()[1] for row in rows} == {"label-free", "label-free-views"}
    assert len({row.index(row.split()[2], row.index(row.split()[1])) for row in rows}) == 1

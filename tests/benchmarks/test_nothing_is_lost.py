"""Runs that fail, and states that are damaged: what was there before stays, and the same command says what to do."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.evaluate import Run, load, prepare, write_outcome
from benchmarks.registry import find_protocol, load_task
from benchmarks.task import InputError, Outcome, RunOptions
from results.store import read_records


def asked(task: str, protocol: str, data: Path, folder: Path) -> Run:
    options = RunOptions(
        device="cpu", workers=0, progress=False, records=folder / "records", features=folder / "features"
    )
    return prepare(load_task(task)(), find_protocol(protocol), load("pixels"), data, options=options)


def command(task: str, data: Path, folder: Path, *flags: str) -> list[str]:
    return [
        task, "--encoder", "pixels", "--data", str(data), "--out", str(folder / "records"),
        "--features", str(folder / "features"), "--device", "cpu", "--workers", "0", *flags,
    ]  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.mark.parametrize("failing", [".heads.safetensors", ".masks.png", None])
def test_a_record_is_written_after_its_heads_and_pictures(
    failing: str | None, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full at one of them leaves no record, so that the next run measures again."""
    from results.files import write_file

    def full(path: Path, content: bytes) -> None:
        assert not list(tmp_path.rglob("*.json"))
        if failing is not None and path.name.endswith(failing):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write_file(path, content)

    monkeypatch.setattr("results.store.write_file", full)
    run = asked("knn", "knn.demo@1", small_data, tmp_path)
    outcome = Outcome(tensors={"head": torch.zeros(2)}, pictures={"masks": b"a picture"})
    if failing is not None:
        with pytest.raises(OSError, match="No space left on device"):
            write_outcome(run, outcome, 0.0)
        assert not list(tmp_path.rglob("*.json"))
        return
    write_outcome(run, outcome, 0.0)
    ((stored,), bad) = read_records(tmp_path / "records")
    assert not bad
    assert stored.path.with_suffix(".masks.png").read_bytes() == b"a picture"
    assert stored.path.with_suffix(".heads.safetensors").is_file()


@pytest.mark.parametrize("outcome", [{"tensors": {"head": torch.zeros(2)}}, {"pictures": {"masks": b"a picture"}}])
def test_what_a_killed_writer_left_of_heads_and_pictures_is_removed_by_the_next(
    outcome: dict[str, Any], small_data: Path, tmp_path: Path
) -> None:
    run = asked("knn", "knn.demo@1", small_data, tmp_path)
    child = os.fork()
    if not child:
        os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        write_outcome(run, Outcome(**outcome), 0.0)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert list(tmp_path.rglob("*.partial"))
    write_outcome(run, Outcome(**outcome), 0.0)
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.slow
def test_a_forced_run_that_fails_keeps_the_good_record_and_its_outcomes(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = command("knn", small_data, tmp_path, "--set", "k=1")
    assert main(wanted) == 0
    before = contents(tmp_path / "records")
    assert {Path(name).suffix for name in before} == {".json", ".npz", ".png"}

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a fault of the search")

    with monkeypatch.context() as patch:
        patch.setattr("benchmarks.solvers.exact_knn.exact_knn", broken)
        assert main([*wanted, "--force"]) == 1
    after = contents(tmp_path / "records")
    assert {name: after[name] for name in before} == before
    (failure,) = after.keys() - before.keys()
    assert failure.endswith(".failed")
    assert b"a fault of the search" in after[failure]


@pytest.mark.slow
def test_a_damaged_state_of_a_probe_is_one_sentence_and_stays(
    small_data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    state = asked("linear", "linear_avgpool.demo@2", small_data, tmp_path).workdir / "resume.pt"
    state.parent.mkdir(parents=True)
    for content in (b"", b"PK\x03\x04 or not", b"\x80\x02}q\x00."):
        state.write_bytes(content)
        assert main(command("linear", small_data, tmp_path)) == 2
        printed = capfd.readouterr().err
        assert "Traceback" not in printed
        assert "remove it to start this training anew" in printed.strip().splitlines()[-1]
        assert state.read_bytes() == content
    assert not list(tmp_path.glob("records/**/*.json"))


@pytest.mark.parametrize("seed", [-1, 2**32, 10**30])
def test_a_seed_that_no_generator_takes_is_one_sentence(
    seed: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=f"--seed must be between 0 and 4294967295, got {seed}"):
        RunOptions(seed=seed)
    assert main(command("knn", tmp_path, tmp_path, f"--seed={seed}")) == 2
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert "--seed" in line
    assert not list(tmp_path.iterdir())

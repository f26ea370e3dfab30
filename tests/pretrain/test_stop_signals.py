"""Runs that are told to stop as Slurm does it: the signal reaches every rank and every loader process at once."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset

from pretrain.distributed import STOP_SIGNALS, DataLoader
from pretrain.train import load_resume
from tests.pretrain.tiny_runs import FLAGS
from tests.processes import PRETRAIN, Program, run_two_ranks, two_ranks

ROOT = Path(__file__).parents[2]

# The command. In the second epoch rank 1 gets no batch before there is a file "go", and rank 0 tells that it waits.
WAITING = """
import os, sys, time
from pathlib import Path
from pretrain import loader, train
from pretrain.__main__ import main
views, update, folder = loader.seeded_views, train.Trainer.update, Path(sys.argv[1])
def late(work, image, seed, number, index):
    while number > 0 and os.environ["RANK"] == "1" and not (folder / "go").exists():
        time.sleep(0.01)
    return views(work, image, seed, number, index)
def told(self, batch):
    if self.step == 2 and os.environ["RANK"] == "0":
        (folder / "rank 0 waits").touch()
    update(self, batch)
loader.seeded_views, train.Trainer.update = late, told
sys.exit(main(sys.argv[2:]))
"""


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_until(found: Callable[[], bool], seconds: float = 60) -> bool:
    until = time.monotonic() + seconds
    while not found():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, pytest.param(signal.SIGUSR2, marks=pytest.mark.nightly)])
def test_a_signal_to_all_ranks_and_loaders_saves_the_state(images: Path, tmp_path: Path, sent: signal.Signals) -> None:
    """It comes while rank 1 has no batch, and rank 0 waits for its part of the step."""
    flags = [
        "--data", str(images), *FLAGS, "--epochs", "2", "--precision", "fp32", "--workers", "2",
        "--augmentation.engine", "pil", "--augmentation.stored-size", "None",
    ]  # fmt: skip
    run_two_ranks(PRETRAIN, *flags, "--out", str(tmp_path / "whole"))
    flags += ["--out", str(tmp_path / "cut")]
    ranks = two_ranks(WAITING, str(tmp_path), *flags)
    assert wait_until((tmp_path / "rank 0 waits").exists), "\n".join(rank.said for rank in ranks)
    # SIGUSR2 reaches one rank only, as where Slurm sends it to the first process of a node.
    told = ranks if sent is signal.SIGTERM else ranks[1:]
    workers = [worker for rank in told for worker in children_of(rank.pid)]
    assert len(workers) == 2 * len(told)
    for pid in [*(rank.pid for rank in told), *workers]:
        os.kill(pid, sent)
    if sent is signal.SIGUSR2:
        assert wait_until(lambda: "SIGUSR2: saving" in ranks[1].said)
        time.sleep(3)  # for rank 0 to hear of it
    (tmp_path / "go").touch()
    try:
        assert [rank.wait(timeout=60) for rank in ranks] == [143, 143], "\n".join(rank.said for rank in ranks)
    finally:
        for rank in ranks:
            rank.kill()
    assert all(wait_until(lambda pid=pid: not Path(f"/proc/{pid}").exists()) for pid in workers)  # type: ignore[misc]
    cut = load_resume(tmp_path / "cut" / "resume.pt")
    assert cut is not None
    assert cut["trainer"]["step"] == 3
    run_two_ranks(PRETRAIN, *flags)
    models = [(load_resume(tmp_path / name / "resume.pt") or {})["trainer"]["model"] for name in ("whole", "cut")]
    for name, value in models[0].items():
        if "running_" in name:  # rank 1 goes on with those of rank 0 inside an epoch
            torch.testing.assert_close(models[1][name], value, rtol=0.2, atol=0.02)
        else:
            assert torch.equal(models[1][name], value), name


class Pids(Dataset[int]):
    """The number of the process that reads an item; from the item `hangs` on it never comes."""

    def __init__(self, hangs: int = 8) -> None:
        self.hangs = hangs

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        if index >= self.hangs:
            time.sleep(600)
        return os.getpid()


def send(pid: int, number: signal.Signals) -> None:
    """From another process, as the sender matters."""
    subprocess.run(["sh", "-c", f"kill -{int(number)} {pid}"], check=True)


def pending(pid: int) -> int:
    """The signals that wait for a process, as bits. One of a kind that waits already is lost, whoever sends it."""
    return int(re.findall(r"^ShdPnd:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)[0], 16)


def test_only_its_owner_ends_a_loader_process(tmp_path: Path) -> None:
    def init(number: int) -> None:
        (tmp_path / str(number)).touch()

    batches = iter(DataLoader(Pids(hangs=6), num_workers=2, batch_size=1, worker_init_fn=init))
    pids = {int(next(batches)), int(next(batches))}
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1"}
    for pid in pids:
        for number in STOP_SIGNALS:
            send(pid, number)
    assert {int(next(batches)) for _ in range(4)} == pids
    assert wait_until(lambda: not any(map(pending, pids)))
    for worker in batches._workers:  # as torch ends one that hangs
        worker.terminate()
        worker.join(30)
        assert worker.exitcode == 0
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(STOP_SIGNALS)  # of this process


def test_a_loader_process_ends_with_its_owner() -> None:
    program = Program("""
import sys, time
from pretrain.distributed import DataLoader
from tests.pretrain.test_stop_signals import Pids
batches = iter(DataLoader(Pids(hangs=2), num_workers=1, batch_size=1))
print(int(next(batches)), flush=True)
time.sleep(600)
""")
    assert wait_until(lambda: program.said.endswith("\n"))
    os.kill(program.pid, signal.SIGKILL)
    assert program.wait() == -signal.SIGKILL
    assert wait_until(lambda: not Path(f"/proc/{program.said.strip()}").exists(), seconds=20)


def test_an_error_in_a_loop_leaves_no_loader_process() -> None:
    program = Program("""
from pretrain.distributed import DataLoader
from tests.pretrain.test_stop_signals import Pids
for pid in DataLoader(Pids(), num_workers=2, batch_size=1, persistent_workers=True):
    print(int(pid), flush=True)
    raise ValueError("the loop failed")
""")
    assert program.wait() == 1
    assert "the loop failed" in program.said
    assert not Path(f"/proc/{program.said.split()[0]}").exists()


def test_every_loader_is_that_of_this_project() -> None:
    """Whose processes outlive the signals."""
    plain = re.compile(r"from torch\.utils\.data import .*\bDataLoader\b|\bdata\.DataLoader\(", re.MULTILINE)
    files = [path for package in ("benchmarks", "pretrain") for path in (ROOT / package).rglob("*.py")]
    assert [path.name for path in files if plain.search(path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize("held", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_loader_process_that_loses_the_signal_of_its_owner_is_killed(held: bool) -> None:
    """It ended neither at a second signal nor at the end of the program, which waited for it for ever."""
    program = Program(
        """
import sys
import pretrain.distributed
from tests.pretrain.test_stop_signals import Pids
pretrain.distributed._take_signals = lambda: None  # the signals stay blocked, and nobody takes them
batches = iter(pretrain.distributed.DataLoader(Pids(hangs=2), num_workers=1, batch_size=1))
print(int(next(batches)), flush=True)
if sys.argv[1:]:  # as where a traceback holds the iterator, so that multiprocessing ends the worker and not torch
    batches._shutdown_workers = lambda: None
else:
    del batches
""",
        *["held"] * held,
    )
    assert program.wait(timeout=60) == 0
    assert wait_until(lambda: not Path(f"/proc/{program.said.strip()}").exists())

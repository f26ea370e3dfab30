"""The submit script on a real Slurm of three nodes, where Debian's slurm-wlm is installed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.slurm_cluster import cluster, missing

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(bool(missing()), reason=f"not installed: {', '.join(missing())} (Debian: slurm-wlm)"),
]

# Counts its starts; the first one waits until it is told to stop, and saves.
JOB = """
import pathlib, signal, sys, time
starts, saved = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
def stop(*_):
    saved.write_text("yes")
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
with starts.open("a") as file:
    file.write("x")
if len(starts.read_text()) == 1:
    time.sleep(300)
"""

RANKS = """
import os, sys
import torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor([float(dist.get_rank() + 1)])
dist.all_reduce(total)
if dist.get_rank() == 0:
    open(sys.argv[1], "w").write(f"{dist.get_world_size()} {total.item():g}")
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with cluster(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


@pytest.fixture
def slurm(running: dict[str, str]) -> Iterator[dict[str, str]]:
    yield running
    subprocess.run(["scancel", "--me", "--signal=KILL", "--full"], env=running, check=False)
    subprocess.run(["scancel", "--me"], env=running, check=False)


def submit(slurm: dict[str, str], folder: Path, *flags: str, command: list[str], then: str = "") -> tuple[int, str]:
    script = [sys.executable, str(ROOT / "scripts" / "submit.py")]
    where = ["--cluster", "slurm", "--folder", str(folder / "jobs"), "--cpus", "1", "--then", then]
    environment = {**slurm, "PYTHONPATH": f"{folder}:{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [*script, *where, *flags, "--", *command]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stderr


def status(folder: Path, slurm: dict[str, str]) -> str:
    command = [sys.executable, str(ROOT / "scripts" / "submit.py"), "status", "--folder", str(folder / "jobs")]
    environment = {**slurm, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True).stdout


def wait_for(found: Callable[[], bool], seconds: float = 90) -> bool:
    deadline = time.monotonic() + seconds
    while not found():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.3)
    return True


def interrupted_job(tmp_path: Path) -> tuple[list[str], Path, Path]:
    (tmp_path / "job.py").write_text(JOB)
    starts, saved = tmp_path / "starts", tmp_path / "saved"
    return ["python", str(tmp_path / "job.py"), str(starts), str(saved)], starts, saved


def test_an_array_runs_then_the_last_command_and_status_lists_them(slurm: dict[str, str], tmp_path: Path) -> None:
    code, told = submit(
        slurm, tmp_path,
        command=["python", "-m", "benchmarks", "all", "--encoder", "pixels", "random:resnet18-w8-k3-nopool:0",
                 "no_such_file.pth", "--only", "knn.mmselfsup", "--data", str(tmp_path), "--out", str(tmp_path / "r")],
        then=f"{sys.executable} -c \"open({str(tmp_path / 'page')!r}, 'w')\"",
    )  # fmt: skip
    assert code == 1, told  # one encoder is left out, and said so
    assert "no_such_file.pth" in told
    assert wait_for((tmp_path / "page").exists), status(tmp_path, slurm)
    assert wait_for(lambda: "done" in status(tmp_path, slurm).splitlines()[-1])
    lines = status(tmp_path, slurm).splitlines()
    assert [line.split()[0] for line in lines] == ["failed", "failed", "done"]  # there is no ImageNet here
    assert "pixels, knn.mmselfsup@1" in lines[0]
    assert "imagenet" in Path(lines[0].split()[-1]).read_text().lower()


@pytest.mark.parametrize("how", ["preempted", "requeued by hand"])
def test_a_stopped_job_saves_and_is_queued_again(slurm: dict[str, str], tmp_path: Path, how: str) -> None:
    command, starts, saved = interrupted_job(tmp_path)
    code, told = submit(slurm, tmp_path, "--partition", "low", "--nodes", "1", "--sbatch", "exclusive", command=command)
    assert code == 0, told
    number = told.split("job ")[1].split(":")[0]
    assert wait_for(lambda: starts.exists() and starts.read_text() == "x"), status(tmp_path, slurm)
    if how == "preempted":
        important = ["sbatch", "--partition=high", "--nodes=3", "--exclusive", "--wrap=sleep 2", "--output=/dev/null"]
        subprocess.run(important, env=slurm, check=True, capture_output=True)
    else:
        subprocess.run(["scontrol", "requeue", number], env=slurm, check=True)
    assert wait_for(lambda: saved.exists()), status(tmp_path, slurm)
    # Slurm holds a requeued job back for two minutes; nobody here wants to wait for that.
    now = ["scontrol", "update", f"JobId={number}", "StartTime=now"]
    wait_for(
        lambda: subprocess.run(now, env=slurm, capture_output=True).returncode == 0 and "x" * 2 in starts.read_text(),
        60,
    )
    assert starts.read_text() == "xx", status(tmp_path, slurm)
    assert saved.read_text() == "yes"
    assert wait_for(lambda: status(tmp_path, slurm).startswith("done")), status(tmp_path, slurm)
    log = Path(status(tmp_path, slurm).split()[-1]).read_text()
    assert "Traceback" not in log


def test_two_nodes_meet_under_torchrun(slurm: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "two_ranks.py").write_text(RANKS)
    out = tmp_path / "out"
    code, told = submit(slurm, tmp_path, "--nodes", "2", command=["python", "-m", "two_ranks", str(out)])
    assert code == 0, told
    assert wait_for(lambda: out.exists() and bool(out.read_text()), 120), status(tmp_path, slurm)
    assert out.read_text() == "2 3"


def test_a_refusal_is_one_sentence_in_sbatchs_words(slurm: dict[str, str], tmp_path: Path) -> None:
    code, told = submit(slurm, tmp_path, "--partition", "nowhere", command=["true"])
    assert code == 2
    assert "Traceback" not in told
    (line,) = [line for line in told.splitlines() if line.startswith("submit:")]
    assert "sbatch refused the job" in line
    assert "invalid partition" in line.lower()


def test_more_commands_than_an_array_takes_are_packed(slurm: dict[str, str], tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "scripts" / "submit.py"), "--cluster", "slurm", "--dry-run"]
    encoders = [f"random:resnet18-w8-k3-nopool:{seed}" for seed in range(12)]
    everything = ["python", "-m", "benchmarks", "all", "--encoder", *encoders, "--only", "knn.mmselfsup",
                  "--data", str(tmp_path)]  # fmt: skip
    environment = {**slurm, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*script, "--", *everything], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --array=0-3%4" in done.stdout  # MaxArraySize of this cluster is 6: three commands to a job
    assert done.stdout.count("--only knn.mmselfsup@1") == 12
    assert not list(tmp_path.iterdir())

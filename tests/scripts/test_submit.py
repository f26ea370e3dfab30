"""The submit script local jobs and preemption as a user starts them, and Slurm with a stand-in for its commands."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torchvision

from benchmarks.__main__ import AllFlags, parse_flags
from scripts import submit

SCRIPT = Path(__file__).parents[2] / "scripts" / "submit.py"


def started(folder: Path, *, command: list[str], then: str = "") -> subprocess.Popen[str]:
    arguments = [sys.executable, str(SCRIPT), "--folder", str(folder / "jobs"), "--then", then, "--", *command]
    return subprocess.Popen(arguments, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.slow
def test_a_job_runs_and_the_last_command_follows(tmp_path: Path) -> None:
    job = [sys.executable, "-c", f"open({str(tmp_path / 'job')!r}, 'w')"]
    then = f'{sys.executable} -c "import os; os.rename({str(tmp_path / "job")!r}, {str(tmp_path / "page")!r})"'
    process = started(tmp_path, command=job, then=then)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert (tmp_path / "page").exists()
    flags = [sys.executable, str(SCRIPT), "status", "--folder", str(tmp_path / "jobs")]
    listed = subprocess.run(flags, text=True, capture_output=True)
    assert listed.returncode == 0
    state, number, _, log = listed.stdout.split()
    assert state == "done"
    assert number.isdecimal()
    assert Path(log).is_file()


@pytest.mark.slow
def test_tables_follow_by_default_where_there_is_no_makefile(tmp_path: Path) -> None:
    (tmp_path / "work" / "records").mkdir(parents=True)
    words = [sys.executable, str(SCRIPT), "--folder", "jobs", "--", sys.executable, "-c", "pass"]
    done = subprocess.run(words, cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "work" / "tables.md").is_file()


@pytest.mark.slow
def test_a_failed_job_is_told_with_its_log_and_the_page_is_written_all_the_same(tmp_path: Path) -> None:
    then = f"{sys.executable} -c \"open({str(tmp_path / 'page')!r}, 'w')\""
    process = started(tmp_path, command=[sys.executable, "-c", "raise SystemExit('no weights')"], then=then)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert (tmp_path / "page").exists()
    (log,) = re.findall(r"its log is (\S+)", errors)
    assert "no weights" in Path(log).read_text()


@pytest.mark.slow
def test_a_preempted_job_is_queued_again_and_goes_on(tmp_path: Path) -> None:
    """The job counts its starts in a file and hangs at the first."""
    starts = tmp_path / "starts"
    job = tmp_path / "job.py"
    job.write_text(
        "import pathlib, sys, time, os\n"
        "p = pathlib.Path(sys.argv[1])\n"
        "n = len(p.read_text().split()) if p.exists() else 0\n"
        "assert 'SIGUSR2' in os.environ['PET_SIGNALS_TO_HANDLE'] and os.environ['PET_SHUTDOWN_TIMEOUT'] == '100'\n"
        "open(p, 'a').write(f'{os.getppid()} ')\n"
        "if n == 0: time.sleep(300)\n"
    )
    process = started(tmp_path, command=[sys.executable, str(job), str(starts)])
    deadline = time.monotonic() + 60
    while not (starts.exists() and starts.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(int(starts.read_text().split()[0]), signal.SIGUSR2)  # as Slurm tells a job that it is preempted
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert len(starts.read_text().split()) == 2


def test_no_command_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit.main(["--folder", str(tmp_path / "jobs"), "--"]) == 2
    assert "submit: no command" in capsys.readouterr().err


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An `sbatch` on the path that keeps what it was given, and a `srun` for submitit to find."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "sbatch").write_text(
        "#!/bin/sh\n"
        f"n=$(ls {tmp_path}/sent.* 2>/dev/null | wc -l)\n"
        f'for last; do :; done; cp "$last" {tmp_path}/sent.$n\n'
        'echo "Submitted batch job $((100 + n))"\n'
    )
    (folder / "srun").write_text("#!/bin/sh\n")
    for file in folder.iterdir():
        file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@pytest.mark.slow
@pytest.mark.usefixtures("slurm")
def test_every_encoder_and_benchmark_is_one_element_of_an_array_and_the_page_waits_for_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    code = submit.main([
        "--folder", str(tmp_path / "jobs"), "--cluster", "slurm", "--partition", "gpu", "--gpus", "1",
        "--parallel", "3", "--then", "make tables", "--", "encoder-bench", "all",
        "--encoder", "pixels", "random:resnet18-w8-k3-nopool:0", "--only", "knn.mmselfsup", "voc07_svm.*",
        "--data", "/data",
    ])  # fmt: skip
    errors = caplog.text
    assert code == 0, errors
    array, page = (Path(tmp_path / f"sent.{n}").read_text() for n in (0, 1))
    variants = len(re.findall(r"--only voc07_svm\.\w+@\d+", errors)) // 2
    assert variants >= 4
    assert f"#SBATCH --array=0-{2 * (1 + variants) - 1}%3" in array
    assert "#SBATCH --partition=gpu" in array
    assert "#SBATCH --gpus-per-node=1" in array
    assert "#SBATCH --dependency=afterany:100" in page
    assert "#SBATCH --time=60" in page
    assert "gpus" not in page
    assert "#SBATCH --mem" not in page
    assert errors.count("--encoder=pixels --only knn.mmselfsup@1") == 1
    assert "-m benchmarks all" in errors  # what torchrun can start


def test_a_dry_run_prints_the_script_with_every_option_on_a_machine_without_slurm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    code = submit.main([
        "--folder", str(tmp_path / "jobs"), "--cluster", "slurm", "--dry-run",
        "--nodes", "2", "--gpus-per-node", "8", "--gpu-type", "a100",
        "--cpus", "128", "--memory-gb", "500", "--minutes", "90", "--grace-seconds", "60", "--partition", "gpu",
        "--account", "vision", "--qos", "long", "--constraint", "ib", "--exclude", "bad[1-2]", "--mail", "me@here.org",
        "--setup", "module load cuda", "--sbatch", "reservation=maintenance", "exclusive",
        "--", "python", "-m", "pretrain", "--recipe", "my_recipe", "--data", "/data",
    ])  # fmt: skip
    script, errors = capsys.readouterr()
    assert code == 0, errors
    options = dict(re.findall(r"#SBATCH --([a-z-]+)=?(.*)", script))
    assert {
        "nodes": "2", "gpus-per-node": "a100:8", "cpus-per-task": "128", "mem": "500GB", "time": "90",
        "ntasks-per-node": "1", "partition": "gpu", "account": "vision", "qos": "long", "constraint": "ib",
        "exclude": "'bad[1-2]'", "mail-type": "END,FAIL", "mail-user": "me@here.org", "signal": "USR2@60",
        "reservation": "maintenance", "exclusive": "", "requeue": "", "job-name": "'pretrain, my_recipe'",
    }.items() <= options.items()  # fmt: skip
    assert script.index("module load cuda") < script.index("srun ")
    assert "-m torch.distributed.run --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d" in script
    assert not (tmp_path / "jobs").exists()
    assert submit.main(["--folder", str(tmp_path / "jobs"), "--cluster", "slurm", "--", "true"]) == 2
    assert "sbatch and srun are not on PATH; use --cluster local, or --dry-run" in capsys.readouterr().err


def test_jobs_have_names_and_share_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    all_of = ["python", "-m", "benchmarks", "all", "--data", "/data"]
    commands = [[*all_of, "--encoder", f"runs/{name}.pth", "--only", "knn.mmselfsup@1"] for name in "abcde"]
    two = submit._jobs(submit.SubmitOptions(folder=tmp_path, pack=2), commands)
    assert [(job.name, len(job.commands)) for job in two] == [
        ("a, knn.mmselfsup@1 and 1 more", 2), ("c, knn.mmselfsup@1 and 1 more", 2), ("e, knn.mmselfsup@1", 1),
    ]  # fmt: skip
    assert [job.name for job in submit._jobs(submit.SubmitOptions(folder=tmp_path, name="mine"), commands[:1])] == [
        "mine"
    ]
    monkeypatch.setattr(submit, "_max_array_size", lambda: 4)
    on_slurm = submit.SubmitOptions(cluster="slurm", folder=tmp_path)
    assert [len(job.commands) for job in submit._jobs(on_slurm, commands)] == [2, 2, 1]
    (pretraining,) = submit._jobs(on_slurm, [["python", "-m", "pretrain", "--recipe", "my/recipe.toml"]])
    assert pretraining.name == "pretrain, recipe"


def test_a_checkpoint_whose_name_begins_with_dashes_reaches_the_command_as_an_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(torchvision.models.resnet18().state_dict(), "--x.pth")
    command = ["python", "-m", "benchmarks", "all", "--encoder", "*.pth", "--data", str(tmp_path)]
    for name in ([], ["--name=--mine"]):
        commands, bad = submit.split_up([*command, *name, "--only", "knn.mmselfsup"])
        assert bad == 0
        flags, _, _ = parse_flags("all", AllFlags, commands[0][4:])
        assert (flags.encoder, flags.name) == (("--x.pth",), "--mine" if name else None)
        (job,) = submit._jobs(submit.SubmitOptions(folder=tmp_path), commands)
        assert job.name == ("--mine" if name else "--x") + ", knn.mmselfsup@1"


@pytest.mark.slow
def test_only_bad_encoders_are_one_sentence_and_submit_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["encoder-bench", "all", "--encoder", str(tmp_path / "none.pth"), "--data", str(tmp_path)]
    assert submit.main(["--folder", str(tmp_path / "jobs"), "--", *command]) == 2
    said = capsys.readouterr().err
    assert "none.pth" in said
    assert said.splitlines()[-1] == "submit: none of the encoders can be loaded: nothing was submitted"
    assert not (tmp_path / "jobs").exists()

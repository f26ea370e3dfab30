"""`make` explains itself, and the set-up refuses in one sentence where it cannot work."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.registry import TASK_NAMES

ROOT = Path(__file__).parents[2]


def run(
    *command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


def phony_targets() -> set[str]:
    return set(" ".join(re.findall(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text(), re.M)).split())


def bench_targets() -> set[str]:
    return {f"bench-{name}" for name in TASK_NAMES}


def test_make_lists_every_target_with_a_line() -> None:
    listed = run("make", "--no-print-directory", cwd=ROOT)
    assert listed.returncode == 0
    lines = re.findall(r"^  ([a-z][a-z0-9-]*|bench-NAME) +(\S.*)", listed.stdout, re.M)
    assert {name for name, _ in lines} - {"bench-NAME"} == phony_targets()
    named = " ".join(line for name, line in lines if name == "bench-NAME").replace(":", " ")
    assert [name for name in TASK_NAMES if name not in named.split()] == []


def planned(target: str) -> str:
    """The commands that a target would run on a tree with nothing installed or made."""
    done = run("make", "--no-print-directory", "--dry-run", "--always-make", target, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("target", sorted(phony_targets() | bench_targets()))
def test_every_script_of_a_target_is_there(target: str) -> None:
    scripts = re.findall(r"(?:^|\s)(scripts/[\w.]+)", planned(target))
    assert [s for s in scripts if not (ROOT / s).is_file()] == []


def test_make_test_runs_a_quick_part_of_the_fault_injection() -> None:
    (line,) = (line for line in planned("test").splitlines() if "-m pytest" in line)
    assert "--ignore" not in line
    assert shlex.split(line)[-2:] == ["-m", "not nightly and not faults"]
    (whole,) = (line for line in planned("test-faults").splitlines() if "-m pytest" in line)
    assert whole.endswith(" tests/faults")


@pytest.mark.slow
@pytest.mark.parametrize("package", ["benchmarks", "results"])
def test_every_command_of_a_target_is_known(package: str) -> None:
    asked = {c for t in phony_targets() | bench_targets() for c in re.findall(rf"-m {package} ([\w-]+)", planned(t))}
    known = run(sys.executable, "-m", package, "--help", cwd=ROOT)
    assert asked
    assert [c for c in sorted(asked) if not re.search(rf"[{{, ]{c}[}}, \n]", known.stdout + known.stderr)] == []


def test_a_zoo_page_takes_a_name_with_quotes_and_needs_no_name_to_say_what_it_needs() -> None:
    name = """it's "one" $HOME"""
    done = run("make", "--no-print-directory", "-n", "zoo-page", f"NAME={name.replace('$', '$$')}", cwd=ROOT)
    assert ["--encoder", name] == shlex.split(done.stdout.splitlines()[-1])[-2:]
    assert "--encoder" not in planned("zoo-page")


@pytest.mark.parametrize("target", ["bench-knn", "bench-frozen", "bench-all", "check-data", "audit", "pretrain"])
def test_folders_may_have_blanks_in_their_names(target: str) -> None:
    done = run("make", "--no-print-directory", "-n", target, "DATA=/my own/images", "ENCODER=a.pth", cwd=ROOT)
    assert "--data '/my own/images' " in done.stdout
    plain = run("make", "--no-print-directory", "-n", target, "DATA=~/images", "ENCODER=a.pth", cwd=ROOT)
    assert "--data ~/images " in plain.stdout  # for the shell


def test_threads_that_wait_sleep_unless_the_user_says_otherwise() -> None:
    own = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    for env, policy in ((own, "passive"), ({**own, "OMP_WAIT_POLICY": "active"}, "active")):
        shown = run("make", "-s", "--eval", "shown: ; @printenv OMP_WAIT_POLICY", "shown", cwd=ROOT, env=env)
        assert shown.stdout.split() == [policy]


@pytest.mark.parametrize(
    ("python", "sentence"),
    [
        ('[ "$1" = -V ] && echo Python 3.9.2 || exit 1', "Python 3.11 or newer is needed and .* is Python 3.9.2"),
        ('case "$2" in *ensurepip*) exit 1;; esac', "venv module is missing; .* apt-get install python3-venv"),
    ],
    ids=["too-old", "no-venv"],
)
def test_setup_refuses_in_one_sentence(tmp_path: Path, python: str, sentence: str) -> None:
    (tmp_path / "scripts").mkdir()
    script = shutil.copy(ROOT / "scripts" / "setup.sh", tmp_path / "scripts")
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\n{python}\n")
    fake.chmod(0o755)
    refused = run("bash", script, "core", env={"PATH": "/usr/bin:/bin", "PYTHON": str(fake)})
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    assert re.search(sentence, refused.stderr)


def with_torch(folder: Path) -> None:
    """A `.venv` that has a torch: the set-up looks for no more disk."""
    version = folder / ".venv/lib/python3.11/site-packages/torch/version.py"
    version.parent.mkdir(parents=True)
    version.touch()


@pytest.mark.parametrize("lock", ["core", "dev", "transfer"])
def test_setup_refuses_a_full_disk_before_it_makes_or_downloads_anything(tmp_path: Path, lock: str) -> None:
    (tmp_path / "scripts").mkdir()
    script = shutil.copy(ROOT / "scripts" / "setup.sh", tmp_path / "scripts")
    fakes = tmp_path / "fakes"
    fakes.mkdir()
    (fakes / "python").write_text(f'#!/bin/sh\n[ "$1" = -c ] || echo "$@" >> {tmp_path}/calls\n')
    (fakes / "df").write_text("#!/bin/sh\necho header\necho disk 0 0 $FREE 0% /\n")
    (fakes / "uname").write_text("#!/bin/sh\necho Linux x86_64\n")
    for fake in fakes.iterdir():
        fake.chmod(0o755)

    def setup(free: int) -> subprocess.CompletedProcess[str]:
        env = {"PATH": f"{fakes}:/usr/bin:/bin", "PYTHON": str(fakes / "python"), "FREE": str(free)}
        return run("bash", script, lock, env=env)

    assert setup(6_839_999).returncode == 2
    refused = setup(4_000_000)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == (
        f"setup: {tmp_path}/.venv needs 7.0 GB of disk, and 4.1 GB are free there; "
        "make space, or move this folder to a larger disk.\n"
    )
    assert not (tmp_path / "calls").exists()
    setup(6_840_000)
    assert (tmp_path / "calls").read_text() == "-m venv .venv\n"

    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "downloaded").write_bytes(bytes(100_000_000))  # by a set-up that was interrupted
    refused = setup(1_000_000)
    assert "needs 6.9 GB of disk, and 1.0 GB are free" in refused.stderr
    with_torch(tmp_path)
    assert "disk" not in setup(0).stderr


def setup_calls(folder: Path, lock: str) -> list[str]:
    """What scripts/setup.sh asks of the environment's Python, without doing it."""
    shutil.copytree(ROOT / "requirements", folder / "requirements")
    (folder / "scripts").mkdir()
    script = shutil.copy(ROOT / "scripts" / "setup.sh", folder / "scripts")
    python = folder / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "$@" >> {folder}/calls\n')
    python.chmod(0o755)
    with_torch(folder)
    done = run("bash", script, lock, env={"PATH": "/usr/bin:/bin"})
    assert done.returncode == 0, done.stderr
    return (folder / "calls").read_text().splitlines()


@pytest.mark.parametrize("lock", ["core", "dev", "transfer"])
def test_setup_demands_hashes_and_isolates_no_build(tmp_path: Path, lock: str) -> None:
    """With isolation pip would fetch any newer setuptools, past the lock."""
    first, *others = [line for line in setup_calls(tmp_path, lock) if " install " in line]
    assert "--only-binary=:all:" in first
    assert "--require-hashes" in first
    only = (tmp_path / first.rpartition("-r ")[2]).read_text()
    assert re.findall(r"^[\w-]+==\S+", only, re.M) == re.findall(
        r"^setuptools==\S+", (ROOT / f"requirements/{lock}.txt").read_text(), re.M
    )
    assert "--hash=sha256:" in only
    assert any(f"-r requirements/{lock}.txt" in line for line in others)
    for line in others:
        assert "--no-build-isolation" in line or "--only-binary=:all:" in line
        assert "--require-hashes" in line or "--editable ." in line or "--no-index" in line


def test_sources_are_built_from_the_lock_where_torch_cannot_be_seen(tmp_path: Path) -> None:
    """Beside torch mmcv compiles operators, which takes minutes or fails, and which nothing here uses."""
    lines = setup_calls(tmp_path, "transfer")
    (build,) = (line for line in lines if " wheel " in line)
    before, _, after = build.partition(" wheel ")
    assert "--python .venv/build/bin/python" in before
    assert "--require-hashes" in after
    assert "--no-build-isolation" in after
    into = [line.rpartition("-r ")[2] for line in lines if "--python .venv/build/bin/python install" in line]
    assert into == [".venv/build/tools.txt"]

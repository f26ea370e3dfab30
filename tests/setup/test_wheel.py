"""The wheel holds all code and data of the packages, is small, and its scripts run under a name of their own."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from results.command_line import EXTRAS, missing_extra

ROOT = Path(__file__).parents[2]
PACKAGES = ("benchmarks", "pretrain", "results")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, since setuptools leaves files beside what it builds and takes what an earlier build left."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in (*PACKAGES, "scripts"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-index", "--no-build-isolation"]
    done = subprocess.run([*command, "-w", str(out), "."], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_data_file_and_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size < 9e6
    packed = set(zipfile.ZipFile(wheel).namelist())
    assert {name.partition("/")[0] for name in packed if ".dist-info/" not in name} == {
        *PACKAGES, "encoder_bench_scripts",
    }  # fmt: skip
    code = {p.relative_to(ROOT).as_posix() for name in PACKAGES for p in (ROOT / name).rglob("*.py")}
    assert code <= packed
    assert {f"encoder_bench_scripts/{name}" for name in ("submit.py", "speed/__main__.py", "speed/knn.py")} <= packed
    beside = {".py", ".pyc", ".md"}  # pages made of the records stay in the repository, as they do
    data = {p for name in PACKAGES for p in (ROOT / name).rglob("*") if p.is_file() and p.suffix not in beside}
    needed = {p.relative_to(ROOT).as_posix() for p in data if "records" not in p.parts}
    assert needed <= packed, sorted(needed - packed)


@pytest.mark.slow
def test_an_installed_wheel_reaches_its_scripts(wheel: Path, tmp_path: Path) -> None:
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    zipfile.ZipFile(wheel).extractall(site)
    plain = "sys.meta_path = [finder for finder in sys.meta_path if 'ditable' not in repr(finder)]"
    start = "from results.command_line import encoder_bench; sys.exit(encoder_bench())"

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        code = f"import sys; {plain}; sys.path.insert(0, {str(site)!r}); sys.argv[1:] = {list(arguments)!r}; {start}"
        return subprocess.run([sys.executable, "-I", "-c", code], cwd=empty, capture_output=True, text=True)

    shown = run("submit", "--help")
    assert shown.returncode == 0, shown.stderr
    assert "--cluster" in shown.stdout
    refused = run("speed", "knm")
    assert refused.returncode == 2
    assert "no entry 'knm'" in refused.stderr
    without = run("knn", "--encoder", "random:resnet18", "--data", str(empty))
    assert without.returncode == 2
    assert "data set imagenet not found" in without.stderr
    assert "Traceback" not in without.stderr


def test_scripts_of_a_checkout_are_commands(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["encoder-bench"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert main(["submit", "--cpus", "2"]) == 2
    assert "no command" in capsys.readouterr().err
    for command in ("bench-loader", "cost-table", "index-shards", "prepare-voc12aug"):
        assert main([command, "--no-such-flag"]) == 2
        assert f"encoder-bench {command} --help" in capsys.readouterr().err


def test_a_package_of_an_extra_is_named_with_the_extra() -> None:
    for name, extra in EXTRAS.items():
        assert f"encoder-bench[{extra}]" in str(missing_extra(ModuleNotFoundError(name=name)))
    with pytest.raises(ModuleNotFoundError):
        missing_extra(ModuleNotFoundError("torch", name="torch"))

"""What is installed: every file that the pages are made of, and a sentence where another package has our name."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from pretrain.resnet import ResNet
from results.schema import Architecture

ROOT = Path(__file__).parents[2]
RUN = "import sys; from results.command_line import encoder_bench; sys.argv[1:] = ['protocols', 'knn.demo']; "


def console_script(*paths: Path) -> subprocess.CompletedProcess[str]:
    # The finder of an installation for development would find our modules inside the other package.
    plain = "sys.meta_path = [finder for finder in sys.meta_path if 'ditable' not in repr(finder)]"
    code = f"import sys; {plain}; sys.path[:0] = {[str(path) for path in paths]!r}; {RUN} sys.exit(encoder_bench())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent)


def test_every_file_that_a_page_needs_is_package_data() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["results"]
    packed = {path for pattern in data for path in (ROOT / "results").glob(pattern)}
    needed = {*(ROOT / "results" / "web").iterdir(), *(ROOT / "results").glob("*.toml")}
    assert needed <= packed


@pytest.mark.slow
def test_another_package_of_our_name_is_named_in_one_sentence(tmp_path: Path) -> None:
    other = tmp_path / "benchmarks"
    other.mkdir()
    (other / "__init__.py").write_text("")
    done = console_script(tmp_path, ROOT)
    assert done.returncode == 2
    assert f"at {other} is another package of that name" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    ours = console_script(ROOT)
    assert ours.returncode == 0, ours.stderr
    assert "knn.demo@1" in ours.stdout


@pytest.mark.slow
def test_a_checkpoint_is_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = ResNet(Architecture(name="resnet18"))
    keys = {f"module.encoder_q.{name}": tensor for name, tensor in net.state_dict().items()}
    torch.save({"epoch": 200, "arch": "resnet18", "state_dict": keys}, tmp_path / "moco.pth.tar")
    assert main(["convert", str(tmp_path / "moco.pth.tar"), str(tmp_path / "out.pth"), "--to", "torchvision"]) == 0
    written = torch.load(tmp_path / "out.pth", weights_only=True)
    assert torch.equal(written["conv1.weight"], net.state_dict()["conv1.weight"])
    assert main(["convert", str(tmp_path / "moco.pth.tar"), str(tmp_path / "x.pth"), "--to", "tf"]) == 2
    assert "--to must be one of" in capsys.readouterr().err

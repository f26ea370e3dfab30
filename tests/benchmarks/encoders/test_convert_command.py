"""`encoder-bench convert` as a person runs it."""

from __future__ import annotations

import pickle
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.encoders.export import write_safetensors
from benchmarks.encoders.forms import parse_architecture
from benchmarks.encoders.networks import random_resnet


def convert(*arguments: str) -> int:
    return main(["convert", *arguments])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.safetensors"
    write_safetensors(random_resnet(parse_architecture("resnet18-w8"), 0), path)
    return path


@pytest.mark.slow
def test_the_command_writes_and_says_what_must_be_told(source: Path) -> None:
    out = source.with_name("out.pkl")
    command = [sys.executable, "-m", "benchmarks", "convert", str(source), str(out), "--to", "detectron2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "'INPUT.FORMAT': 'RGB'" in done.stderr
    assert "detectron2's own builder cannot make this network (width 8)" in done.stderr
    assert "stem.conv1.norm.weight" in pickle.loads(out.read_bytes())["model"]


def test_it_does_not_overwrite_unless_forced(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = source.with_name("out.pth")
    out.write_text("mine")
    assert convert(str(source), str(out), "--to", "openmmlab") == 2
    assert out.read_text() == "mine"
    assert "--force" in capsys.readouterr().err
    assert convert(str(source), str(out), "--to", "openmmlab", "--force") == 0
    assert "layer1.0.conv1.weight" in torch.load(out, weights_only=True)["state_dict"]


@pytest.mark.parametrize(
    ("given", "out", "to", "sentence"),
    [
        ("missing.pth", "out.pkl", "detectron2", "encoder file not found"),
        ("notes.txt", "out.pkl", "detectron2", "notes.txt"),
        ("in.safetensors", "out.pth", "detectron2", "out.pth must end in .pkl for detectron2"),
        ("in.safetensors", "out.pth", "torchvision", "torchvision's resnet18 cannot be"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    source: Path, capsys: pytest.CaptureFixture[str],
    given: str, out: str, to: str, sentence: str,
) -> None:  # fmt: skip
    (source.parent / "notes.txt").write_text("no checkpoint")
    assert convert(str(source.parent / given), str(source.parent / out), "--to", to) == 2
    first, *more = capsys.readouterr().err.splitlines()
    assert sentence in first
    assert all(line.startswith("  ") for line in more)  # the accepted forms
    assert not (source.parent / out).exists()


OUTS = {"detectron2": "out.pkl", "openmmlab": "out.pth", "torchvision": "out.pt", "safetensors": "out.safetensors"}


@pytest.mark.slow
@pytest.mark.parametrize("to", sorted(OUTS))
def test_a_place_that_cannot_be_written_is_one_sentence_and_nothing_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], to: str
) -> None:
    source = tmp_path / "in.safetensors"
    write_safetensors(random_resnet(parse_architecture("resnet18"), 0), source)
    folder = tmp_path / "out"
    (folder / OUTS[to]).mkdir(parents=True)
    (folder / "file").touch()
    before = sorted(folder.rglob("*"))

    def said(out: Path, *flags: str) -> str:
        assert convert(str(source), str(out), "--to", to, *flags) == 2
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1
        assert out.name in error
        return error

    assert "is a folder; give the name of a file" in said(folder / OUTS[to])
    assert "is a folder; give the name of a file" in said(folder / OUTS[to], "--force")
    assert "cannot write" in said(folder / "file" / OUTS[to])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))  # the backbone has 43 MiB
    try:
        assert "File too large" in said(folder / f"full{OUTS[to]}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(folder.rglob("*")) == before


def test_damaged_weights_are_not_passed_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder = random_resnet(parse_architecture("resnet18-w8"), 0)
    encoder.module.get_parameter("layer3.0.conv1.weight").view(-1)[5] = float("nan")
    torch.save(encoder.module.state_dict(), tmp_path / "nan.pth")
    assert convert(str(tmp_path / "nan.pth"), str(tmp_path / "out.pth"), "--to", "openmmlab") == 2
    assert "NaN or infinite numbers in 1 tensors (layer3.0.conv1.weight)" in capsys.readouterr().err
    assert not (tmp_path / "out.pth").exists()

"""The demo's recipe made small enough for tests, and what makes two runs the same."""

from __future__ import annotations

from pathlib import Path

import torch

from pretrain.__main__ import main
from pretrain.train import load_resume
from pretrain.weight_files import read_backbone, weights_sha256

CPU = torch.device("cpu")
FLAGS = [
    "--recipe", "mocov2_resnet18w32_demo", "--architecture.width", "8", "--batch-size", "16", "--queue-size", "32",
    "--split-bn", "2", "--workers", "0", "--device", "cpu", "--threads", "1", "--save-every-epochs", "1",
]  # fmt: skip


def run(images: Path, out: Path, *flags: str) -> int:
    return main(["--data", str(images), "--out", str(out), *FLAGS, *flags])


def assert_same_end(one: Path, two: Path) -> None:
    """Weights, optimiser, queue, generators, log and backbone of two runs are the same bit by bit."""
    first, second = load_resume(one / "resume.pt"), load_resume(two / "resume.pt")
    assert first is not None
    assert second is not None
    assert [r["loss"] for r in first["rows"]] == [r["loss"] for r in second["rows"]]
    first, second = first["trainer"], second["trainer"]
    for name, tensor in first["model"].items():
        assert torch.equal(tensor, second["model"][name]), name
    states = (state["optimizer"]["state"].values() for state in (first, second))
    for a, b in zip(*states, strict=True):
        assert torch.equal(a["momentum_buffer"], b["momentum_buffer"])
    assert torch.equal(first["views"], second["views"])
    assert torch.equal(first["shuffles"], second["shuffles"])
    assert first["step"] == second["step"]
    backbones = [read_backbone(run_ / "backbone.safetensors")[0] for run_ in (one, two)]
    assert weights_sha256(backbones[0]) == weights_sha256(backbones[1])

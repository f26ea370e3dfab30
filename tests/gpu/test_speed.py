"""The entries of `make speed` for a GPU run, on small sizes."""

from __future__ import annotations

import sys

import pytest
import torch

from benchmarks.datasets import images
from scripts.speed import __main__ as command
from scripts.speed import gpu as speed
from scripts.speed.pretrain import moco_v2
from tests.gpu.conftest import AnyGpu, RealGpu

SMALL = {"architecture": {"name": "resnet18", "width": 8}, "batch_size": 16, "split_bn": 2, "queue_size": 32}


@pytest.mark.slow
def test_every_entry_can_be_measured(gpu: AnyGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "REPEATS", 1)
    recipe = moco_v2(precision="bf16", augmentation={"crop": 32}, **SMALL)
    for entry in (
        speed.time_gpu_step(recipe),
        speed.time_gpu_augmentation(recipe),
        speed.time_gpu_extraction("resnet18-w8", crop=32, batch=4),
        speed.time_gpu_knn(gallery=600, queries=20, dim=16),
        speed.time_gpu_logistic(rows=300, dim=16, classes=4),
    ):
        assert float(entry["ours_s"]) > 0
        assert float(entry["limit_s"]) > 0
        assert torch.cuda.get_device_name() in str(entry["note"])
    assert set(speed.entries()) == {
        "gpu-step", "gpu-augment", "gpu-decode", "gpu-extract", "gpu-extract-vit", "gpu-knn",
        "gpu-logistic",
    }  # fmt: skip


@pytest.mark.slow
def test_nvjpeg_is_timed_beside_the_decoders_of_the_cpu(decoder: AnyGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "REPEATS", 1)
    monkeypatch.setattr(speed, "DECODED", 2)
    found = speed.time_gpu_decoding(files=3, workers=2 if isinstance(decoder, RealGpu) else 0)
    assert 0 < float(found["limit_s"]) < float(found["ours_s"])
    note = str(found["note"])
    assert all(f"{decoder} " in note for decoder in ("pil", "pil-draft", "nvjpeg"))
    assert 0 < float(note.rpartition("pixels ")[2].split()[0]) < 2


def test_a_torchvision_without_nvjpeg_skips_the_entry(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: object
) -> None:
    def refused(*_: object) -> None:
        raise RuntimeError("decode_jpegs_cuda: torchvision not compiled with nvJPEG support")

    monkeypatch.setattr(images, "decode_jpegs", refused)
    monkeypatch.setattr(speed, "entries", lambda: {"gpu-decode": speed.time_gpu_decoding})
    monkeypatch.setattr(sys, "argv", ["speed", "gpu-decode", "--out", f"{tmp_path}/speed.json"])
    assert command.main() == 0
    assert "gpu-decode     not measured: geometry.decoder=nvjpeg needs" in capsys.readouterr().out


@pytest.mark.parametrize(("model", "said"), [("NVIDIA A100-SXM4-80GB", "one A100: 5.9 s, measured 2.00"), ("T4", "")])
def test_what_the_docs_expect_of_a_gpu_stands_beside_it(model: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: model)
    assert said in speed.beside_expected("gpu-knn", 11.8, "s")
    assert bool(speed.beside_expected("gpu-knn", 11.8, "s")) == bool(said)

"""What only a real GPU can show: compiled encoders, half precision, memory, and two ranks with NCCL."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.solvers.exact_knn import TILE_ROWS, exact_knn
from pretrain.distributed import full_float32
from pretrain.mechanism import ProjectedEncoder
from pretrain.recipe import Recipe
from pretrain.train import load_resume
from pretrain.trainer import Stepper
from pretrain.weight_files import read_backbone
from scripts.speed.pretrain import moco_v2
from tests.gpu.conftest import needs_gpu
from tests.pretrain.tiny_runs import FLAGS

CUDA = torch.device("cuda")


def encoder_of(recipe: Recipe) -> ProjectedEncoder:
    torch.manual_seed(0)
    return ProjectedEncoder(recipe).eval()


@needs_gpu
@pytest.mark.parametrize(("precision", "tolerance"), [(None, 1e-4), (torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_embeddings_and_gradients_are_those_of_the_cpu(precision: torch.dtype | None, tolerance: float) -> None:
    """ResNet-50 at 96 pixels: embeddings of unit length, and the gradient of the stem relative to its largest value."""
    recipe, images = moco_v2(batch_size=16), torch.randn(16, 3, 96, 96)
    found = []
    for device in (torch.device("cpu"), CUDA):
        encoder, enabled = encoder_of(recipe).to(device), precision is not None and device is CUDA
        with full_float32(), torch.autocast(device.type, precision or torch.bfloat16, enabled=enabled):
            embeddings = encoder(images.to(device))
            embeddings[:, 0].sum().backward()
        gradient = next(encoder.parameters()).grad
        assert gradient is not None
        found.append((embeddings.detach().cpu(), (gradient / gradient.abs().max()).cpu()))
    for cpu, cuda in zip(*found, strict=True):
        assert (cpu - cuda).abs().max() < (tolerance if cpu.ndim == 2 else 10 * tolerance)


@needs_gpu
def test_a_compiled_encoder_gives_what_the_plain_one_gives() -> None:
    encoder, images = encoder_of(moco_v2(batch_size=16)).to(CUDA), torch.randn(16, 3, 96, 96, device=CUDA)
    with torch.no_grad():
        plain = encoder(images)
        encoder.compile()
        assert torch.allclose(encoder(images), plain, atol=1e-4)


@needs_gpu
def test_a_search_takes_no_more_memory_for_more_rows() -> None:
    """Of 64 numbers: products of 512 queries with a tile are 32 MiB, a tile is 2 MiB."""
    draws, peaks = np.random.default_rng(0), []
    queries = draws.standard_normal((1000, 64), dtype=np.float32)
    for tiles in (2, 2, 8):  # the first search makes room for cuBLAS too
        rows = draws.standard_normal((tiles * TILE_ROWS, 64), dtype=np.float32)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        exact_knn(rows, queries, 10, device="cuda", engine="torch")
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[2] <= 1.05 * peaks[1] < 256 * 2**20


@needs_gpu
def test_a_step_of_the_published_recipe_stays_below_its_memory() -> None:
    """ResNet-50, 224 pixels, 32 images, bfloat16 beside float32: Table 3 of the v2 note has 5.0 GB for the latter."""
    peaks = []
    for precision in ("bf16", "fp32"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        stepper = Stepper(moco_v2(precision=precision), CUDA)
        for _ in range(3):
            stepper.step()
        peaks.append(torch.cuda.max_memory_allocated() / 1e9)
        del stepper
    assert peaks[0] < peaks[1] < 6.0


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_ranks_with_nccl_train_to_the_weights_of_one(tmp_path: Path) -> None:
    """In float32 with PIL's views and without a shuffle: queue-free SimCLR with synchronised batch norms, two steps."""
    (tmp_path / "images").mkdir()
    for number in range(32):
        noise = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "images" / f"{number:02d}.png")
    flags = [
        *FLAGS, "--device", "cuda", "--data", str(tmp_path / "images"), "--epochs", "1", "--mechanism", "simclr",
        "--split-bn", "1", "--sync-bn", "--precision", "fp32", "--augmentation.engine", "pil",
        "--augmentation.stored-size", "None",
    ]  # fmt: skip
    weights = []
    for ranks in ("1", "2"):
        out = tmp_path / ranks
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", ranks, "--standalone"]
        command = [*torchrun, "-m", "pretrain", *flags, "--out", str(out)]
        subprocess.run(command, check=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert load_resume(out / "resume.pt") is not None
        weights.append(read_backbone(out / "backbone.safetensors")[0])
    for name, one in weights[0].items():
        assert torch.allclose(one.float(), weights[1][name].float(), rtol=1e-2, atol=1e-3), name

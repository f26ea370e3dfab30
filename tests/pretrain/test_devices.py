"""Which device a rank takes and why there is none, what float32 is on it, and how ranks end together."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks.evaluate import resolve_device
from pretrain import distributed
from pretrain.__main__ import _for_device, _stated
from pretrain.recipe import Recipe, load_recipe
from results.command_line import log_device
from results.errors import InputError
from results.files import write_file
from tests.pretrain.tiny_runs import FLAGS, run
from tests.processes import PRETRAIN, two_ranks
from tests.simulated_cuda import simulated_cuda

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without a GPU")


def driver(folder: Path, version: str) -> Path:
    path = folder / "version"
    path.write_text(f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {version}  Tue Sep 23 10:11:16 UTC 2025\nGCC\n")
    return path


@NO_GPU
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"cuda": None}, "is a build for the CPU; install one that is built for CUDA"),
        ({"hidden": ""}, "CUDA_VISIBLE_DEVICES hides every GPU"),
        ({}, "there is no NVIDIA driver on this machine or in this container"),
        ({"driver": "535.104.05"}, r"driver 535\.104\.05 is too old for torch .* update it to 580\.65 or newer"),
        ({"driver": "580.95.05"}, "Found no NVIDIA driver|no GPU"),  # torch's own words
    ],
)
def test_asking_for_a_gpu_says_why_there_is_none(
    changes: dict[str, str | None], reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.version, "cuda", changes.get("cuda", "13.0"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if (hidden := changes.get("hidden")) is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    version = changes.get("driver")
    monkeypatch.setattr(distributed, "DRIVER_FILE", driver(tmp_path, version) if version else tmp_path / "none")
    with pytest.raises(InputError, match=f"cannot use the device cuda .*{reason}.*choose another, such as cpu"):
        distributed.own_device("cuda")


@NO_GPU
def test_auto_says_why_it_takes_the_cpu_where_somebody_would_wonder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(distributed, "DRIVER_FILE", tmp_path / "none")
    monkeypatch.delenv("SLURM_GPUS_ON_NODE", raising=False)
    monkeypatch.delenv("SLURM_JOB_GPUS", raising=False)
    assert distributed.own_device("auto") == torch.device("cpu")
    assert not caplog.text
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(distributed, "DRIVER_FILE", driver(tmp_path, "550.54.15"))
    assert distributed.own_device("auto") == torch.device("cpu")
    assert "the GPU cannot be used, so this runs on the CPU: the NVIDIA driver 550.54.15 is too old" in caplog.text


def test_the_log_begins_with_the_device_and_the_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    log_device.cache_clear()
    monkeypatch.setattr(distributed, "DRIVER_FILE", driver(tmp_path, "580.95.05"))
    with simulated_cuda():
        assert resolve_device("auto") == resolve_device("cuda") == "cuda"
    assert resolve_device("cpu") == resolve_device("cpu") == "cpu"
    assert caplog.messages == ["device: cuda (Simulated, driver 580.95.05)", "device: cpu"]
    caplog.clear()
    log_device.cache_clear()
    monkeypatch.setenv("RANK", "1")
    assert resolve_device("cpu") == "cpu"
    assert not caplog.messages


def test_it_is_the_first_line_of_a_pretraining(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    log_device.cache_clear()
    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "images" / "one.png")
    assert run(tmp_path / "images", tmp_path / "out", "--epochs", "1", "--batch-size", "1", "--split-bn", "1") == 0
    assert caplog.messages[0] == "device: cpu"


def test_a_rank_takes_its_gpu_before_it_makes_a_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    happened: list[str] = []
    with simulated_cuda():
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: happened.append(f"set {device}"))
        for factory in ("zeros", "empty", "tensor"):
            monkeypatch.setattr(torch, factory, lambda *_, **__: happened.append("tensor"))
        assert distributed.own_device("auto") == distributed.own_device("cuda") == torch.device("cuda", 3)
        assert happened == ["set cuda:3", "set cuda:3"]
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        with pytest.raises(InputError, match="this process sees 2 GPUs"):
            distributed.own_device("cuda")


def test_a_gpu_that_torch_is_not_built_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with simulated_cuda():
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "compute_120"])
        assert distributed.own_device("cuda").type == "cuda"
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 0))
        with pytest.raises(InputError, match=r"compute capability 7\.0, and this torch is built for 7\.5 and newer"):
            distributed.own_device("cuda")


def test_float32_is_ieee_inside_and_what_it_was_outside() -> None:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    try:
        for allowed in (True, False):
            matmul.allow_tf32 = cudnn.allow_tf32 = allowed
            with distributed.full_float32():
                assert distributed.float32_kind() == "ieee"
                assert not matmul.allow_tf32
                assert not cudnn.allow_tf32
            assert (matmul.allow_tf32, cudnn.allow_tf32) == (allowed, allowed)
            assert distributed.float32_kind() == ("tf32" if allowed else "ieee")
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="torch has one way to allow TF32")
@pytest.mark.parametrize("everywhere", [torch.backends, torch.backends.cudnn], ids=["torch", "cudnn"])
def test_float32_is_ieee_in_a_program_that_allows_tf32_everywhere(everywhere: Any) -> None:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    matmul.fp32_precision = "none"  # as its parents have it; other tests have set it
    everywhere.fp32_precision = "tf32"
    try:
        with distributed.full_float32():
            assert {part.fp32_precision for part in (matmul, cudnn.conv, cudnn.rnn)} == {"ieee"}
            assert distributed.float32_kind() == "ieee"
        assert {part.fp32_precision for part in (matmul, cudnn.conv, cudnn.rnn)} == {"tf32"}
        assert distributed.float32_kind() == "tf32"
    finally:
        everywhere.fp32_precision = "none"
        matmul.allow_tf32, matmul.fp32_precision = False, "none"


def test_workers_share_the_cores_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert distributed.default_workers("cuda") == 7
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert distributed.default_workers(torch.device("cuda", 1)) == 16
    assert distributed.default_workers("cpu") == 2


def test_an_older_torch_is_told_not_to_broadcast_in_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        def __init__(
            self, module: nn.Module, broadcast_buffers: bool = True, gradient_as_bucket_view: bool = False
        ) -> None:
            self.settings = broadcast_buffers, gradient_as_bucket_view

    class New:
        def __init__(self, module: nn.Module, forward_sync_buffers: bool = True, **others: bool) -> None:
            self.settings = forward_sync_buffers, others["gradient_as_bucket_view"]

    for kind in (Old, New):
        monkeypatch.setattr(distributed, "DistributedDataParallel", kind)
        assert distributed.wrapped(nn.Linear(1, 1)).settings == (False, True)


def test_a_gpu_trains_in_bf16_unless_somebody_says_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "mocov2_resnet50_8xb32-coslr-200e_in1k"
    published = load_recipe(name)
    own = tmp_path / "own.toml"
    own.write_text(f'parent = "{name}"\nepochs = 3\n')
    cpu, cuda = torch.device("cpu"), torch.device("cuda")

    def on(device: torch.device, recipe: Recipe, stated: set[str], out: str = "new") -> tuple[str, str]:
        found = _for_device(recipe, stated, tmp_path / out, device)
        return found.precision, found.augmentation.engine

    with simulated_cuda():
        assert on(cuda, published, _stated([], name)) == ("bf16", "pil")  # a published engine stays
        assert on(cuda, published, _stated(["--precision", "fp32"], name)) == ("fp32", "pil")
        assert on(cuda, load_recipe(str(own)), _stated([], str(own))) == ("bf16", "tensor")
        assert on(cuda, load_recipe(str(own)), _stated(["--augmentation.engine=pil"], str(own))) == ("bf16", "pil")
        assert on(cpu, published, _stated([], name)) == ("fp32", "pil")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
        assert on(cuda, published, _stated([], name)) == ("fp32", "pil")
        assert on(cuda, published.changed(precision="bf16"), _stated([], name)) == ("fp32", "pil")
        monkeypatch.undo()
        # What was begun goes on as it began.
        for precision, device in (("bf16", cpu), ("fp32", cuda)):
            begun = published.changed(precision=precision)
            write_file(tmp_path / precision / "recipe.json", begun.model_dump_json())
            assert on(device, published, _stated([], name), precision) == (precision, "pil")


def test_a_cpu_without_bf16_trains_in_fp32_unless_somebody_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    name, device = "mocov2_resnet18w32_demo", torch.device("cpu")
    recipe = load_recipe(name).changed(precision="bf16")  # as a published one might have it
    parent, child = tmp_path / "parent.toml", tmp_path / "child.toml"
    parent.write_text(f'parent = "{name}"\nprecision = "bf16"\n')
    child.write_text(f'parent = "{parent}"\nepochs = 3\n')

    def precision(recipe: Recipe, stated: set[str], out: str = "new") -> str:
        found = _for_device(recipe, stated, tmp_path / out, device)
        assert found.changed(precision=recipe.precision) == recipe
        return found.precision

    capabilities = {"architecture": "x86_64", "avx512_f": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert precision(recipe, _stated([], name)) == "fp32"
    assert caplog.messages == [
        "fp32 instead of the recipe's bf16, as this CPU has no bfloat16 arithmetic and would take up to 25 times "
        "as long; --precision bf16 keeps it"
    ]
    caplog.clear()
    assert precision(recipe, _stated(["--precision=bf16"], name)) == "bf16"
    assert precision(load_recipe(str(parent)), _stated([], str(parent))) == "bf16"
    assert precision(load_recipe(str(child)), _stated([], str(child))) == "bf16"  # stated by its parent
    assert precision(recipe.changed(precision="fp16"), _stated([], name)) == "fp16"
    write_file(tmp_path / "begun" / "recipe.json", recipe.model_dump_json())
    assert precision(recipe, _stated([], name), "begun") == "bf16"
    capabilities["avx512_bf16"] = True
    assert precision(recipe, _stated([], name)) == "bf16"
    assert not caplog.messages


@pytest.mark.slow
def test_all_ranks_end_with_the_sentence_of_the_one_that_failed(tmp_path: Path) -> None:
    """Rank 0 cannot write its folder; rank 1 would wait for it in the first collective."""
    for number in range(16):
        (tmp_path / "images").mkdir(exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "images" / f"{number:02d}.png")
    (tmp_path / "out").write_text("a file where the folder should be")
    flags = ["--data", str(tmp_path / "images"), "--out", str(tmp_path / "out"), *FLAGS, "--epochs", "1"]
    first, second = two_ranks(PRETRAIN, *flags)
    assert first.wait() != 0
    assert second.wait() != 0
    assert "rank 1 ends, because rank 0 stopped: " in second.said
    assert "RuntimeError" not in first.said + second.said

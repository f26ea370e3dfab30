"""Too little memory under a benchmark is one sentence with a remedy, not the allocator's text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.audit_checks import _positions
from benchmarks.dense.training import choose_map
from benchmarks.encoders.encoder import Encoder
from benchmarks.evaluate import load, load_task, measure, prepare
from benchmarks.task import InputError, RunOptions
from pretrain import distributed
from results.errors import is_out_of_memory
from results.store import read_records
from tests.builders import small_vit

ENCODER = "random:resnet18-w8-k3-nopool:0"
CUDA_TEXT = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.15 GiB of which 1.6 GiB"
SOLVERS = {
    "knn": "benchmarks.solvers.exact_knn.exact_knn",
    "voc-svm": "benchmarks.solvers.svm.fit_cross_validated",
    "low-shot-svm": "benchmarks.solvers.svm.fit_subsets",
}


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Computed once."""
    return tmp_path_factory.mktemp("features")


SETS = {"low-shot-svm": ["--set", "k=[1,2]"]}


def of_torch(*_: Any, **__: Any) -> None:
    torch.empty(1 << 60, dtype=torch.uint8)  # what the allocator itself raises


def of_numpy(*_: Any, **__: Any) -> None:
    np.empty(1 << 60, np.uint8)


def of_cuda(*_: Any, **__: Any) -> None:
    raise torch.OutOfMemoryError(CUDA_TEXT)


def of_cublas(*_: Any, **__: Any) -> None:
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


def of_python(*_: Any, **__: Any) -> None:
    raise MemoryError


@pytest.mark.parametrize("allocator", [of_torch, of_numpy, of_python])
@pytest.mark.parametrize("benchmark", SOLVERS)
def test_a_full_memory_is_one_sentence_and_leaves_no_record(
    benchmark: str, allocator: Callable[..., None], data: Path, features: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(SOLVERS[benchmark], allocator)
    command = [benchmark, *SETS.get(benchmark, []), "--encoder", ENCODER, "--data", str(data),
               "--out", str(tmp_path / "records"), "--features", str(features),
               "--device", "cpu", "--workers", "0"]  # fmt: skip
    assert main(command) == 2
    printed = capfd.readouterr().err
    assert "Traceback" not in printed
    assert "llocat" not in printed, printed  # neither an allocator nor what it tried to allocate
    last = printed.strip().splitlines()[-1]
    assert "out of memory under" in last
    assert "end other programs" in last
    assert read_records(tmp_path / "records") == ([], [])


@pytest.mark.parametrize("allocator", [of_cuda, of_cublas])
@pytest.mark.parametrize("benchmark", SOLVERS)
def test_a_full_gpu_is_one_sentence_that_names_it(
    benchmark: str, allocator: Callable[..., None], data: Path, features: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The device is only named cuda:0; nothing before the search or the solver uses it."""
    task = load_task(benchmark)()
    options = RunOptions(workers=0, progress=False, records=tmp_path / "records", features=features)
    protocol = task.default_protocol(embedded=True)
    if benchmark == "low-shot-svm":
        protocol = protocol.changed(k=(1, 2))
    run = prepare(task, protocol, load(ENCODER), data, options=replace(options, device="cpu"))
    run = replace(run, options=replace(run.options, device="cuda:0"))
    monkeypatch.setattr(Encoder, "to", lambda self, device: self)
    monkeypatch.setattr(distributed, "join", lambda device: None)
    monkeypatch.setattr(SOLVERS[benchmark], allocator)
    with pytest.raises(InputError) as raised:
        measure([run])
    assert str(raised.value) == (
        f"out of memory under {protocol.id} on cuda:0: run it with --device cpu, or take a GPU with more memory"
    )
    assert read_records(tmp_path / "records") == ([], [])


def test_features_that_do_not_fit_are_one_sentence(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.encoders.encoder.Encoder.outputs", of_torch)
    command = ["knn", "--encoder", ENCODER, "--data", str(data), "--out", str(tmp_path / "records"),
               "--features", str(tmp_path / "features"), "--device", "cpu", "--workers", "0"]  # fmt: skip
    assert main(command) == 2
    printed = capfd.readouterr().err
    assert "Traceback" not in printed
    assert "llocat" not in printed, printed


@pytest.mark.parametrize("allocator", [of_cuda, of_cublas])
def test_it_is_not_taken_for_a_size_that_the_encoder_cannot_take(
    allocator: Callable[..., None], small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    vit = small_vit()
    monkeypatch.setattr(Encoder, "outputs", allocator)
    for ask in (lambda: choose_map(vit, 32, 16, pad=False), lambda: _positions(vit, vit.module, 2, 16)):
        with pytest.raises(RuntimeError) as raised:
            ask()
        assert is_out_of_memory(raised.value)
    where = ["--out", str(tmp_path / "records"), "--features", str(tmp_path / "features"), "--workers", "0"]
    assert main(["retrieval", "pixels", str(small_data), *where]) == 2
    assert "out of memory under" in capsys.readouterr().out


def test_other_commands_say_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.encoders.export.convert", of_torch)
    assert main(["convert", ENCODER, str(tmp_path / "a.safetensors"), "--to", "safetensors"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError(CUDA_TEXT), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: not enough memory: you tried"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("out of memory"), False),
        (OSError(28, "No space left on device"), False),
    ],
)
def test_what_is_taken_for_it(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected

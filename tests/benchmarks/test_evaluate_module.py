"""`evaluate` of a module that is being trained: it comes back exactly as it was, and is measured where it is."""

from __future__ import annotations

import copy
import random
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.encoders.encoder import preserved
from benchmarks.encoders.load import load_encoder, module_encoder
from benchmarks.evaluate import evaluate
from benchmarks.task import InputError, RunOptions
from tests.simulated_cuda import simulated_cuda

KNN: dict[str, Any] = {"protocol": "knn.demo@1", "changes": {"k": (1, 3)}}


def options(tmp_path: Path, **changes: Any) -> RunOptions:
    folders = {"records": tmp_path / "records", "features": tmp_path / "features"}
    return RunOptions(**{"workers": 0, "progress": False, **folders, **changes})


class Backbone(nn.Module):
    """With batch norm, dropout, a frozen layer, a submodule that stays in eval mode, and an attribute that changes."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.conv = nn.Conv2d(3, 6, 3, stride=4), nn.Conv2d(6, 8, 3, stride=2)
        self.norm, self.fixed_norm, self.drop = nn.BatchNorm2d(8), nn.BatchNorm2d(6).eval(), nn.Dropout(0.2)
        self.frozen.requires_grad_(False)
        self.calls = 0
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen += len(x) if self.training else 0
        x = self.fixed_norm(self.frozen(x)).relu()
        return self.drop(self.norm(self.conv(x)).relu().mean((2, 3)))


def state(module: nn.Module) -> list[Any]:
    """Everything of a module, its tensors with their places and layouts, that an evaluation must not change."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    generators = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    return [
        [(n, t.data_ptr(), t.stride(), t.device, t.requires_grad, t.detach().clone().tolist()) for n, t in tensors],
        [(n, None if t.grad is None else (t.grad.stride(), t.grad.tolist())) for n, t in tensors],
        [(n, m.training, sorted(m.__dict__), [*m._forward_hooks.values()]) for n, m in module.named_modules()],
        getattr(module, "calls", None), generators[0].tolist(), generators[1:],
    ]  # fmt: skip


def trained(data: Path, tmp_path: Path, evaluated: list[float] | None) -> tuple[dict[str, Tensor], list[float]]:
    torch.manual_seed(3)
    network = nn.Sequential(Backbone(), nn.Linear(8, 4))
    optimiser = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 0.1, momentum=0.9)
    losses = []
    for _ in range(2):
        for _ in range(2):
            x, y = torch.randn(8, 3, 40, 40), torch.randint(0, 4, (8,))
            loss = nn.functional.cross_entropy(network(x), y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        if evaluated is not None:
            record = evaluate(network[0], data=data, options=options(tmp_path), **KNN)
            evaluated.append(record.encoder.weights_sha256)
    return copy.deepcopy(network.state_dict()), losses


@pytest.mark.slow
def test_a_training_loop_that_evaluates_every_epoch_trains_the_same_network(data: Path, tmp_path: Path) -> None:
    measured: list[float] = []
    plain, losses = trained(data, tmp_path, None)
    with_evaluation, same_losses = trained(data, tmp_path, measured)
    assert losses == same_losses
    assert all(torch.equal(plain[name], with_evaluation[name]) for name in plain)
    assert len(set(measured)) == 2  # it learned between the evaluations
    assert plain["0.seen"] == 32


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["knn.demo@1", "linear_avgpool.demo@2"])
def test_the_module_comes_back_as_it_was(protocol: str, data: Path, tmp_path: Path) -> None:
    module, called = Backbone().to(memory_format=torch.contiguous_format), []
    module.conv.register_forward_hook(lambda *_: called.append(1))
    module(torch.randn(2, 3, 40, 40)).sum().backward()
    before = state(module)
    changes = {"k": (1, 3)} if protocol.startswith("knn") else {"epochs": 1, "lrs": (0.1,)}
    evaluate(module, protocol, data, changes=changes, options=options(tmp_path))
    assert state(module) == before
    assert called


def test_the_module_comes_back_after_an_exception_and_under_no_grad(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = Backbone()
    before = state(module)

    def fail(*_: object, **__: object) -> None:
        np.random.rand(), random.random(), torch.rand(1)
        raise RuntimeError("in the middle")

    monkeypatch.setattr("benchmarks.features.extract.extractor", fail)
    with torch.no_grad(), pytest.raises(RuntimeError, match="in the middle"):
        evaluate(module, data=data, options=options(tmp_path), **KNN)
    assert state(module) == before
    monkeypatch.undo()
    with torch.inference_mode():  # as validation loops of trainers are
        evaluate(module, "linear_avgpool.demo@2", data, changes={"epochs": 1, "lrs": (0.1,)}, options=options(tmp_path))
        assert torch.is_inference_mode_enabled()
    assert state(module) == before


def test_what_replaces_parameters_buffers_and_hooks_is_undone() -> None:
    module = Backbone()
    module.conv.weight.grad = torch.ones_like(module.conv.weight)
    before, weight = state(module), module.conv.weight
    with preserved(module):
        module.to(memory_format=torch.channels_last).double().eval().requires_grad_(False)
        module.conv.weight = nn.Parameter(torch.zeros(8, 6, 3, 3))
        module.norm = nn.Identity()
        module.register_forward_pre_hook(lambda *_: None)
        module.seen += 5
        module.added = 1
        torch.manual_seed(99)
    assert state(module) == before
    assert module.conv.weight is weight


def test_a_module_is_probed_and_measured_where_it_is_and_a_name_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def refused(*_: object, options: RunOptions, **__: object) -> None:
        asked.append(torch.device(options.device).type)
        raise InputError("far enough")

    monkeypatch.setattr(import_module("benchmarks.evaluate"), "prepare", refused)
    with simulated_cuda():
        on_gpu = Backbone().to("cuda")
        assert module_encoder(on_gpu).device.type == "cuda"
        for encoder, device in ((on_gpu, "auto"), (Backbone(), "auto"), ("pixels", "auto"), (on_gpu, "cpu")):
            with pytest.raises(InputError, match="far enough"):
                evaluate(encoder, data="anywhere", options=RunOptions(store=False, device=device), **KNN)
    assert asked == ["cuda", "cpu", "cuda", "cpu"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_module_on_the_gpu_is_measured_there(data: Path, tmp_path: Path) -> None:
    module = Backbone().cuda()
    before, generator = state(module), torch.cuda.get_rng_state()
    record = evaluate(module, data=data, options=options(tmp_path), **KNN)
    assert record.hardware.device.startswith("cuda")
    assert state(module) == before
    assert torch.equal(torch.cuda.get_rng_state(), generator)
    evaluate(module, data=data, options=options(tmp_path, device="cpu", force=True), **KNN)
    assert state(module) == before


@pytest.mark.slow
def test_nothing_is_stored_on_request(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.chdir(tmp_path)
    nothing = RunOptions(workers=0, progress=False, store=False)
    first = evaluate(Backbone(), data=data, options=nothing, **KNN)
    linear = evaluate(Backbone(), "linear_avgpool.demo@2", data, changes={"epochs": 1, "lrs": (0.1,)}, options=nothing)
    assert first.scores
    assert linear.scores
    assert [path.name for path in tmp_path.rglob("*")] == ["temporary"]


def test_a_module_is_probed_in_its_dtype_and_gives_float32() -> None:
    encoder = module_encoder(Backbone().eval().bfloat16())
    images = torch.randint(0, 256, (3, 3, 40, 40), dtype=torch.uint8)
    with encoder.borrowed():
        found = encoder.outputs(encoder.normalise(images), ["embed"])["embed"]
    assert (encoder.dtype, encoder.normalise(images).dtype) == (torch.bfloat16, torch.bfloat16)
    assert (found.dtype, found.shape) == (torch.float32, (3, 8))


def test_a_function_is_not_taken_for_the_name_of_a_file() -> None:
    with pytest.raises(InputError, match=r"the encoder is a function; give a torch\.nn\.Module, an Encoder or a text"):
        load_encoder(lambda images: images)  # type: ignore[arg-type]


def test_lazy_layers_are_refused_before_they_get_weights() -> None:
    with pytest.raises(InputError, match="has lazy layers without weights; call it once"):
        module_encoder(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(4)))

"""The simulated GPU refuses and counts what a real one refuses and waits for; its gradients are those of the CPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from tests.simulated_cuda import Claimed, simulated_cuda


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (lambda x: x + torch.zeros(3), "same device"),
        (lambda x: torch.cat([x, torch.zeros(3)]), "same device"),
        (lambda x: x @ torch.zeros(3), "same device"),
        (lambda x: torch.where(torch.ones(3, dtype=torch.bool), x, x), "same device"),
        (lambda x: torch.zeros(3)[x.long()], "same device as the indexed tensor"),
        (lambda x: x.index_copy_(0, torch.tensor([0]), x[:1]), "same device"),
        (lambda x: torch.rand(3, generator=torch.Generator(), device="cuda"), "generator"),
        (lambda x: nn.functional.linear(x[None], nn.Parameter(torch.zeros(2, 3))).sum().backward(), "same device"),
        (lambda x: x.to("cuda:1"), "invalid device"),
        (lambda x: torch.stack([x[0], torch.tensor(1.0)]), "same device"),
        (lambda x: torch.tensor(1.0).add_(x[0]), "same device"),
        (lambda x: torch.randperm(3, generator=torch.Generator("cuda")), "generator"),
        (lambda x: x.normal_(generator=torch.Generator()), "generator"),
        (lambda x: x.pin_memory(), "only dense CPU tensors can be pinned"),
        (lambda x: x.long()[None] @ x.long()[:, None], "not implemented on CUDA"),
    ],
)
def test_tensors_of_two_devices_are_refused(operation: Callable[[Tensor], Tensor], message: str) -> None:
    with simulated_cuda(), pytest.raises(RuntimeError, match=message):
        operation(torch.ones(3, device="cuda"))


def test_numpy_is_refused_and_scalars_of_the_cpu_are_not() -> None:
    with simulated_cuda() as gpu:
        x = torch.ones(3, device="cuda") * torch.tensor(2.0) + 1
        with pytest.raises(TypeError, match=r"Use Tensor\.cpu"):
            x.numpy()
        assert not gpu.waits
        assert x.cpu().numpy().tolist() == [3, 3, 3]
    assert not torch.cuda.is_available() or not isinstance(torch.ones(1, device="cuda"), Claimed)


@pytest.mark.parametrize(
    ("operation", "reason"),
    [
        (lambda x: x.sum().item(), "item"),
        (lambda x: bool((x > 0).all()), "item"),
        (lambda x: x.tolist(), "tolist"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: x[x > 0], "mask as index"),
        (lambda x: x.cpu(), "copied to the CPU"),
        (lambda x: torch.ones(2).to("cuda", non_blocking=True), "copied from pageable memory"),
        (lambda x: torch.ones(2).pin_memory().to("cuda"), "copied from pageable memory"),
        (lambda x: torch.tensor([1.0], device="cuda"), "copied from pageable memory"),
        (lambda x: x[torch.tensor([0])], "index copied from the CPU"),
        (lambda x: torch.equal(x, x), "equal"),
    ],
)
def test_waits_are_counted(operation: Callable[[Tensor], object], reason: str) -> None:
    with simulated_cuda() as gpu:
        x = torch.ones(3, device="cuda")
        operation(x)
    assert gpu.waits == Counter({reason: 1})


def test_scalars_of_the_cpu_go_where_cuda_takes_them() -> None:
    with simulated_cuda():
        x, two = torch.ones(3, device="cuda"), torch.tensor(2.0)
        x[1] = two
        assert (x * two).masked_fill(x > 1, two).tolist() == [2, 2, 2]


def test_a_copy_that_is_not_waited_for_has_not_arrived() -> None:
    with simulated_cuda():
        copied = torch.ones(3, device="cuda").to("cpu", non_blocking=True)
        assert copied.isnan().all()
        torch.cuda.synchronize()
        assert copied.tolist() == [1, 1, 1]
        with pytest.raises(ValueError, match="Expected a cuda device"):
            torch.cuda.current_stream(copied.device)


@pytest.mark.parametrize("waited", [True, False])
def test_page_locked_memory_stays_as_it_is_until_its_copy_has_ended(waited: bool) -> None:
    with simulated_cuda():
        room = torch.ones(2).pin_memory()
        copied = room.to("cuda", non_blocking=True)
        if waited:
            torch.cuda.current_stream().synchronize()
        room.fill_(3)
        with nullcontext() if waited else pytest.raises(RuntimeError, match="before its copy to the GPU had ended"):
            torch.cuda.synchronize()
        assert copied.tolist() == [1, 1]


@pytest.mark.parametrize("waits", ["event", "stream", "host", ""])
@pytest.mark.parametrize("recorded", [True, False])
def test_a_stream_may_use_what_it_has_waited_for_and_the_allocator_knows_of(waits: str, recorded: bool) -> None:
    with simulated_cuda():
        stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
        with torch.cuda.stream(stream):
            x = torch.ones(4, device="cuda").mul_(2)
            done = stream.record_event()
            x + x  # its own
        if waits == "event":
            current.wait_event(done)
        elif waits == "stream":
            current.wait_stream(stream)
        elif waits:
            stream.synchronize()
        if recorded:
            x.record_stream(current)
        if waits and recorded:
            assert x[:2].sum().item() == 4
        else:
            with pytest.raises(RuntimeError, match="record_stream" if waits else "does not wait for"):
                x[:2].sum()


def test_pinned_memory_is_copied_without_a_wait() -> None:
    with simulated_cuda() as gpu:
        torch.ones(2).pin_memory().to("cuda", non_blocking=True)
        with pytest.raises(AssertionError, match="the host waited"), gpu.no_waits():
            torch.ones(1, device="cuda").item()
    assert gpu.waits == Counter({"item": 1})


def test_gradients_and_copies_are_those_of_the_cpu() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    x = torch.randn(5, 3, 6, 6)
    with simulated_cuda():
        moved = deepcopy(deepcopy(network).to("cuda"))
        moved(x.to("cuda")).square().sum().backward()
        weight = moved[0].weight
        assert isinstance(weight, nn.Parameter)
        assert weight.device.type == weight.grad.device.type == "cuda"
        found = [p.grad.cpu() for p in moved.parameters()]
    network(x).square().sum().backward()
    for p, gradient in zip(network.parameters(), found, strict=True):
        assert p.grad is not None
        assert torch.allclose(p.grad, gradient, rtol=1e-5, atol=1e-6)

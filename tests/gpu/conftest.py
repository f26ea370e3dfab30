"""The same tests on a simulated GPU, everywhere, and on a real one where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import pytest
import torch

from benchmarks.datasets import images
from benchmarks.task import InputError
from tests.benchmarks.datasets.test_images import by_pillow
from tests.simulated_cuda import simulated_cuda

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class AnyGpu(Protocol):
    draws_as_the_cpu: bool

    def no_waits(self) -> AbstractContextManager[None]:
        """Fails where the host waits for the device inside."""


class RealGpu:
    draws_as_the_cpu = False

    @contextmanager
    def no_waits(self) -> Iterator[None]:
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(params=["simulated", pytest.param("real", marks=needs_gpu)])
def gpu(request: pytest.FixtureRequest) -> Iterator[AnyGpu]:
    if request.param == "real":
        yield RealGpu()
    else:
        with simulated_cuda() as simulated:
            yield simulated


@pytest.fixture
def decoder(gpu: AnyGpu, monkeypatch: pytest.MonkeyPatch) -> AnyGpu:
    """A GPU that decodes: the real one does so itself, and Pillow in place of the simulated one."""
    if isinstance(gpu, RealGpu):
        try:
            images.require_nvjpeg(torch.device("cuda"))
        except InputError as error:
            pytest.skip(str(error))
    else:
        monkeypatch.setattr(images, "decode_jpegs", by_pillow)
    return gpu

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from benchmarks.features.pool import AdaptivePooling, FixedPooling, GlobalAverage, pool
from benchmarks.svm_common import VARIANTS
from benchmarks.task import InputError


@pytest.mark.parametrize(
    ("layer", "channels", "size", "dims"),
    [
        ("feature1", 64, 112, 9216),
        ("feature2", 256, 56, 9216),
        ("feature3", 512, 28, 8192),
        ("feature4", 1024, 14, 9216),
        ("feature5", 2048, 7, 8192),
    ],
)
def test_dimensions_of_a_resnet50_at_224_pixels(layer: str, channels: int, size: int, dims: int) -> None:
    maps = torch.zeros(1, channels, size, size)
    for poolings in (VARIANTS[name].outputs for name in ("mmselfsup", "adaptive")):
        pooling = poolings[layer]
        assert pooling is not None
        assert pool(maps, pooling).shape == (1, dims)


def test_the_zeros_of_the_padding_count() -> None:
    pooled = pool(torch.ones(1, 1, 112, 112), VARIANTS["mmselfsup"].outputs["feature1"]).view(12, 12)  # type: ignore[arg-type]
    assert pooled[5, 5] == 1
    assert pooled[0, 0] == pytest.approx(0.36)  # 6 x 6 of 10 x 10 lie on the map
    assert pooled[0, 5] == pytest.approx(0.6)


def test_fixed_windows_are_plain_means() -> None:
    maps = torch.randn(2, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    pooled = pool(maps, FixedPooling(size=7, kernel=6, stride=1)).view(2, 3, 2, 2)
    torch.testing.assert_close(pooled[1, 2, 1, 0], maps[1, 2, 1:7, 0:6].mean())


def test_adaptive_grid_and_global_average() -> None:
    maps = torch.randn(2, 3, 6, 9, generator=torch.Generator().manual_seed(0))
    pooled = pool(maps, AdaptivePooling(grid=3)).view(2, 3, 3, 3)
    torch.testing.assert_close(pooled[0, 1, 2, 1], maps[0, 1, 4:6, 3:6].mean())
    torch.testing.assert_close(pool(maps, GlobalAverage()), maps.mean((2, 3)))


def test_other_map_sizes_are_refused() -> None:
    with pytest.raises(InputError, match=r"for 7x7 maps.*gives 3x3.*adaptive"):
        pool(torch.zeros(1, 8, 3, 3), FixedPooling(size=7, kernel=6, stride=1))


def test_padding_beyond_half_the_kernel_is_refused() -> None:
    with pytest.raises(ValidationError, match="half of kernel"):
        FixedPooling(size=7, kernel=4, stride=1, padding=3)

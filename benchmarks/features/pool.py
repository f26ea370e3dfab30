"""Pooling of feature maps to fixed-length vectors: fixed kernels, adaptive grids, the global average."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from benchmarks.task import FEATURE_MAPS, NotApplicableError
from results.schema import Frozen

if TYPE_CHECKING:
    from torch import Tensor


class FixedPooling(Frozen):
    """Average over `kernel` x `kernel` windows of a `size` x `size` map; the padding's zeros count in the average."""

    kind: Literal["fixed"] = "fixed"
    size: int = Field(gt=0)
    kernel: int = Field(gt=0)
    stride: int = Field(gt=0)
    padding: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _padding_fits(self) -> Self:
        if 2 * self.padding > self.kernel:
            raise ValueError(f"padding {self.padding} is more than half of kernel {self.kernel}")
        return self


class AdaptivePooling(Frozen):
    """Average over a `grid` x `grid` partition of a map of any size."""

    kind: Literal["adaptive"] = "adaptive"
    grid: int = Field(gt=0)


class GlobalAverage(Frozen):
    """One mean per channel."""

    kind: Literal["average"] = "average"


class PatchRows(Frozen):
    """No pooling: all positions of a map, row by row, with the channels of a position next to each other.

    Attributes:
        dtype: on disk. float16 halves the size, which for a training set is tens of GB.
    """

    kind: Literal["patches"] = "patches"
    dtype: Literal["float32", "float16"] = "float32"


Pooling = Annotated[FixedPooling | AdaptivePooling | GlobalAverage | PatchRows, Field(discriminator="kind")]

# For the maps of a 224-pixel image. A ResNet-50 gives 9216, 9216, 8192, 9216 and 8192 numbers.
FIXED_224 = {
    "feature1": FixedPooling(size=112, kernel=10, stride=10, padding=4),
    "feature2": FixedPooling(size=56, kernel=16, stride=8),
    "feature3": FixedPooling(size=28, kernel=13, stride=5),
    "feature4": FixedPooling(size=14, kernel=8, stride=3),
    "feature5": FixedPooling(size=7, kernel=6, stride=1),
}
# The same grids, from maps of any size.
ADAPTIVE_GRIDS = {name: AdaptivePooling(grid=grid) for name, grid in zip(FEATURE_MAPS, (12, 6, 4, 3, 2), strict=True)}


def pool(maps: Tensor, pooling: Pooling) -> Tensor:
    """(N, C, H, W) maps to (N, C * rows * columns) vectors, channel-major; those of `PatchRows` are position-major.

    Raises:
        NotApplicableError: the maps do not have the size that a fixed kernel is for.
    """
    from torch.nn import functional  # declaring protocols with these models must not need torch

    if isinstance(pooling, GlobalAverage):
        return maps.mean((2, 3))
    if isinstance(pooling, PatchRows):
        return maps.permute(0, 2, 3, 1).flatten(1)
    if isinstance(pooling, AdaptivePooling):
        return functional.adaptive_avg_pool2d(maps, pooling.grid).flatten(1)
    height, width = maps.shape[2:]
    if (height, width) != (pooling.size, pooling.size):
        raise NotApplicableError(
            f"the {pooling.kernel}x{pooling.kernel} pooling kernel is for {pooling.size}x{pooling.size} maps, but this "
            f"encoder gives {height}x{width}; choose a protocol with adaptive grids"
        )
    pooled = functional.avg_pool2d(maps, pooling.kernel, pooling.stride, pooling.padding, count_include_pad=True)
    return pooled.flatten(1)

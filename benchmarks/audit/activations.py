"""Dead, constant and non-finite channels, output by output, and tensors of the file that are no numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from results.schema import Frozen


class Channels(Frozen):
    """One output over all images and positions.

    Attributes:
        dead: channels that are zero everywhere.
        constant: channels that have one other value everywhere.
        nonfinite_images: images on which it has NaN or an infinite number.
    """

    output: str
    channels: int
    dead: int
    constant: int
    nonfinite_images: int


class ChannelRanges:
    """Running minimum and maximum of each channel of each output."""

    def __init__(self) -> None:
        self._ranges: dict[str, tuple[Tensor, Tensor]] = {}
        self._nonfinite: dict[str, Tensor] = {}

    def add(self, outputs: dict[str, Tensor]) -> None:
        """Takes (N, C, …) outputs of a batch."""
        for name, value in outputs.items():
            flat = value.float().flatten(2) if value.ndim > 2 else value.float()[:, :, None]
            finite = flat.isfinite().all(2).all(1)
            low, high = flat.amin((0, 2)), flat.amax((0, 2))
            if name in self._ranges:
                low, high = torch.minimum(low, self._ranges[name][0]), torch.maximum(high, self._ranges[name][1])
            self._ranges[name] = low, high
            self._nonfinite[name] = (
                self._nonfinite.get(name, torch.zeros((), dtype=torch.int64)) + (~finite).sum().cpu()
            )

    def report(self) -> tuple[Channels, ...]:
        """In the order in which outputs were first added."""
        return tuple(
            Channels(
                output=name,
                channels=len(low),
                dead=int(((low == 0) & (high == 0)).sum()),
                constant=int(((low == high) & (low != 0)).sum()),
                nonfinite_images=int(self._nonfinite[name]),
            )
            for name, (low, high) in self._ranges.items()
        )


def nonfinite_tensors(module: nn.Module) -> tuple[str, ...]:
    """Names of weights and buffers that hold NaN or an infinite number."""
    state = module.state_dict()
    return tuple(name for name, t in state.items() if t.is_floating_point() and not bool(t.isfinite().all()))

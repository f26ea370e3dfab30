"""Float32 matrices as sums of two float16: their products are several times as fast on a GPU's tensor cores."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy

import torch
from torch import Tensor

_LARGEST = 14  # exponent of two below which all numbers are scaled: float16 ends at 2^16, and rounds to 2^-24
_LEAST = 2.0**-100  # of the largest number: its scale must be finite
_SUMMED = 1024  # products that tensor cores add up, where there are many
_UNIT = 8  # numbers, 16 bytes: with rows of whole units tensor cores run at full speed


class Halves:
    """(n, d) float32 numbers as (high - low) * inverse, where high and low are float16.

    Of a product the terms high x high, high x low and low x high are summed in float32. What is left out is 2^-22 of
    the largest numbers' product, where float32 rounds to 2^-24. Tensor cores truncate their sums instead of rounding
    them, so that errors of long sums add up; `weighted`, whose sums are long, adds parts of them itself (Ootomo and
    Yokota 2022, "Recovering single precision accuracy from Tensor Cores while surpassing the FP32 theoretical peak
    performance").

    Attributes:
        parts: (n, 2, d and zeros), high and low.
        inverse: () float32, a power of two.
    """

    def __init__(self, rows: Tensor) -> None:
        n, self.dim = rows.shape
        largest = torch.linalg.vector_norm(rows, torch.inf).clamp_min(_LEAST)
        self.inverse = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - _LARGEST)
        self.parts = rows.new_zeros(n, 2, -(-self.dim // _UNIT) * _UNIT, dtype=torch.float16)
        high, low = self.parts[..., : self.dim].unbind(dim=1)
        torch.div(rows, self.inverse, out=high)
        torch.addcmul(high, rows, 1 / self.inverse, value=-1, out=low)

    def __len__(self) -> int:
        return len(self.parts)

    def split(self, size: int) -> Iterator[Halves]:
        """The rows, `size` at a time, in the same memory."""
        for parts in self.parts.split(size):
            some = copy(self)
            some.parts = parts
            yield some

    def products(self, other: Halves) -> Tensor:
        """(n, m) inner products of the rows of both, in units of both `inverse`."""
        high = _mm(self.parts[:, 0], other.parts[:, 0].T)
        return high.sub_(_mm(self.parts.flatten(1), other.parts.flip(1).flatten(1).T))

    def weighted(self, weights: Halves) -> Tensor:
        """(w, d) sums of the rows, weighted by the (n, w) `weights`, in units of both `inverse`."""
        (high, low), (w_high, w_low) = self.parts.unbind(dim=1), weights.parts.unbind(dim=1)
        total = _mm(w_high.T, low).add_(_mm(w_low.T, high)).neg_()
        whole = len(self) - len(self) % _SUMMED
        if whole:
            by, of = (each[:whole].unflatten(0, (-1, _SUMMED)) for each in (w_high, high))
            total += _bmm(by.mT, of).sum(dim=0)
        if whole < len(self):
            total += _mm(w_high[whole:].T, high[whole:])
        return total[: weights.dim, : self.dim]


def _mm(a: Tensor, b: Tensor) -> Tensor:
    product: Tensor = torch.mm(a, b, out_dtype=torch.float32)
    return product


def _bmm(a: Tensor, b: Tensor) -> Tensor:
    products: Tensor = torch.bmm(a, b, out_dtype=torch.float32)
    return products

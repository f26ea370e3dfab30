"""Inner products of rows with each other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.svm.rows import CHUNK_ROWS, Rows

DENSE_ROWS = 8192  # 268 MB; sub-matrices of it then cost a copy, not a product
_SYMMETRIC_ROWS = 512


@dataclass(frozen=True)
class Gram:
    """K = C + s 1' + 1 s' + (|mean|^2 + 1) 1 1': inner products of n rows, the constant of the intercept included.

    A stack of g such matrices of the same size, often of one. C holds the inner products of centred rows, so rounding
    in its single-precision products is relative to what differs between images.

    Attributes:
        whole: the centred rows that the stack was taken from, and their mean.
        chosen: (g, n) which of them; None for all of them, g = 1.
        dense: (g, n, n) float32 C where having it makes products cheaper, else None and g = 1.
        shift: (g, n) float64, s = centred rows times the mean.
        constant: float64, |mean|^2 + 1.
    """

    whole: Rows
    chosen: Tensor | None
    dense: Tensor | None
    shift: Tensor
    constant: Tensor

    @property
    def size(self) -> int:
        """The number of images of one problem."""
        return self.shift.shape[1]

    @property
    def flops(self) -> int:
        """Floating-point operations of one product with one vector."""
        return 4 * self.size * self.whole.dim if self.dense is None else 2 * self.size**2

    def rows(self, place: int = 0) -> Rows:
        """The rows behind one matrix of the stack; a copy if they were chosen."""
        return self.whole if self.chosen is None else self.whole.select(self.chosen[place])

    def product(self, vectors: Tensor) -> Tensor:
        """vectors @ K for (g, m, n) vectors: C in single precision, the rest in the precision of the vectors."""
        single, dtype = vectors.float(), vectors.dtype
        if self.dense is not None:
            centred = single @ self.dense.mT  # symmetric; the transpose is read in the order in which it lies
        else:
            rows = self.rows().centred
            centred = single @ rows @ rows.T
        shift, total = self.shift.to(dtype)[:, None], vectors.sum(-1, keepdim=True)
        common = (vectors * shift).sum(-1, keepdim=True) + self.constant.to(dtype) * total
        return torch.addcmul(centred.to(dtype), total, shift).add_(common)

    def across(self, vectors: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """vectors @ K[rows][:, columns] for (m, a) vectors of a single matrix: decisions on other images."""
        single = vectors.float()
        if self.dense is not None:
            centred = single @ _pick(self.dense[0], columns, rows).mT
        else:
            centred = single @ self.rows().centred[rows] @ self.rows().centred[columns].T
        shift, total = self.shift[0].to(vectors.dtype), vectors.sum(-1, keepdim=True)
        common = vectors @ shift[rows, None] + self.constant.to(vectors.dtype) * total
        return torch.addcmul(centred.to(vectors.dtype), total, shift[columns]).add_(common)

    def exact_product(self, vectors: Tensor) -> Tensor:
        """vectors @ K for (g, m, n) vectors, in double precision."""
        products = []
        for place, of_place in enumerate(vectors):
            rows = self.rows(place)
            products.append(rows.decisions(rows.weights(of_place)))
        return torch.stack(products)

    def block(self, place: int, rows: Tensor, columns: Tensor) -> Tensor:
        """(a, b) float32 sub-matrix of one K."""
        if self.dense is not None:
            centred = _pick(self.dense[place], rows, columns)
        else:
            centred = self.rows().centred[rows] @ self.rows().centred[columns].T
        shift = self.shift[place].float()
        return centred.add_((shift[rows] + self.constant.float())[:, None]).add_(shift[columns])

    def matrices(self) -> Tensor:
        """(g, n, n) float32 K."""
        assert self.dense is not None
        shift = self.shift.float()
        return self.dense + (shift[..., None] + self.constant.float()) + shift[..., None, :]

    def select(self, rows: Tensor) -> Gram:
        """The stack of the Gram matrices of (g, n) `rows` of a single one."""
        assert self.chosen is None
        dense = (
            None if self.dense is None else torch.stack([_pick(self.dense[0], of_place, of_place) for of_place in rows])
        )
        return Gram(self.whole, rows, dense, self.shift[0, rows], self.constant)


def gram(rows: Rows) -> Gram:
    """The Gram matrix of `rows`: dense while it is small or makes a product no dearer than two passes over the rows."""
    shift = torch.cat([block.double() @ rows.mean for block in rows.centred.split(CHUNK_ROWS)])
    dense = _symmetric_product(rows.centred)[None] if len(rows) <= max(2 * rows.dim, DENSE_ROWS) else None
    return Gram(rows, None, dense, shift[None], rows.mean @ rows.mean + 1)


def _symmetric_product(rows: Tensor) -> Tensor:
    """rows @ rows', each half of it from the other."""
    product = rows.new_empty(len(rows), len(rows))
    for start in range(0, len(rows), _SYMMETRIC_ROWS):
        block = slice(start, start + _SYMMETRIC_ROWS)
        product[block, : block.stop] = rows[block] @ rows[: block.stop].T
        product[:start, block] = product[block, :start].T
    return product


def _pick(matrix: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return matrix.index_select(0, rows).index_select(1, columns)

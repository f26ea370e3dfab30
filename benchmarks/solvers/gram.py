"""Normalised feature rows and Gram matrices of them, with their leading eigenspace."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pretrain.distributed import row_products

NORM_OFFSET = 1e-5  # added to the L2 norm before the division, as in every published script
CHUNK_ROWS = 1024
DENSE_ROWS = 8192  # largest Gram matrix that is always kept (268 MB); a sub-matrix then costs a copy, not a product
_DOUBLE_ROWS = 128  # rows per block in double precision, which fits in the cache
_SYMMETRIC_ROWS = 512
_PICKED_VALUES = 2**18  # of the rows that are held while a sub-matrix is picked: 1 MiB
_MAX_RANK = 128
_IMAGES_PER_DIRECTION = 32


@dataclass(frozen=True)
class CentredRows:
    """n rows x / (|x| + 1e-5) of dimension d, each with a constant 1 for the penalised intercept.

    The mean is kept apart, so that single precision is spent on what differs between images.

    Attributes:
        centred: (n, d) float32, the rows minus `mean`.
        mean: (d,) float64.
    """

    centred: Tensor
    mean: Tensor

    def __len__(self) -> int:
        return len(self.centred)

    @property
    def dim(self) -> int:
        """Length of a row with its constant."""
        return self.centred.shape[1] + 1

    def select(self, rows: Tensor) -> CentredRows:
        """A copy of some rows."""
        return CentredRows(self.centred[rows], self.mean)

    def extended(self) -> Tensor:
        """(n, d + 1) float64 uncentred rows, the constant last."""
        return functional.pad(self.centred.double() + self.mean, (0, 1), value=1.0)

    def weights(self, beta: Tensor) -> Tensor:
        """(m, d + 1) float64 primal weights, the intercept last, of (m, n) coefficients over the rows."""
        beta = beta.double()
        total = beta.sum(1, keepdim=True)
        centred = beta.new_zeros(len(beta), self.centred.shape[1])
        for part, block in zip(beta.split(_DOUBLE_ROWS, 1), self._in_double(), strict=True):
            centred.addmm_(part, block)
        return torch.cat([centred + total * self.mean, total], 1)

    def decisions(self, weights: Tensor) -> Tensor:
        """(m, n) float64 decision values of (m, d + 1) primal weights."""
        signal, constant = weights[:, :-1], weights[:, :-1] @ self.mean + weights[:, -1]
        return torch.cat([signal @ block.T for block in self._in_double()], 1) + constant[:, None]

    def _in_double(self) -> Iterator[Tensor]:
        """Blocks of `centred` in double precision. Each block overwrites the one before."""
        buffer = self.centred.new_empty(_DOUBLE_ROWS, self.centred.shape[1], dtype=torch.float64)
        for block in self.centred.split(_DOUBLE_ROWS):
            yield buffer[: len(block)].copy_(block)


def normalised_rows(features: NDArray[np.float32], mean: Tensor | None = None) -> CentredRows:
    """(n, d) `features` divided by their L2 norm + 1e-5, centred on `mean`, or on their own mean if there is none.

    Reads the features in blocks, so that a memory map never becomes resident in double precision.
    """
    n, d = features.shape

    def block(start: int) -> Tensor:
        x = torch.from_numpy(np.array(features[start : start + CHUNK_ROWS], dtype=np.float64))
        return x.div_(torch.linalg.vector_norm(x, dim=1, keepdim=True) + NORM_OFFSET)

    starts = range(0, n, CHUNK_ROWS)
    if mean is None:
        mean = torch.zeros(d, dtype=torch.float64)
        for start in starts:
            mean += block(start).sum(0)
        mean /= n
    centred = torch.empty(n, d, dtype=torch.float32)
    for start in starts:
        centred[start : start + CHUNK_ROWS] = (block(start) - mean).float()
    return CentredRows(centred, mean)


@dataclass(frozen=True)
class Gram:
    """A stack of g matrices K = C + s 1' + 1 s' + (|mean|^2 + 1) 1 1': inner products of n rows with their constant.

    C holds the inner products of centred rows, so that rounding in its single-precision products is relative to what
    differs between images. `gram` makes a stack of one, `select` a stack of its sub-matrices.

    Attributes:
        whole: the rows that the stack was taken from.
        chosen: (g, n) which of them; None for all of them, g = 1.
        dense: (g, n, n) float32 C where keeping it makes products cheaper, else None and g = 1.
        shift: (g, n) float64, s = centred rows times the mean.
        constant: float64, |mean|^2 + 1.
        guess: (g, r, n) first guess of the leading eigenvectors, None for a random one.
    """

    whole: CentredRows
    chosen: Tensor | None
    dense: Tensor | None
    shift: Tensor
    constant: Tensor
    guess: Tensor | None = None

    @property
    def size(self) -> int:
        """The number n of images of one matrix."""
        return self.shift.shape[1]

    @property
    def flops(self) -> int:
        """Floating-point operations of one product with one vector."""
        return 4 * self.size * self.whole.dim if self.dense is None else 2 * self.size**2

    @cached_property
    def leading(self) -> LeadingSpace:
        """The leading eigenspace, computed once."""
        return _leading_space(self)

    def rows(self, place: int = 0) -> CentredRows:
        """The rows behind one matrix of the stack; a copy if they were chosen."""
        return self.whole if self.chosen is None else self.whole.select(self.chosen[place])

    def select(self, rows: Tensor) -> Gram:
        """The stack of sub-matrices on (g, n) `rows` of a single matrix."""
        assert self.chosen is None
        dense = None
        if self.dense is not None:
            dense = self.dense.new_empty(*rows.shape, rows.shape[1])
            for each, out in zip(rows, dense, strict=True):
                _pick(self.dense[0], each, each, out)
        guess = self.leading.basis[0][-_rank(rows.shape[1]) :, rows].movedim(0, 1)
        return Gram(self.whole, rows, dense, self.shift[0, rows], self.constant, guess)

    def product(self, vectors: Tensor) -> Tensor:
        """vectors @ K for (g, m, n) vectors: C in single precision, the rest in the precision of the vectors."""
        single, dtype = vectors.float(), vectors.dtype
        if self.dense is not None:
            # C is symmetric: its rows are its columns.
            centred = torch.stack([row_products(*pair) for pair in zip(single, self.dense, strict=True)])
        else:
            rows = self.rows().centred
            centred = row_products(row_products(single[0], rows.T), rows)[None]
        shift, total = self.shift.to(dtype)[:, None], vectors.sum(-1, keepdim=True)
        common = (vectors * shift).sum(-1, keepdim=True) + self.constant.to(dtype) * total
        return torch.addcmul(centred.to(dtype), total, shift).add_(common)

    def exact_product(self, vectors: Tensor) -> Tensor:
        """vectors @ K for (g, m, n) vectors, in double precision."""
        products = []
        for place, of_place in enumerate(vectors):
            rows = self.rows(place)
            products.append(rows.decisions(rows.weights(of_place)))
        return torch.stack(products)

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

    def block(self, place: int, images: Tensor) -> Tensor:
        """(a, a) float32 principal sub-matrix of one K."""
        if self.dense is not None:
            centred = _pick(self.dense[place], images, images)
        else:
            rows = self.rows().centred[images]
            centred = row_products(rows, rows)
        shift = self.shift[place, images].float()
        return centred.add_((shift + self.constant.float())[:, None]).add_(shift)

    def combination(self, place: int, images: Tensor, vector: Tensor) -> Tensor:
        """(n,) float64 vector @ K[images] of one K, for (a,) images: C in single precision."""
        single = vector.float()
        if self.dense is not None:
            # Unlike a product, reads the rows where they are.
            first = images.new_zeros(1)
            centred = functional.embedding_bag(images, self.dense[place], first, mode="sum", per_sample_weights=single)
        else:
            rows = self.rows().centred
            centred = row_products((single @ rows[images])[None], rows)
        shift, total = self.shift[place], vector.sum()
        common = vector @ shift[images] + self.constant * total
        return torch.addcmul(centred[0].double(), total, shift).add_(common)


def gram(rows: CentredRows) -> Gram:
    """The Gram matrix of `rows`: dense while it is small or makes a product no dearer than two passes over the rows."""
    dense = _symmetric_product(rows.centred)[None] if len(rows) <= max(2 * rows.dim, DENSE_ROWS) else None
    return Gram(rows, None, dense, mean_products(rows)[None], rows.mean @ rows.mean + 1)


def mean_products(rows: CentredRows) -> Tensor:
    """(n,) float64 centred rows times their mean."""
    return torch.cat([block.double() @ rows.mean for block in rows.centred.split(CHUNK_ROWS)])


def _symmetric_product(rows: Tensor) -> Tensor:
    """rows @ rows', one triangle copied from the other."""
    product = rows.new_empty(len(rows), len(rows))
    for start in range(0, len(rows), _SYMMETRIC_ROWS):
        block = slice(start, start + _SYMMETRIC_ROWS)
        product[block, : block.stop] = row_products(rows[block], rows[: block.stop])
        product[:start, block] = product[block, :start].T
    return product


def _pick(matrix: Tensor, rows: Tensor, columns: Tensor, out: Tensor | None = None) -> Tensor:
    """matrix[rows][:, columns], a few rows at a time: they stay in the cache until their columns are picked."""
    found = matrix.new_empty(len(rows), len(columns)) if out is None else out
    few = max(1, _PICKED_VALUES // matrix.shape[1])
    for some, part in zip(rows.split(few), found.split(few), strict=True):
        torch.index_select(matrix.index_select(0, some), 1, columns, out=part)
    return found


@dataclass(frozen=True)
class LeadingSpace:
    """Leading eigenvectors of a stack of Gram matrices, as a preconditioner for I + D K.

    In the coordinates beta, whose inner product is K. `basis` Q and `image` Q K are (g, r, n) with Q K Q' = 1 and
    Q K K Q' = diag(`eigenvalues`), ascending, so that the map is self-adjoint even where the eigenvectors are rough.
    """

    basis: Tensor
    image: Tensor
    eigenvalues: Tensor

    def precondition(self, residual: Tensor, scale: Tensor) -> Tensor:
        """(I + scale K)^-1 residual on the subspace, the identity elsewhere; (g, m, n) residual, (g, m) scale."""
        stretched = scale[..., None] * self.eigenvalues[:, None]
        return residual - (stretched / (1 + stretched) * (residual @ self.image.mT)) @ self.basis

    def expected_steps(self, scale: Tensor) -> Tensor:
        """(g, m) expected conjugate gradient steps: proportional to the root of the remaining condition number."""
        return 6 * (1 + scale * self.eigenvalues[:, :1]).sqrt()


def _leading_space(gram: Gram) -> LeadingSpace:
    """Rayleigh-Ritz on the matrix's guess, or else on a random range (Halko, Martinsson and Tropp 2011)."""
    guess = gram.guess
    if guess is None:
        generator = torch.Generator().manual_seed(0)
        start = torch.randn(len(gram.shift), _rank(gram.size), gram.size, generator=generator)
        guess = torch.linalg.qr(gram.product(start).mT)[0].mT.contiguous()
    image = gram.product(guess)
    inner, outer = (image @ guess.mT).double(), (image @ image.mT).double()
    # Directions that K nearly annihilates hold only rounding errors and are left out of the basis.
    values, vectors = torch.linalg.eigh((inner + inner.mT) / 2)
    whiten = vectors * torch.where(values > 1e-5 * values[:, -1:], values, torch.inf).rsqrt()[:, None]
    ritz, rotation = torch.linalg.eigh(whiten.mT @ outer @ whiten)
    mix = (whiten @ rotation).mT.float()
    return LeadingSpace(mix @ guess, mix @ image, ritz.clamp(min=0).float())


def _rank(images: int) -> int:
    return min(_MAX_RANK, 1 + images // _IMAGES_PER_DIRECTION)

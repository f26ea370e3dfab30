"""What features show without labels: rank, decay of the spectrum, spread on the sphere, dead dimensions."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.floating] | Tensor

NUMERICAL_ZERO = 1e-12  # of the largest value: below it a float64 spectrum holds rounding alone
PAIRS = 2**24  # similarities of a block


def as_double(rows: Array, device: str | torch.device = "cpu") -> Tensor:
    """(N, D) float64 on the device."""
    found = rows if isinstance(rows, Tensor) else torch.from_numpy(np.ascontiguousarray(rows))
    return found.to(device, torch.float64)


def singular_values(rows: Array, *, centred: bool = False, chunk: int = 8192, device: str = "cpu") -> Tensor:
    """The min(N, D) singular values of (N, D) rows, the largest first, float64.

    Tall matrices are reduced by QR, `chunk` rows at a time, which loses no digits as a Gram matrix would.

    Args:
        centred: subtract the mean row first.
    """
    count, width = rows.shape
    mean = mean_row(rows, chunk, device) if centred else torch.zeros(width, dtype=torch.float64, device=device)
    triangle = torch.empty(0, width, dtype=torch.float64, device=device)
    for start in range(0, count, chunk):
        stacked = torch.cat([triangle, as_double(rows[start : start + chunk], device) - mean])
        triangle = torch.linalg.qr(stacked, mode="r").R if len(stacked) > width else stacked
    return torch.linalg.svdvals(triangle)


def mean_row(rows: Array, chunk: int = 8192, device: str = "cpu") -> Tensor:
    """(D,) float64."""
    total = torch.zeros(rows.shape[1], dtype=torch.float64, device=device)
    for start in range(0, len(rows), chunk):
        total += as_double(rows[start : start + chunk], device).sum(0)
    return total / len(rows)


# ---- one spectrum to one number --------------------------------------------------------------------------------------


def entropy_rank(values: Tensor, eps: float = 0.0, denominator: float = 0.0) -> float:
    """exp of the entropy of p = values / (sum + denominator) + eps, without the zeros among them.

    With singular values and neither term this is the effective rank of Roy and Vetterli 2007; with small ones it is
    RankMe (Garrido et al. 2023), whose p then does not sum to one exactly.
    """
    total = values.sum()
    if total <= 0:
        return 1.0  # no direction at all is one point, as a constant is
    p = values / (total + denominator) + eps
    p = p[p > 0]
    return float(torch.exp(-(p * p.log()).sum()))


def stable_rank(singular: Tensor) -> float:
    """Squared Frobenius norm over squared spectral norm."""
    largest = singular.max()
    return float((singular / largest).square().sum()) if largest > 0 else 1.0


def spectral_decay(eigenvalues: Tensor, first: int = 1, last: int | None = None) -> float | None:
    """alpha of eigenvalue_n ~ n^-alpha: minus the slope of log eigenvalue over log n, points weighted by 1 / n.

    Args:
        eigenvalues: of the centred covariance, descending.
        first, last: of the fit, counted from 1 and inclusive; values that are numerically zero never take part.

    Returns:
        None where fewer than two eigenvalues are left.
    """
    kept = int((eigenvalues > NUMERICAL_ZERO * eigenvalues[0]).sum()) if eigenvalues[0] > 0 else 0
    last = min(kept, last or kept)
    if last - first < 1:
        return None
    n = torch.arange(first, last + 1, dtype=torch.float64, device=eigenvalues.device)
    x, y, weight = n.log(), eigenvalues[first - 1 : last].log(), 1 / n
    x = x - (weight * x).sum() / weight.sum()
    return float(-(weight * x * y).sum() / (weight * x.square()).sum())


def lidar(views: Array, delta: float, device: str = "cpu") -> float:
    """LiDAR (Thilak et al. 2023): exp entropy of the eigenvalues of S_w^-1/2 S_b S_w^-1/2.

    Args:
        views: (n, q, D) features of q views of each of n images, n and q at least 2.
        delta: added to the diagonal of S_w, the covariance of views about the mean of their image. S_b is the
            covariance of the n means.
    """
    x = (views if isinstance(views, Tensor) else torch.from_numpy(np.ascontiguousarray(views))).to(
        device, torch.float64
    )
    images, per_image, width = x.shape
    if width > images * per_image:
        # Orthogonal to all views S_b is zero, so those directions add nothing: a rotation into their span suffices.
        triangle = torch.linalg.qr(x.reshape(-1, width).T, mode="r").R
        x, width = triangle.T.reshape(images, per_image, -1), images * per_image
    means = x.mean(1)
    within = (x - means[:, None]).reshape(-1, width)
    s_w = within.T @ within / (images * (per_image - 1))
    values, vectors = torch.linalg.eigh(s_w + delta * torch.eye(width, dtype=x.dtype, device=x.device))
    # S_b = B B^T with the centred means as columns of B, so that the eigenvalues are squares of singular values.
    between = (means - means.mean(0)) / (images - 1) ** 0.5
    whitened = between @ vectors / values.clamp_min(torch.finfo(x.dtype).tiny).sqrt()
    return entropy_rank(torch.linalg.svdvals(whitened).square())


# ---- on the sphere ---------------------------------------------------------------------------------------------------


def normalised(rows: Array, device: str = "cpu") -> Tensor:
    """Rows of length 1, float64; a row of zeros stays."""
    x = as_double(rows, device)
    return x / x.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)


def alignment(first: Array, second: Array) -> float:
    """Mean squared distance of the normalised features of two views (Wang and Isola 2020, alpha 2); 0 is perfect."""
    return float((normalised(first) - normalised(second)).square().sum(-1).mean())


def uniformity(rows: Array, temperature: float = 2.0, device: str = "cpu") -> float:
    """ln mean exp(-t |x_i - x_j|^2) over pairs of different unit rows (Wang and Isola 2020); lower is more even."""
    x = normalised(rows, device)
    count, step = len(x), max(1, PAIRS // max(1, len(x)))
    total = 0.0
    for start in range(0, count, step):
        similarities = x[start : start + step] @ x.T
        distances = (2 - 2 * similarities).clamp_min(0)
        total += float(torch.exp(-temperature * distances).sum())
    # Each row is at distance 0 from itself, or has no direction where it is zero and then stands at distance sqrt(2).
    itself = (2 - 2 * x.square().sum(-1)).clamp_min(0)
    return float(np.log((total - float(torch.exp(-temperature * itself).sum())) / (count * (count - 1))))


def dimension_deviations(rows: Array, *, unit_length: bool, chunk: int = 8192, device: str = "cpu") -> Tensor:
    """(D,) population standard deviation of each dimension, float64, of rows of length 1 or of rows as they are."""
    total = torch.zeros(rows.shape[1], dtype=torch.float64, device=device)
    squares = torch.zeros_like(total)
    shift = (normalised if unit_length else as_double)(rows[:1], device)[0]  # keeps the digits of a large mean
    for start in range(0, len(rows), chunk):
        x = (normalised if unit_length else as_double)(rows[start : start + chunk], device) - shift
        total, squares = total + x.sum(0), squares + x.square().sum(0)
    return (squares / len(rows) - (total / len(rows)).square()).clamp_min(0).sqrt()

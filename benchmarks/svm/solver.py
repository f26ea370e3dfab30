"""Many L2-regularised squared-hinge SVMs at once: liblinear's primal objective.

A problem has n images with targets y, their Gram matrix K (intercept included, see `gram.py`), and a weight c_i per
image: cost times class weight, and 0 where the image is no part of the problem. With w = sum_i beta_i x_i the
objective is

    1/2 beta' K beta + sum_i c_i max(0, 1 - y_i (K beta)_i)^2

which in w is strictly convex: there is one answer, whichever method finds it. The method is Newton's with an exact
line search (Keerthi and DeCoste 2005; Chapelle 2007). A Newton system holds K only on the active images, those inside
the margin. While most are active it is solved by conjugate gradients for all problems at once, each step one product
with K, preconditioned on the leading eigenspace of K. Where few are active, at high costs, it is solved directly.

Problems come as (g, m, n): a stack of g Gram matrices, m problems on each. A column is the g problems at one of the m
places.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.svm.active_factors import ActiveFactors
from benchmarks.svm.gram import Gram
from benchmarks.svm.newton_step import System
from benchmarks.svm.preconditioner import Preconditioner, preconditioner

TOLERANCE = 1e-5
MAX_NEWTON = 100
SMALL = 64  # images up to which factorising all of K for every problem costs less than arranging anything better
_LINE_SEARCH_STEPS = 30
_ROUNDING = 5e-5
_NOTHING = 1e-25  # coefficients fade when images leave the margin; single-precision denormals slow a product tenfold


class NotConvergedError(RuntimeError):
    """The iteration limit was reached. A model that is not the optimum is never scored."""


@dataclass(frozen=True)
class Solution:
    """What `solve` found.

    Attributes:
        beta: (g, m, n) float64 expansion coefficients over the images.
        newton_steps: (g, m) steps that each problem took.
        products: products of one vector with K, in all.
    """

    beta: Tensor
    newton_steps: Tensor
    products: int


def solve(
    gram: Gram,
    targets: Tensor,
    weights: Tensor,
    start: tuple[Tensor, Tensor] | None = None,
    leading: Preconditioner | None = None,
    *,
    tolerance: float = TOLERANCE,
) -> Solution:
    """Minimise the objective above for each problem.

    A problem is finished when the estimated distance of its solution from the optimum, in the norm of the Hessian, is
    below `tolerance` times the solution's own norm. A column of finished problems leaves the batch. Where rounding
    would show, the last steps start from decision values in double precision, which is iterative refinement.

    Args:
        targets: (g, m, n), +1 or -1.
        weights: (g, m, n), non-negative.
        start: (g, m, n) coefficients to begin from and their product with K; zero by default.
        leading: `preconditioner(gram)`, where the caller has it.

    Raises:
        NotConvergedError: a problem needs more than `MAX_NEWTON` steps.
    """
    y, c = targets.double(), weights.double()
    b, o = (torch.zeros_like(c), torch.zeros_like(c)) if start is None else (start[0].double(), start[1].double())
    if gram.size <= SMALL:
        return _solve_small(gram, y, c, b, tolerance)
    leading = leading or preconditioner(gram)
    beta = torch.zeros_like(c)
    steps = torch.zeros(c.shape[:2], dtype=torch.int64, device=c.device)
    columns, factors = torch.arange(c.shape[1], device=c.device), ActiveFactors(gram, c.shape[1])
    finished = exact = torch.zeros_like(steps, dtype=torch.bool)  # exact: whose o are in double precision
    products = 0
    for _ in range(MAX_NEWTON):
        slack = 1 - y * o
        curvature = torch.where(slack > 0, 2 * c, 0.0)
        goal = tolerance * _norm(b, o)
        residual = curvature * slack * y - b
        step = System(gram, leading, factors, columns, y, curvature, residual, slack, goal, ~finished).solve()
        products += step.products
        steps[:, columns] += ~finished
        length = torch.where(finished[..., None], 0.0, _line_search(y, c, b, o, step.beta, step.decisions))
        b, o = b + length * step.beta, o + length * step.decisions
        b = torch.where(b.abs() < _NOTHING, 0.0, b)
        beta[:, columns] = b
        # Rounding shows where large coefficients cancel out in w, the more the less the regulariser holds them.
        rounded = torch.finfo(torch.float32).eps * c.amax(-1) * b.norm(dim=-1) > _ROUNDING * _norm(b, o)
        finished = finished | (step.final & (exact | ~rounded))
        exact = (exact | step.final) & rounded
        going = ~finished.all(0)
        if not going.any():
            return Solution(beta, steps, products)
        if not going.all():
            columns = columns[going]
            y, c, b, o, exact, finished = (t[:, going] for t in (y, c, b, o, exact, finished))
        refresh = (exact & ~finished).any(0)
        if refresh.any():
            o[:, refresh] = gram.exact_product(b[:, refresh])
    raise NotConvergedError(f"{int((~finished).sum())} SVMs did not converge in {MAX_NEWTON} Newton steps")


def _solve_small(gram: Gram, y: Tensor, c: Tensor, b: Tensor, tolerance: float) -> Solution:
    """Newton's method in double precision with K itself, inactive images left in, until all problems are finished."""
    extended = torch.stack([gram.rows(place).extended() for place in range(len(y))])
    kernel = extended @ extended.mT
    o = b @ kernel
    finished = torch.zeros(c.shape[:2], dtype=torch.bool, device=c.device)
    steps = torch.zeros_like(finished, dtype=torch.int64)
    for _ in range(MAX_NEWTON):
        slack = 1 - y * o
        curvature = torch.where(slack > 0, 2 * c, 0.0)
        residual = curvature * slack * y - b
        root = curvature.sqrt()
        system = root[..., None] * kernel[:, None] * root[..., None, :]
        system.diagonal(dim1=-2, dim2=-1).add_(1)
        right = root * (residual @ kernel)
        step = residual - root * torch.cholesky_solve(right[..., None], torch.linalg.cholesky(system))[..., 0]
        decisions = step @ kernel
        length = _line_search(y, c, b, o, step, decisions)
        b, o = b + length * step, o + length * decisions
        steps += ~finished
        finished = finished | ((decisions * residual).sum(-1) <= (tolerance * _norm(b, o)) ** 2)
        if finished.all():
            return Solution(b, steps, 2 * int(steps.sum()))
    raise NotConvergedError(f"{int((~finished).sum())} SVMs did not converge in {MAX_NEWTON} Newton steps")


def _norm(b: Tensor, o: Tensor) -> Tensor:
    """(g, m) |w|."""
    return (b * o).sum(-1).clamp(min=0).sqrt()


def _line_search(y: Tensor, c: Tensor, b: Tensor, o: Tensor, step: Tensor, decisions: Tensor) -> Tensor:
    """(g, m, 1) exact minimisers along the steps: Newton's method on a convex piecewise quadratic of one variable."""
    linear, square = (b * decisions).sum(-1), (step * decisions).sum(-1)
    slack, change = 1 - y * o, y * decisions
    length = torch.ones_like(linear)
    for _ in range(_LINE_SEARCH_STEPS):
        here = slack - length[..., None] * change
        weighted = torch.where(here > 0, c, 0.0) * change
        slope = linear + length * square - 2 * (weighted * here).sum(-1)
        move = slope / (square + 2 * (weighted * change).sum(-1)).clamp(min=1e-300)
        length = length - move
        if bool((move.abs() <= 1e-6).all()):
            break
    return length[..., None]

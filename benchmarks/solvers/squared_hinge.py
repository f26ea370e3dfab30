"""Many L2-regularised squared-hinge SVMs at once: liblinear's primal objective.

A problem has n images with signs y, their Gram matrix K (intercept included, see `gram.py`), and a weight c_i per
image: cost times class weight, and 0 where the image is not part of the problem. With w = sum_i beta_i x_i the
objective is

    1/2 beta' K beta + sum_i c_i max(0, 1 - y_i (K beta)_i)^2

which is strictly convex in w, so that every method finds the same answer. This one is Newton's with an exact line
search (Keerthi and DeCoste 2005; Chapelle 2007). A Newton system holds K only on the active images, those inside the
margin. While most are active, conjugate gradients solve it for all problems at once, with one product with K per step.
Where few are active, at high costs, each problem's system is factorised.

Problems come as (g, m, n): a stack of g Gram matrices, m problems on each. A column is the g problems at one of the m
places.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.solvers.gram import CentredRows, Gram

TOLERANCE = 1e-5
MAX_NEWTON = 100
_LINE_SEARCH_STEPS = 30
_ROUNDING = 5e-5
_PATIENCE = 25  # Newton steps after which a problem counts as badly conditioned
_NEGLIGIBLE = 1e-25  # smaller coefficients become zero: single-precision denormals slow a product tenfold
_EXTRAPOLATION = 0.3  # share of the way to the least objective on the line through the last two costs' solutions
_MAX_CG = 300
_CG_REDUCTION = 0.1
_MATRIX_IN_VECTORS = 10  # reading K takes as long as multiplying it with so many vectors
_DOUBLE_COST = 3  # time of an operation in double precision over one in single precision

# Up to this cost most images of unit norm stay inside the margin, and Newton's method needs few steps from anywhere:
# several costs are solved together. Above it each cost starts near the solution of the one before.
_JOINT_COST = 1.0
_BATCH = 32  # vectors with which a product with K is about as efficient as it gets


class NotConvergedError(RuntimeError):
    """The iteration limit was reached. A model that is not the optimum is never scored."""


@dataclass(frozen=True)
class Solution:
    """The result of `solve`.

    Attributes:
        beta: (g, m, n) float64 coefficients over the images.
        newton_steps: (g, m) steps that each problem took.
    """

    beta: Tensor
    newton_steps: Tensor


def solve_costs(
    gram: Gram, signs: Tensor, weights: Tensor, costs: Sequence[float], *, tolerance: float = TOLERANCE
) -> Iterator[tuple[int, Tensor]]:
    """Solve the problems for every cost, each from the solutions of nearby costs.

    Yields (index into `costs`, (g, m, n) float64 coefficients), in ascending order of cost.

    Args:
        signs: (g, m, n), +1 or -1.
        weights: (g, m, n) class weights; 0 where an image takes no part.
    """
    m = signs.shape[1]
    ascending = [int(i) for i in np.argsort(costs, kind="stable")]
    joint = [i for i in ascending if costs[i] <= _JOINT_COST]
    size = max(1, _BATCH // m)
    batches = [joint[begin : begin + size] for begin in range(0, len(joint), size)]
    batches += [[i] for i in ascending[len(joint) :]]
    zero = torch.zeros_like(signs, dtype=torch.float64)
    path = [(zero, zero)]  # coefficients at the last two costs, and their products with K; at cost 0 both are 0
    for batch in batches:
        factors = torch.tensor([costs[i] for i in batch], dtype=torch.float64)
        repeat = len(batch)
        y, c = signs.repeat(1, repeat, 1), (weights[:, None] * factors[:, None, None]).flatten(1, 2)
        repeated = [(b.repeat(1, repeat, 1), o.repeat(1, repeat, 1)) for b, o in path]
        start = _extrapolated(y, c, *repeated) if len(path) > 1 else None
        beta = solve(gram, y, c, start, tolerance=tolerance).beta
        yield from zip(batch, beta.split(m, 1), strict=True)
        last = beta[:, -2 * m :]
        path = [*path, *zip(last.split(m, 1), gram.product(last).split(m, 1), strict=True)][-2:]


def _extrapolated(
    y: Tensor, c: Tensor, before: tuple[Tensor, Tensor], last: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Where to begin, from (coefficients, product with K) at two lower costs: on from the last in the same direction.

    Only a part of the way to the least objective, where too few images are left inside the margin.
    """
    change, reach = last[0] - before[0], last[1] - before[1]
    length = _EXTRAPOLATION * _line_search(y, c, *last, change, reach).clamp(0, 1)
    return last[0] + length * change, last[1] + length * reach


def solve(
    gram: Gram,
    signs: Tensor,
    weights: Tensor,
    start: tuple[Tensor, Tensor] | None = None,
    *,
    tolerance: float = TOLERANCE,
) -> Solution:
    """Minimise the objective of each problem.

    A problem is finished when the estimated distance of its solution from the optimum, in the norm of the Hessian, is
    below `tolerance` times the solution's own norm: before a Newton step, or after one that leaves the active set as it
    is, which ends at the optimum but for rounding. A column of finished problems leaves the batch. Where rounding
    would show, the last steps start from decision values in double precision (iterative refinement) and are
    factorised.

    Args:
        signs: (g, m, n), +1 or -1.
        weights: (g, m, n), non-negative.
        start: (g, m, n) coefficients to begin from and their product with K. By default those of a low cost, where
            every image is deep inside the margin: in proportion to the weights, with the sign of the image.

    Raises:
        NotConvergedError: a problem needs more than `MAX_NEWTON` steps.
    """
    y, c = signs.double(), weights.double()
    if start is None:
        b = y * c
        o = gram.product(b)
        zero = torch.zeros_like(b)
        length = _line_search(y, c, zero, zero, b, o)
        b, o = length * b, length * o
    else:
        b, o = start[0].double(), start[1].double()
    beta = torch.zeros_like(c)
    steps = torch.zeros(c.shape[:2], dtype=torch.int64)
    columns = torch.arange(c.shape[1])
    finished = exact = torch.zeros_like(steps, dtype=torch.bool)  # exact: o is refreshed in double precision
    for iteration in range(MAX_NEWTON):
        slack = 1 - y * o
        curvature = torch.where(slack > 0, 2 * c, 0.0)
        residual = curvature * slack * y - b
        goal = tolerance * _norm(b, o)
        step = _newton_step(_System(gram, y, curvature, residual, slack, goal, ~finished, exact))
        steps[:, columns] += ~finished
        length = torch.where(finished[..., None], 0.0, _line_search(y, c, b, o, step.beta, step.decisions))
        b, o = b + length * step.beta, o + length * step.decisions
        b = torch.where(b.abs() < _NEGLIGIBLE, 0.0, b)
        beta[:, columns] = b
        # Rounding shows where large coefficients cancel out in w.
        rounded = torch.finfo(torch.float32).eps * c.amax(-1) * b.norm(dim=-1) > _ROUNDING * _norm(b, o)
        slow = iteration + 1 >= _PATIENCE
        finished = finished | (step.final & (exact | ~rounded))
        exact = torch.ones_like(exact) if slow else (exact | step.final) & rounded
        going = ~finished.all(0)
        if not going.any():
            return Solution(beta, steps)
        if not going.all():
            columns = columns[going]
            y, c, b, o, exact, finished = (t[:, going] for t in (y, c, b, o, exact, finished))
        refresh = (exact & ~finished).any(0)
        if refresh.any():
            o[:, refresh] = gram.exact_product(b[:, refresh])
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
        curve = square + 2 * (weighted * change).sum(-1)
        move = torch.where(curve > 0, slope / curve, 0.0)  # without a curve it is rounding
        length = length - move
        if bool((move.abs() <= 1e-6).all()):
            break
    return length[..., None]


# ---- one Newton step -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _System:
    """Newton systems (I + D K) step = residual, in coordinates beta, D = diag(curvature).

    Attributes:
        curvature: (g, m, n), twice the weight of an active image, else 0.
        residual: (g, m, n) minus the gradient.
        slack: (g, m, n), 1 - y o; positive where the image is active.
        goal: (g, m) distance from the optimum at which a problem is finished.
        open: (g, m) whether it is unfinished; a finished problem may stay with its column.
        exact: (g, m) whether single precision did not do.
    """

    gram: Gram
    signs: Tensor
    curvature: Tensor
    residual: Tensor
    slack: Tensor
    goal: Tensor
    open: Tensor
    exact: Tensor

    def columns(self, which: Tensor) -> _System:
        """The problems of some of the m columns."""
        parts = (self.signs, self.curvature, self.residual, self.slack, self.goal, self.open, self.exact)
        return _System(self.gram, *(part[:, which] for part in parts))

    @property
    def scale(self) -> Tensor:
        """(g, m) t for which t K resembles D K: the mean curvature."""
        return self.curvature.mean(-1).float()

    def unchanged(self, decisions: Tensor) -> Tensor:
        """(g, m) whether the full step leaves the active set as it is; the quadratic is then the objective itself."""
        after = self.slack - self.signs * decisions
        return (((after > 0) == (self.slack > 0)) | (self.curvature.amax(-1, keepdim=True) == 0)).all(-1)


@dataclass(frozen=True)
class _Step:
    """Steps of (g, m) problems.

    Attributes:
        beta: (g, m, n) in coordinates beta.
        decisions: (g, m, n), the same times K.
        final: (g, m) whether a problem will have reached its goal when it has taken the step.
    """

    beta: Tensor
    decisions: Tensor
    final: Tensor


def _newton_step(system: _System) -> _Step:
    """Solve each column by the cheaper of the two methods."""
    active = (system.curvature > 0).sum(-1).double()
    gram = system.gram
    iterative = gram.leading.expected_steps(system.scale).double() * gram.flops
    iterative = iterative * (1 + _MATRIX_IN_VECTORS / active.shape[1])
    iterative = torch.where(system.exact & system.open, torch.inf, iterative)
    direct = torch.minimum(_dual_cost(active), _primal_cost(active, gram.whole.dim)).sum(0) <= iterative.sum(0)
    if direct.all():
        return _factorised(system)
    if not direct.any():
        return _conjugate_gradients(system)
    step = _Step(*(torch.zeros_like(t) for t in (system.residual, system.residual, system.open)))
    for which, method in ((direct, _factorised), (~direct, _conjugate_gradients)):
        part = method(system.columns(which))
        step.beta[:, which], step.decisions[:, which], step.final[:, which] = part.beta, part.decisions, part.final
    return step


def _dual_cost(active: Tensor) -> Tensor:
    """A factorisation runs at a quarter of the speed of a product, and its matrix has to be picked out of K."""
    return active**3 / 2 + 150 * active**2


def _primal_cost(active: Tensor, dim: int) -> Tensor:
    return _DOUBLE_COST * (active * dim**2 + dim**3 / 3)


def _factorised(system: _System) -> _Step:
    """One Cholesky factorisation per problem, in the smaller of two spaces.

    Dual: K + 1/D on the active images, in single precision or, where that does not do, in double. Primal: I + X' D X of
    the active rows X, in double precision.
    """
    gram = system.gram
    count = (system.curvature > 0).sum(-1).double()
    primal = system.open & (_primal_cost(count, gram.whole.dim) < _dual_cost(count))
    step, decisions = torch.zeros_like(system.residual), torch.zeros_like(system.residual)
    missed = torch.full_like(system.goal, torch.inf)
    for place, j in (system.open & ~primal).nonzero().tolist():
        at, double = (place, j), bool(system.exact[place, j])
        step[at], decisions[at], missed[at] = _dual_step(gram, place, system.curvature[at], system.residual[at], double)
    for place in primal.any(1).nonzero()[:, 0].tolist():
        which = primal[place].nonzero()[:, 0]
        curvature, residual = system.curvature[place, which], system.residual[place, which]
        decisions[place, which] = found = _primal_decisions(gram.rows(place), curvature, residual)
        step[place, which] = residual - curvature * found
    decrement = (decisions * system.residual).sum(-1).clamp(min=0).sqrt()
    final = (decrement <= system.goal) | ((missed <= system.goal) & system.unchanged(decisions))
    return _Step(step, decisions, final)


def _dual_step(
    gram: Gram, place: int, curvature: Tensor, residual: Tensor, double: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(n,) step of one problem, the same times K, and how far rounding leaves it from the solution of its system."""
    active = curvature > 0
    step = torch.where(active, 0.0, residual)  # inactive coefficients become zero
    inactive, images = step.nonzero()[:, 0], active.nonzero()[:, 0]
    decisions = gram.combination(place, inactive, step[inactive])
    diagonal = 1 / curvature[images]
    lower = _cholesky(gram.block(place, images), diagonal, double)

    def solved(right: Tensor) -> Tensor:
        return torch.cholesky_solve(right[:, None].to(lower.dtype), lower)[:, 0].double()

    step[images] = solved(diagonal * residual[images] - decisions[images])
    decisions += gram.combination(place, images, step[images])
    left = diagonal * (residual - step)[images] - decisions[images]
    return step, decisions, (left @ (left / diagonal - solved(left))).clamp(min=0).sqrt()


def _cholesky(matrix: Tensor, diagonal: Tensor, double: bool) -> Tensor:
    """Lower factor of matrix + diag(diagonal)."""
    matrix.diagonal().add_(diagonal.float())
    if not double:
        lower, failed = torch.linalg.cholesky_ex(matrix)
        if not failed:
            return lower
    return torch.linalg.cholesky(matrix.double())


def _primal_decisions(rows: CentredRows, curvature: Tensor, residual: Tensor) -> Tensor:
    """(m, n) float64 decision values of the steps of m problems on the same n rows."""
    weights = rows.weights(residual)
    for j, of_problem in enumerate(curvature):
        images = of_problem.nonzero()[:, 0]
        active = rows.select(images).extended()
        hessian = (active.T * of_problem[images]) @ active
        hessian.diagonal().add_(1)
        weights[j] = torch.cholesky_solve(weights[j, :, None], torch.linalg.cholesky(hessian))[:, 0]
    return rows.decisions(weights)


def _conjugate_gradients(system: _System) -> _Step:
    """Preconditioned conjugate gradients in the inner product K, in which I + D K is self-adjoint.

    To a tenth of the first residual; on to the goal while the active set stays as it is. A column leaves when the
    problems of the whole stack are done with it; until then those that are done take steps of length 0.
    """
    gram, scale = system.gram, system.scale
    out = _Step(*(torch.zeros_like(t) for t in (system.residual, system.residual, system.open)))
    columns = torch.arange(scale.shape[1])
    unit = system.residual.norm(dim=-1, keepdim=True).clamp(min=1e-300)
    d, r = system.curvature.float(), (system.residual / unit).float()
    goal = (system.goal / unit[..., 0]).float() ** 2
    step, decisions, p, kp = (torch.zeros_like(r) for _ in range(4))
    last = rough = torch.ones_like(scale)
    done = final = torch.zeros_like(scale, dtype=torch.bool)
    for iteration in range(_MAX_CG):
        z = gram.leading.precondition(r, scale)
        kz = gram.product(z)
        rz = (r * kz).sum(-1)
        if iteration == 0:
            rough = rz * _CG_REDUCTION**2
        reached, close = (rz <= goal) & (rz >= 0), rz <= rough
        # Below zero it is rounding, and nothing more can be gained; from zero there is no norm to be relative to.
        stop = reached | (rz < 0) | (close & (goal == 0))
        if close.any():
            unchanged = system.unchanged(decisions * unit)
            stop, reached = stop | (close & ~unchanged), reached & unchanged
        final = torch.where(done, final, reached)
        done = done | stop | (iteration == _MAX_CG - 1)
        left = done.all(0)
        if left.any():
            out.beta[:, columns[left]] = step[:, left] * unit[:, left]
            out.decisions[:, columns[left]] = decisions[:, left] * unit[:, left]
            out.final[:, columns[left]] = final[:, left]
            if left.all():
                break
            keep = ~left
            system, columns = system.columns(keep), columns[keep]
            scale, unit, d, r, goal, rough, last = (t[:, keep] for t in (scale, unit, d, r, goal, rough, last))
            step, decisions, p, kp, z, kz, rz = (t[:, keep] for t in (step, decisions, p, kp, z, kz, rz))
            done, final = done[:, keep], final[:, keep]
        ratio = torch.where(done, 0.0, rz / last.clamp(min=1e-30))[..., None] if iteration else 0.0
        p, kp, last = z + ratio * p, kz + ratio * kp, rz
        hp = p + d * kp
        length = torch.where(done, 0.0, rz / (hp * kp).sum(-1).clamp(min=1e-30))[..., None]
        step, decisions, r = step + length * p, decisions + length * kp, r - length * hp
    return out

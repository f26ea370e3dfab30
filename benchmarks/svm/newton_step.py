"""One Newton step for many SVMs, by whichever of four methods is cheapest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.svm.active_factors import ActiveFactors
from benchmarks.svm.gram import Gram
from benchmarks.svm.preconditioner import Preconditioner

_MAX_CG = 300
_CG_REDUCTION = 0.1
_MATRIX_IN_VECTORS = 20
_PICKED = 0.04  # time of one operation in a product over that of picking one number out of the matrix
_DOUBLE_PRECISION = 3  # how much dearer an operation is in double precision
_TOGETHER = 256  # images up to which factorising a whole stack is better than picking the active images of each problem


@dataclass(frozen=True)
class Step:
    """Steps of (g, m) problems.

    Attributes:
        beta: (g, m, n) in coordinates beta.
        decisions: (g, m, n), the same times K.
        final: (g, m) whether a problem will have reached its goal when it has taken the step.
        products: products of one vector with K that it took.
    """

    beta: Tensor
    decisions: Tensor
    final: Tensor
    products: int

    @classmethod
    def empty(cls, like: Tensor) -> Step:
        return cls(torch.zeros_like(like), torch.zeros_like(like), like.new_zeros(like.shape[:2], dtype=torch.bool), 0)

    def put(self, columns: Tensor, part: Step) -> Step:
        """Fills in what was found for some columns."""
        self.beta[:, columns], self.decisions[:, columns] = part.beta, part.decisions
        self.final[:, columns] = part.final
        return Step(self.beta, self.decisions, self.final, self.products + part.products)


@dataclass(frozen=True)
class System:
    """Newton systems (I + D K) step = residual, in coordinates beta, D = diag(curvature).

    Attributes:
        factors: of earlier steps.
        names: (m,) what the columns are called there.
        curvature: (g, m, n), twice the weight of an active image, else 0.
        residual: (g, m, n) minus the gradient.
        slack: (g, m, n), 1 - y o; positive where the image is active.
        goal: (g, m) distance from the optimum at which a problem is finished.
        open: (g, m) whether it is unfinished; a finished one may come along with its column.
    """

    gram: Gram
    preconditioner: Preconditioner
    factors: ActiveFactors
    names: Tensor
    targets: Tensor
    curvature: Tensor
    residual: Tensor
    slack: Tensor
    goal: Tensor
    open: Tensor

    def columns(self, which: Tensor) -> System:
        """The problems of some of the m columns."""
        parts = (self.targets, self.curvature, self.residual, self.slack, self.goal, self.open)
        return System(
            self.gram, self.preconditioner, self.factors, self.names[which], *(part[:, which] for part in parts)
        )

    @property
    def scale(self) -> Tensor:
        """(g, m) t for which t K resembles D K: the mean curvature."""
        return self.curvature.mean(-1).float()

    def solve(self) -> Step:
        inside = self.curvature > 0
        active, dim, n = inside.sum(-1).double(), self.gram.whole.dim, self.gram.size
        # Reading the matrix takes as long as multiplying it with so many vectors.
        flops = self.gram.flops * (1 + _MATRIX_IN_VECTORS / active.shape[1])
        together = self.gram.dense is not None and n <= _TOGETHER
        cost = {
            System._conjugate_gradients: self.preconditioner.expected_steps(self.scale).double() * flops,
            System._in_dual_together if together else System._in_dual: (
                active**3 / 3 if together else self.factors.operations(inside, self.names)
            ),
            System._in_primal: _DOUBLE_PRECISION * (active * dim**2 + dim**3 / 3),
        }
        methods = list(cost)
        cheapest = torch.stack([of_method.sum(0) for of_method in cost.values()]).argmin(0)
        step = Step.empty(self.residual)
        for i, method in enumerate(methods):
            where = cheapest == i
            if where.all():
                return method(self)
            if where.any():
                step = step.put(where, method(self.columns(where)))
        return step

    def _unchanged(self, decisions: Tensor) -> Tensor:
        """(g, m) whether the full step leaves the active set as it is; the quadratic is then the objective itself."""
        after = self.slack - self.targets * decisions
        return (((after > 0) == (self.slack > 0)) | (self.curvature.amax(-1, keepdim=True) == 0)).all(-1)

    def _in_dual(self) -> Step:
        """One solve per problem, with K + 1/D on its active images."""
        active, names = self.curvature > 0, self.names.tolist()
        step = torch.where(active | ~self.open[..., None], 0.0, self.residual)
        leaving = step != 0  # images that fall out of the margin, and what they take with them
        count, columns = int(leaving.sum()), step.shape[1]
        few = count <= _PICKED * self.gram.size * len(step) * max(_MATRIX_IN_VECTORS, columns)
        reach = torch.zeros_like(step) if few else self.gram.product(step)
        for place, j in self.open.nonzero().tolist():
            images, gone = active[place, j].nonzero()[:, 0], leaving[place, j].nonzero()[:, 0]
            inverse = 1 / self.curvature[place, j, images]
            right = inverse * self.residual[place, j, images] - reach[place, j, images]
            if few and len(gone):
                right -= (step[place, j, gone].float() @ self.gram.block(place, gone, images)).double()
            step[place, j, images] = self.factors.solve(place, names[j], images, inverse, right)
        return self._after_direct(step, self.gram.product(step), 1 if few else 2)

    def _in_dual_together(self) -> Step:
        """The same for all problems at once, with the inactive images left in: I + sqrt(D) K sqrt(D)."""
        root = self.curvature.sqrt()
        single = root.float()
        system = single[..., None] * self.gram.matrices()[:, None] * single[..., None, :]
        system.diagonal(dim1=-2, dim2=-1).add_(1)
        right = (root * self.gram.product(self.residual)).float()
        step = self.residual - root * torch.cholesky_solve(right[..., None], torch.linalg.cholesky(system))[..., 0]
        return self._after_direct(step, self.gram.product(step), 2)

    def _in_primal(self) -> Step:
        """One Cholesky factorisation per problem, of I + X' D X on its active rows X, in double precision."""
        decisions = torch.empty_like(self.residual)
        for place, residual in enumerate(self.residual):
            rows = self.gram.rows(place)
            right = rows.weights(residual)
            for j, curvature in enumerate(self.curvature[place]):
                if not self.open[place, j]:
                    right[j] = 0
                    continue
                images = curvature.nonzero()[:, 0]
                active = rows.select(images).extended()
                hessian = (active.T * curvature[images]) @ active
                hessian.diagonal().add_(1)
                right[j] = torch.cholesky_solve(right[j, :, None], torch.linalg.cholesky(hessian))[:, 0]
            decisions[place] = rows.decisions(right)
        step = torch.where(self.open[..., None], self.residual - self.curvature * decisions, 0.0)
        return self._after_direct(step, decisions, 2)

    def _after_direct(self, step: Tensor, decisions: Tensor, products: int) -> Step:
        decrement = (decisions * self.residual).sum(-1).clamp(min=0).sqrt()
        return Step(step, decisions, decrement <= self.goal, products * self.goal.numel())

    def _conjugate_gradients(self) -> Step:
        """Preconditioned conjugate gradients in the inner product K, in which I + D K is self-adjoint.

        To a tenth of the first residual; on to the goal while the active set stays as it is. A column leaves when the
        problems of the whole stack are done with it; until then those that are done take steps of length 0.
        """
        out = Step.empty(self.residual)
        system, scale = self, self.scale
        columns = torch.arange(self.goal.shape[1], device=scale.device)
        unit = self.residual.norm(dim=-1, keepdim=True).clamp(min=1e-300)
        d, r = self.curvature.float(), (self.residual / unit).float()
        goal = (self.goal / unit[..., 0]).float() ** 2
        step, decisions, p, kp = (torch.zeros_like(r) for _ in range(4))
        last = rough = torch.ones_like(scale)
        done = final = torch.zeros_like(scale, dtype=torch.bool)
        products = 0
        for iteration in range(_MAX_CG):
            z = self.preconditioner(r, scale)
            kz = self.gram.product(z)
            products += int(goal.numel())
            rz = (r * kz).sum(-1)
            if iteration == 0:
                rough = rz * _CG_REDUCTION**2
            reached, close = (rz <= goal) & (rz >= 0), rz <= rough
            # Below zero it is rounding, and nothing more can be gained; from zero there is no norm to be relative to.
            stop = reached | (rz < 0) | (close & (goal == 0))
            if close.any():
                unchanged = system._unchanged(decisions * unit)
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
        return Step(out.beta, out.decisions, out.final, products)

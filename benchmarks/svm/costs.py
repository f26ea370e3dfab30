"""The solutions for a list of costs, each reached from one nearby."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.svm.gram import Gram
from benchmarks.svm.preconditioner import Preconditioner, preconditioner
from benchmarks.svm.solver import SMALL, solve

# Up to this cost most images of unit norm stay inside the margin, and Newton's method needs few steps from anywhere. So
# when one cost makes a small batch several are solved together; above it each starts from the last.
_TOGETHER = 1.0
_BATCH = 32  # vectors with which a product with K is about as efficient as it gets


def solve_costs(
    gram: Gram,
    signs: Tensor,
    weights: Tensor,
    costs: Sequence[float],
    *,
    tolerance: float,
    leading: Preconditioner | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Yields (index into `costs`, (g, m, n) float64 coefficients), in ascending order of cost.

    Args:
        signs: (g, m, n) targets, +1 or -1.
        weights: (g, m, n) class weights; 0 where an image takes no part.
        leading: `preconditioner(gram)`, where the caller has it.
    """
    m = signs.shape[1]
    order = [int(i) for i in np.argsort(costs, kind="stable")]
    small = gram.size <= SMALL
    leading = leading if small or leading is not None else preconditioner(gram)
    together, batch = (max(costs), len(costs)) if small else (_TOGETHER, max(1, _BATCH // m))
    start: tuple[Tensor, Tensor] | None = None
    for stage in _stages([costs[i] for i in order], together, batch):
        factors = torch.tensor([costs[i] for i in order[stage]], dtype=torch.float64, device=signs.device)
        repeat = len(factors)
        solution = solve(
            gram,
            signs.repeat(1, repeat, 1),
            (weights[:, None] * factors[:, None, None]).flatten(1, 2),
            None if start is None else (start[0].repeat(1, repeat, 1), start[1].repeat(1, repeat, 1)),
            leading,
            tolerance=tolerance,
        )
        for place, i in enumerate(order[stage]):
            beta = solution.beta[:, place * m : (place + 1) * m]
            yield i, beta
        start = beta, gram.product(beta)


def _stages(ascending: Sequence[float], together: float, most: int) -> Iterator[slice]:
    begin = 0
    while begin < len(ascending):
        end = begin + 1
        while end < len(ascending) and ascending[end] <= together and end - begin < most:
            end += 1
        yield slice(begin, end)
        begin = end

"""One linear SVM at a time by Newton's method with the full Hessian, all in double precision."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def objective(w: NDArray, rows: NDArray, signs: NDArray, weights: NDArray) -> float:
    """1/2 |w|^2 + sum_i weights_i max(0, 1 - signs_i w.rows_i)^2."""
    slack = np.maximum(0, 1 - signs * (rows @ w))
    return float(0.5 * w @ w + weights @ slack**2)


def solve(rows: NDArray, signs: NDArray, weights: NDArray) -> NDArray:
    """The minimising w, intercept last, of (n, d) rows to which the constant 1 is appended.

    Newton with halving; a gradient of 1e-9 means |w - w*| <= 1e-9, because the objective is 1-strongly convex.
    """
    extended = np.hstack([rows, np.ones((len(rows), 1))])
    w = np.zeros(extended.shape[1])
    for _ in range(200):
        slack = np.maximum(0, 1 - signs * (extended @ w))
        gradient = w - 2 * extended.T @ (weights * signs * slack)
        if np.linalg.norm(gradient) <= 1e-9:
            return w
        active = slack > 0
        hessian = np.eye(len(w)) + 2 * (extended[active].T * weights[active]) @ extended[active]
        step = np.linalg.solve(hessian, -gradient)
        before, length = objective(w, extended, signs, weights), 1.0
        while objective(w + length * step, extended, signs, weights) > before + 1e-12 * abs(before) and length > 1e-8:
            length /= 2
        w = w + length * step
    raise AssertionError(f"gradient still {np.linalg.norm(gradient)}")

"""The chosen costs solved again: their models, and what each test image contributes to the figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.svm.few_rows import Source
from benchmarks.svm.low_shot_problems import Problems, fit
from benchmarks.svm.pseudo_values import envelope_influence
from benchmarks.svm.settings import LowShotParams
from benchmarks.svm.threads import map_on_cores

Floats = NDArray[np.float64]
CostsByK = Mapping[int, set[float]]


def solve_chosen(
    source: Source,
    stacks: Sequence[Problems],
    costs: CostsByK,
    test_targets: NDArray[np.int8],
    params: LowShotParams,
    device: str,
) -> tuple[dict[str, Tensor], dict[tuple[int, float], Floats]]:
    """To keep all models until the costs are chosen is too much.

    Returns:
        (sets, C, D) weights and (sets, C) intercepts as `k=8/cost=1/weight` and `…/bias`; and by (k, cost) the (N,)
        influence of the test images on the mean over sets and classes, see `pseudo_values`.
    """
    classes = test_targets.shape[1]
    models: dict[str, Tensor] = {}
    influences: dict[tuple[int, float], Floats] = {}
    work = partial(_solve_stack, source, costs, test_targets, params, device)
    for problems, found in zip(stacks, map_on_cores(work, stacks, device), strict=True):
        for cost, (weights, influence) in found.items():
            key = f"k={problems.draw.k}/cost={cost:g}"
            if f"{key}/weight" not in models:
                models[f"{key}/weight"] = torch.zeros(params.sets, classes, weights.shape[-1] - 1)
                models[f"{key}/bias"] = torch.zeros(params.sets, classes)
                influences[problems.draw.k, cost] = np.zeros(len(test_targets))
            models[f"{key}/weight"][problems.draw.index, problems.classes] = weights[..., :-1]
            models[f"{key}/bias"][problems.draw.index, problems.classes] = weights[..., -1]
            influences[problems.draw.k, cost] += influence / (params.sets * classes)
    return models, influences


def _solve_stack(
    source: Source,
    costs: CostsByK,
    test_targets: NDArray[np.int8],
    params: LowShotParams,
    device: str,
    problems: Problems,
) -> dict[float, tuple[Tensor, Floats]]:
    """Cost -> (g, m, D + 1) float32 weights, the intercept last, and (N,) influence summed over the classes."""
    wanted = sorted(costs[problems.draw.k])
    if not wanted:
        return {}
    part, leading = source.gram(problems.images)
    rows = [part.rows(place) for place in range(len(problems.images))]
    order, betas = zip(*fit(part, leading, problems, wanted, params, device), strict=True)
    decisions = source.decisions(part, torch.cat(betas, 1), problems.images, np.zeros(0, np.int64)).test
    found = {}
    for i, beta, of_cost in zip(order, betas, np.split(decisions, len(betas), axis=1), strict=True):
        weights = [of.weights(of_place).float().cpu() for of, of_place in zip(rows, beta, strict=True)]
        influence = np.zeros(len(test_targets))
        for place, c in np.ndenumerate(problems.classes):
            influence += envelope_influence(of_cost[place], test_targets[:, c])
        found[wanted[i]] = torch.stack(weights), influence
    return found

"""VOC07 low-shot SVM: k positives per class, several drawn sets, mean average precision on the whole test split.

Goyal et al. 2019, "Scaling and Benchmarking Self-Supervised Visual Representation Learning", section 6.2. Published
figures choose cost and layer on the test split. That choice is reported under its name, oracle, and two beside it that
never look at the test split: a fixed cost, and the cost that does best on the training images outside the drawn set,
which uses more labels than the k.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.contract import InputError, Outcome, Split
from benchmarks.progress import progress as with_progress
from benchmarks.svm.average_precision import average_precisions, envelope_ap
from benchmarks.svm.clock import Clock
from benchmarks.svm.costs import solve_costs
from benchmarks.svm.few_rows import AllPairs, DrawnRows, Source
from benchmarks.svm.gram import DENSE_ROWS, Gram
from benchmarks.svm.index_sets import NOT_DRAWN, Draw, draw_sets, sets_sha256
from benchmarks.svm.inputs import one_hot, refuse_unmeasurable, usable_outputs
from benchmarks.svm.low_shot_report import LayerResult, choose, report
from benchmarks.svm.preconditioner import Preconditioner
from benchmarks.svm.settings import LowShotParams, params_of, required_outputs
from benchmarks.svm.threads import map_on_cores
from results.schema import Protocol

__all__ = ["required_outputs", "run"]

_STACK_VALUES = 1 << 23  # numbers in the Gram matrices that are worked on at once: 32 MB, as large as a cache
_SCORE_TOGETHER = 32  # models


@dataclass(frozen=True)
class Problems:
    """Binary problems of one draw that are solved together: g Gram matrices of n images, m classes on each.

    Attributes:
        draw: what they belong to.
        classes: (g, m) the class that is told from the rest.
        images: (g, n) rows of the training split.
        positive: (g, m, n).
        compared: (O,) training images on which costs may be compared.
        compared_labels: (g, m, O) of 1, 0 and -1 (drawn, or ignored in the data set).
    """

    draw: Draw
    classes: NDArray[np.int64]
    images: NDArray[np.int64]
    positive: NDArray[np.bool_]
    compared: NDArray[np.int64]
    compared_labels: NDArray[np.int8]


def run(
    protocol: Protocol,
    train: Split,
    test: Split,
    *,
    device: str = "cpu",
    progress: bool = True,
    index_files: Path | None = None,
) -> Outcome:
    """Train and test on every drawn set, k, cost and layer.

    Args:
        index_files: folder of the published label files, for the protocols that use them.

    Raises:
        InputError: see `usable_outputs` and `draw_sets`; also a class without a positive test image, a fixed cost
            that is not among the costs, and a single set of a single-label data set.
    """
    params = params_of(protocol, LowShotParams)
    if params.fixed_cost not in params.costs:
        raise InputError(f"{protocol.id}: fixed_cost {params.fixed_cost:g} is not among the costs: choose one of them")
    if train.labels.targets.ndim == 1 and params.sets == 1:
        raise InputError(
            f"{protocol.id}: with one set there are no other sets' images to compare costs on: draw two or more (sets)"
        )
    names = usable_outputs(params, train, test)
    test_targets = one_hot(test.labels.targets, len(test.labels.classes))
    refuse_unmeasurable(test_targets, test.labels.classes)
    draws = draw_sets(train.labels, params, index_files)
    few = train.labels.targets.ndim == 2 and len(train.labels) <= DENSE_ROWS
    problems = list(stacked_problems(train.labels.targets, draws, _STACK_VALUES if few else 1))

    outcome = Outcome(scores={}, timing={"fit and score": 0.0, "models": 0.0}, seeds=(params.seed,))
    ticks = iter(with_progress(range(len(names) * len(problems)), protocol.id, show=progress))
    clock = Clock(outcome.timing)
    results: dict[str, LayerResult] = {}
    for name in names:
        source = _source(train.features[name], test.features[name], device, few)
        results[name] = _measure(source, problems, test_targets, params, device, ticks)
    for _ in ticks:  # closes the bar
        pass
    clock.lap("fit and score")

    chosen = choose(results, params)
    report(params, results, chosen, train.labels.classes, len(test.labels), outcome)
    for name in {choice.layer for choice in chosen}:
        source = _source(train.features[name], test.features[name], device, few)
        costs = {k: {choice.cost for choice in chosen if (choice.layer, choice.k) == (name, k)} for k in params.k}
        models = _models(source, problems, costs, params, device)
        outcome.tensors |= {f"{name}/{key}": value for key, value in models.items()}
    clock.lap("models")
    for draw in draws:
        key = f"sets/sample{draw.index + 1}_k{draw.k}"
        outcome.tensors[f"{key}/rows"] = torch.from_numpy(draw.rows)
        outcome.tensors[f"{key}/labels"] = torch.from_numpy(draw.labels)
    outcome.runs.append({"index_sets": params.index_sets, "sets": params.sets, "sha256": sets_sha256(draws)})
    return outcome


def stacked_problems(
    targets: NDArray[np.integer], draws: Sequence[Draw], most: int = _STACK_VALUES
) -> Iterator[Problems]:
    """All problems of the draws, in stacks of about `most` numbers in their Gram matrices.

    In a multi-label data set every class has images of its own, and costs are compared on all others. In a single-label
    one the classes share the images; costs are compared on what the other sets drew at the same k, since all others
    would be the whole data set.
    """
    for draw in draws:
        count = draw.labels.shape[1]
        if targets.ndim == 1:
            same_k = np.concatenate([other.rows for other in draws if other.k == draw.k])
            compared = np.setdiff1d(same_k, draw.rows)
            classes = np.arange(count)[None]
            labels = (targets[compared] == classes[..., None]).astype(np.int8)
            yield Problems(draw, classes, draw.rows[None], draw.labels.T[None] == 1, compared, labels)
            continue
        images = np.stack([draw.rows[draw.labels[:, c] != NOT_DRAWN] for c in range(count)])
        for classes in np.array_split(np.arange(count), min(count, -(-count * images.shape[1] ** 2 // most))):
            drawn = images[classes]
            labels = targets.T[classes].astype(np.int8)
            positive = np.take_along_axis(labels, drawn, 1) == 1
            np.put_along_axis(labels, drawn, np.int8(-1), 1)
            yield Problems(draw, classes[:, None], drawn, positive[:, None], np.arange(len(targets)), labels[:, None])


def fit(
    part: Gram,
    leading: Preconditioner | None,
    problems: Problems,
    costs: Sequence[float],
    params: LowShotParams,
    device: str,
) -> Iterator[tuple[int, Tensor]]:
    """Yields (index into `costs`, (g, m, n) coefficients)."""
    positive = torch.from_numpy(problems.positive).to(device)
    yield from solve_costs(
        part,
        torch.where(positive, 1.0, -1.0).double(),
        torch.where(positive, params.positive_weight, params.negative_weight).double(),
        costs,
        tolerance=params.tolerance,
        leading=leading,
    )


def _source(train: NDArray[np.float32], test: NDArray[np.float32], device: str, few: bool) -> Source:
    return AllPairs(train, test, device) if few else DrawnRows(train, test, device)


def _measure(
    source: Source,
    stacks: Sequence[Problems],
    test_targets: NDArray[np.int8],
    params: LowShotParams,
    device: str,
    ticks: Iterator[int],
) -> LayerResult:
    result = LayerResult.empty(params, test_targets.shape[1])
    work = partial(_measure_stack, source, test_targets, params, device)
    for problems, (test, heldout) in zip(stacks, map_on_cores(work, stacks, device), strict=True):
        cell = problems.draw.index, params.k.index(problems.draw.k)
        result.test[(slice(None), *cell)][..., problems.classes] = test
        result.heldout[cell][:, problems.classes] = heldout
        next(ticks, None)
    return result


def _measure_stack(
    source: Source, test_targets: NDArray[np.int8], params: LowShotParams, device: str, problems: Problems
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(3, costs, g, m) average precisions on test and (costs, g, m) on the compared images."""
    part, leading = source.gram(problems.images)
    path = fit(part, leading, problems, params.costs, params, device)
    count, m = problems.classes.shape
    test, heldout = np.zeros((3, len(params.costs), count, m)), np.zeros((len(params.costs), count, m))
    while solved := list(islice(path, max(1, _SCORE_TOGETHER // m))):
        costs = [cost for cost, _ in solved]
        betas = torch.cat([beta for _, beta in solved], 1)
        found = source.decisions(part, betas, problems.images, problems.compared)
        # From (g, costs m, images) to (costs, g, m, images).
        on_test, on_compared = (
            values.reshape(count, len(costs), m, values.shape[-1]).swapaxes(0, 1)
            for values in (found.test, found.train)
        )
        ap = average_precisions(on_test, test_targets.T[problems.classes])
        test[:, costs] = ap.envelope, ap.step, ap.eleven_point
        heldout[costs] = envelope_ap(on_compared, problems.compared_labels)
    return test, heldout


def _models(
    source: Source, stacks: Sequence[Problems], costs: dict[int, set[float]], params: LowShotParams, device: str
) -> dict[str, Tensor]:
    """(sets, C, D) weights and (sets, C) intercepts of the chosen costs, solved again: to keep all is too much."""
    classes = 1 + max(int(problems.classes.max()) for problems in stacks)
    models: dict[str, Tensor] = {}
    work = partial(_stack_models, source, costs, params, device)
    for problems, found in zip(stacks, map_on_cores(work, stacks, device), strict=True):
        for cost, of_cost in found.items():
            key = f"k={problems.draw.k}/cost={cost:g}"
            if f"{key}/weight" not in models:
                models[f"{key}/weight"] = torch.zeros(params.sets, classes, of_cost.shape[-1] - 1)
                models[f"{key}/bias"] = torch.zeros(params.sets, classes)
            models[f"{key}/weight"][problems.draw.index, problems.classes] = of_cost[..., :-1]
            models[f"{key}/bias"][problems.draw.index, problems.classes] = of_cost[..., -1]
    return models


def _stack_models(
    source: Source, costs: dict[int, set[float]], params: LowShotParams, device: str, problems: Problems
) -> dict[float, Tensor]:
    """Cost -> (g, m, D + 1) float32 weights, the intercept last."""
    wanted = sorted(costs[problems.draw.k])
    if not wanted:
        return {}
    part, leading = source.gram(problems.images)
    rows = [part.rows(place) for place in range(len(problems.images))]
    return {
        wanted[i]: torch.stack([of.weights(of_place).float().cpu() for of, of_place in zip(rows, beta, strict=True)])
        for i, beta in fit(part, leading, problems, wanted, params, device)
    }

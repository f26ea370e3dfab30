"""VOC07 low-shot SVM: k positives per class, several drawn sets, mean average precision on the whole test split.

Goyal et al. 2019, "Scaling and Benchmarking Self-Supervised Visual Representation Learning", section 6.2. Published
figures choose cost and layer on the test split. That choice is reported under its name, oracle, and two beside it that
never look at the test split: a fixed cost, and the cost that does best on the training images outside the drawn set,
which uses more labels than the k.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.contract import InputError, Outcome, Split
from benchmarks.overrides import typed
from benchmarks.progress import progress as with_progress
from benchmarks.svm.average_precision import average_precisions, envelope_ap
from benchmarks.svm.clock import Clock
from benchmarks.svm.few_rows import AllPairs, DrawnRows, Source
from benchmarks.svm.gram import DENSE_ROWS
from benchmarks.svm.index_sets import draw_sets, sets_sha256
from benchmarks.svm.inputs import one_hot, refuse_unmeasurable, usable_outputs
from benchmarks.svm.low_shot_chosen import solve_chosen
from benchmarks.svm.low_shot_problems import STACK_VALUES, Problems, fit, stacked_problems
from benchmarks.svm.low_shot_report import LayerResult, choose, report, report_items
from benchmarks.svm.settings import LowShotParams, required_outputs
from benchmarks.svm.threads import map_on_cores
from results.schema import Protocol

__all__ = ["required_outputs", "run"]

_SCORE_TOGETHER = 32  # models


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
    params = typed(LowShotParams, protocol)
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
    problems = list(stacked_problems(train.labels.targets, draws, STACK_VALUES if few else 1))

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
    drawn = [sets_sha256([draw for draw in draws if draw.index == index])[:16] for index in range(params.sets)]
    report(params, results, chosen, train.labels.classes, len(test.labels), drawn, outcome)
    for name in dict.fromkeys(choice.layer for choice in chosen):
        source = _source(train.features[name], test.features[name], device, few)
        costs = {k: {choice.cost for choice in chosen if (choice.layer, choice.k) == (name, k)} for k in params.k}
        models, influences = solve_chosen(source, problems, costs, test_targets, params, device)
        outcome.tensors |= {f"{name}/{key}": value for key, value in models.items()}
        report_items(outcome, [choice for choice in chosen if choice.layer == name], influences)
    clock.lap("models")
    for draw in draws:
        key = f"sets/sample{draw.index + 1}_k{draw.k}"
        outcome.tensors[f"{key}/rows"] = torch.from_numpy(draw.rows)
        outcome.tensors[f"{key}/labels"] = torch.from_numpy(draw.labels)
    outcome.runs.append({"index_sets": params.index_sets, "sets": params.sets, "sha256": sets_sha256(draws)})
    return outcome


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

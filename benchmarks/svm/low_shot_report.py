"""From the average precision of every set, k, cost and class to what is reported."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.contract import Outcome
from benchmarks.svm.pseudo_values import pseudo_values
from benchmarks.svm.settings import LAYERS, SELECTIONS, LowShotParams, Selection, low_shot_column
from results.schema import Score

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LayerResult:
    """Average precisions in [0, 1] on one layer's features.

    Attributes:
        test: (3, sets, K, costs, C): precision envelope, scikit-learn's and 11-point, on the test split.
        heldout: (sets, K, costs, C) precision envelope on training images outside the set; NaN where no positive is
            left outside.
    """

    test: Floats
    heldout: Floats

    @classmethod
    def empty(cls, params: LowShotParams, classes: int) -> LayerResult:
        shape = (params.sets, len(params.k), len(params.costs), classes)
        return cls(np.full((3, *shape), np.nan), np.full(shape, np.nan))

    @property
    def test_map(self) -> Floats:
        """(sets, K, costs) on test."""
        return self.test[0].mean(-1)

    @property
    def heldout_map(self) -> Floats:
        """(K, costs) outside the sets: mean over the classes that have positives there, then over the sets."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # no class at all: NaN
            return np.nanmean(np.nanmean(self.heldout, -1), 0)


@dataclass(frozen=True)
class Choice:
    """The layer and cost behind one cell."""

    selection: Selection
    k: int
    layer: str
    cost: float


def choose(results: Mapping[str, LayerResult], params: LowShotParams) -> list[Choice]:
    """One cost per selection and k, shared by classes and sets, the first maximum; one layer per selection.

    The layer is the one of feature1 … feature5, or else of what there is, with the highest mean over k of what the
    selection goes by: test mAP for `oracle`, mAP outside the sets for the others.
    """
    layers = [name for name in results if name in LAYERS] or list(results)
    fixed = params.costs.index(params.fixed_cost)
    choices = []
    for selection in SELECTIONS:
        criteria = {
            name: results[name].test_map.mean(0) if selection == "oracle" else _comparable(results[name].heldout_map)
            for name in layers
        }
        indices = {
            name: np.full(len(params.k), fixed) if selection == "fixed" else criterion.argmax(-1)
            for name, criterion in criteria.items()
        }
        best = max(
            layers, key=lambda name: float(np.take_along_axis(criteria[name], indices[name][:, None], -1).mean())
        )
        choices += [Choice(selection, k, best, params.costs[i]) for k, i in zip(params.k, indices[best], strict=True)]
    return choices


def _comparable(criterion: Floats) -> Floats:
    """A k that leaves no positive outside its sets has no held-out figure: its first cost is as good as any."""
    return np.nan_to_num(criterion, nan=0.0)


def report(
    params: LowShotParams,
    results: Mapping[str, LayerResult],
    choices: Sequence[Choice],
    classes: Sequence[str],
    test_items: int,
    drawn: Sequence[str],
    outcome: Outcome,
) -> None:
    """Fill scores, per-class values and runs.

    Args:
        drawn: what identifies each set, so that encoders are compared set by set.
    """
    how = {
        "oracle": "layer and cost by test mAP (oracle)",
        "fixed": "layer by mAP outside the set, cost fixed",
        "heldout": "layer and cost by mAP on training images outside the set, which uses more labels than k",
    }
    chosen: list[dict[str, object]] = []
    of_sets: list[dict[str, object]] = [{"trial": index, "drawn": label} for index, label in enumerate(drawn)]
    for choice in choices:
        column = low_shot_column(choice.k, choice.selection)
        ap = _at(results[choice.layer], params, choice)
        outcome.scores[column] = Score(
            value=100 * float(ap.mean()),
            std=100 * float(ap.mean(-1).std()),
            n=test_items,
            selection=f"{choice.layer}, C={choice.cost:g}; {how[choice.selection]}",
        )
        outcome.per_class[column] = dict(zip(classes, map(float, 100 * ap.mean(0)), strict=True))
        for of_set, value in zip(of_sets, ap.mean(-1), strict=True):
            of_set[column] = 100 * float(value)
        chosen.append(
            {
                "score": column,
                "column": choice.layer,
                "k": choice.k,
                "cost": choice.cost,
                **_over_sets(100 * ap.mean(-1)),
            }
        )
    for name, result in results.items():
        for ki, k in enumerate(params.k):
            for i, cost in enumerate(params.costs):
                heldout = float(result.heldout_map[ki, i])
                outcome.runs.append(
                    {
                        "column": name,
                        "k": k,
                        "cost": cost,
                        **_over_sets(100 * result.test_map[:, ki, i]),
                        "map_sklearn": 100 * float(result.test[1, :, ki, i].mean()),
                        "map_11point": 100 * float(result.test[2, :, ki, i].mean()),
                        "heldout_map": 100 * heldout if np.isfinite(heldout) else None,
                    }
                )
    outcome.runs += [*chosen, *of_sets]


def report_items(outcome: Outcome, choices: Sequence[Choice], influences: Mapping[tuple[int, float], Floats]) -> None:
    """Fill what each test image contributes to the figures, which are means over classes and sets."""
    for choice in choices:
        column = low_shot_column(choice.k, choice.selection)
        metric = (outcome.scores[column].value or 0.0) / 100
        outcome.items[f"pseudo_value/{column}"] = pseudo_values(metric, influences[choice.k, choice.cost])


def _over_sets(of_sets: Floats) -> dict[str, float]:
    """Of (sets,) mean average precisions; the spread is that of the population, as the published script has it."""
    return {
        "map": float(of_sets.mean()),
        "map_min": float(of_sets.min()),
        "map_max": float(of_sets.max()),
        "map_std": float(of_sets.std()),
    }


def _at(result: LayerResult, params: LowShotParams, choice: Choice) -> Floats:
    """(sets, C) test average precisions of a choice."""
    return result.test[0][:, params.k.index(choice.k), params.costs.index(choice.cost)]

"""Average precision under weights: against the harness's own three rules, and against items that are repeated."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.svm.average_precision import average_precisions
from results.resampling.bootstrap import align, replicates
from results.resampling.outcome_metrics import RULES, MeanAveragePrecision
from tests.results.factory_records import decision_outcomes

COLUMN = "feature5"
OUTCOMES = decision_outcomes((COLUMN,), 1.0, 0)
TARGETS = OUTCOMES["targets"]
TIED = np.round(OUTCOMES[f"decision/{COLUMN}"], 1)  # many items share a value


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("decision", [OUTCOMES[f"decision/{COLUMN}"], TIED])
def test_whole_weights_are_repeated_items(rule: str, decision: np.ndarray) -> None:
    weights = np.random.default_rng(0).integers(1, 4, (len(TARGETS), 3))
    found = MeanAveragePrecision(decision, TARGETS, rule)(np.column_stack([np.ones(len(TARGETS)), weights]))
    for value, times in zip(found, [np.ones(len(TARGETS), int), *weights.T], strict=True):
        rows = np.repeat(np.arange(len(TARGETS)), times)
        plain = average_precisions(decision[rows].T, TARGETS[rows].T).by(rule).mean()  # type: ignore[arg-type]
        assert value == pytest.approx(plain, abs=1e-12)


def test_the_rules_differ_and_no_other_is_known() -> None:
    ones = np.ones((len(TARGETS), 1))
    values = {rule: float(MeanAveragePrecision(TIED, TARGETS, rule)(ones)[0]) for rule in RULES}
    assert values["sklearn"] < values["envelope"]
    assert len(set(values.values())) == 3
    with pytest.raises(ValueError, match="10point is no rule of average precision; known are envelope"):
        MeanAveragePrecision(TIED, TARGETS, "10point")


@pytest.mark.parametrize("rule", RULES)
def test_outcomes_name_their_rule(rule: str) -> None:
    named = {**OUTCOMES, "ap_rule": np.array(rule)}
    expected = average_precisions(OUTCOMES[f"decision/{COLUMN}"].T, TARGETS.T).by(rule).mean()  # type: ignore[arg-type]
    found = replicates(named, [COLUMN], resamples=20)[COLUMN]
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert found.standard_error > 0


def test_items_in_another_order_keep_the_rule() -> None:
    turned = {name: array[::-1] for name, array in OUTCOMES.items() if not name.startswith("group")}
    sizes = np.diff(OUTCOMES["group_offsets"])[::-1]
    members = np.split(OUTCOMES["group_members"], OUTCOMES["group_offsets"][1:-1])[::-1]
    turned |= {"group_offsets": np.concatenate([[0], sizes.cumsum()]), "group_members": np.concatenate(members)}
    back = align({**turned, "ap_rule": np.array("11point")}, OUTCOMES)
    assert str(back["ap_rule"]) == "11point"
    np.testing.assert_array_equal(back[f"decision/{COLUMN}"], OUTCOMES[f"decision/{COLUMN}"])

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from benchmarks.svm.average_precision import average_precisions, eleven_point_ap, envelope_ap, step_ap
from tests.reference.svm_average_precision import devkit_2007, devkit_2010, mean_precision_at_hits

LABELS = st.lists(st.sampled_from([1, 0, -1]), min_size=1, max_size=40)


@st.composite
def ranked(draw: st.DrawFn, ties: bool) -> tuple[np.ndarray, np.ndarray]:
    """Decision values and labels with at least one positive."""
    labels = np.array(draw(LABELS))
    assume((labels == 1).any())
    if ties:
        values = draw(st.lists(st.integers(-3, 3), min_size=len(labels), max_size=len(labels)))
    else:
        values = draw(st.permutations(range(len(labels))))
    return np.array(values, float) / 7, labels


@given(ranked(ties=False))
@settings(max_examples=200, deadline=None)
def test_without_ties_each_is_its_definition(case: tuple[np.ndarray, np.ndarray]) -> None:
    decisions, labels = case
    kept = labels >= 0
    plain = list(decisions[kept]), list(labels[kept] == 1)
    assert envelope_ap(decisions, labels) == pytest.approx(devkit_2010(*plain))
    assert step_ap(decisions, labels) == pytest.approx(mean_precision_at_hits(*plain))
    assert eleven_point_ap(decisions, labels) == pytest.approx(devkit_2007(*plain))


@given(ranked(ties=True))
@settings(max_examples=200, deadline=None)
def test_step_is_scikit_learns_with_ties_too(case: tuple[np.ndarray, np.ndarray]) -> None:
    decisions, labels = case
    kept = labels >= 0
    assert step_ap(decisions, labels) == pytest.approx(average_precision_score(labels[kept] == 1, decisions[kept]))


@given(ranked(ties=True))
@settings(max_examples=200, deadline=None)
def test_order_among_ties_changes_nothing_and_lies_between_best_and_worst(case: tuple[np.ndarray, np.ndarray]) -> None:
    decisions, labels = case
    kept = labels >= 0
    found = average_precisions(decisions, labels)
    backwards = average_precisions(decisions[::-1], labels[::-1])
    assert found == backwards
    nudge = 1e-6 * (labels[kept] == 1)
    spread = np.arange(kept.sum()) * 1e-9
    worst = devkit_2010(list(decisions[kept] - nudge + spread), list(labels[kept] == 1))
    best = devkit_2010(list(decisions[kept] + nudge + spread), list(labels[kept] == 1))
    assert worst - 1e-9 <= found.envelope <= best + 1e-9


@given(ranked(ties=True))
@settings(max_examples=100, deadline=None)
def test_ignored_items_might_as_well_be_absent(case: tuple[np.ndarray, np.ndarray]) -> None:
    decisions, labels = case
    kept = labels >= 0
    assert average_precisions(decisions, labels) == average_precisions(decisions[kept], labels[kept])


def test_hand_computed_case() -> None:
    # Ranked: hit, miss, hit, miss, hit: precision 1, 2/3, 3/5 at recall 1/3, 2/3, 1.
    decisions, labels = np.array([5.0, 4, 3, 2, 1]), np.array([1, 0, 1, 0, 1])
    assert step_ap(decisions, labels) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    assert envelope_ap(decisions, labels) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    assert eleven_point_ap(decisions, labels) == pytest.approx((4 * 1 + 3 * 2 / 3 + 4 * 3 / 5) / 11)


def test_the_envelope_is_above_the_steps_when_precision_rises() -> None:
    decisions, labels = np.array([4.0, 3, 2, 1]), np.array([0, 1, 1, 0])
    assert step_ap(decisions, labels) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert envelope_ap(decisions, labels) == pytest.approx(2 / 3)


def test_one_positive_at_rank_r_gives_one_over_r() -> None:
    decisions = np.arange(10.0)
    for rank in range(1, 11):
        labels = np.zeros(10, int)
        labels[10 - rank] = 1
        found = average_precisions(decisions, labels)
        assert [found.envelope, found.step, found.eleven_point] == pytest.approx([1 / rank] * 3)


@pytest.mark.parametrize("labels", [[0, 0, 0], [-1, -1, -1], [0, -1, 0]])
def test_no_positive_has_no_average_precision(labels: list[int]) -> None:
    found = average_precisions(np.array([3.0, 2, 1]), np.array(labels))
    assert np.isnan([found.envelope, found.step, found.eleven_point]).all()


def test_all_tied_is_the_share_of_positives() -> None:
    assert envelope_ap(np.zeros(8), np.array([1, 0, 0, 0, 1, 0, 0, -1])) == pytest.approx(2 / 7)


def test_rows_are_independent_and_labels_broadcast() -> None:
    rng = np.random.default_rng(0)
    decisions, labels = rng.standard_normal((3, 4, 50)), rng.integers(-1, 2, (4, 50))
    found = envelope_ap(decisions, labels)
    assert found.shape == (3, 4)
    assert found[1, 2] == envelope_ap(decisions[1, 2], labels[2])


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        envelope_ap(np.array([1.0, np.nan]), np.array([1, 0]))

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_curve

from benchmarks.solvers.average_precision import average_precisions, envelope_influence, pseudo_values
from tests.reference.svm_average_precision import devkit_2007, devkit_2010, mean_precision_at_hits
from tests.reference.weighted_average_precision import average_precision

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
    assert average_precisions(decisions, labels).envelope == pytest.approx(devkit_2010(*plain))
    assert average_precisions(decisions, labels).step == pytest.approx(mean_precision_at_hits(*plain))
    assert average_precisions(decisions, labels).eleven_point == pytest.approx(devkit_2007(*plain))


@pytest.mark.slow
@given(ranked(ties=True))
@settings(max_examples=200, deadline=None)
def test_step_is_scikit_learns_with_ties_too(case: tuple[np.ndarray, np.ndarray]) -> None:
    decisions, labels = case
    kept = labels >= 0
    assert average_precisions(decisions, labels).step == pytest.approx(
        average_precision_score(labels[kept] == 1, decisions[kept])
    )


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
    assert average_precisions(decisions, labels).step == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    assert average_precisions(decisions, labels).envelope == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    assert average_precisions(decisions, labels).eleven_point == pytest.approx((4 * 1 + 3 * 2 / 3 + 4 * 3 / 5) / 11)


def test_a_recall_is_reached_by_whole_numbers() -> None:
    """Three of five positives have a recall of 0.6, and three of ten one of 0.3, though 6 * 0.1 is above 0.6."""
    # Hit, hit, hit, miss, hit, hit: precision 1 up to recall 3/5, then at best 5/6 at recall 1.
    found = average_precisions(np.arange(6.0, 0, -1), np.array([1, 1, 1, 0, 1, 1])).eleven_point
    assert found == pytest.approx((7 * 1 + 4 * 5 / 6) / 11)
    assert np.linspace(0, 1, 11)[6] > 3 / 5  # where this were compared, the seventh point would count 5/6
    # Three hits, seven misses, seven hits: precision 1 up to recall 3/10, then at best 10/17.
    found = average_precisions(np.arange(17.0, 0, -1), np.array([1] * 3 + [0] * 7 + [1] * 7)).eleven_point
    assert found == pytest.approx((4 * 1 + 7 * 10 / 17) / 11)


def test_recall_zero_has_the_best_precision_of_any_rank_and_not_one() -> None:
    """scikit-learn's curve begins at recall 0 with precision 1, which no ranking has given."""
    decisions, labels = np.array([2.0, 1.0]), np.array([0, 1])
    precision, recall, _ = precision_recall_curve(labels, decisions)
    assert (precision[-1], recall[-1]) == (1, 0)
    assert average_precisions(decisions, labels).eleven_point == pytest.approx(1 / 2)  # and not (1 + 10 / 2) / 11


def test_the_envelope_is_above_the_steps_when_precision_rises() -> None:
    decisions, labels = np.array([4.0, 3, 2, 1]), np.array([0, 1, 1, 0])
    assert average_precisions(decisions, labels).step == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert average_precisions(decisions, labels).envelope == pytest.approx(2 / 3)


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
    assert average_precisions(np.zeros(8), np.array([1, 0, 0, 0, 1, 0, 0, -1])).envelope == pytest.approx(2 / 7)


def test_rows_are_independent_and_labels_broadcast() -> None:
    rng = np.random.default_rng(0)
    decisions, labels = rng.standard_normal((3, 4, 50)), rng.integers(-1, 2, (4, 50))
    found = average_precisions(decisions, labels).envelope
    assert found.shape == (3, 4)
    assert found[1, 2] == average_precisions(decisions[1, 2], labels[2]).envelope


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        average_precisions(np.array([1.0, np.nan]), np.array([1, 0]))


STEP = 1e-6


@pytest.mark.parametrize("levels", [None, 3])
def test_influence_is_the_slope_of_the_plain_weighted_definition(levels: int | None) -> None:
    for seed in range(6):
        rng = np.random.default_rng(seed)
        decisions = rng.normal(size=40).astype(np.float32)
        if levels is not None:
            decisions = np.round(decisions * levels) / levels
        labels = rng.choice([-1, 0, 1], p=[0.1, 0.6, 0.3], size=40)
        found = envelope_influence(decisions, labels)
        assert abs(found.sum()) < 1e-12
        assert (found[labels == -1] == 0).all()
        ones = [1.0] * 40
        value = average_precision(decisions.tolist(), labels.tolist(), ones)
        assert value == pytest.approx(float(average_precisions(decisions, labels).envelope), abs=1e-12)
        # Where two precisions are equally good, the slopes to both sides differ and the influence is one of them.
        for i in range(40):
            sides = []
            for step in (STEP, -STEP):
                weights = [1.0 + step * (j == i) for j in range(40)]
                moved = average_precision(decisions.tolist(), labels.tolist(), weights)
                sides.append((moved - value) / step)
            assert min(sides) - 1e-5 < found[i] < max(sides) + 1e-5


def test_there_is_no_influence_without_a_positive() -> None:
    with pytest.raises(ValueError, match="positive"):
        envelope_influence(np.zeros(3), np.array([0, -1, 0]))


def test_pseudo_values_have_the_metric_as_their_mean_and_its_slope_under_weights() -> None:
    rng = np.random.default_rng(0)
    decisions, labels = rng.normal(size=200), rng.choice([0, 1], p=[0.8, 0.2], size=200)
    ap = float(average_precisions(decisions, labels).envelope)
    values = pseudo_values(ap, envelope_influence(decisions, labels)).astype(np.float64)
    assert values.mean() == pytest.approx(ap, abs=1e-6)
    weights = 1 + 1e-4 * rng.normal(size=200)
    expected = average_precision(decisions.tolist(), labels.tolist(), weights.tolist())
    assert expected is not None
    assert np.average(values, weights=weights) - ap == pytest.approx(expected - ap, rel=0.02)

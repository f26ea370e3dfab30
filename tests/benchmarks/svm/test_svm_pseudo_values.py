"""What a test image contributes to average precision, against differences of the plain weighted definition."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.contract import Split
from benchmarks.overrides import typed
from benchmarks.svm.average_precision import average_precisions, envelope_ap
from benchmarks.svm.index_sets import draw_sets, sets_sha256
from benchmarks.svm.low_shot import run
from benchmarks.svm.protocols import PROTOCOLS
from benchmarks.svm.pseudo_values import envelope_influence, pseudo_values
from benchmarks.svm.settings import LowShotParams
from tests.reference.svm_protocol import normalised
from tests.reference.svm_splits import single_label, splits
from tests.reference.weighted_average_precision import average_precision

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
        assert value == pytest.approx(float(envelope_ap(decisions, labels)), abs=1e-12)
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
    ap = float(envelope_ap(decisions, labels))
    values = pseudo_values(ap, envelope_influence(decisions, labels)).astype(np.float64)
    assert values.mean() == pytest.approx(ap, abs=1e-6)
    weights = 1 + 1e-4 * rng.normal(size=200)
    expected = average_precision(decisions.tolist(), labels.tolist(), weights.tolist())
    assert expected is not None
    assert np.average(values, weights=weights) - ap == pytest.approx(expected - ap, rel=0.02)


@pytest.mark.parametrize("single", [False, True])
def test_a_low_shot_run_keeps_what_each_image_contributes_and_what_each_set_gave(single: bool) -> None:
    train, test = splits()
    if single:
        train, test = single_label(train), single_label(test)
    known = next(p for p in PROTOCOLS if p.id == "voc07_low_shot_svm.adaptive@1")
    asked = known.with_overrides(costs=(1.0, 100.0, 0.01), k=(1, 4), sets=3)
    outcome = run(asked, train, test, progress=False)
    assert {f"pseudo_value/{column}" for column in outcome.scores} == outcome.items.keys()
    draws = draw_sets(train.labels, typed(LowShotParams, asked))
    trials = [entry for entry in outcome.runs if "trial" in entry]
    assert [entry["drawn"] for entry in trials] == [
        sets_sha256([draw for draw in draws if draw.index == index])[:16] for index in range(3)
    ]
    targets = test.labels.targets
    if single:
        targets = (targets[:, None] == np.arange(4)).astype(np.int8)
    for column, score in outcome.scores.items():
        of_sets = [entry[column] for entry in trials]
        assert np.mean(of_sets) == pytest.approx(score.value)
        assert np.std(of_sets) == pytest.approx(score.std)
        layer, _, rest = score.selection.partition(", C=")
        k, cost = column.split(" ")[0].removeprefix("k="), rest.partition(";")[0]
        decisions = decisions_of(outcome.tensors, test, layer, int(k), float(cost))  # (sets, C, N)
        assert 100 * average_precisions(decisions, targets.T).envelope.mean(-1) == pytest.approx(of_sets, abs=0.02)
        plain = np.zeros(len(targets))
        for of_set in decisions:
            for of_class, truth in zip(of_set, targets.T, strict=True):
                plain += envelope_influence(of_class, truth) / (len(decisions) * len(of_set))
        found = outcome.items[f"pseudo_value/{column}"]
        assert found.mean() == pytest.approx((score.value or 0) / 100, abs=1e-6)
        expected = pseudo_values((score.value or 0) / 100, plain)
        assert np.corrcoef(found, expected)[0, 1] > 0.999
        assert found == pytest.approx(expected, abs=0.02 * float(expected.std()) + 1e-6, rel=0.05)


def decisions_of(tensors: dict[str, object], test: Split, layer: str, k: int, cost: float) -> np.ndarray:
    weight, bias = (np.asarray(tensors[f"{layer}/k={k}/cost={cost:g}/{part}"]) for part in ("weight", "bias"))
    return weight @ normalised(test.features[layer]).T + bias[..., None]

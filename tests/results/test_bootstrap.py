"""Standard errors and paired gains against plain loops, and the metrics under weights against repeated items."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.solvers.average_precision import average_precisions
from results import bootstrap
from results.bootstrap import (
    RULES,
    SPREAD,
    BootstrapWeights,
    MeanAveragePrecision,
    Outcomes,
    in_order_of_ids,
    measured_columns,
    replicates,
)
from results.store import packed, unpacked
from tests.reference.weighted_average_precision import mean_average_precision
from tests.results.factory_records import decision_outcomes, encode_groups, scene_groups, single_groups
from tests.results.paired import paired_gain, standard_error


def ap_problem(seed: int, *, items: int = 40, classes: int = 3, levels: int | None = None) -> dict[str, NDArray[Any]]:
    """`levels` makes many decisions equal."""
    rng = np.random.default_rng(seed)
    decisions = rng.normal(size=(items, classes))
    if levels is not None:
        decisions = np.round(decisions * levels) / levels
    targets = rng.choice([-1, 0, 1], p=[0.1, 0.6, 0.3], size=(items, classes)).astype(np.int8)
    return {"decision/x": decisions, "targets": targets, **scene_groups(items, 12, 3, seed)}


@pytest.mark.parametrize("levels", [None, 2])
def test_average_precision_with_all_weights_one_is_the_plain_definition(levels: int | None) -> None:
    for seed in range(10):
        problem = ap_problem(seed, levels=levels)
        plain = mean_average_precision(problem["decision/x"].tolist(), problem["targets"].tolist(), [1.0] * 40)
        assert replicates(problem, ["x"], resamples=1)["x"].value == pytest.approx(plain, abs=1e-12)


@pytest.mark.parametrize("levels", [None, 2])
def test_resampled_metrics_are_those_of_plain_loops_over_items_sources_and_resamples(levels: int | None) -> None:
    problem = ap_problem(3, levels=levels)
    problem["correct/y"] = problem["decision/x"][:, 0] > 0
    found = replicates(problem, ["x", "y"], resamples=6, seed=5)

    offsets, members = problem["group_offsets"], problem["group_members"].tolist()
    sources = sorted(set(members))
    drawn = np.random.default_rng(5).standard_exponential((6, len(sources)))
    for number, draws in enumerate(drawn.tolist()):
        source_weight = {source: 1 + SPREAD * (draw - 1) for source, draw in zip(sources, draws, strict=True)}
        weights = []
        for start, end in pairwise(offsets):
            weight = 1.0
            for source in members[start:end]:
                weight *= source_weight[source]
            weights.append(weight)
        ap = mean_average_precision(problem["decision/x"].tolist(), problem["targets"].tolist(), weights)
        accuracy = sum(w for w, hit in zip(weights, problem["correct/y"], strict=True) if hit) / sum(weights)
        for column, expected in (("x", ap), ("y", accuracy)):
            value = found[column].value
            assert found[column].resampled[number] == pytest.approx(value + (expected - value) / SPREAD, abs=1e-9)


def test_ranks_of_the_side_file_give_the_same_average_precision(tmp_path: Any) -> None:
    problem = ap_problem(1, levels=3)
    path = tmp_path / "side.npz"
    path.write_bytes(packed(problem))
    stored = unpacked(path)
    assert stored["decision/x"].dtype == np.uint16
    before, after = (replicates(o, ["x"], resamples=20)["x"] for o in (problem, stored))
    assert after.value == before.value
    np.testing.assert_array_equal(after.resampled, before.resampled)


def test_blocks_do_not_change_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = ap_problem(2)
    whole = replicates(problem, ["x"], resamples=50)["x"].resampled
    monkeypatch.setattr(bootstrap, "BLOCK_VALUES", 40 * 7)
    np.testing.assert_allclose(replicates(problem, ["x"], resamples=50)["x"].resampled, whole, rtol=1e-12)


def test_a_class_without_a_positive_is_left_out_and_a_problem_without_any_is_refused() -> None:
    problem = ap_problem(4)
    two = {**problem, "decision/x": problem["decision/x"][:, :2], "targets": problem["targets"][:, :2]}
    expected = replicates(two, ["x"])
    problem["targets"][:, 2] = np.minimum(problem["targets"][:, 2], 0)
    assert replicates(problem, ["x"])["x"].value == expected["x"].value
    problem["targets"][:] = 0
    with pytest.raises(ValueError, match="at least one positive"):
        replicates(problem, ["x"])


def test_the_standard_error_of_independent_items_is_the_binomial_one() -> None:
    hits = np.random.default_rng(0).random(2000) < 0.3
    outcomes = {"correct/x": hits, "targets": np.zeros(2000), **single_groups(2000)}
    assert standard_error(outcomes, "x") == pytest.approx(np.sqrt(hits.mean() * (1 - hits.mean()) / 2000), rel=0.1)


def test_items_of_one_source_count_as_one() -> None:
    hits = np.random.default_rng(0).random(400) < 0.3
    four_each = {
        "correct/x": np.repeat(hits, 4),
        "targets": np.zeros(1600),
        "ids": np.arange(1600),
        **encode_groups([[f"d{i}"] for i in range(400) for _ in range(4)]),
    }
    once = {"correct/x": hits, "targets": np.zeros(400), **single_groups(400)}
    assert standard_error(four_each, "x") == pytest.approx(standard_error(once, "x"), rel=1e-9)


def test_a_source_that_is_twice_in_an_item_weighs_once() -> None:
    hits = {"correct/x": np.array([True, False, True]), "targets": np.zeros(3), "ids": np.arange(3)}
    twice = {**hits, **encode_groups([["a", "a"], ["b"], ["a", "c", "a"]])}
    once = {**hits, **encode_groups([["a"], ["b"], ["a", "c"]])}
    np.testing.assert_array_equal(replicates(twice, ["x"])["x"].resampled, replicates(once, ["x"])["x"].resampled)


def shuffled(outcomes: Outcomes, seed: int) -> dict[str, NDArray[Any]]:
    order = np.random.default_rng(seed).permutation(len(outcomes["ids"]))
    offsets, members = outcomes["group_offsets"], outcomes["group_members"]
    moved = {k: v[order] for k, v in outcomes.items() if not k.startswith("group_")}
    return {**moved, **encode_groups([members[offsets[i] : offsets[i + 1]].tolist() for i in order])}


def test_a_gain_over_itself_is_nothing_in_any_order_of_the_items() -> None:
    problem = ap_problem(6)
    gain = paired_gain(problem, shuffled(problem, 1), "x")
    assert (gain.n_items, gain.n_sources) == (40, 12)
    np.testing.assert_allclose([gain.value, gain.low, gain.high], 0, atol=1e-12)


def test_several_encoders_on_a_side_count_with_their_mean() -> None:
    problem = ap_problem(7)
    others = [{**problem, "decision/x": ap_problem(seed)["decision/x"]} for seed in (8, 9)]
    gains = [paired_gain(problem, other, "x") for other in others]
    both = paired_gain(problem, others, "x")
    assert both.value == pytest.approx((gains[0].value + gains[1].value) / 2)
    assert both.high - both.low < max(gain.high - gain.low for gain in gains)


def test_pairing_makes_the_interval_narrower_than_two_separate_ones() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random(500)
    base = {"targets": np.zeros(500), **single_groups(500)}
    a, b = ({**base, "correct/x": hard + rng.normal(0, 0.05, 500) < skill} for skill in (0.55, 0.5))
    gain = paired_gain(a, b, "x")
    apart = 2 * 1.96 * np.hypot(standard_error(a, "x"), standard_error(b, "x"))
    assert gain.high - gain.low < 0.6 * apart


@pytest.mark.parametrize("fault", ["ids", "targets", "sources"])
def test_what_was_not_measured_on_the_same_items_is_not_paired(fault: str) -> None:
    problem, other = ap_problem(1), ap_problem(1)
    if fault == "ids":
        other["ids"] = np.array([f"other{i}" for i in range(40)])
    elif fault == "targets":
        other["targets"] = -other["targets"]
    else:
        other["group_members"] = np.roll(other["group_members"], 1)
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_gain(problem, other, "x")


def test_faulty_outcomes_are_named() -> None:
    problem = ap_problem(1)
    with pytest.raises(KeyError, match="hold no 'z'; they hold x"):
        standard_error(problem, "z")
    with pytest.raises(ValueError, match="do not fit 40 items"):
        standard_error({**problem, "decision/x": problem["decision/x"][:, :2]}, "x")
    with pytest.raises(ValueError, match="shape"):
        standard_error({**problem, "correct/y": np.ones(39, dtype=bool)}, "y")
    with pytest.raises(ValueError, match="at least one group member"):
        standard_error({**problem, **encode_groups([["a"]] * 39 + [[]])}, "x")
    assert measured_columns({**problem, "correct/k=20 top-5": np.ones(40)}) == ("k=20 top-5", "x")


def simulated_coverage(simulate: Any, truth: float, trials: int) -> tuple[float, float]:
    """Share of 95 % intervals that hold the truth, and how much the standard error is overstated."""
    gains, widths, held = [], [], 0
    for trial in range(trials):
        a, b = simulate(np.random.default_rng([11, trial]))
        gain = paired_gain(a, b, "x", resamples=200, seed=trial)
        held += gain.low <= truth <= gain.high
        gains.append(gain.value)
        widths.append((gain.high - gain.low) / (2 * 1.96))
    return held / trials, float(np.mean(widths) / np.std(gains))


def scenes_of_drawings(rng: np.random.Generator, most: int, effect: float) -> list[dict[str, NDArray[Any]]]:
    """Fresh drawings and fresh scenes; each drawing makes its scenes easier or harder for each of two encoders."""
    items, sources = 300, 90
    groups = [rng.choice(sources, rng.integers(1, most + 1), replace=False).tolist() for _ in range(items)]
    encoded = encode_groups([[str(source) for source in group] for group in groups])
    ease = rng.uniform(-effect, effect, (sources, 2))
    chance = np.array([0.6, 0.45]) + np.array([ease[group].sum(axis=0) for group in groups])
    base = {"targets": np.zeros(items), "ids": np.arange(items), **encoded}
    return [{**base, "correct/x": rng.random(items) < chance[:, side]} for side in range(2)]


@pytest.mark.slow
def test_intervals_cover_the_true_gain_where_every_item_is_its_own_source() -> None:
    coverage, overstated = simulated_coverage(lambda rng: scenes_of_drawings(rng, 1, 0.3), 0.15, 200)
    assert 0.91 <= coverage <= 0.985
    assert 0.88 <= overstated <= 1.12


@pytest.mark.slow
@pytest.mark.parametrize("effect", [0.0, 0.07])
def test_intervals_are_conservative_but_useful_where_items_share_sources(effect: float) -> None:
    coverage, overstated = simulated_coverage(lambda rng: scenes_of_drawings(rng, 5, effect), 0.15, 120)
    assert coverage >= 0.94
    assert 1.0 <= overstated <= 2.2


@pytest.mark.slow
def test_full_spread_would_overstate_errors_where_items_share_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "SPREAD", 1.0)
    assert simulated_coverage(lambda rng: scenes_of_drawings(rng, 5, 0.0), 0.15, 60)[1] > 2.5


@pytest.mark.slow
def test_intervals_of_average_precision_cover_the_true_gain() -> None:
    def simulate(rng: np.random.Generator) -> list[dict[str, NDArray[Any]]]:
        targets = (rng.random((400, 3)) < 0.3).astype(np.int8)
        shared = rng.normal(size=(400, 3))
        base = {"targets": targets, **single_groups(400)}
        return [
            {**base, "decision/x": targets * skill + 0.5 * shared + rng.normal(size=(400, 3))} for skill in (1.5, 1.0)
        ]

    many = [simulate(np.random.default_rng([12, trial])) for trial in range(400)]
    values = [[replicates(side, ["x"], resamples=1)["x"].value for side in sides] for sides in many]
    truth = float(np.diff(np.mean(values, axis=0)[::-1])[0])
    coverage, overstated = simulated_coverage(simulate, truth, 100)
    assert 0.9 <= coverage <= 0.99
    assert 0.85 <= overstated <= 1.2


def test_mean_intersection_over_union_is_of_all_pixels_together() -> None:
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 3, (2, 30, 8, 8))
    areas = np.zeros((30, 3, 4), dtype=np.int64)  # the fourth class is nowhere
    for i in range(30):
        for c in range(3):
            one, other = predicted[i] == c, truth[i] == c
            areas[i, :, c] = (one & other).sum(), one.sum(), other.sum()
    outcomes = {"iou/mIoU": areas, **single_groups(30)}
    plain = np.mean([
        ((predicted == c) & (truth == c)).sum() / ((predicted == c) | (truth == c)).sum() for c in range(3)
    ])  # fmt: skip
    found = replicates(outcomes, ["mIoU"], resamples=4, seed=5)["mIoU"]
    assert found.value == pytest.approx(plain, abs=1e-12)
    drawn = np.random.default_rng(5).standard_exponential((4, 30))
    weights = 1 + SPREAD * (drawn - 1)
    for number, weight in enumerate(weights):
        order = np.argsort(np.argsort([f"d{i}" for i in range(30)]))  # sources are drawn in the order of their names
        summed = np.einsum("n,nkc->kc", weight[order], areas[:, :, :3].astype(float))
        expected = np.mean(summed[0] / (summed[1] + summed[2] - summed[0]))
        assert found.resampled[number] == pytest.approx(plain + (expected - plain) / SPREAD, abs=1e-9)
    with pytest.raises(ValueError, match="not \\(30, 3, classes\\)"):
        replicates({**outcomes, "iou/mIoU": areas[:, :2]}, ["mIoU"])
    with pytest.raises(ValueError, match="predicted or true somewhere"):
        replicates({**outcomes, "iou/mIoU": np.zeros_like(areas)}, ["mIoU"])


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
    with pytest.raises(ValueError, match=r"unknown definition of average precision .10point.; known are envelope"):
        MeanAveragePrecision(TIED, TARGETS, "10point")


@pytest.mark.parametrize("rule", RULES)
def test_outcomes_name_their_rule(rule: str) -> None:
    named = {**OUTCOMES, "ap_rule": np.array(rule)}
    expected = average_precisions(OUTCOMES[f"decision/{COLUMN}"].T, TARGETS.T).by(rule).mean()  # type: ignore[arg-type]
    found = replicates(named, [COLUMN], resamples=20)[COLUMN]
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert found.standard_error > 0


def test_the_order_of_the_items_does_not_matter() -> None:
    turned = {name: array[::-1] for name, array in OUTCOMES.items() if not name.startswith("group")}
    sizes = np.diff(OUTCOMES["group_offsets"])[::-1]
    members = np.split(OUTCOMES["group_members"], OUTCOMES["group_offsets"][1:-1])[::-1]
    turned |= {"group_offsets": np.concatenate([[0], sizes.cumsum()]), "group_members": np.concatenate(members)}
    for ours, theirs in zip(in_order_of_ids(turned), in_order_of_ids(OUTCOMES), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    found, expected = (replicates(of, [COLUMN], resamples=20)[COLUMN].resampled for of in (turned, OUTCOMES))
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_kept_weights_change_no_number_and_are_those_of_the_test_set() -> None:
    weights = BootstrapWeights()
    others = {name: OUTCOMES[name][:40] for name in OUTCOMES if not name.startswith("group")}
    others |= {f"group_{name}": OUTCOMES[f"group_{name}"] for name in ("offsets", "members")}
    others["group_offsets"] = OUTCOMES["group_offsets"][:41]
    others["group_members"] = OUTCOMES["group_members"][: others["group_offsets"][-1]]
    for outcomes in (OUTCOMES, others, OUTCOMES, OUTCOMES):
        found = replicates(outcomes, [COLUMN], resamples=20, weights=weights)[COLUMN]
        expected = replicates(outcomes, [COLUMN], resamples=20)[COLUMN]
        assert found.value == expected.value
        np.testing.assert_array_equal(found.resampled, expected.resampled)


def test_a_class_that_is_nowhere_counts_zero_where_every_class_counts() -> None:
    areas = np.zeros((4, 3, 4), dtype=np.int64)
    areas[:, :, :2] = [[[3, 1], [5, 4], [6, 2]]] * 4
    groups = {"group_offsets": np.arange(5), "group_members": np.array(list("abcd"))}
    outcomes = {"iou/mIoU": areas, **groups}
    plain = replicates(outcomes, ["mIoU"], resamples=20)["mIoU"]
    every = replicates({**outcomes, "iou_rule": np.array("every")}, ["mIoU"], resamples=20)["mIoU"]
    assert plain.value == pytest.approx((3 / 8 + 1 / 5) / 2)
    assert every.value == pytest.approx(plain.value / 2)
    assert every.resampled == pytest.approx(plain.resampled / 2)

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from benchmarks.solvers.average_precision import average_precisions
from benchmarks.solvers.svm import fit_cross_validated
from benchmarks.task import InputError, Outcome, RunOptions, Split
from benchmarks.voc_svm import PROTOCOLS, VocSvm, VocSvmParams, assign_folds
from results.bootstrap import replicates
from results.schema import Protocol
from tests.reference import svm_protocol
from tests.reference.svm_splits import CLASSES, labels, splits

COSTS = (1.0, 100.0, 0.0625, 0.5**8, 0.5**16)


def protocol(**changes: object) -> Protocol:
    known = next(p for p in PROTOCOLS if p.id == "voc07_svm.adaptive@1")
    return known.changed(**{"costs": COSTS, **changes})  # type: ignore[arg-type]


def run(asked: Protocol, train: Split, test: Split) -> Outcome:
    return VocSvm().run(asked, train, test, RunOptions(device="cpu", progress=False))


def test_the_solver_stays_on_the_cpu_where_the_features_came_from_a_gpu() -> None:
    train, test = splits(embed=20)
    asked = protocol(costs=(1.0,))
    on_gpu = VocSvm().run(asked, train, test, RunOptions(device="cuda", progress=False))
    assert on_gpu.scores == run(asked, train, test).scores


def with_labels(split: Split, **changes: object) -> Split:
    return Split(replace(split.labels, **changes), split.features)  # type: ignore[arg-type]


@pytest.mark.parametrize("drop", [False, True])
def test_agrees_with_scikit_learn_throughout(drop: bool) -> None:
    train, test = splits(embed=60)
    outcome = run(protocol(ignore_in_train="drop" if drop else "negative"), train, test)
    cv, chosen, decisions = svm_protocol.full(
        train.features["embed"], train.labels.targets, test.features["embed"], COSTS, drop_ignored=drop
    )
    runs = {run["class"]: run for run in outcome.runs if "class" in run}
    for c, name in enumerate(CLASSES):
        ours = COSTS.index(runs[name]["cost"])
        # Another cost only where the two are as good as each other in the reference.
        assert cv[ours, c] == pytest.approx(cv[:, c].max(), abs=1e-6)
        assert runs[name]["cv_ap"] == pytest.approx(100 * cv[:, c].max(), abs=0.02)
        assert runs[name]["cost"] == chosen[c]
    np.testing.assert_allclose(outcome.items["decision/embed"], decisions.T, atol=1e-3)
    expected = 100 * average_precisions(decisions, test.labels.targets.T).envelope
    assert outcome.scores["embed"].value == pytest.approx(expected.mean(), abs=0.02)
    assert outcome.scores["embed"].n == 160
    assert list(outcome.per_class["embed"].values()) == pytest.approx(list(expected), abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["envelope", "sklearn", "11point"])
def test_the_rule_of_average_precision_moves_the_figure_alone(rule: str) -> None:
    train, test = splits(embed=60, feature5=80)
    asked = protocol(ap_rule=rule)
    outcome = run(asked, train, test)
    decisions = outcome.items["decision/embed"]
    expected = 100 * average_precisions(decisions.T, test.labels.targets.T).by(rule)  # type: ignore[arg-type]
    assert list(outcome.per_class["embed"].values()) == pytest.approx(list(expected), abs=1e-9)
    assert outcome.scores["embed"].value == pytest.approx(expected.mean(), abs=1e-9)
    np.testing.assert_array_equal(decisions, run(protocol(), train, test).items["decision/embed"])
    assert str(outcome.items.get("ap_rule", "envelope")) == rule
    assert asked.metric == {
        "envelope": "mAP (precision envelope)", "sklearn": "mAP (not interpolated)", "11point": "mAP (11-point)"
    }[rule]  # fmt: skip
    items = {**outcome.items, "targets": test.labels.targets, "ids": np.arange(len(decisions)),
             "group_offsets": np.arange(len(decisions) + 1), "group_members": np.arange(len(decisions))}  # fmt: skip
    assert 100 * replicates(items, ["embed"], resamples=2)["embed"].value == pytest.approx(expected.mean(), abs=1e-6)


def test_ignored_images_do_train_as_negatives_by_default() -> None:
    train, test = splits()
    targets = train.labels.targets.copy()
    negatives = np.flatnonzero(targets[:, 0] == 0)
    targets[negatives[:60], 0] = -1
    ignoring = with_labels(train, targets=targets)
    kept, same, dropped = (
        run(protocol(ignore_in_train=how), split, test).items["decision/embed"]
        for split, how in ((train, "negative"), (ignoring, "negative"), (ignoring, "drop"))
    )
    np.testing.assert_allclose(kept[:, 0], same[:, 0], atol=1e-6)
    assert np.abs(kept[:, 0] - dropped[:, 0]).max() > 0.01


def test_ignored_test_images_take_no_part() -> None:
    train, test = splits()
    outcome = run(protocol(), train, test)
    decisions, targets = outcome.items["decision/embed"], test.labels.targets
    assert (targets == -1).any()
    for c, name in enumerate(CLASSES):
        kept = targets[:, c] >= 0
        ap = average_precisions(decisions[kept, c], targets[kept, c]).envelope
        assert outcome.per_class["embed"][name] == pytest.approx(100 * ap, abs=1e-3)


def test_saved_models_give_the_decisions() -> None:
    train, test = splits(embed=60, feature5=80)
    outcome = run(protocol(), train, test)
    for layer in ("embed", "feature5"):
        x = svm_protocol.normalised(test.features[layer])
        weight, bias = outcome.tensors[f"{layer}/weight"].numpy(), outcome.tensors[f"{layer}/bias"].numpy()
        np.testing.assert_allclose(x @ weight.T + bias, outcome.items[f"decision/{layer}"], atol=1e-4)


def test_best_looks_at_trainval_and_best_oracle_at_test() -> None:
    """A layer that shines in training only: its test features belong to other images."""
    train, test = splits(feature4=40, feature5=200)
    spoilt = {**test.features, "feature5": test.features["feature5"][::-1].copy()}
    outcome = run(protocol(), train, Split(test.labels, spoilt))
    layers = {run["column"]: run for run in outcome.runs if "class" not in run}
    assert layers["feature5"]["cv_map"] > layers["feature4"]["cv_map"]
    assert layers["feature5"]["map"] < layers["feature4"]["map"]
    assert outcome.scores["best"].value == outcome.scores["feature5"].value
    assert outcome.scores["best"].selection.startswith("feature5, layer by cross-validated")
    assert outcome.scores["best_oracle"].value == outcome.scores["feature4"].value
    assert "oracle" in outcome.scores["best_oracle"].selection


def test_the_pooled_vector_is_no_layer_to_choose() -> None:
    train, test = splits(embed=60)
    assert set(run(protocol(), train, test).scores) == {"embed"}


def test_three_kinds_of_ap_are_reported_each_under_its_name() -> None:
    train, test = splits()
    outcome = run(protocol(), train, test)
    of_layer = outcome.runs[0]
    found = average_precisions(outcome.items["decision/embed"].T, test.labels.targets.T)
    assert of_layer["map"] == pytest.approx(100 * found.envelope.mean(), abs=1e-3)
    assert of_layer["map_sklearn"] == pytest.approx(100 * found.step.mean(), abs=1e-3)
    assert of_layer["map_11point"] == pytest.approx(100 * found.eleven_point.mean(), abs=1e-3)


def test_ties_go_to_the_first_cost_of_the_list() -> None:
    """Perfectly separable: every high cost has cross-validated AP 1."""
    train, test = splits()
    clean = {which.labels.ids: (which.labels.targets == 1).astype(np.float32) for which in (train, test)}
    parts = [
        with_labels(Split(which.labels, {"embed": clean[which.labels.ids] + 0.1}), targets=(t == 1).astype(np.int8))
        for which, t in ((train, train.labels.targets), (test, test.labels.targets))
    ]
    runs = run(protocol(costs=(10.0, 100.0, 1.0)), *parts).runs
    assert [run["cost"] for run in runs if "class" in run] == [10.0] * 4
    assert [run["cv_ap"] for run in runs if "class" in run] == pytest.approx([100.0] * 4)


def test_single_label_targets_are_one_against_the_rest() -> None:
    train, test = splits()
    indices = [np.where((s.labels.targets == 1).any(1), (s.labels.targets == 1).argmax(1), 3) for s in (train, test)]
    multi = [
        with_labels(s, targets=(i[:, None] == np.arange(4)).astype(np.int8))
        for s, i in zip((train, test), indices, strict=True)
    ]
    single = [with_labels(s, targets=i) for s, i in zip((train, test), indices, strict=True)]
    scores = [run(protocol(), *parts).scores["embed"].value for parts in (multi, single)]
    assert scores[0] == scores[1]


def test_constant_features_score_the_share_of_positives() -> None:
    train, test = splits()
    flat = [Split(which.labels, {"embed": np.ones((len(which.labels), 5), np.float32)}) for which in (train, test)]
    outcome = run(protocol(), *flat)
    kept = test.labels.targets >= 0
    share = (test.labels.targets == 1).sum(0) / kept.sum(0)
    assert list(outcome.per_class["embed"].values()) == pytest.approx(list(100 * share))


def test_folds_are_scikit_learns_per_class() -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(-1, 2, (40, 3)).astype(np.int8)
    params = VocSvm().params(protocol())
    kept, dropped = (
        assign_folds(labels(targets, ("a", "b", "c")), params.changed(ignore_in_train=how))
        for how in ("negative", "drop")
    )
    assert (kept >= 0).all()
    np.testing.assert_array_equal(dropped == -1, targets.T == -1)
    for folds in (kept, dropped):
        for c in range(3):
            positives = [int((targets[folds[c] == fold, c] == 1).sum()) for fold in range(3)]
            assert max(positives) - min(positives) <= 1


def refusal(train: Split, test: Split, **changes: object) -> str:
    with pytest.raises(InputError) as error:
        run(protocol(**changes), train, test)
    return str(error.value)


def test_refusals_name_what_is_wrong() -> None:
    train, test = splits()
    spoilt = train.features["embed"].copy()
    spoilt[[7, 9], 3] = np.nan, np.inf
    assert "embed of train is NaN or infinite for 2 of 240 images (000007, 000009)" in refusal(
        Split(train.labels, {"embed": spoilt}), test
    )
    empty = with_labels(test, ids=(), paths=(), groups=(), targets=test.labels.targets[:0])
    assert "test split is empty" in refusal(train, empty)
    assert "include none of feature1" in refusal(Split(train.labels, {"head": spoilt}), test)
    short = {"embed": test.features["embed"][:, :7]}
    assert "60 numbers per image in train and 7 in test" in refusal(train, Split(test.labels, short))
    fewer = {"embed": test.features["embed"][:9]}
    assert "shape (9, 60) for 160 images" in refusal(train, Split(test.labels, fewer))
    assert "differ in their classes" in refusal(train, with_labels(test, classes=("a", "b", "c", "d")))
    rare = train.labels.targets.copy()
    rare[:, 1] = 0
    rare[:2, 1] = 1
    assert "boat has 2 positive training images" in refusal(with_labels(train, targets=rare), test)
    absent = test.labels.targets.copy()
    absent[:, 2] = 0
    assert "no image with cat" in refusal(train, with_labels(test, targets=absent))
    with pytest.raises(InputError, match="costs"):
        protocol(costs=(1.0, -1.0))


def test_labels_that_cannot_be_measured_are_refused_before_extraction() -> None:
    train, test = splits()
    VocSvm().check(protocol(), train.labels, test.labels)
    rare = train.labels.targets.copy()
    rare[:, 1] = 0
    rare[:2, 1] = 1
    with pytest.raises(InputError, match=r"boat has 2 positive .*leave the class out by removing its lists"):
        VocSvm().check(protocol(), replace(train.labels, targets=rare), test.labels)
    absent = test.labels.targets.copy()
    absent[:, 2] = 0
    with pytest.raises(InputError, match="no image with cat"):
        VocSvm().check(protocol(), train.labels, replace(test.labels, targets=absent))
    with pytest.raises(InputError, match="differ in their classes"):
        VocSvm().check(protocol(), train.labels, replace(test.labels, classes=("a", "b", "c", "d")))


# ---- protocols: the values as they stand in the sources that the protocols name --------------------------------------

BY_ID = {protocol.id: protocol for protocol in PROTOCOLS}
PUBLISHED = [f"voc07_svm.{variant}" for variant in ("mmselfsup@1", "vissl@1", "fssb@2")]


def test_ids() -> None:
    assert set(BY_ID) == {*PUBLISHED, "voc07_svm.adaptive@1", "voc07_svm.demo@1"}


def test_costs() -> None:
    mmselfsup, vissl, fssb = (VocSvm().params(BY_ID[id]) for id in PUBLISHED)
    assert mmselfsup.costs[:4] == (1, 10, 100, 0.0625)
    assert mmselfsup.costs[-1] == 0.5**19
    assert len(mmselfsup.costs) == 19
    assert vissl.costs == (0.01, 0.1, 1, 2, 5, 10, 15, 20, 50, 100, 1000)
    assert fssb.costs[:10] == (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1, 10, 100)
    assert fssb.costs[10:] == mmselfsup.costs[3:]
    for params in (mmselfsup, vissl, fssb):
        assert (params.positive_weight, params.negative_weight) == (2, 1)


@pytest.mark.slow
def test_ranks_are_liblinears_at_the_usual_tolerance_and_at_fssbs() -> None:
    """14 positives among images that are nearly alike, so that little changes a rank."""
    from sklearn.svm import LinearSVC

    generator = np.random.default_rng(0)
    positive = np.zeros((2, 120), bool)
    for row in positive:
        row[generator.choice(120, 14, replace=False)] = True
    alike = 100 * np.abs(generator.normal(size=2048))
    features = alike + generator.normal(size=(120, 2048)) * np.geomspace(0.01, 1, 2048)
    features = (features + 0.1 * positive.T @ generator.normal(size=(2, 2048))).astype(np.float32)
    folds = np.tile(np.arange(120) % 3, (2, 1)).astype(np.int8)
    params = VocSvm().params(BY_ID["voc07_svm.fssb@2"])

    def cv_ap(tolerance: float) -> NDArray[np.float64]:
        weights = np.where(positive, 2.0, 1.0)
        return fit_cross_validated(features, positive, weights, folds, params.costs, tolerance=tolerance).cv_ap

    rows = svm_protocol.normalised(features)
    expected = np.zeros((len(params.costs), 2))
    for place, cost in enumerate(params.costs):
        for c, of_class in enumerate(positive):
            for fold in range(3):
                held = folds[c] == fold
                svm = LinearSVC(C=cost, dual=False, tol=1e-11, max_iter=10_000, class_weight={True: 2, False: 1})
                decisions = svm.fit(rows[~held], of_class[~held]).decision_function(rows[held])
                expected[place, c] += average_precision_score(of_class[held], decisions) / 3
    for tolerance in (1e-5, params.tolerance):
        assert np.abs(cv_ap(tolerance) - expected).max() < 1e-9


@pytest.mark.parametrize("id", PUBLISHED)
def test_published_values(id: str) -> None:
    asked = BY_ID[id]
    params = VocSvm().params(asked)
    assert (params.folds, params.ignore_in_train) == (3, "negative")
    assert (asked.dataset, asked.train_split, asked.test_split) == ("voc2007", "trainval", "test")
    assert (asked.geometry.mode, asked.geometry.resize, asked.geometry.crop) == ("warp", 256, 224)
    assert asked.columns == (*(f"feature{i}" for i in range(1, 6)), "embed", "best", "best_oracle")


def test_fixed_pooling_by_its_published_kernels() -> None:
    outputs = VocSvm().outputs(BY_ID["voc07_svm.mmselfsup@1"])
    kernels = {
        name: (pooling.kernel, pooling.stride, pooling.padding)  # type: ignore[union-attr]
        for name, (_, pooling) in outputs.items()
        if pooling is not None
    }
    assert kernels == {
        "feature1": (10, 10, 4),
        "feature2": (16, 8, 0),
        "feature3": (13, 5, 0),
        "feature4": (8, 3, 0),
        "feature5": (6, 1, 0),
    }
    assert outputs["embed"] == ("embed", None)


def test_adaptive_grids() -> None:
    outputs = VocSvm().outputs(BY_ID["voc07_svm.adaptive@1"])
    assert [outputs[f"feature{i}"][1].grid for i in range(1, 6)] == [12, 6, 4, 3, 2]  # type: ignore[union-attr]


def test_an_override_makes_another_id() -> None:
    dropped = BY_ID["voc07_svm.mmselfsup@1"].changed(ignore_in_train="drop")
    assert dropped.id == "voc07_svm.mmselfsup@1+ignore_in_train=drop"


def test_columns_and_selection_follow_an_override() -> None:
    pooled = BY_ID["voc07_svm.mmselfsup@1"].changed(outputs={"embed": None}, folds=5)
    assert (pooled.columns, pooled.primary) == (("embed",), "embed")
    assert pooled.selection == "cost per class by 5-fold CV on trainval"
    assert BY_ID["voc07_svm.mmselfsup@1"].selection == "cost per class by 3-fold CV on trainval"


def test_maps_without_pooling_are_refused() -> None:
    with pytest.raises(InputError, match="feature5 are feature maps and need a pooling"):
        BY_ID["voc07_svm.mmselfsup@1"].changed(outputs={"feature5": None})


@pytest.mark.parametrize("asked", PROTOCOLS, ids=lambda asked: asked.id)
def test_every_protocol_names_its_source_and_survives_json(asked: Protocol) -> None:
    assert asked.source.repository
    again = Protocol.model_validate_json(asked.model_dump_json())
    assert again.content_sha256() == asked.content_sha256()
    assert VocSvmParams.model_validate(again.params) == VocSvm().params(asked)

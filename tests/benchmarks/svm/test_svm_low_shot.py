from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.contract import InputError, Labels, Split
from benchmarks.overrides import typed
from benchmarks.svm import low_shot
from benchmarks.svm.average_precision import average_precisions
from benchmarks.svm.index_sets import Draw, draw_sets, sets_sha256
from benchmarks.svm.low_shot import run
from benchmarks.svm.low_shot_report import LayerResult, choose
from benchmarks.svm.protocols import PROTOCOLS
from benchmarks.svm.settings import LowShotParams
from results.schema import Protocol
from tests.reference import svm_protocol
from tests.reference.svm_splits import CLASSES, labels, single_label, splits

COSTS = (1.0, 100.0, 0.01)
K = (1, 4, 12)
SETS = 3


def protocol(**changes: object) -> Protocol:
    known = next(p for p in PROTOCOLS if p.id == "voc07_low_shot_svm.adaptive@1")
    return known.with_overrides(**{"costs": COSTS, "k": K, "sets": SETS, **changes})


def params(**changes: object) -> LowShotParams:
    return typed(LowShotParams, protocol(**changes))


def reference(train: Split, test: Split, draws: list[Draw]) -> dict[tuple[int, int], np.ndarray]:
    """(set, k) -> (costs, C) test AP, by scikit-learn, problem by problem."""
    x, x_test = svm_protocol.normalised(train.features["embed"]), svm_protocol.normalised(test.features["embed"])
    targets = test.labels.targets
    if targets.ndim == 1:
        targets = (targets[:, None] == np.arange(len(CLASSES))).astype(np.int8)
    found = {}
    for draw in draws:
        decisions = np.zeros((len(COSTS), len(CLASSES), len(x_test)))
        for c in range(len(CLASSES)):
            used = draw.labels[:, c] >= 0
            rows, signs = x[draw.rows[used]], np.where(draw.labels[used, c] == 1, 1, -1)
            for i, cost in enumerate(COSTS):
                decisions[i, c] = svm_protocol.classifier(cost).fit(rows, signs).decision_function(x_test)
        found[draw.index, draw.k] = average_precisions(decisions, targets.T).envelope
    return found


@pytest.mark.parametrize("single", [False, True])
def test_agrees_with_scikit_learn_throughout(single: bool) -> None:
    train, test = splits()
    if single:
        train, test = single_label(train), single_label(test)
    outcome = run(protocol(), train, test, progress=False)
    expected = reference(train, test, draw_sets(train.labels, params()))
    for k in K:
        by_set = 100 * np.stack([expected[index, k] for index in range(SETS)])  # (sets, costs, C)
        mean = by_set.mean((0, 2))
        oracle = int(mean.argmax())
        score = outcome.scores[f"k={k}"]
        assert score.value == pytest.approx(mean[oracle], abs=0.02)
        assert score.std == pytest.approx(by_set[:, oracle].mean(-1).std(), abs=0.02)
        assert f"C={COSTS[oracle]:g};" in score.selection
        assert "oracle" in score.selection
        fixed = outcome.scores[f"k={k} fixed"]
        assert fixed.value == pytest.approx(mean[COSTS.index(1.0)], abs=0.02)
        for i, cost in enumerate(COSTS):
            of_cost = next(r for r in outcome.runs if (r.get("k"), r.get("cost")) == (k, cost))
            of_sets = by_set[:, i].mean(-1)
            assert of_cost["map"] == pytest.approx(of_sets.mean(), abs=0.02)
            assert of_cost["map_min"] == pytest.approx(of_sets.min(), abs=0.02)
            assert of_cost["map_max"] == pytest.approx(of_sets.max(), abs=0.02)


def test_many_images_are_read_draw_by_draw_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = splits()
    together = run(protocol(), train, test, progress=False)
    monkeypatch.setattr(low_shot, "DENSE_ROWS", 100)
    apart = run(protocol(), train, test, progress=False)
    assert apart.scores.keys() == together.scores.keys()
    for column, score in together.scores.items():
        assert apart.scores[column].value == pytest.approx(score.value, abs=0.02)
        assert apart.scores[column].selection == score.selection


def test_heldout_choice_never_sees_the_test_split() -> None:
    train, test = splits()
    scrambled = Split(test.labels, {"embed": test.features["embed"][::-1].copy()})
    chosen = [
        [run_.scores[f"k={k} heldout"].selection for k in K]
        for run_ in (run(protocol(), train, which, progress=False) for which in (test, scrambled))
    ]
    assert chosen[0] == chosen[1]
    assert "more labels than k" in chosen[0][0]


def test_heldout_figures_are_of_the_images_outside_the_set() -> None:
    train, test = splits()
    outcome = run(protocol(k=(4,), sets=1), train, test, progress=False)
    (draw,) = draw_sets(train.labels, params(k=(4,), sets=1))
    outside = np.full(train.labels.targets.shape, -1)
    for c in range(len(CLASSES)):
        drawn = draw.rows[draw.labels[:, c] >= 0]
        kept = np.setdiff1d(np.arange(len(train.labels)), drawn)
        outside[kept, c] = train.labels.targets[kept, c]
    as_test = Split(replace(train.labels, targets=outside), train.features)
    expected = reference(train, as_test, [draw])[0, 4]
    for i, cost in enumerate(COSTS):
        of_cost = next(r for r in outcome.runs if r.get("cost") == cost)
        assert of_cost["heldout_map"] == pytest.approx(100 * expected[i].mean(), abs=0.02)


def test_saved_models_and_sets_give_the_score() -> None:
    train, test = splits()
    outcome = run(protocol(), train, test, progress=False)
    x = svm_protocol.normalised(test.features["embed"])
    cost = outcome.scores["k=4"].selection.split("C=")[1].split(";")[0]
    weight = outcome.tensors[f"embed/k=4/cost={cost}/weight"].numpy()
    bias = outcome.tensors[f"embed/k=4/cost={cost}/bias"].numpy()
    ap = average_precisions(weight @ x.T + bias[..., None], test.labels.targets.T).envelope
    assert 100 * ap.mean() == pytest.approx(outcome.scores["k=4"].value, abs=0.01)
    matrix = outcome.tensors["sets/sample2_k4/labels"].numpy()
    assert ((matrix == 1).sum(0) == 4).all()
    assert ((matrix == 0).sum(0) == 12).all()
    digest = next(r for r in outcome.runs if "sha256" in r)["sha256"]
    assert digest == sets_sha256(draw_sets(train.labels, params()))


def test_sets_have_the_right_sizes_and_labels() -> None:
    train, _ = splits()
    draws = draw_sets(train.labels, params())
    assert [(draw.index, draw.k) for draw in draws] == [(index, k) for index in range(SETS) for k in K]
    for draw in draws:
        assert ((draw.labels == 1).sum(0) == draw.k).all()
        assert ((draw.labels == 0).sum(0) == 3 * draw.k).all()
        drawn = draw.labels >= 0
        assert (draw.labels[drawn] == train.labels.targets[draw.rows][drawn]).all()
        assert drawn.any(1).all()
    assert len({tuple(draw.rows) for draw in draws}) == len(draws)
    assert not set(draws[0].rows) <= set(draws[1].rows)  # k = 4 does not contain k = 1


def test_sets_are_a_function_of_the_seed_alone() -> None:
    train, _ = splits()
    digests = [sets_sha256(draw_sets(train.labels, params(seed=seed))) for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


def test_sets_do_not_change_from_release_to_release() -> None:
    targets = (np.arange(40)[:, None] % np.array([2, 3, 4, 5]) == 0).astype(np.int8)
    (draw,) = draw_sets(labels(targets), params(k=(2,), sets=1))
    assert sets_sha256([draw]) == "f99802203e4b165f74476402e6ca0e4f857b5908555c5967c13a6600eda18eb0"


def test_single_label_sets_share_their_images() -> None:
    train = single_label(splits()[0])
    for draw in draw_sets(train.labels, params()):
        assert draw.labels.shape == (4 * draw.k, 4)
        assert (draw.labels.sum(0) == draw.k).all()
        assert (draw.labels.argmax(1) == train.labels.targets[draw.rows]).all()


def test_too_few_images_are_refused_by_name() -> None:
    train, test = splits()
    targets = train.labels.targets.copy()
    targets[np.flatnonzero(targets[:, 2] == 1)[11:], 2] = 0
    with pytest.raises(InputError, match="cat has 11 positive training images, and k=12 needs 12"):
        run(protocol(), Split(replace(train.labels, targets=targets), train.features), test, progress=False)
    crowded = np.ones((20, 4), np.int8)
    crowded[:5] = 0
    with pytest.raises(InputError, match="bird has 5 negative training images, and k=2 needs 6"):
        draw_sets(labels(crowded), params(k=(1, 2)))


def write_published(folder: Path, train: Labels, ks: tuple[int, ...] = K) -> list[Draw]:
    """The format of the published label files: the whole training split, -1 where an image is not drawn."""
    draws = draw_sets(train, params(k=ks, seed=5))
    for draw in draws:
        matrix = np.full((len(train), len(train.classes)), -1.0)
        matrix[draw.rows] = draw.labels
        np.save(folder / f"train_targets_sample{draw.index + 1}_k{draw.k}.npy", matrix)
    return draws


def test_published_files_are_read(tmp_path: Path) -> None:
    train, test = splits()
    draws = write_published(tmp_path, train.labels)
    outcome = run(protocol(index_sets="files"), train, test, progress=False, index_files=tmp_path)
    assert next(r for r in outcome.runs if "sha256" in r)["sha256"] == sets_sha256(draws)
    seeded = run(protocol(seed=5), train, test, progress=False)
    assert outcome.scores["k=4"].value == seeded.scores["k=4"].value


def test_published_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    train, test = splits()
    with pytest.raises(InputError, match="name their folder"):
        run(protocol(index_sets="files"), train, test, progress=False)
    with pytest.raises(InputError, match=r"train_targets_sample1_k1.npy is missing"):
        run(protocol(index_sets="files"), train, test, progress=False, index_files=tmp_path)

    def refusal(change: object) -> str:
        write_published(tmp_path, train.labels)
        file = tmp_path / "train_targets_sample2_k4.npy"
        matrix = np.load(file)
        change(matrix) if callable(change) else None
        np.save(file, matrix[:-1] if change == "short" else matrix)
        with pytest.raises(InputError) as error:
            run(protocol(index_sets="files"), train, test, progress=False, index_files=tmp_path)
        return str(error.value)

    assert "(239, 4) values, and 240 images of 4 classes" in refusal("short")
    assert "gives bird 3 positives and 12 negatives instead of 4 and 12" in refusal(
        lambda m: m.__setitem__((np.flatnonzero(m[:, 0] == 1)[0], 0), -1)
    )
    assert "contradicts the labels of" in refusal(lambda m: m.__setitem__(slice(None), m[::-1].copy()))
    assert "of 1, 0 and -1" in refusal(lambda m: m.__setitem__((0, 0), 7))
    (tmp_path / "train_targets_sample1_k1.npy").write_bytes(b"not an array")
    with pytest.raises(InputError, match="is no NumPy array"):
        run(protocol(index_sets="files"), train, test, progress=False, index_files=tmp_path)


def test_each_selection_takes_what_it_may_look_at() -> None:
    """Layer feature4 is best on test, feature5 outside the sets; their costs differ too."""
    settings = params(k=(1, 2), sets=2)
    shape = (2, 2, 3, 4)
    results = {name: LayerResult(np.full((3, *shape), 0.2), np.full(shape, 0.2)) for name in ("feature4", "feature5")}
    results["embed"] = LayerResult(np.full((3, *shape), 0.9), np.full(shape, 0.9))
    results["feature4"].test[0, :, :, 2] = 0.7
    results["feature4"].heldout[:, :, 0] = 0.3
    results["feature5"].test[0, :, :, 0] = 0.6
    results["feature5"].heldout[:, 0, 1] = 0.8
    results["feature5"].heldout[:, 1, 0] = 0.8
    choices = {(choice.selection, choice.k): (choice.layer, choice.cost) for choice in choose(results, settings)}
    assert choices == {
        ("oracle", 1): ("feature4", 0.01),
        ("oracle", 2): ("feature4", 0.01),
        ("fixed", 1): ("feature5", 1.0),
        ("fixed", 2): ("feature5", 1.0),
        ("heldout", 1): ("feature5", 100.0),
        ("heldout", 2): ("feature5", 1.0),
    }


def test_a_class_whose_positives_are_all_drawn_does_not_count_outside() -> None:
    settings = params(k=(1,), sets=1)
    result = LayerResult.empty(settings, 4)
    result.test[:] = 0.5
    result.heldout[..., :3] = np.array([0.1, 0.3, 0.2])[:, None]
    assert result.heldout_map[0] == pytest.approx([0.1, 0.3, 0.2])
    chosen = [choice.cost for choice in choose({"embed": result}, settings) if choice.selection == "heldout"]
    assert chosen == [100.0]


def test_the_fixed_cost_must_be_among_the_costs() -> None:
    train, test = splits()
    with pytest.raises(InputError, match="fixed_cost 3 is not among the costs"):
        run(protocol(fixed_cost=3.0), train, test, progress=False)


def test_one_set_of_a_single_label_data_set_leaves_nothing_to_compare_on() -> None:
    train, test = (single_label(split) for split in splits())
    with pytest.raises(InputError, match="draw two or more"):
        run(protocol(sets=1), train, test, progress=False)


def test_places205_by_its_own_protocol_on_a_tiny_set() -> None:
    """One image set for all classes: k positives, and k of every other class as negatives."""
    known = next(p for p in PROTOCOLS if p.id == "places205_low_shot_svm.fssb@1")
    assert (known.dataset, known.train_split, known.test_split) == ("places205", "train", "val")
    small = known.with_overrides(k=(1, 4), sets=2, costs=(1.0, 0.01))
    train, test = (single_label(split) for split in splits(embed=30, feature5=50))
    outcome = run(small, train, test, progress=False)
    assert {f"k={k}{how}" for k in (1, 4) for how in ("", " fixed", " heldout")} == set(outcome.scores)
    for column in ("k=4", "k=4 fixed", "k=4 heldout"):
        assert set(outcome.per_class[column]) == set(CLASSES)
        assert outcome.scores[column].std is not None
    matrix = outcome.tensors["sets/sample1_k4/labels"].numpy()
    assert ((matrix == 1).sum(0) == 4).all()
    assert ((matrix == 0).sum(0) == (len(CLASSES) - 1) * 4).all()
    chance = 100 * np.bincount(test.labels.targets).mean() / len(test.labels)
    assert outcome.scores["k=4"].value > chance

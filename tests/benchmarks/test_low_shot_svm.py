from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import low_shot_svm
from benchmarks.low_shot_sets import Draw, draw_sets, sets_sha256
from benchmarks.low_shot_svm import PROTOCOLS, LayerResult, LowShotParams, LowShotSvm, choose
from benchmarks.registry import find_protocol
from benchmarks.solvers.average_precision import average_precisions, envelope_influence, pseudo_values
from benchmarks.task import InputError, Labels, Outcome, RunOptions, Split
from benchmarks.voc_svm import VocSvm
from results.schema import Protocol
from tests.reference import svm_protocol
from tests.reference.svm_protocol import normalised
from tests.reference.svm_splits import CLASSES, labels, single_label, splits

COSTS = (1.0, 100.0, 0.01)
K = (1, 4, 12)
SETS = 3


def protocol(**changes: object) -> Protocol:
    known = next(p for p in PROTOCOLS if p.id == "voc07_low_shot_svm.adaptive@1")
    return known.changed(**{"costs": COSTS, "k": K, "sets": SETS, **changes})  # type: ignore[arg-type]


def params(**changes: object) -> LowShotParams:
    return LowShotSvm().params(protocol(**changes))


def drawn(labels: Labels, **changes: object) -> list[Draw]:
    asked = params(**changes)
    return draw_sets(labels, k=asked.k, sets=asked.sets, seed=asked.seed)


def run(asked: Protocol, train: Split, test: Split, index_files: Path | None = None) -> Outcome:
    return LowShotSvm(index_files=index_files).run(asked, train, test, RunOptions(device="cpu", progress=False))


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
    outcome = run(protocol(), train, test)
    expected = reference(train, test, drawn(train.labels))
    for k in K:
        by_set = 100 * np.stack([expected[index, k] for index in range(SETS)])  # (sets, costs, C)
        mean = by_set.mean((0, 2))
        oracle = int(mean.argmax())
        score = outcome.scores[f"k={k}"]
        assert score.value == pytest.approx(mean[oracle], abs=0.02)
        assert score.std == pytest.approx(by_set[:, oracle].mean(-1).std(), abs=0.02)
        assert score.n == 160
        assert list(outcome.per_class[f"k={k}"].values()) == pytest.approx(list(by_set[:, oracle].mean(0)), abs=0.05)
        chosen = next(r for r in outcome.runs if r.get("score") == f"k={k}")
        assert (chosen["cost"], chosen["map"]) == (COSTS[oracle], pytest.approx(score.value))
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
            assert of_cost["map_std"] == pytest.approx(of_sets.std(), abs=0.02)


@pytest.mark.slow
def test_many_images_are_read_draw_by_draw_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = splits()
    together = run(protocol(), train, test)
    monkeypatch.setattr(low_shot_svm, "MANY_IMAGES", 100)
    apart = run(protocol(), train, test)
    assert apart.scores.keys() == together.scores.keys()
    for column, score in together.scores.items():
        assert apart.scores[column].value == pytest.approx(score.value, abs=0.02)
        assert apart.scores[column].selection == score.selection


def test_heldout_choice_never_sees_the_test_split() -> None:
    train, test = splits()
    scrambled = Split(test.labels, {"embed": test.features["embed"][::-1].copy()})
    chosen = [
        [run_.scores[f"k={k} heldout"].selection for k in K]
        for run_ in (run(protocol(), train, which) for which in (test, scrambled))
    ]
    assert chosen[0] == chosen[1]
    assert "more labels than k" in chosen[0][0]


@pytest.mark.parametrize("single", [False, True])
def test_heldout_figures_are_of_the_images_outside_the_set(single: bool) -> None:
    """Of all of them, or in a single-label data set of those that the other sets have drawn."""
    train, test = splits()
    if single:
        train, test = single_label(train), single_label(test)
    outcome = run(protocol(k=(4,), sets=2), train, test)
    draws, truth, expected = drawn(train.labels, k=(4,), sets=2), train.labels.one_hot(), []
    for draw, other in (draws, draws[::-1]):
        outside = np.full(truth.shape, -1)
        for c in range(len(CLASSES)):
            available = other.rows if single else np.arange(len(train.labels))
            kept = np.setdiff1d(available, draw.rows[draw.labels[:, c] >= 0])
            outside[kept, c] = truth[kept, c]
        as_test = Split(replace(train.labels, targets=outside), train.features)
        expected.append(reference(train, as_test, [draw])[draw.index, 4].mean(-1))
    for i, cost in enumerate(COSTS):
        of_cost = next(r for r in outcome.runs if r.get("cost") == cost)
        assert of_cost["heldout_map"] == pytest.approx(100 * np.mean(expected, axis=0)[i], abs=0.02)


def test_saved_models_and_sets_give_the_score() -> None:
    train, test = splits()
    outcome = run(protocol(), train, test)
    x = svm_protocol.normalised(test.features["embed"])
    cost = outcome.scores["k=4"].selection.split("C=")[1].split(";")[0]
    weight = outcome.tensors[f"embed/k=4/cost={cost}/weight"].numpy()
    bias = outcome.tensors[f"embed/k=4/cost={cost}/bias"].numpy()
    decisions = weight @ x.T + bias[..., None]
    draw = next(draw for draw in drawn(train.labels) if (draw.index, draw.k) == (1, 4))
    used = draw.labels[:, 2] >= 0
    rows, signs = svm_protocol.normalised(train.features["embed"])[draw.rows[used]], 2 * draw.labels[used, 2] - 1
    plain = svm_protocol.classifier(float(cost)).fit(rows, signs)
    np.testing.assert_allclose(decisions[1, 2], plain.decision_function(x), atol=1e-3)
    ap = average_precisions(decisions, test.labels.targets.T).envelope
    assert 100 * ap.mean() == pytest.approx(outcome.scores["k=4"].value, abs=0.01)
    matrix = outcome.tensors["sets/sample2_k4/labels"].numpy()
    assert ((matrix == 1).sum(0) == 4).all()
    assert ((matrix == 0).sum(0) == 12).all()
    digest = next(r for r in outcome.runs if "sha256" in r)["sha256"]
    assert digest == sets_sha256(drawn(train.labels))


def test_sets_have_the_right_sizes_and_labels() -> None:
    train, _ = splits()
    draws = drawn(train.labels)
    assert [(draw.index, draw.k) for draw in draws] == [(index, k) for index in range(SETS) for k in K]
    for draw in draws:
        assert ((draw.labels == 1).sum(0) == draw.k).all()
        assert ((draw.labels == 0).sum(0) == 3 * draw.k).all()
        used = draw.labels >= 0
        assert (draw.labels[used] == train.labels.targets[draw.rows][used]).all()
        assert used.any(1).all()
    assert len({tuple(draw.rows) for draw in draws}) == len(draws)
    assert not set(draws[0].rows) <= set(draws[1].rows)  # k = 4 does not contain k = 1


def test_sets_are_a_function_of_the_seed_alone() -> None:
    train, _ = splits()
    digests = [sets_sha256(drawn(train.labels, seed=seed)) for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


def test_sets_do_not_change_from_release_to_release() -> None:
    targets = (np.arange(40)[:, None] % np.array([2, 3, 4, 5]) == 0).astype(np.int8)
    (draw,) = drawn(labels(targets), k=(2,), sets=1)
    assert sets_sha256([draw]) == "f99802203e4b165f74476402e6ca0e4f857b5908555c5967c13a6600eda18eb0"


def test_single_label_sets_share_their_images() -> None:
    train = single_label(splits()[0])
    for draw in drawn(train.labels):
        assert draw.labels.shape == (4 * draw.k, 4)
        assert (draw.labels.sum(0) == draw.k).all()
        assert (draw.labels.argmax(1) == train.labels.targets[draw.rows]).all()


def test_too_few_images_are_refused_by_name() -> None:
    train, test = splits()
    targets = train.labels.targets.copy()
    targets[np.flatnonzero(targets[:, 2] == 1)[11:], 2] = 0
    with pytest.raises(InputError, match="cat has 11 positive training images, but k=12 needs 12"):
        run(protocol(), Split(replace(train.labels, targets=targets), train.features), test)
    targets[np.flatnonzero(train.labels.targets[:, 2] == 1)[11], 2] = 1
    assert len(drawn(replace(train.labels, targets=targets))) == SETS * len(K)  # 12 are enough
    crowded = np.ones((20, 4), np.int8)
    crowded[:5] = 0
    with pytest.raises(InputError, match="bird has 5 negative training images, but k=2 needs 6"):
        drawn(labels(crowded), k=(1, 2))


def write_published(folder: Path, train: Labels, ks: tuple[int, ...] = K) -> list[Draw]:
    """The format of the published label files: the whole training split, -1 where an image is not drawn."""
    draws = drawn(train, k=ks, seed=5)
    for draw in draws:
        matrix = np.full((len(train), len(train.classes)), -1.0)
        matrix[draw.rows] = draw.labels
        np.save(folder / f"train_targets_sample{draw.index + 1}_k{draw.k}.npy", matrix)
    return draws


def test_published_files_are_read(tmp_path: Path) -> None:
    train, test = splits()
    draws = write_published(tmp_path, train.labels)
    outcome = run(protocol(index_sets="files"), train, test, tmp_path)
    assert next(r for r in outcome.runs if "sha256" in r)["sha256"] == sets_sha256(draws)
    seeded = run(protocol(seed=5), train, test)
    assert outcome.scores["k=4"].value == seeded.scores["k=4"].value


def test_published_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    train, test = splits()
    with pytest.raises(InputError, match="give their folder"):
        run(protocol(index_sets="files"), train, test)
    with pytest.raises(InputError, match=r"train_targets_sample1_k1.npy is missing"):
        run(protocol(index_sets="files"), train, test, tmp_path)

    def refusal(change: object) -> str:
        write_published(tmp_path, train.labels)
        file = tmp_path / "train_targets_sample2_k4.npy"
        matrix = np.load(file)
        change(matrix) if callable(change) else None
        np.save(file, matrix[:-1] if change == "short" else matrix)
        with pytest.raises(InputError) as error:
            run(protocol(index_sets="files"), train, test, tmp_path)
        return str(error.value)

    assert "(239, 4) values, but 240 images of 4 classes" in refusal("short")
    assert "gives bird 3 positives and 12 negatives instead of 4 and 12" in refusal(
        lambda m: m.__setitem__((np.flatnonzero(m[:, 0] == 1)[0], 0), -1)
    )
    assert "contradicts the labels of" in refusal(lambda m: m.__setitem__(slice(None), m[::-1].copy()))
    assert "of 1, 0 and -1" in refusal(lambda m: m.__setitem__((0, 0), 7))
    (tmp_path / "train_targets_sample1_k1.npy").write_bytes(b"not an array")
    with pytest.raises(InputError, match=r"is not a \.npy file"):
        run(protocol(index_sets="files"), train, test, tmp_path)


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
        run(protocol(fixed_cost=3.0), train, test)


def test_one_set_of_a_single_label_data_set_leaves_nothing_to_compare_on() -> None:
    multi = [split.labels for split in splits()]
    LowShotSvm().check(protocol(sets=1), *multi)
    train, test = (single_label(split) for split in splits())
    with pytest.raises(InputError, match="sets=2 or more"):
        run(protocol(sets=1), train, test)


def test_sets_that_would_all_be_the_same_are_refused() -> None:
    few, more = (labels(np.repeat(np.arange(4), counts)) for counts in ((4, 4, 4, 4), (4, 4, 4, 5)))
    LowShotSvm().check(protocol(k=(1, 4)), more, few)
    with pytest.raises(InputError, match="no class has more than k=4 training images"):
        LowShotSvm().check(protocol(k=(1, 4)), few, few)


def test_places205_by_its_own_protocol_on_a_tiny_set() -> None:
    """One image set for all classes: k positives, and k of every other class as negatives."""
    known = next(p for p in PROTOCOLS if p.id == "places205_low_shot_svm.fssb@2")
    assert (known.dataset, known.train_split, known.test_split) == ("places205", "train", "val")
    small = known.changed(k=(1, 4), sets=2, costs=(1.0, 0.01))
    train, test = (single_label(split) for split in splits(embed=30, feature5=50))
    outcome = run(small, train, test)
    assert {f"k={k}{how}" for k in (1, 4) for how in ("", " fixed", " heldout")} == set(outcome.scores)
    for column in ("k=4", "k=4 fixed", "k=4 heldout"):
        assert set(outcome.per_class[column]) == set(CLASSES)
        assert outcome.scores[column].std is not None
    matrix = outcome.tensors["sets/sample1_k4/labels"].numpy()
    assert ((matrix == 1).sum(0) == 4).all()
    assert ((matrix == 0).sum(0) == (len(CLASSES) - 1) * 4).all()
    chance = 100 * np.bincount(test.labels.targets).mean() / len(test.labels)
    assert outcome.scores["k=4"].value > chance


@pytest.mark.parametrize("single", [False, True])
def test_a_low_shot_run_keeps_what_each_image_contributes_and_what_each_set_gave(single: bool) -> None:
    train, test = splits()
    if single:
        train, test = single_label(train), single_label(test)
    known = next(p for p in PROTOCOLS if p.id == "voc07_low_shot_svm.adaptive@1")
    asked = known.changed(costs=(1.0, 100.0, 0.01), k=(1, 4), sets=3)
    outcome = run(asked, train, test)
    assert {f"pseudo_value/{column}" for column in outcome.scores} == outcome.items.keys()
    draws = draw_sets(train.labels, k=(1, 4), sets=3, seed=0)
    trials = [entry for entry in outcome.runs if "trial" in entry]
    assert [entry["trial"] for entry in trials] == [0, 1, 2]
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
        ap = average_precisions(decisions, targets.T)
        assert 100 * ap.envelope.mean(-1) == pytest.approx(of_sets, abs=0.02)
        of_cost = next(r for r in outcome.runs if "map_sklearn" in r and (r["k"], r["cost"]) == (int(k), float(cost)))
        assert of_cost["map_sklearn"] == pytest.approx(100 * ap.step.mean(), abs=0.02)
        assert of_cost["map_11point"] == pytest.approx(100 * ap.eleven_point.mean(), abs=0.02)
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


def test_label_files_show_in_the_key_and_not_in_the_id(tmp_path: Path) -> None:
    write_published(tmp_path, splits()[0].labels)
    asked = next(p for p in PROTOCOLS if p.id == "voc07_low_shot_svm.fssb@2")
    resolved = LowShotSvm(index_files=tmp_path).resolve(asked)
    assert resolved.id == asked.id
    assert {name for name in resolved.params if resolved.params[name] != asked.params.get(name)} == {"index_sha256"}
    (tmp_path / "train_targets_sample1_k1.npy").write_bytes(b"another")
    assert LowShotSvm(index_files=tmp_path).resolve(asked).params != resolved.params
    assert LowShotSvm().resolve(asked) == asked
    with pytest.raises(InputError, match="draws its own low-shot sets and cannot use --index-files"):
        LowShotSvm(index_files=tmp_path).resolve(protocol())


def test_labels_that_cannot_be_measured_are_refused_before_extraction() -> None:
    train, test = splits()
    LowShotSvm().check(protocol(), train.labels, test.labels)
    targets = train.labels.targets.copy()
    targets[np.flatnonzero(targets[:, 2] == 1)[11:], 2] = 0
    with pytest.raises(InputError, match="cat has 11 positive training images"):
        LowShotSvm().check(protocol(), replace(train.labels, targets=targets), test.labels)
    with pytest.raises(InputError, match="fixed_cost 3 is not among the costs"):
        LowShotSvm().check(protocol(fixed_cost=3.0), train.labels, test.labels)
    with pytest.raises(InputError, match="--index-files"):
        LowShotSvm().check(protocol(index_sets="files"), train.labels, test.labels)


def test_an_image_folder_keeps_every_k_that_leaves_each_class_an_image_outside() -> None:
    folder = find_protocol("imagefolder_low_shot_svm.embed@1")
    chosen = folder.changed(k=(8,), seed=1)
    for smallest, kept in ((8, (1, 2, 4)), (9, (1, 2, 4, 8)), (1, (1,)), (97, folder.params["k"])):
        images = labels(np.repeat(np.arange(4), (100, smallest, 100, 99)))
        assert LowShotSvm().adapted(folder, images, images).params["k"] == kept
        assert LowShotSvm().adapted(chosen, images, images) == chosen


# ---- protocols: the values as they stand in the sources that the protocols name --------------------------------------

BY_ID = {protocol.id: protocol for protocol in PROTOCOLS}
PUBLISHED = [f"voc07_low_shot_svm.{variant}" for variant in ("mmselfsup@1", "vissl@1", "fssb@2")]


def test_ids() -> None:
    assert set(BY_ID) == {
        *PUBLISHED,
        "voc07_low_shot_svm.adaptive@1",
        "voc07_low_shot_svm.demo@1",
        "places205_low_shot_svm.fssb@2",
        "imagefolder_low_shot_svm.embed@1",
    }


def test_costs_and_weights_are_those_of_the_full_svm() -> None:
    """Whose numbers `test_voc_svm` has as they stand in the sources."""
    for id in PUBLISHED:
        few, full = LowShotSvm().params(BY_ID[id]), VocSvm().params(find_protocol(id.replace("_low_shot_", "_")))
        assert few.costs == full.costs
        assert (few.positive_weight, few.negative_weight) == (full.positive_weight, full.negative_weight)


@pytest.mark.parametrize("id", PUBLISHED)
def test_published_values(id: str) -> None:
    asked = BY_ID[id]
    of_protocol = LowShotSvm().params(asked)
    assert of_protocol.k == (1, 2, 4, 8, 16, 32, 64, 96)
    assert of_protocol.sets == 5
    assert asked.columns[:8] == tuple(f"k={k}" for k in of_protocol.k)
    assert asked.geometry.resize == (0 if "vissl" in id else 256)


@pytest.mark.parametrize("asked", PROTOCOLS, ids=lambda asked: asked.id)
def test_every_protocol_names_its_source_and_survives_json(asked: Protocol) -> None:
    assert asked.source.repository
    again = Protocol.model_validate_json(asked.model_dump_json())
    assert again.content_sha256() == asked.content_sha256()
    assert LowShotParams.model_validate(again.params) == LowShotSvm().params(asked)

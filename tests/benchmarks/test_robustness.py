"""Robustness: each rule against a plain loop, one fit for all test sets, and end to end on the embedded data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from sklearn.linear_model import LogisticRegression

from benchmarks import robustness
from benchmarks.__main__ import main
from benchmarks.datasets.imagenet_variants import CORRUPTIONS, SEVERITIES, alexnet_errors, classes_of, wordnet_ids
from benchmarks.registry import find_protocol
from benchmarks.robustness import PROTOCOLS, Robustness, RobustnessParams, fitted_head, ranked_right
from benchmarks.task import InputError, RunOptions, Split
from benchmarks.training.task import held_out
from results.rows import current
from results.store import read_records
from tests.builders import bare_split

NAMES = tuple(f"n{i:08d}" for i in range(6))
CENTRES = np.random.default_rng(0).normal(size=(6, 8))


def split(targets: np.ndarray, classes: tuple[str, ...], rows: np.ndarray, ids: list[str] | None = None) -> Split:
    return bare_split(rows, targets, classes, ids=ids or [f"{i}.png" for i in range(len(rows))])


def points(targets: np.ndarray, seed: int) -> np.ndarray:
    return CENTRES[targets] + np.random.default_rng(seed).normal(size=(len(targets), 8))


@pytest.fixture
def train() -> Split:
    targets = np.repeat(np.arange(6), 20)
    return split(targets, NAMES, points(targets, 1))


def options(tmp_path: Path) -> RunOptions:
    return RunOptions(device="cpu", progress=False, records=tmp_path / "records", features=tmp_path / "features")


def changed(name: str, **values: Any) -> Any:
    return find_protocol(name).changed(**values)


KNN = {"k": 5}
LOGISTIC = {"costs": (0.1, 1.0), "heldout": 0.25, "tolerance": 1e-7}


def test_ranked_right_is_the_plain_rule() -> None:
    rng = np.random.default_rng(2)
    scores = np.round(rng.normal(size=(50, 7)), 1)  # with ties
    scores[:, 6] = -np.inf
    single, several = rng.integers(0, 7, 50), (rng.random((50, 7)) < 0.3).astype(np.int8)
    for depth in (1, 5):
        for row in range(50):
            order = sorted(range(7), key=lambda c: (-scores[row, c], c))
            best = [c for c in order[:depth] if scores[row, c] > -np.inf]
            assert ranked_right(scores, single)[depth][row] == (single[row] in best)
            assert ranked_right(scores, several)[depth][row] == any(several[row, c] for c in best)


@pytest.mark.parametrize("head", ["knn", "logistic"])
def test_a_subset_only_names_its_own_classes(
    head: str, train: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(robustness, "CELLS", 6 * 7)  # in parts of 7 rows
    own = (1, 4, 5)
    targets = np.random.default_rng(3).integers(0, 3, 40)
    rows = points(np.array(own)[targets], 4) * 0.4
    test = split(targets, tuple(NAMES[i] for i in own), rows)
    protocol = changed(f"robustness_a.{head}@1", **(KNN if head == "knn" else LOGISTIC))
    outcome = Robustness().run(protocol, train, test, options(tmp_path))
    scores = plain_scores(head, train, rows, protocol, tmp_path)
    expected = [max(own, key=lambda c: (s[c], -c)) == own[t] and s[own[t]] > -np.inf
                for s, t in zip(scores, targets, strict=True)]  # fmt: skip
    assert outcome.items["correct/Top-1"].tolist() == expected
    # Of three classes each is among the best five, unless it has no vote at all.
    voted = [bool(s[own[t]] > -np.inf) for s, t in zip(scores, targets, strict=True)]
    assert outcome.items["correct/Top-5"].tolist() == voted
    assert all(voted) == (head == "logistic")
    whole = [int(s.argmax()) == own[t] for s, t in zip(scores, targets, strict=True)]
    assert sum(whole) < sum(expected) < 40  # so the rule matters here


def plain_scores(head: str, train: Split, rows: np.ndarray, protocol: Any, tmp_path: Path) -> np.ndarray:
    x, y = train.features["embed"].astype(float), train.labels.targets
    if head == "logistic":
        fitted = fitted_head(Robustness().params(protocol), train, options(tmp_path), protocol)
        return LogisticRegression(C=float(fitted.facts["cost"]), tol=1e-9, max_iter=5000).fit(x, y).decision_function(
            rows.astype(np.float32))  # fmt: skip
    unit = x / np.linalg.norm(x, axis=1)[:, None]
    scores = np.full((len(rows), 6), -np.inf)
    for own, row in zip(scores, rows.astype(np.float32), strict=True):
        similarity = unit @ row / np.linalg.norm(row)
        for i in np.argsort(-similarity)[:5]:
            own[y[i]] = np.logaddexp(own[y[i]], similarity[i] / 0.07)
    return scores


def test_any_of_several_labels_is_right(train: Split, tmp_path: Path) -> None:
    truth = np.random.default_rng(5).integers(0, 6, 30)
    rows = points(truth, 6)
    labels = np.zeros((30, 6), np.int8)
    labels[np.arange(30), truth] = labels[np.arange(30), (truth + 1) % 6] = 1
    protocol = changed("robustness_real.logistic@1", **LOGISTIC)
    outcome = Robustness().run(protocol, train, split(labels, NAMES, rows), options(tmp_path))
    chosen = plain_scores("logistic", train, rows, protocol, tmp_path).argmax(1)
    assert outcome.items["correct/Top-1"].tolist() == ((chosen == truth) | (chosen == (truth + 1) % 6)).tolist()


@pytest.mark.slow
def test_the_cost_is_chosen_on_held_out_images_as_scikit_learn_would(train: Split, tmp_path: Path) -> None:
    protocol = changed("robustness_val.logistic@1", costs=(1e-6, 1e-2, 1.0, 100.0), heldout=0.25, tolerance=1e-7)
    head = fitted_head(Robustness().params(protocol), train, options(tmp_path), protocol)
    kept, held = held_out(train.labels, 0.25, robustness.SPLIT_SEED)
    x, y = train.features["embed"].astype(float), train.labels.targets
    right = [LogisticRegression(C=c, tol=1e-8, max_iter=5000).fit(x[kept], y[kept]).score(x[held], y[held])
             for c in (1e-6, 1e-2, 1.0, 100.0)]  # fmt: skip
    assert head.facts["cost"] == (1e-6, 1e-2, 1.0, 100.0)[int(np.argmax(right))]
    assert head.facts["heldout_top1"] == pytest.approx(100 * max(right))
    assert head.facts["gradient"] <= 1e-7


def test_one_fit_serves_every_test_set(train: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test = split(train.labels.targets[:9], NAMES, points(train.labels.targets[:9], 8))
    fits = []
    fit = robustness._fit
    monkeypatch.setattr(robustness, "_fit", lambda *given: fits.append(1) or fit(*given))
    found = [Robustness().run(changed(f"robustness_{name}.logistic@1", **LOGISTIC), train, test, options(tmp_path))
             for name in ("val", "v2", "sketch")]  # fmt: skip
    assert len(fits) == 1
    assert [o.runs[0]["refitted"] for o in found] == [True, False, False]
    assert len({tuple(o.items["correct/Top-1"]) for o in found}) == 1
    Robustness().run(changed("robustness_val.logistic@1", **{**LOGISTIC, "heldout": 0.5}), train, test,
                     options(tmp_path))  # fmt: skip
    assert len(fits) == 2


def test_a_kept_head_is_of_the_same_features_labels_and_settings(train: Split, tmp_path: Path) -> None:
    """Otherwise the classifier of another encoder or training set would be scored, without a word."""
    quick = {"costs": (0.1, 1.0), "heldout": 0.25, "tolerance": 1e-2}
    features, labels = train.features["embed"], train.labels
    cases: list[tuple[Split, dict[str, Any]]] = [
        (train, {}),
        (split(labels.targets, NAMES, 2 * features), {}),
        (split(labels.targets[::-1].copy(), NAMES, features), {}),
        (split(labels.targets, (*NAMES[:5], "n99999999"), features), {}),
        *((train, each) for each in ({"costs": (0.1, 2.0)}, {"heldout": 0.5}, {"tolerance": 1e-3},
                                     {"max_iterations": 7})),
    ]  # fmt: skip
    for number, (images, changes) in enumerate(cases, start=1):
        protocol = changed("robustness_val.logistic@1", **{**quick, **changes})
        head = fitted_head(Robustness().params(protocol), images, options(tmp_path), protocol)
        assert head.facts["refitted"]
        assert len(list((tmp_path / "heads").iterdir())) == number


def test_a_damaged_head_is_fitted_again(train: Split, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A flipped bit would give other numbers, which the record would hold as its own."""
    protocol = changed("robustness_val.logistic@1", costs=(0.1, 1.0), heldout=0.25, tolerance=1e-3)
    asked = Robustness().params(protocol), train, options(tmp_path), protocol
    first = fitted_head(*asked)
    (file,) = (tmp_path / "heads").iterdir()
    content = file.read_bytes()
    assert fitted_head(*asked).facts == {**first.facts, "refitted": False}
    assert not caplog.messages
    middle = len(content) - 100  # inside a tensor
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    other = save({"weight": torch.zeros(6, 8), "bias": torch.zeros(6), "facts": torch.zeros(3, dtype=torch.float64)})
    for damaged in (
        flipped,
        b"",
        content[:-9],
        b"x" * 99,
        other,
        save({"weight": torch.zeros(6, dtype=torch.bfloat16)}),
    ):
        file.write_bytes(damaged)
        caplog.clear()
        again = fitted_head(*asked)
        assert "is not the head that was written there; it is fitted again" in caplog.text
        assert torch.equal(again.weight, first.weight)
        assert again.facts == first.facts
        assert file.read_bytes() == content


def test_corruption_error_is_the_mean_of_errors_over_alexnets(train: Split, tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    cells = [(c, s, i) for c in CORRUPTIONS for s in SEVERITIES for i in range(4)]
    targets = rng.integers(0, 6, len(cells))
    rows = CENTRES[targets] + rng.normal(size=(len(cells), 8)) * np.array([s for _, s, _ in cells])[:, None]
    ids = [f"{c}/{s}/{NAMES[t]}/{i}.JPEG" for (c, s, i), t in zip(cells, targets, strict=True)]
    test = split(targets, NAMES, rows, ids)
    outcome = Robustness().run(changed("robustness_c.knn@1", **KNN), train, test, options(tmp_path))
    right = outcome.items["correct/Top-1"]
    errors = {c: np.mean([100 * (1 - right[[k for k, cell in enumerate(cells) if cell[:2] == (c, s)]].mean())
                          for s in SEVERITIES]) for c in CORRUPTIONS}  # fmt: skip
    expected = np.mean([100 * errors[c] / alexnet_errors()[c] for c in CORRUPTIONS])
    assert outcome.scores["mCE"].value == pytest.approx(expected)
    values = outcome.items["pseudo_value/mCE"]
    assert 100 * values.mean() == pytest.approx(expected, rel=1e-5)
    for row in (0, 77, 299):  # what one image more, of the same corruption and severity, would do
        heavier = np.ones(len(cells))
        heavier[row] += 1e-3
        errors = {c: np.mean([100 * np.average(~right[own], weights=heavier[own]) for s in SEVERITIES
                              for own in [[k for k, cell in enumerate(cells) if cell[:2] == (c, s)]]])
                  for c in CORRUPTIONS}  # fmt: skip
        slope = (np.mean([errors[c] / alexnet_errors()[c] for c in CORRUPTIONS]) - expected / 100) / 1e-3
        assert (values[row] - expected / 100) / len(cells) == pytest.approx(slope, rel=1e-2, abs=1e-7)
    assert outcome.per_class["Top-1"][CORRUPTIONS[2]] == pytest.approx(100 - errors[CORRUPTIONS[2]])
    part = split(targets[:-4], NAMES, rows[:-4], list(test.labels.ids[:-4]))
    outcome = Robustness().run(changed("robustness_c.knn@1", **KNN), train, part, options(tmp_path))
    assert outcome.scores["mCE"].value is None
    assert outcome.scores["Top-1"].value is not None


def test_an_encoders_own_classifier(tmp_path: Path) -> None:
    weight, bias = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6.0)
    torch.save({"conv1.weight": torch.ones(3), "fc.weight": weight, "fc.bias": bias}, tmp_path / "net.pth")
    targets = np.arange(6).repeat(5)
    test = split(targets, NAMES, points(targets, 10))
    task = Robustness(classifier=tmp_path / "net.pth")
    protocol = task.resolve(find_protocol("robustness_val.own@1"))
    assert protocol.params["classifier"]
    outcome = task.run(protocol, test, test, options(tmp_path))
    logits = test.features["embed"] @ weight.numpy().T + bias.numpy()
    assert outcome.items["correct/Top-1"].tolist() == (logits.argmax(1) == targets).tolist()
    with pytest.raises(InputError, match="give its file with --classifier"):
        Robustness().resolve(find_protocol("robustness_val.own@1"))
    with pytest.raises(InputError, match="omit --classifier"):
        task.resolve(find_protocol("robustness_val.knn@1"))
    torch.save({"conv1.weight": torch.ones(3)}, tmp_path / "headless.pth")
    with pytest.raises(InputError, match="no linear classifiers"):
        Robustness(classifier=tmp_path / "headless.pth").resolve(find_protocol("robustness_val.own@1"))


def test_the_head_of_a_linear_classifier_is_read_from_its_file(tmp_path: Path) -> None:
    weight, bias = torch.randn(6, 8, generator=torch.Generator().manual_seed(2)), torch.arange(6.0)
    file = tmp_path / "linear_avgpool.moco@1-0.heads.safetensors"
    for column in ("AvgPool", "Stored", "Logistic"):
        file.write_bytes(save({f"{column}/weight": weight, f"{column}/bias": bias}))
        found = robustness.read_classifier(file)
        assert torch.equal(found[0], weight)
        assert torch.equal(found[1], bias)
    normed = {"AvgPool/weight": weight, "AvgPool/bias": bias, "AvgPool/bn.running_mean": torch.zeros(8)}
    file.write_bytes(save(normed))
    with pytest.raises(InputError, match="the head AvgPool has a batch norm"):
        robustness.read_classifier(file)
    file.write_bytes(save({"Feature5/weight": weight, "Feature5/bias": bias}))  # of pooled maps, not of embed
    with pytest.raises(InputError, match="no linear classifiers"):
        robustness.read_classifier(file)


def test_a_classifier_is_scored_on_every_test_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("benchmarks.__main__._run", lambda sweep, *_, **__: asked.extend(
        question.protocol.id for question in sweep.questions) or 0)  # fmt: skip
    assert main(["robustness", "pixels", str(tmp_path)]) == 2  # no data
    (tmp_path / "imagenet").mkdir()
    assert main(["robustness", "pixels", str(tmp_path), "--classifier", "net.pth"]) == 0
    assert asked == [f"robustness_{name}.own@1" for name in ("val", "real", "v2", "a", "r", "sketch", "objectnet", "c")]
    asked.clear()
    assert main(["robustness", "pixels", str(tmp_path)]) == 0
    assert asked[0] == "robustness_val.logistic@1"
    assert len(asked) == 8


def test_an_encoders_own_classifier_of_1000_classes_scores_a_subset_by_its_rule(tmp_path: Path) -> None:
    weight, bias = torch.randn(1000, 8, generator=torch.Generator().manual_seed(1)), torch.zeros(1000)
    torch.save({"head.weight": weight, "head.bias": bias}, tmp_path / "net.pth")
    own, every = classes_of("imagenet-a"), wordnet_ids()
    targets = np.random.default_rng(12).integers(0, 200, 60)
    place = [every.index(name) for name in own]
    rows = 0.5 * weight.numpy()[np.array(place)[targets]] + np.random.default_rng(13).normal(size=(60, 8))
    test = split(targets, own, rows)
    task = Robustness(classifier=tmp_path / "net.pth")
    outcome = task.run(task.resolve(find_protocol("robustness_a.own@1")), test, test, options(tmp_path))
    logits = rows.astype(np.float32) @ weight.numpy().T
    expected = [max(range(200), key=lambda c: row[place[c]]) == target
                for row, target in zip(logits, targets, strict=True)]  # fmt: skip
    assert outcome.items["correct/Top-1"].tolist() == expected
    assert 0 < sum(expected) < 60


def test_refusals(train: Split) -> None:
    foreign = split(np.zeros(2, np.int64), ("n99999999",), np.ones((2, 8)))
    with pytest.raises(InputError, match="lacks 1 classes"):
        Robustness().check(find_protocol("robustness_a.knn@1"), train.labels, foreign.labels)
    with pytest.raises(InputError, match="needs k=500 neighbours, but train has 120"):
        Robustness().check(changed("robustness_val.knn@1", k=500), train.labels, train.labels)


def test_images_of_c_and_objectnet_have_a_geometry_of_their_own() -> None:
    of = {p.id: p for p in PROTOCOLS}
    assert of["robustness_c.logistic@1"].test_geometry.resize == 0
    assert of["robustness_objectnet.logistic@1"].test_geometry.border == 2
    assert len({p.geometry.model_dump_json() for p in PROTOCOLS if p.variant == "logistic"}) == 1
    smaller = of["robustness_c.logistic@1"].changed(geometry={"crop": 192, "resize": 200})
    assert (smaller.test_geometry.crop, smaller.test_geometry.resize) == (192, 0)
    assert all(isinstance(Robustness().params(p), RobustnessParams) for p in PROTOCOLS)


@pytest.mark.slow
def test_the_suite_runs_on_the_embedded_data(small_data: Path, tmp_path: Path) -> None:
    where = ["--out", str(tmp_path / "records"), "--features", str(tmp_path / "features"), "--workers", "0"]
    assert main(["robustness", "random:resnet18-w8-k3-nopool:0", str(small_data), *where]) == 0
    found = {s.record.protocol.id: s.record for s in current(read_records(tmp_path / "records")[0])[0]}
    assert set(found) == {"robustness_val.demo@1", "robustness_c.demo@1"}
    clean, corrupted = (found[f"robustness_{name}.demo@1"] for name in ("val", "c"))
    assert corrupted.per_class["Top-1"].keys() == {"gaussian_noise", "contrast", "pixelate", "jpeg_compression"}
    assert corrupted.dataset.train_items == clean.dataset.train_items
    assert len(list((tmp_path / "features").glob("*/meta.json"))) == 3  # train once
    assert len(list((tmp_path / "heads").glob("robustness-*"))) == 1

"""From two splits to an outcome: scores, per-item hits, self-matches, and one clear sentence for what cannot work."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from benchmarks.knn import PROTOCOLS, Knn, KnnParams
from benchmarks.solvers.exact_knn import exact_knn
from benchmarks.solvers.sharded_knn import knn_in_parts
from benchmarks.task import InputError, Labels, RunOptions, Split, log_once
from tests.builders import bare_labels
from tests.processes import run_two_ranks
from tests.reference.knn_plain import neighbours, ranking

VARIANT = {protocol.variant: protocol for protocol in PROTOCOLS}
MMSELFSUP, DINO, VISSL, DEMO = (VARIANT[name] for name in ("mmselfsup", "dino", "vissl", "demo"))
CIFAR_NOTEBOOK = VARIANT["cifar_notebook"]
QUIET = RunOptions(device="cpu", progress=False)
CLASSES = ("bird", "boat", "car", "dog", "house", "plane", "tree")


def split(prefix, n, *, seed, dim=16, output="embed", classes=CLASSES):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, len(classes), n)
    centres = np.random.default_rng(7).standard_normal((len(classes), dim))
    features = (centres[targets] + 1.5 * rng.standard_normal((n, dim))).astype(np.float32)
    return Split(bare_labels(targets, classes, part=prefix), {output: features})


def small(k=(3, 10), **changes):
    return DEMO.changed(k=k, **changes)


@pytest.mark.parametrize("engine", ["torch", "faiss"])
def test_equals_the_plain_version(engine):
    train, test = split("a", 90, seed=0), split("b", 31, seed=1)
    outcome = Knn(engine=engine).run(small(), train, test, QUIET)
    assert list(outcome.scores) == ["k=3", "k=10", "k=3 top-5", "k=10 top-5"]
    for k in (3, 10):
        hits = []
        for query, target in zip(test.features["embed"], test.labels.targets, strict=True):
            rows, similarities, _ = neighbours(train.features["embed"], query, k)
            by_row = dict(zip(rows, train.labels.targets[rows], strict=True))
            order = ranking(rows, similarities, by_row, 0.07)
            hits.append((target in order[:1], target in order[:5]))
        for column, expected in zip((f"k={k}", f"k={k} top-5"), np.array(hits).T, strict=True):
            np.testing.assert_array_equal(outcome.items[f"correct/{column}"], expected)
            assert outcome.scores[column].value == pytest.approx(100 * expected.mean())
            assert outcome.scores[column].n == 31


def test_images_that_both_splits_have_are_said(caplog):
    """Such a result says nothing of the encoder; single ones are usual."""
    train, test = split("a", 90, seed=0), split("b", 40, seed=1)
    for copies in (3, 4):
        features = test.features["embed"].copy()
        features[5 : 5 + copies] = 2 * train.features["embed"][7 : 7 + copies] * np.float32(1 + 1e-7)
        caplog.clear()
        Knn().run(small(), train, Split(test.labels, {"embed": features}), QUIET)
        said = "4 of 40 test images have the same features as a training image: the splits share images" in caplog.text
        assert said == (copies == 4)
    itself = small(exclude_self=True)
    caplog.clear()
    Knn().run(itself, train, train, QUIET)
    assert "same features" not in caplog.text


def test_cosine_ignores_length_and_the_dot_product_does_not():
    train, test = split("a", 90, seed=0), split("b", 31, seed=1)
    lengths = np.random.default_rng(2).uniform(0.1, 10, (90, 1)).astype(np.float32)
    longer = Split(train.labels, {"embed": train.features["embed"] * lengths})
    scores = [
        [s.value for s in Knn().run(protocol, data, test, QUIET).scores.values()]
        for protocol in (small(), small(normalise=False))
        for data in (train, longer)
    ]
    assert scores[0] == scores[1]
    assert scores[2] != scores[3]


def test_dot_product_equals_the_plain_version():
    train, test = split("a", 90, seed=0, output="head"), split("b", 31, seed=1, output="head")
    outcome = Knn().run(VISSL.changed(k=(12,)), train, test, QUIET)
    expected = []
    for query, target in zip(test.features["head"], test.labels.targets, strict=True):
        rows, similarities, _ = neighbours(train.features["head"], query, 12, normalise=False)
        votes = dict(zip(rows, train.labels.targets[rows], strict=True))
        expected.append(ranking(rows, similarities, votes, 0.1)[0] == target)
    np.testing.assert_array_equal(outcome.items["correct/k=12"], expected)


def test_classes_are_matched_by_name():
    train, test = split("a", 90, seed=0), split("b", 31, seed=1)
    order = np.random.default_rng(3).permutation(len(CLASSES))
    shuffled = replace(
        test.labels, classes=tuple(CLASSES[i] for i in order), targets=np.argsort(order)[test.labels.targets]
    )
    same = Knn().run(small(), train, Split(shuffled, test.features), QUIET)
    assert same.scores == Knn().run(small(), train, test, QUIET).scores


def test_own_image_is_no_neighbour():
    data = split("a", 60, seed=4)
    noise = np.random.default_rng(5)
    data = Split(replace(data.labels, targets=noise.integers(0, 7, 60)), data.features)  # labels that mean nothing
    outcome = Knn().run(small(k=(1,)), data, data, QUIET)
    assert outcome.runs[0]["self_matches_excluded"] == 60
    assert outcome.scores["k=1"].value < 50
    assert Knn().run(small(k=(1,), exclude_self=False), data, data, QUIET).scores["k=1"].value == 100
    elsewhere = replace(data.labels, paths=[Path("elsewhere", path) for path in data.labels.paths])
    others = Knn().run(small(k=(1,)), data, Split(elsewhere, data.features), QUIET)
    assert others.runs[0]["self_matches_excluded"] == 0  # other files under the same ids


def test_the_same_id_in_another_file_is_another_image():
    """CIFAR numbers both of its splits from zero."""
    data = split("a", 60, seed=4)
    elsewhere = replace(data.labels, paths=tuple(Path("test") / p for p in data.labels.paths))
    outcome = Knn().run(small(k=(1,)), data, Split(elsewhere, data.features), QUIET)
    assert outcome.runs[0]["self_matches_excluded"] == 0


def test_partial_overlap_excludes_only_the_shared():
    data, other = split("a", 60, seed=4), split("b", 10, seed=5)
    labels = Labels(
        data.labels.ids[20:30] + other.labels.ids,
        data.labels.paths[20:30] + other.labels.paths,
        CLASSES,
        np.concatenate([data.labels.targets[20:30], other.labels.targets]),
        data.labels.groups[20:30] + other.labels.groups,
    )
    both = Split(labels, {"embed": np.concatenate([data.features["embed"][20:30], other.features["embed"]])})
    outcome = Knn().run(small(k=(59,)), data, both, QUIET)
    assert outcome.runs[0]["self_matches_excluded"] == 10
    with pytest.raises(InputError, match="only 59 images to choose from: use k up to 59"):
        Knn().run(small(k=(60,)), data, both, QUIET)


def test_record_names_engine_and_fallbacks():
    outcome = Knn(engine="faiss").run(small(), split("a", 60, seed=0), split("b", 9, seed=1), QUIET)
    assert outcome.runs == [
        {"engine": "faiss float32", "fallbacks_float32": 0, "fallbacks_float64": 0, "self_matches_excluded": 0}
    ]
    assert outcome.timing.keys() == {"search", "vote"}


def broken(fault):
    train, test = split("a", 40, seed=0), split("b", 9, seed=1)
    features = test.features["embed"].copy()
    if fault == "empty train":
        train = split("a", 0, seed=0)
    elif fault == "empty test":
        test = split("b", 0, seed=0)
    elif fault == "classes":
        test = split("b", 9, seed=1, classes=(*CLASSES[:-1], "zebra"))
    elif fault == "multi-label":
        test = Split(replace(test.labels, targets=np.zeros((9, 7), np.int8)), test.features)
    elif fault == "width":
        test = split("b", 9, seed=1, dim=8)
    elif fault == "rows":
        test = Split(test.labels, {"embed": features[:-1]})
    elif fault == "output":
        test = Split(test.labels, {"head": features})
    else:
        features[[2, 5]] = {"nan": np.nan, "inf": np.inf, "zero": 0, "tiny": 1e-43, "huge": 3e38}[fault]
        test = Split(test.labels, {"embed": features})
    return train, test


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("empty train", "the train split is empty"),
        ("empty test", "the test split is empty"),
        ("classes", r"classes that the train split lacks \(zebra\)"),
        ("multi-label", "the test split has several labels per image"),
        ("width", "embed has 16 columns in the train split and 8 in the test split"),
        ("rows", r"embed of the test split has shape \(8, 16\) for 9 images"),
        ("output", r"the test split has no 'embed' features \(it has head\)"),
        ("nan", r"NaN or infinite for 2 of 9 images \(b/2, b/5\)"),
        ("inf", r"NaN or infinite for 2 of 9 images \(b/2, b/5\)"),
        ("huge", r"NaN or infinite for 2 of 9 images \(b/2, b/5\)"),
        ("zero", r"all-zero for 2 of 9 images \(b/2, b/5\)"),
        ("tiny", r"all-zero for 2 of 9 images \(b/2, b/5\)"),
    ],
)
def test_refuses_in_one_sentence(fault, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        Knn().run(small(), *broken(fault), QUIET)
    assert "\n" not in str(caught.value)


def test_refuses_more_neighbours_than_images():
    with pytest.raises(InputError, match=r"knn.demo@1 asks for k=200, but the gallery has only 40 images"):
        Knn().run(DEMO, split("a", 40, seed=0), split("b", 9, seed=1), QUIET)


def test_an_image_folder_leaves_out_the_k_above_its_gallery_and_says_so(caplog):
    folder, task = VARIANT["imagefolder"], Knn()
    train, test = split("a", 40, seed=0).labels, split("b", 9, seed=1).labels
    fitting = tuple(k for k in folder.params["k"] if k <= 40)
    assert 0 < len(fitting) < len(folder.params["k"])
    log_once.cache_clear()
    with caplog.at_level("INFO"):
        adapted = task.adapted(folder, train, test)
    assert adapted.params["k"] == fitting
    assert f"the gallery has 40 images: k = {', '.join(map(str, fitting))} instead of" in caplog.text
    task.check(adapted, train, test)
    for asked in (DEMO, folder.changed(k=(41,))):  # a published protocol, and what the user says, stay as they are
        assert task.adapted(asked, train, test) == asked
        with pytest.raises(InputError, match=r"the gallery has only 40 images .*use k up to 40"):
            task.check(asked, train, test)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"k": (0, 5)}, r"k=\(0, 5\)"),
        ({"k": (5, 5)}, "without repeats"),
        ({"k": ()}, r"k=\(\)"),
        ({"temperature": 0.0}, "temperature=0.0: Input should be greater than 0"),
        ({"temperature": "warm"}, "temperature='warm'"),
    ],
)
def test_refuses_parameters_that_mean_nothing(changes, sentence):
    with pytest.raises(InputError, match=sentence):
        DEMO.changed(**changes)


def test_an_engine_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr("benchmarks.knn.find_spec", lambda _: None)
    with pytest.raises(InputError, match="install faiss-cpu, or use --engine torch"):
        Knn(engine="faiss")


def test_protocols_say_what_their_columns_are():
    assert len({p.id for p in PROTOCOLS}) == len(PROTOCOLS) == 7
    for protocol in PROTOCOLS:
        params = KnnParams.model_validate(protocol.params)
        assert protocol.columns[: len(params.k)] == tuple(f"k={k}" for k in params.k)
        assert protocol.harness == protocol.benchmark == "knn"


def test_published_numbers_of_the_protocols():
    for protocol in (MMSELFSUP, DINO):
        assert protocol.params["k"] == (10, 20, 100, 200)
        assert protocol.params["temperature"] == 0.07
        assert (protocol.geometry.resize, protocol.geometry.crop) == (256, 224)
    assert (MMSELFSUP.geometry.interpolation, DINO.geometry.interpolation) == ("bilinear", "bicubic")
    assert (VISSL.params["temperature"], VISSL.params["normalise"], VISSL.params["features"]) == (0.1, False, "head")
    assert (CIFAR_NOTEBOOK.params["k"], CIFAR_NOTEBOOK.params["temperature"]) == ((200,), 0.1)
    assert CIFAR_NOTEBOOK.columns == ("k=200",)


# Gallery rows, queries, k, and settings. Two ranks have 45 rows each, and in `few` 4 and 3.
SEARCHES = {
    "cosine": (90, 31, 20, {}),
    "dot product": (90, 31, 20, {"normalise": False}),
    "own rows": (90, 31, 50, {"excluded": np.where(np.arange(31) % 3, np.arange(31) * 2, -1)}),
    "few": (7, 5, 6, {"excluded": np.array([0, 6, -1, 3, 4])}),
    "one row": (1, 5, 1, {}),
}


def search_case(name, solver):
    """Rows of which half occur twice, on the two halves of the gallery: ties across the ranks."""
    size, asked, k, settings = SEARCHES[name]
    distinct = np.random.default_rng(3).standard_normal((-(-size // 2), 16)).astype(np.float32)
    gallery = np.concatenate([distinct, distinct[: size // 4], -distinct[:size]])[:size]
    queries = np.random.default_rng(4).standard_normal((asked, 16)).astype(np.float32)
    return solver(gallery, queries, k, engine="torch", **settings)


@pytest.mark.parametrize(("cuts", "k"), [((3, 3, 44), 20), ((40,), 90), ((), 1)])
def test_a_gallery_in_parts_has_the_neighbours_of_the_whole_to_the_bit(cuts, k):
    distinct = np.random.default_rng(3).standard_normal((45, 16)).astype(np.float32)
    gallery, queries = np.concatenate([distinct, distinct]), distinct[:31] + 1
    edges = [0, *cuts, 90]
    parts = [(first, gallery[first:last]) for first, last in pairwise(edges)]
    found = knn_in_parts(reversed(parts), queries, k, engine="torch")
    whole = exact_knn(gallery, queries, k, engine="torch")
    np.testing.assert_array_equal(found.indices, whole.indices)
    np.testing.assert_array_equal(found.similarities, whole.similarities)
    with pytest.raises(ValueError, match="k=91 with 90 gallery rows"):
        knn_in_parts(parts, queries, 91)
    assert knn_in_parts(iter(parts), queries[:0], k).indices.shape[0] == 0


RANK = """
import sys, numpy as np, torch
sys.path.insert(0, sys.argv[1])
from test_knn import Knn, QUIET, SEARCHES, search_case, small, split
from benchmarks.solvers import exact_knn, sharded_knn
read, search = [], sharded_knn.search
def noting(gallery, *arguments):
    read.append(len(gallery))
    return search(gallery, *arguments)
sharded_knn.search, sharded_knn.MERGE_CELLS = noting, 2 * 10 * 7  # merged seven queries at a time
outcome = Knn().run(small(), split("a", 91, seed=0), split("b", 31, seed=1), QUIET)
items = {name.replace("/", " "): hits for name, hits in outcome.items.items()}
for name in SEARCHES:
    found = search_case(name, sharded_knn.sharded_knn)
    items |= {name: found.indices, f"{name}, similarities": found.similarities}
np.savez(f"{sys.argv[2]}/{torch.distributed.get_rank()}.npz", read=read, **items)
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_ranks_share_the_gallery_and_have_the_result_of_one_to_the_bit(tmp_path):
    run_two_ranks(RANK, str(Path(__file__).parent), str(tmp_path))
    expected = Knn().run(small(), split("a", 91, seed=0), split("b", 31, seed=1), QUIET)
    alone = {name: search_case(name, exact_knn) for name in SEARCHES}
    for rank, rows in (("0", [46, 45, 45, 45, 4, 1]), ("1", [45, 45, 45, 45, 3])):
        found = np.load(tmp_path / f"{rank}.npz")
        assert found["read"].tolist() == rows
        for name, hits in expected.items.items():
            np.testing.assert_array_equal(found[name.replace("/", " ")], hits)
        for name, single in alone.items():
            np.testing.assert_array_equal(found[name], single.indices, name)
            np.testing.assert_array_equal(found[f"{name}, similarities"], single.similarities, name)

"""kNN, retrieval, logistic regression and cached heads on patches, against plain versions on small random features."""

from __future__ import annotations

from collections import Counter
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from benchmarks.dense.classifiers import (
    CachedLinear,
    CachedLinearParams,
    PatchLogistic,
    PatchLogisticParams,
    _batches,
    class_shares,
    fitted_labels,
    train_bank,
)
from benchmarks.dense.linear import HeadParams
from benchmarks.dense.masks import (
    VOID,
    MaskFormat,
    areas_of_confusions,
    best_class,
    held_out_images,
    matched,
    mean_iou,
)
from benchmarks.dense.neighbours import (
    InContext,
    PatchKnn,
    nearest,
    sampled,
    soft_labels,
    upsampled,
    votes,
    weighted_labels,
)
from benchmarks.dense.patches import MEAN, Patches, Standardised, masks_of
from benchmarks.registry import find_protocol
from benchmarks.task import FeatureTask, InputError, Labels, RunOptions, Split
from results.schema import Protocol

OPTIONS = RunOptions(device="cpu", progress=False)
GRID, SIDE, CHANNELS, CLASSES = 3, 12, 5, ("background", "a", "b")


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Split, Split]:
    """Features that say something about the masks: 8 training and 5 test images in ADE20K's numbers."""
    folder = tmp_path_factory.mktemp("patches")
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, CHANNELS))
    found = []
    for name, count in (("train", 8), ("test", 5)):
        coarse = rng.integers(0, 4, (count, GRID, GRID))
        masks = coarse.repeat(SIDE // GRID, 1).repeat(SIDE // GRID, 2)
        flips = rng.random(masks.shape) < 0.2
        masks[flips] = rng.integers(0, 4, int(flips.sum()))
        rows = centres[coarse] + 0.7 * rng.normal(size=(count, GRID, GRID, CHANNELS))
        ids = tuple(f"{name}{number}" for number in range(count))
        for id, mask in zip(ids, masks, strict=True):
            Image.fromarray(mask.astype(np.uint8)).save(folder / f"{id}.png")
            Image.new("RGB", (SIDE, SIDE)).save(folder / f"{id}.jpg")
        labels = Labels(
            ids, [folder / f"{id}.jpg" for id in ids], CLASSES, np.zeros((count, 0), np.int8),
            tuple((id,) for id in ids), tuple(folder / f"{id}.png" for id in ids),
        )  # fmt: skip
        flat = rows.reshape(count, -1).astype(np.float32)
        found.append(Split(labels, {"patches": flat, f"patches{MEAN}": rows.mean((1, 2)).astype(np.float32)}))
    return found[0], found[1]


def small(task: FeatureTask[Any], **params: Any) -> Protocol:
    return find_protocol(task.protocols[-1].id).changed(geometry={"crop": SIDE}, heldout=0.25, **params)


def truth(split: Split) -> np.ndarray:
    return np.stack([np.asarray(Image.open(file)) for file in split.labels.annotations])


def plain_iou(predicted: np.ndarray, masks: np.ndarray) -> float:
    counted = masks != 0
    p, t = predicted[counted], masks[counted]
    values = sorted(set(p.tolist()) | set(t.tolist()))
    return 100 * float(np.mean([((p == v) & (t == v)).sum() / ((p == v) | (t == v)).sum() for v in values]))


def plain_knn(gallery: np.ndarray, blocks: np.ndarray, queries: np.ndarray, k: int, distance: str) -> np.ndarray:
    """CAPI's classifier, one patch and one pixel at a time."""
    out = []
    for query in queries:
        if distance == "L2":
            far = ((gallery - query) ** 2).sum(1)
        else:
            far = 1 - gallery @ query / np.linalg.norm(gallery, axis=1) / np.linalg.norm(query)
        near = blocks[np.argsort(far, kind="stable")[:k]]
        counted = [Counter(near[:, pixel].tolist()) for pixel in range(near.shape[1])]
        out.append([min(c, key=lambda v: (-c[v], v)) for c in counted])
    return np.array(out, np.uint8)


def test_knn_is_capis_classifier(splits: tuple[Split, Split]) -> None:
    train, test = splits
    task = PatchKnn()
    protocol = small(task, k=(1, 3, 5))
    outcome = task.run(protocol, train, test, OPTIONS)
    kept, held = held_out_images(8, 0.25, 0)
    rows = train.features["patches"].reshape(8, GRID**2, CHANNELS).astype(np.float64)
    scaler = StandardScaler().fit(rows[kept].reshape(-1, CHANNELS))
    patches = Patches.of(train, protocol, 16)
    blocks = patches.blocks.reshape(8, GRID**2, -1)
    mode_is_ignored = patches.modes.reshape(8, GRID**2) == 0
    scaled = scaler.transform(rows.reshape(-1, CHANNELS)).reshape(rows.shape)
    asked = scaler.transform(test.features["patches"].reshape(-1, CHANNELS).astype(np.float64))
    for row in outcome.runs:
        how = row["k"], row["distance"]
        use = ~mode_is_ignored[kept]
        chosen = plain_knn(scaled[kept][use], blocks[kept][use], scaled[held].reshape(-1, CHANNELS), *how)
        assert row["heldout_mIoU"] == pytest.approx(plain_iou(masks_of(chosen, GRID), truth(train)[held]))
        on_test = plain_knn(scaled[~mode_is_ignored], blocks[~mode_is_ignored], asked, *how)
        assert row["mIoU"] == pytest.approx(plain_iou(masks_of(on_test, GRID), truth(test)))
    (row,) = [row for row in outcome.runs if row["chosen"]]
    assert row["heldout_mIoU"] == max(each["heldout_mIoU"] for each in outcome.runs)
    assert outcome.scores["mIoU"].value == row["mIoU"]
    assert outcome.scores["mIoU oracle"].value == max(each["mIoU"] for each in outcome.runs)
    assert outcome.items["iou/mIoU"].shape[:2] == (5, 3)
    assert outcome.pictures["masks"].startswith(b"\x89PNG")
    with pytest.raises(InputError, match="asks for k=200"):
        task.run(small(task, k=(200,)), train, test, OPTIONS)


def test_nearest_by_distance_and_votes_with_ties() -> None:
    rng = np.random.default_rng(1)
    rows, queries = (rng.normal(3, 1, (n, 7)).astype(np.float32) for n in (60, 20))
    found = nearest(rows, queries, 5, "L2", OPTIONS, "x")
    far = ((rows[None].astype(np.float64) - queries[:, None]) ** 2).sum(2)
    assert np.array_equal(found, np.argsort(far, axis=1)[:, :5])
    blocks = np.array([[7, 2], [3, 2], [7, 9], [3, 255]], np.uint8)
    voted = votes(blocks, np.array([[0, 1, 2, 3]]), (1, 2, 4), "cpu")
    assert {k: v.tolist() for k, v in voted.items()} == {1: [[7, 2]], 2: [[3, 2]], 4: [[3, 2]]}


def test_retrieval_is_a_softmax_over_the_nearest_patches(splits: tuple[Split, Split]) -> None:
    train, test = splits
    task = InContext()
    outcome = task.run(small(task, k=4, memory=(0, 24)), train, test, OPTIONS)
    gallery = train.features["patches"].reshape(-1, CHANNELS).astype(np.float64)
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    patches = Patches.of(train, small(task), 16)
    labels = np.stack([(patches.blocks == value).mean(1) for value in range(4)], 1)
    maps = []
    for query in test.features["patches"].reshape(-1, CHANNELS).astype(np.float64):
        cosine = gallery @ (query / np.linalg.norm(query))
        near = np.argsort(-cosine)[:4]
        weights = np.exp(cosine[near] / 0.02)
        maps.append(weights @ labels[near] / weights.sum())
    scores = torch.tensor(np.array(maps)).view(5, GRID, GRID, 4).permute(0, 3, 1, 2)
    masks = F.interpolate(scores, (SIDE, SIDE), mode="bilinear").argmax(1).numpy()
    counted = truth(test) != 0
    p, t = masks[counted], truth(test)[counted]
    each = [((p == v) & (t == v)).sum() / max(1, ((p == v) | (t == v)).sum()) for v in range(4)]
    assert outcome.scores["mIoU"].value == pytest.approx(100 * np.mean(each))
    assert str(outcome.items["iou_rule"]) == "every"  # a class that is nowhere counts 0, also in the bootstrap
    assert outcome.scores["mIoU matched"].value is not None
    assert outcome.scores["mIoU matched"].value >= outcome.scores["mIoU"].value - 1e-9
    assert [row["memory"] for row in outcome.runs] == [72, 24]
    with pytest.raises(InputError, match="asks for k=200"):
        task.run(small(task, k=200), train, test, OPTIONS)


def test_a_small_memory_prefers_patches_with_rare_classes() -> None:
    blocks = np.array([[0, 0], [0, 0], [0, 1], [0, 0], [VOID, 0], [2, 2]], np.uint8)
    labels = soft_labels(blocks, 3)
    assert labels[2].tolist() == [0.5, 0.5, 0]
    assert labels[4].tolist() == [1, 0, 0]  # void is class 0
    taken = [sampled(labels, 6, 1, np.random.default_rng(seed))[0] for seed in range(300)]
    share = np.bincount(taken, minlength=6) / 300
    assert share[5] > 0.5 > 0.2 > share[0]  # its class is in one patch; class 0 is in five
    assert sampled(np.tile(labels, (2, 1)), 6, 2, np.random.default_rng(0)).shape == (4,)
    assert weighted_labels(np.array([[1.0, 1.0]]), labels, np.array([[2, 5]]), 0.02).tolist() == [[0.25, 0.25, 0.5]]


def test_logistic_regression_is_scikit_learns(splits: tuple[Split, Split]) -> None:
    train, test = splits
    patches = Patches.of(train, small(PatchLogistic()), 16)
    rows = Standardised(patches.rows, np.arange(len(patches.rows)))(patches.rows)
    assert rows == pytest.approx(StandardScaler().fit_transform(patches.rows), abs=1e-5)
    items = np.flatnonzero(patches.modes != 0)
    params = PatchLogisticParams(costs=(0.01, 1.0))
    found = fitted_labels(rows, items, patches.modes, rows, params, OPTIONS, "x")
    for labels, cost in zip(found, params.costs, strict=True):
        reference = LogisticRegression(C=cost, max_iter=5000, tol=1e-8).fit(rows[items], patches.modes[items])
        assert np.array_equal(labels, reference.predict(rows))
    outcome = PatchLogistic().run(small(PatchLogistic()), train, test, OPTIONS)
    assert {"mIoU", "mIoU oracle", "accuracy"} == set(outcome.scores)
    assert sum(row["chosen"] for row in outcome.runs) == 1
    with pytest.raises(InputError, match="fewer than two classes"):
        fitted_labels(rows, items[:1], patches.modes, rows, params, OPTIONS, "x")


def test_a_bank_of_heads_is_as_many_heads_alone() -> None:
    """Against torch's own batch norm, linear layer and AdamW, one rate at a time."""
    rng = np.random.default_rng(2)
    rows = rng.normal(1, 2, (90, 6)).astype(np.float32)
    shares = rng.dirichlet((1, 1, 1), 90).astype(np.float32)
    shares[::9] = 0  # patches without a class do not count
    params = CachedLinearParams(rates=(1e-3, 1e-2), decay=0.1, epochs=3, batch_size=32)
    bank = train_bank(rows, np.arange(80), shares, params, 0, "cpu", show=False)
    items = np.flatnonzero(shares[:80].any(1))
    steps = params.epochs * -(-len(items) // 32)
    schedule = HeadParams(rates=params.rates, decay=0.1, warmup=0, schedule="cosine", iterations=steps, batch_size=32)
    for head, rate in enumerate(params.rates):
        model = torch.nn.Sequential(torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 3))
        torch.nn.init.zeros_(model[1].bias)
        model[1].weight.data.normal_(0, 0.01, generator=torch.Generator().manual_seed(0))
        optimiser = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.1)
        step = 0
        for epoch in range(params.epochs):
            order = np.random.default_rng((0, epoch)).permutation(items)
            for start in range(0, len(order), 32):
                batch = np.sort(order[start : start + 32])
                optimiser.param_groups[0]["lr"] = rate * schedule.rate_factor(step)
                log_p = model(torch.from_numpy(rows[batch])).log_softmax(1)
                optimiser.zero_grad()
                (-(log_p * torch.from_numpy(shares[batch])).sum(1).mean()).backward()
                optimiser.step()
                step += 1
        with torch.no_grad():
            expected = model.eval()(torch.from_numpy(rows))
            assert torch.allclose(bank(torch.from_numpy(rows))[:, head], expected, atol=2e-5)


def test_cached_heads_are_measured_at_the_size_of_the_masks(splits: tuple[Split, Split]) -> None:
    train, test = splits
    task = CachedLinear()
    protocol = small(task, epochs=30, batch_size=16, rates=(1e-5, 1e-2))
    outcome = task.run(protocol, train, test, OPTIONS)
    assert [row["chosen"] for row in outcome.runs] == [False, True]
    weight, bias = outcome.tensors["weight"], outcome.tensors["bias"]
    x = (torch.from_numpy(test.features["patches"].reshape(-1, CHANNELS)) - outcome.tensors["bn.running_mean"]) / (
        outcome.tensors["bn.running_var"] + 1e-5
    ).sqrt()
    scores = F.linear(x * outcome.tensors["bn.weight"] + outcome.tensors["bn.bias"], weight, bias)
    maps = scores.view(5, GRID, GRID, 3).permute(0, 3, 1, 2)
    predicted = F.interpolate(maps, (SIDE, SIDE), mode="bilinear").argmax(1).numpy() + 1
    assert outcome.scores["mIoU"].value == pytest.approx(plain_iou(predicted, truth(test)))
    assert outcome.scores["mIoU"].value > 40


def test_upsampling_takes_the_first_of_equal_classes() -> None:
    maps = torch.randn(3, 6, 5, 4)
    assert torch.equal(best_class(maps), maps.argmax(1))
    assert best_class(torch.zeros(1, 3, 2, 2)).tolist() == [[[0, 0], [0, 0]]]
    scores = np.random.default_rng(3).normal(size=(2 * 9, 4)).astype(np.float32)
    expected = F.interpolate(torch.from_numpy(scores).view(2, 3, 3, 4).permute(0, 3, 1, 2), (7, 8), mode="bilinear")
    assert np.array_equal(upsampled(scores, 3, (7, 8), "cpu"), expected.argmax(1).numpy())


def test_an_unsuitable_map_is_refused(splits: tuple[Split, Split]) -> None:
    train, test = splits
    with pytest.raises(InputError, match=r"geometry.crop=9"):
        PatchKnn().run(small(PatchKnn()).changed(geometry={"crop": 10}), train, test, OPTIONS)
    coarse = Split(train.labels, {f"feature5{end}": train.features[f"patches{end}"] for end in ("", MEAN)})
    with pytest.raises(InputError, match=r"needs a feature map of stride 2 or finer"):
        PatchKnn().run(small(PatchKnn(), stride=2), coarse, test, OPTIONS)
    bare = Labels(train.labels.ids, train.labels.paths, (), train.labels.targets, train.labels.groups)
    with pytest.raises(InputError, match="needs a mask of classes for each image"):
        PatchKnn().check(small(PatchKnn()), bare, bare)
    with pytest.raises(InputError, match="has no images"):
        PatchKnn().check(small(PatchKnn()), train.labels.rows([]), test.labels)
    assert Path(train.labels.annotations[0]).is_file()


def test_shares_are_of_all_pixels_of_a_patch_and_ignored_ones_belong_to_no_class() -> None:
    style = MaskFormat(CLASSES, 1, (0, VOID), np.arange(256, dtype=np.int16))
    blocks = np.array([[1, 1, 3, 0], [2, 2, 2, 2], [0, VOID, VOID, 0]], np.uint8)
    found = class_shares(SimpleNamespace(style=style, blocks=blocks))  # type: ignore[arg-type]
    assert found.tolist() == [[0.5, 0, 0.25], [0, 1, 0], [0, 0, 0]]


def test_an_epoch_of_patches_is_shuffled_and_leaves_out_a_batch_of_one() -> None:
    params = CachedLinearParams(batch_size=2, epochs=2)
    batches = [batch.tolist() for batch in _batches(np.arange(10, 15), params, 0)]
    assert [len(batch) for batch in batches] == [2] * 4
    epochs = [batches[0] + batches[1], batches[2] + batches[3]]
    assert epochs[0] != epochs[1]
    for rows in epochs:
        assert len(set(rows)) == 4
        assert set(rows) <= set(range(10, 15))
        assert rows != sorted(rows)
    assert [batch.tolist() for batch in _batches(np.array([7]), params, 0)] == [[7], [7]]  # but not the only one


def test_the_deepest_map_of_the_stride_is_taken(splits: tuple[Split, Split]) -> None:
    protocol = small(PatchKnn())
    features = {}
    for name, grid, channels in (("feature5", 3, 4), ("feature4", 6, 2)):
        features[name] = np.zeros((8, grid * grid * channels), np.float32)
        features[name + MEAN] = np.zeros((8, channels), np.float32)
    split = Split(splits[0].labels, features)
    assert protocol.geometry.crop == SIDE
    assert [Patches.of(split, protocol, stride).output for stride in (4, 3, 2)] == ["feature5", "feature4", "feature4"]
    with pytest.raises(InputError, match="needs a feature map of stride 1 or finer, but the encoder has 3 x 3, 6 x 6"):
        Patches.of(split, protocol, 1)


def test_a_class_that_no_patch_of_the_memory_shows_counts_zero() -> None:
    confusion = np.array([[[3, 1, 0], [0, 4, 0], [0, 0, 0]]])
    areas = areas_of_confusions(confusion)
    assert areas.tolist() == [[[3, 4, 0], [3, 5, 0], [4, 4, 0]]]
    assert mean_iou(areas, "every") == pytest.approx(100 * (3 / 4 + 4 / 5) / 3)
    assert mean_iou(areas, "present") == pytest.approx(100 * (3 / 4 + 4 / 5) / 2)


def test_predicted_classes_are_matched_by_intersection_over_union() -> None:
    """By the overlap alone they would be matched otherwise."""
    confusion = np.array([[[9, 20, 7], [0, 21, 18], [1, 2, 11]], [[0, 6, 0], [6, 0, 0], [0, 0, 0]]])
    total = confusion.sum(0)

    def overlap(order: tuple[int, ...]) -> float:
        return sum(total[t, p] / (total[t].sum() + total[:, p].sum() - total[t, p]) for t, p in enumerate(order))

    for rolled in (confusion, confusion[:, :, [2, 0, 1]], confusion[:, :, [1, 2, 0]]):
        total = rolled.sum(0)
        best = max(permutations(range(3)), key=overlap)
        assert best != max(permutations(range(3)), key=lambda order: sum(total[t, p] for t, p in enumerate(order)))
        assert matched(rolled).tolist() == rolled[:, :, best].tolist()

"""Retrieval: average precision against a plain evaluation, hostile pickles, and end to end."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks import retrieval
from benchmarks.__main__ import main
from benchmarks.datasets.registry import find_dataset
from benchmarks.datasets.retrieval import Answers, read_ground_truth
from benchmarks.encoders.load import load_encoder
from benchmarks.evaluate import evaluate
from benchmarks.registry import find_protocol
from benchmarks.retrieval import Retrieval, descriptors, levels, whitening
from benchmarks.solvers.average_precision import precision_at, ranks_without_junk, trapezoid_ap
from benchmarks.task import InputError, Labels, RunOptions
from results.store import read_records
from tests.builders import bare_split, small_vit

NAMES = [f"image_{i}" for i in range(12)]


def ground_truth() -> dict[str, Any]:
    def rows(*values: int) -> np.ndarray:
        return np.array(values, np.int64)

    entries = [
        {"bbx": [1.5, 2.0, 9.0, 7.0], "easy": rows(0, 1), "hard": rows(2, 3), "junk": rows(4)},
        {"bbx": np.array([0.0, 0.0, 8.0, 6.0]), "easy": rows(), "hard": rows(5), "junk": rows(6, 7)},
        {"bbx": [np.float64(0), 0, 5, 5], "easy": [8], "hard": rows(), "junk": rows()},
    ]
    return {"imlist": NAMES, "qimlist": ["query_0", "query_1", "query_2"], "gnd": entries}


@pytest.fixture
def oxford(tmp_path: Path) -> Path:
    folder = tmp_path / "roxford5k"
    (folder / "jpg").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in [*NAMES, "query_0", "query_1", "query_2"]:
        Image.fromarray(rng.integers(0, 255, (8, 10, 3), dtype=np.uint8)).save(folder / f"jpg/{name}.jpg")
    (folder / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(ground_truth()))
    return tmp_path


def plain_ap(ranking: list[int], positives: set[int], junk: set[int]) -> float:
    """Precision over recall by trapezoids, walking down the ranking."""
    found, seen, area, before = 0, 0, 0.0, 1.0
    for row in ranking:
        if row in junk:
            continue
        seen += 1
        if row in positives:
            before = found / (seen - 1) if seen > 1 else 1.0
            found += 1
            area += (before + found / seen) / 2 / len(positives)
    return area


def plain_precision(ranking: list[int], positives: set[int], junk: set[int], k: int) -> float:
    """Share of positives among the first k, or among all up to the last positive."""
    clean = [row for row in ranking if row not in junk]
    last = max(place for place, row in enumerate(clean) if row in positives)
    return float(np.mean([row in positives for row in clean[: min(k, last + 1)]]))


def test_average_precision_is_the_plain_one() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        order = rng.permutation(15)
        rows = rng.permutation(15)
        positives, junk = rows[: rng.integers(1, 6)], rows[6 : 6 + rng.integers(0, 6)]
        ranks = ranks_without_junk(order, positives, junk)
        assert trapezoid_ap(ranks, len(positives)) == pytest.approx(plain_ap(list(order), set(positives), set(junk)))
        expected = plain_precision(list(order), set(positives), set(junk), 4)
        assert precision_at(ranks, 4) == pytest.approx(expected)
    assert trapezoid_ap(np.array([0, 1]), 2) == 1
    assert trapezoid_ap(np.array([], int), 2) == 0
    assert trapezoid_ap(np.array([3]), 1) == pytest.approx(1 / 8)  # half of the precision at its rank


def test_levels() -> None:
    found = levels(Answers((0, 0, 1, 1), *(np.array([i]) for i in (1, 2, 3))))
    assert {name: ([*ok], [*junk]) for name, (ok, junk) in found.items()} == {
        "E": ([1], [3, 2]), "M": ([1, 2], [3]), "H": ([2], [3, 1]),
    }  # fmt: skip


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_the_owners_pickle_is_read_in_every_version(oxford: Path, protocol: int) -> None:
    file = oxford / "roxford5k/gnd_roxford5k.pkl"
    file.write_bytes(pickle.dumps(ground_truth(), protocol=protocol))
    truth = read_ground_truth(file)
    assert truth.database == tuple(NAMES)
    assert truth.answers[0].box == (1.5, 2, 9, 7)
    assert [answers.hard.tolist() for answers in truth.answers] == [[2, 3], [5], []]
    assert truth.answers[2].easy.tolist() == [8]


class Attack:
    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


def test_a_pickle_that_calls_something_is_refused(
    oxford: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = oxford / "roxford5k/gnd_roxford5k.pkl"
    objects = np.array([Attack()], dtype=object)
    for content in ({**ground_truth(), "gnd": [Attack()]}, {"imlist": objects}, [1, 2], {"gnd": []}):
        file.write_bytes(pickle.dumps(content))
        with pytest.raises(InputError, match=r"gnd_roxford5k\.pkl cannot be read"):
            read_ground_truth(file)
    beyond = ground_truth()
    beyond["gnd"][0]["easy"] = np.array([12])
    file.write_bytes(pickle.dumps(beyond))
    with pytest.raises(InputError, match="rows beyond the database"):
        read_ground_truth(file)
    assert not (tmp_path / "ran").exists()


class Colours(nn.Module):
    """The mean colours of a grid, and what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, ...]] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.sizes.append(tuple(images.shape[2:]))
        return nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)


def test_oxford_end_to_end(oxford: Path, tmp_path: Path) -> None:
    options = RunOptions(progress=False, records=tmp_path / "records", features=tmp_path / "features", device="cpu")
    encoder = Colours()
    record = evaluate(encoder, "retrieval_roxford5k.standard@2", oxford, options=options)
    assert {(5, 7), (6, 8), (5, 5)} <= set(encoder.sizes[-3:])  # queries are cut to their boxes: 7.5 rounds to even
    uncut = evaluate(Colours(), "retrieval_roxford5k.dino@2", oxford, options=options)
    labels = {split: find_dataset("roxford5k", oxford).read(split) for split in ("database", "queries")}

    def vectors(split: str) -> np.ndarray:
        loaded = [torch.from_numpy(np.asarray(Image.open(path)) / 255).permute(2, 0, 1)[None].float()
                  for path in labels[split].paths]  # fmt: skip
        mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        rows = torch.cat([Colours()((image - mean) / std) for image in loaded]).numpy()
        return rows / np.linalg.norm(rows, axis=1)[:, None]

    order = np.argsort(-(vectors("queries") @ vectors("database").T), axis=1)
    truth = read_ground_truth(oxford / "roxford5k/gnd_roxford5k.pkl").answers
    for level in ("E", "M", "H"):
        values = [plain_ap(list(row), set(own[level][0]), set(own[level][1]))
                  for row, own in zip(order, map(levels, truth), strict=True) if len(own[level][0])]  # fmt: skip
        assert uncut.scores[level].value == pytest.approx(100 * np.mean(values))
        assert uncut.scores[level].n == len(values)
        if level != "E":
            values = [plain_precision(list(row), set(own[level][0]), set(own[level][1]), 10)
                      for row, own in zip(order, map(levels, truth), strict=True) if len(own[level][0])]  # fmt: skip
            assert uncut.scores[f"{level} mP@10"].value == pytest.approx(100 * np.mean(values))
    assert record.scores["M"].standard_error is not None


@pytest.mark.parametrize("scales", [(1.0,), (1.0, 0.5**0.5, 0.5)])
def test_descriptors_are_dinos(scales: tuple[float, ...], tmp_path: Path) -> None:
    """A Lanczos thumbnail, scales of the normalised image, whole patches only, and the mean of the class tokens."""
    rng = np.random.default_rng(2)
    Image.fromarray(rng.integers(0, 255, (90, 131, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    encoder = small_vit(depth=2, patch_size=8, img_size=32)
    protocol = find_protocol("retrieval_roxford5k.dino@2").changed(geometry={"crop": 60}, scales=scales)
    labels = Labels(("a",), [tmp_path / "a.png"], ("x",), np.zeros(1, np.int64), (("a",),))
    params = Retrieval().params(protocol)
    found = descriptors(encoder, labels, protocol, params, RunOptions(device="cpu", progress=False), None)
    image = Image.open(tmp_path / "a.png").convert("RGB")
    image.thumbnail((60, 60), Image.Resampling.LANCZOS)
    assert image.size == (60, 41)
    x = encoder.normalise(torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None])
    total = torch.zeros(24)
    for scale in scales:
        size = [int(side * scale) for side in (41, 60)]
        scaled = x if scale == 1 else nn.functional.interpolate(x, scale_factor=scale, mode="bilinear")
        assert list(scaled.shape[2:]) == size
        rows, columns = (side // 8 * 8 for side in size)
        with torch.no_grad():
            total += encoder.outputs(scaled[:, :, :rows, :columns], {"embed"})["embed"][0]
    assert found[0] == pytest.approx((total / len(scales)).numpy(), rel=1e-5, abs=1e-6)
    image = Image.open(tmp_path / "a.png").convert("RGB")
    image.thumbnail((60, 60), Image.Resampling.BICUBIC)
    other = encoder.normalise(torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None])
    assert (other - x).abs().max() > 0.05  # so the filter matters here


def test_copies_are_described_by_the_class_token_and_a_generalised_mean(tmp_path: Path) -> None:
    """Of exponent 4, over the patch tokens clamped at 1e-6; the image is squashed by bicubic resampling."""
    rng = np.random.default_rng(3)
    Image.fromarray(rng.integers(0, 255, (50, 37, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    encoder = small_vit(depth=2, patch_size=8, img_size=32)
    protocol = find_protocol("retrieval_copydays.standard@1").changed(geometry={"crop": 32})
    labels = Labels(("a",), [tmp_path / "a.png"], ("x",), np.zeros(1, np.int64), (("a",),))
    params = Retrieval().params(protocol)
    found = descriptors(encoder, labels, protocol, params, RunOptions(device="cpu", progress=False), None)
    image = Image.open(tmp_path / "a.png").resize((32, 32), Image.Resampling.BICUBIC)
    with torch.no_grad():
        x = encoder.normalise(torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None])
        outputs = encoder.outputs(x, {"embed", "patches"})
    token, patches = outputs["embed"][0].double().numpy(), outputs["patches"][0].double().numpy().reshape(24, -1)
    assert (patches < 0).any()
    mean = [np.mean([max(value, 1e-6) ** 4 for value in channel]) ** 0.25 for channel in patches]
    assert found[0] == pytest.approx(np.concatenate([token, mean]), rel=1e-4, abs=1e-5)


def test_an_encoder_of_one_image_size_is_told(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    labels = Labels(("a",), [tmp_path / "a.png"], ("x",), np.zeros(1, np.int64), (("a",),))
    protocol = find_protocol("retrieval_roxford5k.dino@2")
    fixed = small_vit(depth=1, patch_size=8, img_size=32, dynamic_img_size=False)
    with pytest.raises(InputError, match=r"cannot take a \(40 by 30\).*choose an encoder that takes images of any"):
        descriptors(fixed, labels, protocol, Retrieval().params(protocol), RunOptions(progress=False), None)


def test_copies_are_found_among_the_first_of_the_ranking(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    database, queries = rng.normal(size=(8, 3)).astype(np.float32), rng.normal(size=(9, 3)).astype(np.float32)
    originals, copies = np.arange(8) % 4, np.arange(9) % 4
    monkeypatch.setattr(retrieval, "descriptors", lambda _, labels, *__: {8: database, 9: queries}[len(labels)])
    protocol = find_protocol("retrieval_copydays.standard@1").changed(depth=3)
    splits = [bare_split(rows, targets, "abcd").labels for rows, targets in ((database, originals), (queries, copies))]
    encoder = load_encoder("pixels")
    outcome = Retrieval().run(protocol, encoder, *splits, tmp_path, RunOptions(progress=False))
    unit = database / np.linalg.norm(database, axis=1)[:, None]
    expected = [
        plain_ap(list(np.argsort(-(unit @ query))[:3]), set(np.flatnonzero(originals == target)), set())
        for query, target in zip(queries, copies, strict=True)
    ]
    assert 0 < np.mean(expected) < 0.9
    assert outcome.items["pseudo_value/mAP"] == pytest.approx(expected)
    assert outcome.scores["mAP"].value == pytest.approx(100 * np.mean(expected))


def test_splits_of_different_classes_or_without_answers_are_refused(oxford: Path) -> None:
    copies, revisited = map(find_protocol, ("retrieval_copydays.standard@1", "retrieval_roxford5k.standard@2"))
    ours, others = (bare_split(np.eye(2), np.arange(2), classes).labels for classes in ("ab", "ac"))
    with pytest.raises(InputError, match="needs queries and a database with the same classes"):
        Retrieval().check(copies, ours, others)
    with pytest.raises(InputError, match="needs the ground truth of revisited Oxford or Paris"):
        Retrieval().check(revisited, ours, ours)


def test_copydays_names_photographs_by_four_characters(tmp_path: Path) -> None:
    for name in ("original/200000.jpg", "original/200100.jpg", "strong/200101.jpg", "strong/200001.jpg",
                 "strong/200002.jpg"):  # fmt: skip
        file = tmp_path / "copydays" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 6), "red" if name.split("/")[1][3] == "0" else "blue").save(file)
    found = find_dataset("copydays", tmp_path)
    assert found.read("database").targets.tolist() == [0, 1]
    assert found.read("queries").targets.tolist() == [0, 0, 1]
    options = RunOptions(progress=False, records=tmp_path / "records", features=tmp_path / "features", device="cpu")
    protocol = find_protocol("retrieval_copydays.standard@1").changed(geometry={"crop": 4})
    assert evaluate(Colours(), protocol, tmp_path, options=options).scores["mAP"].value == pytest.approx(100)
    Image.new("RGB", (6, 6)).save(tmp_path / "copydays/strong/999900.jpg")
    with pytest.raises(InputError, match=r"999900\.jpg has no original"):
        found.read("queries")


def test_copies_among_distractors_are_found_by_whitened_descriptors(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    colours = {"original/200000": 0, "original/200100": 1, "strong/200001": 0, "strong/200101": 1, "distractors/x": 2}
    colours |= {f"whitening/{number}": 3 + number for number in range(30)}
    pixels = rng.integers(0, 256, (40, 4, 3))
    for name, number in colours.items():
        file = tmp_path / "copydays" / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        noise = rng.integers(-60, 60, (4, 3)) if name.startswith("strong") else 0
        Image.fromarray(np.clip(pixels[number] + noise, 0, 255).reshape(2, 2, 3).astype(np.uint8)).save(file)
    labels = find_dataset("copydays", tmp_path).read("database+others")
    assert [len(labels), labels.classes[-1], int(labels.targets.max())] == [33, "other", 2]
    options = RunOptions(progress=False, records=tmp_path / "records", features=tmp_path / "features", device="cpu")
    protocol = find_protocol("retrieval_copydays.dino@1").changed(geometry={"crop": 2})
    record = evaluate(Colours(), protocol, tmp_path, options=options)

    def vector(name: str) -> np.ndarray:
        image = np.asarray(Image.open(tmp_path / "copydays" / f"{name}.png"), np.float64) / 255
        return ((image - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)).transpose(2, 0, 1).ravel()

    learnt = np.stack([vector(name) for name in colours if name.startswith("whitening")])
    moments = sum(np.outer(row, row) for row in learnt) / len(learnt)  # their mean is not subtracted
    values, vectors = np.linalg.eigh(moments)
    root = np.diag(np.maximum(values, 1e-5 * values.max()) ** -0.5) @ vectors.T
    whole = {name: root @ (vector(name) - learnt.mean(0)) for name in colours}
    unit = {name: row / np.linalg.norm(row) for name, row in whole.items()}
    database, found = ["original/200000", "original/200100", "distractors/x"], []
    for query, own in (("strong/200001", 0), ("strong/200101", 1)):
        order = np.argsort([-unit[query] @ unit[name] for name in database])
        rank = int(np.flatnonzero(order == own)[0])
        found.append(((rank == 0) + 1 / (rank + 1)) / 2)  # one positive: half of the precision before and at it
    assert record.scores["mAP"].value == pytest.approx(100 * np.mean(found))
    shutil.rmtree(tmp_path / "copydays/distractors")
    with pytest.raises(InputError, match=r"distractors has no images: put random photographs there"):
        find_dataset("copydays", tmp_path).read("database+others")


def test_a_whitening_gives_rows_unit_second_moments() -> None:
    rows = np.random.default_rng(7).normal(2, 1, (500, 4)) * np.array([1, 10, 0.1, 3])
    mean, matrix = whitening(rows)
    assert mean == pytest.approx(rows.mean(0))
    white = rows @ matrix
    moments = white.T @ white / 500
    assert moments - np.diag(np.diag(moments)) == pytest.approx(np.zeros((4, 4)), abs=1e-8)
    assert np.diag(moments)[-2:] == pytest.approx([1, 1])
    assert (np.diag(moments) <= 1 + 1e-9).all()  # the smallest components are not blown up


def test_the_suite_runs_on_the_embedded_data(small_data: Path, tmp_path: Path) -> None:
    where = ["--out", str(tmp_path / "records"), "--features", str(tmp_path / "features"), "--workers", "0"]
    assert main(["retrieval", "pixels", str(small_data), *where]) == 0
    (stored,) = read_records(tmp_path / "records")[0]
    value = stored.record.scores["mAP"].value
    assert value is not None
    assert 50 < value <= 100


@pytest.mark.parametrize("name", ["roxford5k", "rparis6k", "copydays", "drawings_copies"])
def test_a_split_that_is_not_there_is_refused(name: str, small_data: Path, oxford: Path) -> None:
    root = small_data if name == "drawings_copies" else oxford
    with pytest.raises(InputError, match=r"no split val|not found|no images"):
        find_dataset(name, root).read("val")

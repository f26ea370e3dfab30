"""The feature store: what it computes, when it computes again, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.datasets.images import Images
from benchmarks.encoders.encoder import Encoder
from benchmarks.encoders.load import load_encoder
from benchmarks.features.extract import FeatureRequest, Reader
from benchmarks.features.pool import AdaptivePooling
from benchmarks.features.store import FeatureStore
from benchmarks.task import InputError, Labels
from results.schema import DECISIVE, Architecture, EncoderCard, Geometry
from tests.benchmarks.features.run_options import options

GEOMETRY = Geometry(mode="shorter", resize=24, crop=24)
EMBED = {"embed": ("embed", None)}
ENCODER = "random:resnet18-w8-k3-nopool:0"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows that were read from files, as they come."""
    rows: list[int] = []
    one = Reader.read_one

    def counted(self: Reader, row: int) -> Tensor | str:
        rows.append(row)
        return one(self, row)

    monkeypatch.setattr(Reader, "read_one", counted)
    return rows


def request(labels: Labels, outputs=EMBED, encoder: str | Encoder = ENCODER, **rest) -> FeatureRequest:  # type: ignore[no-untyped-def]
    loaded = load_encoder(encoder)
    return FeatureRequest(loaded, labels, rest.pop("geometry", GEOMETRY), outputs, **rest)


def test_equals_a_plain_loop_over_single_images(labels: Labels, tmp_path: Path, small_shards: int) -> None:
    outputs = {"embed": ("embed", None), "feature5": ("feature5", AdaptivePooling(grid=2))}
    encoder = load_encoder(ENCODER)
    (split,) = FeatureStore(options(tmp_path / "store")).get([request(labels, outputs)])
    assert split.labels is not None
    images = Images(labels.paths, GEOMETRY)
    for row in range(len(labels)):
        found = encoder.outputs(encoder.normalise(images[row][0][None]), ["embed", "feature5"])
        assert np.allclose(split.features["embed"][row], found["embed"][0], atol=1e-5)
        plain = torch.nn.functional.adaptive_avg_pool2d(found["feature5"], 2).flatten()
        assert np.allclose(split.features["feature5"][row], plain, atol=1e-5)
    assert all(isinstance(array, np.memmap) for array in split.features.values())


def test_a_split_stored_as_another_is_read_from_its_features(labels: Labels, tmp_path: Path, reads: list[int]) -> None:
    """Other targets of some of the images, in another order, as ReaL has them of ImageNet's val."""
    store = FeatureStore(options(tmp_path / "store"))
    chosen = list(range(len(labels) - 1, 0, -2))
    other = replace(labels.rows(chosen), targets=np.ones((len(chosen), 3), np.int8), stored_as=labels)
    (part,) = store.get([request(other)])  # first, so that it must store the rest too
    count = len(reads)
    assert count == len(labels)
    (whole,) = store.get([request(labels)])
    assert len(reads) == count
    assert part.labels.targets.shape == (len(chosen), 3)
    assert np.array_equal(part.features["embed"], whole.features["embed"][chosen])


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_way_of_reading_changes_nothing(
    labels: Labels, tmp_path: Path, small_shards: int, workers: int, batch_size: int
) -> None:
    (plain,) = FeatureStore(options(tmp_path / "a")).get([request(labels)])
    (other,) = FeatureStore(options(tmp_path / "b", batch_size=batch_size, workers=workers)).get([request(labels)])
    assert np.allclose(plain.features["embed"], other.features["embed"], rtol=1e-5, atol=1e-6)


def test_the_same_address_costs_nothing_and_a_new_output_costs_only_itself(
    labels: Labels, tmp_path: Path, reads: list[int]
) -> None:
    store = FeatureStore(options(tmp_path / "store"))
    store.get([request(labels)])
    assert len(reads) == 22
    store.get([request(labels)])
    assert len(reads) == 22
    both = request(labels, {**EMBED, "f": ("feature4", AdaptivePooling(grid=1))})
    assert set(store.bytes_to_write([both])) == {key for key in both.files if key != "embed"}
    store.get([both])
    assert len(reads) == 44
    store.get([both])
    assert len(reads) == 44
    assert store.bytes_to_write([both]) == {}


def test_one_pass_gives_what_several_ask_for(labels: Labels, tmp_path: Path, reads: list[int]) -> None:
    store = FeatureStore(options(tmp_path / "store"))
    grids = [request(labels, {"f": ("feature4", AdaptivePooling(grid=grid))}) for grid in (1, 2)]
    assert sorted(store.bytes_to_write([*grids, request(labels)]).values()) == [22 * 4 * d for d in (32, 64, 128)]
    store.fill([*grids, request(labels)])
    assert sorted(reads) == list(range(22))
    one, two = store.get(grids)
    assert len(reads) == 22
    assert (one.features["f"].shape, two.features["f"].shape) == ((22, 32), (22, 128))


def test_rows_are_joined_on_ids_not_on_order(labels: Labels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the same address ever asked for with another order of the items, each would still get its own row."""
    store = FeatureStore(options(tmp_path / "store"))
    first = request(labels)
    (straight,) = store.get([first])
    order = np.random.default_rng(1).permutation(len(labels))
    shuffled = replace(
        labels,
        ids=tuple(labels.ids[i] for i in order),
        paths=tuple(labels.paths[i] for i in order),
        targets=labels.targets[order],
        groups=tuple(labels.groups[i] for i in order),
    )
    monkeypatch.setattr(FeatureRequest, "address", first.address)
    (other,) = store.get([request(shuffled)])
    assert other.labels.ids == shuffled.ids
    assert np.array_equal(other.features["embed"], straight.features["embed"][order])


def test_features_of_other_images_are_refused(labels: Labels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, first = FeatureStore(options(tmp_path / "store")), request(labels)
    store.get([first])
    monkeypatch.setattr(FeatureRequest, "address", first.address)
    with pytest.raises(InputError, match=r"embed\.npy does not hold the images that it should; remove"):
        store.get([request(replace(labels, ids=("other.png", *labels.ids[1:])))])


def test_anything_that_could_change_a_number_changes_the_address(labels: Labels) -> None:
    base = request(labels).address
    assert request(labels, encoder=load_encoder(ENCODER, name="other name")).address == base
    others = [
        request(labels, encoder="random:resnet18-w8-k3-nopool:1").address,
        request(labels, geometry=GEOMETRY.model_copy(update={"interpolation": "bicubic"})).address,
        request(labels, precision="bf16").address,
    ]
    encoder = load_encoder(ENCODER)
    changes = {
        "mean": (0.5, 0.5, 0.5), "std": (1.0, 1.0, 1.0), "channels": "BGR", "value_range": 255.0, "head": "linear",
        "embed": "class token", "architecture": encoder.card.architecture.model_copy(update={"bn_eps": 1e-3}),
        "weights_sha256": "0" * 64,
    }  # fmt: skip
    assert set(changes) == set(DECISIVE)  # of a record's key: features are as particular
    for field, value in changes.items():
        changed = load_encoder(ENCODER)
        changed.card = changed.card.model_copy(update={field: value})
        others.append(request(labels, encoder=changed).address)
    Image.new("RGB", (30, 40)).save(labels.paths[0])  # another picture under the same name
    others.append(request(replace(labels)).address)  # as read again
    assert len({base, *others}) == len(others) + 1


def test_features_that_are_not_numbers_are_refused_by_image_and_leave_nothing(labels: Labels, tmp_path: Path) -> None:
    card = EncoderCard(name="broken", source="test", architecture=Architecture(name="pixels"), weights_sha256="0")

    def forward(images: Tensor, names) -> dict[str, Tensor]:  # type: ignore[no-untyped-def]
        vector = images.mean((2, 3))
        vector[3:4] = float("nan")
        return {"embed": vector}

    store = tmp_path / "store"
    broken = Encoder(card, nn.Identity(), forward, ["embed"])
    with pytest.raises(InputError, match=r"broken: 1 of 22 images have NaN .*03\.png; check the weights$"):
        FeatureStore(options(store)).get([request(labels, encoder=broken)])
    with pytest.raises(InputError, match="--precision fp32"):
        FeatureStore(options(store)).get([request(labels, encoder=broken, precision="bf16")])
    assert list(store.iterdir()) == []


def test_too_little_disk_is_refused_before_the_work(
    labels: Labels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[int]
) -> None:
    from benchmarks.features import store as module

    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 22 * 64 * 4 - 1})())
    with pytest.raises(InputError, match=r"need 0\.0 MiB in .*store, but only .* are free; free disk space"):
        FeatureStore(options(tmp_path / "store")).get([request(labels)])
    assert (list((tmp_path / "store").iterdir()), reads) == ([], [])
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 22 * 64 * 4})())
    FeatureStore(options(tmp_path / "store")).get([request(labels)])


def test_the_size_is_told_before_the_work(
    labels: Labels, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(Reader, "read", lambda *_: told.extend(caplog.messages) or 1 / 0)
    with caplog.at_level("INFO"), pytest.raises(ZeroDivisionError):
        FeatureStore(options(tmp_path / "store")).get([request(labels)])
    assert any("features to compute: 0.0 MiB in" in message for message in told)


def test_golden_vectors(tmp_path: Path) -> None:
    """Guards FEATURES_VERSION: whoever changes extraction so that these change must raise it."""
    columns, rows = np.meshgrid(np.arange(40), np.arange(30))
    ramp = np.stack([columns * 6, rows * 8, (columns * rows) % 256], axis=2).astype(np.uint8)
    path = tmp_path / "ramp.png"
    Image.fromarray(ramp).save(path)
    labels = Labels(("ramp",), (path,), ("a",), np.zeros(1, np.int64), (("ramp",),))
    outputs = {"embed": ("embed", None), "f": ("feature3", AdaptivePooling(grid=2))}
    for mode in ("shorter", "warp"):
        geometry = Geometry(mode=mode, resize=28, crop=24)
        (split,) = FeatureStore(options(tmp_path / mode)).get([request(labels, outputs, geometry=geometry)])
        found = {key: array[0, 3:7].tolist() for key, array in split.features.items()}
        for key, values in found.items():
            assert values == pytest.approx(GOLDEN[mode][key], rel=2e-5, abs=2e-6), found


GOLDEN = {
    "shorter": {"embed": [0.490417, 0.794272, 0.420030, 1.648121], "f": [0.0, 0.155922, 0.013172, 0.041729]},
    "warp": {"embed": [0.602685, 0.912570, 0.511292, 1.842279], "f": [0.0, 0.066455, 0.076520, 0.023525]},
}


def test_a_store_that_cannot_be_written_is_one_sentence(labels: Labels, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"expected a folder, but .*file is a file; choose another with --features"):
        FeatureStore(options(tmp_path / "file"))
    with pytest.raises(InputError, match=r"cannot store features in .*below \(.*; set --features to another folder"):
        FeatureStore(options(tmp_path / "file" / "below")).get([request(labels)])


def test_settings_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    for settings, fault in (
        ({"batch_size": 0}, "--batch-size must be at least 1, got 0"), ({"batch_size": -3}, "got -3"),
        ({"workers": -1}, "--workers must be at least 0, got -1"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=fault):
            options(tmp_path, **settings)


@pytest.mark.parametrize("name", ["ids.json", "embed.json", "embed.npy"])
def test_damaged_features_are_one_sentence(labels: Labels, tmp_path: Path, name: str) -> None:
    store = FeatureStore(options(tmp_path / "store"))
    store.get([request(labels)])
    (file,) = (tmp_path / "store").glob(f"*/{name}")
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(InputError, match=rf"the features in .*{file.parent.name} are damaged .*; remove that folder"):
        store.get([request(labels)])

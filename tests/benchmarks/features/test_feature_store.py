"""The feature store: what it computes, when it computes again, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.contract import InputError, Labels
from benchmarks.data.transforms import Images
from benchmarks.encoders.encoder import Encoder
from benchmarks.encoders.load import load_encoder
from benchmarks.features.pool import AdaptivePooling
from benchmarks.features.store import FeatureStore
from results.schema import Architecture, EncoderCard, Geometry

GEOMETRY = Geometry(mode="shorter", resize=24, crop=24)


@pytest.fixture
def labels(tmp_path: Path) -> Labels:
    random = np.random.default_rng(0)
    paths = []
    for number in range(7):
        path = tmp_path / f"{number}.png"
        Image.fromarray(random.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(path)
        paths.append(path)
    ids = tuple(p.name for p in paths)
    return Labels(ids, tuple(paths), ("a", "b"), np.array([0, 1, 0, 1, 0, 1, 0]), tuple((i,) for i in ids))


class Counting(Encoder):
    """Counts the images that pass through."""

    seen = 0

    def outputs(self, images: Tensor, names) -> dict[str, Tensor]:  # type: ignore[no-untyped-def]
        self.seen += len(images)
        return super().outputs(images, names)


def counting() -> Counting:
    inner = load_encoder("random:resnet18-w8-k3-nopool:0")
    return Counting(inner.card, inner.module, inner._forward, inner.names)


def test_equals_a_plain_loop_over_single_images(labels: Labels, tmp_path: Path) -> None:
    encoder = load_encoder("random:resnet18-w8-k3-nopool:0")
    pooling = AdaptivePooling(grid=2)
    outputs = {"embed": ("embed", None), "feature5": ("feature5", pooling)}
    got = FeatureStore(tmp_path / "store").get(encoder, labels, GEOMETRY, outputs, workers=0, show=False)
    images = Images(labels.paths, GEOMETRY)
    for row in range(len(labels)):
        found = encoder.outputs(encoder.normalise(images[row][0][None]), ["embed", "feature5"])
        assert np.allclose(got["embed"][row], found["embed"][0], atol=1e-5)
        plain = torch.nn.functional.adaptive_avg_pool2d(found["feature5"], 2).flatten()
        assert np.allclose(got["feature5"][row], plain, atol=1e-5)


def test_the_same_address_costs_nothing_and_a_new_output_costs_only_itself(labels: Labels, tmp_path: Path) -> None:
    encoder, store = counting(), FeatureStore(tmp_path / "store")
    store.get(encoder, labels, GEOMETRY, {"embed": ("embed", None)}, workers=0, show=False)
    assert encoder.seen == 7
    store.get(encoder, labels, GEOMETRY, {"embed": ("embed", None)}, workers=0, show=False)
    assert encoder.seen == 7
    both = {"embed": ("embed", None), "f": ("feature4", AdaptivePooling(grid=1))}
    store.get(encoder, labels, GEOMETRY, both, workers=0, show=False)
    assert encoder.seen == 14
    store.get(encoder, labels, GEOMETRY, both, workers=0, show=False)
    assert encoder.seen == 14


def test_anything_that_could_change_a_number_changes_the_address(labels: Labels, tmp_path: Path) -> None:
    store, encoder = FeatureStore(tmp_path), load_encoder("random:resnet18-w8-k3-nopool:0")
    base = store.address(encoder, labels, GEOMETRY, "fp32")
    named = load_encoder("random:resnet18-w8-k3-nopool:0", name="other name")
    assert store.address(named, labels, GEOMETRY, "fp32") == base
    others = [
        store.address(load_encoder("random:resnet18-w8-k3-nopool:1"), labels, GEOMETRY, "fp32"),
        store.address(encoder, labels, GEOMETRY.model_copy(update={"interpolation": "bicubic"}), "fp32"),
        store.address(encoder, labels, GEOMETRY, "bf16"),
    ]
    for field, value in (("mean", (0.5, 0.5, 0.5)), ("channels", "BGR"), ("value_range", 255.0)):
        changed = load_encoder("random:resnet18-w8-k3-nopool:0")
        changed.card = changed.card.model_copy(update={field: value})
        others.append(store.address(changed, labels, GEOMETRY, "fp32"))
    Image.new("RGB", (30, 40)).save(labels.paths[0])  # another picture under the same name
    others.append(store.address(encoder, labels, GEOMETRY, "fp32"))
    assert len({base, *others}) == len(others) + 1


def test_features_that_are_not_numbers_are_refused_by_image_and_leave_nothing(labels: Labels, tmp_path: Path) -> None:
    card = EncoderCard(name="broken", source="test", architecture=Architecture(name="pixels"), weights_sha256="0")

    def forward(images: Tensor, names) -> dict[str, Tensor]:  # type: ignore[no-untyped-def]
        vector = images.mean((2, 3))
        vector[3] = float("nan")
        return {"embed": vector}

    store = tmp_path / "store"
    with pytest.raises(InputError, match=r"broken: 1 of 7 images have NaN .*3\.png"):
        FeatureStore(store).get(Encoder(card, nn.Identity(), forward, ["embed"]), labels, GEOMETRY,
                                {"embed": ("embed", None)}, workers=0, show=False)  # fmt: skip
    assert list(store.iterdir()) == []


def test_too_little_disk_is_refused(labels: Labels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.features import store as module

    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10})())
    with pytest.raises(InputError, match="make room"):
        FeatureStore(tmp_path / "store").get(
            load_encoder("pixels"), labels, GEOMETRY, {"embed": ("embed", None)}, workers=0, show=False
        )
    assert list((tmp_path / "store").iterdir()) == []


def test_golden_vector() -> None:
    """Guards FEATURES_VERSION: whoever changes extraction so that this changes must raise it."""
    encoder = load_encoder("random:resnet18-w8-k3-nopool:0")
    ramp = torch.arange(3 * 24 * 24, dtype=torch.int64).remainder(256).to(torch.uint8).view(1, 3, 24, 24)
    embed = encoder.outputs(encoder.normalise(ramp), ["embed"])["embed"][0]
    assert embed.shape == (64,)
    assert np.allclose(embed[:4], GOLDEN, rtol=1e-3), embed[:4].tolist()


GOLDEN = [0.281797, 0.990943, 0.347718, 0.817178]

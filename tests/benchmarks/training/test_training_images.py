"""Training views and their batches: distribution, torchvision's colour changes, seeds, what is kept in memory."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional as F

from benchmarks.encoders.encoder import Encoder
from benchmarks.training import images as images_module
from benchmarks.training.images import (
    PCA_VALUES,
    PCA_VECTORS,
    TrainingBatches,
    TrainingImages,
    Views,
    auto_augment,
    batch_loader,
    clipped_crop,
    epoch_rng,
    erase,
    erase_rng,
    jitter,
    network_input,
    resized_crop,
    stored_crop,
    training_view,
    view_rng,
)
from benchmarks.training.task import ViewParams
from results.schema import Architecture, EncoderCard, Geometry
from tests.builders import GEOMETRY
from tests.reference.linear_tiny import tiny_labels

BILINEAR = Image.Resampling.BILINEAR


def coordinates(width: int, height: int) -> Image.Image:
    """Red grows with x, green with y, so that a view says where it was cut."""
    x, y = np.meshgrid(np.arange(width) * 255 / (width - 1), np.arange(height) * 255 / (height - 1))
    return Image.fromarray(np.stack([x, y, np.zeros_like(x)], axis=2).round().astype(np.uint8))


def extent(view: Image.Image) -> tuple[float, float, float, float]:
    """Left, right, top and bottom of the crop, as fractions of the image, from the colours of its edges."""
    pixels = np.asarray(view, dtype=float)[:, :, :2] / 255
    step = (pixels[:, -1, 0].mean() - pixels[:, 0, 0].mean()) / (view.width - 1)
    rise = (pixels[-1, :, 1].mean() - pixels[0, :, 1].mean()) / (view.height - 1)
    left, top = pixels[:, 0, 0].mean() - step / 2, pixels[0, :, 1].mean() - rise / 2
    return left, left + step * view.width, top, top + rise * view.height


def test_resized_crops_are_distributed_as_torchvisions() -> None:
    image = coordinates(200, 120)
    rng = np.random.default_rng(0)
    own = [extent(resized_crop(image, 32, (0.08, 1.0), (3 / 4, 4 / 3), BILINEAR, rng)) for _ in range(600)]
    torch.manual_seed(0)
    reference = transforms.RandomResizedCrop(32, antialias=True)
    theirs = [extent(reference(image)) for _ in range(600)]
    for statistic in (
        lambda e: (e[1] - e[0]) * (e[3] - e[2]),  # area
        lambda e: (e[1] - e[0]) * 200 / ((e[3] - e[2]) * 120),  # aspect
        lambda e: e[0],
        lambda e: e[3],
    ):
        ours, expected = (np.array([statistic(e) for e in found]) for found in (own, theirs))
        error = np.sqrt(ours.var() / 600 + expected.var() / 600)
        assert abs(ours.mean() - expected.mean()) < 4 * error
        assert np.quantile(ours, [0.1, 0.5, 0.9]) == pytest.approx(np.quantile(expected, [0.1, 0.5, 0.9]), abs=0.1)


@pytest.mark.parametrize(("size", "kept"), [((300, 20), (27, 20)), ((20, 300), (20, 27)), ((20, 20), (20, 20))])
def test_where_no_crop_fits_the_centre_is_taken(size: tuple[int, int], kept: tuple[int, int]) -> None:
    image = coordinates(*size)
    view = resized_crop(image, 16, (5.0, 5.0), (3 / 4, 4 / 3), BILINEAR, np.random.default_rng(0))
    left, right, top, bottom = extent(view)
    assert ((right - left) * size[0], (bottom - top) * size[1]) == pytest.approx(kept, abs=1.5)
    assert (left + right) / 2 == pytest.approx(0.5, abs=0.03)
    assert (top + bottom) / 2 == pytest.approx(0.5, abs=0.03)


def test_a_stored_crop_lies_in_the_centre_square() -> None:
    image = coordinates(90, 60)
    geometry = Geometry(mode="shorter", resize=30, crop=20)
    rng = np.random.default_rng(0)
    found = np.array([extent(stored_crop(image, geometry, BILINEAR, rng)) for _ in range(200)])
    left, right, top, bottom = found.T
    assert (right - left) * 45 == pytest.approx(20, abs=1)
    assert left.min() == pytest.approx(15 / 2 / 45, abs=0.02)
    assert right.max() == pytest.approx(1 - 15 / 2 / 45, abs=0.02)
    assert top.min() == pytest.approx(0, abs=0.02)
    assert bottom.max() == pytest.approx(1, abs=0.02)
    assert len(np.unique(left.round(3))) == 11  # 30 - 20 + 1 places


def test_jitter_changes_colours_as_torchvision_does() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8))
    rng = np.random.default_rng(4)
    factors, sequence = rng.uniform(0.6, 1.4, 3), rng.permutation(3)
    expected = image
    for which in sequence:
        adjust = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)[which]
        expected = adjust(expected, factors[which])
    assert np.array_equal(np.asarray(jitter(image, 0.4, np.random.default_rng(4))), np.asarray(expected))


def test_lighting_is_noise_along_the_eigenvectors() -> None:
    settings = ViewParams(lighting=0.1)
    image = coordinates(20, 24)
    noise = np.array([training_view(image, settings, GEOMETRY, view_rng(0, 0, n))[1] for n in range(4000)])
    expected = PCA_VECTORS @ np.diag((0.1 * PCA_VALUES) ** 2) @ PCA_VECTORS.T
    assert np.cov(noise.T) == pytest.approx(expected, rel=0.1, abs=2e-7)
    assert np.abs(noise.mean(axis=0)).max() < 4 * 0.1 * PCA_VALUES[0] / np.sqrt(4000)


def test_half_of_the_views_are_flipped() -> None:
    settings = ViewParams(crop_area=(1.0, 1.0), crop_aspect=(1.0, 1.0))
    image = coordinates(24, 24)
    views = [training_view(image, settings, GEOMETRY, view_rng(0, 0, n))[0] for n in range(400)]
    flipped = sum(int(v[8, 0, 0]) > int(v[8, -1, 0]) for v in views)
    assert 160 < flipped < 240


def test_draws_are_told_apart_by_every_part_of_their_name() -> None:
    names = [(s, e, i) for s in range(3) for e in range(3) for i in range(3)]
    first = {view_rng(*name).random() for name in names} | {
        epoch_rng(s, e).random() for s in range(3) for e in range(3)
    }
    assert len(first) == 27 + 9


def all_batches(folder: Path, workers: int, limit: int, first_step: int = 0) -> list[tuple[torch.Tensor, ...]]:
    labels = tiny_labels(folder, "train", 4, seed=0)
    settings = ViewParams(jitter=0.4, lighting=0.1)
    views = Views(TrainingImages(labels.paths, limit), labels.targets, GEOMETRY, settings, seed=9)
    which = TrainingBatches(np.arange(12), 5, 9, first_step, 6)
    return list(batch_loader(views, which, workers, torch.device("cpu")))


def test_views_do_not_depend_on_workers_cache_or_where_a_run_began(tmp_path: Path) -> None:
    reference = all_batches(tmp_path, 0, 10**9)
    assert [len(images) for images, _, _ in reference] == [5, 5, 2, 5, 5, 2]
    assert not torch.equal(reference[0][0], reference[3][0])
    for found in (all_batches(tmp_path, 2, 0), all_batches(tmp_path, 0, 0), all_batches(tmp_path, 0, 10**9, 4)):
        for own, expected in zip(found, reference[6 - len(found) :], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(own, expected, strict=True))


def test_every_image_is_seen_once_an_epoch() -> None:
    which = TrainingBatches(np.arange(10, 33), 5, 0, 0, 10)
    seen = [request for batch in which for request in batch]
    for epoch in (0, 1):
        assert sorted(index for e, index in seen if e == epoch) == list(range(10, 33))
    assert [which.batch_length(step) for step in range(5)] == [5, 5, 5, 5, 3]


def test_images_are_decoded_once_for_all_encoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = tiny_labels(tmp_path, "train", 40, seed=0)
    decoded: list[Path] = []

    def counting(path: Path) -> Image.Image:
        decoded.append(path)
        return original(path)

    original = images_module.decode
    monkeypatch.setattr(images_module, "decode", counting)
    first = TrainingImages(labels.paths)
    once = len(decoded)
    second = TrainingImages(labels.paths)
    assert first.in_memory
    assert second[3] is first[3]
    assert len(decoded) - once < once < 2 * len(labels)  # only the sample by which the size is estimated
    path = labels.paths[3]
    Image.fromarray(np.full((20, 24, 3), 7, np.uint8)).save(path)
    os.utime(path, ns=(1, 1))
    assert np.asarray(TrainingImages(labels.paths)[3]).max() == 7
    assert np.asarray(first[3]).max() != 7


def test_a_view_is_drawn_once_for_all_encoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = tiny_labels(tmp_path, "train", 4, seed=0)
    params = ViewParams(jitter=0.4, lighting=0.1)

    def views(**changes: object) -> Views:
        how = {"geometry": GEOMETRY, "params": params, "seed": 0, **changes}
        return Views(TrainingImages(labels.paths), labels.targets, **how)  # type: ignore[arg-type]

    first = views()[(2, 5)]
    drawn: list[int] = []
    make = Views._drawn
    monkeypatch.setattr(Views, "_drawn", lambda self, *which: drawn.append(1) or make(self, *which))
    again = views()[(2, 5)]
    assert all(torch.equal(a, b) for a, b in zip(first[:2], again[:2], strict=True))
    assert (first[2], drawn) == (1, [])
    for other in (views(seed=1), views(params=params.changed(jitter=0.0)), views(params=None)):
        assert not torch.equal(other[(2, 5)][0], first[0])
    views()[(3, 5)], views()[(2, 6)]
    assert len(drawn) == 5
    monkeypatch.setattr(TrainingImages(labels.paths).kept, "room", 10)
    views()[(9, 0)], views()[(9, 0)]
    assert len(drawn) == 7  # no room left


def test_what_does_not_fit_is_read_when_asked_for(tmp_path: Path) -> None:
    labels = tiny_labels(tmp_path, "train", 2, seed=0)
    images = TrainingImages(labels.paths, limit=100)
    assert not images.in_memory
    assert images[1].size == (24, 20)


def test_a_clipped_crop_is_one_draw_that_the_image_bounds() -> None:
    image = coordinates(300, 60)
    crops = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        view = clipped_crop(image, 32, (0.5, 1.0), (3 / 4, 4 / 3), BILINEAR, rng)
        left, right, top, bottom = extent(view)
        crops.append((300 * (right - left), 60 * (bottom - top)))
        area = np.random.default_rng(seed).uniform(0.5, 1.0) * 300 * 60
        assert crops[-1][0] <= np.sqrt(area * 4 / 3) + 3  # as wide as drawn
    # At least 9000 pixels of at most 4/3 : 1 are higher than 60: each height is clipped, and no width makes up for it.
    assert np.allclose([height for _, height in crops], 60, atol=1)
    assert 80 < min(width for width, _ in crops) < 90


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "original"])
def test_a_policy_is_timms_and_leaves_global_generators_alone(policy: str) -> None:
    import random

    from timm.data.auto_augment import auto_augment_transform, rand_augment_transform

    image = coordinates(40, 30)
    states = random.getstate(), np.random.get_state()[1].tolist()
    views = [np.asarray(auto_augment(image, policy, "bicubic", view_rng(0, epoch, 1))) for epoch in range(8)]
    again = [np.asarray(auto_augment(image, policy, "bicubic", view_rng(0, epoch, 1))) for epoch in range(8)]
    assert (states[0], states[1]) == (random.getstate(), np.random.get_state()[1].tolist())
    assert all(np.array_equal(a, b) for a, b in zip(views, again, strict=True))
    assert len({view.tobytes() for view in views}) > 4
    settings = {
        "translate_const": int(30 * 0.45),
        "img_mean": (124, 116, 104),
        "interpolation": Image.Resampling.BICUBIC,
    }
    make = rand_augment_transform if policy.startswith("rand") else auto_augment_transform
    rng = view_rng(0, 3, 1)
    random.seed(int(rng.integers(2**32)))
    np.random.seed(int(rng.integers(2**32)))
    assert np.array_equal(np.asarray(make(policy, settings)(image)), views[3])


def test_erased_rectangles_are_timms_in_size_and_do_not_depend_on_ranks() -> None:
    from timm.data.random_erasing import RandomErasing

    def erased(x: torch.Tensor) -> torch.Tensor:
        return (x != 0).any(dim=1).flatten(1).double().mean(dim=1)

    count, blank = 1500, torch.zeros(1500, 3, 20, 30)
    whole = blank.clone()
    erase(whole, 0.5, erase_rng(0, 7), slice(0, count), count)
    parts = [blank[:700].clone(), blank[700:].clone()]
    erase(parts[0], 0.5, erase_rng(0, 7), slice(0, 700), count)
    erase(parts[1], 0.5, erase_rng(0, 7), slice(700, count), count)
    assert torch.equal(torch.cat(parts), whole)
    theirs = RandomErasing(0.5, mode="pixel", max_count=1, device="cpu")(blank.clone())
    ours, expected = erased(whole), erased(theirs)
    assert (ours > 0).double().mean() == pytest.approx(float((expected > 0).double().mean()), abs=0.05)
    quantiles = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    assert torch.allclose(ours[ours > 0].quantile(quantiles), expected[expected > 0].quantile(quantiles), atol=0.03)
    noise = whole[whole != 0]
    assert float(noise.mean()) == pytest.approx(0, abs=0.01)
    assert float(noise.std()) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(("channels", "value_range"), [("RGB", 1.0), ("BGR", 255.0)])
def test_lighting_is_added_to_the_pixels_before_the_encoder_normalises_them(channels: str, value_range: float) -> None:
    about = {"architecture": Architecture(name="pixels"), "mean": (0.1, 0.2, 0.3), "std": (1.0, 2.0, 4.0)}
    card = EncoderCard(name="x", source="test", channels=channels, value_range=value_range, **about)
    encoder = Encoder(card, torch.nn.Identity(), lambda x, names: {"embed": x.flatten(1)}, ["embed"])
    images = torch.randint(0, 256, (2, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    lighting = torch.tensor([[0.1, -0.2, 0.3], [0.0, 0.05, -0.1]])
    lit = images.float() / 255 + lighting[:, :, None, None]
    found = network_input(encoder, images, lighting)
    for channel, (mean, std) in enumerate(zip(card.mean, card.std, strict=True)):
        source = lit[:, channel if channels == "RGB" else 2 - channel]
        torch.testing.assert_close(found[:, channel], (value_range * source - mean) / std, rtol=0, atol=1e-4)


def test_the_directions_of_lighting_are_fb_resnet_torchs() -> None:
    """Eigenvectors of a covariance, so a mistyped number shows; the values are typed again from the source."""
    np.testing.assert_allclose(PCA_VECTORS.T @ PCA_VECTORS, np.eye(3), atol=2e-3)
    assert PCA_VALUES.tolist() == [0.2175, 0.0188, 0.0045]

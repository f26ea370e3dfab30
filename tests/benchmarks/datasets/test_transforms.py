from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from benchmarks.datasets.transforms import Images, apply_geometry, decode
from results.schema import Geometry


def _noise(width: int, height: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("size", [(100, 67), (67, 100), (64, 64), (33, 200), (201, 34)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_geometry_is_torchvisions(size: tuple[int, int], interpolation: str) -> None:
    image = Image.fromarray(_noise(*size))
    how = InterpolationMode(interpolation)
    shorter = transforms.Compose([transforms.Resize(64, how), transforms.CenterCrop(56)])
    warp = transforms.Compose([transforms.Resize(64, how), transforms.Resize((56, 56), how)])
    for mode, expected in (("shorter", shorter), ("warp", warp)):
        found = apply_geometry(image, Geometry(mode=mode, resize=64, crop=56, interpolation=interpolation))
        assert found.size == (56, 56)
        assert np.array_equal(np.asarray(found), np.asarray(expected(image)))


def test_warp_changes_the_aspect_and_shorter_keeps_it() -> None:
    image = Image.new("RGB", (200, 50), "white")
    image.paste("black", (0, 0, 20, 50))
    warped = np.asarray(apply_geometry(image, Geometry(mode="warp", resize=0, crop=40)))
    assert (warped[:, 0] < 60).all()  # the black bar at the left end is still there
    cropped = np.asarray(apply_geometry(image, Geometry(mode="shorter", resize=40, crop=40)))
    assert (cropped == 255).all()  # the centre alone


def test_resize_zero_skips_the_first_step_of_warp() -> None:
    image = Image.fromarray(_noise(90, 70))
    direct = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))
    assert np.array_equal(np.asarray(apply_geometry(image, Geometry(mode="warp", resize=0, crop=32))), direct)


def test_images_gives_pixels_and_index(tmp_path: Path) -> None:
    for number in range(3):
        Image.fromarray(_noise(20 + number, 16, seed=number)).save(tmp_path / f"{number}.png")
    geometry = Geometry(mode="shorter", resize=12, crop=8)
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    images, indices = next(iter(DataLoader(Images(paths, geometry), batch_size=3)))
    assert images.shape == (3, 3, 8, 8)
    assert images.dtype == torch.uint8
    assert indices.tolist() == [0, 1, 2]
    for number, path in enumerate(paths):
        expected = np.asarray(apply_geometry(decode(path), geometry)).transpose(2, 0, 1)
        assert np.array_equal(images[number].numpy(), expected)

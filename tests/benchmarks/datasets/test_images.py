"""Decoding, also of odd and unreadable images, and the geometry."""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets.folder import pil_loader
from torchvision.transforms import InterpolationMode

from benchmarks.datasets.images import BadImage, Images, apply_geometry, decode
from benchmarks.task import InputError
from results.schema import Geometry
from tests.layouts.cifar10 import write_cifar10

GEOMETRY = Geometry(mode="shorter", resize=12, crop=8)


def _noise(width: int, height: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def _write_odd_files(folder: Path) -> list[str]:
    picture = Image.fromarray(_noise(24, 16))
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    picture.convert("L").save(folder / "grey.jpg")
    picture.convert("1").save(folder / "bilevel.png")
    Image.fromarray(_noise(24, 16, 4)).save(folder / "rgba.png")
    Image.fromarray(_noise(24, 16, 4)).convert("LA").save(folder / "la.png")
    palette = picture.convert("P")
    palette.save(folder / "palette.png", transparency=0)
    palette.save(folder / "palette-bytes.png", transparency=bytes(range(256)))
    palette.save(folder / "palette.gif", transparency=0)
    picture.save(folder / "animated.gif", save_all=True, append_images=[Image.new("RGB", (24, 16))] * 3, duration=40)
    (folder / "animated.jpg").write_bytes((folder / "animated.gif").read_bytes())
    (folder / "png-named.JPEG").write_bytes((folder / "rgba.png").read_bytes())
    Image.fromarray(_noise(1, 1)).save(folder / "pixel.png")
    Image.fromarray(_noise(1, 300)).save(folder / "line.png")
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        picture.save(folder / f"exif-{orientation}.jpg", exif=exif)
    return sorted(file.name for file in folder.iterdir())


def test_odd_images_have_the_pixels_that_torchvision_reads(tmp_path: Path) -> None:
    for name in _write_odd_files(tmp_path):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = pil_loader(str(tmp_path / name))
        found = decode(tmp_path / name)
        assert found.mode == "RGB"
        assert np.array_equal(np.asarray(found), np.asarray(expected)), name
        assert Images([tmp_path / name], GEOMETRY)[0][0].shape == (3, 8, 8)


def test_the_exif_orientation_is_not_applied(tmp_path: Path) -> None:
    _write_odd_files(tmp_path)
    stored = np.asarray(decode(tmp_path / "exif-1.jpg"))
    for orientation in range(2, 9):
        assert np.array_equal(np.asarray(decode(tmp_path / f"exif-{orientation}.jpg")), stored)


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 256).reshape(16, 16).astype(np.uint16)
    for name in ("a.png", "a.tif"):
        Image.fromarray(values).save(tmp_path / name)
        found = np.asarray(decode(tmp_path / name))
        assert np.array_equal(found[..., 0], np.round(values / 257).astype(np.uint8))
        assert np.array_equal(found[..., 0], found[..., 2])


@pytest.mark.slow
def test_pillow_warns_about_nothing(tmp_path: Path) -> None:
    names = _write_odd_files(tmp_path)
    broken = (tmp_path / "exif-6.jpg").read_bytes()
    at = broken.index(b"Exif") + 14
    # 255 tags are announced, of which one is there.
    (tmp_path / "exif-broken.jpg").write_bytes(broken[:at] + b"\xff" + broken[at + 1 :])
    code = (
        "import sys; from pathlib import Path; from benchmarks.datasets.images import decode\n"
        "for name in sys.argv[2:]: decode(Path(sys.argv[1], name))"
    )
    command = [sys.executable, "-c", code, str(tmp_path), *names, "exif-broken.jpg"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""


def _write_bad_files(folder: Path) -> dict[str, str]:
    """Name -> what the sentence says of it."""
    image = Image.fromarray(_noise(64, 64))
    bad = {}
    for name in ("cut.jpg", "cut.png", "cut.webp", "cut.bmp", "cut.tif"):
        image.save(folder / name)
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
        bad[name] = "cannot be decoded as an image"
    image.save(folder / "flipped.png")
    content = bytearray((folder / "flipped.png").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (folder / "flipped.png").write_bytes(content)
    bad["flipped.png"] = "cannot be decoded as an image"
    (folder / "text.jpg").write_text("<html>404 Not Found</html>")
    bad["text.jpg"] = "Pillow does not recognise the format"
    (folder / "empty.jpg").touch()
    bad["empty.jpg"] = "the file is empty"
    (folder / "folder.jpg").mkdir()
    bad["folder.jpg"] = "cannot be decoded as an image"
    bad["gone.jpg"] = "does not exist; restore it"
    Image.fromarray(np.ones((4, 4), np.float32)).save(folder / "float.tif")
    Image.fromarray(np.ones((4, 4), np.int32)).save(folder / "int.tif")
    bad["float.tif"] = bad["int.tif"] = "has 32-bit pixels of unknown range"
    return bad


def test_bad_images_are_told_by_name_fault_and_remedy(tmp_path: Path) -> None:
    for name, fault in _write_bad_files(tmp_path).items():
        with pytest.raises(BadImage) as caught:
            decode(tmp_path / name)
        sentence = str(caught.value)
        assert str(tmp_path / name) in sentence
        assert fault in sentence
        assert ";" in sentence
        assert "\n" not in sentence
        assert isinstance(caught.value, InputError)


def test_images_raises_and_replaces_nothing(tmp_path: Path) -> None:
    bad = list(_write_bad_files(tmp_path))
    Image.fromarray(_noise(20, 20)).save(tmp_path / "good.png")
    images = Images([tmp_path / name for name in [*bad, "good.png"]], GEOMETRY)
    for index in range(len(bad)):
        with pytest.raises(BadImage):
            images[index]
    assert images[len(bad)][1] == len(bad)


def test_the_sentence_survives_a_loaders_worker(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(BadImage) as caught:
        list(DataLoader(Images([tmp_path / "text.jpg"], GEOMETRY), num_workers=1))
    assert str(caught.value).startswith(f"{tmp_path / 'text.jpg'} cannot be decoded")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_an_image_in_a_batch_of_cifar10(tmp_path: Path) -> None:
    batch = write_cifar10(tmp_path) / "cifar-10-batches-py" / "test_batch"
    assert decode(batch.with_name("test_batch#9")).size == (32, 32)
    with pytest.raises(BadImage, match=r"test_batch has 10 images and no number 10; unpack"):
        decode(batch.with_name("test_batch#10"))
    with pytest.raises(BadImage, match=r"data_batch_9 is missing"):
        decode(batch.with_name("data_batch_9#0"))
    Image.fromarray(_noise(5, 5)).save(tmp_path / "photo#3.png")  # an ordinary name with a hash in it
    assert decode(tmp_path / "photo#3.png").size == (5, 5)


@pytest.mark.slow
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

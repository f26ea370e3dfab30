from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from benchmarks.contract import InputError
from benchmarks.data.transforms import Images, apply_geometry, decode
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


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = np.zeros((8, 16, 3), np.uint8)
    upright[:4, :8] = 255  # top left
    undo = {
        1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, 1), 7: lambda a: np.rot90(a.swapaxes(0, 1), 2),
        8: lambda a: np.rot90(a, -1),
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](upright)))
    stored.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(np.asarray(decode(tmp_path / "a.png")), upright)


def test_every_mode_becomes_the_rgb_that_one_sees(tmp_path: Path) -> None:
    red = Image.new("RGB", (6, 4), (250, 10, 10))
    files = {"cmyk.jpg": red.convert("CMYK"), "grey.png": red.convert("L"), "bilevel.png": red.convert("1")}
    for name, image in files.items():
        image.save(tmp_path / name)
    assert np.abs(np.asarray(decode(tmp_path / "cmyk.jpg"), int) - (250, 10, 10)).max() < 12
    grey = np.asarray(decode(tmp_path / "grey.png"))
    assert (grey == np.asarray(red.convert("L"))[..., None]).all()
    assert set(np.unique(np.asarray(decode(tmp_path / "bilevel.png")))) <= {0, 255}


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 256).reshape(16, 16).astype(np.uint16)
    for name in ("a.png", "a.tif"):
        Image.fromarray(values).save(tmp_path / name)
        found = np.asarray(decode(tmp_path / name))
        assert np.array_equal(found[..., 0], np.round(values / 257).astype(np.uint8))
        assert np.array_equal(found[..., 0], found[..., 2])


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    half.paste((200, 0, 0, 255), (0, 0, 2, 4))
    half.putpixel((3, 3), (0, 0, 0, 128))
    half.save(tmp_path / "rgba.png")
    half.convert("LA").save(tmp_path / "la.png")
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([0, 0, 255, 200, 0, 0])
    palette.paste(1, (0, 0, 2, 4))
    palette.save(tmp_path / "palette.png", transparency=0)
    palette.save(tmp_path / "palette.gif", transparency=0)
    for name in ("rgba.png", "palette.png", "palette.gif"):
        found = decode(tmp_path / name)
        assert found.mode == "RGB"
        assert found.getpixel((0, 0)) == (200, 0, 0), name
        assert found.getpixel((3, 0)) == (255, 255, 255), name
    assert decode(tmp_path / "rgba.png").getpixel((3, 3)) == pytest.approx((127, 127, 127), abs=1)
    assert decode(tmp_path / "la.png").getpixel((3, 0)) == (255, 255, 255)


def _bad_files(folder: Path) -> list[Path]:
    image = Image.fromarray(_noise(64, 64))
    found = []
    for name in ("cut.jpg", "cut.png", "cut.webp", "cut.bmp", "cut.tif"):
        image.save(folder / name)
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
        found.append(folder / name)
    image.save(folder / "flipped.png")
    content = bytearray((folder / "flipped.png").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (folder / "flipped.png").write_bytes(content)
    (folder / "text.jpg").write_text("<html>404 Not Found</html>")
    (folder / "empty.jpg").touch()
    return [*found, folder / "flipped.png", folder / "text.jpg", folder / "empty.jpg"]


def test_damaged_files_are_named(tmp_path: Path) -> None:
    for file in _bad_files(tmp_path):
        with pytest.raises(InputError, match=rf"{file.name} cannot be decoded as an image .*; replace or remove"):
            decode(file)


def test_missing_folders_and_unknown_ranges_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.jpg does not exist"):
        decode(tmp_path / "none.jpg")
    with pytest.raises(InputError, match="cannot be decoded"):
        decode(tmp_path)
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.ones((4, 4), np.int32)).save(tmp_path / "int.tif")
    for name in ("float.tif", "int.tif"):
        with pytest.raises(InputError, match=rf"{name} has 32-bit pixels of unknown range"):
            decode(tmp_path / name)


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

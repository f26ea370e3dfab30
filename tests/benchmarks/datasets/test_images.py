"""Decoding, also of odd and unreadable images, the geometry, and what of nvJPEG needs no GPU."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets.folder import pil_loader
from torchvision.transforms import InterpolationMode

from benchmarks.datasets import images as loading
from benchmarks.datasets.images import (
    BadImage,
    EncodedImage,
    Images,
    apply_geometry,
    decode,
    decode_cropped,
    read_encoded,
    require_nvjpeg,
)
from benchmarks.task import InputError
from results.schema import Geometry
from tests.layouts.cifar10 import write_cifar10

CPU = torch.device("cpu")
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


def picture(width: int = 90, height: int = 70, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def by_pillow(files: list[Tensor], device: torch.device) -> list[Tensor]:
    """In place of nvJPEG."""
    found = []
    for file in files:
        try:
            pixels = np.asarray(Image.open(io.BytesIO(file.numpy().tobytes())).convert("RGB"))
        except OSError as error:
            raise RuntimeError("nvJPEG cannot decode it") from error
        found.append(torch.from_numpy(pixels.copy()).permute(2, 0, 1).to(device))
    return found


@pytest.mark.parametrize(
    "geometry",
    [
        Geometry(mode="shorter", resize=36, crop=32),
        Geometry(mode="shorter", resize=36, crop=32, interpolation="bicubic"),
        Geometry(mode="shorter", resize=100, crop=96, border=5),
        Geometry(mode="shorter", resize=0, crop=80),  # larger than the image: padded
        Geometry(mode="warp", resize=40, crop=32),
        Geometry(mode="warp", resize=0, crop=32, interpolation="bicubic"),
    ],
    ids=repr,
)
def test_the_geometry_of_tensors_is_that_of_pillow_to_rounding(geometry: Geometry) -> None:
    images = [picture(seed=seed) for seed in range(2)]
    tensors = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])
    found = apply_geometry(tensors, geometry)
    assert found.dtype == torch.uint8
    for image, crop in zip(images, found, strict=True):
        expected = np.asarray(apply_geometry(image, geometry)).astype(int)
        assert np.abs(crop.permute(1, 2, 0).numpy().astype(int) - expected).max() <= 2


def test_whole_rgb_jpeg_files_alone_are_left_to_the_gpu(tmp_path: Path) -> None:
    image = picture()
    image.save(tmp_path / "plain.jpg")
    image.save(tmp_path / "progressive.jpg", progressive=True)
    image.convert("L").save(tmp_path / "grey.jpg")
    image.convert("CMYK").save(tmp_path / "cmyk.jpg")
    image.save(tmp_path / "untransformed.jpg", keep_rgb=True)
    image.save(tmp_path / "other.jpg", format="png")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "plain.jpg").read_bytes()[:-20])
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "folder.jpg").mkdir()
    taken = {path.stem for path in tmp_path.iterdir() if read_encoded(path) is not None}
    assert taken == {"plain", "progressive"}
    assert read_encoded(tmp_path / "none.jpg") is None
    encoded = read_encoded(tmp_path / "plain.jpg")
    assert encoded is not None
    assert encoded.data.numpy().tobytes() == (tmp_path / "plain.jpg").read_bytes()
    assert encoded.pixels == 90 * 70


def test_on_the_cpu_pillow_decodes(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.jpg")
    asked = Geometry(mode="shorter", resize=0, crop=8, decoder="nvjpeg")
    assert decode(tmp_path / "a.jpg", asked).tobytes() == decode(tmp_path / "a.jpg").tobytes()


def test_a_file_that_cannot_be_decoded_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "decode_jpegs", by_pillow)
    monkeypatch.setattr(loading, "CHUNK_PIXELS", 3 * 90 * 70)
    geometry = Geometry(mode="shorter", resize=36, crop=32)
    files = []
    for number in range(8):
        path = tmp_path / f"{number}.jpg"
        picture(90, 70 if number != 5 else 60, seed=number).save(path)
        encoded = read_encoded(path)
        assert encoded is not None
        files.append(encoded if number not in (1, 7) else encoded._replace(data=encoded.data[:100]))
    found = decode_cropped(files, geometry, CPU)
    assert [number for number, image in enumerate(found) if image is None] == [1, 7]
    for number, image in enumerate(found):
        if image is not None:
            expected = np.asarray(apply_geometry(decode(tmp_path / f"{number}.jpg"), geometry)).astype(int)
            assert np.abs(image.permute(1, 2, 0).numpy().astype(int) - expected).max() <= 2


def test_out_of_memory_is_no_bad_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(files: list[Tensor], device: torch.device) -> list[Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loading, "decode_jpegs", full)
    with pytest.raises(torch.OutOfMemoryError):
        decode_cropped([EncodedImage(torch.zeros(9, dtype=torch.uint8), 1)] * 2,
                              Geometry(mode="shorter", resize=8, crop=8), CPU)  # fmt: skip


def test_a_cpu_and_a_torchvision_without_nvjpeg_are_refused_in_one_sentence() -> None:
    with pytest.raises(
        InputError, match=r"^geometry\.decoder=nvjpeg needs a CUDA device, and this runs on cpu; choose"
    ):
        require_nvjpeg(CPU)
    if torch.cuda.is_available():
        pytest.skip("this torchvision may have it")
    with pytest.raises(InputError, match=r"^geometry\.decoder=nvjpeg needs a torchvision that is built with nvJPEG \("):
        require_nvjpeg(torch.device("cuda"))

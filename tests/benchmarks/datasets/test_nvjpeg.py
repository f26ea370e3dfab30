"""What of the decoder nvjpeg needs no GPU: which files it takes, the geometry of tensors, refusals, and bad files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks.datasets import nvjpeg
from benchmarks.datasets.images import apply_geometry, decode
from benchmarks.task import InputError
from results.schema import Geometry

CPU = torch.device("cpu")


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
    found = nvjpeg.apply_geometry_to_tensor(tensors, geometry)
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
    taken = {path.stem for path in tmp_path.iterdir() if nvjpeg.read_encoded(path) is not None}
    assert taken == {"plain", "progressive"}
    assert nvjpeg.read_encoded(tmp_path / "none.jpg") is None
    encoded = nvjpeg.read_encoded(tmp_path / "plain.jpg")
    assert encoded is not None
    assert encoded.data.numpy().tobytes() == (tmp_path / "plain.jpg").read_bytes()
    assert encoded.pixels == 90 * 70


def test_on_the_cpu_pillow_decodes(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.jpg")
    asked = Geometry(mode="shorter", resize=0, crop=8, decoder="nvjpeg")
    assert decode(tmp_path / "a.jpg", asked).tobytes() == decode(tmp_path / "a.jpg").tobytes()


def test_a_file_that_cannot_be_decoded_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvjpeg, "decode_jpegs", by_pillow)
    monkeypatch.setattr(nvjpeg, "CHUNK_PIXELS", 3 * 90 * 70)
    geometry = Geometry(mode="shorter", resize=36, crop=32)
    files = []
    for number in range(8):
        path = tmp_path / f"{number}.jpg"
        picture(90, 70 if number != 5 else 60, seed=number).save(path)
        encoded = nvjpeg.read_encoded(path)
        assert encoded is not None
        files.append(encoded if number not in (1, 7) else encoded._replace(data=encoded.data[:100]))
    found = nvjpeg.decode_cropped(files, geometry, CPU)
    assert [number for number, image in enumerate(found) if image is None] == [1, 7]
    for number, image in enumerate(found):
        if image is not None:
            expected = np.asarray(apply_geometry(decode(tmp_path / f"{number}.jpg"), geometry)).astype(int)
            assert np.abs(image.permute(1, 2, 0).numpy().astype(int) - expected).max() <= 2


def test_out_of_memory_is_no_bad_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(files: list[Tensor], device: torch.device) -> list[Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(nvjpeg, "decode_jpegs", full)
    with pytest.raises(torch.OutOfMemoryError):
        nvjpeg.decode_cropped([nvjpeg.EncodedImage(torch.zeros(9, dtype=torch.uint8), 1)] * 2,
                              Geometry(mode="shorter", resize=8, crop=8), CPU)  # fmt: skip


def test_a_cpu_and_a_torchvision_without_nvjpeg_are_refused_in_one_sentence() -> None:
    with pytest.raises(
        InputError, match=r"^geometry\.decoder=nvjpeg needs a CUDA device, and this runs on cpu; choose"
    ):
        nvjpeg.require_nvjpeg(CPU)
    if torch.cuda.is_available():
        pytest.skip("this torchvision may have it")
    with pytest.raises(InputError, match=r"^geometry\.decoder=nvjpeg needs a torchvision that is built with nvJPEG \("):
        nvjpeg.require_nvjpeg(torch.device("cuda"))

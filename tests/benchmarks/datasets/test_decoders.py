"""Faster decoders of JPEG files: what they decode, how far that is from Pillow, and how a protocol says so."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.datasets.images import Images, decode
from benchmarks.registry import find_protocol
from results.errors import InputError
from results.schema import Geometry

GEOMETRY = Geometry(mode="shorter", resize=40, crop=32)


@pytest.fixture(scope="module")
def photograph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    coarse = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("photographs") / "photograph.jpg"
    Image.fromarray(coarse).resize((240, 180), Image.Resampling.BICUBIC).save(path, quality=92)
    return path


def using(decoder: str, **changes: Any) -> Geometry:
    return Geometry.model_validate({**GEOMETRY.model_dump(), "decoder": decoder, **changes})


def pixels(path: Path, geometry: Geometry) -> np.ndarray[Any, Any]:
    return Images([path], geometry)[0][0].numpy().astype(int)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, int]]:
    """A module in place of simplejpeg, which decodes by Pillow; and the arguments of its calls."""
    calls: list[dict[str, int]] = []

    def decode_jpeg(data: bytes, **sizes: int) -> np.ndarray[Any, Any]:
        calls.append(sizes)
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))

    module = ModuleType("simplejpeg")
    module.decode_jpeg = decode_jpeg  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "simplejpeg", module)
    return calls


def test_a_scaled_decode_is_no_smaller_than_the_geometry_asks_for(photograph: Path) -> None:
    assert decode(photograph, using("pil-draft")).size == (60, 45)  # a quarter: an eighth would be 30 x 23
    assert decode(photograph, using("pil-draft", resize=46)).size == (120, 90)
    assert decode(photograph, using("pil-draft", border=4)).size == (240, 180)
    assert decode(photograph, GEOMETRY).size == (240, 180)
    apart = np.abs(pixels(photograph, using("pil-draft")) - pixels(photograph, GEOMETRY))
    assert 0 < apart.mean() < 3


def test_simplejpeg_is_given_the_least_size_where_it_may_scale(
    photograph: Path, stand_in: list[dict[str, int]]
) -> None:
    assert np.array_equal(pixels(photograph, using("simplejpeg")), pixels(photograph, GEOMETRY))
    pixels(photograph, using("simplejpeg-scaled"))
    pixels(photograph, using("simplejpeg-scaled", resize=200))
    assert [call["min_height"] for call in stand_in] == [0, 40, 0]


def test_the_real_simplejpeg_has_pillows_pixels(photograph: Path) -> None:
    pytest.importorskip("simplejpeg")
    assert np.array_equal(pixels(photograph, using("simplejpeg")), pixels(photograph, GEOMETRY))
    assert np.abs(pixels(photograph, using("simplejpeg-scaled")) - pixels(photograph, GEOMETRY)).mean() < 3


@pytest.mark.parametrize("mode", ["L", "CMYK", "png"])
def test_what_is_no_rgb_jpeg_is_read_by_pillow(tmp_path: Path, stand_in: list[dict[str, int]], mode: str) -> None:
    grey = Image.fromarray(np.arange(60 * 80, dtype=np.uint8).reshape(60, 80))
    path = tmp_path / ("x.png" if mode == "png" else "x.jpg")
    grey.convert("RGB" if mode == "png" else mode).save(path)
    assert np.array_equal(pixels(path, using("simplejpeg")), pixels(path, GEOMETRY))
    assert not stand_in


def test_a_missing_module_is_named_before_any_work(photograph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    with pytest.raises(InputError, match="pip install simplejpeg"):
        Images([photograph], using("simplejpeg"))


def test_a_decoder_marks_the_protocol_and_pillow_moves_no_hash() -> None:
    protocol = find_protocol("knn.mmselfsup")
    assert "decoder" not in protocol.model_dump(mode="json")["geometry"]
    assert protocol.changed(geometry={"decoder": "pil"}).id == protocol.id
    assert protocol.changed(geometry={"decoder": "pil-draft"}).id.endswith("+geometry.decoder=pil-draft")

"""Patch features in the store: position by position, in half precision, and of raw pixels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.datasets.registry import find_dataset
from benchmarks.encoders.load import load_encoder
from benchmarks.features.extract import FeatureRequest
from benchmarks.features.pool import GlobalAverage, PatchRows, pool
from benchmarks.features.store import FeatureStore
from benchmarks.task import InputError, RunOptions
from results.schema import Geometry

SQUASHED = Geometry(mode="warp", resize=0, crop=32, interpolation="bicubic")


def test_rows_are_positions() -> None:
    maps = torch.randn(2, 5, 3, 4)
    rows = pool(maps, PatchRows()).view(2, 3, 4, 5)
    assert torch.equal(rows[1, 2, 3], maps[1, :, 2, 3])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_patches_of_raw_pixels_are_stored_and_read(small_data: Path, tmp_path: Path, dtype: str) -> None:
    labels = find_dataset("ade20k", small_data).read("training")
    options = RunOptions(device="cpu", workers=0, progress=False, features=tmp_path / dtype)
    rows = PatchRows(dtype=dtype)  # type: ignore[arg-type]
    outputs = {"patches": ("patches", rows), "mean": ("patches", GlobalAverage())}
    encoder = load_encoder("pixels")
    request = FeatureRequest(encoder, labels, SQUASHED, outputs)
    (split,) = FeatureStore(options).get([request])
    stored = split.features["patches"]
    assert stored.dtype == dtype
    assert stored.shape == (len(labels), 2 * 2 * 768)
    assert split.features["mean"].dtype == np.float32
    assert np.asarray(stored, np.float32).reshape(-1, 4, 768).mean(1) == pytest.approx(split.features["mean"], abs=1e-3)
    assert FeatureStore(options).bytes_to_write([request]) == {}
    image = torch.arange(3 * 32 * 32, dtype=torch.float32).view(1, 3, 32, 32)
    cut = encoder.outputs(image, {"patches"})["patches"]
    assert torch.equal(cut[0, :, 1, 0], image[0, :, 16:, :16].reshape(-1))


def test_what_half_precision_cannot_hold_is_refused(small_data: Path, tmp_path: Path) -> None:
    labels = find_dataset("ade20k", small_data).read("training")
    encoder = load_encoder("pixels")
    encoder.card = encoder.card.model_copy(update={"std": (1e-6, 1e-6, 1e-6), "mean": (0.9, 0.9, 0.9)})
    options = replace(RunOptions(device="cpu", workers=0, progress=False), features=tmp_path)
    request = FeatureRequest(encoder, labels, SQUASHED, {"patches": ("patches", PatchRows(dtype="float16"))})
    with pytest.raises(InputError, match="NaN or infinite patches"):
        FeatureStore(options).get([request])

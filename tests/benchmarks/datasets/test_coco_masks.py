"""Run lengths of masks: unpacked as pycocotools does, and refused where they are none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as rle

from benchmarks.datasets.coco import unpacked_run_lengths, usable_run_lengths


def masks() -> list[np.ndarray[Any, np.dtype[np.uint8]]]:
    draws = np.random.default_rng(0)
    found = [np.zeros((5, 7), np.uint8), np.ones((5, 7), np.uint8), np.ones((1, 1), np.uint8)]
    for number in range(40):
        height, width = draws.integers(1, 400, 2)
        noise = draws.random((height, width)) < draws.random()
        blocks = np.repeat(np.repeat(noise, 1 + number % 30, 0), 1 + number % 17, 1)[:height, :width]
        found.append(blocks.astype(np.uint8))
    return found


def plain_run_lengths(pixels: np.ndarray[Any, Any]) -> list[int]:
    """Lengths of zeros and ones in turn, column by column."""
    lengths, value = [0], 0
    for pixel in pixels.T.reshape(-1).tolist():
        if pixel != value:
            lengths.append(0)
            value = pixel
        lengths[-1] += 1
    return lengths


def test_packed_run_lengths_are_those_of_the_pixels() -> None:
    for pixels in masks():
        packed = rle.encode(np.asfortranarray(pixels))["counts"].decode()
        assert unpacked_run_lengths(packed).tolist() == plain_run_lengths(pixels)
        mask = {"size": list(pixels.shape), "counts": packed}
        assert usable_run_lengths(mask, *pixels.shape) is mask
        as_list = usable_run_lengths({"size": list(pixels.shape), "counts": plain_run_lengths(pixels)}, *pixels.shape)
        assert np.array_equal(rle.decode(as_list), pixels)


def test_polygons_fill_their_image_too() -> None:
    """COCO's own crowds were made from outlines."""
    for corners in ([0, 0, 9.5, 0, 9.5, 7.25], [3, 3, 50, 3, 50, 30, 3, 30], [-5, -5, 70, -5, 70, 60, -5, 60]):
        (packed,) = rle.frPyObjects([corners], 48, 64)
        mask = {"size": [48, 64], "counts": packed["counts"].decode()}
        assert usable_run_lengths(mask, 48, 64) is mask


@pytest.mark.parametrize(
    "counts",
    [
        "",
        "zzzzzz",
        "0",
        "P",
        "oooooooooooo0",
        "1" * 100,
        "\x7f",
        "\u1234",
        3,
        None,
        {},
        [1, 2],
        [-5, 3077],
        ["a"],
        [3072.0],
    ],
)
def test_what_is_no_mask_of_the_image_is_refused(counts: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        usable_run_lengths({"size": [48, 64], "counts": counts}, 48, 64)


def test_every_flipped_bit_is_refused_or_fills_the_image() -> None:
    pixels = masks()[8]
    good = rle.encode(np.asfortranarray(pixels))["counts"]
    for at in range(0, len(good), max(1, len(good) // 60)):
        for bit in range(8):
            text = (good[:at] + bytes([good[at] ^ 1 << bit]) + good[at + 1 :]).decode("latin1")
            try:
                mask = usable_run_lengths({"size": list(pixels.shape), "counts": text}, *pixels.shape)
            except ValueError:
                continue
            assert rle.decode(mask).shape == pixels.shape

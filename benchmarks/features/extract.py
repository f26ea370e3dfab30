"""One pass of a frozen encoder over a list of images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from benchmarks.data.transforms import Images
from benchmarks.encoders.encoder import Encoder
from benchmarks.features.pool import Pooling, pool
from benchmarks.progress import progress
from results.schema import Geometry


def extract(
    encoder: Encoder,
    paths: Iterable[Path],
    geometry: Geometry,
    outputs: Mapping[str, tuple[str, Pooling | None]],
    allocate: Callable[[str, tuple[int, int]], NDArray[np.float32]],
    *,
    precision: str = "fp32",
    batch_size: int = 64,
    workers: int = 2,
    show: bool = True,
) -> dict[str, NDArray[np.float32]]:
    """Fills one (N, D) array per requested output, in the order of `paths`.

    Args:
        outputs: key -> (encoder output, pooling of its maps or None for a vector).
        allocate: makes the array for a key once its shape is known (a memory map, or plain memory).
        precision: fp32 or bf16; the arrays are float32 either way.
    """
    paths = list(paths)
    loader = DataLoader(
        Images(paths, geometry),
        batch_size=batch_size,
        num_workers=workers if len(paths) > 2 * batch_size else 0,
        pin_memory=encoder.device.type == "cuda",
    )
    wanted = {output for output, _ in outputs.values()}
    arrays: dict[str, NDArray[np.float32]] = {}
    for images, indices in progress(loader, f"features of {encoder.card.name}", show=show):
        with torch.autocast(encoder.device.type, torch.bfloat16, enabled=precision == "bf16"):
            found = encoder.outputs(encoder.normalise(images), wanted)
        for key, (output, pooling) in outputs.items():
            value = found[output].float()
            vector = value if pooling is None else pool(value, pooling)
            if key not in arrays:
                arrays[key] = allocate(key, (len(paths), vector.shape[1]))
            arrays[key][indices.numpy()] = vector.cpu().numpy()
    return arrays

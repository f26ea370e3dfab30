"""The frozen encoder's side of a pass: from a batch of images to one vector per image and output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from benchmarks.encoders.encoder import Encoder
from benchmarks.features.fold import folded
from benchmarks.features.pool import Pooling, pool
from benchmarks.options import Precision
from results.schema import Geometry

Outputs = Mapping[str, tuple[str, Pooling | None]]  # key -> encoder output, pooling of its maps or None for a vector
Extract = Callable[[Tensor, Outputs], dict[str, Tensor]]

_LOW = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Pixels of a batch. On a CPU the maps of a batch this small stay in the last-level cache (ResNet-50 at 224 pixels: 8
# images); it must not follow the number of threads, as sums may be ordered otherwise in a batch of another size.
_BATCH_PIXELS = {"cpu": 8 * 224**2}
_GPU_BATCH_PIXELS = 256 * 224**2


def default_batch_size(device: torch.device, crop: int) -> int:
    """Images at a time, by the kind of device and the size of the images alone."""
    return max(1, _BATCH_PIXELS.get(device.type, _GPU_BATCH_PIXELS) // crop**2)


@contextmanager
def extractor(encoder: Encoder, geometry: Geometry, outputs: Outputs, precision: Precision) -> Iterator[Extract]:
    """A function of (N, 3, crop, crop) uint8 images and some of `outputs` that gives (N, D) float32 per key.

    fp32 is float32 throughout, TF32 off. bf16 and fp16 are torch's autocast; pooling to fixed grids is float32 always.
    Batch norms are folded while the context lasts.
    """
    names = {output for output, _ in outputs.values()}

    def run(images: Tensor, wanted: Outputs) -> dict[str, Tensor]:
        # The context of a generator would leak these modes, which belong to the thread, into its caller.
        with (
            torch.inference_mode(),
            torch.backends.cudnn.flags(deterministic=True, allow_tf32=False),
            torch.autocast(encoder.device.type, _LOW.get(precision), enabled=precision in _LOW),
        ):
            found = encoder.outputs(encoder.normalise(images), {output for output, _ in wanted.values()})
            vectors = {}
            for key, (output, pooling) in wanted.items():
                value = found[output].float()
                vectors[key] = value if pooling is None else pool(value, pooling)
            return vectors

    with folded(encoder, names, geometry.crop):
        yield run


def widths(encoder: Encoder, geometry: Geometry, outputs: Outputs) -> dict[str, int]:
    """D of each output's (N, D) features, from one blank image.

    Raises:
        InputError: a pooling kernel that the encoder's maps do not fit.
    """
    blank = torch.zeros(1, 3, geometry.crop, geometry.crop, dtype=torch.uint8)
    with torch.inference_mode():
        found = encoder.outputs(encoder.normalise(blank), {output for output, _ in outputs.values()})
        return {
            key: (found[output] if pooling is None else pool(found[output], pooling)).shape[1]
            for key, (output, pooling) in outputs.items()
        }

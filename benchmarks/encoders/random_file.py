"""A random network as a backbone file, its batch-norm statistics taken from images."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from benchmarks.datasets.imagefolder import read_image_folder
from benchmarks.datasets.images import Images
from benchmarks.encoders.export.atomic import writable
from benchmarks.encoders.resnet import parse_architecture, random_resnet, recalibrated
from pretrain.checkpoint import write_backbone
from results.schema import Geometry

log = logging.getLogger(__name__)


def write_random_encoder(architecture: str, images: Path, out: Path, *, seed: int, size: int) -> None:
    """Writes the control for a run with the same architecture and seed, calibrated on `images`/train.

    Raises:
        InputError: no images, an unknown architecture, or `out` cannot be written.
    """
    paths = read_image_folder(images, "train").paths
    encoder = random_resnet(parse_architecture(architecture), seed)
    geometry = Geometry(mode="shorter", resize=size, crop=size)
    recalibrated(encoder, (batch for batch, _ in DataLoader(Images(paths, geometry), batch_size=128)))
    with writable(out):
        write_backbone(out, encoder.module.state_dict(), encoder.card)


def command(
    architecture: str, images: Path, out: Path, seed: int = 0, size: int = 64, threads: int | None = None
) -> int:
    """Writes an encoder at random initialisation, its batch-norm statistics taken from images: the fair control.

    Args:
        architecture: as resnet50, or resnet18-w32-k3-nopool.
        images: image folder whose train split the statistics are taken from.
        out: backbone file to write.
        seed: of the initialisation.
        size: images are reduced and centre-cropped to this many pixels.
        threads: CPU threads; default torch's.
    """
    if threads:
        torch.set_num_threads(threads)
    write_random_encoder(architecture, images, out, seed=seed, size=size)
    log.info("wrote %s", out)
    return 0

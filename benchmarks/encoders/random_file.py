"""A random network as a backbone file, its batch-norm statistics taken from images."""

from __future__ import annotations

from pathlib import Path

from torch.utils.data import DataLoader

from benchmarks.data.imagefolder import read_image_folder
from benchmarks.data.transforms import Images
from benchmarks.encoders.resnet import parse_architecture, random_resnet, recalibrated
from pretrain.backbone_file import write_backbone
from results.schema import Geometry


def write_random_encoder(architecture: str, images: Path, out: Path, *, seed: int, size: int) -> None:
    """Writes the control for a run with the same architecture and seed, calibrated on `images`/train.

    Raises:
        InputError: no images, or an unknown architecture.
    """
    paths = read_image_folder(images, "train").paths
    encoder = random_resnet(parse_architecture(architecture), seed)
    geometry = Geometry(mode="shorter", resize=size, crop=size)
    recalibrated(encoder, (batch for batch, _ in DataLoader(Images(paths, geometry), batch_size=128)))
    write_backbone(out, encoder.module.state_dict(), encoder.card)

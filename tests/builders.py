"""What many test files build: labels and splits without files, protocols of no publication, and small ViTs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.task import Labels, Split
from results.schema import Architecture, EncoderCard, Geometry, Params, Protocol, Source

if TYPE_CHECKING:
    from benchmarks.encoders.encoder import Encoder

GEOMETRY = Geometry(mode="shorter", resize=18, crop=16)


def bare_labels(
    targets: NDArray[Any], classes: Sequence[str], *, ids: Sequence[str] | None = None, part: str = ""
) -> Labels:
    """Labels of images that are not there. Each is its own source; the ids are numbers, after `part` and a slash."""
    names = tuple(ids or (f"{part}/{i}" if part else str(i) for i in range(len(targets))))
    return Labels(names, tuple(map(Path, names)), tuple(classes), targets, tuple((name,) for name in names))


def bare_split(rows: NDArray[Any], targets: NDArray[Any], classes: Sequence[str], **names: Any) -> Split:
    """These rows as the output `embed` of `bare_labels`."""
    return Split(bare_labels(targets, classes, **names), {"embed": rows.astype(np.float32)})


def folder_protocol(params: Params, harness: str, primary: str, **about: Any) -> Protocol:
    """A protocol on an image folder of small pictures."""
    fields = {"benchmark": harness, "geometry": GEOMETRY, "metric": "top-1 accuracy", **about}
    return Protocol.of(
        params, variant="test", harness=harness, dataset="imagefolder", train_split="train", test_split="val",
        primary=primary, source=Source(repository="test"), **fields,
    )  # fmt: skip


def small_vit(
    name: str = "vit_tiny_patch16_224", *, noise: bool = False, pooling: Any = None, **settings: Any
) -> Encoder:
    """One of timm's ViTs, 24 wide.

    Args:
        noise: also where a fresh network has zeros, its parameters are not.
        pooling: as in its card.
        settings: of `timm.create_model`; None leaves one out.
    """
    import timm
    import torch

    from benchmarks.encoders.timm_models import _encoder

    torch.manual_seed(0)
    settings = {"embed_dim": 24, "num_heads": 3, "patch_size": 8, "dynamic_img_size": True, **settings}
    net = timm.create_model(name, num_classes=0, **{k: v for k, v in settings.items() if v is not None})
    if noise:
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    architecture = Architecture(name=f"timm:{name}", pooling=pooling)
    return _encoder(EncoderCard(name="a small ViT", source="test", architecture=architecture), net, None)

"""Feature1 … Feature5: maps pooled to fixed grids, batch norm over their channels, and a head on each; last epoch."""

from __future__ import annotations

from typing import Any

from benchmarks.features.pool import ADAPTIVE_GRIDS, FIXED_224
from benchmarks.linear.declare import CIFAR, OWN, RESIZE_256, probe_protocol
from benchmarks.linear.settings import ProbeSettings
from benchmarks.task import FEATURE_MAPS
from results.schema import Geometry, Protocol, Source


def _multihead(
    variant: str, settings: ProbeSettings, source: Source, dataset: str, geometry: Geometry = RESIZE_256
) -> Protocol:
    return probe_protocol(
        "linear_multihead",
        variant,
        settings,
        source,
        dataset=dataset,
        geometry=geometry,
    )


_NESTEROV: dict[str, Any] = {"outputs": FEATURE_MAPS, "pooling": FIXED_224, "lrs": (0.01,), "nesterov": True}
_NO_COLOUR = {"jitter": 0.0, "lighting": 0.0}

_MMSELFSUP = ProbeSettings(
    **_NESTEROV,
    batch_norm="plain",
    weight_decays=(1e-4,),
    jitter=0.4,
    lighting=0.1,
    epochs=90,
    drops=(30, 60, 90),  # the last is never reached
    evaluate_every=10,
)
_MMSELFSUP_ON: tuple[tuple[str, dict[str, Any], str], ...] = (
    (
        "imagenet",
        {},
        "imagenet/resnet50_mhead_linear-8xb32-steplr-90e_in1k.py",
    ),
    (
        "places205",
        {"epochs": 28, "drops": (7, 14, 21), "view": "stored_crop", **_NO_COLOUR},
        "places205/resnet50_mhead_8xb32-steplr-28e_places205.py, whose own evaluations stop at epoch 20",
    ),
    (
        "inat18",
        {"epochs": 84, "drops": (24, 48, 72), **_NO_COLOUR},
        "inaturalist2018/resnet50_mhead_8xb32-steplr-84e_inat18.py, whose own evaluations stop at epoch 80",
    ),
)

_VISSL = ProbeSettings(**_NESTEROV, batch_norm="affine", weight_decays=(5e-4,), epochs=28)
_VISSL_ON: tuple[tuple[str, dict[str, Any]], ...] = (
    ("imagenet", {"epochs": 28, "drops": (8, 16, 24)}),
    ("places205", {"epochs": 14, "drops": (4, 8, 12)}),
    ("inat18", {"epochs": 84, "drops": (24, 48, 72)}),
)

_FSSB = _MMSELFSUP.changed(iterations=140_000, drops=(40_000, 80_000, 120_000), evaluate_every=1)

MULTIHEAD_PROTOCOLS = (
    *(
        _multihead(
            "mmselfsup",
            _MMSELFSUP.changed(**changes),
            Source(repository="open-mmlab/mmselfsup", revision="0.x 6faad81", note=note),
            dataset,
        )
        for dataset, changes, note in _MMSELFSUP_ON
    ),
    *(
        _multihead(
            "vissl",
            _VISSL.changed(**changes),
            Source(
                repository="facebookresearch/vissl",
                revision="09270ed",
                note="configs/config/benchmark/linear_image_classification: 0.01 for a batch of 256; no decay on the "
                "batch norm's scale and shift",
            ),
            dataset,
        )
        for dataset, changes in _VISSL_ON
    ),
    *(
        _multihead(
            "fssb",
            _FSSB.changed(epochs=epochs),
            Source(
                repository="facebookresearch/fair_self_supervision_benchmark",
                revision="1e5d165",
                note=f"140k iterations of 256, {exact} epochs, drops every 40k; data_input.py jitters, lights and "
                "normalises in this order, however the configuration lists them",
            ),
            dataset,
        )
        for dataset, epochs, exact in (("imagenet", 28, "28.0"), ("places205", 15, "14.6"))
    ),
    _multihead(
        "mmselfsup",
        _MMSELFSUP.changed(pooling=ADAPTIVE_GRIDS, **_NO_COLOUR),
        Source(
            repository=OWN,
            note="linear_multihead.mmselfsup@1 on CIFAR-10 at its own 32 pixels, measured on its test split: "
            "mmselfsup's CIFAR-10 benchmark trains the backbone too, so there is no published figure to match",
        ),
        "cifar10",
        CIFAR,
    ),
)

"""AvgPool: one head on the encoder's vector, no batch norm, no L2 norm, weights from N(0, 0.01) and no bias at first.

The published AvgPool column mixes several settings: its rows for SimCLR, BYOL and SimSiam come from `simsiam`, those of
SwAV, Barlow Twins and MoCo v3 each from the variant of that name, the others from `mmselfsup`, which is `moco` under
another roof. Every one of them reports the best epoch on the set that it evaluates.
"""

from __future__ import annotations

from benchmarks.linear.declare import CIFAR, OWN, RESIZE_256, probe_protocol
from benchmarks.linear.settings import ProbeSettings
from results.schema import Geometry, Protocol, Source

MMS = {"repository": "open-mmlab/mmselfsup", "revision": "0.x 6faad81"}


def _avgpool(
    variant: str,
    settings: ProbeSettings,
    source: Source,
    dataset: str = "imagenet",
    geometry: Geometry = RESIZE_256,
) -> Protocol:
    return probe_protocol(
        "linear_avgpool",
        variant,
        settings.changed(choose_epoch="best"),
        source,
        dataset=dataset,
        geometry=geometry,
    )


_MOCO = ProbeSettings(outputs=("embed",), lrs=(30.0,), epochs=100, drops=(60, 80))
_SWAV = ProbeSettings(outputs=("embed",), lrs=(0.3,), weight_decays=(1e-6,), epochs=100, schedule="cosine")

AVGPOOL_PROTOCOLS = (
    _avgpool(
        "moco",
        _MOCO,
        Source(
            repository="facebookresearch/moco",
            revision="7397dfe",
            note="main_lincls.py: --lr 30 --wd 0 --batch-size 256, --schedule 60 80, RandomResizedCrop(224) and flip; "
            "evaluates every epoch and keeps the best; no seed; drop_last off",
        ),
    ),
    _avgpool(
        "mmselfsup",
        _MOCO,
        Source(
            **MMS,
            note="imagenet/resnet50_linear-8xb32-steplr-100e_in1k.py, --seed 0; evaluates every epoch, and OpenSelfSup "
            "states that the best is reported",
        ),
    ),
    _avgpool(
        "simsiam",
        ProbeSettings(outputs=("embed",), optimiser="lars", lrs=(1.6,), batch_size=4096, epochs=90, schedule="cosine"),
        Source(
            **MMS,
            note="imagenet/resnet50_linear-8xb512-coslr-90e_in1k.py and core/optimizer/optimizers.py (LARS, eta "
            "0.001); SimSiam's own main_lincls.py scales 0.1 x batch / 256 to the same rate",
        ),
    ),
    _avgpool(
        "swav",
        _SWAV,
        Source(
            **MMS,
            note="imagenet/resnet50_linear-8xb32-coslr-100e_in1k.py; facebookresearch/swav eval_linear.py has the same",
        ),
    ),
    _avgpool(
        "barlowtwins",
        _SWAV,
        Source(
            repository="facebookresearch/barlowtwins",
            revision="8e8d284",
            note="evaluate.py: --lr-classifier 0.3 --weight-decay 1e-6 --batch-size 256 --epochs 100, momentum 0.9, "
            "CosineAnnealingLR once per epoch; keeps the best epoch",
        ),
    ),
    _avgpool(
        "mocov3",
        ProbeSettings(outputs=("embed",), lrs=(12.0,), batch_size=1024, epochs=90, schedule="cosine"),
        Source(
            **MMS,
            note="imagenet/vit-small-p16_linear-8xb128-coslr-90e_in1k.py; facebookresearch/moco-v3 CONFIG.md says "
            "--lr=3, which its main_lincls.py scales by batch / 256",
        ),
    ),
    *(
        _avgpool(
            "moco",
            _MOCO,
            Source(repository=OWN, note=f"linear_avgpool.moco@1 on {name}; no published figure to match"),
            dataset,
            geometry,
        )
        for dataset, name, geometry in (
            ("places205", "Places205", RESIZE_256),
            ("inat18", "iNaturalist 2018", RESIZE_256),
            ("cifar10", "CIFAR-10 at its own 32 pixels, measured on its test split", CIFAR),
        )
    ),
)

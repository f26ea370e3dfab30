"""The fine-tuning protocols: every number with its source."""

from __future__ import annotations

from typing import Any

from benchmarks.finetune.settings import FineTuneSettings
from results.schema import Geometry, Protocol, Source

OWN = "this project"
TOP = ("Top-1", "Top-5", "Top-1 best")
ORACLE = ("Top-1 oracle", "Top-5 oracle")

RESIZE_256 = Geometry(mode="shorter", resize=256, crop=224)
SMALL = Geometry(mode="shorter", resize=48, crop=48)  # uncropped: a drawing may lie anywhere in its picture

LAST = "last epoch"
BEST = "best epoch on test (oracle)"
HELD_OUT = "; rates chosen on a held-out part of train, then trained on all of it"
ON_TEST = "; rates chosen on test (oracle)"


def columns(protocol: Protocol) -> tuple[str, ...]:
    """Those that the protocol's `params` give, which an override may have changed."""
    return _columns(FineTuneSettings.model_validate(protocol.params))


def selection(protocol: Protocol) -> str:
    """How the figures are chosen, by the protocol's `params`, which an override may have changed."""
    return _selection(FineTuneSettings.model_validate(protocol.params))


def _selection(settings: FineTuneSettings) -> str:
    """One cell leaves nothing to choose; without a held-out part the only choice is that on test."""
    if len(settings.grid) == 1:
        return LAST
    return LAST + (HELD_OUT if settings.heldout else ON_TEST)


def _columns(settings: FineTuneSettings) -> tuple[str, ...]:
    return (*TOP, *ORACLE) if len(settings.grid) > 1 else TOP


def _protocol(
    benchmark: str,
    variant: str,
    harness: str,
    settings: FineTuneSettings,
    source: Source,
    *,
    dataset: str = "imagenet",
    train_split: str = "train",
    geometry: Geometry = RESIZE_256,
) -> Protocol:
    return Protocol(
        benchmark=benchmark,
        variant=variant,
        harness=harness,
        dataset=dataset,
        train_split=train_split,
        test_split="val",
        geometry=geometry,
        columns=_columns(settings),
        primary="Top-1",
        metric="top-1 accuracy",
        selection=_selection(settings),
        params=settings.model_dump(),
        source=source,
    )


# Nine cells on 4 GPUs of 64 images.
_SEMI: dict[str, Any] = {
    "lrs": (0.001, 0.01, 0.1),
    "head_multipliers": (1.0, 10.0, 100.0),
    "epochs": 20,
    "drops": (12, 16),
    "gamma": 0.2,
    "evaluate_every": 5,
    "heldout": 0.1,
}
_SMALL: dict[str, Any] = {
    **_SEMI,
    "lrs": (0.01, 0.1),
    "head_multipliers": (1.0, 10.0),
    "batch_size": 32,
    "heldout": 0.3,  # a tenth of fifty drawings would choose by chance
    "evaluate_every": 20,  # the test drawings outnumber the labelled ones by far
}

# PyTorch's ImageNet example, which the paper calls the typical implementation: batch 256, momentum 0.9, decay 1e-4.
_END_TO_END: dict[str, Any] = {"weight_decay": 1e-4, "epochs": 100, "drops": (70, 90), "head_init": "default"}
_V1 = "arXiv:1911.05722 (MoCo v1)"


def _semi(percent: int, decay: float, small_fraction: float) -> tuple[Protocol, Protocol]:
    benchmark, command = f"semi_supervised_{percent}pct", f"semi-{percent}pct"
    published = _protocol(
        benchmark,
        "mmselfsup",
        command,
        FineTuneSettings(**_SEMI, weight_decay=decay),
        Source(
            repository="open-mmlab/mmselfsup",
            revision="0.x 6faad81",
            note=f"imagenet/imagenet_{percent}percent, nine files: 4 x 64 images, SyncBN, SGD 0.9, x0.2 at 12 and 16 "
            f"of 20 epochs, decay {decay:g}; the published figure is the best of the nine on val (oracle). Held-out "
            "part and the interval of evaluation are this project's",
        ),
        train_split=f"train-{percent}pct",
    )
    small = _protocol(
        benchmark,
        "demo",
        command,
        FineTuneSettings(**_SMALL, weight_decay=decay, labelled=small_fraction),
        Source(
            repository=OWN,
            note=f"{benchmark}.mmselfsup@1 made small: {small_fraction:.0%} of each class of the embedded drawings are "
            "labelled, four cells, batches of 32",
        ),
        dataset="drawings",
        geometry=SMALL,
    )
    return published, small


def _end_to_end(dataset: str, variant: str, lr: float, note: str) -> Protocol:
    return _protocol(
        f"finetune_{dataset}",
        variant,
        "finetune",
        FineTuneSettings(**_END_TO_END, lrs=(lr,), evaluate_every=10),
        Source(repository=_V1, note=f"{note}; batch norms over the whole batch, whatever the ranks"),
        dataset=dataset,
    )


_INAT = "appendix A.6: {} for 100 epochs, x0.1 at 70 % and 90 % of training, else PyTorch's typical ResNet training"
_IMAGENET = "last table of the appendix: {}; the schedule, which it does not give, is that of appendix A.6"
PROTOCOLS: tuple[Protocol, ...] = (
    *_semi(1, 5e-4, 0.1),
    *_semi(10, 1e-4, 0.3),
    _end_to_end("imagenet", "mocov1", 0.03, _IMAGENET.format("0.03")),
    _end_to_end("imagenet", "mocov1_scratch", 0.1, _IMAGENET.format("0.1 from random initialisation")),
    _end_to_end("inat18", "mocov1", 0.025, _INAT.format("0.025")),
    _end_to_end("inat18", "mocov1_scratch", 0.1, _INAT.format("0.1 from random initialisation")),
    _protocol(
        "finetune_imagenet",
        "demo",
        "finetune",
        FineTuneSettings(lrs=(0.03,), weight_decay=1e-4, epochs=20, drops=(14, 18), batch_size=32, evaluate_every=10,
                         head_init="default"),
        Source(repository=OWN, note="finetune_imagenet.mocov1@1 made small, on the embedded drawings"),
        dataset="drawings",
        geometry=SMALL,
    ),
)  # fmt: skip

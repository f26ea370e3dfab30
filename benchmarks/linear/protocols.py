"""The linear protocols: the published probes, and the project's own on embedded drawings and stored features."""

from __future__ import annotations

from benchmarks.features.pool import ADAPTIVE_GRIDS
from benchmarks.linear import declare
from benchmarks.linear.avgpool_protocols import AVGPOOL_PROTOCOLS
from benchmarks.linear.declare import (
    OWN,
    RESIZE_256,
    SMALL,
    probe_columns,
    probe_protocol,
)
from benchmarks.linear.multihead_protocols import MULTIHEAD_PROTOCOLS
from benchmarks.linear.settings import ProbeSettings, StoredSettings
from benchmarks.task import FEATURE_MAPS
from results.schema import Geometry, Protocol, Source

STORED = ("Stored", "Stored oracle", "Stored top-5", "Stored oracle top-5")

_SMALL_HEADS = ProbeSettings(
    outputs=("embed",),
    batch_size=64,
    epochs=20,
    drops=(12, 16),
    lrs=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
    heldout=0.2,
)
AVGPOOL_DEMO = probe_protocol(
    "linear_avgpool",
    "demo",
    _SMALL_HEADS,
    Source(
        repository=OWN, note="linear_avgpool.moco@1 made small; a fifth of train chooses the rate and trains no head"
    ),
    dataset="drawings",
    geometry=SMALL,
)
MULTIHEAD_DEMO = probe_protocol(
    "linear_multihead",
    "demo",
    _SMALL_HEADS.changed(
        outputs=FEATURE_MAPS,
        pooling=ADAPTIVE_GRIDS,
        batch_norm="plain",
        nesterov=True,
        weight_decays=(1e-4,),
        lrs=(0.001, 0.003, 0.01, 0.03),
        evaluate_every=10,
    ),
    Source(
        repository=OWN,
        note="linear_multihead.mmselfsup@1 made small; a fifth of train chooses the rate and trains no head",
    ),
    dataset="drawings",
    geometry=SMALL,
)


def _stored(variant: str, settings: StoredSettings, note: str, dataset: str, geometry: Geometry) -> Protocol:
    return Protocol(
        benchmark="linear_stored",
        variant=variant,
        harness="linear-stored",
        dataset=dataset,
        train_split="train",
        test_split="val",
        geometry=geometry,
        columns=STORED,
        primary="Stored",
        metric="top-1 accuracy",
        selection="penalty chosen on a held-out part of train, then fitted on all of it",
        params=settings.model_dump(),
        source=Source(repository=OWN, note=note),
    )


_PENALTIES = tuple(10.0**power for power in range(1, -7, -1))  # from the most regularised, where the path starts
STORED_PROTOCOLS = (
    _stored(
        "imagefolder",
        StoredSettings(penalties=_PENALTIES, heldout=0.1),
        "multinomial logistic regression by L-BFGS on any ImageFolder; not comparable with AvgPool, which sees views",
        "imagefolder",
        RESIZE_256,
    ),
    _stored(
        "demo",
        StoredSettings(penalties=_PENALTIES, heldout=0.2, dtype="float64"),
        "linear_stored.imagefolder@1 on the embedded single drawings",
        "drawings",
        SMALL,
    ),
)

PROTOCOLS: tuple[Protocol, ...] = (
    *(*AVGPOOL_PROTOCOLS, AVGPOOL_DEMO),
    *(*MULTIHEAD_PROTOCOLS, MULTIHEAD_DEMO),
    *STORED_PROTOCOLS,
)


def columns(protocol: Protocol) -> tuple[str, ...]:
    """Those that the protocol's `params` give, which an override may have changed."""
    if protocol.harness == "linear-stored":
        return protocol.columns
    settings = ProbeSettings.model_validate(protocol.params)
    return probe_columns(settings)


def selection(protocol: Protocol) -> str:
    """How the figures are chosen, by the protocol's `params`, which an override may have changed."""
    if protocol.harness == "linear-stored":
        return protocol.selection
    return declare.selection(ProbeSettings.model_validate(protocol.params))

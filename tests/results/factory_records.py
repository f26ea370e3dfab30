"""Synthetic records with outcomes that their scores follow from. Seeded, and far from any real figure's meaning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import create_model

from results.bootstrap import replicates
from results.schema import (
    Architecture,
    DatasetRef,
    EncoderCard,
    Geometry,
    Hardware,
    Params,
    Protocol,
    ProtocolRef,
    Record,
    Score,
    Source,
    canonical_sha256,
)
from results.store import write_record

SMALL_RESNET = Architecture(name="resnet18", width=32, stem_kernel=3, max_pool=False)
LAYERS = ("feature1", "feature2", "feature3", "feature4", "feature5")
KNN_COLUMNS = ("k=10", "k=20", "k=100", "k=200", "k=20 top-5")


def card(name: str, **fields: Any) -> EncoderCard:
    defaults: dict[str, Any] = {
        "source": "synthetic",
        "architecture": SMALL_RESNET,
        "weights_sha256": canonical_sha256([name, fields.get("init")]),
    }
    return EncoderCard(name=name, **{**defaults, **fields})


def random_card(seed: int, **fields: Any) -> EncoderCard:
    return card(f"random init (resnet18, seed {seed})", method="random", epochs=0, init=f"seed {seed}", **fields)


def moco_card(seed: int, **fields: Any) -> EncoderCard:
    about = {
        "method": "MoCo v2",
        "epochs": 60,
        "pretrain_data": "drawings",
        "pretrain_seconds": 301.5,
        "init": f"seed {seed}",
    }
    return card("mocov2_resnet18w32_demo", **{**about, **fields})


def protocol(
    benchmark: str,
    columns: tuple[str, ...],
    primary: str,
    *,
    variant: str = "demo",
    params: Mapping[str, Any] | None = None,
    **fields: Any,
) -> Protocol:
    defaults: dict[str, Any] = {
        "harness": benchmark.split("_")[0],
        "dataset": "drawings",
        "train_split": "train",
        "test_split": "val",
        "geometry": Geometry(mode="shorter", resize=36, crop=32),
        "metric": "accuracy",
        "selection": "fixed",
        "source": Source(repository="synthetic"),
    }
    about = {"benchmark": benchmark, "variant": variant, "columns": columns, "primary": primary}
    values = {"epochs": 30} if params is None else params
    typed: Any = create_model("MadeUpParams", __base__=Params, **{name: (Any, v) for name, v in values.items()})
    return Protocol.of(typed(), **{**about, **defaults, **fields})


KNN = protocol("knn", KNN_COLUMNS, "k=20")
LINEAR = protocol("linear_avgpool", ("AvgPool",), "AvgPool")
SVM = protocol("voc07_svm", (*LAYERS, "SVM"), "SVM", metric="mean average precision", dataset="scenes")


def encode_groups(groups: Sequence[Sequence[str]]) -> dict[str, NDArray[Any]]:
    """Each item's source ids as `group_offsets` (N + 1,) and `group_members` (M,), as outcomes files hold them."""
    offsets = np.cumsum([0, *(len(group) for group in groups)])
    return {"group_offsets": offsets, "group_members": np.array([source for group in groups for source in group])}


def single_groups(items: int) -> dict[str, NDArray[Any]]:
    """Every item its own source, with ids."""
    return {
        "ids": np.array([f"drawing{i:04d}" for i in range(items)]),
        **encode_groups([[f"d{i}"] for i in range(items)]),
    }


def scene_groups(items: int, sources: int, most: int, seed: int) -> dict[str, NDArray[Any]]:
    """Items of one to `most` different sources."""
    rng = np.random.default_rng(seed)
    groups = [[f"d{s}" for s in rng.choice(sources, rng.integers(1, most + 1), replace=False)] for _ in range(items)]
    return {"ids": np.array([f"{i:06d}" for i in range(items)]), **encode_groups(groups)}


def accuracy_outcomes(columns: tuple[str, ...], skill: float, seed: int, items: int = 220) -> dict[str, NDArray[Any]]:
    """Each item is right where its difficulty, the same for every encoder, is below skill and luck."""
    difficulty = np.random.default_rng(0).random(items)
    luck = np.random.default_rng([1, seed]).normal(0, 0.2, (items, len(columns)))
    correct = difficulty[:, None] < skill + luck
    hits = {f"correct/{column}": correct[:, i] for i, column in enumerate(columns)}
    return {**hits, "targets": np.arange(items) % 12, **single_groups(items)}


def decision_outcomes(
    columns: tuple[str, ...], skill: float, seed: int, items: int = 160, classes: int = 4
) -> dict[str, NDArray[Any]]:
    """Decisions that rise with the presence of a class, more so in later columns."""
    targets = np.random.default_rng(0).choice([-1, 0, 0, 0, 1], size=(items, classes)).astype(np.int8)
    noise = np.random.default_rng([2, seed]).normal(size=(len(columns), items, classes))
    decisions = {
        f"decision/{column}": (skill * (i + 1) / len(columns) * targets + noise[i]).astype(np.float32)
        for i, column in enumerate(columns)
    }
    return {**decisions, "targets": targets, **scene_groups(items, 60, 5, seed=0)}


def record(
    encoder: EncoderCard,
    asked: Protocol,
    outcomes: Mapping[str, NDArray[Any]] | None = None,
    *,
    embedded: bool = True,
    status: str = "ok",
    error: str | None = None,
    scores: dict[str, Score] | None = None,
    **fields: Any,
) -> Record:
    """A record whose scores are those of the outcomes, unless given; a column `SVM` is its best layer."""
    if scores is None:
        scores = scores_of(outcomes, asked) if outcomes else {}
    items = len(outcomes["ids"]) if outcomes else 220
    defaults: dict[str, Any] = {
        "dataset": DatasetRef(
            id=asked.dataset,
            fingerprint=canonical_sha256([asked.dataset, embedded]),
            embedded=embedded,
            train_items=512,
            test_items=items,
        ),
        "seeds": (0,),
        "hardware": Hardware(cpu="synthetic", cores=2, memory_gib=8.0),
        "created": "2025-01-01T00:00:00+00:00",
    }
    return Record.model_validate(
        {
            "status": status,
            "error": error,
            "encoder": encoder,
            "protocol": ProtocolRef(id=asked.id, sha256=asked.content_sha256(), resolved=asked),
            "scores": scores,
            **{**defaults, **fields},
        }
    )


def scores_of(outcomes: Mapping[str, NDArray[Any]], asked: Protocol) -> dict[str, Score]:
    measured = [c for c in asked.columns if f"correct/{c}" in outcomes or f"decision/{c}" in outcomes]
    values = {c: 100 * r.value for c, r in replicates(outcomes, measured, resamples=2).items()}
    n = len(outcomes["ids"])
    scores = {c: Score(value=value, n=n, selection="fixed") for c, value in values.items()}
    if "SVM" in asked.columns:
        scores["SVM"] = Score(value=max(values.values()), n=n, selection="best on test (oracle)")
    return scores


def write_demo(root: Path) -> None:
    """What `make demo-seeds` leaves: pixels, five random initialisations, three pretraining seeds, a larger encoder."""
    encoders: list[tuple[EncoderCard, float]] = [(random_card(seed), 0.25) for seed in range(5)]
    encoders += [(moco_card(seed), 0.45) for seed in range(3)]
    encoders.append((card("EfficientNet-Lite0", architecture=Architecture(name="timm:tf_efficientnet_lite0"),
                          method="supervised", pretrain_data="ImageNet-1k"), 0.85))  # fmt: skip
    encoders.append((card("raw pixels", architecture=Architecture(name="pixels")), 0.2))
    for number, (encoder, skill) in enumerate(encoders):
        knn = accuracy_outcomes(KNN_COLUMNS, skill, number)
        write_record(root, record(encoder, KNN, knn), knn)
        linear = accuracy_outcomes(("AvgPool",), skill + 0.05, number)
        write_record(root, record(encoder, LINEAR, linear), linear)
        if encoder.architecture.name != "pixels":
            svm = decision_outcomes(LAYERS, 3 * skill, number)
            write_record(root, record(encoder, SVM, svm), svm)

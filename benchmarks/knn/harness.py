"""kNN classification of a split's features: checks, one search, votes for every k, scores."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.contract import InputError, Labels, Outcome, Split
from benchmarks.knn.engines import Engine
from benchmarks.knn.neighbours import neighbour_sheet
from benchmarks.knn.protocols import KnnParams, column
from benchmarks.knn.rows import norms
from benchmarks.knn.search import search
from benchmarks.knn.vote import true_class_ranks
from benchmarks.overrides import typed
from results.schema import Protocol, Score


def run(
    protocol: Protocol,
    train: Split,
    test: Split,
    *,
    device: str = "cpu",
    engine: Engine = "auto",
    progress: bool = True,
) -> Outcome:
    """Classify `test` by the nearest rows of `train`.

    Raises:
        InputError: a split is empty, features are missing, of the wrong shape, not finite or zero, or some k is larger
            than the gallery.
    """
    params = typed(KnnParams, protocol)
    gallery, gallery_norms = _checked(train, params.features, "train")
    queries, query_norms = _checked(test, params.features, "test")
    if gallery.shape[1] != queries.shape[1]:
        raise InputError(
            f"{params.features} has {gallery.shape[1]} columns in the train split and {queries.shape[1]} in the test "
            "split: extract both with the same encoder"
        )
    targets = _same_classes(train.labels, test.labels)
    excluded = _own_rows(train.labels, test.labels) if params.exclude_self else np.full(len(queries), -1, np.int64)
    available = len(gallery) - int((excluded >= 0).any())
    if params.k[-1] > available:
        raise InputError(
            f"{protocol.id} asks for k={params.k[-1]}, but the gallery has only {available} images to choose from: "
            f"use k up to {available}"
        )

    began = time.perf_counter()
    found = search(
        gallery,
        queries,
        params.k[-1],
        normalise=params.normalise,
        excluded=excluded,
        engine=engine,
        device=device,
        gallery_norms=gallery_norms,
        query_norms=query_norms,
        show=progress,
    )
    searched = time.perf_counter()
    ranks = true_class_ranks(
        found.similarities,
        train.labels.targets[found.indices],
        targets,
        ks=params.k,
        temperature=params.temperature,
        num_classes=len(train.labels.classes),
    )
    outcome = Outcome(scores={}, timing={"search": searched - began, "vote": time.perf_counter() - searched})
    for top in params.top:
        for k in params.k:
            name = column(k, top)
            hits = ranks[k] < top
            outcome.items[f"correct/{name}"] = hits
            outcome.scores[name] = Score(value=100 * float(hits.mean()), n=len(hits), selection=protocol.selection)
    outcome.runs.append(
        {
            "engine": found.engine,
            "fallbacks_float32": found.fallbacks["float32"],
            "fallbacks_float64": found.fallbacks["float64"],
            "self_matches_excluded": int((excluded >= 0).sum()),
        }
    )
    sheet = neighbour_sheet(train.labels, test.labels, found.indices)
    if sheet is not None:
        outcome.pictures["neighbours"] = sheet
    return outcome


def _checked(split: Split, name: str, which: str) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """The (N, D) features of a split and their norms, once they can be compared."""
    if not len(split.labels):
        raise InputError(f"the {which} split is empty: kNN needs at least one image in it")
    if name not in split.features:
        raise InputError(
            f"the {which} split has no {name!r} features (it has {', '.join(sorted(split.features)) or 'none'}): "
            "choose an encoder with that output or another protocol"
        )
    features = split.features[name]
    if features.ndim != 2 or len(features) != len(split.labels):
        raise InputError(
            f"{name} of the {which} split has shape {features.shape} for {len(split.labels)} images: extract it again"
        )
    size = norms(features)
    # As float32, because the search works in it: a row of 1e-40 is as good as zero there.
    with np.errstate(over="ignore"):
        as_float32 = size.astype(np.float32)
    for fault, bad in (
        ("NaN or infinite", ~np.isfinite(as_float32)),
        ("all-zero", as_float32 < np.finfo(np.float32).tiny),
    ):
        if bad.any():
            raise InputError(
                f"{name} of the {which} split is {fault} for {int(bad.sum())} of {len(bad)} images "
                f"({_some([split.labels.ids[i] for i in np.flatnonzero(bad)[:4]], int(bad.sum()))}): "
                "check these images and the encoder's weights"
            )
    return features, size


def _some(ids: Sequence[str], total: int) -> str:
    return ", ".join(ids[:3]) + (", …" if total > 3 else "")


def _same_classes(train: Labels, test: Labels) -> NDArray[np.int64]:
    """Test targets as indices into the train split's classes."""
    for labels, which in ((train, "train"), (test, "test")):
        if labels.targets.ndim != 1:
            raise InputError(f"the {which} split has several labels per image: kNN classifies single-label sets")
    place = {name: i for i, name in enumerate(train.classes)}
    missing = [name for name in test.classes if name not in place]
    if missing:
        raise InputError(
            f"the test split has classes that the train split lacks ({_some(missing, len(missing))}): use splits of "
            "one data set"
        )
    return np.array([place[name] for name in test.classes], np.int64)[test.targets]


def _own_rows(train: Labels, test: Labels) -> NDArray[np.int64]:
    """Per test image its row in the gallery, or -1.

    An image is itself where both id and file agree: ids are unique within a split only, and two splits may both number
    their images from zero.
    """
    row = {key: i for i, key in enumerate(zip(train.ids, train.paths, strict=True))}
    own = (row.get(key, -1) for key in zip(test.ids, test.paths, strict=True))
    return np.fromiter(own, np.int64, count=len(test))


def required_outputs(protocol: Protocol) -> dict[str, tuple[str, None]]:
    """Feature key -> (encoder output, no pooling) that the protocol reads."""
    name = typed(KnnParams, protocol).features
    return {name: (name, None)}

"""The score against a plain loop, and its uncertainty against repeated draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from benchmarks.audit import jackknife_groups, retrieval, score_difference


def problem(seed: int, sources: int = 60, views: int = 2) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    classes = np.repeat(rng.integers(0, 4, sources), views)
    centres = np.random.default_rng(99).normal(size=(4, 16))
    source = np.repeat(rng.normal(size=(sources, 16)), views, axis=0)
    features = centres[classes] + source + 0.3 * rng.normal(size=source.shape)
    return torch.from_numpy(features).float(), classes, np.repeat(np.arange(sources), views)


def plain(features: torch.Tensor, classes: np.ndarray, sources: np.ndarray) -> float:
    x = features.double().numpy()
    x = (x - x.mean(0)) / x.std(0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    values = []
    for i in range(len(x)):
        others = sources != sources[i]
        hits = classes[others] == classes[i]
        if hits.any():
            values.append(average_precision_score(hits, x[others] @ x[i]))
    return 100 * float(np.mean(values))


def test_score_is_that_of_a_plain_loop() -> None:
    features, classes, sources = problem(0)
    groups = jackknife_groups(sources, 0)
    found = retrieval(features, classes, sources, groups)
    assert found.score == pytest.approx(plain(features, classes, sources), abs=1e-4)


def test_a_group_is_taken_out_of_queries_and_gallery() -> None:
    features, classes, sources = problem(1, sources=30)
    groups = jackknife_groups(sources, 3)
    found = retrieval(features, classes, sources, groups)
    assert len(found.without) == 30
    # Standardised by all images: the statistics of features stay, as those of one group hardly move them.
    x = features.double()
    x = (x - x.mean(0)) / x.std(0, correction=0)
    left = groups != 4
    hits = []
    unit = torch.nn.functional.normalize(x[left], dim=1).numpy()
    for i in range(left.sum()):
        others = sources[left] != sources[left][i]
        hit = classes[left][others] == classes[left][i]
        if hit.any():
            hits.append(average_precision_score(hit, unit[others] @ unit[i]))
    assert found.without[4] == pytest.approx(100 * np.mean(hits), abs=1e-4)


def test_the_scale_and_offset_of_features_do_not_count() -> None:
    features, classes, sources = problem(2)
    groups = jackknife_groups(sources, 0)
    other = retrieval(features * 7 + 3, classes, sources, groups)
    gap = score_difference(other, retrieval(features, classes, sources, groups), 0.025)
    assert gap.gain == pytest.approx(0, abs=1e-4)
    assert not gap.higher
    assert not gap.lower


def test_a_channel_that_never_changes_does_not_count() -> None:
    features, classes, sources = problem(3)
    groups = jackknife_groups(sources, 0)
    padded = torch.cat([features, torch.full((len(features), 3), 5.0)], dim=1)
    assert retrieval(padded, classes, sources, groups).score == retrieval(features, classes, sources, groups).score


@pytest.mark.slow
def test_standard_error_is_the_spread_over_fresh_draws() -> None:
    """One net adds noise to the other: the jackknife's error must be that of the difference over new sources."""
    gains, errors = [], []
    for seed in range(40):
        features, classes, sources = problem(seed, sources=200, views=1)
        noise = torch.from_numpy(np.random.default_rng(1000 + seed).normal(size=features.shape)).float()
        groups = jackknife_groups(sources, seed)
        card = retrieval(features, classes, sources, groups)
        gap = score_difference(retrieval(features + 0.5 * noise, classes, sources, groups), card, 0.025)
        gains.append(gap.gain)
        errors.append(gap.standard_error)
    # It errs on the wide side where sources are few, by a third at 80.
    assert np.mean(errors) == pytest.approx(np.std(gains), rel=0.35)


def test_images_of_a_source_are_in_one_group() -> None:
    sources = np.random.default_rng(0).integers(0, 200, 500)
    groups = jackknife_groups(sources, 0)
    assert all(len(set(groups[sources == s])) == 1 for s in set(sources))
    assert len(set(groups)) == 60

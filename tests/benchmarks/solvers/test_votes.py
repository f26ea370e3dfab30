"""Votes against the paper version, for any number of classes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.solvers import exact_knn
from benchmarks.solvers.exact_knn import NO_VOTE, vote_ranks
from tests.reference.knn_plain import ranking


@settings(max_examples=80, deadline=None)
@given(
    queries=st.integers(1, 6),
    kmax=st.integers(1, 30),
    classes=st.integers(1, 40),
    temperature=st.sampled_from([0.07, 0.1, 1.0]),
    cells=st.sampled_from([1, 50, 1 << 22]),
    seed=st.integers(0, 2**16),
)
def test_equals_the_plain_votes(queries, kmax, classes, temperature, cells, seed):
    rng = np.random.default_rng(seed)
    similarities = -np.sort(-rng.uniform(-1, 1, (queries, kmax)), axis=1)
    near = rng.integers(0, classes, (queries, kmax))
    targets = rng.integers(0, classes, queries)
    ks = sorted({1, max(1, kmax // 2), kmax})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact_knn, "VOTE_CELLS", cells)
        ranks = vote_ranks(similarities, near, targets, ks=ks, temperature=temperature, num_classes=classes)
    for k in ks:
        for i in range(queries):
            order = ranking(range(k), similarities[i, :k], near[i], temperature)
            expected = order.index(targets[i]) if targets[i] in order else NO_VOTE
            assert ranks[k][i] == expected


def one(similarities, near, target, k, classes=8, temperature=0.1):
    ranks = vote_ranks(
        np.array([similarities], float),
        np.array([near]),
        np.array([target]),
        ks=[k],
        temperature=temperature,
        num_classes=classes,
    )
    return int(ranks[k][0])


def test_a_class_without_votes_is_no_hit_at_any_depth():
    """Not even where there are fewer classes than the depth of 5 at which kNN counts."""
    assert one([0.9, 0.8], [3, 3], 0, 2, classes=4) == one([0.9, 0.8], [3, 1], 0, 2, classes=4) == NO_VOTE > 5
    assert one([0.9, 0.8], [3, 1], 1, 2, classes=4) == 1


def test_equal_votes_go_to_the_smaller_class():
    assert [one([0.5, 0.5, 0.5], [5, 2, 7], c, 3) for c in (2, 5, 7)] == [0, 1, 2]


def test_only_the_first_k_vote():
    assert one([0.9, 0.8, 0.8, 0.8], [1, 2, 2, 2], 1, 1) == 0
    assert one([0.9, 0.8, 0.8, 0.8], [1, 2, 2, 2], 1, 4, temperature=1.0) == 1


def test_unnormalised_similarities_neither_overflow_nor_vanish():
    assert one([90000.0, 80000.0], [2, 1], 2, 2) == 0
    assert one([90000.0, 80000.0], [2, 1], 1, 2) == 1
    assert one([90000.0, 80000.0], [2, 1], 3, 2) == NO_VOTE

"""The held-out part of train."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.task import Labels
from benchmarks.training.task import held_out


def labels(targets: list[int], groups: list[tuple[str, ...]]) -> Labels:
    ids = tuple(str(n) for n in range(len(targets)))
    classes = tuple(str(n) for n in range(4))
    return Labels(ids, tuple(Path(i) for i in ids), classes, np.array(targets, dtype=np.int64), tuple(groups))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sets(st.integers(0, 40), min_size=1, max_size=2)), min_size=1, max_size=60
    ),
    st.floats(0.05, 0.6),
    st.integers(0, 5),
)
def test_it_parts_train_and_keeps_sources_together(
    items: list[tuple[int, set[int]]], fraction: float, seed: int
) -> None:
    found = labels([t for t, _ in items], [tuple(map(str, sorted(s))) for _, s in items])
    kept, held = held_out(found, fraction, seed)
    assert sorted([*kept, *held]) == list(range(len(items)))
    sources = [{s for i in part for s in found.groups[i]} for part in (kept, held)]
    assert not sources[0] & sources[1]
    for number in range(4):
        mine = found.targets == number
        size = int(mine.sum())
        out = int(mine[held].sum())
        assert out <= max(1, round(fraction * size))
        assert out < size or size == 0
    again = held_out(found, fraction, seed)
    assert np.array_equal(again[1], held)


def test_items_of_their_own_source_are_held_out_by_class() -> None:
    targets = [0] * 20 + [1] * 10 + [2] * 2 + [3]
    found = labels(targets, [(str(n),) for n in range(33)])
    _, held = held_out(found, 0.2, 0)
    assert np.bincount(found.targets[held], minlength=4).tolist() == [4, 2, 1, 0]
    assert not np.array_equal(held, held_out(found, 0.2, 1)[1])


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.floats(0.05, 0.6), st.integers(0, 5))
def test_items_of_their_own_source_are_drawn_as_families_are(targets: list[int], fraction: float, seed: int) -> None:
    found = labels(targets, [(f"{n:02}",) for n in range(len(targets))])
    quota = {c: min(max(1, round(fraction * targets.count(c))), targets.count(c) - 1) for c in set(targets)}
    held = []
    for item in np.random.default_rng(seed).permutation(len(targets)):
        if quota[targets[item]] > 0:
            quota[targets[item]] -= 1
            held.append(int(item))
    assert held_out(found, fraction, seed)[1].tolist() == sorted(held)


def test_no_fraction_holds_nothing_out() -> None:
    kept, held = held_out(labels([0, 0, 1], [("a",), ("b",), ("c",)]), 0.0, 0)
    assert kept.tolist() == [0, 1, 2]
    assert not len(held)

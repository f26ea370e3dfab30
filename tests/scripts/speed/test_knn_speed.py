"""The timed pairs do the same work: what is measured is the same answer."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest

from scripts.speed import knn as speed


@pytest.fixture(scope="module")
def data():
    return speed.knn_problem(rows=900, queries=130, dim=32, num_classes=40)


def test_baselines_answer_as_ours(data):
    mine = speed.ours(data)
    for baseline in (speed.loop_per_k, speed.faiss_flat):
        theirs = baseline(data)(data)
        for k in speed.KS:
            assert np.mean(mine[k] == theirs[k]) > 0.98  # float32 votes may part at a near tie
            assert 0.1 < mine[k].mean() < 1


def test_a_pair_reports_every_field(data):
    found = speed.measure_knn("knn", speed.loop_per_k, "the loop", data=data, most=1, share=3)
    assert found.keys() == {"name", "ours_s", "baseline_s", "baseline", "ratio", "limit_s", "limit", "note", "cpu"}
    assert found["ratio"] == pytest.approx(found["baseline_s"] / found["ours_s"])
    assert speed.entries().keys() == {"knn", "knn-faiss", "knn-growth"}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells mapped files from other memory")
def test_twice_the_rows_take_no_more_memory():
    """The gallery has 49 MiB, then 98: a copy of it would be seen."""
    found = speed.measure_growth(rows=50_000, queries=100, dim=256)
    one, two = (float(mib) for mib in re.findall(r"([\d.]+) MiB", found["note"]))
    assert 0 < two < one + 12
    assert found["baseline_s"] > 0.5 * found["ours_s"]

"""Standard errors and paired gains straight from outcomes, without records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from results.bootstrap import (
    Gain,
    Outcomes,
    Replicates,
    gain_of,
    in_order_of_ids,
    mean_replicates,
    replicates,
    size_of,
)


def standard_error(outcomes: Outcomes, column: str) -> float:
    return replicates(outcomes, [column])[column].standard_error


def paired_gain(a: Outcomes | Sequence[Outcomes], b: Outcomes | Sequence[Outcomes], column: str, **draws: Any) -> Gain:
    """How much better `a` is than `b` on the same items; several encoders count with their mean."""
    sides = [[side] if isinstance(side, Mapping) else list(side) for side in (a, b)]
    reference = sides[0][0]

    def mean_of(side: Sequence[Outcomes]) -> Replicates:
        for outcomes in side:
            for ours, theirs in zip(in_order_of_ids(outcomes), in_order_of_ids(reference), strict=True):
                if not np.array_equal(ours, theirs):
                    raise ValueError("the outcomes are of different test items and cannot be paired")
        return mean_replicates([replicates(outcomes, [column], **draws)[column] for outcomes in side])

    return gain_of(mean_of(sides[0]), mean_of(sides[1]), size_of(reference))

"""What a record's side file holds: what happened to each test item, so that figures can be compared later."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from results.resampling.bootstrap import COLUMN_PREFIXES, measured_columns, replicates
from results.schema import Record

REFERENCE = "same/"


def measured_column(record: Record, column: str, measured: Sequence[str]) -> str | None:
    """The column with the outcomes of another: itself, or the chosen one where a figure is chosen among columns."""
    if column in measured:
        return column
    score = record.scores.get(column)
    if score is None or score.value is None:
        return None
    return next((name for name in measured if name in record.scores and record.scores[name].value == score.value), None)


def with_standard_errors(record: Record, outcomes: Mapping[str, NDArray[Any]]) -> Record:
    """The record with the standard errors that its outcomes allow, where a score has none yet."""
    measured = measured_columns(outcomes)
    behind = {
        column: source
        for column, score in record.scores.items()
        if score.value is not None
        and score.standard_error is None
        and (source := measured_column(record, column, measured)) is not None
    }
    if not behind or "group_offsets" not in outcomes:
        return record
    found = replicates(outcomes, sorted(set(behind.values())))
    scores = dict(record.scores)
    for column, source in behind.items():
        error = found[source].standard_error * (100 if scores[column].unit == "%" else 1)
        scores[column] = scores[column].model_copy(update={"standard_error": error})
    return record.model_copy(update={"scores": scores})


def packed(outcomes: Mapping[str, NDArray[Any]]) -> bytes:
    """An .npz whose bytes depend on the arrays alone: sorted names, and numpy gives all members one date (1980).

    Decisions become ranks within their class, equal ones sharing a rank. A column with the outcomes of another (a best
    layer has those of its layer) is stored as a reference to it.

    Raises:
        ValueError: a decision is not a number, or an array holds Python objects.
    """
    arrays = {}
    for name in sorted(outcomes):
        array = np.asarray(outcomes[name])
        if array.dtype.hasobject:
            raise ValueError(f"the outcome {name!r} holds Python objects, not numbers or text")
        arrays[name] = _ranks(name, array) if name.startswith("decision/") else array
    columns = [name for name in arrays if name.startswith(COLUMN_PREFIXES)]
    for name in reversed(columns):
        same = next(other for other in columns if np.array_equal(arrays[other], arrays[name]))
        if same != name:
            del arrays[name]
            columns.remove(name)
            arrays[REFERENCE + name] = np.array(same)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # the stub takes a name for allow_pickle
    return buffer.getvalue()


def unpacked(path: Path) -> dict[str, NDArray[Any]]:
    """What was packed, decisions as ranks."""
    with np.load(path, allow_pickle=False) as stored:
        arrays: dict[str, NDArray[Any]] = {k: v for k, v in stored.items() if not k.startswith(REFERENCE)}
        references = {k.removeprefix(REFERENCE): str(v) for k, v in stored.items() if k.startswith(REFERENCE)}
    return arrays | {name: arrays[same] for name, same in references.items()}


def _ranks(name: str, decisions: NDArray[Any]) -> NDArray[np.unsignedinteger[Any]]:
    if decisions.ndim != 2:
        raise ValueError(f"the outcome {name!r} has shape {decisions.shape}, not (items, classes)")
    if np.isnan(decisions).any():
        raise ValueError(f"the outcome {name!r} is not a number for some items")
    ranks = [np.unique(scores, return_inverse=True)[1] for scores in decisions.T]
    return np.stack(ranks, axis=1).astype(np.uint16 if len(decisions) <= 2**16 else np.uint32)

"""The published protocols of kNN, SVM, linear probes and fine-tuning against their sources, every setting of each.

`tests/expected/classification/protocols.toml` was typed from the sources. All settings must be there, so that neither a
changed number nor a new default goes unnoticed.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from benchmarks.registry import load_task
from results.schema import Protocol

TABLES: dict[str, Any] = tomllib.loads(
    (Path(__file__).parents[1] / "expected" / "classification" / "protocols.toml").read_text(encoding="utf-8")
)
TASKS = (
    "knn",
    "linear",
    "multihead",
    "linear-grid",
    "attentive",
    "linear-stored",
    "voc-svm",
    "low-shot-svm",
    "semi-1pct",
    "semi-10pct",
    "finetune",
)
PUBLISHED = {p.id: p for name in TASKS for p in load_task(name).protocols if p.source.repository != "this project"}
AROUND = ("dataset", "train_split", "test_split", "primary")


def expected(name: str) -> dict[str, Any]:
    """A table with everything that it is like."""
    own = dict(TABLES["base"][name.removeprefix("base.")] if name.startswith("base.") else TABLES[name])
    like = own.pop("like", [])
    found: dict[str, Any] = {}
    for other in [like] if isinstance(like, str) else like:
        found |= expected(other)
    return found | own


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return "none" if value is None else value


def resolved(protocol: Protocol) -> dict[str, Any]:
    return plain(
        {name: getattr(protocol, name) for name in AROUND}
        | {"geometry": protocol.geometry.model_dump()}
        | Protocol.model_validate_json(protocol.model_dump_json()).params
    )


def test_every_published_protocol_has_a_table_and_no_table_is_left_over() -> None:
    assert set(TABLES) - {"base"} == set(PUBLISHED)


@pytest.mark.parametrize("identifier", sorted(PUBLISHED))
def test_every_setting_is_as_its_source_has_it(identifier: str) -> None:
    assert resolved(PUBLISHED[identifier]) == expected(identifier)

"""The published protocols of all but the training engines against their sources, every setting of each.

`tests/expected/{classification,frozen,dense}/protocols.toml` were typed from the sources. All settings must be there,
so that neither a changed number nor a new default goes unnoticed.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.registry import load_task
from results.schema import Protocol

TABLES: dict[str, Any] = {"base": {}}
for _folder in ("classification", "frozen", "dense"):
    _file = Path(__file__).parents[1] / "expected" / _folder / "protocols.toml"
    _tables = tomllib.loads(_file.read_text(encoding="utf-8"))
    _base = _tables.pop("base")
    assert not TABLES["base"].keys() & _base.keys()
    assert not TABLES.keys() & _tables.keys()
    TABLES["base"] |= _base
    TABLES |= _tables
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
    "logistic",
    "transfer",
    "robustness",
    "retrieval",
    "label-free",
    "label-free-views",
    "seg-linear",
    "seg-knn",
    "seg-logistic",
    "seg-incontext",
    "depth-linear",
)
EVERY = {p.id: p for name in TASKS for p in load_task(name).protocols}
PUBLISHED = {id: p for id, p in EVERY.items() if p.source.repository != "this project" or id in TABLES}
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
    if isinstance(value, dict) and "logspace" in value:
        return plain(np.logspace(*value["logspace"]).tolist())
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, float):
        return float(f"{value:.9g}")
    return "none" if value is None else value


def resolved(protocol: Protocol) -> dict[str, Any]:
    test_geometry = protocol.test_geometry
    return plain(
        {name: getattr(protocol, name) for name in AROUND}
        | {"geometry": protocol.geometry.model_dump()}
        | ({"test_geometry": test_geometry.model_dump()} if test_geometry is not None else {})
        | Protocol.model_validate_json(protocol.model_dump_json()).params
    )


def test_every_published_protocol_has_a_table_and_no_table_is_left_over() -> None:
    assert set(TABLES) - {"base"} == set(PUBLISHED)


@pytest.mark.parametrize("identifier", sorted(PUBLISHED))
def test_every_setting_is_as_its_source_has_it(identifier: str) -> None:
    found = plain(expected(identifier))
    if found.get("test_geometry") == "none":
        del found["test_geometry"]
    assert resolved(PUBLISHED[identifier]) == found

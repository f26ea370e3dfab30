"""Recipes against their sources, field by field. Each table in tests/expected/recipes was typed from its sources.

A blank cell is as in the table's first recipe. A field of a resolved recipe that no row lists fails. In `source` a file
with a commit was read at that commit of facebookresearch/moco or the repository that is named (google-research/simclr
at 0075cc0 and 244e712, open-mmlab/mmselfsup 0.x). "Read in a transcription" is the paper's own text as third
parties keep it, "seen in a copy" its figure as they do, "assumed" a value that nobody reports.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from pretrain.recipe import RECIPES, load_recipe

EXPECTED = Path(__file__).parents[1] / "expected" / "recipes"
OWN = {"mocov2_resnet18w32_demo"}  # settings of this project: no source has them


def tables() -> list[tuple[str, str, dict[str, Any]]]:
    """(table, recipe, field -> value) of every column."""
    found = []
    for path in sorted(EXPECTED.glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        first, *others = (name for name in rows[0] if name not in ("field", "source"))
        for recipe in (first, *others):
            values = {row["field"]: json.loads(row[recipe] or row[first]) for row in rows}
            found.append((path.stem, recipe, values))
    return found


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted fields."""
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for key, inner in value.items() for k, v in flat(inner, f"{prefix}.{key}" if prefix else key).items()}


@pytest.mark.parametrize(("table", "recipe", "expected"), tables(), ids=lambda v: v if isinstance(v, str) else "")
def test_resolved_recipe_equals_its_source(table: str, recipe: str, expected: dict[str, Any]) -> None:
    resolved = flat(load_recipe(recipe).model_dump(mode="json"))
    assert resolved.pop("name") == recipe
    assert resolved == expected


def test_every_recipe_has_a_source_and_every_value_names_it() -> None:
    listed = {recipe for _, recipe, _ in tables()}
    assert {path.stem for path in RECIPES.glob("*.toml")} - listed == OWN
    for path in EXPECTED.glob("*.csv"):
        with path.open(encoding="utf-8", newline="") as file:
            assert all(row["source"] and None not in row for row in csv.DictReader(file)), path.name


def test_a_recipe_says_only_what_differs_from_its_parent() -> None:
    """A line that repeats the parent's value would hide which lines matter."""
    import tomllib

    for path in RECIPES.glob("*.toml"):
        own = tomllib.loads(path.read_text(encoding="utf-8"))
        parent = own.pop("parent", None)
        if parent:
            inherited = flat(load_recipe(parent).model_dump(mode="json"))
            repeated = [field for field, value in flat(own).items() if inherited.get(field) == value]
            assert set(repeated) <= {"architecture.name", "citation"}, path.name

"""The locks are complete, hashed, of one mind, and give what pyproject.toml asks for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
LOCKS = {name: ROOT / "requirements" / f"{name}.txt" for name in ("core", "dev", "transfer")}

OLDEST = ROOT / "requirements" / "oldest.txt"


def requirement_lines(path: Path) -> list[str]:
    """The logical lines of a lock: continuation lines joined, comments dropped."""
    text = re.sub(r"\\\n\s*", "", path.read_text())
    return [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]


def pins(path: Path) -> dict[str, str]:
    """Canonical name to the one pinned version."""
    found: dict[str, str] = {}
    for line in requirement_lines(path):
        requirement = Requirement(line.split(" --hash")[0])
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", line
        assert canonicalize_name(requirement.name) not in found, line
        found[canonicalize_name(requirement.name)] = specifier.version
    return found


@pytest.mark.parametrize(
    "path", [*LOCKS.values(), OLDEST, ROOT / "requirements" / "detectron2.txt"], ids=lambda p: p.stem
)
def test_every_line_is_a_hashed_pin_and_nothing_else(path: Path) -> None:
    lines = requirement_lines(path)
    assert lines
    for line in lines:
        assert re.fullmatch(r"[\w.-]+==[\w.]+( ; [^-]+?)?( *--hash=sha256:[0-9a-f]{64})+", line), line


@pytest.mark.parametrize("name", ["dev", "transfer"])
def test_each_lock_holds_the_core(name: str) -> None:
    assert pins(LOCKS["core"]).items() <= pins(LOCKS[name]).items()


def test_dev_and_transfer_fit_into_one_environment() -> None:
    dev, transfer = pins(LOCKS["dev"]), pins(LOCKS["transfer"])
    assert {n: dev[n] for n in dev.keys() & transfer} == {n: transfer[n] for n in dev.keys() & transfer}


@pytest.mark.parametrize("name", LOCKS)
def test_lock_gives_what_pyproject_asks_for(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = project["dependencies"] + extras["report"] + extras["cluster"] + extras.get(name, [])
    locked = pins(LOCKS[name])
    unmet = [r for r in map(Requirement, asked) if not r.specifier.contains(locked.get(canonicalize_name(r.name), ""))]
    assert unmet == [], "make lock"


def test_the_oldest_lock_holds_the_lower_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = pins(OLDEST)
    for line in project["dependencies"]:
        requirement = Requirement(line)
        (bound,) = [s for s in requirement.specifier if s.operator in (">=", "==")]
        assert Version(locked[canonicalize_name(requirement.name)]) == Version(bound.version), f"{line}: make lock"


def test_no_opencv_that_needs_a_display() -> None:
    locked = pins(LOCKS["transfer"])
    assert "opencv-python" not in locked
    assert "opencv-python-headless" in locked

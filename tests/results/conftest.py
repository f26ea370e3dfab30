from __future__ import annotations

from pathlib import Path

import pytest

from results.formats import Table
from results.tables import section_tables
from tests.results.factory_records import write_demo
from tests.results.written_records import section


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("records")
    write_demo(root)
    return root


@pytest.fixture(scope="module")
def demo_tables(demo: Path) -> list[Table]:
    return section_tables(section(demo))

from __future__ import annotations

from pathlib import Path

import pytest

from results.tables.cells import Table
from results.tables.model_zoo import section_tables
from tests.results.factory_records import write_demo
from tests.results.table_readings import section


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("records")
    write_demo(root)
    return root


@pytest.fixture(scope="module")
def demo_tables(demo: Path) -> list[Table]:
    return section_tables(section(demo))

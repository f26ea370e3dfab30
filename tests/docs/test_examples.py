"""The examples of the API page and the tutorial run, and every public function and class of the page is in one."""

from __future__ import annotations

import doctest
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
API = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
EXAMPLES = "\n".join(re.findall(r"^```pycon\n(.*?)^```$", API, re.MULTILINE | re.DOTALL))
RUN = """
import sys
from pathlib import Path
from outputs import run
for number, (cell, printed) in enumerate(run(Path(sys.argv[1]))):
    sys.stderr.write(f"cell {number} printed {printed!r}\\n")
    assert bool(printed) == bool(cell["outputs"]), "write the outputs again with scripts/docs_pages/outputs.py"
"""


@pytest.fixture
def clone(tmp_path: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the records, and with data in work/data and where the tutorial has it."""
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "records").symlink_to(ROOT / "results" / "records")
    (tmp_path / "work" / "tutorial").mkdir(parents=True)
    for place in ("data", "tutorial/data"):
        (tmp_path / "work" / place).symlink_to(small_data)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def documented() -> list[str]:
    """The functions and classes that the page names."""
    members = [name for found in re.findall(r"members: \[(.*)\]", API) for name in found.split(", ")]
    return [*members, *(name for name in re.findall(r"^::: [\w.]+\.(\w+)$", API, re.MULTILINE) if name not in MODULES)]


MODULES = ("task", "registry", "store", "schema", "recipe")


def test_every_function_and_class_of_the_page_is_in_an_example() -> None:
    shown_as = {"ImageTask": "load_task", "FeatureTask": "load_task", "Dataset": "find_dataset",
                "Encoder": "load_encoder", "DatasetInfo": "found.info", "StoredRecord": "read_records",
                "Recipe": "load_recipe", "Augmentation": "recipe.augmentation"}  # fmt: skip
    words = {name: re.escape(shown_as.get(name, name)) for name in documented()}
    assert [name for name, word in words.items() if not re.search(rf"\b{word}\b", EXAMPLES)] == []


@pytest.mark.slow
@pytest.mark.usefixtures("clone")
def test_the_examples_of_the_api_give_what_the_page_says() -> None:
    test = doctest.DocTestParser().get_doctest(EXAMPLES, {}, "docs/api.md", None, 0)
    said: list[str] = []
    results = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=said.append)
    assert results.attempted > 40
    assert results.failed == 0, "".join(said)


@pytest.mark.nightly
def test_the_tutorial_runs(clone: Path) -> None:
    path = os.pathsep.join([str(ROOT), str(ROOT / "scripts" / "docs_pages")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [sys.executable, "-c", RUN, str(ROOT / "docs" / "tutorial.ipynb")]
    done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    work = clone / "work" / "tutorial"
    assert (work / "report.html").is_file()
    stored = [json.loads(path.read_text(encoding="utf-8")) for path in (work / "work" / "records").rglob("*.json")]
    assert {record["encoder"]["name"] for record in stored} == {"my-encoder", "untrained"}
    assert all(record["status"] == "ok" for record in stored)

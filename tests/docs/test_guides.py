"""The two guides, followed to the letter in a copy of the project.

A guide is written in five kinds of steps: "Write `FILE`:", "In `FILE`, after the line `LINE`, add:", "At the end of
`FILE`, add:", each with a code block below, "In `FILE`, replace `A` with `B`." and "Run:" with a block of commands.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LEFT_BEHIND = shutil.ignore_patterns(".git", ".venv", "work", "__pycache__", ".*_cache", "*.lock")
BLOCK = re.compile(r"^```\w+\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
STEP = re.compile(
    r"Write `(?P<write>[^`]+)`:\n"
    r"|In `(?P<insert>[^`]+)`, after the line `(?P<line>[^`]+)`, add:\n"
    r"|At the end of `(?P<append>[^`]+)`, add:\n"
    r"|In `(?P<replace>[^`]+)`, replace `(?P<old>[^`]+)` with `(?P<new>[^`]+)`\."
    r"|^(?P<run>Run:)\n",
    re.MULTILINE,
)


def only_line(text: str, line: str, where: str) -> int:
    """Where the line after the only one that reads `line` starts."""
    starts = [m.end() for m in re.finditer(rf"^[ \t]*{re.escape(line)}[ \t]*\n", text, re.MULTILINE)]
    assert len(starts) == 1, f"{where} has the line {line!r} {len(starts)} times"
    return starts[0]


def follow(guide: str, clone: Path) -> list[str]:
    """Does what the guide says, and returns the commands that were run."""
    text = (ROOT / "docs" / guide).read_text(encoding="utf-8")
    followed, commands = set(), []
    for step in STEP.finditer(text):
        if step["replace"]:
            path = clone / step["replace"]
            content = path.read_text(encoding="utf-8")
            assert content.count(step["old"]) == 1, f"{step['replace']} has {step['old']!r} not once"
            path.write_text(content.replace(step["old"], step["new"]), encoding="utf-8")
            continue
        block = BLOCK.search(text, step.end())
        assert block is not None
        between = text[step.end() : block.start()].replace("{% raw %}", "").strip()
        assert not between, f"{guide}: something stands between {step[0].strip()!r} and its block"
        followed.add(block.start())
        code = block["code"]
        if step["write"]:
            path = clone / step["write"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(code, encoding="utf-8")
        elif step["insert"]:
            path = clone / step["insert"]
            content = path.read_text(encoding="utf-8")
            at = only_line(content, step["line"], step["insert"])
            path.write_text(content[:at] + code + content[at:], encoding="utf-8")
        elif step["append"]:
            path = clone / step["append"]
            path.write_text(path.read_text(encoding="utf-8") + code, encoding="utf-8")
        else:
            for command in code.splitlines():
                run(command, clone)
                commands.append(command)
    assert followed == {block.start() for block in BLOCK.finditer(text)}, f"{guide} has a block that no step names"
    return commands


def run(command: str, clone: Path) -> None:
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": tools, "OMP_NUM_THREADS": "1", "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(["bash", "-c", command], cwd=clone, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    shutil.copytree(ROOT, tmp_path / "clone", ignore=LEFT_BEHIND)
    return tmp_path / "clone"


@pytest.mark.slow
def test_add_a_benchmark(clone: Path, small_data: Path) -> None:
    shutil.copytree(small_data, clone / "work" / "data")
    commands = follow("add-benchmark.md", clone)
    assert "lint-imports" in commands
    records = list((clone / "work" / "records").rglob("class_median.demo@1-*.json"))
    assert len(records) == 1


@pytest.mark.slow
def test_add_a_checkpoint_layout(clone: Path) -> None:
    commands = follow("add-layout.md", clone)
    assert any("test_checkpoint_layouts.py" in command for command in commands)

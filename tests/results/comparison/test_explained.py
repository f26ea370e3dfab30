"""The questions beside the records: kept once, read back as they were asked, and refused where they are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from results.comparison.explained import FILE, Question, remember, remembered
from results.errors import InputError
from results.store import read_records

ONE = Question("knn.a@1", "knn.b@1+temperature=0.2", None, ("net*", "другая"))
TWO = Question("knn.a@1", "knn.c@1", "k=20")


def test_questions_are_kept_once_and_are_no_records(tmp_path: Path) -> None:
    assert remembered(tmp_path) == []
    assert remember(tmp_path, ONE)
    assert remember(tmp_path, TWO)
    assert not remember(tmp_path, ONE)
    assert remembered(tmp_path) == [ONE, TWO]
    assert read_records(tmp_path) == ([], [])


@pytest.mark.parametrize("line", ["{", "[]", '{"a": "x"}', '{"a": 1, "b": "y", "encoder": []}',
                                  '{"a": "x", "b": "y", "encoder": ["*"], "more": 1}'])  # fmt: skip
def test_a_line_that_is_no_question_is_named(tmp_path: Path, line: str) -> None:
    remember(tmp_path, ONE)
    with (tmp_path / FILE).open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")
    with pytest.raises(InputError, match=r"explained\.jsonl, line 2 is no question of `explain`: remove it"):
        remembered(tmp_path)

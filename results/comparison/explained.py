"""Which differences were asked about: a line each in a file beside the records, so that the report shows them too.

Only the question is kept. Its answer is computed from the records each time, so it cannot be older than they are.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from results.atomic import write_file
from results.errors import InputError

FILE = "explained.jsonl"  # beside the records, and by its name none of them


@dataclass(frozen=True)
class Question:
    """What `python -m results explain` was asked; see `results.commands.options.Explain`."""

    a: str
    b: str
    column: str | None = None
    encoder: tuple[str, ...] = ("*",)


def remember(root: Path, question: Question) -> bool:
    """Adds a question to those of a folder of records; False where it is there already.

    Raises:
        InputError: the file is none of questions.
        OSError: it cannot be written.
    """
    known = remembered(root)
    if question in known:
        return False
    text = "".join(f"{json.dumps(asdict(each), ensure_ascii=False)}\n" for each in (*known, question))
    write_file(root / FILE, text.encode())
    return True


def remembered(root: Path) -> list[Question]:
    """In the order in which they were asked.

    Raises:
        InputError: a line of the file is no question.
    """
    path = root / FILE
    if not path.is_file():
        return []
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            asked = json.loads(line)
            question = Question(**{**asked, "encoder": tuple(asked["encoder"])})
            if not all(isinstance(text, str) for text in (question.a, question.b, *question.encoder)):
                raise TypeError("a name is no text")
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path}, line {number} is no question of `explain`: remove it ({error})") from None
        found.append(question)
    return found

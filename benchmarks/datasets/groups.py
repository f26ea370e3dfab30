"""`groups.json` beside a data set: which items share a source and are therefore not independent."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.contract import InputError

FILE_NAME = "groups.json"


def read_groups(folder: Path, ids: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Source ids of each item; an item is its own source where the folder has no `groups.json`.

    Raises:
        InputError: the file is no mapping of ids to lists of names, or does not know an item.
    """
    file = folder / FILE_NAME
    if not file.is_file():
        return tuple((id,) for id in ids)
    try:
        groups = json.loads(file.read_text(encoding="utf-8"))
        return tuple(tuple(map(str, groups[id])) for id in ids)
    except KeyError as error:
        raise InputError(f"{file} does not list {error.args[0]}; complete it, or remove the file") from error
    except (ValueError, TypeError) as error:
        raise InputError(f"{file} is no JSON object of lists ({error}); repair or remove it") from error

"""iNaturalist 2018: the competition's json, mm's lists, VISSL's arrays, or class folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contract import InputError, Labels
from benchmarks.datasets.imagenet import generic_layouts
from benchmarks.datasets.layout import Layout, first_file, recognise
from benchmarks.datasets.lists import labels_of, unique
from benchmarks.datasets.paths import require

OWNER = "the iNaturalist 2018 competition (github.com/visipedia/inat_comp)"
JSON = ("{split}2018.json", "annotations/{split}2018.json")


def read_inat18(folder: Path, split: str) -> Labels:
    """Items of `train` or `val`, sorted by id: the file name, as `train_val2018/Plantae/7477/….jpg`.

    Classes are the categories in the order of their ids; labels are joined on the image id.

    Raises:
        InputError: no such split, a malformed json, or a missing image.
    """
    return recognise(folder, split, LAYOUTS, OWNER).read(folder, split)


def _json(folder: Path, split: str) -> Path | None:
    return first_file(folder, [name.format(split=split) for name in JSON])


def _read(folder: Path, split: str) -> Labels:
    file = _json(folder, split)
    assert file is not None
    try:
        content: dict[str, Any] = json.loads(file.read_bytes())
        categories = sorted((int(c["id"]), str(c["name"])) for c in content["categories"])
        category_of = {a["image_id"]: int(a["category_id"]) for a in content["annotations"]}
        ids = [image["id"] for image in content["images"]]
        names = [str(image["file_name"]) for image in content["images"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{file} is not the competition's json ({type(error).__name__}: {error}); take it from {OWNER}"
        ) from error
    if not names:
        raise InputError(f"{file} lists no image; take it from {OWNER}")
    unique(file, names)
    if len(category_of) < len(content["annotations"]):
        raise InputError(f"{file} has several annotations of one image; take it from {OWNER}")
    lacking = [name for id, name in zip(ids, names, strict=True) if id not in category_of]
    if lacking:
        raise InputError(f"{file} has no annotation for {lacking[0]} ({len(lacking)} such); take it from {OWNER}")
    index = {id: number for number, (id, _) in enumerate(categories)}
    targets = np.array([index.get(category_of[id], category_of[id] + len(index)) for id in ids], dtype=np.int64)
    require(folder, names, file.name, "unpack the images of the competition there")
    return labels_of(file, folder, names, names, targets, [name for _, name in categories])


LAYOUTS = (
    Layout(
        "{split}2018.json and the images in train_val2018/",
        lambda folder, split: _json(folder, split) is not None,
        _read,
    ),
    *generic_layouts(),
)

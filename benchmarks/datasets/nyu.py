"""NYU Depth v2 in the layout of BTS: lists of image, depth map and focal length, and depth maps in millimetres."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.datasets.lists import folder_contents, read_groups, read_lines, require_files, require_unique
from benchmarks.task import InputError, Labels
from results.files import PathList, open_image

MILLIMETRES = 1000.0


def read_nyu(folder: Path, split: str) -> Labels:
    """Items of `train` or `test`, sorted by image, with their depth maps as annotations.

    Each line of `nyu_SPLIT.txt` names an image, its depth map and a focal length, which is not used. Paths are relative
    to the folder, with or without a slash before them.

    Raises:
        InputError: the list is missing, a line is malformed, or a file does not exist.
    """
    file = folder / f"nyu_{split}.txt"
    if not file.is_file():
        raise InputError(
            f"{folder} has no nyu_{split}.txt, only {folder_contents(folder)}; copy the lists of cleinc/bts "
            "(train_test_inputs/nyudepthv2_*_files_with_gt.txt) there as nyu_train.txt and nyu_test.txt"
        )
    pairs: list[tuple[str, str]] = []
    for number, line in enumerate(read_lines(file), start=1):
        fields = line.split()
        if len(fields) != 3 or not all(name.lstrip("/") for name in fields[:2]):
            raise InputError(f"{file} line {number}: expected an image, a depth map and a focal length, found {line!r}")
        pairs.append((fields[0].lstrip("/"), fields[1].lstrip("/")))
    pairs.sort()
    images, depths = [image for image, _ in pairs], [depth for _, depth in pairs]
    ids = tuple(str(Path(image).with_suffix("")) for image in images)
    require_unique(file, ids)
    remedy = "unpack NYU Depth v2 as BTS prepares it"
    require_files(folder, images, file.name, remedy)
    require_files(folder, depths, file.name, remedy)
    targets = np.zeros((len(ids), 0), dtype=np.int8)
    return Labels(ids, PathList(folder, images), (), targets, read_groups(folder, ids), tuple(PathList(folder, depths)))


def read_depth(file: Path) -> NDArray[np.float32]:
    """(H, W) metres; 0 where the depth is unknown.

    Raises:
        InputError: the file is not a 16-bit PNG of one channel.
    """
    try:
        with open_image(file) as image:
            image.load()
            mode, values = image.mode, np.asarray(image)
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{file} cannot be decoded as a depth map ({error}); unpack the data set again") from error
    if not mode.startswith("I") or values.ndim != 2:
        raise InputError(f"{file} has {mode} pixels; expected a 16-bit PNG with the depth in millimetres")
    return (values / MILLIMETRES).astype(np.float32)

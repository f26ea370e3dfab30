"""The class names of masks: VOC's own, or those of a set in its layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.datasets.registry import find_dataset
from benchmarks.datasets.voc_scenes import CLASSES
from benchmarks.demo.compose import Counts, compose
from tests.layouts.voc12aug import write_voc12aug


def test_the_embedded_scenes_have_their_own_classes_and_the_masks_follow_them(tmp_path: Path) -> None:
    compose(tmp_path, progress=False, counts=Counts(train=4, val=2, test=4, drawings_per_class=4))
    labels = find_dataset("voc2007_seg", tmp_path).read("test")
    shown = find_dataset("voc2007", tmp_path).read("test")
    assert labels.classes == ("background", *shown.classes)
    for mask, targets in zip(labels.annotations, shown.targets, strict=True):
        with Image.open(mask) as image:
            values = set(np.unique(np.asarray(image)).tolist()) - {0, 255}
        assert values <= {1 + int(c) for c in np.flatnonzero(targets != 0)}
        assert values


def test_vocs_masks_have_vocs_classes_whatever_lists_are_there(tmp_path: Path) -> None:
    write_voc12aug(tmp_path)
    assert find_dataset("voc12aug", tmp_path).read("val").classes == CLASSES

"""Images and masks as they are read, sound ones and damaged ones, and the contact sheet of them."""

from __future__ import annotations

import io
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.datasets.registry import find_dataset
from benchmarks.segmentation.model import register
from benchmarks.segmentation.task import SegmentationSheet
from benchmarks.segmentation.train import ClassIndices, MaskedImages
from benchmarks.task import InputError
from benchmarks.training.trials import IGNORED
from tests.layouts.cityscapes import write_cityscapes
from tests.layouts.voc12aug import write_voc12aug

pytestmark = [
    pytest.mark.skipif(not find_spec("mmseg"), reason="mmsegmentation is not installed: make setup-transfer"),
    pytest.mark.filterwarnings("ignore"),
]

READ: list[dict[str, Any]] = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}, {"type": "PackSegInputs"}]
SMALLER = [READ[0], {"type": "Resize", "scale": (32, 32), "keep_ratio": True}, *READ[1:]]


@pytest.fixture(scope="module", autouse=True)
def _registered() -> None:
    register()


def mask_of(item: dict[str, Any]) -> torch.Tensor:
    mask: torch.Tensor = item["data_samples"].gt_sem_seg.data[0]
    return mask


def test_label_ids_and_train_ids_are_the_same_masks(tmp_path: Path) -> None:
    for kind in (True, False):
        write_cityscapes(tmp_path / str(kind), train_ids=kind)
    labels = [find_dataset("cityscapes", tmp_path / str(kind)).read("val") for kind in (True, False)]
    assert [of.annotations[0].name.rpartition("_")[2] for of in labels] == ["labelTrainIds.png", "labelIds.png"]
    first, second = (MaskedImages(of, 19, READ) for of in labels)
    for item in range(len(first)):
        mask = mask_of(first[item])
        assert torch.equal(mask, mask_of(second[item]))
        assert set(mask.unique().tolist()) == {0, 10, 11, 13, IGNORED}


def test_the_truth_of_a_test_image_keeps_its_size(tmp_path: Path) -> None:
    write_voc12aug(tmp_path)
    item = MaskedImages(find_dataset("voc12aug", tmp_path).read("val"), 21, SMALLER)[0]
    assert max(item["inputs"].shape[1:]) == 32
    assert mask_of(item).shape == (48, 64)


def _other_size(file: Path) -> None:
    with Image.open(file) as mask:
        smaller = mask.resize((30, 20), Image.Resampling.NEAREST)
    smaller.save(file)


def _in_colours(file: Path) -> None:
    with Image.open(file) as mask:
        coloured = mask.convert("RGB")
    coloured.save(file)


def _unknown_class(file: Path) -> None:
    with Image.open(file) as mask:
        values, palette = np.array(mask), mask.getpalette()
    values[:3] = 77
    changed = Image.fromarray(values)
    changed.putpalette(palette)
    changed.save(file)


def _truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_other_size, "has 30 by 20 pixels but its image has 64 by 48"),
        (_in_colours, "has 3 channels and is not a map of class indices"),
        (_unknown_class, "has the value 77, but classes are numbered 0 to 20"),
        (_truncated, "cannot be read as an image"),
    ],
)
@pytest.mark.parametrize("pipeline", [READ, SMALLER], ids=["whole", "resized"])
def test_a_mask_that_cannot_be_used_is_named(
    damage: Callable[[Path], None], said: str, pipeline: list[dict[str, Any]], tmp_path: Path
) -> None:
    write_voc12aug(tmp_path)
    labels = find_dataset("voc12aug", tmp_path).read("val")
    damage(labels.annotations[1])
    scenes = MaskedImages(labels, 21, pipeline)
    assert mask_of(scenes[0]).shape == (48, 64)
    with pytest.raises(InputError, match=rf"{labels.annotations[1].name} {said}"):
        scenes[1]


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    write_voc12aug(tmp_path)
    labels = find_dataset("voc12aug", tmp_path).read("val")
    labels.paths[2].write_bytes(b"nothing")
    with pytest.raises(InputError, match=rf"{labels.paths[2].name} cannot be read as an image"):
        MaskedImages(labels, 21, READ)[2]


def test_values_between_the_classes_and_255_are_no_classes() -> None:
    results = {"gt_seg_map": np.array([[0, 20, 255]], np.uint8), "seg_map_path": "m.png", "ori_shape": (1, 3)}
    assert ClassIndices(None, 21)(results)["gt_seg_map"].tolist() == [[0, 20, 255]]
    with pytest.raises(InputError, match=r"m.png has the value 20, but classes are numbered 0 to 19"):
        ClassIndices(None, 20)(results)


def test_the_sheet_shows_images_with_several_classes(tmp_path: Path) -> None:
    write_voc12aug(tmp_path)
    labels = find_dataset("voc12aug", tmp_path).read("val")
    sheet = SegmentationSheet(labels.classes, labels, images=2)
    assert sheet.png() is None

    def sample(truth: torch.Tensor) -> Any:
        return SimpleNamespace(gt_sem_seg=SimpleNamespace(data=truth), pred_sem_seg=SimpleNamespace(data=truth * 0))

    empty = torch.zeros(1, 48, 64, dtype=torch.long)
    empty[:, :5] = IGNORED
    scenes = MaskedImages(labels, 21, READ)
    sheet.look(0, sample(empty))
    for index in (1, 2, 3):
        sheet.look(index, sample(mask_of(scenes[index])[None]))
    assert len(sheet.chosen) == 2
    assert torch.equal(torch.from_numpy(sheet.chosen[0][1]), mask_of(scenes[1]))
    png = sheet.png()
    assert png is not None
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.width > picture.height / 2

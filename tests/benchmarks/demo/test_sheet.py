from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.demo.sheet import contact_sheet, drawings_sheet
from benchmarks.task import InputError


def test_a_sheet_of_scenes_is_drawn_and_the_same_every_time(composed: Path, tmp_path: Path) -> None:
    contact_sheet(composed, tmp_path / "new" / "a.png", "test", n=6)
    contact_sheet(composed, tmp_path / "b.png", "test", n=6)
    first, second = (np.asarray(Image.open(tmp_path / name)) for name in ("new/a.png", "b.png"))
    assert np.array_equal(first, second)
    assert first.shape[1] > 6 * 200
    assert first.std() > 20
    assert not list(tmp_path.rglob("*.partial"))


def test_a_sheet_of_drawings_is_drawn(composed: Path, tmp_path: Path) -> None:
    drawings_sheet(composed, tmp_path / "drawings.png", "val", n=12)
    with Image.open(tmp_path / "drawings.png") as image:
        assert image.width > 600


def test_missing_data_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"trainval\.txt is missing; compose the data first"):
        contact_sheet(tmp_path, tmp_path / "out.png", "trainval")
    assert not (tmp_path / "out.png").exists()

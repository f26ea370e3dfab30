from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from results.pictures.low_shot import SELECTIONS, _bands, draw_low_shot
from results.schema import Protocol
from results.store import StoredRecord, read_records
from tests.results.factory_records import card, protocol, random_card, record

K = (1, 2, 4, 8)
COLUMNS = tuple(f"k={k}{how}" for how in ("", " fixed", " heldout") for k in K)
LOW_SHOT = protocol("voc07_low_shot_svm", COLUMNS, "k=8", metric="mAP", dataset="scenes", params={"sets": 5})


def runs(level: float) -> tuple[dict[str, object], ...]:
    """Higher by oracle than held out, and held out than fixed; the spread shrinks with k."""
    bonus = {"": 2.0, " heldout": 1.0, " fixed": 0.0}
    return tuple(
        {
            "score": f"k={k}{how}",
            "k": k,
            "cost": 1.0,
            "map": level + bonus[how] + 3 * i,
            "map_min": level + bonus[how] + 3 * i - 2 / k,
            "map_max": level + bonus[how] + 3 * i + 1 / k,
        }
        for how in bonus
        for i, k in enumerate(K)
    )


@pytest.fixture
def records(tmp_path: Path) -> list[StoredRecord]:
    root = tmp_path / "records"
    for about, level in ((card("trained"), 30.0), (random_card(0), 10.0), (random_card(1), 12.0)):
        write(root, about, level, LOW_SHOT)
    return read_records(root)[0]


def write(root: Path, about: object, level: float, of: Protocol) -> None:
    from results.store import write_record

    made = record(about, of)  # type: ignore[arg-type]
    write_record(root, made.model_copy(update={"runs": runs(level)}))


def test_bands_are_read_by_selection(records: list[StoredRecord]) -> None:
    bands = {selection: {band.label: band for band in _bands(records, selection)} for selection in SELECTIONS}
    trained = {selection: of["trained"] for selection, of in bands.items()}
    assert trained["fixed"].k == K
    assert trained["fixed"].mean == (30, 33, 36, 39)
    assert trained["heldout"].mean == (31, 34, 37, 40)
    assert trained["oracle"].mean == (32, 35, 38, 41)
    assert trained["fixed"].low[0] == 28
    assert trained["fixed"].high[0] == 31


def test_random_initialisations_share_a_line_and_a_band(records: list[StoredRecord]) -> None:
    (shared,) = [band for band in _bands(records, "fixed") if "2 initialisations" in band.label]
    assert shared.mean[0] == 11
    assert (shared.low[0], shared.high[0]) == (8, 13)


def test_the_picture_is_drawn(records: list[StoredRecord], tmp_path: Path) -> None:
    draw_low_shot(records, tmp_path / "low_shot.png")
    pixels = imread(tmp_path / "low_shot.png")
    assert pixels.shape[0] > 300
    assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 10


def test_what_shares_no_axis_is_refused(records: list[StoredRecord], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there are: none"):
        draw_low_shot([], tmp_path / "x.png")
    other = LOW_SHOT.model_copy(update={"variant": "other"})
    write(tmp_path / "records", card("third"), 20.0, other)
    with pytest.raises(ValueError, match=r"voc07_low_shot_svm\.demo@1, voc07_low_shot_svm\.other@1"):
        draw_low_shot(read_records(tmp_path / "records")[0], tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()

"""The committed effect of decoders on scores, and the script that measures it on a few drawings."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.docs.test_vit_differences import script

SCORES = script(Path(__file__).parents[2] / "scripts" / "decoder_scores.py")


def test_every_decoder_encoder_and_size_has_a_row() -> None:
    rows = json.loads(SCORES.FILE.read_text(encoding="utf-8"))
    found = {(row["size"], row["decoder"], row["encoder"]) for row in rows}
    assert found == {(s, d, e) for s in SCORES.SIZES for d in (*SCORES.NAMED, *SCORES.OTHERS) for e in SCORES.ENCODERS}
    assert len(rows) == len(found)
    assert all(set(row["scores"]) == set(SCORES.PROTOCOLS) for row in rows)
    assert all(row["distance"] == 0 for row in rows if row["decoder"] == "pil")
    assert all(row["distance"] < 5 for row in rows)


@pytest.mark.slow
def test_few_drawings_are_measured_by_every_decoder_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SCORES, "PROTOCOLS", ("ncm.demo@1",))
    rows = list(SCORES.measure(["pixels"], sizes=(384,), per_class=2))
    again = SCORES.measure(["pixels"], sizes=(384,), per_class=2, known={SCORES.place(row) for row in rows})
    assert list(again) == []
    expected = {"pil", "pil-draft", "torchvision.io"}
    expected |= {"simplejpeg", "simplejpeg-scaled"} if find_spec("simplejpeg") else set()
    expected |= {"cv2"} if find_spec("cv2") else set()
    assert {row["decoder"] for row in rows} == expected
    by_name = {row["decoder"]: row for row in rows}
    assert by_name["pil"]["distance"] == 0
    assert 0 < by_name["pil-draft"]["distance"] < 5
    assert all(0 <= score <= 100 for row in rows for score in row["scores"].values())

"""`python -m results pictures`: which files it writes, and what it says where there is nothing to draw."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from results.__main__ import main
from results.store import write_record
from tests.results.factory_records import KNN, card, decision_outcomes, protocol, record, write_demo

LOW_SHOT_COLUMNS = tuple(f"k={k}{how}" for how in ("", " fixed", " heldout") for k in (1, 2))


def low_shot_runs() -> tuple[dict[str, object], ...]:
    return tuple({"score": c, "map": 30.0, "map_min": 29.0, "map_max": 31.0} for c in LOW_SHOT_COLUMNS)


def write_low_shot(root: Path, variant: str) -> None:
    asked = protocol("voc07_low_shot_svm", LOW_SHOT_COLUMNS, "k=2", metric="mAP", params={"sets": 5}).model_copy(
        update={"variant": variant}
    )
    write_record(root, record(card("trained"), asked, runs=low_shot_runs()))


def write_classes(root: Path) -> None:
    asked = protocol("voc07_svm", ("feature4", "feature5"), "feature5", metric="mAP", dataset="scenes")
    found = decision_outcomes(asked.columns, 1.0, 0)
    values = {c: {"bird": 1.0, "boat": 2.0, "cat": 3.0, "dog": 4.5} for c in asked.columns}
    write_record(root, record(card("by class"), asked, found, per_class=values), found)


def test_every_picture_and_the_table_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = tmp_path / "records", tmp_path / "out"
    write_demo(root)
    write_classes(root)
    for variant in ("demo", "other"):  # two protocols share no axis, so each has a picture of its own
        write_low_shot(root, variant)
    assert main(["pictures", "--records", str(root), "--out", str(out)]) == 0
    made = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*"))
    low_shot = [name for name in made if "low_shot" in name]
    assert [name.partition("@")[0] for name in low_shot] == [
        "embedded/low_shot_voc07_low_shot_svm.demo",
        "embedded/low_shot_voc07_low_shot_svm.other",
    ]
    assert {"embedded/knn_k.png", "embedded/per_class.md", "embedded/per_layer.png"} <= {*made}
    for path in out.rglob("*.png"):
        with Image.open(path) as picture:
            assert min(picture.size) > 300
    table = (out / "embedded" / "per_class.md").read_text()
    assert "| dog" in table
    assert "4.5" in table
    assert sorted(capsys.readouterr().out.splitlines()) == sorted(f"wrote {out / name}" for name in made)


def test_the_embedded_and_full_data_sets_never_share_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from results.schema import Score

    root, out = tmp_path / "records", tmp_path / "out"
    scores = {column: Score(value=50.0, n=10, selection="fixed") for column in KNN.columns}
    for embedded in (True, False):
        write_record(root, record(card("an encoder"), KNN, scores=scores, embedded=embedded))
    assert main(["pictures", "--records", str(root), "--out", str(out)]) == 0
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*")) == [
        "embedded/knn_k.png",
        "full/knn_k.png",
    ]
    left_out = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in left_out] == ["results"] * 6  # by layer, by epoch and by class, twice
    assert all("no record has" in line for line in left_out)


def test_nothing_to_draw_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = tmp_path / "records", tmp_path / "out"
    write_low_shot(root, "demo")
    assert main(["pictures", "--records", str(root), "--out", str(out), "--encoder", "nobody"]) == 2
    error = capsys.readouterr().err
    assert "nothing" in error or "no record" in error
    assert len(error.splitlines()) == 1
    assert not out.exists()
    assert main(["pictures", "--records", str(tmp_path / "none"), "--out", str(out)]) == 2
    assert "no folder of records" in capsys.readouterr().err

"""Which record makes a new run needless, and which name stands for what."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from results.schema import DECISIVE, EncoderCard, Record, record_key
from results.store import find_record, write_record
from tests.results.factory_records import (
    KNN,
    card,
    moco_card,
    record,
)
from tests.results.written_records import OUTCOMES, contents, stored, written

HISTORIC = Path(__file__).parent / "historic"


def found_again(root: Path, asked: Record) -> Record | None:
    return find_record(root, asked.encoder, asked.protocol.resolved, asked.dataset, asked.seeds)


def test_only_what_succeeded_under_the_same_key_is_skipped(tmp_path: Path) -> None:
    asked = record(moco_card(0), KNN, OUTCOMES)
    assert found_again(tmp_path, asked) is None
    write_record(tmp_path, record(moco_card(0), KNN, status="failed", error="out of memory"))
    assert found_again(tmp_path, asked) is None
    path = written(tmp_path)
    found = found_again(tmp_path, asked)
    assert found is not None
    assert found.scores["k=20"].value == asked.scores["k=20"].value

    for other in (
        record(moco_card(1), KNN, OUTCOMES),
        record(moco_card(0), KNN.with_overrides(epochs=10), OUTCOMES),
        record(moco_card(0), KNN, OUTCOMES, embedded=False),
        record(moco_card(0), KNN, OUTCOMES, seeds=(1,)),
    ):
        assert found_again(tmp_path, other) is None

    path.write_text(path.read_text().replace('"status": "ok"', '"status" : "ok"').replace("220", "221"))
    assert found_again(tmp_path, asked) is None


def test_long_overrides_have_short_names_that_tell_them_apart(tmp_path: Path) -> None:
    plain = KNN.model_copy(update={"params": {**KNN.params, "config": {}, "sizes": (), "other": 0}})
    paths = []
    for last in (1, 2):
        config = {f"MODEL.PART_{n}.SIZE": n for n in range(40)} | {"MODEL.LAST": last}
        asked = plain.with_overrides(config=config, sizes=tuple(range(200)), other=last)
        names = asked.id.split("+")[1:]
        assert names[0].startswith("config={'MODEL.PART_0.SIZE': 0, 'MODEL.~")
        assert names[1] == f"other={last}"
        assert names[2].startswith("sizes=0,1,2,3,4,5,6,7,8,9,10,11,12,")
        assert len(asked.id) < 160
        paths.append(write_record(tmp_path, record(moco_card(0), asked, OUTCOMES), OUTCOMES))
        assert found_again(tmp_path, record(moco_card(0), asked, OUTCOMES)) is not None
        assert asked.with_overrides(config={}, sizes=(), other=0).params == plain.params
    ids = {stored(path).record.protocol.id for path in paths}
    assert len(ids) == 2
    assert all(stored(path).intact for path in paths)
    assert max(len(name.rpartition("/")[2]) for name in contents(tmp_path)) < 160
    assert plain.with_overrides(config={"MODEL.LAST": 1}).id == "knn.demo@1+config={'MODEL.LAST': 1}"


def test_the_same_weights_trained_again_are_not_measured_again(tmp_path: Path) -> None:
    written(tmp_path)
    again = moco_card(0, pretrain_seconds=999.0, epochs=61, source="elsewhere", licence="MIT", keys_unused=3)
    assert found_again(tmp_path, record(again, KNN, OUTCOMES)) is not None
    path = write_record(tmp_path, record(again, KNN, OUTCOMES), OUTCOMES)
    assert [p for p in contents(tmp_path) if p.endswith(".json")] == [path.relative_to(tmp_path).as_posix()]
    for change in ({"mean": (0.5, 0.5, 0.5)}, {"channels": "BGR"}, {"embed": "class token"}, {"value_range": 255.0}):
        assert found_again(tmp_path, record(moco_card(0, **change), KNN, OUTCOMES)) is None, change


def test_every_field_of_the_card_moves_a_number_or_only_describes() -> None:
    describes = {"name", "source", "layout", "keys_matched", "keys_unused", "method", "epochs", "pretrain_data",
                 "pretrain_seconds", "init", "licence", "published_as", "assumed", "interpolation"}  # fmt: skip
    assert set(EncoderCard.model_fields) == {*DECISIVE, *describes}, "put a new field into DECISIVE, or here"


def test_a_record_of_an_older_schema_makes_a_new_run_needless(tmp_path: Path) -> None:
    old = next(path for path in HISTORIC.rglob("*.json") if '"schema_version": 1,' in path.read_text())
    there = tmp_path / old.relative_to(HISTORIC)
    shutil.copytree(old.parent, there.parent)
    asked = stored(there).record
    assert record_key(asked.protocol.resolved, asked.encoder, asked.dataset.fingerprint, asked.seeds) not in there.name
    assert found_again(tmp_path, asked) == asked
    trained_again = asked.model_copy(
        update={"encoder": asked.encoder.model_copy(update={"pretrain_seconds": 1.0, "epochs": 7.0})}
    )
    assert found_again(tmp_path, trained_again) == asked
    there.write_text(there.read_text().replace('"pretrain_seconds": ', '"pretrain_seconds": 1'))
    assert found_again(tmp_path, asked) is None


def test_the_name_of_a_record_stands_for_what_it_holds(tmp_path: Path) -> None:
    for path in (written(tmp_path), next(HISTORIC.rglob("*.json"))):
        moved = path.with_name(f"{path.stem[:-8]}00000000.json")
        target = tmp_path / "moved" / moved.name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(path, target)
        fault = "its encoder, protocol, data or seeds are not those that its file name stands for"
        assert fault in stored(target).faults
        assert stored(path).faults == ()


@pytest.mark.parametrize(
    "name", ["../../../etc/passwd", "..", "a/b\\c", "x" * 500, "名前", "a\nb\0c", " . ", "Net <script>"]
)
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    root = tmp_path / "records"
    path = write_record(root, record(card(name), KNN))
    assert path.resolve().is_relative_to(root.resolve())
    assert len(path.relative_to(root).parts) == 4
    assert stored(path).record.encoder.name == name

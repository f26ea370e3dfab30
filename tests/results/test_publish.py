"""From local records to the committed ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from results.__main__ import main
from results.publish import publish
from results.store import read_records, write_record
from tests.results.factory_records import (
    KNN,
    KNN_COLUMNS,
    LINEAR,
    accuracy_outcomes,
    card,
    moco_card,
    random_card,
    record,
)

OUTCOMES = accuracy_outcomes(KNN_COLUMNS, 0.4, 0)


def write(root: Path, encoder: object, created: str = "2025-01-01T00:00:00+00:00", **fields: object) -> Path:
    return write_record(root, record(encoder, KNN, OUTCOMES, created=created, **fields), OUTCOMES)  # type: ignore[arg-type]


def files(root: Path) -> dict[str, bytes]:
    return {
        p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name != ".lock"
    }


def test_records_and_side_files_are_copied_byte_for_byte_once(tmp_path: Path) -> None:
    local, published = tmp_path / "local", tmp_path / "published"
    for seed in range(2):
        write(local, moco_card(seed))
    done = publish(local, published)
    assert (len(done.copied), len(done.unchanged), done.left_out) == (2, 0, ())
    assert files(published) == files(local)
    assert len(files(published)) == 4
    assert not list(published.rglob(".*"))  # no lock file among what is committed
    again = publish(local, published)
    assert (len(again.copied), len(again.unchanged)) == (0, 2)


def test_a_dry_run_says_what_would_be_published(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    local, published = tmp_path / "local", tmp_path / "published"
    name = write(local, moco_card(0)).relative_to(local)
    words = ["publish-records", "--records", str(local), "--out", str(published)]
    assert main([*words, "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith(f"would publish {name}\n1 published, ")
    assert not published.exists()
    assert main(words) == 0
    assert capsys.readouterr().out.startswith(f"published {name}\n")


def test_a_damaged_copy_is_made_again(tmp_path: Path) -> None:
    local, published = tmp_path / "local", tmp_path / "published"
    write(local, moco_card(0))
    publish(local, published)
    next(published.rglob("*.npz")).unlink()
    assert len(publish(local, published).copied) == 1
    assert files(published) == files(local)


def test_what_failed_or_was_edited_or_is_no_record_is_left_out_by_name(tmp_path: Path) -> None:
    local, published = tmp_path / "local", tmp_path / "published"
    failed = write_record(local, record(card("failing"), LINEAR, status="failed", error="out of memory"))
    edited = write(local, card("edited"))
    edited.write_text(edited.read_text().replace('"n": 220', '"n": 22000'))
    (local / "junk.json").write_text("{")
    done = publish(local, published)
    reasons = {path.name: reason for path, reason in done.left_out}
    assert done.copied == ()
    assert reasons[failed.name] == "it failed: out of memory"
    assert reasons[edited.name] == "edited after it was written"
    assert "cannot be read" in reasons["junk.json"]
    assert files(published) == {}


def test_changed_protocols_are_published_only_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    local, published = tmp_path / "local", tmp_path / "published"
    declared = write(local, moco_card(0)).relative_to(local)
    step = write_record(local, record(moco_card(0), KNN.changed(epochs=10), OUTCOMES), OUTCOMES).relative_to(local)
    command = ["publish-records", "--records", str(local), "--out", str(published)]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert f"left out {step}: its protocol was changed (epochs=10); --overrides publishes it too\n" in said
    assert [stored.path.relative_to(published) for stored in read_records(published)[0]] == [declared]
    assert main([*command, "--overrides"]) == 0
    assert files(published) == files(local)


def test_a_newer_record_takes_the_place_of_the_older(tmp_path: Path) -> None:
    local, published = tmp_path / "local", tmp_path / "published"
    write(local, moco_card(0))
    write(local, moco_card(1))
    publish(local, published)
    retrained = moco_card(0, weights_sha256="f" * 64)
    write(local, retrained, created="2025-02-01T00:00:00+00:00")

    planned = publish(local, published, dry_run=True)
    assert (len(planned.copied), len(planned.unchanged), len(planned.replaced)) == (1, 1, 1)
    assert len(read_records(published)[0]) == 2
    assert {s.record.encoder.weights_sha256 for s in read_records(published)[0]} != {"f" * 64}

    assert publish(local, published) == planned
    left = {(s.record.encoder.init, s.record.encoder.weights_sha256) for s in read_records(published)[0]}
    assert left == {("seed 0", "f" * 64), ("seed 1", moco_card(1).weights_sha256)}
    assert len(files(published)) == 4
    assert not [p for p in published.rglob("*") if p.is_dir() and not any(p.iterdir())]


@pytest.mark.parametrize("digit", ["0", "f"])
def test_of_two_local_records_the_newer_is_published_whatever_its_name(tmp_path: Path, digit: str) -> None:
    local, published = tmp_path / "local", tmp_path / "published"
    newer = write(local, moco_card(0, weights_sha256=digit * 64), created="2025-02-01T00:00:00+00:00")
    older = write(local, moco_card(0, weights_sha256="7" * 64))
    done = publish(local, published)
    assert done.copied == (newer.relative_to(local),)
    assert [place for place, _ in done.left_out] == [older.relative_to(local)]


def test_two_sets_of_ones_own_images_do_not_replace_each_other(tmp_path: Path) -> None:
    local, published = tmp_path / "local", tmp_path / "published"
    for digit in "ab":
        about = {"id": "imagefolder", "fingerprint": digit * 64, "embedded": False}
        write(local, moco_card(0), dataset=record(moco_card(0), KNN).dataset.model_copy(update=about))
    assert len(publish(local, published).copied) == 2


def test_an_older_record_never_takes_the_place_of_the_newer(tmp_path: Path) -> None:
    local, published = tmp_path / "local", tmp_path / "published"
    write(published, moco_card(0, weights_sha256="f" * 64), created="2025-02-01T00:00:00+00:00")
    before, older = files(published), write(local, moco_card(0))
    done = publish(local, published)
    assert (done.copied, done.replaced) == ((), ())
    assert done.left_out == ((older.relative_to(local), "the published record is newer"),)
    assert files(published) == before


def test_patterns_choose_the_encoders(tmp_path: Path) -> None:
    local, published = tmp_path / "local", tmp_path / "published"
    write(local, moco_card(0))
    write(local, random_card(0))
    done = publish(local, published, ["moco*"])
    assert [path.parts[0] for path in done.copied] == ["mocov2_resnet18w32_demo"]

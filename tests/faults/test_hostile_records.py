"""Hostile records: none ends `verify`, `tables` or `board` in anything but its verdict, and their texts stay texts."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.__main__ import main
from results.schema import canonical_sha256
from results.store import MAX_RECORD, read_record, write_record
from tests.faults.guard import Case, check
from tests.faults.test_hostile_data import npy_header
from tests.faults.test_hostile_weights import npz
from tests.results.factory_records import KNN, accuracy_outcomes, card, record

OUTCOMES = accuracy_outcomes(("k=10", "k=20"), 0.5, 0)
CASES: dict[str, Case] = {}  # each writes a record below a folder


def commands(folder: Path) -> None:
    """What is done with the records of others; each ends, with 0 or 2."""
    beside = {path.name for path in folder.parent.iterdir()}
    assert main(["verify", str(folder / "records")]) in (0, 1, 2)
    assert main(["tables", "--records", str(folder / "records"), "--out", str(folder / "tables.md")]) in (0, 2)
    assert main(["board", str(folder / "board"), "--records", str(folder / "records")]) in (0, 2)
    assert main(["publish-records", "--records", str(folder / "records"), "--out", str(folder / "published")]) in (0, 2)
    for form in ("model-card", "every-eval-ever"):
        where = ["--out", str(folder / "exported"), "--source-name", "me"]
        assert main(["export", str(folder / "records"), "--to", form, *where]) in (0, 2)
    written = {"records", "tables.md", "board", "published", "exported", "changed.npz"}
    assert {path.name for path in folder.iterdir()} <= written, "it wrote somewhere else"
    assert {path.name for path in folder.parent.iterdir()} <= beside, "it wrote beside its folder"
    foreign = Path("/etc/passwd").read_bytes()
    assert not any(path.is_file() and path.read_bytes() == foreign for path in (folder / "published").rglob("*"))


def with_outcomes(change: Callable[[dict[str, Any]], object]) -> Case:
    """A record that is sealed over other outcomes than its benchmark's."""

    def read(folder: Path) -> None:
        path = write_record(folder / "records", record(card("net"), KNN, OUTCOMES), OUTCOMES)
        outcomes: dict[str, Any] = {name: array.copy() for name, array in OUTCOMES.items()}
        change(outcomes)
        opened = folder / "changed.npz"
        np.savez_compressed(opened, **outcomes)
        replace_outcomes(path, opened.read_bytes())

    return read


def replace_outcomes(path: Path, payload: bytes) -> None:
    from results.store import _outcomes_name

    name = _outcomes_name(path, payload)
    path.with_name(name).write_bytes(payload)
    reseal(path, {"outcomes_file": name})


def reseal(path: Path, fields: dict[str, Any]) -> None:
    raw = {key: value for key, value in json.loads(path.read_text("utf-8")).items() if key != "sha256"} | fields
    path.write_text(json.dumps({**raw, "sha256": canonical_sha256(raw)}), encoding="utf-8")


def with_payload(payload: Callable[[], bytes]) -> Case:
    def read(folder: Path) -> None:
        path = write_record(folder / "records", record(card("net"), KNN, OUTCOMES), OUTCOMES)
        replace_outcomes(path, payload())

    return read


def with_text(text: Callable[[str], str | bytes]) -> Case:
    def read(folder: Path) -> None:
        path = write_record(folder / "records", record(card("net"), KNN, OUTCOMES), OUTCOMES)
        changed = text(path.read_text("utf-8"))
        path.write_bytes(changed if isinstance(changed, bytes) else changed.encode("utf-8", "surrogatepass"))

    return read


def with_fields(**fields: Any) -> Case:
    def read(folder: Path) -> None:
        path = write_record(folder / "records", record(card("net"), KNN, OUTCOMES), OUTCOMES)
        reseal(path, fields)

    return read


K = "correct/k=20"
N = len(OUTCOMES[K])
EVIL = "<!--<script></script><script>document.title='owned'</script>\x1b[31m"
CASES |= {
    "texts in place of right and wrong": with_outcomes(lambda o: o.update({K: np.array(["a"] * N)})),
    "complex numbers": with_outcomes(lambda o: o.update({K: np.full(N, 1j)})),
    "dates": with_outcomes(lambda o: o.update({K: np.zeros(N, "M8[s]")})),
    "structures": with_outcomes(lambda o: o.update({K: np.zeros(N, [("a", "i4")])})),
    "one number": with_outcomes(lambda o: o.update({K: np.array(1.0)})),
    "nine dimensions": with_outcomes(lambda o: o.update({K: np.zeros((N, *[1] * 8))})),
    "not a number": with_outcomes(lambda o: o.update({K: np.full(N, np.nan)})),
    "no items": with_outcomes(lambda o: o.update({name: array[:0] for name, array in OUTCOMES.items()})),
    "groups that go back": with_outcomes(lambda o: o.update(group_offsets=o["group_offsets"][::-1])),
    "groups far away": with_outcomes(lambda o: o.update(group_offsets=o["group_offsets"].astype(np.int64) * 2**40)),
    "groups of fractions": with_outcomes(lambda o: o.update(group_offsets=o["group_offsets"] + 0.5)),
    "groups of texts": with_outcomes(lambda o: o.update(group_offsets=np.array(["a"] * (N + 1)))),
    "members that are dates": with_outcomes(lambda o: o.update(group_members=np.zeros(N, "M8[s]"))),
    "no groups": with_outcomes(lambda o: o.pop("group_offsets")),
    "a reference to itself": with_outcomes(lambda o: o.update({f"same/{K}": np.array(f"same/{K}")})),
    "a reference to nothing": with_outcomes(lambda o: o.update({f"same/{K}": np.array("nothing")})),
    "areas of one class": with_outcomes(lambda o: o.update({"iou/k=20": np.zeros((N, 3, 1)), K: np.zeros(N, bool)})),
    "decisions without targets": with_outcomes(lambda o: o.update({"decision/k=20": np.zeros((N, 2)), "targets": 3})),
    "a rule that is a number": with_outcomes(lambda o: o.update({"ap_rule": np.array(3), "iou_rule": np.zeros(4)})),
    "targets that are texts": with_outcomes(lambda o: o.update(targets=np.array(["a"] * N))),
    "targets far away": with_outcomes(lambda o: o.update(targets=np.full(N, 2**40))),
    "no targets": with_outcomes(lambda o: o.pop("targets")),
    "fewer ids than items": with_outcomes(lambda o: o.update(ids=o["ids"][:3])),
    "ranks that are texts": with_outcomes(
        lambda o: (o.pop(K), o.update({"decision/k=20": np.array([["a", "b"]] * N), "targets": np.ones((N, 2))}))),
    "an archive that is text": with_payload(lambda: b"PK or not"),
    "a header of open brackets": with_payload(lambda: npz(npy_header("(" * 100), f"{K}.npy")),
    "objects": with_payload(lambda: npz(npy_header("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}"))),
    "deep JSON": with_text(lambda text: "[" * 100_000 + text),
    "brackets in a field": with_text(
        lambda text: text.replace('"scores": {', '"scores": {"x":' + "[" * 500 + "]" * 500 + ",")),
    "numbers of 10,000 digits": with_text(
        lambda text: text.replace('"schema_version": ', '"schema_version": ' + "9" * 10_000)),
    "no UTF-8": with_text(lambda text: b"\xff" + text.encode()),
    "half a character": with_text(lambda text: text.replace('"net"', '"\\ud800"')),
    "40 million numbers": with_text(lambda text: text.replace('"seeds": [', '"seeds": [' + "0," * 20_000_000)),
    "markup as an encoder": with_text(lambda text: text.replace('"net"', json.dumps(EVIL))),
    "an outcomes file elsewhere": with_fields(outcomes_file="../../../../etc/passwd"),
    "an outcomes file that is the record": with_fields(outcomes_file="."),
    "an outcomes file with a zero byte": with_fields(outcomes_file="a\0b"),
    "a list of runs that is none": with_fields(runs={"a": 1}),
    "a date that is none": with_fields(created="yesterday"),
    "values per class of other classes": with_fields(per_class={"k=20": {"a": 1.0, "b": 2.0}}),
    "runs of trials that are none": with_fields(runs=[{"trial": "x", "k=20": [1]}]),
}  # fmt: skip


def sparse(folder: Path) -> None:
    path = write_record(folder / "records", record(card("net"), KNN, OUTCOMES), OUTCOMES)
    side = path.parent / str(json.loads(path.read_text("utf-8"))["outcomes_file"])
    with side.open("r+b") as file:
        file.truncate(1 << 40)


CASES["a sparse file of a terabyte"] = sparse


def beside(change: Callable[[Path, Path], object]) -> Case:
    """Something else in the folder of a record: a function of the folder of records and the record's own."""

    def read(folder: Path) -> None:
        path = write_record(folder / "records", record(card("net"), KNN, OUTCOMES), OUTCOMES)
        change(folder / "records", path.parent)

    return read


def linked_outcomes(_: Path, own: Path) -> None:
    side = min(own.glob("*.npz"))
    side.unlink()
    side.symlink_to("/etc/passwd")


def with_card(**fields: Any) -> Case:
    """A record whose encoder's card says so."""

    def read(folder: Path) -> None:
        path = write_record(folder / "records", record(card("net"), KNN, OUTCOMES), OUTCOMES)
        reseal(path, {"encoder": json.loads(path.read_text("utf-8"))["encoder"] | fields})

    return read


CASES |= {
    "outcomes that are a link to passwords": beside(linked_outcomes),
    "a link to all files": beside(lambda root, _: (root / "all").symlink_to("/")),
    "a link to itself": beside(lambda root, _: (root / "loop").symlink_to(root)),
    "a pipe beside a record": beside(lambda _, own: os.mkfifo(own / "a.json")),
    "a device beside a record": beside(lambda _, own: (own / "a.json").symlink_to("/dev/zero")),
    "an encoder that leaves the folder": with_card(name="../../../escaped"),
    "an encoder of the root": with_card(name="/tmp/escaped"),
    "an encoder that is a command of YAML": with_card(name="a\n- !!python/object/apply:os.system ['touch ran']"),
    "an encoder with a zero byte": with_card(name="a\0b"),
    "an encoder of a megabyte": with_card(name="a" * 10**6),
    "an encoder without a name": with_card(name=""),
    "a licence that ends the front matter": with_card(licence="---\n!!python/object/new:os.system [touch ran]"),
    "seeds of 300 digits": with_fields(seeds=[10**300]),
}
QUICK = ("texts in place of right and wrong", "a header of open brackets", "a sparse file of a terabyte", "deep JSON")


def measured_against(name: str) -> Case:
    def read(folder: Path) -> None:
        CASES[name](folder)
        commands(folder)

    return read


@pytest.mark.parametrize("name", QUICK)
def test_a_hostile_record_ends_nothing(name: str, tmp_path: Path) -> None:
    check(measured_against(name), tmp_path)


@pytest.mark.faults
@pytest.mark.parametrize("name", sorted(CASES.keys() - set(QUICK)))
def test_no_hostile_record_ends_anything(name: str, tmp_path: Path) -> None:
    check(measured_against(name), tmp_path)


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        (np.array(["a"] * N), "correct/k=20 holds <U1 values instead of numbers"),
        (np.full(N, np.nan), "those of k=20 are not all finite"),
    ],
    ids=["texts", "not a number"],
)
def test_export_names_the_record_whose_outcomes_cannot_be_scored(
    values: NDArray[Any], fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_record(tmp_path / "records", record(card("net"), KNN, OUTCOMES), OUTCOMES)
    opened = tmp_path / "changed.npz"
    np.savez_compressed(opened, **{**OUTCOMES, K: values})
    replace_outcomes(path, opened.read_bytes())
    assert main(["export", str(path), "--out", str(tmp_path / "exported")]) == 2
    printed = capsys.readouterr().err.strip()
    assert printed.endswith(
        f"{path}: its outcomes cannot be scored: {fault}; measure it again with --force, or export the other records "
        "without it"
    )
    assert len(printed.splitlines()) == 1
    assert not (tmp_path / "exported").exists()


@pytest.mark.faults
def test_markup_in_a_record_stays_text_on_the_board(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    named = card("net").model_copy(update={"name": EVIL, "source": "javascript:alert(1)", "method": EVIL})
    write_record(tmp_path / "records", record(named, KNN, OUTCOMES), OUTCOMES)
    commands(tmp_path)
    printed = capfd.readouterr()
    assert "\x1b" not in printed.out + printed.err
    for page in (tmp_path / "board").rglob("*"):
        if page.is_file():
            content = page.read_text("utf-8", "replace")
            assert "<script>document.title" not in content, page
            assert 'href="javascript:' not in content, page


def test_a_record_that_is_too_large_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        file.truncate(MAX_RECORD + 1)
    assert "more than 16,777,216" in read_record(path).reason  # type: ignore[union-attr]

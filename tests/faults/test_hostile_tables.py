"""Hostile records against every command that shows, compares or exports them, and hostile pages, logs and questions.

Each command has a process of its own: none runs code, takes over 1 GB or over 10 s, or ends in anything but its
verdict, and no markup and no escape code of a record reaches what is written.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.__main__ import main
from results.__main__ import main as results_main
from results.commands import PUBLISHED_PAGES
from results.explain import QUESTIONS_FILE
from results.schema import Score
from results.store import StoredRecord, packed, read_record, read_records, write_record
from results.tables import markdown_page
from tests.faults.guard import SECONDS, guarded
from tests.faults.test_hostile_data import encoded, png
from tests.faults.test_hostile_records import CASES, EVIL, OUTCOMES, N, replace_outcomes, reseal
from tests.results.factory_records import (
    KNN,
    LINEAR,
    SVM,
    accuracy_outcomes,
    card,
    decision_outcomes,
    moco_card,
    protocol,
    random_card,
    record,
)

R, OUT = "records", "made"
DRAWS = 30  # seconds that the figures of the records below take
HUB = ["--source-url", "https://example.org", "--source-name", "me"]
COMMANDS: dict[str, list[str]] = {
    "tables": ["tables", "--records", R, "--out", f"{OUT}/tables.md"],
    "tables csv": ["tables", "--records", R, "--format", "csv", "--rows", "embedded", "--out", f"{OUT}/tables.csv"],
    "tables latex": ["tables", "--records", R, "--format", "latex", "--out", f"{OUT}/tables.tex"],
    "tables readme": ["tables", "--records", R, "--readme", "README.md"],
    "zoo-page": ["zoo-page", "--encoder", "*", "--records", R, "--out", f"{OUT}/zoo.md"],
    "zoo-page against": [
        "zoo-page", "--encoder", "net", "--records", R, "--against", "MoCo v2*", "--format", "latex",
        "--out", f"{OUT}/zoo.tex",
    ],
    "pictures": ["pictures", "--out", f"{OUT}/pictures", "--records", R],
    "report": ["report", "--records", R, "--out", f"{OUT}/report.html", "--pretrain", "runs"],
    "board": ["board", f"{OUT}/board", "--records", R],
    "paper-tables": ["paper-tables", "--records", R, "--out", f"{OUT}/papers"],
    "lint": ["lint", "page.md", "--records", R],
    "diff": ["diff", "net", "other", "--records", R, "--out", f"{OUT}/diff.md"],
    "diff csv": ["diff", "random*", "*", "--records", R, "--format", "csv", "--out", f"{OUT}/diff.csv"],
    "correlations": ["correlations", "--records", R, "--embedded", "--columns", "all", "--out", f"{OUT}/together.md"],
    "correlations picture": [
        "correlations", "--records", R, "--embedded", "--columns", "all", "--picture", f"{OUT}/map.svg",
        "--out", f"{OUT}/all.md",
    ],
    "explain": ["explain", "knn.demo@1", "knn.other@1", "--records", R, "--out", f"{OUT}/why.md"],
    "publish": ["publish-records", "--records", R, "--out", f"{OUT}/published"],
    "verify": ["verify", R],
    "export index": ["export", R, "--to", "model-index", *HUB, "--out", f"{OUT}/index"],
    "export results": [
        "export", f"alone/{R}", "--to", "eval-results", *HUB, "--hub-dataset", "a/b", "--hub-task", "c",
        "--out", f"{OUT}/results",
    ],
    "export card": ["export", R, "--to", "model-card", *HUB, "--out", f"{OUT}/card"],
    "export every-eval-ever": ["export", R, "--to", "every-eval-ever", *HUB, "--out", f"{OUT}/ever"],
    "features-gc": ["features-gc", "--records", R, "--features", "features"],
}  # fmt: skip
# `encoder-bench explain` measures; what reads records alone is the command of `python -m results`, whose `verify` asks
# for no declared protocol.
QUICK_COMMANDS = ("zoo-page", "lint", "diff", "correlations", "tables csv", "board", "export index", "export card")


def companions(folder: Path) -> None:
    """Other encoders with other benchmarks, so that every comparison has something to compare."""
    root = folder / R
    others = [card(name) for name in ("other", "third", "fourth", "fifth")]
    for number, encoder in enumerate((*others, moco_card(0), moco_card(1), random_card(0), random_card(1))):
        knn = accuracy_outcomes(("k=10", "k=20"), 0.3 + number / 15, number)
        write_record(root, record(encoder, KNN, knn), knn)
        linear = accuracy_outcomes(("AvgPool",), 0.35 + number / 15, number)
        write_record(root, record(encoder, LINEAR, linear), linear)
        if encoder in others[1:]:
            continue
        svm = decision_outcomes(("feature4", "feature5"), 1 + number, number, items=60)
        classes = {column: {f"class{i}": 10.0 + i for i in range(4)} for column in ("feature4", "feature5", "SVM")}
        write_record(root, record(encoder, SVM, svm, per_class=classes), svm)
    other = protocol("knn", ("k=10", "k=20"), "k=20", variant="other", params={"epochs": 10})
    write_record(root, record(card("net"), other, OUTCOMES), OUTCOMES)
    (folder / "page.md").write_text(markdown_page(read_records(root)[0], [], root), encoding="utf-8")
    (folder / "README.md").write_text("a\n<!-- table:begin -->\n<!-- table:end -->\n", encoding="utf-8")


def failures(folder: Path, names: list[str]) -> list[str]:
    """What was wrong with each of these commands in the folder, in a process each."""
    found = []
    for name in names:
        seconds = SECONDS + (DRAWS if name in ("report", "pictures") else 0)
        fault = guarded(lambda _, name=name: run(name), folder, seconds)  # type: ignore[misc]
        said = (folder / "said").read_bytes() if (folder / "said").exists() else b""
        if b"\x1b" in said:
            fault += "an escape code on the terminal"
        if b"Traceback" in said:
            fault += said.decode(errors="replace")
        found += [f"{name}: {fault}"] if fault else []
    return found


def run(name: str, codes: tuple[int, ...] = (0, 1, 2, 3)) -> None:
    """In a child, whose folder this is."""
    said = os.open("said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(said, stream)
    command = COMMANDS[name]
    code = (results_main if name in ("explain", "verify") else main)(command)
    import sys

    sys.stdout.flush()
    sys.stderr.flush()
    assert code in codes, Path("said").read_text(encoding="utf-8")


RUNS = re.compile(rb"(\]\(|(href|src|action|data)\s*=\s*[\"']?)\s*javascript:", re.IGNORECASE)


def markup(folder: Path) -> list[str]:
    """The files with markup or escape codes of a record. JSON and YAML are data, which hold any text."""
    found = []
    for path in (folder / OUT).rglob("*"):
        if path.is_symlink() or not path.is_file() or path.suffix == ".npz" or R in path.parts[len(folder.parts) :]:
            continue
        content = path.read_bytes()
        if content.startswith(b"---\n"):  # the front matter of a model card, which is YAML
            content = content.partition(b"\n---\n")[2]
        if path.suffix != ".png" and b"\x1b" in content:
            found.append(f"{path}: an escape code")
        if path.suffix in (".md", ".html", ".svg", ".tex") and b"<script>document.title" in content:
            found.append(f"{path}: a script")
        if path.suffix in (".md", ".html", ".svg") and RUNS.search(content):
            found.append(f"{path}: a link that runs")
    return found


def everywhere(folder: Path) -> None:
    """A record that is whole, with markup in every text that its owner chooses."""
    encoder = card(
        EVIL, source="javascript:alert(1)", method=EVIL, pretrain_data=EVIL, init=EVIL, licence=EVIL, embed=EVIL,
        layout=EVIL, not_shown=(EVIL,), assumed=(EVIL,), published_as=EVIL,
    )  # fmt: skip
    column = f"k=10 {EVIL}"
    asked = protocol(
        "knn", (column, "k=20"), "k=20", variant="demo", metric=EVIL, selection=EVIL,
        dataset=EVIL, test_split=EVIL, params={"epochs": EVIL, EVIL: 3},
    )  # fmt: skip
    asked = asked.model_copy(update={"source": asked.source.model_copy(update={"repository": EVIL, "note": EVIL})})
    outcomes = {
        f"correct/{column}": OUTCOMES["correct/k=10"],
        **{k: v for k, v in OUTCOMES.items() if k != "correct/k=10"},
    }
    about: dict[str, Any] = {
        "per_class": {column: {EVIL: 1.0, "b": 2.0}, "k=20": {EVIL: 1.0, "b": 2.0}}, "runs": [{EVIL: EVIL}],
        "versions": {EVIL: EVIL}, "commit": EVIL, "timing": {EVIL: 1.0},
    }  # fmt: skip
    about["hardware"] = {"cpu": EVIL, "cores": 2, "memory_gib": 8.0, "gpu": EVIL}
    for embedded in (True, False):
        path = write_record(folder / R, record(encoder, asked, outcomes, embedded=embedded, **about), outcomes)
        if not embedded:
            own = json.loads(path.read_text("utf-8"))["dataset"] | {"official": False, "folder": EVIL}
            reseal(path, {"dataset": own})
    write_record(folder / R, record(encoder, KNN, status="failed", error=EVIL))
    write_record(folder / R, record(card("net", method=EVIL), LINEAR, status="failed", error=f"{EVIL}\n{EVIL}"))
    (folder / "page.md").write_text(f"| Model | k=20 |\n|---|---|\n| {EVIL} | 12.3 |\n", encoding="utf-8")
    (folder / R / "<script>document.title\x1b[31m.json").write_text("{}", encoding="utf-8")


def of_a_suite(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Records of a suite with a baseline, one of them over changed outcomes."""

    def plant(folder: Path) -> None:
        for name in ("val", "v2"):
            asked = protocol(f"robustness_{name}", ("Top-1", "Top-5"), "Top-1", dataset=name)
            outcomes: dict[str, Any] = accuracy_outcomes(("Top-1", "Top-5"), 0.5, 0)
            scores = {column: Score(value=50.0, n=N, selection="fixed") for column in ("Top-1", "Top-5")}
            if name == "v2":
                change(outcomes)
            unlabelled = {k: v for k, v in outcomes.items() if not k.startswith("group_")}
            whole = record(card("net"), asked, None, scores=scores)
            try:
                write_record(folder / R, whole, outcomes)
            except (ValueError, TypeError, KeyError, IndexError, ArithmeticError):  # without standard errors
                path = write_record(folder / R, whole, {k: v for k, v in unlabelled.items() if k == "ids"})
                replace_outcomes(path, packed(outcomes))

    return plant


TOP = "correct/Top-1"
PLANTS: dict[str, Callable[[Path], None]] = {
    **CASES,
    "markup everywhere": everywhere,
    "a suite of texts": of_a_suite(lambda o: o.update({TOP: np.array(["a"] * N)})),
    "a suite of complex numbers": of_a_suite(lambda o: o.update({TOP: np.full(N, 1j)})),
    "a suite of nan": of_a_suite(lambda o: o.update({TOP: np.full(N, np.nan)})),
    "a suite of two columns": of_a_suite(lambda o: o.update({TOP: np.ones((N, 2), bool)})),
    "a suite of fewer items": of_a_suite(lambda o: o.update({TOP: o[TOP][:3]})),
    "a suite without sources": of_a_suite(lambda o: (o.pop("group_offsets"), o.pop("group_members"))),
    "a suite without items": of_a_suite(lambda o: o.update({k: v[:0] for k, v in o.items()})),
    "a suite of huge numbers": of_a_suite(lambda o: o.update({TOP: np.full(N, 1e308)})),
    "a suite of sources that are numbers": of_a_suite(lambda o: o.update(group_members=np.arange(N) / 7)),
    "targets of another kind": of_a_suite(lambda o: o.update(targets=np.zeros(N, "M8[s]"))),
}
# Of these the report and the pictures are drawn too, which takes longer than everything else together.
DRAWN = (
    "markup as an encoder", "markup everywhere", "a suite of texts", "a suite of nan", "a suite of huge numbers",
    "texts in place of right and wrong", "not a number", "areas of one class", "values per class of other classes",
    "an encoder of a megabyte", "outcomes that are a link to passwords", "a list of runs that is none",
)  # fmt: skip
QUICK = ("texts in place of right and wrong", "markup as an encoder", "markup everywhere", "a suite of texts")


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """What the commands import, once for all children, whose seconds are counted."""

    import results.board
    import results.compare
    import results.export
    import results.lint
    import results.plots
    import results.report
    import results.zoo_page  # noqa: F401


def check_all(name: str, commands: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    companions(folder)
    PLANTS[name](folder)
    if "export results" in commands:
        (folder / "alone").mkdir()
        PLANTS[name](folder / "alone")
    outside = {path.name for path in folder.iterdir()} | {OUT, "said"}
    faults = failures(folder, commands)
    assert not faults, "\n".join(faults)
    assert not markup(folder)
    assert not list(tmp_path.rglob("ran"))
    assert {path.name for path in folder.iterdir()} <= outside, "it wrote somewhere else"
    assert {path.name for path in tmp_path.iterdir()} == {"work"}


@pytest.mark.faults
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_works_on_whole_records(name: str, tmp_path: Path) -> None:
    """So that what it refuses of the hostile ones is their fault."""
    companions(tmp_path)
    for root in (tmp_path / R, tmp_path / "alone" / R):  # a task of the Hub has one protocol
        write_record(root, record(card("net"), KNN, OUTCOMES), OUTCOMES)
    fault = guarded(lambda _: run(name, (0,)), tmp_path, SECONDS + DRAWS)
    assert not fault, fault


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_a_hostile_record_ends_no_page(name: str, tmp_path: Path) -> None:
    check_all(name, list(QUICK_COMMANDS), tmp_path)


@pytest.mark.faults
@pytest.mark.parametrize("name", sorted(PLANTS))
def test_a_hostile_record_ends_no_command(name: str, tmp_path: Path) -> None:
    drawing = () if name in DRAWN else ("report", "pictures", "board", "correlations picture")
    check_all(name, [command for command in COMMANDS if command not in drawing], tmp_path)


def test_every_command_of_results_meets_the_hostile_records() -> None:
    """`published` reads no records."""
    from results.options import GROUPS

    assert set(DRAWN) <= PLANTS.keys()
    known = {name for group in GROUPS.values() for name in group}
    assert known - {command[0] for command in COMMANDS.values()} == {"published"}
    assert PUBLISHED_PAGES


# ---- why -------------------------------------------------------------------------------------------------------------


def each_record(change: Callable[[Path], object]) -> Callable[[Path], None]:
    """Every record there is."""

    def plant(folder: Path) -> None:
        for stored in read_records(folder / R)[0]:
            change(stored.path)

    return plant


def over_texts(path: Path) -> None:
    stored = read_record(path)
    assert isinstance(stored, StoredRecord)
    outcomes = stored.outcomes() or {}
    hits = {name: np.array(["a"] * len(hit)) for name, hit in outcomes.items() if name.startswith("correct/")}
    replace_outcomes(path, packed({**outcomes, **hits}))


MEASURED = {
    "deep JSON": each_record(lambda path: path.write_text("[" * 100_000)),
    "outcomes that are texts": each_record(over_texts),
    "outcomes that are no archive": each_record(lambda path: replace_outcomes(path, b"PK or not")),
    "a pipe": each_record(lambda path: (path.unlink(), os.mkfifo(path))),
    "no scores": each_record(lambda path: reseal(path, {"scores": {}})),
    "markup of another encoder": CASES["markup as an encoder"],
    "markup everywhere": everywhere,
}


@pytest.mark.faults
@pytest.mark.parametrize("name", MEASURED)
def test_why_measures_again_what_it_cannot_use(
    name: str, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its records lie where those of others may lie; with them it ends as without, or in one sentence."""
    from tests.benchmarks.test_why import FIGURE, MODEL

    assert FIGURE.place is not None
    small = replace(FIGURE, place=replace(FIGURE.place, protocol="knn.demo@1", column="k=10"))
    monkeypatch.setattr("results.published.published_figure", lambda *_: small)
    folder = tmp_path / "work"
    (folder / R).mkdir(parents=True)
    monkeypatch.setitem(COMMANDS, "why", [
        "why", "pixels", "--published", MODEL, "--set", "temperature=0.5", "--data", str(small_data), "--out",
        str(folder / R), "--features", str(folder / "features"), "--device", "cpu",
    ])  # fmt: skip
    assert main(COMMANDS["why"]) == 0
    MEASURED[name](folder)
    assert not failures(folder, ["why"])


# ---- what else these commands read -----------------------------------------------------------------------------------


def page(content: bytes | str) -> Callable[[Path], None]:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / "page.md").write_bytes(data) and None


def replaced(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    def plant(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        make(folder / name)

    return plant


def log(content: bytes | str) -> Callable[[Path], None]:
    data = content.encode() if isinstance(content, str) else content
    return replaced("runs/a/log.csv", lambda path: path.write_bytes(data))


def question(content: bytes | str) -> Callable[[Path], None]:
    data = content.encode() if isinstance(content, str) else content
    return replaced(f"{R}/{QUESTIONS_FILE}", lambda path: path.write_bytes(data))


def picture(make: Callable[[Path], object], kind: str = "sheet") -> Callable[[Path], None]:
    """A picture beside a record."""

    def plant(folder: Path) -> None:
        path = write_record(folder / R, record(card("net"), KNN, OUTCOMES), OUTCOMES)
        make(path.with_suffix(f".{kind}.png"))

    return plant


ROW = "| resnet50_8xb32-coslr-200e | 67.5 |\n"
HEADER = f"# MoCo v2\n\n### ImageNet Linear Evaluation\n\n| Config | AvgPool |\n|---|---|\n{ROW}"
FILES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "lint: a pipe": ("lint", replaced("page.md", os.mkfifo)),
    "lint: a device": ("lint", replaced("page.md", lambda path: path.symlink_to("/dev/zero"))),
    "lint: a terabyte": ("lint", replaced("page.md", lambda path: (path.touch(), os.truncate(path, 1 << 40)))),
    "lint: a folder": ("lint", replaced("page.md", lambda path: path.mkdir())),
    "lint: no UTF-8": ("lint", page(b"\xff\xfe" * 1000)),
    "lint: zero bytes": ("lint", page(HEADER + "| net | 1\0.2 |\n" * 100)),
    "lint: a row of a million cells": ("lint", page(HEADER + "|" * 1_000_000 + "\n")),
    "lint: 100,000 rows": ("lint", page(HEADER + "| net | 12.3 |\n" * 100_000)),
    "lint: a number of a million digits": ("lint", page(HEADER + f"| net | {'9' * 1_000_000} |\n")),
    "lint: a million blanks": ("lint", page(HEADER + "| net | " + " " * 1_000_000 + "12.3 |\n")),
    "lint: a name of a million characters": ("lint", page(HEADER + f"| {'a' * 1_000_000} | 12.3 |\n")),
    "lint: tables 50,000 deep": ("lint", page("<table><tr><td>" * 50_000)),
    "lint: spans of 10**9": ("lint", page('<table><tr><td colspan="999999999" rowspan="99999999">1</td></tr></table>')),
    "lint: open brackets": ("lint", page(HEADER + "| " + "[" * 200_000 + " | " + "<" * 200_000 + " |\n")),
    "lint: stars and digits": ("lint", page(HEADER + f"| net | {'*1' * 200_000} |\n")),
    "lint: links": ("lint", page(HEADER + f"| {'[a](' * 50_000} | 12.3 |\n")),
    "lint: escape codes": ("lint", page(HEADER + "| \x1b[31mnet\x1b]0;owned\x07 | 12.3 |\n")),
    "report: a log that is a pipe": ("report", replaced("runs/a/log.csv", os.mkfifo)),
    "report: a log that is a device": ("report", replaced("runs/a/log.csv", lambda p: p.symlink_to("/dev/zero"))),
    "report: a log of a terabyte": (
        "report", replaced("runs/a/log.csv", lambda path: (path.touch(), os.truncate(path, 1 << 40)))),
    "report: a field of a megabyte": ("report", log("epoch,loss\n1," + "1" * 2**20 + "\n")),
    "report: a log of zero bytes": ("report", log("epoch,loss\n\0,1\n")),
    "report: no UTF-8": ("report", log(b"epoch,loss\n\xff,1\n")),
    "report: inf and nan": ("report", log("epoch,loss\n1,inf\n2,nan\n1e308,-1e308\n")),
    "report: markup in a log": ("report", log(f"epoch,loss,{EVIL}\n1,2,3\n")),
    "report: 100,000 columns": ("report", log(",".join(["epoch", *map(str, range(100_000))]) + "\n1" + ",1" * 100_000)),
    "report: a recipe of brackets": ("report", lambda folder: (
        log("epoch,loss\n1,2\n")(folder), (folder / "runs/a/recipe.json").write_text("[" * 100_000), None)[-1]),
    "report: a recipe that is a pipe": ("report", lambda folder: (
        log("epoch,loss\n1,2\n")(folder), os.mkfifo(folder / "runs/a/recipe.json"), None)[-1]),
    "report: a recipe with markup": ("report", lambda folder: (
        log("epoch,loss\n1,2\n")(folder),
        (folder / "runs/a/recipe.json").write_text(json.dumps({"name": EVIL, "seed": EVIL, "epochs": 1})), None)[-1]),
    "report: deep questions": ("report", question("[" * 100_000)),
    "report: questions of texts": ("report", question('{"a": 1, "b": [], "column": 3, "encoder": "abc"}\n')),
    "report: a column that is a list": (
        "report", question('{"a": "knn.demo@1", "b": "knn.other@1", "column": [1], "encoder": ["*"]}\n')),
    "report: questions that are no UTF-8": ("report", question(b"\xff")),
    "report: questions that are a pipe": ("report", replaced(f"{R}/{QUESTIONS_FILE}", os.mkfifo)),
    "report: a question with markup": ("report", question(
        json.dumps({"a": "knn.demo@1", "b": "knn.other@1", "column": None, "encoder": [EVIL]}) + "\n")),
    "report: a picture that is text": ("report", picture(lambda path: path.write_text("<script>"))),
    "report: half a picture": ("report", picture(lambda path: path.write_bytes(encoded("PNG")[:90]))),
    "report: a picture of 2**30 pixels a side": (
        "report", picture(lambda path: path.write_bytes(png(2**30, 2**30)))),
    "report: a picture that is a pipe": ("report", picture(os.mkfifo)),
    "report: a picture that is a device": ("report", picture(lambda path: path.symlink_to("/dev/zero"))),
    "report: a picture with markup in its name": (
        "report", picture(lambda path: path.write_bytes(encoded("PNG")), "<script>document.title\x1b[31m")),
    "tables: a README that is a pipe": ("tables readme", replaced("README.md", os.mkfifo)),
    "tables: a README that is a device": ("tables readme", replaced("README.md", lambda p: p.symlink_to("/dev/zero"))),
    "tables: a README of marks": ("tables readme", replaced(
        "README.md", lambda path: path.write_text("<!-- table:begin -->" * 10_000))),
}  # fmt: skip


@pytest.mark.faults
@pytest.mark.parametrize("name", FILES)
def test_hostile_pages_logs_and_questions(name: str, tmp_path: Path) -> None:
    command, plant = FILES[name]
    PLANTS[name] = plant
    try:
        check_all(name, [command], tmp_path)
    finally:
        del PLANTS[name]

"""The board: its pages, its numbers against plain ones, and its choices in a real browser."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from results.__main__ import main
from results.board import site
from results.published import figures
from results.schema import Score
from results.store import StoredRecord, read_records, write_record
from tests.results.browser import LAYOUT_FAULTS, TELL, looked_at
from tests.results.factory_records import KNN, accuracy_outcomes, card, protocol, record, write_demo
from tests.results.html_elements import Elements

EVIL = "</script><script>document.title='owned'</script>"

KINDS = ("encoder-", "benchmark-")


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[StoredRecord]:
    root = tmp_path_factory.mktemp("records")
    write_demo(root)
    big = protocol("knn", ("k=20",), "k=20", variant="mmselfsup", dataset="imagenet")
    scores = {"k=20": Score(value=55.5, selection="fixed")}
    write_record(root, record(card(EVIL, method="MoCo v2"), big, scores=scores, embedded=False, parameters=23_500_000))
    return read_records(root)[0]


@pytest.fixture(scope="module")
def pages(records: list[StoredRecord]) -> dict[str, str]:
    return {path.name: text for path, text in site(records, [], figures()).items()}


def data(pages: dict[str, str]) -> list[dict[str, Any]]:
    text = re.search(r'id="board-data">(.*?)</script>', pages["index.html"], re.DOTALL)
    assert text is not None
    return list(json.loads(text[1]))


def groups_of(board: dict[str, Any], columns: list[str]) -> list[tuple[str, int]]:
    """The ranking as a plain loop over numpy arrays."""
    rows = []
    for row, about in enumerate(board["encoders"]):
        if all(str(row) in board["values"][c] for c in columns):
            packed = [base64.b64decode(board["drawn"][c][str(row)]) for c in columns]
            drawn = np.mean([np.frombuffer(each, "<i2") * board["step"] for each in packed], axis=0)
            rows.append((float(np.mean([board["values"][c][str(row)] for c in columns])), about["label"], drawn))
    rows.sort(key=lambda row: -row[0])
    found: list[tuple[str, int]] = []
    first = rows[0]
    for i, row in enumerate(rows):
        gap = np.quantile(first[0] - row[0] + first[2] - row[2], 0.025)
        if i == 0 or gap > 0:
            first = row
            found.append((row[1], found[-1][1] + 1 if found else 1))
        else:
            found.append((row[1], found[-1][1]))
    return found


@pytest.mark.slow
def test_a_page_for_every_encoder_and_benchmark_and_every_link_leads_somewhere(pages: dict[str, str]) -> None:
    boards = data(pages)
    assert [board["title"] for board in boards] == ["Full data sets", "Embedded data"]
    assert sum(name.startswith("benchmark-") for name in pages) == 4
    for name, text in pages.items():
        for link in Elements(text).named("a"):
            page, _, anchor = str(link["href"]).partition("#")
            assert page in ("", *pages), (name, link)
            assert not anchor or f'id="{anchor}"' in text
        assert not any(a.get("src") for _, a in Elements(text).found)
        assert Elements(text).named("link") == []
        assert EVIL not in text
    encoder = next(text for name, text in pages.items() if name.startswith("encoder-EfficientNet"))
    assert "k=20" in encoder


def test_measured_and_published_stand_in_tables_of_their_own(pages: dict[str, str]) -> None:
    full = next(text for name, text in pages.items() if name.startswith("benchmark-knn.mmselfsup"))
    assert full.index(">Measured<") < full.index("55.5") < full.index(">Published<")
    assert "This project did not measure them" in full
    embedded = [text for name, text in pages.items() if name.startswith("benchmark-") and ".demo@" in name]
    assert len(embedded) == 3
    assert not any(">Published<" in text for text in embedded)


def test_what_can_be_filtered(pages: dict[str, str]) -> None:
    full, embedded = data(pages)
    assert full["encoders"][0]["size"] == "10 to 50 million"
    assert {each["method"] for each in embedded["encoders"]} == {"untrained", "MoCo v2", "supervised", "not stated"}
    seeds = {each["colour"] for each in embedded["encoders"] if each["method"] == "MoCo v2"}
    assert len(seeds) == 1  # seeds of one training share their colour


def test_groups_are_those_of_the_paired_intervals(pages: dict[str, str], records: list[StoredRecord]) -> None:
    embedded = data(pages)[1]
    column = next(c["id"] for c in embedded["columns"] if c["title"] == "kNN (k=20)")
    ranked = groups_of(embedded, [column])
    assert ranked[0][0] == "EfficientNet-Lite0"
    assert [group for label, group in ranked if "mocov2" in label] == [2, 2, 2]
    stored = next(s for s in records if s.record.encoder.name == "EfficientNet-Lite0")
    error = stored.record.scores["k=20"].standard_error
    row = next(i for i, each in enumerate(embedded["encoders"]) if each["label"] == "EfficientNet-Lite0")
    drawn = np.frombuffer(base64.b64decode(embedded["drawn"][column][str(row)]), "<i2") * embedded["step"]
    assert float(drawn.std()) == pytest.approx(error, rel=0.15)  # 400 resamples of 1000


def test_namesakes_on_other_data_have_pages_of_their_own_and_edited_records_are_not_ranked(tmp_path: Path) -> None:
    big = protocol("knn", ("k=20",), "k=20", variant="mmselfsup", dataset="imagenet")
    robust = protocol("robustness_c", ("Top-1", "mCE"), "Top-1")
    depth = protocol("nyu_depth_linear", ("RMSE",), "RMSE", higher_is_better=False)
    linear = protocol("linear_avgpool", ("AvgPool",), "AvgPool", variant="own", dataset="imagenet")
    asked_of = (("net", "a", KNN), ("net", "b", big), ("edited", "c", KNN), ("net", "a", robust), ("net", "a", depth),
                ("net", "b", linear))  # fmt: skip
    for name, digit, asked in asked_of:
        scores = {column: Score(value=44.5, selection="fixed") for column in asked.columns}
        encoder = card(name, weights_sha256=digit * 64)
        path = write_record(tmp_path, record(encoder, asked, scores=scores, embedded=asked.dataset != "imagenet"))
        if name == "edited":
            path.write_text(path.read_text().replace("44.5", "99.5"))
    found = {path.name: text for path, text in site(read_records(tmp_path)[0], [], figures()).items()}
    own = [text for name, text in found.items() if name.startswith("encoder-net-")]
    assert len(own) == 2
    assert not any("resnet50_" in text for text in own)  # no published model, as the card names none
    published = {name.partition("@")[0] for name, text in found.items() if ">Published<" in text}
    assert published == {"benchmark-knn.mmselfsup"}
    links = {str(a["href"]).partition("#")[0] for text in found.values() for a in Elements(text).named("a")}
    assert links <= {"", *found}
    embedded = data(found)[1]
    assert {value for own in embedded["values"].values() for value in own.values()} == {44.5}
    titles = [column["title"] for column in embedded["columns"]]
    assert any("Top-1" in title for title in titles)
    assert not any("mCE" in title or "RMSE" in title for title in titles)  # a lower one is better


def test_resamples_of_two_data_sets_are_independent(tmp_path: Path) -> None:
    """The same outcomes on two data sets: the same deviations, but not in the same order."""
    outcomes = accuracy_outcomes(KNN.columns, 0.5, 0)
    for name, digit in (("drawings", "1"), ("scenes", "2")):
        about = {"id": name, "fingerprint": digit * 64}
        dataset = record(card("net"), KNN, outcomes).dataset.model_copy(update=about)
        write_record(tmp_path, record(card("net"), KNN, outcomes, dataset=dataset), outcomes)
    found = data({path.name: text for path, text in site(read_records(tmp_path)[0], [], []).items()})[0]
    ids = [column["id"] for column in found["columns"] if column["title"].strip(")").endswith("k=20")]
    one, other = (np.frombuffer(base64.b64decode(found["drawn"][each]["0"]), "<i2") for each in ids)
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.3


SCRIPT = (
    f"<script>{TELL}"
    + """addEventListener("load", () => {
  const section = document.querySelectorAll(".board")[1], seen = {};
  const cells = () => [...section.querySelectorAll("tbody tr")].map(r => [...r.cells].map(c => c.textContent));
  const rows = () => cells().map(texts => [texts[1], Number(texts[0])]);
  seen.first = rows();
  seen.cue = [...document.querySelectorAll(".scroll.more")].length > 0;
  seen.wide = document.documentElement.scrollWidth <= innerWidth;
  for (const box of section.querySelectorAll(".boxes input"))
    box.checked = box.parentElement.textContent.includes("kNN (k=20)");
  section.querySelector(".boxes input").dispatchEvent(new Event("input", {bubbles: true}));
  seen.knn = rows();
  const method = section.querySelector('[data-filter="method"]');
  method.value = "MoCo v2";
  method.dispatchEvent(new Event("input", {bubbles: true}));
  seen.filtered = rows().map(r => r[0]);
  seen.status = section.querySelector(".status").textContent;
  seen.title = document.title;
  tell(seen);
});</script>"""
)


@pytest.mark.slow
def test_the_browser_ranks_and_filters(pages: dict[str, str], tmp_path: Path) -> None:
    embedded = data(pages)[1]
    file = tmp_path / "index.html"
    text = re.sub(r"script-src [^\"]+", "script-src 'unsafe-inline'", pages["index.html"])
    file.write_text(text.replace("</body>", SCRIPT + "</body>"))
    seen = looked_at(file, 390)
    chosen = [c["id"] for c in embedded["columns"] if c["headline"]]
    assert [tuple(row) for row in seen["first"]] == groups_of(embedded, chosen)
    knn = next(c["id"] for c in embedded["columns"] if c["title"] == "kNN (k=20)")
    assert [tuple(row) for row in seen["knn"]] == groups_of(embedded, [knn])
    assert len(seen["filtered"]) == 3
    assert seen["status"].startswith("3 encoders in 1 group.")
    assert seen["wide"], "the page scrolls sideways"
    assert seen["cue"], "a wide table has no cue"
    assert seen["title"] == "Encoder board"


LAYOUT = (
    f"<script>{LAYOUT_FAULTS}{TELL}"
    + """
addEventListener("load", () => {
  for (const box of document.querySelectorAll("details")) box.open = true;
  tell({faults: layoutFaults(), wide: document.documentElement.scrollWidth > innerWidth, window: innerWidth});
});</script>"""
)


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1400])
def test_no_page_has_texts_that_overlap_or_are_cut(pages: dict[str, str], tmp_path: Path, width: int) -> None:
    longest = [max((n for n in pages if n.startswith(kind)), key=lambda n: len(pages[n])) for kind in KINDS]
    for name in ("index.html", *longest):
        file = tmp_path / name
        text = re.sub(r"script-src [^\"]+", "script-src 'unsafe-inline'", pages[name])
        file.write_text(text.replace("</body>", LAYOUT + "</body>"))
        assert looked_at(file, width) == {"faults": [], "wide": False, "window": pytest.approx(width, abs=1)}, name


@pytest.mark.slow
def test_low_shot_tables_fit_a_laptop_without_scrolling(tmp_path: Path) -> None:
    columns = tuple(f"k={n}{end}" for end in ("", " fixed", " heldout") for n in (1, 2, 4, 8, 16, 32, 64, 96))
    scores = {column: Score(value=31.02, standard_error=1.24, std=1.22, selection="x") for column in columns}
    asked = protocol("voc07_low_shot_svm", columns, "k=1")
    name = "random init (resnet18-w32-k3-nopool)"
    write_record(tmp_path, record(card(name), asked, scores=scores, embedded=False))
    found = site(read_records(tmp_path)[0], [], [])
    file, text = next((tmp_path / page, text) for page, text in found.items() if page.name.startswith("benchmark-"))
    text = re.sub(r"script-src [^\"]+", "script-src 'unsafe-inline'", text)
    look = "[...document.querySelectorAll('.scroll')].map(box => box.scrollWidth - box.clientWidth)"
    file.write_text(
        text.replace("</body>", f"<script>{TELL}addEventListener('load', () => tell({look}));</script></body>")
    )
    assert looked_at(file, 1280) == [0, 0, 0]


@pytest.mark.slow
def test_the_command_removes_pages_of_records_that_are_gone(
    records: list[StoredRecord], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = tmp_path / "records", tmp_path / "site"
    write_demo(root)
    (out / "encoder-old-12345678.html").parent.mkdir()
    (out / "encoder-old-12345678.html").write_text("")
    assert main(["board", str(out), "--records", str(root)]) == 0
    assert "removed" in capsys.readouterr().err
    assert (out / "index.html").is_file()
    (tmp_path / "none").mkdir()
    assert main(["board", str(out), "--records", str(tmp_path / "none")]) == 2
    assert "run a benchmark first" in capsys.readouterr().err

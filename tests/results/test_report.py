"""The report: what stands in it, that nothing in it can run or load, and what a real browser makes of it."""

from __future__ import annotations

import io
import json
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from matplotlib import rc_context
from PIL import Image

from benchmarks.label_free import MONITORED, MONITORED_VIEWS
from pretrain.monitor import KNN as KNN_COLUMN
from pretrain.monitor import ONLINE, ONLINE_TRAIN, PROBE, MonitorRow, write_log
from results.__main__ import main
from results.errors import InputError
from results.explain import AskedPair, explanations, remember, remembered
from results.html_parts import TableMaker, chart, inline_svg
from results.noise import ReplicateCache, difference
from results.plots import EncoderStyles, NothingToDrawError, encoder_key
from results.published import chosen, figures
from results.report import (
    LOG_PANELS,
    _noise,
    _overview,
    draw_pretraining,
    leading,
    read_pretraining_logs,
    report_html,
    run_labels,
)
from results.rows import EMBEDDED
from results.schema import Score
from results.store import read_records, write_record
from results.tables import Section
from tests.results.browser import LAYOUT_FAULTS, TELL, browse, looked_at
from tests.results.factory_records import KNN, SVM, accuracy_outcomes, card, protocol, record, write_demo
from tests.results.html_elements import Elements

GEOMETRY, CROP = KNN.geometry.model_copy(update={"crop": 24}), "geometry.crop=24"
EVIL = "<script>document.title='owned'</script> & $x$ \"q\""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of every kind, a run of pretraining, and a picture beside a record."""
    root = tmp_path_factory.mktemp("report")
    write_demo(root / "records")
    outcomes = accuracy_outcomes(("k=10", "k=20"), 0.5, 3)
    path = write_record(root / "records", record(card(EVIL), KNN, outcomes, commit="0123abc"), outcomes)
    for kind in ("sheet", "masks"):
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path.with_suffix(f".{kind}.png"))
    for untrained in (root / "records").rglob("random*/*/*/knn*.json"):
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(untrained.with_suffix(".neighbours.png"))
    classes = {"SVM": {"<b>cat</b>": 30.0, "dog": 50.0}}
    write_record(root / "records", record(card("with classes"), SVM, scores={"SVM": Score(value=40.0, selection="cv")},
                                          per_class=classes))  # fmt: skip
    few = protocol("voc07_low_shot_svm", ("k=1", "k=2"), "k=2", dataset="scenes", params={"sets": 2})
    runs = tuple({"score": f"k={k}", "map": 20.0 + k, "map_min": 19.0, "map_max": 24.0} for k in (1, 2))
    write_record(root / "records", record(card("few"), few, scores={"k=2": Score(value=22.0, selection="oracle")},
                                          runs=runs))  # fmt: skip
    big = protocol("knn", ("k=20",), "k=20", variant="mmselfsup", dataset="imagenet")
    write_record(root / "records", record(card("full"), big, scores={"k=20": Score(value=55.5, selection="fixed")},
                                          embedded=False))  # fmt: skip
    ends = KNN, KNN.changed(epochs=10)
    between = [end.model_copy(update={"geometry": GEOMETRY, "overrides": (*end.overrides, CROP)}) for end in ends]
    for asked, value in zip((*ends, *between), (20.0, 23.0, 21.5, 25.25), strict=True):
        scores = {"k=20": Score(value=value, selection="fixed")}
        write_record(root / "records", record(card("taken <b>apart"), asked, scores=scores))
    remember(root / "records", AskedPair(KNN.id, between[1].id, None, ("taken*",)))
    remember(root / "records", AskedPair(KNN.id, "knn.gone@1"))
    (root / "records" / "broken.json").write_text("{")
    log = root / "pretrain" / "run <i>" / "log.csv"
    log.parent.mkdir(parents=True)
    log.write_text("epoch,loss,chance_loss,accuracy,knn\n1,5.5,5.6,0.1,\n2,5.0,5.6,0.2,31.5\n")
    (log.parent / "recipe.json").write_text(json.dumps({"name": "tiny", "seed": 3, "epochs": 2}))
    return root


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    records, bad = read_records(folder / "records")
    some = chosen(figures(), source=("MoCo v2 page *", "*/swav/*", "*/npid/*", "*/odc/*", "*/densecl/*"))
    return report_html(records, bad, read_pretraining_logs(folder / "pretrain"), some, remembered(folder / "records"))


@pytest.mark.slow
def test_every_part_is_there(page: str) -> None:
    titles = re.findall(r"<h[23][^>]*>(.*?)</h[23]>", page)
    kinds = [title for title in titles if title in ("Full data sets", "Embedded data")]
    assert kinds[0] == "Full data sets"
    assert set(kinds) == {"Full data sets", "Embedded data"}
    assert list(dict.fromkeys(re.findall(r'data-panel="([a-z]+)"', page))) == [
        "overview", "benchmarks", "noise", "differences", "correlations", "images", "provenance",
    ]  # fmt: skip
    for title in (
        "Summary", "Gain over random initialisation", "Score by layer", "kNN accuracy against the number of neighbours",
        "Score by class",
        "Low-shot mAP against the number of images per class, variant demo", "Pretraining curves",
        "Headline scores", "Differences from the best", "What these test sets can tell apart",
        "Why two protocols differ", "Differences that these records do not explain",
        "Which cheap number predicts transfer?", "Rank correlations", "Published figures", "Files that are not records",
    ):  # fmt: skip
        assert title in titles, title
    assert "Contact sheet: " in page
    assert "Segmentation: " in page
    assert page.count(">Nearest neighbours: random init") == 2  # one of five: in the choice and above the image
    assert "broken.json: cannot be read" in page
    assert ">67.56<" in page
    assert ">67.58<" in page
    headings = re.findall(r"<h[23][^>]*>(.*?)</h[23]>", page.partition('<div popover id="')[0])
    assert [heading for heading in headings if "@" in heading] == []  # words; ids stand in smaller print


def test_the_first_lines_say_who_is_best(page: str) -> None:
    assert re.search(r"<p>(Best|Tied for best) in [^<]*kNN \(k=20\)", page)
    columns = [("kNN", "A", []), ("Linear", "A", ["B", "C"]), ("SVM", "A", []), ("Low-shot", "B", [])]
    assert leading(columns) == "Best in kNN and SVM: A. Best in Low-shot: B. Tied for best in Linear: A, B and C."


def test_the_report_says_how_far_each_encoder_is_behind_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, (name, skill) in enumerate({"one": 0.9, "other": 0.89, "behind": 0.6, "far": 0.3}.items()):
        outcomes = accuracy_outcomes(KNN.columns, skill, seed)
        write_record(tmp_path, record(card(name), KNN, outcomes), outcomes)
    records = read_records(tmp_path)[0]
    section, styles, drawn = Section(records, EMBEDDED), EncoderStyles(records), []
    monkeypatch.setattr("results.report.chart", lambda *given: drawn.append(given[3].args[0]) or [])
    own = {stored.record.encoder.name: stored for stored in records}
    scores = {name: stored.record.scores["k=20"] for name, stored in own.items()}
    best = max(own, key=lambda name: scores[name].value or 0)
    gaps = {
        name: difference(ReplicateCache(), [own[best]], [stored], "k=20")
        for name, stored in own.items()
        if name != best
    }

    overview = _overview(section, TableMaker(), styles)
    (panel,) = drawn.pop()
    for dot in panel.dots:
        error = 1.96 * (scores[dot.label].standard_error or 0)
        assert (dot.low, dot.high) == pytest.approx((dot.value - error, dot.value + error))
    said = {verdict.label: verdict.scores[0][2] for verdict in overview.verdicts}
    assert said["one"] == said["other"] == "tied for best"
    for name in ("behind", "far"):
        gap = gaps[name]
        assert gap is not None
        assert said[name] == f"behind the best by {gap.low:.1f} to {gap.high:.1f}"
    assert re.match(r"Tied for best in kNN \(k=20\): (one and other|other and one)\.", overview.lines[-1])

    (table, *_) = _noise(section, TableMaker(), styles).tables
    (panel,) = drawn.pop()
    assert {dot.label: (dot.value, dot.low, dot.high) for dot in panel.dots} == {
        name: (gap.value, gap.low, gap.high) for name, gap in gaps.items() if gap
    }
    halves = sorted((gap.high - gap.low) / 2 for gap in gaps.values() if gap)
    assert table.table.rows[0].cells[2].value == pytest.approx(halves[1])


def test_behind_a_number_stand_its_own_error_spread_and_record(tmp_path: Path) -> None:
    score = Score(value=50.0, standard_error=1.5, std=2.5, n=220, selection="fixed")
    for asked in (KNN, KNN.changed(epochs=10)):
        write_record(tmp_path, record(card("net"), asked, scores={"k=20": score}))
    (one,) = explanations(read_records(tmp_path)[0], KNN.id, f"{KNN.id}+epochs=10")
    maker = TableMaker()
    whole = maker.explanation(one).origins[-1]
    assert [[found.title for found in maker.origins[box]] for box in whole[:2]] == [
        [f"net, {KNN.id}"],
        [f"net, {KNN.id}+epochs=10"],
    ]
    assert maker.origins[whole[0]][0].scores == (("k=20", "50", "fixed", "1.5", "2.5", "220"),)


def test_an_encoder_alone_is_neither_best_nor_behind(tmp_path: Path) -> None:
    outcomes = accuracy_outcomes(("k=10", "k=20"), 0.5, 3)
    write_record(tmp_path, record(card("alone"), KNN, outcomes), outcomes)
    page = report_html(*read_records(tmp_path), [], [])
    assert "alone" in page
    assert "behind the best by" not in page
    assert "Best in" not in page


def test_names_are_text(page: str) -> None:
    tags = Elements(page)
    assert len(tags.named("script")) == 1
    assert "<b>cat" not in page
    assert "run <i>" not in page
    assert "&lt;script&gt;document.title=" in page


def test_nothing_is_loaded_and_ids_are_unique(page: str) -> None:
    tags = Elements(page)
    for tag, attributes in tags.found:
        for name in ("src", "href", "xlink:href", "action", "data"):
            value = attributes.get(name)
            pdf = tag == "a" and "download" in attributes and str(value).startswith("data:application/pdf;base64,")
            assert value is None or pdf or value.startswith(("#", "data:image/")), (tag, value)
    assert "@import" not in page
    assert tags.named("link") == []
    ids = [attributes["id"] for _, attributes in tags.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {str(a["popovertarget"]) for a in tags.named("button") if "popovertarget" in a}
    assert targets <= set(ids)
    referred = set(re.findall(r"url\(#([^)]+)\)", page)) | {
        h["href"][1:] for h in tags.named("a") if h["href"] and h["href"].startswith("#")
    }
    assert referred <= set(ids)


def test_a_policy_allows_one_script_alone(page: str) -> None:
    policy = next(str(m["content"]) for m in Elements(page).named("meta") if m.get("http-equiv"))
    assert policy.startswith("default-src 'none';")
    assert re.search(r"script-src 'sha256-[\w+/]{43}='$", policy)


def test_numbers_and_their_intervals_stand_on_the_right_and_do_not_wrap(page: str) -> None:
    cells = re.findall(r'<td data-sort="([^"]*)"( class="number")?>', page)
    gains = [kind for text, kind in cells if re.fullmatch(r"[-+][\d.]+ \[[-+][\d.]+, [-+][\d.]+\]", text)]
    assert len(gains) > 2
    assert all(gains)
    texts = [kind for text, kind in cells if text.startswith("resnet")]
    assert texts
    assert not any(texts)


@pytest.mark.slow
def test_tables_tell_a_screen_reader_what_they_are(page: str) -> None:
    tags = Elements(page)
    assert len(tags.named("caption")) == len(tags.named("table"))
    assert all(header.get("scope") in ("col", "row") for header in tags.named("th"))
    regions = [div for div in tags.named("div") if div.get("role") == "region"]
    assert regions
    assert all(region.get("tabindex") == "0" and region.get("aria-labelledby") for region in regions)
    assert all(image.get("alt") for image in tags.named("img"))
    assert all(svg.get("aria-hidden") == "true" for svg in tags.named("svg"))
    assert all(div.get("aria-label") for div in tags.named("div") if div.get("role") == "img")


def test_a_number_says_where_it_comes_from(page: str) -> None:
    button = re.search(r'popovertarget="(origin-\d+)">(?:<strong>)?55\.5<', page)
    assert button is not None
    origin = page[page.index(f'id="{button[1]}"') :].partition("</div>\n</div>")[0]
    told = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", origin[: origin.index("</dl>")]))
    assert told["Protocol"].startswith("knn.mmselfsup@1, sha256 ")
    assert told["Selection"] == "fixed"
    assert told["Seed"] == "0"
    assert told["Hardware"] == "synthetic, 2 cores, 8 GiB"
    assert told["Commit"] == "not known"
    assert "0123abc" in page
    assert {"Data", "Weights", "Metric", "Written", "Record"} <= told.keys()


def test_a_difference_is_explained_with_its_records(page: str) -> None:
    part = page[page.index('<section id="differences"') : page.index('id="panel-correlations"')]
    target = "knn.demo@1+epochs=10+geometry.crop=24"
    assert "Nearest-neighbour classification, demo: effect of crop size and epochs, step by step</h3>" in part
    assert f'<p class="about">A: knn.demo@1; B: {target}. ' in part
    rows = {tr[0]: tr[1] for tr in re.findall(r'<tr[^>]*><th scope="row">(.*?)</th>(.*?)</tr>', part, re.DOTALL)}
    shares = {name: re.findall(r">([+-]\d+\.\d+)<", cells) for name, cells in rows.items()}
    assert shares == {
        "crop size (geometry.<wbr>crop)": ["+1.88", "+1.50", "+2.25"],
        "epochs": ["+3.38", "+3.75", "+3.00"],
        "whole gap": ["+5.25", "+5.25", "+5.25"],
    }
    behind = re.search(r'popovertarget="(origin-\d+)">\+1\.88<', part)
    assert behind is not None
    origin = page[page.index(f'<div popover id="{behind[1]}"') :].partition("</div>\n<div popover")[0]
    assert re.findall(r"<h2 id=.*?, (.*?)</h2>", origin) == [
        "knn.demo@1", "knn.demo@1+geometry.crop=24", "knn.demo@1+epochs=10", target,
    ]  # fmt: skip
    waterfall = part[part.index('id="difference-0"') :]
    assert "from 20.00 by crop size +1.88, epochs +3.38 to 25.25" in waterfall
    assert re.search(r"<text[^>]*>\+1\.88</text>", waterfall)
    elsewhere = page.replace(part, "")
    assert "knn.demo@1+epochs=10 on " not in elsewhere  # what lies between stands in no other table
    assert f"{target} on " in elsewhere
    assert "knn.demo@1 against knn.gone@1: no encoder has records of both" in page


def test_svg_text_is_text_in_the_readers_colour(page: str) -> None:
    svg = re.search(r'id="embedded-\d+-knn-k".*?</svg>', page, re.DOTALL)
    assert svg is not None
    assert re.search(r"<text[^>]*>number of neighbours k</text>", svg[0])
    assert "#000000" not in svg[0]
    assert "currentColor" in svg[0]


def test_a_chart_without_anything_to_draw() -> None:
    def nothing(out: Path) -> None:
        raise NothingToDrawError("nothing")

    assert chart("c", "t", "s", nothing) == []
    text = '<?xml?><!DOCTYPE x><svg id="a"><metadata>m</metadata><use href="#b" clip-path="url(#b)"/></svg>'
    assert inline_svg(text, "p").endswith('id="p-a"><use href="#p-b" clip-path="url(#p-b)"/></svg>')


def test_logs(folder: Path, tmp_path: Path) -> None:
    (log,) = read_pretraining_logs(folder / "pretrain")
    assert log.columns["loss"] == [(1.0, 5.5), (2.0, 5.0)]
    assert log.columns["knn"] == [(2.0, 31.5)]
    draw_pretraining([log], tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").size[0] > 900  # three panels in two columns
    assert log.encoder == ("recipe tiny, seed 3", 2.0)
    with pytest.raises(NothingToDrawError, match="no log"):
        draw_pretraining([], tmp_path / "none.png")
    (tmp_path / "log.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"log\.csv is not the log"):
        read_pretraining_logs(tmp_path)


def test_the_log_of_a_run_that_diverged_is_drawn_as_far_as_an_axis_reaches(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/log.csv").write_text("epoch,loss\n1,3\n2,nan\n3,inf\n4,-1e308\n1e308,1\n5,2.5\n", encoding="utf-8")
    logs = read_pretraining_logs(tmp_path)
    assert [epoch for epoch, _ in logs[0].columns["loss"]] == [1, 2, 5]  # nan is a gap
    draw_pretraining(logs, tmp_path / "log.svg")
    assert (tmp_path / "log.svg").is_file()


def test_every_measure_of_the_monitor_has_a_panel_in_the_encoders_own_style(tmp_path: Path) -> None:
    watched = [KNN_COLUMN, PROBE, ONLINE, ONLINE_TRAIN, *MONITORED.values(), *MONITORED_VIEWS.values()]
    for seed in (0, 1):
        rows: list[MonitorRow] = [{"epoch": n, "loss": 5.0, "chance_loss": 5.6, "accuracy": 0.1} for n in (1, 2)]
        rows[1] |= dict.fromkeys(watched, 0.5)
        (tmp_path / f"run{seed}").mkdir()
        write_log(tmp_path / f"run{seed}" / "log.csv", rows)
        (tmp_path / f"run{seed}" / "recipe.json").write_text(json.dumps({"name": "r", "seed": seed, "epochs": 2}))
    assert set(watched) <= LOG_PANELS.keys()
    outcomes = accuracy_outcomes(("k=10", "k=20"), 0.5, 3)
    for name, encoder in (("first", "recipe r, seed 9"), ("ours", "recipe r, seed 1")):
        own = card(name).model_copy(update={"source": encoder, "epochs": 2.0})
        write_record(tmp_path / "records", record(own, KNN, outcomes), outcomes)
    logs = read_pretraining_logs(tmp_path)
    styles = EncoderStyles(read_records(tmp_path / "records")[0])
    assert run_labels(logs, styles)[0] == "run0"  # of which there is no record
    ours = run_labels(logs, styles)[1]
    assert ours.startswith("ours")
    with rc_context({"svg.fonttype": "none"}):
        draw_pretraining(logs, tmp_path / "curves.svg", styles)
    svg = (tmp_path / "curves.svg").read_text(encoding="utf-8")
    for label, _ in LOG_PANELS.values():
        for line in label.split("\n"):
            assert f">{line}<" in svg, line
    own_lines = re.findall(rf'<g id="encoder-{encoder_key(ours)}-[^>]*>\s*<path [^>]*stroke: (#\w+)', svg)
    assert len(own_lines) == len(LOG_PANELS)
    assert {colour.upper() for colour in own_lines} == {styles.of(ours)["color"]}


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "report.html"
    flags = ["--records", str(folder / "records"), "--pretrain", str(tmp_path), "--out", str(out)]
    assert main(["report", *flags, "--dry-run"]) == 0
    assert "would read" in capsys.readouterr().out
    assert not out.exists()
    assert main(["report", "--records", str(tmp_path / "none"), "--out", str(out)]) == 2


@pytest.mark.slow
def test_the_report_of_the_committed_records_with_their_images_is_under_three_megabytes(tmp_path: Path) -> None:
    """Sheets are not committed: each encoder gets one of neighbours and two of masks, as large as those of the demo."""
    shutil.copytree("results/records", tmp_path / "records")
    with zipfile.ZipFile("benchmarks/demo/openclipart12.zip") as drawings:
        files = [name for name in drawings.namelist() if name.endswith(".png")][::8]
        cells = [Image.open(io.BytesIO(drawings.read(name))).convert("RGB").resize((132, 132)) for name in files]
    for columns, rows, drawn, pattern in ((7, 12, 7, "knn.demo@1-*.json"), (4, 8, 1, "ade20k_seg_*.demo@1-*.json")):
        sheet = Image.new("RGB", (145 * columns, 137 * rows), "white")
        for i, cell in enumerate(cells[: columns * rows]):
            if i % columns < drawn:  # the others are masks, which take little space
                sheet.paste(cell, (145 * (i % columns), 137 * (i // columns)))
        for path in (tmp_path / "records").rglob(pattern):
            sheet.save(path.with_suffix(".neighbours.png"))
    out = tmp_path / "report.html"
    flags = ["--records", str(tmp_path / "records"), "--pretrain", "docs/examples/pretraining", "--out", str(out)]
    assert main(["report", *flags]) == 0
    assert out.read_text().count('<img src="data:image/webp') >= 18
    assert out.stat().st_size < 3_000_000


SCRIPT = (
    f"<script>{LAYOUT_FAULTS}{TELL}"
    + """
addEventListener("load", () => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const seen = {title: document.title, faults: []};
  const shown = () => all(".panel").filter(p => p.offsetParent).map(p => p.dataset.panel);
  seen.first = shown();
  const right = new KeyboardEvent("keydown", {key: "ArrowRight", bubbles: true});
  document.getElementById("tab-overview").dispatchEvent(right);
  seen.next = shown();
  seen.focus = document.activeElement.id;
  seen.width = 0;
  for (const tab of all(".tabs a")) {
    tab.click();
    for (const box of all(".panel:not([hidden]) details")) box.open = true;
    seen.width = Math.max(seen.width, document.documentElement.scrollWidth);
    scrollTo(0, 0);
    seen.faults.push(...layoutFaults().map(fault => `${tab.textContent}: ${fault}`));
    for (const svg of all(".panel:not([hidden]) .picture svg")) {
      const frame = svg.getBoundingClientRect(), name = svg.closest("figure").id;
      const slanted = t => t.getAttribute("transform")?.includes("rotate(-45");
      const boxes = all("text", svg).filter(t => t.textContent.trim() && !slanted(t))
        .map(t => [t.textContent, t.getBoundingClientRect()]);
      for (const [text, box] of boxes) {
        const beside = Math.max(frame.left - box.left, box.right - frame.right);
        if (Math.max(beside, frame.top - box.top, box.bottom - frame.bottom) > 3)
          seen.faults.push(`${name}: ${text} is cut`);
      }
      boxes.forEach(([text, a], i) => boxes.slice(i + 1).forEach(([other, b]) => {
        const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (wide > 2 && high > 0.4 * Math.min(a.height, b.height)) seen.faults.push(`${name}: ${text} over ${other}`);
      }));
    }
  }
  seen.window = innerWidth;
  const pick = document.getElementById("pick-encoder");
  pick.value = [...pick.options].find(o => o.textContent === "EfficientNet-Lite0").value;
  pick.dispatchEvent(new Event("change"));
  const rows = all("tr[data-encoder]").filter(r => r.cells[0].textContent.startsWith("EfficientNet-Lite0"));
  seen.picked = rows.length > 3 && rows.every(r => !r.classList.contains("dim"));
  const bright = all("svg g[id*=encoder-]:not(.dim)").length;
  seen.dim = all("tr.dim").length > 10 && all("svg g.dim").length > 10 && bright > 2;
  pick.value = "";
  pick.dispatchEvent(new Event("change"));
  const benchmark = document.getElementById("pick-benchmark");
  benchmark.value = "Nearest-neighbour classification: drawings";
  benchmark.dispatchEvent(new Event("change"));
  const visible = all("section[data-benchmark]").filter(s => s.offsetParent);
  seen.benchmarks = new Set(visible.map(s => s.dataset.benchmark)).size;
  seen.sheets = all(".images").map(box => all("figure", box).filter(f => !f.hidden).length);
  const blobs = [];
  const real = URL.createObjectURL.bind(URL);
  URL.createObjectURL = blob => { blobs.push(blob); return real(blob); };
  all("[data-svg]")[0].click();
  seen.svg = blobs.length === 1 && blobs[0].type === "image/svg+xml";
  const tables = all("table.sortable");
  const table = tables.find(t => t.tHead.rows[0].cells[1].textContent == "k=10");
  const column = () => [...table.tBodies[0].rows].map(row => row.cells[1].dataset.sort);
  const header = table.tHead.rows[0].cells[1];
  seen.before = column();
  header.querySelector("button").click();
  setTimeout(() => {
    seen.down = column(); seen.sorted = header.getAttribute("aria-sort");
    header.querySelector("button").click();
    setTimeout(() => {
      seen.up = column();
      const button = table.querySelector("td button[popovertarget]");
      button.focus();
      button.click();
      const origin = document.getElementById(button.getAttribute("popovertarget"));
      seen.open = origin.matches(":popover-open");
      seen.inside = document.activeElement === origin.querySelector(".close");
      origin.querySelector(".close").click();
      seen.closed = !origin.matches(":popover-open");
      seen.back = document.activeElement === button;
      seen.loaded = performance.getEntriesByType("resource").map(entry => entry.name);
      seen.ink = getComputedStyle(document.body).color;
      tell(seen);
    }, 200);
  }, 200);
});
</script>"""
)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(390, False), (1400, True)])
def test_in_a_browser(page: str, tmp_path: Path, width: int, dark: bool) -> None:
    file = tmp_path / "report.html"
    open_page = re.sub(r"script-src '[^']+'", "script-src 'unsafe-inline'", page)
    file.write_text(open_page.replace("</body>", SCRIPT))
    seen = looked_at(file, width, dark=dark)
    assert abs(seen["window"] - width) <= 1
    assert seen["title"] == "Benchmark report"
    assert (seen["first"], seen["next"], seen["focus"]) == (["overview"], ["benchmarks"], "tab-benchmarks")
    assert seen["faults"] == []
    assert seen["picked"]
    assert seen["dim"]
    assert seen["benchmarks"] == 1
    assert seen["sheets"] == [1]
    assert seen["svg"]
    assert seen["width"] <= seen["window"], "the page scrolls sideways"
    values = [float(value) for value in seen["before"] if value]
    assert [float(value) for value in seen["down"] if value] == sorted(values, reverse=True)
    assert [float(value) for value in seen["up"] if value] == sorted(values)
    assert seen["sorted"] == "descending"
    assert seen["open"] is True
    assert seen["closed"] is True
    assert seen["inside"], "the keyboard does not follow into what has opened"
    assert seen["back"], "the keyboard does not return to the number"
    assert seen["loaded"] == []
    bright = sum(map(int, re.findall(r"\d+", seen["ink"])[:3])) > 384
    assert bright == dark


@pytest.mark.slow
def test_the_policy_stops_other_scripts(page: str, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(page.replace("</body>", "<script>document.title = 'owned'</script></body>"))
    assert "<title>Benchmark report</title>" in browse(file)

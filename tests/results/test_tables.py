"""Records in tables: rows, whose data, gains over random, bold, and values per class."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.label_free import LabelFree
from results.__main__ import main
from results.compare import Column, measured_values
from results.families import family_of
from results.formats import Cell, Table
from results.html_parts import origin
from results.plots import curve_panels, draw_per_class, neighbours_of, write_figures
from results.rows import architecture_text, data_kinds, newest, without_cells
from results.schema import Architecture, DatasetRef, EncoderCard, Score
from results.store import StoredRecord, packed, read_records, write_record
from results.tables import duration, gain_over_random, per_class_markdown, per_class_tables, section_tables, sections
from tests.faults.test_hostile_records import replace_outcomes
from tests.results.factory_records import (
    KNN,
    KNN_COLUMNS,
    LAYERS,
    LINEAR,
    SVM,
    accuracy_outcomes,
    card,
    decision_outcomes,
    moco_card,
    protocol,
    random_card,
    record,
    single_groups,
)
from tests.results.paired import paired_gain
from tests.results.written_records import FOLDED, cell, section, table, titled, write


def walk(root: Path) -> Iterator[tuple[bool, Table]]:
    for embedded in (True, False):
        for found in section_tables(section(root, embedded=embedded)):
            yield embedded, found


@pytest.mark.slow
def test_tables_stand_in_the_order_of_a_model_zoo_page(demo_tables: list[Table]) -> None:
    assert [t.title for t in demo_tables] == [
        "VOC07 SVM: scenes",
        "Linear evaluation, AvgPool: drawings",
        "Nearest-neighbour classification: drawings",
        "Gain over random initialisation",
        "Encoders and pretraining cost",
    ]


def test_columns_are_the_protocols_and_the_svm_names_its_best_layer(demo_tables: list[Table]) -> None:
    assert titled(demo_tables, "Nearest").columns == ("Encoder", "k=10", "k=20", "k=100", "k=200")
    svm = titled(demo_tables, "VOC07 SVM")
    assert svm.columns == ("Encoder", "Best Layer", *LAYERS, "SVM")
    for row in svm.rows:
        values = {layer: cell(svm, row.label, layer).value for layer in LAYERS}
        assert cell(svm, row.label, "Best Layer").text == max(values, key=lambda layer: values[layer] or 0)


@pytest.mark.parametrize("k", [(1, 2), (1, 2, 4, 8, 16, 32, 64, 96)])
def test_a_table_too_wide_to_read_is_one_per_selection_and_lint_knows_each(
    tmp_path: Path, k: tuple[int, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [tuple(f"k={n}{end}" for n in k) for end in ("", " fixed", " heldout")]
    asked = protocol("voc07_low_shot_svm", tuple(column for part in parts for column in part), "k=1")
    values = {column: 0.01 * i for i, column in enumerate(asked.columns)}
    scores = {column: Score(value=value, n=220, selection="x") for column, value in values.items()}
    write_record(tmp_path / "records", record(moco_card(0), asked, scores=scores))
    tables = [found for _, found in walk(tmp_path / "records") if found.title.startswith("VOC07 low-shot")]
    wide = len(asked.columns) > 8
    assert [found.columns[1:] for found in tables] == (parts if wide else [asked.columns])
    ends = [found.title.partition("drawings")[2] for found in tables]
    assert ends == (["", ", fixed cost", ", held-out choice"] if wide else [""])
    shown = {column: cell(found, found.rows[0].label, column).value for found in tables for column in found.columns[1:]}
    assert shown == values
    page = tmp_path / "page.md"
    assert main(["tables", "--records", str(tmp_path / "records"), "--out", str(page)]) == 0
    assert main(["lint", str(page), "--records", str(tmp_path / "records")]) == 0
    assert f"{len(values)} figures checked, 0 in conflict" in capsys.readouterr().out


def test_header_says_protocol_data_sizes_and_selection(demo: Path, demo_tables: list[Table]) -> None:
    line = titled(demo_tables, "Nearest").lines[0]
    for part in ("knn.demo@1", "drawings", "220 test and 512 training items", "accuracy, %", "selection: fixed"):
        assert part in line


@pytest.mark.slow
def test_initialisations_are_one_row_with_mean_and_deviation(demo: Path, demo_tables: list[Table]) -> None:
    records = [s.record for s in read_records(demo)[0] if s.record.encoder.method == "random"]
    values = [r.scores["k=20"].value for r in records if r.protocol.id == KNN.id]
    found = cell(titled(demo_tables, "Nearest"), FOLDED, "k=20")
    assert len(values) == 5
    assert found.value == pytest.approx(np.mean(np.array(values, dtype=float)))
    assert found.std == pytest.approx(np.std(np.array(values, dtype=float)))
    alone = records[0].scores["k=20"].standard_error
    assert found.error is not None
    assert alone is not None
    assert 0.3 * alone < found.error < alone  # five encoders average out part of what one test sample does to each


def test_pretraining_seeds_are_rows_of_their_own(demo_tables: list[Table]) -> None:
    assert [row.label for row in titled(demo_tables, "Nearest").rows] == [
        "raw pixels",
        FOLDED,
        "EfficientNet-Lite0",
        *(f"mocov2_resnet18w32_demo (seed {seed})" for seed in range(3)),
    ]


def test_different_random_networks_are_not_averaged(tmp_path: Path) -> None:
    wide = Architecture(name="resnet18")
    recalibrated = "batch-norm statistics of the data"
    for seed in range(2):
        write(tmp_path, random_card(seed), 10.0)
        write(tmp_path, random_card(seed, architecture=wide, weights_sha256=f"{seed:064d}"), 20.0)
        write(tmp_path, random_card(seed, source=recalibrated, weights_sha256=f"{seed + 5:064d}"), 30.0)
    found = table(tmp_path, "Nearest")
    small = "random init (resnet18-w32-k3-nopool, {}), mean of 2 initialisations"
    assert {row.label: row.cells[1].value for row in found.rows} == {
        "random init (resnet18), mean of 2 initialisations": 20.0,
        small.format("synthetic"): 10.0,
        small.format(recalibrated): 30.0,
    }


def test_a_mean_over_initialisations_is_empty_where_one_has_no_figure(tmp_path: Path) -> None:
    write(tmp_path, random_card(0), 10.0)
    scores = {"k=20": Score(value=None, selection="fixed"), "k=10": Score(value=5.0, selection="fixed")}
    write_record(tmp_path, record(random_card(1), KNN, scores=scores))
    row = table(tmp_path, "Nearest").rows[0]
    assert [c.value for c in row.cells] == [None, None, None, None]


def test_embedded_and_full_data_never_share_a_table(tmp_path: Path) -> None:
    for embedded in (True, False):
        write(tmp_path, card(f"net embedded={embedded}"), 50.0, embedded=embedded)
    for embedded, found in walk(tmp_path):
        assert [row.label for row in found.rows] == [f"net embedded={embedded}"]
    assert len(list(walk(tmp_path))) == 4


def test_other_protocols_definitions_and_versions_of_the_data_have_tables_of_their_own(tmp_path: Path) -> None:
    dino = protocol("knn", KNN_COLUMNS, "k=20", variant="dino")
    redefined = KNN.model_copy(update={"params": {"epochs": 31}})
    recomposed = record(card("net"), KNN).dataset.model_copy(update={"fingerprint": "f" * 64})
    write(tmp_path, card("net"), 1.0)
    write(tmp_path, card("net"), 2.0, dino)
    write(tmp_path, card("net"), 3.0, KNN.changed(epochs=10))
    write(tmp_path, card("net"), 4.0, redefined)
    write(tmp_path, card("net"), 5.0, dataset=recomposed)
    tables = [t for t in section(tmp_path).tables() if t.title.startswith("Nearest")]
    assert sorted(t.rows[0].cells[1].value or 0 for t in tables) == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert {t.lines[0].split(" on ")[0] for t in tables} == {"knn.demo@1", "knn.dino@1", "knn.demo@1+epochs=10"}


def test_the_newest_of_several_records_of_one_row_speaks(tmp_path: Path) -> None:
    for day, value in (("02", 2.0), ("03", 3.0), ("01", 1.0)):
        write(tmp_path, moco_card(0), value, seeds=(int(day),), created=f"2025-01-{day}T00:00:00+00:00")
    assert [row.cells[1].value for row in table(tmp_path, "Nearest").rows] == [3.0]


def test_encoders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    write(tmp_path, card("net", weights_sha256="a" * 64), 1.0)
    write(tmp_path, card("net", weights_sha256="b" * 64), 2.0)
    assert [row.label for row in table(tmp_path, "Nearest").rows] == ["net (aaaaaaaa)", "net (bbbbbbbb)"]


SMALL, BIG = random_card(3).architecture, Architecture(name="resnet18")


@pytest.fixture
def colliding(tmp_path: Path) -> Path:
    """Two encoders of one name and initialisation and of different architectures."""
    write(tmp_path, random_card(3), 10.0)
    write(tmp_path, random_card(3, architecture=BIG, weights_sha256="b" * 64), 50.0)
    return tmp_path


NAME = "random init (resnet18, seed 3)"
COLLIDING = {f"{NAME} (resnet18)": 50.0, f"{NAME} (resnet18-w32-k3-nopool)": 10.0}


def test_architectures_of_one_name_are_never_pooled(colliding: Path) -> None:
    assert {row.label: row.cells[1].value for row in table(colliding, "Nearest").rows} == COLLIDING
    (panel,) = curve_panels(read_records(colliding)[0], neighbours_of)
    assert {curve.label: curve.points[0].value for curve in panel.curves} == COLLIDING
    for trained in ({"method": "MoCo v2"}, {"method": "MoCo v2", "weights_sha256": None}):
        root = colliding / str(len(trained))
        write(root, card("net", architecture=SMALL, init="seed 0", **trained), 10.0)
        write(root, card("net", architecture=BIG, init="seed 1", **trained), 50.0)
        (panel,) = curve_panels(read_records(root)[0], neighbours_of)
        assert sorted(curve.points[0].value for curve in panel.curves) == [10.0, 50.0]
        assert len(table(root, "Nearest").rows) == 2


def test_a_name_of_two_architectures_is_refused_with_the_choices(
    colliding: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, flags = NAME, ["--records", str(colliding)]
    choices = "".join(f"  {choice}\n" for choice in COLLIDING)
    refusal = f"results: '{name}' is the name of 2 different encoders; choose one of:\n{choices}"
    for command in (["diff", name, "random*"], ["zoo-page", "--encoder", name],
                    ["explain", "knn.demo@1", "knn.demo@2", "--encoder", name]):  # fmt: skip
        assert main([*command, *flags]) == 2
        assert capsys.readouterr().err == refusal
    assert main(["diff", "random*", name, *flags]) == 2
    assert "'random*' matches encoders of several architectures, which are never averaged" in capsys.readouterr().err
    assert main(["diff", *COLLIDING, *flags]) == 0
    assert "+40.0" in capsys.readouterr().out
    assert main(["zoo-page", "--encoder", next(iter(COLLIDING)), *flags]) == 0
    assert "10.0" not in capsys.readouterr().out


def test_seeds_of_one_length_stay_together_beside_a_longer_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, value in enumerate((10.0, 20.0, 30.0)):
        write(tmp_path, moco_card(seed, epochs=25), value)
    write(tmp_path, moco_card(0, epochs=40, weights_sha256="a" * 64), 90.0)
    name, flags = "mocov2_resnet18w32_demo", ["--records", str(tmp_path)]
    labels = [f"{name} (seed {seed}, {epochs} epochs)" for seed, epochs in ((0, 25), (0, 40), (1, 25), (2, 25))]
    assert [row.label for row in table(tmp_path, "Nearest").rows] == labels
    (panel,) = curve_panels(read_records(tmp_path)[0], neighbours_of)
    assert {curve.label: curve.points[0].value for curve in panel.curves} == {
        f"{name} (25 epochs)": 20.0,
        labels[1]: 90.0,
    }
    assert main(["diff", name, labels[1], *flags]) == 2
    choices = "".join(f"  {choice}\n" for choice in (f"{name} (25 epochs)", *labels))
    assert capsys.readouterr().err.endswith(f"is the name of 4 different encoders; choose one of:\n{choices}")
    assert main(["diff", labels[1], f"{name} (25 epochs)", *flags]) == 0
    assert "+70.0" in capsys.readouterr().out


def test_a_name_of_two_weights_is_refused_with_their_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for digit, value in (("a", 1.0), ("b", 2.0)):
        write(tmp_path, card("net", weights_sha256=digit * 64), value)
    write(tmp_path, card("other"), 3.0)
    assert main(["diff", "net", "other", "--records", str(tmp_path)]) == 2
    assert capsys.readouterr().err.splitlines()[1:] == ["  net (aaaaaaaa)", "  net (bbbbbbbb)"]
    assert main(["diff", "net (aaaaaaaa)", "other", "--records", str(tmp_path)]) == 0


def test_every_field_of_an_architecture_shows_in_its_text() -> None:
    other = {"name": "resnet50", "width": 32, "stem_kernel": 3, "stem_stride": 1, "max_pool": False, "stem_padding": 0,
             "stride_in_1x1": True, "bn_eps": 1e-3, "num_heads": 12, "positions": "offset", "activation": "gelu_tanh",
             "norm_eps": 1e-6, "pooling": "mean"}  # fmt: skip
    assert set(other) == set(Architecture.model_fields)
    texts = {architecture_text(Architecture(**{"name": "resnet18", name: value})) for name, value in other.items()}
    assert len(texts) == len(other)
    assert architecture_text(BIG) not in texts


def test_an_initialisation_is_not_named_twice(tmp_path: Path) -> None:
    write(tmp_path, card("net (seed 0)", init="seed 0", weights_sha256="a" * 64), 1.0)
    write(tmp_path, card("net (seed 0)", init="seed 0", weights_sha256="b" * 64), 2.0)
    stored = read_records(tmp_path)[0]
    assert [row.label for row in table(tmp_path, "Nearest").rows] == [
        "net (seed 0) (aaaaaaaa)",
        "net (seed 0) (bbbbbbbb)",
    ]
    assert origin(stored[0]).title == "net (seed 0), knn.demo@1"


# ---- one's own data


def own_data(fingerprint: str, **fields: Any) -> DatasetRef:
    about = {"id": "imagefolder", "embedded": False, "train_items": 512, "test_items": 220, **fields}
    return DatasetRef(fingerprint=fingerprint * 64, **about)


def test_own_data_have_a_section_each_and_never_a_published_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = KNN.changed(dataset="imagefolder")
    write(tmp_path, card("net"), 60.0, embedded=False)
    write(tmp_path, card("net"), 70.0, asked, dataset=own_data("a", folder="photos"))
    write(tmp_path, card("net"), 80.0, asked, dataset=own_data("b", folder="photos"))
    write(tmp_path, card("net"), 90.0, asked, dataset=own_data("c"))
    write(tmp_path, card("net"), 95.0, dataset=own_data("d", id="drawings", official=False, folder="VOC"))
    kinds = data_kinds(read_records(tmp_path)[0])
    assert [kind.title for kind in kinds] == [
        "Embedded data",
        "Full data sets",
        "Your data: VOC in the layout of drawings (dddddddd)",
        "Your data: imagefolder (cccccccc)",
        "Your data: photos (aaaaaaaa)",
        "Your data: photos (bbbbbbbb)",
    ]
    values = [[row.cells[0].value for row in summary.rows]
              for one in sections(read_records(tmp_path)[0]) if (summary := one.summary()) is not None]  # fmt: skip
    assert values == [[60.0], [95.0], [90.0], [70.0], [80.0]]
    assert main(["tables", "--records", str(tmp_path)]) == 0
    headings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("#")]
    of_knn = [line for line in headings if line.startswith("### Nearest")]
    assert len(of_knn) == len(set(of_knn)) == 5
    assert "### Nearest-neighbour classification: photos (bbbbbbbb)" in of_knn
    assert [line for line in of_knn if line.endswith(": drawings")] == [
        "### Nearest-neighbour classification: drawings"
    ]
    assert measured_values(read_records(tmp_path)[0], embedded=False) == {Column(KNN.id, "k=20"): {"net": 60.0}}
    written, _ = write_figures(read_records(tmp_path)[0], tmp_path / "pictures")
    assert written == []  # one k is no curve, and no folder of published data holds one's own
    assert main(["tables", "--records", str(tmp_path), "--rows", "own"]) == 0
    sections_of_own = [line for line in capsys.readouterr().out.splitlines() if line.startswith("## ")]
    assert sections_of_own == [line for line in headings if line.startswith("## Your data")]
    assert main(["tables", "--records", str(tmp_path), "--rows", "own", "--format", "csv"]) == 0
    assert capsys.readouterr().out.count("photos") == 0


def test_a_split_that_is_measured_alone_is_not_taken_for_another_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, card("net"), 70.0, KNN.changed(dataset="imagefolder"), dataset=own_data("b", folder="photos"))
    spread = next(protocol for protocol in LabelFree.protocols if protocol.dataset == "imagefolder")
    alone = own_data("a", folder="photos", train_items=220)
    write_record(
        tmp_path,
        record(card("net"), spread, scores={"RankMe": Score(value=4.3, unit="1", selection="")}, dataset=alone),
    )
    kinds = data_kinds(read_records(tmp_path)[0])[2:]
    assert [kind.title for kind in kinds] == ["Your data: photos (bbbbbbbb)", "Your data: photos, val alone (aaaaaaaa)"]
    assert main(["tables", "--records", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "on photos (220 items, fingerprint aaaaaaaa)" in told
    assert "on photos (220 test and 512 training items, fingerprint bbbbbbbb)" in told


def test_records_without_the_new_fields_keep_their_bytes() -> None:
    assert not {"official", "folder"} & set(own_data("a").model_dump())
    assert own_data("a", id="voc2007").own is False  # nobody has checked


def test_failures_are_listed_with_their_error_until_they_succeed(tmp_path: Path) -> None:
    failed = {"status": "failed", "error": "RuntimeError: out of memory"}
    write_record(tmp_path, record(card("net"), KNN, created="2025-01-02T00:00:00+00:00", **failed))
    assert table(tmp_path, "Nearest").notes == ("Failed: net: RuntimeError: out of memory",)
    assert table(tmp_path, "Nearest").rows == ()
    write(tmp_path, card("net"), 1.0, seeds=(1,), created="2025-01-01T00:00:00+00:00")
    assert len(table(tmp_path, "Nearest").notes) == len(table(tmp_path, "Nearest").rows) == 1
    write(tmp_path, card("net"), 1.0, seeds=(2,), created="2025-01-03T00:00:00+00:00")
    assert table(tmp_path, "Nearest").notes == ()


def test_a_record_that_cannot_be_believed_is_marked(tmp_path: Path) -> None:
    path = write(tmp_path, card("net"), 44.5)
    write(tmp_path, card("honest"), 10.0)
    path.write_text(path.read_text().replace("44.5", "99.5"))
    found = table(tmp_path, "Nearest")
    assert [row.label for row in found.rows] == ["honest", "net †"]
    assert found.notes == ("† net: knn.demo@1: edited after it was written",)
    summary = section(tmp_path).summary()
    assert summary is not None
    assert "net †" in [row.label for row in summary.rows]
    assert [s.record.encoder.name for s in newest(read_records(tmp_path)[0])] == ["honest"]


def test_a_row_says_how_many_initialisations_each_of_its_cells_is_the_mean_of(tmp_path: Path) -> None:
    for seed in range(3):
        write(tmp_path, random_card(seed), 40.0 + seed)
        if seed:
            write(tmp_path, random_card(seed), 40.0 + seed, LINEAR)
    name = "random init (resnet18-w32-k3-nopool), mean of"
    summary = section(tmp_path).summary()
    assert summary is not None
    assert [row.label for row in summary.rows] == [f"{name} 2 to 3 initialisations"]
    assert table(tmp_path, "Linear").rows[0].label == f"{name} 2 initialisations"


def test_only_a_cell_of_a_grid_that_was_measured_is_left_to_the_grid(tmp_path: Path) -> None:
    grid = protocol("finetune", ("top-1",), "top-1", params={"rates": [0.1, 0.5, 1.0]})
    for asked in (grid.changed(rates=[0.1]), grid.changed(rates=[0.7]), grid.changed(rates=[0.1, 1.0])):
        write(tmp_path, card("net"), 50.0, asked)
    failed = write_record(tmp_path, record(card("net"), grid, status="failed", error="no memory"))
    assert len(without_cells(read_records(tmp_path)[0])) == 4
    failed.unlink()
    write(tmp_path, card("net"), 50.0, grid)
    left = {tuple(s.record.protocol.resolved.params["rates"]) for s in without_cells(read_records(tmp_path)[0])}
    assert left == {(0.7,), (0.1, 1.0), (0.1, 0.5, 1.0)}


def test_the_shares_of_depth_are_better_when_higher() -> None:
    assert family_of("nyu_depth_linear").direction(("RMSE", "δ1"), higher_is_better=False) == (
        "lower is better, in δ1 higher"
    )


def test_a_duration_is_rounded_down_to_the_second_in_minutes() -> None:
    assert [duration(s) for s in (59.4, 60, 359.7, 3599, 3600, 5400)] == [
        "59 s", "1 min 00 s", "5 min 59 s", "59 min 59 s", "1.0 h", "1.5 h",
    ]  # fmt: skip


def test_a_missing_cell_is_empty(tmp_path: Path) -> None:
    write(tmp_path, card("net"), 44.5)
    assert [c.value for c in table(tmp_path, "Nearest").rows[0].cells] == [None, 44.5, None, None]


def test_pretraining_cost_is_shown_where_it_is_known(demo_tables: list[Table]) -> None:
    found = titled(demo_tables, "Encoders")
    assert cell(found, "mocov2_resnet18w32_demo (seed 1)", "Pretraining time").text == "5 min 01 s"
    assert cell(found, "EfficientNet-Lite0", "Pretraining time").text == ""


@pytest.mark.slow
def test_the_summary_has_one_row_per_encoder_and_the_primary_columns(demo: Path) -> None:
    summary = section(demo).summary()
    assert summary is not None
    assert summary.columns == ("Encoder", "kNN (k=20)", "Linear (AvgPool)", "VOC07 SVM (SVM)")
    assert [row.label for row in summary.rows][:3] == ["raw pixels", FOLDED, "EfficientNet-Lite0"]
    assert cell(summary, "raw pixels", "VOC07 SVM (SVM)") == Cell()
    assert all(c.error is not None for row in summary.rows for c in row.cells if c.value is not None)
    assert section(demo, embedded=False).summary() is None


def test_full_data_is_printed_with_the_decimals_of_a_model_zoo_page(tmp_path: Path) -> None:
    write(tmp_path, card("net"), 55.6, embedded=False)
    write(tmp_path, card("net"), 67.56, LINEAR, embedded=False)
    assert {t.title.split(":")[0]: t.decimals for t in section(tmp_path, embedded=False).tables()[:2]} == {
        "Linear evaluation, AvgPool": 2,
        "Nearest-neighbour classification": 1,
    }


def test_a_benchmark_of_no_family_has_its_own_name(tmp_path: Path) -> None:
    write(tmp_path, card("net"), 5.0, protocol("colour_guess", ("hit",), "hit"))
    assert table(tmp_path, "colour guess").columns == ("Encoder", "hit")


def test_a_grids_cells_stand_in_no_table_of_their_own_once_the_grid_is_done(tmp_path: Path) -> None:
    grid = protocol("semi_supervised_1pct", ("Top-1", "Top-1 oracle"), "Top-1", params={"lrs": (0.1, 1.0), "epochs": 9})
    cell_of_it = grid.changed(lrs=(1.0,))
    short = grid.changed(epochs=3)
    for asked in (cell_of_it, short):
        write(tmp_path, card("net"), 20.0, asked)
    titles = "Semi-supervised classification, 1%"
    assert len([t for t in section(tmp_path).tables() if t.title.startswith(titles)]) == 2
    write(tmp_path, card("net"), 30.0, grid)
    write(tmp_path, card("other"), 10.0, cell_of_it)  # whose grid is not done
    found = {t.lines[0].split(" on ")[0]: [r.label for r in t.rows] for t in section(tmp_path).tables()[:-1]}
    assert found == {grid.id: ["net"], short.id: ["net"], cell_of_it.id: ["other"]}


def test_the_gain_over_random_is_paired_with_the_mean_of_the_initialisations(demo_tables: list[Table]) -> None:
    found = titled(demo_tables, "Gain over random")
    assert [row.label for row in found.rows] == [f"mocov2_resnet18w32_demo (seed {seed})" for seed in range(3)]
    assert "kNN (k=20): 220 items from 220 sources" in found.lines[1]
    assert "VOC07 SVM (SVM): 160 items from 60 sources" in found.lines[1]
    outcomes = [accuracy_outcomes(KNN_COLUMNS, 0.25, number) for number in range(5)]
    expected = paired_gain(accuracy_outcomes(KNN_COLUMNS, 0.45, 6), outcomes, "k=20")
    assert expected.low > 0
    text = f"{100 * expected.value:+.1f} [{100 * expected.low:+.1f}, {100 * expected.high:+.1f}]"
    assert cell(found, "mocov2_resnet18w32_demo (seed 1)", "kNN (k=20)").text == text


def test_a_gain_in_a_best_layer_compares_each_encoders_own(demo: Path, demo_tables: list[Table]) -> None:
    best = {
        s.record.encoder.name + str(s.record.encoder.init): s.record.scores["SVM"].value or 0.0
        for s in read_records(demo)[0]
        if s.record.protocol.id == SVM.id
    }
    random = np.mean([value for name, value in best.items() if name.startswith("random")])
    gain = best["mocov2_resnet18w32_demoseed 0"] - random
    text = cell(titled(demo_tables, "Gain over random"), "mocov2_resnet18w32_demo (seed 0)", "VOC07 SVM (SVM)").text
    assert text.startswith(f"{gain:+.1f} [")


def test_no_gain_without_a_control_of_the_same_architecture_or_without_outcomes(tmp_path: Path) -> None:
    outcomes = accuracy_outcomes(KNN_COLUMNS, 0.4, 0)
    for encoder in (random_card(0), moco_card(0, architecture=Architecture(name="resnet50"))):
        write_record(tmp_path, record(encoder, KNN, outcomes), outcomes)
    assert gain_over_random(section(tmp_path)) is None
    write(tmp_path, moco_card(1), 50.0)
    assert gain_over_random(section(tmp_path)) is None


def test_the_best_is_bold_with_all_that_are_tied_with_it(tmp_path: Path) -> None:
    for name, skill, seed in (("low", 0.2, 0), ("high", 0.6, 1), ("higher", 0.605, 3)):
        outcomes = accuracy_outcomes(KNN_COLUMNS, skill, seed)
        write_record(tmp_path, record(card(name), KNN, outcomes), outcomes)

    def bold() -> list[str]:
        rows = table(tmp_path, "Nearest").rows
        return [row.label for row in rows if all(c.bold for c in row.cells)]

    assert bold() == ["high", "higher"]
    outcomes = accuracy_outcomes(KNN_COLUMNS, 0.95, 4)
    write_record(tmp_path, record(card("highest"), KNN, outcomes), outcomes)
    assert bold() == ["highest"]


def test_nothing_is_bold_where_the_noise_is_not_known(tmp_path: Path) -> None:
    write(tmp_path, card("low"), 1.0)
    write(tmp_path, card("high"), 99.0)
    found = table(tmp_path, "Nearest")
    assert not any(c.bold for row in found.rows for c in row.cells)
    assert found.lines[-1].startswith("Nothing is bold in k=20, because not every record holds outcomes per item")


def test_svm_outcomes_of_the_factory_have_scenes_that_share_drawings() -> None:
    outcomes = decision_outcomes(LAYERS, 1.0, 0)
    assert len(np.unique(outcomes["group_members"])) < len(outcomes["group_members"]) / 3


CLASSES = ("bird", "boat", "cat", "dog")
LAYERED = protocol("voc07_svm", ("feature4", "feature5"), "feature5", metric="mAP", dataset="scenes")


def write_classes(root: Path, encoder: EncoderCard, level: float, *, outcomes: bool = True) -> None:
    found = decision_outcomes(("feature4", "feature5"), 1.0, 0) if outcomes else None
    values = {c: dict(zip(CLASSES, level + np.arange(4.0), strict=True)) for c in ("feature4", "feature5")}
    values["feature4"]["bird"] = 1.25
    write_record(root, record(encoder, LAYERED, found, per_class=values), found)


@pytest.fixture
def records(tmp_path: Path) -> list[StoredRecord]:
    write_classes(tmp_path, card("trained"), 30.0)
    write_classes(tmp_path, random_card(0), 10.0)
    write_classes(tmp_path, random_card(1), 12.0)
    return read_records(tmp_path)[0]


def test_encoders_stand_side_by_side_and_initialisations_are_averaged(records: list[StoredRecord]) -> None:
    (table,) = per_class_tables(records)
    assert [row.label for row in table.rows] == list(CLASSES)
    assert table.columns[:2] == ("Class", "Positives")
    assert table.columns[2].endswith("mean of 2")
    assert table.columns[3] == "trained"
    assert [cell.value for cell in table.rows[1].cells[1:]] == [12.0, 31.0]


def test_positives_are_counted_from_the_targets(records: list[StoredRecord]) -> None:
    (table,) = per_class_tables(records)
    targets = decision_outcomes(("feature4",), 1.0, 0)["targets"]
    assert [row.cells[0].text for row in table.rows] == [str(n) for n in (targets == 1).sum(0)]


def test_without_targets_no_column_says_how_many_positives_there_are(tmp_path: Path) -> None:
    write_classes(tmp_path, card("trained"), 30.0, outcomes=False)
    (table,) = per_class_tables(read_records(tmp_path)[0])
    assert table.columns == ("Class", "trained")
    assert table.rows[1].cells[0].value == 31.0
    draw_per_class(read_records(tmp_path)[0], tmp_path / "classes.svg")
    assert (tmp_path / "classes.svg").is_file()


def test_segmentation_counts_the_images_whose_truth_has_the_class(tmp_path: Path) -> None:
    areas = np.random.default_rng(0).integers(0, 3, (220, 3, 4))
    areas[:, 0] = np.minimum(areas[:, 1], areas[:, 2])
    outcomes = {"iou/mIoU": areas, "targets": np.zeros((220, 0), np.int8), **single_groups(220)}
    asked = protocol("voc12aug_fcn", ("mIoU",), "mIoU", dataset="scenes")
    values = {"mIoU": dict.fromkeys(CLASSES, 20.0)}
    scores = {"mIoU": Score(value=20.0, selection="last")}
    write_record(tmp_path, record(card("net"), asked, outcomes, scores=scores, per_class=values), outcomes)
    (table,) = per_class_tables(read_records(tmp_path)[0])
    assert [row.cells[0].text for row in table.rows] == [str(n) for n in (areas[:, 2] > 0).sum(0)]


@pytest.mark.parametrize(
    "change",
    [
        {"targets": np.full((160, 4), "a")}, {"targets": np.full((160, 4), np.nan)}, {"targets": np.ones((160, 4, 1))},
        {"targets": np.zeros(160, "M8[s]")}, {"targets": np.array(3)}, {"targets": np.full(160, -1)},
        {"targets": np.full(160, 2**40)}, {"targets": np.ones((160, 5), np.int8)}, {"targets": np.ones((160, 4)) * 1j},
        {"iou/feature5": np.ones((160, 3))}, {"iou/feature5": np.full((160, 3, 4), "a")},
        {"iou/feature5": np.ones((160, 2, 4))}, {"iou/feature5": np.ones((160, 3, 9), int)},
        {"iou/feature5": np.ones((), int)},
    ],
)  # fmt: skip
def test_outcomes_that_do_not_say_which_classes_are_shown_give_no_positives(
    change: dict[str, Any], tmp_path: Path
) -> None:
    write_classes(tmp_path, card("trained"), 30.0)
    (stored,) = read_records(tmp_path)[0]
    replace_outcomes(stored.path, packed({**(stored.outcomes() or {}), **change}))
    (table,) = per_class_tables(read_records(tmp_path)[0])
    assert table.columns == ("Class", "trained")


def test_positives_of_one_label_per_image_are_counted(tmp_path: Path) -> None:
    found = accuracy_outcomes(("k=20",), 0.5, 0)
    found["targets"] = np.arange(220) % 7 % 4
    values = {"k=20": dict.fromkeys(CLASSES, 30.0)}
    write_record(tmp_path, record(card("net"), KNN, found, per_class=values), found)
    (table,) = per_class_tables(read_records(tmp_path)[0])
    assert [row.cells[0].text for row in table.rows] == ["63", "63", "63", "31"]


def test_positives_are_those_of_the_classes_in_the_order_of_the_rows(tmp_path: Path) -> None:
    """The first record has no outcomes, the second has its classes in another order, the third says."""
    found = decision_outcomes(("feature4", "feature5"), 1.0, 0)
    write_classes(tmp_path, card("a first"), 30.0, outcomes=False)
    values = {c: dict.fromkeys(reversed(CLASSES), 3.0) for c in ("feature4", "feature5")}
    write_record(tmp_path, record(card("b second"), LAYERED, found, per_class=values), found)
    (table,) = per_class_tables(read_records(tmp_path)[0])
    assert table.columns == ("Class", "a first", "b second")
    write_classes(tmp_path, card("c third"), 30.0)
    (table,) = per_class_tables(read_records(tmp_path)[0])
    assert [row.label for row in table.rows] == list(CLASSES)
    assert [row.cells[0].text for row in table.rows] == [str(n) for n in (found["targets"] == 1).sum(0)]


def test_another_column_can_be_shown(records: list[StoredRecord]) -> None:
    assert "1.2" in per_class_markdown(records, "feature4")
    assert "| bird" in per_class_markdown(records)
    assert per_class_markdown(records, "embed") == ""


@pytest.mark.slow
def test_outcomes_are_read_once_for_all_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(2):
        found = decision_outcomes(LAYERS, 0.2, 100 + seed)
        write_record(tmp_path, record(random_card(seed), SVM, found), found)
    for number in range(12):
        found = decision_outcomes(LAYERS, 1 + number / 12, number)
        write_record(tmp_path, record(card(f"encoder {number}"), SVM, found), found)
    records = read_records(tmp_path)[0]
    plain = sections(records)[0]
    expected = section_tables(plain)
    assert gain_over_random(plain) is not None
    read: list[str] = []
    original = StoredRecord.outcomes
    monkeypatch.setattr(
        StoredRecord, "outcomes", lambda stored: read.append(stored.record.encoder.name) or original(stored)
    )
    monkeypatch.setattr("results.noise.KEPT_REPLICATES", 32)  # fewer than the tables need together
    assert section_tables(sections(records)[0]) == expected
    # The best of a column and those close to it are compared with several rows; all others are needed in one place.
    assert [read.count(f"encoder {number}") for number in range(9)] == [1] * 9


def test_label_free_measures_are_ranked_by_their_own_directions(tmp_path: Path) -> None:
    columns = ("RankMe", "alpha-ReQ", "Uniformity", "Dead share")
    asked = protocol("label_free", columns, "RankMe").model_copy(update={"unit": "1"})
    for name, value in (("low", 1.0), ("high", 2.0)):
        runs = tuple({"trial": seed, **dict.fromkeys(columns, value + seed / 100)} for seed in range(3))
        scores = {c: Score(value=value + 0.01, std=0.008, selection="mean of trials") for c in columns}
        write_record(tmp_path, record(card(name), asked, scores=scores, runs=runs))
    found = table(tmp_path, "Label-free")
    best = {c: [row.label for row in found.rows if cell(found, row.label, c).bold] for c in columns}
    assert best == {"RankMe": ["high"], "alpha-ReQ": [], "Uniformity": ["low"], "Dead share": ["low"]}
    assert "higher is better, in Uniformity and Dead share lower, in alpha-ReQ neither" in found.lines[0]

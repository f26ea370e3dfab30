"""Figures of records: which points they hold, which files are written, and what is said where nothing can be drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from PIL import Image

from results.__main__ import main
from results.plots import (
    COLOURS,
    SELECTIONS,
    Curve,
    EncoderStyles,
    NothingToDrawError,
    Point,
    curve_panels,
    draw_knn_k,
    draw_low_shot,
    draw_per_class,
    draw_per_layer,
    draw_score_against_epoch,
    epoch_panels,
    layer_of,
    line_style,
    low_shot_bands,
    neighbours_of,
)
from results.rows import table_rows
from results.schema import Protocol, Score, canonical_sha256
from results.store import StoredRecord, read_records, write_record
from results.tables import per_class_tables
from tests.results.factory_records import (
    KNN,
    LAYERS,
    SVM,
    card,
    decision_outcomes,
    moco_card,
    protocol,
    random_card,
    record,
    write_demo,
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> list[StoredRecord]:
    root = tmp_path_factory.mktemp("records")
    write_demo(root)
    return read_records(root)[0]


def own(demo: list[StoredRecord], name: str, benchmark: str) -> list[StoredRecord]:
    return [
        s for s in demo if s.record.encoder.name.startswith(name) and s.record.protocol.resolved.benchmark == benchmark
    ]


@pytest.mark.slow
def test_a_curve_is_the_mean_over_repetitions_with_their_spread(demo: list[StoredRecord]) -> None:
    (panel,) = curve_panels(demo, layer_of)
    curves = {curve.label: curve for curve in panel.curves}
    assert [curve.runs for curve in panel.curves] == [
        5,
        1,
        3,
    ]  # random, EfficientNet, MoCo; pixels have none
    moco = [s.record.scores for s in own(demo, "mocov2", "voc07_svm")]
    for point, layer in zip(curves["mocov2_resnet18w32_demo"].points, LAYERS, strict=True):
        values = [scores[layer].value for scores in moco]
        assert point.value == pytest.approx(np.mean(values))
        assert point.spread == pytest.approx(np.std(values, ddof=1))
    (lite,) = own(demo, "EfficientNet", "voc07_svm")
    assert [p.spread for p in curves["EfficientNet-Lite0"].points] == [
        lite.record.scores[layer].standard_error for layer in LAYERS
    ]


def test_only_top_1_is_drawn_against_k(demo: list[StoredRecord]) -> None:
    (panel,) = curve_panels(demo, neighbours_of)
    assert [[point.x for point in curve.points] for curve in panel.curves] == [[10, 20, 100, 200]] * 4


@pytest.mark.slow
@pytest.mark.parametrize(("draw", "position"), [(draw_per_layer, layer_of), (draw_knn_k, neighbours_of)])
def test_a_picture_is_drawn_with_every_curve_in_its_encoders_colour(
    demo: list[StoredRecord], tmp_path: Path, draw: object, position: Callable[[str], float | None]
) -> None:
    out = tmp_path / "made" / "picture.png"
    draw(demo, out)  # type: ignore[operator]
    with Image.open(out) as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    (panel,) = curve_panels(demo, position)
    looks = {EncoderStyles(demo).of(curve.label)["color"] for curve in panel.curves}
    assert len(looks) == len(panel.curves)
    for look in looks:
        colour = tuple(bytes.fromhex(look[1:]))
        assert (np.abs(pixels.astype(int) - colour).max(axis=1) < 8).sum() > 50
    assert [path.name for path in out.parent.iterdir()] == ["picture.png"]
    with pytest.raises(NothingToDrawError, match="no record"):
        draw([], out)  # type: ignore[operator]


# ---- one style per encoder


@pytest.mark.slow
def test_an_encoder_has_one_look_and_seeds_share_its_colour(tmp_path: Path) -> None:
    write_demo(tmp_path)
    records, _ = read_records(tmp_path)
    styles = EncoderStyles(records)
    seeds = [styles.of(f"mocov2_resnet18w32_demo (seed {seed})") for seed in range(3)]
    assert len({seed["color"] for seed in seeds}) == 1
    assert len({seed["marker"] for seed in seeds}) == 3
    assert styles.of("mocov2_resnet18w32_demo") == seeds[0]
    mean = styles.of("random init (resnet18-w32-k3-nopool)")
    assert styles.of("random init (resnet18, seed 3)") == mean  # drawn alone, as where one of them was measured
    others = {styles.of(name)["color"] for name in ("raw pixels", "EfficientNet-Lite0")}
    assert len({*others, mean["color"], seeds[0]["color"]}) == 4


def test_a_figure_of_a_part_of_the_records_keeps_names_and_colours(tmp_path: Path) -> None:
    root, classes = tmp_path / "records", {"SVM": {"cat": 30.0, "dog": 50.0}}
    own = [card("moco", epochs=epochs, weights_sha256=f"{epochs:064.0f}") for epochs in (250.0, 400.0)]
    write_record(root, record(own[1], KNN, scores={"k=20": Score(value=20.0, selection="fixed")}))
    scores = {"SVM": Score(value=40.0, selection="cv")}
    write_record(root, record(card("another"), SVM, scores=scores, per_class=classes))
    write_record(root, record(own[0], SVM, scores=scores, per_class=classes))
    records, _ = read_records(root)
    styles = EncoderStyles(records)
    labels = [entry.label for entry in styles.entries]
    part = [stored for stored in records if stored.record.protocol.resolved.benchmark == SVM.benchmark]
    (table,) = per_class_tables(part, entries=styles.entries)
    assert [column for column in table.columns if column in labels] == [labels[0], labels[1]]
    draw_per_class(part, tmp_path / "classes.svg", styles)
    drawn = (tmp_path / "classes.svg").read_text(encoding="utf-8").upper()
    assert {colour for colour in COLOURS if f"FILL: {colour.upper()}" in drawn} == {
        styles.of(label)["color"] for label in labels[:2]
    }


def test_a_label_that_is_shorter_in_one_benchmark_is_the_same_encoder(tmp_path: Path) -> None:
    cards = [moco_card(seed, epochs=epochs) for seed, epochs in ((0, 250.0), (1, 250.0), (0, 400.0))]
    score = {"SVM": Score(value=40.0, selection="cv"), "k=20": Score(value=40.0, selection="fixed")}
    for each, asked in zip((*cards, *cards[:2]), (KNN, KNN, KNN, SVM, SVM), strict=True):
        own = each.model_copy(update={"weights_sha256": canonical_sha256([each.epochs, each.init])})
        write_record(tmp_path, record(own, asked, scores={asked.primary: score[asked.primary]}))
    records, _ = read_records(tmp_path)
    styles = EncoderStyles(records)
    longer = [entry.label for entry in styles.entries if "250" in entry.label]
    part = [stored for stored in records if stored.record.protocol.resolved.benchmark == SVM.benchmark]
    shorter = [entry.label for entry in table_rows(part)]
    assert len(longer) == 2
    assert not set(shorter) & set(longer)
    assert [styles.of(label) for label in shorter] == [styles.of(label) for label in longer]


def test_a_name_that_no_record_has_gets_the_next_look_and_keeps_it() -> None:
    styles = EncoderStyles(())
    first, second = styles.of("a"), styles.of("b")
    assert (first, second) == (line_style(0), line_style(1))
    assert styles.of("a") == first


def test_looks_differ_beyond_the_palette() -> None:
    looks = [line_style(number) for number in range(3 * len(COLOURS))]
    assert len({tuple(look.values()) for look in looks}) == len(looks)


# ---- scores against epochs


def checkpoint(stored: StoredRecord, epochs: float) -> StoredRecord:
    card = stored.record.encoder
    name = f"{card.name}, epoch {epochs:g}"
    later = card.model_copy(update={"name": name, "epochs": epochs, "weights_sha256": f"{int(epochs):064x}"})
    return replace(stored, record=stored.record.model_copy(update={"encoder": later}))


@pytest.mark.slow
def test_checkpoints_of_a_run_are_one_curve_and_single_encoders_are_none(
    demo: list[StoredRecord], tmp_path: Path
) -> None:
    knn = [s for s in demo if s.record.protocol.resolved.benchmark == "knn"]
    moco = next(s for s in knn if s.record.encoder.name.startswith("mocov2"))
    others = [s for s in knn if not s.record.encoder.name.startswith("mocov2")]
    series = [checkpoint(moco, epochs) for epochs in (200, 100, 400)]
    (panel,) = epoch_panels([*others, *series])
    (curve,) = panel.curves
    assert curve.label == moco.record.encoder.name
    assert [point.x for point in curve.points] == [100, 200, 400]
    primary = moco.record.scores[moco.record.protocol.resolved.primary]
    assert {(p.value, p.spread) for p in curve.points} == {(primary.value, primary.standard_error)}
    draw_score_against_epoch(series, tmp_path / "epochs.png")
    assert (tmp_path / "epochs.png").stat().st_size > 5000


def test_error_bars_are_named_for_what_they_are() -> None:
    points = (Point(1.0, 50.0, 0.5),)
    assert Curve("net", 1, points).bars == "standard error of the test sample"
    assert Curve("net", 3, points).bars == "standard deviation over runs"


def test_a_panel_is_one_protocol_on_one_version_of_the_data_and_its_bars_are_of_the_seeds(tmp_path: Path) -> None:
    other = protocol("knn", KNN.columns, "k=20", params={"epochs": 31})
    for asked, digit, values in ((KNN, "a", (40.0, 43.0, 47.0)), (other, "a", (50.0,)), (KNN, "b", (60.0,))):
        for seed, value in enumerate(values):
            scores = {c: Score(value=value, standard_error=0.5, selection="fixed") for c in ("k=10", "k=20")}
            data = record(moco_card(seed), asked).dataset.model_copy(update={"fingerprint": digit * 64})
            write_record(tmp_path, record(moco_card(seed), asked, scores=scores, dataset=data))
    panels = curve_panels(read_records(tmp_path)[0], neighbours_of)
    found = sorted((c.runs, c.points[0].value, c.points[0].spread) for panel in panels for c in panel.curves)
    assert len(panels) == 3
    assert [numbers for curve in found for numbers in curve] == pytest.approx(
        [1, 50, 0.5, 1, 60, 0.5, 3, 43.33333, 3.51188], rel=1e-5
    )


def test_seeds_of_one_name_are_curves_of_their_own(tmp_path: Path) -> None:
    for seed in range(2):
        for epochs in (20, 40):
            encoder = moco_card(seed, epochs=epochs, weights_sha256=canonical_sha256([seed, epochs]))
            scores = {"k=20": Score(value=10.0 * seed + epochs, selection="fixed")}
            write_record(tmp_path, record(encoder, KNN, scores=scores))
    (panel,) = epoch_panels(read_records(tmp_path)[0])
    found = {curve.label: [point.value for point in curve.points] for curve in panel.curves}
    name = "mocov2_resnet18w32_demo (seed {})"
    assert found == {name.format(0): [20.0, 40.0], name.format(1): [30.0, 50.0]}


def test_without_several_epochs_there_is_nothing_to_draw(demo: list[StoredRecord], tmp_path: Path) -> None:
    with pytest.raises(NothingToDrawError, match="no record"):
        draw_score_against_epoch(demo, tmp_path / "epochs.png")


# ---- low-shot classification

K = (1, 2, 4, 8)
COLUMNS = tuple(f"k={k}{how}" for how in ("", " fixed", " heldout") for k in K)
LOW_SHOT = protocol("voc07_low_shot_svm", COLUMNS, "k=8", metric="mAP", dataset="scenes", params={"sets": 5})


def all_runs(level: float) -> tuple[dict[str, object], ...]:
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
def few(tmp_path: Path) -> list[StoredRecord]:
    root = tmp_path / "records"
    for about, level in ((card("trained"), 30.0), (random_card(0), 10.0), (random_card(1), 12.0)):
        write_few(root, about, level, LOW_SHOT)
    return read_records(root)[0]


def write_few(root: Path, about: object, level: float, of: Protocol) -> None:
    made = record(about, of)  # type: ignore[arg-type]
    write_record(root, made.model_copy(update={"runs": all_runs(level)}))


def test_bands_are_read_by_selection(few: list[StoredRecord]) -> None:
    bands = {selection: {band.label: band for band in low_shot_bands(few, selection)} for selection in SELECTIONS}
    trained = {selection: of["trained"] for selection, of in bands.items()}
    assert trained["fixed"].k == K
    assert trained["fixed"].mean == (30, 33, 36, 39)
    assert trained["heldout"].mean == (31, 34, 37, 40)
    assert trained["oracle"].mean == (32, 35, 38, 41)
    assert trained["fixed"].low[0] == 28
    assert trained["fixed"].high[0] == 31


def test_random_initialisations_share_a_line_and_a_band(few: list[StoredRecord]) -> None:
    (shared,) = [band for band in low_shot_bands(few, "fixed") if "2 initialisations" in band.label]
    assert shared.mean[0] == 11
    assert (shared.low[0], shared.high[0]) == (8, 13)


@pytest.mark.slow
def test_the_picture_is_drawn(few: list[StoredRecord], tmp_path: Path) -> None:
    draw_low_shot(few, tmp_path / "low_shot.png")
    pixels = imread(tmp_path / "low_shot.png")
    assert pixels.shape[0] > 300
    assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 10


def test_what_shares_no_axis_is_refused(few: list[StoredRecord], tmp_path: Path) -> None:
    with pytest.raises(NothingToDrawError, match="found: none"):
        draw_low_shot([], tmp_path / "x.png")
    other = LOW_SHOT.model_copy(update={"variant": "other"})
    write_few(tmp_path / "records", card("third"), 20.0, other)
    with pytest.raises(NothingToDrawError, match=r"voc07_low_shot_svm\.demo@1, voc07_low_shot_svm\.other@1"):
        draw_low_shot(read_records(tmp_path / "records")[0], tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


# ---- the command

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


@pytest.mark.slow
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
    assert {
        "embedded/knn_k.png",
        "embedded/per_class.md",
        "embedded/per_class.png",
        "embedded/per_layer.png",
    } <= {*made}
    for path in out.rglob("*.png"):
        with Image.open(path) as picture:
            assert min(picture.size) > 300
    table = (out / "embedded" / "per_class.md").read_text()
    assert "| dog" in table
    assert "4.5" in table
    assert sorted(capsys.readouterr().out.splitlines()) == sorted(f"wrote {out / name}" for name in made)


@pytest.mark.slow
def test_the_embedded_and_full_data_sets_never_share_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
    assert "records folder not found" in capsys.readouterr().err


# ---- titles and error bars


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved from now on, with their layout done."""
    figures: list[Figure] = []

    def kept(figure: Figure, out: Path) -> None:
        figure.draw_without_rendering()
        figures.append(figure)

    monkeypatch.setattr("results.plots.save_figure", kept)
    return figures


def assert_texts_lie_inside(figure: Figure) -> None:
    """Titles, legends, axes with their labels, and the texts below lie inside of the picture."""
    width, height = figure.canvas.get_width_height()
    shown = list(figure.texts)
    for axes in figure.axes:
        legend = axes.get_legend()
        assert legend is not None
        shown += [axes.title, axes._left_title, legend, axes.xaxis, axes.yaxis]  # type: ignore[attr-defined]
    boxes = [(artist, artist.get_tightbbox()) for artist in shown]
    assert len(boxes) >= 5
    for artist, box in boxes:
        assert box is not None
        assert box.x0 >= 0, artist
        assert box.y0 >= 0, artist
        assert box.x1 <= width, artist
        assert box.y1 <= height, artist


def with_long_settings(asked: Protocol) -> Protocol:
    for label in ("crop_area_of_training_views=0.08..1.0", "another_long_setting=0.123456789", "third_setting=12345"):
        asked = asked.changed(label=label)
    return asked


def test_titles_of_long_protocol_ids_are_not_cut(tmp_path: Path, drawn: list[Figure]) -> None:
    asked = with_long_settings(KNN.changed(epochs=10))
    scores = {column: Score(value=50.0, selection="fixed") for column in KNN.columns}
    write_record(tmp_path, record(card("net " * 40), asked, scores=scores))
    draw_knn_k(read_records(tmp_path)[0], tmp_path / "knn.png")
    (figure,) = drawn
    (axes,) = figure.axes
    words = f"Nearest-neighbour classification, demo, on drawings ({', '.join(asked.overrides)})"
    assert axes.get_title(loc="left").split() == words.split()
    assert_texts_lie_inside(figure)


def test_titles_and_legends_per_layer_are_not_cut(tmp_path: Path, drawn: list[Figure]) -> None:
    for asked in (SVM, with_long_settings(SVM)):
        scores = {column: Score(value=50.0, selection="fixed", standard_error=1.0) for column in asked.columns}
        for name in ("net " * 40, "an_encoder_whose_name_has_no_blank_" * 4):
            write_record(tmp_path, record(card(name), asked, scores=scores))
    draw_per_layer(read_records(tmp_path)[0], tmp_path / "per_layer.png")
    (figure,) = drawn
    assert len(figure.axes) == 2
    (long,) = (title for axes in figure.axes if "crop_area" in (title := axes.get_title(loc="left")))
    assert long.split()[-len(asked.overrides) :] == f"({', '.join(asked.overrides)})".split()
    assert_texts_lie_inside(figure)


@pytest.mark.slow
def test_a_figure_says_which_error_its_bars_show(demo: list[StoredRecord], tmp_path: Path, drawn: list[Figure]) -> None:
    draw_per_layer(demo, tmp_path / "x.png")
    draw_per_layer(own(demo, "mocov2", "voc07_svm"), tmp_path / "x.png")
    draw_per_layer(own(demo, "EfficientNet", "voc07_svm"), tmp_path / "x.png")
    mixed, runs, sample = (figure._supxlabel.get_text() for figure in drawn)  # type: ignore[attr-defined]
    assert mixed == "Error bars: see the legend; the two kinds cannot be compared with each other"
    assert runs == "Error bars: standard deviation over runs"
    assert sample == "Error bars: standard error of the test sample"
    legends = [axes.get_legend() for figure in drawn for axes in figure.axes]
    texts = [" ".join(t.get_text().split()) for legend in legends if legend is not None for t in legend.get_texts()]
    assert "EfficientNet-Lite0 (bars: standard error of the test sample)" in texts
    assert "mocov2_resnet18w32_demo, mean of 3 (bars: standard deviation over runs)" in texts
    assert texts[-2:] == ["mocov2_resnet18w32_demo, mean of 3", "EfficientNet-Lite0"]

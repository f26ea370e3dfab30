"""Rank correlations: hand-made columns, the published ones, and the remark of the MoCo v2 note."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import spearmanr

from results.__main__ import main
from results.compare import (
    MIN_ENCODERS,
    Column,
    cheap_correlations,
    checkpoint_runs,
    correlation_table,
    correlations,
    draw_heat_map,
    headlines,
    measured_values,
    published_values,
    remark,
    spearman,
    together,
)
from results.published import figures
from results.schema import Score, canonical_sha256
from results.store import read_records, write_record
from tests.results.factory_records import LINEAR, moco_card, protocol, record, write_demo
from tests.results.written_records import write

A, B, C = Column("knn.a@1", "k=20"), Column("voc0712_det.moco@1", "AP"), Column("linear_avgpool.moco@1", "AvgPool")


def test_coefficients_of_hand_made_columns() -> None:
    x = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0, "e": 5.0, "alone": 9.0}
    y = {"a": 1.0, "b": 3.0, "c": 2.0, "d": 4.0, "e": 5.0}
    (found,) = correlations({A: x, B: y}, [A, B])
    assert found.encoders == ("a", "b", "c", "d", "e")
    assert found.spearman == pytest.approx(spearmanr(list(y.values()), [1, 2, 3, 4, 5]).statistic)
    assert found.discordant == (("b", "c"),)
    assert found.pairs == 10
    assert found.kendall == pytest.approx(0.8)
    assert found.low is not None
    assert found.high is not None
    assert -1 <= found.low < found.spearman <= found.high <= 1


def test_few_encoders_have_no_interval_and_too_few_no_coefficient() -> None:
    three = dict(zip("abc", (1.0, 2.0, 3.0), strict=True))
    (found,) = correlations({A: three, B: {**three, "a": 5.0}}, [A, B])
    assert found.low is None
    assert correlations({A: three, B: {"a": 1.0, "b": 2.0}}, [A, B]) == []
    assert correlations({A: three, B: dict.fromkeys("abc", 1.0)}, [A, B]) == []


def test_cheap_measures_are_set_against_the_other_benchmarks() -> None:
    x = {name: float(value) for name, value in zip("abcdef", (1, 2, 3, 4, 5, 6), strict=True)}
    y = {name: -value for name, value in x.items()}
    rank, even = Column("label_free.spt@1", "RankMe"), Column("label_free.spt@1", "Uniformity")
    values = {rank: x, even: y, A: x, Column(A.protocol, "k=200"): x, B: x, C: y}
    found = {(one.a, one.b): one for one in cheap_correlations(values)}
    assert set(found) == {(cheap, other) for cheap in (rank, even, A) for other in (B, C)}
    assert found[even, B].spearman == pytest.approx(-1)
    assert found[rank, B].low == pytest.approx(1)  # every resample is ordered alike
    assert headlines(values)[0].name in ("RankMe", "k=20", "AvgPool", "AP")
    assert rank in headlines(values)
    assert even not in headlines(values)


def test_published_models_count_once_however_their_sources_write_them() -> None:
    values = published_values(figures())
    linear = values[Column("linear_avgpool.mmselfsup@1", "AvgPool")]
    moco = [model for model in linear if model.startswith("MoCo v2/") and "8xb32-coslr-200e" in model]
    assert moco == ["MoCo v2/resnet50_8xb32-coslr-200e"]
    assert 67.56 < linear[moco[0]] < 67.58  # the mean of what the sources print
    assert Column("linear_avgpool.moco@1", "AvgPool") not in values  # the same protocol under another name


def test_the_note_is_right_on_the_published_figures() -> None:
    said = remark(published_values(figures()))
    assert said is not None
    linear, detection = "Linear evaluation, AvgPool (mmselfsup), AvgPool", "VOC07+12 detection (moco), AP"
    assert f"{linear} and {detection} do not always rise together" in said


def test_the_remark_on_columns_that_agree() -> None:
    rising = {name: float(i) for i, name in enumerate("abcdef")}
    said = remark({C: rising, B: rising})
    assert said is not None
    assert "AP always rise together" in said
    assert "0 of 15 pairs" in said
    assert remark({C: rising, A: rising}) is None


@pytest.mark.slow
def test_measured_encoders_stand_beside_published_models(tmp_path: Path) -> None:
    write_demo(tmp_path)
    records = read_records(tmp_path)[0]
    assert measured_values(records, embedded=False) == {}
    small = measured_values(records, embedded=True)
    knn = small[Column("knn.demo@1", "k=20", "drawings")]
    assert len(knn) == 6  # five random initialisations are one encoder
    merged = together({A: {"published": 1.0}}, {A: {"ours": 2.0}})
    assert merged == {A: {"published": 1.0, "ours (measured)": 2.0}}


def test_a_model_has_the_mean_of_its_sources_scores_alone() -> None:
    """Not of their trials, spreads and differences: both sources print 67.5, one with five trials and their spread."""
    found = published_values(figures())[Column("linear_avgpool.mmselfsup@1", "AvgPool")]
    assert found["MoCo v2, 200 epochs"] == 67.5
    assert found["MoCo v1, 200 epochs"] == pytest.approx((60.6 + 60.8) / 2)


def test_overrides_and_errors_are_not_correlated_with_scores(tmp_path: Path) -> None:
    error = protocol("nyu_depth_linear", ("RMSE",), "RMSE", higher_is_better=False)
    for asked in (LINEAR, LINEAR.changed(epochs=3), error):
        write(tmp_path, moco_card(0), 50.0, asked)
    found = measured_values(read_records(tmp_path)[0], embedded=True)
    assert list(found) == [Column("linear_avgpool.demo@1", "AvgPool", "drawings")]


def test_checkpoints_of_unknown_initialisation_are_trainings_of_their_own(tmp_path: Path) -> None:
    for digit in "ab":
        write(tmp_path, moco_card(0, init=None, weights_sha256=digit * 64), 50.0, LINEAR)
    assert len(set(checkpoint_runs(read_records(tmp_path)[0]).values())) == 2


def test_headlines_have_one_column_per_protocol_and_data() -> None:
    values = published_values(figures())
    chosen = headlines(values)
    assert len({(column.protocol, column.dataset) for column in chosen}) == len(chosen)
    names = {column.protocol: column.name for column in chosen}
    assert names["knn.mmselfsup@1"] == "k=20"
    assert names["coco_mask_rcnn_fpn_1x.mmselfsup@1"] == "AP_box"
    assert chosen[0].benchmark == "voc07_svm"


def test_resampled_coefficients_are_scipys() -> None:
    """Of a column with ties, every resample written out row by row; 1e-12."""
    random = np.random.default_rng(3)
    x, y = random.integers(0, 4, 9).astype(float), random.normal(size=9)
    times = random.multinomial(9, np.full(9, 1 / 9), size=50)
    found = spearman(x, y, times)
    for row, count in zip(found, times, strict=True):
        rows = np.repeat(np.arange(9), count)
        assert row == pytest.approx(spearmanr(x[rows], y[rows]).statistic, abs=1e-12, nan_ok=True)
    assert np.isnan(spearman(np.ones(3), y[:3], np.ones((1, 3)))[0])


RANKS = (2, 1, 4, 3, 6, 5, 8, 7, 9)  # of the linear accuracy, where the rank measure has 1 to 9
LABEL_FREE = protocol("label_free", ("RankMe", "Uniformity"), "RankMe")


def write_checkpoints(root: Path, *, with_epoch: bool) -> None:
    """Three epochs of three seeds, whose RankMe, uniformity and accuracies have ranks that are known.

    Their names have the epoch if one command has measured them all.
    """
    for number, rank in enumerate(RANKS):
        encoder = moco_card(number // 3, epochs=20 * (number % 3 + 1), weights_sha256=canonical_sha256(number))
        if with_epoch:
            encoder = encoder.model_copy(update={"name": f"{encoder.name}, epoch {encoder.epochs:g}"})
        for asked, values in (
            (LABEL_FREE, {"RankMe": 10.0 + number, "Uniformity": -1.0 - number}),
            (LINEAR, {"AvgPool": 50.0 + rank}),
        ):
            scores = {name: Score(value=value, n=220, selection="fixed") for name, value in values.items()}
            write_record(root, record(encoder, asked, scores=scores))


@pytest.mark.parametrize(
    ("with_epoch", "label"),
    [(True, "mocov2_resnet18w32_demo, epoch 40 (seed 2)"), (False, "mocov2_resnet18w32_demo (seed 2, 40 epochs)")],
)
def test_checkpoints_of_several_epochs_and_seeds_are_points(tmp_path: Path, with_epoch: bool, label: str) -> None:
    write_checkpoints(tmp_path, with_epoch=with_epoch)
    records = read_records(tmp_path)[0]
    values, runs = measured_values(records, embedded=True), checkpoint_runs(records)
    labels = next(iter(values.values()))
    assert label in labels
    found = {one.a.name: one for one in cheap_correlations(values, runs)}
    expected = 1 - 6 * sum((i - rank) ** 2 for i, rank in enumerate(RANKS, 1)) / (9 * 80)
    assert found["RankMe"].spearman == pytest.approx(expected)
    assert found["Uniformity"].spearman == pytest.approx(-expected)
    assert (len(found["RankMe"].encoders), found["RankMe"].trainings) == (9, 3)
    assert found["RankMe"].low is None  # three trainings, however many checkpoints
    alone = {one.a.name: one for one in cheap_correlations(values)}["RankMe"]
    assert alone.low is not None
    cells = correlation_table(list(found.values())).rows[0].cells
    assert cells[3].text == "9 from 3 trainings"


def test_checkpoints_of_a_training_are_resampled_together() -> None:
    """Five trainings of four checkpoints each, all alike within: the interval is that of five encoders."""
    x = {f"{run}{number}": float(ord(run)) for run in "abcde" for number in range(4)}
    y = {name: 5.0 if name[0] == "a" else value for name, value in x.items()}
    runs = {name: name[0] for name in x}
    (many,) = correlations({A: x, B: y}, [A, B], runs)
    few = [{run: values[f"{run}0"] for run in "abcde"} for values in (x, y)]
    (one,) = correlations({A: few[0], B: few[1]}, [A, B])
    assert (many.spearman, many.low, many.high) == pytest.approx((one.spearman, one.low, one.high))
    (apart,) = correlations({A: x, B: {**y, "a0": 200.0}}, [A, B])
    assert apart.trainings == 20


def test_the_command_takes_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoints(tmp_path, with_epoch=True)
    for columns in ("cheap", "cheap-all"):
        assert main(["correlations", "--records", str(tmp_path), "--embedded", "--columns", columns]) == 0
        printed = capsys.readouterr().out
        cheap, other = "Label-free measures (demo), Uniformity", "Linear evaluation, AvgPool (demo), AvgPool"
        assert f"| {cheap}, drawings | {other}, drawings |" in printed
        assert "Protocols: linear_avgpool.demo@1, label_free.demo@1." in printed
        assert "9 from 3 trainings" in printed
        assert "Checkpoints of one training are resampled together" in printed


def test_table_and_heat_map(tmp_path: Path) -> None:
    rising = {name: float(i) for i, name in enumerate("abcdef")}
    found = correlations({A: rising, B: {n: -v for n, v in rising.items()}, C: rising}, [A, B, C])
    table = correlation_table(found)
    assert [row.cells[1].text[:5] for row in table.rows] == ["-1.00", "+1.00", "-1.00"]
    assert [row.cells[4].text for row in table.rows] == ["15 of 15", "0 of 15", "15 of 15"]
    draw_heat_map(found, tmp_path / "heat.png")
    assert Image.open(tmp_path / "heat.png").size[0] > 300
    with pytest.raises(ValueError, match="three encoders"):
        draw_heat_map([], tmp_path / "none.png")


def test_the_command_works_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The published figures and the committed records are found beside the program."""
    monkeypatch.setattr("results.compare.RESAMPLES", 20)
    monkeypatch.chdir(tmp_path)
    for words, printed in (([], "| VOC07+12 detection (moco), AP"), (["--embedded"], "label_free.demo@1")):
        assert main(["correlations", *words]) == 0
        assert printed in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_demo(tmp_path / "records")
    picture = tmp_path / "heat.svg"
    flags = ["correlations", "--records", str(tmp_path / "records"), "--picture", str(picture)]
    assert main(flags) == 0
    printed = capsys.readouterr()
    assert "| VOC07 SVM (mmselfsup), best layer on test" in printed.out
    assert not re.search(r"^\|.*@\d", printed.out, re.M)  # ids only below the table
    assert "not monotonically related" in printed.err
    assert picture.read_text().count("n=") >= MIN_ENCODERS
    assert main([*flags[:3], "--embedded", "--format", "csv"]) == 0
    assert "Nearest-neighbour classification (demo), k=20, drawings" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "words"), [("best_oracle", "best layer on test"), ("AP50_kp", "AP50 of keypoints"), ("mIoU", "mIoU")]
)
def test_columns_are_words(name: str, words: str) -> None:
    assert Column("coco.demo@1", name).words == f"COCO (demo), {words}"


def test_two_revisions_of_a_protocol_have_different_words() -> None:
    first, second = (Column(f"linear_avgpool.demo@{n}", "AvgPool", "drawings").words for n in (1, 2))
    assert first == "Linear evaluation, AvgPool (demo), AvgPool, drawings"
    assert second == "Linear evaluation, AvgPool (demo, revision 2), AvgPool, drawings"


def test_the_test_sets_of_a_suite_have_different_words() -> None:
    words = [Column(f"robustness_{name}.logistic@1", "Top-1").words for name in ("v2", "a")]
    assert words == ["Robustness, v2 (logistic), Top-1", "Robustness, a (logistic), Top-1"]

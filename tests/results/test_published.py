"""Published figures are read as printed, and each has a protocol and column, or a reason why not."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from benchmarks.registry import tasks
from results.errors import InputError
from results.published import MAP, PUBLISHED, UNSUPPORTED, Figure, bare_config, chosen, figures, published_figure
from results.schema import Protocol


def test_every_row_is_there_and_whole() -> None:
    found = figures()
    assert len(found) == len(PUBLISHED.read_text(encoding="utf-8").splitlines()) - 1 == 1237
    assert all(all((f.source, f.model, f.benchmark, f.dataset, f.metric)) for f in found)


def test_both_published_average_pool_figures_are_kept() -> None:
    pages = [f for f in figures() if f.source.startswith("MoCo v2 page") and f.benchmark == "linear_avgpool"]
    assert [(f.text, f.number, f.epochs) for f in pages] == [("67.56", 67.56, 200.0), ("67.58", 67.58, 200.0)]


def test_a_value_that_is_no_number_stays_as_text() -> None:
    layers = [f for f in figures() if f.benchmark == "svm_best_layer"]
    assert "feature5" in {f.text for f in layers}
    assert all(f.number is None for f in layers)
    unknown = [f for f in figures() if f.text == "n/a"]
    assert [(f.metric, f.number) for f in unknown] == [("hours_200ep", None)]


def test_trailing_zeros_survive() -> None:
    ends = [f for f in figures() if f.number is not None and f.text.endswith("0") and "." in f.text]
    assert ends
    assert all(f.decimals == len(f.text.partition(".")[2]) for f in ends)


BENCHMARKS = Path(__file__).parents[1] / "expected" / "benchmarks.csv"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def runnable() -> dict[str, Protocol]:
    return {protocol.id: protocol for task in tasks() for protocol in task.protocols}


def figure(source: str, benchmark: str, metric: str, model: str = "*") -> Figure:
    found = [f for f in chosen(figures(), source=[source], benchmark=[benchmark], model=[model]) if f.metric == metric]
    assert len(found) == 1
    return found[0]


def test_every_published_figure_has_a_place_or_a_reason() -> None:
    assert len(figures()) == 1237
    for found in figures():
        assert (found.place is None) == bool(found.reason), found


def test_a_runnable_place_is_a_column_of_a_protocol_that_runs(runnable: dict[str, Protocol]) -> None:
    places = {(f.place.protocol, f.place.column) for f in figures() if f.place and f.place.status == "runnable"}
    assert len(places) > 30
    assert [(p, c) for p, c in places if p not in runnable or c not in runnable[p].columns] == []


def test_a_planned_protocol_does_not_run_yet(runnable: dict[str, Protocol]) -> None:
    planned = {f.place.protocol for f in figures() if f.place and f.place.status == "planned"}
    assert sorted(planned & set(runnable)) == [], "mark them as runnable in published_map.csv"


def test_protocols_that_are_said_to_be_the_same_differ_in_name_and_source_alone(runnable: dict[str, Protocol]) -> None:
    pairs = {(f.place.protocol, other) for f in figures() if f.place for other in f.place.same_as}
    assert ("linear_avgpool.mmselfsup@1", "linear_avgpool.moco@1") in pairs
    for pair in pairs:
        first, second = (runnable[name].model_dump(exclude={"variant", "source"}) for name in pair)
        assert first == second, pair


def test_every_benchmark_of_the_fact_sheet_runs_is_planned_or_is_unsupported(runnable: dict[str, Protocol]) -> None:
    unsupported = {row["benchmark"] for row in rows(UNSUPPORTED)}
    for row in rows(BENCHMARKS):
        if row["status"] == "unsupported":
            assert row["benchmark"] in unsupported
        else:
            assert (row["protocol"] in runnable) == (row["status"] == "runnable"), (
                f"correct tests/expected/benchmarks.csv: {row}"
            )


def test_every_protocol_but_the_embedded_datas_own_is_listed(runnable: dict[str, Protocol]) -> None:
    listed = {row["protocol"] for row in rows(BENCHMARKS)}
    assert sorted({name for name, p in runnable.items() if p.variant != "demo"} - listed) == []


def test_every_place_is_a_benchmark_of_the_fact_sheet() -> None:
    known = {row["protocol"] for row in rows(BENCHMARKS)}
    assert {f.place.protocol for f in figures() if f.place} - known == set()


def test_no_row_of_the_two_tables_is_idle() -> None:
    used = {(f.place.protocol, f.place.statistic) for f in figures() if f.place}
    assert {(row["protocol"], row["statistic"]) for row in rows(MAP)} == used
    reasons = {f.reason for f in figures()} | {
        row["reason"] for row in rows(UNSUPPORTED) if row["benchmark"] in {b["benchmark"] for b in rows(BENCHMARKS)}
    }
    assert {row["reason"] for row in rows(UNSUPPORTED)} - reasons == set()


def test_a_probe_belongs_to_the_setting_that_it_was_run_in() -> None:
    readme = "open-mmlab/mmselfsup@0.x(6faad81):configs/selfsup/{}/README.md"
    for method, variant in (
        ("simsiam", "simsiam@2"), ("swav", "swav@2"), ("mocov2", "mmselfsup@1"), ("mocov3", "mocov3@2"),
    ):  # fmt: skip
        found = chosen(figures(), source=[readme.format(method)], benchmark=["linear_avgpool"])
        assert {f.place.protocol for f in found if f.place} == {f"linear_avgpool.{variant}"}


def test_what_a_figure_may_be_compared_with() -> None:
    page = figure("MoCo v2 page A*", "linear_avgpool", "top1")
    assert page.comparable("linear_avgpool.mmselfsup@1")
    assert page.comparable("linear_avgpool.moco@1")
    assert not page.comparable("linear_avgpool.simsiam@2")
    assert not page.comparable("linear_avgpool.moco@1+epochs=10")
    detection = figure("MoCo v2 page A*", "det_fasterrcnn_r50c4_24k", "AP50")
    assert not detection.comparable("voc0712_det.moco@1")
    trial = figure("facebookresearch/moco@7397dfe:README.md", "linear_avgpool", "top1_trial1", "MoCo v2")
    assert not trial.comparable("linear_avgpool.moco@1")
    assert figure("MoCo v2 page A*", "svm_best_layer", "layer").comparable("voc07_svm.mmselfsup@1") is False


def test_only_a_score_is_compared_never_its_spread_a_trial_a_difference_or_a_layer() -> None:
    for statistic in ("std", "trial", "difference", "layer"):
        found = [f for f in figures() if f.place and f.place.statistic == statistic]
        assert found
        assert not any(f.comparable(f.place.protocol) for f in found if f.place)


def test_the_one_figure_of_a_protocol_is_its_first_column_of_the_first_source() -> None:
    model = "MoCo v2/resnet50_8xb32-coslr-200e"
    found = published_figure(model, "knn")
    assert found.place is not None
    assert (found.source[:14], found.place.column, found.text) == ("MoCo v2 page B", "k=10", "55.6")
    assert published_figure(model, "knn", column="k=20").text == "55.7"
    assert published_figure("MoCo v1", "linear_avgpool", source="facebookresearch/moco*").text == "60.8"  # of 5 trials
    with pytest.raises(InputError, match="sources print different figures of MoCo v2"):
        published_figure("MoCo v2", "linear_avgpool")


def test_one_or_two_letters_are_no_abbreviation_of_a_method() -> None:
    assert bare_config("mo_r50_8xb32", "MoCo v2") == "mo_r50_8xb32"
    assert bare_config("moco_r50_8xb32", "MoCo v2") == "r50_8xb32"


def test_a_hidden_data_set_is_named() -> None:
    found = chosen(figures(), benchmark=["maskrcnn_r50fpn_1x"])
    assert {f.place.protocol for f in found if f.place} == {"lvis_v0_5_mask_rcnn_fpn_1x.moco@1"}


def test_filters_take_names_with_brackets_and_stars() -> None:
    assert len(chosen(figures(), benchmark=["linear_avgpool [SimSiam paper setting]"])) == 7
    assert {f.source for f in chosen(figures(), source=["arXiv*"])} == {
        f.source for f in figures() if "arXiv:" in f.source[:6]
    }
    assert chosen(figures(), model=["nobody"]) == []
    by_protocol = chosen(figures(), benchmark=["knn.mmselfsup@1"])
    assert len(by_protocol) == 56

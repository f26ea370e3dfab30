"""Exports: each is read by its own parser or checked against its own schema, and the numbers arrive unchanged."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from results.__main__ import main
from results.bootstrap import replicates
from results.export import every_eval_ever, exported, hub_task, intervals, model_index, yaml_text
from results.families import FAMILIES
from results.options import Export
from results.schema import Score
from results.store import StoredRecord, read_records, write_record
from tests.reference.json_schema import faults
from tests.results.factory_records import KNN, SVM, accuracy_outcomes, card, decision_outcomes, moco_card, record

SCHEMAS = Path(__file__).parents[1] / "expected" / "every_eval_ever"
HUB = Export((), source_url="https://example.org/pull/1", source_name="a pull request", developer="us")
NAME = 'tricky: "name" #1 é\n- [x]'


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[StoredRecord]:
    root = tmp_path_factory.mktemp("records")
    outcomes = accuracy_outcomes(("k=10", "k=20"), 0.6, 1)
    write_record(root, record(moco_card(0, licence="Apache-2.0"), KNN, outcomes), outcomes)
    decided = decision_outcomes(("feature4", "feature5"), 2.0, 1)
    write_record(root, record(moco_card(0, licence="Apache-2.0"), SVM, decided), decided)
    scores = {"k=20": Score(value=55.5, standard_error=0.5, n=220, selection="fixed"),
              "k=10": Score(value=None, selection="fixed")}  # fmt: skip
    write_record(root, record(card(NAME, licence="CC BY-NC 4.0", assumed=("mean",)), KNN, scores=scores))
    return read_records(root)[0]


def of(records: list[StoredRecord], name: str, benchmark: str) -> StoredRecord:
    own = (stored for stored in records if stored.record.encoder.name == name)
    return next(stored for stored in own if stored.record.protocol.resolved.benchmark == benchmark)


MOCO = "mocov2_resnet18w32_demo"


def test_the_validator_agrees_with_what_the_schema_says(records: list[StoredRecord]) -> None:
    schema = json.loads((SCHEMAS / "eval.schema.json").read_text())
    good = every_eval_ever(records[0], HUB)
    assert list(faults(good, schema, schema)) == []

    def broken(change: Any) -> list[str]:
        copy = json.loads(json.dumps(good))
        change(copy)
        return list(faults(copy, schema, schema))

    results = "evaluation_results"
    assert broken(lambda c: c.pop("eval_library"))
    assert broken(lambda c: c.update(extra=1))
    assert broken(lambda c: c["model_info"]["additional_details"].update(epochs=768))
    assert broken(lambda c: c["model_info"]["additional_details"].pop("deployment_type"))
    assert broken(lambda c: c[results][0]["metric_config"].pop("max_score"))
    assert broken(lambda c: c[results][0]["source_data"].update(source_type="guess"))
    assert broken(lambda c: c["source_metadata"].update(evaluator_relationship="friend"))
    assert broken(lambda c: c[results][0]["score_details"].update(score="60.0"))
    assert broken(lambda c: c.update(retrieved_timestamp=1.0))


def test_every_eval_ever_files_fit_both_schemas(records: list[StoredRecord]) -> None:
    files = exported(records, replace(HUB, to="every-eval-ever"))
    whole, row = (json.loads((SCHEMAS / f"{name}.schema.json").read_text()) for name in ("eval", "instance_level_eval"))
    summaries = {path: json.loads(text) for path, text in files.items() if path.suffix == ".json"}
    assert len(summaries) == 3
    for path, found in summaries.items():
        assert list(faults(found, whole, whole)) == []
        assert path.parts[:3] == ("data", "encoder-bench", "us")
        detail = found.get("detailed_evaluation_results")
        if detail is None:
            continue
        lines = files[Path(detail["file_path"])].splitlines()
        assert path.stem in detail["file_path"]
        assert len(lines) == detail["total_rows"] == 2 * 220
        assert [list(faults(json.loads(line), row, row)) for line in lines[:3]] == [[], [], []]
        right = [json.loads(line)["evaluation"]["score"] for line in lines if "k=20" in line]
        (result,) = [r for r in found["evaluation_results"] if r["evaluation_name"].endswith("k=20")]
        assert 100 * sum(right) / len(right) == pytest.approx(result["score_details"]["score"])
    assert sum("detailed_evaluation_results" in found for found in summaries.values()) == 1


def test_values_n_and_intervals_arrive_unchanged(records: list[StoredRecord]) -> None:
    stored = of(records, MOCO, "knn")
    score = stored.record.scores["k=20"]
    drawn = replicates(stored.outcomes() or {}, ["k=20"])["k=20"]
    ordered = sorted(100 * drawn.resampled)
    found = every_eval_ever(stored, HUB)["evaluation_results"]
    details = next(r for r in found if r["evaluation_name"].endswith("k=20"))["score_details"]
    assert details["score"] == score.value
    assert details["uncertainty"]["num_samples"] == score.n == 220
    assert details["uncertainty"]["standard_error"]["value"] == score.standard_error
    interval = details["uncertainty"]["confidence_interval"]
    assert ordered[23] <= interval["lower"] <= ordered[26]  # of 1000 resamples
    assert ordered[973] <= interval["upper"] <= ordered[976]
    (entry,) = model_index([stored], HUB)
    metric = next(m for m in entry["results"][0]["metrics"] if m["args"]["column"] == "k=20")
    assert metric["value"] == score.value
    assert metric["args"]["interval_95"] == [interval["lower"], interval["upper"]]
    alone = intervals(of(records, NAME, "knn"))
    assert alone.keys() == {"k=20"}
    assert (alone["k=20"].low, alone["k=20"].high) == pytest.approx((55.5 - 0.98, 55.5 + 0.98))


def test_model_index_is_read_by_huggingface_hub(records: list[StoredRecord]) -> None:
    hub = pytest.importorskip("huggingface_hub.repocard_data")
    for path, text in exported(records, replace(HUB, to="model-index")).items():
        loaded = yaml.safe_load(text)["model-index"]
        name, found = hub.model_index_to_eval_results(loaded)
        assert name in (NAME, f"{MOCO} (seed 0)"), path
        assert hub.eval_results_to_model_index(name, found) == loaded  # nothing is lost on the way
        assert {each.source_url for each in found} == {HUB.source_url}
        assert not any(each.verified for each in found)
    moco = [s for s in records if s.record.encoder.name == MOCO]
    assert {hub_task(s.record.protocol.resolved.benchmark)[0] for s in moco} == {"image-classification"}


def test_the_model_card_is_read_by_huggingface_hub(records: list[StoredRecord]) -> None:
    hub = pytest.importorskip("huggingface_hub")
    files = exported(records, replace(HUB, to="model-card"))
    cards = {text.split("\n# ")[1].split("\n")[0]: hub.ModelCard(text) for text in files.values()}
    assert len(cards) == 2
    moco = cards[f"{MOCO} (seed 0)"]
    assert moco.data.license == "apache-2.0"
    assert {round(each.metric_value, 6) for each in moco.data.eval_results} >= {
        round(float(of(records, MOCO, "knn").record.scores[c].value or 0), 6) for c in ("k=10", "k=20")
    }
    assert "95% interval" in moco.text
    (other,) = [c for name, c in cards.items() if name != f"{MOCO} (seed 0)"]
    assert (other.data.license, other.data.license_name) == ("other", "CC BY-NC 4.0")
    assert "Only assumed**: mean" in other.text


def test_eval_results_are_read_by_huggingface_hub(records: list[StoredRecord]) -> None:
    hub = pytest.importorskip("huggingface_hub")
    stored = of(records, MOCO, "knn")
    given = replace(HUB, to="eval-results", hub_dataset="owner/benchmark", hub_task="top1")
    ((path, text),) = exported([stored], given).items()
    assert path.parts[1:] == (".eval_results", "top1.yaml")
    loaded = yaml.safe_load(text)
    (entry,) = hub.parse_eval_result_entries(loaded)
    assert hub.eval_result_entries_to_yaml([entry]) == loaded
    assert (entry.dataset_id, entry.task_id) == ("owner/benchmark", "top1")
    assert entry.value == stored.record.scores["k=20"].value
    assert "n = 220" in entry.notes
    assert stored.record.sha256 in entry.notes


def test_the_command_refuses_what_a_format_cannot_hold(
    records: list[StoredRecord], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = records[0].path.parents[3]
    flags = ["--out", str(tmp_path)]
    assert main(["export", str(root), "--to", "eval-results", *flags]) == 2
    assert "--hub-dataset and --hub-task" in capsys.readouterr().err
    hub = ["--hub-dataset", "a/b", "--hub-task", "t"]
    assert main(["export", str(root), "--to", "eval-results", *hub, *flags]) == 2
    assert "one metric" in capsys.readouterr().err
    assert main(["export", str(root), "--source-name", "x", *flags]) == 2
    assert main(["export", str(tmp_path / "gone.json"), *flags]) == 2
    assert "record not found" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    damaged = tmp_path / records[0].path.name
    damaged.write_text(records[0].path.read_text().replace('"cores": 2', '"cores": 3'))
    assert main(["export", str(damaged), *flags]) == 2
    assert "a damaged record is not exported" in capsys.readouterr().err


def test_yaml_is_read_as_it_was_meant() -> None:
    value = {"a": [], "b": {}, "c d": [1, "x: y"], "e": [{"f": [{"g": None}], "h": True}, {"i": "#\n- é"}], "j": 1e-7,
             "k": [[1, 2], [3]], "l": [{}]}  # fmt: skip
    assert yaml.safe_load(yaml_text(value)) == value


def test_the_type_of_a_metric_is_its_name_without_what_qualifies_it() -> None:
    moco = [s for s in read_records(Path("results/records"))[0] if s.record.encoder.name == "raw pixels"]
    metrics = [metric for result in model_index(moco, Export(()))[0]["results"] for metric in result["metrics"]]
    types = {metric["type"] for metric in metrics}
    assert {"accuracy", "map", "mean_intersection_over_union", "rankme"} <= types
    assert not [name for name in types if re.search(r"[,()]", name)]


def test_every_family_has_a_task_of_the_hub() -> None:
    kinds = {name: hub_task(name)[0] for name in FAMILIES}
    assert kinds["coco_mask_rcnn"] == kinds["lvis"] == "object-detection"
    segmented = [name for name in FAMILIES if "_seg_" in name or name.endswith(("_fcn", "_upernet", "_linear_vit"))]
    assert len(segmented) > 15
    assert {kinds[name] for name in segmented} == {"image-segmentation"}
    assert kinds["nyu_depth_linear"] == "depth-estimation"
    assert kinds["knn"] == "image-classification"


def test_label_free_measures_are_named_one_by_one_and_each_has_its_own_direction() -> None:
    raw = [s for s in read_records(Path("results/records"))[0] if s.record.encoder.name == "raw pixels"]
    free = next(s for s in raw if s.record.protocol.resolved.benchmark == "label_free")
    results = every_eval_ever(free, HUB)["evaluation_results"]
    configs = {each["evaluation_name"].partition(": ")[2]: each["metric_config"] for each in results}
    assert all(config["metric_name"] == column for column, config in configs.items())
    assert [column for column, config in configs.items() if config["lower_is_better"]] == ["Uniformity", "Dead share"]
    (card,) = exported([free], replace(HUB, to="model-card")).values()
    assert "| Label-free measures (RankMe) " in card

"""The fine-tuning protocols' numbers as their sources give them, and the grid's cells and what they come to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from benchmarks.__main__ import main
from benchmarks.evaluate import _fault_of_cell
from benchmarks.finetune import (
    FineTune,
    FineTuneImageNet,
    FineTuneParams,
    SemiSupervised1Percent,
    SemiSupervised10Percent,
)
from benchmarks.registry import find_protocol, with_settings
from benchmarks.task import InputError, Items
from results.schema import Record, Score
from results.store import packed, read_records
from tests.faults.test_hostile_records import replace_outcomes
from tests.results.factory_records import moco_card, record

TASKS: tuple[FineTune, ...] = (SemiSupervised1Percent(), SemiSupervised10Percent(), FineTuneImageNet())
PROTOCOLS = [protocol for task in TASKS for protocol in task.protocols]
BY_ID = {p.id: p for p in PROTOCOLS}
ONE_PERCENT = BY_ID["semi_supervised_1pct.mmselfsup@1"]


@pytest.mark.parametrize(("percent", "decay"), [(1, 5e-4), (10, 1e-4)])
def test_semi_supervised_is_the_published_grid(percent: int, decay: float) -> None:
    asked = BY_ID[f"semi_supervised_{percent}pct.mmselfsup@1"]
    settings = FineTuneParams.model_validate(asked.params)
    assert (settings.lrs, settings.head_multipliers) == ((0.001, 0.01, 0.1), (1, 10, 100))
    assert (settings.batch_size, settings.epochs, settings.drops, settings.gamma) == (256, 20, (12, 16), 0.2)
    assert (settings.weight_decay, settings.momentum, settings.nesterov) == (decay, 0.9, False)
    assert (settings.view, settings.crop_area, settings.flip_p, settings.jitter) == ("resized_crop", (0.08, 1), 0.5, 0)
    assert (asked.train_split, asked.test_split, asked.geometry.resize, asked.geometry.crop) == (
        f"train-{percent}pct", "val", 256, 224)  # fmt: skip


def test_end_to_end_has_the_papers_rates() -> None:
    rates = {p.id: FineTuneParams.model_validate(p.params).lrs for p in PROTOCOLS if p.variant.startswith("mocov1")}
    assert rates == {
        "finetune_imagenet.mocov1@1": (0.03,),
        "finetune_imagenet.mocov1_scratch@1": (0.1,),
        "finetune_inat18.mocov1@1": (0.025,),
        "finetune_inat18.mocov1_scratch@1": (0.1,),
    }
    settings = FineTuneParams.model_validate(BY_ID["finetune_inat18.mocov1@1"].params)
    assert (settings.epochs, settings.drops, settings.gamma, settings.grid) == (100, (70, 90), 0.1, ((0.025, 1.0),))


def test_every_cell_is_a_protocol_of_its_own_that_an_override_gives_too() -> None:
    found = TASKS[0].cells(ONE_PERCENT)
    assert len({cell.id for cell in found}) == 9
    assert found[5].id == "semi_supervised_1pct.mmselfsup@1+head_multipliers=100.0+lrs=0.01"
    by_hand = with_settings(ONE_PERCENT, ["lrs=0.01", "head_multipliers=100"])
    assert by_hand == found[5]
    assert TASKS[0].cells(by_hand) == ()
    assert by_hand.columns == ("Top-1", "Top-5", "Top-1 best")
    narrower = with_settings(ONE_PERCENT, ["lrs=0.1,0.01", "epochs=2"])
    assert (
        TASKS[0].cells(narrower)[0].id
        == "semi_supervised_1pct.mmselfsup@1+drops=1,2+epochs=2+head_multipliers=1.0+lrs=0.1"
    )
    for asked in PROTOCOLS:
        assert asked.columns == FineTuneParams.model_validate(asked.params).columns()
        assert find_protocol(asked.id) == asked


def test_a_grid_has_no_cell_twice_and_no_rate_of_zero() -> None:
    for lrs, sentence in (((0.1, 0.1), "a value twice"), ((0.0,), "greater than 0"), ((float("nan"),), "finite")):
        for name in ("lrs", "head_multipliers"):
            with pytest.raises(ValidationError, match=sentence):
                FineTuneParams.model_validate({"lrs": (0.1,), name: lrs, "weight_decay": 0, "epochs": 1})


def cell_record(cell: int, top1: float, **row: Any) -> tuple[Record, Items]:
    scores = {
        "Top-1": Score(value=top1, n=4, selection="last epoch"),
        "Top-5": Score(value=100, n=4, selection="last epoch"),
        "Top-1 best": Score(value=100, n=4, selection="best epoch on test (oracle)"),
    }
    own = {"lr": 0.1 * (cell + 1), "last_top1": top1, **row}
    hits = {"correct/Top-1": np.arange(4) < top1 / 25, "correct/Top-5": np.ones(4, bool)}
    return record(
        moco_card(0), TASKS[0].cells(ONE_PERCENT)[cell], scores=scores, runs=(own,), timing={"train": 2.0}
    ), hits


def test_the_choice_is_by_the_held_out_part_and_apart_by_the_test() -> None:
    made = [
        cell_record(0, 75.0, heldout_top1=50.0, heldout_loss=1.0),
        cell_record(1, 25.0, heldout_top1=60.0, heldout_loss=0.9),
        cell_record(2, 50.0, heldout_top1=60.0, heldout_loss=0.8),
        cell_record(3, 75.0, heldout_top1=10.0, heldout_loss=None),
    ]
    outcome = TASKS[0].summarise(ONE_PERCENT, [r for r, _ in made], lambda cell: made[cell][1])
    assert outcome.scores["Top-1"].value == 50.0
    assert outcome.scores["Top-1"].selection == ONE_PERCENT.selection
    assert outcome.scores["Top-1 best"].selection.startswith("best epoch on test (oracle); rates chosen on a held-out")
    assert outcome.scores["Top-1 oracle"].value == 75.0
    assert outcome.scores["Top-1 oracle"].selection == "last epoch; rates chosen on test (oracle)"
    assert [row["chosen"] for row in outcome.runs] == [False, False, True, False]
    assert [row["oracle"] for row in outcome.runs] == [True, False, False, False]
    assert outcome.items["correct/Top-1"].sum() == 2
    assert outcome.items["correct/Top-1 oracle"].sum() == 3
    assert set(outcome.scores) <= set(ONE_PERCENT.columns)
    assert outcome.timing["train, all cells"] == 8.0


def test_without_a_held_out_part_only_the_oracle_is_left() -> None:
    made = [cell_record(cell, 25.0 * cell) for cell in range(3)]
    outcome = TASKS[0].summarise(ONE_PERCENT, [r for r, _ in made], lambda cell: made[cell][1])
    assert set(outcome.scores) == {"Top-1 oracle", "Top-5 oracle"}
    assert outcome.scores["Top-1 oracle"].value == 50.0


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"runs": ()}, "has no accuracy of its last epoch"),
        ({"runs": ({"lr": 0.1},)}, "has no accuracy of its last epoch"),
        ({"runs": ({"last_top1": "a"},)}, "has no accuracy of its last epoch"),
        ({"runs": ({"last_top1": 99.0},)}, "has an accuracy of 25.000 and a run of 99.000"),
        (
            {"runs": ({"last_top1": 25.0, "heldout_top1": [1]},)},
            "has no accuracy of its last epoch, or of the held-out",
        ),
        ({"runs": ({"last_top1": 25.0, "heldout_top1": None},)}, "has no accuracy and loss of the held-out part"),
        ({"runs": ({"last_top1": 25.0, "heldout_top1": 3.0},)}, "has no accuracy and loss of the held-out part"),
        ({"runs": ({"last_top1": 25.0, "heldout_top1": 3.0, "heldout_loss": 1.0},)}, "has no held-out part"),
        ({"scores": {}}, "has no accuracy of its last epoch"),
    ],
)
def test_a_cell_that_lacks_what_the_choice_rests_on_is_named(change: dict[str, Any], fault: str) -> None:
    """A record of its key may be of another version, or of somebody else."""
    whole, items = cell_record(0, 50.0)
    broken = cell_record(1, 25.0)[0].model_copy(update=change)
    with pytest.raises(InputError, match=rf"^the record of semi_supervised_1pct\..* {fault}.*again with --force$"):
        TASKS[0].summarise(ONE_PERCENT, [broken, whole], lambda _: items)


@pytest.mark.parametrize(
    ("found", "fault"),
    [
        ({}, "its outcomes cannot be read"),
        ({"correct/Top-1": np.array(["a"] * 4)}, "its outcomes of Top-1 are <U1 of shape (4,), not right or wrong"),
        ({"correct/Top-1": np.ones(4)}, "its outcomes of Top-1 are float64"),
        ({"correct/Top-1": np.ones(3, bool)}, "its outcomes of Top-1 are bool of shape (3,)"),
        ({"correct/Top-1": np.ones((4, 1), bool)}, "its outcomes of Top-1 are bool of shape (4, 1)"),
        ({"correct/Top-1": np.ones(4, bool)}, "its outcomes of Top-1 give 100.000, and it says 25.000"),
    ],
)
def test_outcomes_of_a_cell_that_are_not_those_of_its_scores(found: Items, fault: str) -> None:
    cell, items = cell_record(0, 25.0)
    stored = cell.model_copy(update={"outcomes_file": "a.npz"})
    assert _fault_of_cell(stored, items, 4) == ""
    assert _fault_of_cell(stored, found, 4).startswith(fault)
    assert _fault_of_cell(cell, {}, 4) == ""  # a benchmark that keeps none


@pytest.mark.nightly
def test_a_grid_whose_cell_was_replaced_is_refused_and_measured_again(
    small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "records"
    command = [
        "finetune", "--encoder", "random:resnet18-w8-k3-nopool:0", "--data", str(small_data), "--out", str(root),
        "--device", "cpu", "--workers", "0", "--set", "epochs=1", "lrs=0.01,0.02",
    ]  # fmt: skip
    assert main(command) == 0
    cells = {s.path: s for s in read_records(root)[0]}
    grid = next(path for path, s in cells.items() if len(s.record.runs) == 2)
    expected = cells[grid].record.scores
    best = max((s for path, s in cells.items() if path != grid), key=lambda s: s.record.runs[0]["last_top1"])
    outcomes = {**(best.outcomes() or {}), "correct/Top-1": np.zeros(3)}
    replace_outcomes(best.path, packed(outcomes))
    grid.unlink()
    capsys.readouterr()
    assert main(command) == 2
    said = capsys.readouterr().err
    assert f"{best.path}: its outcomes of Top-1 are float64 of shape (3,)" in said
    assert "measure the grid again with --force" in said
    assert "Traceback" not in said
    assert main([*command, "--force"]) == 0
    assert next(s for s in read_records(root)[0] if s.path == grid).record.scores == expected

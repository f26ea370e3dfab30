"""The fine-tuning protocols' numbers as their sources give them, and the grid's cells and what they come to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from benchmarks.finetune import (
    FineTune,
    FineTuneImageNet,
    FineTuneParams,
    SemiSupervised1Percent,
    SemiSupervised10Percent,
)
from benchmarks.registry import find_protocol, with_settings
from benchmarks.task import Items
from results.schema import Record, Score
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

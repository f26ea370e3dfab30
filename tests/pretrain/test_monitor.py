"""The log, TensorBoard's events, the picture, and the monitor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from pretrain.data import Files
from pretrain.monitor import Events, Features, KnnMonitor, MonitorRow, collapse, draw_monitor_curves, write_log
from pretrain.recipe import Recipe

ROWS: list[MonitorRow] = [
    {"epoch": 1, "loss": 5.5, "chance_loss": 5.6, "accuracy": 0.1, "spread": 0.9},
    {"epoch": 2, "loss": 4.5, "chance_loss": 5.6, "accuracy": 0.2, "spread": 0.8, "knn": 31.5},
]


def test_the_log_leaves_a_cell_empty_where_nothing_was_measured(tmp_path: Path) -> None:
    write_log(tmp_path / "log.csv", ROWS)
    assert (tmp_path / "log.csv").read_text(encoding="utf-8").splitlines() == [
        "epoch,loss,chance_loss,accuracy,spread,knn", "1,5.5,5.6,0.1,0.9,", "2,4.5,5.6,0.2,0.8,31.5",
    ]  # fmt: skip


def test_events_after_the_step_that_a_run_went_on_from_are_hidden(tmp_path: Path) -> None:
    with Events(tmp_path, 0, write=True) as events:
        for step, row in ((4, ROWS[0]), (8, ROWS[1])):
            events.add(row, step)
    with Events(tmp_path, 4, write=True) as events:  # killed after step 8, but the last checkpoint is of step 4
        events.add({**ROWS[1], "accuracy": 0.25, "loss": 4.25}, 8)
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    assert [(e.step, round(e.value, 6)) for e in read.Scalars("accuracy")] == [(4, 0.1), (8, 0.25)]
    assert [(e.step, e.value) for e in read.Scalars("loss")] == [(4, 5.5), (8, 4.25)]
    assert {"chance_loss", "knn"} < set(read.Tags()["scalars"])
    with Events(tmp_path / "other", 0, write=False) as events:
        events.add(ROWS[0], 1)
    assert not (tmp_path / "other").exists()


def test_the_picture_is_whole(tmp_path: Path) -> None:
    draw_monitor_curves(tmp_path / "curves.png", ROWS, "a run")
    with Image.open(tmp_path / "curves.png") as image:
        assert min(image.size) > 300
    assert [p.name for p in tmp_path.iterdir()] == ["curves.png"]


class Colour(nn.Module):
    """The mean colour, as an encoder."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(2, 3))


def test_the_monitor_classifies_the_middle_of_held_out_images_and_leaves_the_encoder_as_it_was(tmp_path: Path) -> None:
    paths = []
    for i, colour in enumerate(((250, 10, 10), (10, 250, 10), (240, 20, 10), (20, 240, 10))):
        paths.append(tmp_path / f"{i}.png")
        picture = Image.new("RGB", (80, 40))  # black at the sides
        picture.paste(colour, (20, 0, 60, 40))
        picture.save(paths[-1])
    seen: list[Features] = []

    def nearest(
        gallery: Features, classes: np.ndarray, queries: Features, targets: np.ndarray, device: torch.device
    ) -> np.ndarray:  # type: ignore[type-arg]
        seen.extend((gallery, queries))
        found = classes[((queries[:, None] - gallery[None]) ** 2).sum(2).argmin(1)]
        return found == targets

    recipe = Recipe(augmentation={"crop": 32}, mean=(0, 0, 0), std=(1, 1, 1))  # type: ignore[arg-type]
    classes = np.array([0, 1])
    monitor = KnnMonitor(
        (Files(tuple(paths[:2])), classes), (Files(tuple(paths[2:])), classes), nearest, recipe, torch.device("cpu"), 0
    )
    encoder = Colour().train()
    before = torch.get_rng_state()
    assert monitor(encoder) == 100.0
    assert encoder.training
    assert torch.equal(torch.get_rng_state(), before)
    assert np.allclose(seen[0][0], np.array([250, 10, 10]) / 255, atol=0.01)


def test_what_counts_as_a_collapse() -> None:
    healthy = {"epoch": 1, "loss": 7.0, "chance_loss": 7.0, "spread": 0.9, "effective_rank": 40.0}
    assert collapse(healthy) == ""  # at chance, as every run begins
    assert collapse({name: healthy[name] for name in ("epoch", "loss", "chance_loss")}) == ""
    assert collapse(healthy | {"effective_rank": 1.04}).startswith(
        "the effective rank of its features is 1.04, the loss of 7.000 is at chance"
    )
    assert "at chance" not in collapse(healthy | {"spread": 0.01, "loss": 3.0})
    assert "spread by 0.010" in collapse(healthy | {"spread": 0.01})


def test_a_large_set_is_thinned_evenly(tmp_path: Path) -> None:
    labelled = (Files(tuple(tmp_path / str(i) for i in range(100))), np.arange(100))
    monitor = KnnMonitor(labelled, labelled, lambda *_: np.zeros(1, bool), Recipe(), torch.device("cpu"), 0, limit=5)
    assert monitor.gallery[1].tolist() == [0, 25, 50, 74, 99]

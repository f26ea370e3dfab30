"""The log, TensorBoard's events, the picture, and the monitor."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from benchmarks.label_free import LabelFreeViewParams
from benchmarks.training.images import training_view, view_rng
from pretrain.__main__ import _Watch
from pretrain.data import Files
from pretrain.monitor import (
    Events,
    Features,
    KnnMonitor,
    Labelled,
    MonitorRow,
    collapse,
    draw_monitor_curves,
    write_log,
)
from pretrain.recipe import Recipe
from results.schema import Geometry
from tests.processes import run_two_ranks

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


@pytest.mark.parametrize(("precision", "numbers"), [("fp32", None), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_the_monitor_computes_as_the_training_does(precision: str, numbers: torch.dtype | None, tmp_path: Path) -> None:
    """A GPU before Ampere trains in fp16; cuDNN has no convolutions in bf16 for it, and torch's own are slow."""
    seen = []

    class Noting(Colour):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
            return super().forward(images)

    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    labelled = Files((tmp_path / "one.png",)), np.zeros(1, np.int64)
    recipe = Recipe(precision=precision, augmentation={"crop": 8})
    KnnMonitor(labelled, labelled, lambda *_: np.zeros(1, bool), recipe, torch.device("cpu"), 0)(Noting())
    assert seen == [numbers, numbers]


def test_the_monitor_classifies_the_middle_of_held_out_images_and_leaves_the_encoder_as_it_was(tmp_path: Path) -> None:
    paths = []
    for i, colour in enumerate(((250, 10, 10), (10, 250, 10), (240, 20, 10), (20, 240, 10))):
        paths.append(tmp_path / f"{i}.png")
        picture = Image.new("RGB", (80, 40))  # black at the sides
        picture.paste(colour, (20, 0, 60, 40))
        picture.save(paths[-1])
    seen: list[Features] = []

    def nearest(
        gallery: torch.Tensor, classes: np.ndarray, queries: Features, targets: np.ndarray, device: torch.device
    ) -> np.ndarray:  # type: ignore[type-arg]
        seen.extend((gallery.numpy(), queries))
        found = classes[((queries[:, None] - gallery.numpy()[None]) ** 2).sum(2).argmin(1)]
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


def labelled_noise(folder: Path) -> tuple[Labelled, Labelled]:
    """Eleven gallery images and one query, or two: with one a rank of two has none."""
    draws, paths = np.random.default_rng(0), [folder / f"{number}.png" for number in range(13)]
    if not folder.is_dir():
        folder.mkdir()
        for number, path in enumerate(paths):
            pixels = draws.integers(0, 256, (40, 40, 3)) // (1 + np.arange(3) % 3 * (number % 3))
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    classes = np.arange(13) % 3
    return (Files(tuple(paths[:11])), classes[:11]), (Files(tuple(paths[11:])), classes[11:])


def watched(folder: Path, queries: int) -> dict[str, float]:
    gallery, (files, classes) = labelled_noise(folder)
    asked = replace(files, paths=files.paths[:queries]), classes[:queries]
    recipe = Recipe(augmentation={"crop": 32}, mean=(0, 0, 0), std=(1, 1, 1), precision="fp32")  # type: ignore[arg-type]
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 8, 5, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return _Watch((gallery, asked), recipe, torch.device("cpu"), 0, None)(encoder)


def test_the_monitor_measures_views_of_the_gallery_as_written_out(tmp_path: Path) -> None:
    """LiDAR from its matrices and alignment from its pairs, of ten views of each of eleven images; 1e-5."""
    labelled = labelled_noise(tmp_path / "images")
    recipe = Recipe(augmentation={"crop": 32}, mean=(0, 0, 0), std=(1, 1, 1), precision="fp32")  # type: ignore[arg-type]
    encoder = nn.Sequential(nn.Conv2d(3, 4, 5, 4), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    watch = _Watch(labelled, recipe, torch.device("cpu"), 0, None)
    before = torch.get_rng_state()
    found = watch(encoder)
    assert encoder.training
    assert torch.equal(torch.get_rng_state(), before)
    again = watch(encoder)
    assert {name: again[name] for name in ("lidar", "alignment")} == {n: found[n] for n in ("lidar", "alignment")}
    geometry = Geometry(mode="shorter", resize=32, crop=32)
    params = LabelFreeViewParams(images=100, views=10, delta=1e-4)
    encoder.eval()
    rows = []
    for number, path in enumerate(labelled[0][0].paths):
        with Image.open(path) as image:
            drawn = [
                training_view(image.convert("RGB"), params, geometry, view_rng(0, v, number))[0] for v in range(10)
            ]
        pixels = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() / 255
        rows.append(encoder(pixels).detach().double().numpy())
    means = np.stack([own.mean(0) for own in rows])
    within = sum((own - own.mean(0)).T @ (own - own.mean(0)) for own in rows) / (11 * 9) + 1e-4 * np.eye(4)
    share = np.linalg.eigvals(np.linalg.inv(within) @ np.cov(means.T)).real
    share = share / share.sum()
    assert found["lidar"] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-5)
    unit = [own / np.linalg.norm(own, axis=1)[:, None] for own in rows]
    pairs = [((own[i] - own[i + 1]) ** 2).sum() for own in unit for i in range(0, 10, 2)]
    assert found["alignment"] == pytest.approx(np.mean(pairs), rel=1e-5)


RANK = """
import json, sys
from pathlib import Path
from pretrain import distributed
from tests.pretrain import test_monitor
largest, kept = [], distributed.every_part
def noting(own, n):
    largest.append(len(own))
    yield from kept(own, n)
distributed.every_part = noting
with distributed.process_group("cpu"):
    found = [test_monitor.watched(Path(sys.argv[1]), queries) for queries in (1, 2)]
    Path(sys.argv[2], f"{distributed.rank()}.json").write_text(json.dumps([largest, found]))
"""


def test_two_ranks_with_a_part_of_the_gallery_each_see_what_one_process_sees(tmp_path: Path) -> None:
    expected = [watched(tmp_path / "images", queries) for queries in (1, 2)]
    assert {"knn", "probe", "effective_rank", "lidar", "alignment"} <= expected[0].keys()
    run_two_ranks(RANK, str(tmp_path / "images"), str(tmp_path))
    for rank, rows in (("0", 6), ("1", 5)):
        largest, found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert largest == [rows, rows]
        for row, alone in zip(found, expected, strict=True):
            assert row == pytest.approx(alone, rel=1e-5)


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

"""`--dry-run` of every protocol and kind of encoder, and its figures."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.estimate import describe, dry_run, fitting_seconds, training_seconds
from benchmarks.evaluate import Question, Run, Sweep, load
from benchmarks.knn import Knn
from benchmarks.registry import TASK_NAMES, load_task
from benchmarks.task import FeatureTask, ImageTask, InputError, Labels, Outcome, RunOptions, Split
from benchmarks.timed_tries import made_up, solving_seconds, training_time
from benchmarks.training.probe_task import ProbeTask
from benchmarks.voc_svm import VocSvm
from pretrain.distributed import float32_kind
from results.schema import DatasetRef, Protocol
from tests.simulated_cuda import simulated_cuda


class SmallPixels(nn.Module):
    """Vectors and patches but no maps, as the encoder `pixels`, and so narrow that heads on them take no time."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        cells = nn.functional.adaptive_avg_pool2d(images, 4)
        return {"embed": cells.flatten(1), "patches": cells}


KINDS = {"maps": "random:resnet18-w8-k3-nopool:0", "vectors": SmallPixels()}


def labels(folder: Path, count: int) -> Labels:
    ids = tuple(f"{i}.png" for i in range(count))
    for name in ids:
        Image.new("RGB", (60, 50), "red").save(folder / name)
    return Labels(ids, [folder / i for i in ids], ("a", "b"), np.arange(count) % 2, tuple((i,) for i in ids))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TASK_NAMES)
def test_every_protocol_has_an_estimate(name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.timed_tries.LONG_TRY", 0.0)  # the shortest tries
    task, encoder, data = load_task(name)(), load(KINDS[kind]), labels(tmp_path, 4)
    options = RunOptions(device="cpu", records=tmp_path / "records", features=tmp_path / "features")
    reference = DatasetRef(id="d", fingerprint="0" * 64, embedded=True, train_items=4, test_items=4)
    told = 0
    for protocol in task.protocols:
        if isinstance(task, FeatureTask) and any(
            pooling and pooling.kind not in ("patches", "average") for _, pooling in task.outputs(protocol).values()
        ):
            continue  # fixed kernels want the maps of a full-size net
        if not any(encoder.has(output) for output, _ in task.outputs(protocol).values()):
            continue
        protocol = protocol.changed(geometry={"resize": 32, "crop": 32})
        lines = describe(Run(task, protocol, encoder, data, data, reference, options))
        assert lines[0].startswith(f"would run  {encoder.card.name} under {protocol.id} on 4 + 4 images")
        assert [line.split()[0] for line in lines[1:]] == ["time", "disk", "memory"]
        told += 1
    needs_tokens = name in ("linear-grid", "vit-det", "vit-seg")
    assert told or name not in ("knn", "logistic", "attentive")  # vectors are enough for these
    assert told or kind == "vectors" or (needs_tokens and kind == "maps") or name in ("voc-svm", "low-shot-svm")
    assert not (tmp_path / "records").exists()
    assert not (tmp_path / "features").exists()


@pytest.mark.parametrize(("precision", "numbers"), [(None, torch.float32), ("bf16", torch.bfloat16)])
def test_passes_of_the_encoder_are_timed_as_a_run_makes_them(
    precision: Any, numbers: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the run's precision, without TF32, and on a GPU on a batch of its size."""
    seen = []

    class Noting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3, 5))

        def forward(self, images: Tensor) -> Tensor:
            found = images.mean((2, 3)) @ self.weight
            seen.append((len(images), found.dtype, float32_kind()))
            return found

    data, protocol = labels(tmp_path, 4), Knn().default_protocol(embedded=True).changed(geometry={"crop": 224})
    reference = DatasetRef(id="d", fingerprint="0" * 64, embedded=True, train_items=4, test_items=4)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr("benchmarks.estimate.fitting_seconds", lambda *_, **__: None)
    for device, count in (("cpu", 16), ("cuda", 256)):
        with simulated_cuda():
            encoder = load(Noting())
            seen.clear()
            options = RunOptions(device=device, precision=precision, features=tmp_path, records=tmp_path)
            describe(Run(Knn(), protocol, encoder, data, data, reference, options))
        assert seen.count((count, numbers, "ieee")) == 3


def test_training_counts_epochs_reading_and_the_backward_pass(tmp_path: Path) -> None:
    def seconds(name: str, epochs: int) -> float:
        task = load_task(name)()
        protocol = task.default_protocol(embedded=True).changed(epochs=epochs)
        data = labels(tmp_path, 4)
        reference = DatasetRef(id="d", fingerprint="0" * 64, embedded=True, train_items=4, test_items=4)
        run = Run(task, protocol, load(KINDS["maps"]), data, data, reference, RunOptions(device="cpu"))
        return training_seconds(run, reading=1.0, forward=10.0)

    assert seconds("linear", 20) > 1.5 * seconds("linear", 10)
    assert seconds("linear", 10) >= 10 * 3 * 10  # a fifth is held out
    assert seconds("semi-10pct", 10) >= 10 * 1 * 30  # forward and backward, of the one labelled image


def test_a_dry_run_of_many_protocols_loads_each_encoder_once(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []

    def counted(encoder: str, *arguments: Any) -> Any:
        loaded.append(encoder)
        return load(encoder, *arguments)

    monkeypatch.setattr("benchmarks.estimate.load", counted)
    monkeypatch.setattr("benchmarks.estimate.describe", lambda run, _: [f"would run  {run.protocol.id}"])
    questions = [Question(Knn(), Knn().default_protocol(embedded=True).changed(k=(k,))) for k in range(1, 6)]
    options = RunOptions(device="cpu", records=tmp_path / "records", features=tmp_path / "features")
    told = list(dry_run(Sweep(["pixels", KINDS["maps"]], questions, small_data, options)))
    assert sum(line.startswith("would run") for line in told) == 10
    assert loaded == ["pixels", KINDS["maps"]]


def test_ranks_share_passes_and_training_and_the_first_one_says_so(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.estimate._cores", lambda: 4)
    monkeypatch.setattr("benchmarks.estimate.training_time", lambda run: None)
    monkeypatch.setattr("benchmarks.estimate.training_seconds", lambda *_, **__: 600.0)
    monkeypatch.setattr("benchmarks.estimate._seconds_per_image_read", lambda *_: 1.0)
    monkeypatch.setattr("benchmarks.estimate.fitting_seconds", lambda *_: 0.0)
    tasks = [load_task(name)() for name in ("ncm", "linear", "seg-linear")]
    questions = [Question(task, task.default_protocol(embedded=True)) for task in tasks]
    options = RunOptions(device="cpu", records=tmp_path / "records", features=tmp_path / "features", workers=0)

    def times() -> list[str]:
        lines = list(dry_run(Sweep([KINDS["maps"]], questions, small_data, options)))
        refused.extend(line for line in lines if line.startswith("missing"))
        return [line.split(",")[0] for line in lines if line.startswith("  time")]

    refused: list[str] = []
    features, training, _ = times()
    assert training.startswith("  time     about 10 min on cpu: ")
    assert not refused
    for ranks, minutes in ((2, "5 min"), (8, "2 min")):  # 8 ranks on 4 cores
        monkeypatch.setenv("WORLD_SIZE", str(ranks))
        shared, training = times()
        assert training.startswith(f"  time     about {minutes} on cpu by {ranks} ranks: ")
        assert seconds_of(shared) == pytest.approx(seconds_of(features) / min(ranks, 4), rel=0.2)
        assert os.environ["WORLD_SIZE"] == str(ranks)
    assert len(refused) == 2
    assert all("dense heads train in a single process" in line for line in refused)
    monkeypatch.setenv("RANK", "1")
    assert times() == []


def seconds_of(line: str) -> float:
    number, unit = line.split("about ")[1].split()[:2]
    return float(number) * {"s": 1, "min": 60, "h": 3600}[unit]


@pytest.mark.parametrize(
    "name", ["coco-det", *(pytest.param(name, marks=pytest.mark.slow) for name in ("voc-det", "voc-seg"))]
)
def test_a_dry_run_refuses_what_an_engine_cannot_take(
    name: str, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.timed_tries.LONG_TRY", 0.0)
    if name == "coco-det":  # tried as voc-det is
        monkeypatch.setattr("benchmarks.estimate.training_time", lambda run: None)
    task = load_task(name)()
    options = RunOptions(device="cpu", records=tmp_path / "records", features=tmp_path / "features")
    questions = [Question(task, task.default_protocol(embedded=True))]
    lines = list(dry_run(Sweep(["package:efficientnet-lite0", KINDS["maps"]], questions, small_data, options)))
    told = [line for line in lines if line.split()[0] in ("missing", "would")]
    assert len(told) == 2
    assert "protocols are for ResNets" in told[0]
    assert told[1].startswith("would run")
    (time,) = [line for line in lines if line.startswith("  time")]
    # A try is refused where the engine is not installed.
    assert name == "coco-det" or "of training" in time or "a short try was refused" in time


def test_amounts_are_what_a_run_sees(tmp_path: Path) -> None:
    data = labels(tmp_path, 100)

    def amount(name: str, **changes: object) -> tuple[int, int]:
        task = load_task(name)()
        return task.amount(task.default_protocol(embedded=True).changed(**changes), data, data)

    # A fifth is held out, and features of evaluated images are computed once.
    assert amount("linear", epochs=10) == (10 * 80, 100 + 20)
    assert amount("attentive", epochs=10) == (10 * 80, 100 + 20)
    # 30 are labelled, of which 9 are held out: trained on 21 and on 30.
    assert amount("semi-10pct", epochs=10, evaluate_every=5) == (10 * (21 + 30), 2 * (100 + 9))
    assert amount("finetune", epochs=10, evaluate_every=4) == (10 * 100, 3 * 100)


# ---- short tries -----------------------------------------------------------------------------------------------------


class Clock:
    """Time that passes only when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("benchmarks.timed_tries.time", self)

    def monotonic(self) -> float:
        return self.now


def run_of(task: Any, protocol: Protocol, data: Labels, tmp_path: Path, kind: str = "maps") -> Run:
    reference = DatasetRef(id="d", fingerprint="0" * 64, embedded=True, train_items=len(data), test_items=len(data))
    options = RunOptions(device="cpu", records=tmp_path / "records", features=tmp_path / "features")
    return Run(task, protocol, load(KINDS[kind]), data, data, reference, options)


@pytest.mark.parametrize("power", [0, 1, 2])
def test_fitting_is_reckoned_from_two_sizes(power: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock, sizes = Clock(monkeypatch), []

    class Solver(Knn):
        def run(self, protocol: Protocol, train: Split, test: Split, options: RunOptions) -> Outcome:
            assert {key: rows.shape for key, rows in train.features.items()} == {"embed": (len(train.labels), 48)}
            assert options.records.parent == tmp_path / "tries"
            sizes.append(len(train.labels))
            clock.now += 1.2 / 50**power * len(train.labels) ** power
            return Outcome()

    data = labels(tmp_path, 200)
    run = run_of(Solver(), Knn().default_protocol(embedded=True), data, tmp_path, "vectors")
    assert solving_seconds(run, tmp_path / "tries") == pytest.approx(1.2 * 4**power)
    assert sizes == [50, 50, 25, 25]
    assert fitting_seconds(run, 48, tmp_path / "tries") == pytest.approx(1.2 * 4**power)
    monkeypatch.setattr("benchmarks.timed_tries.SHORT_TRY", 1e9)
    assert solving_seconds(run, tmp_path / "tries") == pytest.approx(1.2 * 4**power)
    assert sizes[-1] == 200  # all of them
    few = run_of(Solver(), Knn().default_protocol(embedded=True), data.rows(range(4)), tmp_path, "vectors")
    assert solving_seconds(few, tmp_path / "tries") is None


@pytest.mark.parametrize(("name", "measured"), [("knn", 1.6), ("few-shot", 3.05)])
def test_counted_operations_take_what_was_measured(
    name: str, measured: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """20,000 + 5,000 made-up features of 768 numbers in 100 classes, with one thread of an AMD EPYC, otherwise idle."""
    monkeypatch.setattr("benchmarks.estimate._flops_per_second", lambda _: 246e9)  # as measured there
    data = labels(tmp_path, 1)

    def of(count: int) -> Labels:
        ids = tuple(map(str, range(count)))
        return Labels(ids, data.paths * count, tuple(map(str, range(100))), np.arange(count) % 100, ((),) * count)

    task = load_task(name)()
    run = run_of(task, task.protocols[0], of(20_000), tmp_path, "vectors")
    found = fitting_seconds(replace(run, test=of(5_000)), 768, tmp_path, try_counted=False)
    assert found == pytest.approx(measured, rel=0.3)


def test_a_picture_of_a_few_images_and_a_pause_of_the_machine_do_not_grow(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock, pauses = Clock(monkeypatch), iter([0.1, 0.0, 0.0, 0.1])

    class Solver(Knn):
        def run(self, protocol: Protocol, train: Split, test: Split, options: RunOptions) -> Outcome:
            fitting = 0.024 * len(train.labels) + next(pauses)
            clock.now += fitting + 0.6  # 0.6 s for a picture
            return Outcome(timing={"fit": fitting})

    run = run_of(Solver(), Knn().default_protocol(embedded=True), labels(tmp_path, 200), tmp_path, "vectors")
    assert solving_seconds(run, tmp_path / "tries") == pytest.approx(4.8 + 0.6)

    from benchmarks.estimate import _seconds_per_image_read

    class Slow:
        def __init__(self, paths: object, geometry: object) -> None: ...

        def __getitem__(self, row: int) -> None:
            clock.now += 60.0 if row == 3 else 0.01

    monkeypatch.setattr("benchmarks.estimate.time", clock)
    monkeypatch.setattr("benchmarks.datasets.images.Images", Slow)
    assert _seconds_per_image_read([tmp_path] * 20, run.protocol.geometry) == pytest.approx(0.01)


def test_made_up_features_are_positive_and_tell_overlapping_classes_apart() -> None:
    """Without a difference of the classes, a solver would be timed on a problem that no network poses."""
    targets = np.arange(1000) % 10
    names = tuple(map(str, range(1000)))
    data = Labels(names, [Path(name) for name in names], names[:10], targets, tuple((name,) for name in names))
    train, test = (made_up(data, {"embed": 192}, seed).features["embed"] for seed in (0, 1))
    assert train.min() == 0
    assert not np.array_equal(train, test)
    means = np.stack([train[targets == each].mean(0) for each in range(10)])
    nearest = ((test[:, None] - means) ** 2).sum(2).argmin(1)
    assert 0.18 < (nearest == targets).mean() < 0.6


def test_what_a_benchmark_refuses_on_made_up_features_has_no_estimate(tmp_path: Path) -> None:
    data = labels(tmp_path, 40)
    run = run_of(Knn(), Knn().default_protocol(embedded=True), data, tmp_path, "vectors")  # k = 200 of 40 images
    assert solving_seconds(run, tmp_path) is None
    assert "of fitting and scoring" in describe(run)[1]  # counted

    class Refusing(VocSvm):
        def flops(self, protocol: Protocol, train: Labels, test: Labels, width: int) -> float | None:  # type: ignore[override]
            return None

        def run(self, protocol: Protocol, train: Split, test: Split, options: RunOptions) -> Outcome:
            raise InputError("a class has no positives")

    run = run_of(Refusing(), VocSvm().default_protocol(embedded=True), data, tmp_path)
    assert solving_seconds(run, tmp_path) is None
    assert describe(run)[1].endswith("without fitting and scoring")


def test_more_images_are_tried_where_few_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock, sizes = Clock(monkeypatch), []

    class Solver(Knn):
        def run(self, protocol: Protocol, train: Split, test: Split, options: RunOptions) -> Outcome:
            sizes.append(len(train.labels))
            if len(train.labels) < 60:
                raise InputError("needs 60 images")
            clock.now += 0.012 * len(train.labels)
            return Outcome()

    run = run_of(Solver(), Knn().default_protocol(embedded=True), labels(tmp_path, 200), tmp_path, "vectors")
    assert solving_seconds(run, tmp_path) == pytest.approx(2.4)
    assert sizes == [50, 100, 100, 50]  # the half is refused, and taken to need half the time


@pytest.mark.parametrize("name", ["finetune", "seg-linear", "voc-det", "voc-seg"])
def test_a_training_is_reckoned_from_two_lengths(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kind = type(load_task(name)())
    told: list[tuple[int, int, int]] = []

    class Trainer(kind):  # type: ignore[misc,valid-type]  # one of several benchmarks
        def run(
            self, protocol: Protocol, encoder: object, train: Labels, test: Labels, workdir: Path, options: RunOptions
        ) -> Outcome:
            batch = protocol.params["batch_size"]
            steps = protocol.params.get("iterations") or len(train) // batch
            told.append((steps, batch, len(test)))
            assert options.workers == 0
            assert not workdir.exists()
            return Outcome(timing={"train": 2 + 0.25 * steps * batch, "test": 1 + 0.5 * len(test)})

    run = run_of(Trainer(), kind().default_protocol(embedded=True), labels(tmp_path, 100), tmp_path)
    found = training_time(run)
    assert found is not None
    assert (found.start, found.trained, found.evaluated) == pytest.approx((3, 0.25, 0.5))
    assert told == [(1, 2, 2), (1, 2, 2), (4, 2, 8)]

    def paused(self: object, protocol: Protocol, *words: object) -> Outcome:
        steps = protocol.params.get("iterations") or len(words[1]) // protocol.params["batch_size"]  # type: ignore[arg-type]
        return Outcome(timing={"train": 5.0 if steps == 1 else 4.0, "test": 0.0})

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run", paused)
        found = training_time(run)
        assert found is not None
        assert found.trained == 4.0 / (4 * 2)

    def refuse(*words: object) -> Outcome:
        raise InputError("detection needs detectron2")

    monkeypatch.setattr(Trainer, "run", refuse)
    refused = training_time(run)
    assert refused is not None
    assert refused.refusal == "detection needs detectron2"
    assert "a short try was refused: detection needs detectron2" in describe(run)[1]


def test_a_short_training_is_one_that_the_benchmark_takes(tmp_path: Path) -> None:
    """Of every protocol: no drop after its end, no warm-up beyond it."""
    for name in TASK_NAMES:
        task = load_task(name)()
        if not isinstance(task, ImageTask):
            continue
        for protocol in task.protocols:
            for each in task.cells(protocol)[:1] or (protocol,):
                short = task.shortened(each, 4, 2)
                assert short is not None or name in ("label-free-views", "retrieval") or isinstance(task, ProbeTask)
                if short is not None:
                    assert task.params(short)
                    assert short.params["batch_size"] == 2
                    assert short.params.get("iterations", 4) == 4


def test_what_runs_share_is_counted_once(small_data: Path, tmp_path: Path) -> None:
    options = RunOptions(device="cpu", records=tmp_path / "records", features=tmp_path / "features")

    def parts(*names: str) -> list[str]:
        tasks = [load_task(name)() for name in names]
        questions = [Question(task, task.default_protocol(embedded=True)) for task in tasks]
        told = list(dry_run(Sweep([KINDS["maps"]], questions, small_data, options)))
        assert told[-1].startswith("in all     about ")
        assert told[-1].split(" for ")[1].startswith(f"{len(names)} run")
        return [line for line in told if line.startswith(("  time", "  disk"))]

    first, first_disk, second, second_disk = parts("knn", "ncm")
    assert " 0.0 s of reading and encoder passes" not in first
    assert " 0.0 s of reading and encoder passes" in second
    assert "embed" in first_disk
    assert second_disk.endswith("all there")
    first, _, second, _ = parts("linear", "multihead")
    assert first.endswith("reading, encoder passes and updates")
    assert second.endswith("updates in the pass of the run before")

"""`--dry-run` of every protocol and kind of encoder, and its figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor, nn

from benchmarks.estimate import describe, dry_run, training_seconds
from benchmarks.evaluate import Question, Run, load
from benchmarks.registry import TASK_NAMES, load_task
from benchmarks.task import FeatureTask, Labels, RunOptions
from results.schema import DatasetRef


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
def test_every_protocol_has_an_estimate(name: str, kind: str, tmp_path: Path) -> None:
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


@pytest.mark.parametrize("name", ["voc-det", "coco-det", "voc-seg"])
def test_a_dry_run_refuses_what_an_engine_cannot_take(name: str, small_data: Path, tmp_path: Path) -> None:
    task = load_task(name)()
    options = RunOptions(device="cpu", records=tmp_path / "records", features=tmp_path / "features")
    questions = [Question(task, task.default_protocol(embedded=True))]
    lines = list(dry_run(["package:efficientnet-lite0", KINDS["maps"]], questions, small_data, options))
    told = [line for line in lines if line.split()[0] in ("missing", "would")]
    assert len(told) == 2
    assert "protocols are for ResNets" in told[0]
    assert told[1].startswith("would run")


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

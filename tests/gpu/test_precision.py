"""Detection and segmentation run in half precision on a GPU; the id says so where the source does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.__main__ import BenchFlags, parse_flags
from benchmarks.datasets.registry import find_dataset
from benchmarks.detection.protocols import VitDetectionParams
from benchmarks.encoders.load import load_encoder
from benchmarks.evaluate import in_half_precision, prepare
from benchmarks.registry import TASKS, find_protocol, load_task
from benchmarks.segmentation.task import SegmentationParams
from benchmarks.task import RunOptions
from tests.gpu.conftest import AnyGpu

TRANSFERRED = TASKS["Detection and segmentation"]


@pytest.mark.parametrize("name", ["coco-det", "voc-seg"])
def test_the_id_shows_the_precision_of_a_gpu_and_nothing_on_a_cpu(name: str, small_data: Path, gpu: AnyGpu) -> None:
    task: Any = load_task(name)()
    encoder = load_encoder("random:resnet18-w8-k3-nopool:0")
    own = task.default_protocol(embedded=True).changed(precision="fp32")

    def asked(device: str, **options: Any) -> str:
        return prepare(task, own, encoder, small_data, options=RunOptions(device=device, **options)).protocol.id

    assert asked("cpu") == own.id
    assert asked("cuda") == in_half_precision(own, "cuda").id
    assert "+precision=bf16" in asked("cuda")
    assert asked("cuda", precision="fp32") == own.id


def test_a_source_that_trains_in_half_precision_keeps_its_id(gpu: AnyGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    vitdet = find_protocol("coco_vitdet.base_100ep")
    assert vitdet.params["precision"] == "fp16"
    assert in_half_precision(vitdet, "cuda") == vitdet
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))  # no bfloat16
    published = find_protocol("voc0712_det.moco")
    assert in_half_precision(published, "cuda").id == f"{published.id}+precision=fp16"


def test_every_benchmark_of_the_two_engines_does_so_and_no_other() -> None:
    found = {name for names in TASKS.values() for name in names if load_task(name).half_on_gpu}
    assert found == set(TRANSFERRED)


def test_a_precision_that_the_user_states_is_kept() -> None:
    flags = ["--encoder", "pixels", "--set", "precision=fp32"]
    for name, kind in (("voc-seg", load_task("voc-seg")), ("coco-det", load_task("coco-det"))):
        assert parse_flags(name, BenchFlags, flags, kind)[1].precision == "fp32"
    assert parse_flags("voc-seg", BenchFlags, flags[:2], load_task("voc-seg"))[1].precision is None


@pytest.mark.nightly
def test_the_loaders_of_both_engines_pin_their_batches(small_data: Path, gpu: AnyGpu, tmp_path: Path) -> None:
    pytest.importorskip("detectron2")
    pytest.importorskip("mmseg")
    from benchmarks.detection.data import inference_loader, train_loader
    from benchmarks.detection.model import vit_run_configuration
    from benchmarks.segmentation.train import FcnTrial

    encoder = load_encoder("random:resnet18-w8-k3-nopool:0")
    detection, segmentation = find_protocol("coco_vitdet.demo"), find_protocol("voc12aug_fcn.demo")
    scenes, here = [{"height": 4, "width": 4}], {"rank": 0, "ranks": 1, "workers": 0, "mapper": dict}
    for device, pinned in (("cpu", False), ("cuda", True)):
        cfg = vit_run_configuration(VitDetectionParams.model_validate(detection.params), encoder.card, device)
        assert train_loader(scenes, cfg, seed=0, first=0, **here).pin_memory == pinned
        assert inference_loader(scenes, cfg, **here).pin_memory == pinned
        data = find_dataset(segmentation.dataset, small_data)
        trial = FcnTrial(
            SegmentationParams.model_validate(segmentation.params), encoder, data.read(segmentation.train_split),
            data.read(segmentation.test_split), 0, tmp_path, RunOptions(device=device, workers=0),
        )  # fmt: skip
        assert trial.train_loader.pin_memory == trial.test_loader.pin_memory == pinned

"""detectron2 and mmengine on a simulated GPU: in a training step only the libraries make the host wait, never we."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from benchmarks.datasets.registry import find_dataset
from benchmarks.encoders.load import load_encoder
from benchmarks.task import RunOptions
from tests.benchmarks.detection.test_detection_task import small_heads, tiny
from tests.benchmarks.segmentation.test_segmentation_task import protocol
from tests.gpu.tiny import hook_batches
from tests.layouts.coco import write_coco
from tests.layouts.voc12aug import write_voc12aug
from tests.simulated_cuda import Gpu, simulated_cuda

pytestmark = pytest.mark.filterwarnings("ignore")
__all__ = ["small_heads"]  # the fixture

ENCODER = "random:resnet18-w8-k3-nopool:0"
OPTIONS = RunOptions(device="cuda", workers=0, progress=False)
STEPS = 4


class Counted:
    """Wraps the batches of a loop, and counts the waits from one batch to the next, without the first and the last."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu, self.steps = gpu, 0
        self.waits: Counter[tuple[str, str]] = Counter()

    def __call__(self, batches: Iterable[Any]) -> Iterator[Any]:
        for step, batch in enumerate(batches, start=1):
            before = Counter(self.gpu.owners)
            yield batch
            if 1 < step < STEPS:
                self.steps += 1
                self.waits += self.gpu.owners - before

    def of(self, *packages: str) -> dict[tuple[str, str], int]:
        return {key: count for key, count in self.waits.items() if key[0] in packages}


@pytest.mark.skipif(not find_spec("detectron2"), reason="detectron2 is not installed: make setup-transfer")
@pytest.mark.usefixtures("small_heads")
@pytest.mark.parametrize("identifier", ["coco_mask_rcnn_fpn_1x.mmselfsup@1", "coco_keypoint_fpn_2x.moco@1"])
def test_detectron2_waits_only_where_its_own_code_does(
    identifier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.detection.data import read_scenes
    from benchmarks.detection.protocols import DetectionParams
    from benchmarks.detection.train import ResNetDetectionTrial

    write_coco(tmp_path)
    asked = tiny(identifier, iterations=STEPS, precision="fp32", checkpoint_every=100)
    params = DetectionParams.model_validate(asked.params)
    spec = find_dataset(asked.dataset, tmp_path)
    train, test = spec.read(asked.train_split), spec.read(asked.test_split)
    scenes = read_scenes(train, params.task), read_scenes(test, params.task)
    with simulated_cuda() as gpu:
        counted = Counted(gpu)
        hook_batches(monkeypatch, counted)
        (tmp_path / "trial").mkdir()
        trial = ResNetDetectionTrial(params, load_encoder(ENCODER), *scenes, test, 0, tmp_path / "trial", OPTIONS)
        model = trial.train(progress=False)
        assert {p.device.type for p in model.parameters()} == {"cuda"}
    assert counted.steps == STEPS - 2
    assert not counted.of("benchmarks", "pretrain", "tests"), counted.waits
    assert counted.of("detectron2")  # it samples boxes by `nonzero`, and copies what it makes on the CPU


@pytest.mark.skipif(not find_spec("mmseg"), reason="mmsegmentation is not installed: make setup-transfer")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_mmengine_waits_only_where_its_own_code_does(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.segmentation.task import SegmentationParams
    from benchmarks.segmentation.train import FcnTrial

    write_voc12aug(tmp_path)
    params = SegmentationParams.model_validate(
        protocol(iterations=STEPS, precision=precision, checkpoint_every=100).params
    )
    spec = find_dataset("voc12aug", tmp_path)
    with simulated_cuda() as gpu:
        counted = Counted(gpu)
        hook_batches(monkeypatch, counted)
        data = spec.read("train_aug"), spec.read("val")
        trial = FcnTrial(params, load_encoder(ENCODER), *data, 0, tmp_path / "trial", OPTIONS)
        model = trial.train(progress=False)
        assert {p.device.type for p in model.parameters()} == {"cuda"}
        assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert counted.steps == STEPS - 2
    assert not counted.of("benchmarks", "pretrain", "tests", "mmengine"), counted.waits

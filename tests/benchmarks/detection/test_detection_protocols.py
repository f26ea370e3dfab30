"""The resolved configurations against the values as they stand in the sources, field by field."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.detection import densepose
from benchmarks.detection.model import add_defaults, configuration
from benchmarks.detection.protocols import DetectionParams
from benchmarks.detection.task import VocDetection
from benchmarks.encoders.load import load_encoder
from benchmarks.registry import load_task
from benchmarks.task import InputError, Labels, RunOptions
from results.schema import Architecture, EncoderCard, Protocol
from tests.benchmarks.detection.protocol import PROTOCOLS, detection_protocol
from tests.reference.densepose_settings import stand_in

EXPECTED = Path(__file__).parents[2] / "expected" / "detection"
PUBLISHED = [p for p in PROTOCOLS if p.variant != "demo"]
CLASSES = {"voc": 20, "coco": 80, "lvis": 1230, "cityscapes": 8}

needs_library = pytest.mark.skipif(
    not find_spec("detectron2"), reason="detectron2 is not installed: make setup-transfer"
)
pytestmark = pytest.mark.filterwarnings("ignore")


def card(name: str = "resnet50", width: int = 64, **fields: Any) -> EncoderCard:
    return EncoderCard(name="an encoder", source="test", architecture=Architecture(name=name, width=width), **fields)


def flat(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {path: json.loads(json.dumps(value))}
    found: dict[str, Any] = {}
    for key, part in value.items():
        found |= flat(part, f"{path}.{key}" if path else str(key))
    return found


def params_of(protocol: Protocol) -> DetectionParams:
    return DetectionParams.model_validate(protocol.params)


def classes_of(protocol: Any) -> int:
    if protocol.dataset == "lvis_v1":
        return 1203
    return 1 if protocol.dataset in ("coco_keypoints", "coco_densepose") else CLASSES[protocol.params["task"]]


def differences(protocol: Any) -> dict[str, Any]:
    """The keys whose values are not detectron2's defaults, for a ResNet-50 with MoCo's input, on 8 processes."""
    from detectron2.config import get_cfg

    plain = get_cfg()
    add_defaults(plain)
    if protocol.params["task"] == "densepose":
        densepose.defaults(plain)
    before = flat(plain)
    found = flat(configuration(params_of(protocol), card(), classes_of(protocol), ranks=8))
    named = ("difficult_in_training", "inclusive_boxes", "trials", "schedule", "scaled_batch", "precision")
    # The data are this project's lists, not detectron2's catalogue.
    changed = {k: v for k, v in found.items() if v != before[k] and not k.startswith("DATASETS.")}
    return changed | {name: protocol.params[name] for name in named}


@needs_library
@pytest.mark.parametrize("protocol", PUBLISHED, ids=lambda p: p.id)
def test_every_resolved_field_is_the_sources(protocol: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if protocol.params["task"] == "densepose":
        stand_in(monkeypatch)
    expected = json.loads((EXPECTED / f"{protocol.id}.json").read_text(encoding="utf-8"))
    found = differences(protocol)
    assert {k: v for k, v in found.items() if k not in expected} == {}, "not in the source"
    assert {k for k in expected if k not in found} == set(), "in the source alone"
    assert {k: (found[k], expected[k]) for k in expected if found[k] != expected[k]} == {}


@needs_library
def test_a_changed_number_is_seen() -> None:
    protocol = detection_protocol("voc0712_det.moco@1")
    expected = json.loads((EXPECTED / f"{protocol.id}.json").read_text(encoding="utf-8"))
    assert differences(protocol.changed(warmup_iterations=1000)) != expected
    assert differences(protocol) == expected


@needs_library
def test_normalisation_channel_order_and_strides_are_the_cards() -> None:
    params = params_of(detection_protocol("voc0712_det.moco@1"))
    msra = EncoderCard(
        name="msra", source="test", channels="BGR", mean=(103.53, 116.28, 123.675), std=(1.0, 1.0, 1.0),
        value_range=255.0, architecture=Architecture(name="resnet50", stride_in_1x1=True),
    )  # fmt: skip
    cfg = configuration(params, msra, 20)
    assert cfg.INPUT.FORMAT == "BGR"
    assert list(cfg.MODEL.PIXEL_MEAN) == pytest.approx([103.53, 116.28, 123.675])
    assert list(cfg.MODEL.PIXEL_STD) == pytest.approx([1, 1, 1])
    assert cfg.MODEL.RESNETS.STRIDE_IN_1X1
    ours = configuration(params, card(), 20)
    assert list(ours.MODEL.PIXEL_MEAN) == pytest.approx([123.675, 116.28, 103.53])
    assert not ours.MODEL.RESNETS.STRIDE_IN_1X1


@needs_library
def test_one_process_has_ordinary_batch_norms() -> None:
    cfg = configuration(params_of(detection_protocol("coco_mask_rcnn_fpn_1x.mmselfsup@1")), card(), 80)
    assert {cfg.MODEL.RESNETS.NORM, cfg.MODEL.FPN.NORM, cfg.MODEL.ROI_BOX_HEAD.NORM, cfg.MODEL.ROI_MASK_HEAD.NORM} == {
        "BN"
    }


@needs_library
def test_processes_without_gpus_synchronise_their_norms_too() -> None:
    of = params_of(detection_protocol("coco_mask_rcnn_fpn_1x.mmselfsup@1"))
    norms = {gpu: configuration(of, card(), 80, ranks=2, gpu=gpu).MODEL.RESNETS.NORM for gpu in (True, False)}
    assert norms == {True: "SyncBN", False: "naiveSyncBN"}


def test_an_encoder_that_is_no_resnet_is_refused_in_one_sentence() -> None:
    with pytest.raises(InputError, match=r"an encoder: detection protocols are for ResNets: timm:vit_small is no"):
        configuration(params_of(PUBLISHED[0]), card("timm:vit_small"), 20)


def test_a_scaled_schedule_is_in_the_id() -> None:
    protocol = detection_protocol("voc0712_det.moco@1").changed(scaled_batch=4, schedule=0.5, trials=1)
    assert protocol.id == "voc0712_det.moco@1+scaled_batch=4+schedule=0.5+trials=1"
    solver = params_of(protocol).solver()
    assert (solver.batch_size, solver.lr) == (4, pytest.approx(0.005))
    assert (solver.iterations, solver.steps, solver.warmup_iterations) == (48_000, (36_000, 44_000), 400)


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InputError, match="must be positive and in ascending order"):
        PUBLISHED[0].changed(steps=(22_000, 18_000))
    for protocol in PUBLISHED:
        if protocol.params["steps"]:  # a shorter run would keep its rate to the end without a word
            with pytest.raises(InputError, match=r"lie within the 1000 iterations: set both, or .* schedule=0\.5"):
                protocol.changed(iterations=1000)
    assert PUBLISHED[0].changed(iterations=1000, steps=(700, 900)).id.endswith("+iterations=1000+steps=700,900")


@needs_library
def test_a_key_that_detectron2_does_not_have_is_named() -> None:
    protocol = PUBLISHED[0].changed(config={"MODEL.RPN.NO_SUCH": 1})
    with pytest.raises(InputError, match=r"cannot have MODEL\.RPN\.NO_SUCH=1"):
        configuration(params_of(protocol), card(), 20)


def test_without_detectron2_one_sentence_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("benchmarks.training.trials.find_spec", lambda name: None)
    none = Labels(ids=(), paths=(), classes=(), targets=np.zeros((0, 0)), groups=())
    encoder = load_encoder("random:resnet18-w8:0")
    with pytest.raises(InputError, match="needs detectron2, which is not installed; run `make setup-transfer`"):
        VocDetection().run(PUBLISHED[0], encoder, none, none, tmp_path, RunOptions())


@pytest.mark.parametrize(
    ("command", "dataset", "embedded", "expected"),
    [
        ("voc-det", None, False, "voc0712_det.moco@1"),
        ("voc-det", None, True, "voc0712_det.demo@1"),
        ("coco-det", None, False, "coco_mask_rcnn_fpn_1x.mmselfsup@1"),
        ("coco-det", None, True, "coco_mask_rcnn_fpn.demo@1"),
        ("coco-keypoints", None, False, "coco_keypoint_fpn_2x.moco@1"),
        ("lvis-det", "lvis_v0.5", False, "lvis_v0_5_mask_rcnn_fpn_1x.moco@1"),
        ("cityscapes-det", None, False, "cityscapes_mask_rcnn_fpn.moco@2"),
    ],
)
def test_commands_have_their_protocols(command: str, dataset: str | None, embedded: bool, expected: str) -> None:
    assert load_task(command)().default_protocol(embedded=embedded, dataset=dataset).id == expected

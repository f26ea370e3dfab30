"""The encoder in the detector: every tensor, the same maps, one step's loss."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.detection.model import build, check_backbone, configuration
from benchmarks.detection.protocols import DetectionParams
from benchmarks.encoders.encoder import Encoder
from benchmarks.encoders.export import write_detectron2
from benchmarks.encoders.load import load_encoder
from tests.benchmarks.detection.protocol import detection_protocol

pytestmark = [
    pytest.mark.skipif(not find_spec("detectron2"), reason="detectron2 is not installed: make setup-transfer"),
    pytest.mark.filterwarnings("ignore"),
]

C4, FPN = "voc0712_det.moco@1", "coco_mask_rcnn_fpn_1x.moco@1"


def built(encoder: Encoder, identifier: str, folder: Path, **changes: Any) -> tuple[Any, Any]:
    from detectron2.checkpoint import DetectionCheckpointer

    params = DetectionParams.model_validate(detection_protocol(identifier).params).changed(**changes)
    cfg = configuration(params, encoder.card, 3).clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    torch.manual_seed(0)
    model = build(cfg)
    write_detectron2(encoder, folder / "encoder.pkl")
    DetectionCheckpointer(model).load(str(folder / "encoder.pkl"))
    return model, cfg


@pytest.mark.parametrize(
    ("encoder", "identifier"),
    [
        ("random:resnet18-w8-k3-nopool:0", C4),
        ("random:resnet18-w8:0", FPN),
        ("random:resnet50-w8:0", C4),
        ("random:resnext50_32x4d-w16:0", FPN),
        ("random:resnet50-w8:0", "coco_retinanet_fpn.mmselfsup@1"),
        ("random:resnet50-w8:0", "voc0712_det_dilated_c5.moco@1"),
    ],
)
def test_every_backbone_tensor_is_the_checkpoints(encoder: str, identifier: str, tmp_path: Path) -> None:
    of = load_encoder(encoder)
    model, cfg = built(of, identifier, tmp_path)
    check_backbone(of, model)
    new = [name for name in model.state_dict() if "res5.norm" in name]
    assert bool(new) == cfg.ENCODER.EXTRA_NORM
    name = "roi_heads.res5.0.conv1.weight" if identifier == C4 else "backbone.bottom_up.res5.0.conv1.weight"
    tensors = model.state_dict()
    with torch.no_grad():
        tensors[name if name in tensors else "backbone.res5.0.conv1.weight"].add_(1)
    with pytest.raises(RuntimeError, match=r"1 of the backbone's tensors are not the checkpoint's: res5\.0\.conv1\.w"):
        check_backbone(of, model)


@pytest.mark.parametrize("encoder", ["random:resnet18-w8-k3-nopool:0", "random:resnet50-w8:0"])
def test_the_maps_are_the_encoders(encoder: str, tmp_path: Path) -> None:
    of = load_encoder(encoder)
    model, _ = built(of, FPN, tmp_path)
    pixels = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model.eval()
    with torch.no_grad():
        images = model.preprocess_image([{"image": pixels[0]}])
        assert torch.allclose(images.tensor, of.normalise(pixels), atol=1e-5)
        theirs = model.backbone.bottom_up(images.tensor)
        ours = of.module.stages(of.normalise(pixels))[1:]
    for name, expected in zip(("res2", "res3", "res4", "res5"), ours, strict=True):
        torch.testing.assert_close(theirs[name], expected, rtol=1e-4, atol=1e-4)


def test_one_steps_loss_is_that_of_detectron2s_stock_model(tmp_path: Path) -> None:
    from detectron2 import model_zoo
    from detectron2.modeling import build_model
    from detectron2.structures import Boxes, Instances
    from detectron2.utils.events import EventStorage

    of = load_encoder("random:resnet50-w8:0")
    ours, _ = built(of, C4, tmp_path, extra_norm=False)
    stock = model_zoo.get_config("PascalVOC-Detection/faster_rcnn_R_50_C4.yaml")
    stock.MODEL.DEVICE = "cpu"
    stock.MODEL.WEIGHTS = ""
    stock.MODEL.RESNETS.NORM = "BN"
    stock.MODEL.RESNETS.STEM_OUT_CHANNELS = 8
    stock.MODEL.RESNETS.WIDTH_PER_GROUP = 8
    stock.MODEL.RESNETS.RES2_OUT_CHANNELS = 32
    stock.MODEL.RESNETS.STRIDE_IN_1X1 = False
    stock.MODEL.BACKBONE.FREEZE_AT = 0
    stock.MODEL.ROI_HEADS.NUM_CLASSES = 3
    stock.MODEL.PIXEL_MEAN = [123.675, 116.28, 103.53]
    stock.MODEL.PIXEL_STD = [58.395, 57.12, 57.375]
    theirs = build_model(stock)
    theirs.load_state_dict(ours.state_dict(), strict=True)

    truth = Instances((64, 96))
    truth.gt_boxes = Boxes(torch.tensor([[10.0, 10.0, 60.0, 50.0], [30.0, 5.0, 90.0, 60.0]]))
    truth.gt_classes = torch.tensor([1, 2])
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    losses = []
    for model in (ours, theirs):
        torch.manual_seed(7)
        with EventStorage():
            losses.append({k: float(v) for k, v in model([{"image": image, "instances": truth}]).items()})
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert set(losses[0]) == {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"}


def test_an_objects_best_anchor_is_positive_only_where_it_is_good_enough(tmp_path: Path) -> None:
    of = load_encoder("random:resnet18-w8:0")
    model, _ = built(of, "voc0712_det.mmselfsup@1", tmp_path)
    overlaps = torch.tensor([[0.2, 0.1, 0.0], [0.1, 0.35, 0.0]])
    _, labels = model.proposal_generator.anchor_matcher(overlaps)
    assert labels.tolist() == [0, 1, 0]
    stock, _ = built(of, C4, tmp_path)
    _, labels = stock.proposal_generator.anchor_matcher(overlaps)
    assert labels.tolist() == [1, 1, 0]

"""`make setup-transfer` gives a detectron2 and an mmsegmentation that build a model and run it on the CPU."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.skipif(
        not (find_spec("detectron2") and find_spec("mmseg")),
        reason="detectron2 and mmsegmentation are not installed: make setup-transfer",
    ),
    pytest.mark.filterwarnings("ignore"),  # deprecations inside the two libraries
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "config", ["COCO-Detection/faster_rcnn_R_50_C4_1x.yaml", "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"]
)
def test_detectron2_model_trains_and_detects(config: str) -> None:
    from detectron2 import model_zoo
    from detectron2.modeling import build_model
    from detectron2.structures import BitMasks, Boxes, Instances
    from detectron2.utils.events import EventStorage

    cfg = model_zoo.get_config(config)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.RESNETS.NORM = "BN"  # frozen batch norms would let random weights overflow
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    torch.manual_seed(0)
    model = build_model(cfg)
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)

    truth = Instances((64, 96))
    truth.gt_boxes = Boxes(torch.tensor([[10.0, 10.0, 60.0, 50.0]]))
    truth.gt_classes = torch.tensor([1])
    mask = torch.zeros(1, 64, 96, dtype=torch.bool)
    mask[:, 10:50, 10:60] = True
    truth.gt_masks = BitMasks(mask)
    with EventStorage():
        losses = model([{"image": image, "instances": truth}])
    assert {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"} <= set(losses)
    assert torch.isfinite(sum(losses.values()))

    model.eval()
    with torch.inference_mode():
        found = model([{"image": image, "height": 128, "width": 192}])[0]["instances"]
    assert len(found) > 0
    assert found.image_size == (128, 192)
    assert set(found.pred_classes.tolist()) <= {0, 1, 2}
    assert found.has("pred_masks") == cfg.MODEL.MASK_ON


@pytest.mark.slow
def test_mmseg_fcn_segments() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mmseg
        from mmengine.config import Config
        from mmengine.model import revert_sync_batchnorm
        from mmseg.registry import MODELS
        from mmseg.utils import register_all_modules

    register_all_modules(init_default_scope=True)
    config = Config.fromfile(Path(mmseg.__file__).parent / ".mim/configs/_base_/models/fcn_r50-d8.py").model
    config.pretrained = None
    config.backbone.type = "ResNet"
    config.decode_head.num_classes = config.auxiliary_head.num_classes = 4
    torch.manual_seed(0)
    model = revert_sync_batchnorm(MODELS.build(config)).eval()
    assert not any(isinstance(m, torch.nn.SyncBatchNorm) for m in model.modules())
    with torch.inference_mode():
        logits = model(torch.randn(1, 3, 64, 96), mode="tensor")
    assert logits.shape == (1, 4, 64 // 8, 96 // 8)
    assert torch.isfinite(logits).all()

"""detectron2 and OpenMMLab read the files: every key of the backbone matched, and the stages give the same maps."""

from __future__ import annotations

import logging
import pickle
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.encoders.encoder import Encoder
from benchmarks.encoders.export import (
    detectron2_settings,
    openmmlab_settings,
    write_detectron2,
    write_openmmlab,
    write_torchvision,
)
from benchmarks.encoders.networks import resnet_encoder
from pretrain.resnet import ResNet
from pretrain.weight_files import weights_sha256
from results.schema import Architecture, EncoderCard

needs_detectron2 = pytest.mark.skipif(not find_spec("detectron2"), reason="no detectron2: make setup-transfer")
needs_mmseg = pytest.mark.skipif(not find_spec("mmseg"), reason="no mmsegmentation: make setup-transfer")
pytestmark = pytest.mark.filterwarnings("ignore")  # deprecations inside the two libraries

STAGES = tuple(f"feature{n}" for n in (2, 3, 4, 5))


def trained_like(architecture: Architecture) -> Encoder:
    """Norms that do something, and other than the defaults, so that a tensor in the wrong place shows."""
    torch.manual_seed(1)
    backbone = ResNet(architecture)
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.0)
            torch.nn.init.normal_(module.bias, std=0.1)
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.8, 1.5)
    card = EncoderCard(
        name="test", source="test", architecture=architecture, weights_sha256=weights_sha256(backbone.state_dict())
    )
    return resnet_encoder(card, backbone)


def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def read_by_detectron2(path: Path, encoder: Encoder, norm: str) -> tuple[Any, Any]:
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import get_cfg
    from detectron2.layers import ShapeSpec
    from detectron2.modeling.backbone import build_resnet_backbone

    cfg = get_cfg()
    cfg.merge_from_list([part for pair in detectron2_settings(encoder.card).items() for part in pair])
    cfg.MODEL.RESNETS.OUT_FEATURES = ["stem", "res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.NORM = norm
    model = build_resnet_backbone(cfg, ShapeSpec(channels=3)).eval()
    checkpointer = DetectionCheckpointer(model)
    incompatible: list[Any] = []
    load = checkpointer._load_model
    checkpointer._load_model = lambda found: incompatible.append(load(found)) or incompatible[0]
    checkpointer.load(str(path))
    return model, incompatible[0]


@pytest.mark.slow
@needs_detectron2
@pytest.mark.parametrize(
    "architecture",
    [
        Architecture(name="resnet18"),
        Architecture(name="resnet50", width=32),
        Architecture(name="resnet50", stride_in_1x1=True),
        Architecture(name="resnext50_32x4d"),
        Architecture(name="wide_resnet50_2", width=32),
    ],
    ids=lambda a: f"{a.name}-w{a.width}{'-1x1' if a.stride_in_1x1 else ''}",
)
def test_detectron2_runs_the_same_backbone(tmp_path: Path, architecture: Architecture) -> None:
    encoder = trained_like(architecture)
    write_detectron2(encoder, tmp_path / "out.pkl")
    model, incompatible = read_by_detectron2(tmp_path / "out.pkl", encoder, "BN")
    assert (incompatible.missing_keys, incompatible.unexpected_keys, incompatible.incorrect_shapes) == ([], [], [])
    with torch.inference_mode():
        found = model(images())
    expected = encoder.outputs(images(), {"feature1", *STAGES})
    pooled = torch.nn.functional.max_pool2d(expected["feature1"], 3, 2, 1)
    for name, wanted in zip(
        ("stem", "res2", "res3", "res4", "res5"), (pooled, *(expected[s] for s in STAGES)), strict=True
    ):
        torch.testing.assert_close(found[name], wanted, atol=1e-5, rtol=1e-5)


@needs_detectron2
def test_detectron2s_frozen_norm_leaves_only_the_counters(tmp_path: Path) -> None:
    encoder = trained_like(Architecture(name="resnet18"))
    write_detectron2(encoder, tmp_path / "out.pkl")
    _, incompatible = read_by_detectron2(tmp_path / "out.pkl", encoder, "FrozenBN")
    assert incompatible.missing_keys == []
    assert all(key.endswith("num_batches_tracked") for key in incompatible.unexpected_keys)


@pytest.mark.slow
@needs_detectron2
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_the_file_equals_that_of_detectron2s_own_converter(tmp_path: Path, name: str) -> None:
    tool = next((p for p in (Path(d) / "tools/convert-torchvision-to-d2.py" for d in sys.path) if p.is_file()), None)
    if tool is None:
        pytest.skip("this detectron2 came without its tools folder")
    encoder = trained_like(Architecture(name=name))
    write_torchvision(encoder, tmp_path / "in.pth")
    subprocess.run(
        [sys.executable, tool, tmp_path / "in.pth", tmp_path / "theirs.pkl"], check=True, capture_output=True
    )
    write_detectron2(encoder, tmp_path / "ours.pkl")
    theirs, ours = (pickle.loads((tmp_path / f).read_bytes()) for f in ("theirs.pkl", "ours.pkl"))
    assert list(ours["model"]) == list(theirs["model"])
    assert all(
        np.array_equal(ours["model"][k], v) and ours["model"][k].dtype == v.dtype for k, v in theirs["model"].items()
    )
    assert ours["matching_heuristics"] == theirs["matching_heuristics"]


@pytest.mark.slow
@needs_mmseg
@pytest.mark.parametrize(
    "architecture",
    [
        Architecture(name="resnet18", width=32, bn_eps=1e-3),
        Architecture(name="resnet50"),
        Architecture(name="resnet50", width=32, stride_in_1x1=True),
        Architecture(name="resnext50_32x4d"),
    ],
    ids=lambda a: f"{a.name}-w{a.width}{'-1x1' if a.stride_in_1x1 else ''}",
)
def test_openmmlab_runs_the_same_backbone(tmp_path: Path, architecture: Architecture) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mmengine.runner import load_checkpoint
        from mmseg.registry import MODELS
        from mmseg.utils import register_all_modules
    register_all_modules(init_default_scope=True)
    encoder = trained_like(architecture)
    write_openmmlab(encoder, tmp_path / "out.pth")
    settings = openmmlab_settings(encoder.card)
    model = MODELS.build(
        {**settings["backbone"], "norm_cfg": {"type": "BN", "requires_grad": True, **settings["norm_cfg"]}}
    )
    load_checkpoint(model, str(tmp_path / "out.pth"), strict=True, logger=logging.getLogger("strict load"))
    model.eval()  # returns nothing there
    with torch.inference_mode():
        found = model(images())
    expected = encoder.outputs(images(), STAGES)
    for map_, name in zip(found, STAGES, strict=True):
        torch.testing.assert_close(map_, expected[name], atol=1e-5, rtol=1e-5)


@needs_mmseg
def test_openmmlab_reads_it_through_init_cfg(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mmseg.registry import MODELS
        from mmseg.utils import register_all_modules
    register_all_modules(init_default_scope=True)
    encoder = trained_like(Architecture(name="resnet18", width=16))
    write_openmmlab(encoder, tmp_path / "out.pth")
    init = {"type": "Pretrained", "checkpoint": str(tmp_path / "out.pth")}
    model = MODELS.build({**openmmlab_settings(encoder.card)["backbone"], "init_cfg": init})
    model.init_weights()
    assert weights_sha256(model.state_dict()) == encoder.card.weights_sha256

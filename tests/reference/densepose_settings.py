"""The keys of detectron2's DensePose project that a protocol changes, at its defaults, where it is not installed."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest

PREFIX = "https://dl.fbaipublicfiles.com/densepose/data/"


def add_densepose_config(cfg: Any) -> None:
    """As the project's function of this name, for its chart head."""
    from detectron2.config import CfgNode

    cfg.MODEL.DENSEPOSE_ON = True
    cfg.MODEL.ROI_DENSEPOSE_HEAD = CfgNode(
        {
            "NAME": "",
            "NUM_STACKED_CONVS": 8,
            "CONV_HEAD_DIM": 512,
            "NUM_COARSE_SEGM_CHANNELS": 2,
            "POOLER_TYPE": "ROIAlignV2",
            "POOLER_RESOLUTION": 28,
            "POOLER_SAMPLING_RATIO": 2,
            "DECODER_ON": True,
            "DECODER_COMMON_STRIDE": 4,
        }
    )


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts modules of the project's names in its place, unless it is installed."""
    if find_spec("densepose"):
        return
    root = ModuleType("densepose")
    root.add_densepose_config = add_densepose_config  # type: ignore[attr-defined]
    lists = ModuleType("densepose.data.datasets.coco")
    lists.DENSEPOSE_METADATA_URL_PREFIX = PREFIX  # type: ignore[attr-defined]
    for name in ("densepose.data", "densepose.data.datasets"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "densepose", root)
    monkeypatch.setitem(sys.modules, "densepose.data.datasets.coco", lists)

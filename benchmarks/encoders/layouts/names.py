"""How each naming scheme calls the tensors of a ResNet or ViT, told in torchvision's and timm's names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

# (pattern, replacement) pairs, applied in turn to a key without its prefix. A key that they leave as it is keeps its
# name, and is left over if no tensor of the network is called so.
Rules = Sequence[tuple[str, str]]


def _children(stages: Mapping[int, str]) -> Rules:
    return [(rf"^{index}\.", f"{name}.") for index, name in stages.items()]


SCHEMES: dict[str, Rules] = {
    "torchvision": [],
    "vissl": [(r"^(base_model\.)?_feature_blocks\.", "")],
    "sequential": _children({0: "conv1", 1: "bn1", 4: "layer1", 5: "layer2", 6: "layer3", 7: "layer4"}),
    "sequential without max-pool": _children(
        {0: "conv1", 1: "bn1", 3: "layer1", 4: "layer2", 5: "layer3", 6: "layer4"}
    ),
    "detectron2": [
        (r"^stem\.", ""),
        *((rf"^res{n + 1}\.", f"layer{n}.") for n in (1, 2, 3, 4)),
        (r"shortcut\.norm\.", "downsample.1."),
        (r"shortcut\.", "downsample.0."),
        (r"conv(\d)\.norm\.", r"bn\1."),
    ],
    "caffe2": [
        (r"^(res_)?conv1_bn_", "bn1."),
        (r"^conv1_", "conv1."),
        *((rf"^res{n + 1}_(\d+)_", rf"layer{n}.\1.") for n in (1, 2, 3, 4)),
        (r"branch1_bn_", "downsample.1."),
        (r"branch1_", "downsample.0."),
        *((rf"branch2{letter}_bn_", f"bn{n}.") for n, letter in enumerate("abc", start=1)),
        *((rf"branch2{letter}_", f"conv{n}.") for n, letter in enumerate("abc", start=1)),
        (r"\.(w|s|gamma)$", ".weight"),
        (r"\.(b|beta)$", ".bias"),
        (r"\.rm$", ".running_mean"),
        (r"\.riv$", ".running_var"),
    ],
    "dinov2": [(r"^register_tokens$", "reg_token")],
}


def renamed(key: str, scheme: str) -> str:
    """The canonical name of a key."""
    for pattern, replacement in SCHEMES[scheme]:
        key = re.sub(pattern, replacement, key)
    return key

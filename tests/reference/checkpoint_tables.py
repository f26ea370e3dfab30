"""Checkpoints of known networks in the names that a literal key table of their source gives.

A line of tests/benchmarks/encoders/keys/*.txt is a source's name and torchvision's for the same tensor, `-` where it is
no part of the backbone, `-zero` for a bias of zeros. Most tables were printed by the sources' own code, none by this
project's; the prefixes of solo-learn, Lightning and detectron2's detector were written down from memory.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from pretrain.resnet import ResNet
from results.schema import Architecture

KEYS = Path(__file__).parents[1] / "benchmarks" / "encoders" / "keys"
NARROW = Architecture(name="resnet50", width=8)

# Sources that build their encoder as it is in another table and put it below one attribute or several: the table, the
# place that is read, the other places, and keys that are no part of the backbone.
BELOW: dict[str, tuple[str, str, tuple[str, ...], tuple[str, ...]]] = {
    # open-mmlab/mmselfsup 6faad81 models/algorithms/byol.py and simsiam.py, necks/nonlinear_neck.py
    "mmselfsup_0x_byol": ("torchvision", "backbone.", ("online_net.0.", "target_net.0."),
                          ("online_net.1.fc0.weight", "target_net.1.fc0.weight", "neck.fc0.weight",
                           "head.predictor.fc0.weight")),
    "mmselfsup_0x_simsiam": ("torchvision", "backbone.", ("encoder.0.",), ("encoder.1.fc0.weight", "neck.fc0.weight")),
    # open-mmlab/mmselfsup 1.x models/algorithms/byol.py, base.py (SimSiam's), mmengine model/averaged_model.py
    "mmselfsup_1x_byol": ("torchvision", "backbone.", ("target_net.module.0.",),
                          ("target_net.steps", "target_net.module.1.fc0.weight", "neck.fc0.weight")),
    "mmselfsup_1x_simsiam": ("torchvision", "backbone.", (), ("neck.fc0.weight", "head.predictor.fc0.weight")),
    # vturrisi/solo-learn before 1.0.3 solo/methods/base.py and momentum_base
    "solo_learn_encoder": ("torchvision", "encoder.", ("momentum_encoder.",), ("classifier.weight", "classifier.bias")),
    # facebookresearch/detectron2 02b5c4e modeling/backbone/fpn.py, its norms synchronised
    "detectron2_fpn": ("detectron2", "backbone.bottom_up.", (),
                       ("backbone.fpn_lateral2.weight", "backbone.fpn_output5.bias",
                        "proposal_generator.rpn_head.conv.weight", "roi_heads.box_head.fc1.weight")),
    # lightly-ai/lightly e8d317f benchmarks/imagenet/resnet50/{mocov2,dino}.py, examples/pytorch_lightning/dino.py,
    # printed from a checkpoint that Lightning's Trainer saved of these modules
    "lightly": ("torchvision", "backbone.", ("key_backbone.",),
                ("projection_head.layers.0.weight", "key_projection_head.layers.0.weight",
                 "online_classifier.classification_head.weight",
                 "online_classifier.classification_head.bias")),
    "lightly_dino": ("torchvision", "backbone.", ("student_backbone.",),
                     ("projection_head.layers.0.weight", "projection_head.layers.0.bias",
                      "projection_head.last_layer.weight_g", "projection_head.last_layer.weight_v",
                      "student_projection_head.layers.0.weight", "criterion.center",
                      "online_classifier.classification_head.weight")),
    "lightly_example_dino": ("sequential", "teacher_backbone.", ("student_backbone.",),
                             ("student_head.layers.0.weight", "teacher_head.layers.0.weight",
                              "teacher_head.last_layer.weight_g", "criterion.center")),
    "lightning": ("torchvision", "backbone.", (), ("head.weight", "head.bias", "criterion.weight")),
    **{f"attribute_{name}": ("torchvision", f"{name}.", (), (f"{name}.fc.weight", "projection.0.weight"))
       for name in ("backbone", "encoder", "model", "net", "network", "resnet")},
}  # fmt: skip


def table(name: str) -> list[tuple[str, str]]:
    if name in BELOW:
        base, place, twins, others = BELOW[name]
        rows = [(source, ours) for source, ours in table(base) if ours != "-"]
        return [
            *((f"{place}{source}", ours) for source, ours in rows),
            *((f"{twin}{source}", "-") for twin in twins for source, _ in rows),
            *((other, "-") for other in others),
        ]
    if name == "sequential":
        whole = [(source.removeprefix("backbone."), ours) for source, ours in table("sequential_backbone")]
        return [row for row in whole if row[1] != "-"] + [("9.weight", "-")]
    name = "sequential_backbone" if name == "lightly_example" else name
    lines = (KEYS / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return [(source, ours) for source, ours in (line.split(" ") for line in lines[1:])]


def network(architecture: Architecture = NARROW, seed: int = 0) -> ResNet:
    """Random weights and random statistics, so that no two tensors are alike."""
    torch.manual_seed(seed)
    net = ResNet(architecture)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_()
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return net.eval()


def named(rows: list[tuple[str, str]], net: nn.Module) -> dict[str, Tensor]:
    """The network's tensors under a source's names; what is no part of the backbone holds a few numbers."""
    state = net.state_dict()
    zero = torch.zeros(1)
    return {source: state[ours].clone() if ours in state else zero.clone() for source, ours in rows}

"""A checkpoint in every layout, named by a literal key table from its source, against the network it was made of."""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from benchmarks.encoders.forms import RELEASES
from benchmarks.encoders.layouts import LAYOUTS
from benchmarks.encoders.load import load_encoder
from benchmarks.task import InputError
from pretrain.weight_files import weights_sha256, write_backbone
from results.schema import Architecture, EncoderCard
from tests.benchmarks.encoders.same_forward import D2, assert_same_forward, strided_in_1x1
from tests.reference.checkpoint_tables import NARROW, named, network, table

ASSUMED = {"mean", "std", "value_range", "channels", "stem_stride", "max_pool", "bn_eps", "stride_in_1x1"}
NETWORK = {"stem_stride", "max_pool", "bn_eps", "stride_in_1x1"}


class Case(NamedTuple):
    layout: str
    wrap: Callable[[dict[str, Tensor]], Any] = lambda t: {"state_dict": t}
    assumed: set[str] = ASSUMED
    facts: tuple[str, ...] = ()
    known: Mapping[str, Any] = {}


def training(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """As a PyTorch training script saves it."""
    momentum = {0: {"momentum_buffer": torch.zeros(3)}}
    return {"epoch": 200, "arch": "resnet50", "state_dict": tensors, "optimizer": {"state": momentum}}


def lightning(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """As Lightning 2.6's Trainer.save_checkpoint does."""
    return {"epoch": 0, "global_step": 0, "pytorch-lightning_version": "2.6.1", "state_dict": tensors, "loops": {},
            "callbacks": {}, "optimizer_states": [], "lr_schedulers": [], "hparams_name": "kwargs",
            "hyper_parameters": {"batch_size_per_device": 2, "num_classes": 10}}  # fmt: skip


CASES = {
    "moco_v1": Case("facebookresearch/moco: encoder_q", training, set(), known={"method": "MoCo v1", "epochs": 200}),
    "moco_v2": Case("facebookresearch/moco: encoder_q", training, set(), known={"method": "MoCo v2", "epochs": 200}),
    "moco_v3_resnet50": Case("facebookresearch/moco-v3: base_encoder", training, set(), known={"method": "MoCo v3"}),
    "simsiam": Case("facebookresearch/simsiam", training, set(), known={"method": "SimSiam", "epochs": 200}),
    "swav": Case("facebookresearch/swav", training, set(), known={"std": (0.228, 0.224, 0.225)}),
    "barlow_twins": Case("Barlow Twins or VICReg", lambda t: {"epoch": 300, "model": t}, set(), known={"epochs": 300}),
    "vicreg": Case("Barlow Twins or VICReg", lambda t: {"epoch": 100, "model": t, "optimizer": {}}, set()),
    "dino_resnet50": Case(
        "facebookresearch/dino: teacher",
        lambda t: {"student": {k: v + 1 for k, v in t.items()}, "teacher": t, "epoch": 800,
                   "args": argparse.Namespace(arch="resnet50", lr=np.float64(0.1))},
        set(), known={"method": "DINO", "epochs": 800},
    ),
    "simclr_sthalles": Case("sthalles/SimCLR", training, ASSUMED - NETWORK, known={"method": "SimCLR"}),
    "byol_lucidrains": Case("lucidrains/byol-pytorch: online", lambda t: t),
    "mmselfsup_0x_moco": Case("mmselfsup 0.x: backbone", lambda t: {"meta": {"epoch": 200}, "state_dict": t}),
    "mmselfsup_1x_moco": Case("mmselfsup 1.x: backbone", lambda t: {"meta": {}, "state_dict": t, "message_hub": {}}),
    "openmmlab_extracted": Case("extracted OpenMMLab backbone", lambda t: {"state_dict": t, "author": "MMSelfSup"}),
    "vissl_trunk": Case(
        "VISSL", lambda t: {"classy_state_dict": {"base_model": {"model": {"trunk": t, "heads": {}}}}, "iteration": 3},
        ASSUMED - NETWORK,
    ),
    "solo_learn_mocov2plus": Case(
        "solo-learn: backbone", lambda t: {"pytorch-lightning_version": "1.6", "state_dict": t}, ASSUMED - NETWORK
    ),
    "sequential_backbone": Case("Sequential backbone"),
    "lightly_example": Case("lightly example", lambda t: lightning(t)),
    "lightly_example_dino": Case("lightly example with a teacher: teacher_backbone", lambda t: lightning(t)),
    "lightly": Case("lightly: backbone", lambda t: lightning(t)),
    "lightly_dino": Case("lightly DINO: backbone", lambda t: lightning(t)),
    "torchvision": Case("torchvision names", lambda t: t),
    "mmselfsup_0x_byol": Case("mmselfsup 0.x BYOL: backbone", lambda t: {"meta": {}, "state_dict": t},
                              known={"method": "BYOL"}),
    "mmselfsup_0x_simsiam": Case("mmselfsup 0.x SimSiam: backbone", lambda t: {"meta": {}, "state_dict": t},
                                 known={"method": "SimSiam"}),
    "mmselfsup_1x_byol": Case("mmselfsup 1.x BYOL: backbone", lambda t: {"meta": {}, "state_dict": t},
                              known={"method": "BYOL"}),
    "mmselfsup_1x_simsiam": Case("OpenMMLab", lambda t: {"meta": {"epoch": 100}, "state_dict": t, "optimizer": {}}),
    "solo_learn_encoder": Case("solo-learn before 1.0.3: encoder", training, ASSUMED - NETWORK),
    "detectron2_fpn": Case("detectron2 detector", lambda t: {"model": t, "optimizer": {}, "iteration": 89999},
                           {"stem_stride", "max_pool", "bn_eps"}, D2, {"channels": "BGR", "std": (1.0, 1.0, 1.0)}),
    "sequential": Case("Sequential", lambda t: {"state_dict": t}),
    "lightning": Case("Lightning", lambda t: {"epoch": 9, "global_step": 7, "pytorch-lightning_version": "2.4.0",
                                              "state_dict": t, "loops": {}, "callbacks": {}, "optimizer_states": []}),
    **{f"attribute_{name}": Case(f"{name}.*", lambda t: {"model": t, "epoch": 3})
       for name in ("backbone", "encoder", "model", "net", "network", "resnet")},
}  # fmt: skip
ELSEWHERE = {  # rows whose tests are further down, in test_facts.py, test_timm_models.py or test_vit_families.py
    "bytedance/ibot", "DINOv3", "facebookresearch/ijepa",
    "encoder-bench run", "facebookresearch/moco CIFAR notebook", "VISSL trunk", "detectron2", "Caffe2", "DINOv2",
    "ViT of timm's names", "lightly ViT", "lightly ViT with a teacher", "CAPI", "facebookresearch/capi", "NVlabs/RADIO",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CASES))
def test_every_layout_gives_the_forward_pass_bit_by_bit(name: str, tmp_path: Path) -> None:
    case, net, rows = CASES[name], network(), table(name)
    torch.save(case.wrap(named(rows, net)), tmp_path / "some_file.pth")
    card = assert_same_forward(tmp_path / "some_file.pth", net, facts=case.facts)
    assert card.layout == case.layout
    assert set(card.assumed) == case.assumed
    assert bool(card.not_shown) == bool(case.assumed & NETWORK)  # said where nothing settles the network
    assert card.architecture == NARROW
    assert card.keys_matched == len([row for row in rows if row[1] in net.state_dict()]) == 318
    assert card.keys_unused >= len(rows) - 318
    for field, value in case.known.items():
        assert getattr(card, field) == value


def test_every_row_of_the_tables_has_its_source_and_releases_name_layouts_that_there_are() -> None:
    names = {layout.name for layout in LAYOUTS}
    assert len(names) == len(LAYOUTS)
    assert {case.layout.partition(": ")[0] for case in CASES.values()} | ELSEWHERE == names  # each has a test
    assert all(layout.source and layout.marks and layout.picks for layout in LAYOUTS)
    table = tomllib.loads(RELEASES.read_text(encoding="utf-8"))
    for row in table["release"]:
        assert row["source"]
        assert set(row["layout"]) <= names
        assert row.get("network", "torchvision") in table["network"]
        assert row.get("pixels", "imagenet") in table["pixels"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "start", "other", "pick"),
    [
        ("moco_v2", "module.encoder_q.", "module.encoder_k.", "encoder_k"),
        ("moco_v3_resnet50", "module.base_encoder.", "module.momentum_encoder.", "momentum_encoder"),
        ("mmselfsup_0x_moco", "backbone.", "encoder_k.0.", "encoder_k"),
        ("mmselfsup_1x_moco", "backbone.", "encoder_k.module.0.", "encoder_k"),
        ("solo_learn_mocov2plus", "backbone.", "momentum_backbone.", "momentum_backbone"),
        ("byol_lucidrains", "online_encoder.net.", "target_encoder.net.", "target"),
        ("mmselfsup_0x_byol", "backbone.", "target_net.0.", "target_net"),
        ("mmselfsup_1x_byol", "backbone.", "target_net.module.0.", "target_net"),
        ("solo_learn_encoder", "encoder.", "momentum_encoder.", "momentum_encoder"),
        ("lightly", "backbone.", "key_backbone.", "key_backbone"),
        ("lightly_dino", "backbone.", "student_backbone.", "student_backbone"),
        ("lightly_example_dino", "teacher_backbone.", "student_backbone.", "student_backbone"),
    ],
)
def test_pick_takes_the_other_encoder(name: str, start: str, other: str, pick: str, tmp_path: Path) -> None:
    rows, query, key = table(name), network(), network(seed=1)
    tensors = named(rows, query)
    twins = {source.replace(start, other): key.state_dict()[ours] for source, ours in rows if ours in key.state_dict()}
    assert set(twins) <= set(tensors)
    torch.save(CASES[name].wrap({**tensors, **twins}), tmp_path / "c.pth")
    assert_same_forward(tmp_path / "c.pth", query)
    card = assert_same_forward(tmp_path / "c.pth", key, facts=[f"pick={pick}"])
    assert card.layout.endswith(pick)
    with pytest.raises(InputError, match=f"has no 'teacher'; pick one of .*{pick}"):
        load_encoder(tmp_path / "c.pth", facts=["pick=teacher"])


@pytest.mark.slow
def test_dino_student_and_an_averaged_model_are_picked_by_name(tmp_path: Path) -> None:
    rows, teacher, student = table("dino_resnet50"), network(), network(seed=1)
    torch.save({"teacher": named(rows, teacher), "student": named(rows, student)}, tmp_path / "dino.pth")
    assert_same_forward(tmp_path / "dino.pth", teacher)
    assert_same_forward(tmp_path / "dino.pth", student, facts=["pick=student"])
    plain = {"state_dict_ema": student.state_dict(), "state_dict": teacher.state_dict()}
    torch.save(plain, tmp_path / "timm.pth")
    assert_same_forward(tmp_path / "timm.pth", teacher)
    assert_same_forward(tmp_path / "timm.pth", student, facts=["pick=state_dict_ema"])


def test_end_to_end_moco_without_a_queue_and_a_file_without_the_ddp_prefix(tmp_path: Path) -> None:
    rows = [(source.removeprefix("module."), ours) for source, ours in table("moco_v1") if "queue" not in source]
    net = network()
    torch.save({"state_dict": named(rows, net)}, tmp_path / "c.pth")
    assert assert_same_forward(tmp_path / "c.pth", net).layout == "facebookresearch/moco: encoder_q"


def test_swav_as_the_hub_has_it_and_vissl_trunk_alone(tmp_path: Path) -> None:
    net = network()
    torch.save(named(table("swav"), net), tmp_path / "swav.pth.tar")
    assert assert_same_forward(tmp_path / "swav.pth.tar", net).layout == "facebookresearch/swav"
    torch.save(named(table("vissl_trunk"), net), tmp_path / "trunk.torch")
    assert assert_same_forward(tmp_path / "trunk.torch", net).layout == "VISSL trunk"


def test_cifar_notebook_with_its_head(tmp_path: Path) -> None:
    architecture = Architecture(name="resnet18", width=8, stem_kernel=3, stem_stride=1, max_pool=False)
    net = network(architecture)
    tensors = named(table("moco_cifar_notebook"), net)
    tensors["encoder_q.net.9.weight"], tensors["encoder_q.net.9.bias"] = torch.randn(16, 64), torch.randn(16)
    torch.save({"epoch": 800, "state_dict": tensors}, tmp_path / "model_last.pth")
    encoder = load_encoder(tmp_path / "model_last.pth")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        embed = net(images)
        expected = nn.functional.linear(embed, tensors["encoder_q.net.9.weight"], tensors["encoder_q.net.9.bias"])
    outputs = encoder.outputs(images, ["embed", "head"])
    assert torch.equal(outputs["embed"], embed)
    assert torch.equal(outputs["head"], expected)
    assert encoder.card.architecture == architecture
    assert encoder.card.mean == (0.4914, 0.4822, 0.4465)
    assert encoder.card.assumed == ()
    assert encoder.card.weights_sha256 == weights_sha256(net.state_dict())  # of the backbone alone


def test_heads_of_moco_v2_and_of_simsiam(tmp_path: Path) -> None:
    net = network()
    width = net.channels
    images = torch.randn(2, 3, 64, 64)
    mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 8))
    deep = nn.Sequential(
        nn.Linear(width, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16, bias=False),
        nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8), nn.BatchNorm1d(8, affine=False),
    ).eval()  # fmt: skip
    for name, prefix, head in (("moco_v2", "module.encoder_q.fc.", mlp), ("simsiam", "module.encoder.fc.", deep)):
        tensors = named(table(name), net)
        theirs = {f"{prefix}{key}": tensor for key, tensor in head.state_dict().items()}
        assert set(theirs) <= set(tensors)
        torch.save(training({**tensors, **theirs}), tmp_path / f"{name}.pth")
        encoder = load_encoder(tmp_path / f"{name}.pth")
        with torch.no_grad():
            assert torch.equal(encoder.outputs(images, ["head"])["head"], head(net(images)))
        assert encoder.card.head is not None
        assert encoder.card.head.startswith(f"{width}-")
    whole = training({**named(table("moco_v1"), net), "module.encoder_q.fc.weight": torch.zeros(8, width + 1)})
    torch.save(whole, tmp_path / "other.pth")
    assert not load_encoder(tmp_path / "other.pth").has("head")  # it does not take what this backbone gives


@pytest.mark.parametrize("name", ["resnet34", "resnet101", "resnet152", "resnext50_32x4d", "wide_resnet50_2"])
def test_depth_width_and_groups_are_read_off_the_shapes(name: str, tmp_path: Path) -> None:
    for width in (16, 24) if name == "resnet34" else (16,):
        architecture = Architecture(name=name, width=width)
        net = network(architecture)
        torch.save(net.state_dict(), tmp_path / "c.pth")
        assert assert_same_forward(tmp_path / "c.pth", net).architecture == architecture


def test_files_of_torch_before_1_6_and_before_the_counters(tmp_path: Path) -> None:
    net = network()
    old = {key: tensor for key, tensor in net.state_dict().items() if "num_batches_tracked" not in key}
    assert len(old) == 265
    torch.save({"state_dict": old}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert assert_same_forward(tmp_path / "old.pth", net).keys_matched == 265


def test_half_precision_weights_are_widened(tmp_path: Path) -> None:
    net = network()
    halves = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in net.state_dict().items()}
    torch.save(halves, tmp_path / "half.pth")
    net.load_state_dict(halves)
    assert_same_forward(tmp_path / "half.pth", net)


@pytest.mark.slow
def test_torchvisions_own_resnet50_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.resnet50()
    torch.save(theirs.state_dict(), tmp_path / "r50.pth")
    encoder = load_encoder(f"torchvision:resnet50:{tmp_path / 'r50.pth'}")
    images = torch.randn(1, 3, 64, 64)
    theirs.fc = nn.Identity()
    with torch.no_grad():
        stem = theirs.relu(theirs.bn1(theirs.eval().conv1(images)))
        assert torch.equal(encoder.outputs(images, ["feature1"])["feature1"], stem)
        assert torch.equal(encoder.outputs(images, ["embed"])["embed"], theirs(images))
    assert encoder.card.keys_unused == 2
    assert set(encoder.card.assumed) == {"mean", "std", "value_range", "channels"}
    with pytest.raises(InputError, match="not one of resnet18"):
        load_encoder("torchvision:vgg16")
    (tmp_path / "r50.pth").unlink()


def test_a_file_with_its_own_card_needs_no_facts(tmp_path: Path) -> None:
    net = strided_in_1x1()
    card = EncoderCard(name="mine", source="test", architecture=NARROW.model_copy(update={"stride_in_1x1": True}),
                       channels="BGR", assumed=("std", "bn_eps"))  # fmt: skip
    write_backbone(tmp_path / "b.safetensors", net.state_dict(), card)
    loaded = assert_same_forward(tmp_path / "b.safetensors", net)
    assert (loaded.channels, loaded.assumed, loaded.name) == ("BGR", ("std", "bn_eps"), "mine")
    assert load_encoder(tmp_path / "b.safetensors", facts=["std=1,1,1"]).card.assumed == ("bn_eps",)


def test_the_resume_file_of_a_run_with_its_head(tmp_path: Path) -> None:
    from pretrain.recipe import Recipe

    recipe = Recipe(architecture=Architecture(name="resnet18", width=8, stem_kernel=3, max_pool=False))
    net = network(recipe.architecture)
    head = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
    model = {
        **{f"encoder_q.backbone.{key}": tensor for key, tensor in net.state_dict().items()},
        **{f"encoder_q.head.{key}": tensor for key, tensor in head.state_dict().items()},
        "queue": torch.zeros(16, 8),
    }
    state = {"recipe": recipe.model_dump_json(), "epochs": 3, "trainer": {"model": model, "sums": torch.zeros(4)}}
    torch.save(state, tmp_path / "resume.pt")
    card = assert_same_forward(tmp_path / "resume.pt", net)
    assert (card.assumed, card.architecture) == ((), recipe.architecture)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = head(net(images))
    assert torch.equal(load_encoder(tmp_path / "resume.pt").outputs(images, ["head"])["head"], expected)


def small(seed: int = 0) -> nn.Module:
    return network(Architecture(name="resnet18", width=8), seed)


def with_prefix(prefix: str, net: nn.Module) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in net.state_dict().items()}


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model._orig_mod.", "model.backbone._orig_mod."]
)
def test_prefixes_of_compiled_and_wrapped_networks_are_removed_wherever_they_stand(prefix: str, tmp_path: Path) -> None:
    torch.save({"state_dict": with_prefix(prefix, small()), "epoch": 3}, tmp_path / "c.pth")
    assert_same_forward(tmp_path / "c.pth", small())


def test_a_resnet_is_found_under_any_prefix_and_of_several_the_user_picks_one(tmp_path: Path) -> None:
    head = {"model.head.weight": torch.zeros(3, 64)}
    torch.save(lightning(with_prefix("model.student_net.", small()) | head), tmp_path / "one.ckpt")
    card = assert_same_forward(tmp_path / "one.ckpt", small())
    assert (card.layout, card.keys_unused) == ("a ResNet of torchvision's names", 1)
    assert "channels" in card.assumed
    both = with_prefix("online.", small()) | with_prefix("target.", small(seed=1))
    torch.save({"model": both}, tmp_path / "two.pth")
    with pytest.raises(InputError, match="several networks; choose one with --facts pick=NAME: model/online, model/ta"):
        load_encoder(tmp_path / "two.pth")
    assert_same_forward(tmp_path / "two.pth", small(seed=1), facts=["pick=model/target"])


def test_the_log_names_the_networks_that_are_not_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save({"model_ema": small(seed=1).state_dict(), "model": small().state_dict()}, tmp_path / "c.pth")
    with caplog.at_level("INFO"):
        assert_same_forward(tmp_path / "c.pth", small())
    assert "c.pth holds model, model_ema: model is taken, --facts pick=NAME takes another" in caplog.text


def test_the_state_of_an_optimizer_is_called_so(tmp_path: Path) -> None:
    net = small()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    optimizer.step(lambda: sum(p.sum() for p in net.parameters()).backward() or 0.0)
    torch.save(optimizer.state_dict(), tmp_path / "o.pth")
    with pytest.raises(InputError, match=r"o\.pth holds the state of an optimizer; give the checkpoint"):
        load_encoder(tmp_path / "o.pth")

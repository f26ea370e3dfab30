"""A checkpoint in every layout, named by a literal key table from its source, against the network it was made of."""

from __future__ import annotations

import argparse
import pickle
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.contract import InputError
from benchmarks.encoders.encoder import FEATURES
from benchmarks.encoders.layouts.table import LAYOUTS
from benchmarks.encoders.load import load_encoder
from pretrain.backbone import ResNet
from pretrain.backbone_file import weights_sha256, write_backbone
from results.schema import Architecture, EncoderCard
from tests.reference.checkpoint_tables import NARROW, named, network, table

ASSUMED = {"mean", "std", "value_range", "channels", "stem_stride", "max_pool", "bn_eps", "stride_in_1x1"}
NETWORK = {"stem_stride", "max_pool", "bn_eps", "stride_in_1x1"}
D2 = ("channels=BGR", "mean=103.53,116.28,123.675", "std=1,1,1", "value_range=255", "stride_in_1x1=false")


def assert_same_forward(path: Path, net: ResNet, **options: Any) -> EncoderCard:
    encoder = load_encoder(path, **options)
    images = torch.randn(2, 3, 64, 64)
    outputs = encoder.outputs(images, [*FEATURES, "embed"])
    with torch.no_grad():
        for name, expected in zip(FEATURES, net.stages(images), strict=True):
            assert torch.equal(outputs[name], expected), name
        assert torch.equal(outputs["embed"], net(images))
    assert encoder.card.weights_sha256 == weights_sha256(net.state_dict())
    return encoder.card


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


def arrays(tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {key: tensor.numpy() for key, tensor in tensors.items()}


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
    "sequential_backbone": Case("Sequential backbone", lambda t: {"pytorch-lightning_version": "2", "state_dict": t}),
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
ELSEWHERE = {  # rows of the table whose tests are further down, or in test_timm_models.py
    "encoder-bench run", "facebookresearch/moco CIFAR notebook", "VISSL trunk", "detectron2", "Caffe2", "DINOv2",
    "ViT of timm's names",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(CASES))
def test_every_layout_gives_the_forward_pass_bit_by_bit(name: str, tmp_path: Path) -> None:
    case, net, rows = CASES[name], network(), table(name)
    torch.save(case.wrap(named(rows, net)), tmp_path / "some_file.pth")
    card = assert_same_forward(tmp_path / "some_file.pth", net, facts=case.facts)
    assert card.layout == case.layout
    assert set(card.assumed) == case.assumed
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
    path = Path(__file__).parents[3] / "benchmarks" / "encoders" / "layouts" / "releases.toml"
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    for row in table["release"]:
        assert row["source"]
        assert set(row["layout"]) <= names
        assert row.get("network", "torchvision") in table["network"]
        assert row.get("pixels", "imagenet") in table["pixels"]


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


@pytest.mark.parametrize(("author", "needs"), [("torchvision", False), ("MOCO", False), ("somebody", True)])
def test_detectron2_pickle(author: str, needs: bool, tmp_path: Path) -> None:
    net = network()
    rows = [row for row in table("detectron2") if "num_batches" not in row[0]]
    content = {"model": arrays(named(rows, net)), "__author__": author, "matching_heuristics": True}
    (tmp_path / "r50.pkl").write_bytes(pickle.dumps(content))
    if needs:
        with pytest.raises(InputError, match="do not show channels, mean, std, value_range, stride_in_1x1; give them"):
            load_encoder(tmp_path / "r50.pkl")
        card = assert_same_forward(tmp_path / "r50.pkl", net, facts=D2)
        assert (card.channels, card.std) == ("BGR", (1.0, 1.0, 1.0))
        assert set(card.assumed) == {"stem_stride", "max_pool", "bn_eps"}
    else:
        card = assert_same_forward(tmp_path / "r50.pkl", net)
        assert (card.channels, card.std, card.assumed) == ("RGB", (58.395, 57.12, 57.375), ())
    assert card.layout == "detectron2"


def test_a_card_inside_another_librarys_file_is_believed_where_it_fits_the_weights(tmp_path: Path) -> None:
    net = network()
    card = EncoderCard(name="mine", source="test", architecture=NARROW, weights_sha256=weights_sha256(net.state_dict()),
                       channels="BGR", assumed=("std", "channels"))  # fmt: skip
    rows = [row for row in table("detectron2") if "num_batches" not in row[0]]
    content = {"model": arrays(named(rows, net)), "__author__": "us", "encoder_card": card.model_dump_json()}
    (tmp_path / "r50.pkl").write_bytes(pickle.dumps(content))
    loaded = assert_same_forward(tmp_path / "r50.pkl", net)
    assert (loaded.name, loaded.channels, loaded.assumed) == ("mine", "BGR", ("std", "channels"))
    assert load_encoder(tmp_path / "r50.pkl", facts=["channels=RGB"]).card.assumed == ("std",)
    content["model"] = arrays(named(rows, network(seed=1)))
    (tmp_path / "r50.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match="not those that its card describes"):
        load_encoder(tmp_path / "r50.pkl")
    (tmp_path / "r50.pkl").write_bytes(pickle.dumps({**content, "encoder_card": "{}"}))
    with pytest.raises(InputError, match="carries a card that cannot be read"):
        load_encoder(tmp_path / "r50.pkl")


def strided_in_1x1() -> ResNet:
    return network(NARROW.model_copy(update={"stride_in_1x1": True}))


def test_msra_pickle_in_caffe2_names_strides_in_the_1x1_and_is_bgr(tmp_path: Path) -> None:
    net = strided_in_1x1()
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(arrays(named(table("caffe2_msra"), net)), protocol=2))
    card = assert_same_forward(tmp_path / "R-50.pkl", net)
    assert card.architecture.stride_in_1x1
    assert (card.channels, card.mean, card.std, card.value_range) == ("BGR", (103.53, 116.28, 123.675), (1, 1, 1), 255)
    assert card.assumed == ()
    with torch.no_grad():  # and it matters
        assert not torch.allclose(net(torch.ones(1, 3, 64, 64)), network()(torch.ones(1, 3, 64, 64)))


def test_caffe2_norms_folded_into_scale_and_bias(tmp_path: Path) -> None:
    net = strided_in_1x1()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.zero_()
            module.running_var.fill_(1 - module.eps)
    blobs = arrays(named(table("caffe2_folded"), net))
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps({"blobs": blobs}, protocol=2))
    assert "folded" in assert_same_forward(tmp_path / "R-50.pkl", net).layout
    blobs["res3_0_branch2a_b"] = np.ones(16, np.float32)  # a bias that is not zero cannot be left out
    (tmp_path / "biased.pkl").write_bytes(pickle.dumps(blobs))
    with pytest.raises(InputError, match=r"left over \(layer2.0.conv1.bias\)"):
        load_encoder(tmp_path / "biased.pkl")


def test_basic_blocks_have_no_1x1_to_stride_in(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = torchvision.models.resnet18()
    renamed = {"downsample.0": "shortcut", "downsample.1": "shortcut.norm", "bn1": "conv1.norm", "bn2": "conv2.norm"}
    model: dict[str, Any] = {}
    for key, tensor in net.state_dict().items():
        name = key if "layer" in key else f"stem.{key}"
        for old, new in [*renamed.items(), *((f"layer{n}", f"res{n + 1}") for n in range(1, 5))]:
            name = name.replace(old, new)
        model[name] = tensor.numpy()
    (tmp_path / "r18.pkl").write_bytes(pickle.dumps({"model": model, "__author__": "torchvision"}))
    encoder = load_encoder(tmp_path / "r18.pkl")
    net.fc = nn.Identity()
    with torch.no_grad():
        images = torch.randn(1, 3, 64, 64)
        assert torch.allclose(encoder.outputs(images, ["embed"])["embed"], net.eval()(images), atol=1e-6)
    assert "stride_in_1x1" not in encoder.card.assumed


def test_solo_learn_on_cifar_pads_its_stem_by_two(tmp_path: Path) -> None:
    stem = {"width": 8, "stem_kernel": 3, "stem_stride": 1, "stem_padding": 2, "max_pool": False}
    net = network(Architecture(name="resnet18", **stem))
    tensors = {f"backbone.{key}": tensor for key, tensor in net.state_dict().items()}
    torch.save({"state_dict": {**tensors, "classifier.weight": torch.zeros(10, 64)}}, tmp_path / "cifar.ckpt")
    card = assert_same_forward(tmp_path / "cifar.ckpt", net)
    assert card.architecture.stem_padding == 2
    assert set(card.assumed) == {"mean", "std", "value_range", "channels"}


def test_a_small_stem_asks_for_what_its_keys_do_not_show(tmp_path: Path) -> None:
    net = network(Architecture(name="resnet18", width=8, stem_kernel=3, stem_stride=1, max_pool=False))
    save_file(net.state_dict(), tmp_path / "plain.safetensors")
    with pytest.raises(InputError, match=r"stem of 3x3, and its keys do not show stem_stride, max_pool; give them"):
        load_encoder(tmp_path / "plain.safetensors")
    card = assert_same_forward(tmp_path / "plain.safetensors", net, facts=["stem_stride=1 max_pool=false"])
    assert "stem_padding" in card.assumed


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
    with pytest.raises(InputError, match="none of resnet18"):
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
    torch.save({"recipe": recipe.model_dump_json(), "model": model, "step": 3}, tmp_path / "resume.pt")
    card = assert_same_forward(tmp_path / "resume.pt", net)
    assert (card.assumed, card.architecture) == ((), recipe.architecture)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = head(net(images))
    assert torch.equal(load_encoder(tmp_path / "resume.pt").outputs(images, ["head"])["head"], expected)

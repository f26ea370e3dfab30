"""What the keys of a checkpoint cannot show, as channel order and strides: told by its layout, its card or the user."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.encoders.forms import not_shown_by_resnet_keys
from benchmarks.encoders.load import load_encoder
from benchmarks.task import InputError
from pretrain.weight_files import weights_sha256
from results.schema import Architecture, EncoderCard
from tests.benchmarks.encoders.same_forward import D2, assert_same_forward, strided_in_1x1
from tests.reference.checkpoint_tables import NARROW, named, network, table


def arrays(tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {key: tensor.numpy() for key, tensor in tensors.items()}


@pytest.mark.parametrize(("author", "needs"), [("torchvision", False), ("MOCO", False), ("somebody", True)])
def test_detectron2_pickle(author: str, needs: bool, tmp_path: Path) -> None:
    net = network()
    rows = [row for row in table("detectron2") if "num_batches" not in row[0]]
    content = {"model": arrays(named(rows, net)), "__author__": author, "matching_heuristics": True}
    (tmp_path / "r50.pkl").write_bytes(pickle.dumps(content))
    if needs:
        with pytest.raises(InputError, match="do not show channels, mean, std, value_range, stride_in_1x1; add"):
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
    with pytest.raises(InputError, match="has a card that cannot be read"):
        load_encoder(tmp_path / "r50.pkl")


@pytest.mark.slow
def test_the_card_says_what_keys_cannot_distinguish(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import timm

    def shapes(net: nn.Module) -> dict[str, torch.Size]:
        return {name: tensor.shape for name, tensor in net.state_dict().items()}

    with torch.device("meta"):
        for name in ("resnet18", "resnet50"):
            plain = shapes(torchvision.models.get_model(name))
            told = not_shown_by_resnet_keys(name)[0]
            others = [f"resnetblur{name[6:]}", "resnetaa50"] if name == "resnet50" else ["resnetblur18"]
            assert all(shapes(timm.create_model(other)) == plain and other in told for other in others)
    torch.manual_seed(0)
    blurred = timm.create_model("resnetblur18").eval()
    torch.save(blurred.state_dict(), tmp_path / "b.pth")
    with caplog.at_level("INFO"):
        card = load_encoder(tmp_path / "b.pth").card
    assert (card.architecture.name, card.not_shown) == ("resnet18", not_shown_by_resnet_keys("resnet18"))
    assert "not shown by the keys: blurred or averaged downsampling (timm's resnetblur18)" in caplog.text
    assert "not_shown" in card.model_dump()
    # A network that the user names is that network, and it is another one.
    named_by_user = load_encoder(f"timm:resnetblur18:{tmp_path / 'b.pth'}")
    assert named_by_user.card.not_shown == ()
    assert "not_shown" not in named_by_user.card.model_dump()
    with torch.no_grad():
        images = torch.rand(1, 3, 64, 64)
        read_as = load_encoder(tmp_path / "b.pth").outputs(images, {"feature5"})["feature5"]
        assert not torch.allclose(blurred.forward_features(images), read_as)
    assert load_encoder(tmp_path / "b.pth", facts=["architecture=resnet18"]).card.not_shown == ()


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
    with pytest.raises(InputError, match=r"stem of 3x3, and its keys do not show stem_stride, max_pool; add --facts"):
        load_encoder(tmp_path / "plain.safetensors")
    card = assert_same_forward(tmp_path / "plain.safetensors", net, facts=["stem_stride=1 max_pool=false"])
    assert "stem_padding" in card.assumed

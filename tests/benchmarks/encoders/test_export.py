"""Files for other libraries: what stands in them, without the libraries; that they are whole; and what is refused."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision

from benchmarks.encoders.encoder import Encoder
from benchmarks.encoders.export import (
    WRITERS,
    CheckpointFormat,
    convert,
    detectron2_name,
    detectron2_settings,
    openmmlab_settings,
    unsupported_by_detectron2,
    unsupported_by_openmmlab,
    write_detectron2,
    write_openmmlab,
    write_safetensors,
    write_torchvision,
)
from benchmarks.encoders.forms import parse_architecture
from benchmarks.encoders.load import load_encoder
from benchmarks.encoders.networks import random_resnet, resnet_encoder
from benchmarks.task import InputError
from pretrain.resnet import ResNet
from pretrain.weight_files import weights_sha256
from results.schema import Architecture, EncoderCard
from tests.reference.detectron2_names import renamed

SUFFIX = {"detectron2": ".pkl", "openmmlab": ".pth", "torchvision": ".pth", "safetensors": ".safetensors"}


def caffe_encoder(name: str = "resnet50") -> Encoder:
    """Everything that keys cannot show is other than torchvision's."""
    architecture = Architecture(name=name, width=16, stride_in_1x1=True)
    torch.manual_seed(0)
    backbone = ResNet(architecture)
    card = EncoderCard(
        name="caffe-like", source="test", architecture=architecture, layout="test", value_range=255.0, channels="BGR",
        mean=(103.53, 116.28, 123.675), std=(1.0, 1.0, 1.0), weights_sha256=weights_sha256(backbone.state_dict()),
    )  # fmt: skip
    return resnet_encoder(card, backbone)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet152", "resnext50_32x4d"])
def test_detectron2_names_are_those_of_its_own_converter(name: str) -> None:
    with torch.device("meta"):
        keys = list(ResNet(Architecture(name=name)).state_dict())
    assert [detectron2_name(key) for key in keys] == [renamed(key) for key in keys]


def test_detectron2_facts_of_a_caffe_like_net_keep_its_order_and_range() -> None:
    settings = detectron2_settings(caffe_encoder().card)
    assert settings["INPUT.FORMAT"] == "BGR"
    assert settings["MODEL.PIXEL_MEAN"] == [103.53, 116.28, 123.675]
    assert settings["MODEL.PIXEL_STD"] == [1.0, 1.0, 1.0]
    assert settings["MODEL.RESNETS.STRIDE_IN_1X1"] is True
    assert (settings["MODEL.RESNETS.STEM_OUT_CHANNELS"], settings["MODEL.RESNETS.RES2_OUT_CHANNELS"]) == (16, 64)


def test_facts_of_an_imagenet_net_are_the_usual_ones() -> None:
    card = random_resnet(Architecture(name="resnet50"), 0).card
    settings = detectron2_settings(card)
    assert settings["MODEL.PIXEL_MEAN"] == [123.675, 116.28, 103.53]
    assert settings["MODEL.PIXEL_STD"] == [58.395, 57.12, 57.375]
    assert (settings["INPUT.FORMAT"], settings["MODEL.RESNETS.STRIDE_IN_1X1"]) == ("RGB", False)
    pixels = openmmlab_settings(card)["data_preprocessor"]
    assert pixels == {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "bgr_to_rgb": True}
    assert openmmlab_settings(caffe_encoder().card)["data_preprocessor"]["bgr_to_rgb"] is False
    assert openmmlab_settings(caffe_encoder().card)["backbone"]["style"] == "caffe"


def test_what_a_builder_lacks_is_said() -> None:
    small = random_resnet(parse_architecture("resnet18-w32-k3-nopool"), 0).card
    assert unsupported_by_detectron2(small) == ["width 32", "a stem of 3x3", "no max-pool"]
    assert unsupported_by_openmmlab(small) == ["a stem of 3x3", "no max-pool"]
    wide = small.model_copy(update={"architecture": Architecture(name="wide_resnet50_2")})
    assert (unsupported_by_detectron2(wide), unsupported_by_openmmlab(wide)) == ([], ["wide 3x3 convolutions"])
    assert unsupported_by_detectron2(caffe_encoder().card) == []


@pytest.mark.parametrize("to", list(WRITERS))
def test_an_encoder_that_is_no_resnet_is_refused_in_one_sentence(tmp_path: Path, to: CheckpointFormat) -> None:
    with pytest.raises(InputError, match=r"raw pixels is pixels, but .* needs a ResNet"):
        convert("pixels", tmp_path / f"out{SUFFIX[to]}", to)
    assert list(tmp_path.iterdir()) == []


def test_torchvision_refuses_what_it_would_run_differently(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"width 16, the stride in the first 1x1 convolution; write safetensors"):
        write_torchvision(caffe_encoder(), tmp_path / "out.pth")
    assert list(tmp_path.iterdir()) == []


def test_torchvision_takes_the_file_with_only_fc_missing(tmp_path: Path) -> None:
    encoder = random_resnet(Architecture(name="resnet18"), 1)
    write_torchvision(encoder, tmp_path / "out.pth")
    model = torchvision.models.resnet18()
    answer = model.load_state_dict(torch.load(tmp_path / "out.pth", weights_only=True), strict=False)
    assert (sorted(answer.missing_keys), answer.unexpected_keys) == (["fc.bias", "fc.weight"], [])
    images = torch.randn(2, 3, 64, 64)
    expected = encoder.outputs(images, {f"feature{n}" for n in (1, 2, 3, 4, 5)})
    model.eval().fc = torch.nn.Identity()
    x = model.relu(model.bn1(model.conv1(images)))
    torch.testing.assert_close(x, expected["feature1"], atol=1e-5, rtol=0)
    x = model.maxpool(x)
    for number in (1, 2, 3, 4):
        x = model.get_submodule(f"layer{number}")(x)
        torch.testing.assert_close(x, expected[f"feature{number + 1}"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("write", [write_detectron2, write_openmmlab, write_safetensors])
def test_a_killed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Encoder, Path], object]
) -> None:
    out = tmp_path / "out.bin"
    out.write_text("old")
    encoder = random_resnet(parse_architecture("resnet18-w8"), 0)

    def broken(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pickle, "dump", broken)
    monkeypatch.setattr(torch, "save", broken)
    monkeypatch.setattr("pretrain.weight_files.save_file", broken)
    with pytest.raises(KeyboardInterrupt):
        write(encoder, out)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("out.bin", "old")]


@pytest.mark.parametrize("first", ["detectron2", "openmmlab", "safetensors"])
@pytest.mark.parametrize("second", ["detectron2", "openmmlab", "safetensors"])
def test_converting_a_converted_file_keeps_every_bit_and_fact(
    tmp_path: Path, first: CheckpointFormat, second: CheckpointFormat
) -> None:
    encoder = caffe_encoder()
    source, out = tmp_path / f"first{SUFFIX[first]}", tmp_path / f"second{SUFFIX[second]}"
    WRITERS[first].write(encoder, source)
    convert(source, out, second)
    again = load_encoder(out)
    pairs = zip(encoder.module.state_dict().items(), again.module.state_dict().items(), strict=True)
    assert all(a == b and torch.equal(s, t) for (a, s), (b, t) in pairs)
    decisive = {"architecture", "mean", "std", "value_range", "channels", "weights_sha256", "assumed"}
    assert again.card.model_dump(include=decisive) == encoder.card.model_dump(include=decisive)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["detectron2", "openmmlab", "torchvision"])
def test_converting_a_file_in_place_is_harmless(tmp_path: Path, to: CheckpointFormat) -> None:
    out = tmp_path / f"out{SUFFIX[to]}"
    WRITERS[to].write(random_resnet(Architecture(name="resnet18"), 1), out)
    before = load_encoder(out).card.weights_sha256
    convert(out, out, to, force=True)
    once = out.read_bytes()
    convert(out, out, to, force=True)
    assert load_encoder(out).card.weights_sha256 == before
    assert out.read_bytes() == once or to != "torchvision"


def test_the_projection_head_stays_behind(tmp_path: Path) -> None:
    backbone = ResNet(parse_architecture("resnet18-w8"))
    card = random_resnet(parse_architecture("resnet18-w8"), 0).card.model_copy(update={"head": "64-8 (12345678)"})
    encoder = resnet_encoder(card, backbone, torch.nn.Sequential(torch.nn.Linear(64, 8)))
    write_safetensors(encoder, tmp_path / "out.safetensors")
    again = load_encoder(tmp_path / "out.safetensors")
    assert not again.has("head")
    assert again.card.head is None

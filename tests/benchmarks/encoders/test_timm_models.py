"""timm's models, and files that hold vision transformers, against timm's own forward pass."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from benchmarks.encoders.forms import NOT_SHOWN_BY_VIT_KEYS, PIXELS
from benchmarks.encoders.load import load_encoder
from benchmarks.encoders.timm_models import _encoder, token_outputs
from benchmarks.task import FEATURE_MAPS, InputError
from pretrain.weight_files import write_backbone
from results.schema import Architecture, EncoderCard

KEYS = Path(__file__).parent / "keys"


def model(name: str, seed: int = 0, **options: Any) -> Any:
    """A timm model with random weights, so that no tensor is zero or one throughout."""
    torch.manual_seed(seed)
    net = timm.create_model(name, pretrained=False, **options)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.05)
    return net.eval()


def embedding(net: Any, images: Tensor) -> Tensor:
    with torch.no_grad():
        return net.forward_head(net.forward_features(images), pre_logits=True)


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def test_a_convnet_by_name_and_file_has_its_stages_and_its_own_embedding(tmp_path: Path) -> None:
    net = model("mobilenetv3_small_050", num_classes=10)
    path = saved(tmp_path / "net.pth", net.state_dict())
    images = torch.randn(2, 3, 64, 64)
    for encoder in (
        load_encoder(f"timm:mobilenetv3_small_050:{path}"),
        load_encoder(path, facts=["architecture=timm:mobilenetv3_small_050"]),
    ):
        assert torch.equal(encoder.outputs(images, ["embed"])["embed"], embedding(net, images))
        outputs = encoder.outputs(images, [*FEATURE_MAPS, "embed"])
        assert [64 // outputs[name].shape[-1] for name in FEATURE_MAPS] == [2, 4, 8, 16, 32]
        assert torch.equal(outputs["embed"], embedding(net, images))
        card = encoder.card
        assert card.keys_matched + card.keys_unused == len(net.state_dict())
        assert card.keys_unused == 2  # its classifier
        assert card.assumed == ("mean", "std", "value_range", "channels")
        assert card.interpolation == net.pretrained_cfg["interpolation"]
        assert "(1024-d)" in card.embed


def test_stages_are_given_where_a_model_has_them(tmp_path: Path) -> None:
    net = model("convnext_atto", num_classes=0)
    encoder = load_encoder(f"timm:convnext_atto:{saved(tmp_path / 'c.pth', {'model': net.state_dict()})}")
    assert encoder.names == {"feature2", "feature3", "feature4", "feature5", "embed"}
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps = net.forward_intermediates(images, intermediates_only=True)
    outputs = encoder.outputs(images, FEATURE_MAPS[1:])
    assert all(torch.equal(outputs[name], expected) for name, expected in zip(FEATURE_MAPS[1:], maps, strict=True))


@pytest.mark.slow
def test_convnext_and_swin_by_the_names_of_their_own_code(tmp_path: Path) -> None:
    """Against torchvision's networks, whose tensors get the names of the authors' code."""
    import torchvision

    torch.manual_seed(0)
    settings = [torchvision.models.convnext.CNBlockConfig(*row) for row in (
        (96, 192, 3), (192, 384, 3), (384, 768, 9), (768, None, 3))]  # fmt: skip
    convnext = torchvision.models.convnext.ConvNeXt(settings, layer_scale=0.3).eval()
    found = {}
    for key, tensor in convnext.state_dict().items():
        name = re.sub(r"^features\.0\.", "downsample_layers.0.", key)
        name = re.sub(r"^features\.([246])\.", lambda m: f"downsample_layers.{int(m[1]) // 2}.", name)
        name = re.sub(r"^features\.([1357])\.", lambda m: f"stages.{int(m[1]) // 2}.", name)
        for theirs, ours in (("block.0", "dwconv"), ("block.2", "norm"), ("block.3", "pwconv1"), ("block.5", "pwconv2"),
                             ("layer_scale", "gamma"), ("classifier.0", "norm"), ("classifier.2", "head")):  # fmt: skip
            name = name.replace(theirs, ours)
        found[name] = tensor.flatten() if name.endswith("gamma") else tensor
    path = saved(tmp_path / "c.pth", {"model": found})
    swin = torchvision.models.swin_transformer.SwinTransformer([4, 4], 96, [2, 2, 6, 2], [3, 6, 12, 24], [7, 7]).eval()
    found = {"layers.0.blocks.1.attn_mask": torch.zeros(1)}
    for key, tensor in swin.state_dict().items():
        name = re.sub(r"^features\.([1357])\.", lambda m: f"layers.{int(m[1]) // 2}.blocks.", key)
        name = re.sub(r"^features\.([246])\.", lambda m: f"layers.{int(m[1]) // 2 - 1}.downsample.", name)
        name = name.replace("features.0.0", "patch_embed.proj").replace("features.0.2", "patch_embed.norm")
        name = name.replace("mlp.0", "mlp.fc1").replace("mlp.3", "mlp.fc2")
        found[name] = tensor
    other = saved(tmp_path / "s.pth", {"model": found})
    for net, model_name, file in ((convnext, "convnext_tiny", path), (swin, "swin_tiny_patch4_window7_224", other)):
        encoder = load_encoder(f"timm:{model_name}:{file}")
        side = 64 if net is convnext else 224
        images = torch.randn(1, 3, side, side)
        with torch.no_grad():
            if net is convnext:
                expected = convnext.classifier[:2](convnext.avgpool(convnext.features(images))).flatten(1)
            else:
                expected = swin.avgpool(swin.permute(swin.norm(swin.features(images)))).flatten(1)
        outputs = encoder.outputs(images, ["embed", "feature5"])
        assert torch.allclose(outputs["embed"], expected, atol=1e-5)
        assert outputs["feature5"].shape == (1, 768, side // 32, side // 32)
        assert encoder.card.keys_unused >= 2  # the classifier
    with pytest.raises(InputError, match=r"of another shape|missing"):
        load_encoder(f"timm:convnext_small:{path}")


@pytest.mark.parametrize(
    ("size", "how"),
    [
        ("vit_tiny_patch16_224", "class token after"),
        ("test_vit4", "mean of the patch tokens"),
        ("test_vit3", "attention"),
    ],
)
def test_the_card_says_how_a_vits_embedding_is_formed(size: str, how: str, tmp_path: Path) -> None:
    net = model(size, num_classes=5)
    encoder = load_encoder(f"timm:{size}:{saved(tmp_path / 'v.pth', net.state_dict())}")
    side = net.patch_embed.img_size[0]
    images = torch.randn(1, 3, side, side)
    assert torch.equal(encoder.outputs(images, ["embed"])["embed"], embedding(net, images))
    assert how in encoder.card.embed
    assert {"embed", "patches", "patch_mean"} <= encoder.names
    assert ("cls" in encoder.names) == (net.cls_token is not None)
    assert encoder.outputs(torch.randn(1, 3, 64, 64), ["embed"])["embed"].shape == (1, net.num_features)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "test_vit4", "vit_small_patch14_reg4_dinov2"])
def test_tokens_of_the_last_blocks_are_those_of_a_plain_pass(name: str, tmp_path: Path) -> None:
    net = model(name, num_classes=0, depth=5, embed_dim=48, num_heads=3, img_size=4 * 14, dynamic_img_size=True)
    encoder = _encoder(EncoderCard(name="v", source="test", architecture=Architecture(name=f"timm:{name}")), net, None)
    side = net.patch_embed.patch_size[0]
    images = torch.randn(2, 3, 5 * side, 3 * side)
    outputs = encoder.outputs(images, encoder.names)
    blocks = []
    with torch.no_grad():
        x = net._pos_embed(net.patch_embed(images))
        for block in net.blocks:
            x = block(x)
            blocks.append(net.norm(x))
    first = net.num_prefix_tokens
    for row, column in ((0, 0), (4, 2), (1, 2)):  # the token at row r and column c is number 3 r + c
        at = first + 3 * row + column
        assert torch.equal(outputs["patches"][:, :, row, column], blocks[-1][:, at])
        assert torch.equal(outputs["patches4"][:, :, row, column], torch.cat([b[:, at] for b in blocks[1:]], 1))
    assert outputs["patches4"].shape == (2, 4 * 48, 5, 3)
    assert torch.allclose(outputs["patch_mean"], blocks[-1][:, first:].mean(1), atol=1e-6)
    assert torch.equal(outputs["embed"], embedding(net, images))
    if net.cls_token is None:
        assert not {"cls", "cls_last4"} & encoder.names
    else:
        assert torch.equal(outputs["cls"], blocks[-1][:, 0])
        assert torch.equal(outputs["cls_last4"], torch.cat([b[:, 0] for b in blocks[1:]], 1))


def test_a_shallow_vit_has_no_four_last_blocks() -> None:
    net = model("vit_tiny_patch16_224", num_classes=0, depth=3)
    assert token_outputs(net) == ("patches", "patches_raw", "cls", "cls_raw", "patch_mean")


def dino_table() -> list[tuple[str, str]]:
    lines = (KEYS / "dino_vit.txt").read_text(encoding="utf-8").splitlines()
    return [(source, ours) for source, ours in (line.split(" ") for line in lines[1:])]


def test_dinos_teacher_and_student_as_vits(tmp_path: Path) -> None:
    teacher, student = (model("vit_tiny_patch16_224", seed=seed, num_classes=0) for seed in (0, 1))
    files = {}
    for side, net, prefix in (("teacher", teacher, ""), ("student", student, "module.")):
        state = net.state_dict()
        files[side] = {f"{prefix}{source}": state.get(ours, torch.zeros(1)) for source, ours in dino_table()}
        assert len([1 for _, ours in dino_table() if ours in state]) == len(state)
    content = {**files, "epoch": 100, "args": argparse.Namespace(arch="vit_tiny", patch_size=16)}
    path = saved(tmp_path / "checkpoint.pth", content)
    images = torch.randn(1, 3, 224, 224)
    for facts, net, side in (((), teacher, "teacher"), (("pick=student",), student, "student")):
        encoder = load_encoder(path, facts=facts)
        assert torch.equal(encoder.outputs(images, ["embed"])["embed"], embedding(net, images))
        card = encoder.card
        assert (card.layout, card.assumed, card.epochs) == (f"facebookresearch/dino: {side}", (), 100)
        assert card.architecture.name == "timm:vit_tiny_patch16_224"


def test_the_heads_of_a_plain_vit_are_asked_for(tmp_path: Path) -> None:
    net = model("vit_tiny_patch16_224", num_classes=7, img_size=64, num_heads=12)
    path = saved(tmp_path / "vit.pth", {"state_dict": net.state_dict()})
    remedy = r"add --facts num_heads=N \(timm's vit_tiny_patch16_224 has 3\), or its family"
    with pytest.raises(InputError, match=rf"names\), and its keys do not show num_heads; {remedy}"):
        load_encoder(path)
    encoder = load_encoder(path, facts=["heads=12"])
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(encoder.outputs(images, ["embed"])["embed"], embedding(net, images))
    card = encoder.card
    assert (card.assumed, card.not_shown) == ((*PIXELS, "positions"), NOT_SHOWN_BY_VIT_KEYS)
    assert (card.mean, card.architecture.name) == ((0.485, 0.456, 0.406), "timm:vit_tiny_patch16_224")
    other = load_encoder(path, facts=["family=dino"])
    assert (other.card.assumed, other.card.not_shown, other.card.architecture.positions) == ((), (), "offset")
    assert not torch.allclose(other.outputs(images, ["embed"])["embed"], embedding(net, images), rtol=0, atol=1e-6)
    with pytest.raises(InputError, match="which 5 heads do not divide"):
        load_encoder(path, facts=["heads=5"])
    with pytest.raises(InputError, match="no such family; did you mean 'dino'"):
        load_encoder(path, facts=["family=dinno"])


@pytest.mark.slow
def test_moco_v3_vits_have_twelve_heads_and_a_projection(tmp_path: Path) -> None:
    net = model("vit_small_patch16_224", num_classes=0, num_heads=12, img_size=32)
    layers = (nn.Linear(384, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4, bias=False),
              nn.BatchNorm1d(4, affine=False))  # fmt: skip
    head = nn.Sequential(*layers).eval()
    tensors = {f"module.base_encoder.{key}": tensor for key, tensor in net.state_dict().items()}
    tensors |= {f"module.base_encoder.head.{key}": tensor for key, tensor in head.state_dict().items()}
    tensors["module.momentum_encoder.cls_token"] = tensors["module.predictor.0.weight"] = torch.zeros(1)
    path = saved(tmp_path / "moco3.pth", {"arch": "vit_small", "epoch": 300, "state_dict": tensors})
    encoder = load_encoder(path)
    images = torch.randn(2, 3, 32, 32)
    outputs = encoder.outputs(images, ["embed", "head"])
    assert torch.equal(outputs["embed"], embedding(net, images))
    with torch.no_grad():
        assert torch.equal(outputs["head"], head(outputs["embed"]))
    assert (encoder.card.architecture.num_heads, encoder.card.assumed, encoder.card.method) == (12, (), "MoCo v3")


def dinov2() -> dict[str, Tensor]:
    torch.manual_seed(0)
    lines = (KEYS / "dinov2_registers.txt").read_text(encoding="utf-8").splitlines()
    shapes = {name: [int(n) for n in shape.split("x")] for name, shape in (line.split(" ") for line in lines[1:])}
    return {name: torch.randn(shape) * 0.05 for name, shape in shapes.items()}


def test_dinov2_with_registers_equals_its_own_order_of_operations(tmp_path: Path) -> None:
    tensors = dinov2()
    encoder = load_encoder(saved(tmp_path / "dinov2.pth", tensors))
    assert encoder.card.architecture.name == "timm:vit_small_patch14_reg4_dinov2"
    images = torch.randn(1, 3, 56, 56)
    net = encoder.module
    with torch.no_grad():
        patches = net.patch_embed(images).flatten(1, -2)
        tokens = torch.cat([tensors["cls_token"], patches], dim=1) + tensors["pos_embed"]
        tokens = torch.cat([tokens[:, :1], tensors["register_tokens"], tokens[:, 1:]], dim=1)
        expected = net.norm(net.blocks(tokens))[:, 0]
    assert torch.allclose(encoder.outputs(images, ["embed"])["embed"], expected, atol=1e-6)
    assert encoder.card.keys_matched == len(tensors) - 1
    assert encoder.card.keys_unused == 1  # the mask token


@pytest.mark.slow
def test_a_file_with_registers_into_a_model_without_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "reg.pth", dinov2())
    with pytest.raises(InputError, match=r"1 left over \(reg_token\), 1 of another shape|1 left over \(reg_token\)"):
        load_encoder(path, facts=["architecture=timm:vit_small_patch14_dinov2"])
    plain = {name: tensor for name, tensor in dinov2().items() if name != "register_tokens"}
    path = saved(tmp_path / "plain.pth", plain)
    with pytest.raises(InputError, match=r"missing \(reg_token\)"):
        load_encoder(path, facts=["architecture=timm:vit_small_patch14_reg4_dinov2"])


def test_a_written_timm_backbone_carries_what_was_known(tmp_path: Path) -> None:
    net = model("vit_tiny_patch16_224", num_classes=0, num_heads=6)
    first = load_encoder(saved(tmp_path / "v.pth", net.state_dict()), facts=["num_heads=6", "channels=BGR"])
    write_backbone(tmp_path / "v.safetensors", first.module.state_dict(), first.card)
    again = load_encoder(tmp_path / "v.safetensors")
    images = torch.randn(1, 3, 224, 224)
    assert torch.equal(again.outputs(images, ["embed"])["embed"], embedding(net, images))
    assert (again.card.channels, again.card.architecture, again.card.weights_sha256) == (
        "BGR", first.card.architecture, first.card.weights_sha256,
    )  # fmt: skip


def test_no_such_model_and_weights_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="has no model 'resnet5000'"):
        load_encoder("timm:resnet5000")

    def offline(name: str, pretrained: bool = False, **options: Any) -> None:
        assert pretrained
        raise OSError("no network\nat all")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        InputError, match=r"pretrained weights of resnet18 \(no network at all\); .* timm:resnet18:FILE"
    ):
        load_encoder("timm:resnet18")


def test_weights_that_timm_loads_itself_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    net = model("resnet18", num_classes=0)
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **options: net)
    encoder = load_encoder("timm:resnet18")
    assert encoder.card.assumed == ()
    assert encoder.card.mean == tuple(net.pretrained_cfg["mean"])
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        stem = net.act1(net.bn1(net.conv1(images)))
    outputs = encoder.outputs(images, ["feature1", "feature5", "embed"])
    assert torch.equal(outputs["feature1"], stem)
    assert torch.equal(outputs["embed"], outputs["feature5"].mean((2, 3)))

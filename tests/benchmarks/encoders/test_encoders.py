"""Encoders: outputs, normalisation from the card, strict loading, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from benchmarks.demo.scenes import all_ids, load_drawing
from benchmarks.encoders.encoder import Encoder
from benchmarks.encoders.load import load_encoder, random_encoder_command
from benchmarks.encoders.networks import random_resnet, recalibrated
from benchmarks.task import FEATURE_MAPS, InputError
from pretrain.resnet import ResNet
from pretrain.weight_files import read_backbone, weights_sha256, write_backbone
from results.schema import Architecture, EncoderCard

TINY = Architecture(name="resnet18", width=8, stem_kernel=3, max_pool=False)


def written(path: Path, architecture: Architecture = TINY) -> ResNet:
    torch.manual_seed(0)
    net = ResNet(architecture)
    write_backbone(path, net.state_dict(), EncoderCard(name="tiny", source="test", architecture=architecture))
    return net.eval()


def test_file_gives_the_forward_pass_bit_by_bit(tmp_path: Path) -> None:
    net = written(tmp_path / "b.safetensors")
    encoder = load_encoder(tmp_path / "b.safetensors")
    images = torch.randn(3, 3, 32, 32)
    outputs = encoder.outputs(images, [*FEATURE_MAPS, "embed"])
    with torch.no_grad():
        for name, expected in zip(FEATURE_MAPS, net.stages(images), strict=True):
            assert torch.equal(outputs[name], expected)
        assert torch.equal(outputs["embed"], net(images))
    assert not any(p.requires_grad for p in encoder.module.parameters())


def test_weights_hash_ignores_order_and_counters_and_sees_everything_else() -> None:
    tensors = {"b": torch.ones(2), "a": torch.zeros(3), "bn.num_batches_tracked": torch.tensor(3)}
    reordered = {"a": torch.zeros(3), "b": torch.ones(2), "bn.num_batches_tracked": torch.tensor(9)}
    assert weights_sha256(tensors) == weights_sha256(reordered)
    for changed in ({"b": torch.ones(2).double()}, {"b": torch.ones(2, 1)}, {"b": torch.tensor([1.0, 1.0001])}):
        assert weights_sha256({**tensors, **changed}) != weights_sha256(tensors)
    assert weights_sha256({"c": tensors["b"], "a": tensors["a"]}) != weights_sha256(tensors)
    transposed = torch.arange(6.0).view(2, 3).T
    assert weights_sha256({"a": transposed}) == weights_sha256({"a": transposed.contiguous()})


def test_a_file_of_another_architecture_is_refused_with_counts_and_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    deep = ResNet(Architecture(name="resnet34", width=8, stem_kernel=3, max_pool=False))
    path = tmp_path / "wrong.safetensors"
    write_backbone(path, deep.state_dict(), EncoderCard(name="wrong", source="test", architecture=TINY))
    with pytest.raises(
        InputError, match=r"of the backbone's \d+ tensors: \d+ left over \(layer1\.2\..*, …\)"
    ) as refused:
        load_encoder(path)
    assert "another architecture" in str(refused.value)
    shallow = ResNet(TINY)
    write_backbone(path, shallow.state_dict(), EncoderCard(name="w", source="test", architecture=Architecture(
        name="resnet34", width=8, stem_kernel=3, max_pool=False)))  # fmt: skip
    with pytest.raises(InputError, match="missing"):
        load_encoder(path)
    wide = ResNet(Architecture(name="resnet18", width=16, stem_kernel=3, max_pool=False))
    write_backbone(path, wide.state_dict(), EncoderCard(name="w", source="test", architecture=TINY))
    with pytest.raises(InputError, match="of another shape"):
        load_encoder(path)


def test_edited_weights_damaged_files_and_files_without_a_card_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "b.safetensors"
    written(path)
    tensors, card = read_backbone(path)
    assert card is not None
    tensors["conv1.weight"] += 1
    save_file(tensors, tmp_path / "edited.safetensors", metadata={"encoder_card": card.model_dump_json()})
    with pytest.raises(InputError, match="not those that its card describes"):
        load_encoder(tmp_path / "edited.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="not a whole safetensors file"):
        load_encoder(path)
    for text, fault in (("{}", "card that cannot be read .name: Field required"),
                        ('{"name": "x", "colour": 3}', "bad.safet"), ("no", "Invalid JSON")):  # fmt: skip
        save_file(tensors, tmp_path / "bad.safetensors", metadata={"encoder_card": text})
        with pytest.raises(InputError, match=fault):
            load_encoder(tmp_path / "bad.safetensors")
    save_file(tensors, tmp_path / "bare.safetensors")
    with pytest.raises(InputError, match="do not show stem_stride, max_pool"):
        load_encoder(tmp_path / "bare.safetensors")
    with pytest.raises(InputError, match="encoder file not found"):
        load_encoder(tmp_path / "absent.safetensors")


def test_normalise_applies_mean_std_range_and_channel_order() -> None:
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    card = EncoderCard(name="x", source="test", architecture=Architecture(name="pixels"), mean=(103.5, 116.3, 123.7),
                       std=(1.0, 2.0, 4.0), value_range=255.0, channels="BGR")  # fmt: skip
    encoder = Encoder(card, nn.Identity(), lambda x, names: {"embed": x.flatten(1)}, ["embed"])
    got = encoder.normalise(images)
    for channel, (mean, std) in enumerate(zip(card.mean, card.std, strict=True)):
        assert torch.allclose(got[:, channel], (images[:, 2 - channel].float() - mean) / std, atol=1e-4)
    rgb = EncoderCard(name="x", source="test", architecture=Architecture(name="pixels"))
    plain = Encoder(rgb, nn.Identity(), lambda x, names: {"embed": x.flatten(1)}, ["embed"]).normalise(images)
    assert torch.allclose(plain[:, 0], (images[:, 0].float() / 255 - 0.485) / 0.229, atol=1e-5)


def test_efficientnet_lite0_is_whole_and_its_embedding_is_what_its_classifier_reads() -> None:
    encoder = load_encoder("package:efficientnet-lite0")
    images = torch.randn(2, 3, 64, 64)
    outputs = encoder.outputs(images, [*FEATURE_MAPS, "embed"])
    assert [64 // outputs[name].shape[-1] for name in FEATURE_MAPS] == [2, 4, 8, 16, 32]
    assert outputs["embed"].shape == (2, 1280)
    with torch.no_grad():
        assert torch.allclose(encoder.module.classifier(outputs["embed"]), encoder.module(images), atol=1e-5)
    assert encoder.card.mean == (127 / 255,) * 3


def test_efficientnet_lite0_knows_its_classes() -> None:
    """A flat field of one colour is nothing in particular; the weights are real when drawings of one kind agree."""
    encoder = load_encoder("package:efficientnet-lite0")
    classes = ("animals_birds", "transportation_vehicles")
    groups = [[id for id in all_ids() if id.startswith(name)][:12] for name in classes]
    vectors = []
    for ids in groups:
        pictures = []
        for id in ids:
            rgba = load_drawing(id).resize((128, 128))
            white = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
            pictures.append(torch.from_numpy(np.array(white)).permute(2, 0, 1))
        images = encoder.normalise(torch.stack(pictures))
        vectors.append(F.normalize(encoder.outputs(images, ["embed"])["embed"]))
    within = sum((v @ v.T).mean() for v in vectors) / 2
    between = (vectors[0] @ vectors[1].T).mean()
    assert within > between + 0.05


def test_random_encoder_is_what_a_run_with_its_seed_starts_from() -> None:
    from pretrain.moco import MoCo
    from pretrain.recipe import Recipe

    torch.manual_seed(3)
    recipe = Recipe(architecture=TINY, queue_size=256)
    model = MoCo(recipe, torch.Generator())
    encoder = load_encoder("random:resnet18-w8-k3-nopool:3")
    start = model.encoder_q.backbone.state_dict()
    assert all(torch.equal(start[name], tensor) for name, tensor in encoder.module.state_dict().items())
    assert encoder.card.method == "random"


def test_recalibrated_norms_have_the_statistics_of_the_data() -> None:
    encoder = random_resnet(TINY, 0)
    batches = [torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8) for _ in range(3)]
    before = encoder.card.weights_sha256
    recalibrated(encoder, batches)
    conv = encoder.module.conv1
    with torch.no_grad():
        activations = [conv(encoder.normalise(batch)) for batch in batches]
    expected = torch.stack([a.mean(dim=(0, 2, 3)) for a in activations]).mean(0)
    assert torch.allclose(encoder.module.bn1.running_mean, expected, atol=1e-5)
    assert encoder.card.weights_sha256 == weights_sha256(encoder.module.state_dict()) != before
    assert not encoder.module.training


def test_random_encoder_file_round_trip(tmp_path: Path) -> None:
    (tmp_path / "train" / "things").mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (40, 30), (number * 80, 100, 50)).save(tmp_path / "train" / "things" / f"{number}.png")
    random_encoder_command("resnet18-w8-k3-nopool", tmp_path, tmp_path / "r-{seed}.safetensors", seed=(0, 1), size=16)
    cards = [load_encoder(tmp_path / f"r-{seed}.safetensors").card for seed in (0, 1)]
    assert [(card.method, card.init) for card in cards] == [("random", "seed 0"), ("random", "seed 1")]
    with pytest.raises(InputError, match=r"put \{seed\} into its name"):
        random_encoder_command("resnet18-w8-k3-nopool", tmp_path, tmp_path / "r.safetensors", seed=(0, 1), size=16)
    with pytest.raises(InputError, match="nowhere"):
        random_encoder_command("resnet18", tmp_path / "nowhere", tmp_path / "x.safetensors", size=16)


def test_raw_pixels_are_the_normalised_image() -> None:
    encoder = load_encoder("pixels")
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    embed = encoder.outputs(encoder.normalise(images), ["embed"])["embed"]
    assert torch.allclose(embed, (images.float() / 127.5 - 1).flatten(1), atol=1e-6)
    assert encoder.outputs(torch.zeros(1, 3, 96, 96), ["embed"])["embed"].shape == (1, 3072)


def test_random_alone_is_the_chance_baseline_of_the_published_protocols() -> None:
    encoder = load_encoder("random")
    assert encoder.card.architecture.name == "resnet50"
    assert encoder.card.weights_sha256 == load_encoder("random:resnet50:0").card.weights_sha256

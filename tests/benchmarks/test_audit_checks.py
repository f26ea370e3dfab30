"""Each known silent fault of a vision transformer is injected and found, and a correct one raises no alarm.

Faults that a file's own keys rule out are injected in `test_vit_families`: a bias of DINOv3's keys that its mask takes
away, a student instead of a teacher, DINO's offset of positions, the epsilon of norms, and RADIO's summary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.audit import Audit, AuditSample, examine
from benchmarks.audit_checks import alternatives, map_shift, structure, with_activation, with_heads
from benchmarks.encoders.encoder import Encoder
from benchmarks.encoders.load import load_encoder
from benchmarks.encoders.timm_models import _encoder
from results.schema import Architecture, EncoderCard
from tests.benchmarks.encoders.test_vit_families import CASES, written

SIDE, PATCH, CLASSES = 32, 8, 4
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def pictures(per_class: int, seed: int) -> tuple[Tensor, Tensor]:
    """(N, 3, 32, 32) uint8 noise with a bright square; its quadrant is the class."""
    rng = np.random.default_rng(seed)
    targets = np.arange(CLASSES).repeat(per_class)
    images = rng.normal(90, 40, (len(targets), 3, SIDE, SIDE))
    for image, target in zip(images, targets, strict=True):
        row, column = 16 * (target // 2) + rng.integers(0, 9), 16 * (target % 2) + rng.integers(0, 9)
        image[:, row : row + 8, column : column + 8] += rng.normal(70, 20, (3, 1, 1))
    return torch.from_numpy(images.clip(0, 255)).to(torch.uint8), torch.from_numpy(targets)


@pytest.fixture(scope="module")
def sample() -> AuditSample:
    images, targets = pictures(60, 1)
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
    return AuditSample(images[order], targets[order].numpy(), np.arange(len(targets)))


def trained(pooling: str = "token", steps: int = 150, sharp: bool = False) -> Any:
    """A ViT trained on the quadrants, with the pooling in front of its classifier.

    With `sharp` attention at the start its heads differ, as those of longer training do.
    """
    torch.manual_seed(0)
    net = timm.create_model(
        "vit_tiny_patch16_224", img_size=SIDE, patch_size=PATCH, embed_dim=32, depth=2, num_heads=4, num_classes=0,
        dynamic_img_size=True, mlp_ratio=2,
    )  # fmt: skip
    for block in net.blocks if sharp else ():
        nn.init.normal_(block.attn.qkv.weight, std=0.8)
    head = nn.Linear(32, CLASSES)
    optimiser = torch.optim.AdamW([*net.parameters(), *head.parameters()], lr=3e-3)
    images, targets = pictures(150, 0)
    x = (images.float() / 255 - 0.5) / 0.5
    draw = torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = torch.randint(0, len(x), (96,), generator=draw)
        tokens = net.forward_features(x[rows])
        pooled = tokens[:, 0] if pooling == "token" else tokens[:, net.num_prefix_tokens :].mean(1)
        loss = F.cross_entropy(head(pooled), targets[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.5
    return net.eval()


@pytest.fixture(scope="module")
def by_class_token() -> Any:
    return trained()


def encoder_of(net: Any, **card: Any) -> Encoder:
    described = {"name": "v", "source": "test", "architecture": Architecture(name="timm:vit"), **HALF, **card}
    return _encoder(EncoderCard.model_validate(described), net, None)


def audited(encoder: Encoder, sample: AuditSample) -> Audit:
    return examine(encoder, sample, seconds=600, seed=0, show=False)


@pytest.mark.slow
def test_a_correct_vit_raises_no_alarm_and_comes_back_unchanged(by_class_token: Any, sample: AuditSample) -> None:
    net = copy.deepcopy(by_class_token)
    audit = audited(encoder_of(net), sample)
    assert audit.findings == ()
    assert {t.name for t in audit.trials} >= {"8 heads", "16 heads", "embed mean"}
    assert net.blocks[0].attn.num_heads == 4
    assert all(torch.equal(t, by_class_token.state_dict()[n]) for n, t in net.state_dict().items())


@pytest.mark.slow
def test_the_wrong_number_of_heads_is_found(sample: AuditSample) -> None:
    net = trained(steps=120, sharp=True)
    with with_heads(net, 2):
        audit = audited(encoder_of(net), sample)
    assert any("with 4 heads instead of 2" in f and f.endswith("heads is probably wrong") for f in audit.findings)


def test_mean_and_std_of_another_family_are_found(by_class_token: Any, sample: AuditSample) -> None:
    audit = audited(encoder_of(copy.deepcopy(by_class_token), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)), sample)
    assert any("points higher on pixels of -1 to 1" in finding for finding in audit.findings)


@pytest.mark.slow
def test_pixels_that_are_normalised_twice_are_found(by_class_token: Any, sample: AuditSample) -> None:
    """As a RADIO, whose network normalises by itself, on pixels that are normalised before."""
    twice = encoder_of(copy.deepcopy(by_class_token), mean=(0.75, 0.75, 0.75), std=(0.25, 0.25, 0.25))
    assert any("points higher" in finding and "-1 to 1" in finding for finding in audited(twice, sample).findings)


@pytest.mark.slow
def test_the_class_token_of_a_network_trained_on_its_patches_is_found(sample: AuditSample) -> None:
    net = trained("avg")
    audit = audited(encoder_of(net), sample)
    assert any("by the mean of its patch tokens" in f and "try --facts embed=mean" in f for f in audit.findings)
    right = encoder_of(net, architecture=Architecture(name="timm:vit", pooling="mean"))
    assert not any("embed=" in finding for finding in audited(right, sample).findings)


def untrained(**options: Any) -> Any:
    torch.manual_seed(0)
    net = timm.create_model(
        "vit_tiny_patch16_224", img_size=SIDE, patch_size=PATCH, embed_dim=32, depth=2, num_heads=4, num_classes=0,
        dynamic_img_size=True, **options,
    )  # fmt: skip
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    return net.eval()


def masked(net: Any) -> None:
    net.patch_drop.forward = lambda tokens: F.dropout(tokens, 0.5)  # in eval mode too


def registers_among_patches(net: Any) -> None:
    net.num_prefix_tokens = 1  # as if there were no registers: the map begins with them
    plain = net.forward_intermediates

    def cut(*arguments: Any, **options: Any) -> Any:
        norm = net.norm(net.blocks(net._pos_embed(net.patch_embed(arguments[0]))))
        height, width = (side // PATCH for side in arguments[0].shape[2:])
        maps = norm[:, 1 : 1 + height * width].transpose(1, 2).unflatten(2, (height, width))
        return norm, [(maps, norm[:, :1])]

    assert plain
    net.forward_intermediates = cut


def sliced_positions(net: Any) -> None:
    """As I-JEPA's own helper: the first position is taken for a class token's."""

    def positions(patches: Tensor) -> Tensor:
        height, width = patches.shape[1:3]
        pos = net.pos_embed[:, 1:]
        if (height, width) != (SIDE // PATCH,) * 2:
            grid = SIDE // PATCH
            padded = torch.cat([net.pos_embed[:, 2:], net.pos_embed[:, -1:]], 1)
            maps = padded.transpose(1, 2).unflatten(2, (grid, grid))
            pos = F.interpolate(maps, size=(height, width), mode="bicubic").flatten(2).transpose(1, 2)
        tokens = patches.flatten(1, 2) + pos
        return torch.cat([(net.cls_token + net.pos_embed[:, :1]).expand(len(tokens), -1, -1), tokens], 1)

    net._pos_embed = positions


def exchanged_positions(net: Any) -> None:
    """As an interpolation that takes the map's height for its width."""

    def positions(patches: Tensor) -> Tensor:
        grid, (height, width) = SIDE // PATCH, patches.shape[1:3]
        maps = net.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (grid, grid))
        if (height, width) != (grid, grid):
            maps = F.interpolate(maps, size=(width, height), mode="bicubic").mT
        tokens = patches.flatten(1, 2) + maps.flatten(2).transpose(1, 2)
        return torch.cat([(net.cls_token + net.pos_embed[:, :1]).expand(len(tokens), -1, -1), tokens], 1)

    net._pos_embed = positions


def unrelated_positions(net: Any) -> None:
    """As where positions that do not fit the image were drawn anew."""
    plain = net._pos_embed

    def positions(patches: Tensor) -> Tensor:
        tokens = plain(patches)
        if patches.shape[1] == SIDE // PATCH:
            return tokens
        drawn = torch.randn(tokens.shape[1:], generator=torch.Generator().manual_seed(0))
        return F.pad(patches.flatten(1, 2), (0, 0, 1, 0)) + drawn

    net._pos_embed = positions


def scales_not_loaded(net: Any) -> None:
    for name, value in net.named_parameters():
        if "gamma" in name:
            value.data.fill_(1e-5)


def registers_not_loaded(net: Any) -> None:
    nn.init.normal_(net.reg_token, std=1e-6)


def without_norm_pre(net: Any) -> None:
    net.norm_pre = nn.Identity()


def without_norm(net: Any) -> None:
    net.norm = nn.Identity()


@pytest.mark.parametrize(
    ("options", "inject", "said"),
    [
        ({"init_values": 0.1}, scales_not_loaded, "LayerScale is 1e-05 in every block: its weights"),
        ({"reg_tokens": 4, "no_embed_class": True}, registers_not_loaded, "reg_token is nearly constant"),
        (
            {"reg_tokens": 4, "no_embed_class": True},
            registers_among_patches,
            "the map of patches is shifted by 4 places",
        ),
        ({"pre_norm": True}, without_norm_pre, "its ln_pre is probably missing"),
        ({}, without_norm, "the final norm is probably missing"),
        ({}, masked, "patches changes from pass to pass"),
        ({}, sliced_positions, "positions at other image sizes are shifted by 1 places"),
        ({}, exchanged_positions, "positions at other image sizes have rows and columns exchanged"),
        ({}, unrelated_positions, "positions at twice the image size have little in common with those of the file"),
    ],
)
def test_faults_of_the_structure_are_found_and_only_they(
    options: dict[str, Any], inject: Callable[[Any], None], said: str, sample: AuditSample
) -> None:
    net = untrained(**options)
    assert structure(encoder_of(net), sample.images) == ()
    inject(net)
    found = structure(encoder_of(net), sample.images)
    assert len(found) == 1
    assert said in found[0]


FAMILIES = ("dino", "dinov2-registers", "dinov3", "ijepa", "clip", "aimv2", "beit", "siglip", "franca", "pe",
            "pe-spatial", "radio")  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_no_family_raises_a_false_alarm_about_its_structure(name: str, tmp_path: Any) -> None:
    case = CASES[name]
    encoder = load_encoder(written(case, case.net.weights(), tmp_path), facts=case.facts)
    torch.manual_seed(0)
    images = torch.randint(0, 256, (4, 3, 48, 48), dtype=torch.uint8)
    assert structure(encoder, images) == ()
    assert map_shift(encoder, encoder.normalise(images)) == 0


def test_the_other_activation_is_tried_for_networks_with_a_norm_before_the_blocks(sample: AuditSample) -> None:
    net = untrained(pre_norm=True)
    encoder = encoder_of(net)
    (tried,) = [a for a in alternatives(encoder) if a.name == "activation"]
    assert tried.words == "with CLIP's QuickGELU"
    assert "activation" not in {a.name for a in alternatives(encoder_of(untrained()))}
    images = encoder.normalise(sample.images[:4])
    exact = encoder.outputs(images, ["embed"])["embed"]
    reference = copy.deepcopy(net)
    for block in reference.blocks:
        block.mlp.act = timm.layers.QuickGELU()
    with torch.no_grad():
        expected = reference(images)
    assert tried.within is not None
    with tried.within(net):
        assert torch.allclose(encoder.outputs(images, ["embed"])["embed"], expected, atol=1e-6)
    assert torch.equal(encoder.outputs(images, ["embed"])["embed"], exact)
    assert not torch.allclose(exact, expected, atol=1e-3)
    with with_activation(reference, quick=False), torch.no_grad():
        assert torch.allclose(reference(images), exact, atol=1e-6)

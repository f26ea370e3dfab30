"""MAE's fine-tuning recipe: layers and mixing against timm's, the schedule, and a ViT from images to scores."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.data import Mixup
from timm.optim import param_groups_layer_decay
from torch import nn

from benchmarks.encoders.encoder import Encoder
from benchmarks.finetune import MAE_PROTOCOLS, FineTuneImageNet, FineTuneParams
from benchmarks.registry import find_protocol
from benchmarks.task import InputError, Labels, NotApplicableError, Outcome, RunOptions
from benchmarks.training.finetuning import Classifier, soft_cross_entropy
from benchmarks.training.images import mix, mix_rng
from tests.builders import GEOMETRY, small_vit
from tests.reference.finetune_plain import tiny_encoder
from tests.reference.linear_tiny import tiny_labels

OPTIONS = RunOptions(device="cpu", workers=0, seed=3, progress=False)
DEPTH = 3


def vit(**settings: Any) -> Encoder:
    return small_vit(depth=DEPTH, img_size=16, **settings)


def classifier(drop_path: float = 0.0) -> Classifier:
    return Classifier(vit(), 5, 16, "near_zero", 0, mean_pool=True, drop_path=drop_path)


def test_every_parameter_has_the_rate_and_decay_that_timm_gives_it() -> None:
    ours = classifier()
    # timm's model with a norm after the mean, and a head: what MAE trains.
    theirs = timm.create_model(
        "vit_tiny_patch16_224", num_classes=5, depth=DEPTH, embed_dim=24, num_heads=3, patch_size=8, img_size=16,
        global_pool="avg", fc_norm=True,
    )  # fmt: skip
    groups = param_groups_layer_decay(
        theirs, weight_decay=0.05, no_weight_decay_list=theirs.no_weight_decay(), layer_decay=0.65
    )
    names = {id(parameter): name for name, parameter in theirs.named_parameters()}
    expected = {
        names[id(p)].replace("head.", "fc."): (group["lr_scale"], group["weight_decay"] > 0)
        for group in groups
        for p in group["params"]
    }
    found = {n: (group.scale, group.decayed) for group in ours.layer_groups(0.65) for n in group.names}
    assert found.keys() == expected.keys()
    for name, (scale, decayed) in expected.items():
        assert found[name] == (pytest.approx(scale), decayed), name
    assert found["blocks.0.attn.qkv.weight"] == (pytest.approx(0.65**DEPTH), True)
    assert found["pos_embed"] == (pytest.approx(0.65 ** (DEPTH + 1)), False)
    trained = sum(p.numel() for p in ours.parameters() if p.requires_grad)
    assert sum(p.numel() for group in ours.layer_groups(0.65) for p in group.parameters) == trained


def test_it_reads_the_mean_of_bare_patch_tokens_after_a_new_norm() -> None:
    encoder, ours = vit(), classifier().eval()
    x = torch.randn(2, 3, 16, 16)
    net: Any = encoder.module
    with torch.no_grad():
        tokens = net._pos_embed(net.patch_embed(x))
        for block in net.blocks:
            tokens = block(tokens)
        mean = tokens[:, 1:].mean(dim=1)
        normed = (mean - mean.mean(1, keepdim=True)) / (mean.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt()
        expected = normed @ ours.fc.weight.T
        torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=1e-9)
    assert float(ours.fc.weight.detach().std()) == pytest.approx(2e-5, rel=0.2)
    assert isinstance(net.norm, nn.LayerNorm)  # the encoder itself is as it was


def test_blocks_are_skipped_more_often_towards_the_last() -> None:
    blocks: Any = classifier(0.2).vit.blocks
    assert [getattr(block.drop_path1, "p", 0.0) for block in blocks] == pytest.approx([0.0, 0.1, 0.2])
    assert [getattr(block.drop_path2, "p", 0.0) for block in blocks] == pytest.approx([0.0, 0.1, 0.2])
    dropped: Any = classifier(0.2).vit.blocks[2].drop_path1.train()
    kept = dropped(torch.ones(20_000, 2, 2))
    assert float((kept == 0).all(dim=(1, 2)).double().mean()) == pytest.approx(0.2, abs=0.02)
    assert float(kept.mean()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_mixing_is_timms(mixup: float, cutmix: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the draws of ours: the same images and soft targets, and the same loss."""
    generator = torch.Generator().manual_seed(2)
    x, targets = torch.randn(6, 3, 12, 10, generator=generator), torch.tensor([0, 1, 2, 2, 3, 1])
    logits = torch.randn(6, 4, generator=generator)
    for step in range(12):
        mixed, share = mix(x, mixup, cutmix, mix_rng(0, step, 0))
        rng = mix_rng(0, step, 0)
        cut = cutmix > 0 and (mixup == 0 or rng.random() < 0.5)
        drawn = float(rng.beta(*2 * (cutmix if cut else mixup,)))
        theirs = Mixup(mixup_alpha=mixup, cutmix_alpha=cutmix, label_smoothing=0.1, num_classes=4)
        monkeypatch.setattr(theirs, "_params_per_batch", lambda drawn=drawn, cut=cut: (drawn, cut))
        monkeypatch.setattr(
            "timm.data.mixup.np.random.randint", lambda low, high, size=None, rng=rng: rng.integers(high)
        )
        monkeypatch.setattr("timm.data.mixup.one_hot", _one_hot)
        expected, soft = theirs(x.clone(), targets)
        torch.testing.assert_close(mixed, expected, rtol=1e-5, atol=1e-6)
        loss = -(soft * logits.log_softmax(dim=1)).sum()
        torch.testing.assert_close(
            soft_cross_entropy(logits, targets, targets.flip(0), share, 0.1), loss, rtol=1e-5, atol=1e-5
        )


def _one_hot(x: torch.Tensor, num_classes: int, on_value: float = 1.0, off_value: float = 0.0) -> torch.Tensor:
    return torch.full((len(x), num_classes), off_value).scatter_(1, x.long().view(-1, 1), on_value)


def test_mixups_two_kinds_are_as_frequent_and_shares_as_drawn() -> None:
    x, shares = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 32, 32), []
    kinds = []
    for step in range(400):
        mixed, share = mix(x, 0.8, 1.0, mix_rng(1, step, 0))
        kinds.append(bool((mixed[0] == 0).logical_or(mixed[0] == 3).all()))
        assert float(mixed[0].mean()) == pytest.approx(3 * (1 - share), abs=1e-3)
        shares.append(share)
    assert np.mean(kinds) == pytest.approx(0.5, abs=0.08)
    assert mix(x, 0.0, 0.0, mix_rng(1, 0, 0))[1] == 1.0


def test_the_schedule_is_maes() -> None:
    params = FineTuneParams.model_validate(MAE_PROTOCOLS[0].params)
    for step in (0, 250, 499, 500, 1234, 9_999):  # 100 steps per epoch
        epoch = step / 100
        cosine = 1e-6 + (2e-3 - 1e-6) * 0.5 * (1 + math.cos(math.pi * (epoch - 5) / 95))
        expected = 2e-3 * epoch / 5 if epoch < 5 else cosine
        assert 2e-3 * params.rate_factor(step, 100) == pytest.approx(expected, abs=1e-15)
    assert MAE_PROTOCOLS[0].changed(epochs=10).id == "finetune_imagenet.mae_base@1+epochs=10+warmup=0.5"
    with pytest.raises(InputError, match="leave head_multipliers at 1"):
        MAE_PROTOCOLS[0].changed(head_multipliers=(10.0,))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Labels, Labels]:
    folder = tmp_path_factory.mktemp("images")
    return tiny_labels(folder, "train", 8, seed=0), tiny_labels(folder, "val", 5, seed=1)


def tune(encoder: Encoder, data: tuple[Labels, Labels], workdir: Path, epochs: int = 3) -> Outcome:
    protocol = find_protocol("finetune_imagenet.mae_demo").changed(
        epochs=epochs, batch_size=8, evaluate_every=1, geometry=GEOMETRY.model_dump()
    )
    return FineTuneImageNet().run(protocol, encoder, *data, workdir, OPTIONS)


@pytest.mark.slow
def test_a_vit_is_tuned_whole_and_goes_on_bit_for_bit(
    data: tuple[Labels, Labels], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = vit()
    before = {name: tensor.clone() for name, tensor in encoder.module.state_dict().items()}
    whole = tune(encoder, data, tmp_path / "whole")
    assert all(torch.equal(encoder.module.state_dict()[name], tensor) for name, tensor in before.items())
    trained = torch.load(tmp_path / "whole" / "all.pt", weights_only=True)["network"]
    moved = [name for name, tensor in before.items() if not name.startswith("norm.")]
    assert all(not torch.equal(trained[f"backbone.{name}"], before[name]) for name in moved)

    from benchmarks.training import finetuning

    save, saved = finetuning.FineTuneState.save, []

    def stop_after_two(state: Any, path: Path) -> None:
        save(state, path)
        saved.append(state.steps)
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(finetuning.FineTuneState, "save", stop_after_two)
    torch.manual_seed(11)
    with pytest.raises(KeyboardInterrupt):
        tune(vit(), data, tmp_path / "stopped")
    monkeypatch.undo()
    torch.manual_seed(12)  # what torch has drawn elsewhere must not matter
    resumed = tune(vit(), data, tmp_path / "stopped")
    assert resumed.runs == whole.runs
    again = torch.load(tmp_path / "stopped" / "all.pt", weights_only=True)["network"]
    assert all(torch.equal(again[name], tensor) for name, tensor in trained.items())


def test_other_networks_are_refused(data: tuple[Labels, Labels], tmp_path: Path) -> None:
    with pytest.raises(NotApplicableError, match="is not a plain vision transformer"):
        tune(tiny_encoder(), data, tmp_path)

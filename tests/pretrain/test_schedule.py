"""Learning rates at the epochs that the papers name, and LARS against its formula."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pretrain.recipe import Recipe, load_recipe
from pretrain.trainer import LARS, build_optimizer


def test_cosine_schedule_moves_once_an_epoch_as_published() -> None:
    r = Recipe()
    assert r.learning_rate(0) == 0.03
    assert r.learning_rate(100) == pytest.approx(0.015)
    assert r.learning_rate(199) == pytest.approx(0.03 * 0.5 * (1 - 0.99987663), rel=1e-3)


def test_step_schedule_of_v1() -> None:
    r = load_recipe("mocov1_resnet50_8xb32-steplr-200e_in1k")
    assert [r.learning_rate(e) for e in (0, 119, 120, 160)] == pytest.approx([0.03, 0.03, 0.003, 0.0003])


def test_a_billion_images_decay_every_62500_iterations() -> None:
    r = load_recipe("mocov1_resnet50_64xb16-explr-1250kit_ig1b")
    assert r.epoch_steps is not None
    assert r.epochs * r.epoch_steps == 1_250_000
    rates = [r.learning_rate(step // r.epoch_steps) for step in (0, 62_499, 62_500, 1_249_999)]
    assert rates == pytest.approx([0.12, 0.12, 0.12 * 0.9, 0.12 * 0.9**19])


def test_simclr_warms_up_and_then_follows_a_whole_half_cosine() -> None:
    r = load_recipe("simclr_resnet50_8xb32-coslr-200e_in1k")
    assert [r.learning_rate(e) for e in (0, 5, 10, 105, 200)] == pytest.approx([0, 0.15, 0.3, 0.15, 0], abs=1e-12)


def test_lars_equals_its_formula_step_by_step() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double()
    recipe = Recipe(optimizer="lars", lr=0.3, weight_decay=0.1, sgd_momentum=0.9)
    optimizer = build_optimizer(recipe, [net])
    assert isinstance(optimizer, LARS)
    weights = [p.detach().clone() for p in net.parameters()]
    moves = [torch.zeros_like(p) for p in weights]
    for step in range(3):
        loss = net(torch.randn(5, 4, generator=torch.Generator().manual_seed(step), dtype=torch.float64)).pow(3).sum()
        optimizer.zero_grad()
        loss.backward()
        for i, p in enumerate(net.parameters()):
            assert p.grad is not None
            gradient, rate = p.grad.clone(), 0.3
            if p.ndim > 1:  # biases and norms are neither decayed nor adapted
                gradient = gradient + 0.1 * weights[i]
                rate *= 0.001 * float(weights[i].norm() / gradient.norm())
            moves[i] = 0.9 * moves[i] + rate * gradient
            weights[i] = weights[i] - moves[i]
        optimizer.step()
        for mine, expected in zip(net.parameters(), weights, strict=True):
            assert torch.allclose(mine, expected, atol=1e-12)


def test_lars_leaves_a_tensor_without_norm_at_the_plain_rate() -> None:
    p = nn.Parameter(torch.zeros(2, 2))
    optimizer = LARS([{"params": [p], "weight_decay": 0.0, "adapt": True}], lr=0.5, momentum=0.9)
    p.grad = torch.ones(2, 2)
    optimizer.step()
    assert torch.equal(p.detach(), torch.full((2, 2), -0.5))

"""Banks of attentive heads against loops over tokens, and their optimiser against torch's, one head at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.solvers.attentive_heads import BANKS, AttentiveBank, PooledNorm
from benchmarks.solvers.linear_heads import BankAdamW, BankOptimiser, bank_loss
from tests.reference.attentive_plain import POOLINGS

DIM, CLASSES, HEADS, IMAGES, TOKENS = 8, 3, 2, 5, 6
SETTINGS: dict[str, dict[str, Any]] = {
    "ep": {"queries": 4},
    "aim": {"attention_heads": 2},
    "capi": {"attention_heads": 4},
    "vjepa2": {"attention_heads": 2, "blocks": 2},
}


def bank(form: str, heads: int = HEADS, *, alike: bool = False) -> AttentiveBank:
    """Every parameter drawn anew for each head, biases and norms too, so that none can be left out."""
    generator = torch.Generator().manual_seed(1)
    found = BANKS[form](DIM, CLASSES, heads, generator=generator, **SETTINGS[form]).double()
    if not alike:
        with torch.no_grad():
            for parameter in found.parameters():
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return found


def tokens(seed: int = 2) -> Tensor:
    return torch.randn(IMAGES, TOKENS, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weights(found: AttentiveBank, head: int) -> dict[str, Any]:
    return {name: parameter[head].detach().numpy() for name, parameter in found.named_parameters()}


def plain_logits(form: str, found: AttentiveBank, x: np.ndarray[Any, Any], head: int) -> np.ndarray[Any, Any]:
    """Of all images, with the statistics of this batch where there is a batch norm."""
    w = weights(found, head)
    if form == "aim":
        flat = x.reshape(-1, DIM)
        x = (x - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-6)
    pooled = np.array([POOLINGS[form](image, w, SETTINGS[form]) for image in x])
    if form == "ep":
        pooled = (pooled - pooled.mean(0)) / np.sqrt(pooled.var(0) + 1e-6)
    return pooled @ w["weight"].T + w.get("bias", 0)


@pytest.mark.parametrize("form", list(BANKS))
def test_a_head_is_a_loop_over_tokens(form: str) -> None:
    found, x = bank(form), tokens()
    logits = found.train()(x).detach().numpy()
    assert logits.shape == (IMAGES, HEADS, CLASSES)
    for head in range(HEADS):
        np.testing.assert_allclose(logits[:, head], plain_logits(form, found, x.numpy(), head), rtol=1e-9, atol=1e-9)
    assert np.abs(logits[:, 0] - logits[:, 1]).max() > 0.1


@pytest.mark.parametrize("form", list(BANKS))
def test_parameters_begin_as_in_the_sources(form: str) -> None:
    """Normal of deviation 0.02, V-JEPA's projections divided by sqrt(2 depth), or as torch begins a linear layer."""
    width, classes = 64, 50
    found = BANKS[form](width, classes, 1, generator=torch.Generator().manual_seed(0), **SETTINGS[form])
    uniform = {"ep": {"value", "weight", "bias"}, "aim": {"key", "value", "weight"}, "capi": set[str](),
               "vjepa2": {"weight", "bias"}}[form]  # fmt: skip
    depth = {"block0_proj": 1, "block0_fc2": 1, "block1_proj": 2, "block1_fc2": 2, "cross_fc2": 2}
    checked = set()
    for name, parameter in found.named_parameters():
        parameter = parameter.detach()
        if name in uniform:
            assert 0.9 * width**-0.5 < parameter.abs().max() <= width**-0.5, name
            assert abs(parameter.mean()) < 0.3 * width**-0.5, name
        elif parameter.any() and not (parameter == 1).all():
            layers = next((n for prefix, n in depth.items() if name.startswith(prefix)), None)
            expected = 0.02 / (2 * layers) ** 0.5 if layers else 0.02
            assert float(parameter.std()) == pytest.approx(expected, rel=0.3), name
            checked.add(name)
    assert "query" in checked


@pytest.mark.parametrize("form", list(BANKS))
def test_heads_share_no_gradient_and_start_alike(form: str) -> None:
    found = bank(form, alike=True)
    assert all(torch.equal(p[0], p[1]) for p in found.parameters())
    found.train()(tokens())[:, 0].square().sum().backward()
    for name, parameter in found.named_parameters():
        assert parameter.grad is not None
        assert not parameter.grad[1].any(), name
    untouched = [name for name, p in found.named_parameters() if not p.grad[0].any()]  # type: ignore[index]
    assert not untouched


@pytest.mark.parametrize("form", ["ep", "aim"])
def test_statistics_of_training_are_used_in_evaluation(form: str) -> None:
    found, x = bank(form), tokens()
    reference = nn.BatchNorm1d(DIM * HEADS if form == "ep" else DIM, affine=False, eps=1e-6).double()
    for seed in range(3):
        x = tokens(seed)
        found.train()(x)
        if form == "ep":
            w = [weights(found, head) for head in range(HEADS)]
            pooled = [[POOLINGS["ep"](image, w[head], SETTINGS["ep"]) for image in x.numpy()] for head in range(HEADS)]
            reference(torch.tensor(np.concatenate(pooled, axis=1)))
        else:
            reference(x.transpose(1, 2))
    norm = found.norm
    torch.testing.assert_close(norm.running_mean, reference.running_mean)
    torch.testing.assert_close(norm.running_var, reference.running_var)
    assert set(found.tensors()) >= {"query", "weight", "bn.running_mean", "bn.running_var"}
    assert all(len(tensor) == HEADS for tensor in found.tensors().values())
    assert found.eval()(x[:0]).shape == (0, HEADS, CLASSES)


def test_the_pooled_norm_has_torchs_gradient() -> None:
    x = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    scale = torch.arange(28.0, dtype=torch.float64).view(7, 4).sin()
    (PooledNorm(4).double().train()(x) * scale).sum().backward()
    (nn.BatchNorm1d(4, affine=False).double().train()(y) * scale).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)


def test_adamw_of_a_bank_is_torchs_of_every_head() -> None:
    rates, decays, factors = (0.01, 0.1), (0.5, 0.0), [1.0, 0.5, (0.2, 1.0)]
    found = bank("capi", alike=True)
    optimiser = BankAdamW(found, rates, decays, betas=(0.9, 0.95))
    targets = torch.arange(IMAGES) % CLASSES
    for seed, factor in enumerate(factors):
        bank_loss(found.train()(tokens(seed)), targets, IMAGES).sum().backward()
        optimiser.step(factor)
    for head in range(HEADS):
        alone = bank("capi", 1, alike=True)
        spared = [p for name, p in alone.named_parameters() if "bias" in name]
        decayed = [p for name, p in alone.named_parameters() if "bias" not in name]
        groups = [{"params": decayed, "weight_decay": decays[head]}, {"params": spared, "weight_decay": 0.0}]
        theirs = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95))
        for seed, factor in enumerate(factors):
            for group in theirs.param_groups:
                group["lr"] = rates[head] * (factor[head] if isinstance(factor, tuple) else factor)
            theirs.zero_grad()
            nn.functional.cross_entropy(alone.train()(tokens(seed))[:, 0], targets).backward()
            theirs.step()
        for (name, own), expected in zip(found.named_parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(own[head], expected[0], rtol=1e-6, atol=1e-8, msg=name)


@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_maes_lars_has_momentum_over_gradients_and_spares_vectors(decay: float) -> None:
    """Every head alone, by MAE's util/lars.py in plain words; the rate changes from step to step."""
    found, rates = bank("ep"), (0.3, 0.6)
    optimiser = BankOptimiser(found, rates, (decay, decay), lars_eta=1e-3, maes=True)
    alone = {(name, head): p.detach()[head].clone() for name, p in found.named_parameters() for head in (0, 1)}
    moved = {key: torch.zeros_like(value) for key, value in alone.items()}
    for step, factor in enumerate((0.1, 0.5, 1.0, 0.2)):
        bank_loss(found.train()(tokens(step)), torch.arange(IMAGES) % CLASSES, IMAGES).sum().backward()
        gradients = {name: p.grad.clone() for name, p in found.named_parameters() if p.grad is not None}
        optimiser.step(factor)
        for (name, head), w in alone.items():
            g = gradients[name][head]
            if w.ndim > 1:
                g = g + decay * w
                g = g * 1e-3 * w.norm() / g.norm()
            moved[name, head] = 0.9 * moved[name, head] + g
            alone[name, head] = w - rates[head] * factor * moved[name, head]
    for name, parameter in found.named_parameters():
        for head in (0, 1):
            torch.testing.assert_close(parameter[head].detach(), alone[name, head], rtol=1e-4, atol=1e-8)

"""Every mechanism against its plain version, step by step in float64."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pretrain.baselines import MemoryBank
from pretrain.mechanism import Batch, Mechanism, spread
from pretrain.moco import MoCo
from pretrain.recipe import Recipe, load_recipe
from pretrain.trainer import build_mechanism, build_optimizer
from results.schema import Architecture
from tests.reference.mechanisms_plain import PlainEndToEnd, PlainMemoryBank, PlainSimCLR
from tests.reference.moco_plain import PlainMoCo
from tests.reference.optimizers_plain import PlainLARS, PlainSGD

TINY = Architecture(name="resnet18", width=8, stem_kernel=3, max_pool=False)
IMAGES, N, SEED = 96, 8, 1

V1 = "mocov1_resnet50_8xb32-steplr-200e_in1k"
V2 = "mocov2_resnet50_8xb32-coslr-200e_in1k"
END_TO_END = "end-to-end_resnet50_8xb32-steplr-200e_in1k"
BANK = "memory-bank_resnet50_8xb32-steplr-200e_in1k"
NCE = "memory-bank-nce_resnet50_8xb32-steplr-200e_in1k"
SIMCLR = "simclr_resnet50_8xb32-coslr-200e_in1k"
V2_HEAD: dict[str, Any] = {"head": "mlp", "temperature": 0.2}
# What a recipe says of head, temperature, momentum, loss, optimiser, rate and decay holds, but for what is beside it.
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "moco v1": (V1, {}),
    "moco v2": (V2, {}),
    "moco v2 symmetric": (V2, {"symmetric": True}),
    "end-to-end v1": (END_TO_END, {}),
    "end-to-end v2": (END_TO_END, V2_HEAD),
    "memory bank v1": (BANK, {}),
    "memory bank v2": (BANK, V2_HEAD),
    "memory bank, NCE": (NCE, {"temperature": 0.2, "queue_size": 16}),
    "simclr v1": (SIMCLR, {"head": "linear"}),
    "simclr v2": (SIMCLR, {}),
}


def recipe_of(name: str, architecture: Architecture = TINY) -> Recipe:
    base, changes = SETTINGS[name]
    small = {"architecture": architecture, "queue_size": 32, "batch_size": N, "split_bn": 1, "dim": 16}
    return Recipe(**{**load_recipe(base).model_dump(), **small, **changes})


def build(recipe: Recipe, dtype: torch.dtype) -> Mechanism:
    torch.manual_seed(0)
    return build_mechanism(recipe, torch.Generator().manual_seed(SEED), IMAGES).to(dtype)


def plain_of(recipe: Recipe, model: Mechanism) -> Any:
    encoder = copy.deepcopy(model.encoder_q)
    if isinstance(model, MoCo):
        return PlainMoCo(encoder, model.queue, recipe.key_momentum, recipe.temperature, recipe.symmetric)
    if isinstance(model, MemoryBank):
        nce = recipe.bank_loss == "nce"
        return PlainMemoryBank(encoder, model.bank, recipe.queue_size, recipe.temperature, nce, SEED)
    kind = PlainEndToEnd if recipe.mechanism == "end-to-end" else PlainSimCLR
    return kind(encoder, recipe.temperature)


def parameters_of(plain: Any) -> list[Tensor]:
    encoders = [plain.f_q, plain.f_k] if isinstance(plain, PlainEndToEnd) else [getattr(plain, "f_q", None) or plain.f]
    return [p for encoder in encoders for p in encoder.parameters()]


def run_beside(recipe: Recipe, steps: int, size: int, dtype: torch.dtype, tolerance: float) -> None:
    """The core and the plain version on the same views; every loss, and at the end every weight and memory."""
    model = build(recipe, dtype)
    plain = plain_of(recipe, model)
    ours = build_optimizer(recipe, [model.get_submodule(name) for name in model.trained])
    plain_optimizer = PlainLARS if recipe.optimizer == "lars" else PlainSGD
    theirs = plain_optimizer(parameters_of(plain), recipe.lr, recipe.sgd_momentum, recipe.weight_decay)
    draws = torch.Generator().manual_seed(2)
    for _ in range(steps):
        views = torch.randn(model.views, N, 3, size, size, generator=draws, dtype=dtype)
        indices = torch.randperm(IMAGES, generator=draws)[:N]
        loss = model(Batch(tuple(views), indices)).loss
        reference = plain.loss(*views, *([indices.tolist()] if model.views == 1 else []))
        for optimizer, value in ((ours, loss), (theirs, reference)):
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        assert abs(loss.item() - reference.item()) < tolerance
    trained = (p for name in model.trained for p in model.get_submodule(name).parameters())
    for mine, other in zip(trained, parameters_of(plain), strict=True):
        assert torch.allclose(mine, other, rtol=0, atol=tolerance)
    if isinstance(model, MoCo):
        assert torch.allclose(model.queue, torch.stack(plain.queue, dim=1), rtol=0, atol=tolerance)
        assert int(model.queue_ptr) == plain.at
        for mine, other in zip(model.encoder_k.parameters(), plain.f_k.parameters(), strict=True):
            assert torch.allclose(mine, other, rtol=0, atol=tolerance)
    if isinstance(model, MemoryBank):
        assert torch.allclose(model.bank, torch.stack(plain.bank), rtol=0, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_fifty_float64_steps_equal_the_plain_version(name: str) -> None:
    run_beside(recipe_of(name), 50, 16, torch.float64, 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("moco v2", 5),
        *(
            pytest.param(name, steps, marks=pytest.mark.nightly)
            for name, steps in (
                ("moco v2", 50), ("moco v1", 5), ("end-to-end v2", 5), ("memory bank v2", 5), ("simclr v2", 5)
            )
        ),
    ],
)  # fmt: skip
def test_float64_steps_of_resnet18_at_full_width_equal_the_plain_version(name: str, steps: int) -> None:
    """Width and stem of the paper; fifty steps of every mechanism are compared at a smaller width."""
    run_beside(recipe_of(name, Architecture(name="resnet18")), steps, 32, torch.float64, 1e-9)


@pytest.mark.parametrize("name", SETTINGS)
def test_one_float32_step_equals_the_plain_version(name: str) -> None:
    run_beside(recipe_of(name), 1, 16, torch.float32, 1e-5)


@pytest.mark.parametrize("name", SETTINGS)
def test_chance_loss_is_that_of_embeddings_that_tell_nothing_apart(name: str) -> None:
    model = build(recipe_of(name), torch.float64)
    one = torch.nn.functional.normalize(torch.ones(1, 16, dtype=torch.float64))

    class Constant(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = torch.nn.Parameter(torch.zeros(1))

        def forward(self, images: Tensor) -> Tensor:
            return one.expand(len(images), -1)

    model.encoder_q = Constant()
    if hasattr(model, "encoder_k"):
        model.encoder_k = Constant()
    for memory in ("queue", "bank"):
        if hasattr(model, memory):
            getattr(model, memory).copy_(one.T if memory == "queue" else one)
    loss = model(Batch(tuple(torch.zeros(model.views, N, 3, 4, 4)), torch.arange(N)))
    assert math.isclose(loss.loss.item(), model.chance_loss, rel_tol=1e-4)
    assert loss.spread.item() < 1e-6  # collapsed


class Embeddings(torch.nn.Module):
    """The first numbers of an image, normalised."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.nn.functional.normalize(images.flatten(1)[:, :16], dim=1)


@pytest.mark.parametrize("name", ["end-to-end v1", "simclr v1", "memory bank v1", "memory bank, NCE"])
def test_accuracy_is_the_share_of_queries_whose_positive_outscores_every_negative(name: str) -> None:
    model = build(recipe_of(name), torch.float64)
    model.encoder_q = model.encoder_k = Embeddings()
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(N, 3, 4, 4, generator=generator, dtype=torch.float64)
    views = images, images + 2 * torch.randn(N, 3, 4, 4, generator=generator, dtype=torch.float64)
    q, k = map(Embeddings(), views)
    if isinstance(model, MemoryBank):
        model.bank[:N] = k
        state, bank = model.generator.get_state(), model.bank.clone()
        found = model(Batch(views[:1], torch.arange(N))).accuracy
        model.generator.set_state(state)
        shape = (N, 16) if model.loss == "nce" else (32,)
        negatives = bank[torch.randint(IMAGES, shape, generator=model.generator)].expand(N, -1, -1)
        pairs = list(zip(q, k, negatives, strict=True))
    else:
        found = model(Batch(views, torch.arange(N))).accuracy
        others = [[k[j] for j in range(N) if j != i] for i in range(N)]
        pairs = list(zip(q, k, others, strict=True))
        if name.startswith("simclr"):
            z = torch.cat([q, k])
            pairs = [(z[i], z[(i + N) % (2 * N)], [z[j] for j in range(2 * N) if j % N != i % N]) for i in range(2 * N)]
    expected = [all(query @ key > query @ other for other in others) for query, key, others in pairs]
    assert 0 < sum(expected) < len(expected)
    assert found.item() == pytest.approx(sum(expected) / len(expected))


def test_end_to_end_trains_both_encoders() -> None:
    model = build(recipe_of("end-to-end v1"), torch.float32)
    model(Batch(tuple(torch.randn(2, N, 3, 16, 16)), torch.arange(N))).loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_memory_bank_moves_only_the_vectors_of_the_batch() -> None:
    model = build(recipe_of("memory bank v1"), torch.float32)
    assert isinstance(model, MemoryBank)
    bound = math.sqrt(3 / 16)  # of uniform numbers, so that a vector's expected square is 1
    assert -bound <= model.bank.min() < -0.9 * bound < 0.9 * bound < model.bank.max() <= bound
    before = model.bank.clone()
    indices = torch.tensor([3, 1, 5, 7, 9, 11, 13, 15])
    model(Batch((torch.randn(N, 3, 16, 16),), indices))
    moved = (model.bank != before).any(dim=1).nonzero()[:, 0]
    assert moved.tolist() == sorted(indices.tolist())
    assert torch.allclose(model.bank[indices].norm(dim=1), torch.ones(N))


def test_spread_is_one_on_the_whole_sphere() -> None:
    embeddings = torch.nn.functional.normalize(torch.randn(4000, 64, generator=torch.Generator().manual_seed(0)))
    assert math.isclose(spread(embeddings).item(), 1.0, abs_tol=0.02)
    few = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])  # deviations sqrt(8) / 3 and 0
    assert math.isclose(spread(few).item(), 2 / 3, rel_tol=1e-6)


def test_the_bank_is_full_after_one_pass() -> None:
    model = build(recipe_of("memory bank v1"), torch.float32)
    assert [model.fill(seen) for seen in (0, IMAGES // 4, IMAGES, 2 * IMAGES)] == [0, 0.25, 1, 1]

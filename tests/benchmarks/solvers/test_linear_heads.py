"""Banks of heads against heads that torch trains one at a time."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from benchmarks.solvers.linear_heads import BankOptimiser, ChannelNorm, HeadBank, bank_loss, target_ranks
from tests.reference.linear_plain import PlainHead, train_plain_lars, train_plain_sgd

CLASSES, CHANNELS, POSITIONS, STEPS = 5, 3, 4, 25
DTYPE = torch.float64  # in which any difference but rounding shows
LRS, DECAYS = (0.02, 0.3, 2.0), (0.0, 1e-2)
FACTORS = [1.0] * 10 + [0.1] * 10 + [0.02] * 5


@pytest.fixture
def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(CLASSES, CHANNELS * POSITIONS, generator=generator, dtype=DTYPE)
    found = []
    for step in range(STEPS):
        targets = torch.randint(0, CLASSES, (16 - step % 3,), generator=generator)
        noise = torch.randn(len(targets), CHANNELS * POSITIONS, generator=generator, dtype=DTYPE)
        found.append((2 * centres[targets] + noise + 1, targets))
    return found


def grid(lrs: Sequence[float] = LRS, decays: Sequence[float] = DECAYS) -> list[tuple[float, float]]:
    return [(lr, decay) for lr in lrs for decay in decays]


def trained_bank(
    heads: list[tuple[float, float]],
    batches: list[tuple[Tensor, Tensor]],
    batch_norm: str = "none",
    *,
    nesterov: bool = False,
    lars_eta: float | None = None,
) -> HeadBank:
    bank = HeadBank(
        CHANNELS * POSITIONS,
        CHANNELS,
        CLASSES,
        len(heads),
        batch_norm=batch_norm,
        generator=torch.Generator().manual_seed(0),
    ).to(DTYPE)
    optimiser = BankOptimiser(bank, *zip(*heads, strict=True), nesterov=nesterov, lars_eta=lars_eta)
    for (features, targets), factor in zip(batches, FACTORS, strict=True):
        bank_loss(bank.train()(features), targets, len(targets)).sum().backward()
        optimiser.step(factor)
    return bank


def plain_head(batch_norm: str) -> PlainHead:
    first = HeadBank(CHANNELS * POSITIONS, CHANNELS, CLASSES, 1, generator=torch.Generator().manual_seed(0))
    return PlainHead(first.weight[0].detach(), CHANNELS, batch_norm).to(DTYPE)


@pytest.mark.parametrize("batch_norm", ["none", "plain", "affine"])
@pytest.mark.parametrize("nesterov", [False, True])
def test_every_head_of_a_bank_is_what_torch_trains_alone(
    batches: list[tuple[Tensor, Tensor]], batch_norm: str, nesterov: bool
) -> None:
    bank = trained_bank(grid(), batches, batch_norm, nesterov=nesterov)
    for number, (lr, decay) in enumerate(grid()):
        head = plain_head(batch_norm)
        train_plain_sgd(head, batches, FACTORS, lr=lr, momentum=0.9, weight_decay=decay, nesterov=nesterov)
        own = {name: tensor[number] for name, tensor in bank.tensors().items()}
        theirs = {name.removeprefix("fc."): tensor for name, tensor in head.state_dict().items()}
        theirs.pop("bn.num_batches_tracked", None)
        assert own.keys() == theirs.keys()
        for name, tensor in theirs.items():
            torch.testing.assert_close(own[name], tensor, rtol=1e-9, atol=1e-9)
        features = batches[0][0]
        torch.testing.assert_close(bank.eval()(features)[:, number], head.eval()(features), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eta", [0.001, 0.02])
def test_every_head_of_a_lars_bank_is_what_a_plain_lars_trains(
    batches: list[tuple[Tensor, Tensor]], eta: float
) -> None:
    heads = grid((0.5, 20.0))
    bank = trained_bank(heads, batches, lars_eta=eta)
    for number, (lr, decay) in enumerate(heads):
        head = plain_head("none")
        train_plain_lars(head, batches, FACTORS, lr=lr, momentum=0.9, weight_decay=decay, eta=eta)
        torch.testing.assert_close(bank.weight[number], head.fc.weight, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(bank.bias[number], head.fc.bias, rtol=1e-8, atol=1e-8)


def test_in_single_precision_a_bank_stays_within_rounding_of_torch(batches: list[tuple[Tensor, Tensor]]) -> None:
    single = [(features.float(), targets) for features, targets in batches]
    bank = HeadBank(CHANNELS * POSITIONS, CHANNELS, CLASSES, 1, generator=torch.Generator().manual_seed(0))
    optimiser = BankOptimiser(bank, (0.1,), (1e-4,))
    losses = []
    for (features, targets), factor in zip(single, FACTORS, strict=True):
        losses.append(bank_loss(bank(features), targets, len(targets)).sum())
        losses[-1].backward()
        optimiser.step(factor)
    head = plain_head("none").float()
    expected = train_plain_sgd(head, single, FACTORS, lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=False)
    assert [loss.item() for loss in losses] == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(bank.weight[0], head.fc.weight, rtol=1e-5, atol=1e-5)


def test_a_bank_of_one_is_one_of_many(batches: list[tuple[Tensor, Tensor]]) -> None:
    alone = trained_bank(grid((0.3,), (0.0,)), batches)
    many = trained_bank(grid(decays=(0.0,)), batches)
    torch.testing.assert_close(many.weight[1], alone.weight[0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(many.bias[1], alone.bias[0], rtol=1e-10, atol=1e-10)


def test_a_head_that_diverges_leaves_the_others_alone(batches: list[tuple[Tensor, Tensor]]) -> None:
    wild = trained_bank(grid((0.02, 1e300), (1e-2,)), batches)
    tame = trained_bank(grid((0.02,), (1e-2,)), batches)
    assert not torch.isfinite(wild.weight[1]).all()
    torch.testing.assert_close(wild.weight[0], tame.weight[0], rtol=1e-6, atol=1e-6)
    features, targets = batches[0]
    ranks = target_ranks(wild(features), targets)
    assert (ranks[1] == CLASSES).all()
    assert torch.equal(ranks[0], target_ranks(tame(features), targets)[0])


def test_ranks_agree_with_topk_and_break_ties_by_class() -> None:
    logits = torch.randn(40, 2, 9, generator=torch.Generator().manual_seed(3))
    targets = torch.arange(40) % 9
    ranks = target_ranks(logits, targets)
    for k in (1, 5):
        hits = (logits.topk(k, dim=2).indices == targets[:, None, None]).any(dim=2).T
        assert torch.equal(ranks < k, hits)
    flat = target_ranks(torch.zeros(3, 1, 4), torch.tensor([0, 2, 3]))
    assert flat.tolist() == [[0, 2, 3]]


def test_channel_norm_is_batch_norm_without_affine() -> None:
    own, theirs = ChannelNorm(3), nn.BatchNorm2d(3, affine=False)
    for step in range(4):
        maps = torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(step)) * 5 + 100
        torch.testing.assert_close(own(maps.flatten(1)), theirs(maps).flatten(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(own.running_var, theirs.running_var, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(own.eval()(maps.flatten(1)), theirs.eval()(maps).flatten(1), rtol=1e-5, atol=1e-5)


def test_a_bank_normalises_the_groups_of_a_batch_apart() -> None:
    x = torch.randn(6, CHANNELS * POSITIONS, generator=torch.Generator().manual_seed(0))
    changed = torch.cat([x[:3], 5 * x[3:]])
    for groups in (1, 2):
        bank = HeadBank(CHANNELS * POSITIONS, CHANNELS, CLASSES, 1, batch_norm="plain", norm_groups=groups).train()
        assert torch.equal(bank(x)[:3], bank(changed)[:3]) == (groups == 2)


def test_channel_norm_in_groups_is_batch_norm_on_devices_of_their_own() -> None:
    own, first, second = ChannelNorm(3, groups=2), *(nn.BatchNorm2d(3, affine=False) for _ in range(2))
    for step in range(4):
        maps = torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(step)) * 5 + 100
        theirs = torch.cat([first(maps[:3]), second(maps[3:])])
        torch.testing.assert_close(own(maps.flatten(1)), theirs.flatten(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(own.running_mean, first.running_mean)
    torch.testing.assert_close(own.running_var, first.running_var, rtol=1e-5, atol=1e-5)
    few = torch.randn(1, 12, generator=torch.Generator().manual_seed(9))
    assert own(few).isfinite().all()  # a last batch may have fewer images than there are groups


def test_default_weights_and_biases_are_uniform_as_torchs() -> None:
    bank = HeadBank(400, 400, 100, 2, init_std=None, generator=torch.Generator().manual_seed(0))
    linear = nn.Linear(400, 100)
    for own, theirs in ((bank.weight[0], linear.weight), (bank.bias[0], linear.bias)):
        assert own.abs().max().item() == pytest.approx(theirs.abs().max().item(), rel=0.05)
        assert own.std().item() == pytest.approx(400**-0.5 / 3**0.5, rel=0.1)
    assert torch.equal(bank.weight[0], bank.weight[1])


def test_weights_start_normal_with_the_protocols_deviation_and_biases_at_zero() -> None:
    bank = HeadBank(2000, 2000, 100, 2, init_std=0.01, generator=torch.Generator().manual_seed(0))
    assert bank.weight[0].std().item() == pytest.approx(0.01, rel=0.01)
    assert bank.weight[0].mean().abs().item() < 1e-4
    assert torch.equal(bank.weight[0], bank.weight[1])
    assert not bank.bias.any()


@pytest.mark.parametrize("rows", [0, 7])
def test_logits_and_gradients_are_those_of_torchs_linear_layer(rows: int) -> None:
    """Without images too, as a rank may have none in the last batch."""
    bank = HeadBank(300, 300, 5, 2, generator=torch.Generator().manual_seed(0))
    x = torch.randn(rows, 300, generator=torch.Generator().manual_seed(1), requires_grad=True)
    found, expected = bank(x).flatten(1), nn.functional.linear(x, bank.weight.flatten(0, 1), bank.bias.flatten())
    torch.testing.assert_close(found, expected)
    for mine, theirs in zip(
        torch.autograd.grad(found.square().sum(), [x, *bank.parameters()]),
        torch.autograd.grad(expected.square().sum(), [x, *bank.parameters()]),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)

"""The MoCo core against the plain version, and the properties that the paper states."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from pretrain import distributed
from pretrain.mechanism import Batch, ProjectedEncoder
from pretrain.moco import MoCo, info_nce
from pretrain.recipe import Recipe
from results.schema import Architecture

TINY = Architecture(name="resnet18", width=8, stem_kernel=3, max_pool=False)


def tiny(**changes: object) -> Recipe:
    fields = {
        "architecture": TINY,
        "queue_size": 32,
        "batch_size": 8,
        "split_bn": 1,
        "dim": 16,
        "lr": 0.03,
        "key_momentum": 0.9,
    }
    return Recipe(**{**fields, **changes})  # type: ignore[arg-type]


def pair(view_q: torch.Tensor, view_k: torch.Tensor) -> Batch:
    return Batch((view_q, view_k), torch.arange(len(view_q)))


def build(recipe: Recipe, dtype: torch.dtype = torch.float64) -> MoCo:
    torch.manual_seed(0)
    return MoCo(recipe, torch.Generator().manual_seed(1)).to(dtype)


def test_key_encoder_starts_as_a_copy_and_takes_no_gradient() -> None:
    model = build(tiny())
    query, key = model.encoder_q.state_dict(), model.encoder_k.state_dict()
    assert all(torch.equal(query[name], key[name]) for name in query)
    model(pair(*torch.randn(2, 8, 3, 16, 16, dtype=torch.float64))).loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in model.encoder_k.parameters())
    assert all(p.grad is not None for p in model.encoder_q.parameters())


def test_momentum_covers_parameters_and_leaves_batch_norm_statistics_alone() -> None:
    model = build(tiny())
    with torch.no_grad():
        for parameter in model.encoder_q.parameters():
            parameter.add_(1)
        for buffer in model.encoder_q.buffers():
            buffer.add_(5)
    before = copy.deepcopy(model.encoder_k)
    model.update_key_encoder()
    for old, new, query in zip(
        before.parameters(), model.encoder_k.parameters(), model.encoder_q.parameters(), strict=True
    ):
        assert torch.allclose(new, 0.9 * old + 0.1 * query)
    for old_buffer, new_buffer in zip(before.buffers(), model.encoder_k.buffers(), strict=True):
        assert torch.equal(old_buffer, new_buffer)


def test_negatives_are_the_queue_as_it_stood_before_the_batch() -> None:
    model = build(tiny())
    before = model.queue.clone()
    views = torch.randn(2, 8, 3, 16, 16, dtype=torch.float64)
    twin = copy.deepcopy(model)
    q, k = twin.encoder_q(views[0]), twin.keys(views[1])
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ before], dim=1) / 0.2
    expected = F.cross_entropy(logits, torch.zeros(8, dtype=torch.long))
    assert math.isclose(model(pair(*views)).loss.item(), expected.item(), abs_tol=1e-12)
    assert torch.allclose(model.queue[:, :8], k.T)  # and only now are the keys in it
    assert torch.equal(model.queue[:, 8:], before[:, 8:])


def test_the_queue_begins_with_unit_vectors_in_every_direction() -> None:
    queue = build(tiny(queue_size=1024, batch_size=8)).queue
    assert torch.allclose(queue.norm(dim=0), torch.ones(1024, dtype=torch.float64))
    assert queue.mean(dim=1).abs().max() < 0.05


def test_accuracy_is_the_share_of_queries_nearer_to_their_key_than_to_every_negative() -> None:
    q, k, others = F.normalize(torch.randn(3, 8, 4, generator=torch.Generator().manual_seed(3)), dim=2)
    negatives = torch.cat([others[:2], k[:1]]).T  # the first query's key is in the queue: it is not nearer than itself
    expected = [all(q[i] @ k[i] > q[i] @ negative for negative in negatives.T) for i in range(8)]
    assert not expected[0]
    assert 0 < sum(expected) < 7
    assert info_nce(q, k, negatives, 0.2)[1].item() == pytest.approx(sum(expected) / 8)


def test_the_fill_of_the_queue_counts_both_views_of_a_symmetric_loss() -> None:
    assert [build(tiny()).fill(seen) for seen in (0, 8, 32, 99)] == [0, 0.25, 1, 1]
    assert [build(tiny(symmetric=True)).fill(seen) for seen in (8, 99)] == [0.5, 1]


def test_queue_goes_round() -> None:
    model = build(tiny())
    for step in range(1, 6):
        model.enqueue(torch.full((8, 16), float(step), dtype=torch.float64))
    assert int(model.queue_ptr) == 8  # five batches of 8 into 32 places
    assert model.queue[0, ::8].tolist() == [5.0, 2.0, 3.0, 4.0]


def test_queue_that_is_no_multiple_of_the_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="not a multiple of batch_size"):
        tiny(queue_size=30)
    with pytest.raises(ValueError, match="does not fill in whole batches"):
        build(tiny()).enqueue(torch.zeros(5, 16))


def test_split_batch_norm_with_shuffling_hides_which_key_shares_statistics_with_a_query() -> None:
    """The leak that ShuffleBN closes: without a shuffle, part i of the keys has the statistics of part i's images."""
    recipe = tiny(split_bn=4)
    model = build(recipe)
    images = torch.randn(8, 3, 16, 16, dtype=torch.float64)
    model.train()
    in_place = copy.deepcopy(model.encoder_k)(images)
    shuffled = model.keys(images)
    assert not torch.allclose(in_place, shuffled, atol=1e-6)
    # with the statistics of the whole batch the order cannot matter
    whole = build(tiny())
    assert torch.allclose(copy.deepcopy(whole.encoder_k)(images), whole.keys(images), atol=1e-10)


def test_ranks_exchange_shuffled_images_in_half_precision_where_the_encoder_reads_them_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exchanged = []

    def gather(part: torch.Tensor) -> torch.Tensor:
        exchanged.append(part.dtype)
        return torch.cat([part, part])

    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "gather", gather)
    monkeypatch.setattr(distributed.dist, "broadcast", lambda *_, **__: None)
    for enabled in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            own, _ = distributed.shuffle(torch.randn(4, 3, 2, 2), torch.Generator().manual_seed(0))
        assert own.shape == (4, 3, 2, 2)
    assert exchanged == [torch.bfloat16, torch.float32]


def test_v1_and_v2_heads() -> None:
    v1, v2 = ProjectedEncoder(tiny(head="linear")), ProjectedEncoder(tiny(head="mlp"))
    assert [tuple(p.shape) for p in v1.head.parameters()] == [(16, 64), (16,)]
    assert [tuple(p.shape) for p in v2.head.parameters()] == [(64, 64), (64,), (16, 64), (16,)]
    out = v2(torch.randn(4, 3, 16, 16))
    assert torch.allclose(out.norm(dim=1), torch.ones(4))

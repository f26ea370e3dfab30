"""A step in several parts is the step in one part: losses, weights, running statistics, queue and bank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.__main__ import main
from pretrain.mechanism import Batch, Mechanism, batch_norm_text
from pretrain.recipe import Recipe
from pretrain.trainer import backward, build_mechanism, build_optimizer
from results.errors import InputError
from results.schema import Architecture
from tests.pretrain.tiny_runs import FLAGS, run

N, IMAGES = 16, 24
TINY = Architecture(name="resnet18", width=8, stem_kernel=3, max_pool=False)
MECHANISMS: dict[str, dict[str, Any]] = {
    "moco": {},
    "symmetric": {"symmetric": True},
    "memory bank": {"mechanism": "memory-bank"},
}


def recipe_of(**changes: Any) -> Recipe:
    fields = {"architecture": TINY, "queue_size": 32, "batch_size": N, "split_bn": 8, "dim": 16, "key_momentum": 0.9}
    return Recipe(**{**fields, **changes})


def trained(recipe: Recipe, steps: int = 2) -> tuple[list[float], Mechanism]:
    torch.manual_seed(0)
    model = build_mechanism(recipe, torch.Generator().manual_seed(1), IMAGES).double()
    optimizer = build_optimizer(recipe, [model.get_submodule(name) for name in model.trained])
    draws, losses = torch.Generator().manual_seed(2), []
    for _ in range(steps):
        views = tuple(torch.randn(model.views, N, 3, 16, 16, generator=draws, dtype=torch.float64))
        optimizer.zero_grad()
        loss = backward(model, Batch(views, torch.randperm(IMAGES, generator=draws)[:N]), recipe)
        optimizer.step()
        losses.append(loss.loss.item())
    return losses, model


@pytest.mark.slow
@pytest.mark.parametrize("name", MECHANISMS)
def test_parts_are_the_whole_batch(name: str) -> None:
    losses, whole = trained(recipe_of(**MECHANISMS[name]))
    for parts in (2, 8):  # of 4 and 1 groups of batch norms: the last is torch's own batch norm
        found, model = trained(recipe_of(**MECHANISMS[name], accumulate=parts))
        assert found == pytest.approx(losses, abs=1e-6)
        for key, value in whole.state_dict().items():
            if not key.endswith("num_batches_tracked"):
                assert torch.allclose(model.state_dict()[key], value, rtol=1e-6, atol=1e-8), (parts, key)


def test_a_part_keeps_its_own_images_only_for_the_backward_pass() -> None:
    kept: dict[int, set[int]] = {}
    for parts in (1, 4):
        found = kept[parts] = set[int]()

        def pack(tensor: torch.Tensor, found: set[int] = found) -> torch.Tensor:
            if tensor.ndim == 4 and tensor.shape[1:] == (3, 16, 16):
                found.add(len(tensor))
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            trained(recipe_of(accumulate=parts), steps=1)
    assert kept == {1: {N}, 4: {N // 4}}


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        (
            {"mechanism": "simclr", "split_bn": 2},
            "accumulate needs negatives that are stored .* SimCLR needs the whole",
        ),
        ({"mechanism": "end-to-end"}, "end-to-end contrast needs the whole batch at once"),
        ({"mechanism": "memory-bank", "bank_loss": "nce"}, "'memory-bank' with bank_loss = 'infonce'"),
        (
            {"split_bn": 1},
            "accumulate 2 cuts through the groups of split_bn 1.*set split_bn to a multiple of accumulate",
        ),
        ({"split_bn": 1, "sync_bn": True}, "takes the batch apart that sync_bn joins"),
    ],
)
def test_what_would_be_another_step_is_refused(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(InputError, match=fault):
        recipe_of().changed(accumulate=2, **changes)


def test_ranks_and_parts_share_the_groups_of_batch_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretrain.distributed.world_size", lambda: 2)
    assert batch_norm_text(Recipe(accumulate=4)).endswith("8 groups of 32 images (4 on each of 2 ranks)")
    with pytest.raises(
        InputError, match="split_bn 8 does not divide over 2 ranks that accumulate 8 parts; choose a mult"
    ):
        batch_norm_text(Recipe(accumulate=8))


def test_the_recipe_of_the_run_says_so(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--epochs", "1", "--precision", "fp32", "--warmup-epochs", "0"]
    assert run(images, tmp_path / "out", *flags, "--accumulate", "2", "--scale-lr") == 0
    found = Recipe.model_validate_json((tmp_path / "out" / "recipe.json").read_text())
    assert (found.accumulate, found.batch_size, found.lr) == (2, 16, pytest.approx(0.12 * 16 / 128))
    command = ["--data", str(images), "--out", str(tmp_path / "no"), *FLAGS, "--accumulate", "4"]
    assert main(command) == 2
    assert "accumulate 4 cuts through the groups of split_bn 2" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()

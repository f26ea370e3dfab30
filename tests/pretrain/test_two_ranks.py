"""Two processes under gloo against two ranks simulated in one; and the leak that shuffling closes."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import distributed as dist
from torch import multiprocessing

from pretrain import distributed
from pretrain.mechanism import Batch, Mechanism, batch_norm_parts
from pretrain.moco import MoCo
from pretrain.recipe import Recipe
from pretrain.resnet import SplitBatchNorm
from pretrain.train import load_resume
from pretrain.trainer import backward, build_mechanism
from pretrain.weight_files import read_backbone, weights_sha256
from results.errors import InputError
from results.schema import Architecture
from tests.pretrain.tiny_runs import FLAGS
from tests.processes import PRETRAIN, START_METHOD, Program, run_two_ranks
from tests.reference.mechanisms_plain import PlainEndToEnd, PlainMemoryBank, PlainSimCLR
from tests.reference.moco_plain import PlainMoCo
from tests.reference.ranks_plain import PerRank, ShuffledRanks

RANKS, N, IMAGES, SEED, STEPS = 2, 8, 24, 1, 5
TINY = Architecture(name="resnet18", width=8, stem_kernel=3, max_pool=False)
SETTINGS: dict[str, dict[str, Any]] = {
    "moco": {},
    "symmetric": {"symmetric": True},
    "end-to-end": {"mechanism": "end-to-end"},
    "memory-bank": {"mechanism": "memory-bank"},
    "nce": {"mechanism": "memory-bank", "bank_loss": "nce", "queue_size": 16},
    "simclr": {"mechanism": "simclr"},
}


def recipe_of(name: str, **changes: Any) -> Recipe:
    fields = {"architecture": TINY, "queue_size": 32, "batch_size": N, "split_bn": 1, "dim": 16}
    return Recipe(**{**fields, **SETTINGS[name], **changes})


def build(recipe: Recipe) -> Mechanism:
    torch.manual_seed(0)
    return build_mechanism(recipe, torch.Generator().manual_seed(SEED), IMAGES).double()


def steps(views: int) -> list[Batch]:
    draws = torch.Generator().manual_seed(2)
    return [
        Batch(
            tuple(torch.randn(views, N, 3, 16, 16, generator=draws, dtype=torch.float64)),
            torch.randperm(IMAGES, generator=draws)[:N],
        )
        for _ in range(STEPS)
    ]


def own_part(batch: Batch, rank: int) -> Batch:
    own = slice(rank * N // RANKS, (rank + 1) * N // RANKS)
    return Batch(tuple(view[own] for view in batch.views), batch.indices[own])


def one_rank(rank: int, folder: str) -> None:
    """A process: trains every mechanism on its part of every batch and writes down what it has at the end."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    for name in SETTINGS:
        train_rank(rank, name, recipe_of(name, split_bn=RANKS), folder)  # one part on each
    for parts in (1, 2):
        recipe = recipe_of("symmetric", split_bn=2 * RANKS, accumulate=parts)
        train_rank(rank, f"{parts} parts", recipe, folder, steps_made=2)  # norms over two images amplify rounding
    dist.destroy_process_group()


def train_rank(rank: int, name: str, recipe: Recipe, folder: str, steps_made: int = STEPS) -> None:
    model = build(recipe)
    for trained in model.trained:
        setattr(model, trained, distributed.wrapped(getattr(model, trained), static_graph=not recipe.symmetric))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], recipe.lr, momentum=0.9)
    losses = []
    for batch in steps(model.views)[:steps_made]:
        optimizer.zero_grad()
        if recipe.accumulate > 1:
            loss = backward(model, own_part(batch, rank), recipe).loss.double()
        else:
            loss = model(own_part(batch, rank)).loss
            loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    torch.save({"losses": torch.stack(losses), "model": model.state_dict()}, f"{folder}/{name}-{rank}.pt")


@pytest.fixture(scope="module")
def trained_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.start_processes(one_rank, (str(folder),), nprocs=RANKS, start_method=START_METHOD)
    return folder


def simulated(name: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and final weights and memories of the plain version on simulated ranks."""
    recipe = recipe_of(name)
    model = build(recipe)
    encoder = copy.deepcopy(model.encoder_q)
    orders = torch.Generator().manual_seed(SEED)
    plain: Any
    if isinstance(model, MoCo):
        torch.randn(model.queue.shape, generator=orders)  # the queue came first
        plain = PlainMoCo(encoder, model.queue, recipe.key_momentum, recipe.temperature, recipe.symmetric)
        plain.f_q, plain.f_k = PerRank(plain.f_q, RANKS), ShuffledRanks(plain.f_k, RANKS, orders)
        trained = {"encoder_q": plain.f_q}
    elif recipe.mechanism == "end-to-end":
        plain = PlainEndToEnd(encoder, recipe.temperature)
        plain.f_q, plain.f_k = PerRank(plain.f_q, RANKS), ShuffledRanks(plain.f_k, RANKS, orders)
        trained = {"encoder_q": plain.f_q, "encoder_k": plain.f_k.per_rank}
    elif recipe.mechanism == "simclr":
        plain = PlainSimCLR(PerRank(encoder, RANKS, views=2), recipe.temperature)
        trained = {"encoder_q": plain.f}
    else:
        bank, nce = model.get_buffer("bank"), recipe.bank_loss == "nce"
        plain = PlainMemoryBank(PerRank(encoder, RANKS), bank, recipe.queue_size, recipe.temperature, nce, SEED)
        trained = {"encoder_q": plain.f}
    parameters = [p for module in trained.values() for p in module.parameters()]
    optimizer = torch.optim.SGD(parameters, recipe.lr, momentum=0.9)
    losses = []
    for batch in steps(model.views):
        loss = plain.loss(*batch.views, *([batch.indices.tolist()] if model.views == 1 else []))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    final = {f"{key}.module.{k}": p for key, m in trained.items() for k, p in m.encoder.named_parameters()}
    if isinstance(model, MoCo):
        final["queue"] = torch.stack(plain.queue, dim=1)
        final |= {f"encoder_k.{k}": p for k, p in plain.f_k.per_rank.encoder.named_parameters()}
    if recipe.mechanism == "memory-bank":
        final["bank"] = torch.stack(plain.bank)
    return losses, final


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_two_ranks_equal_a_simulation_in_one_process(name: str, trained_ranks: Path) -> None:
    zero, one = (torch.load(trained_ranks / f"{name}-{rank}.pt") for rank in range(RANKS))
    losses, final = simulated(name)
    both = (zero["losses"] + one["losses"]) / 2
    assert torch.allclose(both, torch.tensor(losses, dtype=torch.float64), rtol=0, atol=1e-9)
    for key, value in final.items():
        found = zero["model"][key]
        if key == "queue":  # ranks enqueue both views one after the other, which only orders the negatives
            found, value = (keys[:, keys[0].argsort()] for keys in (found, value))
        assert torch.allclose(found, value, rtol=0, atol=1e-9), key
        assert torch.equal(zero["model"][key], one["model"][key]), key  # the ranks stay the same


@pytest.mark.slow
def test_two_ranks_accumulate_parts_to_the_whole_step(trained_ranks: Path) -> None:
    whole, parts = (torch.load(trained_ranks / f"{number} parts-0.pt") for number in (1, 2))
    assert torch.allclose(whole["losses"], parts["losses"], rtol=1e-6, atol=0)
    for key, value in whole["model"].items():
        if not key.endswith("num_batches_tracked"):
            assert torch.allclose(value, parts["model"][key], rtol=1e-5, atol=1e-6), key
    other = torch.load(trained_ranks / "2 parts-1.pt")["model"]
    assert all(torch.equal(value, other[key]) for key, value in parts["model"].items() if "running" not in key)


def dependence(outputs: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """(N, N) bool: does embedding i depend on image j?"""
    rows = [
        torch.autograd.grad(o @ torch.linspace(1, 2, len(o), dtype=o.dtype), images, retain_graph=True)[0]
        for o in outputs
    ]
    return torch.stack([row.abs().amax(dim=(1, 2, 3)) > 1e-12 for row in rows])


@pytest.mark.slow
def test_shuffling_hides_who_shared_the_norms_with_a_query() -> None:
    """The leak that ShuffleBN closes: the embedding of an image depends on all images of its device.

    Unshuffled, query i and key i depend on the very same images, a signature that no key of another device or of an
    older batch carries: the pretext task can be solved by it (MoCo v1, section 3.3 and appendix A.9).
    """
    model = build(recipe_of("moco", split_bn=4))
    assert isinstance(model, MoCo)
    images = torch.randn(N, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    device = torch.arange(N) // 2
    same_device = device[:, None] == device[None]
    assert torch.equal(dependence(model.encoder_q(images), images), same_device)
    assert torch.equal(dependence(model.encoder_k(images), images), same_device)  # as keys are without a shuffle
    agree = torch.zeros(())
    for _ in range(20):
        shuffled = dependence(MoCo.keys.__wrapped__(model, images), images)  # under its no_grad
        assert bool((shuffled.diagonal()).all())
        assert bool((shuffled.sum(1) == 2).all())
        agree += (shuffled & same_device).sum() - N
    # one partner among the 7 others, so 1/7 of the 8 rows keep theirs by chance
    assert agree / (20 * N) < 0.3


@pytest.mark.slow
def test_torchrun_trains_two_ranks_to_one_backbone(tmp_path: Path) -> None:
    """The whole command under torchrun, killed by nobody: one file, its card, and a second start that does nothing."""
    random = np.random.default_rng(0)
    for number in range(20):
        coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        (tmp_path / "images").mkdir(exist_ok=True)
        coarse.resize((40, 40)).save(tmp_path / "images" / f"{number:02d}.png")
    flags = [
        "--data", str(tmp_path / "images"), "--out", str(tmp_path / "out"), "--recipe", "mocov2_resnet18w32_demo",
        "--architecture.width", "8", "--batch-size", "8", "--queue-size", "32", "--split-bn", "2", "--epochs", "2",
        "--workers", "0", "--device", "cpu", "--threads", "1",
    ]  # fmt: skip
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    subprocess.run([*torchrun, "-m", "pretrain", *flags], check=True, timeout=300)
    tensors, card = read_backbone(tmp_path / "out" / "backbone.safetensors")
    assert card is not None
    assert card.weights_sha256 == weights_sha256(tensors)
    run_two_ranks(PRETRAIN, *flags)
    assert weights_sha256(read_backbone(tmp_path / "out" / "backbone.safetensors")[0]) == card.weights_sha256


@pytest.mark.slow
def test_two_ranks_of_the_command_equal_one_process(images: Path, tmp_path: Path) -> None:
    """`python -m pretrain` alone and as two ranks: the same weights, memories and statistics.

    Both have two groups of batch norm, and PIL's views, which depend on the seed, the pass and the image alone.
    Compared after two epochs of two steps in float32: parameters and running statistics of both encoders, the queue,
    the optimiser's momentum, and loss and accuracy of every epoch. Sums over the batch are taken in another order, so
    values may differ by rounding: 2e-4 of each tensor's largest value.
    """
    classed = tmp_path / "classed"  # the images in folders of the monitor's classes, for the online probe
    for file in sorted((images / "train" / "things").iterdir()):
        link = classed / "train" / str(int(file.stem) % 3) / file.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
    flags = [
        "--data", str(classed), *FLAGS, "--epochs", "2", "--precision", "fp32", "--lr", "0.03",
        "--augmentation.engine", "pil", "--augmentation.stored-size", "None",
    ]  # fmt: skip
    found = []
    for label in ("train", "val"):
        for number in range(9):  # an odd number: one rank has one image more
            link = tmp_path / "labelled" / label / str(number % 3) / f"{number}.png"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(images / "train" / "things" / f"{number + 9 * (label == 'val'):02d}.png")
    flags += ["--knn-monitor", str(tmp_path / "labelled"), "--monitor-every", "1"]
    for ranks in (1, 2):
        out = tmp_path / str(ranks)
        if ranks == 1:
            alone = Program(PRETRAIN, *flags, "--out", str(out))
            assert alone.wait() == 0, alone.said
            said = alone.said
        else:
            said = "".join(run_two_ranks(PRETRAIN, *flags, "--out", str(out)))
        assert f"batch norm in 2 groups of 8 images ({2 // ranks} on each of {ranks} ranks)" in said
        found.append(load_resume(out / "resume.pt") or {})
    for key in ("loss", "accuracy", "knn"):
        values = ([row[key] for row in run["rows"]] for run in found)
        assert next(values) == pytest.approx(next(values), rel=2e-4), key
    # Adam's first steps are as long for a gradient of rounding errors as for any other, so only views at a draw differ.
    for key in ("online_probe", "online_probe_train"):
        values = ([row[key] for row in run["rows"]] for run in found)
        assert next(values) == pytest.approx(next(values), abs=12.5), key
    norms = [run["probe"]["norm"]["running_var"] for run in found]
    assert torch.allclose(*norms, rtol=1e-3)
    tensors = [
        {**run["trainer"]["model"], **{f"momentum {k}": v["momentum_buffer"] for k, v in momentum.items()}}
        for run in found
        for momentum in [run["trainer"]["optimizer"]["state"]]
    ]
    assert tensors[0].keys() == tensors[1].keys()
    for name, value in tensors[0].items():
        distance = (value - tensors[1][name]).abs().max() / value.abs().max().clamp(min=1e-6)
        assert distance < 2e-4, (name, distance)


def test_a_number_of_ranks_that_batch_norm_groups_do_not_divide_over_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    with pytest.raises(InputError, match="split_bn 8 does not divide over 3 ranks"):
        batch_norm_parts(Recipe())
    assert batch_norm_parts(Recipe(split_bn=1, sync_bn=True)) == 1
    for ranks in (1, 2, 4, 8):
        monkeypatch.setattr(distributed, "world_size", lambda ranks=ranks: ranks)
        assert batch_norm_parts(Recipe()) * ranks == 8  # as on the reference's 8 GPUs


def test_the_default_on_one_process_hides_who_shared_the_norms_with_a_query() -> None:
    """Without a word about `split_bn`, the encoders of one process have the reference's 8 groups."""
    recipe = Recipe(architecture=TINY, batch_size=16, queue_size=32, dim=16)
    norms = [m for m in build(recipe).modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms
    assert all(isinstance(norm, SplitBatchNorm) and norm.splits == 8 for norm in norms)

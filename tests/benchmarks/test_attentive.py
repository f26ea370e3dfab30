"""Attentive probes from images to scores: the schedule, the choice on held-out images, one pass with a linear probe."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.attentive import PROTOCOLS, Attentive, AttentiveParams
from benchmarks.datasets.images import apply_geometry, decode
from benchmarks.linear import AvgPoolLinear
from benchmarks.registry import find_protocol
from benchmarks.solvers.attentive_heads import EfficientBank
from benchmarks.task import InputError, Labels, NotApplicableError
from benchmarks.training.images import TrainingBatches, training_view, view_rng
from benchmarks.training.task import held_out
from results.schema import Protocol
from tests.builders import GEOMETRY, folder_protocol
from tests.reference.linear_probes import ONE, OPTIONS, same
from tests.reference.linear_probes import protocol as linear_protocol
from tests.reference.linear_tiny import TinyEncoder, tiny_labels

SMALL = AttentiveParams(
    form="ep", queries=2, lrs=(0.03, 0.3), weight_decays=(0.1,), epochs=4, warmup=1, batch_size=8, heldout=0.25
)


class MapEncoder(TinyEncoder):
    """The tiny encoder, its last map under the name of a ViT's tokens or of a ResNet's last stage."""

    def __init__(self, name: str) -> None:
        super().__init__(names=(name, "embed"))
        self.map_name = name

    def outputs(self, images: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        found = super().outputs(images, ["feature2", "embed"])
        found[self.map_name] = found["feature2"]
        return {name: found[name] for name in names}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Labels, Labels]:
    folder = tmp_path_factory.mktemp("images")
    return tiny_labels(folder, "train", 8, seed=0), tiny_labels(folder, "val", 5, seed=1)


def protocol(params: AttentiveParams) -> Protocol:
    return folder_protocol(params, "attentive", "Attentive")


def tokens(views: list[np.ndarray]) -> Tensor:
    encoder = TinyEncoder()
    images = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2)
    return encoder.outputs(encoder.normalise(images), ("feature2",))["feature2"].flatten(2).transpose(1, 2)


def test_a_probe_is_a_plain_loop(data: tuple[Labels, Labels], tmp_path: Path) -> None:
    """One head, AdamW of torch, views and order drawn as declared; the epoch that held-out images choose."""
    params = SMALL.changed(lrs=(0.3,), epochs=5)
    train, test = data
    outcome = Attentive().run(protocol(params), MapEncoder("patches"), train, test, tmp_path, OPTIONS)
    kept, held = held_out(train, 0.25, OPTIONS.seed)
    fixed = {
        "held": (tokens([np.asarray(apply_geometry(decode(train.paths[i]), GEOMETRY)) for i in held]), held),
        "test": (tokens([np.asarray(apply_geometry(decode(path), GEOMETRY)) for path in test.paths]), None),
    }
    bank = EfficientBank(6, 3, 1, queries=2, generator=torch.Generator().manual_seed(OPTIONS.seed))
    steps = -(-len(kept) // 8)
    optimiser = torch.optim.AdamW(bank.parameters(), lr=1.0, weight_decay=0.1)
    history = []
    for step, batch in enumerate(TrainingBatches(kept, 8, OPTIONS.seed, 0, 5 * steps)):
        rng = [view_rng(OPTIONS.seed, epoch, i) for epoch, i in batch]
        views = [
            training_view(decode(train.paths[i]), params, GEOMETRY, own)[0]
            for (_, i), own in zip(batch, rng, strict=True)
        ]
        warm = step / steps if step < steps else 0.5 * (1 + math.cos(math.pi * (step - steps) / (4 * steps)))
        optimiser.param_groups[0]["lr"] = 0.3 * warm
        optimiser.zero_grad()
        targets = torch.from_numpy(train.targets[[i for _, i in batch]])
        torch.nn.functional.cross_entropy(bank.train()(tokens(views))[:, 0], targets).backward()
        optimiser.step()
        if (step + 1) % steps == 0:
            with torch.no_grad():
                logits = {name: bank.eval()(x)[:, 0] for name, (x, _) in fixed.items()}
            truth = torch.from_numpy(train.targets[held])
            accuracy = (logits["held"].argmax(1) == truth).double().mean().item()
            loss = torch.nn.functional.cross_entropy(logits["held"], truth).item()
            right = logits["test"].argmax(1).numpy() == test.targets
            history.append((-accuracy, loss, step, right))
    best = min(history, key=lambda entry: entry[:3])
    assert np.array_equal(outcome.items["correct/Attentive"], best[3])
    assert np.array_equal(outcome.items["correct/Attentive last"], history[-1][3])
    assert outcome.runs[0]["kept_epoch"] == (best[2] + 1) // steps
    assert outcome.runs[0]["heldout_loss"] == pytest.approx(best[1], rel=1e-3)
    assert outcome.scores["Attentive oracle"].value == pytest.approx(100 * max(e[3].mean() for e in history))


def test_rate_and_epoch_are_chosen_on_held_out_images(data: tuple[Labels, Labels], tmp_path: Path) -> None:
    grid = SMALL.changed(lrs=(1e-6, 0.03, 0.3), weight_decays=(0.0, 0.1), epochs=8)
    encoder = MapEncoder("feature5")
    outcome = Attentive().run(protocol(grid), encoder, *data, tmp_path, OPTIONS)
    rows = outcome.runs
    assert len(rows) == 6
    (chosen,) = [row for row in rows if row["chosen"]]
    assert (-chosen["heldout_top1"], chosen["heldout_loss"]) == min(
        (-row["heldout_top1"], row["heldout_loss"]) for row in rows
    )
    assert outcome.scores["Attentive"].value == chosen["kept_top1"]
    assert outcome.scores["Attentive"].selection == "rate and epoch chosen on a held-out part of train"
    assert outcome.scores["Attentive last"].value == chosen["last_top1"]
    assert outcome.scores["Attentive oracle"].value == max(row["best_top1"] for row in rows)
    assert "oracle" in outcome.scores["Attentive oracle"].selection
    assert set(outcome.tensors) >= {"Attentive/query", "Attentive/value", "Attentive/weight"}


def test_it_shares_a_pass_with_a_linear_probe(data: tuple[Labels, Labels], tmp_path: Path) -> None:
    linear = linear_protocol(ONE.changed(lrs=(0.1, 1.0), heldout=0.25))
    task, other, encoder = Attentive(), AvgPoolLinear(), MapEncoder("patches")
    assert task.shared_pass(protocol(SMALL)) == other.shared_pass(linear)
    folders = [tmp_path / name for name in "abcd"]
    together = task.run_together([protocol(SMALL), linear], encoder, *data, folders[:2], OPTIONS)
    reverse = other.run_together([linear, protocol(SMALL)], MapEncoder("patches"), *data, folders[2:], OPTIONS)
    alone = [
        task.run(protocol(SMALL), MapEncoder("patches"), *data, tmp_path / "e", OPTIONS),
        other.run(linear, MapEncoder("patches"), *data, tmp_path / "f", OPTIONS),
    ]
    assert all(same(a, b) for a, b in zip(together, alone, strict=True))
    assert all(same(a, b) for a, b in zip(reversed(reverse), alone, strict=True))
    assert encoder.passes == 1 + 4 * 3 + 1 + 1  # shapes, four epochs of three steps, held-out part, test


def test_aims_probe_can_read_the_mean_of_six_blocks(data: tuple[Labels, Labels], tmp_path: Path) -> None:
    six = SMALL.changed(tokens="mean6")
    assert six.reads({"patches", "patches_mean6"}) == {"patches_mean6": (("patches_mean6", None),)}
    assert "tokens" not in SMALL.model_dump()  # so that records of the last block keep their keys
    assert find_protocol("attentive.aim@1").changed(tokens="mean6").id == "attentive.aim@1+tokens=mean6"
    same_tokens = [
        Attentive().run(protocol(params), MapEncoder(name), *data, tmp_path / name, OPTIONS)
        for params, name in ((six, "patches_mean6"), (SMALL, "patches"))
    ]
    assert same_tokens[0].scores == same_tokens[1].scores
    with pytest.raises(NotApplicableError, match="has no patches_mean6"):
        Attentive().check_encoder(protocol(six), MapEncoder("patches"))
    Attentive().check_encoder(protocol(six), MapEncoder("patches_mean6"))
    Attentive().check_encoder(protocol(SMALL), MapEncoder("embed"))


class WithClassToken(TinyEncoder):
    """A map and a class token; `joined` gives both as one map of a token more."""

    def __init__(self, *, joined: bool) -> None:
        super().__init__(names=("patches", "embed") if joined else ("patches", "cls", "embed"))
        self.joined = joined

    def outputs(self, images: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        found = super().outputs(images, ["feature2", "embed"])
        patches = found["feature2"]
        found["cls"] = patches.amax((2, 3))
        if self.joined:
            patches = torch.cat([found["cls"][:, :, None], patches.flatten(2)], 2)[:, :, None]
        found["patches"] = patches
        return {name: found[name] for name in names}


def test_efficient_probing_can_read_the_class_token_too(data: tuple[Labels, Labels], tmp_path: Path) -> None:
    every = SMALL.changed(tokens="all")
    assert every.reads({"patches", "cls"}) == {"patches": (("patches", None), ("cls", None))}
    with_token, joined = WithClassToken(joined=False), WithClassToken(joined=True)
    apart = Attentive().run(protocol(every), with_token, *data, tmp_path / "apart", OPTIONS)
    as_map = Attentive().run(protocol(SMALL), joined, *data, tmp_path / "map", OPTIONS)
    without = Attentive().run(protocol(SMALL), with_token, *data, tmp_path / "without", OPTIONS)
    losses = [[row["train_loss"] for row in outcome.runs] for outcome in (as_map, apart, without)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] != pytest.approx(losses[0], rel=1e-3)
    assert apart.scores == as_map.scores
    Attentive().check_encoder(protocol(every), with_token)
    with pytest.raises(NotApplicableError, match=r"has no cls, .* with a class token; leave out --set tokens=all"):
        Attentive().check_encoder(protocol(every), MapEncoder("patches"))


@pytest.mark.parametrize(
    ("linear", "attentive"),
    [("linear_avgpool.demo@2", "attentive.demo@1"), ("linear_avgpool.imagefolder@1", "attentive.imagefolder@1")],
)
def test_own_data_need_one_pass_for_both(linear: str, attentive: str) -> None:
    assert AvgPoolLinear().shared_pass(find_protocol(linear)) == Attentive().shared_pass(find_protocol(attentive))


def test_a_width_that_cannot_be_parted_is_refused(data: tuple[Labels, Labels], tmp_path: Path) -> None:
    with pytest.raises(NotApplicableError, match=r"the 6 channels of patches; add --set queries=3"):
        Attentive().run(protocol(SMALL.changed(queries=4)), MapEncoder("patches"), *data, tmp_path, OPTIONS)


def test_schedules_are_those_of_their_sources() -> None:
    by_name = {p.variant: AttentiveParams.model_validate(p.params) for p in PROTOCOLS}
    capi, steps = by_name["capi"], 1125
    total = capi.total_steps(steps)
    ramp = np.linspace(0.0, 1.0, 1250)
    fall = (np.cos(np.linspace(0, np.pi, total - 1250)) + 1) / 2
    ours = [capi.head_factor(step, steps) for step in range(total)]
    np.testing.assert_allclose(ours, np.concatenate([ramp, fall]), atol=1e-12)
    ep = by_name["ep"]
    for step in (0, 100, 3099, 3100, 15_000, 27_899):  # 310 steps per epoch
        epoch = step / 310
        expected = epoch / 10 if epoch < 10 else 0.5 * (1 + math.cos(math.pi * (epoch - 10) / 80))
        assert ep.head_factor(step, 310) == pytest.approx(expected, abs=1e-12)
    jepa = by_name["vjepa2"]
    for step in (0, 10, 498, 499, 500, 1999):  # 100 steps per epoch
        now, factors = step + 1, jepa.head_factor(step, 100)
        for number, (lr, _) in enumerate(jepa.grid):
            warm = 2e-4 + now / 500 * (lr - 2e-4)
            expected = warm if now < 500 else lr * 0.5 * (1 + math.cos(math.pi * (now - 500) / 1500))
            factor = factors[number] if isinstance(factors, tuple) else factors
            assert lr * factor == pytest.approx(expected, abs=1e-12)


def test_the_warm_up_follows_the_length_of_the_run(data: tuple[Labels, Labels]) -> None:
    shorter = find_protocol("attentive.demo@1").changed(epochs=1)
    assert shorter.id == "attentive.demo@1+epochs=1+warmup=0.1"
    Attentive().check(shorter, *data)
    with pytest.raises(InputError, match=r"warmup=3 is longer than the training of 2"):
        Attentive().check(find_protocol("attentive.demo@1").changed(epochs=2, warmup=3), *data)

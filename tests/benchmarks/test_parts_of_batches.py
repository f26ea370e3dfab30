"""Batches in parts (--accumulate) train what whole batches train, and --scale-lr shows in the protocol's id."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.attentive import Attentive, AttentiveParams
from benchmarks.finetune import FineTuneImageNet, FineTuneParams
from benchmarks.linear import AvgPoolLinear, MultiheadLinear
from benchmarks.registry import find_protocol, with_settings
from benchmarks.task import InputError, Labels, Outcome, RunOptions
from benchmarks.training.task import TrainingParams
from results.schema import Protocol
from tests.builders import folder_protocol
from tests.reference.finetune_plain import TinyNet, tiny_encoder
from tests.reference.linear_probes import MAPS, ONE
from tests.reference.linear_tiny import TinyEncoder, tiny_labels

OPTIONS = RunOptions(device="cpu", workers=0, seed=3, progress=False)
# Not AdamW, whose first steps are as long for a gradient of rounding errors as for any other.
ATTENTIVE = AttentiveParams(
    form="capi", optimiser="lars", lrs=(0.03, 0.3), weight_decays=(0.1,), epochs=2, warmup=1, batch_size=8, heldout=0.25
)
NORMED = ATTENTIVE.changed(form="ep", queries=2)  # a batch norm between pooling and linear layer
TUNED = FineTuneParams(
    lrs=(0.05,), head_multipliers=(10.0,), weight_decay=1e-3, epochs=2, drops=(1,), batch_size=8, mixup=0.8,
    smoothing=0.1,
)  # fmt: skip


class CountingEncoder(TinyEncoder):
    """Notes how many images passes had; its last map is also that of a ViT's tokens."""

    def __init__(self) -> None:
        super().__init__(names=("feature1", "feature2", "patches", "embed"))
        self.sizes: list[int] = []

    def outputs(self, images: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        self.sizes.append(len(images))
        found = super().outputs(images, ["feature1", "feature2", "embed"])
        found["patches"] = found["feature2"]
        return {name: found[name] for name in names}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Labels, Labels]:
    folder = tmp_path_factory.mktemp("images")
    return tiny_labels(folder, "train", 7, seed=0), tiny_labels(folder, "val", 1, seed=1)


def protocol(harness: str, params: TrainingParams) -> Protocol:
    return folder_protocol(params, harness, params.columns()[0], benchmark="test")


PROBES: dict[str, tuple[Any, TrainingParams]] = {
    "linear": (AvgPoolLinear, ONE),
    "multihead": (MultiheadLinear, MAPS.changed(heldout=0.0, lrs=(0.05,), jitter=0.0)),
    "attentive": (Attentive, ATTENTIVE),
    "attentive with batch norm": (Attentive, NORMED),
}


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_in_parts_is_the_probe(name: str, data: tuple[Labels, Labels], tmp_path: Path) -> None:
    """Also with batch norms in the heads, which read the whole batch."""
    kind, params = PROBES[name]
    found: dict[int, Outcome] = {}
    for parts in (1, 3):
        encoder = CountingEncoder()
        found[parts] = kind(accumulate=parts).run(
            protocol(kind.name, params), encoder, *data, tmp_path / str(parts), OPTIONS
        )
        assert max(encoder.sizes) == -(-8 // parts)
    for row, whole in zip(found[3].runs, found[1].runs, strict=True):
        assert row["train_loss"] == pytest.approx(whole["train_loss"], rel=1e-4)
        assert row["accumulate"] == 3
        assert "accumulate" not in whole
    for key, tensor in found[1].tensors.items():
        torch.testing.assert_close(found[3].tensors[key], tensor, rtol=1e-3, atol=1e-5)


def test_fine_tuning_in_parts_is_fine_tuning_without_batch_norms(data: tuple[Labels, Labels], tmp_path: Path) -> None:
    """21 images in batches of 8, mixed with each other before they are taken apart: the last batch has five."""
    states = {}
    for parts in (1, 2, 5):
        before, task = TinyNet.passes, FineTuneImageNet(accumulate=parts)
        outcome = task.run(protocol("finetune", TUNED), tiny_encoder(norm=False), *data, tmp_path / str(parts), OPTIONS)
        assert TinyNet.passes - before == 2 * 3 * parts
        assert outcome.runs[0].get("accumulate", 1) == parts
        states[parts] = torch.load(tmp_path / str(parts) / "all.pt", weights_only=True)
    for parts in (2, 5):
        assert states[parts]["train_loss"] == pytest.approx(states[1]["train_loss"], rel=1e-5)
        for key, tensor in states[1]["network"].items():
            torch.testing.assert_close(states[parts]["network"][key], tensor, rtol=1e-4, atol=1e-6)


def test_only_batch_norms_that_see_a_part_show_in_the_id() -> None:
    asked = find_protocol("finetune_imagenet.demo")
    task, whole = FineTuneImageNet(accumulate=2), FineTuneImageNet()
    assert task.for_encoder(asked, tiny_encoder()).id == "finetune_imagenet.demo@1+accumulate=2"
    assert task.for_encoder(asked, tiny_encoder(norm=False)) == whole.for_encoder(asked, tiny_encoder()) == asked
    for kind in (FineTuneImageNet, AvgPoolLinear):
        with pytest.raises(InputError, match="--accumulate must be at least 1, got 0"):
            kind(accumulate=0).resolve(asked)


@pytest.mark.parametrize("identifier", ["linear_avgpool.moco", "finetune_imagenet.mae_base"])
def test_rates_are_scaled_only_when_asked_and_then_the_id_says_so(identifier: str) -> None:
    own = find_protocol(identifier)
    kind: Any = AvgPoolLinear if own.harness == "linear" else FineTuneImageNet
    batch, rates = own.params["batch_size"], own.params["lrs"]
    larger = with_settings(own, [f"batch_size={4 * batch}"])
    assert kind().resolve(larger).params["lrs"] == rates
    scaled = kind(scale_lr=True).resolve(larger)
    assert scaled.params["lrs"] == tuple(4 * lr for lr in rates)
    assert scaled.id == f"{own.id}+batch_size={4 * batch}+lrs={4 * rates[0]}"
    with pytest.raises(InputError, match="--scale-lr changes nothing"):
        kind(scale_lr=True).resolve(own)
    with pytest.raises(InputError, match="use only one of them"):
        kind(scale_lr=True).resolve(with_settings(larger, ["lrs=0.5"]))

"""Fine-tuning from images to scores: against a plain loop, restartable, the same on two ranks."""

from __future__ import annotations

import signal
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.datasets.images import apply_geometry, decode
from benchmarks.encoders.load import load_encoder
from benchmarks.finetune import FineTuneImageNet, FineTuneParams, labelled_items
from benchmarks.task import InputError, Labels, NotApplicableError, Outcome, RunOptions
from benchmarks.training import finetuning
from benchmarks.training.finetuning import Classifier
from benchmarks.training.images import TrainingBatches, training_view, view_rng
from results.schema import Protocol
from tests.builders import GEOMETRY, folder_protocol
from tests.processes import Program, run_two_ranks
from tests.reference.finetune_plain import TinyNet, plain_input, tiny_encoder, train_plain
from tests.reference.linear_tiny import tiny_labels

ROOT = Path(__file__).parents[2]
PARAMS = FineTuneParams(
    lrs=(0.05,), head_multipliers=(10.0,), weight_decay=1e-3, epochs=4, drops=(3,), gamma=0.2, batch_size=8
)
OPTIONS = RunOptions(device="cpu", workers=0, seed=3, progress=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Labels, Labels]:
    folder = tmp_path_factory.mktemp("images")
    return tiny_labels(folder, "train", 8, seed=0), tiny_labels(folder, "val", 5, seed=1)


def protocol(params: FineTuneParams, **changes: Any) -> Protocol:
    return folder_protocol(params.changed(**changes), "finetune", "Top-1", benchmark="finetune_test")


def tune(data: tuple[Labels, Labels], workdir: Path, **changes: Any) -> Outcome:
    return FineTuneImageNet().run(protocol(PARAMS, **changes), tiny_encoder(), *data, workdir, OPTIONS)


def plain_batches(labels: Labels, items: Any, seed: int) -> list[tuple[Tensor, Tensor]]:
    found = []
    steps = PARAMS.epochs * -(-len(items) // PARAMS.batch_size)
    for batch in TrainingBatches(items, PARAMS.batch_size, seed, 0, steps):
        views = [training_view(decode(labels.paths[i]), PARAMS, GEOMETRY, view_rng(seed, e, i))[0] for e, i in batch]
        found.append(
            (plain_input(torch.from_numpy(np.stack(views))), torch.tensor([labels.targets[i] for _, i in batch]))
        )
    return found


def state_of(workdir: Path, part: str = "all") -> dict[str, Any]:
    found: dict[str, Any] = torch.load(workdir / f"{part}.pt", weights_only=True)
    return found


def test_it_is_a_plain_loop(data: tuple[Labels, Labels], tmp_path: Path) -> None:
    outcome = tune(data, tmp_path)
    net, head = TinyNet(), nn.Linear(8, 3)
    first = Classifier(tiny_encoder(), 3, 16, "normal", 3)
    head.load_state_dict(first.fc.state_dict())
    steps = plain_batches(data[0], np.arange(24), 3)
    factors = [PARAMS.rate_factor(step, 3) for step in range(len(steps))]
    assert factors == [1.0] * 9 + [0.2] * 3
    train_plain(net, head, steps, factors, lr=0.05, multiplier=10.0, momentum=0.9, weight_decay=1e-3)
    trained = state_of(tmp_path)["network"]
    expected = {
        **{f"backbone.{k}": v for k, v in net.state_dict().items()},
        **{f"fc.{k}": v for k, v in head.state_dict().items()},
    }
    assert trained.keys() == expected.keys()
    moved = {name: (trained[name] - initial).abs().max() for name, initial in first.state_dict().items()}
    for name, tensor in expected.items():
        torch.testing.assert_close(trained[name], tensor, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
        assert (moved[name] > 1e-3) == ("unused" not in name), (
            name
        )  # a tolerance that could not fail would prove nothing
    pixels = np.stack([np.asarray(apply_geometry(decode(path), GEOMETRY)) for path in data[1].paths])
    logits = head(net.eval()(plain_input(torch.from_numpy(pixels))))
    right = (logits.argmax(dim=1) == torch.from_numpy(data[1].targets)).numpy()
    assert np.array_equal(outcome.items["correct/Top-1"], right)
    assert outcome.scores["Top-1"].value == pytest.approx(100 * right.mean())
    assert outcome.scores["Top-5"].value == 100  # there are three classes
    assert outcome.scores["Top-1 best"].value == max(100 * t for t in state_of(tmp_path)["top1"])


def test_the_encoder_stays_as_it_is(data: tuple[Labels, Labels], tmp_path: Path) -> None:
    encoder = load_encoder("random:resnet18-w8-k3-nopool:0")
    before = {name: tensor.clone() for name, tensor in encoder.module.state_dict().items()}
    FineTuneImageNet().run(protocol(PARAMS, epochs=1, drops=()), encoder, *data, tmp_path, OPTIONS)
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.module.state_dict().items())
    assert not encoder.module.training
    assert not any(parameter.requires_grad for parameter in encoder.module.parameters())


def test_a_choice_is_made_without_the_held_out_part_and_the_figure_on_all(
    data: tuple[Labels, Labels], tmp_path: Path
) -> None:
    both, alone = tune(data, tmp_path / "both", heldout=0.25), tune(data, tmp_path / "alone")
    assert both.scores == alone.scores
    assert (both.runs[0]["heldout_items"], both.runs[0]["train_items"]) == (6, 24)
    states = [state_of(tmp_path / "both", part)["network"] for part in ("all", "without held-out part")]
    assert not torch.equal(states[0]["fc.weight"], states[1]["fc.weight"])
    assert "heldout_top1" not in alone.runs[0]


def test_only_the_labelled_part_is_trained_on(data: tuple[Labels, Labels], tmp_path: Path) -> None:
    assert tune(data, tmp_path / "a", labelled=0.5, epochs=1, drops=()).runs[0]["train_items"] == 12
    labelled = set(labelled_items(data[0], PARAMS.changed(labelled=0.5)).tolist())
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    paths = tuple(path if item in labelled else broken for item, path in enumerate(data[0].paths))
    unread = replace(data[0], paths=paths)
    tune((unread, data[1]), tmp_path / "b", labelled=0.5, epochs=1, drops=())


def test_bfloat16_is_close_to_float32(data: tuple[Labels, Labels], tmp_path: Path) -> None:
    tune(data, tmp_path / "full", epochs=1, drops=())
    tune(data, tmp_path / "half", epochs=1, drops=(), precision="bf16")
    full, half = (state_of(tmp_path / name)["network"]["fc.weight"] for name in ("full", "half"))
    assert half.dtype == torch.float32
    assert not torch.equal(half, full)
    torch.testing.assert_close(half, full, rtol=0.1, atol=0.02)


KILLED = """
import sys
from pathlib import Path
from tests.processes import kill_with_children
from tests.reference.finetune_plain import TinyNet, tiny_encoder
from tests.reference.linear_tiny import tiny_labels
from benchmarks.finetune import FineTuneImageNet
from benchmarks.task import RunOptions
from benchmarks.training.images import TrainingImages
from results.schema import Protocol

TrainingImages.__init__.__defaults__ = (-1,)  # none is kept in memory, so that there are loader processes
count, forward = 0, TinyNet.forward
def killing(self, x):
    global count
    count += self.training
    if count == 5:  # within the second epoch
        kill_with_children(int(sys.argv[2]), children=2)
    return forward(self, x)
TinyNet.forward = killing
folder = Path(sys.argv[1])
data = tiny_labels(folder / "data", "train", 8, seed=0), tiny_labels(folder / "data", "val", 5, seed=1)
protocol = Protocol.model_validate_json((folder / "protocol.json").read_text())
options = RunOptions(device="cpu", workers=2, seed=3, progress=False)
FineTuneImageNet().run(protocol, tiny_encoder(), *data, folder / "state", options)
"""


@pytest.mark.parametrize(("sent", "code", "steps"), [(signal.SIGKILL, -9, 9), (signal.SIGTERM, 143, 7)])
def test_a_killed_run_goes_on_bit_for_bit(
    sent: int, code: int, steps: int, data: tuple[Labels, Labels], tmp_path: Path
) -> None:
    """SIGTERM comes in the second of three steps of the second epoch, and that step is saved."""
    (tmp_path / "protocol.json").write_text(protocol(PARAMS).model_dump_json())
    killed = Program(KILLED, str(tmp_path), str(int(sent)))
    assert killed.wait() == code, killed.said
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["all.pt"]
    reference = tune(data, tmp_path / "whole")
    before = TinyNet.passes
    resumed = tune(data, tmp_path / "state")
    assert TinyNet.passes - before == steps  # of training and testing that were left
    assert (resumed.scores, resumed.runs) == (reference.scores, reference.runs)
    for name, tensor in state_of(tmp_path / "whole")["network"].items():
        assert torch.equal(tensor, state_of(tmp_path / "state")["network"][name]), name


RANK = """
import sys, torch
from pathlib import Path
from tests.reference.finetune_plain import tiny_encoder
from tests.reference.linear_tiny import tiny_labels
from benchmarks.finetune import FineTuneImageNet
from benchmarks.task import RunOptions
from results.schema import Protocol
folder = Path(sys.argv[1])
data = tiny_labels(folder / "data", "train", 7, seed=0), tiny_labels(folder / "data", "val", 5, seed=1)
protocol = Protocol.model_validate_json((folder / "protocol.json").read_text())
options = RunOptions(device="cpu", workers=0, seed=3, progress=False)
FineTuneImageNet(accumulate=2).run(protocol, tiny_encoder(norm=False), *data, folder / "parts", options)
outcome = FineTuneImageNet().run(protocol, tiny_encoder(), *data, folder / "state", options)
(folder / f"{torch.distributed.get_rank()}.txt").write_text(repr((outcome.scores, outcome.runs[0]["best_epoch"])))
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_ranks_do_what_one_process_does(tmp_path: Path) -> None:
    # 21 images in batches of 10: the last has one, so that one rank has none of it.
    asked = protocol(PARAMS, batch_size=10, epochs=2, drops=())
    data = tiny_labels(tmp_path / "data", "train", 7, seed=0), tiny_labels(tmp_path / "data", "val", 5, seed=1)
    FineTuneImageNet().run(asked, tiny_encoder(), *data, tmp_path / "single", OPTIONS)
    FineTuneImageNet().run(asked, tiny_encoder(norm=False), *data, tmp_path / "whole", OPTIONS)
    (tmp_path / "protocol.json").write_text(asked.model_dump_json())
    run_two_ranks(RANK, str(tmp_path))
    assert (tmp_path / "0.txt").read_text() == (tmp_path / "1.txt").read_text()
    # Without batch norms also where each rank takes its part of a batch in two.
    for one, two in (("single", "state"), ("whole", "parts")):
        alone, shared = state_of(tmp_path / one), state_of(tmp_path / two)
        assert shared["train_loss"] == pytest.approx(alone["train_loss"], rel=1e-4)
        for name, tensor in alone["network"].items():
            torch.testing.assert_close(
                shared["network"][name], tensor, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_a_module_that_is_called_in_another_way_is_found_or_refused() -> None:
    lite = load_encoder("package:efficientnet-lite0")
    classifier = Classifier(lite, 4, 64, "normal", 0)
    x = lite.normalise(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8))
    torch.testing.assert_close(
        classifier.eval()(x), classifier.fc(lite.outputs(x, ("embed",))["embed"]), rtol=1e-4, atol=1e-5
    )
    with pytest.raises(NotApplicableError, match="raw pixels has no weights"):
        Classifier(load_encoder("pixels"), 4, 64, "normal", 0)
    odd = tiny_encoder()
    odd._forward = lambda x, names: {"embed": 2 * odd.module(x)}
    with pytest.raises(NotApplicableError, match="does not give its embedding"):
        Classifier(odd, 4, 16, "normal", 0)


@pytest.mark.parametrize(("width", "expected"), [(4, torch.contiguous_format), (16, torch.channels_last)])
def test_a_narrow_network_is_trained_in_a_layout_whose_gradients_are_right(
    width: int, expected: torch.memory_format
) -> None:
    encoder = load_encoder(f"random:resnet18-w{width}").to("cpu")
    classifier = Classifier(encoder, 3, 64, "normal", 0)
    assert classifier.memory_format == expected
    images = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    exact = deepcopy(classifier).double()  # in double precision, which oneDNN does not know
    classifier.train()(encoder.normalise(images)).square().sum().backward()
    exact.train()(encoder.normalise(images).double()).square().sum().backward()
    own = {name: p.grad for name, p in classifier.named_parameters() if "downsample.0" in name}
    assert len(own) == 3
    for name, parameter in exact.named_parameters():
        if name in own:
            assert parameter.grad is not None
            scale = float(parameter.grad.abs().max())
            torch.testing.assert_close(own[name], parameter.grad.float(), rtol=0, atol=1e-2 * scale)


def test_neither_the_evaluation_batch_nor_its_interval_changes_the_last_epoch(
    data: tuple[Labels, Labels], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    often = tune(data, tmp_path / "often")
    monkeypatch.setattr("benchmarks.training.images.EVALUATION_BATCH", 4)
    seldom = tune(data, tmp_path / "seldom", evaluate_every=3)
    assert state_of(tmp_path / "seldom")["evaluated"] == [3, 4]
    assert seldom.scores["Top-1"] == often.scores["Top-1"]


def test_drops_after_the_last_epoch_are_refused(data: tuple[Labels, Labels], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the run ends at 1, before the drops of the rate at 3"):
        tune(data, tmp_path, epochs=1, drops=(1, 3))


def test_what_cannot_be_chosen_by_is_said(data: tuple[Labels, Labels], tmp_path: Path) -> None:
    few = Labels(
        *(field[::8] for field in (data[0].ids, data[0].paths)),
        data[0].classes,
        data[0].targets[::8],
        data[0].groups[::8],
    )
    with pytest.raises(InputError, match="none can be held out"):
        tune((few, data[1]), tmp_path, heldout=0.25)


def test_a_run_that_stops_inside_an_epoch_goes_on_there(
    data: tuple[Labels, Labels], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = tune(data, tmp_path / "whole")
    monkeypatch.setattr(finetuning, "SAVE_STEPS", 2)  # of the three steps of an epoch
    step, steps = finetuning.FineTuning._step, []

    def stopping(self: Any, *arguments: Any) -> Tensor:
        steps.append(arguments[3])
        if len(steps) == 6:
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(finetuning.FineTuning, "_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        tune(data, tmp_path / "stopped")
    found = tune(data, tmp_path / "stopped")
    assert steps[:7] == [0, 1, 2, 3, 4, 5, 5]
    assert found.runs == expected.runs
    assert found.scores == expected.scores

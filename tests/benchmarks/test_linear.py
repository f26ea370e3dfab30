"""The probes from images to scores: against a plain loop, frozen, restartable, on two ranks, several in one pass."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.datasets.images import apply_geometry, decode
from benchmarks.features.pool import AdaptivePooling
from benchmarks.linear import ORACLE, AvgPoolLinear, ProbeParams
from benchmarks.solvers.linear_heads import HeadBank
from benchmarks.task import InputError, Labels, Outcome
from benchmarks.training import probes
from benchmarks.training.images import TrainingBatches, training_view, view_rng
from benchmarks.training.probes import FrozenFeatures
from results.schema import Protocol
from tests.builders import GEOMETRY
from tests.processes import Program, run_two_ranks
from tests.reference.linear_plain import PlainHead, train_plain_sgd
from tests.reference.linear_probes import MAPS, ONE, OPTIONS, probe, protocol, same
from tests.reference.linear_tiny import TinyEncoder, tiny_labels

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Labels, Labels]:
    folder = tmp_path_factory.mktemp("images")
    return tiny_labels(folder, "train", 8, seed=0), tiny_labels(folder, "val", 5, seed=1)


def plain_batches(params: ProbeParams, labels: Labels, seed: int) -> list[tuple[Tensor, Tensor]]:
    """The embeddings of every view of a run, in order."""
    encoder, found = TinyEncoder(), []
    steps = params.epochs * -(-len(labels) // params.batch_size)
    for batch in TrainingBatches(np.arange(len(labels)), params.batch_size, seed, 0, steps):
        views = [training_view(decode(labels.paths[i]), params, GEOMETRY, view_rng(seed, e, i))[0] for e, i in batch]
        pixels = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2)
        features = encoder.outputs(encoder.normalise(pixels), ("embed",))["embed"]
        found.append((features, torch.from_numpy(labels.targets[[i for _, i in batch]])))
    return found


def embeddings(labels: Labels) -> Tensor:
    encoder = TinyEncoder()
    pixels = np.stack([np.asarray(apply_geometry(decode(path), GEOMETRY)) for path in labels.paths])
    return encoder.outputs(encoder.normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2)), ("embed",))["embed"]


def test_a_probe_is_a_plain_loop(data: tuple[Labels, Labels], tmp_path: Path) -> None:
    outcome = probe(ONE, data, tmp_path)
    first = HeadBank(6, 6, 3, 1, generator=torch.Generator().manual_seed(3)).weight[0].detach()
    head = PlainHead(first, 6, "none")
    steps, accuracies, trained = plain_batches(ONE, data[0], 3), [], []
    for epoch in range(4):
        # From the start every time: the reference keeps no state between calls.
        head = PlainHead(first, 6, "none")
        upto = steps[: 3 * (epoch + 1)]
        factors = [ONE.rate_factor(step, 3) for step in range(len(upto))]
        train_plain_sgd(head, upto, factors, lr=1.0, momentum=0.9, weight_decay=1e-3, nesterov=False)
        right = head(embeddings(data[1])).argmax(dim=1) == torch.from_numpy(data[1].targets)
        accuracies.append(100 * right.double().mean().item())
        trained.append((head, right))
    best = int(np.argmax(accuracies))
    assert best != 3, "last and best must differ for this test to tell them apart"
    assert outcome.scores["AvgPool last"].value == pytest.approx(accuracies[-1])
    assert outcome.scores["AvgPool best"].value == outcome.scores["AvgPool"].value == pytest.approx(max(accuracies))
    assert outcome.runs[0]["best_epoch"] == best + 1
    assert np.array_equal(outcome.items["correct/AvgPool last"], trained[-1][1].numpy())
    assert np.array_equal(outcome.items["correct/AvgPool"], trained[best][1].numpy())
    torch.testing.assert_close(outcome.tensors["AvgPool/weight"], trained[best][0].fc.weight, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(outcome.tensors["AvgPool/bias"], trained[best][0].fc.bias, rtol=1e-5, atol=1e-5)
    assert outcome.scores["AvgPool top-5"].value == 100  # there are three classes
    assert ORACLE not in outcome.scores  # one head leaves nothing to choose


def test_a_bank_gives_every_head_what_it_gets_alone(data: tuple[Labels, Labels], tmp_path: Path) -> None:
    bank = ONE.changed(lrs=(0.05, 0.5, 3.0), heldout=0.25)
    together = probe(bank, data, tmp_path / "bank")
    for row in together.runs:
        alone = probe(bank.changed(lrs=(row["lr"],)), data, tmp_path / str(row["lr"])).runs[0]
        for number in ("last_top1", "best_top1", "best_epoch", "heldout_top1", "heldout_loss", "train_loss"):
            assert alone[number] == pytest.approx(row[number], rel=1e-4), number


def test_the_head_is_chosen_on_the_held_out_part_and_apart_by_the_oracle(
    data: tuple[Labels, Labels], tmp_path: Path
) -> None:
    outcome = probe(ONE.changed(lrs=(1e-6, 0.5, 3.0), heldout=0.25, choose_epoch="last", epochs=12), data, tmp_path)
    chosen = [row for row in outcome.runs if row["chosen"]]
    assert len(outcome.runs) == 3
    assert len(chosen) == 1
    assert chosen[0]["heldout_top1"] == max(row["heldout_top1"] for row in outcome.runs)
    assert chosen[0]["lr"] != 1e-6
    assert outcome.scores["AvgPool"].value == outcome.scores["AvgPool last"].value == chosen[0]["last_top1"]
    assert outcome.scores["AvgPool best"].value == chosen[0]["best_top1"]
    assert outcome.scores[ORACLE].value == max(row["best_top1"] for row in outcome.runs)
    assert "oracle" in outcome.scores[ORACLE].selection
    assert outcome.scores["AvgPool"].selection == "last epoch, rate chosen on a held-out part of train"


def test_the_loss_on_the_held_out_part_may_choose_the_head(data: tuple[Labels, Labels], tmp_path: Path) -> None:
    grid = ONE.changed(lrs=(0.05, 0.5, 30.0), heldout=0.25, choose_epoch="last", drops=())
    assert "choose_rate" not in grid.model_dump(mode="json")  # so that older protocols keep their hashes
    by_loss = probe(grid.changed(choose_rate="loss"), data, tmp_path / "loss")
    by_accuracy = probe(grid, data, tmp_path / "accuracy")
    (row,) = [row for row in by_loss.runs if row["chosen"]]
    assert row["heldout_loss"] == min(run["heldout_loss"] for run in by_loss.runs)
    assert [run["lr"] for run in by_accuracy.runs if run["chosen"]] == [30.0]  # diverges, and is right once more
    assert row["lr"] == 0.5
    assert by_loss.scores["AvgPool"].value == row["last_top1"]
    said = "last epoch, rate with the lowest loss on a held-out part of train"
    assert by_loss.scores["AvgPool"].selection == grid.changed(choose_rate="loss").selection() == said


def test_features_get_a_column_each_and_missing_ones_none(data: tuple[Labels, Labels], tmp_path: Path) -> None:
    encoder = TinyEncoder()
    outcome = probe(MAPS, data, tmp_path, encoder)
    assert set(outcome.scores) == {"Feature1", "Feature2"}
    assert {key: tuple(tensor.shape) for key, tensor in outcome.tensors.items() if key.startswith("Feature1")} == {
        "Feature1/weight": (3, 36),
        "Feature1/bias": (3,),
        "Feature1/bn.running_mean": (4,),
        "Feature1/bn.running_var": (4,),
        "Feature1/bn.weight": (4,),
        "Feature1/bn.bias": (4,),
    }
    # Three epochs of three batches, the shapes, and two kept sets of one batch each: nothing is computed twice.
    assert encoder.passes == 3 * 3 + 1 + 2
    assert outcome.scores["Feature1"].n == 15
    assert outcome.items["correct/Feature2"].mean() * 100 == pytest.approx(outcome.scores["Feature2"].value)


def test_the_saved_head_is_the_classifier_that_was_measured(data: tuple[Labels, Labels], tmp_path: Path) -> None:
    outcome = probe(MAPS, data, tmp_path)
    encoder = TinyEncoder()
    pixels = np.stack([np.asarray(apply_geometry(decode(path), GEOMETRY)) for path in data[1].paths])
    maps = encoder.outputs(encoder.normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2)), ("feature2",))["feature2"]
    own = {k.removeprefix("Feature2/"): v for k, v in outcome.tensors.items() if k.startswith("Feature2/")}
    norm, fc = nn.BatchNorm2d(6), nn.Linear(24, 3)
    norm.load_state_dict({k.removeprefix("bn."): v for k, v in own.items() if k.startswith("bn.")}, strict=False)
    fc.load_state_dict({k: v for k, v in own.items() if not k.startswith("bn.")})
    logits = fc(norm.eval()(nn.functional.adaptive_avg_pool2d(maps, 2)).flatten(1))
    right = (logits.argmax(dim=1) == torch.from_numpy(data[1].targets)).numpy()
    assert np.array_equal(right, outcome.items["correct/Feature2"])


def test_lighting_after_normalisation_is_lighting_before_it() -> None:
    key = ("feature1", AdaptivePooling(grid=8))
    for channels in ("RGB", "BGR"):
        encoder = TinyEncoder(channels=channels)
        frozen = FrozenFeatures(encoder, [key], 16, torch.device("cpu"))
        images = torch.randint(40, 200, (5, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        whole = torch.tensor([[3.0, -9.0, 20.0]] * 5)  # whole pixel values, which the encoder can be given directly
        shifted = (images.float() + whole[:, :, None, None]).to(torch.uint8)
        own, expected = frozen(images, whole / 255)[key], frozen(shifted)[key]
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(own, frozen(images)[key], atol=1e-2)


def test_an_encoder_that_does_not_stay_frozen_is_found_out(data: tuple[Labels, Labels], tmp_path: Path) -> None:
    class Thawed(TinyEncoder):
        def outputs(self, images: Tensor, names: object) -> dict[str, Tensor]:
            self.module[1].running_var[0] += 1e-7 * self.passes
            return super().outputs(images, names)

    with pytest.raises(RuntimeError, match="not frozen"):
        probe(ONE, data, tmp_path, Thawed())


def test_the_last_epoch_is_evaluated_whatever_the_interval(data: tuple[Labels, Labels], tmp_path: Path) -> None:
    often = probe(ONE.changed(evaluate_every=1), data, tmp_path / "often")
    seldom = probe(ONE.changed(evaluate_every=3), data, tmp_path / "seldom")
    assert often.scores["AvgPool last"] == seldom.scores["AvgPool last"]
    assert seldom.runs[0]["best_epoch"] in (3, 4)


def test_neither_the_evaluation_batch_nor_keeping_features_changes_a_result(
    data: tuple[Labels, Labels], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = probe(MAPS, data, tmp_path / "whole")
    monkeypatch.setattr("benchmarks.training.images.EVALUATION_BATCH", 4)
    monkeypatch.setattr("benchmarks.training.probes.KEPT_BYTES", 0)
    encoder = TinyEncoder()
    parts = probe(MAPS, data, tmp_path / "parts", encoder)
    assert encoder.passes == 3 * 3 + 1 + 2 * (2 + 4)  # both sets twice, in as many batches
    assert parts.scores == whole.scores
    for own, expected in zip(parts.runs, whole.runs, strict=True):
        assert own["heldout_loss"] == pytest.approx(expected["heldout_loss"], rel=1e-5)
        assert own["heldout_top1"] == expected["heldout_top1"]


def test_iterations_end_a_run_within_an_epoch(data: tuple[Labels, Labels], tmp_path: Path) -> None:
    cut = probe(ONE.changed(epochs=2, iterations=5, drops=(4,)), data, tmp_path)
    steps = plain_batches(ONE, data[0], 3)[:5]
    head = PlainHead(HeadBank(6, 6, 3, 1, generator=torch.Generator().manual_seed(3)).weight[0].detach(), 6, "none")
    train_plain_sgd(head, steps, [1, 1, 1, 1, 0.1], lr=1.0, momentum=0.9, weight_decay=1e-3, nesterov=False)
    right = (head(embeddings(data[1])).argmax(dim=1) == torch.from_numpy(data[1].targets)).numpy()
    assert np.array_equal(cut.items["correct/AvgPool last"], right)


def test_what_cannot_be_measured_is_said_in_a_sentence(data: tuple[Labels, Labels], tmp_path: Path) -> None:
    train, test = data
    several = Labels(test.ids, test.paths, test.classes, np.zeros((15, 3), np.int8), test.groups)
    renamed = Labels(test.ids, test.paths, ("blue", "green", "rot"), test.targets, test.groups)
    for labels, message in ((several, "one class per image"), (renamed, "red, rot")):
        with pytest.raises(InputError, match=message):
            probe(ONE, (train, labels), tmp_path)
    few = Labels(
        *(field[::8] for field in (train.ids, train.paths)), train.classes, train.targets[::8], train.groups[::8]
    )
    with pytest.raises(InputError, match="none can be held out"):
        probe(ONE.changed(heldout=0.25), (few, test), tmp_path)


def test_what_the_lists_tell_is_refused_before_an_encoder_pass(data: tuple[Labels, Labels]) -> None:
    task, (train, test) = AvgPoolLinear(), data
    late = task.default_protocol(embedded=False, dataset="imagefolder").changed(epochs=10, drops=(20,))
    with pytest.raises(InputError, match="the run ends at 10, before the drops of the rate at 20"):
        task.check(late, train, test)
    with pytest.raises(InputError, match="none can be held out"):
        task.check(protocol(ONE, heldout=0.25), train.rows([0, 8, 16]), test)


def test_a_published_protocol_on_a_set_of_another_size_says_so(
    data: tuple[Labels, Labels], caplog: pytest.LogCaptureFixture
) -> None:
    task = AvgPoolLinear()
    published = task.protocols[0].changed(dataset="imagefolder")
    adapted = task.adapted(published, *data)
    assert adapted.id == "linear_avgpool.moco@1+dataset=imagefolder+train_images=24"
    assert "was published for 1281167 training images, and imagefolder has 24" in caplog.text


@pytest.mark.slow
def test_the_rate_that_an_image_folder_chooses_beats_the_published_one(tmp_path: Path) -> None:
    """At rate 30 in tiny batches the loss does not settle; the search finds a rate at which it does."""
    folder = tmp_path / "data"
    data = tiny_labels(folder, "train", 40, seed=0), tiny_labels(folder, "val", 40, seed=1)
    task = AvgPoolLinear()
    searched = task.adapted(task.default_protocol(embedded=False, dataset="imagefolder"), *data)
    assert searched.id == "linear_avgpool.imagefolder@1+batch_size=16+drops=60,80+epochs=100"
    quick = searched.changed(epochs=20, geometry={"resize": 18, "crop": 16})
    published = task.protocols[0].changed(epochs=20, geometry={"resize": 18, "crop": 16})
    found = task.run(quick, TinyEncoder(), *data, tmp_path / "searched", OPTIONS)
    plain = task.run(published, TinyEncoder(), *data, tmp_path / "published", OPTIONS)
    assert next(row["lr"] for row in found.runs if row["chosen"]) < 30
    assert found.scores["AvgPool"].value > plain.scores["AvgPool last"].value + 5


def test_a_finished_run_is_not_trained_again(data: tuple[Labels, Labels], tmp_path: Path) -> None:
    reference = probe(MAPS, data, tmp_path)
    encoder = TinyEncoder()
    assert same(probe(MAPS, data, tmp_path, encoder), reference)
    assert encoder.passes == 1
    other = probe(MAPS, data, tmp_path, options=replace(OPTIONS, seed=4))
    assert not same(other, reference)  # the state of another seed was not taken up


KILLED = """
import sys
from dataclasses import replace
from pathlib import Path
from tests.processes import kill_with_children
from tests.reference.linear_tiny import TinyEncoder, tiny_labels
from benchmarks.linear import AvgPoolLinear
from benchmarks.training.images import TrainingImages
from tests.reference.linear_probes import OPTIONS
from results.schema import Protocol

TrainingImages.__init__.__defaults__ = (-1,)  # none is kept in memory, so that there are loader processes

class Killed(TinyEncoder):
    def outputs(self, images, names):
        if self.passes == 8:  # after the first epoch and before the last
            kill_with_children(int(sys.argv[2]), children=2)
        return super().outputs(images, names)

folder = Path(sys.argv[1])
data = tiny_labels(folder / "data", "train", 8, seed=0), tiny_labels(folder / "data", "val", 5, seed=1)
protocol = Protocol.model_validate_json((folder / "protocol.json").read_text())
AvgPoolLinear().run(protocol, Killed(), *data, folder / "state", replace(OPTIONS, workers=2))
"""


@pytest.mark.parametrize(
    ("params", "sent", "code"),
    [(ONE, signal.SIGKILL, -9), (MAPS, signal.SIGKILL, -9), (MAPS, signal.SIGTERM, 143), (ONE, signal.SIGUSR1, 143)],
)
def test_a_killed_run_goes_on_bit_for_bit(
    params: ProbeParams, sent: int, code: int, data: tuple[Labels, Labels], tmp_path: Path
) -> None:
    (tmp_path / "protocol.json").write_text(protocol(params).model_dump_json())
    killed = Program(KILLED, str(tmp_path), str(int(sent)))
    assert killed.wait() == code, killed.said
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["resume.pt"]
    whole, resumed = TinyEncoder(), TinyEncoder()
    reference = probe(params, data, tmp_path / "whole", whole)
    assert same(probe(params, data, tmp_path / "state", resumed), reference)
    assert resumed.passes < whole.passes  # it did go on, rather than begin again


RANK = """
import sys, torch
from pathlib import Path
from tests.reference.linear_tiny import TinyEncoder, tiny_labels
from benchmarks.linear import AvgPoolLinear
from tests.reference.linear_probes import OPTIONS
from results.schema import Protocol
folder = Path(sys.argv[1])
data = tiny_labels(folder / "data", "train", 9, seed=0), tiny_labels(folder / "data", "val", 5, seed=1)
protocol = Protocol.model_validate_json((folder / "protocol.json").read_text())
outcome = AvgPoolLinear().run(protocol, TinyEncoder(), *data, folder / "state", OPTIONS)
if torch.distributed.get_rank() == 0:
    torch.save({"runs": outcome.runs, "tensors": outcome.tensors}, folder / "outcome.pt")
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("groups", [1, 3])
def test_two_ranks_do_what_one_process_does(groups: int, tmp_path: Path) -> None:
    # 21 images are trained on in batches of 10: the last has one, so that one rank has none of it.
    settings = MAPS.changed(batch_size=10, heldout=0.2, lrs=(0.01, 0.02), norm_groups=groups)
    data = tiny_labels(tmp_path / "data", "train", 9, seed=0), tiny_labels(tmp_path / "data", "val", 5, seed=1)
    reference = probe(settings, data, tmp_path / "single")
    (tmp_path / "protocol.json").write_text(protocol(settings).model_dump_json())
    run_two_ranks(RANK, str(tmp_path))
    found = torch.load(tmp_path / "outcome.pt", weights_only=True)
    assert len(found["runs"]) == len(reference.runs) == 4
    for own, expected in zip(found["runs"], reference.runs, strict=True):
        assert own["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-4)
        assert own["heldout_loss"] == pytest.approx(expected["heldout_loss"], rel=1e-4)
    for name, tensor in reference.tensors.items():
        torch.testing.assert_close(found["tensors"][name], tensor, rtol=1e-4, atol=1e-5)


def together(
    protocols: list[Protocol], encoder: TinyEncoder, data: tuple[Labels, Labels], *workdirs: Path
) -> list[Outcome]:
    task = AvgPoolLinear()
    assert len({task.shared_pass(each) for each in protocols}) == 1
    return task.run_together(protocols, encoder, *data, workdirs, OPTIONS)


def test_two_probes_in_one_pass_are_what_each_is_alone(data: tuple[Labels, Labels], tmp_path: Path) -> None:
    grid = ONE.changed(lrs=(0.1, 1.0), heldout=0.25, epochs=3, drops=(), jitter=0.4, lighting=0.1)
    other = {**MAPS.pooling, "feature1": AdaptivePooling(grid=4)}
    asked = [protocol(grid), protocol(MAPS, evaluate_every=1), protocol(MAPS, pooling=other)]
    encoder = TinyEncoder()
    outcomes = together(asked, encoder, data, tmp_path / "a", tmp_path / "b", tmp_path / "c")
    task = AvgPoolLinear()
    alone = [task.run(each, TinyEncoder(), *data, tmp_path / str(n), OPTIONS) for n, each in enumerate(asked)]
    assert all(same(a, b) for a, b in zip(outcomes, alone, strict=True))
    assert not same(outcomes[1], outcomes[2])
    assert encoder.passes == 3 * 3 + 1 + 2  # of one run, not of three
    for different in (protocol(MAPS, epochs=4), protocol(MAPS, jitter=0.0), asked[1].changed(dataset="imagenet")):
        assert task.shared_pass(different) != task.shared_pass(asked[0])


def test_probes_that_were_stopped_apart_go_on_together(data: tuple[Labels, Labels], tmp_path: Path) -> None:
    asked = [protocol(MAPS), protocol(MAPS.changed(outputs=("feature2",), lrs=(0.02,)))]
    reference = together(asked, TinyEncoder(), data, tmp_path / "a", tmp_path / "b")
    finished = probe(MAPS, data, tmp_path / "c")  # the other has yet to begin
    resumed = together(asked, TinyEncoder(), data, tmp_path / "c", tmp_path / "d")
    assert same(resumed[0], finished)
    assert all(same(a, b) for a, b in zip(resumed, reference, strict=True))


def test_probes_that_stop_inside_an_epoch_go_on_there(
    data: tuple[Labels, Labels], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = probe(MAPS, data, tmp_path / "whole")
    monkeypatch.setattr(probes, "SAVE_STEPS", 2)  # of the three steps of an epoch
    update, steps = probes.Probe.update, []

    def stopping(self: probes.Probe, features: object, targets: Tensor, step: int, length: int) -> None:
        steps.append(step)
        if len(steps) == 6:
            raise KeyboardInterrupt
        update(self, features, targets, step, length)  # type: ignore[arg-type]

    monkeypatch.setattr(probes.Probe, "update", stopping)
    with pytest.raises(KeyboardInterrupt):
        probe(MAPS, data, tmp_path / "stopped")
    assert same(probe(MAPS, data, tmp_path / "stopped"), expected)
    assert steps[:7] == [0, 1, 2, 3, 4, 5, 5]

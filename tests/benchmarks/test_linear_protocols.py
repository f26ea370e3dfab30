"""The protocols against the numbers of their sources, written down a second time by hand."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from benchmarks.linear import AVGPOOL_PROTOCOLS, MULTIHEAD_PROTOCOLS, AvgPoolLinear, ProbeParams
from benchmarks.task import InputError
from benchmarks.training.probe_task import fitted_to
from results.schema import Geometry, Protocol

PROTOCOLS = (*AVGPOOL_PROTOCOLS, *MULTIHEAD_PROTOCOLS)
BY_ID = {protocol.id: protocol for protocol in PROTOCOLS}
FEATURES = tuple(f"feature{n}" for n in range(1, 6))

# optimiser, rate, decay, nesterov, batch, epochs, schedule, drops, epochs between evaluations
AVGPOOL = {
    "moco@1": ("sgd", 30, 0, False, 256, 100, "step", (60, 80), 1),
    "mmselfsup@1": ("sgd", 30, 0, False, 256, 100, "step", (60, 80), 1),
    "simsiam@2": ("lars", 1.6, 0, False, 4096, 90, "cosine", (), 10),
    "swav@2": ("sgd", 0.3, 1e-6, False, 256, 100, "cosine", (), 10),
    "barlowtwins@1": ("sgd", 0.3, 1e-6, False, 256, 100, "cosine", (), 1),
    "mocov3@2": ("sgd", 12, 0, False, 1024, 90, "cosine", (), 10),
}
# data set and variant: epochs, drops, decay, batch norm, view, colour noise
MULTIHEAD = {
    "linear_multihead.mmselfsup@1": (90, (30, 60, 90), 1e-4, "plain", "resized_crop", True),
    "linear_multihead_places205.mmselfsup@1": (28, (7, 14, 21), 1e-4, "plain", "stored_crop", False),
    "linear_multihead_inat18.mmselfsup@1": (84, (24, 48, 72), 1e-4, "plain", "resized_crop", False),
    "linear_multihead.vissl@2": (28, (8, 16, 24), 5e-4, "affine", "resized_crop", False),
    "linear_multihead_places205.vissl@2": (14, (4, 8, 12), 5e-4, "affine", "resized_crop", False),
    "linear_multihead_inat18.vissl@2": (84, (24, 48, 72), 5e-4, "affine", "resized_crop", False),
    "linear_multihead.fssb@2": (28, (40_000, 80_000, 120_000), 1e-4, "plain", "resized_crop", True),
    "linear_multihead_places205.fssb@2": (15, (40_000, 80_000, 120_000), 1e-4, "plain", "resized_crop", True),
}


@pytest.mark.parametrize("variant", AVGPOOL)
def test_avgpool_probes(variant: str) -> None:
    protocol = BY_ID[f"linear_avgpool.{variant}"]
    settings = ProbeParams.model_validate(protocol.params)
    optimiser, lr, decay, nesterov, batch, epochs, schedule, drops, interval = AVGPOOL[variant]
    assert (settings.optimiser, settings.grid, settings.nesterov) == (optimiser, ((lr, decay),), nesterov)
    assert (settings.batch_size, settings.epochs, settings.schedule) == (batch, epochs, schedule)
    assert (settings.drops, settings.gamma, settings.momentum, settings.init_std) == (drops, 0.1, 0.9, 0.01)
    assert (settings.outputs, settings.batch_norm, settings.pooling) == (("embed",), "none", {})
    assert (settings.view, settings.crop_area, settings.flip_p) == ("resized_crop", (0.08, 1.0), 0.5)
    assert (settings.jitter, settings.lighting, settings.heldout, settings.precision) == (0, 0, 0, "fp32")
    assert (settings.evaluate_every, settings.choose_epoch) == (interval, "best")
    assert protocol.geometry == Geometry(mode="shorter", resize=256, crop=224)
    assert "best" in protocol.selection


@pytest.mark.parametrize("identifier", MULTIHEAD)
def test_multihead_probes(identifier: str) -> None:
    protocol = BY_ID[identifier]
    settings = ProbeParams.model_validate(protocol.params)
    epochs, drops, decay, batch_norm, view, colour = MULTIHEAD[identifier]
    assert (settings.epochs, settings.drops, settings.grid) == (epochs, drops, ((0.01, decay),))
    assert (settings.batch_norm, settings.view, settings.batch_size) == (batch_norm, view, 256)
    assert (settings.jitter, settings.lighting) == ((0.4, 0.1) if colour else (0, 0))
    assert (settings.optimiser, settings.momentum, settings.nesterov) == ("sgd", 0.9, True)
    assert settings.outputs == FEATURES
    assert settings.choose_epoch == "last"
    assert settings.head_init == ("default" if "vissl" in identifier else "normal")
    assert settings.norm_groups == (8 if "fssb" in identifier else 1)
    assert settings.iterations == (140_000 if "fssb" in identifier else None)
    kernels = [(p.kernel, p.stride, p.padding) for p in (settings.pooling[name] for name in FEATURES)]
    assert kernels == [(10, 10, 4), (16, 8, 0), (13, 5, 0), (8, 3, 0), (6, 1, 0)]


@pytest.mark.parametrize(("dataset", "images"), [("imagenet", 1_281_167), ("places205", 2_448_873)])
def test_the_iterations_of_fssb_are_so_many_epochs(dataset: str, images: int) -> None:
    protocol = next(p for p in PROTOCOLS if p.variant == "fssb" and p.dataset == dataset)
    settings = ProbeParams.model_validate(protocol.params)
    assert settings.iterations is not None
    assert settings.epochs == math.ceil(settings.iterations / math.ceil(images / 256))


def test_each_command_has_a_default_for_full_and_for_embedded_data() -> None:
    for command, benchmark, variant in (
        ("linear", "linear_avgpool", "moco"),
        ("multihead", "linear_multihead", "mmselfsup"),
    ):
        for expected in (variant, "demo"):
            found = [p for p in PROTOCOLS if (p.harness, p.benchmark, p.variant) == (command, benchmark, expected)]
            assert len(found) == 1


def test_ids_are_unique_and_survive_json() -> None:
    assert len(BY_ID) == len(PROTOCOLS)
    for protocol in PROTOCOLS:
        again = Protocol.model_validate_json(protocol.model_dump_json())
        assert again.content_sha256() == protocol.content_sha256()
        assert ProbeParams.model_validate(again.params) == ProbeParams.model_validate(protocol.params)


def test_the_small_protocols_never_choose_on_test() -> None:
    for protocol in (p for p in PROTOCOLS if p.variant == "demo"):
        assert "held-out part of train" in protocol.selection
        assert protocol.params["heldout"] > 0


MOCO = BY_ID["linear_avgpool.moco@1"]
STEPS = 7


def factors(settings: ProbeParams) -> list[float]:
    return [settings.rate_factor(step, STEPS) for step in range(settings.total_steps(STEPS))]


def torch_factors(scheduler: torch.optim.lr_scheduler.LRScheduler, epochs: int) -> list[float]:
    found = []
    for _ in range(epochs):
        found += [scheduler.optimizer.param_groups[0]["lr"]] * STEPS
        scheduler.optimizer.step()
        scheduler.step()
    return found


def sgd() -> torch.optim.SGD:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)


def test_steps_are_multistep_lr_per_epoch() -> None:
    settings = ProbeParams(outputs=("embed",), lrs=(1.0,), epochs=9, drops=(3, 6, 9))
    expected = torch_factors(torch.optim.lr_scheduler.MultiStepLR(sgd(), [3, 6, 9]), 9)
    assert factors(settings) == pytest.approx(expected)
    assert factors(settings)[-1] == pytest.approx(0.01)  # the drop at the end is never reached


def test_cosine_is_cosine_annealing_per_epoch() -> None:
    settings = ProbeParams(outputs=("embed",), lrs=(1.0,), epochs=9, schedule="cosine")
    expected = torch_factors(torch.optim.lr_scheduler.CosineAnnealingLR(sgd(), 9), 9)
    assert factors(settings) == pytest.approx(expected)


def test_a_schedule_in_iterations_drops_between_epochs_too() -> None:
    settings = ProbeParams(outputs=("embed",), lrs=(1.0,), epochs=3, iterations=16, drops=(4, 12))
    assert factors(settings) == pytest.approx([1.0] * 4 + [0.1] * 8 + [0.01] * 4)


def test_the_grid_is_every_rate_with_every_decay() -> None:
    settings = ProbeParams(outputs=("embed",), lrs=(1.0, 2.0), weight_decays=(0.0, 0.5), epochs=1, heldout=0.1)
    assert settings.grid == ((1.0, 0.0), (1.0, 0.5), (2.0, 0.0), (2.0, 0.5))


def test_several_heads_need_something_to_choose_by() -> None:
    with pytest.raises(ValidationError, match="heldout"):
        ProbeParams(outputs=("embed",), lrs=(1.0, 2.0), epochs=1)
    with pytest.raises(InputError, match="heldout"):
        MOCO.changed(lrs=[1.0, 30.0])
    assert MOCO.changed(lrs=[1.0, 30.0], heldout=0.1).params["lrs"] == (1.0, 30.0)


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(ValidationError):
        ProbeParams.model_validate(MOCO.params).changed(learning_rate=3)
    with pytest.raises(InputError, match="has no setting 'learning_rate'"):
        MOCO.changed(learning_rate=3)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"lrs": ()}, "at least 1 item"),
        ({"lrs": (0.0,)}, "greater than 0"),
        ({"lrs": (-1.0,)}, "greater than 0"),
        ({"lrs": (float("nan"),)}, "finite"),
        ({"lrs": (0.1, 0.1), "heldout": 0.1}, "a value twice"),
        ({"weight_decays": ()}, "at least 1 item"),
        ({"weight_decays": (-1e-4,)}, "greater than or equal to 0"),
        ({"momentum": 1.0}, "less than 1"),
        ({"gamma": 0.0}, "greater than 0"),
        ({"iterations": 0}, "greater than 0"),
        ({"outputs": ()}, "at least 1 item"),
        ({"outputs": ("feature6",)}, "feature6 must be among embed, feature1"),
        ({"outputs": ("embed", "embed")}, "without repeats"),
        ({"outputs": ("feature5",)}, "feature5 are feature maps"),
        ({"crop_area": (1.0, 0.5)}, "crop_area .* must ascend"),
        ({"crop_area": (0.5, 2.0)}, "end at 1"),
        ({"crop_aspect": (2.0, 1.0)}, "crop_aspect .* must ascend"),
        ({"flip_p": 2.0}, "less than or equal to 1"),
    ],
)
def test_what_means_nothing_is_refused(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        MOCO.changed(**changes)


@pytest.mark.parametrize(
    ("base", "changes", "drops"),
    [
        ("linear_avgpool.moco@1", {"epochs": 10}, (6, 8)),
        ("linear_avgpool.moco@1", {"epochs": 200}, (120, 160)),
        ("linear_avgpool.moco@1", {"epochs": 10, "drops": (5,)}, (5,)),
        ("linear_avgpool.moco@1", {"iterations": 1000}, (600, 800)),  # counted in iterations then
        ("linear_multihead.mmselfsup@1", {"epochs": 9}, (3, 6, 9)),
        ("linear_multihead.fssb@2", {"iterations": 700}, (200, 400, 600)),
    ],
)
def test_drops_keep_their_share_of_a_run_of_another_length(
    base: str, changes: dict[str, object], drops: tuple[int, ...]
) -> None:
    protocol = BY_ID[base].changed(**changes)
    assert ProbeParams.model_validate(protocol.params).drops == drops
    assert f"drops={','.join(map(str, drops))}" in protocol.overrides


@pytest.mark.parametrize(
    ("images", "changes"),
    [
        (500, {"batch_size": 16, "epochs": 70}),
        (5000, {"epochs": 100}),
        (100_000, {}),
        (40, {"batch_size": 16, "epochs": 100}),
    ],
)
def test_an_image_folder_gets_batches_and_epochs_for_its_size(images: int, changes: dict[str, int]) -> None:
    protocol = BY_ID["linear_avgpool.imagefolder@1"]
    assert fitted_to(images, ProbeParams.model_validate(protocol.params)) == changes
    assert AvgPoolLinear().default_protocol(embedded=False, dataset="imagefolder") == protocol


def test_the_vector_and_maps_are_two_protocols() -> None:
    with pytest.raises(InputError, match="two protocols"):
        BY_ID["linear_multihead.demo@1"].changed(outputs=("embed", "feature5"))


@pytest.mark.parametrize(
    ("changes", "how"),
    [
        ({}, "best epoch on test"),
        ({"choose_epoch": "last"}, "last epoch"),
        ({"lrs": (1.0, 30.0), "heldout": 0.1}, "best epoch on test, rate chosen on a held-out part of train"),
        ({"lrs": (1.0, 30.0), "heldout": 0.1, "choose_epoch": "last"},
         "last epoch, rate chosen on a held-out part of train"),
    ],
)  # fmt: skip
def test_what_is_said_of_the_choice_follows_the_settings(changes: dict[str, object], how: str) -> None:
    assert MOCO.changed(**changes).selection == how

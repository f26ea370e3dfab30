"""Schedules, grids and what the settings refuse."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from benchmarks.contract import InputError
from benchmarks.linear.declare import selection
from benchmarks.linear.protocols import AVGPOOL_DEMO, PROTOCOLS
from benchmarks.linear.settings import ProbeSettings, probe_settings, stored_settings

STEPS = 7


def factors(settings: ProbeSettings) -> list[float]:
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
    settings = ProbeSettings(outputs=("embed",), lrs=(1.0,), epochs=9, drops=(3, 6, 9))
    expected = torch_factors(torch.optim.lr_scheduler.MultiStepLR(sgd(), [3, 6, 9]), 9)
    assert factors(settings) == pytest.approx(expected)
    assert factors(settings)[-1] == pytest.approx(0.01)  # the drop at the end is never reached


def test_cosine_is_cosine_annealing_per_epoch() -> None:
    settings = ProbeSettings(outputs=("embed",), lrs=(1.0,), epochs=9, schedule="cosine")
    expected = torch_factors(torch.optim.lr_scheduler.CosineAnnealingLR(sgd(), 9), 9)
    assert factors(settings) == pytest.approx(expected)


def test_a_schedule_in_iterations_drops_between_epochs_too() -> None:
    settings = ProbeSettings(outputs=("embed",), lrs=(1.0,), epochs=3, iterations=16, drops=(4, 12))
    assert factors(settings) == pytest.approx([1.0] * 4 + [0.1] * 8 + [0.01] * 4)


def test_the_grid_is_every_rate_with_every_decay() -> None:
    settings = ProbeSettings(outputs=("embed",), lrs=(1.0, 2.0), weight_decays=(0.0, 0.5), epochs=1, heldout=0.1)
    assert settings.grid == ((1.0, 0.0), (1.0, 0.5), (2.0, 0.0), (2.0, 0.5))


def test_several_heads_need_something_to_choose_by() -> None:
    with pytest.raises(ValidationError, match="heldout"):
        ProbeSettings(outputs=("embed",), lrs=(1.0, 2.0), epochs=1)
    moco = next(p for p in PROTOCOLS if p.id == "linear_avgpool.moco@1")
    with pytest.raises(InputError, match="heldout"):
        probe_settings(moco.with_overrides(lrs=[1.0, 30.0]))
    assert len(probe_settings(moco.with_overrides(lrs=[1.0, 30.0], heldout=0.1)).grid) == 2


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(ValidationError):
        probe_settings(AVGPOOL_DEMO).changed(learning_rate=3)


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
        ({"outputs": ("feature5",)}, "feature5 are maps"),
        ({"crop_area": (1.0, 0.5)}, "crop_area .* must ascend"),
        ({"crop_area": (0.5, 2.0)}, "end at 1"),
        ({"crop_aspect": (2.0, 1.0)}, "crop_aspect .* must ascend"),
        ({"flip_p": 2.0}, "less than or equal to 1"),
    ],
)
def test_what_means_nothing_is_refused(changes: dict[str, object], sentence: str) -> None:
    moco = next(p for p in PROTOCOLS if p.id == "linear_avgpool.moco@1")
    with pytest.raises(InputError, match=sentence):
        probe_settings(moco.with_overrides(**changes))


def test_the_vector_and_maps_are_two_protocols() -> None:
    demo = next(p for p in PROTOCOLS if p.id == "linear_multihead.demo@1")
    with pytest.raises(InputError, match="two protocols"):
        probe_settings(demo.with_overrides(outputs=("embed", "feature5")))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"penalties": ()}, "at least 1 item"),
        ({"penalties": (-1.0,)}, "greater than or equal to 0"),
        ({"output": "feature5"}, "'embed' or 'head'"),
        ({"max_iterations": 0}, "greater than 0"),
    ],
)
def test_the_fast_variant_refuses_what_means_nothing(changes: dict[str, object], sentence: str) -> None:
    demo = next(p for p in PROTOCOLS if p.id == "linear_stored.demo@1")
    with pytest.raises(InputError, match=sentence):
        stored_settings(demo.with_overrides(**changes))


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
    moco = next(p for p in PROTOCOLS if p.id == "linear_avgpool.moco@1")
    assert selection(probe_settings(moco.with_overrides(**changes))) == how

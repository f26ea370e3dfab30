"""Schedules, grids and what the settings refuse."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from benchmarks.contract import InputError
from benchmarks.linear.protocols import AVGPOOL_DEMO, PROTOCOLS
from benchmarks.linear.settings import ProbeSettings, probe_settings

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

"""MoCo beside the end-to-end mechanism: time, memory, and what makes the difference."""

from __future__ import annotations

import statistics
import time
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pretrain.cost import Stepper, measure
from pretrain.speed.entry import entry
from pretrain.speed.setting import CPU, moco_v2

# Table 3 of the v2 note (8 V100, batch 256): hours of 200 epochs, and GB of one GPU.
NOTE_HOURS, NOTE_GB = (53.0, 65.0), (5.0, 7.4)
# Units of one forward pass: MoCo runs two and one backward pass of two units; end-to-end both of each.
UNITS = (4, 6)
GB = 1e9


def measure_end_to_end() -> dict[str, Any]:
    """A step of MoCo and of the end-to-end mechanism, the peak memory of each in a process of its own, and the parts.

    Time: the passes of one encoder by themselves. Memory: what autograd keeps, and the tensors that stay.
    """
    recipes = [moco_v2(precision="bf16", mechanism=mechanism) for mechanism in ("momentum", "end-to-end")]
    peaks = [measure(recipe, "cpu", 1).peak_gib * 2**30 for recipe in recipes]
    steppers = [Stepper(recipe, CPU) for recipe in recipes]
    for stepper in steppers:
        stepper.step()
    rounds = [[stepper.timed() for stepper in steppers] for _ in range(3)]
    ours, theirs = (statistics.median(column) for column in zip(*rounds, strict=True))
    passes = [_passes(steppers[0]) for _ in range(3)]
    forward, backward, forward_only = (statistics.median(column) for column in zip(*passes, strict=True))
    staying = [sum(_lasting(stepper).values()) for stepper in steppers]
    kept = [_kept(stepper, torch.bfloat16) for stepper in steppers]
    kept_fp32 = [_kept(stepper, None) for stepper in steppers]
    counted = [sum(parts) for parts in zip(staying, kept, strict=True)]
    note = [sum(parts) for parts in zip(staying, kept_fp32, strict=True)]
    return entry(
        "end-to-end",
        ours,
        theirs,
        "the end-to-end mechanism, both encoders back-propagated through",
        theirs * UNITS[0] / UNITS[1],
        f"{UNITS[0]} units of a forward pass against {UNITS[1]}, {_ratio(UNITS)}",
        f"time {_ratio((ours, theirs))}, because a backward pass took {backward / forward:.2f} forward passes and the "
        f"key's forward pass without gradient {forward_only / forward:.2f}, by which the passes alone are "
        f"{_ratio((forward + backward + forward_only, 2 * (forward + backward)))}, and the end-to-end mechanism's SGD "
        f"moves twice the weights; peak memory {_gb(peaks)}, because the keys' encoder keeps its activations "
        f"({_gb(kept)}) and has gradients and momentum (tensors that stay: {_gb(staying)}), both together "
        f"{_gb(counted)}, while what else a peak holds is of the moment and the same; Table 3 of the v2 note (8 V100, "
        f"float32, 32 images on each) has time {_ratio(NOTE_HOURS)}, by the units of which {100 * _elsewhere():.0f} % "
        f"of MoCo's step went elsewhere than into passes, and memory {_ratio(NOTE_GB)}: in float32 the same count is "
        f"{_gb(note)}, and the {NOTE_GB[0] - note[0] / GB:.1f} and {NOTE_GB[1] - note[1] / GB:.1f} GB up to the note's "
        "are what a GPU's process holds beside it",
    )


def _elsewhere() -> float:
    """The share f / (4 + f) of MoCo's step outside the passes for which 6 + f to 4 + f units are the note's ratio."""
    ratio = NOTE_HOURS[1] / NOTE_HOURS[0]
    outside = (UNITS[1] - UNITS[0] * ratio) / (ratio - 1)
    return outside / (UNITS[0] + outside)


def _passes(stepper: Stepper) -> tuple[float, float, float]:
    """Seconds of one encoder's forward pass, of its backward pass, and of a forward pass without gradient."""
    encoder, images = stepper.model.encoder_q, stepper.batch.views[0]
    times = [time.perf_counter()]
    with torch.autocast("cpu", torch.bfloat16):
        embeddings = encoder(images)
        times.append(time.perf_counter())
    embeddings.sum().backward()
    times.append(time.perf_counter())
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        encoder(images)
    times.append(time.perf_counter())
    forward, backward, forward_only = (after - before for before, after in pairwise(times))
    return forward, backward, forward_only


def _lasting(stepper: Stepper) -> dict[int, int]:
    """Bytes of weights, gradients, optimiser and queue by their address."""
    tensors = list(stepper.model.state_dict().values())
    tensors += [p.grad for p in stepper.model.parameters() if p.grad is not None]
    tensors += [state["momentum_buffer"] for state in stepper.optimizer.state.values()]
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


def _kept(stepper: Stepper, autocast: torch.dtype | None) -> int:
    """Bytes that autograd keeps of a step's forward passes, beside what stays anyway."""
    lasting, kept = _lasting(stepper), {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in lasting:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", autocast, enabled=autocast is not None),
    ):
        loss = stepper.model(stepper.batch).loss  # holds what is counted until the end
    total = sum(kept.values())
    del loss
    return total


def _ratio(pair: tuple[float, float]) -> str:
    return f"1 to {pair[1] / pair[0]:.2f}"


def _gb(pair: list[int] | list[float]) -> str:
    return f"{pair[0] / GB:.2f} to {pair[1] / GB:.2f} GB, {_ratio((pair[0], pair[1]))}"

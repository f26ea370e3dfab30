"""Training of linear heads on a frozen encoder's maps of augmented images: batches, evaluations, and resuming."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from benchmarks.datasets.lists import fingerprint
from benchmarks.dense.masks import held_out_images
from benchmarks.dense.patches import Layers, maps_of
from benchmarks.dense.problems import (
    HeadsModel,
    HeadsProblem,
    View,
    dropped,
    on_maps,
    padded,
    padded_input,
)
from benchmarks.encoders.encoder import Encoder
from benchmarks.solvers.linear_heads import BankAdamW, HeadBank
from benchmarks.task import InputError, Labels, Outcome, RunOptions, progress
from benchmarks.training.images import TrainingBatches, view_rng
from benchmarks.training.loop import TrainingState, frozen
from pretrain import distributed
from pretrain.distributed import DataLoader, sent
from results.errors import is_out_of_memory
from results.schema import Protocol, canonical_sha256

if TYPE_CHECKING:
    from benchmarks.dense.linear import ImageHeadParams

log = logging.getLogger("benchmarks")

SAVE_EVERY = 1000  # iterations between states that a killed run continues from


def choose_map(encoder: Encoder, side: int, stride: int, *, pad: bool, layers: Layers = "last") -> tuple[str, int]:
    """The output that heads sit on and its channels: patch tokens, or the deepest stage of at most this stride.

    Raises:
        InputError: the encoder has none.
    """
    blank = encoder.normalise(torch.zeros(1, 3, side, side, dtype=torch.uint8))
    if pad:
        blank = padded(blank, encoder.card.patch_size or 1)
    for name in maps_of(layers):
        if encoder.has(name):
            try:
                found = encoder.outputs(blank, {name})[name]
            except (RuntimeError, AssertionError, ValueError) as error:
                if is_out_of_memory(error):
                    raise
                raise InputError(
                    f"{encoder.card.name} cannot take {side} pixels ({' '.join(str(error).split())[:120]}); set crop "
                    "to a multiple of its patch size, or pad=true"
                ) from error
            if name.startswith("patches") or found.shape[-1] * stride >= side:
                return name, found.shape[1]
    if layers != "last":
        raise InputError(
            f"{encoder.card.name} has no {maps_of(layers)[0]}, which this protocol reads: it needs a vision "
            "transformer with four blocks; choose another encoder, or --set layers=last"
        )
    raise InputError(
        f"{encoder.card.name} has no feature map of stride {stride} or finer; choose another encoder, or "
        "--set stride=32"
    )


@dataclass
class HeadsState(TrainingState):
    """The heads after some iterations, and what they did at each evaluation.

    Attributes:
        bank: its parameters and statistics.
        momenta: the optimiser's buffers.
        evaluations: iteration, and for each head the quality on the test and on the held-out images.
        last: what each head does on every test image, at the last evaluation.
        best: the same at the evaluation that was best on the test images.
    """

    bank: dict[str, Any] = field(default_factory=dict)
    momenta: list[Tensor] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    last: list[Tensor] = field(default_factory=list)
    best: list[Tensor] = field(default_factory=list)


def head_bank(channels: int, outputs: int, heads: int, seed: int, *, norm: bool = True) -> HeadBank:
    """Heads that start alike: weights N(0, 0.01), biases 0, and a batch norm with a scale and shift of each head."""
    generator = torch.Generator().manual_seed(seed)
    return HeadBank(channels, channels, outputs, heads, batch_norm="affine" if norm else "none", generator=generator)


class _Views(Dataset[View]):
    def __init__(self, problem: HeadsProblem, seed: int) -> None:
        self.problem, self.seed = problem, seed

    def __getitem__(self, request: tuple[int, int]) -> View:
        epoch, index = request
        return self.problem.view(index, view_rng(self.seed, epoch, index))


@dataclass(frozen=True)
class TrainedHeads:
    """The heads after their training; `output` is the map of the encoder that they sit on."""

    model: HeadsModel
    state: HeadsState
    output: str


def train_heads(
    problem_of: Callable[[NDArray[np.int64]], HeadsProblem], params: ImageHeadParams, side: int, protocol: Protocol,
    encoder: Encoder, train: Labels, test: Labels, workdir: Path, options: RunOptions,
) -> TrainedHeads:  # fmt: skip
    """Train a head per rate on the same batches. A killed run continues from its last state.

    Args:
        problem_of: the problem with these training images held out.
        side: of a training view.

    Raises:
        InputError: the encoder has no suitable map or class token.
        FloatingPointError: every head has diverged.
        RuntimeError: the encoder changed, although it should be frozen.
    """
    kept, held = held_out_images(len(train), params.heldout, options.seed)
    problem = problem_of(held)
    output, channels = choose_map(encoder, side, params.stride, pad=problem.pad, layers=params.layers)
    data = [fingerprint(train), fingerprint(test)]
    key = canonical_sha256([protocol.content_sha256(), encoder.card.weights_sha256, *data, options.seed])
    device = torch.device(options.device)
    width = channels + (encoder_width(encoder, problem.class_token) if problem.class_token else 0)
    bank = head_bank(width, problem.outputs, len(params.rates), options.seed, norm=problem.norm).to(device)
    optimiser = BankAdamW(
        bank, params.rates, [params.decay] * len(params.rates), betas=params.betas, clip=params.clip, spare_norms=False
    )
    model = HeadsModel(encoder, output, bank, problem)
    path = workdir / "heads.pt"
    state = HeadsState.load(path, key)
    if state.steps:
        bank.load_state_dict(state.bank)
        for tensor, saved in zip(optimiser.momenta, state.momenta, strict=True):
            tensor.copy_(saved)
    loader: DataLoader[Any] = DataLoader(
        _Views(problem, options.seed),
        batch_sampler=TrainingBatches(kept, params.batch_size, options.seed, state.steps, params.iterations),
        num_workers=options.loaders if device.type == "cuda" else 0,
        collate_fn=list,
    )
    bank.train()
    with frozen(encoder), distributed.stop_signals() as stop:
        _train(model, optimiser, state, loader, params, path, options, stop)
    return TrainedHeads(model, state, output)


def _train(
    model: HeadsModel, optimiser: BankAdamW, state: HeadsState, loader: DataLoader[Any], params: ImageHeadParams,
    path: Path, options: RunOptions, stop: Callable[[], bool],
) -> None:  # fmt: skip
    """The iterations from the state on.

    Raises:
        FloatingPointError: every head has diverged.
        Stopped: a signal asked for it; the state is saved.
    """
    encoder, bank, problem, device = model.encoder, model.bank, model.problem, torch.device(options.device)
    started, done = time.perf_counter(), state.steps

    def save() -> None:
        nonlocal started
        state.steps, state.bank, state.momenta = done, bank.state_dict(), optimiser.momenta
        state.add_time("train", started)
        started = time.perf_counter()
        state.save(path)

    steps = progress(range(state.steps, params.iterations), "linear heads", show=options.progress)
    for step, views in zip(steps, loader, strict=False):
        with torch.no_grad():
            maps = model.maps(padded_input(encoder, views))
        generator = torch.Generator().manual_seed((options.seed << 32) + step)
        logits = on_maps(bank, dropped(maps, params.dropout, generator))
        losses = problem.backward(logits, sent(torch.stack([v.target for v in views]), device), step)
        optimiser.step(params.rate_factor(step), params.first_moment(step))
        done = step + 1
        if done % params.evaluate_every == 0 or done == params.iterations:
            if not losses.isfinite().any():
                raise FloatingPointError(f"every head has diverged after {done} iterations; lower the rates")
            state.add_time("train", started)
            started = time.perf_counter()
            bank.eval()
            _evaluate(model, state, done, last=done == params.iterations)
            bank.train()
            state.add_time("evaluate", started)
            started = time.perf_counter()
        if done % SAVE_EVERY == 0 or done % params.evaluate_every == 0 or done == params.iterations:
            save()
        if stop():
            break
    if done < params.iterations:
        if done > state.steps:
            save()
        raise distributed.Stopped(path)


def encoder_width(encoder: Encoder, output: str) -> int:
    """Channels of the class token.

    Raises:
        InputError: the encoder has none.
    """
    if not encoder.has(output):
        raise InputError(f"{encoder.card.name} has no class token, which this protocol needs; choose another encoder")
    blank = encoder.normalise(torch.zeros(1, 3, 224, 224, dtype=torch.uint8))
    return int(encoder.outputs(blank, {output})[output].shape[1])


def _evaluate(model: HeadsModel, state: HeadsState, done: int, *, last: bool) -> None:
    problem = model.problem
    found = problem.measure(model, held=False)
    qualities = [problem.quality(each) for each in found]
    row: dict[str, Any] = {"iteration": done, "test": qualities}
    if last:
        row["held"] = [problem.quality(each) for each in problem.measure(model, held=True)]
    state.last = [torch.from_numpy(each) for each in found]
    if not state.best:
        state.best = list(state.last)
    for head, value in enumerate(qualities):
        if value > max((each["test"][head] for each in state.evaluations), default=-np.inf):
            state.best[head] = state.last[head]
    state.evaluations.append(row)
    # An error is a negative quality.
    log.info("after %d iterations, each head on test: %s", done, ", ".join(f"{abs(value):.2f}" for value in qualities))


def choices(trained: TrainedHeads, params: ImageHeadParams, *, best: bool) -> dict[str, tuple[int, NDArray[Any]]]:
    """By the ending of their columns, a head and what it does on every test image.

    Endings: none for the head chosen on held-out images at the last iteration, ` published` for the published rate's,
    ` oracle` for the best on test.

    Args:
        best: the source reports its best evaluation on the test images instead of the last.
    """
    state = trained.state
    held = int(np.argmax(state.evaluations[-1]["held"]))
    peaks = [max(row["test"][head] for row in state.evaluations) for head in range(len(params.rates))]
    oracle = int(np.argmax(peaks))
    last, peak = [each.numpy() for each in state.last], [each.numpy() for each in state.best]
    found = {"": (held, last[held]), " oracle": (oracle, peak[oracle])}
    if params.published in params.rates:
        own = params.rates.index(params.published)
        found[" published"] = own, (peak if best else last)[own]
    return found


def outcome_of(trained: TrainedHeads, head: int, seed: int) -> Outcome:
    """Seed, timing, and the chosen head's tensors and pictures; scores and runs are the task's."""
    model = trained.model
    return Outcome(
        seeds=(seed,),
        timing=dict(trained.state.timing),
        tensors={name: tensor[head].clone() for name, tensor in model.bank.tensors().items()},
        pictures=model.problem.sheet(model, head),
    )

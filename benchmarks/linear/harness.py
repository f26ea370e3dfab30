"""The AvgPool and Feature1 … Feature5 probes: from an encoder and two lists of images to scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.contract import Labels, NotApplicableError, Outcome
from benchmarks.datasets.lists import fingerprint
from benchmarks.linear.checkpoint import ProbeState
from benchmarks.linear.declare import BEST, LAST, RATE, selection
from benchmarks.linear.frozen import Encoder, FrozenFeatures, module_sha256
from benchmarks.linear.settings import ProbeSettings, probe_settings
from benchmarks.linear.train import Pass, Probe, shareable, train_probes
from benchmarks.training.check import check_single_label
from benchmarks.training.ranking import percent
from pretrain import distributed
from results.schema import Protocol, Score, canonical_sha256

COLUMN = {"embed": "AvgPool", **{f"feature{n}": f"Feature{n}" for n in range(1, 6)}}


def run(
    protocol: Protocol,
    encoder: Encoder,
    train: Labels,
    test: Labels,
    *,
    device: str = "cpu",
    workers: int = 2,
    workdir: Path,
    seed: int = 0,
    progress: bool = True,
) -> Outcome:
    """Train the protocol's heads on `train` and measure them on `test`.

    A run that was killed goes on from its last epoch in `workdir`. Under torchrun the protocol's batch is split over
    the ranks, whose outcomes are equal; rank 0 writes the state.

    Raises:
        InputError: the labels do not fit the protocol.
        NotApplicableError: the encoder has none of its outputs.
        RuntimeError: a tensor of the encoder changed while it was to be frozen.
    """
    (outcome,) = run_together(
        [protocol],
        encoder,
        train,
        test,
        device=device,
        workers=workers,
        workdirs=[workdir],
        seed=seed,
        progress=progress,
    )
    return outcome


def run_together(
    protocols: Sequence[Protocol],
    encoder: Encoder,
    train: Labels,
    test: Labels,
    *,
    device: str = "cpu",
    workers: int = 2,
    workdirs: Sequence[Path],
    seed: int = 0,
    progress: bool = True,
) -> list[Outcome]:
    """As `run`, for protocols that `can_share` one pass over the images; their outcomes are what each gets alone."""
    settings = [probe_settings(protocol) for protocol in protocols]
    for protocol, own in zip(protocols, settings, strict=True):
        check_single_label(protocol, train, test)
        if not any(encoder.has(output) for output in own.outputs):
            raise NotApplicableError(
                f"{encoder.card.name} has none of {', '.join(own.outputs)}, which {protocol.id} reads"
            )
    before = module_sha256(encoder.module)
    geometry = protocols[0].geometry
    frozen = FrozenFeatures(encoder, _union(settings), geometry.crop, distributed.join(device))
    images = Pass(settings[0], geometry, frozen, train, test, workers=workers, seed=seed)
    data = [fingerprint(train), fingerprint(test)]
    probes = [
        Probe(
            own,
            images,
            len(train.classes),
            key=canonical_sha256([protocol.content_sha256(), before, *data, seed]),
            workdir=workdir,
            seed=seed,
        )
        for own, protocol, workdir in zip(settings, protocols, workdirs, strict=True)
    ]
    train_probes(probes, images, show=progress)
    if module_sha256(encoder.module) != before:
        raise RuntimeError(f"{encoder.card.name} changed while its heads were trained: it was not frozen")
    return [_outcome(probe, protocol) for probe, protocol in zip(probes, protocols, strict=True)]


def can_share(protocols: Sequence[Protocol]) -> bool:
    """Whether `run_together` takes these protocols."""
    alike = all((p.geometry, p.dataset) == (protocols[0].geometry, protocols[0].dataset) for p in protocols)
    return alike and shareable([probe_settings(protocol) for protocol in protocols])


def required_outputs(protocol: Protocol) -> dict[str, tuple[str, None]]:
    """What the protocol reads of an encoder, which needs one of them at least."""
    return {output: (output, None) for output in probe_settings(protocol).outputs}


def _union(settings: Sequence[ProbeSettings]) -> ProbeSettings:
    """Settings that read what any of these reads."""
    outputs = dict.fromkeys(output for own in settings for output in own.outputs)
    pooling = {output: how for own in settings for output, how in own.pooling.items()}
    return settings[0].changed(outputs=tuple(outputs), pooling=pooling)


def _outcome(probe: Probe, protocol: Protocol) -> Outcome:
    state, settings = probe.state, probe.settings
    outcome = Outcome(scores={}, seeds=(probe.images.seed,), timing=dict(state.timing))
    for output in probe.trainer.banks:
        chosen = choose(state, output)
        outcome.runs += head_runs(state, settings, output, chosen)
        _fill(outcome, protocol, settings, state, output, chosen)
        outcome.tensors |= _tensors(probe, output, chosen)
    return outcome


def choose(state: ProbeState, output: str) -> int:
    """The head of an output's bank that does best on the held-out part of train at the last evaluation.

    By accuracy, then by loss; of equals the first of the grid.
    """
    if output not in state.heldout:
        return 0
    accuracy, loss = state.heldout[output][-1]
    order = [
        (-a, x if math.isfinite(x) else math.inf, h)
        for h, (a, x) in enumerate(zip(accuracy.tolist(), loss.tolist(), strict=True))
    ]
    return min(order)[2]


def head_runs(state: ProbeState, settings: ProbeSettings, output: str, chosen: int) -> list[dict[str, Any]]:
    """One flat row per head of an output's bank."""
    rows = []
    for head, (lr, decay) in enumerate(settings.grid):
        last, best = state.last[output][head], state.best[output][head]
        row: dict[str, Any] = {"output": output, "lr": lr, "weight_decay": decay, "chosen": head == chosen}
        row |= {"last_top1": percent(last, 1), "last_top5": percent(last, 5)}
        row |= {"best_top1": percent(best, 1), "best_top5": percent(best, 5)}
        row |= {
            "best_epoch": int(state.best_epoch[output][head]),
            "train_loss": _finite(state.train_loss[output][head]),
        }
        if output in state.heldout:
            accuracy, loss = state.heldout[output][-1][:, head]
            row |= {"heldout_top1": 100 * float(accuracy), "heldout_loss": _finite(loss)}
        rows.append(row)
    return rows


def _fill(
    outcome: Outcome, protocol: Protocol, settings: ProbeSettings, state: ProbeState, output: str, chosen: int
) -> None:
    """Scores and per-item outcomes of one output's columns, as far as the protocol has them."""
    last, best = state.last[output][chosen], state.best[output][chosen]
    oracle = state.best[output][int((state.best[output] < 1).sum(dim=1).argmax())]
    column, several = COLUMN[output], len(settings.grid) > 1
    chosen_by = RATE if several else ""
    candidates = [
        (column, best if settings.choose_epoch == "best" else last, selection(settings)),
        (f"{column} last", last, LAST + chosen_by),
        (f"{column} best", best, f"{BEST} (oracle){chosen_by}"),
    ]
    if several:
        candidates.append((f"{column} oracle", oracle, "best head and epoch on test (oracle)"))
    for name, ranks, how in candidates:
        for title, k in ((name, 1), (f"{name} top-5", 5)):
            if title in protocol.columns:
                outcome.scores[title] = Score(value=percent(ranks, k), n=len(ranks), selection=how)
                outcome.items[f"correct/{title}"] = (ranks < k).numpy()


def _tensors(probe: Probe, output: str, chosen: int) -> dict[str, Tensor]:
    """The trained head behind an output's column."""
    heads = probe.state.best_tensors.get(output) or probe.trainer.banks[output].tensors()
    return {f"{COLUMN[output]}/{name}": tensor[chosen].clone() for name, tensor in heads.items()}


def _finite(value: Tensor) -> float | None:
    return float(value) if math.isfinite(value) else None

"""From a checkpoint of any layout to a file of one of the targets."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.contract import InputError
from benchmarks.encoders.encoder import Encoder
from benchmarks.encoders.export.detectron2 import beyond_detectron2, detectron2_facts, write_detectron2
from benchmarks.encoders.export.openmmlab import beyond_openmmlab, openmmlab_facts, write_openmmlab
from benchmarks.encoders.export.safetensors import write_safetensors
from benchmarks.encoders.export.torchvision import write_torchvision
from benchmarks.encoders.load import load_encoder
from results.schema import EncoderCard

log = logging.getLogger(__name__)

Target = Literal["detectron2", "openmmlab", "torchvision", "safetensors"]


@dataclass(frozen=True)
class _Writer:
    write: Callable[[Encoder, Path], None]
    suffixes: tuple[str, ...]
    facts: Callable[[EncoderCard], object]
    beyond: Callable[[EncoderCard], list[str]]


def _pixels(card: EncoderCard) -> str:
    return f"mean {card.mean}, std {card.std} on 0 to {card.value_range:g}, {card.channels}"


def _nothing(card: EncoderCard) -> list[str]:
    return []


WRITERS: dict[Target, _Writer] = {
    "detectron2": _Writer(write_detectron2, (".pkl",), detectron2_facts, beyond_detectron2),
    "openmmlab": _Writer(write_openmmlab, (".pth", ".pt"), openmmlab_facts, beyond_openmmlab),
    "torchvision": _Writer(write_torchvision, (".pth", ".pt"), _pixels, _nothing),
    "safetensors": _Writer(write_safetensors, (".safetensors",), _pixels, _nothing),
}


def convert(
    source: str | Path,
    out: Path,
    to: Target,
    *,
    name: str | None = None,
    facts: Sequence[str] = (),
    force: bool = False,
) -> EncoderCard:
    """Writes the backbone of `source` for another library, with the same weights, and returns its card.

    A file that this function wrote is read like any other, so converting it again gives the same tensors.

    Args:
        facts: what the checkpoint's keys cannot show (see `load_encoder`).
        force: replace `out`.

    Raises:
        InputError: `source` cannot be loaded, is no ResNet or holds NaN; `out` is there, cannot be written, or its
            suffix is not the target's.
    """
    writer = WRITERS[to]
    if out.suffix not in writer.suffixes:
        raise InputError(f"{out} must end in {' or '.join(writer.suffixes)} for {to}; rename it")
    if out.exists() and not out.is_dir() and not force:
        raise InputError(f"{out} is there already; give another name, or --force to replace it")
    encoder = load_encoder(source, name, facts)
    card = encoder.card
    damaged = [n for n, t in encoder.module.state_dict().items() if t.is_floating_point() and not t.isfinite().all()]
    if damaged:
        raise InputError(
            f"{source} holds NaN or infinite numbers in {len(damaged)} tensors ({', '.join(damaged[:3])}); it is "
            "damaged, take another checkpoint of the run"
        )
    writer.write(encoder, out)
    log.info("wrote %s from %s (%s), %s first", out, source, card.layout, card.channels)
    log.info("to be told: %s", writer.facts(card))
    if card.assumed:
        log.warning("assumed, as nothing in %s says it: %s", source, ", ".join(card.assumed))
    beyond = writer.beyond(card)
    if beyond:
        log.warning("%s's own builder cannot make this network (%s); use this project's", to, ", ".join(beyond))
    return card

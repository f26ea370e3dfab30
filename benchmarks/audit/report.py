"""What an audit found: as JSON, as a page of text, and as plain sentences."""

from __future__ import annotations

import textwrap

from benchmarks.audit.activations import Channels
from benchmarks.audit.retrieval import Difference
from benchmarks.audit.variations import LEVEL, Variation
from results.schema import EncoderCard, Frozen, Triple


class Trial(Frozen):
    """One variation. The numbers are None where it gave features that are not finite."""

    name: str
    words: str
    images: int
    score: float | None
    gain: float | None
    half_width: float | None
    higher: bool
    conclusion: str

    @classmethod
    def of(cls, variation: Variation, images: int, score: float | None, gap: Difference | None) -> Trial:
        return cls(
            name=variation.name, words=variation.words, images=images, score=score, conclusion=variation.conclusion,
            gain=gap and gap.gain, half_width=gap and gap.half_width, higher=gap is not None and gap.higher,
        )  # fmt: skip


class Audit(Frozen):
    """Of one encoder. Scores are percent, gains points against the same images under the card."""

    encoder: EncoderCard
    score: float | None
    images: int
    sources: int
    classes: int
    size: int
    scored_by: str
    batch_norms: int
    outputs: tuple[Channels, ...]
    nonfinite_tensors: tuple[str, ...]
    trials: tuple[Trial, ...]
    findings: tuple[str, ...] = ()
    seconds: float


def sentences(audit: Audit) -> tuple[str, ...]:
    """What is wrong or open, the gravest first; empty where nothing is."""
    found: list[str] = []
    card = audit.encoder
    if audit.nonfinite_tensors:
        found.append(
            f"{len(audit.nonfinite_tensors)} tensors hold NaN or infinite numbers "
            f"({', '.join(audit.nonfinite_tensors[:3])}): the file is damaged"
        )
    for output in audit.outputs:
        silent = output.dead + output.constant
        if output.nonfinite_images:
            found.append(f"{output.output} is not finite on {output.nonfinite_images} of {audit.images} images")
        elif 2 * silent > output.channels:
            found.append(
                f"{silent} of {output.channels} channels of {output.output} never change: weights are probably missing"
            )
    if max(map(abs, card.mean)) > card.value_range:
        found.append(f"the card's mean {card.mean} lies outside its range of 0 to {card.value_range:g}")
    for trial in sorted((t for t in audit.trials if t.higher), key=lambda t: -(t.gain or 0)):
        found.append(
            f"scores {trial.gain:.1f} points higher {trial.words} (± {trial.half_width:.1f}): {trial.conclusion}"
        )
    if card.assumed:
        found.append(f"assumed, as nothing in the file or a known release says so: {', '.join(card.assumed)}")
    return tuple(found)


def text(audit: Audit) -> str:
    """A page for a person to read."""
    card = audit.encoder
    lines = [
        card.name,
        "",
        f"layout        {card.layout}",
        f"architecture  {' '.join(f'{k}={v}' for k, v in card.architecture.model_dump().items())}",
        f"keys          {card.keys_matched} matched, {card.keys_unused} unused",
        f"pixels        {card.channels}, 0 to {card.value_range:g}, mean {_triple(card.mean)}, std {_triple(card.std)}",
        f"assumed       {', '.join(card.assumed) or 'nothing'}",
        f"batch norms   {audit.batch_norms or 'none, so their mode is not applicable'}",
        f"weights       {len(audit.nonfinite_tensors) or 'no'} tensors with NaN or infinite numbers",
        "",
        f"{'output':16}{'channels':>10}{'dead':>8}{'constant':>10}{'NaN or inf':>12}",
        *(f"{o.output:16}{o.channels:>10}{o.dead:>8}{o.constant:>10}{o.nonfinite_images:>12}" for o in audit.outputs),
        "",
        f"{'varied':18}{'score':>7}{'gain':>8}{'±':>7}{'images':>8}",
        f"{'nothing (the card)':18}{_number(audit.score):>7}{'':>8}{'':>7}{audit.images:>8}",
        *(
            f"{t.name:18}{_number(t.score):>7}{_number(t.gain, '+.2f'):>8}{_number(t.half_width):>7}{t.images:>8}"
            f"{'  higher' if t.higher else ''}"
            for t in audit.trials
        ),
        "",
        *textwrap.wrap(
            f"score: mean average precision (%) of retrieval by {audit.scored_by}, standardised, among {audit.classes} "
            f"classes and {audit.sources} sources at {audit.size} pixels. gain: against the card on the same images. "
            "±: what a gain must exceed to be no luck: the paired delete-a-group jackknife over sources with Student's "
            f"t, at {LEVEL:.0%} over all variations together, half of it for the channel order (Bonferroni).",
            100,
        ),
        "",
        *(audit.findings or ("nothing found against the card",)),
    ]
    return "\n".join(lines) + "\n"


def _triple(values: Triple) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _number(value: float | None, form: str = ".2f") -> str:
    return "" if value is None else format(value, form)

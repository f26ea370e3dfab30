"""The `audit` command: look for silent faults of an encoder, such as a wrong card, dead channels or NaN.

The card is tested by a cheap score without parameters to tune, the mean average precision of retrieval: each image
ranks those of all other sources by cosine similarity of standardised features, and images of its class are the hits. If
the score is clearly higher when the pixels are fed in another way, the card is probably wrong.

Every source is in the score twice, as a query and in the gallery, and the uncertainty has to count both. It is the
delete-a-group jackknife (Kott 2001), which removes each group of sources from both in turn.
"""

from __future__ import annotations

import copy
import logging
import re
import sys
import textwrap
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import t as student
from torch import Tensor, nn

from benchmarks.audit_checks import Variation, alternatives, batch_norms, structure, variations
from benchmarks.datasets.images import Images
from benchmarks.datasets.lists import read_image_folder
from benchmarks.encoders.encoder import Encoder, fitted_size
from benchmarks.encoders.forms import RESNETS, expand, refuse_at_sight
from benchmarks.encoders.load import load_encoder
from benchmarks.task import FEATURE_MAPS, InputError, Labels, progress
from benchmarks.training.task import families
from pretrain import distributed
from results.files import require_writable_folder, write_file
from results.schema import EncoderCard, Frozen, Geometry, Triple

log = logging.getLogger(__name__)

MAX_CLASSES, MAX_IMAGES = 20, 2000
BATCH = 64  # also the batch of the batch statistics
MIN_IMAGES = 128
JACKKNIFE_GROUPS = 60
FALSE_ALARM_RATE = 0.05  # of the audit for a correct card


def command(
    encoder: tuple[str, ...],
    data: Path = Path("work/data"),
    name: str | None = None,
    facts: tuple[str, ...] = (),
    out: Path = Path("work/audit"),
    device: str = "auto",
    seed: int = 0,
    size: int = 96,
    seconds: float = 30.0,
    threads: int | None = None,
    dry_run: bool = False,
) -> int:
    """Look for silent faults of an encoder: a wrong card, dead channels, NaN, batch statistics that do not fit.

    No file of the encoder is changed.

    Args:
        encoder: one or several encoders, as for a benchmark.
        data: root of the embedded data, or an image folder.
        name: name of the encoder in the report.
        facts: what the keys of a checkpoint do not show, such as channels=BGR.
        out: folder of the reports as JSON.
        device: auto, cpu, cuda, cuda:1, …
        seed: seed of the choice of images.
        size: images are reduced to this many pixels, or to the next size that the encoder takes.
        seconds: approximate time of the encoder's passes; a slow encoder sees fewer images.
        threads: CPU threads; torch's default otherwise.
        dry_run: show what would run, and stop.
    """
    if size < 8:
        raise InputError(f"--size must be at least 8 pixels, got {size}")
    if seconds <= 0:
        raise InputError(f"--seconds must be above 0, got {seconds:g}")
    if threads is not None:
        if threads < 1:
            raise InputError(f"--threads must be at least 1, got {threads}")
        torch.set_num_threads(threads)
    encoders = expand(encoder, name)
    refuse_at_sight(encoders, facts)
    device = str(distributed.own_device(device))
    if dry_run:
        sys.stdout.write(f"would audit {', '.join(encoders)} on {data} for about {seconds:g} s each\n")
        return 0
    require_writable_folder(out, "--out")
    samples: dict[int, AuditSample] = {}
    for spec in encoders:
        loaded = load_encoder(spec, name, facts).to(device)
        side = fitted_size(loaded.card, size)
        if side not in samples:
            samples[side] = draw_sample(data, side, seed)
        with distributed.full_float32():
            audit = examine(loaded, samples[side], seconds=seconds, seed=seed)
        sys.stdout.write(text(audit))
        slug = re.sub(r"[^A-Za-z0-9]+", "-", audit.encoder.name).strip("-").lower()
        path = out / f"{slug}-{(audit.encoder.weights_sha256 or 'none')[:8]}.json"
        write_file(path, (audit.model_dump_json(indent=1) + "\n").encode())
        log.info("wrote %s", path)
    return 0


# ---- the images ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AuditSample:
    """N images in random order; the first image of every source comes before the second of any source.

    Attributes:
        images: (N, 3, size, size) uint8 RGB.
        classes: (N,).
        sources: (N,) numbers; images that share a source, directly or through others, have the same number.
    """

    images: Tensor
    classes: NDArray[np.int64]
    sources: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.classes)


def draw_sample(data: Path, size: int, seed: int) -> AuditSample:
    """At most 20 classes and 2,000 images of the embedded drawings in `data`, or of the image folder `data`.

    Raises:
        InputError: neither exists, or fewer than two classes have two sources.
    """
    folder = data / "drawings" if (data / "drawings").is_dir() else data
    splits = [split for split in ("val", "test", "train") if (folder / split).is_dir()]
    if not splits:
        raise InputError(f"{data} has neither the embedded drawings (make demo-data) nor an image folder with train/")
    parts: list[Labels] = []
    for split in splits:  # listing the training images of a large set takes long, and they are not needed
        if sum(len(part) for part in parts) < MAX_IMAGES:
            parts.append(read_image_folder(folder, split))
    paths = [path for part in parts for path in part.paths]
    classes = np.concatenate([part.targets for part in parts])
    sources = _connected_sources([group for part in parts for group in part.groups])
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(np.unique(classes))[:MAX_CLASSES]
    order = rng.permutation(np.flatnonzero(np.isin(classes, chosen)))
    order = order[np.argsort(_occurrence(sources[order]), kind="stable")][:MAX_IMAGES]
    classes, sources = classes[order], sources[order]
    usable = [c for c in np.unique(classes) if len(np.unique(sources[classes == c])) > 1]
    if len(usable) < 2:
        raise InputError(f"an audit needs at least two classes with images of two sources, {folder} has {len(usable)}")
    dataset = Images([paths[i] for i in order], Geometry(mode="shorter", resize=size, crop=size))
    pixels = torch.stack([dataset[i][0] for i in progress(range(len(dataset)), "images", show=len(dataset) > 500)])
    return AuditSample(pixels, classes, sources)


def _connected_sources(groups: list[tuple[str, ...]]) -> NDArray[np.int64]:
    """A number per item, equal where items share a source directly or through others; ascends by first occurrence."""
    _, first, number = np.unique(families(groups), return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[number]


def _occurrence(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often each value occurred before."""
    seen: dict[int, int] = {}
    before = np.empty(len(values), dtype=np.int64)
    for i, value in enumerate(values.tolist()):
        before[i] = seen.get(value, 0)
        seen[value] = before[i] + 1
    return before


# ---- the score and its uncertainty -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class RetrievalScore:
    """Mean average precision in percent: `score` of all images, and `without` (G,) each group of sources."""

    score: float
    without: NDArray[np.float64]


@dataclass(frozen=True)
class ScoreDifference:
    """In points. `standard_error` is that of the paired difference; a gain above `half_width` is significant."""

    gain: float
    standard_error: float
    half_width: float

    @property
    def higher(self) -> bool:
        return self.gain > self.half_width

    @property
    def lower(self) -> bool:
        return self.gain < -self.half_width


def jackknife_groups(sources: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """(N,) the group of each image; all images of a source are in one group."""
    names, index = np.unique(sources, return_inverse=True)
    groups = min(JACKKNIFE_GROUPS, len(names))
    return (np.random.default_rng(seed).permutation(len(names)) % groups)[index]


def retrieval(
    features: Tensor, classes: NDArray[np.int64], sources: NDArray[np.int64], groups: NDArray[np.int64]
) -> RetrievalScore:
    """The score of (N, D) finite features. Queries without a hit among other sources are left out."""
    centred = features.double() - features.double().mean(0)
    spread = centred.square().mean(0).sqrt()
    unit = torch.nn.functional.normalize(centred / spread.where(spread > 0, torch.inf), dim=1)
    own_class, own_source, group = (torch.from_numpy(a) for a in (classes, sources, groups))
    order = (unit @ unit.T).round(decimals=9).argsort(dim=1, descending=True, stable=True)  # equal rows stay ties
    ranked = own_source[order] != own_source[:, None]
    hits = (own_class[order] == own_class[:, None]) & ranked
    ranked_group = group[order].to(torch.uint8)
    score = _mean_average_precision(hits, ranked)
    without = []
    for number in range(int(group.max()) + 1):
        queries = group != number
        left = ranked_group[queries] != number
        without.append(_mean_average_precision(hits[queries] & left, ranked[queries] & left))
    return RetrievalScore(score, np.array(without))


def _mean_average_precision(hits: Tensor, ranked: Tensor) -> float:
    hit, rank = hits.float(), ranked.float().cumsum(1)
    found = hit.cumsum(1)
    total = found[:, -1]
    precision = (found / rank.clamp(min=1) * hit).sum(1) / total.clamp(min=1)
    return 100 * float(precision[total > 0].double().mean())


def score_difference(varied: RetrievalScore, card: RetrievalScore, level: float) -> ScoreDifference:
    """How much higher `varied` scores. By chance alone, the gain exceeds the half width with probability `level`."""
    groups = len(card.without)
    paired = varied.without - card.without
    error = float(np.sqrt((groups - 1) / groups * np.square(paired - paired.mean()).sum()))
    return ScoreDifference(varied.score - card.score, error, float(student.ppf(1 - level, groups - 1)) * error)


def alarm_levels(found: Sequence[Variation]) -> list[float]:
    """The share of `FALSE_ALARM_RATE` for each variation (weighted Bonferroni): half of it goes to the channel order.

    That is the most frequent fault and the one with the smallest effect; all others change the features a lot.
    """
    others = sum(variation.name != "channels" for variation in found)
    half = FALSE_ALARM_RATE / 2
    return [half if variation.name == "channels" else half / others for variation in found]


# ---- the report ------------------------------------------------------------------------------------------------------


class ChannelCounts(Frozen):
    """Silent channels of one output, over all images and positions.

    Attributes:
        dead: channels that are zero everywhere.
        constant: channels that have one other value everywhere.
        nonfinite_images: images with NaN or an infinite number in this output.
    """

    output: str
    channels: int
    dead: int
    constant: int
    nonfinite_images: int


class VariationResult(Frozen):
    """Scores are percent, gains points against the card on the same images; None for features that are not finite."""

    name: str
    words: str
    images: int
    score: float | None
    gain: float | None
    half_width: float | None
    higher: bool
    conclusion: str


class Audit(Frozen):
    """The report on one encoder."""

    encoder: EncoderCard
    score: float | None
    images: int
    sources: int
    classes: int
    size: int
    scored_by: str
    batch_norms: int
    outputs: tuple[ChannelCounts, ...]
    nonfinite_tensors: tuple[str, ...]
    trials: tuple[VariationResult, ...]
    structure: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    seconds: float


def findings(audit: Audit) -> tuple[str, ...]:
    """Faults and open questions in sentences, the most severe first."""
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
    found.extend(audit.structure)
    if max(map(abs, card.mean)) > card.value_range:
        found.append(f"the card's mean {card.mean} lies outside its range of 0 to {card.value_range:g}")
    for trial in sorted((t for t in audit.trials if t.higher), key=lambda t: -(t.gain or 0)):
        found.append(
            f"scores {trial.gain:.1f} points higher {trial.words} (± {trial.half_width:.1f}): {trial.conclusion}"
        )
    if card.assumed:
        found.append(f"assumed, because neither the file nor a known release says so: {', '.join(card.assumed)}")
    if card.not_shown:
        found.append(f"networks of the same keys may differ from this one in: {', '.join(card.not_shown)}")
    return tuple(found)


def text(audit: Audit) -> str:
    """The report as a page of text."""
    card = audit.encoder
    of_resnet = card.architecture.name in RESNETS  # whose defaults say something: other networks have no stem of theirs
    network = card.architecture.model_dump(exclude_defaults=not of_resnet)
    lines = [
        card.name,
        "",
        f"layout        {card.layout}",
        f"architecture  {' '.join(f'{k}={v}' for k, v in network.items())}",
        f"embed         {card.embed}",
        f"keys          {card.keys_matched} matched, {card.keys_unused} unused",
        f"pixels        {card.channels}, 0 to {card.value_range:g}, mean {_triple(card.mean)}, std {_triple(card.std)}",
        f"assumed       {', '.join(card.assumed) or 'nothing'}",
        *([f"not shown     {', '.join(card.not_shown)}"] if card.not_shown else []),
        f"batch norms   {audit.batch_norms or 'none, so batch statistics do not apply'}",
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
            "±: a larger gain is significant, by the paired delete-a-group jackknife over sources with Student's t, at "
            f"{FALSE_ALARM_RATE:.0%} over all variations together, half of it for the channel order (Bonferroni).",
            100,
        ),
        "",
        *(audit.findings or ("no fault found",)),
    ]
    return "\n".join(lines) + "\n"


def _triple(values: Triple) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _number(value: float | None, form: str = ".2f") -> str:
    return "" if value is None else format(value, form)


# ---- the encoder's passes --------------------------------------------------------------------------------------------


def examine(encoder: Encoder, sample: AuditSample, *, seconds: float, seed: int, show: bool = True) -> Audit:
    """Audit the encoder without changing it.

    Every variation first sees one image of each source (fewer where the encoder is slow). Those that are not clearly
    worse than the card then see more images, the best first, as long as the time lasts.

    Args:
        seconds: approximate time of all passes.
        show: show progress bars.
    """
    started = time.monotonic()
    norms = len(batch_norms(encoder.module))
    found = variations(encoder.card, with_batch_norms=norms > 0) + alternatives(encoder)
    shares = alarm_levels(found)
    runs = _EncoderRuns(encoder, sample, seed)
    affordable = int(seconds / runs.seconds_per_image)
    # Half of the time is for a first look at every variation, a quarter for the card, the rest for second looks.
    few = min(len(set(sample.sources.tolist())), max(MIN_IMAGES, affordable // (2 * len(found))))
    many = min(len(sample), max(few, affordable // 4))
    own = runs.with_card(many, show)

    results: dict[int, VariationResult] = {}
    gaps: dict[int, ScoreDifference] = {}

    def compare(number: int, vectors: Tensor) -> None:
        scored = runs.score(vectors) if vectors.isfinite().all() else None
        gap = score_difference(scored, runs.score_of_card(own, len(vectors)), shares[number]) if scored else None
        if gap:
            gaps[number] = gap
        variation = found[number]
        results[number] = VariationResult(
            name=variation.name, words=variation.words, images=len(vectors), score=scored and scored.score,
            gain=gap and gap.gain, half_width=gap and gap.half_width, higher=gap is not None and gap.higher,
            conclusion=variation.conclusion,
        )  # fmt: skip

    finite = bool(own.isfinite().all())
    first_vectors: dict[int, Tensor] = {}
    for number in progress(range(len(found)), "variations", show=show) if finite else ():
        first_vectors[number] = runs.with_variation(found[number], 0, few)
        compare(number, first_vectors[number])
    promising = [number for number, gap in gaps.items() if not gap.lower]
    for number in sorted(promising, key=lambda n: -gaps[n].gain) if few < many else ():
        if time.monotonic() - started + runs.seconds_per_image * (many - few) > seconds:
            break
        compare(number, torch.cat([first_vectors[number], runs.with_variation(found[number], few, many)]))

    audit = Audit(
        encoder=encoder.card,
        score=runs.score(own).score if finite else None,
        images=many,
        sources=len(set(sample.sources[:many].tolist())),
        classes=len(set(sample.classes[:many].tolist())),
        size=sample.images.shape[-1],
        scored_by=runs.scored_by,
        batch_norms=norms,
        outputs=runs.ranges.report(),
        nonfinite_tensors=nonfinite_tensors(encoder.module),
        structure=structure(encoder, sample.images) if finite else (),
        trials=tuple(results[number] for number in sorted(results)),
        seconds=round(time.monotonic() - started, 1),
    )
    return audit.model_copy(update={"findings": findings(audit)})


class _EncoderRuns:
    """Runs the encoder on the sample, and scores its features."""

    def __init__(self, encoder: Encoder, sample: AuditSample, seed: int) -> None:
        self.encoder, self.sample, self.seed = encoder, sample, seed
        self.names = [name for name in (*FEATURE_MAPS, "patches", "embed", "head") if encoder.has(name)]
        self.scored_by = "embed" if encoder.has("embed") else self.names[-1]
        self.ranges = ChannelRanges()
        self._card_scores: dict[int, RetrievalScore] = {}
        batch = sample.images[:BATCH]
        for _ in range(2):  # the first call includes the set-up
            started = time.monotonic()
            found = encoder.outputs(encoder.normalise(batch), self.names)
            found[self.scored_by][:1].cpu()  # waits for a GPU
            self.seconds_per_image = (time.monotonic() - started) / len(batch)

    def with_card(self, count: int, show: bool) -> Tensor:
        """(count, D) vectors under the card; the ranges of all outputs are noted on the way."""
        vectors = []
        for batch in progress(self.sample.images[:count].split(BATCH), "the card itself", show=show):
            outputs = self.encoder.outputs(self.encoder.normalise(batch), self.names)
            self.ranges.add(outputs)
            vectors.append(_vector(outputs[self.scored_by]))
        return torch.cat(vectors)

    def with_variation(self, variation: Variation, start: int, stop: int) -> Tensor:
        """(stop - start, D) vectors of the same network under the variation."""
        other = copy.copy(self.encoder)
        other.card = variation.card
        name = variation.output or self.scored_by
        with variation.within(other.module) if variation.within else nullcontext():
            batches = self.sample.images[start:stop].split(BATCH)
            return torch.cat([_vector(other.outputs(other.normalise(b), [name])[name]) for b in batches])

    def score(self, vectors: Tensor) -> RetrievalScore:
        """The score of the first images of the sample."""
        count = len(vectors)
        sources = self.sample.sources[:count]
        return retrieval(vectors, self.sample.classes[:count], sources, jackknife_groups(sources, self.seed))

    def score_of_card(self, own: Tensor, count: int) -> RetrievalScore:
        """The score of the card on the first `count` images, as many as the variation saw."""
        if count not in self._card_scores:
            self._card_scores[count] = self.score(own[:count])
        return self._card_scores[count]


def _vector(value: Tensor) -> Tensor:
    value = value.float().cpu()
    return value if value.ndim == 2 else value.mean(dim=(2, 3))


class ChannelRanges:
    """Running minimum and maximum of each channel of each output."""

    def __init__(self) -> None:
        self._ranges: dict[str, tuple[Tensor, Tensor]] = {}
        self._nonfinite: dict[str, int] = {}

    def add(self, outputs: dict[str, Tensor]) -> None:
        """Note (N, C, …) outputs of a batch."""
        for name, value in outputs.items():
            flat = value.float().flatten(2) if value.ndim > 2 else value.float()[:, :, None]
            low, high = flat.amin((0, 2)), flat.amax((0, 2))
            if name in self._ranges:
                low, high = torch.minimum(low, self._ranges[name][0]), torch.maximum(high, self._ranges[name][1])
            self._ranges[name] = low, high
            self._nonfinite[name] = self._nonfinite.get(name, 0) + int((~flat.isfinite().all(2).all(1)).sum())

    def report(self) -> tuple[ChannelCounts, ...]:
        """In the order in which outputs were first added."""
        return tuple(
            ChannelCounts(
                output=name,
                channels=len(low),
                dead=int(((low == 0) & (high == 0)).sum()),
                constant=int(((low == high) & (low != 0)).sum()),
                nonfinite_images=self._nonfinite[name],
            )
            for name, (low, high) in self._ranges.items()
        )


def nonfinite_tensors(module: nn.Module) -> tuple[str, ...]:
    """Names of weights and buffers with NaN or an infinite number."""
    state = module.state_dict()
    return tuple(name for name, t in state.items() if t.is_floating_point() and not bool(t.isfinite().all()))

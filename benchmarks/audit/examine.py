"""The passes of an audit: what the encoder puts out under its card, and under every variation of it."""

from __future__ import annotations

import copy
import time
from contextlib import nullcontext

import torch
from torch import Tensor

from benchmarks.audit.activations import ChannelRanges, nonfinite_tensors
from benchmarks.audit.batch_statistics import batch_norms, using_batch_statistics
from benchmarks.audit.report import Audit, Trial, sentences
from benchmarks.audit.retrieval import Difference, Retrieval, difference, jackknife_groups, retrieval
from benchmarks.audit.sample import Sample
from benchmarks.audit.variations import Variation, levels, variations
from benchmarks.encoders.encoder import FEATURES, Encoder
from benchmarks.progress import progress

BATCH = 64  # also that of the batch statistics
FEWEST = 128


def examine(encoder: Encoder, sample: Sample, *, seconds: float, seed: int, show: bool = True) -> Audit:
    """Looks at the encoder, which stays as it is.

    First one image of each source (fewer where the encoder is slow); then, as long as the time lasts, more of them for
    those variations that are not clearly worse than the card, the best first.

    Args:
        seconds: for all passes, roughly.
    """
    started = time.monotonic()
    norms = len(batch_norms(encoder.module))
    found = variations(encoder.card, batch_norms=norms > 0)
    shares = levels(found)
    passes = _Passes(encoder, sample, seed)
    affordable = int(seconds / passes.seconds_per_image)
    # Half of the time for a first look at every variation, a quarter for the card; what is left goes to second looks.
    few = min(len(set(sample.sources.tolist())), max(FEWEST, affordable // (2 * len(found))))
    every = min(len(sample), max(few, affordable // 4))
    own = passes.own(every, show)

    trials: dict[str, tuple[Trial, Difference | None]] = {}

    def compare(number: int, vectors: Tensor) -> None:
        gap, scored = None, None
        if vectors.isfinite().all():
            scored = passes.score(vectors)
            gap = difference(scored, passes.score_own(own, len(vectors)), shares[number])
        variation = found[number]
        trials[variation.name] = Trial.of(variation, len(vectors), scored.score if scored else None, gap), gap

    sound = bool(own.isfinite().all())
    kept: dict[int, Tensor] = {}
    for number in progress(range(len(found)), "variations", show=show) if sound else ():
        kept[number] = passes.varied(found[number], 0, few)
        compare(number, kept[number])
    gaps = {number: gap for number in kept if (gap := trials[found[number].name][1]) is not None and not gap.lower}
    for number in sorted(gaps, key=lambda n: -gaps[n].gain) if few < every else ():
        if time.monotonic() - started + passes.seconds_per_image * (every - few) > seconds:
            break
        compare(number, torch.cat([kept[number], passes.varied(found[number], few, every)]))

    audit = Audit(
        encoder=encoder.card,
        score=passes.score(own).score if sound else None,
        images=every,
        sources=len(set(sample.sources[:every].tolist())),
        classes=len(set(sample.classes[:every].tolist())),
        size=sample.images.shape[-1],
        scored_by=passes.scored_by,
        batch_norms=norms,
        outputs=passes.ranges.report(),
        nonfinite_tensors=nonfinite_tensors(encoder.module),
        trials=tuple(trials[variation.name][0] for variation in found if variation.name in trials),
        seconds=round(time.monotonic() - started, 1),
    )
    return audit.model_copy(update={"findings": sentences(audit)})


class _Passes:
    """The encoder on the sample, and the scores of what it gives."""

    def __init__(self, encoder: Encoder, sample: Sample, seed: int) -> None:
        self.encoder, self.sample, self.seed = encoder, sample, seed
        self.names = [name for name in (*FEATURES, "embed", "head") if encoder.has(name)]
        self.scored_by = "embed" if encoder.has("embed") else self.names[-1]
        self.ranges = ChannelRanges()
        self._own_scores: dict[int, Retrieval] = {}
        batch = sample.images[:BATCH]
        encoder.outputs(encoder.normalise(batch), self.names)  # the first call of a network pays for its set-up
        started = time.monotonic()
        encoder.outputs(encoder.normalise(batch), self.names)
        self.seconds_per_image = (time.monotonic() - started) / len(batch)

    def own(self, count: int, show: bool) -> Tensor:
        """(count, D) vectors under the card; every output's ranges are noted on the way."""
        vectors = []
        for batch in progress(self.sample.images[:count].split(BATCH), "the card itself", show=show):
            outputs = self.encoder.outputs(self.encoder.normalise(batch), self.names)
            self.ranges.add(outputs)
            vectors.append(_vector(outputs[self.scored_by]))
        return torch.cat(vectors)

    def varied(self, variation: Variation, start: int, stop: int) -> Tensor:
        """(stop - start, D) vectors of the same network, fed as the variation has it."""
        other = copy.copy(self.encoder)
        other.card = variation.card
        with using_batch_statistics(other.module) if variation.batch_statistics else nullcontext():
            batches = self.sample.images[start:stop].split(BATCH)
            return torch.cat(
                [_vector(other.outputs(other.normalise(b), [self.scored_by])[self.scored_by]) for b in batches]
            )

    def score(self, vectors: Tensor) -> Retrieval:
        """Of the first images of the sample."""
        count = len(vectors)
        sources = self.sample.sources[:count]
        return retrieval(vectors, self.sample.classes[:count], sources, jackknife_groups(sources, self.seed))

    def score_own(self, own: Tensor, count: int) -> Retrieval:
        """Of the card, on as many images as the variation saw."""
        if count not in self._own_scores:
            self._own_scores[count] = self.score(own[:count])
        return self._own_scores[count]


def _vector(value: Tensor) -> Tensor:
    value = value.float().cpu()
    return value if value.ndim == 2 else value.mean(dim=(2, 3))

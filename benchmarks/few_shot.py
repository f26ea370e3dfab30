"""Nearest class mean, and classification with a few images per class, on frozen features."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from benchmarks.task import FeatureTask, InputError, Labels, Outcome, Outputs, RunOptions, Split, log_once, progress
from benchmarks.training.task import Positive, check_single_label, classification_protocol
from results.schema import Counts, Geometry, Params, Protocol, Score, Source

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("benchmarks")

_SHORTER_256 = Geometry(mode="shorter", resize=256, crop=224)
_UNCROPPED = Geometry(mode="shorter", resize=48, crop=48)  # a drawing may lie anywhere in its picture
# Variant, data set and geometry: those of knn.mmselfsup, whose features are used again.
_PLACES = (
    ("imagenet", "imagenet", _SHORTER_256),
    ("imagefolder", "imagefolder", _SHORTER_256),
    ("demo", "drawings", _UNCROPPED),
)


# ---- nearest class mean ----------------------------------------------------------------------------------------------

NCM_COLUMNS = ("NCM", "NCM top-5")


class NcmParams(Params):
    """The numbers of a nearest-class-mean protocol: unit rows, their mean in each class, Euclidean distance.

    Attributes:
        features: the encoder output that is averaged and compared.
    """

    features: str = "embed"


NCM_PROTOCOLS = tuple(
    classification_protocol(
        "ncm", variant, NcmParams(),
        Source(
            repository="Mensink et al., ECCV 2012 (nearest class mean)",
            note="Our own: rows of length one before they are averaged, as in kNN, and the geometry of knn.mmselfsup",
        ),
        geometry, dataset, columns=NCM_COLUMNS, primary="NCM", selection="nothing to choose",
    )
    for variant, dataset, geometry in _PLACES
)  # fmt: skip


@dataclass(frozen=True)
class Ncm(FeatureTask[NcmParams]):
    """Nearest class mean on frozen features (Mensink et al. 2012)."""

    name = "ncm"
    Params = NcmParams
    protocols = NCM_PROTOCOLS

    def outputs(self, protocol: Protocol) -> Outputs:
        name = self.params(protocol).features
        return {name: (name, None)}

    def check(self, protocol: Protocol, train: Labels, test: Labels) -> None:
        check_single_label(protocol, train, test)

    def flops(self, protocol: Protocol, train: Labels, test: Labels, width: int) -> float:
        """The product of test with the means, and a sum over train."""
        return 2.0 * len(test) * len(train.classes) * width + len(train) * width

    def run(self, protocol: Protocol, train: Split, test: Split, options: RunOptions) -> Outcome:
        """Classify `test` by the means of the classes of `train`.

        Raises:
            InputError: a feature has no direction.
        """
        from benchmarks.solvers.class_means import class_means, nearest_mean_ranks

        self.check(protocol, train.labels, test.labels)
        name = self.params(protocol).features
        targets, classes = train.labels.targets, len(train.labels.classes)
        track = partial(progress, show=options.progress)
        began = time.perf_counter()
        means = class_means(train.features[name], targets, classes, device=options.device, track=track)
        ranks = nearest_mean_ranks(means[None], test.features[name], test.labels.targets, track=track)[0]
        outcome = Outcome(timing={"classify": time.perf_counter() - began})
        for column, top in zip(NCM_COLUMNS, (1, 5), strict=True):
            outcome.add_accuracy(column, (ranks < top).numpy(), protocol.selection)
        return outcome


# ---- few-shot --------------------------------------------------------------------------------------------------------

# For the estimate of time, measured on a CPU on made-up features: passes of a logistic regression over its few images,
# operations of a float32 product that take as long as a step between two passes takes for each weight, and how many
# times as long as their operations the products with test images take, with the choice of neighbours and the ranks.
TYPICAL_PASSES, STEP_OF_WEIGHT, TEST_FACTOR = 7, 22_000, 3
CLASSIFIERS = ("kNN", "NCM", "Logistic")


class FewShotParams(Params):
    """Classification with n images of each class, by three classifiers on unit rows.

    Attributes:
        features: the encoder output.
        shots: n, in ascending order. A draw of fewer images is part of the draw of more.
        draws: number of draws, of which scores are the mean; draw i has seed i.
        temperature: of a neighbour's weight exp(cosine / T) in kNN, where k is n.
        cost: C of logistic regression, fixed because there are no images to choose it on.
        tolerance, max_iterations: of logistic regression, see `fit_logistic`.
    """

    features: str = "embed"
    shots: Counts = (1, 2, 4, 8, 16)
    draws: int = Field(5, gt=0)
    temperature: Positive = 0.07
    cost: Positive = 10.0
    tolerance: Positive = 1e-5
    max_iterations: int = Field(1000, gt=0)

    def columns(self) -> tuple[str, ...]:
        """One per classifier and n."""
        return tuple(f"{classifier} n={n}" for classifier in CLASSIFIERS for n in self.shots)

    def selection(self) -> str:
        """There is nothing to choose."""
        return f"mean of {self.draws} draws, nothing to choose"


FEW_SHOT_PROTOCOLS = tuple(
    classification_protocol(
        "few-shot", variant, FewShotParams(),
        Source(
            repository="this project",
            note="n images of each class in five seeded draws; unit rows; kNN with k = n and the weights of "
            "knn.mmselfsup, the nearest class mean, and multinomial logistic regression with C = 10",
        ),
        geometry, dataset, primary="Logistic n=16",
    )
    for variant, dataset, geometry in _PLACES
)  # fmt: skip


@dataclass(frozen=True)
class FewShot(FeatureTask[FewShotParams]):
    """Classification with 1 to 16 images per class, by kNN, the nearest class mean and logistic regression."""

    name = "few-shot"
    Params = FewShotParams
    protocols = FEW_SHOT_PROTOCOLS

    def outputs(self, protocol: Protocol) -> Outputs:
        name = self.params(protocol).features
        return {name: (name, None)}

    def adapted(self, protocol: Protocol, train: Labels, test: Labels) -> Protocol:
        """On the user's own image folder, leave out every n that exceeds the smallest class."""
        shots, smallest = self.params(protocol).shots, _smallest_class(train)
        if protocol.variant != "imagefolder" or "shots=" in "".join(protocol.overrides) or shots[-1] <= smallest:
            return protocol
        possible = tuple(n for n in shots if n <= smallest)
        if not possible:
            return protocol
        log_once(f"the smallest class has {smallest} images: n up to {possible[-1]} instead of {shots[-1]}")
        return protocol.changed(shots=possible)

    def check(self, protocol: Protocol, train: Labels, test: Labels) -> None:
        """Raises InputError where the labels are not one class per image, or a class has too few images."""
        check_single_label(protocol, train, test)
        shots, smallest = self.params(protocol).shots, _smallest_class(train)
        if shots[-1] > smallest:
            raise InputError(
                f"{protocol.id} draws {shots[-1]} images of each class, but the smallest class of the "
                f"{protocol.train_split} split has only {smallest}: use shots up to {smallest}"
            )

    def flops(self, protocol: Protocol, train: Labels, test: Labels, width: int) -> float:
        """The products of test with each draw, its means and its weights, and the regressions."""
        params, classes = self.params(protocol), len(train.classes)
        fits, images = len(params.shots), classes * sum(params.shots)
        tested = 2.0 * TEST_FACTOR * len(test) * classes * (params.shots[-1] + 2 * fits)
        fitted = TYPICAL_PASSES * classes * (4.0 * images + fits * STEP_OF_WEIGHT)
        return params.draws * width * (tested + fitted)

    def run(self, protocol: Protocol, train: Split, test: Split, options: RunOptions) -> Outcome:
        """Classify `test` by each draw of `train`.

        Raises:
            InputError: see `check`; a feature has no direction.
        """
        from benchmarks.solvers.class_means import sample_per_class, unit_rows

        self.check(protocol, train.labels, test.labels)
        params = self.params(protocol)
        classes, shots = len(train.labels.classes), params.shots
        drawn = sample_per_class(train.labels.targets, classes, shots[-1], range(params.draws))
        queries, targets = test.features[params.features], test.labels.targets
        # Only the drawn rows are read. Those of one draw stand together, the first image of every class first.
        rows = unit_rows(train.features[params.features][drawn.reshape(-1)], options.device)

        hits: dict[str, NDArray[np.bool_]] = {}  # classifier -> (draws, shots, N)
        outcome = Outcome(seeds=tuple(range(params.draws)))
        began = time.perf_counter()
        for classifier, ranks in (
            ("NCM", lambda: _by_means(params, rows, classes, queries, targets)),
            ("kNN", lambda: _by_neighbours(params, rows, classes, queries, targets, options)),
            ("Logistic", lambda: _by_regression(params, rows, classes, queries, targets, options)),
        ):
            hits[classifier] = (ranks() < 1).reshape(params.draws, len(shots), -1)
            outcome.timing[classifier] = time.perf_counter() - began
            began = time.perf_counter()
        for classifier in CLASSIFIERS:
            for place, n in enumerate(shots):
                column, own = f"{classifier} n={n}", hits[classifier][:, place]
                of_draws = 100 * own.mean(axis=1)
                outcome.scores[column] = Score(
                    value=float(of_draws.mean()), std=float(of_draws.std()), n=own.shape[1],
                    selection=protocol.selection,
                )  # fmt: skip
                # The mean over items of each item's share of draws is the score: no approximation is needed.
                outcome.items[f"pseudo_value/{column}"] = own.mean(axis=0).astype(np.float32)
        for draw in range(params.draws):
            for place, n in enumerate(shots):
                row = {classifier: 100 * float(hits[classifier][draw, place].mean()) for classifier in CLASSIFIERS}
                outcome.runs.append({"draw": draw, "n": n, **row})
        return outcome


def _smallest_class(train: Labels) -> int:
    return int(np.bincount(train.targets, minlength=len(train.classes)).min()) if train.targets.ndim == 1 else 0


def _by_means(
    params: FewShotParams, rows: Tensor, classes: int, queries: NDArray[np.float32], targets: NDArray[np.int64]
) -> NDArray[np.int64]:
    """(draws * shots, N) ranks by the nearest mean."""
    import torch

    from benchmarks.solvers.class_means import nearest_mean_ranks

    by_draw = rows.view(params.draws, params.shots[-1], classes, -1)
    means = torch.stack([by_draw[:, :n].mean(dim=1) for n in params.shots], dim=1)
    return nearest_mean_ranks(means.flatten(0, 1), queries, targets).numpy()


def _by_neighbours(
    params: FewShotParams,
    rows: Tensor,
    classes: int,
    queries: NDArray[np.float32],
    targets: NDArray[np.int64],
    options: RunOptions,
) -> NDArray[np.int64]:
    """(draws * shots, N) ranks by the votes of the n nearest: one product with a draw serves every n."""
    from benchmarks.solvers.class_means import LOGITS_BYTES, unit_rows
    from benchmarks.solvers.exact_knn import vote_ranks

    ranks = np.empty((params.draws, len(params.shots), len(queries)), np.int64)
    size = max(1, LOGITS_BYTES // (classes * params.shots[-1] * 4))
    for start in progress(range(0, len(queries), size), "neighbours of few images", show=options.progress):
        part = unit_rows(queries[start : start + size], options.device)
        for draw, gallery in enumerate(rows.view(params.draws, params.shots[-1] * classes, -1)):
            similarities = part @ gallery.T
            for place, n in enumerate(params.shots):
                found = similarities[:, : n * classes].topk(n, dim=1)
                ranks[draw, place, start : start + size] = vote_ranks(
                    found.values.cpu().numpy(),
                    (found.indices % classes).cpu().numpy(),
                    targets[start : start + size],
                    ks=(n,),
                    temperature=params.temperature,
                    num_classes=classes,
                )[n]
    return ranks.reshape(-1, len(queries))


def _by_regression(
    params: FewShotParams,
    rows: Tensor,
    classes: int,
    queries: NDArray[np.float32],
    targets: NDArray[np.int64],
    options: RunOptions,
) -> NDArray[np.int64]:
    """(draws * shots, N) ranks by logistic regression: one solver for every draw and n."""
    from benchmarks.solvers.class_means import CHUNK_ROWS, chunk_starts, unit_rows
    from benchmarks.solvers.logistic import Block, fit_logistic

    shots, drawn = params.shots, params.shots[-1] * classes
    fits = [(draw, n) for draw in range(params.draws) for n in shots]
    blocks = [
        Block(np.arange(draw * drawn + before * classes, draw * drawn + n * classes),
              tuple(number for number, (other, m) in enumerate(fits) if other == draw and m >= n))
        for draw in range(params.draws)
        for before, n in zip((0, *shots), shots, strict=False)
    ]  # fmt: skip
    found = fit_logistic(
        rows.cpu().numpy(),
        np.tile(np.arange(classes), params.draws * shots[-1]),
        classes,
        [params.cost] * len(fits),
        sample_rows=blocks,
        device=options.device,
        tolerance=params.tolerance,
        max_iterations=params.max_iterations,
        track=partial(progress, show=options.progress),
    )
    if not found.converged.all():
        log.warning(
            "%d of %d logistic regressions stopped before they converged, the worst at a gradient of %.1e",
            int((~found.converged).sum()), len(fits), found.gradient.max(),
        )  # fmt: skip
    parts = []
    for start in chunk_starts(len(queries)):
        part = slice(start, start + CHUNK_ROWS)
        parts.append(found.ranks(unit_rows(queries[part], options.device).cpu().numpy(), targets[part]).numpy())
    return np.concatenate(parts, axis=1)

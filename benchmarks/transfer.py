"""Transfer: logistic regression, nearest neighbours and nearest class mean on features of many data sets.

Every data set has a protocol, and so a record, of its own, with its own metric. `encoder-bench transfer` runs
all that are there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from benchmarks.solvers.average_precision import average_precisions
from benchmarks.task import FeatureTask, InputError, Labels, Outcome, Outputs, RunOptions, Split, progress
from benchmarks.training.task import Positive, require_images
from results.schema import Geometry, Params, Protocol, Score, Source

if TYPE_CHECKING:
    from benchmarks.solvers.logistic import Fits

LOGISTIC, KNN, NCM = "Logistic", "kNN", "NCM"
SPLIT_SEED = 0
_SCORES = 2**25  # in memory at a time, rows times costs times classes
Metric = Literal["accuracy", "mean_per_class", "map_11point"]
_METRICS: dict[Metric, str] = {
    "accuracy": "accuracy",
    "mean_per_class": "mean per-class accuracy",
    "map_11point": "mAP (11-point)",
}


class TransferParams(Params):
    """The numbers of a transfer protocol.

    Attributes:
        penalties: weight decays; C of a fit is the inverse of one.
        heldout: part of train that chooses the penalty, drawn at random, where the owner publishes no validation part.
        tolerance: a fit has converged where no component of the gradient of the mean loss and penalty is larger.
        scored_by: metric that chooses the penalty and is reported.
        k, temperature: of the nearest neighbours, which vote with exp(cosine / T).
    """

    output: str = "embed"
    penalties: tuple[Positive, ...] = Field(min_length=1)
    heldout: float = Field(0.2, gt=0, lt=1)
    max_iterations: int = Field(1000, gt=0)
    tolerance: Positive = 1e-6
    dtype: Literal["float32", "float64"] = "float64"
    scored_by: Metric = "accuracy"
    k: int = Field(20, ge=1)
    temperature: Positive = 0.07

    def columns(self) -> tuple[str, ...]:
        return LOGISTIC, KNN, NCM

    def metric(self) -> str:
        return _METRICS[self.scored_by]


# ---- protocols -------------------------------------------------------------------------------------------------------

# Data set of the suite -> id of the data, its metric, its train split.
SETS: dict[str, tuple[str, Metric, str]] = {
    "food101": ("food101", "accuracy", "trainval"),
    "cifar10": ("cifar10", "accuracy", "train"),
    "cifar100": ("cifar100", "accuracy", "train"),
    "birdsnap": ("birdsnap", "accuracy", "trainval"),
    "sun397": ("sun397", "accuracy", "trainval"),
    "cars": ("cars", "accuracy", "trainval"),
    "aircraft": ("aircraft", "mean_per_class", "trainval"),
    "voc2007": ("voc2007_cls", "map_11point", "trainval"),
    "dtd": ("dtd", "accuracy", "trainval"),
    "pets": ("pets", "mean_per_class", "trainval"),
    "caltech101": ("caltech101", "mean_per_class", "trainval"),
    "flowers102": ("flowers102", "mean_per_class", "trainval"),
    "eurosat": ("eurosat", "accuracy", "trainval"),
    "resisc45": ("resisc45", "accuracy", "trainval"),
    "country211": ("country211", "accuracy", "trainval"),
    "rendered_sst2": ("rendered_sst2", "accuracy", "trainval"),
    "gtsrb": ("gtsrb", "accuracy", "trainval"),
    "cub200": ("cub200", "accuracy", "trainval"),
    "stl10": ("stl10", "accuracy", "trainval"),
    "svhn": ("svhn", "accuracy", "trainval"),
    "pcam": ("pcam", "accuracy", "trainval"),
}
_PENALTIES = tuple(float(10**power) for power in np.linspace(-6, 5, 45))
_SELECTION = "penalty chosen on validation, then fitted on train and validation; k fixed"


def _protocol(
    name: str, variant: str, dataset: str, splits: tuple[str, str], params: TransferParams, geometry: Geometry,
    source: Source,
) -> Protocol:  # fmt: skip
    return Protocol.of(
        params,
        benchmark=f"transfer_{name}",
        variant=variant,
        revision=2,  # 1 took fits of separable rows for converged, and started the last one where it could leap far off
        harness="transfer",
        dataset=dataset,
        train_split=splits[0],
        test_split=splits[1],
        geometry=geometry,
        primary=LOGISTIC,
        selection=_SELECTION,
        source=source,
    )


PROTOCOLS = (
    *(
        _protocol(
            name,
            "kornblith",
            dataset,
            (train, "test"),
            TransferParams(penalties=_PENALTIES, scored_by=metric),
            Geometry(mode="shorter", resize=224, crop=224, interpolation="bicubic"),
            Source(
                repository="linusericsson/ssl-transfer",
                revision="4e9b9c2",
                note="linear.py, a third party's version of the recipe of Kornblith et al. and SimCLR: 45 penalties, "
                "validation as published or a random 20 % of train. Fitted until it converges, where the original "
                "stops after 100 iterations; kNN and NCM are this project's own columns",
            ),
        )
        for name, (dataset, metric, train) in SETS.items()
    ),
    _protocol(
        "drawings",
        "demo",
        "drawings",
        ("train", "val"),
        TransferParams(penalties=_PENALTIES),
        Geometry(mode="shorter", resize=48, crop=48),  # uncropped: a drawing may lie anywhere in its picture
        Source(repository="this project", note="transfer_*.kornblith@2 on the embedded single drawings"),
    ),
)


# ---- benchmark -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Transfer(FeatureTask[TransferParams]):
    """Logistic regression, kNN and nearest class mean on the 12 data sets of SimCLR and BYOL, and on nine more."""

    name = "transfer"
    Params = TransferParams
    protocols = PROTOCOLS
    suite = True

    def outputs(self, protocol: Protocol) -> Outputs:
        output = self.params(protocol).output
        return {output: (output, None)}

    def check(self, protocol: Protocol, train: Labels, test: Labels) -> None:
        """Raises InputError for empty or unlike splits, too few images, or labels that do not fit the metric."""
        params = self.params(protocol)
        require_images(protocol, train, test)
        for labels in (train, test):
            if (labels.targets.ndim == 2) != (params.scored_by == "map_11point"):
                raise InputError(
                    f"{protocol.id} reports {params.metric()}, but images of {protocol.dataset} have "
                    f"{'several labels' if labels.targets.ndim == 2 else 'one label'}: choose another data set"
                )
        if train.classes != test.classes:
            raise InputError(f"{protocol.id}: {protocol.train_split} and {protocol.test_split} of {protocol.dataset} "
                             "have different classes: give both the same class folders")  # fmt: skip
        if params.k > len(train):
            raise InputError(
                f"{protocol.id} needs k={params.k} neighbours, but train has {len(train)} images: use a smaller k"
            )
        kept, held = validation(train, params.heldout)
        if not len(kept) or not len(held):
            raise InputError(
                f"{protocol.id}: {len(train)} training images are too few to hold out a validation part: add images"
            )

    def run(self, protocol: Protocol, train: Split, test: Split, options: RunOptions) -> Outcome:
        """Choose the penalty on the validation part, fit on all of train, and score `test`.

        Raises:
            InputError: see `check`; also features that are not finite.
        """
        self.check(protocol, train.labels, test.labels)
        params = self.params(protocol)
        rows, queries = train.features[params.output], test.features[params.output]
        targets, classes = train.labels.targets, len(train.labels.classes)
        outcome = Outcome(seeds=(SPLIT_SEED,))
        began = time.perf_counter()
        fits, facts = _fit(params, train, options, protocol.dataset)
        outcome.runs.append(facts)
        outcome.timing["fit"] = time.perf_counter() - began
        columns: dict[str, Callable[[], NDArray[Any]]] = {
            LOGISTIC: lambda: np.concatenate([fits.logits(queries[part])[:, 0].float().cpu().numpy()
                                              for part in _blocks(len(queries), classes)]),
            KNN: lambda: knn_scores(rows, queries, targets, classes, params, options),
            NCM: lambda: ncm_scores(rows, queries, targets, classes),
        }  # fmt: skip
        for column, scores in columns.items():
            began = time.perf_counter()
            _report(outcome, column, scores(), test.labels, params.scored_by, protocol.selection)
            outcome.timing[f"score {column}"] = time.perf_counter() - began
        return outcome


def validation(train: Labels, heldout: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to fit on and rows to choose by: the published validation part where ids show one, else a random part."""
    held = np.array([id.startswith("val/") for id in train.ids], bool)
    if not held.any() or held.all():
        held = np.zeros(len(train), bool)
        chosen = np.random.default_rng(SPLIT_SEED).permutation(len(train))[: round(heldout * len(train))]
        held[chosen] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def _blocks(count: int, scores: int) -> Iterator[slice]:
    step = max(1, _SCORES // scores)
    return (slice(start, min(count, start + step)) for start in range(0, count, step))


def _fit(params: TransferParams, train: Split, options: RunOptions, name: str) -> tuple[Fits, dict[str, Any]]:
    import torch

    from benchmarks.solvers.logistic import fit_logistic

    rows, targets, classes = train.features[params.output], train.labels.targets, len(train.labels.classes)
    costs = [1 / penalty for penalty in params.penalties]
    kept, held = validation(train.labels, params.heldout)
    fit = partial(
        fit_logistic,
        rows,
        targets,
        classes,
        loss="one_vs_rest" if targets.ndim == 2 else "multinomial",
        device=options.device,
        dtype=torch.float64 if params.dtype == "float64" else torch.float32,
        tolerance=params.tolerance,
        max_iterations=params.max_iterations,
        track=lambda passes, about: progress(passes, f"{name}: {about}", show=options.progress),
    )
    path = fit(costs, sample_rows=kept)
    values = _validated(path, rows, targets, held, params.scored_by)
    best = np.flatnonzero(values == values.max())
    chosen = int(max(best, key=lambda i: params.penalties[i]))  # of equals the most regularised
    # As on the part: up the costs to the chosen one. From the part's weights, which may separate it, a fit on all rows
    # would leap to weights so large that hardly any gradient is left, far from the minimum.
    upwards = sorted(cost for cost in set(costs) if cost <= costs[chosen])
    whole = fit(upwards)
    final = whole.select([len(upwards) - 1])
    facts = {
        "penalty": params.penalties[chosen], "validation": 100 * float(values[chosen]), "validation_items": len(held),
        "iterations": int(final.iterations[0]), "converged": bool(final.converged[0]),
        "path_converged": int(path.converged.sum()),
    }  # fmt: skip
    return final, facts


def _validated(
    path: Fits, rows: NDArray[Any], targets: NDArray[Any], held: NDArray[np.int64], metric: Metric
) -> NDArray[np.float64]:
    """(fits,) the metric on the held-out rows."""
    if metric != "map_11point":
        right = (path.ranks(rows, targets, held) < 1).numpy()
        return np.array([_mean_right(each, targets[held], metric) for each in right])
    fits, classes = path.bias.shape
    blocks = [held[part] for part in _blocks(len(held), fits * classes)]
    scores = np.concatenate([path.logits(rows[block]).float().cpu().numpy() for block in blocks])
    return np.array([_mean_ap(scores[:, fit], targets[held]) for fit in range(fits)])


def _mean_right(right: NDArray[np.bool_], targets: NDArray[np.int64], metric: Metric) -> float:
    if metric == "accuracy":
        return float(right.mean())
    counts = np.bincount(targets)
    return float((np.bincount(targets, right)[counts > 0] / counts[counts > 0]).mean())


def _mean_ap(scores: NDArray[Any], targets: NDArray[Any]) -> float:
    return float(np.nanmean(average_precisions(scores.T, targets.T).eleven_point))


def knn_scores(
    rows: NDArray[np.float32], queries: NDArray[np.float32], targets: NDArray[Any], classes: int,
    params: TransferParams, options: RunOptions,
) -> NDArray[np.float64]:  # fmt: skip
    """(N, C) votes exp(cosine / T) of the k nearest rows for their classes."""
    from benchmarks.solvers.exact_knn import exact_knn

    found = exact_knn(rows, queries, params.k, device=options.device)
    weights = np.exp((found.similarities - found.similarities[:, :1]) / params.temperature)
    present = targets == 1 if targets.ndim == 2 else None
    votes = np.zeros((len(queries), classes))
    for place in range(params.k):
        neighbours = found.indices[:, place]
        if present is None:
            votes[np.arange(len(queries)), targets[neighbours]] += weights[:, place]
        else:
            votes += present[neighbours] * weights[:, place : place + 1]
    return votes


def ncm_scores(
    rows: NDArray[np.float32], queries: NDArray[np.float32], targets: NDArray[Any], classes: int
) -> NDArray[np.float64]:
    """(N, C) cosine to the mean of each class's normalised rows; -1 for a class without any."""
    unit, asked = (_unit(np.asarray(each, np.float64)) for each in (rows, queries))
    member = targets == 1 if targets.ndim == 2 else np.eye(classes, dtype=bool)[targets]
    means = member.T.astype(np.float64) @ unit
    scores: NDArray[np.float64] = asked @ _unit(means).T
    scores[:, ~member.any(0)] = -1
    return scores


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1)


def _report(
    outcome: Outcome, column: str, scores: NDArray[Any], labels: Labels, metric: Metric, selection: str
) -> None:
    targets, count = labels.targets, len(labels)
    if metric == "map_11point":
        ap = average_precisions(scores.T, targets.T).eleven_point
        value = float(np.nanmean(ap))
        outcome.per_class[column] = _named(labels.classes, 100 * ap)
        outcome.items[f"decision/{column}"] = scores.astype(np.float32)
        outcome.items["ap_rule"] = np.array("11point")
    else:
        right = scores.argmax(1) == targets
        value = _mean_right(right, targets, metric)
        if metric == "accuracy":
            outcome.items[f"correct/{column}"] = right
        else:
            counts = np.bincount(targets, minlength=len(labels.classes))
            own = np.bincount(targets, right, minlength=len(counts)) / np.maximum(counts, 1)
            outcome.per_class[column] = _named(labels.classes, np.where(counts > 0, 100 * own, np.nan))
            # The derivative of the mean over classes in each image's weight (see average_precision.pseudo_values).
            influence = (right - own[targets]) / (counts[targets] * (counts > 0).sum())
            outcome.items[f"pseudo_value/{column}"] = (value + count * influence).astype(np.float32)
    outcome.scores[column] = Score(value=100 * value, n=count, selection=selection)


def _named(classes: Sequence[str], values: NDArray[np.float64]) -> dict[str, float]:
    return {name: float(value) for name, value in zip(classes, values, strict=True) if np.isfinite(value)}

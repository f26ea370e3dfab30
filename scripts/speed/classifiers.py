"""Classifiers on features: logistic regression against scikit-learn's, few-shot on top, and banks of linear heads.

The sweep of logistic regression is that of logistic.dinov2: 45 values of C, float64, to the same largest component of
the gradient. Both sides are checked by one gradient in float64, which neither of them computes.
"""

from __future__ import annotations

import math
import statistics
import time
import warnings
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.datasets.images import Images
from benchmarks.datasets.registry import find_dataset
from benchmarks.demo.compose import Counts, compose
from benchmarks.dense.classifiers import CachedLinear, class_shares, train_bank
from benchmarks.dense.patches import Patches
from benchmarks.encoders.load import load_encoder
from benchmarks.features.extract import FeatureRequest, default_batch_size, extractor
from benchmarks.features.store import FeatureStore
from benchmarks.few_shot import FewShot, FewShotParams
from benchmarks.linear import ProbeParams
from benchmarks.logistic import LogisticRegression, RegressionParams
from benchmarks.registry import find_protocol
from benchmarks.solvers.logistic import Fits, fit_logistic
from benchmarks.task import Labels, RunOptions, Split
from benchmarks.training.probes import FrozenFeatures, HeadTrainer
from pretrain.distributed import row_products

from .measurement import (
    Entries,
    SpeedEntry,
    count_products,
    entry,
    fast_precision,
    limit_of,
    rounds,
    seconds_of,
    timed,
)

SMALL, LARGE = (3_125, 256, 100), (6_250, 512, 100)  # rows, dimensions, classes
ASKED = (50_000, 2_048, 100)
IMAGENET = (1_281_167, 2_048, 1_000)
EVERY = 6  # costs apart that the baseline fits
_MOST_STEPS = 10_000
DENSE_ENCODER = "random:resnet18-w32-k3-nopool"
CROP = 224
HEADS = (1, 11, 21)
SECONDS = 45.0  # of the steps with heads

Size = tuple[int, int, int]


def entries() -> Entries:
    return {"logistic": measure_sweep, "few-shot": measure_few_shot, "linear-grid": linear_grid, "dense": dense_heads}


@dataclass(frozen=True)
class LogisticProblem:
    """Rectified features with a power-law spectrum about a centre per class, as those of pooled convolutions."""

    features: NDArray[np.float32]
    targets: NDArray[np.int64]
    classes: int


@cache
def logistic_problem(rows: int, dim: int, classes: int) -> LogisticProblem:
    """The same features every time."""
    rng = np.random.default_rng(0)
    # The deviations along the principal axes of EfficientNet-Lite0's 1,280 features fall with this power.
    spectrum = 3 * np.arange(1, dim + 1, dtype=np.float32) ** -0.55
    centres = rng.standard_normal((classes, dim), dtype=np.float32) * spectrum * np.float32(0.6)
    targets = rng.integers(0, classes, rows)
    latent = rng.standard_normal((rows, dim), dtype=np.float32) * spectrum + centres[targets]
    projection = rng.standard_normal((dim, dim), dtype=np.float32) * np.float32(2 / np.sqrt(dim))
    offset = rng.standard_normal(dim, dtype=np.float32) * np.float32(0.3)
    return LogisticProblem(np.maximum(latent @ projection + offset, 0), targets, classes)


def sweep_params() -> RegressionParams:
    return LogisticRegression().params(find_protocol("logistic.dinov2@1"))


def measure_sweep(small: Size = SMALL, large: Size = LARGE, every: int = EVERY) -> SpeedEntry:
    """The whole sweep by ours at two sizes, and a part of it by scikit-learn at the larger one.

    The baseline's fits start from the solution of the cost before, as those of `LogisticRegressionCV` do; that solution
    is handed to it, so that the costs in between need no fit. CLIP's and DINOv2's loops start every cost from zero: one
    cost shows what that takes. Larger sizes are extrapolated by the power of rows x dimensions x classes that the two
    measured ones have. Below a power of 1, where what does not grow with the work shows, they are in proportion to the
    work, which is more than they will take.
    """
    params = sweep_params()
    data = logistic_problem(*large)
    small_s, _ = timed(lambda: sweep(logistic_problem(*small), params))
    ours_s, ours = timed(lambda: sweep(data, params))
    places = range(every // 2, len(params.costs), every)
    fitted = [_loop_step(data, params, ours, place) for place in places]
    middle = len(places) // 2 - 1
    from_zero_s = _loop_step(data, params, None, places[middle])[0]
    baseline_s = sum(seconds for seconds, _, _ in fitted) * len(params.costs) / len(places)
    theirs = max(_gradient(data, w, b, params.costs[i]) for i, (_, w, b) in zip(places, fitted, strict=True))
    weights, bias = ours.weights.double().numpy(), ours.bias.double().numpy()
    own = max(_gradient(data, weights[place], bias[place], params.costs[place]) for place in places)
    passes, limit_s = _limits(data, ours)
    power = math.log(ours_s / small_s) / math.log(math.prod(large) / math.prod(small))
    asked, imagenet = (ours_s * (math.prod(size) / math.prod(large)) ** max(1.0, power) for size in (ASKED, IMAGENET))
    return entry(
        "logistic",
        ours=ours_s,
        baseline=baseline_s,
        described="scikit-learn LogisticRegression, L-BFGS in float64 on all cores, each cost from the one before, as "
        "LogisticRegressionCV does",
        limit_s=limit_s,
        limit="the products of our passes over the rows, at their measured speed",
        note=f"{_size(large)}, {len(params.costs)} costs, {limit_s / ours_s:.0%} of the limit's speed; {passes}; "
        f"largest gradient in float64 "
        f"{own:.1e} against {theirs:.1e}, asked {params.tolerance:g}; the baseline fits {len(places)} of the costs, "
        f"times {len(params.costs) / len(places):.1f}; from zero, as in the loops of CLIP and DINOv2, "
        f"C = {params.costs[places[middle]]:.1g} takes {from_zero_s / fitted[middle][0]:.1f} times as long; "
        f"{_size(small)} takes {small_s:.2f} s, so time grows as work to the power {power:.2f}; extrapolated"
        f"{' in proportion to the work, so at most' if power < 1 else ''}: "
        f"{_size(ASKED)} {asked / 60:.0f} min, "
        f"{_size(IMAGENET)} {imagenet / 3600:.1f} h, {imagenet / len(params.costs) / 60:.0f} min for the mean cost",
    )


def sweep(data: LogisticProblem, params: RegressionParams) -> Fits:
    """What the benchmark fits on all of train."""
    return fit_logistic(
        data.features, data.targets, data.classes, params.costs, dtype=torch.float64, tolerance=params.tolerance,
        max_iterations=params.max_iterations,
    )  # fmt: skip


def _loop_step(
    data: LogisticProblem, params: RegressionParams, solved: Fits | None, place: int
) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """Seconds, weights and bias of scikit-learn's fit of one cost, from our solution of the one before or from zero."""
    from sklearn.linear_model import LogisticRegression as Loop

    model: Any = Loop(C=params.costs[place], tol=params.tolerance, max_iter=_MOST_STEPS, warm_start=True)
    if place and solved is not None:
        model.classes_ = np.arange(data.classes)
        model.coef_ = solved.weights[place - 1].double().numpy().copy()
        model.intercept_ = solved.bias[place - 1].double().numpy().copy()
    rows = data.features.astype(np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a line search that ends in rounding: the gradient is checked
        began = time.perf_counter()
        model.fit(rows, data.targets)
        seconds = time.perf_counter() - began
    return seconds, model.coef_, model.intercept_


def _gradient(data: LogisticProblem, weights: NDArray[np.float64], bias: NDArray[np.float64], cost: float) -> float:
    """Largest component of the gradient of the mean loss + |W|² / (2 C n)."""
    rows, n = data.features.astype(np.float64), len(data.targets)
    logits = rows @ weights.T + bias
    likely = np.exp(logits - logits.max(axis=1, keepdims=True))
    likely /= likely.sum(axis=1, keepdims=True)
    likely[np.arange(n), data.targets] -= 1
    slope = likely.T @ rows / n + weights / (cost * n)
    return float(max(np.abs(slope).max(), np.abs(likely.mean(axis=0)).max()))


def _limits(data: LogisticProblem, fits: Fits) -> tuple[str, float]:
    """What was passed over, and the seconds of its products, as the solver makes them."""
    rows, dim = data.features.shape
    each = 4.0 * rows * dim * data.classes
    single, double = fits.single_passes, fits.passes
    seconds = each * (single / _product_rate(data, torch.float32) + double / _product_rate(data, torch.float64))
    return f"{single:.0f} passes of a fit in float32 and {double:.0f} in float64", seconds


def _product_rate(data: LogisticProblem, dtype: torch.dtype) -> float:
    """Operations per second of the forward and the backward product of one fit, by the rows that are the fastest."""
    rates = []
    for size in {min(len(data.features), size) for size in (1024, 2048, 5120)}:
        x = torch.from_numpy(data.features[:size]).to(dtype)
        weights, slopes = (
            torch.randn(data.classes, x.shape[1], dtype=dtype),
            torch.randn(size, data.classes, dtype=dtype),
        )
        for a, b in ((x, weights), (slopes.T, x.T)):
            rates.append(
                2.0 * x.numel() * data.classes / min(seconds_of(partial(row_products, a, b)) for _ in range(9))
            )
    return max(rates)


def _size(size: Size) -> str:
    return " x ".join(f"{number:,}" for number in size)


def measure_few_shot(rows: int = 4_000, tested: int = 4_000, dim: int = 512, classes: int = 100) -> SpeedEntry:
    """Five draws of 1 to 16 images per class by three classifiers, against scikit-learn's on the same draws."""
    data = logistic_problem(rows + tested, dim, classes)
    train, test = (_split(data, part) for part in (slice(rows), slice(rows, None)))
    protocol = find_protocol("few_shot.imagefolder@1")
    params = FewShot().params(protocol)
    options = RunOptions(device="cpu", progress=False)
    ours_s, found = timed(lambda: FewShot().run(protocol, train, test, options))
    baseline_s, accuracy = timed(lambda: _few_shot_loop(params, train, test))
    baseline_s *= params.draws
    limit_s, flops = limit_of(count_products(lambda: FewShot().run(protocol, train, test, options)))
    own = np.mean([row["Logistic"] for row in found.runs if row["n"] == params.shots[-1] and row["draw"] == 0])
    return entry(
        "few-shot",
        ours=ours_s,
        baseline=baseline_s,
        described="scikit-learn KNeighborsClassifier, NearestCentroid and LogisticRegression",
        limit_s=limit_s,
        limit=f"the products alone: {flops / 1e9:.0f} GFLOP at the measured speed of their shapes",
        note=f"{params.draws} draws of n = {', '.join(map(str, params.shots))} of {classes} classes, {dim} dimensions, "
        f"{tested:,} test images; the baseline does one draw, times {params.draws}; logistic regression of n = "
        f"{params.shots[-1]} in that draw: {own:.2f} % against {accuracy:.2f} %",
    )


def _split(data: LogisticProblem, part: slice) -> Split:
    targets = data.targets[part]
    ids = tuple(f"{number:06d}" for number in range(len(targets)))
    labels = Labels(ids, (), tuple(f"class{c}" for c in range(data.classes)), targets, tuple((id,) for id in ids))
    return Split(labels, {"embed": data.features[part]})


def _few_shot_loop(params: FewShotParams, train: Split, test: Split) -> float:
    """One draw, every n and classifier one after the other; the accuracy of the last logistic regression."""
    from sklearn.linear_model import LogisticRegression as Loop
    from sklearn.neighbors import KNeighborsClassifier, NearestCentroid

    from benchmarks.solvers.class_means import sample_per_class

    classes = len(train.labels.classes)
    (drawn,) = sample_per_class(train.labels.targets, classes, params.shots[-1], [0])
    unit = [split.features["embed"] / np.linalg.norm(split.features["embed"], axis=1, keepdims=True)
            for split in (train, test)]  # fmt: skip
    accuracy = 0.0
    for n in params.shots:
        chosen = drawn[:n].reshape(-1)
        rows, targets = unit[0][chosen], train.labels.targets[chosen]
        models: list[Any] = [
            KNeighborsClassifier(n, metric="cosine", weights=lambda d: np.exp(-d / params.temperature)),
            NearestCentroid(),
            Loop(C=params.cost, tol=params.tolerance, max_iter=params.max_iterations),
        ]
        for model in models:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                accuracy = 100 * float(model.fit(rows, targets).score(unit[1], test.labels.targets))
    return accuracy


def linear_grid(batch_size: int = 256, most: int = 3) -> SpeedEntry:
    """Ten heads and then ten more, beside one, on a ResNet-50 with 1000 classes.

    An epoch is that many equal steps, and a step is one pass of the encoder and one update of the bank. Both are timed,
    the update of each bank in turn on what the same pass gave, up to `most` times, and their medians added. What would
    flatter the heads is left out: images are in memory, and the encoder runs in the faster precision.
    """
    precision: Literal["fp32", "bf16"] = "bf16" if fast_precision() == "bf16" else "fp32"
    encoder, device = load_encoder("random:resnet50"), torch.device("cpu")
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch_size, 3, CROP, CROP), dtype=torch.uint8, generator=draws)
    targets = torch.randint(0, IMAGENET[2], (batch_size,), generator=draws)
    params = [
        ProbeParams(
            outputs=("embed",),
            lrs=tuple(0.1 * (n + 1) for n in range(heads)),
            epochs=1,
            heldout=0.5,
            precision=precision,
        )
        for heads in HEADS
    ]
    frozen = FrozenFeatures(encoder, [("embed", None)], CROP, device, precision)
    trainers = [HeadTrainer(grid, frozen, IMAGENET[2], 0) for grid in params]
    passes: list[float] = []
    updates: list[list[float]] = [[] for _ in HEADS]
    for _ in rounds(most + 1, SECONDS):
        taken, features = timed(lambda: frozen(images))
        passes.append(taken)
        for seconds, trainer in zip(updates, trainers, strict=True):
            seconds.append(seconds_of(partial(trainer.update, features, targets, 1.0, batch_size)))
    # The first round warms up, and counts where there is no time for another.
    encoding = statistics.median(passes[1:] or passes)
    one, eleven, twenty_one = (encoding + statistics.median(seconds[1:] or seconds) for seconds in updates)
    worst = max(eleven - one, twenty_one - eleven)
    return entry(
        "linear-grid",
        ours=one + worst,
        baseline=one,
        described="the same step with ten heads fewer",
        limit_s=one,
        limit="as long as with ten heads fewer",
        note=f"ResNet-50, {CROP} pixels, {IMAGENET[2]} classes, batch {batch_size}, {precision}; a "
        f"step with {', '.join(map(str, HEADS))} heads: {one:.2f}, {eleven:.2f}, {twenty_one:.2f} s; ten more "
        f"take {worst / one:.1%} more, to stay below 10 %",
    )


def dense_heads(scenes: int = 800, epochs: int = 10, data: Path | None = None) -> SpeedEntry:
    """Five rates for `epochs` epochs on the patches of the embedded scenes.

    The plain way reads, encodes and trains one head for one epoch; that is measured once and counts for each of the
    heads and epochs. The limit is the encoder's bare passes over images in memory, and the update of the heads.

    Args:
        scenes: of which an eighth is read.
        data: embedded data that is there already.
    """
    protocol = find_protocol("ade20k_seg_linear_cached.demo@1").changed(epochs=epochs)
    params: Any = CachedLinear().params(protocol)
    with TemporaryDirectory() as folder:
        root = Path(folder)
        if data is None:
            data = root / "data"
            compose(data, progress=False, counts=Counts(train=scenes, val=8, test=8, drawings_per_class=1))
        labels = find_dataset("ade20k", data).read("training")
        encoder = load_encoder(DENSE_ENCODER)
        options = RunOptions(device="cpu", progress=False, features=root / "features")
        outputs = {k: v for k, v in CachedLinear().outputs(protocol).items() if k.startswith("feature5")}
        request = FeatureRequest(encoder, labels, protocol.geometry, outputs)
        extracting, (split,) = timed(lambda: FeatureStore(options).get([request]))
        patches = Patches.of(split, protocol, params.stride)
        rows, shares = np.array(patches.rows, np.float32), class_shares(patches)
        items = np.arange(len(rows))

        def heads(of: Any) -> float:
            return timed(lambda: train_bank(rows, items, shares, of, 0, "cpu", show=False))[0]

        heads(params.changed(epochs=1))  # warms up
        grid = heads(params)
        again = replace(options, features=root / "again")
        reading, _ = timed(lambda: FeatureStore(again).get([request]))
        one = reading + heads(params.changed(epochs=1, rates=params.rates[:1]))
        images = Images(labels.paths, protocol.geometry)
        decoded = torch.stack([images[row][0] for row in range(len(labels))])
        batch = default_batch_size(torch.device("cpu"), protocol.geometry.crop)
        with extractor(encoder, protocol.geometry, outputs, "fp32") as extract:
            bare, _ = timed(lambda: [extract(part, outputs) for part in decoded.split(batch)])
    ours = extracting + grid
    return entry(
        "dense",
        ours=ours,
        baseline=one * len(params.rates) * epochs,
        described="one head at a time, encoder in every epoch",
        limit_s=bare + grid,
        limit="encoder and heads on images in memory",
        note=f"{len(labels)} scenes at {protocol.geometry.crop} pixels, {DENSE_ENCODER}, {len(params.rates)} rates, "
        f"{epochs} epochs; extraction {extracting:.2f} s, heads {grid:.2f} s, one plain epoch {one:.2f} s",
    )

"""VOC07 low-shot SVM: k positives per class, several drawn sets, mean average precision on the whole test split.

Goyal et al. 2019, "Scaling and Benchmarking Self-Supervised Visual Representation Learning", section 6.2. Published
results choose cost and layer on the test split. That choice is reported as `oracle`. Two more selections never look at
the test split: a fixed cost, and the cost that does best on the training images outside the drawn set, which uses more
labels than the k.
"""

from __future__ import annotations

import hashlib
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from benchmarks.low_shot_sets import (
    STACK_VALUES,
    Draw,
    Problems,
    check_counts,
    draw_sets,
    read_sets,
    sets_sha256,
    stacked_problems,
)
from benchmarks.solvers.average_precision import average_precisions, envelope_influence, pseudo_values
from benchmarks.svm_common import VARIANTS, PooledOutputs, SvmParams, check_labels, usable_outputs
from benchmarks.task import (
    FEATURE_MAPS,
    FeatureTask,
    InputError,
    Labels,
    Outcome,
    Outputs,
    RunOptions,
    Split,
    log_once,
    progress,
)
from results.schema import Counts, Geometry, Protocol, Score, Source

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.solvers.svm import SubsetModels

log = logging.getLogger("benchmarks")

ScoreT = TypeVar("ScoreT")
Floats = NDArray[np.float64]
Selection = Literal["oracle", "fixed", "heldout"]
SELECTIONS: Mapping[Selection, str] = {
    "oracle": "layer and cost by test mAP (oracle)",
    "fixed": "layer by mAP outside the set, cost fixed",
    "heldout": "layer and cost by mAP on training images outside the set, which uses more labels than k",
}
# For estimates, measured on synthetic data: products with a Gram matrix, or with the features where they are smaller,
# in which a cost is solved; and the time of a decision and its average precision, in products of its length.
TYPICAL_PRODUCTS, TYPICAL_DECISION = 300, 8
MANY_IMAGES = 8192  # in the training split; above it only the drawn rows are read. At most `gram.DENSE_ROWS`


class LowShotParams(SvmParams):
    """The numbers of a low-shot protocol.

    Attributes:
        k: positives per class, see `low_shot_sets`.
        sets: independent draws; a score is their mean, with its spread.
        seed: of the draws.
        index_sets: `seeded` draws by this project, or `files` in the format of the published ones.
        index_sha256: of the files, where there are any: other files are another measurement.
        fixed_cost: the cost of the `fixed` selection.
    """

    unlabelled = frozenset({"index_sha256"})

    k: Counts
    sets: int = Field(5, ge=1)
    seed: int = Field(0, ge=0)
    index_sets: Literal["seeded", "files"] = "seeded"
    index_sha256: str | None = Field(None, exclude_if=lambda value: value is None)
    fixed_cost: float = Field(1.0, gt=0)

    def columns(self) -> tuple[str, ...]:
        """One per selection and k."""
        return tuple(column(k, selection) for selection in SELECTIONS for k in self.k)


def column(k: int, selection: Selection) -> str:
    """The table column: `k=8` for the published, oracle selection, `k=8 fixed` and `k=8 heldout` for the others."""
    return f"k={k}" if selection == "oracle" else f"k={k} {selection}"


# ---- protocols -------------------------------------------------------------------------------------------------------

K = (1, 2, 4, 8, 16, 32, 64, 96)  # 96: VOC07 trainval has 96 images with sheep


def _protocol(
    variant: str,
    *,
    like: str | None = None,
    outputs: PooledOutputs | None = None,
    index_sets: Literal["seeded", "files"] = "seeded",
    k: tuple[int, ...] = K,
    primary_k: int | None = None,
    **fields: Any,
) -> Protocol:
    """The low-shot protocol of a variant (or `like` one); `fields` are what else differs from the one on VOC07."""
    shared = VARIANTS[like or variant]
    usual = {
        "benchmark": "voc07_low_shot_svm", "dataset": "voc2007", "train_split": "trainval", "test_split": "test",
        "geometry": shared.geometry, "source": shared.source,
    }  # fmt: skip
    return Protocol.of(
        LowShotParams(
            costs=shared.costs,
            outputs=outputs or shared.outputs,
            k=k,
            index_sets=index_sets,
            tolerance=shared.tolerance,
        ),
        variant=variant,
        revision=shared.revision,
        harness="low-shot-svm",
        primary=column(primary_k or k[-1], "oracle"),
        metric="mAP (precision envelope)",
        selection="layer and one cost per k with the best mean mAP on test (oracle); mean over the sets",
        **usual | fields,
    )


PROTOCOLS = (
    _protocol("mmselfsup"),
    # Its low-shot configuration skips the resize to 256.
    _protocol("vissl", geometry=Geometry(mode="warp", resize=0, crop=224)),
    _protocol("fssb", index_sets="files"),
    _protocol("adaptive"),
    _protocol("fssb", benchmark="places205_low_shot_svm", dataset="places205", train_split="train", test_split="val"),
    _protocol(
        "embed",
        like="mmselfsup",
        benchmark="imagefolder_low_shot_svm",
        dataset="imagefolder",
        train_split="train",
        test_split="val",
        source=Source(
            repository="this project",
            note="places205_low_shot_svm.fssb@1 on any ImageFolder, on the pooled vector alone, with the costs of "
            "mmselfsup and the crop of kNN and linear_stored, which read the same features; k that leave a class no "
            "image outside the set are left out, which the id shows",
        ),
        geometry=Geometry(mode="shorter", resize=256, crop=224),
        outputs={"embed": None},
        primary_k=8,
    ),
    _protocol(
        "demo",
        source=Source(
            repository="this project",
            note="voc07_low_shot_svm.adaptive@1 on the embedded scenes, at their size, on the pooled vector alone, "
            "four costs and k up to 64",
        ),
        outputs={"embed": None},
        k=K[:-1],  # at 96 nearly all negatives of the scenes are drawn, and the five sets hardly differ
    ),
)


# ---- benchmark -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LowShotSvm(FeatureTask[LowShotParams]):
    """Linear SVMs on k images per class of VOC07 or Places205 (Goyal et al. 2019, section 6.2)."""

    index_files: Path | None = None
    """folder of the published label files train_targets_sample1_k1.npy …, for protocols that train on them"""

    name = "low-shot-svm"
    Params = LowShotParams
    protocols = PROTOCOLS

    def outputs(self, protocol: Protocol) -> Outputs:
        return self.params(protocol).read()

    def resolve(self, protocol: Protocol) -> Protocol:
        """The protocol with the hash of the label files, so that other files make another record."""
        if self.index_files is None:
            return protocol
        if self.params(protocol).index_sets != "files":
            raise InputError(
                f"{protocol.id} draws its own low-shot sets and cannot use --index-files: choose a protocol with "
                "index_sets=files, or leave the flag out"
            )
        digest = hashlib.sha256()
        for file in sorted(self.index_files.glob("*.npy")):
            digest.update(file.name.encode() + file.read_bytes())
        return protocol.changed(index_sha256=digest.hexdigest())

    def adapted(self, protocol: Protocol, train: Labels, test: Labels) -> Protocol:
        """On the user's own image folder, leave out every k that is not below the size of the smallest class."""
        params = self.params(protocol)
        chosen_by_user = any(label.startswith("k=") for label in protocol.overrides)
        if protocol.benchmark != "imagefolder_low_shot_svm" or chosen_by_user or not len(train):
            return protocol
        counts = np.bincount(train.targets, minlength=len(train.classes))
        smallest = int(counts.argmin())
        k = tuple(each for each in params.k if each < counts[smallest]) or params.k[:1]
        if k != params.k:
            kept, all_k = (", ".join(map(str, each)) for each in (k, params.k))
            log_once(
                f"{train.classes[smallest]}, the smallest class, has {counts[smallest]} training images: k = {kept} "
                f"instead of {all_k}"
            )
        return protocol.changed(k=k)

    def check(self, protocol: Protocol, train: Labels, test: Labels) -> None:
        """Refuse what the labels alone show.

        Raises:
            InputError: splits without images or positives, a fixed cost that is not among the costs, a single set of a
                single-label data set, or a class with too few training images.
        """
        check_labels(train, test)
        params = self.params(protocol)
        if params.fixed_cost not in params.costs:
            raise InputError(
                f"{protocol.id}: fixed_cost {params.fixed_cost:g} is not among the costs "
                f"({', '.join(f'{cost:g}' for cost in params.costs)}): choose one of them"
            )
        if train.targets.ndim == 1 and params.sets == 1:
            raise InputError(
                f"{protocol.id}: with sets=1 there are no other sets on whose images costs can be compared: use "
                "sets=2 or more"
            )
        if params.index_sets == "seeded":
            check_counts(train, params.k[-1])
            if train.targets.ndim == 1 and np.bincount(train.targets).max() <= params.k[-1]:
                raise InputError(
                    f"{protocol.id}: no class has more than k={params.k[-1]} training images, so all sets would be "
                    "the same: choose a smaller k with --set k=…, or add images"
                )
        elif self.index_files is None:
            raise InputError(
                f"{protocol.id} trains on the published label files train_targets_sample1_k1.npy …: give their folder "
                "with --index-files, or choose a protocol with seeded sets"
            )

    def flops(self, protocol: Protocol, train: Labels, test: Labels, width: int) -> float:
        """The products of every solution, and its decisions on test and on the training images that are compared."""
        params, classes = self.params(protocol), len(train.classes)
        multi = train.targets.ndim == 2
        work = 0.0
        for drawn in (k * classes for k in params.k):
            decided = len(test) + (len(train) if multi else (params.sets - 1) * drawn)
            work += TYPICAL_PRODUCTS * drawn * min(drawn, width) + TYPICAL_DECISION * decided * width
        return 2.0 * len(params.outputs) * params.sets * classes * len(params.costs) * work

    def run(self, protocol: Protocol, train: Split, test: Split, options: RunOptions) -> Outcome:
        """Train and test on every drawn set, k, cost and layer.

        Raises:
            InputError: see `check`, `usable_outputs` and `read_sets`.
        """
        self.check(protocol, train.labels, test.labels)
        params = self.params(protocol)
        names = usable_outputs(params, train, test)
        if self.index_files is not None and params.index_sets == "files":
            draws = read_sets(train.labels, self.index_files, k=params.k, sets=params.sets)
        else:
            draws = draw_sets(train.labels, k=params.k, sets=params.sets, seed=params.seed)
        few = train.labels.targets.ndim == 2 and len(train.labels) <= MANY_IMAGES
        problems = list(stacked_problems(train.labels.targets, draws, STACK_VALUES if few else 1))
        targets = test.labels.one_hot().T

        outcome = Outcome(seeds=(params.seed,))
        began = time.perf_counter()
        ticks = progress(range(len(names) * len(problems)), protocol.id, show=options.progress)
        results: dict[str, LayerResult] = {}
        for name in names:
            layer = _Layer(train.features[name], test.features[name], few, params)
            results[name] = _measure(layer, problems, targets, lambda: next(ticks, None))
        next(ticks, None)  # closes the bar
        measured = time.perf_counter()

        choices = choose(results, params)
        drawn = [sets_sha256([draw for draw in draws if draw.index == index])[:16] for index in range(params.sets)]
        _report(params, results, choices, train.labels.classes, len(test.labels), drawn, outcome)
        for name in dict.fromkeys(choice.layer for choice in choices):
            of_layer = [choice for choice in choices if choice.layer == name]
            layer = _Layer(train.features[name], test.features[name], few, params)
            _add_models(outcome, layer, problems, of_layer, targets)
        _add_sets(outcome, draws)
        outcome.timing = {"fit and score": measured - began, "models": time.perf_counter() - measured}
        outcome.runs.append({"index_sets": params.index_sets, "sets": params.sets, "sha256": sets_sha256(draws)})
        return outcome


# ---- training and scoring --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerResult:
    """Average precisions in [0, 1] on one layer's features.

    Attributes:
        test: (3, sets, K, costs, C): precision envelope, scikit-learn's and 11-point, on the test split.
        heldout: (sets, K, costs, C) precision envelope on training images outside the set; NaN where no positive is
            left outside.
    """

    test: Floats
    heldout: Floats

    @classmethod
    def empty(cls, params: LowShotParams, classes: int) -> LayerResult:
        """All values unknown."""
        shape = (params.sets, len(params.k), len(params.costs), classes)
        return cls(np.full((3, *shape), np.nan), np.full(shape, np.nan))

    @property
    def test_map(self) -> Floats:
        """(sets, K, costs) on test."""
        return self.test[0].mean(-1)

    @property
    def heldout_map(self) -> Floats:
        """(K, costs) outside the sets: mean over the classes that have positives there, then over the sets."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # NaN where no class has any
            return np.nanmean(np.nanmean(self.heldout, -1), 0)


@dataclass(frozen=True)
class _Layer:
    """Features of one layer; `few` training images' inner products are all kept."""

    train: NDArray[np.float32]
    test: NDArray[np.float32]
    few: bool
    params: LowShotParams

    def fit(
        self,
        problems: Sequence[Problems],
        costs: Sequence[Sequence[float]],
        score: Callable[[Problems, Iterator[SubsetModels]], ScoreT],
    ) -> Iterator[ScoreT]:
        """Yields `score(problems, models)` of all problems, see `fit_subsets`."""
        from benchmarks.solvers.svm import fit_subsets

        params = self.params
        weights = params.positive_weight, params.negative_weight
        return fit_subsets(
            self.train, self.test, problems, costs, score,
            class_weights=weights, tolerance=params.tolerance, all_pairs=self.few,
        )  # fmt: skip


def _measure(
    layer: _Layer, stacks: Sequence[Problems], targets: NDArray[np.int8], stack_done: Callable[[], object]
) -> LayerResult:
    """Average precisions of every set, k, cost and class; `targets` are the (C, N) labels of the test images."""
    params = layer.params
    result = LayerResult.empty(params, len(targets))

    def score(problems: Problems, models: Iterator[SubsetModels]) -> tuple[Floats, Floats]:
        """(3, costs, g, m) average precisions on test and (costs, g, m) on the compared images."""
        shape = (len(params.costs), *problems.classes.shape)
        test, heldout = np.zeros((3, *shape)), np.zeros(shape)
        for found in models:
            ap = average_precisions(found.test, targets[problems.classes])
            test[:, found.costs] = ap.envelope, ap.step, ap.eleven_point
            heldout[found.costs] = average_precisions(found.compared, problems.compared_labels).envelope
        return test, heldout

    scores = layer.fit(stacks, [params.costs] * len(stacks), score)
    for problems, (test, heldout) in zip(stacks, scores, strict=True):
        cell = problems.draw.index, params.k.index(problems.draw.k)
        result.test[(slice(None), *cell)][..., problems.classes] = test
        result.heldout[cell][:, problems.classes] = heldout
        stack_done()
    return result


def _add_models(
    outcome: Outcome,
    layer: _Layer,
    stacks: Sequence[Problems],
    choices: Sequence[Choice],
    targets: NDArray[np.int8],
) -> None:
    """Solve one layer's chosen costs again, for the models and for what each test image contributes to the scores.

    Keeping the models of every cost until the costs are chosen would need as many times the memory as there are costs.
    Models are (sets, C, D) weights and (sets, C) intercepts, named `embed/k=8/cost=1/weight` and `…/bias`.
    """
    import torch

    sets, classes = layer.params.sets, len(targets)
    costs = {k: sorted({choice.cost for choice in choices if choice.k == k}) for k in layer.params.k}
    influences = {(k, cost): np.zeros(targets.shape[1]) for k in costs for cost in costs[k]}

    def score(problems: Problems, models: Iterator[SubsetModels]) -> dict[float, tuple[Tensor, Floats]]:
        """Cost -> (g, m, D + 1) float32 weights, the intercept last, and (N,) influence summed over the classes."""
        scored = {}
        for found in models:
            for i, weights, decisions in zip(found.costs, found.weights(), found.test, strict=True):
                influence = np.zeros(targets.shape[1])
                for place, c in np.ndenumerate(problems.classes):
                    influence += envelope_influence(decisions[place], targets[c])
                scored[costs[problems.draw.k][i]] = weights, influence
        return scored

    stacks = [replace(problems, compared=np.zeros(0, np.int64)) for problems in stacks if costs[problems.draw.k]]
    scores = layer.fit(stacks, [costs[problems.draw.k] for problems in stacks], score)
    for problems, found in zip(stacks, scores, strict=True):
        k, index = problems.draw.k, problems.draw.index
        for cost, (weights, influence) in found.items():
            key = f"{choices[0].layer}/k={k}/cost={cost:g}"
            if f"{key}/weight" not in outcome.tensors:
                outcome.tensors[f"{key}/weight"] = torch.zeros(sets, classes, weights.shape[-1] - 1)
                outcome.tensors[f"{key}/bias"] = torch.zeros(sets, classes)
            outcome.tensors[f"{key}/weight"][index, problems.classes] = weights[..., :-1]
            outcome.tensors[f"{key}/bias"][index, problems.classes] = weights[..., -1]
            influences[k, cost] += influence / (sets * classes)
    for choice in choices:
        name = column(choice.k, choice.selection)
        value = (outcome.scores[name].value or 0.0) / 100
        outcome.items[f"pseudo_value/{name}"] = pseudo_values(value, influences[choice.k, choice.cost])


def _add_sets(outcome: Outcome, draws: Sequence[Draw]) -> None:
    import torch

    for draw in draws:
        key = f"sets/sample{draw.index + 1}_k{draw.k}"
        outcome.tensors[f"{key}/rows"] = torch.from_numpy(draw.rows)
        outcome.tensors[f"{key}/labels"] = torch.from_numpy(draw.labels)


# ---- choice and report -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """The layer and cost behind one score."""

    selection: Selection
    k: int
    layer: str
    cost: float


def choose(results: Mapping[str, LayerResult], params: LowShotParams) -> list[Choice]:
    """One cost per selection and k, shared by classes and sets, the first maximum; one layer per selection.

    The layer is the one of feature1 … feature5, or of all outputs where there is none of them, with the highest mean
    over k of the selection's criterion: test mAP for `oracle`, mAP outside the sets for the others.
    """
    candidates = [name for name in results if name in FEATURE_MAPS] or list(results)
    fixed = np.full(len(params.k), params.costs.index(params.fixed_cost))
    choices = []
    for selection in SELECTIONS:
        mean, layer, indices = -1.0, "", fixed
        for name in candidates:
            # A k whose sets leave no positive outside has no held-out value: any cost is as good.
            by_cost = (
                results[name].test_map.mean(0) if selection == "oracle" else np.nan_to_num(results[name].heldout_map)
            )
            index = fixed if selection == "fixed" else by_cost.argmax(-1)
            of_layer = float(np.take_along_axis(by_cost, index[:, None], -1).mean())
            if of_layer > mean:
                mean, layer, indices = of_layer, name, index
        choices += [Choice(selection, k, layer, params.costs[i]) for k, i in zip(params.k, indices, strict=True)]
    return choices


def _report(
    params: LowShotParams,
    results: Mapping[str, LayerResult],
    choices: Sequence[Choice],
    classes: Sequence[str],
    test_items: int,
    drawn: Sequence[str],
    outcome: Outcome,
) -> None:
    """Fill scores, per-class values and runs.

    Args:
        drawn: hash of each set, so that encoders are compared set by set.
    """
    chosen: list[dict[str, object]] = []
    of_sets: list[dict[str, object]] = [{"trial": index, "drawn": label} for index, label in enumerate(drawn)]
    for choice in choices:
        name = column(choice.k, choice.selection)
        ap = results[choice.layer].test[0][:, params.k.index(choice.k), params.costs.index(choice.cost)]  # (sets, C)
        outcome.scores[name] = Score(
            value=100 * float(ap.mean()),
            std=100 * float(ap.mean(-1).std()),
            n=test_items,
            selection=f"{choice.layer}, C={choice.cost:g}; {SELECTIONS[choice.selection]}",
        )
        outcome.per_class[name] = dict(zip(classes, map(float, 100 * ap.mean(0)), strict=True))
        for of_set, value in zip(of_sets, ap.mean(-1), strict=True):
            of_set[name] = 100 * float(value)
        cell = {"score": name, "column": choice.layer, "k": choice.k, "cost": choice.cost}
        chosen.append({**cell, **_over_sets(100 * ap.mean(-1))})
    for layer, result in results.items():
        for ki, k in enumerate(params.k):
            for i, cost in enumerate(params.costs):
                heldout = float(result.heldout_map[ki, i])
                outcome.runs.append(
                    {
                        "column": layer,
                        "k": k,
                        "cost": cost,
                        **_over_sets(100 * result.test_map[:, ki, i]),
                        "map_sklearn": 100 * float(result.test[1, :, ki, i].mean()),
                        "map_11point": 100 * float(result.test[2, :, ki, i].mean()),
                        "heldout_map": 100 * heldout if np.isfinite(heldout) else None,
                    }
                )
    outcome.runs += [*chosen, *of_sets]


def _over_sets(of_sets: Floats) -> dict[str, float]:
    """Of (sets,) mean average precisions; the spread is that of the population, as in the published script."""
    return {
        "map": float(of_sets.mean()),
        "map_min": float(of_sets.min()),
        "map_max": float(of_sets.max()),
        "map_std": float(of_sets.std()),
    }

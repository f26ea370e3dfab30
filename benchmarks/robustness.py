"""Robustness: one classifier fitted on ImageNet's train, scored on val and on seven other test sets, each by its rule.

Every test set has a protocol, and so a record, of its own. They share the features of train and the classifier, which
is fitted once for each encoder and kept in the folder of heads. `encoder-bench robustness` runs all that are
there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from benchmarks.datasets.imagenet_variants import CORRUPTIONS, SEVERITIES, alexnet_errors, wordnet_ids
from benchmarks.task import FeatureTask, InputError, Labels, Outcome, Outputs, RunOptions, Split, progress
from benchmarks.training.task import Positive, require_images, split_held_out
from results.schema import Geometry, Params, Protocol, Score, Source, canonical_sha256

if TYPE_CHECKING:
    import torch

log = logging.getLogger("benchmarks")

TOP1, TOP5, MCE = "Top-1", "Top-5", "mCE"
SPLIT_SEED = 0  # chooses the held-out items
HEADS = ("AvgPool", "Stored", "Logistic")  # in the files of heads that linear classifiers of `embed` leave
FACTS = ("cost", "heldout_top1", "gradient")  # of a fit, kept with the head
CELLS = 2**25  # scores in memory at a time, rows times classes


class RobustnessParams(Params):
    """The numbers of a robustness protocol.

    Attributes:
        head: what is fitted on train: `logistic` regression, `knn`, or nothing where the encoder came with a classifier
            of its `own`.
        costs: C of logistic regression, chosen on a held-out part of train.
        heldout: fraction of train that is held out.
        k, temperature: neighbours, and T of their weights exp(cosine / T).
        corruption_error: also report the corruption error, in units of AlexNet's.
        classifier: SHA-256 of the encoder's own classifier.
    """

    unlabelled = frozenset({"classifier"})

    head: Literal["logistic", "knn", "own"]
    output: str = "embed"
    costs: tuple[Positive, ...] = ()
    heldout: float = Field(0.1, gt=0, lt=1)
    max_iterations: int = Field(1000, gt=0)
    tolerance: Positive = 1e-4
    k: int = Field(20, ge=1)
    temperature: Positive = 0.07
    corruption_error: bool = False
    classifier: str = ""

    def columns(self) -> tuple[str, ...]:
        return (TOP1, TOP5, *((MCE,) if self.corruption_error else ()))

    def selection(self) -> str:
        return {
            "logistic": "C chosen on a held-out part of train, then fitted on all of it",
            "knn": "fixed k",
            "own": "the encoder's own classifier",
        }[self.head]


# ---- protocols -------------------------------------------------------------------------------------------------------

_SHORTER_256 = Geometry(mode="shorter", resize=256, crop=224)
# Test set -> data set, the geometry of its images where it is not that of train, what its score is.
TEST_SETS: Mapping[str, tuple[str, Geometry | None, str]] = {
    "val": ("imagenet", None, "accuracy"),
    "real": ("imagenet_real", None, "accuracy, any of the labels; images without labels left out"),
    "v2": ("imagenet_v2", None, "accuracy"),
    "a": ("imagenet_a", None, "accuracy among the 200 classes of the set"),
    "r": ("imagenet_r", None, "accuracy among the 200 classes of the set"),
    "sketch": ("imagenet_sketch", None, "accuracy"),
    "objectnet": (
        "objectnet",
        _SHORTER_256.model_copy(update={"border": 2}),  # the red border around every image
        "accuracy, any of the folder's ImageNet classes, among all 1000",
    ),
    "c": ("imagenet_c", Geometry(mode="shorter", resize=0, crop=224), "accuracy, mean over corruptions and severities"),
}  # fmt: skip
_COSTS = tuple(10.0**power for power in range(-6, 6))
_HEADS = {
    "logistic": (RobustnessParams(head="logistic", costs=_COSTS), "12 values of C from 1e-6 to 1e5"),
    "knn": (RobustnessParams(head="knn"), "the 20 nearest neighbours as in knn.mmselfsup@1"),
    "own": (RobustnessParams(head="own"), "the classifier that came with the encoder"),
}


def _protocol(
    test_set: str, variant: str, params: RobustnessParams, dataset: str, metric: str, note: str, **geometries: Any
) -> Protocol:
    return Protocol.of(
        params,
        benchmark=f"robustness_{test_set}",
        variant=variant,
        harness="robustness",
        dataset=dataset,
        train_split="val" if params.head == "own" else "train",  # nothing is trained, so nothing else is extracted
        test_split="val",
        primary=TOP1,
        metric=metric,
        source=Source(repository="this project", note=note),
        **geometries,
    )


PROTOCOLS = (
    *(
        _protocol(
            name,
            variant,
            params.changed(corruption_error=name == "c"),
            dataset,
            metric,
            f"{about}; the rule of each test set as its authors and users state it, AlexNet's errors as in "
            "facebookresearch/dinov3@6876159, the border of ObjectNet cut as by common readers of it",
            geometry=(geometry or _SHORTER_256) if variant == "own" else _SHORTER_256,
            test_geometry=None if variant == "own" else geometry,
        )
        for variant, (params, about) in _HEADS.items()
        for name, (dataset, geometry, metric) in TEST_SETS.items()
    ),
    *(
        _protocol(
            name,
            "demo",
            RobustnessParams(head="logistic", costs=(1e-2, 1e-1, 1.0, 10.0, 100.0), heldout=0.2),
            dataset,
            metric,
            "robustness_*.logistic@1 on the embedded single drawings and their corruptions, with five values of C",
            geometry=Geometry(mode="shorter", resize=48, crop=48),  # uncropped, and the corrupted ones as they are
        )
        for name, dataset, metric in (
            ("val", "drawings", "accuracy"),
            ("c", "drawings_c", "accuracy, mean over corruptions and severities"),
        )
    ),
)


# ---- benchmark -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Robustness(FeatureTask[RobustnessParams]):
    """One ImageNet classifier scored on val, ReaL, V2, A, R, Sketch, ObjectNet and C, each by its own rule."""

    classifier: Path | None = None
    """file with a classifier: the encoder's checkpoint with fc.weight and fc.bias, or the .heads.safetensors beside a
    record of linear, linear-stored or logistic on ImageNet; scores it by robustness_*.own, every test set unless
    --protocol names one"""

    name = "robustness"
    Params = RobustnessParams
    protocols = PROTOCOLS
    suite = True

    def suite_variant(self) -> str:
        """Of all test sets: a classifier that is given is what they score."""
        return "own" if self.classifier is not None else super().suite_variant()

    def outputs(self, protocol: Protocol) -> Outputs:
        output = self.params(protocol).output
        return {output: (output, None)}

    def resolve(self, protocol: Protocol) -> Protocol:
        """Put the hash of the encoder's own classifier into the protocol.

        Raises:
            InputError: --classifier without a protocol that uses it, or the other way round.
        """
        if self.params(protocol).head != "own":
            if self.classifier is not None:
                raise InputError(f"{protocol.id} fits its own classifier: omit --classifier, or use "
                                 f"--protocol {protocol.benchmark}.own")  # fmt: skip
            return protocol
        if self.classifier is None:
            raise InputError(f"{protocol.id} scores the classifier that came with the encoder: give its file with "
                             "--classifier")  # fmt: skip
        weight, bias = read_classifier(self.classifier)
        return protocol.changed(classifier=canonical_sha256([_digest(weight.numpy()), _digest(bias.numpy())]))

    def check(self, protocol: Protocol, train: Labels, test: Labels) -> None:
        """Raises InputError for empty splits, several labels per training image, or classes that train lacks."""
        params = self.params(protocol)
        require_images(protocol, train, test)
        if params.head == "own":
            return
        if train.targets.ndim != 1:
            raise InputError(f"{protocol.id}: each training image needs exactly one class")
        missing = sorted(set(test.classes) - set(train.classes))
        if missing:
            raise InputError(
                f"{protocol.id}: the train split lacks {len(missing)} classes of {protocol.dataset} "
                f"({', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}); use the complete ImageNet"
            )
        if params.head == "logistic":
            split_held_out(protocol, train, params.heldout, SPLIT_SEED)
        elif params.k > len(train):
            raise InputError(
                f"{protocol.id} needs k={params.k} neighbours, but train has {len(train)} images: use a smaller k"
            )

    def run(self, protocol: Protocol, train: Split, test: Split, options: RunOptions) -> Outcome:
        """Score `test` with the classifier that is fitted on `train`, or read from the folder of heads.

        Raises:
            InputError: see `check`; also a classifier or features that do not fit.
        """
        self.check(protocol, train.labels, test.labels)
        params = self.params(protocol)
        outcome, began = Outcome(seeds=(SPLIT_SEED,)), time.perf_counter()
        if params.head == "knn":
            classes, scores = train.labels.classes, partial(_knn_scores, params, train, test, options, outcome)
        else:
            head = self._head(params, train, test, options, protocol)
            classes, scores = head.classes, partial(head.scores, test.features[params.output], options)
            outcome.runs.append(dict(head.facts))
        outcome.timing["fit"] = time.perf_counter() - began
        place = {name: index for index, name in enumerate(classes)}
        named = np.array([place[name] for name in test.labels.classes], np.int64)
        hits = {depth: np.zeros(len(test.labels), bool) for depth in (1, 5)}
        began = time.perf_counter()
        for rows, part in scores():
            for depth, found in ranked_right(part[:, named], test.labels.targets[rows]).items():
                hits[depth][rows] = found
        outcome.timing["score"] = time.perf_counter() - began
        for column, depth in ((TOP1, 1), (TOP5, 5)):
            outcome.add_accuracy(column, hits[depth], protocol.selection)
        if params.corruption_error or protocol.benchmark.endswith("_c"):
            self._corruptions(params, test.labels, hits[1], outcome, protocol)
        return outcome

    @staticmethod
    def _corruptions(
        params: RobustnessParams, labels: Labels, right: NDArray[np.bool_], outcome: Outcome, protocol: Protocol
    ) -> None:
        """Accuracy by corruption; and the corruption error where all corruptions and severities are there."""
        from benchmarks.solvers.average_precision import pseudo_values

        named = ["/".join(id.split("/", 2)[:2]) for id in labels.ids]
        cells, cell_of = np.unique(named, return_inverse=True)
        sizes = np.bincount(cell_of)
        accuracy = np.bincount(cell_of, right) / sizes
        corruption_of = np.array([cell.partition("/")[0] for cell in cells])
        by_corruption = {
            str(name): 100 * float(accuracy[corruption_of == name].mean()) for name in dict.fromkeys(corruption_of)
        }
        outcome.per_class[TOP1] = by_corruption
        if not params.corruption_error:
            return
        if set(by_corruption) != set(CORRUPTIONS) or len(cells) != len(CORRUPTIONS) * len(SEVERITIES):
            outcome.scores[MCE] = Score(value=None, n=len(labels), selection=protocol.selection)
            return
        weight = np.array([100 / alexnet_errors()[name] for name in corruption_of]) / len(cells)
        error = float(weight @ (1 - accuracy))
        outcome.scores[MCE] = Score(value=100 * error, n=len(labels), selection=protocol.selection)
        influence = weight[cell_of] * (accuracy[cell_of] - right) / sizes[cell_of]
        outcome.items[f"pseudo_value/{MCE}"] = pseudo_values(error, influence)

    def _head(
        self, params: RobustnessParams, train: Split, test: Split, options: RunOptions, protocol: Protocol
    ) -> LinearHead:
        width = test.features[params.output].shape[1]
        if params.head == "own":
            assert self.classifier is not None  # `resolve` has asked for it
            weight, bias = read_classifier(self.classifier)
            classes = wordnet_ids() if len(weight) == len(wordnet_ids()) else test.labels.classes
            if weight.shape != (len(classes), width):
                raise InputError(
                    f"{self.classifier}: the classifier has {weight.shape[0]} classes and {weight.shape[1]} inputs, "
                    f"but there are {len(classes)} classes and {params.output} has {width} columns"
                )
            return LinearHead(weight, bias, classes, {"head": "own"})
        return fitted_head(params, train, options, protocol)


def ranked_right(scores: NDArray[np.floating[Any]], targets: NDArray[Any]) -> dict[int, NDArray[np.bool_]]:
    """depth -> (N,) whether a right class is among the best 1 or 5.

    Equal scores go to the smaller class index. A score of 0 or below in a vote is no vote: see `_knn_scores`.

    Args:
        scores: (N, C) of the classes that may be named; -inf for one that is not.
        targets: (N,) the right class, or (N, C) 1 for each right class.
    """
    rows = np.arange(len(scores))
    depth = min(5, scores.shape[1])
    if targets.ndim == 1:
        own = scores[rows, targets][:, None]
        ahead = (scores > own) | ((scores == own) & (np.arange(scores.shape[1]) < targets[:, None]))
        rank, named = ahead.sum(1), ~np.isneginf(own[:, 0])
        return {1: named & (rank < 1), 5: named & (rank < 5)}
    best = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
    right = (np.take_along_axis(targets, best, 1) == 1) & ~np.isneginf(np.take_along_axis(scores, best, 1))
    return {1: right[:, 0], 5: right.any(1)}


def _row_blocks(count: int, classes: int) -> Iterator[slice]:
    step = max(1, CELLS // classes)
    return (slice(start, min(count, start + step)) for start in range(0, count, step))


# ---- linear heads ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LinearHead:
    """A linear classifier: (C, D) weight and (C,) bias for features as they are, class names, and facts of the fit."""

    weight: torch.Tensor
    bias: torch.Tensor
    classes: tuple[str, ...]
    facts: Mapping[str, float | str | bool] = field(default_factory=dict)

    def scores(
        self, features: NDArray[np.float32], options: RunOptions
    ) -> Iterator[tuple[slice, NDArray[np.floating[Any]]]]:
        """Rows and their (n, C) scores."""
        import torch

        weight, bias = self.weight.to(options.device), self.bias.to(options.device)
        blocks = list(_row_blocks(len(features), len(bias)))
        for rows in progress(blocks, "scoring", show=options.progress):
            x = torch.tensor(features[rows], device=options.device)  # a copy: the store's arrays are read-only
            yield rows, torch.nn.functional.linear(x, weight, bias).cpu().numpy()


def read_classifier(file: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """(C, D) weight and (C,) bias of the last linear layer of a checkpoint, or of a benchmark's head; float32.

    Raises:
        InputError: the file cannot be read, it has no or several candidates, or a head has a batch norm.
    """
    from pretrain.weight_files import read_weights

    every = {f"{path}/{key}".lstrip("/"): tensor for path, of in read_weights(file).tensors.items()
             for key, tensor in of.items()}  # fmt: skip
    for name in HEADS:
        if f"{name}/weight" in every and f"{name}/bias" in every:
            if any(key.startswith(f"{name}/bn.") for key in every):
                raise InputError(
                    f"{file}: the head {name} has a batch norm, so that its linear layer alone is another classifier; "
                    "give a head of a protocol without one"
                )
            return every[f"{name}/weight"].float(), every[f"{name}/bias"].float()
    names = ("fc", "classifier", "head", "head.fc", "heads.head", "classifier.1", "classifier.3", "linear")
    found = [
        key.removesuffix(".weight")
        for key, tensor in every.items()
        if tensor.ndim == 2
        and key.rpartition("/")[2].removeprefix("module.").removesuffix(".weight") in names
        and every.get(key.removesuffix("weight") + "bias") is not None
        and every[key.removesuffix("weight") + "bias"].shape == tensor.shape[:1]
    ]
    if len(found) != 1:
        raise InputError(
            f"{file} has {'no' if not found else 'several'} linear classifiers with weight and bias"
            f"{': ' + ', '.join(found) if found else ''}; expected one under a name such as fc, classifier or head"
        )
    return every[f"{found[0]}.weight"].float(), every[f"{found[0]}.bias"].float()


def fitted_head(params: RobustnessParams, train: Split, options: RunOptions, protocol: Protocol) -> LinearHead:
    """Logistic regression on train, C chosen on a held-out part: fitted now, or when another test set was measured."""
    from safetensors.torch import save

    from results.files import write_file

    rows, targets = train.features[params.output], train.labels.targets
    identity = [_source(rows), _digest(targets), train.labels.classes, params.costs, params.heldout, params.tolerance]
    key = canonical_sha256([*identity, params.max_iterations, "logistic"])[:16]
    file = options.records.parent / "heads" / f"robustness-{key}.safetensors"
    shape = len(train.labels.classes), rows.shape[1]
    kept = _kept_head(file.read_bytes(), shape) if file.is_file() else None
    if kept is not None:
        facts = {**dict(zip(FACTS, map(float, kept["facts"]), strict=True)), "refitted": False}
        return LinearHead(kept["weight"], kept["bias"], train.labels.classes, facts)
    if file.is_file():
        log.warning("%s is not the head that was written there; it is fitted again", file)
    head = _fit(params, train, options, protocol)
    import torch

    facts_row = torch.tensor([float(head.facts[name]) for name in FACTS], dtype=torch.float64)
    tensors = {"weight": head.weight, "bias": head.bias, "facts": facts_row}
    write_file(file, save({**tensors, "sha256": _checksum(tensors)}))
    return head


def _kept_head(content: bytes, shape: tuple[int, int]) -> dict[str, torch.Tensor] | None:
    """The tensors of a head that was written whole; None of a file that is damaged, or of a head without a checksum."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        kept = load(content)
    except SafetensorError:
        return None
    checksum = kept.pop("sha256", None)
    found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in kept.items()}
    single, double = torch.float32, torch.float64
    whole = {"weight": (shape, single), "bias": (shape[:1], single), "facts": ((len(FACTS),), double)}
    return kept if found == whole and checksum is not None and torch.equal(checksum, _checksum(kept)) else None


def _checksum(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    import torch

    text = canonical_sha256([_digest(tensors[name].numpy()) for name in sorted(tensors)])
    return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)


def _fit(params: RobustnessParams, train: Split, options: RunOptions, protocol: Protocol) -> LinearHead:
    from benchmarks.solvers.logistic import fit_logistic

    rows, targets, classes = train.features[params.output], train.labels.targets, len(train.labels.classes)
    kept, held = split_held_out(protocol, train.labels, params.heldout, SPLIT_SEED)
    fit = partial(
        fit_logistic,
        rows,
        targets,
        classes,
        device=options.device,
        tolerance=params.tolerance,
        max_iterations=params.max_iterations,
        track=lambda passes, about: progress(passes, about, show=options.progress),
    )
    path = fit(params.costs, sample_rows=kept)
    right = (path.ranks(rows, targets, held) < 1).double().mean(1)
    chosen = int(np.argmax(right.numpy()))  # the first of equals, which is the most regularised
    final = fit(params.costs[chosen : chosen + 1], start=path.select([chosen]))
    facts = {"cost": params.costs[chosen], "heldout_top1": 100 * float(right[chosen])}
    facts |= {"gradient": float(final.gradient[0]), "refitted": True}
    log.info("C = %g, %.2f%% of the held-out part", facts["cost"], facts["heldout_top1"])
    weight, bias = final.weights[0].float().cpu().contiguous(), final.bias[0].float().cpu().contiguous()
    return LinearHead(weight, bias, train.labels.classes, facts)


def _digest(array: NDArray[Any]) -> str:
    import hashlib

    content = np.ascontiguousarray(array)
    return hashlib.sha256(f"{content.dtype.str}{content.shape}".encode() + content.tobytes()).hexdigest()


def _source(rows: NDArray[Any]) -> str:
    """What identifies stored features: their file, which is named after all that they depend on; else their content."""
    if isinstance(rows, np.memmap) and rows.filename is not None:
        file = Path(rows.filename)
        return f"{file.parent.name}/{file.name} {file.stat().st_mtime_ns}"
    return _digest(rows)


# ---- nearest neighbours ----------------------------------------------------------------------------------------------


def _knn_scores(
    params: RobustnessParams, train: Split, test: Split, options: RunOptions, outcome: Outcome
) -> Iterator[tuple[slice, NDArray[np.floating[Any]]]]:
    """Rows and their (n, C) votes exp(cosine / T) of the k nearest; -inf for a class without a vote."""
    from benchmarks.solvers.exact_knn import exact_knn

    found = exact_knn(
        train.features[params.output],
        test.features[params.output],
        params.k,
        device=options.device,
        track=partial(progress, show=options.progress),
    )
    outcome.runs.append({"engine": found.engine})
    classes = len(train.labels.classes)
    neighbour_classes = train.labels.targets[found.indices]
    for rows in _row_blocks(len(test.labels), classes):
        weights = np.exp((found.similarities[rows] - found.similarities[rows, :1]) / params.temperature)
        votes = np.zeros((len(weights), classes))
        np.add.at(votes, (np.arange(len(weights))[:, None], neighbour_classes[rows]), weights)
        yield rows, np.where(votes > 0, votes, -np.inf)

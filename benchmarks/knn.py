"""k-nearest-neighbour classification on frozen features: protocols, checks, one search, votes for every k, scores."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from benchmarks.solvers import Engine
from benchmarks.task import FeatureTask, InputError, Labels, Outcome, Outputs, RunOptions, Split, log_once, progress
from results.errors import first_few
from results.schema import Counts, Geometry, Params, Protocol, Source

if TYPE_CHECKING:
    from benchmarks.solvers.exact_knn import Neighbours

log = logging.getLogger("benchmarks")

# For the estimate of time, measured on a CPU: operations of a float32 product that take as long as one of the product
# of all pairs in half precision, and as scoring a candidate takes for each number of its features and besides.
PAIR, CANDIDATE_NUMBER, CANDIDATE = 0.8, 16, 30_000

# Images with the same features, to the rounding of float32, and the share of them that is worth a warning
SAME_FEATURES, MANY_COPIES = 1e-12, 0.1

Norms = Callable[[NDArray[np.float32]], NDArray[np.float64]]


class KnnParams(Params):
    """The numbers of a kNN protocol.

    Attributes:
        k: neighbour counts, each a column; all come from one search.
        temperature: T of a neighbour's weight exp(similarity / T).
        normalise: divide rows by their L2 norm, so that the similarity is the cosine; else it is the dot product.
        features: the encoder output that is compared.
        top: a hit at 5 is the true class among the five classes with the most votes.
        exclude_self: a query that is itself in the gallery is not its own neighbour.
    """

    k: Counts
    temperature: float = Field(gt=0, allow_inf_nan=False)
    normalise: bool
    features: str
    top: Counts
    exclude_self: bool

    def columns(self) -> tuple[str, ...]:
        """One per depth and k."""
        return tuple(column(k, top) for top in self.top for k in self.k)


def column(k: int, top: int) -> str:
    """The table column of `k` neighbours: `k=20` for top-1, `k=20 top-5` for top-5."""
    return f"k={k}" if top == 1 else f"k={k} top-{top}"


def _protocol(variant: str, params: KnnParams, dataset: str, geometry: Geometry, source: Source) -> Protocol:
    return Protocol.of(
        params,
        benchmark="knn",
        variant=variant,
        harness="knn",
        dataset=dataset,
        train_split="train",
        test_split="test" if dataset == "cifar10" else "val",
        geometry=geometry,
        primary="k=20" if 20 in params.k else "k=200",
        metric="accuracy",
        selection="fixed k",
        source=source,
    )


_SHORTER_256 = Geometry(mode="shorter", resize=256, crop=224)
_POOLED = KnnParams(
    k=(10, 20, 100, 200), temperature=0.07, normalise=True, features="embed", top=(1, 5), exclude_self=True
)

PROTOCOLS = (
    _protocol(
        "mmselfsup",
        _POOLED,  # --num-knn 10 20 100 200, --temperature 0.07; normalised inside the classifier
        "imagenet",
        _SHORTER_256,
        Source(
            repository="open-mmlab/mmselfsup",
            revision="0.x@6faad81",
            note="tools/benchmarks/classification/knn_imagenet/test_knn.py, mmselfsup/models/utils/knn_classifier.py: "
            "features of the last stage after global average pooling",
        ),
    ),
    _protocol(
        "dino",
        _POOLED,  # --nb_knn 10 20 100 200, --temperature 0.07
        "imagenet",
        Geometry(mode="shorter", resize=256, crop=224, interpolation="bicubic"),  # Resize(256, interpolation=3)
        Source(
            repository="facebookresearch/dino",
            revision="7c446df",
            note="eval_knn.py: backbone output with fc removed",
        ),
    ),
    _protocol(
        "lemniscate",
        KnnParams(k=(200,), temperature=0.07, normalise=True, features="head", top=(1, 5), exclude_self=True),
        "imagenet",
        _SHORTER_256,
        Source(
            repository="zhirongw/lemniscate.pytorch",
            revision="f7cfe29",
            note="test.py kNN with recompute_memory: 128-d normalised head, K 200, sigma 0.07 on ImageNet. Its default "
            "compares with the memory bank of training, which a checkpoint does not hold",
        ),
    ),
    _protocol(
        "vissl",
        KnnParams(k=(200,), temperature=0.1, normalise=False, features="head", top=(1, 5), exclude_self=True),
        "imagenet",
        _SHORTER_256,
        Source(
            repository="facebookresearch/vissl",
            revision="09270ed",
            note="vissl/config/defaults.yaml NEAREST_NEIGHBOR: TOPK 200, SIGMA 0.1, L2_NORM_FEATS False; the shipped "
            "configuration compares 128-d outputs of the MLP head",
        ),
    ),
    _protocol(
        "cifar_notebook",
        KnnParams(k=(200,), temperature=0.1, normalise=True, features="head", top=(1,), exclude_self=True),
        "cifar10",
        Geometry(mode="shorter", resize=32, crop=32),  # the pictures as they are: 32 x 32
        Source(
            repository="facebookresearch/moco",
            revision="colab-notebook",
            note="colab/moco_cifar10_demo.ipynb: --knn-k 200, --knn-t 0.1, 128-d normalised head",
        ),
    ),
    _protocol(
        "demo",
        _POOLED,
        "drawings",
        Geometry(mode="shorter", resize=48, crop=48),  # uncropped: a drawing may lie anywhere in its picture
        Source(repository="this project", note="knn.mmselfsup@1 on the embedded single drawings"),
    ),
    _protocol(
        "imagefolder",
        _POOLED,
        "imagefolder",
        _SHORTER_256,
        Source(repository="this project", note="knn.mmselfsup@1 on any ImageFolder; k may not exceed its gallery"),
    ),
)


@dataclass(frozen=True)
class Knn(FeatureTask[KnnParams]):
    """Weighted k-nearest-neighbour classification on frozen features (Wu et al. 2018, section 3.4)."""

    engine: Engine = "auto"
    """search engine: auto (fastest here), torch or faiss; results are identical"""

    name = "knn"
    Params = KnnParams
    protocols = PROTOCOLS

    def __post_init__(self) -> None:
        """Raises InputError where the engine is not installed."""
        if self.engine == "faiss" and find_spec("faiss") is None:
            raise InputError("--engine faiss needs faiss: install faiss-cpu, or use --engine torch")

    def outputs(self, protocol: Protocol) -> Outputs:
        name = self.params(protocol).features
        return {name: (name, None)}

    def adapted(self, protocol: Protocol, train: Labels, test: Labels) -> Protocol:
        """On the user's own image folder, leave out every k that exceeds the gallery."""
        params = self.params(protocol)
        available = self._available(params, train, test)
        if protocol.variant != "imagefolder" or "k=" in "".join(protocol.overrides) or params.k[-1] <= available:
            return protocol
        k = tuple(each for each in params.k if each <= available) or ((available,) if available else ())
        if not k:
            return protocol
        log_once(f"the gallery has {available} images: k = {_listed(k)} instead of {_listed(params.k)}")
        return protocol.changed(k=k)

    @staticmethod
    def _available(params: KnnParams, train: Labels, test: Labels) -> int:
        """Gallery images that every query can choose from."""
        return len(train) - int(params.exclude_self and bool((_own_rows(train, test) >= 0).any()))

    def check(self, protocol: Protocol, train: Labels, test: Labels) -> None:
        """Raises InputError for an empty split, several labels per image, unknown classes, or k above the gallery."""
        params = self.params(protocol)
        for labels, split in ((train, "train"), (test, "test")):
            if not len(labels):
                raise InputError(f"the {split} split is empty: kNN needs at least one image in it")
            if labels.targets.ndim != 1:
                raise InputError(f"the {split} split has several labels per image: kNN classifies single-label sets")
        missing = [name for name in test.classes if name not in set(train.classes)]
        if missing:
            raise InputError(
                f"the test split has classes that the train split lacks ({first_few(missing)}): use splits of one data "
                "set"
            )
        available = self._available(params, train, test)
        if params.k[-1] > available:
            raise InputError(
                f"{protocol.id} asks for k={params.k[-1]}, but the gallery has only {available} images to choose from: "
                f"use k up to {available}"
            )

    def flops(self, protocol: Protocol, train: Labels, test: Labels, width: int) -> float:
        """The product of all pairs, and the candidates that it proposes."""
        from benchmarks.solvers.exact_knn import SPARE

        candidates = min(len(train), 2 * self.params(protocol).k[-1] + SPARE)
        each = PAIR * 2 * len(train) * width + candidates * (CANDIDATE_NUMBER * width + CANDIDATE)
        return len(test) * each

    def run(self, protocol: Protocol, train: Split, test: Split, options: RunOptions) -> Outcome:
        """Classify `test` by the nearest rows of `train`.

        Raises:
            InputError: see `check`; also features that are missing, of the wrong shape, not finite or zero.
        """
        from benchmarks.solvers.exact_knn import vote_ranks
        from pretrain import distributed

        distributed.join(options.device)
        self.check(protocol, train.labels, test.labels)
        params = self.params(protocol)
        norms, exact_knn = _solvers(options.device)
        gallery, gallery_norms = _features(train, params.features, "train", norms)
        queries, query_norms = _features(test, params.features, "test", norms)
        if gallery.shape[1] != queries.shape[1]:
            raise InputError(
                f"{params.features} has {gallery.shape[1]} columns in the train split and {queries.shape[1]} in the "
                "test split: extract both with the same encoder"
            )
        excluded = _own_rows(train.labels, test.labels) if params.exclude_self else np.full(len(queries), -1, np.int64)

        began = time.perf_counter()
        found = exact_knn(
            gallery,
            queries,
            params.k[-1],
            normalise=params.normalise,
            excluded=excluded,
            engine=self.engine,
            device=options.device,
            gallery_norms=gallery_norms,
            query_norms=query_norms,
            track=partial(progress, show=options.progress and distributed.rank() == 0),
        )
        searched = time.perf_counter()
        if params.normalise:
            _warn_of_copies(found.similarities[:, 0])
        ranks = vote_ranks(
            found.similarities,
            train.labels.targets[found.indices],
            _targets_in(train.labels.classes, test.labels),
            ks=params.k,
            temperature=params.temperature,
            num_classes=len(train.labels.classes),
        )
        outcome = Outcome(timing={"search": searched - began, "vote": time.perf_counter() - searched})
        for top in params.top:
            for k in params.k:
                outcome.add_accuracy(column(k, top), ranks[k] < top, protocol.selection)
        outcome.runs.append(
            {
                "engine": found.engine,
                "fallbacks_float32": found.fallbacks["float32"],
                "fallbacks_float64": found.fallbacks["float64"],
                "self_matches_excluded": int((excluded >= 0).sum()),
            }
        )
        sheet = neighbour_sheet(train.labels, test.labels, found.indices)
        if sheet is not None:
            outcome.pictures["neighbours"] = sheet
        return outcome


def _warn_of_copies(nearest: NDArray[np.float64]) -> None:
    """Say so where many test images have a training image with the same features, which decides the result."""
    copies = int((nearest > 1 - SAME_FEATURES).sum())
    if copies >= MANY_COPIES * len(nearest):
        log.warning(
            "%s of %s test images have the same features as a training image: the splits share images, or the encoder "
            "does not tell images apart", f"{copies:,}", f"{len(nearest):,}",
        )  # fmt: skip


def _solvers(device: str) -> tuple[Norms, Callable[..., Neighbours]]:
    """The L2 norms of rows and the search: by this process, or by all ranks together where they run the benchmark."""
    from benchmarks.solvers.exact_knn import exact_knn, norms
    from pretrain import distributed

    if not distributed.joined():  # also in a training loop, whose ranks may not all call this
        return norms, exact_knn
    from benchmarks.solvers.sharded_knn import norms_of_all, sharded_knn

    return partial(norms_of_all, device=device), sharded_knn


def _features(split: Split, name: str, which: str, norms: Norms) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """The (N, D) features of a split and their (N,) L2 norms, once they can be compared."""
    if name not in split.features:
        raise InputError(
            f"the {which} split has no {name!r} features (it has {', '.join(sorted(split.features)) or 'none'}): "
            "choose an encoder with that output or another protocol"
        )
    features = split.features[name]
    if features.ndim != 2 or len(features) != len(split.labels):
        raise InputError(
            f"{name} of the {which} split has shape {features.shape} for {len(split.labels)} images: extract it again"
        )
    size = norms(features)
    with np.errstate(over="ignore"):
        as_float32 = size.astype(np.float32)  # the search works in float32, where a row of 1e-40 is zero
    for fault, bad in (
        ("NaN or infinite", ~np.isfinite(as_float32)),
        ("all-zero", as_float32 < np.finfo(np.float32).tiny),
    ):
        if bad.any():
            raise InputError(
                f"{name} of the {which} split is {fault} for {int(bad.sum())} of {len(bad)} images "
                f"({first_few([split.labels.ids[i] for i in np.flatnonzero(bad)])}): "
                "check these images and the encoder's weights"
            )
    return features, size


def _targets_in(classes: tuple[str, ...], test: Labels) -> NDArray[np.int64]:
    """(N,) test targets as indices into the train split's classes."""
    place = {name: i for i, name in enumerate(classes)}
    return np.array([place[name] for name in test.classes], np.int64)[test.targets]


def _own_rows(train: Labels, test: Labels) -> NDArray[np.int64]:
    """(N,) each test image's row in the gallery, or -1.

    An image is itself where both id and file agree: ids are unique within a split only, and two splits may both number
    their images from zero.
    """
    row = {id: i for i, id in enumerate(train.ids)}
    own = np.fromiter((row.get(id, -1) for id in test.ids), np.int64, count=len(test))
    for i in np.flatnonzero(own >= 0):  # paths of these only: to make a Path takes ten times as long as to find an id
        if train.paths[int(own[i])] != test.paths[int(i)]:
            own[i] = -1
    return own


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


# ---- picture: queries with their nearest neighbours ------------------------------------------------------------------

SHEET_QUERIES, SHEET_NEIGHBOURS, SHEET_SIDE = 10, 6, 96
SHEET_CELL, SHEET_DRAWN = (145, 165), 130  # pixels of an image with its title, and of the image's longer side
SHEET_LABEL = 30  # characters of a class name above a picture
# Blue and vermillion of Okabe and Ito, which colour-blind readers can tell apart; the titles say it too.
SAME, OTHER = "#0072B2", "#D55E00"


def neighbour_sheet(train: Labels, test: Labels, indices: NDArray[np.int64]) -> bytes | None:
    """A PNG with one query per row, followed by its nearest gallery images; frames show whether the class agrees.

    There is one query per class, or of classes evenly spread over all where there are many.

    Args:
        indices: (N, k) rows of `train` for every item of `test`, nearest first.

    Returns:
        None where an image cannot be opened: the numbers do not depend on the picture.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    rows = sheet_queries(test)
    shown = min(SHEET_NEIGHBOURS, indices.shape[1])
    try:
        pictures = [
            [_small(test.paths[row]), *(_small(train.paths[int(i)]) for i in indices[row, :shown])] for row in rows
        ]
    except InputError:
        return None
    (wide, high), dpi = SHEET_CELL, 100
    figure = Figure(figsize=(wide * (shown + 1) / dpi, high * len(rows) / dpi))
    axes = figure.add_axes((0, 0, 1, 1))  # one for all, in pixels: axes of its own for each image take seconds
    axes.set_axis_off()
    for line, (row, images) in enumerate(zip(rows, pictures, strict=True)):
        names = [test.classes[int(test.targets[row])]]
        names += [train.classes[int(train.targets[int(i)])] for i in indices[row, :shown]]
        for place, (image, name) in enumerate(zip(images, names, strict=True)):
            height, width = (SHEET_DRAWN * side / max(image.shape[:2]) for side in image.shape[:2])
            left, top = wide * (place + 0.5) - width / 2, high * (line + 0.55) - height / 2
            same = name == names[0]
            colour = "black" if place == 0 else SAME if same else OTHER
            mark = "query: " if place == 0 else "" if same else "not: "
            line_style = "-" if place == 0 or same else "--"
            axes.imshow(image, extent=(left, left + width, top + height, top), aspect="auto")
            frame = Rectangle((left, top), width, height, fill=False, color=colour, linewidth=2, linestyle=line_style)
            axes.add_patch(frame)
            text = f"{mark}{name}"
            text = text if len(text) <= SHEET_LABEL else f"{text[: SHEET_LABEL - 1]}…"
            size = min(8.0, 160 / len(text))  # points: a long name fits above its picture
            axes.text(left + width / 2, top - 6, text, color=colour, fontsize=size, ha="center")
    axes.set(xlim=(0, wide * (shown + 1)), ylim=(high * len(rows), 0))
    png = BytesIO()
    figure.savefig(png, format="png", dpi=dpi)
    return png.getvalue()


def sheet_queries(test: Labels) -> list[int]:
    """The first item of each class, of at most `SHEET_QUERIES` classes."""
    classes = np.unique(test.targets)
    spread = classes[np.linspace(0, len(classes) - 1, min(SHEET_QUERIES, len(classes))).round().astype(int)]
    return [int(np.flatnonzero(test.targets == c)[0]) for c in spread]


def _small(path: Path) -> NDArray[np.uint8]:
    from benchmarks.datasets.images import decode

    image = decode(path)
    image.thumbnail((SHEET_SIDE, SHEET_SIDE))
    return np.asarray(image)

"""Image retrieval by cosine: revisited Oxford and Paris (easy, medium, hard), and copies of Copydays."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from benchmarks.datasets.retrieval import DATABASE, QUERIES, WHITENING, WITH_OTHERS
from benchmarks.task import ImageTask, InputError, Labels, Outcome, Outputs, RunOptions, progress
from benchmarks.training.task import require_images
from results.errors import is_out_of_memory
from results.schema import Geometry, Params, Protocol, Score, Source

if TYPE_CHECKING:
    from PIL import Image

    from benchmarks.datasets.retrieval import Answers
    from benchmarks.encoders.encoder import Encoder

LEVELS = ("E", "M", "H")
COPIES = "mAP"
_MAP_COLUMN = "patches"  # the encoder output that is pooled besides `embed`


class RetrievalParams(Params):
    """The numbers of a retrieval protocol.

    Attributes:
        search: `revisited` has answers in three levels of difficulty; `copies` looks for the original of a copy.
        crop_queries: crop queries to the box of the object, as the authors require.
        scales: of the normalised image, interpolated bilinearly; the features of all scales are averaged.
        multiple: leave out pixels on the right and at the bottom, so that both sides are multiples of this and of the
            encoder's patch size, as DINO's patch embedding does.
        gem: exponent of the generalised mean of patch tokens that is appended to `embed`; 0 appends nothing.
        depth: database images that are ranked; 0 for all.
        whiten: by the mean and the second moments of images that the database has for this alone.
    """

    search: Literal["revisited", "copies"]
    crop_queries: bool = False
    scales: tuple[float, ...] = Field((1.0,), min_length=1)
    multiple: int = Field(1, ge=1)
    gem: float = Field(0.0, ge=0)
    depth: int = Field(0, ge=0)
    # Left out of the JSON at its default, so that older records keep their protocol's hash.
    whiten: bool = Field(False, exclude_if=lambda value: value is False)

    def columns(self) -> tuple[str, ...]:
        return (*LEVELS, "M mP@10", "H mP@10") if self.search == "revisited" else (COPIES,)


def _protocol(
    name: str, variant: str, dataset: str, params: RetrievalParams, geometry: Geometry, source: Source
) -> Protocol:
    return Protocol.of(
        params,
        benchmark=f"retrieval_{name}",
        variant=variant,
        revision=2 if params.search == "revisited" else 1,  # 1 made images smaller by bicubic resampling
        harness="retrieval",
        dataset=dataset,
        train_split=WITH_OTHERS if params.whiten else DATABASE,
        test_split=QUERIES,
        geometry=geometry,
        primary="M" if params.search == "revisited" else COPIES,
        metric="mean average precision",
        selection="nothing to choose",
        source=source,
    )


_DINO = Source(
    repository="facebookresearch/dino",
    revision="7c446df",
    note="eval_image_retrieval.py with ImageNet weights: longer side at most 224 (Lanczos), one scale, queries are not "
    "cropped",
)
_CROPPED = Source(
    repository="filipradenovic/revisitop",
    revision="be39832",
    note="queries cropped to the box as the authors ask, otherwise as retrieval_roxford5k.dino@2",
)
# `crop` is the longest side that an image keeps: it is made smaller, never larger, and not cut.
_LONGEST_224 = Geometry(mode="shorter", resize=0, crop=224, interpolation="lanczos")
_COPIES = RetrievalParams(search="copies", gem=4.0, depth=20)
_SQUASHED_320 = Geometry(mode="warp", resize=0, crop=320, interpolation="bicubic")
PROTOCOLS = (
    *(
        _protocol(
            name, variant, name, RetrievalParams(search="revisited", crop_queries=variant == "standard"), _LONGEST_224,
            source,
        )
        for variant, source in (("standard", _CROPPED), ("dino", _DINO))
        for name in ("roxford5k", "rparis6k")
    ),
    _protocol(
        "copydays", "standard", "copydays", _COPIES, _SQUASHED_320,
        Source(
            repository="facebookresearch/dino",
            revision="7c446df",
            note="eval_copy_detection.py on the block `strong`: 320 x 320, class token and generalised mean of the "
            "patch tokens (encoders without them: embed alone), no whitening and no distractors",
        ),
    ),
    _protocol(
        "copydays", "dino", "copydays", _COPIES.changed(whiten=True), _SQUASHED_320,
        Source(
            repository="facebookresearch/dino",
            revision="7c446df",
            note="as retrieval_copydays.standard@1, with distractors in the database, and whitened by the mean and the "
            "second moments (not the covariance, as its code has it) of other images; which images of YFCC100M its "
            "authors took is not published",
        ),
    ),
    _protocol(
        "drawings", "demo", "drawings_copies", _COPIES, Geometry(mode="warp", resize=0, crop=48),
        Source(repository="this project", note="retrieval_copydays.standard@1 on corrupted drawings"),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Retrieval(ImageTask[RetrievalParams]):
    """Image retrieval: revisited Oxford and Paris (easy, medium, hard), and copy detection on Copydays."""

    name = "retrieval"
    Params = RetrievalParams
    protocols = PROTOCOLS
    passes_per_step = 1
    suite = True

    def outputs(self, protocol: Protocol) -> Outputs:
        return {"embed": ("embed", None)}

    def check(self, protocol: Protocol, train: Labels, test: Labels) -> None:
        """Raises InputError for empty splits, and answers or targets that are not there."""
        require_images(protocol, train, test)
        if self.params(protocol).search == "revisited":
            if len(test.annotations) != 1:
                raise InputError(
                    f"{protocol.id} needs the ground truth of revisited Oxford or Paris: use one of these data sets"
                )
        elif test.targets.ndim != 1 or train.classes[: len(test.classes)] != test.classes:
            raise InputError(
                f"{protocol.id} needs queries and a database with the same classes: choose another data set"
            )

    def amount(self, protocol: Protocol, train: Labels, test: Labels) -> tuple[int, int]:
        """Every image at every scale, whose pixels are counted as images of full size."""
        pixels = sum(scale**2 for scale in self.params(protocol).scales)
        return 0, round(pixels * (len(train) + len(test)))

    def run(
        self, protocol: Protocol, encoder: Encoder, train: Labels, test: Labels, workdir: Path, options: RunOptions
    ) -> Outcome:
        """Rank the database `train` for every query of `test`.

        Raises:
            InputError: see `check`; also a damaged image, or an encoder that cannot take images of this size.
        """
        from benchmarks.datasets.retrieval import read_ground_truth

        self.check(protocol, train, test)
        params = self.params(protocol)
        truth = read_ground_truth(test.annotations[0]).answers if params.search == "revisited" else None
        boxes = [each.box for each in truth] if truth is not None and params.crop_queries else None
        began = time.perf_counter()
        database: NDArray[np.floating] = descriptors(encoder, train, protocol, params, options, None)
        queries: NDArray[np.floating] = descriptors(encoder, test, protocol, params, options, boxes)
        extracted = time.perf_counter()
        searched = np.arange(len(train))
        if params.whiten:
            learnt = np.array([id.startswith(f"{WHITENING}/") for id in train.ids])
            mean, matrix = whitening(database[learnt])
            searched = np.flatnonzero(~learnt)
            database, queries = ((rows - mean) @ matrix for rows in (database[searched], queries))
        database, queries = _unit(database), _unit(queries)
        order = np.argsort(-(queries @ database.T), axis=1, kind="stable")
        if params.depth:
            order = order[:, : params.depth]
        outcome = Outcome(timing={"extract": extracted - began})
        if truth is not None:
            _report_revisited(outcome, order, truth, protocol.selection)
        else:
            same = [np.flatnonzero(train.targets[searched] == target) for target in test.targets]
            none = np.zeros(0, np.int64)
            found = [_ap(row, own, none) for row, own in zip(order, same, strict=True)]
            _report(outcome, COPIES, found, protocol.selection)
        outcome.timing["rank"] = time.perf_counter() - extracted
        outcome.runs.append({"dimensions": database.shape[1], "patches": encoder.has(_MAP_COLUMN) and params.gem > 0})
        return outcome


def _ap(order: NDArray[np.integer], positives: NDArray[np.int64], junk: NDArray[np.int64]) -> float:
    from benchmarks.solvers.average_precision import ranks_without_junk, trapezoid_ap

    return trapezoid_ap(ranks_without_junk(order, positives, junk), len(positives)) if len(positives) else float("nan")


def levels(answers: Answers) -> dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Level -> positives and junk: easy; easy and hard; hard."""
    easy, hard, junk = answers.easy, answers.hard, answers.junk
    return {
        "E": (easy, np.concatenate([junk, hard])),
        "M": (np.concatenate([easy, hard]), junk),
        "H": (hard, np.concatenate([junk, easy])),
    }


def _report_revisited(outcome: Outcome, order: NDArray[np.integer], truth: Sequence[Answers], selection: str) -> None:
    from benchmarks.solvers.average_precision import precision_at, ranks_without_junk

    of_level = [levels(answers) for answers in truth]
    for level in LEVELS:
        _report(outcome, level, [_ap(row, *own[level]) for row, own in zip(order, of_level, strict=True)], selection)
        if level != "E":
            at_10 = [
                precision_at(ranks_without_junk(row, *own[level]), 10) if len(own[level][0]) else float("nan")
                for row, own in zip(order, of_level, strict=True)
            ]
            _report(outcome, f"{level} mP@10", at_10, selection)


def _report(outcome: Outcome, column: str, values: Sequence[float], selection: str) -> None:
    """The mean over queries that have positives."""
    found = np.array(values)
    known = ~np.isnan(found)
    if not known.any():
        outcome.scores[column] = Score(value=None, n=0, selection=selection)
        return
    mean = float(found[known].mean())
    outcome.scores[column] = Score(value=100 * mean, n=int(known.sum()), selection=selection)
    outcome.items[f"pseudo_value/{column}"] = np.where(known, found, mean).astype(np.float32)


# ---- descriptors -----------------------------------------------------------------------------------------------------


def descriptors(
    encoder: Encoder,
    labels: Labels,
    protocol: Protocol,
    params: RetrievalParams,
    options: RunOptions,
    boxes: Sequence[tuple[float, float, float, float]] | None,
) -> NDArray[np.float32]:
    """(N, D) descriptors, not yet normalised, one image at a time: images may keep their aspect.

    Raises:
        InputError: a damaged image, or an encoder that cannot take images of this size.
    """
    import torch
    from torch.nn import functional as F
    from torchvision.transforms import functional as TF

    from benchmarks.datasets.images import decode

    names = {"embed", *({_MAP_COLUMN} if params.gem and encoder.has(_MAP_COLUMN) else ())}
    whole = math.lcm(params.multiple, encoder.card.patch_size or 1)
    found: list[NDArray[np.float32]] = []
    with torch.inference_mode():
        for row in progress(range(len(labels)), f"{protocol.benchmark} images", show=options.progress):
            image = decode(labels.paths[row])
            if boxes is not None:
                image = image.crop(tuple(round(corner) for corner in boxes[row]))  # type: ignore[arg-type]
            x = encoder.normalise(TF.pil_to_tensor(_resized(image, protocol.geometry))[None])
            vectors = []
            for scale in params.scales:
                scaled = x if scale == 1 else F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)
                height, width = (max(1, side // whole) * whole for side in scaled.shape[2:])
                try:
                    outputs = encoder.outputs(scaled[:, :, :height, :width], names)
                except (RuntimeError, AssertionError, ValueError) as error:
                    if is_out_of_memory(error):
                        raise
                    size = f"{image.width} by {image.height}"
                    remedy = "choose an encoder that takes images of any size"
                    if encoder.card.patch_size is None:
                        remedy = "add --set multiple=N with its patch size N"
                    raise InputError(
                        f"{encoder.card.name} cannot take {labels.ids[row]} ({size}) under {protocol.id}: "
                        f"{' '.join(str(error).split())[:200]}; {remedy}"
                    ) from error
                vector = outputs["embed"].float()[0]
                if _MAP_COLUMN in names:
                    patches = outputs[_MAP_COLUMN].float()[0].clamp_min(1e-6)
                    vector = torch.cat([vector, patches.pow(params.gem).mean((-2, -1)).pow(1 / params.gem)])
                vectors.append(vector)
            found.append(torch.stack(vectors).mean(0).cpu().numpy())
    return np.stack(found)


def whitening(rows: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(D,) mean and (D, D) matrix of a principal component analysis of (N, D) rows, each component divided by its size.

    The matrix is of the rows' second moments, without their mean subtracted, as in DINO's code. Components below 1e-5
    of the largest count as that.
    """
    x = rows.astype(np.float64)
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    return x.mean(0), vectors / np.sqrt(np.maximum(values, 1e-5 * values.max()))


def _unit(rows: NDArray[np.floating]) -> NDArray[np.floating]:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1)


def _resized(image: Image.Image, geometry: Geometry) -> Image.Image:
    """Squashed, or with its longer side at most `geometry.crop`."""
    from benchmarks.datasets.images import apply_geometry
    from benchmarks.training.images import RESAMPLE

    if geometry.mode == "warp":
        return apply_geometry(image, geometry)
    image = image.copy()
    image.thumbnail((geometry.crop, geometry.crop), RESAMPLE[geometry.interpolation])
    return image

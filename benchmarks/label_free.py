"""Label-free measures of features: rank and decay of their spectrum, spread on the sphere, agreement of views.

They need no labels and no training, so they can be read while a pretraining runs. Whether one of them may be trusted to
rank encoders is a question to measurements: `python -m results correlations` sets them beside every other benchmark.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from benchmarks.task import FeatureTask, ImageTask, InputError, Labels, Outcome, Outputs, RunOptions, Split, progress
from benchmarks.training.task import NotNegative, Positive, ViewParams
from results.schema import Geometry, Params, Protocol, Score, Source

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from benchmarks.encoders.encoder import Encoder

RANKME, ALPHA, EFFECTIVE, STABLE = "RankMe", "alpha-ReQ", "Effective rank", "Stable rank"
UNIFORMITY, DEVIATION, DEAD = "Uniformity", "Deviation", "Dead share"
# Measure -> column of a pretraining's log, where its monitor runs.
MONITORED = {
    RANKME: "rankme", EFFECTIVE: "effective_rank", ALPHA: "alpha_req", UNIFORMITY: "uniformity",
    DEVIATION: "deviation", DEAD: "dead_share",
}  # fmt: skip
LIDAR, ALIGNMENT = "LiDAR", "Alignment"
MONITORED_VIEWS = {LIDAR: "lidar", ALIGNMENT: "alignment"}
DRAWN = "nothing to choose"
VIEW_BATCH = 256
_SPREAD_ROWS = 8192  # rows of the pairs of uniformity, whose number is quadratic


class LabelFreeParams(Params):
    """The numbers of a label-free protocol on one view of each image.

    Attributes:
        output: the encoder output that is measured.
        samples: maximum number of images, evenly spaced over the split.
        rankme_eps: added to every p of RankMe.
        rankme_denominator: added to the sum of the singular values that p is divided by.
        alpha_first, alpha_last: eigenvalues that the power law is fitted to, counted from 1; None ends at the last one
            that is not numerically zero.
        temperature: t of uniformity's exp(-t |x - y|^2).
        dead: a dimension is dead if its standard deviation is below this share of the largest.
    """

    output: str = "embed"
    samples: int = Field(25_600, ge=2)
    rankme_eps: NotNegative
    rankme_denominator: NotNegative = 0.0
    alpha_first: int = Field(1, ge=1)
    alpha_last: int | None = Field(None, ge=2)
    temperature: Positive = 2.0
    dead: Positive = 1e-3

    def columns(self) -> tuple[str, ...]:
        return RANKME, EFFECTIVE, STABLE, ALPHA, UNIFORMITY, DEVIATION, DEAD


class LabelFreeViewParams(ViewParams):
    """The numbers of a label-free protocol on several random views of each image.

    Attributes:
        images: maximum number of images, evenly spaced over the split.
        views: of each image.
        delta: added to the diagonal of the covariance within images.
    """

    output: str = "embed"
    images: int = Field(ge=2)
    views: int = Field(ge=2)
    delta: Positive

    def columns(self) -> tuple[str, ...]:
        return LIDAR, ALIGNMENT


def _protocol(params: Params, variant: str, dataset: str, split: str, geometry: Geometry, source: Source) -> Protocol:
    views = isinstance(params, LabelFreeViewParams)
    return Protocol.of(
        params,
        benchmark="label_free_views" if views else "label_free",
        variant=variant,
        harness="label-free-views" if views else "label-free",
        dataset=dataset,
        train_split=split,  # nothing is trained: the measured split is the only one
        test_split=split,
        geometry=geometry,
        primary=LIDAR if views else RANKME,
        metric="LiDAR is a rank, alignment a distance of views (lower is closer)"
        if views
        else "ranks count directions in use, alpha-ReQ is a slope, uniformity (lower is more even) and deviation "
        "describe the spread, dead share counts dimensions without any",
        unit="1",
        selection=DRAWN,
        source=source,
    )


_IMAGENET = Geometry(mode="shorter", resize=256, crop=224)
_DRAWINGS = Geometry(mode="shorter", resize=48, crop=48)  # uncropped: a drawing may lie anywhere in its picture
_SPT = "galilai-group/stable-pretraining"
_OWN_CHOICES = (
    "alpha-ReQ's range (all eigenvalues, weighted by 1/n), deviation and dead share are this project's own choices"
)
_OWN_VIEWS = "the views (random resized crop and flip) are this project's own choice"

_SPT_SOURCE = Source(
    repository=_SPT,
    revision="d15ec96d",
    note=f"RankMe with eps 1e-5 as in its torch code, on 25,600 samples as in the paper; {_OWN_CHOICES}",
)
_SPT_VIEWS = Source(repository=_SPT, revision="d15ec96d", note=f"LiDAR with n 100, q 10, delta 1e-4; {_OWN_VIEWS}")


def _like(identifier: str, note: str) -> Source:
    return Source(repository="this project", note=f"{identifier} {note}")


PROTOCOLS = (
    _protocol(LabelFreeParams(rankme_eps=1e-5), "spt", "imagenet", "val", _IMAGENET, _SPT_SOURCE),
    _protocol(
        LabelFreeParams(rankme_eps=1e-7),
        "spt_jax",
        "imagenet",
        "val",
        _IMAGENET,
        Source(repository=_SPT, revision="d15ec96d", note=f"RankMe with eps 1e-7 as in its jax code; {_OWN_CHOICES}"),
    ),
    _protocol(
        LabelFreeParams(rankme_eps=0.0, rankme_denominator=1e-7),
        "radio",
        "imagenet",
        "val",
        _IMAGENET,
        Source(
            repository="NVlabs/RADIO",
            revision="c0f3701",
            note=f"examples/ssl_metrics.py: RankMe without the zeros, 1e-7 in the denominator; {_OWN_CHOICES}",
        ),
    ),
    _protocol(
        LabelFreeParams(rankme_eps=1e-5),
        "imagefolder",
        "imagefolder",
        "val",
        _IMAGENET,
        _like("label_free.spt@1", "on any image folder"),
    ),
    _protocol(
        LabelFreeParams(rankme_eps=1e-5),
        "demo",
        "drawings",
        "train",
        _DRAWINGS,
        _like("label_free.spt@1", "on the embedded single drawings"),
    ),
)
VIEW_PROTOCOLS = (
    _protocol(
        LabelFreeViewParams(images=100, views=10, delta=1e-4),
        "spt",
        "imagenet",
        "val",
        _IMAGENET,
        _SPT_VIEWS,
    ),
    _protocol(
        LabelFreeViewParams(images=1000, views=99, delta=1e-8),
        "radio",
        "imagenet",
        "val",
        _IMAGENET,
        Source(
            repository="NVlabs/RADIO",
            revision="c0f3701",
            note=f"examples/ssl_metrics.py: LiDAR with n 1000, q 99, delta 1e-8; {_OWN_VIEWS}",
        ),
    ),
    _protocol(
        LabelFreeViewParams(images=100, views=10, delta=1e-4),
        "imagefolder",
        "imagefolder",
        "val",
        _IMAGENET,
        _like("label_free_views.spt@1", "on any image folder"),
    ),
    _protocol(
        LabelFreeViewParams(images=100, views=10, delta=1e-4),
        "demo",
        "drawings",
        "train",
        _DRAWINGS,
        _like("label_free_views.spt@1", "on the embedded single drawings"),
    ),
)


@dataclass(frozen=True)
class LabelFree(FeatureTask[LabelFreeParams]):
    """Rank, spectrum and spread of stored features, without labels (RankMe, alpha-ReQ, uniformity)."""

    name = "label-free"
    Params = LabelFreeParams
    protocols = PROTOCOLS

    def outputs(self, protocol: Protocol) -> Outputs:
        output = self.params(protocol).output
        return {output: (output, None)}

    def check(self, protocol: Protocol, train: Labels, test: Labels) -> None:
        """Raises InputError for fewer than two images."""
        _check_size(protocol, test)

    def run(self, protocol: Protocol, train: Split, test: Split, options: RunOptions) -> Outcome:
        """Measure the features of `test`; `train` is not looked at.

        Raises:
            InputError: see `check`; also a feature that is not finite.
        """
        self.check(protocol, train.labels, test.labels)
        params = self.params(protocol)
        features = test.features[params.output]
        rows = features[evenly_spaced(len(features), params.samples)]
        if not np.isfinite(rows).all():
            raise InputError(f"{params.output} has NaN or infinity for some images: check the encoder's weights")
        began = time.perf_counter()
        values = measures(rows, params, options.device)
        outcome = Outcome(timing={"measure": time.perf_counter() - began})
        for column, value in values.items():
            outcome.scores[column] = Score(value=value, n=len(rows), unit="1", selection=DRAWN)
        outcome.runs.append({"samples": len(rows), "dimensions": rows.shape[1]})
        return outcome


def measures(rows: NDArray[np.floating[Any]], params: LabelFreeParams, device: str = "cpu") -> dict[str, float | None]:
    """Every measure of (N, D) features by its column."""
    from benchmarks.solvers.spectra import (
        dimension_deviations,
        entropy_rank,
        singular_values,
        spectral_decay,
        stable_rank,
        uniformity,
    )

    plain = singular_values(rows, device=device)
    eigenvalues = singular_values(rows, centred=True, device=device).square() / max(1, len(rows) - 1)
    raw = dimension_deviations(rows, unit_length=False, device=device)
    on_sphere = dimension_deviations(rows, unit_length=True, device=device)
    largest = float(raw.max())
    return {
        RANKME: entropy_rank(plain, params.rankme_eps, params.rankme_denominator),
        EFFECTIVE: entropy_rank(plain),
        STABLE: stable_rank(plain),
        ALPHA: spectral_decay(eigenvalues, params.alpha_first, params.alpha_last),
        UNIFORMITY: uniformity(rows[evenly_spaced(len(rows), _SPREAD_ROWS)], params.temperature, device),
        # 1 where unit vectors point everywhere alike, 0 where all are equal (Chen and He 2021, section 4.1).
        DEVIATION: float(on_sphere.mean()) * rows.shape[1] ** 0.5,
        DEAD: float((raw < params.dead * largest).double().mean()) if largest > 0 else 1.0,
    }


def evenly_spaced(count: int, most: int) -> NDArray[np.int64]:
    """At most this many rows, from the first to the last."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)


def _check_size(protocol: Protocol, test: Labels) -> None:
    if len(test) < 2:
        raise InputError(f"{protocol.id} needs at least 2 images, but the {protocol.test_split} split of "
                         f"{protocol.dataset} has {len(test)}: add images")  # fmt: skip


@dataclass(frozen=True)
class LabelFreeViews(ImageTask[LabelFreeViewParams]):
    """LiDAR and alignment of several random views of each image, without labels."""

    name = "label-free-views"
    Params = LabelFreeViewParams
    protocols = VIEW_PROTOCOLS
    passes_per_step = 1

    def outputs(self, protocol: Protocol) -> Outputs:
        output = self.params(protocol).output
        return {output: (output, None)}

    def check(self, protocol: Protocol, train: Labels, test: Labels) -> None:
        """Raises InputError for fewer than two images."""
        _check_size(protocol, test)

    def amount(self, protocol: Protocol, train: Labels, test: Labels) -> tuple[int, int]:
        """The views, which are drawn as those of a training."""
        params = self.params(protocol)
        return min(params.images, len(test)) * params.views, 0

    def run(
        self, protocol: Protocol, encoder: Encoder, train: Labels, test: Labels, workdir: Path, options: RunOptions
    ) -> Outcome:
        """Measure random views of images of `test`, drawn from the run's seed; `train` is not looked at.

        Raises:
            InputError: see `check`; also a damaged image, or features that are not finite.
        """
        self.check(protocol, train, test)
        params = self.params(protocol)
        began = time.perf_counter()
        features = view_features(encoder, test, protocol.geometry, params, options)
        extracted = time.perf_counter()
        images, views, width = features.shape
        if not bool(features.isfinite().all()):
            raise InputError(f"{params.output} has NaN or infinity for some views: check the encoder's weights")
        values = view_measures(features, params.delta, options.device)
        outcome = Outcome(seeds=(options.seed,))
        outcome.timing = {"views": extracted - began, "measure": time.perf_counter() - extracted}
        for column, value in values.items():
            outcome.scores[column] = Score(value=value, n=images, unit="1", selection=DRAWN)
        outcome.runs.append({"images": images, "views": views, "dimensions": width})
        return outcome


def view_measures(features: torch.Tensor, delta: float, device: str = "cpu") -> dict[str, float]:
    """LiDAR and alignment of (images, views, D) features, at least two of each, by their columns."""
    from benchmarks.solvers.spectra import alignment, lidar

    views, width = features.shape[1:]
    # Views of one image in pairs; an odd one has no partner.
    first, second = features[:, 0 : views - views % 2 : 2], features[:, 1::2]
    return {
        LIDAR: lidar(features, delta, device),
        ALIGNMENT: alignment(first.reshape(-1, width), second.reshape(-1, width)),
    }


def view_features(
    encoder: Encoder, labels: Labels, geometry: Geometry, params: LabelFreeViewParams, options: RunOptions
) -> torch.Tensor:
    """(images, views, D) float32 on the CPU: features of random views, drawn from the seed, the image and the view."""
    import torch

    from benchmarks.training.images import TrainingImages, Views, network_input
    from pretrain.distributed import DataLoader

    rows = evenly_spaced(len(labels), params.images)
    images = TrainingImages([labels.paths[int(row)] for row in rows])
    views = Views(images, np.arange(len(rows)), geometry, params, options.seed)
    requests = [(view, row) for row in range(len(rows)) for view in range(params.views)]
    size = options.batch_size or VIEW_BATCH
    loader: DataLoader[Any] = DataLoader(
        views,
        batch_sampler=[requests[start : start + size] for start in range(0, len(requests), size)],
        num_workers=0 if images.in_memory else options.loaders,
        collate_fn=views.collate,
    )
    parts = []
    with torch.inference_mode():
        for pixels, lighting, _ in progress(loader, "views", show=options.progress):
            outputs = encoder.outputs(network_input(encoder, pixels, lighting), {params.output})
            parts.append(outputs[params.output].float().cpu())
    found = torch.cat(parts)
    return found.reshape(len(rows), params.views, found.shape[1])

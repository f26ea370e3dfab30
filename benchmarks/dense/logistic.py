"""Logistic regression on patches: the penalty chosen on held-out images, one label per patch (CAPI)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from benchmarks.dense.masks import held_out_images, mask_protocol, masks_of, squashed
from benchmarks.dense.patches import Patches, PatchParams, PatchTask, Standardised, add_choice
from benchmarks.dense.scores import mean_iou, pixel_accuracy
from benchmarks.task import InputError, Outcome, RunOptions, Split, progress
from benchmarks.training.params import Rates
from results.schema import Protocol, Source

CHUNK = 4096  # patches that are classified at a time


class PatchLogisticParams(PatchParams):
    """The numbers of a logistic regression on patches, whose labels are the most frequent value of their pixels.

    Attributes:
        costs: C of scikit-learn and cuML, on the summed loss: the mean loss has the penalty 1 / (C n).
        max_iterations: of L-BFGS.
        tolerance: largest component of the gradient of the mean loss at which a fit has converged.
        chunk: patches on the device at a time.
    """

    costs: Rates = tuple(float(c) for c in 10 ** np.linspace(-6, 5, 8))
    max_iterations: int = Field(1000, gt=0)
    tolerance: float = Field(1e-6, gt=0)
    chunk: int = Field(65536, gt=0)


def _protocol(variant: str, dataset: str, side: int, params: PatchLogisticParams, source: Source) -> Protocol:
    return mask_protocol(
        "seg-logistic", variant, dataset, squashed(side), params, source,
        columns=("mIoU", "accuracy", "mIoU oracle"), primary="mIoU",
        metric="mean intersection over union at the size of the squashed image",
        selection="C chosen on held-out training images, then fitted on all",
    )  # fmt: skip


_CAPI = Source(
    repository="facebookresearch/capi",
    revision="98b4fa1",
    note="eval_segmentation.py, LogregClassifier: images squashed to 224, StandardScaler, patch label the mode of its "
    "pixels, 8 values of C, at most 1000 iterations of L-BFGS. The source fits by cuML with tol 1e-12, whose stopping "
    "rule and line search differ; the tolerance 1e-6 here, seed 0 and a map of stride 16 of networks with stages are "
    "this project's own",
)
PROTOCOLS = (
    _protocol("capi", "ade20k", 224, PatchLogisticParams(), _CAPI),
    _protocol(
        "capi", "voc12aug", 224, PatchLogisticParams(),
        Source(repository="this project", note="ade20k_seg_logistic.capi@1 on VOC 2012; not defined by the source"),
    ),
    _protocol(
        "demo", "ade20k", 96,
        PatchLogisticParams(costs=(1e-5, 1e-4, 1e-3, 1e-2), max_iterations=100, tolerance=1e-4),
        Source(repository="this project", note="ade20k_seg_logistic.capi@1, quicker, on the embedded scenes"),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class PatchLogistic(PatchTask):
    """Segmentation by logistic regression on frozen patch features (CAPI's linear classifier)."""

    name = "seg-logistic"
    Params = PatchLogisticParams
    protocols = PROTOCOLS

    def run(self, protocol: Protocol, train: Split, test: Split, options: RunOptions) -> Outcome:
        """Choose C on held-out training images, fit all training patches with each C, and measure on the test images.

        Raises:
            InputError: the encoder's map does not suit the protocol, or the patches show fewer than two classes.
        """
        params: PatchLogisticParams = self.params(protocol)
        began = time.perf_counter()
        gallery, queries = Patches.of(train, protocol, params.stride), Patches.of(test, protocol, params.stride)
        kept, held = held_out_images(len(train.labels), params.heldout, params.seed)
        scale = Standardised(gallery.rows, gallery.of_images(kept))
        rows, query_rows = scale(gallery.rows), scale(queries.rows)
        usable = ~np.isin(gallery.modes, gallery.style.ignored)
        per_patch = gallery.blocks.shape[1]

        def predictions(items: NDArray[np.int64], asked: NDArray[Any], what: str) -> list[NDArray[np.uint8]]:
            found = fitted_labels(rows, items[usable[items]], gallery.modes, asked, params, options, what)
            return [masks_of(np.repeat(each[:, None], per_patch, 1).astype(np.uint8), gallery.grid) for each in found]

        tried = predictions(gallery.of_images(kept), rows[gallery.of_images(held)], "choosing C")
        validation = [mean_iou(gallery.areas(masks, held)) for masks in tried]
        chosen = int(np.argmax(validation))
        selected = time.perf_counter()
        masks = predictions(np.arange(len(rows)), query_rows, "fitting all patches")
        measured = [queries.areas(each) for each in masks]
        scores = [mean_iou(each) for each in measured]

        outcome = Outcome(seeds=(params.seed,))
        outcome.timing = {"select": selected - began, "fit": time.perf_counter() - selected}
        outcome.runs = [
            {"output": gallery.output, "grid": gallery.grid, "C": cost, "chosen": index == chosen,
             "heldout_mIoU": validation[index], "mIoU": scores[index], "accuracy": pixel_accuracy(measured[index])}
            for index, cost in enumerate(params.costs)
        ]  # fmt: skip
        oracle = measured[int(np.argmax(scores))], "best C on test (oracle)"
        add_choice(outcome, queries, masks[chosen], (measured[chosen], protocol.selection), oracle)
        return outcome


def fitted_labels(
    rows: NDArray[np.float32], items: NDArray[np.int64], labels: NDArray[np.int64], asked: NDArray[np.float32],
    params: PatchLogisticParams, options: RunOptions, label: str,
) -> list[NDArray[np.int64]]:  # fmt: skip
    """For each C, the predicted labels of the rows `asked`.

    Args:
        rows, labels: (M, C) features and (M,) mask values, of which `items` are fitted.

    Raises:
        InputError: fewer than two classes.
    """
    from benchmarks.solvers.logistic import fit_logistic

    values, targets = np.unique(labels[items], return_inverse=True)
    if len(values) < 2:
        raise InputError("the training patches have fewer than two classes; use more images or a finer feature map")
    every = np.zeros(len(rows), np.int64)
    every[items] = targets
    fits = fit_logistic(
        rows, every, len(values), params.costs, sample_rows=items, device=options.device, chunk=params.chunk,
        tolerance=params.tolerance, max_iterations=params.max_iterations,
        track=lambda passes, text: progress(passes, f"{label}: {text}", show=options.progress),
    )  # fmt: skip
    parts = []
    for start in range(0, len(asked), CHUNK):
        best = fits.logits(asked[start : start + CHUNK]).argmax(2)
        parts.append(best.cpu().numpy())
    return list(values[np.concatenate(parts)].T)

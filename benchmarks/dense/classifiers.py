"""Linear classifiers on stored patch features: CAPI's logistic regression, and heads of a rate grid by AdamW.

The regression has one label per patch and is fitted by L-BFGS. The heads learn the shares of the classes in a patch,
all rates in one pass over the patches, and are a cheap relative of `benchmarks.dense.linear`, which augments images.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from benchmarks.dense.masks import (
    MaskFormat,
    add_segmentation,
    areas,
    best_class,
    held_out_images,
    mask_sheet,
    mean_iou,
    squashed,
)
from benchmarks.dense.patches import (
    CapiTask,
    Patches,
    PatchParams,
    PatchTask,
    counts_of,
    masks_of,
)
from benchmarks.task import InputError, Outcome, RunOptions, Split, progress
from benchmarks.training.task import NotNegative, Rates, mask_protocol
from results.schema import Protocol, Source

if TYPE_CHECKING:
    from benchmarks.solvers.linear_heads import HeadBank

CHUNK = 4096  # patches that are classified at a time
KEPT_MASKS = 10_000  # of larger test sets the predicted masks are not kept, and there is no picture of them


class PatchLogisticParams(PatchParams):
    """The numbers of a logistic regression on patches, whose labels are the most frequent value of their pixels.

    Attributes:
        costs: C of scikit-learn and cuML, on the summed loss: the mean loss has the penalty 1 / (C n).
        max_iterations: of L-BFGS.
        tolerance: largest component of the gradient of the mean loss at which a fit has converged.
        chunk: patches on the device at a time.
    """

    standardise: ClassVar[bool] = True

    costs: Rates = tuple(float(c) for c in 10 ** np.linspace(-6, 5, 8))
    max_iterations: int = Field(1000, gt=0)
    tolerance: float = Field(1e-6, gt=0)
    chunk: int = Field(65536, gt=0)


def _logistic_protocol(variant: str, dataset: str, side: int, params: PatchLogisticParams, source: Source) -> Protocol:
    return mask_protocol(
        "seg-logistic", variant, dataset, squashed(side), params, source,
        columns=("mIoU", "accuracy", "mIoU oracle"),
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
LOGISTIC_PROTOCOLS = (
    _logistic_protocol("capi", "ade20k", 224, PatchLogisticParams(), _CAPI),
    _logistic_protocol(
        "capi", "voc12aug", 224, PatchLogisticParams(),
        Source(repository="this project", note="ade20k_seg_logistic.capi@1 on VOC 2012; not defined by the source"),
    ),
    _logistic_protocol(
        "demo", "ade20k", 96,
        PatchLogisticParams(costs=(1e-5, 1e-4, 1e-3, 1e-2), max_iterations=100, tolerance=1e-4),
        Source(repository="this project", note="ade20k_seg_logistic.capi@1, quicker, on the embedded scenes"),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class PatchLogistic(CapiTask):
    """Segmentation by logistic regression on frozen patch features (CAPI's linear classifier)."""

    name = "seg-logistic"
    Params = PatchLogisticParams
    protocols = LOGISTIC_PROTOCOLS

    def settings(self, params: PatchLogisticParams) -> list[dict[str, Any]]:
        """The most regularised first."""
        return [{"C": cost} for cost in params.costs]

    def predict(
        self, protocol: Protocol, gallery: Patches, rows: NDArray[np.float32], items: NDArray[np.int64],
        asked: NDArray[np.float32], options: RunOptions, what: str,
    ) -> list[NDArray[np.uint8]]:  # fmt: skip
        """Fit each C, and give all pixels of a patch the class of the patch.

        Raises:
            InputError: the patches show fewer than two classes.
        """
        found = fitted_labels(rows, items, gallery.modes, asked, self.params(protocol), options, what)
        pixels = gallery.blocks.shape[1]
        return [masks_of(np.repeat(each[:, None], pixels, 1).astype(np.uint8), gallery.grid) for each in found]


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


class CachedLinearParams(PatchParams):
    """Batch norm and a linear layer per rate, on patches of images without augmentation.

    The loss of a patch is the cross-entropy with the shares of the classes in its pixels, so that logits are constant
    within a patch in training; at test they are interpolated to the size of the image.

    Attributes:
        rates: of AdamW, each a head.
        epochs: passes over the training patches, with a cosine schedule.
        batch_size: patches.
    """

    rates: Rates = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
    decay: NotNegative = 1e-3
    epochs: int = Field(10, gt=0)
    batch_size: int = Field(4096, gt=0)


def _heads_protocol(variant: str, dataset: str, side: int, note: str, params: CachedLinearParams) -> Protocol:
    return mask_protocol(
        "seg-linear-cached", variant, dataset, squashed(side), params, Source(repository="this project", note=note),
        columns=("mIoU", "mIoU oracle"),
        metric="mean intersection over union at the size of the original masks",
        selection="rate chosen on held-out training images",
    )  # fmt: skip


_NOTE = "a cheap relative of the linear segmentation of DINOv2 and DINOv3, which augment their images"
_HALF = CachedLinearParams(storage="float16")
HEADS_PROTOCOLS = (
    _heads_protocol("cached", "ade20k", 448, _NOTE, _HALF),
    _heads_protocol("cached", "voc12aug", 448, _NOTE, _HALF),
    _heads_protocol("cached", "cityscapes", 896, _NOTE, _HALF),
    _heads_protocol(
        "demo", "ade20k", 96, "ade20k_seg_linear_cached.cached@1 on the embedded scenes",
        CachedLinearParams(rates=(1e-4, 1e-3, 1e-2), batch_size=512),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class CachedLinear(PatchTask):
    """Linear segmentation heads on stored patch features, a grid of learning rates without augmentation."""

    name = "seg-linear-cached"
    Params = CachedLinearParams
    protocols = HEADS_PROTOCOLS

    def run(self, protocol: Protocol, train: Split, test: Split, options: RunOptions) -> Outcome:
        """Train a head per rate, choose one on held-out training images, and measure it on the test images.

        Raises:
            InputError: the encoder's map does not suit the protocol, or no training patch has a class.
        """
        params: CachedLinearParams = self.params(protocol)
        began = time.perf_counter()
        gallery, queries = Patches.of(train, protocol, params.stride), Patches.of(test, protocol, params.stride)
        kept, held = held_out_images(len(train.labels), params.heldout, params.seed)
        bank = train_bank(
            gallery.rows, gallery.of_images(kept), class_shares(gallery), params, options.seed, options.device,
            show=options.progress,
        )  # fmt: skip
        trained = time.perf_counter()
        chosen_by = measure_heads(bank, gallery, held, options)
        validation = [mean_iou(each) for each, _ in chosen_by]
        chosen = int(np.argmax(validation))
        on_test = measure_heads(bank, queries, np.arange(len(test.labels)), options)
        scores = [mean_iou(each) for each, _ in on_test]
        best = int(np.argmax(scores))

        outcome = Outcome(seeds=(options.seed,))
        outcome.timing = {"train": trained - began, "test": time.perf_counter() - trained}
        outcome.runs = [
            {"output": gallery.output, "grid": gallery.grid, "lr": rate, "chosen": head == chosen,
             "heldout_mIoU": validation[head], "mIoU": scores[head]}
            for head, rate in enumerate(params.rates)
        ]  # fmt: skip
        add_segmentation(outcome, "mIoU", on_test[chosen][0], queries.style.classes, protocol.selection)
        add_segmentation(outcome, "mIoU oracle", on_test[best][0], queries.style.classes, "best rate on test (oracle)")
        outcome.tensors = {name: tensor[chosen].clone() for name, tensor in bank.tensors().items()}
        if len(test.labels) < KEPT_MASKS:
            truth = [queries.style.read(file) for file in test.labels.annotations]
            outcome.pictures = mask_sheet(test.labels, queries.style, truth, on_test[chosen][1])
        return outcome


def class_shares(patches: Patches) -> NDArray[np.float32]:
    """(M, K) share of each class in all pixels of each patch; ignored pixels belong to none."""
    style = patches.style
    counted = counts_of(patches.blocks)[:, style.first : style.first + len(style.classes)]
    return (counted / np.float32(patches.blocks.shape[1])).astype(np.float32)


def train_bank(
    rows: NDArray[Any], items: NDArray[np.int64], shares: NDArray[np.float32], params: CachedLinearParams, seed: int,
    device: str, *, show: bool = True,
) -> HeadBank:  # fmt: skip
    """A head per rate, trained on the patches `items` that have a class.

    Args:
        rows: (M, C) features.
        shares: (M, K), see `class_shares`.

    Raises:
        InputError: no patch has a class.
    """
    import torch

    from benchmarks.dense.training import head_bank
    from benchmarks.solvers.linear_heads import BankAdamW
    from pretrain.distributed import sent

    items = items[shares[items].any(axis=1)]
    if not len(items):
        raise InputError("the training masks contain only ignored pixels: check the data set")
    per_epoch = -(-len(items) // params.batch_size)
    steps = params.epochs * per_epoch
    bank = head_bank(rows.shape[1], shares.shape[1], len(params.rates), seed).to(device).train()
    decays = [params.decay] * len(params.rates)
    optimiser = BankAdamW(bank, params.rates, decays, spare_norms=False)
    batches = progress(_batches(items, params, seed), "linear heads", total=steps, show=show)
    for step, batch in enumerate(batches):
        ordered = np.sort(batch)  # memory-mapped rows are read in their order
        x = sent(torch.from_numpy(rows[ordered].astype(np.float32)), device)
        t = sent(torch.from_numpy(shares[ordered]), device)
        log_p = bank(x).log_softmax(2)
        (-(log_p * t[:, None]).sum() / len(t)).backward()
        # dinov3's cosine, whose scheduler is first stepped in the second iteration.
        optimiser.step((1 + math.cos(math.pi * max(step, 1) / steps)) / 2)
    return bank.eval()


def _batches(items: NDArray[np.int64], params: CachedLinearParams, seed: int) -> Iterator[NDArray[np.int64]]:
    for epoch in range(params.epochs):
        shuffled = np.random.default_rng((seed, epoch)).permutation(items)
        for start in range(0, len(shuffled), params.batch_size):
            batch = shuffled[start : start + params.batch_size]
            if len(batch) > 1 or len(shuffled) == 1:  # one row has no deviation
                yield batch


def measure_heads(
    bank: HeadBank, patches: Patches, images: NDArray[np.int64], options: RunOptions
) -> list[tuple[NDArray[np.int64], list[NDArray[np.uint8]]]]:
    """For each head, (n, 3, C) areas at the size of the original masks, and the predicted masks."""
    import torch
    import torch.nn.functional as F

    style: MaskFormat = patches.style
    heads = len(bank.weight)
    found: list[list[NDArray[np.int64]]] = [[] for _ in range(heads)]
    masks: list[list[NDArray[np.uint8]]] = [[] for _ in range(heads)]
    per_image = patches.grid**2
    with torch.inference_mode():
        for image in progress(images, "measuring heads", total=len(images), show=options.progress):
            rows = patches.rows[image * per_image : (image + 1) * per_image].astype(np.float32)
            truth = style.read(patches.labels.annotations[image])
            logits = bank(torch.from_numpy(rows).to(options.device)).permute(1, 2, 0)
            for head in range(heads):
                maps = logits[head].reshape(1, -1, patches.grid, patches.grid)
                best = best_class(F.interpolate(maps, truth.shape, mode="bilinear", align_corners=False))[0]
                predicted = (best.cpu().numpy() + style.first).astype(np.uint8)
                found[head].append(areas(predicted, truth, style))
                masks[head].append(predicted if len(images) < KEPT_MASKS else predicted[:0])
    return [(np.stack(each), shown) for each, shown in zip(found, masks, strict=True)]

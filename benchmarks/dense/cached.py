"""Linear segmentation on stored patch features: the heads of a whole rate grid, without augmentation, in one pass."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from benchmarks.dense.masks import MaskFormat, counts_of, held_out_images, mask_protocol, squashed
from benchmarks.dense.patches import Patches, PatchParams, PatchTask, best_class, mask_sheet
from benchmarks.dense.scores import add_segmentation, areas, mean_iou
from benchmarks.task import InputError, Outcome, RunOptions, Split, progress
from benchmarks.training.params import NotNegative, Rates
from results.schema import Protocol, Source

if TYPE_CHECKING:
    from benchmarks.solvers.linear_heads import HeadBank


KEPT_MASKS = 10_000  # of larger test sets the predicted masks are not kept, and there is no picture of them


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


def _protocol(variant: str, dataset: str, side: int, note: str, params: CachedLinearParams) -> Protocol:
    return mask_protocol(
        "seg-linear-cached", variant, dataset, squashed(side), params, Source(repository="this project", note=note),
        columns=("mIoU", "mIoU oracle"), primary="mIoU",
        metric="mean intersection over union at the size of the original masks",
        selection="rate chosen on held-out training images",
    )  # fmt: skip


_NOTE = "a cheap relative of the linear segmentation of DINOv2 and DINOv3, which augment their images"
_HALF = CachedLinearParams(storage="float16")
PROTOCOLS = (
    _protocol("cached", "ade20k", 448, _NOTE, _HALF),
    _protocol("cached", "voc12aug", 448, _NOTE, _HALF),
    _protocol("cached", "cityscapes", 896, _NOTE, _HALF),
    _protocol(
        "demo", "ade20k", 96, "ade20k_seg_linear_cached.cached@1 on the embedded scenes",
        CachedLinearParams(rates=(1e-4, 1e-3, 1e-2), batch_size=512),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class CachedLinear(PatchTask):
    """Linear segmentation heads on stored patch features, a grid of learning rates without augmentation."""

    name = "seg-linear-cached"
    Params = CachedLinearParams
    protocols = PROTOCOLS

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

    from benchmarks.dense.heads import HeadParams, rate_factor
    from benchmarks.dense.problems import head_bank
    from benchmarks.solvers.linear_heads import BankAdamW
    from pretrain.distributed import sent

    items = items[shares[items].any(axis=1)]
    if not len(items):
        raise InputError("the training masks contain only ignored pixels: check the data set")
    per_epoch = -(-len(items) // params.batch_size)
    schedule = HeadParams(
        rates=params.rates, decay=params.decay, warmup=0, schedule="cosine", iterations=params.epochs * per_epoch,
        batch_size=params.batch_size,
    )  # fmt: skip
    bank = head_bank(rows.shape[1], shares.shape[1], len(params.rates), seed).to(device).train()
    decays = [params.decay] * len(params.rates)
    optimiser = BankAdamW(bank, params.rates, decays, betas=schedule.betas, spare_norms=False)
    batches = progress(_batches(items, params, seed), "linear heads", total=schedule.iterations, show=show)
    for step, batch in enumerate(batches):
        ordered = np.sort(batch)  # memory-mapped rows are read in their order
        x = sent(torch.from_numpy(rows[ordered].astype(np.float32)), device)
        t = sent(torch.from_numpy(shares[ordered]), device)
        log_p = bank(x).log_softmax(2)
        (-(log_p * t[:, None]).sum() / len(t)).backward()
        optimiser.step(rate_factor(schedule, step))
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

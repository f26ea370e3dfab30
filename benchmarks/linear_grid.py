"""Linear evaluation of DINOv2 and DINOv3: a grid of features and rates, all heads trained in one pass over the images.

A head reads the class tokens of the last or of the last four blocks, each after the final norm, with or without the
mean patch token of the last block. The sources choose the head on ImageNet's validation set and report it there; here a
held-out part of train chooses, and the published choice stands beside it as the oracle.
`benchmarks.training.probe_task` runs all probes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from benchmarks.features.pool import Pooling
from benchmarks.task import NotApplicableError, Outputs
from benchmarks.training.probe_task import ProbeTask, WarmupParams
from benchmarks.training.task import NotNegative, classification_protocol
from results.schema import Geometry, Protocol, Source

if TYPE_CHECKING:
    from benchmarks.encoders.encoder import Encoder
    from benchmarks.solvers.linear_heads import Bank, BankOptimiser, HeadBank

# ---- parameters ------------------------------------------------------------------------------------------------------

COLUMN = "Linear grid"
CLASS_TOKENS = {1: "cls", 4: "cls_last4"}
MEAN = "patch_mean"


class LinearGridParams(WarmupParams):
    """Linear heads without batch norm, one for each rate and each set of features.

    Attributes:
        blocks: how many last blocks give their class tokens, which are concatenated.
        mean: `without` or `with` the mean patch token of the last block, concatenated to them.
        init_std: of the weights; biases start at 0.
    """

    blocks: tuple[Literal[1, 4], ...] = Field((1, 4), min_length=1)
    mean: tuple[Literal["without", "with"], ...] = Field(("without", "with"), min_length=1)
    init_std: NotNegative = 0.01

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.heldout == 0:
            raise ValueError("the head is chosen on a held-out part of train: set heldout > 0")
        if len(set(self.blocks)) < len(self.blocks) or len(set(self.mean)) < len(self.mean):
            raise ValueError("blocks and mean must not repeat a value")
        return self

    def columns(self) -> tuple[str, ...]:
        """The head that the held-out part chooses, and the best on test."""
        return (COLUMN, f"{COLUMN} top-5", f"{COLUMN} oracle")

    def banks(self) -> dict[str, tuple[str, ...]]:
        """Name of a set of features, as cls_last4+patch_mean -> the encoder's outputs in it."""
        sets = [
            (CLASS_TOKENS[blocks], *((MEAN,) if mean == "with" else ())) for blocks in self.blocks for mean in self.mean
        ]
        return {"+".join(outputs): outputs for outputs in sets}

    def reads(self, names: Collection[str]) -> dict[str, tuple[tuple[str, Pooling | None], ...]]:
        """One bank per set of features that the encoder has."""
        return {
            bank: tuple((output, None) for output in outputs)
            for bank, outputs in self.banks().items()
            if set(outputs) <= set(names)
        }

    def bank(self, name: str, shapes: Sequence[tuple[int, ...]], channels: int, classes: int, seed: int) -> HeadBank:
        """A new bank of linear heads on one set of features."""
        import torch

        from benchmarks.solvers.linear_heads import HeadBank

        dim = sum(width for (width,) in shapes)
        number = list(self.banks()).index(name)
        generator = torch.Generator().manual_seed(seed * len(self.banks()) + number)
        return HeadBank(dim, dim, classes, len(self.grid), init_std=self.init_std, generator=generator)

    def optimiser_of(self, bank: Bank) -> BankOptimiser:
        """SGD with momentum, each head with its own rate."""
        from benchmarks.solvers.linear_heads import BankOptimiser

        rates, weight_decays = zip(*self.grid, strict=True)
        return BankOptimiser(bank, rates, weight_decays, momentum=self.momentum, nesterov=self.nesterov)

    def column_of(self, bank: str) -> str:
        """All heads are chosen among together."""
        return COLUMN


# ---- protocols -------------------------------------------------------------------------------------------------------

OWN = "this project"
BICUBIC_224 = Geometry(mode="shorter", resize=256, crop=224, interpolation="bicubic")
RESIZE_256 = Geometry(mode="shorter", resize=256, crop=224)
SMALL = Geometry(mode="shorter", resize=48, crop=48)  # uncropped: a drawing may lie anywhere in its picture

RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)  # for a batch of 256
BATCH = 1024


def _rates(batch: int) -> tuple[float, ...]:
    return tuple(rate * batch / 256 for rate in RATES)


_DINOV2 = LinearGridParams(
    lrs=_rates(BATCH),
    batch_size=BATCH,
    epochs=11,
    iterations=12_500,
    evaluate_every=11,  # the sources report the end of the run
    choose_epoch="last",
    heldout=0.01,
)
# Trained in one pass with linear_avgpool.imagefolder and .demo, of which these have views, batch and held-out part.
_IMAGE_FOLDER = LinearGridParams(lrs=_rates(256), epochs=30, choose_epoch="last", heldout=0.1)
_DEMO = _IMAGE_FOLDER.changed(lrs=_rates(64), batch_size=64, epochs=20, heldout=0.2)

_NOTE = (
    "{}: 13 rates x batch / 256, SGD 0.9 without decay, cosine at every step, 10 epochs of 1250 iterations, 128 images "
    "per GPU; the number of GPUs is not stated, and 8 are assumed; the head is chosen on a hundredth of train, which "
    "is this project's, and the oracle is what is published"
)


_protocol = partial(classification_protocol, "linear-grid", primary=COLUMN)

PROTOCOLS = (
    _protocol(
        "dinov2",
        _DINOV2,
        Source(
            repository="facebookresearch/dinov2",
            revision="b8931f7",
            note=_NOTE.format("dinov2/eval/linear.py, 1 and 4 blocks with and without the patch mean, 52 heads"),
        ),
        BICUBIC_224,
    ),
    _protocol(
        "dinov3",
        _DINOV2.changed(blocks=(1,), mean=("with",)),
        Source(
            repository="facebookresearch/dinov3",
            revision="6876159",
            note=_NOTE.format("dinov3/eval/linear.py, the last block with the patch mean, 13 heads"),
        ),
        BICUBIC_224,
    ),
    _protocol(
        "imagefolder",
        _IMAGE_FOLDER,
        Source(
            repository=OWN,
            note="linear_grid.dinov2@1 on any ImageFolder: a tenth of train chooses; trained in one pass with "
            "linear_avgpool.imagefolder",
        ),
        RESIZE_256,
        "imagefolder",
    ),
    _protocol(
        "demo",
        _DEMO,
        Source(repository=OWN, note="linear_grid.dinov2@1 made small; a fifth of train chooses"),
        SMALL,
        "drawings",
    ),
)

# ---- the task --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LinearGrid(ProbeTask[LinearGridParams]):
    """Linear evaluation of DINOv2 and DINOv3: a grid of class tokens, patch mean and learning rates, in one pass."""

    name = "linear-grid"
    Params = LinearGridParams
    protocols = PROTOCOLS

    def outputs(self, protocol: Protocol) -> Outputs:
        return {output: (output, None) for outputs in self.params(protocol).banks().values() for output in outputs}

    def check_encoder(self, protocol: Protocol, encoder: Encoder) -> None:
        """Raises NotApplicableError for an encoder without some of the tokens: part of the grid is another grid."""
        missing = [output for output in self.outputs(protocol) if not encoder.has(output)]
        if missing:
            raise NotApplicableError(
                f"{encoder.card.name} has no {', '.join(missing)}, which {protocol.id} reads: it needs a vision "
                "transformer with a class token"
            )

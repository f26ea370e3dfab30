"""Linear probes on a frozen encoder, trained on augmented views: AvgPool, Feature1 … Feature5, and DINOv2's grid.

AvgPool's head reads the encoder's vector, the Feature probes its maps. A head of the grid (linear evaluation of DINOv2
and DINOv3) reads the class tokens of the last or of the last four blocks, each after the final norm, with or without
the mean patch token of the last block.

This file says what is trained: the parameters, the protocols with their sources, the heads and their optimisers. All
probes run alike: `benchmarks.training.probe_task` reads the images, starts the training and makes scores of it, and
`benchmarks.training.probes` has the pass over the images.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from benchmarks.features.pool import ADAPTIVE_GRIDS, FIXED_224, Pooling
from benchmarks.task import FEATURE_MAPS, NotApplicableError, Outputs
from benchmarks.training.probe_task import BEST, LAST, RATE, RATE_BY_LOSS, HeadsParams, ProbeTask, WarmupParams
from benchmarks.training.task import NotNegative, Positive, classification_protocol
from results.schema import Geometry, Protocol, Source

if TYPE_CHECKING:
    from benchmarks.encoders.encoder import Encoder
    from benchmarks.solvers.linear_heads import Bank, BankOptimiser, HeadBank

# ---- parameters ------------------------------------------------------------------------------------------------------

COLUMN = {"embed": "AvgPool", **{name: name.capitalize() for name in FEATURE_MAPS}}
AVGPOOL = ("AvgPool", "AvgPool last", "AvgPool best", "AvgPool top-5", "AvgPool last top-5", "AvgPool best top-5")
ORACLE = "AvgPool oracle"
GRID_COLUMN = "Linear grid"
CLASS_TOKENS = {1: "cls", 4: "cls_last4"}  # by the number of last blocks
PATCH_MEAN = "patch_mean"


class ProbeParams(HeadsParams):
    """Linear heads that are trained on augmented views of the images.

    Several heads on an output are trained in one pass over the images and chosen among on the `heldout` part of train.

    Attributes:
        outputs: outputs of the encoder that carry heads: `embed`, or maps.
        pooling: output -> how its maps become vectors; `embed` is a vector already.
        batch_norm: over the channels before the linear layer; `plain` has no scale and shift, `affine` has.
        norm_groups: equal parts of the batch with statistics of their own, as on so many unsynchronised devices.
        head_init: `normal` draws the weights from N(0, `init_std`) and sets the bias to 0; `default` is torch's.
        choose_rate: whether the held-out part chooses by accuracy, then by loss, or by loss alone. On few images the
            accuracy hardly tells rates apart, and a rate that diverges is chosen as rounding has it.
    """

    outputs: tuple[str, ...] = Field(min_length=1)
    pooling: dict[str, Pooling] = Field(default_factory=dict)
    batch_norm: Literal["none", "plain", "affine"] = "none"
    norm_groups: int = Field(1, gt=0, exclude_if=lambda groups: groups == 1)
    head_init: Literal["normal", "default"] = Field("normal", exclude_if=lambda init: init == "normal")
    optimiser: Literal["sgd", "lars"] = "sgd"
    lars_eta: Positive = 1e-3
    init_std: NotNegative = 0.01
    choose_epoch: Literal["best", "last"] = "last"
    choose_rate: Literal["accuracy", "loss"] = Field("accuracy", exclude_if=lambda by: by == "accuracy")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if len(self.grid) > 1 and self.heldout == 0:
            raise ValueError("the rate and the weight decay are chosen on a held-out part of train: set heldout > 0")
        if len(set(self.outputs)) < len(self.outputs) or not set(self.outputs) <= set(COLUMN):
            raise ValueError(f"outputs {', '.join(self.outputs)} must be among {', '.join(COLUMN)} and without repeats")
        if "embed" in self.outputs and len(self.outputs) > 1:
            raise ValueError(
                "embed and maps have different columns: use two protocols; `probes` trains both in one pass"
            )
        unpooled = [name for name in self.outputs if name != "embed" and name not in self.pooling]
        if unpooled:
            raise ValueError(f"{', '.join(unpooled)} are feature maps; set pooling to say how they become vectors")
        if self.schedule == "cosine" and self.iterations is not None:
            raise ValueError("the cosine schedule is per epoch: leave iterations unset")
        return self

    def columns(self) -> tuple[str, ...]:
        """Feature1 … for heads on maps; for those on the vector also last and best epoch, and a grid's best head."""
        if "embed" not in self.outputs:
            return tuple(COLUMN[output] for output in self.outputs)
        return (*AVGPOOL, ORACLE) if len(self.grid) > 1 else AVGPOOL

    def selection(self) -> str:
        """How the main column's score is chosen."""
        epoch = BEST if self.choose_epoch == "best" else LAST
        by = RATE if self.choose_rate == "accuracy" else RATE_BY_LOSS
        return epoch + (by if len(self.grid) > 1 else "")

    def reads(self, names: Collection[str]) -> dict[str, tuple[tuple[str, Pooling | None], ...]]:
        """Output -> ((output, pooling of its maps or None),)."""
        return {output: ((output, self.pooling.get(output)),) for output in self.outputs if output in names}

    def bank(self, name: str, shapes: Sequence[tuple[int, ...]], channels: int, classes: int, seed: int) -> HeadBank:
        """A new bank of linear heads on one output."""
        import torch

        from benchmarks.solvers.linear_heads import HeadBank

        ((dim,),) = shapes
        return HeadBank(
            dim,
            channels,
            classes,
            len(self.grid),
            batch_norm=self.batch_norm,
            norm_groups=self.norm_groups,
            init_std=self.init_std if self.head_init == "normal" else None,
            generator=torch.Generator().manual_seed(seed * len(self.outputs) + self.outputs.index(name)),
        )

    def optimiser_of(self, bank: Bank) -> BankOptimiser:
        """SGD or LARS, each head with its own rate and weight decay."""
        from benchmarks.solvers.linear_heads import BankOptimiser

        rates, weight_decays = zip(*self.grid, strict=True)
        return BankOptimiser(
            bank,
            rates,
            weight_decays,
            momentum=self.momentum,
            nesterov=self.nesterov,
            lars_eta=self.lars_eta if self.optimiser == "lars" else None,
        )

    def column_of(self, bank: str) -> str:
        """AvgPool, or the name of the map."""
        return COLUMN[bank]

    @property
    def chosen_by(self) -> Literal["accuracy", "loss"]:
        """What the held-out part chooses a head by."""
        return self.choose_rate

    def rate_factor(self, step: int, steps_per_epoch: int) -> float:
        """The factor of every head's rate at `step`."""
        if self.iterations is None:
            return super().rate_factor(step, steps_per_epoch)
        return self.gamma ** sum(step >= drop for drop in self.drops)


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
        return (GRID_COLUMN, f"{GRID_COLUMN} top-5", f"{GRID_COLUMN} oracle")

    def banks(self) -> dict[str, tuple[str, ...]]:
        """Name of a set of features, as cls_last4+patch_mean -> the encoder's outputs in it."""
        sets = [
            (CLASS_TOKENS[blocks], *((PATCH_MEAN,) if mean == "with" else ()))
            for blocks in self.blocks
            for mean in self.mean
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
        return GRID_COLUMN


# ---- protocols -------------------------------------------------------------------------------------------------------

RESIZE_256 = Geometry(mode="shorter", resize=256, crop=224)
BICUBIC_224 = Geometry(mode="shorter", resize=256, crop=224, interpolation="bicubic")
CIFAR = Geometry(mode="shorter", resize=32, crop=32)  # the images as they are
SMALL = Geometry(mode="shorter", resize=48, crop=48)  # uncropped: a drawing may lie anywhere in its picture

MMSELFSUP = {"repository": "open-mmlab/mmselfsup", "revision": "0.x 6faad81"}
OWN = "this project"


def _protocol(
    name: str,
    benchmark: str,
    primary: str,
    variant: str,
    params: ProbeParams,
    source: Source,
    dataset: str = "imagenet",
    geometry: Geometry = RESIZE_256,
    revision: int = 1,
) -> Protocol:
    return classification_protocol(
        name,
        variant,
        params,
        source,
        geometry,
        dataset,
        benchmark=f"{benchmark}_{dataset}" if dataset in ("places205", "inat18", "cifar10") else benchmark,
        test_split="test" if dataset == "cifar10" else "val",
        revision=revision,
        primary=primary,
    )


_avgpool = partial(_protocol, "linear", "linear_avgpool", "AvgPool")
_multihead = partial(_protocol, "multihead", "linear_multihead", "Feature5")

# AvgPool: one head on the encoder's vector, no batch norm, no L2 norm, weights from N(0, 0.01), no bias at first.
# The published AvgPool column mixes several settings: its rows for SimCLR, BYOL and SimSiam come from `simsiam`, those
# of SwAV, Barlow Twins and MoCo v3 each from the variant of that name, the others from `mmselfsup`, which has the
# numbers of `moco`. All of them report the best of the epochs that they evaluate: every epoch, or every tenth and the
# last in mmselfsup's cosine settings, where revision 1 evaluated every epoch.

_EMBED: dict[str, Any] = {"outputs": ("embed",), "choose_epoch": "best"}
_MOCO = ProbeParams(**_EMBED, lrs=(30.0,), epochs=100, drops=(60, 80))
_BARLOW_TWINS = ProbeParams(**_EMBED, lrs=(0.3,), weight_decays=(1e-6,), epochs=100, schedule="cosine")
_SWAV = _BARLOW_TWINS.changed(evaluate_every=10)
_SIMSIAM = ProbeParams(
    **_EMBED, optimiser="lars", lrs=(1.6,), batch_size=4096, epochs=90, schedule="cosine", evaluate_every=10
)
_MOCO_V3 = ProbeParams(**_EMBED, lrs=(12.0,), batch_size=1024, epochs=90, schedule="cosine", evaluate_every=10)
_RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # from far too low to MoCo's
_DEMO = ProbeParams(
    outputs=("embed",), batch_size=64, epochs=20, drops=(12, 16), lrs=_RATES, heldout=0.2, choose_rate="loss"
)
_IMAGE_FOLDER = ProbeParams(outputs=("embed",), epochs=30, drops=(18, 24), lrs=_RATES, heldout=0.1)

AVGPOOL_PROTOCOLS = (
    _avgpool(
        "moco", _MOCO,
        Source(
            repository="facebookresearch/moco", revision="7397dfe",
            note="main_lincls.py: --lr 30 --wd 0 --batch-size 256, --schedule 60 80, RandomResizedCrop(224) and flip; "
            "evaluates every epoch and keeps the best; no seed; drop_last off",
        ),
    ),
    _avgpool(
        "mmselfsup", _MOCO,
        Source(
            **MMSELFSUP,
            note="imagenet/resnet50_linear-8xb32-steplr-100e_in1k.py, --seed 0; evaluates every epoch, and OpenSelfSup "
            "states that the best is reported",
        ),
    ),
    _avgpool(
        "simsiam", _SIMSIAM,
        Source(
            **MMSELFSUP,
            note="imagenet/resnet50_linear-8xb512-coslr-90e_in1k.py and core/optimizer/optimizers.py (LARS, eta "
            "0.001); SimSiam's own main_lincls.py scales 0.1 x batch / 256 to the same rate",
        ),
        revision=2,
    ),
    _avgpool(
        "swav", _SWAV,
        Source(
            **MMSELFSUP,
            note="imagenet/resnet50_linear-8xb32-coslr-100e_in1k.py; facebookresearch/swav eval_linear.py has the same "
            "rate and schedule",
        ),
        revision=2,
    ),
    _avgpool(
        "barlowtwins", _BARLOW_TWINS,
        Source(
            repository="facebookresearch/barlowtwins", revision="8e8d284",
            note="evaluate.py: --lr-classifier 0.3 --weight-decay 1e-6 --batch-size 256 --epochs 100, momentum 0.9, "
            "CosineAnnealingLR once per epoch; keeps the best epoch",
        ),
    ),
    _avgpool(
        "mocov3", _MOCO_V3,
        Source(
            **MMSELFSUP,
            note="imagenet/vit-small-p16_linear-8xb128-coslr-90e_in1k.py; facebookresearch/moco-v3 CONFIG.md says "
            "--lr=3, which its main_lincls.py scales by batch / 256",
        ),
        revision=2,
    ),
    *(
        _avgpool(
            "moco", _MOCO,
            Source(repository=OWN, note=f"linear_avgpool.moco@1 on {title}; no published figure to match"),
            dataset, geometry,
        )
        for dataset, title, geometry in (
            ("places205", "Places205", RESIZE_256),
            ("inat18", "iNaturalist 2018", RESIZE_256),
            ("cifar10", "CIFAR-10 at its own 32 pixels, measured on its test split", CIFAR),
        )
    ),
    _avgpool(
        "imagefolder", _IMAGE_FOLDER,
        Source(
            repository=OWN,
            note="linear_avgpool.moco@1 on any ImageFolder: a tenth of train chooses the rate and trains no head; "
            "small folders get smaller batches and more epochs, which the id shows; the last epoch is reported",
        ),
        "imagefolder",
    ),
    _avgpool(
        "demo", _DEMO,
        Source(
            repository=OWN,
            note="linear_avgpool.moco@1 made small; a fifth of train chooses the rate by its loss and trains no head; "
            "revision 1 chose by accuracy, which 103 drawings measure too coarsely",
        ),
        "drawings", SMALL, revision=2,
    ),
)  # fmt: skip

# Feature1 … Feature5: maps pooled to fixed grids, batch norm over their channels, and a head on each; last epoch.

_NESTEROV: dict[str, Any] = {"outputs": FEATURE_MAPS, "pooling": FIXED_224, "lrs": (0.01,), "nesterov": True}
_NO_COLOUR: dict[str, Any] = {"jitter": 0.0, "lighting": 0.0}

_MULTIHEAD = ProbeParams(
    **_NESTEROV,
    batch_norm="plain",
    weight_decays=(1e-4,),
    jitter=0.4,
    lighting=0.1,
    epochs=90,
    drops=(30, 60, 90),  # the last is never reached
    evaluate_every=10,
)
_MULTIHEAD_ON: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("imagenet", {}, "imagenet/resnet50_mhead_linear-8xb32-steplr-90e_in1k.py"),
    (
        "places205",
        {"epochs": 28, "drops": (7, 14, 21), "view": "stored_crop", **_NO_COLOUR},
        "places205/resnet50_mhead_8xb32-steplr-28e_places205.py, whose own evaluations stop at epoch 20",
    ),
    (
        "inat18",
        {"epochs": 84, "drops": (24, 48, 72), **_NO_COLOUR},
        "inaturalist2018/resnet50_mhead_8xb32-steplr-84e_inat18.py, whose own evaluations stop at epoch 80",
    ),
)
_VISSL = ProbeParams(**_NESTEROV, batch_norm="affine", head_init="default", weight_decays=(5e-4,), epochs=28)
_VISSL_ON: tuple[tuple[str, dict[str, Any]], ...] = (
    ("imagenet", {"epochs": 28, "drops": (8, 16, 24)}),
    ("places205", {"epochs": 14, "drops": (4, 8, 12)}),
    ("inat18", {"epochs": 84, "drops": (24, 48, 72)}),
)
_FSSB = _MULTIHEAD.changed(norm_groups=8, iterations=140_000, drops=(40_000, 80_000, 120_000), evaluate_every=1)

MULTIHEAD_PROTOCOLS = (
    *(
        _multihead("mmselfsup", _MULTIHEAD.changed(**changes), Source(**MMSELFSUP, note=note), dataset)
        for dataset, changes, note in _MULTIHEAD_ON
    ),
    *(
        _multihead(
            "vissl",
            _VISSL.changed(**changes),
            Source(
                repository="facebookresearch/vissl", revision="09270ed",
                note="configs/config/benchmark/linear_image_classification: 0.01 for a batch of 256; no decay on the "
                "batch norm's scale and shift; models/heads/mlp.py keeps torch's initial weights and biases",
            ),
            dataset, revision=2,
        )
        for dataset, changes in _VISSL_ON
    ),
    *(
        _multihead(
            "fssb", _FSSB.changed(epochs=epochs),
            Source(
                repository="facebookresearch/fair_self_supervision_benchmark", revision="1e5d165",
                note=f"140k iterations of 256, {exact} epochs, drops every 40k; data_input.py jitters, lights and "
                "normalises in this order, however the configuration lists them; batch norms over the 32 images of "
                "each of 8 GPUs",
            ),
            dataset, revision=2,
        )
        for dataset, epochs, exact in (("imagenet", 28, "28.0"), ("places205", 15, "14.6"))
    ),
    _multihead(
        "mmselfsup",
        _MULTIHEAD.changed(pooling=ADAPTIVE_GRIDS, **_NO_COLOUR),
        Source(
            repository=OWN,
            note="linear_multihead.mmselfsup@1 on CIFAR-10 at its own 32 pixels, measured on its test split: "
            "mmselfsup's CIFAR-10 benchmark trains the backbone too, so there is no published figure to match",
        ),
        "cifar10", CIFAR,
    ),
    _multihead(
        "demo",
        _DEMO.changed(
            outputs=FEATURE_MAPS,
            pooling=ADAPTIVE_GRIDS,
            batch_norm="plain",
            nesterov=True,
            weight_decays=(1e-4,),
            lrs=(0.001, 0.003, 0.01, 0.03),
            choose_rate="accuracy",
            evaluate_every=10,
        ),
        Source(
            repository=OWN,
            note="linear_multihead.mmselfsup@1 made small; a fifth of train chooses the rate and trains no head",
        ),
        "drawings", SMALL,
    ),
)  # fmt: skip

# DINOv2's grid: no batch norm. The sources choose the head on ImageNet's validation set and report it there; here a
# held-out part of train chooses, and the published choice stands beside it as the oracle.

GRID_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)  # for a batch of 256
GRID_BATCH = 1024


def _grid_rates(batch: int) -> tuple[float, ...]:
    return tuple(rate * batch / 256 for rate in GRID_RATES)


_DINOV2 = LinearGridParams(
    lrs=_grid_rates(GRID_BATCH),
    batch_size=GRID_BATCH,
    epochs=11,
    iterations=12_500,
    evaluate_every=11,  # the sources report the end of the run
    choose_epoch="last",
    heldout=0.01,
)
# Trained in one pass with linear_avgpool.imagefolder and .demo, of which these have views, batch and held-out part.
_GRID_IMAGE_FOLDER = LinearGridParams(lrs=_grid_rates(256), epochs=30, choose_epoch="last", heldout=0.1)
_GRID_DEMO = _GRID_IMAGE_FOLDER.changed(lrs=_grid_rates(64), batch_size=64, epochs=20, heldout=0.2)

_GRID_NOTE = (
    "{}: 13 rates x batch / 256, SGD 0.9 without decay, cosine at every step, 10 epochs of 1250 iterations, 128 images "
    "per GPU; the number of GPUs is not stated, and 8 are assumed; the head is chosen on a hundredth of train, which "
    "is this project's, and the oracle is what is published"
)


_grid = partial(classification_protocol, "linear-grid", primary=GRID_COLUMN)

GRID_PROTOCOLS = (
    _grid(
        "dinov2", _DINOV2,
        Source(
            repository="facebookresearch/dinov2", revision="b8931f7",
            note=_GRID_NOTE.format("dinov2/eval/linear.py, 1 and 4 blocks with and without the patch mean, 52 heads"),
        ),
        BICUBIC_224,
    ),
    _grid(
        "dinov3",
        _DINOV2.changed(blocks=(1,), mean=("with",)),
        Source(
            repository="facebookresearch/dinov3", revision="6876159",
            note=_GRID_NOTE.format("dinov3/eval/linear.py, the last block with the patch mean, 13 heads"),
        ),
        BICUBIC_224,
    ),
    _grid(
        "imagefolder", _GRID_IMAGE_FOLDER,
        Source(
            repository=OWN,
            note="linear_grid.dinov2@1 on any ImageFolder: a tenth of train chooses; trained in one pass with "
            "linear_avgpool.imagefolder",
        ),
        RESIZE_256, "imagefolder",
    ),
    _grid(
        "demo", _GRID_DEMO,
        Source(repository=OWN, note="linear_grid.dinov2@1 made small; a fifth of train chooses"),
        SMALL, "drawings",
    ),
)  # fmt: skip


# ---- tasks -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LinearProbe(ProbeTask[ProbeParams]):
    """Linear heads trained on views of the images, the encoder frozen."""

    Params = ProbeParams

    def outputs(self, protocol: Protocol) -> Outputs:
        return {output: (output, None) for output in self.params(protocol).outputs}


@dataclass(frozen=True)
class AvgPoolLinear(LinearProbe):
    """Linear probe on the encoder's vector after global average pooling (AvgPool)."""

    name = "linear"
    protocols = AVGPOOL_PROTOCOLS


@dataclass(frozen=True)
class MultiheadLinear(LinearProbe):
    """Linear probes on the maps of the stem and the four stages (Feature1 to Feature5)."""

    name = "multihead"
    protocols = MULTIHEAD_PROTOCOLS


@dataclass(frozen=True)
class LinearGrid(ProbeTask[LinearGridParams]):
    """Linear evaluation of DINOv2 and DINOv3: a grid of class tokens, patch mean and learning rates, in one pass."""

    name = "linear-grid"
    Params = LinearGridParams
    protocols = GRID_PROTOCOLS

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

"""Attentive probes on a frozen encoder: heads that pool the tokens of an image by attention, then classify.

They read a ViT's patch tokens after its final norm, without class and register tokens, and of a ResNet the map of the
last stage. Rate and epoch are chosen on a held-out part of train; the choice on test, which the sources publish, stands
beside it as the oracle. The forms of pooling are in `benchmarks.solvers.attentive_heads`.
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
    from benchmarks.solvers.attentive_heads import AttentiveBank
    from benchmarks.solvers.linear_heads import Bank, BankAdamW, BankOptimiser

# ---- parameters ------------------------------------------------------------------------------------------------------

COLUMN = "Attentive"
TOKENS = {"last": ("patches", "feature5"), "mean6": ("patches_mean6",), "all": ("patches", "cls")}
# What an encoder needs for tokens other than those of the last block.
NEEDED = {"mean6": "a vision transformer of six blocks or more", "all": "a vision transformer with a class token"}


class AttentiveParams(WarmupParams):
    """Attentive heads, one for each pair of `lrs` and `weight_decays`, trained in one pass over the images.

    Attributes:
        form: how tokens are pooled: `ep` (efficient probing), `aim`, `vjepa2` or `capi`.
        queries: of efficient probing; each pools its own slice of the width.
        attention_heads: of the other forms; 0 is one for every `head_width` channels.
        head_width: channels of one attention head, where `attention_heads` is 0.
        blocks: of self-attention before pooling, of V-JEPA's form.
        optimiser: `lars` is MAE's, with momentum and without a trust ratio for vectors.
        betas: of AdamW.
        tokens: the patch tokens of the last block, or of the mean of the last six blocks without the final norm, as
            AIM's; `all` are the patch tokens and the class token of the last block, as efficient probing reads them of
            encoders whose pretraining used the class token.
    """

    form: Literal["ep", "aim", "vjepa2", "capi"]
    queries: int = Field(32, gt=0)
    attention_heads: int = Field(0, ge=0)
    head_width: int = Field(64, gt=0)
    blocks: int = Field(0, ge=0)
    optimiser: Literal["adamw", "lars"] = "adamw"
    betas: tuple[NotNegative, NotNegative] = (0.9, 0.999)
    lars_eta: float = Field(1e-3, gt=0)
    tokens: Literal["last", "mean6", "all"] = Field("last", exclude_if=lambda value: value == "last")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.heldout == 0:
            raise ValueError("rate and epoch are chosen on a held-out part of train: set heldout > 0")
        if self.blocks and self.form != "vjepa2":
            raise ValueError(f"the form {self.form} has no self-attention blocks: leave blocks at 0")
        return self

    def columns(self) -> tuple[str, ...]:
        """The chosen head and epoch, the same head's last epoch, and the best head and epoch on test."""
        return (COLUMN, f"{COLUMN} top-5", f"{COLUMN} last", f"{COLUMN} oracle")

    def reads(self, names: Collection[str]) -> dict[str, tuple[tuple[str, Pooling | None], ...]]:
        """One bank, on the tokens that the encoder has: the first of those that stand in for each other, or all."""
        found = [name for name in TOKENS[self.tokens] if name in names]
        if self.tokens == "all":
            return {found[0]: tuple((name, None) for name in found)} if len(found) == len(TOKENS["all"]) else {}
        return {name: ((name, None),) for name in found[:1]}

    def bank(
        self, name: str, shapes: Sequence[tuple[int, ...]], channels: int, classes: int, seed: int
    ) -> AttentiveBank:
        """A new bank of attentive heads.

        Raises:
            NotApplicableError: queries or attention heads do not divide the width of the tokens.
        """
        import torch

        from benchmarks.solvers.attentive_heads import BANKS

        heads = self.attention_heads or max(1, channels // self.head_width)
        setting, parts = ("queries", self.queries) if self.form == "ep" else ("attention_heads", heads)
        if channels % parts:
            fitting = max(n for n in range(1, parts + 1) if channels % n == 0)
            raise NotApplicableError(
                f"{setting}={parts} does not divide the {channels} channels of {name}; add --set {setting}={fitting}, "
                "which the protocol's id will show"
            )
        return BANKS[self.form](
            channels,
            classes,
            len(self.grid),
            attention_heads=1 if self.form == "ep" else heads,
            queries=self.queries if self.form == "ep" else 1,
            blocks=self.blocks,
            generator=torch.Generator().manual_seed(seed),
        )

    def optimiser_of(self, bank: Bank) -> BankOptimiser | BankAdamW:
        """AdamW or LARS, each head with its own rate and weight decay."""
        from benchmarks.solvers.linear_heads import BankAdamW, BankOptimiser

        rates, weight_decays = zip(*self.grid, strict=True)
        if self.optimiser == "adamw":
            return BankAdamW(bank, rates, weight_decays, betas=self.betas)
        return BankOptimiser(bank, rates, weight_decays, momentum=self.momentum, lars_eta=self.lars_eta, maes=True)

    def column_of(self, bank: str) -> str:
        """The one column of the one bank."""
        return COLUMN


# ---- protocols -------------------------------------------------------------------------------------------------------

OWN = "this project"
HELD_OUT_IS_OWN = (
    "a hundredth of train is held out to choose by, which is this project's; the oracle is what is published"
)

RESIZE_256 = Geometry(mode="shorter", resize=256, crop=224)
BICUBIC_224 = RESIZE_256.model_copy(update={"interpolation": "bicubic"})
RESIZE_292 = Geometry(mode="shorter", resize=292, crop=256)
SMALL = Geometry(mode="shorter", resize=48, crop=48)  # uncropped: a drawing may lie anywhere in its picture

_EP = AttentiveParams(
    form="ep",
    view="clipped_crop",
    optimiser="lars",
    lrs=(1.6,),
    batch_size=4096,
    epochs=90,
    warmup=10,
    heldout=0.01,
)
_VJEPA2 = AttentiveParams(
    form="vjepa2",
    auto_augment="original",
    erasing=0.25,
    attention_heads=16,
    blocks=3,
    lrs=(5e-4, 1e-3, 1.5e-3, 2e-3),
    weight_decays=(8e-3, 4e-3, 2e-3, 1e-3, 5e-4),
    batch_size=1024,
    epochs=20,
    warmup=5,
    warmup_lr=2e-4,
    clock="after",
    heldout=0.01,
)
_CAPI_BATCH = 1024
_CAPI_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2)
_CAPI = AttentiveParams(
    form="capi",
    lrs=tuple(lr * _CAPI_BATCH / 256 for lr in _CAPI_RATES),
    weight_decays=(5e-4, 1e-3, 5e-2),
    betas=(0.9, 0.95),
    batch_size=_CAPI_BATCH,
    epochs=11,
    iterations=12_500,
    warmup=1250,
    clock="both",
    choose_epoch="last",
    heldout=0.1,
)
_AIM = _CAPI.changed(form="aim", attention_heads=12)

# Trained in one pass with linear_avgpool.imagefolder and .demo, of which these have views, batch and held-out part.
_IMAGE_FOLDER = AttentiveParams(
    form="ep", lrs=(1e-4, 3e-4, 1e-3, 3e-3), weight_decays=(1e-3, 5e-2), epochs=30, warmup=3, heldout=0.1
)
_DEMO = _IMAGE_FOLDER.changed(queries=8, weight_decays=(5e-2,), batch_size=64, epochs=20, warmup=2, heldout=0.2)


_protocol = partial(classification_protocol, "attentive", primary=COLUMN)

PROTOCOLS = (
    _protocol(
        "ep",
        _EP,
        Source(
            repository="billpsomas/efficient-probing",
            revision="b8f4fb8",
            note="poolings/ep.py with 32 queries, main_linprobe.py: LARS, 0.1 x batch / 256, batch 4096, 90 epochs, 10 "
            "of warm-up, cosine at every step, the crop of util/crop.py; there in float16, batch norms per GPU, the "
            f"last incomplete batch dropped; {HELD_OUT_IS_OWN}",
        ),
        BICUBIC_224,
        revision=2,  # 1 had momentum over the steps, as in mmselfsup's LARS
    ),
    _protocol(
        "vjepa2",
        _VJEPA2,
        Source(
            repository="facebookresearch/vjepa2",
            revision="c2963a4",
            note="src/models/attentive_pooler.py with 4 probe blocks and 16 heads, configs/eval/vitl/in1k.yaml: 20 of "
            "its 21 heads, without the one that has no warm-up; evaluated at 256 of 292, bilinear, and trained on "
            "bicubic crops, here bilinear too; images there become 16 equal frames, and training is in float16; "
            f"{HELD_OUT_IS_OWN}",
        ),
        RESIZE_292,
    ),
    _protocol(
        "capi",
        _CAPI,
        Source(
            repository="facebookresearch/capi",
            revision="98b4fa1",
            note="eval_classification.py: 30 heads on patch tokens, rates x batch / 256, AdamW (0.9, 0.95), 12,500 "
            "iterations, 1,250 of warm-up; 128 images per GPU there, and the number of GPUs is not stated: a batch of "
            "1024 is this project's; a tenth of train chooses, here of every class",
        ),
        BICUBIC_224,
    ),
    _protocol(
        "aim",
        _AIM,
        Source(
            repository="apple/ml-aim",
            revision="bd9e068",
            note="aim-v1/aim/v1/torch/layers.py, AttentionPoolingClassifier with 12 heads; how it was trained is not "
            "released: the recipe is this project's choice, that of attentive.capi@1, and so is reading the last block",
        ),
        BICUBIC_224,
    ),
    _protocol(
        "imagefolder",
        _IMAGE_FOLDER,
        Source(
            repository=OWN,
            note="efficient probing on any ImageFolder: AdamW, eight heads, a tenth of train chooses rate and epoch; "
            "trained in one pass with linear_avgpool.imagefolder",
        ),
        RESIZE_256,
        "imagefolder",
    ),
    _protocol(
        "demo",
        _DEMO,
        Source(
            repository=OWN,
            note="attentive.imagefolder@1 made small: 8 queries, four rates, a fifth of train chooses",
        ),
        SMALL,
        "drawings",
    ),
)

# ---- the task --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attentive(ProbeTask[AttentiveParams]):
    """Attentive probe: heads that pool patch tokens by attention (efficient probing, V-JEPA 2, AIM, CAPI)."""

    name = "attentive"
    Params = AttentiveParams
    protocols = PROTOCOLS

    def outputs(self, protocol: Protocol) -> Outputs:
        return {name: (name, None) for name in TOKENS[self.params(protocol).tokens]}

    def check_encoder(self, protocol: Protocol, encoder: Encoder) -> None:
        """Raises NotApplicableError for tokens that the encoder does not give."""
        tokens = self.params(protocol).tokens
        lacking = [name for name in TOKENS[tokens] if not encoder.has(name)]
        if lacking and tokens in NEEDED:
            raise NotApplicableError(
                f"{encoder.card.name} has no {lacking[0]}, which {protocol.id} reads: it needs {NEEDED[tokens]}; leave "
                f"out --set tokens={tokens}"
            )

"""Recipes: everything a pretraining run needs. A TOML file states the fields that differ from its parent's."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from results.errors import InputError, did_you_mean
from results.schema import Architecture, Frozen, Triple

BlurKernel = Literal["boxes", "gaussian"]
HueRotation = Literal["pil", "exact"]
RECIPES = Path(__file__).parent / "recipes"
# Narrowest first stage of each architecture that can be built: a group of a ResNeXt needs at least one channel.
RESNETS = {
    "resnet18": 1, "resnet34": 1, "resnet50": 1, "resnet101": 1, "resnet152": 1, "resnext50_32x4d": 16,
    "resnext50_32x8d": 8, "resnext101_32x8d": 8, "resnext101_64x4d": 16, "wide_resnet50_2": 1, "wide_resnet101_2": 1,
}  # fmt: skip
WIDEST = 512  # eight times ResNet's; the widest published one is four times
METHODS = {"end-to-end": "end-to-end contrast", "memory-bank": "memory bank", "simclr": "SimCLR"}


class Augmentation(Frozen):
    """One random view. The defaults are MoCo v2's list, "aug+" (section 3 of the note; main_moco.py --aug-plus).

    `engine` pil runs all of it per image in loader workers, as the reference does. cv2 makes the same views there by
    OpenCV, several times as fast; pixels differ by rounding. tensor leaves only decoding and cropping there and runs
    the rest on whole batches on the device; with `stored_size` the images are decoded once for the whole run, held in
    memory as squares of that many pixels, and cropped on the device too.
    """

    engine: Literal["pil", "cv2", "tensor"] = "pil"
    stored_size: int | None = Field(None, gt=0, le=4096, description="side of the squares that the run keeps in memory")
    crop: int = Field(224, gt=0, le=4096)
    crop_area: tuple[float, float] = (0.2, 1.0)
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    grayscale_first: bool = Field(False, description="v1 turns gray before the jitter, v2 after it")
    grayscale_p: float = Field(0.2, ge=0, le=1)
    jitter_p: float = Field(0.8, ge=0, le=1)
    brightness: float = Field(0.4, ge=0)
    contrast: float = Field(0.4, ge=0)
    saturation: float = Field(0.4, ge=0)
    hue: float = Field(0.1, ge=0, le=0.5)
    hue_rotation: HueRotation = Field("pil", description="of the tensor engine: in PIL's whole numbers, or exact")
    blur_p: float = Field(0.5, ge=0, le=1)
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_kernel: BlurKernel = Field("boxes", description="of the tensor engine: PIL's, or a true Gaussian")
    flip_p: float = Field(0.5, ge=0, le=1)

    @model_validator(mode="after")
    def _only_tensors_are_stored(self) -> Self:
        if self.engine != "tensor" and self.stored_size is not None:
            raise ValueError("stored_size is for engine = 'tensor': leave one of them out")
        return self

    @model_validator(mode="after")
    def _ranges_ascend(self) -> Self:
        for name, (low, high), least, most in (
            ("crop_area", self.crop_area, 0.0, 1.0),
            ("crop_aspect", self.crop_aspect, 0.0, math.inf),
            ("blur_sigma", self.blur_sigma, 0.0, math.inf),
        ):
            if not (least <= low <= high <= most and high < math.inf) or (low == 0 and name != "blur_sigma"):
                above = "above 0" if name != "blur_sigma" else "at least 0"
                limit = " and at most 1" if most == 1 else ""
                raise ValueError(f"{name} must be two ascending numbers {above}{limit}, got {low:g} {high:g}")
        return self


class Recipe(Frozen):
    """A pretraining run. The defaults are MoCo v2, ResNet-50, 200 epochs on ImageNet (arXiv 2003.04297, section 3).

    `batch_size` is the total over all ranks; the per-device batch follows from it. An epoch is one pass over the data,
    or `epoch_steps` steps where a setting counts iterations.
    """

    name: str = ""
    citation: str = "Chen et al., Improved Baselines with Momentum Contrastive Learning, arXiv 2003.04297"
    mechanism: Literal["momentum", "end-to-end", "memory-bank", "simclr"] = "momentum"
    architecture: Architecture = Architecture(name="resnet50")
    augmentation: Augmentation = Augmentation()
    mean: Triple = (0.485, 0.456, 0.406)
    std: Triple = (0.229, 0.224, 0.225)
    head: Literal["linear", "mlp"] = "mlp"
    dim: int = Field(128, gt=0, le=65536)
    queue_size: int = Field(
        65536, gt=0, le=2**26, description="K; for a memory bank the number of negatives drawn from it"
    )
    key_momentum: float = Field(0.999, ge=0, le=1)
    temperature: float = Field(0.2, gt=0)
    symmetric: bool = Field(False, description="each view is query and key in turn, and the two losses add up")
    bank_loss: Literal["infonce", "nce"] = Field("infonce", description="of a memory bank")
    bank_momentum: float = Field(0.5, ge=0, le=1, description="share of the old vector in a memory bank's update")
    split_bn: int = Field(
        8,
        gt=0,
        description="parts of the total batch with batch-norm statistics of their own, as on so many GPUs: what "
        "ShuffleBN needs. Every rank takes an equal share of the parts",
    )
    sync_bn: bool = Field(False, description="batch-norm statistics over all ranks, for mechanisms without a shuffle")
    batch_size: int = Field(256, gt=0, le=2**20)
    accumulate: int = Field(
        1,
        gt=0,
        description="parts of each rank's batch that are computed one after the other, for less memory. The step stays "
        "the same: one update of key encoder, queue and weights, and the groups of split_bn, of which a part has some",
    )
    epochs: int = Field(200, gt=0, le=10**6)
    epoch_steps: int | None = Field(None, gt=0, description="steps that are called an epoch; default one pass")
    optimizer: Literal["sgd", "lars"] = "sgd"
    lr: float = Field(0.03, ge=0)
    schedule: Literal["cosine", "step", "exponential"] = "cosine"
    schedule_per: Literal["epoch", "step"] = "epoch"
    steps_at: tuple[int, ...] = Field((), description="epochs at which `step` multiplies the rate by decay_factor")
    decay_factor: float = Field(0.1, description="of `step`, at steps_at, and of `exponential`, once an epoch")
    warmup_epochs: float = Field(0.0, ge=0, description="epochs in which the rate rises linearly from 0")
    cosine_from: float = Field(0.0, ge=0, description="epoch at which the half-cosine begins")
    sgd_momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-4, ge=0)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = Field(False, description="run the encoders through torch.compile")
    seed: int = Field(0, ge=0, lt=2**32)
    save_every_epochs: int = Field(10, gt=0)
    keep_last: int = Field(3, ge=0, description="numbered checkpoints that are kept beside resume.pt")
    marked_epochs: tuple[int, ...] = Field((), description="epochs whose checkpoint and backbone are kept for good")

    @model_validator(mode="after")
    def _queue_fits(self) -> Self:
        keys = self.batch_size * (2 if self.symmetric else 1)
        if self.mechanism == "momentum" and keys > self.queue_size:
            raise ValueError(
                f"a batch brings {keys} keys and the queue (queue_size) holds {self.queue_size}: lower batch_size or "
                "lengthen the queue"
            )
        if self.mechanism == "momentum" and self.queue_size % keys:
            raise ValueError(
                f"queue_size {self.queue_size} is not a multiple of batch_size {self.batch_size}"
                f"{', twice for both views' if self.symmetric else ''}: the queue is filled in whole batches, so "
                "choose a multiple"
            )
        if self.batch_size % self.split_bn:
            raise ValueError(f"batch_size {self.batch_size} does not split into split_bn {self.split_bn} equal parts")
        if self.batch_size == self.split_bn > 1:
            raise ValueError(f"split_bn {self.split_bn} leaves one image for each batch norm: lower split_bn")
        return self

    @model_validator(mode="after")
    def _network_can_be_built(self) -> Self:
        a, crop = self.architecture, self.augmentation.crop
        if a.name not in RESNETS:
            close = did_you_mean(a.name, RESNETS)
            raise ValueError(f"no architecture.name {a.name!r}{close}\nknown: {', '.join(RESNETS)}")
        if not RESNETS[a.name] <= a.width <= WIDEST:
            raise ValueError(f"architecture.width of a {a.name} must be {RESNETS[a.name]} to {WIDEST}, got {a.width}")
        padding = a.stem_kernel // 2 if a.stem_padding is None else a.stem_padding
        if not (1 <= a.stem_kernel <= crop + 2 * padding and 0 <= padding < WIDEST and 1 <= a.stem_stride <= crop):
            raise ValueError(
                f"the stem (architecture.stem_kernel {a.stem_kernel}, stem_stride {a.stem_stride}, padding {padding}) "
                f"does not fit crops of {crop} pixels"
            )
        if not 0 < a.bn_eps < 1:
            raise ValueError(f"architecture.bn_eps must be between 0 and 1, got {a.bn_eps:g}")
        return self

    @model_validator(mode="after")
    def _fields_go_together(self) -> Self:
        if self.symmetric and self.mechanism != "momentum":
            raise ValueError(f"symmetric is for mechanism = 'momentum', not {self.mechanism!r}")
        if self.sync_bn and self.split_bn > 1:
            raise ValueError(
                f"sync_bn joins the batch norms that split_bn {self.split_bn} takes apart: set split_bn = 1, or leave "
                "sync_bn out"
            )
        if self.warmup_epochs and self.schedule == "exponential":
            raise ValueError("warmup_epochs is for the cosine and step schedules")
        if self.schedule == "cosine" and not 0 <= self.cosine_from < self.epochs:
            raise ValueError(f"cosine_from {self.cosine_from:g} is not before the last of {self.epochs} epochs")
        return self

    @model_validator(mode="after")
    def _accumulation_is_the_same_step(self) -> Self:
        if self.accumulate == 1:
            return self
        if self.mechanism in ("end-to-end", "simclr") or self.bank_loss == "nce":
            raise ValueError(
                "accumulate needs negatives that are stored (mechanism = 'momentum', or 'memory-bank' with bank_loss = "
                f"'infonce'): {METHODS.get(self.mechanism, self.mechanism)} needs the whole batch at once"
            )
        if self.sync_bn:
            raise ValueError("accumulate takes the batch apart that sync_bn joins: leave one of them out")
        if self.split_bn % self.accumulate:
            raise ValueError(
                f"accumulate {self.accumulate} cuts through the groups of split_bn {self.split_bn}, whose statistics "
                "need their whole group: set split_bn to a multiple of accumulate"
            )
        return self

    @property
    def views(self) -> int:
        """Views per image in a batch."""
        return 1 if self.mechanism == "memory-bank" else 2

    @property
    def method(self) -> str:
        """Name of the method in an encoder's card."""
        return METHODS.get(self.mechanism, "MoCo v2" if self.head == "mlp" else "MoCo v1")

    def learning_rate(self, epoch: float) -> float:
        """The rate at `epoch`, which counts from 0 and may be fractional. The reference moves it once an epoch."""
        if epoch < self.warmup_epochs:
            return self.lr * epoch / self.warmup_epochs
        if self.schedule == "step":
            return self.lr * math.prod(self.decay_factor for at in self.steps_at if epoch >= at)
        if self.schedule == "exponential":
            return self.lr * self.decay_factor ** math.floor(epoch)
        start = self.cosine_from
        return self.lr * 0.5 * (1 + math.cos(math.pi * (epoch - start) / (self.epochs - start)))

    def changed(self, **changes: Any) -> Recipe:
        """The recipe with these fields changed, validated.

        Raises:
            InputError: see `checked_recipe`.
        """
        return checked_recipe({**self.model_dump(), **changes})


def checked_recipe(fields: dict[str, Any], source: str = "") -> Recipe:
    """The recipe of these fields.

    Args:
        source: where they are from, for the message.

    Raises:
        InputError: an unknown field, a wrong type, or fields that do not go together.
    """
    try:
        return Recipe.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where, what = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            fault = f"no field {where}{did_you_mean(where, _field_names(Recipe().model_dump()))}"
        else:
            fault = f"{where}: {what}" if where else what
        raise InputError(f"{source}: {fault}" if source else fault) from error


def load_recipe(name_or_path: str) -> Recipe:
    """The recipe of that name in `pretrain/recipes`, or in a TOML file of the user's.

    A file holds the fields that differ from its `parent` (a name; without one, from MoCo v2's defaults).

    Raises:
        InputError: no such recipe, a file that is not TOML or is its own parent, or see `checked_recipe`.
    """
    return checked_recipe(_fields(name_or_path), name_or_path)


def _fields(name_or_path: str, children: tuple[Path, ...] = ()) -> dict[str, Any]:
    path = Path(name_or_path) if name_or_path.endswith(".toml") else RECIPES / f"{name_or_path}.toml"
    if not path.is_file():
        if name_or_path.endswith(".toml"):
            raise InputError(f"recipe file not found: {path}")
        known = sorted(p.stem for p in RECIPES.glob("*.toml"))
        listed = "\n".join(known)
        raise InputError(
            f"no recipe {name_or_path!r}{did_you_mean(name_or_path, known)}\ngive a .toml file, or one of\n{listed}"
        )
    if path in children:
        raise InputError(f"{path} is its own parent: {' <- '.join(map(str, (*children, path)))}")
    try:
        own = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # of TOML, of UTF-8, or of brackets in brackets
        raise InputError(f"{path} is not a TOML file: {error}") from error
    parent = own.pop("parent", None)
    if not isinstance(parent, str | None):
        raise InputError(f"{path}: parent must be the name or path of a recipe, got {parent!r}")
    inherited = _fields(parent, (*children, path)) if parent else {}
    return {**merged(inherited, own), "name": path.stem}


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, table by table."""
    result = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


def _field_names(fields: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name, value in fields.items():
        found += _field_names(value, f"{prefix}{name}.") if isinstance(value, dict) else [f"{prefix}{name}"]
    return found

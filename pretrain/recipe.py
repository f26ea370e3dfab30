"""Recipes: everything a pretraining run needs, typed, read from TOML files that state how they differ from a parent."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from results.schema import Architecture, Frozen, Triple

BlurKernel = Literal["boxes", "gaussian"]
RECIPES = Path(__file__).parent / "recipes"


class Augmentation(Frozen):
    """One random view. The defaults are MoCo v2's list, "aug+" (section 3 of the note; main_moco.py --aug-plus).

    `engine` pil runs all of it per image in loader workers, as the reference does. tensor leaves only decoding and
    cropping there and runs the rest on whole batches on the device; with `stored_size` the images are decoded once for
    the whole run, held in memory as squares of that many pixels, and cropped on the device too.
    """

    engine: Literal["pil", "tensor"] = "pil"
    stored_size: int | None = Field(None, gt=0, description="side of the squares that the run keeps in memory")
    crop: int = Field(224, gt=0)
    crop_area: tuple[float, float] = (0.2, 1.0)
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    grayscale_first: bool = Field(False, description="v1 turns gray before the jitter, v2 after it")
    grayscale_p: float = Field(0.2, ge=0, le=1)
    jitter_p: float = Field(0.8, ge=0, le=1)
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    blur_p: float = Field(0.5, ge=0, le=1)
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_kernel: BlurKernel = Field("boxes", description="of the tensor engine: PIL's, or a true Gaussian")
    flip_p: float = Field(0.5, ge=0, le=1)

    @model_validator(mode="after")
    def _only_tensors_are_stored(self) -> Self:
        if self.engine == "pil" and self.stored_size is not None:
            raise ValueError("stored_size is for engine = 'tensor': leave one of them out")
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
    dim: int = Field(128, gt=0)
    queue_size: int = Field(65536, gt=0, description="K; for a memory bank the number of negatives drawn from it")
    key_momentum: float = Field(0.999, ge=0, le=1)
    temperature: float = Field(0.2, gt=0)
    symmetric: bool = Field(False, description="each view is query and key in turn, and the two losses add up")
    bank_loss: Literal["infonce", "nce"] = Field("infonce", description="of a memory bank")
    bank_momentum: float = Field(0.5, ge=0, le=1, description="share of the old vector in a memory bank's update")
    split_bn: int = Field(1, gt=0, description="virtual devices per batch norm; 1 leaves ShuffleBN to the real ranks")
    sync_bn: bool = Field(False, description="batch-norm statistics over all ranks, for mechanisms without a shuffle")
    batch_size: int = Field(256, gt=0)
    epochs: int = Field(200, gt=0)
    epoch_steps: int | None = Field(None, gt=0, description="steps that are called an epoch; default one pass")
    optimizer: Literal["sgd", "lars"] = "sgd"
    lr: float = Field(0.03, ge=0)
    schedule: Literal["cosine", "step", "exponential"] = "cosine"
    schedule_per: Literal["epoch", "step"] = "epoch"
    steps_at: tuple[int, ...] = Field((), description="epochs at which `step` multiplies the rate by decay_factor")
    decay_factor: float = Field(0.1, description="of `step`, at steps_at, and of `exponential`, once an epoch")
    warmup_epochs: float = Field(0.0, ge=0, description="epochs in which the rate rises linearly from 0")
    cosine_from: float = Field(0.0, ge=0, description="epoch at which the half-cosine begins")
    sgd_momentum: float = 0.9
    weight_decay: float = 1e-4
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = Field(False, description="run the encoders through torch.compile")
    seed: int = 0
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
        return self

    @model_validator(mode="after")
    def _fields_go_together(self) -> Self:
        if self.symmetric and self.mechanism != "momentum":
            raise ValueError(f"symmetric is for mechanism = 'momentum', not {self.mechanism!r}")
        if self.sync_bn and self.split_bn > 1:
            raise ValueError("sync_bn joins batch norms that split_bn takes apart: leave one of them out")
        if self.warmup_epochs and self.schedule == "exponential":
            raise ValueError("warmup_epochs is for the cosine and step schedules")
        return self


def load_recipe(name_or_path: str) -> Recipe:
    """The recipe of that name in `pretrain/recipes`, or in a TOML file of the user's.

    A file holds the fields that differ from its `parent` (a name; without one, from MoCo v2's defaults).

    Raises:
        FileNotFoundError: no such recipe.
        ValueError: a file that is not TOML, or is its own parent; as pydantic.ValidationError an unknown field or a
            wrong type.
    """
    fields = _fields(name_or_path)
    return Recipe(**fields)


def _fields(name_or_path: str, children: tuple[Path, ...] = ()) -> dict[str, Any]:
    path = Path(name_or_path) if name_or_path.endswith(".toml") else RECIPES / f"{name_or_path}.toml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
        raise FileNotFoundError(f"no recipe {name_or_path!r}; known are {known}, or give a path to a .toml file")
    if path in children:
        raise ValueError(f"{path} is its own parent: {' <- '.join(map(str, (*children, path)))}")
    try:
        own = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of TOML or of UTF-8
        raise ValueError(f"{path} is not a TOML file: {error}") from error
    parent = own.pop("parent", None)
    if not isinstance(parent, str | None):
        raise ValueError(f"{path}: parent is {parent!r} and must be the name or path of a recipe")
    inherited = _fields(parent, (*children, path)) if parent else {}
    return {**merged(inherited, own), "name": path.stem}


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, table by table."""
    result = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result

"""Recipes: everything a pretraining run needs, typed, read from TOML files that state how they differ from a parent."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from results.schema import Architecture, Frozen, Triple

RECIPES = Path(__file__).parent / "recipes"


class Augmentation(Frozen):
    """One random view. The defaults are MoCo v2's list, "aug+" (section 2 of the note; main_moco.py).

    `engine` pil runs it per image in loader workers, as the reference does; tensor runs it on whole batches, on
    images that are decoded once and held at `stored_size` squared pixels.
    """

    engine: Literal["pil", "tensor"] = "pil"
    stored_size: int | None = Field(None, description="side of the stored images, for the tensor engine")
    crop: int = 224
    crop_area: tuple[float, float] = (0.2, 1.0)
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    grayscale_first: bool = Field(False, description="v1 turns gray before the jitter, v2 after it")
    grayscale_p: float = 0.2
    jitter_p: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    blur_p: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    flip_p: float = 0.5

    @model_validator(mode="after")
    def _tensor_needs_a_size(self) -> Self:
        if (self.engine == "tensor") != (self.stored_size is not None):
            raise ValueError("stored_size is for engine = 'tensor', and that engine needs it")
        return self


class Recipe(Frozen):
    """A pretraining run. The defaults are MoCo v2, ResNet-50, 200 epochs on ImageNet (arXiv 2003.04297, section 3).

    `batch_size` is the total over all ranks; the per-device batch follows from it.
    """

    name: str = ""
    citation: str = "Chen et al., Improved Baselines with Momentum Contrastive Learning, arXiv 2003.04297"
    architecture: Architecture = Architecture(name="resnet50")
    augmentation: Augmentation = Augmentation()
    mean: Triple = (0.485, 0.456, 0.406)
    std: Triple = (0.229, 0.224, 0.225)
    head: Literal["linear", "mlp"] = "mlp"
    dim: int = 128
    queue_size: int = 65536
    key_momentum: float = 0.999
    temperature: float = 0.2
    split_bn: int = Field(1, description="virtual devices per batch norm; 1 leaves ShuffleBN to the real ranks")
    batch_size: int = 256
    epochs: int = 200
    lr: float = 0.03
    schedule: Literal["cosine", "step"] = "cosine"
    schedule_per: Literal["epoch", "step"] = "epoch"
    steps_at: tuple[int, ...] = Field((), description="epochs at which `step` multiplies the rate by 0.1")
    warmup_epochs: float = 0.0
    sgd_momentum: float = 0.9
    weight_decay: float = 1e-4
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0
    save_every_epochs: int = 10

    @model_validator(mode="after")
    def _queue_fits(self) -> Self:
        if self.queue_size % self.batch_size:
            raise ValueError(
                f"queue_size {self.queue_size} is not a multiple of batch_size {self.batch_size}: the queue is filled "
                "in whole batches, so choose a multiple"
            )
        if self.batch_size % self.split_bn:
            raise ValueError(f"batch_size {self.batch_size} does not split into split_bn {self.split_bn} equal parts")
        return self


def load_recipe(name_or_path: str) -> Recipe:
    """The recipe of that name in `pretrain/recipes`, or in a TOML file of the user's.

    A file holds the fields that differ from its `parent` (a name; without one, from MoCo v2's defaults).

    Raises:
        FileNotFoundError: no such recipe.
        pydantic.ValidationError: an unknown field or a wrong type.
    """
    fields = _fields(name_or_path)
    return Recipe(**fields)


def _fields(name_or_path: str) -> dict[str, Any]:
    path = Path(name_or_path) if name_or_path.endswith(".toml") else RECIPES / f"{name_or_path}.toml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
        raise FileNotFoundError(f"no recipe {name_or_path!r}; known are {known}, or give a path to a .toml file")
    own = tomllib.loads(path.read_text(encoding="utf-8"))
    parent = own.pop("parent", None)
    inherited = _fields(parent) if parent else {}
    return {**merged(inherited, own), "name": path.stem}


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, table by table."""
    result = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result

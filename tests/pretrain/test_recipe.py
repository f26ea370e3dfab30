"""Recipes: the paper's defaults, inheritance, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from pretrain.recipe import RECIPES, RESNETS, Recipe, load_recipe, merged
from results.errors import InputError
from results.schema import Architecture


def test_defaults_are_moco_v2_as_published() -> None:
    """Arxiv 2003.04297 section 3 and the reference's flags --mlp --moco-t 0.2 --aug-plus --cos."""
    r = load_recipe("mocov2_resnet50_8xb32-coslr-200e_in1k")
    assert (r.architecture.name, r.architecture.width, r.architecture.stem_kernel, r.architecture.max_pool) == (
        "resnet50", 64, 7, True,
    )  # fmt: skip
    assert (r.head, r.dim, r.queue_size, r.key_momentum, r.temperature) == ("mlp", 128, 65536, 0.999, 0.2)
    assert (r.batch_size, r.epochs, r.lr, r.sgd_momentum, r.weight_decay) == (256, 200, 0.03, 0.9, 1e-4)
    assert (r.schedule, r.schedule_per, r.warmup_epochs, r.split_bn) == ("cosine", "epoch", 0, 8)
    a = r.augmentation
    assert (a.crop, a.crop_area, a.grayscale_first, a.grayscale_p, a.flip_p) == (224, (0.2, 1.0), False, 0.2, 0.5)
    assert (a.jitter_p, a.brightness, a.contrast, a.saturation, a.hue) == (0.8, 0.4, 0.4, 0.4, 0.1)
    assert (a.blur_p, a.blur_sigma) == (0.5, (0.1, 2.0))


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda p: p.stem)
def test_every_recipe_loads_under_its_name(path: Path) -> None:
    assert load_recipe(path.stem).name == path.stem


def test_a_file_inherits_from_its_parent_and_overrides_nested_fields(tmp_path: Path) -> None:
    child = tmp_path / "mine.toml"
    child.write_text('parent = "mocov2_resnet18w32_demo"\nlr = 0.5\n[augmentation]\nhue = 0.25\n', encoding="utf-8")
    parent, r = load_recipe("mocov2_resnet18w32_demo"), load_recipe(str(child))
    assert (r.name, r.lr, r.augmentation.hue) == ("mine", 0.5, 0.25)
    assert r.augmentation.crop == parent.augmentation.crop
    assert r.architecture == parent.architecture


@pytest.mark.parametrize("text", ["moment = 0.9", 'epochs = "many"', "[augmentation]\nblurr_p = 1.0"])
def test_unknown_fields_and_wrong_types_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"moment|epochs|blurr_p"):
        load_recipe(str(path))


def test_unknown_recipe_names_the_known_ones() -> None:
    with pytest.raises(InputError, match="mocov2_resnet18w32_demo"):
        load_recipe("mocov3")


def test_merged_leaves_its_arguments_alone() -> None:
    base = {"a": {"x": 1, "y": 2}, "b": 3}
    assert merged(base, {"a": {"y": 5}}) == {"a": {"x": 1, "y": 5}, "b": 3}
    assert base == {"a": {"x": 1, "y": 2}, "b": 3}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"queue_size": 300, "batch_size": 256}, "not a multiple of batch_size 256"),
        ({"queue_size": 128, "batch_size": 256}, "brings 256 keys and the queue .* holds 128"),
        ({"queue_size": 256, "batch_size": 256, "symmetric": True}, "brings 512 keys"),
        ({"queue_size": 768, "batch_size": 256, "symmetric": True}, "twice for both views"),
        ({"mechanism": "simclr", "symmetric": True}, "symmetric is for mechanism = 'momentum'"),
        ({"sync_bn": True, "split_bn": 8}, "set split_bn = 1, or leave sync_bn out"),
        ({"batch_size": 8, "queue_size": 8}, "leaves one image for each batch norm"),
        ({"augmentation": {"crop_area": (2, 1)}}, "crop_area must be two ascending numbers above 0 and at most 1"),
        ({"augmentation": {"crop_area": (0.9, 0.2)}}, "ascending"),
        ({"augmentation": {"crop_area": (0.2, 1.5)}}, "at most 1, got 0.2 1.5"),
        ({"augmentation": {"crop_aspect": (0.0, 1.0)}}, "crop_aspect must be two ascending numbers above 0"),
        ({"augmentation": {"blur_sigma": (2.0, 0.1)}}, "blur_sigma must be two ascending numbers"),
        ({"augmentation": {"crop": 10**6}}, "augmentation.crop"),
        ({"architecture": {"name": "resnet5"}}, "no architecture.name 'resnet5'; did you mean 'resnet50'"),
        ({"architecture": {"name": "resnet50", "width": 10**6}}, "width of a resnet50 must be 1 to 512"),
        ({"architecture": {"name": "resnext50_32x4d", "width": 8}}, "width of a resnext50_32x4d must be 16 to 512"),
        ({"architecture": {"name": "resnet18", "stem_kernel": 0}}, "the stem .* does not fit crops of 224 pixels"),
        ({"architecture": {"name": "resnet18", "stem_kernel": 999, "stem_padding": 0}}, "the stem .* does not fit"),
        ({"architecture": {"name": "resnet18", "bn_eps": -1.0}}, "bn_eps must be between 0 and 1"),
        ({"dim": 10**9}, "dim"),
        ({"seed": 2**70}, "seed"),
        ({"seed": -1}, "seed"),
        ({"epochs": 10, "cosine_from": 10}, "cosine_from 10 is not before the last of 10 epochs"),
        ({"schedule": "exponential", "warmup_epochs": 1}, "cosine and step"),
        ({"augmentation": {"stored_size": 32}}, "engine = 'tensor'"),
        ({"temperature": 0}, "temperature"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        Recipe(**fields)  # type: ignore[arg-type]


@pytest.mark.slow
def test_every_architecture_builds_at_its_narrowest() -> None:
    from pretrain.resnet import STAGES, ResNet

    assert RESNETS.keys() == STAGES.keys()
    for name, width in RESNETS.items():
        assert ResNet(Architecture(name=name, width=width)).channels >= width


def test_other_mechanisms_need_no_queue_that_fits() -> None:
    assert Recipe(mechanism="end-to-end", queue_size=3).queue_size == 3

"""Recipes: the paper's defaults, inheritance, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from pretrain.recipe import RECIPES, Recipe, load_recipe, merged
from pretrain.train import learning_rate


def test_defaults_are_moco_v2_as_published() -> None:
    """Arxiv 2003.04297 section 3 and the reference's flags --mlp --moco-t 0.2 --aug-plus --cos."""
    r = load_recipe("mocov2_resnet50_8xb32-coslr-200e_in1k")
    assert (r.architecture.name, r.architecture.width, r.architecture.stem_kernel, r.architecture.max_pool) == (
        "resnet50", 64, 7, True,
    )  # fmt: skip
    assert (r.head, r.dim, r.queue_size, r.key_momentum, r.temperature) == ("mlp", 128, 65536, 0.999, 0.2)
    assert (r.batch_size, r.epochs, r.lr, r.sgd_momentum, r.weight_decay) == (256, 200, 0.03, 0.9, 1e-4)
    assert (r.schedule, r.schedule_per, r.warmup_epochs, r.split_bn) == ("cosine", "epoch", 0, 1)
    a = r.augmentation
    assert (a.crop, a.crop_area, a.grayscale_first, a.grayscale_p, a.flip_p) == (224, (0.2, 1.0), False, 0.2, 0.5)
    assert (a.jitter_p, a.brightness, a.contrast, a.saturation, a.hue) == (0.8, 0.4, 0.4, 0.4, 0.1)
    assert (a.blur_p, a.blur_sigma) == (0.5, (0.1, 2.0))


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda p: p.stem)
def test_every_recipe_loads_under_its_name(path: Path) -> None:
    assert load_recipe(path.stem).name == path.stem


def test_cosine_schedule_moves_once_an_epoch_as_published() -> None:
    r = Recipe()
    assert learning_rate(r, 0) == 0.03
    assert learning_rate(r, 100) == pytest.approx(0.015)
    assert learning_rate(r, 199) == pytest.approx(0.03 * 0.5 * (1 - 0.99987663), rel=1e-3)


def test_step_schedule_of_v1() -> None:
    r = Recipe(schedule="step", steps_at=(120, 160))
    assert [learning_rate(r, e) for e in (0, 119, 120, 160)] == pytest.approx([0.03, 0.03, 0.003, 0.0003])


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
    with pytest.raises(ValidationError, match=r"moment|epochs|blurr_p"):
        load_recipe(str(path))


def test_unknown_recipe_names_the_known_ones() -> None:
    with pytest.raises(FileNotFoundError, match="mocov2_resnet18w32_demo"):
        load_recipe("mocov3")


def test_merged_leaves_its_arguments_alone() -> None:
    base = {"a": {"x": 1, "y": 2}, "b": 3}
    assert merged(base, {"a": {"y": 5}}) == {"a": {"x": 1, "y": 5}, "b": 3}
    assert base == {"a": {"x": 1, "y": 2}, "b": 3}

"""Order, views and shares of batches, from files and from shards, and going on in the middle."""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from pretrain import distributed, loader
from pretrain.data import Files, Shards, find_images
from pretrain.loader import Loader
from pretrain.mechanism import Batch
from pretrain.recipe import Recipe
from results.errors import InputError
from results.schema import Architecture

IMAGES = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """IMAGES files, and the same in 7 unequal shards: image i is of gray level i."""
    root = tmp_path_factory.mktemp("images")
    (root / "files").mkdir()
    (root / "tars").mkdir()
    for number in range(IMAGES):
        Image.new("RGB", (20, 24), (number, number, number)).save(root / "files" / f"{number:03d}.png")
    start = 0
    for shard, count in enumerate((3, 9, 5, 8, 4, 6, 5)):
        with tarfile.open(root / "tars" / f"{shard}.tar", "w") as tar:
            for number in range(start, start + count):
                data = (root / "files" / f"{number:03d}.png").read_bytes()
                member = tarfile.TarInfo(f"{number:03d}.png")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        start += count
    return root


def recipe_of(engine: str = "pil", **changes: object) -> Recipe:
    augmentation = {"engine": engine, "crop": 8, "brightness": 0.0, "contrast": 0.0, "jitter_p": 0.0}
    fields = {
        "architecture": Architecture(name="resnet18", width=8),
        "augmentation": augmentation,
        "batch_size": 8,
        "queue_size": 16,
        "split_bn": 1,
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        **changes,
    }
    return Recipe(**fields)  # type: ignore[arg-type]


def loader_of(images: Files | Shards, recipe: Recipe, workers: int = 0) -> Loader:
    return Loader(recipe, images, torch.device("cpu"), torch.Generator().manual_seed(0), workers)


def levels(batch: Batch) -> list[list[int]]:
    """The gray level of each image in each view."""
    return [(view.mean(dim=(1, 2, 3)) * 255).round().int().tolist() for view in batch.views]


@pytest.mark.parametrize("engine", ["pil", "tensor"])
@pytest.mark.parametrize("kind", ["files", "tars"])
@pytest.mark.parametrize("workers", [0, 2])
def test_views_are_of_the_image_that_the_index_names(folder: Path, engine: str, kind: str, workers: int) -> None:
    loader = loader_of(find_images(folder / kind), recipe_of(engine), workers)
    assert loader.steps == 5
    batches = list(loader.epoch(0))
    assert [len(batch.indices) for batch in batches] == [8] * 5
    for batch in batches:
        assert [tuple(view.shape) for view in batch.views] == [(8, 3, 8, 8)] * 2
        assert levels(batch) == [batch.indices.tolist()] * 2


@pytest.mark.parametrize("kind", ["files", "tars"])
def test_every_pass_has_its_own_order_and_the_same_one_again(folder: Path, kind: str) -> None:
    loader = loader_of(find_images(folder / kind), recipe_of())
    first, again, second = (torch.cat([b.indices for b in loader.epoch(n)]).tolist() for n in (0, 0, 1))
    assert first == again != second
    assert sorted(first) == sorted(second) == list(range(IMAGES))


@pytest.mark.parametrize("kind", ["files", "tars"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_pass_goes_on_at_any_step(folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str, workers: int) -> None:
    """The same images in the same views as without a break, whichever worker's turn it is."""
    monkeypatch.setattr(loader, "BLOCK", 6)
    loading = loader_of(find_images(folder / kind), recipe_of(batch_size=4), workers)
    whole = list(loading.epoch(3))
    for first in range(1, 10) if not workers else (1, 4):
        rest = list(loading.epoch(3, first))
        assert len(rest) == len(whole) - first
        for one, two in zip(rest, whole[first:], strict=True):
            assert torch.equal(one.indices, two.indices)
            assert all(torch.equal(a, b) for a, b in zip(one.views, two.views, strict=True))


def test_files_do_not_depend_on_the_number_of_workers(folder: Path) -> None:
    zero, two = (list(loader_of(find_images(folder / "files"), recipe_of(), w).epoch(0)) for w in (0, 2))
    for one, other in zip(zero, two, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.views, other.views, strict=True))


@pytest.mark.parametrize("kind", ["files", "tars"])
def test_ranks_share_a_pass(folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    seen = Counter[int]()
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda own=rank: own)
        batches = list(loader_of(find_images(folder / kind), recipe_of()).epoch(0))
        assert [len(batch.indices) for batch in batches] == [4] * 5
        seen.update(torch.cat([batch.indices for batch in batches]).tolist())
    if kind == "files":
        assert seen == Counter(range(IMAGES))
    else:  # a rank with fewer images than its steps need begins again with its own shards
        assert sum(seen.values()) == IMAGES
        assert len(seen) >= 30
        assert max(seen.values()) <= 2


def test_shards_of_the_ranks_are_disjoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    found = []
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda own=rank: own)
        loader = loader_of(find_images(folder / "tars"), recipe_of())
        found.append({int(i) for batch in loader.epoch(0) for i in batch.indices})
    assert not found[0] & found[1]


def test_a_memory_bank_takes_one_view(folder: Path) -> None:
    batch = next(loader_of(find_images(folder / "files"), recipe_of(mechanism="memory-bank")).epoch(0))
    assert len(batch.views) == 1


@pytest.mark.parametrize(
    ("changes", "workers", "sentence"),
    [
        ({"batch_size": 64, "queue_size": 64}, 0, "40 images do not fill one batch of 64"),
        ({}, 8, "7 shards cannot be dealt to 1 ranks of 8 loader workers"),
        ({"augmentation": {"engine": "tensor", "stored_size": 16, "crop": 8}}, 0, "with tar shards set it to None"),
    ],
)
def test_impossible_loads_are_refused(folder: Path, changes: dict[str, object], workers: int, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        loader_of(find_images(folder / "tars"), recipe_of(**changes), workers)


def test_a_batch_that_does_not_split_over_the_ranks_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    with pytest.raises(InputError, match="does not split over 3 ranks"):
        loader_of(find_images(folder / "files"), recipe_of())


def test_an_index_that_does_not_fit_its_shard_is_named(folder: Path) -> None:
    found = find_images(folder / "tars")
    assert isinstance(found, Shards)
    wrong = Shards(found.urls, (4, *found.counts[1:]))
    with pytest.raises(InputError, match=r"0.tar holds 3 images where its index says 4"):
        list(loader_of(wrong, recipe_of()).epoch(0))

"""Order, views and shares of batches, from files and from shards, and going on in the middle."""

from __future__ import annotations

import io
import tarfile
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


@pytest.mark.parametrize("engine", ["pil", "tensor", "cv2"])
@pytest.mark.parametrize("kind", ["files", "tars"])
@pytest.mark.parametrize("workers", [0, 2])
def test_views_are_of_the_image_that_the_index_names(folder: Path, engine: str, kind: str, workers: int) -> None:
    if engine == "cv2":
        pytest.importorskip("cv2")
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


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["files", "tars"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_pass_goes_on_at_any_step(folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str, workers: int) -> None:
    """The same images in the same views as without a break, whichever worker's turn it is."""
    monkeypatch.setattr(loader, "MIXED", 12)
    loading = loader_of(find_images(folder / kind), recipe_of(batch_size=4), workers)
    whole = list(loading.epoch(3))
    for first in range(1, 10) if not workers else (1, 4):
        rest = list(loading.epoch(3, first))
        assert len(rest) == len(whole) - first
        for one, two in zip(rest, whole[first:], strict=True):
            assert torch.equal(one.indices, two.indices)
            assert all(torch.equal(a, b) for a, b in zip(one.views, two.views, strict=True))


@pytest.mark.parametrize("kind", ["files", "tars"])
def test_batches_do_not_depend_on_the_number_of_workers(folder: Path, kind: str) -> None:
    zero, two = (list(loader_of(find_images(folder / kind), recipe_of(), w).epoch(0)) for w in (0, 2))
    for one, other in zip(zero, two, strict=True):
        assert torch.equal(one.indices, other.indices)
        assert all(torch.equal(a, b) for a, b in zip(one.views, other.views, strict=True))


def batches_of_ranks(images: Files | Shards, recipe: Recipe, ranks: int, passes: int, first_step: int) -> list[Batch]:
    """The whole batches, from a step of the pass on, that so many simulated ranks make."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "world_size", lambda: ranks)
        for rank in range(ranks):
            patch.setattr(distributed, "rank", lambda own=rank: own)
            found.append(list(loader_of(images, recipe).epoch(passes, first_step)))
    return [
        Batch(tuple(map(torch.cat, zip(*(p.views for p in parts), strict=True))), torch.cat([p.indices for p in parts]))
        for parts in zip(*found, strict=True)
    ]


@pytest.mark.parametrize("kind", ["files", "tars"])
def test_ranks_share_a_pass_and_go_on_with_the_work_of_another_number(folder: Path, kind: str) -> None:
    """On 1, 2 and 3 ranks the batches are the same, each image is in one of them, and any step is a place to go on."""
    images, recipe = find_images(folder / kind), recipe_of(batch_size=24, queue_size=24)
    short = recipe_of(batch_size=8)
    alone = batches_of_ranks(images, recipe, 1, 2, 0)
    for ranks in (2, 3):
        for one, other in zip(alone, batches_of_ranks(images, recipe, ranks, 2, 0), strict=True):
            assert torch.equal(one.indices, other.indices)
            assert all(torch.equal(a, b) for a, b in zip(one.views, other.views, strict=True))
    whole, rest = batches_of_ranks(images, short, 1, 1, 0), batches_of_ranks(images, short, 2, 1, 2)
    assert sorted(torch.cat([batch.indices for batch in whole]).tolist()) == list(range(IMAGES))
    for one, other in zip(whole[2:], rest, strict=True):
        assert torch.equal(one.indices, other.indices)
        assert all(torch.equal(a, b) for a, b in zip(one.views, other.views, strict=True))


def test_a_batch_of_shards_is_of_many_of_them(folder: Path) -> None:
    images = find_images(folder / "tars")
    assert isinstance(images, Shards)
    ends = torch.tensor(images.counts).cumsum(0)
    recipe = recipe_of(batch_size=20, queue_size=20)
    for number in range(3):
        for batch in loader_of(images, recipe).epoch(number):
            assert len(torch.bucketize(batch.indices, ends, right=True).unique()) >= 4


def test_a_memory_bank_takes_one_view(folder: Path) -> None:
    batch = next(loader_of(find_images(folder / "files"), recipe_of(mechanism="memory-bank")).epoch(0))
    assert len(batch.views) == 1


@pytest.mark.parametrize(
    ("changes", "workers", "sentence"),
    [
        ({"batch_size": 64, "queue_size": 64}, 0, "40 images do not fill one batch of 64"),
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


def test_streams_that_do_not_split_over_the_ranks_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    with pytest.raises(InputError, match=r"2 streams, which do not split over 4 ranks; .* a multiple of 16"):
        loader_of(find_images(folder / "tars"), recipe_of())


def test_an_index_that_does_not_fit_its_shard_is_named(folder: Path) -> None:
    found = find_images(folder / "tars")
    assert isinstance(found, Shards)
    wrong = Shards(found.urls, (4, *found.counts[1:]))
    with pytest.raises(InputError, match=r"0.tar holds 3 images where its index says 4"):
        list(loader_of(wrong, recipe_of()).epoch(0))


@pytest.mark.parametrize(
    ("engine", "batches", "expected"), [("pil", 99, 4), ("pil", 3, 3), ("pil", 0, 1), ("tensor", 1, 4)]
)
def test_batches_that_wait_take_a_bounded_amount_of_memory(
    folder: Path, engine: str, batches: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers of batches of two views of 8 images in float32; the tensor engine's are bytes."""
    monkeypatch.setattr(loader, "READ_AHEAD_BYTES", batches * 2 * (8 * 2 * 3 * 8 * 8 * 4))
    made = loader_of(find_images(folder / "files"), recipe_of(engine), workers=2)
    assert made._workers([], 8, 2).prefetch_factor == expected  # type: ignore[arg-type]

"""The cv2 engine gives the PIL engine's views: the same random numbers, and pixels that differ by rounding."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torchvision import transforms as T
from torchvision.transforms import functional as TF

from pretrain.augment import PilViews, seeded_views
from pretrain.data import Pixels, read_pixels, read_rgb, require_cv2
from pretrain.recipe import RECIPES, Augmentation, load_recipe
from results.errors import InputError

pytest.importorskip("cv2")

from pretrain import augment as fast

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
V1 = Augmentation(grayscale_first=True, jitter_p=1.0, hue=0.4, blur_p=0.0)


def photograph(width: int = 125, height: int = 94, seed: int = 0) -> Pixels:
    """Coarse shapes with some grain."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height), 3)
    return (np.asarray(coarse) + random.normal(0, 6, (height, width, 3))).clip(0, 255).astype(np.uint8)


def distance(ours: Pixels, theirs: Image.Image) -> tuple[float, float]:
    """Mean and largest difference of one channel of one pixel, of 255."""
    off = np.abs(ours.astype(np.int64) - np.asarray(theirs))
    return float(off.mean()), float(off.max())


# ---- decoding --------------------------------------------------------------------------------------------------------


def encoded(image: Image.Image, kind: str = "JPEG", **settings: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **settings)
    return stream.getvalue()


def turned_by_exif(image: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(image, exif=exif)


@pytest.mark.parametrize(
    "file",
    [
        lambda image: encoded(image, quality=90),
        lambda image: encoded(image, quality=60, subsampling="4:4:4"),
        lambda image: encoded(image, quality=75, progressive=True),
        lambda image: encoded(image, quality=75, subsampling="4:2:2", optimize=True),
        lambda image: encoded(image.convert("L")),
        lambda image: encoded(image.convert("CMYK")),
        lambda image: encoded(image) + b"\0\0",
        lambda image: encoded(image, "PNG"),
        turned_by_exif,
    ],
    ids=["4:2:0", "4:4:4", "progressive", "4:2:2", "gray", "CMYK", "with a tail", "PNG", "turned by EXIF"],
)
def test_files_are_read_to_the_pixels_of_pillow(file: Callable[[Image.Image], bytes]) -> None:
    data = file(Image.fromarray(photograph()))
    assert np.array_equal(read_pixels(data), np.asarray(read_rgb(data, "x")))


def test_opencv_decodes_common_jpeg_files_and_no_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    image = Image.fromarray(photograph())
    monkeypatch.setattr("pretrain.data.read_rgb", lambda *_: Image.new("RGB", (1, 1)))
    (tmp_path / "a.jpg").write_bytes(turned_by_exif(image))
    assert read_pixels(tmp_path / "a.jpg").shape == (94, 125, 3)
    for other in (encoded(image, "PNG"), encoded(image.convert("CMYK")), encoded(image)[:-2], b"\xff\xd8\xff\xd9", b""):
        assert read_pixels(other).shape == (1, 1, 3)


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"damaged", lambda data: b""])
def test_damaged_files_are_refused_as_by_pillow(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(damage(encoded(Image.fromarray(photograph()))))
    with pytest.raises(InputError, match=r"a\.jpg is not a readable image .*; repair or remove it"):
        read_pixels(path)
    path.unlink()
    with pytest.raises(InputError, match=r"a\.jpg is not a readable image"):
        read_pixels(path)


# ---- operations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("box", [(0, 0, 94, 125), (10, 20, 40, 60), (60, 90, 30, 30)])
def test_a_resized_crop_is_pils(box: tuple[int, int, int, int]) -> None:
    for size in (24, 64):
        theirs = TF.resized_crop(Image.fromarray(photograph()), *box, [size, size])
        mean, largest = distance(fast.resize_box(photograph(), box, size), theirs)
        assert largest <= 1
        assert mean < 0.1


# Mean and largest difference from PIL of 255, on photographs. The hue and saturation of OpenCV's HSV are rounded, PIL's
# are cut off.
TOLERANCES = {"brightness": (0.05, 1), "contrast": (0.05, 1), "saturation": (0.25, 1), "hue": (1.2, 14)}


@pytest.mark.parametrize(
    ("name", "ours", "theirs"),
    [
        ("brightness", fast.adjust_brightness, TF.adjust_brightness),
        ("contrast", fast.adjust_contrast, TF.adjust_contrast),
        ("saturation", fast.adjust_saturation, TF.adjust_saturation),
        ("hue", lambda image, factor: fast.adjust_hue(image, factor - 1), lambda x, f: TF.adjust_hue(x, f - 1)),
    ],
)
def test_colour_operations_are_pils(name: str, ours: Any, theirs: Any) -> None:
    for seed, factor in enumerate(np.linspace(0.6, 1.4, 9)):
        pixels = photograph(seed=seed)
        mean, largest = distance(ours(pixels, float(factor)), theirs(Image.fromarray(pixels), float(factor)))
        assert mean <= TOLERANCES[name][0], factor
        assert largest <= TOLERANCES[name][1], factor


def test_gray_is_pils() -> None:
    mean, largest = distance(fast.to_gray(photograph()), TF.rgb_to_grayscale(Image.fromarray(photograph()), 3))
    assert largest <= 1
    assert mean < 0.05


@pytest.mark.parametrize("sigma", [0.1, 0.4, 0.8, 1.3, 2.0])
def test_blur_is_pils(sigma: float) -> None:
    """White noise is the hardest; at the edge PIL repeats the last pixels of a picture that is blurred already."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for pixels in (photograph(), noise):
        ours, theirs = fast.blur_pixels(pixels, sigma), Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(sigma))
        inner = slice(6, -6)
        off = np.abs(ours.astype(np.int64) - np.asarray(theirs))
        assert off.mean() < 1
        assert off[inner, inner].max() <= 4
    assert fast.blur_kernel(sigma).sum() == pytest.approx(1)
    assert fast.blur_kernel(0.0).tolist() == [1]


# ---- views -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [Augmentation(crop=48), V1.model_copy(update={"crop": 48})], ids=["v2", "v1"])
def test_the_same_seed_gives_pils_view(settings: Augmentation) -> None:
    """Views of 40 pictures by both engines; a crop, factor, order or flip of its own would be tens of levels away."""
    mean, std = (torch.tensor(each)[:, None, None] for each in (MEAN, STD))
    pil, cv = PilViews(settings, MEAN, STD), fast.Cv2Views(settings)
    off, largest = [], []
    for seed in range(40):
        pixels = photograph(seed=seed)
        theirs = torch.stack(seeded_views(pil, Image.fromarray(pixels), 3, 1, seed))
        ours = fast.normalise_pixels(torch.stack(seeded_views(cv, pixels, 3, 1, seed)), mean, std)
        assert ours.shape == theirs.shape == (2, 3, 48, 48)
        assert ours.is_contiguous(memory_format=torch.channels_last)
        difference = ((ours - theirs) * std * 255).abs()
        off += difference.mean(dim=(1, 2, 3)).tolist()
        largest += difference.flatten(1).quantile(0.99, dim=1).tolist()
    assert np.mean(off) < 1
    assert max(off) < 2
    assert max(largest) < 16


def test_a_wrong_number_would_be_seen() -> None:
    """The bound above tells a flip, another crop and another order of the jitter from rounding."""
    settings, pixels = Augmentation(crop=48, flip_p=0), photograph()
    view = fast.Cv2Views(settings)
    torch.manual_seed(1)
    drawn = view.draw(94, 125)._replace(jitter=((3, 0.1), (0, 1.4), (1, 0.6), (2, 1.3)), gray=False, sigma=None)
    base = view.apply(pixels, drawn).float()
    top, left, height, width = drawn.crop
    for other in (
        drawn._replace(flip=True),
        drawn._replace(crop=(top, left, height - 8, width - 8)),
        drawn._replace(jitter=drawn.jitter[::-1]),
    ):
        assert (view.apply(pixels, other).float() - base).abs().mean() > 3


def test_numbers_are_drawn_as_torchvision_does() -> None:
    """The generator stands where PIL's list leaves it, whatever was drawn."""
    for settings in (Augmentation(crop=8), V1.model_copy(update={"crop": 8}), Augmentation(crop=8, hue=0, contrast=0)):
        pil, cv = PilViews(settings, MEAN, STD, views=20), fast.Cv2Views(settings, views=20)
        torch.manual_seed(5)
        pil(Image.fromarray(photograph()))
        expected = torch.rand(1)
        torch.manual_seed(5)
        cv(photograph())
        assert torch.equal(torch.rand(1), expected)


def test_an_operation_without_range_is_left_out() -> None:
    view = fast.Cv2Views(Augmentation(crop=8, jitter_p=1, hue=0, saturation=0))
    assert {kind for kind, _ in view.draw(20, 20).jitter} == {0, 1}
    assert T.ColorJitter(hue=0).hue is None


# ---- choosing it -----------------------------------------------------------------------------------------------------


def test_published_recipes_keep_pil() -> None:
    engines = {path.stem: load_recipe(path.stem).augmentation.engine for path in RECIPES.glob("*in1k*.toml")}
    assert len(engines) > 20
    assert set(engines.values()) == {"pil"}


def test_a_missing_opencv_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    require_cv2.cache_clear()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "cv2", None)
        with pytest.raises(InputError, match=r"engine cv2 needs OpenCV.*pip install opencv-python-headless"):
            require_cv2()
    assert require_cv2().getNumThreads() <= 1

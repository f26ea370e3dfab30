"""Both engines of the augmentation draw from the same distributions, and single operations equal PIL's."""

from __future__ import annotations

import colorsys
import math
from collections import Counter
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision import transforms as T
from torchvision.transforms import functional as TF

from pretrain import augment_tensor as batched
from pretrain.augment import PilViews
from pretrain.recipe import Augmentation

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def pictures(n: int, size: int = 48) -> Tensor:
    """(N, 3, size, size) uint8: smooth, so that resampling differs by rounding only."""
    draws = torch.rand(n, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(draws, size=(size, size), mode="bicubic", align_corners=False)
    return (smooth.clamp(0, 1) * 255).round().to(torch.uint8)


# Largest difference of one channel of one pixel from PIL, in units of 1/255, on `pictures`; the mean is below 1.5.
# Hue: PIL turns it in HSV of 8 bits. Blur: PIL rounds to 8 bits after every one of its six passes.
LARGEST = {"crop": 1.1, "brightness": 1.1, "contrast": 1.3, "saturation": 1.3, "hue": 1, "gray": 0.6, "blur": 2.8,
           "blur of noise": 3.1}  # fmt: skip


def assert_close_to_pil(operation: str, ours: Tensor, theirs: list[Image.Image]) -> None:
    reference = torch.stack([TF.pil_to_tensor(image) for image in theirs]).float()
    difference = (ours * 255 - reference).abs()
    assert difference.mean() < 1.5, operation
    assert difference.max() < LARGEST[operation], operation


def kolmogorov_smirnov(one: np.ndarray, two: np.ndarray) -> float:  # type: ignore[type-arg]
    """Largest gap between the two samples' distribution functions."""
    grid = np.unique(np.concatenate([one, two]))
    shares = [np.searchsorted(np.sort(sample), grid, side="right") / len(sample) for sample in (one, two)]
    return float(np.abs(shares[0] - shares[1]).max())


@pytest.mark.parametrize(
    ("name", "ours", "theirs"),
    [
        ("brightness", batched._blend_black, TF.adjust_brightness),
        ("contrast", batched._blend_mean, TF.adjust_contrast),
        ("saturation", batched._blend_gray, TF.adjust_saturation),
        ("hue", batched._shift_hue, lambda image, factor: TF.adjust_hue(image, factor - 1)),
        ("gray", lambda x, _: batched._gray(x).expand_as(x), lambda image, _: TF.rgb_to_grayscale(image, 3)),
    ],
)
def test_colour_operations_equal_pil(name, ours, theirs) -> None:  # type: ignore[no-untyped-def]
    images = pictures(16)
    factors = torch.linspace(0.6, 1.4, 16)
    got = ours(images.float() / 255, factors[:, None, None, None])
    want = [theirs(TF.to_pil_image(image), float(f)) for image, f in zip(images, factors, strict=True)]
    assert_close_to_pil(name, got, want)


@pytest.mark.parametrize(("kind", "name"), list(enumerate(["brightness", "contrast", "saturation", "hue"])))
def test_colour_operations_one_by_one_equal_pil(kind: int, name: str) -> None:
    theirs = (
        TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, lambda image, f: TF.adjust_hue(image, f - 1),
    )[kind]  # fmt: skip
    images = pictures(16)
    factors = torch.linspace(0.6, 1.4, 16).tolist()
    got = images.float() / 255
    for image, factor in zip(got, factors, strict=True):
        batched._jitter_in_place(image, [kind], [factor] * 4)
    want = [theirs(TF.to_pil_image(image), factor) for image, factor in zip(images, factors, strict=True)]
    assert_close_to_pil(name, got, want)


def noise(n: int, size: int) -> Tensor:
    """White noise, on which resampling differs most."""
    draws = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, size, size), generator=draws, dtype=torch.uint8)


@pytest.mark.parametrize(("images", "name"), [(pictures(8), "blur"), (noise(8, 48), "blur of noise")])
def test_blur_equals_pil(images: Tensor, name: str) -> None:
    """The edges too, where three blurs one after the other are not one blur by their kernel."""
    sigma = torch.linspace(0.1, 2.0, 8)
    blurs = (ImageFilter.GaussianBlur(float(s)) for s in sigma)
    want = [TF.to_pil_image(image).filter(blur) for image, blur in zip(images, blurs, strict=True)]
    x = images.float() / 255
    assert_close_to_pil(name, batched.blur(x, sigma, 2.0, "boxes"), want)
    alone = [batched.blur_one(image, float(s), "boxes") for image, s in zip(x, sigma, strict=True)]
    assert_close_to_pil(name, torch.stack(alone), want)


def test_a_true_gaussian_stays_near_pil_on_smooth_pictures() -> None:
    images, sigma = pictures(8), torch.linspace(0.1, 2.0, 8)
    blurs = (ImageFilter.GaussianBlur(float(s)) for s in sigma)
    want = [TF.to_pil_image(image).filter(blur) for image, blur in zip(images, blurs, strict=True)]
    assert_close_to_pil("blur", batched.blur(images.float() / 255, sigma, 2.0, "gaussian"), want)


def test_flip_equals_pil() -> None:
    flipped = Augmentation(engine="tensor", crop=48, jitter_p=0, grayscale_p=0, blur_p=0, flip_p=1)
    views = batched.BatchedViews(flipped, (0, 0, 0), (1, 1, 1), torch.Generator()).recoloured(pictures(4))
    assert torch.equal((views * 255).round().byte(), pictures(4).flip(3))


@pytest.mark.parametrize("grayscale_first", [False, True])
def test_images_one_by_one_are_those_of_the_batch(monkeypatch: pytest.MonkeyPatch, grayscale_first: bool) -> None:
    images = pictures(24, 128)
    for hue_rotation in ("pil", "exact"):
        settings = Augmentation(engine="tensor", crop=128, grayscale_first=grayscale_first, hue_rotation=hue_rotation)
        found = []
        for pixels in (batched.ONE_BY_ONE, 1 << 30):
            monkeypatch.setattr(batched, "ONE_BY_ONE", pixels)
            found.append(batched.BatchedViews(settings, MEAN, STD, torch.Generator().manual_seed(5)).recoloured(images))
        differing = (found[0] - found[1]).abs() > 2e-2  # the tails of the blur are cut at 3 of its own sigmas
        # PIL's whole numbers make a step of what lies on the edge of two of them.
        assert differing.double().mean() <= (1e-3 if hue_rotation == "pil" else 0)
    assert (found[0] - found[1]).abs().mean() < 1e-3


def test_drawn_parameters_have_torchvisions_distributions() -> None:
    """Jitter factors, hue, order, sigma, and every probability, of v2 and of v1."""
    n = 4000
    for a in (Augmentation(engine="tensor"), Augmentation(engine="tensor", grayscale_first=True, hue=0.4, jitter_p=1)):
        draws = batched.BatchedViews(a, MEAN, STD, torch.Generator().manual_seed(0))._draw(n)
        torch.manual_seed(0)
        jitter = T.ColorJitter(a.brightness, a.contrast, a.saturation, a.hue)
        drawn = [
            T.ColorJitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
            for _ in range(n)
        ]
        for kind in range(4):
            theirs = np.array([float(d[kind + 1]) + (kind == 3) for d in drawn])  # hue is a shift there
            ours = draws.factors[kind].numpy()
            assert kolmogorov_smirnov(ours, theirs) < 1.95 * math.sqrt(1 / len(ours) + 1 / n)
        orders = torch.stack([d[0] for d in drawn])
        for place in range(4):
            shares = (torch.bincount(o[:, place], minlength=4) / len(o) for o in (draws.order, orders))
            assert all(((share - 0.25).abs() < 0.035).all() for share in shares)
        uniform = np.random.default_rng(0).uniform(*a.blur_sigma, n)
        bound = 1.95 * math.sqrt(1 / len(draws.sigma) + 1 / n)
        assert kolmogorov_smirnov(draws.sigma.numpy(), uniform) < bound
        for chosen, p in (
            (draws.jitter, a.jitter_p), (draws.gray, a.grayscale_p), (draws.blur, a.blur_p), (draws.flip, a.flip_p),
        ):  # fmt: skip
            assert abs(len(chosen) / n - p) < 3.3 * math.sqrt(p * (1 - p) / n) + 1e-9


@pytest.mark.slow
def test_pil_applies_each_operation_as_often_as_its_list_says(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: Counter[str] = Counter()
    sigmas: list[float] = []

    def counted(name, operation, image, *arguments, **named):  # type: ignore[no-untyped-def]
        seen[name] += 1
        return operation(image, *arguments, **named)

    for name in ("adjust_brightness", "rgb_to_grayscale", "hflip"):
        monkeypatch.setattr(TF, name, partial(counted, name, getattr(TF, name)))
    monkeypatch.setattr(ImageFilter, "GaussianBlur", lambda radius: sigmas.append(radius) or ImageFilter.BoxBlur(0))
    torch.manual_seed(0)
    n = 2000
    views = PilViews(Augmentation(crop=4), MEAN, STD, views=n)
    views(Image.new("RGB", (8, 8), (10, 200, 90)))
    shares = (seen["adjust_brightness"], seen["rgb_to_grayscale"], len(sigmas), seen["hflip"])
    for count, p in zip(shares, (0.8, 0.2, 0.5, 0.5), strict=True):
        assert abs(count / n - p) < 3.3 * math.sqrt(p * (1 - p) / n)
    uniform = np.random.default_rng(0).uniform(0.1, 2.0, n)
    assert kolmogorov_smirnov(np.array(sigmas), uniform) < 1.95 * math.sqrt(1 / len(sigmas) + 1 / n)


@pytest.mark.parametrize(("height", "width"), [(48, 48), (40, 64)])
@pytest.mark.parametrize("size", [24, 96])
def test_resized_crop_equals_pil(height: int, width: int, size: int) -> None:
    """Reducing and enlarging, for boxes in the middle and at the edges."""
    image = pictures(1, 64)[0, :, :height, :width]
    for top, left, h, w in ((0, 0, height, width), (3, 5, 20, 31), (height - 17, width - 12, 17, 12)):
        across = batched._resize_matrix(torch.tensor([float(left)]), torch.tensor([float(w)]), width, size)
        down = batched._resize_matrix(torch.tensor([float(top)]), torch.tensor([float(h)]), height, size)
        got = down @ (image.float() / 255) @ across.transpose(1, 2)
        want = TF.resized_crop(TF.to_pil_image(image), top, left, h, w, [size, size])
        assert_close_to_pil("crop", got[None], [want])


@pytest.fixture
def boxes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """Starts and lengths of the crops that are made, of columns and of rows in turn."""
    found: list[tuple[Tensor, Tensor]] = []
    matrix = batched._resize_matrix

    def record(start: Tensor, length: Tensor, full: int, size: int) -> Tensor:
        found.append((start, length))
        return matrix(start, length, full, size)

    monkeypatch.setattr(batched, "_resize_matrix", record)
    return found


@pytest.mark.parametrize(("height", "width"), [(20, 302), (302, 20), (21, 300), (301, 20)])
def test_where_no_crop_fits_the_centre_is_taken(height: int, width: int, boxes: list[tuple[Tensor, Tensor]]) -> None:
    batched.random_resized_crop(torch.zeros(2, 3, height, width), 8, (1.0, 1.0), (3 / 4, 4 / 3), torch.Generator())
    (left, w), (top, h) = boxes
    theirs = T.RandomResizedCrop.get_params(Image.new("RGB", (width, height)), [1.0, 1.0], [3 / 4, 4 / 3])
    assert torch.stack([top, left, h, w], 1).tolist() == [list(map(float, theirs))] * 2


@pytest.mark.parametrize("shift", [-0.4, -0.1, 0.25])
def test_an_exact_rotation_of_the_hue_is_that_of_hsv(shift: float) -> None:
    pixels = torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(1))
    pixels[:, 0, 0], pixels[:, 0, 1] = 0.5, torch.tensor([0.7, 0.7, 0.2])  # no hue, and two largest channels
    want = torch.empty_like(pixels)
    for row, column in product(range(6), repeat=2):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixels[:, row, column].tolist())
        want[:, row, column] = torch.tensor(colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value))
    together = batched._shift_hue_exactly(pixels[None], torch.full((1, 1, 1, 1), 1 + shift))[0]
    batched._shift_hue_in_place(pixels, 6 * shift)
    for found in (together, pixels):
        torch.testing.assert_close(found, want, rtol=0, atol=1e-5)


def test_crop_boxes_have_torchvisions_distribution(boxes: list[tuple[Tensor, Tensor]]) -> None:
    generator = torch.Generator().manual_seed(0)
    n = 4000
    batched.random_resized_crop(torch.zeros(n, 3, 60, 80), 8, (0.2, 1.0), (3 / 4, 4 / 3), generator)
    (left, w), (top, h) = boxes
    torch.manual_seed(0)
    image = Image.new("RGB", (80, 60))
    theirs = np.array([T.RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(n)], float)
    for ours, reference in ((top, theirs[:, 0]), (left, theirs[:, 1]), (h, theirs[:, 2]), (w, theirs[:, 3])):
        # apart by no more than sampling makes them: the test at 0.1 %
        assert kolmogorov_smirnov(ours.numpy(), reference) < 1.95 * math.sqrt(2 / n)
    assert bool((left >= 0).all() and (left + w <= 80).all() and (top >= 0).all() and (top + h <= 60).all())


@pytest.mark.slow
def test_views_of_both_engines_agree_in_distribution() -> None:
    """Mean, spread, and the shares of gray and of flipped views, over 1,500 views of one asymmetric picture."""
    picture = torch.zeros(3, 32, 32, dtype=torch.uint8)
    picture[0] = torch.linspace(30, 220, 32)[None, :].round().to(torch.uint8)  # red grows to the right
    picture[1] = torch.linspace(200, 60, 32)[:, None].round().to(torch.uint8)
    settings = Augmentation(engine="tensor", stored_size=32, crop=16)
    generator = torch.Generator().manual_seed(0)
    n = 1500
    ours = batched.BatchedViews(settings, MEAN, STD, generator)(picture.expand(n, -1, -1, -1))
    torch.manual_seed(0)
    pil = PilViews(Augmentation(crop=16), MEAN, STD)
    image = TF.to_pil_image(picture)
    theirs = torch.stack([pil.view(image) for _ in range(n)])
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))

    def facts(views: Tensor) -> dict[str, float]:
        x = views * std + mean
        gray = (x.amax(1) - x.amin(1)).amax((1, 2)) < 2 / 255
        slope = x[~gray, 0, :, 8:].mean((1, 2)) - x[~gray, 0, :, :8].mean((1, 2))
        return {
            "gray": gray.float().mean().item(),
            "flipped": (slope < 0).float().mean().item(),
            "mean": x.mean().item(),
            "spread": x.mean((2, 3)).std(0).mean().item(),
        }

    a, b = facts(ours), facts(theirs)
    assert abs(a["gray"] - 0.2) < 0.04
    assert abs(b["gray"] - 0.2) < 0.04
    assert abs(a["flipped"] - b["flipped"]) < 0.06
    assert abs(a["mean"] - b["mean"]) < 0.01
    assert abs(a["spread"] - b["spread"]) < 0.01


def test_order_of_the_lists() -> None:
    """v2: jitter, grayscale, blur, flip. v1: grayscale, jitter, flip, and no blur."""
    v2 = PilViews(Augmentation(), MEAN, STD).view.transforms
    assert [type(t).__name__ for t in v2] == [
        "RandomResizedCrop", "RandomApply", "RandomGrayscale", "RandomApply", "RandomHorizontalFlip", "ToTensor",
        "Normalize",
    ]  # fmt: skip
    jitter = v2[1].transforms[0]
    assert (v2[1].p, jitter.brightness, jitter.hue) == (0.8, (0.6, 1.4), (-0.1, 0.1))
    assert (v2[3].p, v2[3].transforms[0].sigma) == (0.5, (0.1, 2.0))
    v1 = PilViews(Augmentation(grayscale_first=True, jitter_p=1.0, hue=0.4, blur_p=0.0), MEAN, STD).view.transforms
    assert [type(t).__name__ for t in v1[1:4]] == ["RandomGrayscale", "RandomApply", "RandomHorizontalFlip"]


def test_the_same_generator_gives_the_same_views() -> None:
    settings = Augmentation(engine="tensor", stored_size=32, crop=16)
    one, two = (
        batched.BatchedViews(settings, MEAN, STD, torch.Generator().manual_seed(3))(pictures(8, 32)) for _ in range(2)
    )
    assert torch.equal(one, two)


@pytest.mark.parametrize("hue_rotation", ["pil", "exact"])
@pytest.mark.parametrize("grayscale_first", [True, False])
def test_masks_give_what_the_steps_on_the_chosen_images_give(hue_rotation: str, grayscale_first: bool) -> None:
    """With the same parameters: to 1e-4, but for pixels whose hue in PIL's whole numbers rounds to the next step."""
    a = Augmentation(crop=48, hue_rotation=hue_rotation, grayscale_first=grayscale_first)  # type: ignore[arg-type]
    mean, std = (torch.tensor(each)[:, None, None] for each in (MEAN, STD))
    views = batched.BatchedViews(a, MEAN, STD, torch.Generator().manual_seed(2))
    masks = views._draw_masks(40)
    jitter, gray, blur, flip = (mask.nonzero()[:, 0] for mask in (masks.jitter, masks.gray, masks.blur, masks.flip))
    chosen = batched.DrawnParameters(
        jitter, masks.factors[:, jitter], masks.order[jitter], gray, blur, masks.sigma[blur], flip
    )
    views._draw = lambda n: chosen  # type: ignore[method-assign]
    expected = views.recoloured(pictures(40))
    found = batched.recolour_by_masks(pictures(40), masks, a, mean, std)
    difference = ((found - expected) * std).abs()
    assert (difference > 1e-4).float().mean() < (0.01 if hue_rotation == "pil" else 1e-6)
    assert difference.max() < 0.05


def test_masks_draw_from_the_same_distributions() -> None:
    a, n = Augmentation(), 4000
    masks = batched.BatchedViews(a, MEAN, STD, torch.Generator().manual_seed(0))._draw_masks(n)
    chosen = batched.BatchedViews(a, MEAN, STD, torch.Generator().manual_seed(1))._draw(n)
    for name, p in (("jitter", a.jitter_p), ("gray", a.grayscale_p), ("blur", a.blur_p), ("flip", a.flip_p)):
        share = getattr(masks, name).float().mean()
        assert abs(share - p) < 0.03, name
        assert abs(share - len(getattr(chosen, name)) / n) < 0.05, name
    for one, two in [*zip(masks.factors, chosen.factors, strict=True), (masks.sigma, chosen.sigma)]:
        assert kolmogorov_smirnov(one.numpy(), two.numpy()) < 0.05
    assert (masks.order.sort(dim=1).values == torch.arange(4)).all()
    orders = Counter(map(tuple, masks.order.tolist()))
    assert len(orders) == 24
    assert max(orders.values()) < 2 * n / 24

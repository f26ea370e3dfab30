"""JPEG decoders per core, and the two views of MoCo v2 from files, against what people use."""

from __future__ import annotations

import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.datasets.images import Images
from pretrain.augment import Cv2Views, PilCrops, PilViews, normalise_pixels
from pretrain.augment_tensor import BatchedViews
from pretrain.data import read_pixels, read_rgb
from pretrain.recipe import Augmentation
from results.schema import Geometry

from .features import write_jpegs
from .measurement import Entries, SpeedEntry, cpu_seconds_of, entry, one_thread, rounds
from .pretrain import moco_v2

FILES, MOST_ROUNDS, SECONDS = 32, 5, 8.0
RESIZE, CROP = 256, 224
PLAIN = "plain torchvision"

Pixels = Any
Decoder = Callable[[Path], Pixels]
Name = Literal["pil", "pil-draft", "simplejpeg", "simplejpeg-scaled"]


def entries() -> Entries:
    return {"decoders": measure_decoders, "views": measure_views}


# ---- decoders --------------------------------------------------------------------------------------------------------


def decoders() -> tuple[dict[str, Decoder], list[str]]:
    """Decoders to RGB in memory by name, and the packages that would add some but are not installed."""
    from torchvision.io import ImageReadMode, decode_jpeg, read_file

    def pillow(path: Path) -> Pixels:
        with Image.open(path) as image:
            return image.convert("RGB")

    def pillow_draft(path: Path, side: int = RESIZE) -> Pixels:
        with Image.open(path) as image:
            image.draft("RGB", (side, side))
            return image.convert("RGB")

    def torchvision_io(path: Path) -> Pixels:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of all of torchvision.io, for torchcodec
            return decode_jpeg(read_file(str(path)), ImageReadMode.RGB)

    found: dict[str, Decoder] = {
        "PIL": pillow,
        "PIL, scaled DCT": pillow_draft,
        "torchvision.io": torchvision_io,
    }
    missing = []
    if find_spec("simplejpeg"):
        import simplejpeg

        found["simplejpeg"] = lambda path: simplejpeg.decode_jpeg(path.read_bytes())
        found["simplejpeg, scaled DCT"] = lambda path: simplejpeg.decode_jpeg(
            path.read_bytes(), min_height=RESIZE, min_width=RESIZE
        )
    else:
        missing.append("simplejpeg")
    if find_spec("cv2"):
        import cv2

        cv2.setNumThreads(1)
        found["cv2"] = lambda path: _by_cv2(path, cv2.IMREAD_COLOR)
        found["cv2, half the size"] = lambda path: _by_cv2(path, cv2.IMREAD_REDUCED_COLOR_2)
    else:
        missing.append("opencv-python-headless")
    return found, missing


def _whole(name: str) -> str:
    """What the timer of a decoder with resize and crop is called; the decoder alone may have the plain name."""
    return f"{name}, resize and crop"


def _by_cv2(path: Path, flag: int) -> Pixels:
    import cv2

    image = cv2.imread(str(path), flag)
    assert image is not None
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def eighth(path: Path) -> Pixels:
    """The picture at an eighth of its size: what every decoder must do, its entropy decoding, and little else."""
    with Image.open(path) as image:
        image.draft("RGB", (image.width // 8, image.height // 8))
        return image.convert("RGB")


def measure_decoders(files: int = FILES) -> SpeedEntry:
    """All decoders on one core, and what the fastest that a protocol's variant names saves up to its pixels."""
    variants: list[Name] = ["pil", "pil-draft"]
    variants += ["simplejpeg", "simplejpeg-scaled"] if find_spec("simplejpeg") else []
    works, missing = decoders()
    with tempfile.TemporaryDirectory() as folder, one_thread():
        paths = write_jpegs(Path(folder), files)
        splits = {name: Images(paths, Geometry(mode="shorter", resize=RESIZE, crop=CROP, decoder=name))
                  for name in variants}  # fmt: skip
        pixels = {name: np.stack([images[row][0].numpy() for row in range(files)]).astype(np.float32)
                  for name, images in splits.items()}  # fmt: skip
        timers: dict[str, Callable[[], Any]] = {"eighth": partial(_each, eighth, paths)}
        timers |= {name: partial(_each, decode, paths) for name, decode in works.items()}
        timers |= {_whole(name): partial(_each, images.__getitem__, range(files)) for name, images in splits.items()}
        seconds = _alternately(timers)
    whole: dict[str, float] = {name: seconds[_whole(name)] for name in variants}
    quickest = min(variants, key=lambda name: whole[name])
    off = {name: float(np.abs(pixels[name] - pixels["pil"]).mean()) for name in variants[1:]}
    return entry(
        "decoders",
        ours=whole[quickest],
        baseline=whole["pil"],
        described="Pillow at full size, the default, which published protocols keep",
        limit_s=seconds["eighth"],
        limit="decoding to an eighth of the size, which leaves little but entropy decoding",
        note=f"{files} JPEGs of 500x375, images per CPU second of one core; decoding alone: "
        f"{_rates(works, seconds, files)}; with resize {RESIZE} and crop {CROP}, by geometry.decoder: "
        f"{_rates(variants, whole, files)}, the fastest is "
        f"{quickest}; mean distance to Pillow's pixels of 255: "
        f"{', '.join(f'{name} {value:.2f}' for name, value in off.items())}{_absent(missing)}",
    )


# ---- two views -------------------------------------------------------------------------------------------------------


def measure_views(files: int = FILES) -> SpeedEntry:
    """Both views of MoCo v2 of each file on one core, from the file to a normalised batch.

    Ours is the cv2 engine, or the tensor engine where OpenCV is not installed. The baseline is the list of the
    reference, image by image. albumentations with cv2 does the same list where it is installed.
    """
    recipe = moco_v2()
    a, mean, std = recipe.augmentation, recipe.mean, recipe.std
    pil, crops = PilViews(a, mean, std), PilCrops(a)
    batched = BatchedViews(a, mean, std, torch.Generator().manual_seed(0))
    by_cv2 = Cv2Views(a) if find_spec("cv2") else None
    other = albumentations_views(a, mean, std)

    def batches(views: list[tuple[torch.Tensor, ...]], finish: Callable[[torch.Tensor], Any]) -> None:
        for number in range(recipe.views):
            finish(torch.stack([view[number] for view in views]))

    with tempfile.TemporaryDirectory() as folder, one_thread():
        paths = write_jpegs(Path(folder), files)
        timers: dict[str, Callable[[], Any]] = {}
        if by_cv2 is not None:
            timers["the cv2 engine"] = lambda: batches(
                [by_cv2(read_pixels(path)) for path in paths],
                lambda views: normalise_pixels(views, batched.mean, batched.std),
            )
        timers["the tensor engine"] = lambda: batches([crops(read_rgb(path)) for path in paths], batched.recoloured)
        timers[PLAIN] = lambda: batches([pil(read_rgb(path)) for path in paths], torch.Tensor.contiguous)
        if other is not None:
            timers["albumentations with cv2"] = lambda: [other(path) for path in paths]
        if by_cv2 is not None:
            timers["decoding by cv2"] = lambda: [read_pixels(path) for path in paths]
        timers["decoding by PIL"] = lambda: [read_rgb(path) for path in paths]
        seconds = _alternately(timers)
    decoding = min((name for name in seconds if name.startswith("decoding")), key=lambda name: seconds[name])
    ours = next(iter(timers))
    missing = [] if by_cv2 else ["opencv-python-headless"]
    missing += [] if other else ["albumentations"]
    return entry(
        "views",
        ours=seconds[ours],
        baseline=seconds[PLAIN],
        described="torchvision's transforms on PIL images, one by one, as the reference",
        limit_s=seconds[decoding],
        limit=decoding,
        note=f"{ours}; {recipe.views} views each of {files} JPEGs of 500x375 at {a.crop}, views per CPU second of one "
        f"core: {_rates(timers, seconds, recipe.views * files)}{_absent(missing)}",
    )


def albumentations_views(
    a: Augmentation, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Callable[[Path], list[NDArray[np.float32]]] | None:
    """The same list of MoCo v2 by albumentations, decoded by cv2; None where it is not installed."""
    if not (find_spec("albumentations") and find_spec("cv2")):
        return None
    import albumentations
    import cv2

    cv2.setNumThreads(1)
    views: Any = albumentations.Compose(
        [
            albumentations.RandomResizedCrop((a.crop, a.crop), scale=a.crop_area, ratio=a.crop_aspect),
            albumentations.ColorJitter(
                (1 - a.brightness, 1 + a.brightness), (1 - a.contrast, 1 + a.contrast),
                (1 - a.saturation, 1 + a.saturation), (-a.hue, a.hue), p=a.jitter_p,
            ),
            albumentations.ToGray(p=a.grayscale_p),
            albumentations.GaussianBlur(blur_limit=0, sigma_limit=a.blur_sigma, p=a.blur_p),
            albumentations.HorizontalFlip(p=a.flip_p),
            albumentations.Normalize(mean, std),
        ]
    )  # fmt: skip

    def both(path: Path) -> list[NDArray[np.float32]]:
        image = _by_cv2(path, cv2.IMREAD_COLOR)
        return [np.ascontiguousarray(views(image=image)["image"].transpose(2, 0, 1)) for _ in range(2)]

    return both


def _each(work: Callable[[Any], Any], items: Iterable[Any]) -> None:
    for item in items:
        work(item)


def _alternately(timers: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median CPU seconds of each work; they take turns, after a first turn that warms up."""
    for work in timers.values():
        work()
    found: dict[str, list[float]] = {name: [] for name in timers}
    for _ in rounds(MOST_ROUNDS, SECONDS):
        for name, work in timers.items():
            found[name].append(cpu_seconds_of(work))
    return {name: statistics.median(values) for name, values in found.items()}


def _rates(names: Any, seconds: dict[str, float], count: int) -> str:
    return ", ".join(f"{name} {count / seconds[name]:.0f}" for name in names)


def _absent(packages: list[str]) -> str:
    return f"; not measured, as not installed: pip install {' '.join(packages)}" if packages else ""

"""Decoders of JPEG files, features of a ResNet-50 from them, and benchmarks that share one pass over the images."""

from __future__ import annotations

import logging
import shutil
import statistics
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import models, transforms

from benchmarks.__main__ import frozen_suite
from benchmarks.datasets.images import Images
from benchmarks.encoders.encoder import Encoder
from benchmarks.encoders.load import load_encoder
from benchmarks.evaluate import Question, Sweep, bench
from benchmarks.features.extract import Extract, FeatureRequest, Reader, default_batch_size, extractor, read_batches
from benchmarks.features.store import FeatureStore
from benchmarks.task import Labels, Outputs, Precision, RunOptions
from results.schema import Geometry
from results.store import read_records

from .measurement import (
    Entries,
    SpeedEntry,
    alternately,
    count_products,
    entry,
    fast_precision,
    limit_of,
    not_installed,
    rates,
    rounds,
    timed,
)

IMAGES, WIDTH, HEIGHT = 64, 500, 375
DECODED = 32  # files that the decoders are timed with
GEOMETRY = Geometry(mode="shorter", resize=256, crop=224)
EMBED: Outputs = {"embed": ("embed", None)}
BATCH, WORKERS, MOST_ROUNDS, SECONDS = 64, 2, 3, 60.0
# The suite's: images of each class, as many as few-shot's largest n.
SUITE_ENCODER = "random:resnet18"
CLASSES, TRAIN, VAL = 6, 16, 4

Pixels = Any


def entries() -> Entries:
    """bf16 only on a CPU that multiplies it itself."""
    found: Entries = {
        "decoders": measure_decoders,
        "extract": lambda: measure_extraction("extract", "fp32"),
        "frozen": measure_suite,
    }
    if fast_precision() == "bf16":
        found["extract-bf16"] = lambda: measure_extraction("extract-bf16", "bf16")
    return found


def measure_decoders(files: int = DECODED) -> SpeedEntry:
    """All decoders on one core, and what the fastest that a protocol's variant names saves up to its pixels."""
    variants: list[Literal["pil", "pil-draft", "simplejpeg", "simplejpeg-scaled"]] = ["pil", "pil-draft"]
    variants += ["simplejpeg", "simplejpeg-scaled"] if find_spec("simplejpeg") else []
    works, missing = decoders()
    with tempfile.TemporaryDirectory() as folder:
        paths = write_jpegs(Path(folder), files)
        splits = {name: Images(paths, GEOMETRY.model_copy(update={"decoder": name}))
                  for name in variants}  # fmt: skip
        pixels = {name: np.stack([images[row][0].numpy() for row in range(files)]).astype(np.float32)
                  for name, images in splits.items()}  # fmt: skip
        timers: dict[str, Callable[[], Any]] = {"eighth": partial(_for_each, eighth, paths)}
        timers |= {name: partial(_for_each, decode, paths) for name, decode in works.items()}
        timers |= {
            _whole(name): partial(_for_each, images.__getitem__, range(files)) for name, images in splits.items()
        }
        seconds = alternately(timers)
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
        f"{rates(works, seconds, files)}; with resize {GEOMETRY.resize} and crop {GEOMETRY.crop}, by geometry.decoder: "
        f"{rates(variants, whole, files)}, the fastest is "
        f"{quickest}; mean distance to Pillow's pixels of 255: "
        f"{', '.join(f'{name} {value:.2f}' for name, value in off.items())}{not_installed(missing)}",
    )


def decoders() -> tuple[dict[str, Callable[[Path], Pixels]], list[str]]:
    """Decoders to RGB in memory by name, and the packages that would add some but are not installed."""
    from torchvision.io import ImageReadMode, decode_jpeg, read_file

    def pillow(path: Path) -> Pixels:
        with Image.open(path) as image:
            return image.convert("RGB")

    def pillow_draft(path: Path, side: int = GEOMETRY.resize) -> Pixels:
        with Image.open(path) as image:
            image.draft("RGB", (side, side))
            return image.convert("RGB")

    def torchvision_io(path: Path) -> Pixels:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of all of torchvision.io, for torchcodec
            return decode_jpeg(read_file(str(path)), ImageReadMode.RGB)

    found: dict[str, Callable[[Path], Pixels]] = {
        "PIL": pillow,
        "PIL, scaled DCT": pillow_draft,
        "torchvision.io": torchvision_io,
    }
    missing = []
    if find_spec("simplejpeg"):
        import simplejpeg

        found["simplejpeg"] = lambda path: simplejpeg.decode_jpeg(path.read_bytes())
        found["simplejpeg, scaled DCT"] = lambda path: simplejpeg.decode_jpeg(
            path.read_bytes(), min_height=GEOMETRY.resize, min_width=GEOMETRY.resize
        )
    else:
        missing.append("simplejpeg")
    if find_spec("cv2"):
        import cv2

        cv2.setNumThreads(1)
        found["cv2"] = lambda path: decode_by_cv2(path, cv2.IMREAD_COLOR)
        found["cv2, half the size"] = lambda path: decode_by_cv2(path, cv2.IMREAD_REDUCED_COLOR_2)
    else:
        missing.append("opencv-python-headless")
    return found, missing


def _whole(name: str) -> str:
    """What the timer of a decoder with resize and crop is called; the decoder alone may have the plain name."""
    return f"{name}, resize and crop"


def decode_by_cv2(path: Path, flag: int) -> Pixels:
    import cv2

    image = cv2.imread(str(path), flag)
    assert image is not None
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def eighth(path: Path) -> Pixels:
    """The picture at an eighth of its size: what every decoder must do, its entropy decoding, and little else."""
    with Image.open(path) as image:
        image.draft("RGB", (image.width // 8, image.height // 8))
        return image.convert("RGB")


def _for_each(work: Callable[[Any], Any], items: Iterable[Any]) -> None:
    for item in items:
        work(item)


def measure_extraction(name: str, precision: Precision) -> SpeedEntry:
    """From files to features on disk and the loop's to features in memory, alternately; ours in parts beside.

    The limit is what no overlap can beat where reading and computing share the cores: the fastest reading, and the
    model's products at the measured speed of their shapes, or its fastest pass where a convolution is quicker than the
    product of its shape.
    """
    encoder = load_encoder("random:resnet50").to("cpu")
    with tempfile.TemporaryDirectory() as folder:
        paths = write_jpegs(Path(folder), IMAGES)
        network = models.resnet50()
        network.fc = torch.nn.Identity()
        network.load_state_dict(encoder.module.state_dict())
        network.eval()
        plain_loop(network, paths[:BATCH])  # warms up
        seconds: dict[str, list[float]] = {"ours": [], "baseline": [], "reading": [], "model": []}
        for number in rounds(MOST_ROUNDS, SECONDS):
            taken, ours = timed(partial(stored, encoder, paths, Path(folder, str(number)), precision))
            seconds["ours"].append(taken)
            taken, theirs = timed(partial(plain_loop, network, paths))
            seconds["baseline"].append(taken)
            taken, decoded = timed(partial(_batches, paths))
            seconds["reading"].append(taken)
            with extractor(encoder, GEOMETRY, EMBED, precision) as extract:
                taken, _ = timed(partial(_extract_all, extract, decoded))
            seconds["model"].append(taken)
        with extractor(encoder, GEOMETRY, EMBED, precision) as extract:
            one = count_products(partial(extract, decoded[0], EMBED))
    products, flops = limit_of(Counter({shape: calls * len(decoded) for shape, calls in one.items()}))
    median = {part: statistics.median(values) for part, values in seconds.items()}
    reading, model = min(seconds["reading"]), min(seconds["model"])
    limit = reading + min(model, products)
    cosine = F.cosine_similarity(torch.from_numpy(np.array(ours)), torch.from_numpy(theirs)).min()
    speed = {part: IMAGES / value for part, value in median.items()}
    return entry(
        name,
        ours=median["ours"],
        baseline=median["baseline"],
        described=f"fp32, NCHW, PIL, torchvision transforms, DataLoader with {WORKERS} workers, batch {BATCH}",
        limit_s=limit,
        limit=f"reading alone at {IMAGES / reading:.0f} images/s, then the model's {flops / IMAGES / 1e9:.1f} GFLOP "
        f"an image at {flops / min(model, products) / 1e9:.0f} GFLOP/s",
        note=f"ResNet-50 at its initialisation, {precision}, {IMAGES} JPEGs of {WIDTH}x{HEIGHT}: "
        f"{speed['ours']:.1f} images/s against {speed['baseline']:.1f}, {limit / median['ours']:.1%} of the limit; "
        f"the model alone {speed['model']:.1f}; least cosine to the loop's features {cosine:.6f}",
    )


def stored(encoder: Encoder, paths: list[Path], root: Path, precision: Precision) -> NDArray[np.float32]:
    """Ours: through the store, onto the disk."""
    ids = tuple(path.name for path in paths)
    labels = Labels(ids, tuple(paths), ("none",), np.zeros(len(ids), np.int64), tuple((id,) for id in ids))
    store = FeatureStore(RunOptions(features=root, progress=False))
    (split,) = store.get([FeatureRequest(encoder, labels, GEOMETRY, EMBED, precision)])
    return split.features["embed"]


class _Files(Dataset[torch.Tensor]):
    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self.transform = transforms.Compose(
            [
                transforms.Resize(GEOMETRY.resize),
                transforms.CenterCrop(GEOMETRY.crop),
                transforms.ToTensor(),
                transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB"))


@torch.no_grad()
def plain_loop(network: torch.nn.Module, paths: list[Path]) -> NDArray[np.float32]:
    """The loop of a feature script."""
    loader = DataLoader(_Files(paths), batch_size=BATCH, num_workers=WORKERS)
    return torch.cat([network(images) for images in loader]).numpy()


def write_jpegs(folder: Path, count: int) -> list[Path]:
    """JPEGs of noise in seven octaves, about 100 kB each as ImageNet's are; the same every time."""
    folder.mkdir(parents=True, exist_ok=True)
    random, paths = np.random.default_rng(0), []
    for number in range(count):
        image = np.full((HEIGHT, WIDTH, 3), 128, np.float32)
        for size in (4, 8, 16, 32, 64, 128, 256):
            noise = random.standard_normal((size * 3 // 4, size, 3), dtype=np.float32)
            large = F.interpolate(torch.from_numpy(noise).permute(2, 0, 1)[None], (HEIGHT, WIDTH), mode="bicubic")
            image += large[0].permute(1, 2, 0).numpy() * 96 / size**0.4
        paths.append(folder / f"{number:05}.jpg")
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=92)
    return paths


def _batches(paths: list[Path]) -> list[torch.Tensor]:
    device = torch.device("cpu")
    size, rows = default_batch_size(device, GEOMETRY.crop), range(len(paths))
    requests = [rows[start : start + size] for start in range(0, len(rows), size)]
    return [batch.images for batch in read_batches(Reader(paths, GEOMETRY), requests, device, WORKERS)]


def _extract_all(extract: Extract, decoded: list[torch.Tensor]) -> None:
    for batch in decoded:
        extract(batch, EMBED)


def measure_suite(encoder: str = SUITE_ENCODER, classes: int = CLASSES) -> SpeedEntry:
    """kNN, logistic regression, class means and few-shot of an image folder, from JPEG files to records."""
    logging.disable(logging.INFO)
    try:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            images = image_folder(root / "images", classes)
            suite = [question for question in frozen_suite(images) if not question.protocol.harness.endswith("-svm")]
            measure_all(encoder, suite[:1], images, root / "warm")
            ours = measure_all(encoder, suite, images, root / "suite")
            apart = [measure_all(encoder, [each], images, root / each.protocol.benchmark) for each in suite]
    finally:
        logging.disable(logging.NOTSET)
    total, solving = ours
    extraction = min(seconds - solved for seconds, solved in apart)
    return entry(
        "frozen",
        ours=total,
        baseline=sum(seconds for seconds, _ in apart),
        described="each benchmark by itself, with an extraction of its own",
        limit_s=extraction + min(solving, sum(solved for _, solved in apart)),
        limit="one extraction and the solvers",
        note=f"{encoder}, {classes * (TRAIN + VAL)} JPEGs of 500x375 in {classes} classes, {len(suite)} benchmarks: "
        f"one extraction {extraction:.1f} s, all solvers {solving:.1f} s",
    )


def measure_all(encoder: str, questions: Sequence[Question], images: Path, root: Path) -> tuple[float, float]:
    """Seconds of these benchmarks with features of their own, and those of them that the solvers took."""
    options = RunOptions(device="cpu", progress=False, records=root / "records", features=root / "features")
    seconds, attempts = timed(lambda: list(bench(Sweep([encoder], questions, images, options))))
    failed = [attempt for attempt in attempts if attempt.status != "done"]
    if failed:
        raise RuntimeError(f"{failed[0].protocol}: {failed[0].detail}")
    records = [stored.record for stored in read_records(options.records)[0]]
    return seconds, sum(record.timing["total"] - record.timing["extract"] for record in records)


def image_folder(root: Path, classes: int) -> Path:
    """An image folder of noise as large as ImageNet's files."""
    paths = iter(write_jpegs(root.with_name("files"), classes * (TRAIN + VAL)))
    for split, count in (("train", TRAIN), ("val", VAL)):
        for number in range(classes):
            folder = root / split / f"class{number}"
            folder.mkdir(parents=True)
            for _ in range(count):
                path = next(paths)
                shutil.move(path, folder / path.name)
    return root

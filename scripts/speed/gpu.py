"""Speed on the GPU of this machine: a MoCo step, extraction, kNN and logistic regression, beside their bare products.

Nothing of this is measured where there is no GPU. Data are noise; decoding has an entry of its own and is not part of
the others. What docs/gpus.md expects of the GPU is printed beside what was measured.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.datasets import images
from benchmarks.encoders.load import load_encoder
from benchmarks.features.extract import Reader, extractor, read_batches
from benchmarks.solvers.exact_knn import SPARE, TILE_ROWS, ScaledRows, Tiles, exact_knn, multiply, norms, propose_torch
from benchmarks.solvers.half_precision import Halves
from benchmarks.solvers.logistic import LOGITS_BYTES, fit_logistic
from benchmarks.task import Precision
from pretrain.augment_tensor import BatchedViews
from pretrain.distributed import default_workers, full_float32, row_products
from pretrain.moco import MoCo
from pretrain.recipe import Recipe
from pretrain.trainer import Stepper
from results.schema import Geometry

from .classifiers import sweep_params
from .features import write_jpegs
from .measurement import Entries, SpeedEntry, entry
from .pretrain import moco_v2

CUDA = torch.device("cuda")
BATCH, REPEATS = 256, 10
GALLERY, QUERIES, DIM = 1_281_167, 50_000, 2048  # ImageNet's train and validation split, ResNet-50
K, CLASSES, CHUNK = 200, 1000, 65536
STREAMED = 8  # steps that are timed with rows from a file
FILES, DECODED = 512, 64  # JPEG files, and how many of them are decoded together
RESNET, VIT = "resnet50", "vit_large_patch16_224"  # with random weights
# What docs/gpus.md expects of a GPU with this word in its name: images/s, or seconds of a search and of a sweep.
EXPECTED: dict[str, dict[str, float]] = {
    "gpu-step": {"A100": 1_800, "H100": 3_000},
    "gpu-extract": {"A100": 7_300, "H100": 12_000},
    "gpu-extract-vit": {"A100": 1_000, "H100": 3_200},
    "gpu-knn": {"A100": 5.9, "H100": 4.0},
    "gpu-logistic": {"A100": 114, "H100": 45},
}


def entries() -> Entries:
    """None without a GPU."""
    if not torch.cuda.is_available():
        return {}
    return {
        "gpu-step": time_gpu_step,
        "gpu-augment": time_gpu_augmentation,
        "gpu-decode": time_gpu_decoding,
        "gpu-extract": time_gpu_extraction,
        "gpu-extract-vit": lambda: time_gpu_extraction(VIT),
        "gpu-knn": time_gpu_knn,
        "gpu-logistic": time_gpu_logistic,
    }


def beside_expected(name: str, measured: float, unit: str) -> str:
    """The end of a note: what docs/gpus.md expects of this GPU, where it does."""
    for model, expected in EXPECTED[name].items():
        if model in torch.cuda.get_device_name():
            return f"; expected of one {model}: {expected:,} {unit}, measured {measured / expected:.2f} times as many"
    return ""


def gpu_seconds(work: Callable[[], object], repeats: int | None = None) -> float:
    """Median seconds of the work, to its end on the GPU, after two runs that warm up."""
    times = []
    for repeat in range((repeats or REPEATS) + 2):
        torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        torch.cuda.synchronize()
        if repeat > 1:
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def time_gpu_step(recipe: Recipe | None = None) -> SpeedEntry:
    """A whole update of MoCo v2 beside its bare passes: query forward and backward, key forward."""
    recipe = recipe or moco_v2(precision="bf16", batch_size=BATCH)
    torch.cuda.reset_peak_memory_stats()
    stepper = Stepper(recipe, CUDA)
    model, images, n = stepper.model, stepper.batch.views[0], recipe.batch_size
    assert isinstance(model, MoCo)

    def passes() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            q = model.encoder_q(images)
            with torch.no_grad():
                model.encoder_k(images)
        q.sum().backward()

    step = gpu_seconds(stepper.step)
    peak = torch.cuda.max_memory_allocated() / 2**30
    bare = gpu_seconds(passes)
    return entry(
        "gpu-step",
        ours=step,
        baseline=bare,
        described="the bare passes of both encoders",
        limit_s=bare,
        limit="the bare passes",
        note=f"{torch.cuda.get_device_name()}, bfloat16, {n} images of {recipe.augmentation.crop} pixels: "
        f"{n / step:.0f} images/s, the bare passes are {100 * bare / step:.0f} % of the step; peak memory "
        f"{peak:.1f} GiB" + beside_expected("gpu-step", n / step, "images/s"),
    )


def time_gpu_augmentation(recipe: Recipe | None = None) -> SpeedEntry:
    """Everything but the crop, for both views of a batch, beside a whole update."""
    recipe = recipe or moco_v2(precision="bf16", batch_size=BATCH)
    crop, n = recipe.augmentation.crop, recipe.batch_size
    images = torch.randint(0, 256, (n, 3, crop, crop), dtype=torch.uint8, device=CUDA)
    views = BatchedViews(recipe.augmentation, recipe.mean, recipe.std, torch.Generator(CUDA).manual_seed(0))
    seconds = gpu_seconds(lambda: [views.recoloured(images) for _ in range(recipe.views)])
    moved = gpu_seconds(lambda: [images.float() for _ in range(recipe.views)])
    step = gpu_seconds(Stepper(recipe, CUDA).step)
    return entry(
        "gpu-augment",
        ours=seconds,
        baseline=step,
        described="an update",
        limit_s=moved,
        limit="the conversion of the views to float32 alone",
        note=f"{torch.cuda.get_device_name()}, {recipe.views} views of {n} images of {crop} pixels: "
        f"{100 * seconds / (seconds + step):.0f} % of augmentation and update together, to stay below 10",
    )


def time_gpu_extraction(architecture: str = RESNET, crop: int = 224, batch: int = BATCH) -> SpeedEntry:
    """Features in float32 and in bfloat16, beside the bare network in bfloat16."""
    encoder = load_encoder(_vit(architecture) if architecture == VIT else f"random:{architecture}").to(CUDA)
    geometry = Geometry(mode="shorter", resize=crop, crop=crop)
    images = torch.randint(0, 256, (batch, 3, crop, crop), dtype=torch.uint8)
    outputs = {"embed": ("embed", None)}

    def seconds(precision: Precision) -> float:
        with extractor(encoder, geometry, outputs, precision) as extract:
            return gpu_seconds(lambda: extract(images, outputs)["embed"].cpu())

    x = encoder.normalise(images)

    def bare() -> Tensor:
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
            return encoder.outputs(x, ("embed",))["embed"]

    fp32, bf16, alone = seconds("fp32"), seconds("bf16"), gpu_seconds(bare)
    name = f"gpu-extract{'-vit' if architecture == VIT else ''}"
    return entry(
        name,
        ours=bf16,
        baseline=fp32,
        described="the same in float32 (IEEE, as stored features are by default)",
        limit_s=alone,
        limit="the network alone, in bfloat16",
        note=f"{torch.cuda.get_device_name()}, {architecture}, {batch} images of {crop} pixels: {batch / bf16:.0f} "
        f"images/s in bfloat16, {batch / fp32:.0f} in float32; the network alone is {100 * alone / bf16:.0f} %"
        + beside_expected(name, batch / bf16, "images/s"),
    )


Decoder = Literal["pil", "pil-draft", "simplejpeg", "simplejpeg-scaled", "nvjpeg"]


def time_gpu_decoding(files: int = FILES, workers: int | None = None) -> SpeedEntry:
    """JPEG files to cropped images on the GPU by every `geometry.decoder`, as feature extraction reads them.

    The loader workers start anew each time, as they do for each split.

    Raises:
        InputError: this torchvision cannot decode on the GPU.
    """
    images.require_nvjpeg(CUDA)
    workers = default_workers(CUDA) if workers is None else workers
    names: list[Decoder] = ["pil", "pil-draft"]
    names += ["simplejpeg", "simplejpeg-scaled"] if find_spec("simplejpeg") else []
    with tempfile.TemporaryDirectory() as folder:
        paths = write_jpegs(Path(folder), files)
        parts = [range(start, min(start + DECODED, files)) for start in range(0, files, DECODED)]

        def read(decoder: Decoder) -> Tensor:
            reader = Reader(paths, Geometry(mode="shorter", resize=256, crop=224, decoder=decoder))
            return torch.cat([batch.images.to(CUDA) for batch in read_batches(reader, parts, CUDA, workers)])

        ours, cpu = (read(decoder).float() for decoder in ("nvjpeg", "pil"))
        off = float((ours - cpu).abs().mean())
        repeats = min(REPEATS, 3)
        seconds = {name: gpu_seconds(partial(read, name), repeats) for name in (*names, "nvjpeg")}
        encoded = [[torch.frombuffer(bytearray(paths[row].read_bytes()), dtype=torch.uint8) for row in part]
                   for part in parts]  # fmt: skip
        bare = gpu_seconds(lambda: [images.decode_jpegs(part, CUDA) for part in encoded], repeats)
    rates = ", ".join(f"{name} {files / taken:.0f}" for name, taken in seconds.items())
    return entry(
        "gpu-decode",
        ours=seconds["nvjpeg"],
        baseline=seconds["pil"],
        described=f"Pillow in {workers} loader workers, the default, which published protocols keep",
        limit_s=bare,
        limit=f"nvJPEG alone on files in memory, {files / bare:.0f} images/s",
        note=f"{torch.cuda.get_device_name()}, {files} JPEGs of 500x375 at resize 256 and crop 224, {workers} loader "
        f"workers, images/s by geometry.decoder: {rates}; mean distance of nvjpeg to Pillow's pixels {off:.2f} of 255",
    )


def _vit(name: str) -> torch.nn.Module:
    import timm

    model: torch.nn.Module = timm.create_model(name, pretrained=False, num_classes=0)
    return model


def time_gpu_knn(gallery: int = GALLERY, queries: int = QUERIES, dim: int = DIM) -> SpeedEntry:
    """The exact search at ImageNet's size beside the products that it cannot avoid."""
    draws = np.random.default_rng(0)
    rows, asked = (draws.standard_normal((n, dim), dtype=np.float32) for n in (gallery, queries))
    torch.cuda.reset_peak_memory_stats()
    ours = gpu_seconds(lambda: exact_knn(rows, asked, K, device="cuda", engine="torch"), repeats=1)
    peak = torch.cuda.max_memory_allocated() / 2**30
    target, kept = ScaledRows(rows, 1 / norms(rows)), min(gallery, 2 * K + SPARE)
    unit = torch.nn.functional.normalize(torch.from_numpy(asked))
    proposed = gpu_seconds(
        lambda: propose_torch(Tiles(target, torch.float16, CUDA, TILE_ROWS), unit, kept), repeats=1
    )  # fmt: skip
    q, tile = (torch.from_numpy(each[:TILE_ROWS]).to(CUDA, torch.float16) for each in (asked, rows))
    out = torch.empty(len(q), len(tile), device=CUDA)
    products = gpu_seconds(lambda: multiply(q, tile, out)) * (gallery / len(tile)) * (queries / len(q))
    return entry(
        "gpu-knn",
        ours=ours,
        baseline=products,
        described="the float16 products alone",
        limit_s=products,
        limit="the float16 products alone",
        note=f"{torch.cuda.get_device_name()}, {queries:,} queries, {gallery:,} rows of {dim}, k = {K}: "
        f"{queries / ours:.0f} queries/s; candidates are found on the GPU in {proposed:.1f} s, with the copies of "
        f"the rows, and scored in float64 there in about {max(0.0, ours - proposed):.1f} s; peak memory "
        f"{peak:.1f} GiB" + beside_expected("gpu-knn", ours, "s"),
    )


def time_gpu_logistic(rows: int = GALLERY, dim: int = DIM, classes: int = CLASSES) -> SpeedEntry:
    """The 45 costs of logistic.dinov2 on ImageNet's size, and a pass over rows that stream from a file each time."""
    params = sweep_params()
    with tempfile.TemporaryDirectory() as folder:
        features, targets = stored_problem(Path(folder) / "features.npy", rows, dim, classes)
        fit = partial(
            fit_logistic, features, targets, classes, device=CUDA, dtype=torch.float64, tolerance=params.tolerance
        )
        from_file, whole = PassClock(), PassClock()
        with full_float32():
            middle = params.costs[len(params.costs) // 2]
            fit([middle], max_iterations=STREAMED, resident_bytes=0, track=from_file)
            torch.cuda.reset_peak_memory_stats()
            began = time.perf_counter()
            fits = fit(params.costs, max_iterations=params.max_iterations, track=whole)
            torch.cuda.synchronize()
            ours = time.perf_counter() - began
            halves = pass_seconds(rows, dim, classes, torch.float16)
            single, double = (pass_seconds(rows, dim, classes, dtype) for dtype in (torch.float32, torch.float64))
    limit = fits.single_passes * halves + fits.passes * double
    passes = fits.single_passes + fits.passes
    return entry(
        "gpu-logistic",
        ours=ours,
        baseline=passes * from_file.median,
        described="the same passes over rows that stream from a file",
        limit_s=limit,
        limit="the products of the passes alone",
        note=f"{torch.cuda.get_device_name()}, {rows:,} x {dim:,}, {classes:,} classes, {len(params.costs)} costs: "
        f"{fits.single_passes:.0f} passes of a fit in float32 and {fits.passes:.0f} in float64; a pass takes "
        f"{whole.median:.3f} s, or {from_file.median:.3f} s where all rows stream from a file; its products alone "
        f"{halves:.3f} s made of float16, {single:.3f} s in float32, {double:.3f} s in float64; peak memory "
        f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB; largest gradient {fits.gradient.max():.1e}"
        + beside_expected("gpu-logistic", ours, "s"),
    )


class PassClock:
    """Wraps the passes of a fit, as a progress bar does, and takes the time of each."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __call__(self, passes: Iterable[None], _: str) -> Iterator[None]:
        began = time.perf_counter()
        for each in passes:
            torch.cuda.synchronize()
            self.seconds.append(time.perf_counter() - began)
            yield each
            began = time.perf_counter()

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def pass_seconds(rows: int, dim: int, classes: int, dtype: torch.dtype) -> float:
    """Seconds of the two products of a pass, of as many rows at a time as the solver takes.

    Args:
        dtype: float16 stands for products of float32 that are made of float16 ones.
    """
    exact = torch.float32 if dtype == torch.float16 else dtype
    size = min(rows, LOGITS_BYTES // (classes * exact.itemsize))
    shapes = (size, dim), (classes, dim), (size, classes)
    x, weights, slopes = (torch.randn(shape, dtype=exact, device=CUDA) for shape in shapes)
    if dtype == torch.float16:
        halves, by, of = Halves(x), Halves(weights), Halves(slopes)
        seconds = gpu_seconds(lambda: (halves.products(by), halves.weighted(of)))
    else:
        seconds = gpu_seconds(lambda: (row_products(x, weights), row_products(slopes.T, x.T)))
    return seconds * rows / size


def stored_problem(file: Path, rows: int, dim: int, classes: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The problem of `classifiers.logistic_problem`, drawn on the GPU; its features lie in a file and are mapped."""
    draw = partial(torch.randn, generator=torch.Generator(CUDA).manual_seed(0), device=CUDA)
    spectrum = 3 * torch.arange(1, dim + 1, dtype=torch.float32, device=CUDA) ** -0.55
    centres = draw(classes, dim) * spectrum * 0.6
    projection, offset = draw(dim, dim) * (2 / dim**0.5), draw(dim) * 0.3
    targets = np.random.default_rng(0).integers(0, classes, rows)
    stored = np.lib.format.open_memmap(file, "w+", np.float32, (rows, dim))
    for start in range(0, rows, CHUNK):
        own = torch.from_numpy(targets[start : start + CHUNK]).to(CUDA)
        latent = draw(len(own), dim) * spectrum + centres[own]
        stored[start : start + CHUNK] = (latent @ projection + offset).relu_().cpu().numpy()
    stored.flush()
    return np.load(file, mmap_mode="r"), targets

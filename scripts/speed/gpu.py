"""Speed on the GPU of this machine: a MoCo step, feature extraction and the kNN search, beside the bare passes.

Nothing of this is measured where there is no GPU. Data are noise; decoding has an entry of its own and is not part of
the others.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from benchmarks.datasets import images
from benchmarks.encoders.load import load_encoder
from benchmarks.features.extract import Reader, extractor, read_batches
from benchmarks.solvers.exact_knn import exact_knn
from benchmarks.task import Precision
from pretrain.augment_tensor import BatchedViews
from pretrain.distributed import default_workers, full_float32
from pretrain.moco import MoCo
from pretrain.recipe import Recipe
from pretrain.trainer import Stepper
from results.schema import Geometry

from .features import write_jpegs
from .measurement import Entries, SpeedEntry, entry
from .pretrain import moco_v2

CUDA = torch.device("cuda")
BATCH, REPEATS = 256, 10
GALLERY, QUERIES, DIM = 1_281_167, 50_000, 2048  # ImageNet's train and validation split, ResNet-50
FILES, DECODED = 512, 64  # JPEG files, and how many of them are decoded together
RESNET, VIT = "resnet50", "vit_large_patch16_224"  # with random weights


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
    }


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
    stepper = Stepper(recipe, CUDA)
    model, images, n = stepper.model, stepper.batch.views[0], recipe.batch_size
    assert isinstance(model, MoCo)

    def passes() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            q = model.encoder_q(images)
            with torch.no_grad():
                model.encoder_k(images)
        q.sum().backward()

    step, bare = gpu_seconds(stepper.step), gpu_seconds(passes)
    return entry(
        "gpu-step",
        ours=step,
        baseline=bare,
        described="the bare passes of both encoders",
        limit_s=bare,
        limit="the bare passes",
        note=f"{torch.cuda.get_device_name()}, bfloat16, {n} images of {recipe.augmentation.crop} pixels: "
        f"{n / step:.0f} images/s, the bare passes are {100 * bare / step:.0f} % of the step; peak memory "
        f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB",
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
    return entry(
        f"gpu-extract{'-vit' if architecture == VIT else ''}",
        ours=bf16,
        baseline=fp32,
        described="the same in float32 (IEEE, as stored features are by default)",
        limit_s=alone,
        limit="the network alone, in bfloat16",
        note=f"{torch.cuda.get_device_name()}, {architecture}, {batch} images of {crop} pixels: {batch / bf16:.0f} "
        f"images/s in bfloat16, {batch / fp32:.0f} in float32; the network alone is {100 * alone / bf16:.0f} %",
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
    with full_float32():
        ours = gpu_seconds(lambda: exact_knn(rows, asked, 200, device="cuda", engine="torch"), repeats=1)
    q = torch.from_numpy(asked[: min(queries, 16384)]).to(CUDA, torch.float16)
    tile = torch.from_numpy(rows[: min(gallery, 65536)]).to(CUDA, torch.float16)
    products = gpu_seconds(lambda: q @ tile.T) * (gallery / len(tile)) * (queries / len(q))
    return entry(
        "gpu-knn",
        ours=ours,
        baseline=products,
        described="the float16 products alone",
        limit_s=products,
        limit="the float16 products alone",
        note=f"{torch.cuda.get_device_name()}, {queries:,} queries, {gallery:,} rows of {dim}, k = 200: "
        f"{queries / ours:.0f} queries/s",
    )

"""Speed on the GPU of this machine: a MoCo step, feature extraction and the kNN search, beside the bare passes.

Nothing of this is measured where there is no GPU. Data are noise: decoding is not part of it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from benchmarks.encoders.load import load_encoder
from benchmarks.features.extract import extractor
from benchmarks.solvers.exact_knn import exact_knn
from benchmarks.task import Precision
from pretrain.augment_tensor import BatchedViews
from pretrain.cost import Stepper
from pretrain.distributed import full_float32
from pretrain.moco import MoCo
from pretrain.recipe import Recipe
from results.schema import Geometry

from .measurement import Entries, SpeedEntry, entry
from .pretrain import moco_v2

CUDA = torch.device("cuda")
BATCH, REPEATS = 256, 10
GALLERY, QUERIES, DIM = 1_281_167, 50_000, 2048  # ImageNet's train and validation split, ResNet-50
RESNET, VIT = "resnet50", "vit_large_patch16_224"  # with random weights


def entries() -> Entries:
    """None without a GPU."""
    if not torch.cuda.is_available():
        return {}
    return {
        "gpu-step": time_gpu_step,
        "gpu-augment": time_gpu_augmentation,
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
    step = gpu_seconds(Stepper(recipe, CUDA).step)
    return entry(
        "gpu-augment",
        ours=seconds,
        baseline=step,
        described="an update",
        limit_s=0.1 * step,
        limit="a tenth of an update",
        note=f"{torch.cuda.get_device_name()}, {recipe.views} views of {n} images of {crop} pixels: "
        f"{100 * seconds / (seconds + step):.0f} % of augmentation and update together",
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

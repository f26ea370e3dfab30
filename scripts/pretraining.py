"""Before a pretraining run: index its shards, time its input pipeline, measure time and memory of its step."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from pretrain.data import SHARD_INDEX, count_images, find_images
from pretrain.recipe import Recipe, load_recipe
from results.command_line import run_script
from results.errors import InputError, print_error
from results.files import write_file
from results.schema import DatasetRef, EncoderCard, Geometry, Protocol, ProtocolRef, Record, Score, Source
from results.schema import canonical_sha256 as sha256
from results.store import commit, versions, write_record

if TYPE_CHECKING:
    from pretrain.trainer import Cost

MechanismName = Literal["momentum", "end-to-end", "memory-bank", "simclr"]


@dataclass
class IndexShards:
    """Count the images in tar shards and write FOLDER/shards.json, in the format of webdataset's widsindex."""

    folder: tyro.conf.Positional[Path]
    """folder of .tar files"""


def index_shards(options: IndexShards) -> int:
    """Read the headers of every shard once."""
    shards = sorted(options.folder.glob("*.tar"))
    if not shards:
        if not options.folder.is_dir():
            raise InputError(f"folder not found: {options.folder}; name the folder of the .tar files")
        raise InputError(f"no .tar file in {options.folder}")
    counts = {shard.name: count_images(shard) for shard in shards}
    entries = [{"url": name, "nsamples": count} for name, count in counts.items()]
    path = options.folder / SHARD_INDEX
    write_file(path, json.dumps({"wids_version": 1, "shardlist": entries}, indent=1) + "\n")
    sys.stdout.write(f"wrote {path}: {sum(counts.values()):,} images\n")
    return 0


@dataclass
class BenchLoader:
    """Load batches as a run of the recipe does, and time them."""

    data: Path
    """as for `python -m pretrain`"""
    recipe: str = "mocov2_resnet50_8xb32-coslr-200e_in1k"
    """name in pretrain/recipes, or a .toml file"""
    engine: Literal["pil", "cv2", "tensor"] | None = None
    """augmentation engine; the recipe's by default"""
    batch: int = 32
    """images per batch of this one process"""
    batches: int = 20
    workers: int = 2
    """loader processes"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, …"""


def time_loader(options: BenchLoader) -> int:
    """Print the images per second of the input pipeline alone, from files to views on the device."""
    if options.batches < 1:
        raise InputError(f"--batches must be at least 1, got {options.batches}")
    recipe = load_recipe(options.recipe)
    engine = options.engine or recipe.augmentation.engine
    augmentation = {**recipe.augmentation.model_dump(), "engine": engine}
    if engine != "tensor":
        augmentation["stored_size"] = None
    # The model's fields do not matter to the loader, but must go together.
    recipe = recipe.changed(
        augmentation=augmentation, batch_size=options.batch, queue_size=2 * options.batch, split_bn=1
    )
    images = find_images(options.data)

    import torch  # here, after everything that can be refused without it

    from pretrain.distributed import own_device
    from pretrain.loader import Loader

    device = own_device(options.device)
    loader = Loader(recipe, images, device, torch.Generator(device), options.workers)
    began = time.perf_counter()
    count = sum(len(batch.indices) for batch in islice(loader.batches(0, 0), options.batches))
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    sys.stdout.write(
        f"{count / seconds:.1f} images/s, {recipe.views * count / seconds:.1f} views/s: engine {engine}, "
        f"{recipe.augmentation.crop} pixels, batch {options.batch}, {options.workers} workers, {count} images, "
        "including the start of the workers\n"
    )
    return 0


@dataclass
class CostTable:
    """Measure Table 3 of the MoCo v2 note for any recipe on this machine: steps on noise, without input pipeline."""

    recipe: str = "mocov2_resnet50_8xb32-coslr-200e_in1k"
    """name in pretrain/recipes, or a .toml file"""
    batch: int = 32
    """images per batch of this one process"""
    mechanisms: tuple[MechanismName, ...] = ("momentum", "end-to-end")
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    """default bf16 where the device has bfloat16 arithmetic, else fp32"""
    steps: int = 3
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, …"""
    records: Path = Path("work/records")


def measure_costs(options: CostTable) -> int:
    """Measure each mechanism in a process of its own, print a table and write a record."""
    if options.steps < 1:
        raise InputError(f"--steps must be at least 1, got {options.steps}")
    if not options.mechanisms:
        raise InputError("--mechanisms needs at least one mechanism")
    base = load_recipe(options.recipe)
    recipes = [
        base.changed(batch_size=options.batch, split_bn=1, accumulate=1, mechanism=mechanism)
        for mechanism in options.mechanisms
    ]

    from pretrain.distributed import full_float32, has_fast_bf16, own_device
    from pretrain.trainer import measure_cost

    options.device = str(own_device(options.device))
    options.precision = options.precision or ("bf16" if has_fast_bf16(options.device) else "fp32")
    recipes = [recipe.changed(precision=options.precision) for recipe in recipes]
    costs = [measure_cost(recipe, options.device, options.steps) for recipe in recipes]
    sys.stdout.write(_table(costs))
    with full_float32():  # as in `measure_cost`, for the record's hardware
        path = write_record(options.records, _record(recipes[0], costs, options))
    sys.stdout.write(f"wrote {path}\n")
    return 0


def _table(costs: list[Cost]) -> str:
    first = costs[0]
    lines = [f"{'mechanism':14}{'batch':>7}{'s/step':>10}{'images/s':>10}{'peak GiB':>10}{'time':>8}{'memory':>8}"]
    for cost in costs:
        lines.append(
            f"{cost.mechanism:14}{cost.batch:7d}{cost.seconds:10.3f}{cost.batch / cost.seconds:10.1f}"
            f"{cost.peak_gib:10.2f}{cost.seconds / first.seconds:8.2f}{cost.peak_gib / first.peak_gib:8.2f}"
        )
    return "\n".join(lines) + "\n"


def _record(recipe: Recipe, costs: list[Cost], options: CostTable) -> Record:
    """One record: a column per ratio to the first mechanism, a run per mechanism."""
    from benchmarks.evaluate import hardware

    first = costs[0]
    selection = f"median of {options.steps} steps"
    scores = {
        f"{quantity} of {cost.mechanism} to {first.mechanism}": Score(value=value, unit="1", selection=selection)
        for cost in costs[1:] or costs
        for quantity, value in (
            ("time", cost.seconds / first.seconds), ("memory", cost.peak_gib / first.peak_gib),
        )
    }  # fmt: skip
    protocol = Protocol(
        benchmark="pretrain_cost",
        variant="step",
        harness="pretrain",
        dataset="noise",
        train_split="none",
        test_split="none",
        geometry=Geometry(mode="warp", resize=0, crop=recipe.augmentation.crop),
        columns=tuple(scores),
        primary=next(iter(scores)),
        metric="ratio",
        unit="1",
        higher_is_better=False,
        selection=selection,
        params={
            "recipe": recipe.name, "batch": options.batch, "precision": options.precision, "device": options.device,
        },
        source=Source(repository="arXiv 2003.04297", note="Table 3"),
    )  # fmt: skip
    return Record(
        status="ok",
        encoder=EncoderCard(
            name=recipe.name, source=f"recipe {recipe.name}", architecture=recipe.architecture, method=recipe.method
        ),
        protocol=ProtocolRef(id=protocol.id, sha256=protocol.content_sha256(), resolved=protocol),
        dataset=DatasetRef(id="noise", fingerprint=sha256("noise"), embedded=True, train_items=0, test_items=0),
        scores=scores,
        runs=tuple(
            {"mechanism": c.mechanism, "batch": c.batch, "seconds": c.seconds, "images_per_second": c.batch / c.seconds,
             "peak_gib": c.peak_gib}
            for c in costs
        ),
        peak_memory_gib=max(cost.peak_gib for cost in costs),
        versions=versions(),
        commit=commit(),
        hardware=hardware(options.device),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip


COMMANDS: Mapping[str, tuple[type[Any], Callable[[Any], int]]] = {
    "index-shards": (IndexShards, index_shards),
    "bench-loader": (BenchLoader, time_loader),
    "cost-table": (CostTable, measure_costs),
}


def main(arguments: list[str]) -> int:
    """Run `encoder-bench NAME …` for one of `COMMANDS`."""
    name, *flags = arguments or [""]
    if name not in COMMANDS:
        return print_error("pretraining", InputError(f"name one of the commands {', '.join(COMMANDS)}"))
    return run_script(*COMMANDS[name], name, flags)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What is made or measured before runs: an index of shards, VOC 2012 aug, the speed of loading, the cost of a step."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import tyro
from numpy.typing import NDArray
from PIL import Image

from benchmarks.datasets.lists import read_lines
from benchmarks.datasets.safe_readers import read_mat
from benchmarks.task import progress
from pretrain.data import SHARD_INDEX, count_images, find_images
from pretrain.recipe import Recipe, load_recipe
from results.command_line import run_script
from results.errors import InputError, print_error
from results.files import open_image, replacing, write_file
from results.schema import DatasetRef, EncoderCard, Geometry, Protocol, ProtocolRef, Record, Score, Source
from results.schema import canonical_sha256 as sha256
from results.store import commit, versions, write_record

if TYPE_CHECKING:
    from pretrain.trainer import Cost

log = logging.getLogger("prepare")

VOC_CLASSES = 21
MAX_MAT = 2**25  # bytes of a .mat file, unpacked; those of SBD have half a million
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
class PrepareVoc12Aug:
    """Make VOC 2012 aug: convert SBD's masks for the images that it adds to VOC's train, and write its lists.

    SBD is of Hariharan et al. 2011. The lists, aug.txt and trainaug.txt, are those of mmsegmentation's converter:
    everything of SBD and of VOC's train that is not in VOC's val. A run that was stopped resumes when it is started
    again.
    """

    data: Path = Path("work/data")
    """root of the data sets, with VOCdevkit/VOC2012"""
    sbd: Path | None = None
    """folder with cls/, train.txt and val.txt; default VOCdevkit/VOCaug/dataset below the root"""
    expected: int = 10_582
    """number of images that train and SBD must have together, without val"""


def prepare_voc12aug(options: PrepareVoc12Aug) -> int:
    """Write masks and lists.

    Raises:
        InputError: a list or a mask is missing or malformed, or the lists have another number of images.
        OSError: a file cannot be written.
    """
    voc = options.data / "VOCdevkit" / "VOC2012"
    sbd = options.sbd or options.data / "VOCdevkit" / "VOCaug" / "dataset"
    lists = voc / "ImageSets" / "Segmentation"
    train, val = set(read_lines(lists / "train.txt")), set(read_lines(lists / "val.txt"))
    added = {*read_lines(sbd / "train.txt"), *read_lines(sbd / "val.txt")} - train - val
    together = len(train | added)
    if together != options.expected:
        raise InputError(
            f"{sbd} and {lists} list {together} training images, expected {options.expected}; take train.txt and "
            "val.txt of SBD's benchmark_RELEASE and of VOC 2012, or change the number with --expected"
        )
    masks = voc / "SegmentationClassAug"
    todo = sorted(id for id in added if not (masks / f"{id}.png").is_file())
    for id in progress(todo, "masks"):
        _write_mask(_read_mask(sbd / "cls" / f"{id}.mat", voc / "JPEGImages" / f"{id}.jpg"), masks / f"{id}.png")
    _write_list(lists / "aug.txt", sorted(added))
    _write_list(lists / "trainaug.txt", sorted(train | added))
    log.info("wrote %d masks to %s, and the lists", len(todo), masks)
    return 0


def _read_mask(file: Path, image: Path) -> NDArray[np.uint8]:
    """(H, W) class indices of one .mat file, checked against its image."""
    truth = read_mat(file, ("GTcls",), MAX_MAT)["GTcls"]
    masks = truth.get("Segmentation", []) if isinstance(truth, dict) else []
    mask = masks[0] if len(masks) == 1 else None
    try:
        with open_image(image) as picture:
            width, height = picture.size
    except FileNotFoundError as error:
        raise InputError(f"{image} is missing; unpack VOC 2012 again") from error
    except Exception as error:  # Pillow raises nearly anything on a damaged file
        raise InputError(f"{image} cannot be read ({error}); unpack VOC 2012 again") from error
    if not isinstance(mask, np.ndarray) or mask.shape != (height, width) or not _are_classes(mask):
        raise InputError(
            f"{file} is not a mask of {width} by {height} pixels with values below {VOC_CLASSES}; unpack SBD again"
        )
    return mask.astype(np.uint8)


def _are_classes(mask: NDArray[np.generic]) -> bool:
    return bool(np.isin(mask, np.arange(VOC_CLASSES)).all())


def _write_mask(mask: NDArray[np.uint8], file: Path) -> None:
    image = Image.fromarray(mask)
    image.putpalette(_palette())
    with replacing(file) as temporary:
        image.save(temporary, format="PNG")


def _palette() -> list[int]:
    """VOC's colours: the bits of the index, from the lowest, are dealt to red, green and blue from the highest down."""
    return [
        sum((index >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(8))
        for index in range(256)
        for channel in range(3)
    ]


def _write_list(file: Path, lines: Iterable[str]) -> None:
    write_file(file, "".join(f"{line}\n" for line in lines))


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
    "prepare-voc12aug": (PrepareVoc12Aug, prepare_voc12aug),
    "bench-loader": (BenchLoader, time_loader),
    "cost-table": (CostTable, measure_costs),
}


def main(arguments: list[str]) -> int:
    """Run `encoder-bench NAME …` for one of `COMMANDS`."""
    name, *flags = arguments or [""]
    if name not in COMMANDS:
        return print_error("prepare", InputError(f"name one of the commands {', '.join(COMMANDS)}"))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    return run_script(*COMMANDS[name], name, flags)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

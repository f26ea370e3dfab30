"""What a harness would do: protocol, data, and the time, disk and memory that it needs."""

from __future__ import annotations

import time

import torch

from benchmarks.contract import InputError
from benchmarks.features.store import FeatureStore, gib
from benchmarks.jobs import find_done, prepare, wanted_features
from benchmarks.options import Bench
from benchmarks.task import RunOptions
from results.schema import Protocol

PROBE_IMAGES = 16


def plan(protocol: Protocol, encoders: list[str], options: Bench, device: str) -> str:
    """One paragraph per encoder. The time is that of the encoder's passes, measured on a small batch of noise."""
    lines = [
        f"protocol   {protocol.id}: {protocol.source.repository} {protocol.source.revision}".rstrip(),
        f"data       {protocol.dataset} {protocol.train_split} / {protocol.test_split} below {options.data}",
    ]
    for encoder in encoders:
        try:
            job = prepare(
                encoder, protocol, options.data, dataset=options.dataset, name=options.name, seed=options.seed,
                precision=options.precision, facts=options.facts,
            )  # fmt: skip
        except InputError as error:
            lines.append(f"missing    {encoder}: {' '.join(str(error).split())}")
            continue
        if not options.force and find_done(job, options.out):
            lines.append(f"done       {job.encoder.card.name} has a record")
            continue
        job.encoder.to(device)
        crop = protocol.geometry.crop
        images = torch.randint(0, 256, (PROBE_IMAGES, 3, crop, crop), dtype=torch.uint8)
        for _ in range(2):  # the first one warms up
            started = time.monotonic()
            found = job.encoder.outputs(job.encoder.normalise(images), {"embed"})["embed"]
            width = len(found.cpu()[0])
            seconds = (time.monotonic() - started) / PROBE_IMAGES
        count = len(job.train) + len(job.test)
        cells = max(1, len(job.harness.cells(protocol)))
        params = protocol.params
        trained = len(job.train) * int(params.get("epochs", 1))
        if "iterations" in params:  # of a batch, as detection and segmentation count
            trained = int(params["iterations"]) * int(params["batch_size"])
        passes = cells * int(params.get("trials", 1)) * (trained + len(job.test))
        if job.harness.on_features:
            sizes = FeatureStore(RunOptions(features=options.features)).bytes_to_write(wanted_features(job))
            each = ", ".join(f"{output} {gib(size)}" for output, size in sorted(sizes.items()))
            disk = f"{gib(sum(sizes.values()))} in {options.features}" + (f": {each}" if each else ", all there")
        else:
            disk = "the heads only" if cells == 1 else f"a record for each of {cells} cells, and one for the choice"
        lines += [
            f"would run  {job.encoder.card.name} on {len(job.train):,} + {len(job.test):,} images",
            f"  time     about {passes * seconds:.0f} s of encoder passes on {device}",
            f"  disk     {disk}",
            f"  memory   {count * width * 4 / 2**20:.0f} MiB for embed, and the encoder",
        ]
    return "\n".join(lines) + "\n"

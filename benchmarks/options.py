"""What a harness's command takes, beside the name of the harness."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

DATA = Path("work/data")
Precision = Literal["fp32", "bf16", "fp16"]
Engine = Literal["auto", "faiss", "torch"]


@dataclass
class Bench:
    """Benchmarks encoders and writes one record for each. What has a record is skipped."""

    encoder: tuple[str, ...]
    """a checkpoint of any known layout, a glob of them, torchvision:ARCH[:FILE], timm:NAME[:FILE], random:ARCH[:SEED],
    package:efficientnet-lite0, pixels, or my_package.my_module:build; one or several"""
    facts: tuple[str, ...] = ()
    """what a checkpoint's keys cannot show, as channels=BGR stride_in_1x1=true architecture=resnet50 pick=teacher"""
    data: Path = DATA
    """root of the data sets"""
    protocol: str | None = None
    """protocol id, as knn.mmselfsup@1; default the published one, or the small one on embedded data"""
    overrides: Annotated[tuple[str, ...], tyro.conf.arg(name="set")] = ()
    """numbers of the protocol to change, as epochs=10 batch_size=128; the protocol's id in the record says so"""
    trials: int | None = None
    """runs with seeds of their own, whose mean and spread are reported, of protocols that have such; short for --set
    trials=N"""
    dataset: str | None = None
    """another data set than the protocol's, as imagefolder"""
    name: str | None = None
    """what tables call the encoder"""
    out: Path = Path("work/records")
    """folder of the records"""
    features: Path = Path("work/features")
    """folder of the stored features"""
    device: str = "auto"
    """cpu, cuda, cuda:1, …"""
    seed: int = 0
    workers: int = 2
    """loader processes"""
    precision: Precision | None = None
    """of the encoder; default the protocol's own, fp32 for stored features. The id in the record names another one"""
    batch_size: int | None = None
    """images at a time in a pass for features; default by the device and the size of the images"""
    index_files: Path | None = None
    """folder of published low-shot sets, for the protocol that uses them (fssb)"""
    engine: Engine = "auto"
    """what proposes neighbours for knn, which are exact whatever it is; auto is the quicker one on this hardware"""
    strict: bool = False
    """stop at the first image that cannot be read, instead of leaving it out and marking the record"""
    threads: int | None = None
    """CPU threads of this process; default torch's"""
    force: bool = False
    """measure again what has a record"""
    dry_run: bool = False
    """say what would run, what is missing and what it needs, and stop"""

    @property
    def changes(self) -> tuple[str, ...]:
        """What of the protocol is changed, as name=value."""
        return self.overrides if self.trials is None else (*self.overrides, f"trials={self.trials}")

"""What a harness's command takes, beside the name of the harness."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DATA = Path("work/data")


@dataclass
class Bench:
    """Benchmarks encoders and writes one record for each. What has a record is skipped."""

    encoder: tuple[str, ...]
    """backbone.safetensors, a glob of them, random:ARCH[:SEED], package:efficientnet-lite0, pixels,
    or my_package.my_module:build; one or several"""
    data: Path = DATA
    """root of the data sets"""
    protocol: str | None = None
    """protocol id, as knn.mmselfsup@1; default the published one, or the small one on embedded data"""
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
    threads: int | None = None
    """CPU threads of this process; default torch's"""
    force: bool = False
    """measure again what has a record"""
    dry_run: bool = False
    """say what would run, what is missing and what it needs, and stop"""

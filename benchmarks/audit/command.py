"""`python -m benchmarks audit`."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path

import torch

from benchmarks.audit.examine import examine
from benchmarks.audit.report import Audit, text
from benchmarks.audit.sample import draw_sample
from benchmarks.contract import InputError
from benchmarks.encoders.load import expand, load_encoder
from benchmarks.options import DATA

log = logging.getLogger(__name__)


def write_audit(audit: Audit, folder: Path) -> Path:
    """`<folder>/<encoder>-<first digits of its weights' hash>.json`, whole or not at all."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", audit.encoder.name).strip("-").lower()
    path = folder / f"{name}-{(audit.encoder.weights_sha256 or 'none')[:8]}.json"
    partial = path.with_suffix(".partial")
    partial.write_text(audit.model_dump_json(indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
    return path


def command(
    encoder: tuple[str, ...],
    data: Path = DATA,
    name: str | None = None,
    facts: tuple[str, ...] = (),
    out: Path = Path("work/audit"),
    device: str = "auto",
    seed: int = 0,
    size: int = 96,
    seconds: float = 30.0,
    threads: int | None = None,
    dry_run: bool = False,
) -> int:
    """Looks for what silently spoils numbers: a wrong card, dead channels, NaN, statistics that do not fit.

    No file of the encoder is changed.

    Args:
        encoder: as for a harness; one or several.
        data: root of the embedded data, or an image folder.
        name: what the report calls the encoder.
        facts: what a checkpoint's keys cannot show, as channels=BGR.
        out: folder of the reports as JSON.
        device: cpu, cuda, cuda:1, …
        seed: of the choice of images.
        size: images are reduced to this many pixels.
        seconds: roughly, for the encoder's passes; a slow encoder sees fewer images.
        threads: CPU threads; default torch's.
        dry_run: say what would run and stop.
    """
    if size < 8:
        raise InputError(f"--size {size}: images of fewer than 8 pixels show nothing")
    if seconds <= 0:
        raise InputError(f"--seconds {seconds:g}: an audit takes time; give what is above 0, as 20")
    if threads is not None:
        if threads < 1:
            raise InputError(f"--threads {threads}: give 1 or more")
        torch.set_num_threads(threads)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    encoders = expand(encoder)
    if dry_run:
        sys.stdout.write(f"would audit {', '.join(encoders)} on {data} for about {seconds:g} s each\n")
        return 0
    if name and len(encoders) > 1:
        raise InputError(f"--name names one encoder, and there are {len(encoders)}; leave it out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the reports cannot go to {out} ({error.strerror}); give another folder as --out") from error
    sample = draw_sample(data, size, seed)
    for spec in encoders:
        audit = examine(load_encoder(spec, name, facts).to(device), sample, seconds=seconds, seed=seed)
        sys.stdout.write(text(audit))
        log.info("wrote %s", write_audit(audit, out))
    return 0

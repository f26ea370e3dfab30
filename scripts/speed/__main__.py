"""`make speed`: time the hot loops against what people use today, and write work/speed.json."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from results.errors import InputError, did_you_mean, print_error
from results.files import write_file

from . import classifiers, features, gpu, knn, pretrain, svm
from .measurement import cpu

MODULES = (svm, knn, classifiers, features, pretrain, gpu)
# Seconds that each entry is planned to take on two cores with AVX2, baselines included.
PLANNED = {
    "svm-2048": 75, "svm-8192": 125, "low-shot-svm": 75, "knn": 45, "knn-faiss": 40, "knn-growth": 20,
    "linear-grid": 50, "extract": 60,
    "extract-bf16": 60, "logistic": 75, "few-shot": 10, "decoders": 12, "views": 12, "frozen": 25, "dense": 20,
    "pretrain-step": 75, "moco-overhead": 30, "augment": 5, "end-to-end": 65,
    "gpu-step": 20, "gpu-augment": 20, "gpu-decode": 60, "gpu-extract": 20, "gpu-extract-vit": 40, "gpu-knn": 90,
    "gpu-logistic": 420,
}  # fmt: skip


@dataclass
class Speed:
    """Time each pair alternately in one process and run; medians and their ratio are printed."""

    only: tyro.conf.Positional[tuple[str, ...]] = ()
    """entries to measure and merge into the file, or the first word of several, such as `gpu`; all by default"""
    out: Path = Path("work/speed.json")


def chosen_of(only: Sequence[str], entries: Collection[str]) -> tuple[str, ...]:
    """The entries that are named, or whose names begin with a word that is no entry itself; all where none is named.

    Raises:
        InputError: there is no such entry on this machine.
    """
    found: list[str] = []
    for name in only:
        named = [name] if name in entries else [entry for entry in entries if entry.startswith(f"{name}-")]
        if not named and (name == "gpu" or (name in PLANNED and name.startswith("gpu-"))):
            from pretrain.distributed import why_no_gpu

            raise InputError(f"{name} is measured on a GPU only: {why_no_gpu()}")
        if not named:
            raise InputError(f"no entry {name!r}{did_you_mean(name, entries)}\nentries: {', '.join(entries)}")
        found += named
    return tuple(dict.fromkeys(found)) or tuple(entries)


def main() -> int:
    """Measure the chosen entries, print a line for each, and merge them into the file."""
    options = tyro.cli(Speed)
    entries = {name: work for module in MODULES for name, work in module.entries().items()}
    try:
        chosen = chosen_of(options.only, entries)
    except InputError as error:
        return print_error("speed", error)
    known = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else []
    results = {entry["name"]: entry for entry in known}
    planned = ", ".join(f"{name} {PLANNED[name]}" for name in chosen)
    minutes = sum(PLANNED[name] for name in chosen) / 60
    sys.stdout.write(f"{cpu()}\nplanned seconds: {planned}; {minutes:.1f} minutes in all\n")
    began = time.perf_counter()
    for name in chosen:
        started = time.perf_counter()
        try:
            entry = results[name] = entries[name]()
        except InputError as error:
            sys.stdout.write(f"{name:14} not measured: {error}\n")
            continue
        entry["took_s"] = time.perf_counter() - started
        sys.stdout.write(
            f"{name:14} {entry['ours_s']:9.3f} s   {entry['baseline_s']:9.3f} s for {entry['baseline']}   "
            f"{entry['ratio']:6.2f} times   limit {entry['limit_s']:.3f} s ({entry['limit']})   {entry['note']}   "
            f"[measured in {entry['took_s']:.0f} s]\n"
        )
        sys.stdout.flush()
        write_file(options.out, json.dumps(list(results.values()), indent=1) + "\n")
    sys.stdout.write(f"measured in {(time.perf_counter() - began) / 60:.1f} minutes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

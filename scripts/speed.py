"""`make speed`: times the hot loops against what people use today, and writes work/speed.json."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import tyro

ROOMS = (
    "benchmarks.svm.speed",
    "benchmarks.knn.speed",
    "benchmarks.linear.speed",
    "benchmarks.features.speed",
    "pretrain.speed",
)


@dataclass
class Speed:
    """Each pair is timed alternately in one process and one run; the medians are given, and their ratio."""

    only: tyro.conf.Positional[tuple[str, ...]] = ()
    """names to run and merge into the file; all without"""
    out: Path = Path("work/speed.json")


def main() -> int:
    """Runs the chosen pairs, prints a line for each, and merges them into the file."""
    options = tyro.cli(Speed)
    pairs: dict[str, Callable[[], dict[str, Any]]] = {}
    for room in ROOMS:
        pairs.update(import_module(room).pairs())
    unknown = sorted(set(options.only) - set(pairs))
    if unknown:
        sys.stderr.write(f"speed: no pair {', '.join(unknown)}; there are {', '.join(pairs)}\n")
        return 2
    known = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else []
    results = {entry["name"]: entry for entry in known}
    for name in options.only or pairs:
        entry = pairs[name]()
        results[name] = entry
        sys.stdout.write(
            f"{name:14} {entry['ours_s']:9.3f} s   {entry['baseline_s']:9.3f} s for {entry['baseline']}   "
            f"{entry['ratio']:6.2f} times   limit {entry['limit_s']:.3f} s ({entry['limit']})   {entry['note']}\n"
        )
        sys.stdout.flush()
        options.out.parent.mkdir(parents=True, exist_ok=True)
        partial = options.out.with_suffix(".partial")
        partial.write_text(json.dumps(list(results.values()), indent=1) + "\n", encoding="utf-8")
        partial.replace(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`make speed`: time the hot loops against what people use today, and write work/speed.json."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from results.errors import InputError, did_you_mean, print_error
from results.files import write_file

from . import dense, features, gpu, knn, linear, pretrain, svm


@dataclass
class Speed:
    """Time each pair alternately in one process and run; medians and their ratio are printed."""

    only: tyro.conf.Positional[tuple[str, ...]] = ()
    """entries to measure and merge into the file; all by default"""
    out: Path = Path("work/speed.json")


def main() -> int:
    """Measure the chosen entries, print a line for each, and merge them into the file."""
    options = tyro.cli(Speed)
    modules = (svm, knn, linear, features, dense, pretrain, gpu)
    entries = {name: work for module in modules for name, work in module.entries().items()}
    for name in options.only:
        if name not in entries:
            fault = f"no entry {name!r}{did_you_mean(name, entries)}"
            return print_error("speed", InputError(f"{fault}\nentries: {', '.join(entries)}"))
    known = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else []
    results = {entry["name"]: entry for entry in known}
    for name in options.only or entries:
        entry = results[name] = entries[name]()
        sys.stdout.write(
            f"{name:14} {entry['ours_s']:9.3f} s   {entry['baseline_s']:9.3f} s for {entry['baseline']}   "
            f"{entry['ratio']:6.2f} times   limit {entry['limit_s']:.3f} s ({entry['limit']})   {entry['note']}\n"
        )
        sys.stdout.flush()
        write_file(options.out, json.dumps(list(results.values()), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`encoder-bench convert` as a script: write a checkpoint's backbone for another library.

python scripts/convert_checkpoint.py IN OUT --to detectron2
"""

from __future__ import annotations

import sys

from benchmarks.__main__ import main as encoder_bench


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 2 with a message on stderr."""
    return encoder_bench(["convert", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    sys.exit(main())

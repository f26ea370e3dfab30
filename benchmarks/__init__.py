"""Benchmark harnesses for pretrained image encoders.

from benchmarks import evaluate
evaluate(module_or_path, "knn.mmselfsup@1", data)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.contract import InputError
    from benchmarks.evaluation import evaluate

__all__ = ["InputError", "evaluate"]


def __getattr__(name: str) -> Any:
    # Imported when first used, so that `import benchmarks` costs nothing.
    if name == "evaluate":
        from benchmarks.evaluation import evaluate

        return evaluate
    if name == "InputError":
        from benchmarks.contract import InputError

        return InputError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

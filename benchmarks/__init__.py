"""Benchmarks for pretrained image encoders.

from benchmarks import evaluate
evaluate(module_or_path, "knn.mmselfsup@1", data)
"""

from benchmarks.evaluate import evaluate as evaluate  # the function, also once the module of its name is imported
from benchmarks.task import InputError as InputError
from benchmarks.task import RunOptions as RunOptions

__all__ = ["InputError", "RunOptions", "evaluate"]

"""What a step costs: the memory is that of the step, whoever asks for it."""

from __future__ import annotations

import json
import subprocess
import sys

SCRIPT = """
import json
from pretrain.cost import measure
from pretrain.recipe import Recipe
from results.schema import Architecture
recipe = Recipe(architecture=Architecture(name="resnet18"), augmentation={"crop": 32}, batch_size=32, queue_size=64)
alone = measure(recipe, "cpu", 1).peak_gib
ballast = b"x" * 2_000_000_000
print(json.dumps([alone, measure(recipe, "cpu", 1).peak_gib]))
"""


def test_peak_memory_is_the_steps_own_even_if_a_large_process_asks() -> None:
    """The child of a process of 2 GB inherits its peak (getrusage), in which a small step would drown."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    alone, beside = json.loads(done.stdout)
    weights = 2 * 11_700_000 * 4 / 2**30  # two ResNet-18
    assert weights < alone < 1.5
    assert abs(beside - alone) < 0.25 * alone

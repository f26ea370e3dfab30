"""CIFAR-10 in the two forms that its owner publishes for Python and for C."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Literal

import numpy as np

from tests.layouts.pictures import plain

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PER_BATCH = 4
TEST = 10


def write_cifar10(root: Path, layout: Literal["python", "binary"] = "python") -> Path:
    """Writes `root`/cifar10: 20 train images in five batches, 10 test images. Returns the folder."""
    folder = root / "cifar10"
    below = folder / ("cifar-10-batches-py" if layout == "python" else "cifar-10-batches-bin")
    below.mkdir(parents=True, exist_ok=True)
    first = 0
    for name, count in [*((f"data_batch_{n}", PER_BATCH) for n in range(1, 6)), ("test_batch", TEST)]:
        targets = [(first + n) % len(CLASSES) for n in range(count)]
        images = [plain(target, first + n, (32, 32)) for n, target in enumerate(targets)]
        # A row is the red plane, the green one, the blue one.
        rows = np.stack([np.asarray(image).transpose(2, 0, 1).ravel() for image in images])
        if layout == "python":
            content = {
                b"batch_label": name.encode(),
                b"labels": targets,
                b"data": rows,
                b"filenames": [f"{CLASSES[t]}_s_{first + n:06d}.png".encode() for n, t in enumerate(targets)],
            }
            (below / name).write_bytes(pickle.dumps(content, protocol=2))
        else:
            lines = np.concatenate([np.array(targets, np.uint8)[:, None], rows], axis=1)
            (below / f"{name}.bin").write_bytes(lines.tobytes())
        first += count
    if layout == "python":
        meta = {b"num_cases_per_batch": 10000, b"label_names": [name.encode() for name in CLASSES], b"num_vis": 3072}
        (below / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))
    else:
        (below / "batches.meta.txt").write_text("\n".join(CLASSES) + "\n\n", encoding="utf-8")
    return folder

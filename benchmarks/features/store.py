"""Features on disk, addressed by everything that could change a number in them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from benchmarks.contract import InputError, Labels
from benchmarks.data.fingerprint import fingerprint
from benchmarks.encoders.encoder import Encoder
from benchmarks.features.extract import extract
from benchmarks.features.pool import Pooling
from results.schema import Geometry, canonical_sha256

# Raised by hand when extraction itself changes a number; tests/benchmarks/features holds a golden vector against it.
FEATURES_VERSION = 1

Outputs = Mapping[str, tuple[str, Pooling | None]]


class FeatureStore:
    """A folder of features. The same address, no work; anything that could change a number changes the address.

    Every output lies in a file of its own below the address of (weights, card, images, geometry, precision), so a
    protocol that needs one more output costs one more pass and no other file.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def address(self, encoder: Encoder, labels: Labels, geometry: Geometry, precision: str) -> Path:
        """The folder of one encoder's features of one split. The encoder's name is not part of it."""
        card = encoder.card
        what = {
            "version": FEATURES_VERSION,
            "weights": card.weights_sha256,
            "architecture": card.architecture.model_dump(mode="json"),
            "input": [card.mean, card.std, card.value_range, card.channels],
            "embed": card.embed,
            "images": fingerprint(labels),
            "geometry": geometry.model_dump(mode="json"),
            "precision": precision,
        }
        return self.root / canonical_sha256(what)[:24]

    def get(
        self,
        encoder: Encoder,
        labels: Labels,
        geometry: Geometry,
        outputs: Outputs,
        *,
        precision: str = "fp32",
        workers: int = 2,
        show: bool = True,
    ) -> dict[str, NDArray[np.float32]]:
        """Memory maps of (N, D) float32 per key of `outputs`, rows in the order of `labels.ids`.

        Raises:
            InputError: NaN or infinite features, or a full disk.
        """
        folder = self.address(encoder, labels, geometry, precision)
        files = {key: folder / f"{self._file_key(*spec)}.npy" for key, spec in outputs.items()}
        absent = {key: outputs[key] for key, file in files.items() if not file.is_file()}
        if absent:
            self._fill(folder, encoder, labels, geometry, absent, files, precision, workers, show)
        return {key: np.load(file, mmap_mode="r") for key, file in files.items()}

    def _fill(
        self, folder: Path, encoder: Encoder, labels: Labels, geometry: Geometry, absent: Outputs,
        files: Mapping[str, Path], precision: str, workers: int, show: bool,
    ) -> None:  # fmt: skip
        partial = folder.with_name(f".{folder.name}.{os.getpid()}.{uuid4().hex[:6]}.partial")
        partial.mkdir(parents=True)

        def allocate(key: str, shape: tuple[int, int]) -> NDArray[np.float32]:
            needed, free = shape[0] * shape[1] * 4, shutil.disk_usage(partial).free
            if needed > free:
                raise InputError(
                    f"features of {encoder.card.name} need {needed / 2**30:.1f} GiB in {self.root}, where "
                    f"{free / 2**30:.1f} GiB are free; make room or set --features to another disk"
                )
            return np.lib.format.open_memmap(partial / files[key].name, mode="w+", dtype=np.float32, shape=shape)

        try:
            arrays = extract(
                encoder, labels.paths, geometry, absent, allocate, precision=precision, workers=workers, show=show
            )
            for key, array in arrays.items():
                bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
                if len(bad):
                    raise InputError(
                        f"{encoder.card.name}: {len(bad)} of {len(array)} images have NaN or infinite {key}, the first "
                        f"is {labels.ids[bad[0]]}; check the weights, or --precision fp32"
                    )
                array.flush()  # type: ignore[attr-defined]  # a memory map
            folder.mkdir(parents=True, exist_ok=True)
            (partial / "ids.json").write_text(json.dumps(labels.ids), encoding="utf-8")
            (partial / "ids.json").replace(folder / "ids.json")
            for key in arrays:
                (partial / files[key].name).replace(files[key])
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    @staticmethod
    def _file_key(output: str, pooling: Pooling | None) -> str:
        if pooling is None:
            return output
        return f"{output}-{canonical_sha256(pooling.model_dump(mode='json'))[:8]}"

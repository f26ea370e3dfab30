"""What a faster decoder of JPEG files does to scores, on the embedded drawings, for a table of the documentation.

python scripts/decoder_scores.py [ENCODER ...]      simplejpeg and cv2 where they are installed

Rows that the file has are not measured again; remove it to measure all.

The drawings are painted at several sizes and saved as JPEG files of quality 90 with halved colour channels, as cameras
do. Every decoder's pixels then go through the same protocols. Decoders that no protocol names (cv2, torchvision) are
measured by their pixels in PNG files.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.datasets.images import decode
from benchmarks.demo.scenes import paint_single, plan_singles
from benchmarks.evaluate import evaluate
from benchmarks.registry import find_protocol
from benchmarks.task import RunOptions
from results.files import write_file
from results.schema import Geometry

FILE = Path(__file__).parent / "docs_pages" / "decoder_scores.json"
ENCODERS = ("package:efficientnet-lite0",)
PROTOCOLS = ("knn.demo@1", "ncm.demo@1")
SIZES = (96, 384)  # the second is large enough for decoding at an eighth of it
QUALITY = 90
NAMED = {"pil": "pillow", "pil-draft": "pillow", "simplejpeg": "simplejpeg", "simplejpeg-scaled": "simplejpeg"}

Pixels = NDArray[np.uint8]
Row = dict[str, Any]


def _by_name(geometry: Geometry, path: Path) -> Pixels:
    return np.asarray(decode(path, geometry), np.uint8)


def _by_torchvision(path: Path) -> Pixels:
    from torchvision.io import ImageReadMode, decode_jpeg, read_file

    found: Pixels = decode_jpeg(read_file(str(path)), ImageReadMode.RGB).permute(1, 2, 0).numpy()
    return found


def _by_cv2(path: Path) -> Pixels:
    import cv2

    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    assert image is not None
    found: Pixels = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)
    return found


OTHERS: dict[str, tuple[str, Callable[[Path], Pixels]]] = {
    "torchvision.io": ("torchvision", _by_torchvision), "cv2": ("opencv-python-headless", _by_cv2),
}  # fmt: skip


def paint(folder: Path, size: int, per_class: int | None) -> list[Path]:
    """Write the drawings as JPEG files, in the folders of an image folder."""
    paths = []
    for single in plan_singles(per_class):
        path = folder / single.path.with_suffix(".jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        paint_single(single, 0, size).save(path, quality=QUALITY, subsampling="4:2:0")
        paths.append(path)
    return paths


def transcode(paths: Sequence[Path], source: Path, target: Path, read: Callable[[Path], Pixels]) -> None:
    """Write what a decoder makes of the files as PNG files."""
    for path in paths:
        to = (target / path.relative_to(source)).with_suffix(".png")
        to.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(read(path)).save(to, compress_level=1)


def measure(
    encoders: Sequence[str] = ENCODERS,
    sizes: Sequence[int] = SIZES,
    per_class: int | None = None,
    known: Collection[tuple[Any, ...]] = (),
) -> Iterator[Row]:
    """A row per size, decoder and encoder.

    Args:
        per_class: drawings of each class and side; all where None.
        known: what is left out; see `place`.
    """  # fmt: skip
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            jpegs = Path(folder, "jpegs")
            options = RunOptions(device="cpu", workers=0, progress=False, records=Path(folder, "records"),
                                 features=Path(folder, "features"))  # fmt: skip
            paths = paint(jpegs, size, per_class)
            for name, (package, read) in readers().items():
                row: Row = {"size": size, "decoder": name, "package": f"{package} {version(package)}"}
                wanted = [encoder for encoder in encoders if place({**row, "encoder": encoder}) not in known]
                data = jpegs
                if name in OTHERS and wanted:
                    data = Path(folder, name)
                    transcode(paths, jpegs, data, read)
                for encoder in wanted:
                    scores = {}
                    for identifier in PROTOCOLS:
                        protocol = find_protocol(identifier)
                        if name in NAMED:
                            protocol = protocol.changed(geometry={"decoder": name})
                        record = evaluate(encoder, protocol, data, dataset="imagefolder", options=options)
                        scores[identifier] = round(record.scores[protocol.primary].value or 0.0, 2)
                    distance = _distance(paths[:: max(1, len(paths) // 100)], read)
                    yield {**row, "encoder": encoder, "distance": distance, "scores": scores}


def readers() -> dict[str, tuple[str, Callable[[Path], Pixels]]]:
    """Package and function of each decoder that is installed."""
    geometry = find_protocol(PROTOCOLS[0]).geometry
    found: dict[str, tuple[str, Callable[[Path], Pixels]]] = {
        name: (package, partial(_by_name, geometry.model_copy(update={"decoder": name})))
        for name, package in NAMED.items()
        if find_spec("PIL" if package == "pillow" else package)
    }
    return found | {name: each for name, each in OTHERS.items() if find_spec("cv2" if name == "cv2" else each[0])}


def place(row: Row) -> tuple[Any, ...]:
    """What makes two rows the same measurement."""
    return tuple(row[name] for name in ("size", "decoder", "package", "encoder"))


def _distance(paths: Sequence[Path], read: Callable[[Path], Pixels]) -> float:
    """Mean distance of full-size pixels to Pillow's, of 255; of scaled ones, to Pillow's reduced by averaging."""
    found = []
    for path in paths:
        with Image.open(path) as image:
            pixels = read(path)
            plain = image.convert("RGB")
            if plain.size != pixels.shape[1::-1]:
                plain = plain.resize((pixels.shape[1], pixels.shape[0]), Image.Resampling.BOX)
            found.append(float(np.abs(np.asarray(plain, np.float32) - pixels).mean()))
    return round(float(np.mean(found)), 2)


def main(encoders: Sequence[str]) -> int:
    """Measure, print and write the file after each row."""
    rows: list[Row] = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else []
    for row in measure(encoders or ENCODERS, known={place(row) for row in rows}):
        rows.append(row)
        write_file(FILE, json.dumps(rows, indent=1) + "\n")
        sys.stdout.write(
            f"{row['size']:5} {row['decoder']:18} {row['distance']:<8} {row['encoder']:28} {row['scores']}\n"
        )
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

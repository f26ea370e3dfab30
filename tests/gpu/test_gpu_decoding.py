"""Images that the GPU decodes: close to Pillow's, in their rows, and with the same files found unreadable."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from benchmarks.datasets.images import Images, decode_jpegs
from benchmarks.evaluate import evaluate
from benchmarks.features.extract import Reader, read_batches
from benchmarks.registry import find_protocol
from benchmarks.task import RunOptions
from results.schema import Geometry
from tests.benchmarks.datasets.test_images import picture
from tests.gpu.conftest import AnyGpu, RealGpu
from tests.gpu.tiny import Network
from tests.simulated_cuda import simulated_cuda

GEOMETRY = Geometry(mode="shorter", resize=40, crop=32, decoder="nvjpeg")
# Of 255, in the mean over all pixels: the resize rounds once instead of twice; nvJPEG's own arithmetic adds to that.
SIMULATED, REAL = 0.5, 2.0


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Of every kind: two sizes of JPEG, a grey one, a PNG, and two damaged ones, one of which only decoding shows."""
    found = []
    for split in ("train", "val"):
        for number in range(16):
            path = tmp_path / "data" / split / f"class{number % 4}" / f"{number:02d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = picture(90 if number % 3 else 70, 70, seed=number)
            image.convert("L" if number == 4 else "RGB").save(path, format="png" if number == 9 else "jpeg")
            if number == 6:
                path.write_bytes(path.read_bytes()[:-30])
            elif number == 11:
                whole = path.read_bytes()
                path.write_bytes(whole[:40] + whole[-2:])  # begins and ends as it should
            found.append(path)
    return found


def test_batches_are_those_of_pillow_to_rounding(files: list[Path], decoder: AnyGpu) -> None:
    real = isinstance(decoder, RealGpu)
    requests = [range(start, min(start + 5, 16)) for start in range(0, 16, 5)]
    reader = Reader(files[:16], GEOMETRY)
    batches = list(read_batches(reader, requests, torch.device("cuda"), 2 if real else 0))
    assert [(batch.start, batch.stop) for batch in batches] == [(0, 5), (5, 10), (10, 15), (15, 16)]
    assert [row for batch in batches for row in batch.readable] == [row for row in range(16) if row not in (6, 11)]
    assert {row for batch in batches for row in batch.unreadable} == {6, 11}
    for batch in batches:
        assert batch.images.device.type == "cuda"
        for row, image in zip(batch.readable, batch.images.cpu(), strict=True):
            expected = Images(files, GEOMETRY)[row][0]
            distance = (image.int() - expected.int()).abs()
            if row in (4, 9):  # Pillow read these
                assert torch.equal(image, expected)
            assert distance.float().mean() <= (REAL if real else SIMULATED), row


def test_a_batch_without_a_readable_image_is_empty(files: list[Path], decoder: AnyGpu) -> None:
    requests = [range(5, 6), range(6, 7), range(11, 12)]
    _, *bad = read_batches(Reader(files[:16], GEOMETRY), requests, torch.device("cuda"), 0)
    for batch, row in zip(bad, (6, 11), strict=True):
        assert (batch.start, batch.stop, batch.readable, len(batch.images)) == (row, row + 1, [], 0)
        assert batch.unreadable.keys() == {row}


@pytest.mark.parametrize("fails", [False, True])
def test_the_decoder_gets_memory_that_nothing_reads_any_more(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its stream waits for no other, and what it has begun goes on after an error."""
    happened: list[str] = []

    def decode(files: list[torch.Tensor], *_: object, **__: object) -> list[torch.Tensor]:
        happened.append("decode")
        if fails:
            raise RuntimeError("Error while decoding JPEG images")
        return files

    with simulated_cuda():
        stream = torch.cuda.Stream()
        monkeypatch.setattr(stream, "synchronize", lambda: happened.append("the stream is done"))
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: happened.append(f"{device} is done"))
        monkeypatch.setattr(torchvision.io, "decode_jpeg", decode)
        with torch.cuda.stream(stream), pytest.raises(RuntimeError) if fails else nullcontext():
            decode_jpegs([torch.zeros(1, dtype=torch.uint8)], torch.device("cuda"))
    assert happened == ["the stream is done", "decode", *(["cuda is done"] if fails else [])]


def test_a_benchmark_says_how_its_images_were_decoded(files: list[Path], decoder: AnyGpu, tmp_path: Path) -> None:
    options = RunOptions(
        device="cuda", workers=0, progress=False, records=tmp_path / "records", features=tmp_path / "features"
    )
    protocol = find_protocol("knn.mmselfsup").changed(
        dataset="imagefolder", train_split="train", test_split="val", geometry=GEOMETRY.model_dump(), k=(1, 5)
    )
    record = evaluate(Network(), protocol, tmp_path / "data", options=options)
    assert "geometry.decoder=nvjpeg" in record.protocol.id
    assert all(np.isfinite(score.value) for score in record.scores.values())
    assert len(list((tmp_path / "features").rglob("embed*.npy"))) == 2

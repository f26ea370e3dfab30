"""Passes that are killed, shared by several processes, or stopped by a full disk."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks.__main__ import main
from benchmarks.encoders.load import load_encoder
from benchmarks.features import extract, shards
from benchmarks.features.extract import FeatureRequest, Reader
from benchmarks.features.pool import AdaptivePooling
from benchmarks.features.shards import PartialOutput, ShardClaims
from benchmarks.features.store import FeatureStore
from benchmarks.task import InputError, Labels
from results.schema import Geometry
from results.store import read_records
from tests.benchmarks.features.run_options import options
from tests.processes import BENCHMARKS, run_two_ranks

OUTPUTS = {"embed": ("embed", None), "f": ("feature4", AdaptivePooling(grid=2))}
PROCESSES = multiprocessing.get_context("fork")


def features(labels: Labels, root: Path) -> dict[str, NDArray[np.float32]]:
    encoder = load_encoder("random:resnet18-w8-k3-nopool:0")
    want = FeatureRequest(encoder, labels, Geometry(mode="shorter", resize=24, crop=24), OUTPUTS)  # type: ignore[arg-type]
    (split,) = FeatureStore(options(root, batch_size=2)).get([want])
    assert split.labels.ids == labels.ids
    return {key: np.array(array) for key, array in split.features.items()}


def rows_read(monkeypatch: pytest.MonkeyPatch, log: Path, seconds: float = 0.0) -> None:
    """Every row that any process reads becomes a line of `log`."""
    one = Reader.read_one

    def logged(self: Reader, row: int) -> Any:
        time.sleep(seconds)
        with log.open("a", encoding="utf-8") as file:
            file.write(f"{row} {os.getpid()}\n")
        return one(self, row)

    monkeypatch.setattr(Reader, "read_one", logged)


def child(run: Callable[[], Any]) -> multiprocessing.process.BaseProcess:
    def quietly() -> None:
        torch.set_num_threads(1)  # a forked process must not use its parent's threads
        run()
        os._exit(0)

    process = PROCESSES.Process(target=quietly)
    process.start()
    return process


KILLS = [
    ("before anything is written", PartialOutput, "write", 1, False),
    ("in the middle of a shard", PartialOutput, "write", 7, False),
    ("rows written, not marked", PartialOutput, "finish", 4, False),
    ("one output of the shard marked, the other not", PartialOutput, "finish", 5, True),
    ("marked, still claimed", ShardClaims, "release", 3, False),
    ("all shards done", PartialOutput, "complete", 1, False),
    ("one output complete", PartialOutput, "complete", 2, False),
    ("listed, not in its place", shards, "write_json", 13, True),
]


@pytest.mark.parametrize(("owner", "name", "call", "after"), [k[1:] for k in KILLS], ids=[k[0] for k in KILLS])
def test_a_killed_pass_goes_on_without_repeating_finished_shards(
    labels: Labels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_shards: int,
    owner: Any, name: str, call: int, after: bool,
) -> None:  # fmt: skip
    undisturbed = features(labels, tmp_path / "whole")
    real, calls = getattr(owner, name), []

    def deadly(*arguments: Any) -> Any:
        calls.append(name)
        if len(calls) == call and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*arguments)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, deadly)
        process = child(lambda: features(labels, tmp_path / "store"))
        process.join(60)
    assert process.exitcode == -signal.SIGKILL
    (folder,) = (tmp_path / "store").iterdir()
    marks = [{file.suffix for file in folder.glob(f"partial/{key}.0*")} for key in ("embed", "feature4*")]
    whole = [bool(list(folder.glob(f"{key}.npy"))) for key in ("embed", "feature4*")]
    done = {s for s in range(6) if all(complete or f".{s:05}" in m for complete, m in zip(whole, marks, strict=True))}
    rows_read(monkeypatch, tmp_path / "log")
    resumed = features(labels, tmp_path / "store")
    log = tmp_path / "log"
    again = {int(line.split()[0]) for line in log.read_text(encoding="utf-8").splitlines()} if log.is_file() else set()
    assert again == {row for row in range(22) if row // small_shards not in done}
    for key, array in undisturbed.items():
        assert np.array_equal(resumed[key], array)
    assert not list(folder.glob("partial/*.0*"))


def test_processes_share_the_work_and_agree_with_one_bit_for_bit(
    labels: Labels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_shards: int
) -> None:
    alone = features(labels, tmp_path / "alone")
    rows_read(monkeypatch, tmp_path / "log", seconds=0.02)
    results = [tmp_path / f"{number}.npz" for number in range(2)]
    run = [child(lambda to=to: np.savez(to, **features(labels, tmp_path / "store"))) for to in results]  # type: ignore[misc]
    for process in run:
        process.join(60)
        assert process.exitcode == 0
    lines = [line.split() for line in (tmp_path / "log").read_text(encoding="utf-8").splitlines()]
    assert sorted(int(row) for row, _ in lines) == list(range(22))  # each image once, by one of them
    assert len({pid for _, pid in lines}) == 2
    for result in results:
        found = np.load(result)
        for key, array in alone.items():
            assert np.array_equal(found[key], array)


def test_a_claim_dies_with_its_process(tmp_path: Path) -> None:
    def hold() -> None:
        ShardClaims(tmp_path).take(3)
        (tmp_path / "held").touch()
        time.sleep(60)

    process = child(hold)
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    with ShardClaims(tmp_path) as claims:
        assert not claims.take(3)
        assert not claims.take_all()
        assert claims.take(2)
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        assert claims.take(3)
        assert claims.take_all()


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_leaves_finished_shards(
    labels: Labels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_shards: int, fault: int
) -> None:
    undisturbed = features(labels, tmp_path / "whole")
    real, calls = os.pwrite, []

    def full(file: int, content: memoryview, at: int) -> int:
        calls.append(at)
        if len(calls) == 11:  # the third shard's second batch
            raise OSError(fault, os.strerror(fault))
        return real(file, content[:100], at)  # and a short write besides

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda file, content, at: full(file, content, at) if len(calls) < 11 else
                      real(file, content, at))  # fmt: skip
        # What is under way when the disk is full must not be believed.
        patch.setattr(extract, "MAX_UNWRITTEN_BATCHES", 8)
        with pytest.raises(InputError, match=r"store is full, .* features of .* need 0\.0 MiB more; free disk"):
            features(labels, tmp_path / "store")
    resumed = features(labels, tmp_path / "store")
    for key, array in undisturbed.items():
        assert np.array_equal(resumed[key], array)


@pytest.mark.slow
def test_two_ranks_share_the_passes_and_write_one_record(small_data: Path, tmp_path: Path) -> None:
    values = []
    for ranks in (1, 2):
        out = tmp_path / str(ranks)
        flags = ["knn", "--encoder", "random:resnet18-w8-k3-nopool:0", "--data", small_data, "--out", out / "records",
                 "--features", out / "features", "--device", "cpu", "--workers", "0"]  # fmt: skip
        if ranks == 1:
            assert main(list(map(str, flags))) == 0
        else:
            run_two_ranks(BENCHMARKS, *map(str, flags))
        stored, _ = read_records(out / "records")
        (record,) = [each.record for each in stored]
        values.append(record.scores)
        stores = sorted((out / "features").rglob("embed.npy"))
        assert len(stores) == 2
        values.append([np.load(store).tobytes() for store in stores])  # type: ignore[arg-type]
    assert values[:2] == values[2:]

"""A disk without room for records or features: one sentence, exit code 2, and nothing half written."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from results.store import read_records

pytestmark = pytest.mark.faults

ENCODER = "random:resnet18-w8-k3-nopool:0"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root can mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path, room: int) -> Path:
    """Leave so many bytes."""
    free = shutil.disk_usage(disk).free
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(max(0, free - room)))
    return ballast


@pytest.mark.parametrize("room", [0, 16384, 65536])
@pytest.mark.parametrize("which", ["--out", "--features"])
def test_a_full_disk_is_one_sentence(
    which: str, room: int, data: Path, disk: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With room for some of it or none. With more room it works, and what was written before is whole."""
    folders = {"--out": tmp_path / "records", "--features": tmp_path / "features"} | {which: disk / "below"}
    command = ["knn", "--encoder", ENCODER, "--data", str(data), "--device", "cpu", "--workers", "0"]
    command += [text for flag, folder in folders.items() for text in (flag, str(folder))]
    ballast = fill(disk, room)
    code = main(command)
    printed = capfd.readouterr().err
    if code:
        assert code == 2
        assert "Traceback" not in printed
        last = printed.strip().splitlines()[-1]
        assert "No space left" in last or "free" in last or "disk" in last, printed
    stored, damaged = read_records(folders["--out"])
    assert not damaged
    assert all(each.record.intact for each in stored)
    ballast.unlink()
    assert main(command) == 0
    ((record,), damaged) = read_records(folders["--out"])
    assert not damaged
    assert record.record.status == "ok"
    assert record.record.intact


@pytest.mark.parametrize(
    "command", [["linear", "--set", "epochs=2"], ["finetune", "--set", "epochs=2"]], ids=["linear", "finetune"]
)
def test_a_disk_that_fills_during_a_training_is_one_sentence_and_its_state_stays_whole(
    command: list[str], data: Path, disk: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Too little room for the state after an epoch; with more room, the same command ends well."""
    where = ["--data", str(data), "--out", str(disk / "records"), "--features", str(tmp_path / "features")]
    command = [*command, "--encoder", ENCODER, "--device", "cpu", "--workers", "0", *where]
    ballast = fill(disk, 40_000)
    assert main(command) == 2
    printed = capfd.readouterr().err
    assert "Traceback" not in printed
    assert "No space left on device" in printed.strip().splitlines()[-1], printed
    assert not list(disk.rglob(".*"))
    ballast.unlink()
    assert main(command) == 0
    stored, damaged = read_records(disk / "records")
    assert not damaged
    assert all(each.record.intact for each in stored)

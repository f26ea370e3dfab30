"""The state of a training on disk: whole or refused, and never more than read; and the memory layout of a network."""

from __future__ import annotations

import errno
import os
import resource
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.task import InputError
from benchmarks.training.loop import TrainingState, safe_memory_format, usable
from benchmarks.training.probes import ProbeState
from results.files import DISK_FULL
from tests.processes import run_together

TENSORS = {"layer": torch.arange(1000.0)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    ProbeState("mine", 3, banks={"embed": TENSORS}).save(tmp_path / "resume.pt")
    return tmp_path / "resume.pt"


def refused(file: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be continued from .*remove it to start this training anew") as caught:
        ProbeState.load(file, "mine")
    assert str(caught.value).count("\n") == 0
    assert str(caught.value).count(str(file)) == 1


def test_a_state_of_this_key_is_continued_and_another_is_replaced(file: Path) -> None:
    found = ProbeState.load(file, "mine")
    assert found.steps == 3
    assert torch.equal(found.banks["embed"]["layer"], TENSORS["layer"])
    assert ProbeState.load(file, "another").steps == 0


def test_every_damaged_byte_is_one_sentence_or_changes_nothing(file: Path) -> None:
    content = file.read_bytes()
    for at in range(7, len(content), 251):
        file.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        with suppress(InputError):
            assert torch.equal(ProbeState.load(file, "mine").banks["embed"]["layer"], TENSORS["layer"])
    for length in (0, 100, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:length])
        refused(file)


def test_what_is_not_a_state_is_one_sentence(file: Path) -> None:
    class Runs:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch '{file}.ran'",)

    for content in (["a"], 3, {"key": "mine", "unknown": 1}, {"steps": 1}, {"key": Runs()}):
        torch.save(content, file)
        refused(file)
    assert not file.with_suffix(".pt.ran").exists()
    with pytest.raises(InputError, match="remove it"), usable(file):
        torch.nn.Linear(2, 2).load_state_dict({"weight": torch.ones(3)})


def test_two_writers_never_collide(tmp_path: Path) -> None:
    file = tmp_path / "resume.pt"

    def write(name: str) -> None:
        for step in range(8):
            TrainingState(name, step).save(file)

    with ThreadPoolExecutor(2) as writers:
        assert list(writers.map(write, "ab")) == [None, None]
    assert [path.name for path in tmp_path.iterdir()] == ["resume.pt"]
    assert max(TrainingState.load(file, name).steps for name in "ab") == 7


def test_two_processes_leave_one_whole_state_at_every_moment(tmp_path: Path) -> None:
    """Two write 25 times each; a third one reads."""
    file = tmp_path / "resume.pt"

    def save(step: int) -> None:
        ProbeState("mine", step, banks={"embed": {"layer": torch.full((2000,), float(step))}}).save(file)

    def work(number: int) -> None:
        for step in range(25):
            if number < 2:
                save(2 * step + number)
            else:
                found = ProbeState.load(file, "mine")
                assert (found.banks["embed"]["layer"] == found.steps).all()

    save(0)
    run_together(work, count=3)
    assert [path.name for path in tmp_path.iterdir()] == ["resume.pt"]
    assert ProbeState.load(file, "mine").steps in (48, 49)


def test_a_full_disk_is_its_own_error_and_the_old_state_stays_whole(file: Path) -> None:
    """A limit on the size of files takes the place of the disk; the child that has it tells what it met."""
    before = file.read_bytes()
    reading, writing = os.pipe()
    if not (child := os.fork()):
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        try:
            ProbeState("mine", 4, banks={"embed": TENSORS}).save(file)
        except OSError as error:
            os.write(writing, f"{error.errno} {error.filename}".encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, encoding="utf-8") as told:  # noqa: PTH123 - a descriptor
        assert told.read() == f"{errno.EFBIG} {file}"
    os.waitpid(child, 0)
    assert errno.EFBIG in DISK_FULL
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["resume.pt"]


def test_only_a_narrow_strided_shortcut_on_a_cpu_gives_up_channels_last() -> None:
    cpu, narrow = torch.device("cpu"), nn.Conv2d(8, 16, 1, stride=2)
    assert safe_memory_format(narrow, cpu) == torch.contiguous_format
    assert safe_memory_format(nn.Sequential(nn.Conv2d(32, 64, 1, stride=2, groups=4)), cpu) == torch.contiguous_format
    assert safe_memory_format(narrow, torch.device("cuda")) == torch.channels_last
    for fine in (nn.Conv2d(16, 32, 1, stride=2), nn.Conv2d(8, 16, 1), nn.Conv2d(8, 16, 3, stride=2)):
        assert safe_memory_format(fine, cpu) == torch.channels_last

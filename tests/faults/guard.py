"""Read a hostile file in a process of its own, with an eye on its time, its memory and what it leaves behind."""

from __future__ import annotations

import os
import resource
import signal
import traceback
from collections.abc import Callable
from pathlib import Path

from results.errors import InputError

SECONDS, MEMORY = 10, 2**30

Case = Callable[[Path], None]  # writes a file below a folder, and reads it


def one_sentence(error: InputError) -> None:
    text = str(error)
    assert text
    assert "Traceback" not in text
    assert max(map(len, text.splitlines())) < 2000


def check(case: Case, tmp_path: Path) -> None:
    """A case ends well or with one sentence, and no command that it hides has run."""
    folder = tmp_path / "work"
    folder.mkdir()
    fault = guarded(case, folder)
    assert not fault, fault
    assert not list(tmp_path.rglob("ran")), "it ran a command"


def guarded(case: Case, folder: Path, seconds: float = SECONDS) -> str:
    """What becomes of a case; empty where all is well."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        signal.setitimer(signal.ITIMER_PROF, seconds)  # of this process, however busy the machine is
        signal.alarm(round(6 * seconds))
        os.chdir(folder)
        # The machine is safe from what the check below would find too late.
        resource.setrlimit(resource.RLIMIT_AS, (memory("VmSize") + 4 * MEMORY, resource.RLIM_INFINITY))
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
        before = memory("VmRSS")
        fault = ""
        try:
            try:
                case(folder)
            except InputError as error:
                one_sentence(error)
        except BaseException:
            fault = traceback.format_exc()
        if memory("VmHWM") - before > MEMORY:
            fault += f"{(memory('VmHWM') - before) / 2**30:.1f} GB"
        os.write(writing, fault[-60_000:].encode("utf-8", "replace"))
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as opened:  # noqa: PTH123 - a descriptor
        fault = opened.read().decode()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return fault or (f"ended by signal {-code}" if code else "")


def memory(what: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith(what)).split()[1]) * 1024

"""Programs that tests start: two ranks of one, and one that is killed.

Where no GPU forbids it they run in a fork of the test's own process, because importing torch again takes seconds.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import torch

START_METHOD = "spawn" if torch.accelerator.is_available() else "fork"
PRETRAIN = "import sys; from pretrain.__main__ import main; sys.exit(main(sys.argv[1:]))"
BENCHMARKS = "import sys; from benchmarks.__main__ import main; sys.exit(main(sys.argv[1:]))"


def kill_with_children(number: int, children: int) -> None:
    """Send a signal to this process and to its children, at least so many, from another process, as a cluster does."""
    pid = os.getpid()
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    assert len(found) >= children
    subprocess.run(["sh", "-c", f"kill -{number} {pid} {' '.join(found)}"], check=True)


class Program:
    """Python source that runs in a process of its own.

    Args:
        arguments: `sys.argv[1:]` of the program.
        environment: variables that it has besides those of this process.

    Attributes:
        said: what it wrote to stdout and stderr; whole after `wait`.
        pid: of the process.
    """

    def __init__(self, source: str, *arguments: str, **environment: str) -> None:
        self.said = ""
        self._reader, writer = multiprocessing.Pipe(duplex=False)
        self._process = multiprocessing.get_context(START_METHOD).Process(
            target=_run, args=(source, arguments, writer, environment)
        )
        self._process.start()
        self.pid = self._process.pid or 0
        writer.close()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        while part := os.read(self._reader.fileno(), 65536):
            self.said += part.decode(errors="replace")

    @property
    def running(self) -> bool:
        return self._process.is_alive()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Inside, the program does not run."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def wait(self, timeout: float = 120) -> int:
        """The exit code; minus the signal's number where it was killed."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            raise TimeoutError(f"the program takes more than {timeout:g} s\n{self.said[-4000:]}")
        self._listener.join(10)
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()


def _run(source: str, arguments: Sequence[str], writer: Connection, environment: dict[str, str]) -> None:
    for stream in (1, 2):
        os.dup2(writer.fileno(), stream)
    sys.stdout, sys.stderr = os.fdopen(1, "w", 1, closefd=False), os.fdopen(2, "w", 1, closefd=False)
    logging.getLogger().handlers.clear()  # pytest's; the program sets up its own
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.argv = ["program", *arguments]
    exec(source, {"__name__": "__main__"})


def two_ranks(source: str, *arguments: str) -> list[Program]:
    """Starts a program as both ranks of a group on this machine, as torchrun does."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [Program(source, *arguments, **group, RANK=rank, LOCAL_RANK=rank) for rank in ("0", "1")]


def run_two_ranks(source: str, *arguments: str) -> list[str]:
    """Runs a program as both ranks of a group to the end; what each of them said."""
    ranks = two_ranks(source, *arguments)
    codes = [rank.wait() for rank in ranks]
    assert codes == [0, 0], "\n".join(rank.said[-2000:] for rank in ranks)
    return [rank.said for rank in ranks]


def run_together(work: Callable[[int], object], count: int = 2) -> None:
    """Runs a function of its number in so many forks of this process at once; each must return without an error."""
    children = []
    for number in range(count):
        child = os.fork()
        if not child:
            code = 1
            try:
                work(number)
                code = 0
            except BaseException:
                traceback.print_exc()
            os._exit(code)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * count


def written(folder: Path, file: str) -> bool:
    """Whether `file` lies below `folder`, which may vanish meanwhile: a command makes it to see whether it can."""
    try:
        return any(folder.rglob(file))
    except FileNotFoundError:
        return False


def run_killed(command: Sequence[str], folder: Path, file: str) -> None:
    """Runs a command with SIGKILL as soon as `file` lies somewhere below `folder`, and then again to its end."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not written(folder, file):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run(command, check=True, capture_output=True)

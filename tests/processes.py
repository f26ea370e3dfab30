"""Programs that tests start: two ranks of one, and one that is killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_two_ranks(program: str, *arguments: str) -> None:
    """Runs Python source as both ranks of a group on this machine, each with its place in the environment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", program, *arguments], cwd=ROOT, env={**common, "RANK": rank, "LOCAL_RANK": rank}
        )
        for rank in ("0", "1")
    ]
    assert [process.wait(timeout=120) for process in ranks] == [0, 0]


def run_killed(command: Sequence[str], folder: Path, file: str) -> None:
    """Runs a command with SIGKILL as soon as `file` lies somewhere below `folder`, and then again to its end."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(folder.rglob(file)):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run(command, check=True, capture_output=True)

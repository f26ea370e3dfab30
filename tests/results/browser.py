"""A headless browser, where there is one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

import pytest

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def browse(page: Path, *flags: str) -> str:
    """What a headless browser holds of a page after some seconds of its own time."""
    if BROWSER is None:
        pytest.skip("no chromium here: apt-get install chromium")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={page.parent / 'profile'}",
               "--virtual-time-budget=3000", *flags, "--dump-dom", page.as_uri()]  # fmt: skip
    # Now and then chromium has printed the page and does not end, so that its end is not waited for.
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8", start_new_session=True
    )
    late = threading.Timer(120, os.killpg, (process.pid, signal.SIGKILL))
    late.start()
    lines: list[str] = []
    assert process.stdout is not None
    try:
        for line in process.stdout:
            lines.append(line)
            if line.rstrip().endswith("</html>"):
                break
    finally:
        late.cancel()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    page_text = "".join(lines)
    assert page_text.rstrip().endswith("</html>"), "the browser printed no whole page within two minutes"
    return page_text

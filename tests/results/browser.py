"""A headless browser, where there is one, and what it finds wrong with a page's layout."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


NARROWEST = 500  # pixels of chromium's narrowest window
DARK = "--blink-settings=preferredColorScheme=0"

# A function of a page that lists every text that lies over another, is cut off by a box, or sticks out of the window.
LAYOUT_FAULTS = """function layoutFaults() {
  const faults = [], boxes = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const look = {checkOpacity: true, checkVisibilityCSS: true};
  for (let node = walk.nextNode(); node; node = walk.nextNode()) {
    const around = node.parentElement, text = node.textContent.trim().slice(0, 40);
    if (!text || !around.checkVisibility(look)) continue;
    if (around.closest("svg, select, script, style, .screen-reader")) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const found of range.getClientRects()) {
      let {left, top, right, bottom} = found, cut = false;
      for (let box = around; box && box !== document.body; box = box.parentElement) {
        const {overflowX, overflowY, display} = getComputedStyle(box), frame = box.getBoundingClientRect();
        if (display === "inline" || (overflowX === "visible" && overflowY === "visible")) continue;
        if (overflowX === "hidden" && right > frame.right + 2 && left < frame.right) cut = true;
        if (overflowY === "hidden" && bottom > frame.bottom + 4 && top < frame.bottom - 4) cut = true;
        [left, right] = [Math.max(left, frame.left), Math.min(right, frame.right)];
        [top, bottom] = [Math.max(top, frame.top), Math.min(bottom, frame.bottom)];
      }
      if (right - left < 1 || bottom - top < 1 || right <= 0) continue;
      if (cut) faults.push(`${text}: cut off`);
      if (right > innerWidth + 1) faults.push(`${text}: sticks out of the window by ${Math.round(right - innerWidth)}`);
      boxes.push({node, text, left, top, right, bottom});
    }
  }
  boxes.sort((a, b) => a.top - b.top);
  boxes.forEach((a, i) => {
    for (let j = i + 1; j < boxes.length && boxes[j].top < a.bottom; j++) {
      const b = boxes[j], wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const high = Math.min(a.bottom, b.bottom) - b.top;
      if (a.node !== b.node && wide > 2 && high > 0.4 * Math.min(a.bottom - a.top, b.bottom - b.top))
        faults.push(`${a.text} over ${b.text}`);
    }
  });
  return [...new Set(faults)];
}"""


# A function by which a page's script tells `looked_at` what it saw.
TELL = """function tell(seen) {
  document.body.innerHTML = "";
  document.body.dataset.seen = JSON.stringify(seen);
  if (parent !== window) parent.postMessage(document.body.dataset.seen, "*");
}"""


def looked_at(page: Path, width: int, *, dark: bool = False) -> Any:
    """What a page's script told, in a window of this width in CSS pixels.

    A window narrower than chromium allows is a frame in another page.
    """
    shown = page
    if width < NARROWEST:
        shown = page.with_name("frame.html")
        style = f"width: {width}px; height: 900px; border: 0"
        hear = "addEventListener('message', event => { document.body.dataset.seen = event.data; })"
        frame = f'<iframe src="{quote(page.name)}" style="{style}"></iframe>'
        shown.write_text(f"<!doctype html><html><body><script>{hear}</script>{frame}</body></html>")
    flags = (f"--window-size={max(width, NARROWEST)},900", *((DARK,) if dark else ()))
    held = re.search(r"data-seen='?\"?([\[{].*?[\]}])[\"'][ >]", browse(shown, *flags).replace("&quot;", '"'))
    assert held is not None, "the page told nothing"
    return json.loads(held[1])


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

"""Pictures inside the page: SVG whose text is text, whose black is the reader's colour, and whose ids are its own."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

LEAST_SCALE = 0.85  # of its own size, so that its text stays legible: a narrow window scrolls the picture sideways


@dataclass(frozen=True)
class Chart:
    """A picture with its title, and a sentence for who cannot see it."""

    id: str
    title: str
    says: str
    svg: str


def chart(identifier: str, title: str, says: str, draw: Callable[[Path], None]) -> Chart | None:
    """What a function draws that writes the file it is given; None where it has nothing to draw.

    Args:
        draw: raises ValueError where there is nothing.
    """
    from matplotlib import rc_context

    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": identifier}
    settings |= {"text.parse_math": False, "savefig.transparent": True}
    with TemporaryDirectory() as folder, rc_context(settings):
        path = Path(folder) / "chart.svg"
        try:
            draw(path)
        except ValueError:
            return None
        return Chart(identifier, title, says, inline_svg(path.read_text(encoding="utf-8"), identifier))


def inline_svg(text: str, prefix: str) -> str:
    """An SVG file as an element of a page; the text beside it says what it shows, so that readers pass over it."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    svg = svg.replace("#000000", "currentColor").replace("DejaVu Sans", "system-ui")
    width = re.match(r'<svg [^>]*?width="([\d.]+)pt"', svg)
    least = f' style="min-width: {LEAST_SCALE * float(width[1]):.0f}pt"' if width else ""
    return svg.replace("<svg ", f'<svg aria-hidden="true" focusable="false"{least} ', 1)

"""From one protocol's score to another's, field by field."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

from results.atomic import write_file
from results.comparison.explain import Explanation

WIDEST_LABEL = 38  # letters
ENDS, UP, DOWN = "#7f7f7f", "#0072B2", "#D55E00"  # told apart without colour vision; the sign is written too


def draw_waterfall(found: Sequence[Explanation], out: Path) -> None:
    """Writes a panel for each explanation: A's score, every field's share, B's score.

    Raises:
        ValueError: there is none.
    """
    if not found:
        raise ValueError("nothing is explained")
    from matplotlib.figure import Figure

    heights = [1.4 + 0.55 * (len(one.switches) + 2) for one in found]
    figure = Figure(figsize=(7.5, sum(heights)), layout="constrained")
    panels = figure.subplots(len(found), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, one in zip(panels, found, strict=True):
        steps = [f"{_wrapped(s.field)}\n{_wrapped(f'{s.a} → {s.b}')}" for s in one.switches]
        labels = [_wrapped(one.a), *steps, _wrapped(one.b)]
        lengths = [one.score_a, *(switch.share for switch in one.switches), one.score_b]
        starts, level = [0.0], one.score_a
        for switch in one.switches:
            starts.append(level)
            level += switch.share
        starts.append(0.0)
        colours = [ENDS, *(UP if switch.share >= 0 else DOWN for switch in one.switches), ENDS]
        hatches = ["", *("" if switch.share >= 0 else "//" for switch in one.switches), ""]
        axes.barh(range(len(labels)), lengths, left=starts, color=colours, hatch=hatches, edgecolor="white", height=0.6)
        for i, (start, length) in enumerate(zip(starts, lengths, strict=True)):
            text = f"{length:.2f}" if i in (0, len(labels) - 1) else f"{length:+.2f}"
            axes.annotate(text, (max(start, start + length), i), xytext=(4, 0), textcoords="offset points", va="center")
        ends = [
            level
            for start, length in zip(starts[1:-1], lengths[1:-1], strict=True)
            for level in (start, start + length)
        ]
        ends += [one.score_a, one.score_b]
        margin = max(0.2 * (max(ends) - min(ends)), 0.5)
        axes.set_xlim(min(ends) - margin, max(ends) + 2 * margin)
        axes.set_yticks(range(len(labels)), labels, fontsize="small")
        axes.invert_yaxis()
        axes.set_title(f"{one.encoder}\n{one.column} on {one.dataset}", fontsize="medium", loc="left")
        axes.set_xlabel("score; the axis does not begin at zero")
        axes.spines[["top", "right"]].set_visible(False)
    picture = io.BytesIO()
    figure.savefig(picture, format=out.suffix.removeprefix(".") or "png", dpi=150)
    write_file(out, picture.getvalue())


def _wrapped(label: str) -> str:
    """In lines: the id of a protocol with changed numbers can be as long as they are many."""
    return "\n".join(textwrap.wrap(label.replace("+", " +"), WIDEST_LABEL)).replace(" +", "+")

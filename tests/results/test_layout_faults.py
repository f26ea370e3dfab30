"""The check of a page's layout finds texts that overlap, are cut off, or stick out, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.results.browser import LAYOUT_FAULTS, TELL, looked_at

BAD = """
<p style="position: absolute; top: 100px; left: 10px">first</p>
<p style="position: absolute; top: 104px; left: 20px">second</p>
<div style="position: absolute; top: 200px; width: 40px; overflow: hidden; white-space: nowrap">much too long</div>
<p style="position: absolute; top: 300px; left: 380px; white-space: nowrap">out of sight</p>
"""
GOOD = """
<p>one</p><p>two <code>three</code> <sup>4</sup></p>
<div style="width: 60px; overflow: auto; white-space: nowrap">a table that is scrolled sideways</div>
<details><summary>more</summary><p>hidden</p></details>
<table><tr><td>5.0</td><td>6.0</td></tr></table>
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "found"),
    [(BAD, ["much too long: cut off", "out of sight: sticks out", "first over second"]), (GOOD, [])],
    ids=["bad", "good"],
)
def test_what_is_wrong_with_a_page_is_named(body: str, found: list[str], tmp_path: Path) -> None:
    script = f"<script>{LAYOUT_FAULTS}{TELL}\ntell([innerWidth, layoutFaults()]);</script>"
    page = tmp_path / "page.html"
    page.write_text(f"<!doctype html><html><body>{body}{script}</body></html>")
    width, faults = looked_at(page, 390)
    assert abs(width - 390) <= 1
    assert len(faults) == len(found)
    assert all(any(fault.startswith(one) for fault in faults) for one in found), faults

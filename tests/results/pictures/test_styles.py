"""One look per encoder, whichever picture it is in."""

from __future__ import annotations

from pathlib import Path

from results.pictures.styles import COLOURS, Styles, numbered
from results.store import read_records
from tests.results.factory_records import write_demo


def test_an_encoder_has_one_look_and_seeds_share_its_colour(tmp_path: Path) -> None:
    write_demo(tmp_path)
    records, _ = read_records(tmp_path)
    styles = Styles(records)
    seeds = [styles.of(f"mocov2_resnet18w32_demo (seed {seed})") for seed in range(3)]
    assert len({seed.colour for seed in seeds}) == 1
    assert len({seed.marker for seed in seeds}) == 3
    assert styles.of("mocov2_resnet18w32_demo") == seeds[0]
    mean = styles.of("random init (resnet18-w32-k3-nopool)")
    assert styles.of("random init (resnet18, seed 3)") == mean  # drawn alone, as where one of them was measured
    others = {styles.of(name).colour for name in ("raw pixels", "EfficientNet-Lite0")}
    assert len({*others, mean.colour, seeds[0].colour}) == 4


def test_a_name_that_no_record_has_gets_the_next_look_and_keeps_it() -> None:
    styles = Styles(())
    first, second = styles.of("a"), styles.of("b")
    assert (first, second) == (numbered(0), numbered(1))
    assert styles.of("a") == first


def test_looks_differ_beyond_the_palette() -> None:
    looks = [numbered(number) for number in range(3 * len(COLOURS))]
    assert len(set(looks)) == len(looks)

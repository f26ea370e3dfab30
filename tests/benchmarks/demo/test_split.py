import hashlib
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageOps

from benchmarks.demo.scenes import all_ids, classes, load_drawing, read_drawings, scene_pools
from benchmarks.demo.split import LEFT_OUT, RELATED_FILE, THRESHOLD, sides_of, similarity

DRAWINGS = {drawing.id: drawing for drawing in read_drawings()}


def test_every_file_is_in_use_or_left_out_for_a_reason() -> None:
    files = set(all_ids())
    assert len(files) == 732
    assert set(DRAWINGS) == files - set(LEFT_OUT)
    assert len(classes()) == 12


def test_a_group_is_on_one_side() -> None:
    sides: dict[str, set[str]] = {}
    for drawing in DRAWINGS.values():
        sides.setdefault(drawing.group, set()).add(drawing.side)
    assert all(len(found) == 1 for found in sides.values())
    assert all(DRAWINGS[group].group == group for group in sides)


def test_about_thirty_percent_of_every_class_is_for_testing() -> None:
    for name in classes():
        own = [drawing for drawing in DRAWINGS.values() if drawing.class_name == name]
        share = sum(drawing.side == "test" for drawing in own) / len(own)
        assert 0.27 <= share <= 0.33, name


def test_the_committed_sides_are_those_of_the_rule() -> None:
    sides = sides_of({drawing.id: drawing.group for drawing in DRAWINGS.values()})
    assert {drawing.group: drawing.side for drawing in DRAWINGS.values()} == sides


def test_identical_pixels_share_a_group() -> None:
    groups: dict[str, set[str]] = {}
    for drawing in DRAWINGS.values():
        image = load_drawing(drawing.id)
        groups.setdefault(hashlib.sha256(image.tobytes() + bytes(image.size)).hexdigest(), set()).add(drawing.group)
    assert all(len(found) == 1 for found in groups.values())
    assert len(groups) < len(DRAWINGS)  # there are such files


def test_what_was_judged_related_shares_a_group() -> None:
    lines = [line.split() for line in RELATED_FILE.read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    assert len(lines) > 50
    for line in lines:
        assert len({DRAWINGS[id].group for id in line}) == 1, line


def test_the_scenes_of_the_splits_show_different_groups() -> None:
    groups = {
        split: {drawing.group for drawings in pool.values() for drawing in drawings}
        for split, pool in scene_pools().items()
    }
    assert not groups["train"] & groups["val"]
    assert not groups["train"] & groups["test"]
    assert not groups["val"] & groups["test"]
    assert all(set(pool) == set(classes()) for pool in scene_pools().values())
    assert Counter(d.side for pool in [scene_pools()["test"]] for ds in pool.values() for d in ds) == {"test": 217}


@pytest.mark.slow
def test_likeness_sees_through_mirroring_recolouring_scaling_and_background() -> None:
    names = ["animals_mammals/leone_01_architetto_fran_01", "food_fruit/pineapple", "recreation_music/gramophone"]
    for name in names:
        image = load_drawing(name)
        alpha = image.getchannel("A")
        recoloured = Image.merge("RGBA", [*image.convert("RGB").split()[::-1], alpha])
        negative = Image.merge("RGBA", [*ImageOps.invert(image.convert("RGB")).split(), alpha])
        smaller = image.resize((image.width * 2 // 3, image.height * 2 // 3))
        padded = ImageOps.expand(image, 20, (0, 0, 0, 0))
        versions = [image, ImageOps.mirror(image), recoloured, negative, smaller, ImageOps.mirror(padded)]
        likeness = similarity(versions)[0, 1:]
        assert (likeness > THRESHOLD).all(), (name, likeness)
    unrelated = similarity([load_drawing(name) for name in names])
    assert unrelated.max() < 0.5
    assert np.array_equal(unrelated, unrelated.T)


def test_line_art_is_found_like_its_coloured_version() -> None:
    pairs = [
        ("food_fruit/peach_simple", "food_fruit/peach_simple_bw"),
        ("recreation_music/violin_ganson", "recreation_music/violin_colour_ganson"),
        ("food_desserts/flan_bw_jean-victor_bali_01", "food_desserts/flan_jean-victor_balin_01"),
    ]
    for pair in pairs:
        assert similarity([load_drawing(id) for id in pair])[0, 1] > THRESHOLD, pair


@pytest.mark.nightly
def test_no_pair_across_the_split_is_alike() -> None:
    drawings = list(DRAWINGS.values())
    likeness = similarity([load_drawing(drawing.id) for drawing in drawings])
    test = np.array([drawing.side == "test" for drawing in drawings])
    groups = np.array([drawing.group for drawing in drawings])
    assert likeness[np.ix_(~test, test)].max() <= THRESHOLD + 1e-4  # rounding of the matrix product
    # The groups are those of the threshold: every pair above it is together.
    rows, columns = np.nonzero(likeness > THRESHOLD + 1e-4)
    assert (groups[rows] == groups[columns]).all()
    assert len(rows) > 500

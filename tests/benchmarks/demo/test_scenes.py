from collections import Counter, defaultdict
from itertools import islice

import numpy as np
import pytest

from benchmarks.demo.compose import Counts, plan_scenes
from benchmarks.demo.scenes import DIFFICULT_EXTENT, Instance, Scene, classes, instances, plan_scene, scene_pools


@pytest.fixture(scope="module")
def full_plan() -> list[tuple[Scene, list[Instance]]]:
    return [(scene, instances(scene)) for scene in plan_scenes(0, Counts())]


def _labels(scenes: list[tuple[Scene, list[Instance]]], splits: set[str]) -> tuple[int, Counter[str], Counter[str]]:
    """Scenes, clean positives and scenes to be ignored per class."""
    clean: Counter[str] = Counter()
    ignored: Counter[str] = Counter()
    chosen = [objects for scene, objects in scenes if scene.split in splits]
    for objects in chosen:
        difficult: dict[str, list[bool]] = defaultdict(list)
        for instance in objects:
            difficult[instance.drawing.class_name].append(instance.difficult)
        for name, flags in difficult.items():
            (ignored if all(flags) else clean)[name] += 1
    return len(chosen), clean, ignored


@pytest.mark.slow
def test_every_class_can_feed_the_low_shot_protocol(full_plan: list[tuple[Scene, list[Instance]]]) -> None:
    total, clean, ignored = _labels(full_plan, {"train", "val"})
    assert total >= 1600
    for name in classes():
        assert clean[name] >= 96, name
        assert total - clean[name] - ignored[name] >= 1056, name
        assert ignored[name] > 0, name


@pytest.mark.slow
def test_every_class_can_be_tested(full_plan: list[tuple[Scene, list[Instance]]]) -> None:
    total, clean, _ = _labels(full_plan, {"test"})
    assert total >= 800
    assert all(clean[name] >= 80 for name in classes())


@pytest.mark.slow
def test_scenes_vary_as_meant(full_plan: list[tuple[Scene, list[Instance]]]) -> None:
    sizes = Counter(len(objects) for _, objects in full_plan)
    assert set(sizes) == {1, 2, 3, 4, 5}
    assert all(170 <= max(scene.width, scene.height) <= 210 for scene, _ in full_plan)
    portrait = np.mean([scene.height > scene.width for scene, _ in full_plan])
    assert 0.2 < portrait < 0.4
    every = [instance for _, objects in full_plan for instance in objects]
    assert 0.05 < np.mean([instance.difficult for instance in every]) < 0.2
    assert 0.2 < np.mean([instance.truncated for instance in every]) < 0.6
    assert all(instance.mask.any() for instance in every)


def test_scenes_show_drawings_of_their_split_only() -> None:
    for scene in plan_scenes(3, Counts(train=10, val=10, test=10)):
        pool = scene_pools()[scene.split]
        assert all(placement.drawing in pool[placement.drawing.class_name] for placement in scene.placements)


def test_a_scene_does_not_depend_on_the_others() -> None:
    alone = plan_scene(5, 7, "train", scene_pools()["train"])
    assert list(islice(plan_scenes(5, Counts(train=9)), 9))[6] == alone
    assert plan_scene(6, 7, "train", scene_pools()["train"]) != alone


def test_visible_masks_are_disjoint_and_flags_follow_from_them() -> None:
    hidden = 0
    for scene in plan_scenes(1, Counts(train=40, val=0, test=0)):
        objects = instances(scene)
        stack = np.stack([instance.mask for instance in objects])
        assert stack.sum(0).max() <= 1
        assert stack.shape[1:] == (scene.height, scene.width)
        for instance, placement in zip(objects, scene.placements, strict=True):
            left, top, right, bottom = instance.box
            inside = instance.mask[top : bottom + 1, left : right + 1]
            assert inside.sum() == instance.mask.sum()
            assert inside[0].any()
            assert inside[-1].any()
            assert inside[:, 0].any()
            assert inside[:, -1].any()
            beyond = placement.left < -3 or placement.left + placement.width > scene.width + 3
            hidden += beyond and instance.truncated
            if max(right - left, bottom - top) + 1 < DIFFICULT_EXTENT:
                assert instance.difficult
    assert hidden > 0

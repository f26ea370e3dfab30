import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.datasets.lists import read_image_folder
from benchmarks.datasets.voc import read_voc_classification
from benchmarks.demo import compose as compose_module
from benchmarks.demo.compose import Counts, compose, contact_sheet
from benchmarks.demo.scenes import VIEWS_TRAIN, VIEWS_VAL, read_drawings
from benchmarks.task import InputError

SMALL = Counts(train=3, val=1, test=2, drawings_per_class=1)


def _hashes(root: Path) -> dict[str, str]:
    return {
        file.relative_to(root).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(root.rglob("*"))
        if file.is_file()
    }


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes(composed: Path, counts: Counts, tmp_path: Path) -> None:
    compose(tmp_path, seed=0, progress=False, counts=counts)
    assert _hashes(tmp_path) == _hashes(composed)


def test_another_seed_gives_other_pictures(composed: Path, tmp_path: Path) -> None:
    compose(tmp_path, seed=1, progress=False, counts=SMALL)
    ours, theirs = _hashes(tmp_path), _hashes(composed)
    pictures = [name for name in ours if name in theirs and name.endswith((".png", ".jpg"))]
    assert len(pictures) > 20
    assert not any(ours[name] == theirs[name] for name in pictures)


def test_what_is_intact_is_left_alone_and_what_is_not_is_made_again(tmp_path: Path) -> None:
    compose(tmp_path, progress=False, counts=SMALL)
    before = _hashes(tmp_path)
    times = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
    compose(tmp_path, progress=False, counts=SMALL)
    assert times == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()} | {
        tmp_path / ".composing.lock": times[tmp_path / ".composing.lock"]
    }
    victim = next((tmp_path / "VOCdevkit").rglob("*.xml"))
    victim.unlink()
    compose(tmp_path, progress=False, counts=SMALL)
    assert _hashes(tmp_path) == before
    drawing = next((tmp_path / "drawings").rglob("*.png"))
    assert drawing.stat().st_mtime_ns == times[drawing]


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(compose_module, "coco_annotations", killed)
        with pytest.raises(KeyboardInterrupt):
            compose(tmp_path, progress=False, counts=SMALL)
    assert not (tmp_path / "coco").exists()
    done = {file: file.stat().st_mtime_ns for file in (tmp_path / "drawings").rglob("*.png")}
    compose(tmp_path, progress=False, counts=SMALL)
    assert (tmp_path / "coco" / "annotations" / "instances_val2017.json").is_file()
    assert done == {file: file.stat().st_mtime_ns for file in (tmp_path / "drawings").rglob("*.png")}
    assert not (tmp_path / ".composing").exists()


def test_killed_between_moving_a_part_and_noting_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(compose_module._Stamp, "complete", killed)
        with pytest.raises(KeyboardInterrupt):
            compose(tmp_path, progress=False, counts=SMALL)
    assert (tmp_path / "drawings").is_dir()
    compose(tmp_path, progress=False, counts=SMALL)
    assert len(read_image_folder(tmp_path / "drawings", "train")) == 12


def test_other_settings_replace_what_was_composed(tmp_path: Path) -> None:
    compose(tmp_path, progress=False, counts=SMALL)
    compose(tmp_path, progress=False, counts=Counts(train=2, val=1, test=1, drawings_per_class=1))
    assert len(list((tmp_path / "VOCdevkit" / "VOC2007" / "JPEGImages").iterdir())) == 4


def test_data_of_others_is_never_replaced(tmp_path: Path) -> None:
    foreign = tmp_path / "VOCdevkit" / "VOC2007" / "JPEGImages" / "000001.jpg"
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"a photograph")
    with pytest.raises(InputError, match=r"VOC2007 exists and was not composed here"):
        compose(tmp_path, progress=False, counts=SMALL)
    assert foreign.read_bytes() == b"a photograph"


def test_the_loaders_of_the_full_sets_read_it(composed: Path, counts: Counts) -> None:
    groups = {drawing.id: drawing.group for drawing in read_drawings()}
    train = read_image_folder(composed / "drawings", "train")
    test = read_image_folder(composed / "drawings", "val")
    assert train.classes == test.classes
    assert (len(train), len(test)) == (24 * VIEWS_TRAIN, 24 * VIEWS_VAL)
    assert train.groups[0] == (groups[train.ids[0].removeprefix("train/").removesuffix("_0.png")],)
    assert not {g for found in train.groups for g in found} & {g for found in test.groups for g in found}
    trainval = read_voc_classification(composed / "VOCdevkit", "2007", "trainval")
    tested = read_voc_classification(composed / "VOCdevkit", "2007", "test")
    assert trainval.classes == tested.classes == train.classes
    assert (len(trainval), len(tested)) == (counts.train + counts.val, counts.test)
    assert not {g for found in trainval.groups for g in found} & {g for found in tested.groups for g in found}
    assert set(trainval.targets.ravel()) <= {-1, 0, 1}
    assert all(len(found) >= 1 for found in trainval.groups)


def test_a_copy_is_as_good_as_a_link(composed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr("os.link", refuse)
    compose(tmp_path, progress=False, counts=SMALL)
    picture = tmp_path / "coco" / "train2017" / "000000000001.jpg"
    assert picture.stat().st_nlink == 1
    assert picture.read_bytes() == (composed / "VOCdevkit" / "VOC2007" / "JPEGImages" / "000001.jpg").read_bytes()
    shutil.rmtree(tmp_path / "VOCdevkit")
    assert picture.is_file()


@pytest.mark.slow
def test_a_sheet_of_scenes_is_drawn_and_the_same_every_time(composed: Path, tmp_path: Path) -> None:
    contact_sheet(composed, tmp_path / "new" / "a.png", "test", n=6)
    contact_sheet(composed, tmp_path / "b.png", "test", n=6)
    first, second = (np.asarray(Image.open(tmp_path / name)) for name in ("new/a.png", "b.png"))
    assert np.array_equal(first, second)
    assert first.shape[1] > 6 * 200
    assert first.std() > 20
    assert not list(tmp_path.rglob("*.partial"))


def test_missing_data_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"trainval\.txt is missing; compose the data first"):
        contact_sheet(tmp_path, tmp_path / "out.png", "trainval")
    assert not (tmp_path / "out.png").exists()

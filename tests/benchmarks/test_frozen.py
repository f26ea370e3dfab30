"""The frozen suite: which protocols it chooses, the plan it states, and that one pass over the images serves them."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from benchmarks.__main__ import _with_flags, frozen_suite, main
from benchmarks.task import InputError


def ids(data: Path, dataset: str | None = None) -> list[str]:
    return [question.protocol.id for question in frozen_suite(data, dataset)]


def test_on_imagenet_its_protocols_share_one_geometry(tmp_path: Path) -> None:
    chosen = frozen_suite(tmp_path)
    first = [question.protocol for question in chosen if not question.optional]
    assert [p.id for p in first] == ["knn.mmselfsup@1", "logistic.imagenet@1", "ncm.imagenet@1", "few_shot.imagenet@1"]
    assert len({repr(p.geometry) for p in first}) == 1
    assert [q.task.name for q in chosen if q.optional] == ["voc-svm", "low-shot-svm"]


def test_image_folders_share_one_geometry_too(tmp_path: Path) -> None:
    chosen = [question.protocol for question in frozen_suite(tmp_path, "imagefolder")]
    assert [p.harness for p in chosen] == ["knn", "logistic", "ncm", "few-shot", "low-shot-svm"]
    assert len({repr(p.geometry) for p in chosen[:4]}) == 1


def test_a_data_set_without_protocols_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="frozen has no protocol for nowhere"):
        frozen_suite(tmp_path, "nowhere")


def test_encoder_and_data_may_stand_without_flags() -> None:
    assert _with_flags(["a.pth", "/data", "--dry-run"]) == ["--encoder", "a.pth", "--data", "/data", "--dry-run"]
    assert _with_flags(["a.pth", "--seed", "1"]) == ["--encoder", "a.pth", "--seed", "1"]
    assert _with_flags(["--encoder", "a.pth"]) == ["--encoder", "a.pth"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An image folder of two classes, which brightness tells apart."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        for number, name in enumerate(("dark", "light")):
            where = tmp_path / "data" / split / name
            where.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 128, (40, 40, 3)) + 127 * number
                Image.fromarray(pixels.astype(np.uint8)).save(where / f"{index}.png")
    return tmp_path / "data"


def test_it_states_its_plan_and_reads_the_images_once(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    where = ["--out", str(tmp_path / "records"), "--features", str(tmp_path / "features"), "--workers", "0"]
    small = ["--set", "geometry.resize=32", "geometry.crop=32"]
    assert main(["frozen", "pixels", str(folder), "--dry-run", *small, *where]) == 0
    plan = capsys.readouterr().out
    assert plan.startswith(
        "plan for raw pixels on cpu\n  extract  18 images of imagefolder (resize 32, crop 32, bilinear)"
    )
    assert plan.count("  extract  ") == 1
    for name in ("knn.imagefolder", "logistic.imagefolder", "ncm.imagefolder", "few_shot.imagefolder"):
        assert f"  measure  {name}@1" in plan
    assert not (tmp_path / "records").exists()

    with caplog.at_level(logging.INFO):
        assert main(["frozen", "pixels", str(folder), *small, *where]) == 0
    assert sum("features to compute" in record.message for record in caplog.records) == 1
    assert len(list((tmp_path / "features").glob("*/embed.npy"))) == 2
    records = [path.name.partition("@")[0] for path in (tmp_path / "records").rglob("*.json")]
    assert {"knn.imagefolder", "logistic.imagefolder", "ncm.imagefolder", "few_shot.imagefolder"} <= set(records)

    capsys.readouterr()
    assert main(["frozen", "pixels", str(folder), *small, *where]) == 0
    assert "few_shot.imagefolder@1+geometry" in (again := capsys.readouterr().out)
    assert "has a record" in again


def test_a_protocol_is_not_its_to_choose(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["frozen", "pixels", "/data", "--protocol", "knn.dino@1"]) == 2
    assert "frozen takes no --protocol" in capsys.readouterr().err

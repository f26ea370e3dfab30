"""DensePose: refused in one sentence without its project; with it, a record like any other."""

from __future__ import annotations

import json
import math
import pickle
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as rle

from benchmarks.__main__ import main
from benchmarks.datasets.registry import find_dataset
from benchmarks.detection import densepose
from benchmarks.detection.data import read_scenes, training_scenes
from benchmarks.detection.densepose import SURFACE_POINTS
from benchmarks.detection.metrics import evaluator
from benchmarks.detection.protocols import DENSEPOSE
from benchmarks.task import InputError
from results.store import read_records
from tests.layouts.densepose import POINTS, write_densepose
from tests.reference import densepose_settings

pytestmark = [
    pytest.mark.skipif(not find_spec("detectron2"), reason="detectron2 is not installed: make setup-transfer"),
    pytest.mark.filterwarnings("ignore"),
]
needs_project = pytest.mark.skipif(not find_spec("densepose"), reason=f"not installed: {densepose.INSTALL}")

PROTOCOL = "coco_densepose_fpn_s1x.moco@1"
TINY = (
    "min_sizes=48,64", "test_min_size=64", "batch_size=2", "iterations=4", "steps=", "precise_bn=1",
    "config=" + json.dumps({
        **DENSEPOSE.config, "MODEL.RPN.POST_NMS_TOPK_TRAIN": 30, "MODEL.RPN.POST_NMS_TOPK_TEST": 10,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 8, "TEST.DETECTIONS_PER_IMAGE": 3, "MODEL.FPN.OUT_CHANNELS": 16,
        "MODEL.ROI_BOX_HEAD.FC_DIM": 32, "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
        "MODEL.ROI_DENSEPOSE_HEAD.CONV_HEAD_DIM": 16, "MODEL.ROI_DENSEPOSE_HEAD.DECODER_CONV_DIMS": 16,
        "MODEL.ROI_DENSEPOSE_HEAD.DECODER_NUM_CLASSES": 16,
    }),
)  # fmt: skip


def command(root: Path, *more: str) -> list[str]:
    return ["coco-det", "--protocol", PROTOCOL, "--encoder", "random:resnet18-w8-k3-nopool:0", "--data", str(root),
            "--out", str(root / "records"), "--workers", "0", "--device", "cpu", *more]  # fmt: skip


def test_without_the_project_one_sentence_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_densepose(tmp_path)
    monkeypatch.setattr("benchmarks.detection.densepose.find_spec", lambda name: None)
    assert main(command(tmp_path)) == 2
    (sentence,) = capsys.readouterr().err.strip().splitlines()
    assert "DensePose protocols need detectron2's project DensePose, which is not installed" in sentence
    assert sentence.endswith(densepose.INSTALL)
    assert not list(tmp_path.rglob("records/*/*"))


def test_what_cannot_be_fetched_is_named_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from detectron2.utils.file_io import PathManager

    def nothing(url: str) -> str:
        raise OSError("no network")

    densepose_settings.stand_in(monkeypatch)
    monkeypatch.setattr(PathManager, "get_local_path", nothing)
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=rf"data/UV_symmetry_transforms\.mat.* \(no network\); put it into {tmp_path}"):
        densepose.fetch_tables()


def test_people_without_points_are_boxes_and_images_without_any_are_left_out(tmp_path: Path) -> None:
    write_densepose(tmp_path)
    labels = find_dataset("coco_densepose", tmp_path).read("train")
    assert [file.name for file in labels.annotations] == [
        "densepose_train2014.json",
        "densepose_valminusminival2014.json",
    ]
    scenes = read_scenes(labels, "densepose")
    assert [Path(s["file_name"]).stem for s in scenes] == list(labels.ids)
    people = [a for s in scenes for a in s["annotations"]]
    without = [a for a in people if "dp_x" not in a]
    assert len(without) == 2  # the last of either list
    assert all(len({len(a[key]) for key in SURFACE_POINTS}) == 1 for a in people if a not in without)
    assert not any("segmentation" in a for a in people)
    kept = training_scenes(scenes, DENSEPOSE)
    assert {id(s) for s in scenes if any("dp_x" in a for a in s["annotations"])} == {id(s) for s in kept}
    assert 0 < len(kept) < len(scenes)


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "a text": ({"dp_x": "abc"}, "dp_x: it is no list of finite numbers"),
    "texts": ({"dp_y": ["a"] * POINTS}, "dp_y: must be real number"),
    "nan": ({"dp_U": [math.nan] * POINTS}, "dp_U: it is no list of finite numbers"),
    "10**400": ({"dp_V": [10**400] * POINTS}, "dp_V: int too large"),
    "nothing": ({"dp_x": None}, "dp_x: it is no list"),
    "fewer": ({"dp_y": [1.0]}, "dp_y: 1 numbers where dp_x has 12"),
    "far away": ({"dp_x": [5000.0] * POINTS}, "dp_x: it holds 5000, not a number from 0 to 256"),
    "part 25": ({"dp_I": [25.0] * POINTS}, "dp_I: it holds 25, not a number from 1 to 24"),
    "part 0": ({"dp_I": [0] * POINTS}, "dp_I: it holds 0, not a number from 1 to 24"),
    "half a part": ({"dp_I": [1.5] * POINTS}, "dp_I: the number of a part is whole"),
    "a part's far side": ({"dp_U": [1.1] * POINTS}, "dp_U: it holds 1.1, not a number from 0 to 1"),
    "masks that are a text": ({"dp_masks": "abc"}, "dp_masks: it is no list of at most 14 masks"),
    "15 masks": ({"dp_masks": [[]] * 15}, "dp_masks: it is no list of at most 14 masks"),
    "a mask that is a number": ({"dp_masks": [3]}, "dp_masks: 'int' object"),
    "a mask without run lengths": ({"dp_masks": [{"a": 1}]}, "dp_masks: no 'size'"),
    "a mask of 10**12 pixels": ({"dp_masks": [{"counts": "a", "size": [10**6, 10**6]}]}, "dp_masks: its size is"),
    "packed nonsense": ({"dp_masks": [{"counts": "zzzzzz", "size": [256, 256]}]}, "dp_masks: "),
    "packed text of half the box": (
        {
            "dp_masks": [
                {
                    "counts": rle.encode(np.asfortranarray(np.ones((256, 128), np.uint8)))["counts"].decode(),
                    "size": [256, 256],
                }
            ]
        },
        "dp_masks: its packed run lengths do not fill the image",
    ),
    "packed numbers": ({"dp_masks": [{"counts": 3, "size": [256, 256]}]}, "dp_masks: "),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_surface_points_that_cannot_be_are_refused(name: str, tmp_path: Path) -> None:
    fields, fault = HOSTILE[name]
    file = write_densepose(tmp_path) / "annotations" / "densepose_minival2014.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["annotations"][0].update(fields, id=4711)
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError) as refused:
        read_scenes(find_dataset("coco_densepose", tmp_path).read("val"), "densepose")
    said = str(refused.value)
    assert said.startswith(f"{file}: annotation 4711 of image ")
    assert f"has no usable points on the body's surface ({fault}" in said
    assert said.endswith("); take it from its owner again, or remove the annotation")
    assert len(said.splitlines()) == 1


def test_the_fault_of_the_second_list_names_it(tmp_path: Path) -> None:
    file = write_densepose(tmp_path) / "annotations" / "densepose_valminusminival2014.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["annotations"][0] |= {**{key: [1.0] * 3 for key in SURFACE_POINTS}, "dp_I": [1, 25, 3]}
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match=r"densepose_valminusminival2014\.json: annotation \d+"):
        read_scenes(find_dataset("coco_densepose", tmp_path).read("train"), "densepose")


def test_a_list_that_is_missing_is_named(tmp_path: Path) -> None:
    folder = write_densepose(tmp_path)
    (folder / "annotations" / "densepose_valminusminival2014.json").unlink()
    with pytest.raises(InputError, match=r"expected annotations/densepose_train2014\.json and annotations/densepose_v"):
        find_dataset("coco_densepose", tmp_path).read("train")
    with pytest.raises(InputError, match="has no split test"):
        find_dataset("coco_densepose", tmp_path).read("test")


def write_tables(cache: Path) -> None:
    """A surface of four vertices in each of 24 parts, in the form of the project's own files."""
    from scipy.io import savemat

    folder = cache / "densepose" / "data"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    mirrored = np.empty((1, 24), dtype=object)
    for part in range(24):
        mirrored[0, part] = rng.uniform(0, 1, (256, 256))
    savemat(folder / "UV_symmetry_transforms.mat", {"U_transforms": mirrored, "V_transforms": mirrored})
    vertices = 24 * 4
    savemat(
        folder / "SMPL_subdiv.mat",
        {"U_subdiv": rng.uniform(0, 1, (vertices, 1)), "V_subdiv": rng.uniform(0, 1, (vertices, 1)),
         "Part_ID_subdiv": np.repeat(np.arange(1, 25), 4)[None]},
    )  # fmt: skip
    savemat(folder / "SMPL_SUBDIV_TRANSFORM.mat", {"index": np.arange(1.0, vertices + 1)[:, None]})
    distances = {"Pdist_matrix": rng.uniform(0, 1, (vertices * (vertices - 1) // 2, 1))}
    (folder / "Pdist_matrix.pkl").write_bytes(pickle.dumps(distances))


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    write_tables(tmp_path / "cache")


@needs_project
@pytest.mark.usefixtures("tables")
def test_it_ends_in_a_record(tmp_path: Path) -> None:
    write_densepose(tmp_path)
    assert main(command(tmp_path, "--set", *TINY)) == 0
    (stored,), bad = read_records(tmp_path / "records")
    assert not bad
    assert stored.intact
    assert stored.record.status == "ok"
    assert list(stored.record.scores) == ["AP_dp", "AP50_dp", "AP75_dp"]
    assert all(0 <= (score.value or 0.0) <= 100 for score in stored.record.scores.values())
    assert stored.record.per_class["AP_dp"] == {"person": stored.record.scores["AP_dp"].value}


@needs_project
@pytest.mark.usefixtures("tables")
def test_empty_predictions_have_ap_zero(tmp_path: Path) -> None:
    from detectron2.structures import Boxes, Instances

    write_densepose(tmp_path)
    labels = find_dataset("coco_densepose", tmp_path).read("val")
    measured = evaluator(DENSEPOSE, labels)
    measured.reset()
    for scene in read_scenes(labels, "densepose"):
        found = Instances((scene["height"], scene["width"]))
        found.pred_boxes = Boxes(np.zeros((0, 4)))
        measured.process([scene], [{"instances": found}])
    assert measured.evaluate().columns == {"AP_dp": 0.0, "AP50_dp": 0.0, "AP75_dp": 0.0}


@needs_project
def test_the_stand_in_has_the_projects_defaults() -> None:
    from densepose import add_densepose_config
    from densepose.data.datasets.coco import DENSEPOSE_METADATA_URL_PREFIX
    from detectron2.config import get_cfg

    real, ours = get_cfg(), get_cfg()
    add_densepose_config(real)
    densepose_settings.add_densepose_config(ours)
    assert ours.MODEL.DENSEPOSE_ON == real.MODEL.DENSEPOSE_ON
    assert {k: real.MODEL.ROI_DENSEPOSE_HEAD[k] for k in ours.MODEL.ROI_DENSEPOSE_HEAD} == dict(
        ours.MODEL.ROI_DENSEPOSE_HEAD
    )
    assert densepose_settings.PREFIX == DENSEPOSE_METADATA_URL_PREFIX

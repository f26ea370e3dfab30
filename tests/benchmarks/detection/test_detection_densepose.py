"""DensePose: refused in one sentence without its project; with it, a record like any other."""

from __future__ import annotations

import json
import pickle
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.datasets.registry import find_dataset
from benchmarks.detection import densepose
from benchmarks.detection.data import read_scenes, training_scenes
from benchmarks.detection.densepose import SURFACE_POINTS
from benchmarks.detection.metrics import evaluator
from benchmarks.detection.protocols import DENSEPOSE
from benchmarks.task import InputError
from results.store import read_records
from tests.layouts.densepose import write_densepose
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

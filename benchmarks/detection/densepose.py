"""What detectron2's DensePose project adds to a detector: its settings, its head, its mapper and its evaluation.

The project is a package of its own, `densepose`, of which nothing is imported before a protocol asks for it.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from benchmarks.contract import InputError, Labels
from benchmarks.detection.scenes import SURFACE_POINTS

INSTALL = (
    "python -m pip install av && python -m pip install --no-deps --no-build-isolation "
    '"git+https://github.com/facebookresearch/detectron2@02b5c4e#subdirectory=projects/DensePose"'
)
# The project's names of its splits. Its lists are not read; its metadata say where the mirrored coordinates are.
_TRAIN, _TEST = ("densepose_coco_2014_train", "densepose_coco_2014_valminusminival"), ("densepose_coco_2014_minival",)
# The body's surface, and how far apart two points of it are; the first for training, the others for the evaluation.
_TABLES = ("UV_symmetry_transforms.mat", "SMPL_subdiv.mat", "SMPL_SUBDIV_TRANSFORM.mat", "Pdist_matrix.pkl")


def require_project() -> None:
    """Raises InputError where the project is not installed."""
    if not find_spec("densepose"):
        raise InputError(
            f"DensePose needs the project of that name beside detectron2, which is not installed; run {INSTALL}"
        )


def fetch_tables() -> None:
    """Takes the project's files of the body's surface from its own cache, or into it, before anything is trained.

    Raises:
        InputError: one is not there and cannot be fetched.
    """
    from densepose.data.datasets.coco import DENSEPOSE_METADATA_URL_PREFIX
    from detectron2.utils.file_io import PathManager
    from iopath.common.file_io import get_cache_dir

    for name in _TABLES:
        url = f"{DENSEPOSE_METADATA_URL_PREFIX}{name}"
        try:
            PathManager.get_local_path(url)
        except OSError as error:
            raise InputError(
                f"DensePose needs {url}, which cannot be fetched ({error}); put it into "
                f"{get_cache_dir()}/densepose/data, or set FVCORE_CACHE to where densepose/data has it"
            ) from error


def defaults(cfg: Any) -> None:
    """Adds the project's keys to detectron2's configuration, and its names of the splits."""
    from densepose import add_densepose_config

    add_densepose_config(cfg)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = _TRAIN, _TEST


def is_on(cfg: Any) -> bool:
    """Whether a configuration is for DensePose."""
    return "DENSEPOSE_ON" in cfg.MODEL and bool(cfg.MODEL.DENSEPOSE_ON)


def train_mapper(cfg: Any) -> Any:
    """The project's, which mirrors left and right on the body's surface when it mirrors an image."""
    from densepose.data import DatasetMapper

    return DatasetMapper(cfg, is_train=True)


def evaluator(test: Labels, scores: Callable[[dict[str, float | None]], Any]) -> Any:
    """The project's evaluator, which gives AP, AP50 and AP75 by geodesic point similarity on the first rank.

    Args:
        scores: takes the three; each is None where the test images show nobody with points on the surface.
    """
    from densepose import DensePoseCOCOEvaluator
    from detectron2.data import MetadataCatalog
    from detectron2.utils import comm
    from detectron2.utils.file_io import PathManager

    # It asks for its files with a time limit, which iopath's handler of URLs knows nothing of.
    PathManager.set_strict_kwargs_checking(False)
    (file,) = test.annotations
    content = json.loads(file.read_bytes())
    name = f"densepose {file}"
    ids = sorted(category["id"] for category in content["categories"])
    MetadataCatalog.get(name).set(
        json_file=str(file),
        thing_classes=list(test.classes),
        thing_dataset_id_to_contiguous_id={own: index for index, own in enumerate(ids)},
        class_to_mesh_name={},
    )
    shown = any(all(key in a for key in SURFACE_POINTS) for a in content["annotations"])

    class Quiet(DensePoseCOCOEvaluator):
        def evaluate(self, img_ids: Any = None) -> Any:
            with contextlib.redirect_stdout(io.StringIO()):
                found = super().evaluate(img_ids)
            if found is None:
                return None
            # The project says -1 (or -100) of everything where nothing was found.
            return scores({c: max(0.0, found["densepose_gps"][c]) if shown else None for c in ("AP", "AP50", "AP75")})

    return Quiet(name, distributed=comm.get_world_size() > 1)

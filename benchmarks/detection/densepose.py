"""detectron2's DensePose project: configuration keys, training mapper and evaluator.

The project is the separate package `densepose`. It is imported only for a protocol that needs it.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np

from benchmarks.datasets.coco import require_finite, usable_run_lengths
from benchmarks.task import InputError, Labels
from benchmarks.training.trials import TrialScores

SURFACE_POINTS = ("dp_x", "dp_y", "dp_I", "dp_U", "dp_V")  # pixel, body part, and position on the part
SIDE, PARTS, MASKS = 256, 24, 14  # of a person's box, of the surface, and of the body
_RANGES = {"dp_I": (1, PARTS), "dp_U": (0, 1), "dp_V": (0, 1)}

INSTALL = (
    "python -m pip install av && python -m pip install --no-deps --no-build-isolation "
    '"git+https://github.com/facebookresearch/detectron2@02b5c4e#subdirectory=projects/DensePose"'
)
# The project's names of its splits. Its lists are not read; its metadata name the file of mirrored coordinates.
_TRAIN, _TEST = ("densepose_coco_2014_train", "densepose_coco_2014_valminusminival"), ("densepose_coco_2014_minival",)
# The body's surface and the distances between its points; the first is for training, the others for evaluation.
_TABLES = ("UV_symmetry_transforms.mat", "SMPL_subdiv.mat", "SMPL_SUBDIV_TRANSFORM.mat", "Pdist_matrix.pkl")


def require_project() -> None:
    """Raises InputError where the project is not installed."""
    if not find_spec("densepose"):
        raise InputError(
            f"DensePose protocols need detectron2's project DensePose, which is not installed; run {INSTALL}"
        )


def fetch_tables() -> None:
    """Download DensePose's files of the body surface into its cache, unless they are there.

    Raises:
        InputError: a file is missing and cannot be downloaded.
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
                f"DensePose needs {url}, which cannot be downloaded ({error}); put it into "
                f"{get_cache_dir()}/densepose/data, or set FVCORE_CACHE to the folder that holds densepose/data"
            ) from error


def defaults(cfg: Any) -> None:
    """Add the project's keys to detectron2's configuration, and its names of the splits."""
    from densepose import add_densepose_config

    add_densepose_config(cfg)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = _TRAIN, _TEST


def is_on(cfg: Any) -> bool:
    """Whether a configuration is for DensePose."""
    return "DENSEPOSE_ON" in cfg.MODEL and bool(cfg.MODEL.DENSEPOSE_ON)


def has_surface_points(annotation: Mapping[str, Any]) -> bool:
    """Whether a person has points on the surface."""
    return all(key in annotation for key in SURFACE_POINTS)


def surface_points(annotation: Mapping[str, Any]) -> dict[str, Any]:
    """What an annotation says of the body's surface; nothing where it has no points.

    DensePose-COCO's description of its format: points in 256ths of the box, 24 parts of the surface, positions on a
    part from 0 to 1, and masks of 14 parts of the body in the box, 256 by 256, some of them empty.

    Raises:
        KeyError, TypeError, ValueError, OverflowError: a field holds something else.
    """
    if not has_surface_points(annotation):
        return {}
    found = {key: annotation[key] for key in SURFACE_POINTS}
    for key, values in found.items():
        try:
            if len(require_finite(values)) != len(found["dp_x"]):
                raise ValueError(f"{len(values)} numbers where dp_x has {len(found['dp_x'])}")
            low, high = _RANGES.get(key, (0, SIDE))
            room = 0 if key == "dp_I" else (high - low) / SIDE  # for rounding; the project's tables have 256 places
            outside = next((value for value in values if not low - room <= value <= high + room), None)
            if outside is not None:
                raise ValueError(f"it holds {outside:g}, not a number from {low} to {high}")
            if key == "dp_I" and not all(float(value).is_integer() for value in values):
                raise ValueError("the number of a part is whole")
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{key}: {error}") from error
    masks = annotation.get("dp_masks")
    if masks is not None:
        if not isinstance(masks, list) or len(masks) > MASKS:
            raise ValueError(f"dp_masks: it is no list of at most {MASKS} masks")
        try:
            found["dp_masks"] = [mask and usable_run_lengths(mask, SIDE, SIDE) for mask in masks]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"dp_masks: {f'no {error}' if isinstance(error, KeyError) else error}") from error
    return found


def train_mapper(cfg: Any) -> Any:
    """The project's mapper, which exchanges left and right of the body's surface when it flips an image."""
    from densepose.data import DatasetMapper

    return DatasetMapper(cfg, is_train=True)


def evaluator(test: Labels) -> Any:
    """The project's evaluator. On the first rank, `evaluate` gives `TrialScores`, by geodesic point similarity."""
    from densepose import DensePoseCOCOEvaluator
    from detectron2.data import MetadataCatalog
    from detectron2.utils import comm
    from detectron2.utils.file_io import PathManager

    # The project passes a time limit for its files, an argument that iopath's handler of URLs does not have.
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
    shown = any(map(has_surface_points, content["annotations"]))

    class Evaluator(DensePoseCOCOEvaluator):
        def evaluate(self, img_ids: Any = None) -> Any:
            with contextlib.redirect_stdout(io.StringIO()):
                found = super().evaluate(img_ids)
            if found is None:
                return None
            scores = TrialScores()
            for name in ("AP", "AP50", "AP75"):
                # The project gives -1 (or -100) where nothing was detected.
                value = max(0.0, found["densepose_gps"][name]) if shown else np.nan
                scores.add(f"{name}_dp", test.classes, np.array([value]))
            return scores

    return Evaluator(name, distributed=comm.get_world_size() > 1)

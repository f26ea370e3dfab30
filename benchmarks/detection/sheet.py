"""A contact sheet: true and predicted boxes side by side."""

from __future__ import annotations

import math
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.detection.scenes import Scene

IMAGES = 8
LIGHT = 0.6  # luma of a colour that is written on in black


class Sheet:
    """Collects the first images that show an object and draws them as one picture.

    Args:
        classes: names, in the order of the class indices.
    """

    def __init__(self, classes: tuple[str, ...], images: int = IMAGES) -> None:
        self.classes, self.images = classes, images
        self.chosen: list[tuple[Scene, Any]] = []

    def look(self, scene: Scene, found: Any) -> None:
        """Takes the image and detectron2's `Instances` of it, unless the sheet is full or it shows nothing."""
        if len(self.chosen) < self.images and scene["annotations"]:
            self.chosen.append((scene, found))

    def png(self) -> bytes | None:
        """The picture; None where no image was taken."""
        if not self.chosen:
            return None
        import matplotlib

        matplotlib.use("agg")
        from matplotlib import pyplot as plt

        lines = math.ceil(len(self.chosen) / 2)
        figure, axes = plt.subplots(lines, 4, figsize=(13, 3.2 * lines), squeeze=False, layout="constrained")
        for axis in axes.flat:
            axis.set_axis_off()
        pairs = [line[at : at + 2] for line in axes for at in (0, 2)]
        for row, (scene, found) in zip(pairs, self.chosen, strict=False):  # the last line may have room
            with Image.open(scene["file_name"]) as image:
                pixels = np.asarray(image.convert("RGB"))
            true = [(a["bbox"], a["category_id"], None) for a in scene["annotations"]]
            boxes, kinds, scores = found.pred_boxes.tensor.tolist(), found.pred_classes.tolist(), found.scores.tolist()
            # As many as there are to find: no threshold suits a weak detector and a strong one.
            ranked = sorted(zip(boxes, kinds, scores, strict=True), key=lambda found: -found[2])
            predicted = ranked[: len(true)]
            for axis, objects in zip(row, (true, predicted), strict=True):
                axis.imshow(pixels)
                for (left, top, right, bottom), kind, score in objects:
                    self._box(axis, plt, (left, top, right, bottom), kind, score)
        for row in pairs[: min(2, len(self.chosen))]:
            for axis, title in zip(row, ("truth", "its surest predictions, as many"), strict=True):
                axis.set_title(title)
        picture = BytesIO()
        figure.savefig(picture, format="png", dpi=100)
        plt.close(figure)
        return picture.getvalue()

    def _box(self, axis: Any, plt: Any, box: tuple[float, ...], kind: int, score: float | None) -> None:
        left, top, right, bottom = box
        colour = plt.get_cmap("tab20")(kind % 20)
        axis.add_patch(plt.Rectangle((left, top), right - left, bottom - top, fill=False, lw=1.6, color=colour))
        text = self.classes[kind] + (f" {score:.2f}" if score is not None else "")
        ink = "black" if np.dot(colour[:3], (0.3, 0.59, 0.11)) > LIGHT else "white"
        axis.text(left, top, text, fontsize=7, color=ink, va="bottom", bbox={"facecolor": colour, "pad": 1, "lw": 0})

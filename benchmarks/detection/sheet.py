"""A contact sheet: true and predicted boxes side by side."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.detection.scenes import Scene

ROWS, SURE = 8, 0.5


class Sheet:
    """Collects the first images that show an object and draws them as one picture.

    Args:
        classes: names, in the order of the class indices.
    """

    def __init__(self, classes: tuple[str, ...], rows: int = ROWS) -> None:
        self.classes, self.rows = classes, rows
        self.chosen: list[tuple[Scene, Any]] = []

    def look(self, scene: Scene, found: Any) -> None:
        """Takes the image and detectron2's `Instances` of it, unless the sheet is full or it shows nothing."""
        if len(self.chosen) < self.rows and scene["annotations"]:
            self.chosen.append((scene, found))

    def png(self) -> bytes | None:
        """The picture; None where no image was taken."""
        if not self.chosen:
            return None
        import matplotlib

        matplotlib.use("agg")
        from matplotlib import pyplot as plt

        figure, axes = plt.subplots(
            len(self.chosen), 2, figsize=(6.6, 3.2 * len(self.chosen)), squeeze=False, layout="constrained"
        )
        for row, (scene, found) in zip(axes, self.chosen, strict=True):
            with Image.open(scene["file_name"]) as image:
                pixels = np.asarray(image.convert("RGB"))
            true = [(a["bbox"], a["category_id"], None) for a in scene["annotations"]]
            boxes, kinds, scores = found.pred_boxes.tensor.tolist(), found.pred_classes.tolist(), found.scores.tolist()
            predicted = [(b, k, s) for b, k, s in zip(boxes, kinds, scores, strict=True) if s >= SURE]
            for axis, objects in zip(row, (true, predicted), strict=True):
                axis.imshow(pixels)
                axis.set_axis_off()
                for (left, top, right, bottom), kind, score in objects:
                    self._box(axis, plt, (left, top, right, bottom), kind, score)
        for axis, title in zip(axes[0], ("truth", f"predictions, score of {SURE} or more"), strict=True):
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
        axis.text(
            left, top, text, fontsize=6, color="white", va="bottom", bbox={"facecolor": colour, "pad": 1, "lw": 0}
        )

"""A contact sheet: image, truth and prediction side by side."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.contract import Labels
from benchmarks.segmentation.scenes import IGNORED

ROWS = 8
SIDE = 2.2  # inches of a picture


class Sheet:
    """Collects the first images that show more than the background and draws them as one picture with a legend.

    Args:
        classes: names, in the order of the class indices.
    """

    def __init__(self, test: Labels, classes: tuple[str, ...], rows: int = ROWS) -> None:
        self.test, self.classes, self.rows = test, classes, rows
        self.chosen: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]] = []

    def look(self, index: int, sample: Any) -> None:
        """Takes the image, unless the sheet is full or the image shows one class alone."""
        truth = sample.gt_sem_seg.data[0].cpu().numpy()
        if len(self.chosen) >= self.rows or len(set(np.unique(truth)) - {IGNORED}) < 2:
            return
        predicted = sample.pred_sem_seg.data[0].cpu().numpy()
        with Image.open(self.test.paths[index]) as image:
            self.chosen.append((np.asarray(image.convert("RGB")), truth, predicted))

    def png(self) -> bytes | None:
        """The picture; None where no image was taken."""
        if not self.chosen:
            return None
        import matplotlib

        matplotlib.use("agg")
        from matplotlib import pyplot as plt
        from matplotlib.colors import ListedColormap
        from matplotlib.patches import Patch

        paired = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]  # of this kind of map
        # Its two greys are the background's and next to it.
        vivid = [*paired[:14], *paired[16:], (0.0, 0.3, 0.25), (0.2, 0.1, 0.4)]
        others = len(self.classes) - (self.classes[0] == "background")
        colours = [(0.92, 0.92, 0.92)] * (len(self.classes) - others) + [vivid[i % len(vivid)] for i in range(others)]
        palette = ListedColormap(colours).with_extremes(bad="black")
        heights = [SIDE * min(1.0, image.shape[0] / image.shape[1]) for image, _, _ in self.chosen]
        legend = 0.2 * (len(self.classes) // 3 + 2)
        figure, axes = plt.subplots(
            len(self.chosen), 3, figsize=(3 * SIDE, sum(heights) + legend), squeeze=False, layout="constrained",
            height_ratios=heights,
        )  # fmt: skip
        for row, (image, truth, predicted) in zip(axes, self.chosen, strict=True):
            row[0].imshow(image)
            for axis, mask in zip(row[1:], (truth, predicted), strict=True):
                shown = np.ma.masked_equal(mask, IGNORED)
                axis.imshow(shown, cmap=palette, vmin=-0.5, vmax=len(self.classes) - 0.5, interpolation="nearest")
            for axis in row:
                axis.set_axis_off()
        for axis, title in zip(axes[0], ("image", "truth", "prediction"), strict=True):
            axis.set_title(title)
        figure.legend(
            handles=[
                Patch(color=colour, label=name)
                for colour, name in zip([*colours, "black"], [*self.classes, "ignored"], strict=True)
            ],
            loc="outside lower center", ncols=3, fontsize=8, frameon=False,
        )  # fmt: skip
        picture = BytesIO()
        figure.savefig(picture, format="png", dpi=110)
        plt.close(figure)
        return picture.getvalue()

"""What detection and segmentation share: trials, their mean scores, checks of a library, sheets of predictions."""

from __future__ import annotations

import logging
import os
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, field
from importlib.util import find_spec
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.datasets.lists import fingerprint
from benchmarks.task import InputError, Labels, Outcome, RunOptions
from results.files import locked_folder
from results.schema import Protocol, Score, canonical_sha256

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from benchmarks.encoders.encoder import Encoder

log = logging.getLogger(__name__)

IGNORED = 255  # mask value of VOC's object borders, of what Cityscapes does not evaluate, and of padding
KEPT_CHECKPOINTS = 2  # where a kill interrupts the writing of one, the one before is still whole


def require_packages(purpose: str, *packages: str) -> None:
    """Raises InputError where one of these optional packages is not installed."""
    missing = [name for name in packages if not find_spec(name)]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise InputError(f"{purpose} needs {', '.join(missing)}, which {verb} not installed; run `make setup-transfer`")


@contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Without warnings and print statements of a library, and without log lines below errors of these loggers."""
    levels = {name: logging.getLogger(name).level for name in loggers}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@dataclass
class TrialScores:
    """What one trial measured.

    Attributes:
        columns: in percent; None where the test images cannot tell.
        per_class: column -> class -> percent. Classes without a value have no entry.
        areas: of segmentation, (N, 3, C) pixels of the intersection, the prediction and the truth.
    """

    columns: dict[str, float | None] = field(default_factory=dict)
    per_class: dict[str, dict[str, float]] = field(default_factory=dict)
    areas: NDArray[np.int64] | None = None

    def add(self, column: str, classes: Iterable[str], values: NDArray[np.float64]) -> None:
        """Add a column that is the mean over classes.

        Args:
            values: (C,) percent; NaN for a class that the test images do not show.
        """
        seen = np.isfinite(values)
        self.columns[column] = float(values[seen].mean()) if seen.any() else None
        self.per_class[column] = {name: float(v) for name, v in zip(classes, values, strict=True) if np.isfinite(v)}


class Trial(ABC):
    """One training run. Under torchrun every rank has its share of each batch.

    Args:
        batch_size: of all ranks together.
        folder: of the checkpoints, from which a killed run continues.
        options: `device` and `workers` are used; 0 workers load images in this process.

    Raises:
        InputError: the batch cannot be split evenly over the ranks.
    """

    def __init__(self, encoder: Encoder, batch_size: int, seed: int, folder: Path, options: RunOptions) -> None:
        from pretrain import distributed

        self.encoder, self.seed, self.folder, self.workers = encoder, seed, folder, options.loaders
        self.device = distributed.join(options.device)
        self.rank, self.ranks = distributed.rank(), distributed.world_size()
        if batch_size % self.ranks:
            raise InputError(
                f"a total batch of {batch_size} cannot be split evenly over {self.ranks} processes; start a number of "
                "processes that divides it, or change the batch with --set, which the protocol's id will show"
            )

    @abstractmethod
    def train(self, *, progress: bool = True) -> nn.Module:
        """The trained model. A killed run continues from its last whole checkpoint.

        Raises:
            FloatingPointError: the loss is no longer finite.
            Stopped: a signal asked for it; the state is saved.
        """

    @abstractmethod
    def measure(self, model: nn.Module, *, progress: bool = True, sheet: Sheet | None = None) -> TrialScores:
        """Scores on the test images, the same on every rank. `sheet` collects some of the predictions."""


def run_trials(
    protocol: Protocol,
    encoder: Encoder,
    train: Labels,
    test: Labels,
    workdir: Path,
    options: RunOptions,
    *,
    start: Callable[[int, Path], Trial],
    sheet: Sheet,
) -> Outcome:
    """Train and measure the protocol's trials, with the seeds `options.seed` and following; scores are their means.

    Args:
        start: seed and folder -> the trial.
        sheet: filled with predictions of the first trial.

    Raises:
        InputError: another process holds the folder of a trial. The libraries count and remove the checkpoints that
            they find there as their own.
    """
    key = canonical_sha256(
        [protocol.content_sha256(), encoder.card.weights_sha256, fingerprint(train), fingerprint(test)]
    )[:16]
    seeds = tuple(range(options.seed, options.seed + protocol.params["trials"]))
    outcome = Outcome(seeds=seeds, timing={"train": 0.0, "test": 0.0})
    measured: list[TrialScores] = []
    for seed in seeds:
        folder = workdir / key / f"trial-{seed}"
        first_rank = int(os.environ.get("RANK", "0")) == 0  # before the ranks have joined
        with locked_folder(folder) if first_rank else nullcontext():
            trial = start(seed, folder)
            started = time.monotonic()
            model = trial.train(progress=options.progress)
            outcome.timing["train"] += time.monotonic() - started
            started = time.monotonic()
            shown = sheet if seed == options.seed and trial.rank == 0 else None
            measured.append(trial.measure(model, progress=options.progress, sheet=shown))
            outcome.timing["test"] += time.monotonic() - started
        outcome.runs.append({"trial": seed, **{column: measured[-1].columns[column] for column in protocol.columns}})
    if png := sheet.png():
        outcome.pictures["sheet"] = png
    if areas := [scores.areas for scores in measured if scores.areas is not None]:
        outcome.items["iou/mIoU"] = np.sum(areas, axis=0)
    for column in protocol.columns:
        values = [value for scores in measured if (value := scores.columns[column]) is not None]
        outcome.scores[column] = Score(
            value=float(np.mean(values)) if values else None,
            std=float(np.std(values)) if len(values) > 1 else None,
            n=len(test),
            selection=protocol.selection,
        )
        of_classes = [scores.per_class[column] for scores in measured if column in scores.per_class]
        if of_classes:
            outcome.per_class[column] = {
                name: float(np.mean([of[name] for of in of_classes]))
                for name in of_classes[0]
                if all(name in of for of in of_classes)
            }
    return outcome


def last_whole_checkpoint(files: Iterable[Path], load: Callable[[Path], Any]) -> Path | None:
    """The first of these files that `load` can read; one that a kill interrupted cannot be read."""
    for path in files:
        try:
            load(path)
        except Exception as error:
            log.warning("%s cannot be read and is skipped: %s", path, error)
        else:
            return path
    return None


def require_same_tensors(name: str, loaded: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Check that the backbone of a built network holds the encoder's weights.

    Args:
        name: of the encoder.

    Raises:
        RuntimeError: a tensor differs, or exists on one side only. That is a fault of this project or of the library.
    """
    differing = sorted(set(loaded) ^ set(expected)) or [
        tensor for tensor, value in sorted(loaded.items()) if not value.cpu().equal(expected[tensor].cpu())
    ]
    if differing:
        raise RuntimeError(
            f"{name}: {len(differing)} of the backbone's tensors are not the checkpoint's: {', '.join(differing[:3])}"
        )


class Sheet(ABC):
    """A picture of the truth and the predictions of a few test images.

    Args:
        classes: names, in the order of the class indices.
    """

    def __init__(self, classes: tuple[str, ...], *, images: int = 8) -> None:
        self.classes, self.images = classes, images
        self.chosen: list[Any] = []

    def png(self) -> bytes | None:
        """The picture; None where no image was taken."""
        if not self.chosen:
            return None
        import matplotlib

        matplotlib.use("agg")
        from matplotlib import pyplot as plt

        figure = self.draw(plt)
        picture = BytesIO()
        figure.savefig(picture, format="png", dpi="figure")
        plt.close(figure)
        return picture.getvalue()

    @abstractmethod
    def look(self, item: Any, predicted: Any) -> None:
        """Take a test image and its prediction, unless the sheet is full or the image shows too little."""

    @abstractmethod
    def draw(self, plt: Any) -> Any:
        """A matplotlib figure of `self.chosen`."""


def mask_figure(
    shown: Sequence[tuple[NDArray[np.uint8], NDArray[Any], NDArray[Any]]], classes: Sequence[str]
) -> Figure:
    """Images with their true and predicted masks side by side, and a legend of the classes that occur.

    Args:
        shown: (H, W, 3) pixels and two (H, W) masks of class indices or `IGNORED`, of each image.
    """
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    values = {int(value) for _, *masks in shown for mask in masks for value in np.unique(mask)}
    occurring = sorted(values - {IGNORED})
    paired = colormaps["tab20"].colors  # type: ignore[attr-defined]
    vivid = [*paired[:14], *paired[16:]]  # without the greys, which look like a background
    colours = [
        (0.92, 0.92, 0.92) if classes[index] == "background" else vivid[place % len(vivid)]
        for place, index in enumerate(occurring)
    ]
    place = np.full(256, len(occurring))
    place[occurring] = np.arange(len(occurring))
    palette = ListedColormap([*colours, (0.0, 0.0, 0.0)])
    side = 2.0  # inches of a picture
    heights = [side * min(1.0, pixels.shape[0] / pixels.shape[1]) for pixels, _, _ in shown]
    legend = 0.2 * (len(occurring) // 4 + 2)
    figure = Figure(figsize=(3 * side, sum(heights) + legend), layout="constrained", dpi=100)
    grid = figure.subplots(len(shown), 3, squeeze=False, height_ratios=heights)
    for axes, (pixels, *masks) in zip(grid, shown, strict=True):
        axes[0].imshow(pixels)
        for axis, mask in zip(axes[1:], masks, strict=True):
            axis.imshow(place[mask], cmap=palette, vmin=-0.5, vmax=len(occurring) + 0.5, interpolation="nearest")
        for axis in axes:
            axis.set_axis_off()
    for axis, title in zip(grid[0], ("image", "truth", "prediction"), strict=True):
        axis.set_title(title)
    handles = [Patch(color=c, label=classes[i]) for c, i in zip(colours, occurring, strict=True)]
    handles += [Patch(color="black", label="ignored")] if IGNORED in values else []
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=7, frameon=False)
    return figure

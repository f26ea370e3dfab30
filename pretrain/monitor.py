"""Progress of a run: a row per epoch in log.csv and TensorBoard, the curves, and two classifiers on the backbone.

One is kNN on held-out images. The other learns during pretraining, on the features of the training batches; no gradient
of it reaches the encoder and nothing is drawn from any generator, so that a run with it and a run without it have the
same weights bit by bit.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, Subset
from torchvision.transforms import functional as TF

from pretrain import distributed
from pretrain.data import Files
from pretrain.distributed import AUTOCAST, DataLoader
from pretrain.recipe import Recipe
from results.files import replacing, write_file

MonitorRow = dict[str, float]
LOG, CURVES, EVENTS = "log.csv", "curves.png", "tensorboard"
KNN, PROBE, RANK = "knn", "probe", "effective_rank"
ONLINE, ONLINE_TRAIN = "online_probe", "online_probe_train"  # on held-out images, and on the views as they are learnt
COLLAPSED_RANK, COLLAPSED_SPREAD, AT_CHANCE = 2.0, 0.05, 0.99  # an effective rank of 1 is a single direction
Labelled = tuple[Files, NDArray[np.int64]]  # images and their classes
Features = NDArray[np.float32]
# This rank's part of the gallery's features and the classes of all of it, features and classes of this rank's queries,
# and the device that searches, to (Q,) whether each query is right. All ranks call it together.
ClassifyRows = Callable[[Tensor, NDArray[np.int64], Features, NDArray[np.int64], torch.device], NDArray[np.bool_]]
PROBE_LR = 1e-3  # of the online probe's Adam, the same from the first step to the last; this project's own choice
UNKNOWN = -1  # target of an image without a class
MARGIN = 256 / 224  # of the shorter side over the crop, as in the frozen-feature protocols


def write_log(path: Path, rows: Sequence[MonitorRow]) -> None:
    """One line per epoch; the kNN column is empty where the monitor did not run."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="")
    writer.writeheader()
    writer.writerows(rows)
    write_file(path, text.getvalue())


class Events:
    """TensorBoard's event files in one folder.

    Args:
        step: events after it, of a process that was killed, are hidden.
        write: only the first rank does.
    """

    def __init__(self, folder: Path, step: int, *, write: bool) -> None:
        self.writer = None
        if write:
            from torch.utils.tensorboard import SummaryWriter  # a second to import

            self.writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)
            # Not add_scalars, whose writers of their own would not hide what a killed process wrote.
            self.writer.add_custom_scalars({"pretraining": {"loss": ["Multiline", ["^loss$", "^chance_loss$"]]}})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.writer:
            self.writer.close()

    def add(self, row: MonitorRow, step: int) -> None:
        """The row's values at the global step; the loss and its chance line share a diagram under custom scalars."""
        if self.writer is None:
            return
        for name in row.keys() - {"epoch"}:
            self.writer.add_scalar(name, row[name], step)


def collapse(row: MonitorRow) -> str:
    """Why the encoder of an epoch says the same of every image; empty where it does not.

    The loss alone does not decide: in the first epochs it is at chance in healthy runs too.
    """
    faults = []
    if row.get(RANK, COLLAPSED_RANK) < COLLAPSED_RANK:
        faults.append(f"the effective rank of its features is {row[RANK]:.2f}")
    if row.get("spread", 1.0) < COLLAPSED_SPREAD:
        faults.append(f"its embeddings spread by {row['spread']:.3f}, where 1 is even")
    if not faults:
        return ""
    if row["loss"] >= AT_CHANCE * row["chance_loss"]:
        faults.append(f"the loss of {row['loss']:.3f} is at chance")
    return ", ".join(faults) + "; stop the run, and lower lr or check augmentation and precision"


def draw_monitor_curves(path: Path, rows: Sequence[MonitorRow], title: str) -> None:
    """Loss with its chance line, accuracy of the pretext task, and the kNN monitor where it ran, over the epochs."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    epochs = [row["epoch"] for row in rows]
    figure = Figure(figsize=(7, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    style = ".-" if len(rows) < 50 else "-"  # points mark the epochs of short curves
    above.plot(epochs, [row["loss"] for row in rows], style, label="loss")
    above.plot(epochs, [row["chance_loss"] for row in rows], "--", color="gray", label="chance")
    above.set(ylabel="loss", title=title)
    below.plot(epochs, [100 * row["accuracy"] for row in rows], style, label="pretext accuracy")
    monitored = [row for row in rows if KNN in row]
    if monitored:
        below.plot([r["epoch"] for r in monitored], [r[KNN] for r in monitored], ".-", label="kNN on held-out images")
    for column, mark, label in (
        (PROBE, ".--", "probe on held-out images"),
        (ONLINE, ".-.", "online probe on held-out images"),
        (ONLINE_TRAIN, ":", "online probe on training views"),
    ):
        probed = [row for row in rows if column in row]
        if probed:
            below.plot([r["epoch"] for r in probed], [r[column] for r in probed], mark, label=label)
    below.set(xlabel="epoch", ylabel="%", ylim=(0, 100))
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (above, below):
        axes.legend()
        axes.grid(alpha=0.3)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120, metadata={"Software": None})


def row_text(row: MonitorRow) -> str:
    """A row for a log line."""
    return ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "epoch")


class _Centre(Dataset[Tensor]):
    """(3, crop, crop) uint8. An image that is as small as the crop already is only cut."""

    def __init__(self, files: Files, crop: int) -> None:
        self.files, self.crop = files, crop

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        image = self.files.read(self.files.paths[index])
        if min(image.size) != self.crop:
            image = TF.resize(image, round(self.crop * MARGIN))
        return TF.pil_to_tensor(TF.center_crop(image, [self.crop, self.crop]))


class DrawnViews(Dataset[Tensor]):
    """(3, crop, crop) uint8: so many random views of each image, one image after the other.

    Args:
        draw: (image, its number, number of the view) to (crop, crop, 3) pixels.
    """

    def __init__(self, files: Files, views: int, draw: Callable[[Image.Image, int, int], NDArray[np.uint8]]) -> None:
        self.files, self.views, self.draw = files, views, draw

    def __len__(self) -> int:
        return len(self.files) * self.views

    def __getitem__(self, index: int) -> Tensor:
        number, view = divmod(index, self.views)
        pixels = self.draw(self.files.read(self.files.paths[number]), number, view)
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


@contextmanager
def evaluating(backbone: nn.Module) -> Iterator[None]:
    """In evaluation mode, and afterwards in the mode that it was in."""
    was_training = backbone.training
    backbone.eval()
    try:
        yield
    finally:
        backbone.train(was_training)


class KnnMonitor:
    """Classifies held-out labelled images by their neighbours in a labelled gallery.

    The ranks share the work: each has the features of its own part of the gallery and of the queries.

    Args:
        gallery, queries: disjoint; neither decides anything in the training.
        classify: the search and the vote.
        limit: most images of each that are used, evenly spaced, so that a large set does not stop the training.
    """

    def __init__(
        self,
        gallery: Labelled,
        queries: Labelled,
        classify: ClassifyRows,
        recipe: Recipe,
        device: torch.device,
        workers: int,
        limit: int = 50_000,
    ) -> None:
        self.gallery, self.queries = _thinned(gallery, limit), _thinned(queries, limit)
        self.classify, self.recipe, self.device, self.workers = classify, recipe, device, workers
        self.mean = torch.tensor(recipe.mean, device=device)[:, None, None]
        self.std = torch.tensor(recipe.std, device=device)[:, None, None]

    def __call__(self, backbone: nn.Module) -> float:
        """Accuracy in percent, the same on every rank, and every rank must call it.

        The backbone is left as it was; nothing is drawn from any generator of the run.
        """
        with evaluating(backbone):
            gallery, queries = (self._features(backbone, files) for files, _ in (self.gallery, self.queries))
        own = self.queries[1][distributed.own_slice(len(self.queries[0]))]
        found = self.classify(gallery, self.gallery[1], queries.cpu().numpy(), own, self.device)
        total = distributed.sum_(torch.tensor(int(found.sum()), device=self.device))
        return 100 * (int(total) / len(self.queries[0]))

    def _features(self, backbone: nn.Module, files: Files) -> Tensor:
        """(N, D) of this rank's part of the files."""
        own = distributed.own_slice(len(files))
        centres = _Centre(files, self.recipe.augmentation.crop)
        return self.features_of(backbone, Subset(centres, range(own.start, own.stop)), own.stop - own.start)

    @torch.inference_mode()
    def features_of(self, backbone: nn.Module, images: Dataset[Tensor], count: int) -> Tensor:
        """(count, D) float32 on the device, of (3, crop, crop) uint8 images by a backbone in evaluation mode."""
        generator = torch.Generator()  # else the loader draws its workers' seed from the run's
        loader: DataLoader[Tensor] = DataLoader(
            images,
            batch_size=256,
            num_workers=self.workers,
            generator=generator,
            pin_memory=self.device.type == "cuda",
        )
        precision = self.recipe.precision
        found = [] if count else [torch.zeros(0, *self._width(backbone), device=self.device)]
        for batch in loader:
            x = (batch.to(self.device, non_blocking=True).float() / 255 - self.mean) / self.std
            # As in training: a GPU that trains in fp16 may be older than bf16, which cuDNN then leaves to slow kernels.
            with torch.autocast(self.device.type, AUTOCAST.get(precision), enabled=precision in AUTOCAST):
                found.append(backbone(x.contiguous(memory_format=torch.channels_last)).float())
        return torch.cat(found)

    def _width(self, backbone: nn.Module) -> torch.Size:
        crop = self.recipe.augmentation.crop
        return backbone(torch.zeros(1, 3, crop, crop, device=self.device)).shape[1:]


def _thinned(labelled: Labelled, limit: int) -> Labelled:
    files, classes = labelled
    if len(files) <= limit:
        return labelled
    kept = np.linspace(0, len(files) - 1, limit).round().astype(int)
    return replace(files, paths=tuple(files.paths[i] for i in kept)), classes[kept]


# ---- the online probe


class OnlineProbe:
    """Softmax regression on the standardised features of each batch, one step of Adam for each step of the encoder.

    The features of a batch are those of its augmented views, standardised by the batch while learning and by running
    statistics on held-out images. All ranks' features are gathered, and every rank takes the same step.

    Args:
        classes: (N,) the class of every training image, or `UNKNOWN`.
        count: number of classes.
        device: of the training.
    """

    def __init__(self, classes: NDArray[np.int64], count: int, device: torch.device) -> None:
        self.classes, self.count, self.device = torch.from_numpy(classes).to(device), count, device

    def start(self, width: int) -> None:
        """A new classifier of features of this width. It starts from zeros, so that it draws nothing."""
        self.norm = nn.BatchNorm1d(width, affine=False).to(self.device)
        self.weight = nn.Parameter(torch.zeros(self.count, width, device=self.device))
        self.bias = nn.Parameter(torch.zeros(self.count, device=self.device))
        self.optimizer = torch.optim.Adam([self.weight, self.bias], lr=PROBE_LR)
        self.sums = torch.zeros(2, device=self.device)  # of this epoch: views classified right, and views of a class

    @torch.enable_grad()
    def update(self, features: Tensor, indices: Tensor) -> None:
        """Learn from a batch, after counting how many of its views are classified right. Does not wait for the device.

        Args:
            features: (V N, D) of this rank's images, one view after the other; may be one view's only. They must be
                detached from the encoder.
            indices: (N,) numbers of the images.
        """
        classes = distributed.gather(self.classes[indices].repeat(len(features) // len(indices)))
        rows = distributed.gather(features.detach().float())
        known = (classes != UNKNOWN).sum()
        logits = self._logits(rows, learn=True)
        loss = F.cross_entropy(logits, classes, ignore_index=UNKNOWN, reduction="sum") / known.clamp(min=1)
        self.sums += torch.stack([(logits.detach().argmax(dim=1) == classes).sum(), known])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def _logits(self, rows: Tensor, *, learn: bool) -> Tensor:
        self.norm.train(learn)
        return F.linear(self.norm(rows), self.weight, self.bias)

    def accuracy(self) -> float | None:
        """Percent of this epoch's views that were classified right before they were learnt from; starts a new epoch."""
        right, known = self.sums.tolist()
        self.sums.zero_()
        return 100 * right / known if known else None

    @torch.no_grad()
    def right(self, features: NDArray[np.float32], targets: NDArray[np.int64]) -> int:
        """How many held-out images are classified right; (N, D) features and (N,) classes."""
        if not len(features):
            return 0
        found = self._logits(torch.from_numpy(features).to(self.device), learn=False).argmax(dim=1)
        return int((found.cpu() == torch.from_numpy(targets)).sum())

    def state(self) -> dict[str, Any]:
        """Tensors and plain values, from which `load` goes on bit by bit."""
        return {
            "weight": self.weight.detach(),
            "bias": self.bias.detach(),
            "norm": self.norm.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sums": self.sums,
        }

    @torch.no_grad()
    def load(self, state: dict[str, Any]) -> bool:
        """Go on from a `state`. False, and nothing is changed, where it is of other classes or another width."""
        if state["weight"].shape != self.weight.shape:
            return False
        self.weight.copy_(state["weight"])
        self.bias.copy_(state["bias"])
        self.norm.load_state_dict(state["norm"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.sums.copy_(state["sums"])
        return True

"""A kNN classifier on the backbone's features, run now and then while the backbone is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional as TF

from pretrain.recipe import Recipe
from pretrain.sources import Files

Labelled = tuple[Files, NDArray[np.int64]]  # images and their classes
Features = NDArray[np.float32]
# Gallery features and classes, query features and classes, to the share of queries that are classified right.
Classifier = Callable[[Features, NDArray[np.int64], Features, NDArray[np.int64]], float]
MARGIN = 256 / 224  # of the shorter side over the crop, as in the frozen-feature protocols


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


class KnnMonitor:
    """Classifies held-out labelled images by their neighbours in a labelled gallery.

    Args:
        gallery, queries: disjoint; neither decides anything in the training.
        classify: the search and the vote.
        limit: most images of each that are used, evenly spaced, so that a large set does not stop the training.
    """

    def __init__(
        self,
        gallery: Labelled,
        queries: Labelled,
        classify: Classifier,
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
        """Accuracy in percent. The backbone is left as it was; nothing is drawn from any generator of the run."""
        was_training = backbone.training
        backbone.eval()
        try:
            features = [self._features(backbone, files) for files, _ in (self.gallery, self.queries)]
        finally:
            backbone.train(was_training)
        return 100 * self.classify(features[0], self.gallery[1], features[1], self.queries[1])

    @torch.inference_mode()
    def _features(self, backbone: nn.Module, files: Files) -> Features:
        generator = torch.Generator()  # else the loader draws its workers' seed from the run's
        images = DataLoader(
            _Centre(files, self.recipe.augmentation.crop),
            batch_size=256,
            num_workers=self.workers,
            generator=generator,
        )
        found = []
        for batch in images:
            x = (batch.to(self.device).float() / 255 - self.mean) / self.std
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision != "fp32"):
                found.append(backbone(x.contiguous(memory_format=torch.channels_last)).float().cpu())
        return torch.cat(found).numpy()


def _thinned(labelled: Labelled, limit: int) -> Labelled:
    files, classes = labelled
    if len(files) <= limit:
        return labelled
    kept = np.linspace(0, len(files) - 1, limit).round().astype(int)
    return replace(files, paths=tuple(files.paths[i] for i in kept)), classes[kept]

"""What else the card might have said: the ways in which people feed pixels to networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from results.schema import EncoderCard, Triple

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
CAFFE_MEAN: Triple = (103.53, 116.28, 123.675)  # BGR, of detectron2's and OpenMMLab's Caffe networks
LEVEL = 0.05  # of audits of a right card may find something against it by luck
_WRONG = "the card is probably wrong"


@dataclass(frozen=True)
class Variation:
    """A card that differs from the encoder's in one way, or the encoder's own with batch statistics.

    Attributes:
        name: what it varies.
        words: as they follow "scores 2.0 points higher".
        conclusion: what to think if it does score higher.
    """

    name: str
    words: str
    card: EncoderCard
    batch_statistics: bool = False
    conclusion: str = _WRONG


def variations(card: EncoderCard, batch_norms: bool) -> list[Variation]:
    """Every variation that feeds the network something else than the card does, each once."""

    def ordered(rgb: Triple) -> Triple:
        return rgb if card.channels == "RGB" else _reversed(rgb)

    def with_(name: str, words: str, **fields: object) -> Variation:
        return Variation(name, words, card.model_copy(update=fields))

    zeros, ones = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    scale = card.value_range
    mean, std = ordered(IMAGENET_MEAN), ordered(IMAGENET_STD)
    other, other_range = ("BGR" if card.channels == "RGB" else "RGB"), (1.0 if scale == 255 else 255.0)
    found = [
        with_("channels", f"as {other}", channels=other, mean=_reversed(card.mean), std=_reversed(card.std)),
        with_("mean", "without its mean subtracted", mean=zeros)
        if any(card.mean)
        else with_("mean", "with ImageNet's mean subtracted", mean=_times(mean, scale)),
        with_("std", "without its division by std", std=ones)
        if card.std != ones
        else with_("std", "divided by ImageNet's std", std=_times(std, scale)),
        with_("range", f"on pixels of 0 to {other_range:g}, mean and std as they are", value_range=other_range),
        with_("ImageNet", "with ImageNet's mean and std", value_range=1.0, mean=mean, std=std),
        with_("-1 to 1", "on pixels of -1 to 1", value_range=1.0, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        with_("0 to 1", "on pixels of 0 to 1 without normalisation", value_range=1.0, mean=zeros, std=ones),
        with_("0 to 255", "on pixels of 0 to 255 without normalisation", value_range=255.0, mean=zeros, std=ones),
        with_("Caffe", "as Caffe's networks (BGR of 0 to 255, mean subtracted)",
              channels="BGR", value_range=255.0, mean=CAFFE_MEAN, std=ones),
    ]  # fmt: skip
    known = [_fed(card)]
    kept: list[Variation] = []
    for variation in found:
        if _fed(variation.card) not in known:
            known.append(_fed(variation.card))
            kept.append(variation)
    if batch_norms:
        kept.append(
            Variation(
                "batch statistics",
                "with the batch norms on batch statistics",
                card,
                batch_statistics=True,
                conclusion="the running statistics in the file do not fit these images, or are damaged",
            )
        )
    return kept


def levels(found: Sequence[Variation]) -> list[float]:
    """How `LEVEL` is shared out (Bonferroni, weighted): half of it goes to the channel order.

    That is the commonest fault and the one with the smallest effect; all others change the features a lot.
    """
    others = sum(variation.name != "channels" for variation in found)
    return [LEVEL / 2 if variation.name == "channels" else LEVEL / 2 / others for variation in found]


def _fed(card: EncoderCard) -> tuple[object, ...]:
    """The channel order, and what black and white become."""
    black = tuple(round(-m / s, 4) for m, s in zip(card.mean, card.std, strict=True))
    white = tuple(round((card.value_range - m) / s, 4) for m, s in zip(card.mean, card.std, strict=True))
    return card.channels, black, white


def _reversed(values: Triple) -> Triple:
    return values[2], values[1], values[0]


def _times(values: Triple, factor: float) -> Triple:
    return values[0] * factor, values[1] * factor, values[2] * factor

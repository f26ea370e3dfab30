"""What a fine-tuning protocol says, typed: `Protocol.params` of this harness."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from benchmarks.overrides import typed
from benchmarks.training.settings import NotNegative, Rates, TrainingSettings
from results.schema import Protocol


class FineTuneSettings(TrainingSettings):
    """The encoder's network and a fresh linear layer on its embedding, trained together by SGD.

    Every batch norm takes its statistics over the whole batch, on however many ranks that lies. A grid has a cell for
    each pair of `lrs` and `head_multipliers`; each cell is a protocol of its own, with one of each.

    Attributes:
        lrs: rates of the backbone, for the whole batch.
        head_multipliers: the linear layer's rate is that many times the backbone's.
        weight_decay: of every parameter, those of batch norms and biases too.
        head_init: `normal` draws the weights from N(0, 0.01) and sets the bias to 0; `default` is torch's.
        labelled: fraction of every class of train that has labels here, at least one image; 1 is all of train.
        heldout: fraction of what is labelled that is chosen by. A cell is trained twice, without that part, for the
            choice, and on all; with 0 a cell is trained once, and only the choice on test is left.
    """

    lrs: Rates
    head_multipliers: Rates = (1.0,)
    weight_decay: NotNegative
    head_init: Literal["normal", "default"] = "normal"
    labelled: float = Field(1.0, gt=0.0, le=1.0)

    @property
    def grid(self) -> tuple[tuple[float, float], ...]:
        """The (rate, head multiplier) of every cell."""
        return tuple((lr, multiplier) for lr in self.lrs for multiplier in self.head_multipliers)


def finetune_settings(protocol: Protocol) -> FineTuneSettings:
    """The typed `params` of a protocol; raises as `typed`."""
    return typed(FineTuneSettings, protocol)

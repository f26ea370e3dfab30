"""MoCo's own work in a step beside the bare passes of its encoders."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.cost import Stepper
from pretrain.moco import MoCo
from pretrain.speed.entry import entry, seconds_of
from pretrain.speed.setting import BATCH, CPU, moco_v2


def measure_overhead() -> dict[str, Any]:
    """EMA, queue, logits, loss and shuffle, on stand-ins for the encoders, beside the encoders' passes."""
    stepper = Stepper(moco_v2(precision="bf16"), CPU)
    model = stepper.model
    assert isinstance(model, MoCo)
    stepper.step()
    bare_passes(stepper)
    passes = statistics.median(bare_passes(stepper) for _ in range(3))
    ema = statistics.median(seconds_of(model.update_key_encoder) for _ in range(9))
    stand_in = _StandIn(BATCH, 128)
    model.add_module("encoder_q", stand_in)
    model.add_module("encoder_k", stand_in)

    def own() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(stepper.batch).loss
        loss.backward()

    own()
    rest = statistics.median(seconds_of(own) for _ in range(9))
    return entry(
        "moco-overhead",
        ema + rest,
        passes,
        "the bare passes: query forward and backward, key forward",
        0.05 * passes,
        "5 % of the passes",
        f"{100 * (ema + rest) / passes:.1f} % on top of the passes: EMA {1000 * ema:.0f} ms, shuffle, logits over "
        f"65,536 keys, loss and queue {1000 * rest:.0f} ms; batch {BATCH}, 224 pixels, bfloat16",
    )


def bare_passes(stepper: Stepper) -> float:
    """Query forward and backward, key forward without gradient."""
    model, images = stepper.model, stepper.batch.views[0]
    assert isinstance(model, MoCo)

    def passes() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            q = model.encoder_q(images)
            with torch.no_grad():
                model.encoder_k(images)
        q.sum().backward()

    return seconds_of(passes)


class _StandIn(nn.Module):
    """An encoder without work."""

    def __init__(self, n: int, dim: int) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(F.normalize(torch.randn(n, dim), dim=1))

    def forward(self, images: Tensor) -> Tensor:
        return self.embeddings * 1

"""The grid of DINOv2's linear evaluation against heads trained one at a time on joined features."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.datasets.images import apply_geometry, decode
from benchmarks.evaluate import prepare
from benchmarks.linear import AvgPoolLinear, LinearGrid, LinearGridParams
from benchmarks.registry import find_protocol
from benchmarks.task import InputError, NotApplicableError
from benchmarks.training.images import TrainingBatches, training_view, view_rng
from benchmarks.training.task import held_out
from results.schema import Protocol
from tests.builders import GEOMETRY, folder_protocol
from tests.reference.linear_plain import PlainHead, train_plain_sgd
from tests.reference.linear_probes import OPTIONS
from tests.reference.linear_tiny import TinyEncoder, tiny_labels

TOKENS = ("cls", "cls_last4", "patch_mean")
SMALL = LinearGridParams(lrs=(0.02, 0.5), epochs=3, batch_size=8, heldout=0.25, choose_epoch="last")


class TokenEncoder(TinyEncoder):
    """Vectors named as a ViT's tokens, all different."""

    def __init__(self, names: Collection[str] = TOKENS) -> None:
        super().__init__(names=names)

    def outputs(self, images: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        last = super().outputs(images, ["feature2"])["feature2"]
        cls = last[:, :, 0, 0]
        found = {
            "cls": cls,
            "cls_last4": torch.cat([last[:, :, 1, 1], last[:, :, 2, 1], last[:, :, 1, 2], cls], dim=1),
            "patch_mean": last.mean((2, 3)),
        }
        return {name: found[name] for name in names}


def protocol(params: LinearGridParams) -> Protocol:
    return folder_protocol(params, "linear-grid", "Linear grid", benchmark="linear_grid")


def joined(views: list[np.ndarray], outputs: tuple[str, ...]) -> Tensor:
    encoder = TokenEncoder()
    images = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2)
    found = encoder.outputs(encoder.normalise(images), outputs)
    return torch.cat([found[name] for name in outputs], dim=1)


def test_every_head_is_a_head_trained_alone_on_joined_tokens(tmp_path: Path) -> None:
    train, test = tiny_labels(tmp_path, "train", 8, seed=0), tiny_labels(tmp_path, "val", 6, seed=1)
    encoder = TokenEncoder()
    outcome = LinearGrid().run(protocol(SMALL), encoder, train, test, tmp_path / "work", OPTIONS)
    kept, _ = held_out(train, 0.25, OPTIONS.seed)
    steps = -(-len(kept) // 8)
    assert encoder.passes == 1 + 3 * steps + 2  # shapes, training, held-out part, test
    batches = list(TrainingBatches(kept, 8, OPTIONS.seed, 0, 3 * steps))
    factors = [0.5 * (1 + math.cos(math.pi * step / len(batches))) for step in range(len(batches))]
    fixed = [np.asarray(apply_geometry(decode(path), GEOMETRY)) for path in test.paths]
    rows = []
    for number, (bank, outputs) in enumerate(SMALL.banks().items()):
        assert bank == "+".join(outputs)
        views = [
            [training_view(decode(train.paths[i]), SMALL, GEOMETRY, view_rng(OPTIONS.seed, e, i))[0] for e, i in batch]
            for batch in batches
        ]
        seen = [
            (joined(v, outputs), torch.from_numpy(train.targets[[i for _, i in batch]]))
            for v, batch in zip(views, batches, strict=True)
        ]
        width = seen[0][0].shape[1]
        generator = torch.Generator().manual_seed(OPTIONS.seed * 4 + number)
        first = torch.empty(3, width).normal_(0, 0.01, generator=generator)
        for lr in SMALL.lrs:
            head = PlainHead(first, width, "none")
            train_plain_sgd(head, seen, factors, lr=lr, momentum=0.9, weight_decay=0.0, nesterov=False)
            right = head(joined(fixed, outputs)).argmax(dim=1) == torch.from_numpy(test.targets)
            rows.append((bank, lr, 100 * right.double().mean().item(), head))
    assert [(row["output"], row["lr"]) for row in outcome.runs] == [(bank, lr) for bank, lr, *_ in rows]
    assert [row["last_top1"] for row in outcome.runs] == pytest.approx([accuracy for *_, accuracy, _ in rows])
    (chosen,) = [number for number, row in enumerate(outcome.runs) if row["chosen"]]
    by_held_out = [(-row["heldout_top1"], row["heldout_loss"]) for row in outcome.runs]
    assert by_held_out[chosen] == min(by_held_out)
    assert outcome.scores["Linear grid"].value == pytest.approx(rows[chosen][2])
    assert outcome.scores["Linear grid oracle"].value == pytest.approx(max(row["best_top1"] for row in outcome.runs))
    torch.testing.assert_close(outcome.tensors["Linear grid/weight"], rows[chosen][3].fc.weight, rtol=1e-4, atol=1e-5)


def test_dinov2_has_52_heads_and_own_data_need_one_pass_with_the_linear_probe() -> None:
    task = LinearGrid()
    heads = {p.variant: len(task.params(p).grid) * len(task.params(p).banks()) for p in task.protocols}
    assert (heads["dinov2"], heads["dinov3"]) == (52, 13)
    for variant in ("demo", "imagefolder"):
        pair = find_protocol(f"linear_grid.{variant}"), find_protocol(f"linear_avgpool.{variant}")
        assert task.shared_pass(pair[0]) == AvgPoolLinear().shared_pass(pair[1])


def test_an_encoder_without_class_token_is_refused_before_data_are_read(tmp_path: Path) -> None:
    encoder = TokenEncoder(["patch_mean"])
    with pytest.raises(NotApplicableError, match=r"tiny has no cls, cls_last4.*it needs a vision transformer"):
        prepare(LinearGrid(), find_protocol("linear_grid.dinov2"), encoder, tmp_path / "absent", options=OPTIONS)
    assert find_protocol("linear_grid.dinov3").changed(mean=("without",)).id.endswith("+mean=without")
    with pytest.raises(InputError, match="must not repeat a value"):
        find_protocol("linear_grid.dinov2").changed(blocks=(1, 1))

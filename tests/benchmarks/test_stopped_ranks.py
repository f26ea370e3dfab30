"""Two ranks that are told to stop save inside the epoch, and one process goes on from there."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.finetune import FineTuneImageNet, FineTuneParams
from benchmarks.linear import AvgPoolLinear
from benchmarks.task import RunOptions
from benchmarks.training.task import TrainingParams
from tests.builders import folder_protocol
from tests.reference.finetune_plain import tiny_encoder
from tests.reference.linear_probes import MAPS
from tests.reference.linear_tiny import TinyEncoder, tiny_labels

ROOT = Path(__file__).parents[2]
OPTIONS = RunOptions(device="cpu", workers=0, seed=3, progress=False)
TUNED = FineTuneParams(lrs=(0.05,), head_multipliers=(10.0,), weight_decay=1e-3, epochs=2, drops=(1,), batch_size=6)
CASES: dict[str, tuple[Any, TrainingParams, Any, str]] = {
    "linear": (AvgPoolLinear, MAPS.changed(batch_size=6, lrs=(0.05,)), TinyEncoder, "resume.pt"),
    "finetune": (FineTuneImageNet, TUNED, tiny_encoder, "all.pt"),
}

# The scheduler tells both ranks in the second step of the second epoch; rank 1 does its part of the step.
PROGRAM = """
import os, signal, sys
from pathlib import Path
from benchmarks.training import probes
from pretrain import distributed
from results.schema import Protocol
from tests.benchmarks.test_stopped_ranks import CASES, OPTIONS
from tests.reference.linear_tiny import tiny_labels
folder, name, last = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
batches = distributed.DataLoader.__iter__
def signalled(self):
    distributed.DataLoader.__iter__ = batches
    for step, batch in enumerate(batches(self)):
        if step == last:
            os.kill(os.getpid(), signal.SIGTERM)
        yield batch
distributed.DataLoader.__iter__ = signalled
data = tiny_labels(folder / "data", "train", 8, seed=0), tiny_labels(folder / "data", "val", 5, seed=1)
task, _, encoder, _ = CASES[name]
protocol = Protocol.model_validate_json((folder / "protocol.json").read_text())
task().run(protocol, encoder(), *data, folder / "state", OPTIONS)
"""


@pytest.mark.nightly
@pytest.mark.parametrize("name", CASES)
def test_one_process_goes_on_where_two_ranks_were_told_to_stop(name: str, tmp_path: Path) -> None:
    kind, params, encoder, file = CASES[name]
    asked = folder_protocol(params, kind.name, params.columns()[0], benchmark="test")
    (tmp_path / "protocol.json").write_text(asked.model_dump_json())
    data = tiny_labels(tmp_path / "data", "train", 8, seed=0), tiny_labels(tmp_path / "data", "val", 5, seed=1)
    per_epoch = 3 if name == "linear" else 4
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path), name, str(per_epoch + 1)],
            cwd=ROOT, env={**common, "RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.DEVNULL,
        )
        for rank in ("0", "1")
    ]  # fmt: skip
    try:
        assert ranks[0].wait(timeout=240) == 128 + signal.SIGTERM
    finally:
        for rank in ranks:  # as torchrun does when one ends
            rank.kill()
    assert torch.load(tmp_path / "state" / file, weights_only=True)["steps"] == per_epoch + 2
    whole = kind().run(asked, encoder(), *data, tmp_path / "whole", OPTIONS)
    resumed = kind().run(asked, encoder(), *data, tmp_path / "state", OPTIONS)
    for row, expected in zip(resumed.runs, whole.runs, strict=True):
        assert row["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-3)
    states = [torch.load(tmp_path / where / file, weights_only=True) for where in ("whole", "state")]
    tensors = [state["network"] if name == "finetune" else state["banks"]["feature2"] for state in states]
    for key, tensor in tensors[0].items():
        torch.testing.assert_close(tensors[1][key], tensor, rtol=1e-3, atol=1e-4)

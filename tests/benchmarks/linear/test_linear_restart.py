"""Probes that are stopped, run on two ranks or share one pass: always the same as one alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.contract import Labels
from benchmarks.features.pool import AdaptivePooling
from benchmarks.linear.harness import can_share, run, run_together
from benchmarks.linear.settings import ProbeSettings
from tests.processes import run_two_ranks
from tests.reference.linear_probes import MAPS, ONE, probe, protocol, same
from tests.reference.linear_tiny import TinyEncoder, tiny_labels

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Labels, Labels]:
    folder = tmp_path_factory.mktemp("images")
    return tiny_labels(folder, "train", 8, seed=0), tiny_labels(folder, "val", 5, seed=1)


def test_a_finished_run_is_not_trained_again(data: tuple[Labels, Labels], tmp_path: Path) -> None:
    reference = probe(MAPS, data, tmp_path)
    encoder = TinyEncoder()
    assert same(probe(MAPS, data, tmp_path, encoder), reference)
    assert encoder.passes == 1
    other = probe(MAPS, data, tmp_path, seed=4)
    assert not same(other, reference)  # the state of another seed was not taken up


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.reference.linear_tiny import TinyEncoder, tiny_labels
from benchmarks.linear.harness import can_share, run, run_together
from results.schema import Protocol

class Killed(TinyEncoder):
    def outputs(self, images, names):
        if self.passes == 8:  # after the first epoch and before the last
            os.kill(os.getpid(), signal.SIGKILL)
        return super().outputs(images, names)

folder = Path(sys.argv[1])
data = tiny_labels(folder / "data", "train", 8, seed=0), tiny_labels(folder / "data", "val", 5, seed=1)
protocol = Protocol.model_validate_json((folder / "protocol.json").read_text())
run(protocol, Killed(), *data, workers=0, workdir=folder / "state", seed=3, progress=False)
"""


@pytest.mark.parametrize("settings", [ONE, MAPS], ids=["one head, best epoch", "banks on maps"])
def test_a_killed_run_goes_on_bit_for_bit(settings: ProbeSettings, data: tuple[Labels, Labels], tmp_path: Path) -> None:
    (tmp_path / "protocol.json").write_text(protocol(settings).model_dump_json())
    as_here = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, env=as_here, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["resume.pt"]
    whole, resumed = TinyEncoder(), TinyEncoder()
    reference = probe(settings, data, tmp_path / "whole", whole)
    assert same(probe(settings, data, tmp_path / "state", resumed), reference)
    assert resumed.passes < whole.passes  # it did go on, rather than begin again


RANK = """
import sys, torch
from pathlib import Path
from tests.reference.linear_tiny import TinyEncoder, tiny_labels
from benchmarks.linear.harness import can_share, run, run_together
from results.schema import Protocol
folder = Path(sys.argv[1])
data = tiny_labels(folder / "data", "train", 9, seed=0), tiny_labels(folder / "data", "val", 5, seed=1)
protocol = Protocol.model_validate_json((folder / "protocol.json").read_text())
outcome = run(protocol, TinyEncoder(), *data, workers=0, workdir=folder / "state", seed=3, progress=False)
if torch.distributed.get_rank() == 0:
    torch.save({"runs": outcome.runs, "tensors": outcome.tensors}, folder / "outcome.pt")
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_ranks_do_what_one_process_does(tmp_path: Path) -> None:
    # 21 images are trained on in batches of 10: the last has one, so that one rank has none of it.
    settings = MAPS.changed(batch_size=10, heldout=0.2, lrs=(0.01, 0.02))
    data = tiny_labels(tmp_path / "data", "train", 9, seed=0), tiny_labels(tmp_path / "data", "val", 5, seed=1)
    reference = probe(settings, data, tmp_path / "single")
    (tmp_path / "protocol.json").write_text(protocol(settings).model_dump_json())
    run_two_ranks(RANK, str(tmp_path))
    found = torch.load(tmp_path / "outcome.pt", weights_only=True)
    assert len(found["runs"]) == len(reference.runs) == 4
    for own, expected in zip(found["runs"], reference.runs, strict=True):
        assert own["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-4)
        assert own["heldout_loss"] == pytest.approx(expected["heldout_loss"], rel=1e-4)
    for name, tensor in reference.tensors.items():
        torch.testing.assert_close(found["tensors"][name], tensor, rtol=1e-4, atol=1e-5)


def test_two_probes_in_one_pass_are_what_each_is_alone(data: tuple[Labels, Labels], tmp_path: Path) -> None:
    together = ONE.changed(lrs=(0.1, 1.0), heldout=0.25, epochs=3, drops=(), jitter=0.4, lighting=0.1)
    asked = [protocol(together), protocol(MAPS, evaluate_every=1)]
    assert can_share(asked)
    encoder = TinyEncoder()
    where = [tmp_path / "a", tmp_path / "b"]
    how = {"workers": 0, "seed": 3, "progress": False}
    found = run_together(asked, encoder, *data, workdirs=where, **how)
    alone = [run(each, TinyEncoder(), *data, workdir=tmp_path / str(n), **how) for n, each in enumerate(asked)]
    assert all(same(a, b) for a, b in zip(found, alone, strict=True))
    assert encoder.passes == 3 * 3 + 1 + 2  # of one run, not of two
    assert not can_share([asked[0], protocol(MAPS, epochs=4)])
    assert not can_share([asked[0], protocol(MAPS, jitter=0.0)])
    assert not can_share([asked[1], protocol(MAPS, pooling={**MAPS.pooling, "feature1": AdaptivePooling(grid=4)})])


def test_probes_that_were_stopped_apart_go_on_together(data: tuple[Labels, Labels], tmp_path: Path) -> None:
    asked = [protocol(MAPS), protocol(MAPS.changed(outputs=("feature2",), lrs=(0.02,)))]
    how = {"workers": 0, "seed": 3, "progress": False}
    reference = run_together(asked, TinyEncoder(), *data, workdirs=[tmp_path / "a", tmp_path / "b"], **how)
    finished = run(asked[0], TinyEncoder(), *data, workdir=tmp_path / "c", **how)  # the other has yet to begin
    found = run_together(asked, TinyEncoder(), *data, workdirs=[tmp_path / "c", tmp_path / "d"], **how)
    assert same(found[0], finished)
    assert all(same(a, b) for a, b in zip(found, reference, strict=True))

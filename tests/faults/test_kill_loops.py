"""Jobs that are killed at random moments, again and again, and end as if nothing had happened."""

from __future__ import annotations

import faulthandler
import os
import random
import shutil
import signal
import socket
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.__main__ import COMMANDS, main
from benchmarks.demo.compose import Counts, compose
from benchmarks.registry import TASK_NAMES
from results.store import StoredRecord, read_records
from scripts.prepare import PrepareVoc12Aug, prepare_voc12aug
from tests.benchmarks.detection import test_detection_task as detection
from tests.benchmarks.segmentation import test_segmentation_task as segmentation
from tests.layouts.voc12aug import write_voc12aug
from tests.pretrain import tiny_runs

small_heads = detection.small_heads  # a fixture

KILLS = int(os.environ.get("KILLS", "20"))  # of each job in `make test-faults`
QUICK_KILLS = 3
LONGEST = 600  # seconds of one job on a busy machine; one that takes longer hangs, and shows where
ENCODER = "random:resnet18-w8-k3-nopool:0"
JOBS = {
    "features": ["knn"],
    "linear": ["linear", "--set", "epochs=4"],
    "finetune": ["finetune", "--set", "epochs=4"],
    "low-shot": ["low-shot-svm", "--set", "k=[1,2]"],
    "logistic": ["logistic", "--set", "tolerance=0.01"],
    "attentive": ["attentive", "--set", "epochs=3", "queries=2"],
    "linear-grid": ["linear-grid", "--set", "epochs=3"],
    "transfer": ["transfer", "--set", "penalties=1,100"],
    "seg-logistic": ["seg-logistic"],
    "seg-linear": [
        "seg-linear", "--set", "iterations=16", "evaluate_every=4", "warmup=2", "batch_size=4", "crop=64",
        "short_side=64", "rates=1e-4,1e-3",
    ],
    "depth-linear": ["depth-linear", "--set", "iterations=16", "evaluate_every=4", "batch_size=4"],
    "robustness": ["robustness"],
    "label-free": ["label-free"],
    "label-free-views": ["label-free-views"],
}  # fmt: skip
ENCODERS = {"linear-grid": "tests.faults.test_kill_loops:token_network"}


class TokenNetwork(nn.Module):
    """Patches of 16 pixels and the vectors of a ViT's tokens, all linear in the image."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 12, 16, 16)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        patches = self.embed(images)
        mean = patches.mean((2, 3))
        cls = patches[:, :, 0, 0]
        return {"embed": mean, "cls": cls, "cls_last4": torch.cat([cls, -cls, mean, cls], 1), "patch_mean": mean}


def token_network() -> nn.Module:
    torch.manual_seed(0)
    return TokenNetwork()


def kill_loop(job: Callable[[], object], folder: Path, seed: str, kills: int = KILLS, ranks: int = 1) -> None:
    """Kill a job at random moments, so many times; after each time that it comes to its end, it begins anew.

    The job runs in a child that shares what is imported, so that the moments lie in its own work. At last it ends.

    The moments lie within the shortest of its runs from the beginning: on a busy machine the first may take far longer
    than the others, which would nearly all end.
    """
    started = time.monotonic()
    assert run_for(job, None, ranks)
    seconds = time.monotonic() - started
    shutil.rmtree(folder)
    moments, killed, ended, anew = random.Random(seed), 0, 0, True
    while killed < kills:
        started = time.monotonic()
        if run_for(job, moments.uniform(0, seconds), ranks):
            seconds = min(seconds, time.monotonic() - started) if anew else seconds
            shutil.rmtree(folder)
            ended, anew = ended + 1, True
            assert ended <= 10 * kills, f"after {killed} kills, none of its moments comes before the end"
        else:
            killed, anew = killed + 1, False
    assert run_for(job, None, ranks)
    print(f"{seed}: {killed} kills in {seconds:.1f} s, {ended} ends")  # noqa: T201 - pytest shows it with -rP


def run_for(job: Callable[[], object], seconds: float | None, ranks: int = 1) -> bool:
    """Whether a job ended within so many seconds; else it is dead. Without a limit it must end well.

    Of several ranks, which are told of each other as torchrun does it, one is killed first and the others a moment
    later.
    """
    group = {}
    if ranks > 1:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        group = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1",
                 "MASTER_PORT": str(port)}  # fmt: skip
    children = []
    for rank in range(ranks):
        child = os.fork()
        if not child:
            try:
                faulthandler.dump_traceback_later(LONGEST, exit=True)
                os.environ.update(group, **({"RANK": str(rank), "LOCAL_RANK": str(rank)} if group else {}))
                code = job()
            except BaseException:
                traceback.print_exc()
                code = 1
            os._exit(int(bool(code)))
        children.append(child)
    deadline = None if seconds is None else time.monotonic() + seconds
    while deadline is None or time.monotonic() < deadline:
        for child in list(children):
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                children.remove(child)
                assert os.waitstatus_to_exitcode(status) == 0
        if not children:
            return True
        time.sleep(0.002)
    first = int((deadline or 0) * 1e6) % len(children)
    for child in [children[first], *children[:first], *children[first + 1 :]]:
        os.kill(child, signal.SIGKILL)
        time.sleep(0.01 if len(children) > 1 else 0)
    for child in children:
        os.waitpid(child, 0)
    return False


def test_a_job_that_hangs_ends_and_shows_where(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tests.faults.test_kill_loops.LONGEST", 0.5)
    with pytest.raises(AssertionError):
        run_for(lambda: time.sleep(60), None)
    assert "Timeout" in capfd.readouterr().err


def arguments(command: Sequence[str], data: Path, folder: Path) -> list[str]:
    return [
        *command, "--encoder", ENCODERS.get(command[0], ENCODER), "--data", str(data), "--out", str(folder / "records"),
        "--features", str(folder / "features"), "--device", "cpu", "--workers", "0",
    ]  # fmt: skip


def last_record(folder: Path) -> StoredRecord:
    """The record of a job, for a grid the one that chooses among its cells. Nothing damaged is there."""
    stored, damaged = read_records(folder / "records")
    assert not damaged
    return max(stored, key=lambda each: (not each.record.protocol.id.count("base_lr"), each.path))


def ends_equal(command: Sequence[str], data: Path, tmp_path: Path, kills: int, ranks: int = 1) -> None:
    """Compare what a command leaves after so many kills with what it leaves undisturbed."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    if ranks == 1:  # in this process, whose imports its children share
        assert main(arguments(command, data, whole)) == 0
    else:
        assert run_for(lambda: main(arguments(command, data, whole)), None, ranks)
    kill_loop(lambda: main(arguments(command, data, cut)), cut, command[0], kills, ranks)
    assert_equal_records(last_record(whole), last_record(cut))
    assert_clean(whole, cut)


def assert_equal_records(expected: StoredRecord, found: StoredRecord) -> None:
    """Everything that was measured is the same, to the item."""
    measured = {"encoder", "protocol", "dataset", "scores", "per_class", "runs", "seeds", "status"}
    parts = [each.record.model_dump(include=measured) for each in (expected, found)]
    for run in (run for part in parts for run in part["runs"]):
        run.pop("refitted", None)  # whether a head was there already, after a kill between it and its record
    assert parts[0] == parts[1]
    assert found.record.intact
    one, other = expected.outcomes(), found.outcomes()
    assert (one is None) == (other is None)
    assert (one or {}).keys() == (other or {}).keys()
    assert all(np.array_equal(value, (other or {})[key]) for key, value in (one or {}).items())


def assert_clean(whole: Path, cut: Path) -> None:
    """The features are the same bytes, and killed processes left nothing half written outside of them."""
    stores = list(whole.glob("features/**/*.npy"))
    for file in stores:
        assert file.read_bytes() == (cut / file.relative_to(whole)).read_bytes()
    leftovers = [path for path in cut.rglob("*") if "partial" in path.name and path.is_file()]
    assert not leftovers or all("features" in path.parts for path in leftovers)
    assert not list(cut.glob("heads/**/*.pth"))


@pytest.mark.slow
def test_a_benchmark_that_is_killed_a_few_times_ends_equal(small_data: Path, tmp_path: Path) -> None:
    ends_equal(JOBS["features"], small_data, tmp_path, QUICK_KILLS)


GROUPS = {"frozen": ["frozen"], "probes": ["probes", "--set", "epochs=2"], "dense": ["dense"]}


@pytest.mark.faults
@pytest.mark.parametrize("name", GROUPS)
def test_several_benchmarks_of_one_pass_that_are_killed_end_equal(name: str, small_data: Path, tmp_path: Path) -> None:
    """Every record of every benchmark."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main(arguments(GROUPS[name], small_data, whole)) == 0
    kill_loop(lambda: main(arguments(GROUPS[name], small_data, cut)), cut, name)
    expected, found = (dict(by_place(each)) for each in (whole, cut))
    assert len(expected) >= 2
    assert expected.keys() == found.keys()
    for place, stored in expected.items():
        assert_equal_records(stored, found[place])
    assert_clean(whole, cut)


def by_place(folder: Path) -> Iterator[tuple[str, StoredRecord]]:
    stored, damaged = read_records(folder / "records")
    assert not damaged
    return ((each.path.relative_to(folder).as_posix(), each) for each in stored)


@pytest.mark.faults
def test_two_ranks_of_knn_that_are_killed_end_equal(data: Path, tmp_path: Path) -> None:
    """The one rank is killed a moment after the other. One process comes to the same numbers."""
    assert main(arguments(JOBS["features"], data, tmp_path / "alone")) == 0
    ends_equal(JOBS["features"], data, tmp_path, KILLS, ranks=2)
    alone, two = last_record(tmp_path / "alone"), last_record(tmp_path / "cut")
    assert alone.record.scores == two.record.scores
    assert all(np.array_equal(v, (two.outcomes() or {})[k]) for k, v in (alone.outcomes() or {}).items())
    assert_clean(tmp_path / "alone", tmp_path / "cut")


@pytest.mark.faults
@pytest.mark.parametrize("name", JOBS)
def test_a_benchmark_that_is_killed_ends_equal(name: str, data: Path, tmp_path: Path) -> None:
    ends_equal(JOBS[name], data, tmp_path, KILLS)


def test_every_command_that_takes_long_has_a_kill_loop() -> None:
    """The others write a page or a file, whole or not at all, or have no result that a kill could leave in parts."""
    loops = {*GROUPS, "demo-data", "prepare-voc12aug", *TASK_NAMES}
    through_others = {"all", "explain", "why", "submit"}  # each record is that of a benchmark above
    no_state = {"protocols", "audit", "check-data", "speed", "bench-loader", "cost-table", "verify", "lint"}
    whole_files = {
        "random-encoder", "convert", "index-shards", "features-gc", "tables", "zoo-page", "pictures", "report", "board",
        "published", "paper-tables", "diff", "correlations", "publish-records", "export",
    }  # fmt: skip
    assert loops | through_others | no_state | whole_files >= {*COMMANDS}
    assert through_others | no_state | whole_files <= {*COMMANDS}


def test_every_trained_or_fitted_benchmark_has_a_kill_loop() -> None:
    """Benchmarks whose work is that of another one, or takes a moment on stored features, have none of their own."""
    same = {
        "multihead": "linear", "linear-stored": "linear", "few-shot": "low-shot-svm", "voc-svm": "low-shot-svm",
        "retrieval": "knn", "ncm": "knn",
        "seg-linear-cached": "seg-logistic", "seg-knn": "knn", "seg-incontext": "knn", "semi-1pct": "finetune",
        "semi-10pct": "finetune", "coco-det": "voc-det", "coco-keypoints": "voc-det", "lvis-det": "voc-det",
        "cityscapes-det": "voc-det", "cityscapes-seg": "voc-seg", "vit-det": "voc-det", "vit-seg": "voc-seg",
    }  # fmt: skip
    killed = {command[0] for command in JOBS.values()} | {"voc-det", "voc-seg"}
    assert set(same.values()) <= killed
    assert killed | same.keys() == set(TASK_NAMES)


@pytest.mark.faults
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not find_spec("detectron2"), reason="detectron2 is not installed: make setup-transfer")
@pytest.mark.usefixtures("small_heads")
def test_a_detection_that_is_killed_ends_equal(tmp_path: Path) -> None:
    detection.voc(tmp_path / "data")
    identifier = "voc0712_det.moco@1"
    sets = detection.as_sets(detection.tiny(identifier, iterations=12, checkpoint_every=2), identifier)
    command = ["voc-det", "--protocol", identifier, "--set", *sets]
    ends_equal(command, tmp_path / "data", tmp_path, KILLS)


@pytest.mark.faults
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not find_spec("mmseg"), reason="mmsegmentation is not installed: make setup-transfer")
def test_a_segmentation_that_is_killed_ends_equal(tmp_path: Path) -> None:
    write_voc12aug(tmp_path / "data")
    settings = {**segmentation.TINY, "iterations": 12}
    sets = [f"{k}={','.join(map(str, v)) if isinstance(v, tuple) else v}" for k, v in settings.items()]
    command = ["voc-seg", "--protocol", "voc12aug_fcn.mmselfsup", "--set", *sets]
    ends_equal(command, tmp_path / "data", tmp_path, KILLS)


@pytest.mark.faults
def test_composed_data_that_are_killed_are_the_same_files(tmp_path: Path) -> None:
    counts = Counts(8, 4, 4, drawings_per_class=6, corrupted_per_class=1)
    compose(tmp_path / "whole", progress=False, counts=counts)
    kill_loop(lambda: compose(tmp_path / "cut", progress=False, counts=counts), tmp_path / "cut", "demo-data")
    assert contents(tmp_path / "whole") == contents(tmp_path / "cut")


@pytest.mark.faults
def test_masks_of_sbd_that_are_killed_are_the_same_files(tmp_path: Path) -> None:
    write_voc12aug(tmp_path / "source", layout="sbd")
    shutil.copytree(tmp_path / "source", tmp_path / "whole")
    prepare_voc12aug(PrepareVoc12Aug(tmp_path / "whole", expected=14))

    def job() -> int:
        if not (tmp_path / "cut").exists():
            copy = tmp_path / f"copy {os.getpid()}"
            shutil.copytree(tmp_path / "source", copy)
            copy.rename(tmp_path / "cut")
        prepare_voc12aug(PrepareVoc12Aug(tmp_path / "cut", expected=14))
        return 0

    kill_loop(job, tmp_path / "cut", "prepare-voc12aug")
    assert contents(tmp_path / "whole") == contents(tmp_path / "cut")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but locks and what a kill left half written, which has another name."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".") and path.suffix != ".lock"
    }


@pytest.mark.faults
def test_a_pretraining_that_is_killed_ends_bit_identical(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pretrain.train.SAVE_SECONDS", 0.0)  # a save after every step
    monkeypatch.setattr("pretrain.train.SAVE_SHARE", 1e9)
    assert tiny_runs.run(images, tmp_path / "whole", "--epochs", "4") == 0
    kill_loop(lambda: tiny_runs.run(images, tmp_path / "cut", "--epochs", "4"), tmp_path / "cut", "pretrain")
    tiny_runs.assert_same_end(tmp_path / "whole", tmp_path / "cut")
    assert not list((tmp_path / "cut").glob(".*"))  # what the killed processes left half written is gone

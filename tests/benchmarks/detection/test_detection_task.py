"""Every target end to end on a few images in its own layout, restart, trials, records."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.datasets.registry import find_dataset
from benchmarks.detection.data import read_scenes
from benchmarks.detection.protocols import DetectionParams
from benchmarks.detection.task import VocDetection
from benchmarks.encoders.load import load_encoder
from benchmarks.task import InputError, RunOptions
from pretrain import distributed
from results.schema import Protocol
from results.store import read_records
from tests.benchmarks.detection.protocol import detection_protocol
from tests.layouts.cityscapes import write_cityscapes
from tests.layouts.coco import write_coco
from tests.layouts.lvis import write_lvis
from tests.layouts.voc import write_voc
from tests.processes import BENCHMARKS, Program, run_killed, run_together, run_two_ranks

pytestmark = [
    pytest.mark.skipif(not find_spec("detectron2"), reason="detectron2 is not installed: make setup-transfer"),
    pytest.mark.filterwarnings("ignore"),
]

ENCODER = "random:resnet18-w8-k3-nopool:0"
OPTIONS = RunOptions(device="cpu", workers=0, progress=False)
TINY: dict[str, Any] = {
    "min_sizes": (48, 64),
    "test_min_size": 64,
    "batch_size": 2,
    "iterations": 4,
    "steps": (),
    "trials": 1,
}
FEW: dict[str, Any] = {
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 20, "MODEL.RPN.POST_NMS_TOPK_TEST": 10,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 8, "TEST.DETECTIONS_PER_IMAGE": 5,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32, "MODEL.FPN.OUT_CHANNELS": 16, "MODEL.ROI_MASK_HEAD.CONV_DIM": 8,
    "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": [16, 16], "MODEL.RETINANET.NUM_CONVS": 1,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0, "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0,
}  # fmt: skip


ROI_FEW = {key: FEW[key] for key in FEW if key.startswith(("MODEL.RPN", "MODEL.ROI_HEADS.BATCH"))}


def tiny(identifier: str = "voc0712_det.moco@1", **changes: Any) -> Protocol:
    found = detection_protocol(identifier)
    precise = {"precise_bn": 1 if found.params["precise_bn"] else 0}
    return found.changed(**{**TINY, **precise, **changes})


@pytest.fixture
def small_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """detectron2's base configurations with fewer proposals and narrower heads; a CPU takes seconds for a step else."""
    from detectron2 import model_zoo

    original = model_zoo.get_config

    def get_config(path: str, **how: Any) -> Any:
        cfg = original(path, **how)
        cfg.merge_from_list([part for item in FEW.items() for part in item])
        return cfg

    monkeypatch.setattr(model_zoo, "get_config", get_config)


def as_sets(protocol: Protocol, identifier: str) -> list[str]:
    original = detection_protocol(identifier)
    changed = {k: v for k, v in protocol.params.items() if v != original.params[k]}
    return [f"{k}={_text(v)}" for k, v in changed.items()]


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return json.dumps(value)
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def voc(root: Path) -> None:
    write_voc(root, "2007")
    write_voc(root, "2012")


def trial(root: Path, folder: Path, **changes: Any) -> Any:
    from benchmarks.detection.train import ResNetDetectionTrial

    params, spec = DetectionParams.model_validate(tiny(**changes).params), find_dataset("voc0712", root)
    train, test = spec.read("trainval"), spec.read("test")
    scenes = (read_scenes(train, "voc"), read_scenes(test, "voc"))
    folder.mkdir(parents=True, exist_ok=True)
    return ResNetDetectionTrial(params, load_encoder(ENCODER), *scenes, test, 0, folder, OPTIONS)


TARGETS = [
    ("voc0712_det.moco@1", "voc-det", voc),
    ("voc0712_det.mmselfsup@1", "voc-det", voc),
    ("coco_mask_rcnn_c4_2x.moco@1", "coco-det", write_coco),
    ("coco_mask_rcnn_fpn_1x.mmselfsup@1", "coco-det", write_coco),
    ("coco_retinanet_fpn.mmselfsup@1", "coco-det", write_coco),
    ("coco_keypoint_fpn_2x.moco@1", "coco-keypoints", write_coco),
    ("lvis_v0_5_mask_rcnn_fpn_1x.moco@1", "lvis-det", lambda root: write_lvis(root, "v0.5")),
    ("lvis_v1_mask_rcnn_fpn_2x.moco@1", "lvis-det", write_lvis),
    ("cityscapes_mask_rcnn_fpn.moco@2", "cityscapes-det", write_cityscapes),
]


@pytest.mark.slow
@pytest.mark.usefixtures("small_heads")
@pytest.mark.parametrize(("identifier", "command", "write"), TARGETS, ids=[t[0] for t in TARGETS])
def test_every_target_ends_in_a_record(identifier: str, command: str, write: Any, tmp_path: Path) -> None:
    write(tmp_path / "data")
    protocol = tiny(identifier, trials=2 if identifier == "voc0712_det.moco@1" else 1)
    code = main(
        [command, "--encoder", ENCODER, "--data", str(tmp_path / "data"), "--out", str(tmp_path / "records"),
         "--workers", "0", "--device", "cpu", "--protocol", identifier, "--set", *as_sets(protocol, identifier)]
    )  # fmt: skip
    assert code == 0
    (stored,), bad = read_records(tmp_path / "records")
    assert not bad
    record = stored.record
    assert stored.intact
    assert record.status == "ok"
    assert set(record.scores) == set(protocol.columns)
    primary = record.scores[protocol.primary]
    assert primary.value is not None
    assert 0 <= primary.value <= 100
    assert len(record.runs) == protocol.params["trials"]
    assert primary.value == pytest.approx(np.mean([run[protocol.primary] for run in record.runs]))
    assert (primary.std is None) == (protocol.params["trials"] == 1)
    assert record.per_class[protocol.primary]
    assert "+batch_size=2" in record.protocol.id
    (sheet,) = stored.path.parent.glob("*.sheet.png")
    assert sheet.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.usefixtures("small_heads")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_that_was_killed_ends_with_the_same_weights(precision: str, tmp_path: Path) -> None:
    voc(tmp_path / "data")
    how = {"iterations": 6, "precision": precision, "checkpoint_every": 2, "warmup_iterations": 2, "steps": (4,)}
    whole = trial(tmp_path / "data", tmp_path / "whole", **how).train(progress=False).state_dict()
    stopped = trial(tmp_path / "data", tmp_path / "killed", **how)
    original, calls = stopped._loader, 0

    class Stopping:
        def __init__(self, loader: Any) -> None:
            self.loader = loader

        def __iter__(self) -> Any:
            nonlocal calls
            for batch in self.loader:
                calls += 1
                if calls == 5:
                    raise KeyboardInterrupt
                yield batch

    stopped._loader = lambda **of: Stopping(original(**of))
    with pytest.raises(KeyboardInterrupt):
        stopped.train(progress=False)
    last = tmp_path / "killed" / "model_0000003.pth"
    assert last.is_file()
    (tmp_path / "killed" / "model_0000005.pth").write_bytes(last.read_bytes()[:1000])  # killed while it was written
    again = trial(tmp_path / "data", tmp_path / "killed", **how).train(progress=False).state_dict()
    assert all(torch.equal(again[name], value) for name, value in whole.items())
    started = load_encoder(ENCODER).module.state_dict()["conv1.weight"]
    assert not torch.equal(whole["backbone.stem.conv1.weight"], started)  # it was trained


@pytest.mark.usefixtures("small_heads")
def test_a_run_that_is_told_to_stop_saves_and_goes_on_from_there(tmp_path: Path) -> None:
    """After the iteration in which a signal came, again and again; nothing else is saved in between."""
    voc(tmp_path / "data")
    how = {"iterations": 6, "checkpoint_every": 100, "warmup_iterations": 2, "steps": (4,)}
    whole = trial(tmp_path / "data", tmp_path / "whole", **how).train(progress=False).state_dict()
    folder = tmp_path / "stopped"
    for sent, stop_at, saved in ((signal.SIGTERM, 3, 3), (signal.SIGUSR1, 2, 5)):
        stopped = trial(tmp_path / "data", folder, **how)

        def load(at: int = stop_at, sent: int = sent, original: Any = stopped._loader, **of: Any) -> Any:
            for number, batch in enumerate(original(**of), start=1):
                if number == at:
                    os.kill(os.getpid(), sent)
                yield batch

        stopped._loader = load
        with pytest.raises(distributed.Stopped, match="the same command continues from it"):
            stopped.train(progress=False)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert (folder / f"model_{saved - 1:07d}.pth").is_file()
    again = trial(tmp_path / "data", folder, **how).train(progress=False).state_dict()
    assert all(torch.equal(again[name], value) for name, value in whole.items())


class Runs:
    """A pickle that runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.slow
def test_a_planted_checkpoint_runs_no_code_and_nothing_half_written_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    voc(tmp_path / "data")
    folder, alarm = tmp_path / "trial", tmp_path / "it ran"
    folder.mkdir()
    torch.save({"model": {}, "iteration": Runs(f"touch '{alarm}'")}, folder / "model_0000002.pth")
    torch.save(Runs(f"touch '{alarm}'"), tmp_path / "evil.pth")
    (folder / "last_checkpoint").write_text("../evil.pth", encoding="ascii")  # detectron2 would load what it names
    trial(tmp_path / "data", folder, iterations=2, checkpoint_every=1).train(progress=False)
    assert not alarm.exists()
    assert {path.name for path in folder.glob("model_0*")} == {f"model_000000{n}.pth" for n in (0, 1, 2)}

    def full(_: object, file: BinaryIO) -> None:
        file.write(b"PK")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"No space left on device: .*model_0000000\.pth"):
        trial(tmp_path / "data", tmp_path / "full", iterations=2, checkpoint_every=1).train(progress=False)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["encoder-0.pkl"]


@pytest.mark.slow
@pytest.mark.usefixtures("small_heads")
def test_two_writers_of_one_checkpoint_leave_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them has written its half when the other begins, and each has written the whole when the other ends."""
    voc(tmp_path / "data")
    folder, meeting, save = tmp_path / "trial", multiprocessing.Barrier(2), torch.save

    def met(content: object, file: BinaryIO) -> None:
        meeting.wait(60)
        save(content, file)
        file.flush()
        meeting.wait(60)

    def train(_: int) -> None:
        monkeypatch.setattr(torch, "save", met)
        trial(tmp_path / "data", folder, iterations=2, checkpoint_every=2).train(progress=False)

    run_together(train)
    assert {path.name for path in folder.glob("*.pth")} == {"model_0000001.pth", "model_final.pth"}
    assert not list(folder.glob(".*"))
    for name in ("model_0000001.pth", "model_final.pth"):
        assert torch.load(folder / name, weights_only=True)["iteration"] == 1


@pytest.mark.nightly
@pytest.mark.usefixtures("small_heads")
def test_a_second_process_of_one_training_is_refused_and_the_first_goes_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """detectron2 removes older checkpoints, of which the other process knows nothing."""
    voc(tmp_path / "data")
    sets = as_sets(tiny(iterations=6, checkpoint_every=1), "voc0712_det.moco@1")
    flags = [
        "voc-det", "--encoder", ENCODER, "--data", str(tmp_path / "data"), "--out", str(tmp_path / "records"),
        "--workers", "0", "--device", "cpu", "--protocol", "voc0712_det.moco@1", "--set", *sets,
    ]  # fmt: skip
    first = Program(BENCHMARKS, *flags)
    while not list(tmp_path.rglob("model_0000000.pth")):
        assert first.running, first.said
        time.sleep(0.005)
    with first.stopped():
        assert main(flags) == 2
    (folder,) = (path.parent for path in tmp_path.rglob("model_0000000.pth"))
    said = capfd.readouterr().err
    assert f"{folder} is in use by another run; wait for its end, or choose another --out" in said
    assert "Traceback" not in said
    assert first.wait() == 0, first.said
    (stored,), bad = read_records(tmp_path / "records")
    assert not bad
    assert stored.intact
    assert stored.record.status == "ok"


def test_batches_depend_on_seed_and_number_alone_and_have_one_aspect(tmp_path: Path) -> None:
    from benchmarks.detection.data import Batches

    voc(tmp_path)
    of = trial(tmp_path, tmp_path / "w")
    ones = [batch for batch, _ in zip(of._loader(seed=3, first=0, workers=0), range(5), strict=False)]
    later = [batch for batch, _ in zip(of._loader(seed=3, first=3, workers=0), range(2), strict=False)]
    for a, b in zip(ones[3:], later, strict=True):
        assert [x["image_id"] for x in a] == [x["image_id"] for x in b]
        assert all(torch.equal(x["image"], y["image"]) for x, y in zip(a, b, strict=True))
    scenes = [{"height": 2 - n % 2, "width": 1 + n % 2} for n in range(6)]
    order = [0, 1, 2, 3, 4, 5]
    batches = [[i for _, i in b] for b in Batches(scenes, order, 2)]
    assert batches == [[0, 2], [1, 3]]


def test_a_batch_that_does_not_split_over_the_ranks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    voc(tmp_path)
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    with pytest.raises(InputError, match="total batch of 2 cannot be split evenly over 3 processes"):
        trial(tmp_path, tmp_path / "w")


def test_what_is_no_resnet_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    voc(tmp_path)
    spec = find_dataset("voc0712", tmp_path)
    with pytest.raises(InputError, match="protocols are for ResNets"):
        VocDetection().run(
            tiny(), load_encoder("pixels"), spec.read("trainval"), spec.read("test"), tmp_path / "w", OPTIONS
        )
    assert not (tmp_path / "w").exists()


@pytest.mark.nightly
def test_sigkill_loses_at_most_the_last_steps(tmp_path: Path) -> None:
    voc(tmp_path / "data")
    identifier = "voc0712_det.moco@1"
    sets = as_sets(tiny(identifier, iterations=12, checkpoint_every=2), identifier)

    def command(out: str) -> list[str]:
        return [sys.executable, "-m", "benchmarks", "voc-det", "--encoder", ENCODER, "--data", str(tmp_path / "data"),
                "--out", str(tmp_path / out / "records"), "--workers", "0", "--device", "cpu",
                "--protocol", identifier, "--set", *sets]  # fmt: skip

    subprocess.run(command("whole"), check=True, capture_output=True)
    run_killed(command("killed"), tmp_path / "killed", "model_0000001.pth")
    (whole,), _ = read_records(tmp_path / "whole" / "records")
    (killed,), _ = read_records(tmp_path / "killed" / "records")
    assert whole.record.scores == killed.record.scores


@pytest.mark.slow
@pytest.mark.parametrize(
    "identifier", [pytest.param("voc0712_det.mmselfsup@1", marks=pytest.mark.nightly), "voc0712_det.moco@1"]
)
def test_two_ranks_share_the_batch_and_write_one_record(identifier: str, tmp_path: Path) -> None:
    voc(tmp_path / "data")
    sets = as_sets(tiny(identifier, config={**tiny(identifier).params["config"], **ROI_FEW}), identifier)
    run_two_ranks(
        BENCHMARKS, "voc-det", "--encoder", ENCODER, "--data", str(tmp_path / "data"),
        "--out", str(tmp_path / "records"), "--workers", "0", "--device", "cpu",
        "--protocol", identifier, "--set", *sets,
    )  # fmt: skip
    (stored,), bad = read_records(tmp_path / "records")
    assert not bad
    assert stored.record.status == "ok"
    assert "+batch_size=2" in stored.record.protocol.id
    assert stored.record.scores["AP50"].n == 8  # the test images of both ranks

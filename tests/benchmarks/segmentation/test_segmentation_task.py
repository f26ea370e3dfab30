"""Training, transfer, restart and records on tiny data in the layouts of VOC and Cityscapes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.datasets.registry import find_dataset
from benchmarks.encoders.load import load_encoder
from benchmarks.segmentation.task import (
    CITYSCAPES_PROTOCOLS,
    VOC_PROTOCOLS,
    CityscapesSegmentation,
    SegmentationParams,
    VocSegmentation,
)
from benchmarks.segmentation.train import Draws, FcnTrial, MaskedImages
from benchmarks.task import InputError, Labels, RunOptions
from pretrain import distributed
from results.schema import Protocol
from results.store import read_records
from tests.layouts.cityscapes import write_cityscapes
from tests.layouts.voc12aug import write_voc12aug
from tests.processes import run_killed, run_together

pytestmark = [
    pytest.mark.skipif(not find_spec("mmseg"), reason="mmsegmentation is not installed: make setup-transfer"),
    pytest.mark.filterwarnings("ignore"),
]

ENCODER = "random:resnet18-w8-k3-nopool:0"
OPTIONS = RunOptions(device="cpu", workers=0, progress=False)
TINY: dict[str, Any] = {
    "crop": 32, "batch_size": 4, "iterations": 6, "checkpoint_every": 2, "trials": 1, "head_channels": 8,
    "auxiliary_channels": 8, "scale": (64, 32),
}  # fmt: skip


def protocol(identifier: str = "voc12aug_fcn.mmselfsup@1", **changes: Any) -> Protocol:
    found = next(p for p in (*VOC_PROTOCOLS, *CITYSCAPES_PROTOCOLS) if p.id == identifier)
    return found.changed(**{**TINY, **changes})


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> tuple[Labels, Labels]:
    root = tmp_path_factory.mktemp("data")
    write_voc12aug(root)
    spec = find_dataset("voc12aug", root)
    return spec.read("train_aug"), spec.read("val")


def trial(voc: tuple[Labels, Labels], folder: Path, encoder: str = ENCODER, **changes: Any) -> Any:
    params = SegmentationParams.model_validate(protocol(**changes).params)
    return FcnTrial(params, load_encoder(encoder), *voc, 0, folder, OPTIONS)


def test_the_backbone_is_the_checkpoint_and_gives_its_stages(voc: tuple[Labels, Labels], tmp_path: Path) -> None:
    of = trial(voc, tmp_path, strides=(1, 2, 2, 2), dilations=(1, 1, 1, 1), contract_dilation=False)
    model = of.build().eval()
    weights = of.encoder.module.state_dict()
    assert set(model.backbone.state_dict()) == set(weights)
    assert all(torch.equal(model.backbone.state_dict()[name], value) for name, value in weights.items())
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    theirs, ours = model.backbone(images), of.encoder.module.stages(images)[1:]
    for a, b in zip(theirs, ours, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ["resnet50-w8", "resnext50_32x4d-w16"])
def test_bottlenecks_and_groups_transfer_too(architecture: str, voc: tuple[Labels, Labels], tmp_path: Path) -> None:
    of = trial(voc, tmp_path, f"random:{architecture}:0")
    model = of.build()
    of.check_backbone(model.backbone)
    with torch.no_grad():
        model.backbone.layer3[0].conv1.weight.add_(1)
    with pytest.raises(RuntimeError, match=r"1 of the backbone's tensors are not the checkpoint's: layer3\.0\.conv1"):
        of.check_backbone(model.backbone)


def test_draws_depend_on_seed_and_number_alone(voc: tuple[Labels, Labels], tmp_path: Path) -> None:
    of = trial(voc, tmp_path)
    scenes = of.train_loader.dataset
    np.random.seed(1)
    first = scenes[17]["inputs"]
    np.random.seed(2)
    assert torch.equal(first, scenes[17]["inputs"])
    assert not all(torch.equal(scenes[n]["inputs"], first) for n in range(5))
    epoch = {scenes[n]["data_samples"].img_path for n in range(len(scenes))}
    assert len(epoch) == len(scenes)  # every image once an epoch
    draws = Draws(14, rank=1, ranks=2)
    draws.skip(3)
    assert [n for n, _ in zip(draws, range(3), strict=False)] == [7, 9, 11]


def test_ignored_pixels_and_padding_add_nothing_to_the_loss(voc: tuple[Labels, Labels], tmp_path: Path) -> None:
    """The same image with other labels below the ignored pixels, and smaller than the crop."""
    of = trial(voc, tmp_path, auxiliary_channels=0, dropout=0.0)
    model = of.build().train()
    small = {"type": "Resize", "scale": (24, 24), "keep_ratio": False}
    scenes = MaskedImages(
        voc[0], 21, [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}, small, {"type": "PackSegInputs"}]
    )

    def loss(ignored: int) -> tuple[float, Any]:
        item = scenes[0]
        mask = item["data_samples"].gt_sem_seg.data
        mask[:, :12] = ignored
        data = model.data_preprocessor(
            {"inputs": [item["inputs"]] * 2, "data_samples": [item["data_samples"]] * 2}, True
        )
        losses = model(**data, mode="loss")
        return float(losses["decode.loss_ce"]), data

    torch.manual_seed(0)
    value, data = loss(255)
    padded = data["data_samples"][0].gt_sem_seg.data
    assert padded.shape[1:] == (32, 32)
    assert (padded[:, 24:] == 255).all()
    logits = model.decode_head(model.extract_feat(data["inputs"]))
    logits = torch.nn.functional.interpolate(logits, (32, 32), mode="bilinear", align_corners=False)
    truth = torch.stack([s.gt_sem_seg.data[0] for s in data["data_samples"]]).long()
    each = torch.nn.functional.cross_entropy(logits, truth.where(truth != 255, 0), reduction="none")
    # mmsegmentation divides by all pixels unless told otherwise; ignored ones are zeros of that mean
    assert value == pytest.approx(float((each * (truth != 255)).mean()), rel=1e-4)


@pytest.mark.slow
def test_a_run_that_was_killed_ends_with_the_same_weights(voc: tuple[Labels, Labels], tmp_path: Path) -> None:
    whole = trial(voc, tmp_path / "whole").train(progress=False).state_dict()
    short = trial(voc, tmp_path / "killed")
    (tmp_path / "killed").mkdir()
    stopped = trial(voc, tmp_path / "killed", iterations=6)
    calls = 0

    def collate(items: Any, original: Any = stopped.train_loader.collate_fn) -> Any:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return original(items)

    stopped.train_loader.collate_fn = collate
    with pytest.raises(KeyboardInterrupt):
        stopped.train(progress=False)
    last = tmp_path / "killed" / "iter_4.pth"
    assert last.is_file()
    (tmp_path / "killed" / "iter_6.pth").write_bytes(last.read_bytes()[:1000])  # killed while it was written
    again = short.train(progress=False).state_dict()
    assert all(torch.equal(again[name], value) for name, value in whole.items())
    ended = trial(voc, tmp_path / "killed").train(progress=False).state_dict()  # a later trial was killed
    assert all(torch.equal(ended[name], value) for name, value in whole.items())


def test_a_run_that_is_told_to_stop_saves_and_goes_on_from_there(voc: tuple[Labels, Labels], tmp_path: Path) -> None:
    """After the iteration in which a signal came, again and again; nothing else is saved in between."""
    rare = {"checkpoint_every": 100}
    whole = trial(voc, tmp_path / "whole", **rare).train(progress=False).state_dict()
    folder = tmp_path / "stopped"
    for number, stop_at, saved in ((signal.SIGTERM, 3, 3), (signal.SIGUSR1, 2, 5)):
        stopped = trial(voc, folder, **rare)
        calls = 0

        def collate(items: Any, original: Any = stopped.train_loader.collate_fn, at: int = stop_at,
                    sent: int = number) -> Any:  # fmt: skip
            nonlocal calls
            calls += 1
            if calls == at:
                os.kill(os.getpid(), sent)
            return original(items)

        stopped.train_loader.collate_fn = collate
        with pytest.raises(distributed.Stopped, match="the same command continues from it"):
            stopped.train(progress=False)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert (folder / f"iter_{saved}.pth").is_file()
    again = trial(voc, folder, **rare).train(progress=False).state_dict()
    assert all(torch.equal(again[name], value) for name, value in whole.items())
    assert sorted(path.name for path in folder.glob("iter_*")) == ["iter_5.pth", "iter_6.pth"]


class Runs:
    """A pickle that runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


def test_a_planted_checkpoint_runs_no_code(voc: tuple[Labels, Labels], tmp_path: Path) -> None:
    """Neither by its pickle nor by the configuration in it, which mmengine runs as Python."""
    folder, alarm = tmp_path / "trial", tmp_path / "it ran"
    whole = trial(voc, folder).train(progress=False).state_dict()
    assert sorted(path.name for path in folder.glob("iter_*")) == ["iter_4.pth", "iter_6.pth"]
    assert not list(folder.glob(".*"))
    stored = torch.load(folder / "iter_4.pth", weights_only=False)
    (folder / "iter_6.pth").unlink()
    torch.save({"meta": Runs(f"touch '{alarm}'")}, folder / "iter_5.pth")
    (folder / "last_checkpoint").write_text(str(folder / "iter_5.pth"), encoding="utf-8")  # mmengine would load it
    stored["meta"]["config"] = f"open({str(alarm)!r}, 'w')"
    torch.save(stored, folder / "iter_4.pth")
    again = trial(voc, folder).train(progress=False).state_dict()
    assert not alarm.exists()
    assert all(torch.equal(again[name], value) for name, value in whole.items())
    assert sorted(path.name for path in folder.glob("iter_[46].pth")) == ["iter_4.pth", "iter_6.pth"]


@pytest.mark.slow
def test_two_writers_of_one_checkpoint_leave_a_whole_one(
    voc: tuple[Labels, Labels], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them begins before the other has ended."""
    from mmengine.fileio.backends import LocalBackend

    folder, meeting, put = tmp_path / "trial", multiprocessing.Barrier(2), LocalBackend.put

    def met(backend: Any, content: bytes, path: str) -> None:
        meeting.wait(60)
        put(backend, content, path)
        meeting.wait(60)

    def train(_: int) -> None:
        monkeypatch.setattr(LocalBackend, "put", met)
        trial(voc, folder, iterations=2, checkpoint_every=2).train(progress=False)

    run_together(train)
    assert [path.name for path in folder.glob("*.pth")] == ["iter_2.pth"]
    assert not list(folder.glob(".*"))
    assert torch.load(folder / "iter_2.pth", weights_only=False)["meta"]["iter"] == 2


def test_a_loss_that_is_not_finite_ends_the_run(voc: tuple[Labels, Labels], tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match="the loss is nan after 2 iterations; lower lr"):
        trial(voc, tmp_path, lr=1e20).train(progress=False)
    assert not list(tmp_path.rglob("iter_*.pth"))


def test_a_precision_and_a_batch_that_cannot_be_are_refused(
    voc: tuple[Labels, Labels], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="bf16 only on a GPU"):
        trial(voc, tmp_path, precision="bf16")
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    with pytest.raises(InputError, match="a total batch of 4 cannot be split evenly over 3 processes"):
        trial(voc, tmp_path)


@pytest.mark.slow
def test_it_ends_in_a_record_with_classes_trials_and_a_sheet(tmp_path: Path) -> None:
    write_voc12aug(tmp_path / "data")
    sets = [f"{k}={v}" if not isinstance(v, tuple) else f"{k}={','.join(map(str, v))}" for k, v in TINY.items()]
    sets.remove("trials=1")
    where = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "records")]
    how = ["--workers", "0", "--device", "cpu", "--protocol", "voc12aug_fcn.mmselfsup", "--trials", "2", "--set", *sets]
    code = main(["voc-seg", "--encoder", ENCODER, *where, *how])
    assert code == 0
    (stored,), bad = read_records(tmp_path / "records")
    assert not bad
    record = stored.record
    assert stored.intact
    assert "+trials=2" in record.protocol.id
    assert set(record.scores) == {"mIoU", "mAcc", "aAcc"}
    assert record.scores["mIoU"].std is not None
    assert len(record.runs) == 2
    assert record.scores["mIoU"].value == pytest.approx(np.mean([run["mIoU"] for run in record.runs]))
    assert "background" in record.per_class["mIoU"]
    (sheet,) = stored.path.parent.glob("*.sheet.png")
    assert sheet.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("train_ids", [True, False])
def test_cityscapes_runs_end_to_end_from_either_kind_of_masks(train_ids: bool, tmp_path: Path) -> None:
    write_cityscapes(tmp_path, train_ids=train_ids)
    spec = find_dataset("cityscapes", tmp_path)
    of = protocol("cityscapes_fcn.mmselfsup@1", window_stride=24, iterations=2)
    outcome = CityscapesSegmentation().run(
        of, load_encoder(ENCODER), spec.read("train"), spec.read("val"), tmp_path / "w", OPTIONS
    )
    assert set(outcome.scores) == {"mIoU", "mAcc", "aAcc"}
    assert 0 <= outcome.scores["mIoU"].value <= 100  # type: ignore[operator]
    assert "road" in outcome.per_class["mIoU"]


def test_classes_that_are_not_the_protocols_are_refused(voc: tuple[Labels, Labels], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"21 classes including the background, but .* is for 19"):
        CityscapesSegmentation().run(
            protocol("cityscapes_fcn.mmselfsup@1", window_stride=24), load_encoder(ENCODER), *voc, tmp_path, OPTIONS
        )


def test_what_is_no_resnet_is_refused_before_anything_is_written(voc: tuple[Labels, Labels], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="protocols are for ResNets"):
        VocSegmentation().run(protocol(), load_encoder("pixels"), *voc, tmp_path / "w", OPTIONS)
    assert not (tmp_path / "w").exists()


@pytest.mark.nightly
def test_sigkill_at_any_moment_loses_at_most_the_last_steps(tmp_path: Path) -> None:
    write_voc12aug(tmp_path / "data")
    sets = [f"{k}={v}" if not isinstance(v, tuple) else f"{k}={','.join(map(str, v))}" for k, v in TINY.items()]

    def command(out: str) -> list[str]:
        return [sys.executable, "-m", "benchmarks", "voc-seg", "--encoder", ENCODER, "--data", str(tmp_path / "data"),
                "--out", str(tmp_path / out / "records"), "--workers", "1", "--device", "cpu",
                "--protocol", "voc12aug_fcn.mmselfsup", "--set", *sets]  # fmt: skip

    subprocess.run(command("whole"), check=True, capture_output=True)
    run_killed(command("killed"), tmp_path / "killed", "iter_2.pth")
    (whole,), _ = read_records(tmp_path / "whole" / "records")
    (killed,), _ = read_records(tmp_path / "killed" / "records")
    assert whole.record.scores == killed.record.scores


@pytest.mark.nightly
def test_two_ranks_train_on_the_same_batches_to_the_same_score(tmp_path: Path) -> None:
    write_voc12aug(tmp_path / "data")
    # Each rank drops its own channels, so that is left out.
    settings = {**TINY, "dropout": 0.0}
    sets = [f"{k}={v}" if not isinstance(v, tuple) else f"{k}={','.join(map(str, v))}" for k, v in settings.items()]
    found = {}
    for ranks in (1, 2):
        out = tmp_path / str(ranks) / "records"
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        how = ["--workers", "0", "--device", "cpu", "--protocol", "voc12aug_fcn.mmselfsup", "--set", *sets]
        where = ["--data", str(tmp_path / "data"), "--out", str(out)]
        command = [*launch, "-m", "benchmarks", "voc-seg", "--encoder", ENCODER, *where, *how]
        subprocess.run(command, check=True, capture_output=True)
        ((stored,), _) = read_records(out)
        found[ranks] = stored.record
    assert found[1].protocol.id == found[2].protocol.id
    for column, score in found[1].scores.items():
        assert found[2].scores[column].value == pytest.approx(score.value, abs=0.5)

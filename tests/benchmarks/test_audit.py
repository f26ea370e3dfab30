"""A wrong card is found and a right one is not, dead channels and NaN are seen, and nothing is changed."""

from __future__ import annotations

import copy
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.__main__ import main
from benchmarks.audit import (
    Audit,
    AuditSample,
    ChannelRanges,
    _EncoderRuns,
    alarm_levels,
    draw_sample,
    examine,
    text,
)
from benchmarks.audit_checks import using_batch_statistics, variations
from benchmarks.encoders.forms import parse_architecture
from benchmarks.encoders.load import load_encoder, module_encoder
from benchmarks.encoders.networks import random_resnet
from benchmarks.task import InputError
from results.schema import Architecture, EncoderCard
from tests.simulated_cuda import simulated_cuda

HUES = ((200, 60, 60), (60, 60, 200), (120, 200, 60), (60, 200, 120))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes that differ in hue, 20 noisy pictures each."""
    root = tmp_path_factory.mktemp("hues")
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 8)):
        for index, hue in enumerate(HUES):
            (root / split / f"class{index}").mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(rng.normal(hue, 55, (16, 16, 3)) + rng.normal(0, 45, 3), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / f"class{index}" / f"{split}{number}.png")
    return root


class HueNet(nn.Module):
    """One batch norm, three channels, the last of them dead."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.norm.running_mean = torch.tensor([0.1, -0.2, 0.3])

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = self.norm(images)
        maps = torch.stack([2 * x[:, 0] - x[:, 1] - x[:, 2], x[:, 1] - x[:, 0], x[:, 0].mul(0)], dim=1).relu()
        return {"feature5": maps, "embed": maps.mean((2, 3))}


def card(**fields: object) -> EncoderCard:
    return EncoderCard(name="hue", source="test", architecture=Architecture(name="module:hue")).model_copy(
        update=fields
    )


def test_dead_channels_are_counted(folder: Path) -> None:
    sample = draw_sample(folder, 16, 0)
    audit = examine(module_encoder(HueNet(), card()), sample, seconds=600, seed=0, show=False)
    by_name = {o.output: o for o in audit.outputs}
    assert (by_name["embed"].channels, by_name["embed"].dead, by_name["embed"].constant) == (3, 1, 0)
    assert by_name["feature5"].dead == 1
    assert audit.batch_norms == 1


class FirstChannels(nn.Module):
    """Passes over the third channel."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))[:, :2]


def red_or_not(tmp_path: Path) -> Path:
    """Two classes that differ in red alone."""
    rng = np.random.default_rng(0)
    for index, mean in enumerate(((220, 100, 120), (60, 100, 120))):
        (tmp_path / "train" / f"class{index}").mkdir(parents=True)
        for number in range(40):
            pixels = np.clip(rng.normal(mean, 40, (16, 16, 3)) + rng.normal(0, 30, 3), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "train" / f"class{index}" / f"{number}.png")
    return tmp_path


@pytest.mark.parametrize(("channels", "found"), [("RGB", False), ("BGR", True)])
def test_the_wrong_channel_order_is_said_and_the_right_one_is_not(tmp_path: Path, channels: str, found: bool) -> None:
    encoder = module_encoder(FirstChannels(), card(channels=channels))
    audit = examine(encoder, draw_sample(red_or_not(tmp_path), 16, 0), seconds=600, seed=0, show=False)
    said = [s for s in audit.findings if s.endswith("the card is probably wrong")]
    assert bool(said) is found
    if found:
        assert said[0].startswith("scores ")
        assert "points higher as RGB (± " in said[0]


def test_the_audit_changes_nothing(folder: Path) -> None:
    encoder = random_resnet(parse_architecture("resnet18-w8-k3-s1-nopool"), 0)
    before, described = copy.deepcopy(encoder.module.state_dict()), encoder.card
    audit = examine(encoder, draw_sample(folder, 16, 0), seconds=600, seed=0, show=False)
    assert encoder.card == described
    assert audit.encoder == described
    assert all(torch.equal(t, before[n]) for n, t in encoder.module.state_dict().items())
    assert {t.name for t in audit.trials} == {
        "channels", "mean", "std", "range", "-1 to 1", "0 to 1", "0 to 255", "Caffe", "batch statistics",
    }  # fmt: skip


def test_a_net_without_batch_norms_says_not_applicable(folder: Path) -> None:
    audit = examine(load_encoder("pixels"), draw_sample(folder, 16, 0), seconds=600, seed=0, show=False)
    assert "batch norms   none, so batch statistics do not apply" in text(audit)
    assert "batch statistics" not in {t.name for t in audit.trials}


def test_nan_is_found_in_weights_and_outputs(folder: Path) -> None:
    encoder = random_resnet(parse_architecture("resnet18-w8-k3-s1-nopool"), 0)
    encoder.module.get_parameter("layer4.1.bn2.weight").data[0] = torch.nan
    audit = examine(encoder, draw_sample(folder, 16, 0), seconds=600, seed=0, show=False)
    assert audit.nonfinite_tensors == ("layer4.1.bn2.weight",)
    assert audit.findings[0] == "1 tensors hold NaN or infinite numbers (layer4.1.bn2.weight): the file is damaged"
    assert "feature5 is not finite on 80 of 80 images" in audit.findings
    assert (audit.score, audit.trials) == (None, ())
    assert "nothing (the card)" in text(audit)


def test_silent_channels_are_said(folder: Path) -> None:
    encoder = random_resnet(parse_architecture("resnet18-w8-k3-s1-nopool"), 0)
    for name in ("weight", "bias"):
        encoder.module.get_parameter(f"bn1.{name}").data.zero_()
    audit = examine(encoder, draw_sample(folder, 16, 0), seconds=600, seed=0, show=False)
    assert "8 of 8 channels of feature1 never change: weights are probably missing" in audit.findings


def test_a_mean_of_another_range_is_said(folder: Path) -> None:
    encoder = load_encoder("pixels")
    encoder.card = encoder.card.model_copy(update={"mean": (123.675, 116.28, 103.53)})
    audit = examine(encoder, draw_sample(folder, 16, 0), seconds=600, seed=0, show=False)
    assert any("lies outside its range of 0 to 1" in s for s in audit.findings)


def test_assumed_fields_are_said(folder: Path) -> None:
    audit = examine(module_encoder(HueNet()), draw_sample(folder, 16, 0), seconds=600, seed=0, show=False)
    assert any(s.startswith("assumed") and "mean, std, value_range, channels" in s for s in audit.findings)


def test_little_time_means_fewer_images_but_never_none(folder: Path) -> None:
    audit = examine(load_encoder("pixels"), draw_sample(folder, 16, 0), seconds=1e-6, seed=0, show=False)
    assert 0 < audit.images <= 128
    assert audit.trials


def test_channel_ranges_over_batches() -> None:
    ranges = ChannelRanges()
    for value in (0.0, 1.0):
        batch = torch.zeros(2, 4, 3, 3)
        batch[:, 1], batch[:, 2], batch[0, 3, 0, 0] = 2.0, value, torch.inf if value else 0.0
        ranges.add({"feature1": batch})
    (found,) = ranges.report()
    assert (found.channels, found.dead, found.constant, found.nonfinite_images) == (4, 1, 1, 1)


def test_batch_statistics_are_those_of_the_batch_and_are_put_back() -> None:
    norm = nn.BatchNorm2d(3).eval()
    norm.running_mean.fill_(5.0)
    images = torch.randn(16, 3, 4, 4)
    with using_batch_statistics(nn.Sequential(norm)):
        inside = norm(images)
    torch.testing.assert_close(inside.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    assert norm.running_mean.tolist() == [5.0] * 3
    assert norm(images).mean() < -4


def test_variations_leave_out_what_the_card_says_already() -> None:
    assert "ImageNet" not in {v.name for v in variations(card(), with_batch_norms=False)}
    halves = (0.5, 0.5, 0.5)
    assert "-1 to 1" not in {v.name for v in variations(card(mean=halves, std=halves), with_batch_norms=False)}
    caffe = card(channels="BGR", value_range=255.0, mean=(103.53, 116.28, 123.675), std=(1.0, 1.0, 1.0))
    found = {v.name: v for v in variations(caffe, with_batch_norms=True)}
    assert "Caffe" not in found
    assert found["channels"].card.mean == (123.675, 116.28, 103.53)
    assert found["batch statistics"].card == caffe
    assert sum(alarm_levels(list(found.values()))) == pytest.approx(0.05)


def test_the_sample_takes_every_source_once_before_any_twice(folder: Path) -> None:
    groups = {}
    for path in sorted(folder.rglob("*.png")):
        id = path.relative_to(folder).as_posix()
        groups[id] = [f"{path.parent.name}/{int(path.stem.removeprefix('train').removeprefix('val')) // 2}"]
    (folder / "groups.json").write_text(json.dumps(groups))
    try:
        sample = draw_sample(folder, 8, 0)
    finally:
        (folder / "groups.json").unlink()
    distinct = len(set(sample.sources.tolist()))
    assert distinct == 4 * 6  # val 0-7 share their sources with train 0-7
    assert len(set(sample.sources[:distinct].tolist())) == distinct
    assert sample.images.shape == (80, 3, 8, 8)


def test_the_command_prints_and_writes_json(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["audit", "--encoder", "pixels", "--data", str(folder), "--out", str(tmp_path), "--size", "16"]
    assert main(arguments) == 0
    (file,) = tmp_path.iterdir()
    audit = Audit.model_validate_json(file.read_text())
    assert audit.encoder.name == "raw pixels"
    assert capsys.readouterr().out == text(audit)


def test_encoder_and_data_may_stand_first(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "pixels", str(folder), "--dry-run"]) == 0
    assert capsys.readouterr().out == f"would audit pixels on {folder} for about 30 s each\n"


def test_a_damaged_encoder_is_refused_before_the_images_are_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.audit.draw_sample", lambda *_: pytest.fail("drawn before the encoder was read"))
    (tmp_path / "empty.pth").touch()
    assert main(["audit", str(tmp_path / "empty.pth"), "--out", str(tmp_path / "audit")]) == 2
    assert "it is empty" in capsys.readouterr().err


def test_data_that_is_not_there_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "--encoder", "pixels", "--data", str(tmp_path)]) == 2
    assert "make demo-data" in capsys.readouterr().err
    with pytest.raises(InputError, match="train/"):
        draw_sample(tmp_path / "none", 16, 0)


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        (["--out", "file/below"], "cannot write to file/below: .*file is not a writable folder"),
        (["--out", "/proc/self"], "cannot write to /proc/self: .*not a writable folder .*; choose another with --out"),
        (["--seconds", "-5"], "--seconds must be above 0, got -5"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--device", "quantum"], r"unknown device 'quantum'; choose auto, cpu, cuda, cuda:1, …$"),
        (["--encoder", "pixels", "random:resnet18-w8", "--name", "one"], "--name is for one encoder, but there are 2"),
        (["--facts", "chanels=BGR"], "--facts chanels=BGR"), (["--encoder", "nothing*.pth"], "no file matches"),
    ],
)  # fmt: skip
def test_wrong_flags_are_one_sentence_before_the_work(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    flags: list[str], fault: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert main(["audit", "--encoder", "pixels", "--data", str(folder), "--size", "8", *flags]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) <= 2  # the fault, then the accepted forms
    assert re.search(fault, said[0])
    assert not list(tmp_path.rglob("*.json"))


def test_the_time_of_a_pass_is_that_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not the time in which the host tells it what to do: the time decides how many images fit the budget."""
    sample = AuditSample(torch.zeros(2, 3, 16, 16, dtype=torch.uint8), np.zeros(2, np.int64), np.arange(2))
    with simulated_cuda() as gpu:
        encoder = load_encoder("pixels").to("cuda")
        monkeypatch.setattr(gpu, "wait", lambda reason: time.sleep(0.2 if reason == "copied to the CPU" else 0))
        assert _EncoderRuns(encoder, sample, 0).seconds_per_image >= 0.1

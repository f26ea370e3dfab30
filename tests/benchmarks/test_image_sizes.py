"""Protocols whose images a vision transformer does not take are run at the nearest size that it does."""

from __future__ import annotations

import shutil
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from benchmarks.__main__ import main
from benchmarks.encoders import timm_models
from benchmarks.encoders.encoder import fitted_size
from benchmarks.encoders.load import load_encoder
from benchmarks.evaluate import evaluate, prepare
from benchmarks.registry import find_protocol, load_task, with_settings
from benchmarks.task import InputError, RunOptions
from results.schema import Architecture, EncoderCard


def saved_vit(folder: Path, name: str, **options: Any) -> Path:
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=0, **options)
    torch.save(net.state_dict(), folder / f"{name}.pth")
    return folder / f"{name}.pth"


@pytest.fixture(scope="module")
def drawings(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with the drawings alone."""
    root = tmp_path_factory.mktemp("drawings")
    shutil.copytree(small_data / "drawings", root / "drawings")
    return root


@pytest.fixture(scope="module")
def of_fourteen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Patches of 14 pixels, positions for 28."""
    folder = tmp_path_factory.mktemp("vit")
    return saved_vit(folder, "vit_small_patch14_dinov2", embed_dim=24, depth=2, num_heads=2, img_size=28)


@pytest.fixture(scope="module")
def of_one_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BEiT's table of relative positions is for images of 32 pixels."""
    folder = tmp_path_factory.mktemp("beit")
    return saved_vit(folder, "beit_base_patch16_224", embed_dim=24, depth=2, num_heads=2, img_size=32)


@pytest.mark.parametrize(
    ("sizes", "asked", "given"),
    [({}, 50, 50), ({"patch_size": 16}, 48, 48), ({"patch_size": 14}, 96, 98), ({"patch_size": 16}, 5, 16),
     ({"patch_size": 16, "input_size": 224}, 96, 224)],
)  # fmt: skip
def test_the_fitted_size(sizes: dict[str, int], asked: int, given: int) -> None:
    card = EncoderCard(name="v", source="test", architecture=Architecture(name="module:v"), **sizes)
    assert fitted_size(card, asked) == given


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "size"), [("of_fourteen", 14), ("of_one_size", 32)])
def test_knn_runs_at_the_nearest_size_and_its_id_says_so(
    kind: str, size: int, drawings: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    protocol = find_protocol("knn.demo")
    asked = protocol.geometry.crop
    crop = 32 if size == 32 else -(-asked // 14) * 14
    options = RunOptions(device="cpu", workers=0, progress=False, records=tmp_path / "r", features=tmp_path / "f")
    path = request.getfixturevalue(kind)
    record = evaluate(path, protocol, drawings, facts=["heads=2"], options=options)
    assert f"+geometry.crop={crop}+geometry.resize=" in record.protocol.id
    geometry = record.protocol.resolved.geometry
    assert geometry.crop == crop
    assert geometry.resize == max(crop, round(protocol.geometry.resize * crop / asked))
    again = evaluate(path, protocol, drawings, facts=["heads=2"], options=options)
    assert again.key == record.key
    fitting = with_settings(protocol, ["geometry.crop=56", "geometry.resize=56"])
    if size == 14:  # nothing to change, so the id only says what the user changed
        loaded = load_encoder(path, facts=["heads=2"])
        run = prepare(load_task("knn")(), fitting, loaded, drawings, options=options)
        assert run.protocol == fitting


@pytest.mark.slow
@pytest.mark.parametrize("command", ["audit", "dry run"])
def test_commands_end_without_a_traceback(
    command: str, of_fourteen: Path, drawings: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [
        "knn",
        "--protocol",
        "knn.demo",
        "--out",
        str(tmp_path / "r"),
        "--features",
        str(tmp_path / "f"),
        "--device",
        "cpu",
    ]
    words = ["audit", "--out", str(tmp_path), "--seconds", "1"] if command == "audit" else words
    words += ["--encoder", str(of_fourteen), "--data", str(drawings), "--facts", "heads=2"]
    words += ["--dry-run"] if command == "dry run" else []
    assert main(words) == 0
    shown = "".join(capfd.readouterr())
    assert "Traceback" not in shown
    if command == "audit":
        assert "at 98 pixels" in shown
    if command == "dry run":
        assert "geometry.crop=" in shown


class Rigid(nn.Module):
    """Takes images of 224 pixels only, and has no patch embedding that says so."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.shape[-1] == 224, "wrong size"
        return images.mean((2, 3))


def test_modules_of_one_size_are_fitted_or_refused_in_a_sentence(drawings: Path, tmp_path: Path) -> None:
    options = RunOptions(device="cpu", workers=0, progress=False, records=tmp_path / "r", features=tmp_path / "f")
    with pytest.raises(InputError, match=r"Rigid fails on images of \d+ pixels, .*; use --set geometry\.crop=224"):
        evaluate(Rigid(), "knn.demo", drawings, options=options)
    card = load_encoder(timm.create_model("vit_tiny_patch16_224", num_classes=0, embed_dim=24, depth=1)).card
    assert (card.patch_size, card.input_size) == (16, 224)


def test_without_a_network_timm_is_asked_once_and_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    offline: list[bool] = []

    def no_network(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    def create(name: str, **_: object) -> None:
        offline.append(bool(constants.HF_HUB_OFFLINE))
        raise OSError("not in the cache")

    monkeypatch.setattr(timm_models.urllib.request, "urlopen", no_network)
    monkeypatch.setattr(timm, "create_model", create)
    before = constants.HF_HUB_OFFLINE
    with pytest.raises(InputError, match=r"cannot load the pretrained weights of resnet18 \(not in the cache\)"):
        load_encoder("timm:resnet18")
    assert offline == [True]
    assert before == constants.HF_HUB_OFFLINE

"""What `--encoder` takes beside checkpoints: functions, modules, patterns, and what is refused in a sentence."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.encoders.forms import expand, parse_architecture
from benchmarks.encoders.load import load_encoder, module_encoder
from benchmarks.task import InputError
from results.schema import Architecture

TINY = Architecture(name="resnet18", width=8, stem_kernel=3, max_pool=False)


def test_architecture_texts() -> None:
    assert parse_architecture("resnet50") == Architecture(name="resnet50")
    assert parse_architecture("resnet18-w8-k3-nopool") == TINY
    for text, fault in (("vgg16", "unknown architecture"), ("resnet18-x9", "unknown part 'x9'")):
        with pytest.raises(InputError, match=fault):
            parse_architecture(text)


class Own(nn.Module):
    def __init__(self, maps: bool) -> None:
        super().__init__()
        self.conv, self.maps = nn.Conv2d(3, 5, 3), maps

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        y = self.conv(x)
        return {"feature5": y, "embed": y.mean((2, 3))} if self.maps else y.mean((2, 3))


def test_ones_own_module_with_a_vector_or_a_mapping() -> None:
    images = torch.randn(2, 3, 16, 16)
    vector, mapping = module_encoder(Own(False)), module_encoder(Own(True), name="mine")
    assert vector.names == {"embed"}
    assert mapping.names == {"feature5", "embed"}
    assert mapping.card.name == "mine"
    assert "mean" in mapping.card.assumed
    assert mapping.outputs(images, ["feature5"])["feature5"].shape == (2, 5, 14, 14)
    with pytest.raises(KeyError, match="has no feature1"):
        vector.outputs(images, ["feature1"])
    with pytest.raises(InputError, match="returns a tensor of shape"):
        module_encoder(nn.Conv2d(3, 4, 3))


def test_a_function_by_its_import_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_models.py").write_text(
        "from torch import nn\n"
        "def build():\n    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    encoder = load_encoder("my_models:build", name="mine")
    assert (encoder.card.name, encoder.names) == ("mine", {"embed"})
    with pytest.raises(InputError, match="cannot import"):
        load_encoder("no_such_package.module:build")
    with pytest.raises(InputError, match="return a torch"):
        load_encoder("collections:OrderedDict")
    given = load_encoder("my_models:build", facts=["channels=BGR method=mine"]).card
    assert (given.channels, given.method, set(given.assumed)) == ("BGR", "mine", {"mean", "std", "value_range"})
    with pytest.raises(InputError, match="max_pool: my_models:build is not a checkpoint"):
        load_encoder("my_models:build", facts=["max_pool=false"])


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("def build():\n    return 1 / 0\n", r"broken_models:build raised ZeroDivisionError: .*broken_models.py:2\)?;"),
        ("def build(\n", "cannot import broken_models:build .SyntaxError"),
        ("raise RuntimeError('no licence')\n", "cannot import broken_models:build .RuntimeError: no licence"),
        (
            "from torch import nn\ndef build():\n    return nn.Linear(3, 4)\n",
            "Linear fails on a .2, 3, 224",
        ),
    ],
)
def test_a_function_that_fails_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, fault: str
) -> None:
    (tmp_path / "broken_models.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_models", raising=False)
    with pytest.raises(InputError, match=fault) as refused:
        load_encoder("broken_models:build")
    assert "\n" not in str(refused.value)


def test_what_is_no_file_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "link.pth").symlink_to("gone.pth")
    (tmp_path / "empty.pth").touch()
    (tmp_path / "page.pth").write_text("\n<!DOCTYPE html><title>404</title>", encoding="utf-8")
    (tmp_path / "lfs.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", encoding="utf-8")
    for name, fault in (
        ("absent.pth", "encoder file not found"), ("folder.pth", "is a folder; give a file in it"),
        ("link.pth", "is a link to gone.pth, which does not exist"), ("empty.pth", "it is empty; copy it again"),
        ("page.pth", "it is a web page"), ("lfs.pth", "git lfs pull"),
    ):  # fmt: skip
        for form in (f"{tmp_path / name}", f"torchvision:resnet50:{tmp_path / name}"):
            with pytest.raises(InputError, match=fault) as refused:
                load_encoder(form)
            assert name in str(refused.value)
    with pytest.raises(InputError, match="encoder file not found: ''"):
        load_encoder("")


def test_a_device_that_is_not_there_is_one_sentence() -> None:
    for device in ("quantum", "cuda:99"):
        with pytest.raises(InputError, match=f"cannot use the device {device} .*; choose another") as refused:
            load_encoder("random:resnet18-w8").to(device)
        assert "\n" not in str(refused.value)


def test_globs_expand_in_order_and_refuse_to_match_nothing(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / f"{name}.safetensors").touch()
    assert [Path(p).stem for p in expand([f"{tmp_path}/*.safetensors", "pixels"])] == ["a", "b", "pixels"]
    with pytest.raises(InputError, match="no file matches"):
        expand([f"{tmp_path}/*.pth"])
    bracketed = f"{tmp_path}/c[1].safetensors"
    Path(bracketed).touch()
    assert expand([bracketed]) == [bracketed]  # a file that is there is meant, whatever its name looks like

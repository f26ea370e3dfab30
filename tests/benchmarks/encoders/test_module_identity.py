"""Own modules: what tells two of them apart, and what they must return."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.encoders.load import CLASSIFIER_WIDTHS, module_encoder, module_identity
from benchmarks.evaluate import evaluate
from benchmarks.task import InputError, RunOptions

FACTOR = 1.0


class Settings(nn.Module):
    """No weights: everything that it computes follows from its attributes and its code."""

    def __init__(
        self, power: float = 1.0, function: Callable[[Tensor], Tensor] | None = None, more: Any = None
    ) -> None:
        super().__init__()
        self.power, self.function, self.more = power, function, more

    def forward(self, x: Tensor) -> Tensor:
        y = (x - x.amin()).clamp(min=1e-3).mean((2, 3)) ** self.power * FACTOR
        return y if self.function is None else self.function(y)


class Opaque:
    """Says nothing about itself."""


def test_settings_code_hooks_and_global_values_tell_modules_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = module_identity(Settings())
    assert module_identity(Settings()) == plain
    others = [
        Settings(2.0), Settings(function=torch.exp), Settings(function=lambda y: y + 1),
        Settings(function=lambda y: y + 2), Settings(more=torch.ones(2)), Settings(more=torch.zeros(2)),
        Settings(more={"a": [1]}), nn.Sequential(Settings()), nn.Dropout(0.1), nn.Dropout(0.2),
    ]  # fmt: skip
    hooked = Settings()
    hooked.register_forward_hook(lambda module, inputs, output: output * 2)
    found = {plain, *map(module_identity, [*others, hooked])}
    monkeypatch.setattr(sys.modules[__name__], "FACTOR", 2.0)
    found.add(module_identity(Settings()))
    assert len(found) == len(others) + 3
    assert module_identity(nn.Dropout(0.1).eval()) == module_identity(nn.Dropout(0.1))


def test_where_nothing_distinguishes_modules_for_sure_they_share_nothing() -> None:
    module = Settings(more=Opaque())
    assert module_identity(module) != module_identity(module)


@pytest.mark.slow
def test_the_same_module_has_the_same_identity_in_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        "from torch import nn\nimport torch.nn.functional as F\n"
        "class Own(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.conv, self.act = nn.Conv2d(3, 4, 3), F.relu\n"
        "        self.names = {'b', 'a'}\n"
        "    def forward(self, x):\n        return helper(self.act(self.conv(x)))\n"
        "def helper(x):\n    return x.mean((2, 3))\n"
    )
    (tmp_path / "my_identity.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    own = __import__("my_identity").Own()
    code = "import my_identity as m; from benchmarks.encoders.load import *; print(module_identity(m.Own()))"
    path = ":".join(filter(None, [str(tmp_path), *sys.path]))
    asked = [sys.executable, "-c", code]
    found = subprocess.run(asked, capture_output=True, text=True, check=True, env={"PYTHONPATH": path}).stdout
    assert found.strip() == module_identity(own)


@pytest.mark.slow
def test_two_modules_of_one_class_share_neither_records_nor_features(data: Path, tmp_path: Path) -> None:
    options = RunOptions(workers=0, progress=False, records=tmp_path / "records", features=tmp_path / "features")
    asked: dict[str, Any] = {"protocol": "knn.demo@1", "data": data, "changes": {"k": (1,)}, "options": options}
    first, second = (evaluate(Settings(power), **asked) for power in (1.0, 40.0))
    assert first.key != second.key
    assert len(list((tmp_path / "features").iterdir())) == 4  # train and test of both
    assert evaluate(Settings(1.0), **asked).created == first.created  # the same module again is the same record


@pytest.mark.parametrize(
    ("function", "fault"),
    [
        (lambda y: y.mean(0, keepdim=True), r"of shape \(1, 3\) for 2 images; return one row per image"),
        (lambda y: torch.complex(y, y), "returns complex embed; return real numbers"),
        (lambda y: {"embed": y[:, :, None]}, r"returns embed as \(2, 3, 1\); return a tensor \(N, D\)"),
        (lambda y: {"feature5": y}, r"returns feature5 as \(2, 3\); return a tensor \(N, C, H, W\)"),
        (lambda y: {"embed": 3}, "returns embed as int"),
        (lambda y: sys.exit("bye"), "fails on a .*SystemExit: bye"),
    ],
)
def test_what_a_module_must_not_return(function: Callable[[Tensor], Any], fault: str) -> None:
    with pytest.raises(InputError, match=fault):
        module_encoder(Settings(function=function))


def test_a_module_that_drops_images_or_exits_later_is_refused() -> None:
    encoder = module_encoder(Settings(function=lambda y: y if len(y) == 2 else y[:1]))
    with pytest.raises(InputError, match=r"of shape \(1, 3\) for 5 images"):
        encoder.outputs(torch.zeros(5, 3, 8, 8), ["embed"])
    encoder = module_encoder(Settings(function=lambda y: y if len(y) == 2 else sys.exit(1)))
    with pytest.raises(InputError, match=r"ended the program .*raise an exception"):
        encoder.outputs(torch.zeros(5, 3, 8, 8), ["embed"])


def test_the_width_of_a_known_classifier_is_pointed_out(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        module_encoder(Settings(function=lambda y: y.repeat(1, 400)[:, :1000]))
    assert "returns 1000 numbers per image, the number of classes of ImageNet-1k" in caplog.text
    caplog.clear()
    module_encoder(Settings(function=lambda y: y.repeat(1, 400)[:, :999]))
    assert not caplog.text
    assert set(CLASSIFIER_WIDTHS) == {10, 100, 205, 365, 1000, 8142, 21841}

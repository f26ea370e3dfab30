"""The passes' arithmetic: folded batch norms, lower precisions, sizes of batches and of outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.__main__ import main
from benchmarks.encoders.encoder import Encoder
from benchmarks.encoders.forms import parse_architecture
from benchmarks.encoders.load import load_encoder
from benchmarks.encoders.networks import random_resnet, recalibrated
from benchmarks.features.extract import default_batch_size, extractor, folded, widths
from benchmarks.features.pool import AdaptivePooling, FixedPooling
from benchmarks.task import InputError
from pretrain.distributed import float32_kind
from results.schema import Architecture, EncoderCard, Geometry
from results.store import read_records

GEOMETRY = Geometry(mode="shorter", resize=64, crop=64)
OUTPUTS = {"embed": ("embed", None), "feature3": ("feature3", AdaptivePooling(grid=2))}


def noise(count: int, size: int = 64, seed: int = 0) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 8, 8, generator=draws)
    return (F.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1) * 255).to(torch.uint8)


def calibrated(architecture: str) -> Encoder:
    return recalibrated(random_resnet(parse_architecture(architecture), 0), [noise(16, seed=1)])


@pytest.mark.parametrize("architecture", ["resnet18-w16", "resnet50-w16", "resnext50_32x4d-w32"])
def test_folding_errs_no_more_than_float32_does_and_is_undone(architecture: str) -> None:
    """Against float64, in nets whose statistics at random weights blow every rounding error up."""
    names = ["embed", "feature1", "feature5"]
    encoder, exact = calibrated(architecture), calibrated(architecture)
    before = {name: id(module) for name, module in encoder.module.named_modules()}
    images = encoder.normalise(noise(4))
    exact.module.double()
    expected = exact.outputs(images.double(), names)
    plain = encoder.outputs(images, names)
    with folded(encoder, set(names), 64) as kept:
        assert kept
        assert not any(isinstance(module, nn.BatchNorm2d) for module in encoder.module.modules())
        found = encoder.outputs(images, names)
    for name, value in expected.items():
        largest = value.abs().amax()
        assert (found[name] - value).abs().amax() < 3 * (plain[name] - value).abs().amax() + 1e-6 * largest
        assert not torch.equal(found[name], plain[name])
    assert {name: id(module) for name, module in encoder.module.named_modules()} == before
    assert torch.equal(encoder.outputs(images, names)["embed"], plain["embed"])


class TwoReaders(nn.Module):
    """Its convolution's output is read by a norm and by a skip around it, so there is nothing to fold."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.norm.running_mean += 1  # type: ignore[operator]

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        return (self.norm(maps) + maps).mean((2, 3))


def test_a_convolution_that_others_read_too_is_not_folded() -> None:
    network = TwoReaders()
    card = EncoderCard(name="two readers", source="test", architecture=Architecture(name="module:test"))
    encoder = Encoder(card, network, lambda images, names: {"embed": network(images)}, ["embed"])
    with folded(encoder, {"embed"}, 16) as kept:
        assert not kept
        assert isinstance(network.norm, nn.BatchNorm2d)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["resnet18", "resnet50"])
def test_bf16_features_point_where_fp32_ones_do(architecture: str) -> None:
    encoder, images = load_encoder(f"random:{architecture}"), noise(8)
    found = {}
    for precision in ("fp32", "bf16"):
        with extractor(encoder, GEOMETRY, OUTPUTS, precision) as extract:  # type: ignore[arg-type]
            found[precision] = extract(images, OUTPUTS)
    for key in OUTPUTS:
        assert found["bf16"][key].dtype == torch.float32
        assert not torch.equal(found["bf16"][key], found["fp32"][key])
        assert F.cosine_similarity(found["bf16"][key], found["fp32"][key]).min() > 0.9995


@pytest.mark.nightly
def test_bf16_turns_few_knn_answers_and_as_many_right_as_wrong(all_drawings: Path, tmp_path: Path) -> None:
    """On 651 images a point is 6.5 of them, so the accuracies alone would not tell rounding from harm."""
    flags = ["--encoder", "package:efficientnet-lite0", "--data", str(all_drawings), "--device", "cpu"]
    where = ["--out", str(tmp_path / "records"), "--features", str(tmp_path / "features")]
    for precision in ("fp32", "bf16"):
        assert main(["knn", *flags, *where, "--precision", precision]) == 0
    found = {each.record.protocol.id: each.outcomes() for each in read_records(tmp_path / "records")[0]}
    assert sorted(found) == ["knn.demo@1", "knn.demo@1+precision=bf16"]
    plain, low = found["knn.demo@1"], found["knn.demo@1+precision=bf16"]
    assert plain is not None
    assert low is not None
    columns = [name for name in plain if name.startswith("correct/")]
    assert columns
    assert list(plain["ids"]) == list(low["ids"])
    for column in columns:
        lost = int(np.sum(plain[column] & ~low[column]))
        won = int(np.sum(low[column] & ~plain[column]))
        assert lost + won <= 0.05 * len(plain[column]), column  # 3.2 % at most when this was written
        assert abs(lost - won) <= 3 * np.sqrt(lost + won), column  # the sign test, at three standard errors


@pytest.mark.slow
def test_precision_is_a_word_of_the_protocol_id_and_fp32_is_not(small_data: Path, tmp_path: Path) -> None:
    flags = ["--data", str(small_data), "--device", "cpu", "--workers", "0"]
    where = ["--out", str(tmp_path / "records"), "--features", str(tmp_path / "features")]
    for precision in ("fp32", "bf16"):
        command = ["knn", "--encoder", "random:resnet18-w8-k3-nopool", *flags, *where, "--precision", precision]
        assert main(command) == 0
    found = sorted(each.record.protocol.id for each in read_records(tmp_path / "records")[0])
    assert found == ["knn.demo@1", "knn.demo@1+precision=bf16"]
    assert len(list((tmp_path / "features").iterdir())) == 4


def test_widths_are_those_of_the_features_and_misfits_are_refused() -> None:
    encoder = load_encoder("random:resnet18-w8-k3-nopool")
    with extractor(encoder, GEOMETRY, OUTPUTS, "fp32") as extract:
        found = extract(noise(2), OUTPUTS)
    assert widths(encoder, GEOMETRY, OUTPUTS) == {key: value.shape[1] for key, value in found.items()}
    with pytest.raises(InputError, match="for 7x7 maps"):
        widths(encoder, GEOMETRY, {"f": ("feature5", FixedPooling(size=7, kernel=6, stride=1))})


def test_batches_hold_as_many_pixels_whatever_the_size_of_the_images() -> None:
    cpu = torch.device("cpu")
    assert default_batch_size(cpu, 224) == 8
    assert default_batch_size(cpu, 48) == 174
    assert default_batch_size(torch.device("cuda"), 224) == 256
    assert np.all([default_batch_size(cpu, size) >= 1 for size in (1, 4096)])


def test_convolutions_keep_cudnn_with_its_deterministic_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, cudnn = load_encoder("random:resnet18-w8:0"), torch.backends.cudnn
    seen: list[tuple[bool, bool, bool, str]] = []

    def flags() -> tuple[bool, bool, bool, str]:
        return cudnn.enabled, cudnn.benchmark, cudnn.deterministic, float32_kind()

    outputs = Encoder.outputs

    def noting(self: Encoder, *arguments: Any) -> Any:
        seen.append(flags())
        return outputs(self, *arguments)

    with extractor(
        encoder, Geometry(mode="shorter", resize=32, crop=32), {"embed": ("embed", None)}, "fp32"
    ) as extract:
        monkeypatch.setattr(Encoder, "outputs", noting)
        before = flags()
        extract(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), {"embed": ("embed", None)})
        assert flags() == before
    assert seen == [(True, False, True, "ieee")]

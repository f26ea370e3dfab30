"""What must not load: files that fill a network in part, and facts that make no sense."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.encoders.load import load_encoder
from benchmarks.task import InputError
from pretrain.weight_files import write_backbone
from results.schema import Architecture, EncoderCard
from tests.reference.checkpoint_tables import NARROW, named, network, table


def refused(path: Path, tensors: dict[str, Tensor], match: str, encoder: str | None = None) -> None:
    torch.save({"state_dict": tensors}, path)
    with pytest.raises(InputError, match=match) as caught:
        load_encoder(encoder or path)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)


def test_a_resnet101_into_a_resnet50_is_refused_with_counts_and_names(tmp_path: Path) -> None:
    deep = network(Architecture(name="resnet101", width=8)).state_dict()
    refused(tmp_path / "c.pth", deep, r"fills 265 of the backbone's 265 tensors: 306 left over \(layer3.10.bn1.bias",
            f"torchvision:resnet50:{tmp_path / 'c.pth'}")  # fmt: skip
    shallow = network().state_dict()
    refused(tmp_path / "d.pth", shallow, r"fills 265 of the backbone's 520 tensors: 255 missing \(layer3.10",
            f"torchvision:resnet101:{tmp_path / 'd.pth'}")  # fmt: skip


def test_one_missing_one_left_over_one_misshapen_and_a_head_alone_are_refused(tmp_path: Path) -> None:
    rows = table("moco_v2")
    whole = named(rows, network())
    key = "module.encoder_q.layer3.5.bn2.running_var"
    without = {name: tensor for name, tensor in whole.items() if name != key}
    fault = (
        r"fills 264 of .* 265 tensors: 1 missing \(layer3.5.bn2.running_var\); .* another architecture or incomplete$"
    )
    refused(tmp_path / "a.pth", without, fault)
    more = {**whole, "module.encoder_q.layer3.5.attention.weight": torch.zeros(3)}
    refused(tmp_path / "b.pth", more, r"1 left over \(layer3.5.attention.weight\); .* another architecture$")
    refused(tmp_path / "c.pth", {**whole, key: torch.zeros(7)}, r"1 of another shape \(layer3.5.bn2.running_var\)")
    head = {"fc.weight": torch.zeros(10, 2048), "fc.bias": torch.zeros(10)}
    refused(tmp_path / "d.pth", head, r"no backbone in a known layout: 2 tensors, the first are state_dict/fc.weight")
    refused(tmp_path / "e.pth", {**whole, key: torch.zeros(32, dtype=torch.int64)}, "integers in 1 tensors")
    odd = network(Architecture(name="resnet18", width=8)).state_dict()
    odd = {name: tensor for name, tensor in odd.items() if not name.startswith("layer2.1")}
    refused(tmp_path / "f.pth", odd, "2-1-2-2 BasicBlock blocks with 1 groups")


@pytest.mark.parametrize(
    ("fact", "fault"),
    [
        ("chanels=BGR", "chanels=BGR: unknown name 'chanels'; did you mean 'channels'?\nnames: architecture, pick"),
        ("embed=first", "--facts embed=first: Input should be"),
        ("pooling=first", "--facts pooling=first: Input should be"),
        ("color=BGR", "color=BGR: unknown name 'color'\nnames: architecture, pick"),
        ("channels=BRG", "channels=BRG: "), ("channels=", "expected name=value"),
        ("mean=1,2", "mean=1,2: write three numbers"), ("mean=a,b,c", "mean=a,b,c: write three numbers"),
        ("max_pool=perhaps", "max_pool=perhaps"), ("bn_eps", "expected name=value"),
        ("stem_stride=0", "stem_stride=0: must be above 0"), ("std=1,0,1", "std=1,0,1: must be above 0"),
        ("value_range=nan", "above 0"), ("bn_eps=-1", "above 0"), ("stem_padding=-1", "0 or more"),
        ("mean=inf,0,0", "mean=inf,0,0: must be finite"), ("epochs=-3", "0 or more"),
        ("channels=BGR channels=RGB", "channels: given as BGR and as RGB; keep one"),
        ("channels=BGR RGB", "--facts channels=BGR RGB: expected name=value"),
        ("method=MoCo v2 chanels=BGR", "--facts chanels=BGR: unknown name 'chanels'; did you mean"),
    ],
)  # fmt: skip
def test_facts_are_typed(fact: str, fault: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_encoder(tmp_path / "c.pth", facts=[fact])
    assert fault in str(caught.value)


def test_facts_that_nothing_would_heed_are_refused(tmp_path: Path) -> None:
    net = network()
    torch.save(net.state_dict(), tmp_path / "c.pth")
    write_backbone(tmp_path / "own.safetensors", net.state_dict(),
                   EncoderCard(name="mine", source="test", architecture=NARROW))  # fmt: skip
    for encoder, facts, fault in (
        ("pixels", "channels=BGR", "channels: only a checkpoint has them, and pixels is not one"),
        (tmp_path / "c.pth", "num_heads=6", "num_heads: .*is a resnet50, which has no such setting"),
        (tmp_path / "own.safetensors", "num_heads=6", "num_heads: .*is a resnet50"),
        (tmp_path / "own.safetensors", "pick=encoder_k", "holds one encoder"),
        (tmp_path / "own.safetensors", "architecture=resnet18", "holds a resnet50, not a resnet18"),
        (f"torchvision:resnet101:{tmp_path / 'own.safetensors'}", "", "holds a resnet50, not a resnet101"),
    ):
        with pytest.raises(InputError, match=fault):
            load_encoder(encoder, facts=[facts] if facts else [])


def test_what_a_zoo_page_says_of_an_encoder_can_be_given_with_blanks(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "c.pth")
    said = ("published_as=MoCo v1 + MLP head tau=0.2", "method=MoCo v1 epochs=200 licence=CC BY-NC 4.0",
            "pretrain_data=ImageNet-1k")  # fmt: skip
    card = load_encoder(tmp_path / "c.pth", name="my own", facts=said).card
    assert (card.published_as, card.method, card.epochs) == ("MoCo v1 + MLP head tau=0.2", "MoCo v1", 200)
    assert (card.licence, card.pretrain_data, card.name) == ("CC BY-NC 4.0", "ImageNet-1k", "my own")


@pytest.mark.parametrize(
    ("said", "near"),
    [
        ("MoCo v2/resnet50_8xb32-coslr-200", "\nsimilar names: MoCo v2/resnet50_8xb32-coslr-200e, "),
        ("moco v2/resnet50_8xb32-coslr-200e", "\nsimilar names: MoCo v2/resnet50_8xb32-coslr-200e, "),
        ("qqqq", ""),
    ],
)
def test_a_published_model_that_is_none_is_refused_with_its_near_misses(tmp_path: Path, said: str, near: str) -> None:
    torch.save(network().state_dict(), tmp_path / "c.pth")
    with pytest.raises(InputError) as refused:
        load_encoder(tmp_path / "c.pth", facts=[f"published_as={said}"])
    fault = f"--facts published_as={said}: results/published.csv has no such model; "
    remedy = "leave it out for an encoder that was not published"
    assert str(refused.value).startswith(fault + remedy + near)
    assert near or str(refused.value) == fault + remedy


def test_a_files_own_card_may_name_a_model_that_another_version_knew(tmp_path: Path) -> None:
    card = EncoderCard(name="a", source="test", architecture=NARROW, published_as="MoCo v9")
    write_backbone(tmp_path / "own.safetensors", network().state_dict(), card)
    assert load_encoder(tmp_path / "own.safetensors").card.published_as == "MoCo v9"

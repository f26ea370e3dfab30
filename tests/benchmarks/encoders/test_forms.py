"""What is wrong with a command's encoder at first sight, said before torch is imported."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.encoders.forms import NARROWEST, RESNETS, TORCHVISION_NETWORKS, WIDEST, refuse_at_sight, timm_names
from benchmarks.task import InputError
from pretrain import recipe
from pretrain.resnet import STAGES

# Runs each command and prints its exit code, and at the end whether torch was imported.
RUN_ALL = """
import sys
from benchmarks.__main__ import main
for words in {commands!r}:
    sys.stderr.write("---\\n")
    print(main(words))
print("torch" in sys.modules)
"""


@pytest.mark.slow
def test_a_wrong_encoder_or_data_root_is_refused_before_torch_is_imported(small_data: Path, tmp_path: Path) -> None:
    refused = {
        ("none.pth",): "encoder file not found: 'none.pth'",
        ("pixles",): "encoder file not found: 'pixles'; did you mean 'pixels'?",
        ("timm:resnet18:none.pth",): "encoder file not found: 'none.pth'",
        ("timm:resnet5o_gn",): "has no model 'resnet5o_gn'; did you mean 'resnet50_gn'",
        ("timm:resnet51.tag:none.pth",): "has no model 'resnet51.tag'",
        ("torchvision:resnet51",): "torchvision:resnet51 is not one of resnet18",
        ("random:resnet19",): "unknown architecture 'resnet19'",
        ("random:resnet18:a",): "the seed must be a number, got 'a'",
        ("hf:none",): "hf:none: folder not found",
        ("pixels", "--facts", "channel=BGR"): "did you mean 'channels'?",
        ("pixels", "--data", str(tmp_path)): f"data set imagenet not found: {tmp_path}",
    }
    commands = [
        [command, "--data", str(small_data), "--out", str(tmp_path / "out"), "--encoder", *encoder, *dry]
        for encoder in refused
        for command, dry in (("knn", ()), ("knn", ("--dry-run",)))
    ] + [["all", "--encoder", "none.pth", "--data", str(small_data), "--dry-run"]]
    code = RUN_ALL.format(commands=commands)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [*["2"] * len(commands), "False"]
    told = done.stderr.split("---\n")[1:]
    expected = [sentence for sentence in refused.values() for _ in range(2)] + ["encoder file not found: 'none.pth'"]
    for said, sentence in zip(told, expected, strict=True):
        assert said.startswith("encoder-bench: ")
        assert sentence in " ".join(said.split())
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_a_timm_model_of_other_sizes_is_not_refused(tmp_path: Path) -> None:
    (tmp_path / "w.pth").touch()
    refuse_at_sight([f"timm:vit_tiny_patch16_224-d48-l2-swiglu:{tmp_path / 'w.pth'}"])  # as cards name it
    with pytest.raises(InputError, match="has no model 'vit_tiny_patch16_224-small'"):
        refuse_at_sight([f"timm:vit_tiny_patch16_224-small:{tmp_path / 'w.pth'}"])


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("resnet50", "did you mean 'torchvision:resnet50' or 'random:resnet50'?"),
        ("mobilenet_v2", "did you mean 'torchvision:mobilenet_v2:FILE'?"),
        ("vit_tiny_patch16_224", "did you mean 'timm:vit_tiny_patch16_224'?"),
        ("vit_base_patch14_dinov2.lvd142m", "did you mean 'timm:vit_base_patch14_dinov2.lvd142m'?"),
        ("facebook/dinov2-small", "hf:FOLDER after `hf download facebook/dinov2-small --local-dir FOLDER`"),
    ],
)
def test_the_name_of_a_network_that_is_no_file_is_answered_with_its_form(written: str, meant: str) -> None:
    with pytest.raises(InputError, match=re.escape(meant)):
        refuse_at_sight([written])


def test_a_file_that_is_not_there_is_not_taken_for_a_model_of_the_hub() -> None:
    with pytest.raises(InputError, match=r"^encoder file not found: 'runs/last\.pth'; --encoder takes"):
        refuse_at_sight(["runs/last.pth"])


def test_one_good_encoder_among_several_is_not_kept_from_its_turn() -> None:
    refuse_at_sight(["none.pth", "pixels"])
    with pytest.raises(InputError, match=r"'none\.pth'"):
        refuse_at_sight(["none.pth", "random:resnet19"])


def test_the_names_are_those_of_the_networks() -> None:
    import timm
    import torchvision

    assert set(timm.list_models()) <= timm_names()
    assert all(timm.is_model(name) for name in timm_names())  # old names are models too

    assert set(RESNETS) == set(STAGES)
    assert {name: NARROWEST.get(name, 1) for name in RESNETS} == recipe.RESNETS
    assert recipe.WIDEST == WIDEST
    assert set(TORCHVISION_NETWORKS) <= set(torchvision.models.list_models())

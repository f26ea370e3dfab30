"""mmsegmentation's ViT against the encoder, its optimiser against a plain rule, and runs on tiny data."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers.mlp import SwiGLUPacked

from benchmarks.__main__ import main
from benchmarks.datasets.registry import find_dataset
from benchmarks.encoders.encoder import Encoder
from benchmarks.encoders.load import load_encoder
from benchmarks.segmentation.task import VIT_PROTOCOLS, VitSegmentation, VitSegmentationParams
from benchmarks.task import InputError, Labels, NotApplicableError, RunOptions
from results.schema import Protocol
from results.store import read_records
from tests.builders import small_vit

pytestmark = [
    pytest.mark.skipif(not find_spec("mmseg"), reason="mmsegmentation is not installed: make setup-transfer"),
    pytest.mark.filterwarnings("ignore"),
]

OPTIONS = RunOptions(device="cpu", workers=0, progress=False)
WIDTH, DEPTH = 24, 4
TINY: dict[str, Any] = {
    "blocks": (), "scale": (64, 32), "crop": 32, "window_stride": 24, "batch_size": 2, "iterations": 4,
    "warmup_iterations": 2, "checkpoint_every": 1, "classes": 13,
}  # fmt: skip
SMALL_HEADS = {"head_channels": 8, "auxiliary_channels": 8}


def vit(name: str = "vit_tiny_patch16_224", **settings: Any) -> Encoder:
    return small_vit(name, noise=True, **{"depth": DEPTH, "img_size": 24, **settings})


def protocol(identifier: str = "ade20k_upernet.mae_base@1", **changes: Any) -> Protocol:
    found = next(p for p in VIT_PROTOCOLS if p.id == identifier)
    small = SMALL_HEADS if found.params["head"] == "upernet" else {}
    return found.changed(**{**TINY, **small, **changes})


@pytest.fixture
def ade20k(small_data: Path) -> tuple[Labels, Labels]:
    spec = find_dataset("ade20k", small_data)
    return spec.read("training"), spec.read("validation")


def trial(data: tuple[Labels, Labels], folder: Path, encoder: Encoder, of: Protocol) -> Any:
    from benchmarks.segmentation.train import VitSegmentationTrial

    return VitSegmentationTrial(VitSegmentationParams.model_validate(of.params), encoder, *data, 0, folder, OPTIONS)


ENCODERS: dict[str, dict[str, Any]] = {
    "MAE": {},
    "DINOv2": {"init_values": 1e-5, "reg_tokens": 4, "no_embed_class": True},
    "registers with positions": {"reg_tokens": 2},
    "I-JEPA": {"class_token": False, "global_pool": "avg", "fc_norm": False},
    "CLIP": {"pre_norm": True, "name": "vit_base_patch16_clip_quickgelu_224"},
    "DINOv2 giant": {"init_values": 1e-5, "mlp_ratio": 5.5, "mlp_layer": SwiGLUPacked, "act_layer": torch.nn.SiLU},
    "without biases of queries, keys and values": {"qkv_bias": False},
    "DINOv3": {"name": "vit_small_patch16_dinov3_qkvb"},
    "DINOv3 7B": {"name": "vit_7b_patch16_dinov3"},
    "PE": {"name": "vit_pe_core_tiny_patch16_384"},
}


@pytest.mark.parametrize("kind", ENCODERS)
def test_the_backbones_maps_are_the_encoders_at_an_interpolated_size(
    kind: str, ade20k: tuple[Labels, Labels], tmp_path: Path
) -> None:
    encoder = vit(**ENCODERS[kind])
    of = trial(ade20k, tmp_path, encoder, protocol(crop=48, head="linear", auxiliary_channels=0))
    model = of.build()
    of.check_backbone(model.backbone)
    model.eval()
    x = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    module: Any = encoder.module
    with torch.no_grad():
        maps = model.backbone(x)
        last = module.norm(maps[-1].movedim(1, -1)).movedim(-1, 1)
        every = module.forward_intermediates(x, indices=4, norm=False, intermediates_only=True)
    torch.testing.assert_close(last, encoder.outputs(x, ("patches",))["patches"], rtol=1e-5, atol=1e-5)
    for own, theirs in zip(maps, every, strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-5, atol=1e-5)
    assert model.backbone.pos_embed.requires_grad == (module.pos_embed is not None)
    with torch.no_grad():
        model.backbone.pos_embed[0, 3, 2] += 1e-3
    with pytest.raises(RuntimeError, match="1 of the backbone's tensors are not the checkpoint's: pos_embed"):
        of.check_backbone(model.backbone)


def test_dinos_positions_are_interpolated_by_dinos_rule(ade20k: tuple[Labels, Labels], tmp_path: Path) -> None:
    from functools import partial

    from benchmarks.encoders.timm_models import _offset_positions

    encoder = vit()
    module: Any = encoder.module
    module._pos_embed = partial(_offset_positions, module)
    model = trial(ade20k, tmp_path, encoder, protocol(crop=48)).build().eval()
    x = torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        last = module.norm(model.backbone(x)[-1].movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(last, encoder.outputs(x, ("patches",))["patches"], rtol=1e-5, atol=1e-5)


def test_rates_fall_by_layer_and_vectors_have_no_decay(ade20k: tuple[Labels, Labels], tmp_path: Path) -> None:
    of = trial(ade20k, tmp_path, vit(init_values=1e-5, reg_tokens=1), protocol())
    runner = of._runner(None, lambda: False, progress=False)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    names = {id(parameter): name for name, parameter in runner.model.named_parameters()}
    found = {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in runner.optim_wrapper.optimizer.param_groups
        for parameter in group["params"]
    }
    assert set(found) == {name for name, p in runner.model.named_parameters() if p.requires_grad}
    for name, parameter in runner.model.named_parameters():
        layer = DEPTH + 1
        if name in ("backbone.cls_token", "backbone.pos_embed") or name.startswith("backbone.patch_embed."):
            layer = 0
        elif name.startswith("backbone.layers."):
            layer = int(name.split(".")[2]) + 1
        decayed = parameter.ndim > 1 and not name.endswith(".bias")
        assert found[name] == (pytest.approx(1e-4 * 0.65 ** (DEPTH + 1 - layer)), 0.05 if decayed else 0.0), name
    assert found["backbone.patch_embed.registers"][0] == pytest.approx(1e-4 * 0.65**5)
    assert found["decode_head.conv_seg.weight"] == (pytest.approx(1e-4), 0.05)


def test_a_linear_head_leaves_the_encoder_alone(ade20k: tuple[Labels, Labels], tmp_path: Path) -> None:
    of = trial(ade20k, tmp_path, vit(), protocol("ade20k_linear_vit.ibot_base@1"))
    before = of.build()
    trained = {name for name, p in before.named_parameters() if p.requires_grad}
    assert trained == {"decode_head.conv_seg.weight", "decode_head.conv_seg.bias"}
    assert before.decode_head.conv_seg.in_channels == 4 * WIDTH
    after = of.train(progress=False)
    of.check_backbone(after.backbone)
    assert not torch.equal(after.decode_head.conv_seg.weight, before.decode_head.conv_seg.weight)


@pytest.mark.slow
def test_upernet_runs_on_ade20k_and_goes_on_where_it_was_killed(ade20k: tuple[Labels, Labels], tmp_path: Path) -> None:
    of = protocol()
    whole = trial(ade20k, tmp_path / "whole", vit(), of)
    model = whole.train(progress=False)
    scores = whole.measure(model, progress=False)
    assert 0 <= scores.columns["mIoU"] <= 100
    assert not torch.equal(model.backbone.pos_embed, whole.build().backbone.pos_embed)
    (tmp_path / "whole" / "iter_4.pth").unlink()
    again = trial(ade20k, tmp_path / "whole", vit(), of).train(progress=False)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_what_it_cannot_hold_is_refused_by_name() -> None:
    task, of = VitSegmentation(), protocol()
    cases = [
        (load_encoder("random:resnet18-w8:0"), of, "for a ResNet use voc-seg"),
        (load_encoder("pixels"), of, "for vision transformers"),
        (vit(qk_norm=True), of, "needs one layer for queries, keys and values"),
        (vit(mlp_ratio=2.7), of, "a whole number of times"),
        (vit("beit_base_patch16_224", dynamic_img_size=None), of, "one number per head .* its ViT has none"),
        (vit("aimv2_large_patch14_224"), of, "needs .*layer norms; norms by the root mean square, as AIMv2's"),
        (vit("vit_small_patch16_rope_mixed_224"), of, "needs positions that are added to the patches or rotary"),
    ]
    for encoder, under, message in cases:
        with pytest.raises(NotApplicableError, match=message):
            task.check_encoder(under, encoder)
    with pytest.raises(InputError, match=r"has 4 blocks, but the protocol reads blocks 3, 5, 7, 11"):
        task.check_encoder(of.changed(blocks=(3, 5, 7, 11)), vit())
    with pytest.raises(InputError, match="has 3 blocks, and the head reads the outputs of four"):
        task.check_encoder(of, vit(depth=3))


def test_settings_that_exclude_each_other_are_refused() -> None:
    for changes, message in (
        ({"frozen": True}, "a frozen encoder has no rates"),
        ({"blocks": (3, 2, 1, 0)}, "four different ones in ascending order"),
        ({"warmup_iterations": 4}, "does not end within the 4 of the run"),
        ({"warmup_iterations": 1}, "never ends a warm-up of one iteration"),
    ):
        with pytest.raises(InputError, match=message):
            protocol(**changes)


@pytest.mark.nightly
@pytest.mark.parametrize("identifier", ["ade20k_upernet.demo", "ade20k_linear_vit.demo"])
def test_it_ends_in_a_record_on_the_embedded_scenes(identifier: str, small_data: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    file = tmp_path / "vit.safetensors"
    save_file({name: t.contiguous() for name, t in vit().module.state_dict().items()}, file)
    code = main(
        ["vit-seg", "--encoder", str(file), "--facts", "heads=3", "--data", str(small_data), "--out",
         str(tmp_path / "records"), "--workers", "0", "--device", "cpu", "--protocol", identifier,
         "--set", "iterations=6", "warmup_iterations=2"]
    )  # fmt: skip
    assert code == 0
    (stored,), bad = read_records(tmp_path / "records")
    assert not bad
    assert stored.intact
    assert 0 <= (stored.record.scores["mIoU"].value or 0) <= 100
    assert list(stored.path.parent.glob("*.sheet.png"))

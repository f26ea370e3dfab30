"""detectron2's ViTDet against the encoder, its configuration against its own file, rates, and runs on tiny data."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from benchmarks.__main__ import main
from benchmarks.datasets.registry import find_dataset
from benchmarks.detection.data import read_scenes
from benchmarks.detection.protocols import VIT_PROTOCOLS, VitDetectionParams
from benchmarks.detection.task import VitDetection
from benchmarks.encoders.encoder import Encoder
from benchmarks.encoders.load import load_encoder
from benchmarks.encoders.timm_models import _encoder
from benchmarks.encoders.vit_export import VitShape
from benchmarks.task import InputError, NotApplicableError, RunOptions
from results.schema import Architecture, EncoderCard, Protocol
from results.store import read_records

pytestmark = [
    pytest.mark.skipif(not find_spec("detectron2"), reason="detectron2 is not installed: make setup-transfer"),
    pytest.mark.filterwarnings("ignore"),
]

PUBLISHED = VitDetectionParams.model_validate(VIT_PROTOCOLS[0].params)
CARD = EncoderCard(name="a ViT-B", source="test", architecture=Architecture(name="timm:vit_base_patch16_224"))
VIT_BASE = VitShape(
    width=768, depth=12, heads=12, hidden=3072, patch=16, norm_eps=1e-6, class_token=True, registers=0,
    layer_scale=False, norm_before=False, patch_bias=True, activation="GELU",
)  # fmt: skip
OPTIONS = RunOptions(device="cpu", workers=0, progress=False)
DEPTH = 4
TINY: dict[str, Any] = {
    "image_size": 64, "window": 2, "pyramid_channels": 16, "fc_channels": 16, "anchor_sizes": (4, 8, 16, 32, 64),
    "proposals": 10, "rois": 8, "batch_size": 2, "iterations": 2, "steps": (1,), "warmup_iterations": 1,
    "checkpoint_every": 1, "precision": "fp32",
}  # fmt: skip


def vit(**settings: Any) -> Encoder:
    torch.manual_seed(0)
    net = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0,
        **{"depth": DEPTH, "embed_dim": 24, "num_heads": 3, "patch_size": 16, "img_size": 48,
           "dynamic_img_size": True, **settings},
    )  # fmt: skip
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # also where a fresh network has zeros
    card = EncoderCard(name="a small ViT", source="test", architecture=Architecture(name="timm:vit_tiny_patch16_224"))
    return _encoder(card, net, None)


def protocol(identifier: str = "coco_vitdet.base_100ep@1", **changes: Any) -> Protocol:
    return next(p for p in VIT_PROTOCOLS if p.id == identifier).changed(**{**TINY, **changes})


def trial(data: Path, folder: Path, encoder: Encoder, **changes: Any) -> Any:
    from benchmarks.detection.vit_model import VitDetectionTrial

    spec = find_dataset("coco", data)
    train, test = spec.read("train"), spec.read("val")
    scenes = (read_scenes(train, "coco"), read_scenes(test, "coco"))
    folder.mkdir(parents=True, exist_ok=True)
    params = VitDetectionParams.model_validate(protocol(**changes).params)
    return VitDetectionTrial(params, encoder, *scenes, test, 0, folder, OPTIONS)


@pytest.mark.parametrize("class_token", [False, True])
def test_the_backbones_map_is_the_encoders_at_an_interpolated_size(
    class_token: bool, small_data: Path, tmp_path: Path
) -> None:
    encoder = vit() if class_token else vit(class_token=False, global_pool="avg", fc_norm=False)
    of = trial(small_data, tmp_path, encoder, window=0)
    model = of.build().eval()
    pixels = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    module: Any = encoder.module
    with torch.no_grad():
        x = model.preprocess_image([{"image": pixels[0]}]).tensor
        torch.testing.assert_close(x, encoder.normalise(pixels), rtol=1e-5, atol=1e-5)
        last = module.norm(model.backbone.net(x)["last_feat"].movedim(1, -1)).movedim(-1, 1)
        if class_token:  # detectron2's ViT drops it
            tokens = module._pos_embed(module.patch_embed(x))[:, 1:]
            expected = module.norm(module.blocks(tokens)).mT.unflatten(2, (4, 4))
        else:
            expected = encoder.outputs(x, ("patches",))["patches"]
    torch.testing.assert_close(last, expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        model.backbone.net.blocks[1].mlp.fc1.bias[0] += 1
    with pytest.raises(
        RuntimeError, match=r"1 of the backbone's tensors are not the checkpoint's: blocks\.1\.mlp\.fc1"
    ):
        of.check_backbone(model)


def test_a_vit_base_gets_detectron2s_own_configuration() -> None:
    from detectron2 import model_zoo
    from omegaconf import OmegaConf

    from benchmarks.detection.vit_model import model_config

    ours = model_config(PUBLISHED, CARD, VIT_BASE, 80)
    stock = model_zoo.get_config("common/models/mask_rcnn_vitdet.py").model
    # Positions come interpolated and without the class token's, and the width of the MLP is written in another way.
    for part, same in (("pretrain_img_size", 224), ("pretrain_use_cls_token", True), ("mlp_ratio", 4)):
        assert int(ours.backbone.net[part] if part == "mlp_ratio" else same) == int(same)
        for model in (ours, stock):
            model.backbone.net[part] = same
    assert ours.backbone.net.act_layer is torch.nn.GELU
    del ours.backbone.net["act_layer"]
    for model in (ours, stock):
        assert model.backbone.net.norm_layer.keywords == {"eps": 1e-6}
        del model.backbone.net["norm_layer"]
    found, expected = (OmegaConf.to_container(model, resolve=True) for model in (ours, stock))
    assert found == expected


def test_rates_fall_by_layer(small_data: Path, tmp_path: Path) -> None:
    of = trial(small_data, tmp_path, vit())
    model = of.build()
    names = {id(p): name for name, p in model.named_parameters()}
    found = {
        names[id(p)]: (group["lr"], group["weight_decay"])
        for group in of.optimiser(model).param_groups
        for p in group["params"]
    }
    assert set(found) == set(names.values())
    # The norms of detectron2's pyramid and heads are another class, which it does not spare.
    norms = {name for name, m in model.named_modules() if isinstance(m, torch.nn.LayerNorm)}
    for name, (rate, decay) in found.items():
        layer = DEPTH + 1
        if name.startswith(("backbone.net.pos_embed", "backbone.net.patch_embed")):
            layer = 0
        elif name.startswith("backbone.net.blocks."):
            layer = int(name.split(".")[3]) + 1
        assert rate == pytest.approx(1e-4 * 0.7 ** (DEPTH + 1 - layer)), name
        spared = name == "backbone.net.pos_embed" or name.rpartition(".")[0] in norms
        assert decay == (0.0 if spared else 0.1), name


def test_windows_are_in_all_blocks_but_the_last_of_each_quarter() -> None:
    from benchmarks.detection.vit_model import model_config

    for depth, without in ((12, {2, 5, 8, 11}), (24, {5, 11, 17, 23}), (32, {7, 15, 23, 31})):
        config = model_config(PUBLISHED, CARD, replace(VIT_BASE, depth=depth), 80)
        assert set(range(depth)) - set(config.backbone.net.window_block_indexes) == without


def test_training_views_are_cut_to_the_square_and_padded(small_data: Path, tmp_path: Path) -> None:
    of = trial(small_data, tmp_path, vit())
    batch = next(iter(of._loader(seed=0, first=0, workers=0)))
    assert all(max(item["image"].shape[1:]) <= 64 for item in batch)
    assert all(item["instances"].gt_boxes.tensor.max() <= 64 for item in batch)
    assert of.build().preprocess_image(batch).tensor.shape == (2, 3, 64, 64)
    (item,) = next(iter(of.test_loader()))
    assert max(item["image"].shape[1:]) == 64


def test_it_trains_and_goes_on_where_it_was_killed(small_data: Path, tmp_path: Path) -> None:
    of = trial(small_data, tmp_path, vit())
    model = of.train(progress=False)
    scores = of.measure(model, progress=False)
    assert set(scores.columns) >= set(protocol().columns)
    assert not torch.equal(model.backbone.net.pos_embed, of.build().backbone.net.pos_embed)
    for file in tmp_path.glob("model_*.pth"):
        if file.name != "model_0000000.pth":
            file.unlink()
    again = trial(small_data, tmp_path, vit()).train(progress=False).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())


def test_what_it_cannot_hold_is_refused_by_name(small_data: Path, tmp_path: Path) -> None:
    for encoder, message in (
        (load_encoder("random:resnet18-w8:0"), "for vision transformers; for a ResNet use"),
        (vit(init_values=1e-5, reg_tokens=1), "needs no registers, no LayerScale"),
        (vit(patch_size=8, img_size=24), "needs patches of 16 pixels"),
        (vit(pre_norm=True), "needs no norm before the blocks, a bias of the patch embedding"),
    ):
        with pytest.raises(NotApplicableError, match=message):
            VitDetection().check_encoder(protocol(), encoder)
    with pytest.raises(InputError, match="precision=fp16 needs a GPU"):
        trial(small_data, tmp_path, vit(), precision="fp16")
    for changes, message in (({"steps": (3,)}, "lie within the 2 iterations"), ({"image_size": 72}, "multiple of 32")):
        with pytest.raises(InputError, match=message):
            protocol(**changes)


@pytest.mark.nightly
def test_it_ends_in_a_record_on_the_embedded_scenes(small_data: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    file = tmp_path / "vit.safetensors"
    save_file({name: t.contiguous() for name, t in vit().module.state_dict().items()}, file)
    code = main(
        ["vit-det", "--encoder", str(file), "--facts", "heads=3", "--data", str(small_data), "--out",
         str(tmp_path / "records"), "--workers", "0", "--device", "cpu", "--protocol", "coco_vitdet.demo",
         "--set", "iterations=6", "steps=4", "warmup_iterations=2"]
    )  # fmt: skip
    assert code == 0
    (stored,), bad = read_records(tmp_path / "records")
    assert not bad
    assert stored.intact
    assert set(stored.record.scores) == set(protocol().columns)
    assert list(stored.path.parent.glob("*.sheet.png"))

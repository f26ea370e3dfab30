"""detectron2's ViTDet against the encoder, its configuration against its own file, rates, and runs on tiny data."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers.mlp import SwiGLUPacked

from benchmarks.__main__ import main
from benchmarks.datasets.registry import find_dataset
from benchmarks.detection.data import read_scenes
from benchmarks.detection.protocols import VIT_PROTOCOLS, VitDetectionParams
from benchmarks.detection.task import VitDetection
from benchmarks.encoders.encoder import Encoder
from benchmarks.encoders.load import load_encoder
from benchmarks.encoders.vit_export import VitShape
from benchmarks.task import InputError, NotApplicableError, RunOptions
from results.schema import Architecture, EncoderCard, Protocol
from results.store import read_records
from tests.builders import small_vit

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
    return small_vit(noise=True, **{"depth": DEPTH, "patch_size": 16, "img_size": 48, **settings})


def protocol(identifier: str = "coco_vitdet.base_100ep@1", **changes: Any) -> Protocol:
    return next(p for p in VIT_PROTOCOLS if p.id == identifier).changed(**{**TINY, **changes})


def trial(data: Path, folder: Path, encoder: Encoder, **changes: Any) -> Any:
    from benchmarks.detection.train import VitDetectionTrial

    spec = find_dataset("coco", data)
    train, test = spec.read("train"), spec.read("val")
    scenes = (read_scenes(train, "coco"), read_scenes(test, "coco"))
    folder.mkdir(parents=True, exist_ok=True)
    params = VitDetectionParams.model_validate(protocol(**changes).params)
    return VitDetectionTrial(params, encoder, *scenes, test, 0, folder, OPTIONS)


ENCODERS: dict[str, dict[str, Any]] = {
    "MAE": {},
    "I-JEPA": {"class_token": False, "global_pool": "avg", "fc_norm": False},
    "DINO with patches of 8": {"patch_size": 8, "img_size": 24},
    "DINOv2": {"patch_size": 14, "img_size": 42, "init_values": 1e-5},
    "DINOv2 with registers": {
        "patch_size": 14, "img_size": 42, "init_values": 1e-5, "reg_tokens": 4, "no_embed_class": True,
    },
    "CLIP": {"pre_norm": True, "name": "vit_base_patch16_clip_quickgelu_224"},
    "DINOv2 giant": {"patch_size": 14, "img_size": 42, "init_values": 1e-5, "mlp_layer": SwiGLUPacked,
                     "act_layer": torch.nn.SiLU},
    "without biases of queries, keys and values": {"qkv_bias": False},
    "DINOv3": {"name": "vit_small_patch16_dinov3_qkvb"},
    "DINOv3 7B": {"name": "vit_7b_patch16_dinov3"},
    "PE": {"name": "vit_pe_core_tiny_patch16_384"},
}  # fmt: skip


def last_tokens(module: Any, images: torch.Tensor, dropped: int) -> torch.Tensor:
    """Tokens after the final norm, without the first one where `dropped` is 1."""
    tokens = module._pos_embed(module.patch_embed(images))
    if not isinstance(tokens, tuple):
        return module.norm(module.blocks(module.norm_pre(tokens[:, dropped:])))
    tokens, rope = tokens[0][:, dropped:], tokens[1]
    tokens = module.norm_pre(tokens)
    for block in module.blocks:
        block.attn.num_prefix_tokens -= dropped  # which are not turned
        tokens = block(tokens, rope=rope)
        block.attn.num_prefix_tokens += dropped
    return module.norm(tokens)


@pytest.mark.parametrize("class_token", ["dropped", "kept"])
@pytest.mark.parametrize("kind", ENCODERS)
def test_the_backbones_map_is_the_encoders_at_an_interpolated_size(
    kind: str, class_token: str, small_data: Path, tmp_path: Path
) -> None:
    encoder = vit(**ENCODERS[kind])
    of = trial(small_data, tmp_path, encoder, window=0, cls=class_token)
    model = of.build().eval()
    pixels = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    module: Any = encoder.module
    side = 4 * (encoder.card.patch_size or 0)  # a patch covers 16 pixels of the detector's image
    with torch.no_grad():
        x = model.preprocess_image([{"image": pixels[0]}]).tensor
        torch.testing.assert_close(x, encoder.normalise(pixels), rtol=1e-5, atol=1e-5)
        features = model.backbone.net(x)["last_feat"]
        last = module.norm(features.movedim(1, -1)).movedim(-1, 1)
        resized = torch.nn.functional.interpolate(x, (side, side), mode="bilinear", antialias=True)
        if class_token == "dropped" and module.cls_token is not None:
            expected = last_tokens(module, resized, dropped=1)[:, -16:].mT.unflatten(2, (4, 4))
        else:
            expected = encoder.outputs(resized, ("patches",))["patches"]
        levels = model.backbone(x)
    torch.testing.assert_close(last, expected, rtol=1e-5, atol=1e-5)
    assert [64 // level.shape[-1] for level in levels.values()] == [4, 8, 16, 32, 64]
    assert [shape.stride for shape in model.backbone.output_shape().values()] == [4, 8, 16, 32, 64]
    with torch.no_grad():
        model.backbone.net.blocks[1].mlp.fc1.bias[0] += 1
    with pytest.raises(
        RuntimeError, match=r"1 of the backbone's tensors are not the checkpoint's: blocks\.1\.mlp\.fc1"
    ):
        of.check_backbone(model)


def backbones(tokens: int) -> tuple[Any, Any]:
    """detectron2's ViT and ours with the same random tensors, windows that need padding, and relative positions."""
    from detectron2.modeling import ViT

    from benchmarks.detection.model import card_vit

    kwargs: dict[str, Any] = {
        "img_size": 80, "pretrain_img_size": 80, "patch_size": 16, "embed_dim": 12, "depth": 3, "num_heads": 2,
        "mlp_ratio": 2, "qkv_bias": True, "drop_path_rate": 0.0, "act_layer": torch.nn.GELU, "use_rel_pos": True,
        "norm_layer": torch.nn.LayerNorm, "window_size": 2, "window_block_indexes": [0, 1],
        "pretrain_use_cls_token": False,
    }  # fmt: skip
    stock = ViT(**kwargs).eval()
    ours = card_vit()(tokens=tokens, layer_scale=False, norm_before=False, patch_bias=True, **kwargs).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    stock.load_state_dict({n: t for n, t in ours.state_dict().items() if not n.endswith(".tokens")})
    return stock, ours


def test_without_other_tokens_it_is_detectron2s_own_vit() -> None:
    stock, ours = backbones(tokens=0)
    x = torch.randn(2, 3, 80, 80, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours(x)["last_feat"], stock(x)["last_feat"], rtol=1e-5, atol=1e-5)


def test_every_window_has_a_copy_of_the_registers() -> None:
    _, ours = backbones(tokens=3)
    block, attend = ours.blocks[0], ours.blocks[0].attn
    attend.use_rel_pos = False
    x = torch.randn(2, 3 + 25, 12, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        normed = block.norm1(x)
        tokens, patches = normed[:, :3], torch.zeros(2, 6, 6, 12)
        patches[:, :5, :5] = normed[:, 3:].unflatten(1, (5, 5))
        mixed, of_tokens = torch.zeros_like(patches), []
        for row in (0, 2, 4):
            for column in (0, 2, 4):
                window = patches[:, row : row + 2, column : column + 2].flatten(1, 2)
                y = torch.cat([tokens, window], 1)
                parts = attend.qkv(y).unflatten(2, (3, 2, 6)).movedim(2, 0).transpose(2, 3)
                z = torch.nn.functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
                of_tokens.append(attend.proj(z)[:, :3])
                mixed[:, row : row + 2, column : column + 2] = attend.proj(z)[:, 3:].unflatten(1, (2, 2))
        expected = x + torch.cat([torch.stack(of_tokens).mean(0), mixed[:, :5, :5].flatten(1, 2)], 1)
        expected = expected + block.mlp(block.norm2(expected))
        torch.testing.assert_close(block(x, (5, 5)), expected, rtol=1e-4, atol=1e-5)
        # One window that covers everything is no window.
        whole = ours.blocks[2](x, (5, 5))
        ours.blocks[2].window_size = 5
        torch.testing.assert_close(ours.blocks[2](x, (5, 5)), whole)


@pytest.mark.parametrize("kind", ["DINOv3", "PE"])
def test_windows_turn_patches_by_their_places_in_the_whole_map(kind: str, small_data: Path, tmp_path: Path) -> None:
    """A block with windows is the encoder's, in which patches of other windows are masked."""
    encoder = vit(**ENCODERS[kind], class_token=False, **({"num_reg_tokens": 0} if kind == "DINOv3" else {}))
    module: Any = encoder.module
    net = trial(small_data, tmp_path, encoder).build().eval().backbone.net
    grid, side = 4, 2
    net.blocks[0].window_size = side
    places = torch.arange(grid * grid)
    window = places // grid // side * grid + places % grid // side
    same = window[:, None] == window[None]
    x = torch.randn(2, grid * grid, 24, generator=torch.Generator().manual_seed(0))
    rope = module.rope.get_embed(shape=(grid, grid))
    with torch.no_grad():
        found = net.blocks[0](x, (grid, grid), net.rotary_table)
        expected = module.blocks[0](x, rope=rope, attn_mask=same)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(found, module.blocks[0](x, rope=rope), atol=1e-3)
        net.blocks[0].window_size = 3  # with padding, which is attended to and not turned
        table = net.blocks[0]._in_windows(net.rotary_table.unflatten(0, (grid, grid))[None])
        assert torch.equal(table[0, 4], rope[5])
        assert torch.equal(table[3, 8], torch.cat([torch.zeros(8), torch.ones(8)]))


def test_a_vit_base_gets_detectron2s_own_configuration() -> None:
    from detectron2 import model_zoo
    from omegaconf import OmegaConf

    from benchmarks.detection.model import vit_configuration

    ours = vit_configuration(PUBLISHED, CARD, VIT_BASE, 80)
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


@pytest.mark.parametrize("kind", ["MAE", "DINOv2 with registers"])
def test_rates_fall_by_layer(kind: str, small_data: Path, tmp_path: Path) -> None:
    of = trial(small_data, tmp_path, vit(**ENCODERS[kind]))
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
        spared = name.endswith((".pos_embed", ".tokens", ".gamma")) or name.rpartition(".")[0] in norms
        assert decay == (0.0 if spared else 0.1), name


def test_windows_are_in_all_blocks_but_the_last_of_each_quarter() -> None:
    from benchmarks.detection.model import vit_configuration

    for depth, without in ((12, {2, 5, 8, 11}), (24, {5, 11, 17, 23}), (32, {7, 15, 23, 31})):
        config = vit_configuration(PUBLISHED, CARD, replace(VIT_BASE, depth=depth), 80)
        assert set(range(depth)) - set(config.backbone.net.window_block_indexes) == without


def test_training_views_are_cut_to_the_square_and_padded(small_data: Path, tmp_path: Path) -> None:
    of = trial(small_data, tmp_path, vit())
    batch = next(iter(of._loader(seed=0, first=0, workers=0)))
    assert all(max(item["image"].shape[1:]) <= 64 for item in batch)
    assert all(item["instances"].gt_boxes.tensor.max() <= 64 for item in batch)
    assert of.build().preprocess_image(batch).tensor.shape == (2, 3, 64, 64)
    (item,) = next(iter(of.test_loader()))
    assert max(item["image"].shape[1:]) == 64


@pytest.mark.parametrize("kind", ["MAE", pytest.param("DINOv2 with registers", marks=pytest.mark.nightly)])
def test_it_trains_and_goes_on_where_it_was_killed(kind: str, small_data: Path, tmp_path: Path) -> None:
    of = trial(small_data, tmp_path, vit(**ENCODERS[kind]))
    model = of.train(progress=False)
    scores = of.measure(model, progress=False)
    assert set(scores.columns) >= set(protocol().columns)
    assert not torch.equal(model.backbone.net.pos_embed, of.build().backbone.net.pos_embed)
    for file in tmp_path.glob("model_*.pth"):
        if file.name != "model_0000000.pth":
            file.unlink()
    again = trial(small_data, tmp_path, vit(**ENCODERS[kind])).train(progress=False).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())


def test_what_it_cannot_hold_is_refused_by_name(small_data: Path, tmp_path: Path) -> None:
    for encoder, message in (
        (load_encoder("random:resnet18-w8:0"), "for vision transformers; for a ResNet use"),
        (vit(qk_norm=True), "needs one layer for queries, keys and values"),
        (vit(dynamic_img_size=False), "needs positions for any image size"),
        (
            vit(name="beit_base_patch16_224", dynamic_img_size=None),
            "BEiT are one number .* are products with the query",
        ),
        (vit(name="aimv2_large_patch14_224"), "layer norms; norms by the root mean square, as AIMv2's"),
    ):
        with pytest.raises(NotApplicableError, match=message):
            VitDetection().check_encoder(protocol(), encoder)
    with pytest.raises(InputError, match="precision=fp16 needs a GPU"):
        trial(small_data, tmp_path, vit(), precision="fp16")
    assert "cls" not in protocol().params
    assert "+cls=kept" in protocol(cls="kept").id
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

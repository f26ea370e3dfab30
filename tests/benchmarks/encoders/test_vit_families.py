"""Every family of vision transformers, in its own key layout, against a plain forward pass."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Identity

from benchmarks.encoders.forms import pixels_of
from benchmarks.encoders.load import load_encoder
from benchmarks.encoders.vit_families import FAMILIES, VitFamily
from benchmarks.task import InputError
from pretrain.weight_files import write_backbone
from tests.reference.vit_plain import PlainVit, plain_capi

TIMM = """patch.w patch_embed.proj.weight
patch.b patch_embed.proj.bias
cls cls_token
pos pos_embed
reg register_tokens
# blocks.#
norm1 norm1
norm2 norm2
qkv attn.qkv
proj attn.proj
fc1 mlp.fc1
fc2 mlp.fc2
scale1 ls1.gamma
scale2 ls2.gamma
table attn.relative_position_bias_table
norm norm
pre norm_pre"""
TRANSFORMERS = """patch.w embeddings.patch_embeddings.projection.weight
patch.b embeddings.patch_embeddings.projection.bias
cls embeddings.cls_token
pos embeddings.position_embeddings
reg embeddings.register_tokens
# encoder.layer.#
q attention.attention.query
k attention.attention.key
v attention.attention.value
proj attention.output.dense
table attention.attention.relative_position_bias.relative_position_bias_table
norm layernorm"""
VIT_BLOCKS = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
}
DINOV2_BLOCKS = {"norm1": "norm1", "norm2": "norm2", "fc1": "mlp.fc1", "fc2": "mlp.fc2",
                 "scale1": "layer_scale1.lambda1", "scale2": "layer_scale2.lambda1"}  # fmt: skip


def keys(table: str, w: dict[str, Tensor], **more: str) -> dict[str, Tensor]:
    """The weights under the names of a table; `#` is the number of a block."""
    names = {**dict(line.split() for line in table.splitlines()), **more}
    found: dict[str, Tensor] = {}
    for name, tensor in w.items():
        block, name = name.split(".", 1) if name[0].isdigit() else ("", name)
        start = names["#"].replace("#", block) + "." if block else ""
        part, _, kind = name.rpartition(".")
        if name in names:
            found[start + names[name]] = tensor
        elif part in names:
            found[f"{start}{names[part]}.{'weight' if kind == 'w' else 'bias'}"] = tensor
        elif part == "qkv":
            for letter, chunk in zip("qkv", tensor.chunk(3), strict=True):
                if kind == "w" or letter != "k" or chunk.any():
                    found[f"{start}{names[letter]}.{'weight' if kind == 'w' else 'bias'}"] = chunk.contiguous()
        else:
            raise KeyError(name)
    return found


def dinov3(w: dict[str, Tensor], net: PlainVit) -> dict[str, Tensor]:
    found = keys(
        TIMM, w, reg="storage_tokens", gate="mlp.w1", **({"fc1": "mlp.w2", "fc2": "mlp.w3"} if net.gated else {})
    )
    mask = torch.ones(3 * net.width)
    mask[net.width : 2 * net.width] = 0
    for name in [name for name in found if name.endswith("qkv.bias")]:
        found[name] = found[name] + 0.3 * (1 - mask)  # a bias of the keys, which the mask takes away
        found[f"{name}_mask"] = mask
    size = net.width // net.heads
    periods = (100 ** (2 * torch.arange(size // 4) / (size // 2))).bfloat16().float()
    return {**found, "rope_embed.periods": periods, "mask_token": torch.zeros(1, net.width)}


def of_clip(w: dict[str, Tensor], net: PlainVit) -> dict[str, Tensor]:
    found = keys("# transformer.resblocks.#\nnorm1 ln_1\nnorm2 ln_2\nproj attn.out_proj\nfc1 mlp.c_fc\nfc2 mlp.c_proj\n"
                 "patch.w conv1.weight\ncls class_embedding\npos positional_embedding\npre ln_pre\nnorm ln_post\n"
                 "qkv attn.in_proj_", w)  # fmt: skip
    found = {name.replace("in_proj_.", "in_proj_"): tensor for name, tensor in found.items()}
    found["class_embedding"], found["positional_embedding"] = w["cls"][0, 0], w["pos"][0]
    return {**{f"visual.{name}": tensor for name, tensor in found.items()}, "logit_scale": torch.zeros(())}


def of_transformers_clip(w: dict[str, Tensor], net: PlainVit) -> dict[str, Tensor]:
    found = keys("# encoder.layers.#\nnorm1 layer_norm1\nnorm2 layer_norm2\nq self_attn.q_proj\nk self_attn.k_proj\n"
                 "v self_attn.v_proj\nproj self_attn.out_proj\nfc1 mlp.fc1\nfc2 mlp.fc2\n"
                 "patch.w embeddings.patch_embedding.weight\npatch.b embeddings.patch_embedding.bias\n"
                 "cls embeddings.class_embedding\npos embeddings.position_embedding.weight\n"
                 "pre pre_layrnorm\nnorm post_layernorm\nhead.probe head.probe\nhead.proj head.attention.out_proj\n"
                 "head.norm head.layernorm\nhead.fc1 head.mlp.fc1\nhead.fc2 head.mlp.fc2\n"
                 "head.qkv.w head.attention.in_proj_weight\nhead.qkv.b head.attention.in_proj_bias", w)  # fmt: skip
    found["embeddings.position_embedding.weight"] = w["pos"][0]
    if net.class_token:
        found["embeddings.class_embedding"] = w["cls"][0, 0]
    return {f"vision_model.{name}": tensor for name, tensor in found.items()}


def of_aimv2(w: dict[str, Tensor], net: PlainVit) -> dict[str, Tensor]:
    return keys("# trunk.blocks.#\nnorm1 norm_1\nnorm2 norm_2\nqkv attn.qkv\nproj attn.proj\ngate mlp.fc1\n"
                "fc1 mlp.fc3\nfc2 mlp.fc2\npatch.w preprocessor.patchifier.proj.weight\n"
                "patch.b preprocessor.patchifier.proj.bias\npre preprocessor.patchifier.norm\n"
                "pos preprocessor.pos_embed\nnorm trunk.post_trunk_norm", w)  # fmt: skip


def beit(w: dict[str, Tensor], net: PlainVit) -> dict[str, Tensor]:
    found = keys(TIMM, w, scale1="gamma_1", scale2="gamma_2")
    for name in [name for name in found if name.endswith("qkv.bias")]:
        found[name.replace("qkv", "q").replace(".bias", "_bias")] = found[name][: net.width]
        found[name.replace("qkv", "v").replace(".bias", "_bias")] = found.pop(name)[2 * net.width :]
    return found


def franca(w: dict[str, Tensor], net: PlainVit) -> dict[str, Tensor]:
    found = keys(TIMM, {name: tensor for name, tensor in w.items() if ".gate." not in name}, fc2="mlp.w3")
    for name in [name for name in found if ".mlp.fc1." in name]:
        gate = w[f"{name.split('.')[1]}.gate.{'w' if name.endswith('weight') else 'b'}"]
        found[name.replace(".fc1.", ".w12.")] = torch.cat([gate, found.pop(name)])
    return {re.sub(r"blocks\.(\d)", r"blocks.0.\1", name): tensor for name, tensor in found.items()}


def of_pe(w: dict[str, Tensor], net: PlainVit) -> dict[str, Tensor]:
    found = keys("# transformer.resblocks.#\nnorm1 ln_1\nnorm2 ln_2\nproj attn.out_proj\nfc1 mlp.c_fc\nfc2 mlp.c_proj\n"
                 "scale1 ls_1.gamma\nscale2 ls_2.gamma\npatch.w conv1.weight\ncls class_embedding\n"
                 "pos positional_embedding\npre ln_pre\nnorm ln_post\nqkv attn.in_proj_\nhead.probe attn_pool.probe\n"
                 "head.qkv.w attn_pool.attn.in_proj_weight\nhead.qkv.b attn_pool.attn.in_proj_bias\n"
                 "head.proj attn_pool.attn.out_proj\nhead.norm attn_pool.layernorm\nhead.fc1 attn_pool.mlp.c_fc\n"
                 "head.fc2 attn_pool.mlp.c_proj", w)  # fmt: skip
    found = {name.replace("in_proj_.", "in_proj_"): tensor for name, tensor in found.items()}
    found["positional_embedding"] = w["pos"][0]
    return found | ({"class_embedding": w["cls"][0, 0]} if net.class_token else {})


def of_radio(w: dict[str, Tensor], net: PlainVit) -> dict[str, Tensor]:
    found = keys(TIMM, w, scale1="ls1.grandma", scale2="ls2.grandma")
    tokens = torch.cat([found.pop("cls_token"), found.pop("register_tokens")], 1)[0]
    parts = {"cls_token.token": tokens, "pos_embed": found.pop("pos_embed"),
             "embedder.weight": found.pop("patch_embed.proj.weight").flatten(1),
             "embedder.bias": found.pop("patch_embed.proj.bias")}  # fmt: skip
    return {**found, **prefixed("patch_generator.", parts)}


def radio_on_the_hub(w: dict[str, Tensor], net: PlainVit) -> dict[str, Tensor]:
    mean = torch.tensor([0.25, 0.5, 0.75])[:, None, None]
    beside = {"summary_idxs": torch.tensor(SUMMARY), "input_conditioner.norm_mean": mean,
              "input_conditioner.norm_std": mean}  # fmt: skip
    return {**prefixed("radio_model.model.", of_radio(w, net)), **prefixed("radio_model.", beside)}


def radio_checkpoint(w: dict[str, Tensor], net: PlainVit) -> dict[str, Any]:
    """The moving average prevails; the list of teachers says which tokens are the summary."""
    teachers = [{"name": "clip"}, {"name": "sam", "use_summary": False}, {"name": "dino_v2", "use_summary": True},
                {"name": "clip"}]  # fmt: skip
    return {
        "state_dict_ema": prefixed("base_model.", of_radio(w, net)),
        "state_dict": prefixed("base_model.", of_radio(net.weights(1), net)),
        "args": argparse.Namespace(teachers=teachers, cls_token_per_teacher=True),
    }


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


@dataclass(frozen=True)
class Case:
    """A file of a family.

    Attributes:
        family: its name in `FAMILIES`.
        content: what torch.save writes, from the weights.
        embed: what the embedding is.
        config: config.json, for a folder of the hub.
        change: what the file's weights share that the plain network has one by one.
    """

    family: str
    net: PlainVit
    content: Callable[[dict[str, Tensor], PlainVit], Any]
    layout: str
    embed: str = "cls"
    mean: float = 0.485
    facts: tuple[str, ...] = ("heads=3",)
    config: dict[str, Any] | None = None
    fixed_size: bool = False
    assumed: tuple[str, ...] = ()
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict

    def weights(self) -> dict[str, Tensor]:
        return self.change(self.net.weights())


SMALL = PlainVit()
OFFSET = replace(SMALL, away="offset")
SCALED = replace(OFFSET, scale=True)
ROTARY = replace(SMALL, positions="none", registers=4, scale=True, key_bias=False, rotary=True, eps=1e-5)
GAP = replace(SMALL, class_token=False)
CLIP = replace(SMALL, pre_norm=True, eps=1e-5)
AIM = replace(GAP, gated=True, rms=True, qkv_bias=False, eps=1e-5)
BEIT = replace(SMALL, positions="none", relative=True, key_bias=False, scale=True)
SIGLIP = replace(GAP, pooling_head=True, activation="gelu_tanh")
GATED = replace(SCALED, gated=True)
PE = replace(SMALL, heads=4, pre_norm=True, eps=1e-5, counted=True, away="bilinear", pooling_head=True, pool_heads=8)
PE_SPATIAL = replace(PE, class_token=False, pooling_head=False, pool_heads=0, final_norm=False, scale=True)
RADIO = replace(SMALL, positions="patches", registers=4, away="square", final_norm=False, pre_norm=False, scale=True)
SUMMARY = [0, 2]  # of RADIO's tokens
STUDENT = {"student": {"module.backbone.cls_token": torch.zeros(1)}}
HUB = {"hidden_act": "gelu", "num_attention_heads": 3, "layer_norm_eps": 1e-6}


def shared_table(w: dict[str, Tensor]) -> dict[str, Tensor]:
    """BEiT's pretraining form has one table of biases, and a norm after the last block."""
    return {name: w["0.table"] if name.endswith(".table") else tensor for name, tensor in w.items()}


def beit_pretrained(w: dict[str, Tensor], net: PlainVit) -> dict[str, Tensor]:
    found = beit(w, net)
    table = found["blocks.0.attn.relative_position_bias_table"]
    found = {name: tensor for name, tensor in found.items() if "relative_position" not in name}
    return {**found, "rel_pos_bias.relative_position_bias_table": table,
            "rel_pos_bias.relative_position_index": torch.zeros(10, 10, dtype=torch.long),
            "mask_token": torch.zeros(1, 1, net.width), "lm_head.weight": torch.zeros(2, net.width)}  # fmt: skip


def hub_beit_pretrained(w: dict[str, Tensor], net: PlainVit) -> dict[str, Tensor]:
    """transformers' BeitForMaskedImageModeling, whose norm is next to its tower."""
    found = keys(TRANSFORMERS, w, **VIT_BLOCKS, scale1="lambda_1", scale2="lambda_2")
    (table, *_) = (found[name] for name in found if name.endswith("relative_position_bias_table"))
    found = {name: tensor for name, tensor in found.items() if "relative_position" not in name}
    norm = {name: found.pop(name) for name in ("layernorm.weight", "layernorm.bias")}
    found["encoder.relative_position_bias.relative_position_bias_table"] = table
    return {**prefixed("beit.", found), **norm, "lm_head.bias": torch.zeros(2)}


CASES = {
    "dino": Case("dino", OFFSET, lambda w, n: {"teacher": prefixed("backbone.", keys(TIMM, w)), **STUDENT, "epoch": 3},
                 "facebookresearch/dino: teacher"),
    "ibot": Case(
        "ibot", OFFSET,
        lambda w, n: {"teacher": prefixed("backbone.", keys(TIMM, w)),
                      "student": {"module.backbone.masked_embed": torch.zeros(1)}},
        "bytedance/ibot: teacher",
    ),
    "dinov2": Case("dinov2", SCALED, lambda w, n: {**keys(TIMM, w), "mask_token": torch.zeros(1)}, "DINOv2"),
    "dinov2 training": Case(
        "dinov2", SCALED,
        lambda w, n: {"teacher": prefixed("backbone.", {re.sub(r"blocks\.(\d)", r"blocks.0.\1", k): t
                                                        for k, t in keys(TIMM, w).items()})},
        "timm's names",
    ),
    "dinov2-registers": Case("dinov2-registers", replace(SCALED, away="antialias", registers=4),
                             lambda w, n: {**keys(TIMM, w), "mask_token": torch.zeros(1)}, "DINOv2"),
    "dinov3": Case("dinov3", ROTARY, dinov3, "DINOv3"),
    "dinov3 gated": Case("dinov3", replace(ROTARY, gated=True, width=384, heads=6, depth=1), dinov3, "DINOv3",
                         facts=()),
    "mae": Case("mae", SMALL, lambda w, n: {"model": {**keys(TIMM, w), "decoder_embed.weight": torch.zeros(1)}},
                "ViT of timm's names"),
    "mocov3": Case(
        "mocov3", replace(SMALL, width=384, heads=12, depth=1),
        lambda w, n: {"arch": "vit_small", "state_dict": {**prefixed("module.base_encoder.", keys(TIMM, w)),
                                                          "module.momentum_encoder.cls_token": torch.zeros(1)}},
        "facebookresearch/moco-v3: base_encoder", facts=(),
    ),
    "deit3": Case("deit3", replace(SMALL, positions="patches", scale=True),
                  lambda w, n: {"model": keys(TIMM, w, scale1="gamma_1", scale2="gamma_2")}, "ViT of timm's names"),
    "beit": Case("beit", BEIT, lambda w, n: {"model": beit(w, n)}, "ViT of timm's names", "mean", 0.5, fixed_size=True),
    "beit pretrained": Case("beit", BEIT, lambda w, n: {"model": beit_pretrained(w, n)}, "ViT of timm's names", "mean",
                            0.5, fixed_size=True, change=shared_table),
    "hub beit pretrained": Case("beit", BEIT, hub_beit_pretrained, "transformers' ViT names", "mean", 0.5, (),
                                {**HUB, "model_type": "beit"}, fixed_size=True, change=shared_table),
    "ijepa": Case(
        "ijepa", GAP,
        lambda w, n: {"encoder": prefixed("module.", keys(TIMM, n.weights(1))),
                      "target_encoder": prefixed("module.", keys(TIMM, w))},
        "facebookresearch/ijepa: target_encoder", "mean",
    ),
    "clip": Case("clip", CLIP, of_clip, "CLIP's names", mean=0.48145466, facts=("heads=3", "activation=gelu")),
    "clip of OpenAI": Case("clip", replace(CLIP, activation="quick_gelu"),
                           lambda w, n: {**of_clip(w, n), "input_resolution": torch.tensor(48)}, "CLIP's names",
                           mean=0.48145466),
    "siglip": Case("siglip", SIGLIP, of_transformers_clip, "transformers' CLIP names", "map", 0.5,
                   ("heads=3", "activation=gelu_tanh")),
    "aimv2": Case("aimv2", AIM, of_aimv2, "AIMv2's names", "mean", 0.48145466),
    "franca": Case(
        "franca", GATED,
        lambda w, n: {"teacher": {**prefixed("backbone.", franca(w, n)),
                                  "dino_head.matryoshka_projections.0.weight": torch.zeros(2, 2)}},
        "timm's names",
    ),
    "franca without heads": Case("franca", GATED, lambda w, n: {"teacher": prefixed("backbone.", franca(w, n))},
                                 "timm's names"),
    "pe": Case("pe", PE, of_pe, "CLIP's names", "map", 0.5, ("heads=4",)),
    "pe with the text tower": Case("pe", PE, lambda w, n: {"model": {**prefixed("visual.", of_pe(w, n)),
                                                                     "positional_embedding": torch.zeros(3, 4)}},
                                   "CLIP's names", "map", 0.5, ("heads=4",)),
    "pe-spatial": Case("pe-spatial", PE_SPATIAL, of_pe, "CLIP's names", "mean", 0.5, ("heads=4",)),
    "radio": Case("radio", RADIO, radio_checkpoint, "NVlabs/RADIO", "summary", 0.48145466),
    "radio of one token": Case(
        "radio", replace(RADIO, final_norm=True, scale=False),
        lambda w, n: {"state_dict": prefixed("base_model.", of_radio(w, n)),
                      "args": argparse.Namespace(cls_token_per_teacher=False)},
        "RADIO's names", mean=0.48145466,
    ),
    "radio on the hub": Case("radio", RADIO, radio_on_the_hub, "RADIO's names", "summary", 0.25),
    "hub vit": Case("plain", replace(SMALL, eps=1e-12),
                    lambda w, n: keys(TRANSFORMERS, w, **VIT_BLOCKS), "transformers' ViT names", facts=(),
                    config={**HUB, "model_type": "vit", "layer_norm_eps": 1e-12},
                    assumed=("mean", "std", "value_range", "channels", "positions")),
    "hub mae": Case("mae", SMALL, lambda w, n: prefixed("vit.", keys(TRANSFORMERS, w, **VIT_BLOCKS)),
                    "transformers' ViT names", facts=(), config={**HUB, "model_type": "vit_mae"}),
    "hub dinov2": Case("dinov2", SCALED, lambda w, n: keys(TRANSFORMERS, w, **DINOV2_BLOCKS), "transformers' ViT names",
                       facts=(), config={**HUB, "model_type": "dinov2"}),
    "hub dinov2-registers": Case(
        "dinov2-registers", replace(SCALED, away="antialias", registers=4),
        lambda w, n: keys(TRANSFORMERS, w, **DINOV2_BLOCKS), "transformers' ViT names", facts=(),
        config={**HUB, "model_type": "dinov2_with_registers"},
    ),
    "hub ijepa": Case("ijepa", GAP, lambda w, n: keys(TRANSFORMERS, w, **VIT_BLOCKS), "transformers' ViT names", "mean",
                      facts=(), config={**HUB, "model_type": "ijepa"}),
    "hub siglip": Case("siglip", SIGLIP, of_transformers_clip, "transformers' CLIP names", "map", 0.5, (),
                       {**HUB, "model_type": "siglip_vision_model", "hidden_act": "gelu_pytorch_tanh"}),
    "deit": Case("deit", SMALL, lambda w, n: {"model": keys(TIMM, w)}, "ViT of timm's names",
                 facts=("heads=3", "family=deit")),
    "hub beit": Case("beit", BEIT,
                     lambda w, n: keys(TRANSFORMERS, w, **VIT_BLOCKS, scale1="lambda_1", scale2="lambda_2"),
                     "transformers' ViT names", "mean", 0.5, (), {**HUB, "model_type": "beit"}, fixed_size=True),
    "hub clip": Case("clip", replace(CLIP, activation="quick_gelu", eps=1e-6), of_transformers_clip,
                     "transformers' CLIP names",
                     mean=0.48145466, facts=(),
                     config={"model_type": "clip", "vision_config": {**HUB, "hidden_act": "quick_gelu"}}),
}  # fmt: skip
# CAPI has a test of its own below, and so has the class token beside a distillation token.
UNTESTED_HERE = {"deit-distilled", "capi"}


def written(case: Case, w: dict[str, Tensor], folder: Path) -> str:
    content = case.content(w, case.net)
    if case.config is None:
        torch.save(content, folder / "some_file.pth")
        return str(folder / "some_file.pth")
    save_file({name: tensor.contiguous() for name, tensor in content.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(case.config), encoding="utf-8")
    return f"hf:{folder}"


def as_map(tokens: Tensor, prefix: int, height: int, width: int) -> Tensor:
    return tokens[:, prefix:].transpose(1, 2).reshape(len(tokens), -1, height, width)


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_file_of_the_family_gives_the_plain_forward_pass(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    net, w = case.net, case.weights()
    encoder = load_encoder(written(case, w, tmp_path), facts=case.facts)
    prefix = net.class_token + net.registers
    torch.manual_seed(0)
    for height, width in [(3, 3)] if case.fixed_size else [(3, 3), (5, 5), (2, 4)]:
        images = torch.randn(2, 3, height * 16, width * 16)
        blocks = net.blocks(w, images)
        outputs = encoder.outputs(images, encoder.names - {"head"})
        mean = blocks[-1][:, prefix:].mean(1)
        expected = {"patches": as_map(blocks[-1], prefix, height, width), "patch_mean": mean}
        expected["embed"] = {"cls": blocks[-1][:, 0], "mean": mean}.get(case.embed, mean)
        if case.embed == "map":
            expected["embed"] = net.pooled(w, blocks[-1])
        of_class = SUMMARY if case.embed == "summary" else [0]
        if case.embed == "summary":
            expected["embed"] = blocks[-1][:, SUMMARY].flatten(1)
        if net.depth >= 4:
            expected["patches4"] = torch.cat([as_map(b, prefix, height, width) for b in blocks[-4:]], 1)
        if net.class_token and net.depth >= 4:
            expected["cls_last4"] = torch.cat([b[:, of_class].flatten(1) for b in blocks[-4:]], 1)
        for output, value in expected.items():
            assert torch.allclose(outputs[output], value, rtol=0, atol=2e-5 * value.abs().max()), (
                output,
                height,
                width,
            )
    card = encoder.card
    assert (card.layout, card.mean[0], card.assumed) == (case.layout, case.mean, case.assumed)
    if case.mean == 0.485:
        assert (card.mean, card.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (card.patch_size, card.input_size) == (16, 48 if case.fixed_size else None)


def test_every_family_is_tested() -> None:
    assert {case.family for case in CASES.values()} | UNTESTED_HERE == {family.name for family in FAMILIES}
    assert all(family.source and family.recognised for family in FAMILIES)


def with_fc_norm(content: Any) -> Any:
    """As a file fine-tuned on the mean of its patch tokens: the same norm, after the mean."""
    if not isinstance(content, dict):
        return content
    names = {"norm.": "fc_norm.", "layernorm.": "pooler.layernorm."}
    return {re.sub(r"^(layer)?norm\.", lambda found: names[found[0]], name): with_fc_norm(value)
            for name, value in content.items()}  # fmt: skip


@pytest.mark.parametrize(
    "family", [family for family in FAMILIES if family.name not in UNTESTED_HERE], ids=lambda f: f.name
)
def test_the_docs_table_says_what_the_familys_files_get(family: VitFamily, tmp_path: Path) -> None:
    """`scripts/docs_pages` makes the table of these fields."""
    own = [case for case in CASES.values() if case.family == family.name]
    if family.last_norm == "fc_norm":
        own += [replace(case, content=lambda w, n, c=case: with_fc_norm(c.content(w, n))) for case in own
                if case.config is None or family.name == "plain"]  # fmt: skip
    seen = set()
    for case in own:
        encoder = load_encoder(written(case, case.weights(), tmp_path), facts=case.facts)
        module: Any = encoder.module
        names = {name for name in ("norm", "fc_norm") if not isinstance(getattr(module, name, Identity()), Identity)}
        seen |= names or {"none"}
        assert (encoder.card.input_size is not None) is family.one_size
        if family.pixels and not (family.name == "radio" and case.mean == 0.25):
            known = pixels_of(family.pixels).values
            assert {name: getattr(encoder.card, name) for name in known} == known
        outputs = encoder.outputs(torch.randn(2, 3, 48, 48), encoder.names)
        mean = outputs["patches"].mean((2, 3))
        if "fc_norm" in names:
            assert torch.allclose(outputs["embed"], module.fc_norm(mean), atol=1e-5)
        elif family.embed in ("cls", "mean") and family.name != "radio":
            expected = outputs["cls"] if family.embed == "cls" else mean
            assert torch.allclose(outputs["embed"], expected, atol=1e-5)
        for kind in {"cls", "mean", "cls+mean"} & set(family.embed_too):
            load_encoder(written(case, case.weights(), tmp_path), facts=(*case.facts, f"embed={kind}"))
    of_files = {"norm": {"norm"}, "none": {"none"}, "optional": {"norm", "none"}, "fc_norm": {"norm", "fc_norm"}}
    assert seen == of_files[family.last_norm]


WRITTEN = ("dinov2", "dinov3", "clip of OpenAI", "aimv2", "franca", "pe-spatial", "radio")


@pytest.mark.parametrize("name", WRITTEN)
def test_a_written_backbone_is_the_same_encoder(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    first = load_encoder(written(case, case.net.weights(), tmp_path), facts=(*case.facts, "embed=mean"))
    write_backbone(tmp_path / "own.safetensors", first.module.state_dict(), first.card)
    again = load_encoder(tmp_path / "own.safetensors")
    images = torch.randn(1, 3, 80, 80)
    assert torch.equal(*(e.outputs(images, ["embed"])["embed"] for e in (first, again)))
    assert again.card.architecture == first.card.architecture
    assert again.card.embed == first.card.embed


def capi_weights(registers: int, draw: torch.Generator) -> dict[str, Tensor]:
    """Of a small encoder of CAPI: 24 wide, five blocks of three heads, patches of 14."""
    shapes = {"registers": (1, registers, 24), "patch_embed.weight": (24, 3, 14, 14), "patch_embed.bias": (24,)}
    for block in range(5):
        at = f"encoder.blocks.{block}.residual"
        shapes |= {f"{at}1.fn.{part}.weight": (24, 24) for part in ("q_proj", "k_proj", "v_proj", "proj")}
        shapes |= {f"{at}{part}.norm.weight": (24,) for part in (1, 2)}
        shapes |= {f"{at}1.fn.rope.freqs": (2, 8), f"{at}2.fn.fc1.weight": (96, 24), f"{at}2.fn.fc2.weight": (24, 96)}
    return {name: torch.randn(shape, generator=draw) * 0.3 for name, shape in shapes.items()}


@pytest.mark.parametrize(("registers", "prefix"), [(16, "backbone."), (0, "")])
def test_capis_encoder_gives_the_plain_forward_pass(registers: int, prefix: str, tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    w = capi_weights(registers, draw)
    decoder = {"mask_token": torch.zeros(1, 24), "decoder.blocks.0.residual1.norm.weight": torch.zeros(24)}
    torch.save(prefixed(prefix, {**w, **decoder}), tmp_path / "capi.pth")
    encoder = load_encoder(tmp_path / "capi.pth")
    write_backbone(tmp_path / "own.safetensors", encoder.module.state_dict(), encoder.card)
    again = load_encoder(tmp_path / "own.safetensors")
    for rows, columns in ((3, 3), (2, 5)):
        images = torch.randn(2, 3, rows * 14, columns * 14, generator=draw)
        blocks = plain_capi(w, images, heads=3)
        outputs = encoder.outputs(images, encoder.names)
        assert torch.allclose(outputs["patches"], blocks[-1], atol=1e-5)
        assert torch.allclose(outputs["patches4"], torch.cat(blocks[-4:], 1), atol=1e-5)
        assert torch.allclose(outputs["embed"], blocks[-1].mean((2, 3)), atol=1e-5)
        assert torch.equal(again.outputs(images, ["embed"])["embed"], outputs["embed"])
    card = encoder.card
    assert (card.patch_size, card.mean[0], card.method, card.assumed) == (14, 0.485, "CAPI", ())
    assert (card.keys_matched, card.keys_unused) == (len(w), 2)
    assert again.card.architecture == card.architecture
    with pytest.raises(InputError, match=r"has no class token; choose --facts embed=mean"):
        load_encoder(tmp_path / "capi.pth", facts=["embed=cls"])
    with pytest.raises(InputError, match=r"CAPI's encoder, whose code fixes them; leave it out"):
        load_encoder(tmp_path / "capi.pth", facts=["heads=3"])
    del w["registers"], w["encoder.blocks.1.residual2.fn.fc1.weight"]
    torch.save({**w, "registers": torch.zeros(1, 4, 24)}, tmp_path / "part.pth")
    with pytest.raises(InputError, match=r"1 missing \(encoder\.blocks\.1\.residual2\.fn\.fc1\.weight\)"):
        load_encoder(tmp_path / "part.pth")


def test_radios_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    whole = radio_on_the_hub(RADIO.weights(), RADIO)
    for change, said in (
        ({"radio_model.summary_idxs": None}, "does not say which of its class tokens make the summary; give the model"),
        ({"radio_model.summary_idxs": torch.tensor([9])}, r"has 5 tokens, of which its summary takes \[9\]"),
        ({"radio_model.feature_normalizer.mean": torch.zeros(48)}, "RADIO with a feature normaliser, which is not"),
        ({"radio_model.model.blocks.0.attn.qkv.parametrizations.weight.original": torch.zeros(1)}, "spectral reparam"),
    ):
        content = {name: tensor for name, tensor in {**whole, **change}.items() if tensor is not None}
        torch.save(content, tmp_path / "radio.pth")
        with pytest.raises(InputError, match=said):
            load_encoder(tmp_path / "radio.pth", facts=["heads=3"])


def test_models_that_nothing_here_computes_are_refused_by_name(tmp_path: Path) -> None:
    one, video = torch.zeros(2, 2), torch.zeros(24, 3, 2, 16, 16)
    jepa = {"module.backbone.patch_embed.proj.weight": video, "module.backbone.blocks.0.norm1.weight": one[0]}
    positions = {"module.backbone.pos_embed": torch.zeros(1, 8, 24)}
    aim = {"preprocessor.patchifier.proj.weight": torch.zeros(24, 3, 14, 14), "trunk.blocks.0.norm_1.weight": one[0],
           "trunk.blocks.0.mlp.fc1.weight": one, "trunk.post_trunk_norm.weight": one[0]}  # fmt: skip
    radio = {"base_model.patch_embed.proj.weight": torch.zeros(24, 3, 14, 14), "base_model.norm.weight": one[0],
             "input_conditioner.norm_mean": torch.zeros(3, 1, 1)}  # fmt: skip
    cases: list[tuple[dict[str, Any], str]] = [
        ({"state_dict": {"base_model.levels.2.blocks.0.attn_blocks.0.attn.pos_emb_funct.cpb_mlp.0.weight": one}},
         "is an E-RADIO, which is not supported: its stages"),
        ({"state_dict": radio}, "is a RADIO v1 without a patch generator, which is not supported"),
        (aim, "is an AIM v1, which is not supported: timm has no model with its layer norms"),
        ({"encoder": {**jepa, **positions}, "target_encoder": {**jepa, **positions}}, "is a V-JEPA, which is not"),
        ({"encoder": jepa, "predictor": {"module.backbone.norm.weight": one[0]}, "target_encoder": jepa},
         "is a V-JEPA 2, which is not supported: its patches span several frames"),
        ({"model": {"encoder.patch_embed.proj.weight": video}}, "is a video model such as V-JEPA, which is not"),
    ]  # fmt: skip
    for content, said in cases:
        torch.save(content, tmp_path / "some.pth")
        with pytest.raises(InputError, match=said) as refused:
            load_encoder(tmp_path / "some.pth")
        assert str(refused.value).endswith("wrap the model as my_package.my_module:build")
        assert str(refused.value).count("\n") == 0
    (tmp_path / "config.json").write_text('{"model_type": "vjepa2"}', encoding="utf-8")
    save_file({"encoder.layer.0.norm1.weight": one}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="describes a 'vjepa2', which is not a supported vision transformer"):
        load_encoder(f"hf:{tmp_path}")


def open_clip_folder(folder: Path, tensors: dict[str, Tensor], vision: dict[str, Any], **model: Any) -> Path:
    pixels = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "resize_mode": "shortest"}
    config = {
        "model_cfg": {"embed_dim": 8, "vision_cfg": vision, "text_cfg": {}, **model}, "preprocess_cfg": pixels,
    }  # fmt: skip
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize("quick", [False, True])
def test_a_folder_of_open_clip_is_read_by_its_own_config(quick: bool, tmp_path: Path) -> None:
    net = replace(CLIP, activation="quick_gelu") if quick else CLIP
    w = net.weights()
    vision = {"image_size": 48, "layers": net.depth, "width": net.width, "head_width": net.width // 3, "patch_size": 16}
    text = {"transformer.resblocks.0.ln_1.weight": torch.zeros(3), "positional_embedding": torch.zeros(3, 4)}
    folder = open_clip_folder(tmp_path, {**of_clip(w, net), **text}, vision, **({"quick_gelu": True} if quick else {}))
    images = torch.randn(2, 3, 48, 48)
    for spec in (f"hf:{folder}", folder / "open_clip_model.safetensors"):
        encoder = load_encoder(spec)
        expected = net.blocks(w, images)[-1][:, 0]
        assert torch.allclose(encoder.outputs(images, ["embed"])["embed"], expected, atol=2e-5)
        assert (encoder.card.mean, encoder.card.std, encoder.card.assumed) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), ())
    # A config of transformers beside it describes other weights.
    (folder / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    assert load_encoder(f"hf:{folder}").card.architecture.num_heads == 3


def test_towers_of_open_clip_that_are_no_plain_vit(tmp_path: Path) -> None:
    import timm

    net: Any = timm.create_model("vit_base_patch16_siglip_224", num_classes=0, depth=1).eval()
    trunk = prefixed("visual.trunk.", net.state_dict())
    folder = open_clip_folder(
        tmp_path, trunk, {"timm_model_name": "vit_base_patch16_siglip_224-l1", "timm_pool": "map"}
    )
    encoder = load_encoder(f"hf:{folder}")
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.allclose(encoder.outputs(images, ["embed"])["embed"], net(images), atol=1e-5)
    assert encoder.card.mean == (0.1, 0.2, 0.3)
    for vision, said in (
        ({"width": 48, "attentional_pool": True}, "has attentional_pool in its vision_cfg, which is not supported"),
        ({"layers": [3, 4, 6, 3], "width": 64}, "describes a ResNet or another tower than a ViT"),
        ({"width": 48}, "heads of 64 channels for tokens of 48"),
    ):
        with pytest.raises(InputError, match=said):
            load_encoder(f"hf:{open_clip_folder(tmp_path, trunk, vision)}")
    (tmp_path / "open_clip_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="has no model_cfg with a vision_cfg"):
        load_encoder(f"hf:{tmp_path}")


@pytest.mark.parametrize("name", ["radio on the hub", "franca without heads", "pe", "dinov3", "siglip"])
def test_a_folder_of_the_hub_whose_config_has_no_type_is_read_by_its_keys(name: str, tmp_path: Path) -> None:
    """RADIO's config has none; folders of others may have been written by their users."""
    case = CASES[name]
    content = case.content(case.net.weights(), case.net)
    flat = content.get("teacher", content)
    save_file({key: tensor.clone() for key, tensor in flat.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"architectures": ["SomeModel"]}', encoding="utf-8")
    encoder = load_encoder(f"hf:{tmp_path}", facts=case.facts)
    torch.save(content, tmp_path / "whole.pth")
    images = torch.randn(1, 3, 48, 48)
    same = load_encoder(tmp_path / "whole.pth", facts=case.facts)
    assert torch.equal(*(each.outputs(images, ["embed"])["embed"] for each in (encoder, same)))
    (tmp_path / "model.safetensors").rename(tmp_path / "PE.pt")
    (tmp_path / "whole.pth").unlink()
    with pytest.raises(InputError, match=r"give its file itself, as --encoder .*PE\.pt"):
        load_encoder(f"hf:{tmp_path}")


def test_embed_is_chosen_by_a_fact(tmp_path: Path) -> None:
    case = CASES["dinov2"]
    path = written(case, case.net.weights(), tmp_path)
    images = torch.randn(2, 3, 48, 48)
    both = load_encoder(path, facts=["heads=3", "embed=cls+mean"])
    outputs = both.outputs(images, ["embed", "cls", "patch_mean"])
    assert torch.equal(outputs["embed"], torch.cat([outputs["cls"], outputs["patch_mean"]], 1))
    assert both.card.embed == "class token and mean of the patch tokens after the last norm (96-d)"
    plain, cls = (load_encoder(path, facts=["heads=3", *more]) for more in ([], ["embed=cls"]))
    assert plain.card == cls.card  # one encoder has one card
    with pytest.raises(InputError, match=r"no class token; choose --facts embed=mean"):
        load_encoder(written(CASES["aimv2"], AIM.weights(), tmp_path), facts=["heads=3", "embed=cls"])


@pytest.mark.parametrize(
    ("name", "positions"),
    [("siglip", "offset"), ("dino", "square"), ("mae", "bilinear"), ("dino", "bfloat16"), ("dinov3", "offset"),
     ("beit", "square")],
)  # fmt: skip
def test_positions_of_another_kind_of_network_are_refused(name: str, positions: str, tmp_path: Path) -> None:
    """They ended in an error about shapes at the first image of another size."""
    file = written(CASES[name], CASES[name].net.weights(), tmp_path)
    with pytest.raises(InputError, match=f"positions={positions} is for a network with .*; leave it out of --facts"):
        load_encoder(file, facts=[*CASES[name].facts, f"positions={positions}"])


def test_another_epsilon_keeps_the_kind_of_norm(tmp_path: Path) -> None:
    """AIMv2 has RMS norms; with layer norms in their place its file did not fit."""
    encoder = load_encoder(written(CASES["aimv2"], AIM.weights(), tmp_path), facts=["heads=3", "norm_eps=0.5"])
    norms = [module for name, module in encoder.module.named_modules() if name.endswith("norm1")]
    assert {(isinstance(norm, torch.nn.LayerNorm), norm.eps) for norm in norms} == {(False, 0.5)}


def test_what_keys_do_not_show_is_asked_for(tmp_path: Path) -> None:
    for name in ("dino", "dinov2", "clip of OpenAI"):
        case = CASES[name]  # of a width that none of the family's models has
        with pytest.raises(InputError, match=r"do not show num_heads; add --facts num_heads=N"):
            load_encoder(written(case, case.net.weights(), tmp_path))
    with pytest.raises(InputError, match=r"do not show activation; add --facts activation=quick_gelu"):
        load_encoder(written(CASES["clip"], CLIP.weights(), tmp_path), facts=["heads=3"])
    solo = {"state_dict": {**prefixed("backbone.", keys(TIMM, SMALL.weights())), "classifier.weight": torch.zeros(1)}}
    torch.save(solo, tmp_path / "solo.ckpt")
    with pytest.raises(InputError, match=r"solo-learn.* do not show num_heads"):
        load_encoder(tmp_path / "solo.ckpt")
    card = load_encoder(tmp_path / "solo.ckpt", facts=["heads=12"]).card
    assert (card.mean[0], card.architecture.num_heads) == (0.485, 12)


def test_a_distilled_deit_gives_its_class_token(tmp_path: Path) -> None:
    import timm

    net = timm.create_model("deit_tiny_distilled_patch16_224", depth=2, img_size=48, num_classes=0).eval()
    torch.save({"model": net.state_dict()}, tmp_path / "deit.pth")
    encoder = load_encoder(tmp_path / "deit.pth")
    images = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        tokens = net.forward_features(images)
    assert torch.equal(encoder.outputs(images, ["embed"])["embed"], tokens[:, 0])
    assert encoder.card.architecture.name == "timm:deit_tiny_distilled_patch16_224-l2"


@pytest.mark.parametrize(("start", "picked"), [("teacher_backbone.vit.", "teacher"), ("backbone.vit.", "backbone")])
def test_vits_under_any_prefix_the_teacher_first(start: str, picked: str, tmp_path: Path) -> None:
    w = SMALL.weights()
    content = {**prefixed("student_backbone.vit.", keys(TIMM, SMALL.weights(1))), **prefixed(start, keys(TIMM, w)),
               "student_head.layers.0.weight": torch.zeros(2)}  # fmt: skip
    torch.save({"state_dict": content, "pytorch-lightning_version": "2.4"}, tmp_path / "last.ckpt")
    encoder = load_encoder(tmp_path / "last.ckpt", facts=["heads=3"])
    images = torch.randn(1, 3, 48, 48)
    expected = SMALL.blocks(w, images)[-1][:, 0]
    assert torch.allclose(encoder.outputs(images, ["embed"])["embed"], expected, atol=1e-5)
    assert picked in encoder.card.layout or encoder.card.layout == "Lightning"


LIGHTLY = {  # lightly-ai/lightly e8d317f benchmarks/imagenet/vitb16, keys beside the backbones
    "dino": ("backbone.", ("projection_head.layers.0.weight", "projection_head.last_layer.weight_g", "criterion.center",
                           "student_projection_head.layers.0.weight")),
    "mae": ("backbone.", ("decoder_embed.weight", "decoder_embed.bias", "decoder.mask_token", "decoder.pos_embed",
                          "decoder.blocks.0.norm1.weight", "prediction_head.weight", "prediction_head.bias")),
    "ibot": ("teacher_backbone.", ("student_head.layers.0.weight", "teacher_head.layers.0.weight",
                                   "cls_criterion.center", "patch_criterion.center.center")),
}  # fmt: skip


@pytest.mark.parametrize("method", LIGHTLY)
def test_lightlys_vits_are_timms_whatever_the_method(method: str, tmp_path: Path) -> None:
    """LayerScale and a mask token look like DINOv2's, whose code interpolates positions in another way."""
    start, others = LIGHTLY[method]
    net = replace(SCALED if method == "ibot" else SMALL, away="antialias")
    w = net.weights()
    content = {**prefixed(f"{start}vit.", keys(TIMM, w)), f"{start}mask_token": torch.zeros(1, 1, net.width)}
    content |= {other: torch.zeros(2) for other in (*others, "online_classifier.classification_head.weight")}
    if method != "mae":
        twin = keys(TIMM, net.weights(1))
        content |= {**prefixed("student_backbone.vit.", twin), "student_backbone.mask_token": torch.zeros(1, 1, 2)}
    torch.save({"state_dict": content, "pytorch-lightning_version": "2.6.1", "epoch": 0}, tmp_path / "last.ckpt")
    encoder = load_encoder(tmp_path / "last.ckpt", facts=["heads=3"])
    images = torch.randn(1, 3, 80, 80)
    expected = net.blocks(w, images)[-1][:, 0]
    assert torch.allclose(encoder.outputs(images, ["embed"])["embed"], expected, atol=1e-5)
    layout = "lightly ViT with a teacher" if method == "ibot" else "lightly ViT"
    assert encoder.card.layout == (layout if method == "mae" else f"{layout}: {start[:-1]}")
    assert encoder.card.method == ("MAE" if method == "mae" else None)
    assert ("positions" in encoder.card.assumed) is (method != "mae")
    if method != "mae":
        student = load_encoder(tmp_path / "last.ckpt", facts=["heads=3", "pick=student_backbone"])
        other = net.blocks(net.weights(1), images)[-1][:, 0]
        assert torch.allclose(student.outputs(images, ["embed"])["embed"], other, atol=1e-5)


def test_folders_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"hf:facebook/dinov2-small: .* downloads nothing; .*`hf download facebook/"):
        load_encoder("hf:facebook/dinov2-small")
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match=r"a has no config\.json or open_clip_config"):
        load_encoder(f"hf:{tmp_path / 'a'}")
    (tmp_path / "a" / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    with pytest.raises(InputError, match=r"a has none of model\.safetensors"):
        load_encoder(f"hf:{tmp_path / 'a'}")
    save_file({"x": torch.zeros(1)}, tmp_path / "a" / "model.safetensors")
    with pytest.raises(InputError, match=r"describes a 'llama'"):
        load_encoder(f"hf:{tmp_path / 'a'}")
    for entry, value, fault in (
        ("layer_norm_eps", 1e300, r"layer_norm_eps 1e\+300, which is out"),
        ("hidden_act", "\x1b", r"'\\x1b', which"),
    ):
        config = json.dumps({"model_type": "vit_mae", entry: value})
        (tmp_path / "a" / "config.json").write_text(config, encoding="utf-8")
        with pytest.raises(InputError, match=fault):
            load_encoder(f"hf:{tmp_path / 'a'}")
    (tmp_path / "a" / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"cannot read .*config\.json"):
        load_encoder(f"hf:{tmp_path / 'a'}")


@pytest.mark.parametrize("kind", ["siglip", "clip"])
def test_what_a_config_leaves_out_is_transformers_default(kind: str, tmp_path: Path) -> None:
    """As older versions of transformers wrote the configs of SigLIP and CLIP: only what differs from its defaults."""
    activation, net = ("gelu_tanh", SIGLIP) if kind == "siglip" else ("quick_gelu", replace(CLIP, eps=1e-5))
    net = replace(net, width=60, heads=12, activation=activation)
    w = net.weights()
    tensors = {name: tensor.contiguous() for name, tensor in of_transformers_clip(w, net).items()}
    folder = tmp_path / "models--google--siglip2" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    config = {"model_type": kind, "vision_config": {"model_type": f"{kind}_vision_model"}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    encoder = load_encoder(f"hf:{folder}")
    images = torch.randn(2, 3, 48, 48)
    tokens = net.blocks(w, images)[-1]
    expected = net.pooled(w, tokens) if kind == "siglip" else tokens[:, 0]
    assert torch.allclose(encoder.outputs(images, ["embed"])["embed"], expected, rtol=0, atol=2e-5)
    assert encoder.card.architecture.activation == activation
    assert (encoder.card.name, encoder.card.assumed) == ("siglip2", ())
    save_file(tensors, tmp_path / "renamed.safetensors")
    if kind == "siglip":
        renamed = load_encoder(tmp_path / "renamed.safetensors", facts=["heads=12"])
        assert (renamed.card.architecture.activation, renamed.card.assumed) == ("gelu_tanh", ())


def test_the_activation_of_timms_siglip_is_assumed(tmp_path: Path) -> None:
    import timm

    net: Any = timm.create_model("vit_base_patch16_siglip_224", depth=1, img_size=32, num_classes=0)
    torch.save(net.state_dict(), tmp_path / "siglip.pth")
    assert load_encoder(tmp_path / "siglip.pth").card.assumed == ("activation",)
    assert load_encoder(tmp_path / "siglip.pth", facts=["activation=gelu_tanh"]).card.assumed == ()
    assert load_encoder(f"timm:vit_base_patch16_siglip_224-l1:{tmp_path / 'siglip.pth'}").card.assumed == ()


def test_a_model_in_several_files_is_read_by_its_index(tmp_path: Path) -> None:
    case = CASES["hub dinov2"]
    whole = load_encoder(written(case, case.net.weights(), tmp_path))
    tensors = case.content(case.net.weights(), case.net)
    (tmp_path / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {f"model-0000{n}-of-00002.safetensors": names[n - 1 :: 2] for n in (1, 2)}
    for file, part in files.items():
        save_file({name: tensors[name].contiguous() for name in part}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    places = {name: file for file, part in files.items() for name in part}
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}), encoding="utf-8")
    for spec in (f"hf:{tmp_path}", str(index)):
        encoder = load_encoder(spec)
        assert encoder.card.model_copy(update={"source": whole.card.source}) == whole.card
        assert encoder.card.name == tmp_path.name
    first = next(iter(files))
    with pytest.raises(InputError, match=r"is one of 2 files that hold the model together; give their folder as hf:"):
        load_encoder(tmp_path / first)
    for changed, said in (
        ({**places, "more": first}, r"names 1 tensors that its files lack \(more\); download the whole model"),
        ({**places, names[0]: "../a.safetensors"}, r"names '\.\./a\.safetensors', and files must lie next to it"),
        ({**places, names[0]: index.name}, r"names 'model\.safetensors\.index\.json', and files must"),
        ({**places, names[0]: "gone.bin"}, r"names gone\.bin, which is not there; download the whole model"),
        ([], r"is not an index of weight files \(AttributeError"),
    ):
        index.write_text(json.dumps({"weight_map": changed}), encoding="utf-8")
        with pytest.raises(InputError, match=said):
            load_encoder(index)
    with pytest.raises(InputError, match=rf"is a folder of the Hugging Face hub; write hf:{tmp_path}$"):
        load_encoder(tmp_path)
    with_blank = tmp_path / "my model"
    with_blank.mkdir()
    (with_blank / "config.json").touch()
    with pytest.raises(InputError, match=rf"write 'hf:{with_blank}'$"):
        load_encoder(with_blank)


def test_a_timm_folder_of_the_hub_names_its_model_and_pixels(tmp_path: Path) -> None:
    import timm

    net = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32, depth=12).eval()
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for spec in (f"hf:{tmp_path}", str(tmp_path / "model.safetensors")):
        card = load_encoder(spec).card
        assert (card.mean, card.assumed, card.architecture.num_heads) == ((0.1, 0.2, 0.3), (), None)

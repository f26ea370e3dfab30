"""Silent faults of vision transformers that no key shows, family by family: which part of this project meets each.

Others have tests of their own: outputs that differ from a plain forward pass (positions, order of tokens, gates, key
biases, students and decoders) in `test_vit_families`; faults of the structure, of heads, tokens and pixels in
`test_audit_checks`. Here are numbers that the families' models fix by themselves, and faults that the audit can only
name as assumed.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.audit import AuditSample, findings
from benchmarks.audit_checks import alternatives, structure
from benchmarks.encoders.load import load_encoder
from benchmarks.encoders.vit_families import family_named, family_pixels
from benchmarks.task import InputError
from tests.benchmarks.encoders.test_vit_families import (
    CASES,
    ROTARY,
    TIMM,
    capi_weights,
    dinov3,
    keys,
    prefixed,
    written,
)
from tests.benchmarks.test_audit_checks import PATCH, SIDE, audited, encoder_of, pictures, sample

__all__ = ["sample"]  # a fixture

SATELLITE = ((0.430, 0.411, 0.296), (0.213, 0.156, 0.143))
WEB = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


# ---- epsilon of the norms, and numbers of heads ----------------------------------------------------------------------

EPSILONS = {
    "dino": 1e-6, "ibot": 1e-6, "dinov2": 1e-6, "dinov2-registers": 1e-6, "dinov3": 1e-5, "mae": 1e-6, "mocov3": 1e-6,
    "deit": 1e-6, "deit3": 1e-6, "beit": 1e-6, "ijepa": 1e-6, "clip": 1e-5, "siglip": 1e-6, "aimv2": 1e-5,
    "franca": 1e-6, "pe": 1e-5, "pe-spatial": 1e-5, "radio": 1e-6, "hub vit": 1e-12,
}  # fmt: skip


@pytest.mark.parametrize("name", EPSILONS)
def test_the_epsilon_of_the_norms_is_the_familys(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    encoder = load_encoder(written(case, case.net.weights(), tmp_path), facts=case.facts)
    module: Any = encoder.module
    assert {block.norm1.eps for block in module.blocks} == {EPSILONS[name]}


@pytest.mark.parametrize(
    ("family", "width", "patch", "heads"),
    [("dino", 384, 16, 6), ("dino", 768, 8, 12), ("mocov3", 384, 16, 12), ("mae", 1280, 14, 16), ("ibot", 1024, 16, 16),
     ("dinov2", 1024, 14, 16), ("dinov2", 1536, 14, 24),
     ("aimv2", 1024, 14, 8), ("ijepa", 1280, 14, 16), ("siglip", 1152, 14, 16),
     ("clip", 768, 32, 12)],
)  # fmt: skip
def test_the_number_of_heads_is_the_familys_at_its_usual_widths(
    family: str, width: int, patch: int, heads: int
) -> None:
    """MoCo v3's small model has heads of 32 channels and AIMv2's large one of 128: 64 runs too, and is wrong."""
    of = family_named(family)
    name = of.base.format(size=of.sizes[width], patch=patch)
    with torch.device("meta"):
        net: Any = timm.create_model(name, depth=1, num_classes=0)
    assert net.embed_dim == width
    assert (of.heads or {}).get(width, net.blocks[0].attn.num_heads) == heads


# ---- DINOv3's satellite models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "name", "more", "table"),
    [(768, "storage_tokens", (), "imagenet"), (1024, "storage_tokens", (), "imagenet"),
     (1024, "storage_tokens", ("local_cls_norm.weight",), "sat-493m"), (1024, "reg_token", (), None),
     (4096, "storage_tokens", ("local_cls_norm.weight",), None)],
)  # fmt: skip
def test_dinov3s_pixels_are_known_where_its_keys_tell_web_from_satellite(
    width: int, name: str, more: tuple[str, ...], table: str | None
) -> None:
    assert family_pixels(family_named("dinov3"), width, (name, *more)) == table
    assert family_pixels(family_named("dinov2"), width, (name, *more)) == "imagenet"


def test_a_satellite_models_pixels_are_read_or_named_as_assumed_and_tried(tmp_path: Path, sample: Any) -> None:
    net = replace(ROTARY, width=1024, heads=16, depth=1)
    own = dinov3(net.weights(), net)
    of_satellite = {**own, "local_cls_norm.weight": torch.ones(1024), "local_cls_norm.bias": torch.zeros(1024)}
    torch.save(of_satellite, tmp_path / "sat.pth")
    card = load_encoder(tmp_path / "sat.pth").card
    assert (card.mean, card.std, card.assumed) == (*SATELLITE, ())
    torch.save(own, tmp_path / "web.pth")
    assert load_encoder(tmp_path / "web.pth").card.mean == WEB[0]
    torch.save({name.replace("storage_tokens", "reg_token"): t for name, t in own.items()}, tmp_path / "other.pth")
    encoder = load_encoder(tmp_path / "other.pth")  # of another code, which left the norm out
    assert (encoder.card.mean, encoder.card.assumed) == (WEB[0], ("mean", "std"))
    (tried,) = [a for a in alternatives(encoder) if a.name == "SAT-493M"]
    assert (tried.card.mean, tried.card.std) == SATELLITE
    assert tried.conclusion.endswith("try --facts mean=0.43,0.411,0.296 std=0.213,0.156,0.143")
    told = load_encoder(tmp_path / "other.pth", facts=[tried.conclusion.partition("--facts ")[2]])
    assert (told.card.mean, told.card.std, told.card.assumed) == (*SATELLITE, ())
    assert "SAT-493M" not in {a.name for a in alternatives(told)}
    small = load_encoder(written(CASES["dinov3"], ROTARY.weights(), tmp_path), facts=["heads=3"])
    small.card = small.card.model_copy(update={"assumed": ("mean", "std")})
    audit = audited(small, sample)
    assert "assumed, because neither the file nor a known release says so: mean, std" in audit.findings
    assert "SAT-493M" in {trial.name for trial in audit.trials}


# ---- DINO's and DINOv2's interpolation of positions ------------------------------------------------------------------


def test_dinos_offset_of_positions_is_named_as_assumed_where_no_key_names_the_family(tmp_path: Path) -> None:
    """The same weights in a file that does not show whose they are: equal on the grid, and not off it."""
    case = CASES["dino"]
    w = case.net.weights()
    known = load_encoder(written(case, w, tmp_path), facts=case.facts)
    torch.save({"backbone": prefixed("", keys(TIMM, w))}, tmp_path / "plain.pth")
    plain = load_encoder(tmp_path / "plain.pth", facts=["heads=3"])
    named = load_encoder(tmp_path / "plain.pth", facts=["heads=3", "family=dino"])
    assert "positions" in plain.card.assumed
    assert not {"positions", "mean", "std"} & {*named.card.assumed, *known.card.assumed}
    torch.manual_seed(0)
    for side, differs in ((48, False), (80, True)):
        images = torch.randn(2, 3, side, side)
        right, of_timm, told = (e.outputs(images, ["patches"])["patches"] for e in (known, plain, named))
        assert torch.equal(right, told)
        assert torch.allclose(right, of_timm, atol=1e-5) is not differs
    audit = audited(plain, shown())
    (said,) = [finding for finding in audit.findings if finding.startswith("assumed, because neither the file")]
    assert "positions" in said
    assert findings(audit.model_copy(update={"encoder": known.card})) == ()


def shown() -> Any:
    images, targets = pictures(20, 1)
    return AuditSample(F.interpolate(images, (48, 48)), targets.numpy(), torch.arange(len(targets)).numpy())


# ---- MAE's fine-tuned form -------------------------------------------------------------------------------------------


def finetuned_mae() -> Any:
    """As MAE's main_finetune.py saves it: the mean of the patch tokens, then `fc_norm`, and no `norm`."""
    torch.manual_seed(0)
    net: Any = timm.create_model(
        "vit_tiny_patch16_224", img_size=48, depth=2, num_classes=10, global_pool="avg", fc_norm=True
    ).eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return net


def test_the_class_token_of_a_finetuned_mae_has_no_norm_and_is_found(tmp_path: Path) -> None:
    net = finetuned_mae()
    torch.save({"model": net.state_dict(), "epoch": 99}, tmp_path / "finetuned.pth")
    right = load_encoder(tmp_path / "finetuned.pth", facts=["family=mae"])
    images = torch.randint(0, 256, (4, 3, 48, 48), dtype=torch.uint8)
    x = right.normalise(images)
    with torch.no_grad():
        tokens = net.norm(net.blocks(net._pos_embed(net.patch_embed(x))))
        expected = net.fc_norm(tokens[:, 1:].mean(1))
    assert isinstance(net.norm, nn.Identity)
    assert torch.allclose(right.outputs(x, ["embed"])["embed"], expected, atol=1e-5)
    assert structure(right, images) == ()
    wrong = load_encoder(tmp_path / "finetuned.pth", facts=["family=mae", "embed=cls"])
    (found,) = structure(wrong, images)
    assert found.startswith("embed is the class token without a norm (192-d): the file's only norm after the blocks, ")
    assert found.endswith("omit --facts embed=")


def test_a_finetuned_mae_does_not_fill_the_pretrained_form_or_the_other_way_round(tmp_path: Path) -> None:
    net = finetuned_mae()
    torch.save({"model": net.state_dict()}, tmp_path / "finetuned.pth")
    with pytest.raises(InputError, match=r"2 missing \(norm\.bias.*2 left over \(fc_norm"):
        load_encoder(f"timm:vit_tiny_patch16_224-l2:{tmp_path / 'finetuned.pth'}")
    plain = {name.replace("fc_norm", "norm"): tensor for name, tensor in net.state_dict().items()}
    torch.save({"model": plain}, tmp_path / "pretrained.pth")
    with pytest.raises(InputError, match=r"2 missing \(fc_norm.*2 left over \(norm"):
        load_encoder(f"timm:vit_tiny_patch16_224-l2-avg:{tmp_path / 'pretrained.pth'}")


# ---- CAPI's registers ------------------------------------------------------------------------------------------------


def test_capis_registers_among_its_patches_are_found(tmp_path: Path) -> None:
    torch.save(capi_weights(16, torch.Generator().manual_seed(0)), tmp_path / "capi.pth")
    encoder = load_encoder(tmp_path / "capi.pth")
    images = torch.randint(0, 256, (4, 3, 112, 112), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert structure(encoder, images) == ()
    registers = encoder.module.registers.shape[1]  # type: ignore[union-attr]
    norm: Any = encoder.module.enc_norm
    norm.register_forward_hook(lambda _, __, tokens: tokens.roll(registers, 1))  # as if registers came with the map
    (found,) = structure(encoder, images)
    assert found.startswith("the map of patches is shifted by 16 places: class or register tokens")


# ---- GELU and QuickGELU ----------------------------------------------------------------------------------------------

LEVELS = (40, 100, 160, 220)


def halves(per_pair: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """(N, 3, 32, 32) uint8 images of two flat halves, and which of `LEVELS` the left and the right one have."""
    rng = np.random.default_rng(seed)
    left, right = (level.repeat(per_pair) for level in np.divmod(np.arange(16), 4))
    images = np.zeros((len(left), 3, SIDE, SIDE))
    for level, columns in ((left, slice(0, SIDE // 2)), (right, slice(SIDE // 2, SIDE))):
        images[..., columns] = np.array(LEVELS)[level][:, None, None, None]
    images += rng.normal(0, 6, (len(left), 3, 1, 1)) + rng.normal(0, 4, images.shape)
    return torch.from_numpy(images.clip(0, 255)).to(torch.uint8), torch.from_numpy(left), torch.from_numpy(right)


def of_one_activation() -> Any:
    """CLIP's network whose embedding shows the left half with QuickGELU, and with the exact GELU the right half.

    Both differ by 0.02 at most, which only adds up over many trained blocks. Here least squares makes one MLP of random
    first weights read the difference out, into four channels that nothing else reaches.
    """
    torch.manual_seed(0)
    net: Any = timm.create_model(
        "vit_base_patch16_clip_quickgelu_224", img_size=SIDE, patch_size=PATCH, embed_dim=32, depth=1, num_heads=4,
        num_classes=0, dynamic_img_size=True, mlp_ratio=8,
    ).eval()  # fmt: skip
    block, read = net.blocks[0], slice(0, len(LEVELS))
    images, left, right = halves(30, 0)
    with torch.no_grad():
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.3)
        for norm, mean in ((net.norm_pre, 1.0), (block.norm1, 1.0), (block.norm2, 2.0)):
            nn.init.normal_(norm.weight, mean, 0.1)
        for tensor in (net.norm_pre.weight, net.norm_pre.bias, block.attn.proj.weight, block.attn.proj.bias):
            tensor[read] = 0
        net.norm.weight.zero_()
        net.norm.bias.zero_()
        net.norm.weight[read] = 1
        seen: list[Tensor] = []
        hook = block.mlp.act.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:, 0].double()))
        net((images.float() / 255 - 0.5) / 0.5)
        hook.remove()
        hidden = torch.cat([seen[0] * torch.sigmoid(1.702 * seen[0]), F.gelu(seen[0])])
        hidden = F.pad(hidden, (0, 1), value=1.0)
        shown = torch.cat([F.one_hot(left), F.one_hot(right)]).double()
        ridge = 1e-6 * torch.eye(hidden.shape[1], dtype=torch.float64)
        weights = torch.linalg.solve(hidden.T @ hidden + ridge, hidden.T @ shown).float()
        block.mlp.fc2.weight[read], block.mlp.fc2.bias[read] = weights[:-1].T, weights[-1]
    return net


def test_the_wrong_one_of_clips_activations_is_found() -> None:
    net = of_one_activation()
    images, left, _ = halves(15, 1)
    order = torch.randperm(len(left), generator=torch.Generator().manual_seed(0))
    shown = AuditSample(images[order], left[order].numpy(), np.arange(len(left)))
    right = audited(encoder_of(net), shown)
    assert "activation" in {trial.name for trial in right.trials}
    assert not any("activation" in finding for finding in right.findings)
    net.blocks[0].mlp.act = nn.GELU()
    wrong = audited(encoder_of(net), shown)
    (found,) = [finding for finding in wrong.findings if "activation" in finding]
    assert "points higher with CLIP's QuickGELU" in found
    assert found.endswith("the activation is probably wrong; try --facts activation=quick_gelu")


# ---- another reading than that of the family's own code --------------------------------------------------------------

OF_ONE_FAMILY = (
    "dino",
    "ibot",
    "dinov2",
    "dinov2-registers",
    "mae",
    "mocov3",
    "deit3",
    "beit",
    "ijepa",
    "clip",
    "siglip",
    "aimv2",
    "franca",
    "pe",
    "radio",
)
WITH_ONE_EMBEDDING = ("beit", "ijepa", "aimv2")  # no class token, or none after a norm


@pytest.mark.parametrize("name", OF_ONE_FAMILY)
def test_another_reading_than_the_familys_is_found(name: str, tmp_path: Path) -> None:
    """Pixels, interpolation, epsilon and tokens of the embedding are compared with the family's own code."""
    case = CASES[name]
    path, images = written(case, case.weights(), tmp_path), torch.randint(0, 256, (4, 3, 48, 48), dtype=torch.uint8)
    encoder = load_encoder(path, facts=(*case.facts, "mean=0.1,0.2,0.3"))
    (found,) = structure(encoder, images)
    assert found.startswith(
        f"mean, std, range or channels are not those of {family_named(case.family).title} (mean (0."
    )
    encoder = load_encoder(path, facts=case.facts)
    assert structure(encoder, images) == ()
    positions = None if encoder.card.architecture.positions else "offset"
    other = encoder.card.architecture.model_copy(update={"positions": positions})
    encoder.card = encoder.card.model_copy(update={"architecture": other})
    module: Any = encoder.module
    module.blocks[0].norm1.eps = 1e-4
    epsilon, interpolated = structure(encoder, images)
    assert interpolated.startswith("positions at other image sizes are not interpolated as in ")
    assert epsilon.startswith("the epsilon of its norms is 0.0001, and 1e-0")
    if name not in WITH_ONE_EMBEDDING:
        (found,) = structure(load_encoder(path, facts=(*case.facts, "embed=mean")), images)
        assert found == f"embed is mean, and its authors evaluate {family_named(case.family).embed}"


def test_heads_of_another_family_are_found(tmp_path: Path) -> None:
    """MoCo v3's small model has 12 heads; the 6 that its width suggests run silently."""
    case = CASES["mocov3"]
    path = written(case, case.weights(), tmp_path)
    images = torch.randint(0, 256, (4, 3, 48, 48), dtype=torch.uint8)
    (found,) = structure(load_encoder(path, facts=["heads=6"]), images)
    assert found == "it has 6 heads, and 12 in the authors' code (MoCo v3): the number of heads is probably wrong"


@pytest.mark.parametrize("name", ["dino", "dinov3", "dinov3 gated", "clip", "siglip", "aimv2", "ijepa", "pe", "franca"])
def test_a_missing_final_norm_is_found_in_the_family(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    encoder = load_encoder(written(case, case.weights(), tmp_path), facts=case.facts)
    images = torch.randint(0, 256, (4, 3, 48, 48), dtype=torch.uint8)
    assert structure(encoder, images) == ()
    module: Any = encoder.module
    module.norm = nn.Identity()
    assert "there is no norm after the last block: the final norm is probably missing" in structure(encoder, images)


def test_a_table_of_beits_biases_that_was_not_loaded_is_found(tmp_path: Path) -> None:
    case = CASES["beit"]
    encoder = load_encoder(written(case, case.weights(), tmp_path), facts=case.facts)
    module: Any = encoder.module
    module.blocks[0].attn.relative_position_bias_table.zero_()
    (found,) = structure(encoder, torch.randint(0, 256, (4, 3, 48, 48), dtype=torch.uint8))
    assert found.startswith("blocks.0.attn.relative_position_bias_table is nearly constant: it was probably not loaded")

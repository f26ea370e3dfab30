"""Measure how far embed and patches are from the forward pass of another code, for a column of the documentation.

python scripts/vit_differences.py [FAMILY ...]      all by default; transformers and open_clip where they are installed

A comparison builds a small network of the other code, replaces its weights by random numbers, lets that code save it,
reads the file as any encoder is read, and compares both on the same images. Rows of `docs_pages/vit_differences.json`
that name no `measured_by` were compared with code that is in no package, and are kept as they are.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.encoders.load import load_encoder

FILE = Path(__file__).parent / "docs_pages" / "vit_differences.json"
PACKAGES = {"transformers": "transformers", "open_clip": "open_clip_torch", "timm": "timm"}  # module -> distribution
PATCH, GRID, WIDTH, DEPTH, HEADS = 16, 3, 48, 4, 3
ON_THE_GRID: tuple[tuple[int, int], ...] = ((GRID, GRID),)
ANY_SIZE = (*ON_THE_GRID, (5, 5), (2, 4))

Outputs = dict[str, Tensor]
Saved = tuple[str, tuple[str, ...], Callable[[Tensor], Outputs]]  # encoder, facts, and the other code's outputs


@dataclass(frozen=True)
class Comparison:
    """One family in one code.

    Attributes:
        code: a key of `PACKAGES`.
        save: writes a network into a folder; see `Saved`.
        sizes: rows and columns of patches.
        note: what was compared, where the code has several.
    """

    family: str
    code: str
    save: Callable[[Path], Saved]
    sizes: tuple[tuple[int, int], ...] = ON_THE_GRID
    note: str = ""

    def difference(self) -> float:
        """The largest difference over outputs and sizes, as a share of the output's largest value."""
        worst = 0.0
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            spec, facts, of_code = self.save(Path(folder))
            encoder = load_encoder(spec, facts=facts)
            for rows, columns in self.sizes:
                images = torch.randn(2, 3, rows * PATCH, columns * PATCH, generator=torch.Generator().manual_seed(1))
                expected = of_code(images)
                found = encoder.outputs(images, expected)
                for name, value in expected.items():
                    if name == "patches":
                        value = value.mT.unflatten(2, (rows, columns))
                    worst = max(worst, float((found[name] - value).abs().max() / value.abs().max()))
        return worst


def randomised(net: Any) -> Any:
    """The network in eval mode, with weights as far from their start as those of a trained one."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    return net.eval()


# ---- transformers ----------------------------------------------------------------------------------------------------

Pick = Callable[[Any, Tensor], Outputs]  # of a model and its last hidden state


def of_transformers(model: str, config: str, pick: Pick, **settings: Any) -> Callable[[Path], Saved]:
    """A folder that transformers saves.

    MAE's network shuffles patches in eval mode too, by random numbers or by those that it is given: these are in order.
    """

    def save(folder: Path) -> Saved:
        transformers: Any = import_module("transformers")
        sizes = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS,
                 "intermediate_size": 4 * WIDTH, "image_size": GRID * PATCH, "patch_size": PATCH}  # fmt: skip
        net = getattr(transformers, model)(getattr(transformers, config)(**{**sizes, **settings}))
        randomised(net).save_pretrained(folder)
        ordered = {"noise": torch.linspace(0, 1, GRID**2).expand(2, -1)} if "mask_ratio" in settings else {}
        return f"hf:{folder}", (), lambda images: pick(net, net(pixel_values=images, **ordered).last_hidden_state)

    return save


def class_token(prefix: int) -> Pick:
    """Of tokens that are normed already."""
    return lambda net, tokens: {"embed": tokens[:, 0], "patches": tokens[:, prefix:]}


def mean_of_patches(net: Any, tokens: Tensor) -> Outputs:
    return {"embed": tokens.mean(1), "patches": tokens}


def of_beit(net: Any, tokens: Tensor) -> Outputs:
    return {"embed": net.pooler.layernorm(tokens[:, 1:].mean(1))}


def of_clip(net: Any, tokens: Tensor) -> Outputs:
    normed = getattr(net, "vision_model", net).post_layernorm(tokens)
    return {"embed": normed[:, 0], "patches": normed[:, 1:]}


def of_siglip(net: Any, tokens: Tensor) -> Outputs:
    return {"embed": getattr(net, "vision_model", net).head(tokens), "patches": tokens}


# ---- open_clip -------------------------------------------------------------------------------------------------------


def of_open_clip(quick: bool) -> Callable[[Path], Saved]:
    """A file with the vision tower as open_clip's CLIP has it."""

    def save(folder: Path) -> Saved:
        code: Any = import_module("open_clip.transformer")
        tower = code.VisionTransformer(
            GRID * PATCH, PATCH, WIDTH, DEPTH, HEADS, 4.0, output_dim=8, output_tokens=True,
            act_layer=code.QuickGELU if quick else nn.GELU,
        )  # fmt: skip
        randomised(tower)
        torch.save({f"visual.{name}": tensor for name, tensor in tower.state_dict().items()}, folder / "clip.pt")

        def forward(images: Tensor) -> Outputs:
            projection, tower.proj = tower.proj, None  # the embedding is before it
            pooled, tokens = tower(images)
            tower.proj = projection
            return {"embed": pooled, "head": pooled @ projection, "patches": tokens}

        facts = (f"heads={HEADS}", f"activation={'quick_gelu' if quick else 'gelu'}")
        return str(folder / "clip.pt"), facts, forward

    return save


# ---- timm ------------------------------------------------------------------------------------------------------------


def of_timm(
    name: str, *facts: str, key: str = "model", pooled: bool = False, **settings: Any
) -> Callable[[Path], Saved]:
    """A file with the network that timm has of a family whose authors keep their code there."""

    def save(folder: Path) -> Saved:
        import timm

        sizes = {"img_size": GRID * PATCH, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "patch_size": PATCH}
        net: Any = randomised(timm.create_model(name, num_classes=0, **{**sizes, **settings}))
        torch.save({key: net.state_dict()}, folder / "vit.pth")

        def forward(images: Tensor) -> Outputs:
            tokens = net.forward_features(images)
            embed = net.forward_head(tokens) if pooled else tokens[:, 0]
            return {"embed": embed} | ({} if pooled else {"patches": tokens[:, net.num_prefix_tokens :]})

        return str(folder / "vit.pth"), (f"heads={HEADS}", *facts), forward

    return save


COMPARISONS = (
    Comparison("dinov2", "transformers", of_transformers("Dinov2Model", "Dinov2Config", class_token(1))),
    Comparison("dinov2-registers", "transformers",
               of_transformers("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", class_token(5))),
    Comparison("dinov3", "transformers", of_transformers("DINOv3ViTModel", "DINOv3ViTConfig", class_token(5),
                                                         num_register_tokens=4), ANY_SIZE),
    Comparison("dinov3", "transformers", of_transformers("DINOv3ViTModel", "DINOv3ViTConfig", class_token(5),
                                                         num_register_tokens=4, use_gated_mlp=True, hidden_act="silu",
                                                         hidden_size=384, num_attention_heads=6),
               ANY_SIZE, "gated MLP"),
    Comparison("mae", "transformers", of_transformers("ViTMAEModel", "ViTMAEConfig", class_token(1), mask_ratio=0.0),
               note="without masking"),
    Comparison("deit-distilled", "transformers", of_transformers("DeiTModel", "DeiTConfig", class_token(2))),
    Comparison("beit", "transformers", of_transformers("BeitModel", "BeitConfig", of_beit, use_mean_pooling=True,
                                                       use_relative_position_bias=True)),
    Comparison("ijepa", "transformers", of_transformers("IJepaModel", "IJepaConfig", mean_of_patches)),
    Comparison("clip", "transformers", of_transformers("CLIPVisionModel", "CLIPVisionConfig", of_clip)),
    Comparison("siglip", "transformers", of_transformers("SiglipVisionModel", "SiglipVisionConfig", of_siglip)),
    Comparison("aimv2", "transformers", of_transformers("Aimv2VisionModel", "Aimv2VisionConfig", mean_of_patches)),
    Comparison("plain", "transformers", of_transformers("ViTModel", "ViTConfig", class_token(1))),
    Comparison("clip", "open_clip", of_open_clip(False), note="GELU"),
    Comparison("clip", "open_clip", of_open_clip(True), note="QuickGELU"),
    Comparison("deit", "timm", of_timm("deit_tiny_patch16_224", "family=deit")),
    Comparison("deit-distilled", "timm", of_timm("deit_tiny_distilled_patch16_224")),
    Comparison("deit3", "timm", of_timm("deit3_small_patch16_224")),
    Comparison("siglip", "timm", of_timm("vit_base_patch16_siglip_224", pooled=True)),
    Comparison("beit", "timm", of_timm("beit_base_patch16_224", pooled=True)),
)  # fmt: skip


def measurable(families: Sequence[str] = (), codes: Iterable[str] = PACKAGES) -> list[Comparison]:
    """The comparisons of these families whose code is installed."""
    here = [code for code in codes if find_spec(code)]
    return [c for c in COMPARISONS if c.code in here and (not families or c.family in families)]


def rows() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def row_of(comparison: Comparison, found: float) -> dict[str, Any]:
    """What is written for a comparison."""
    package = PACKAGES[comparison.code]
    return {
        "family": comparison.family,
        "code": f"{package} {version(package)}",
        "note": comparison.note,
        "sizes": len(comparison.sizes),
        "difference": float(f"{found:.1g}"),
        "measured_by": comparison.code,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }


def place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a new measurement of the same comparison replaces."""
    return row["family"], row.get("measured_by", row["code"]), row["note"]


def main(families: Sequence[str]) -> int:
    """Measure, print and merge into the file."""
    known = {place(row): row for row in rows()}
    for comparison in measurable(families):
        row = row_of(comparison, comparison.difference())
        known[place(row)] = row
        sys.stdout.write(f"{row['family']:18}{row['code']:24}{row['note']:18}{row['difference']:g}\n")
    missing = [PACKAGES[code] for code in PACKAGES if not find_spec(code)]
    if missing:
        sys.stdout.write(f"not installed, so rows are kept: {', '.join(missing)}\n")
    FILE.write_text(json.dumps(list(known.values()), indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""From what the user writes after `--encoder` to an `Encoder`; and the `random-encoder` command."""

from __future__ import annotations

import glob
import importlib
import logging
import re
import traceback
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from benchmarks.datasets.classification import read_image_folder
from benchmarks.datasets.images import Images
from benchmarks.encoders.card_facts import NETWORK, PIXELS, CardOverrides, parse_card_overrides
from benchmarks.encoders.checkpoint import load_checkpoint
from benchmarks.encoders.encoder import Encoder
from benchmarks.encoders.resnet import parse_architecture, pretrained_torchvision, random_resnet, recalibrated
from benchmarks.task import FEATURE_MAPS, InputError
from pretrain.checkpoint import write_backbone
from pretrain.resnet import STAGES, weights_sha256
from results.schema import Architecture, EncoderCard, Geometry

log = logging.getLogger(__name__)

FORMS = (
    "a checkpoint of any known layout",
    "torchvision:ARCH[:FILE]",
    "timm:NAME[:FILE]",
    "random:ARCH[:SEED]",
    "package:efficientnet-lite0",
    "pixels",
    "my_package.my_module:build",
)
PIXELS_SIDE = 32


def load_encoder(
    encoder: str | Path | nn.Module | Encoder, name: str | None = None, facts: Sequence[str] = ()
) -> Encoder:
    """The encoder, frozen, on the CPU.

    Args:
        encoder: one of `FORMS`, a module (see `module_encoder`), or an `Encoder`.
        name: replaces the name in the card.
        facts: what the keys of a checkpoint do not show, such as `channels=BGR`, `stride_in_1x1=true` and
            `architecture=resnet50`, or which of its encoders to take, such as `pick=teacher` (see
            `benchmarks.encoders.card_facts`).

    Raises:
        InputError: the form is unknown, the file is missing, unsafe or does not fit, or facts do not apply.
    """
    loaded = _load(encoder, parse_card_overrides(facts))
    if name:
        loaded.card = loaded.card.model_copy(update={"name": name})
    return loaded


def _load(encoder: str | Path | nn.Module | Encoder, overrides: CardOverrides) -> Encoder:
    if isinstance(encoder, Encoder):
        return encoder
    if isinstance(encoder, nn.Module):
        overrides.refuse(["architecture", "pick", *NETWORK], "a module is not a checkpoint")
        built = module_encoder(encoder)
        built.card = overrides.apply_to_card(built.card, built.card.assumed)
        return built
    text = str(encoder)
    kind, _, rest = text.partition(":")
    if kind == "torchvision":
        return _torchvision(rest, overrides)
    if kind == "timm":
        model, _, file = rest.partition(":")
        if not file:
            from benchmarks.encoders.timm_models import pretrained_timm

            return pretrained_timm(model, overrides)
        return load_checkpoint(_existing(file), overrides.then(CardOverrides({"architecture": f"timm:{model}"})))
    if kind == "random" or text in ("pixels", "package:efficientnet-lite0"):
        overrides.refuse(list(overrides.values), f"only a checkpoint has them, and {text} is not one")
        if kind == "random":
            return _random(rest or "resnet50:0")  # the chance baseline of the published protocols
        if text == "pixels":
            return raw_pixels()
        from benchmarks.encoders.timm_models import efficientnet_lite0

        return efficientnet_lite0()
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", text):
        overrides.refuse(["architecture", "pick", *NETWORK], f"{text} is not a checkpoint")
        built = built_encoder(text)
        built.card = overrides.apply_to_card(built.card, built.card.assumed)
        return built
    return load_checkpoint(_existing(text), overrides)


def _existing(text: str) -> Path:
    path = Path(text).expanduser()
    if not text or not (path.exists() or path.is_symlink()):
        raise InputError("\n".join([f"encoder file not found: {text!r}; --encoder takes", *FORMS]))
    return path


def _torchvision(text: str, overrides: CardOverrides) -> Encoder:
    """`resnet50` or `resnet50:FILE`. The file must hold this architecture, in any layout."""
    name, _, file = text.partition(":")
    if name not in STAGES:
        raise InputError(f"torchvision:{name} is not one of {', '.join(STAGES)}; give another network as timm:NAME")
    if not file:
        return pretrained_torchvision(name, overrides)
    # Fixed in torchvision's code, so none of it is assumed.
    network = {"stem_stride": 2, "max_pool": True, "stride_in_1x1": False, "bn_eps": 1e-5, "architecture": name}
    return load_checkpoint(_existing(file), CardOverrides(network).then(overrides))


def _random(text: str) -> Encoder:
    architecture, _, seed = text.partition(":")
    if not re.fullmatch(r"\d*", seed):
        raise InputError(f"random:{text}: the seed must be a number, got {seed!r}")
    return random_resnet(parse_architecture(architecture), int(seed or 0))


def expand(encoders: Iterable[str]) -> list[str]:
    """Replace globs by the matching files, in order. Names of existing files are never taken for globs.

    Raises:
        InputError: a glob that matches nothing.
    """
    found: list[str] = []
    for encoder in encoders:
        pattern = str(Path(encoder).expanduser())
        if not any(c in encoder for c in "*?[") or Path(pattern).exists():
            found.append(encoder)
            continue
        matches = sorted(glob.glob(pattern))  # noqa: PTH207 - the pattern may be absolute
        if not matches:
            raise InputError(f"no file matches {encoder!r}; correct the pattern, and quote it")
        found.extend(matches)
    return found


# ---- encoders without a checkpoint -----------------------------------------------------------------------------------


def module_encoder(module: nn.Module, card: EncoderCard | None = None, name: str | None = None) -> Encoder:
    """Wrap a module that maps (N, 3, H, W) to (N, D), or to a mapping of output names to tensors.

    Args:
        module: a mapping that it returns may have feature1 … feature5 (maps), embed and head.
        card: describes its input; without one, ImageNet's mean and std on RGB of 0 to 1 are assumed, and listed as such
            in the card.

    Raises:
        InputError: the module returns something else.
    """
    kind = type(module).__name__
    module.eval()
    try:
        with torch.no_grad():
            probe = module(torch.zeros(2, 3, 224, 224))
    except Exception as error:  # of the user's code
        raise InputError(
            f"{kind} fails on a (2, 3, 224, 224) batch ({_error_with_place(error)}); it must accept that"
        ) from error
    known = (*FEATURE_MAPS, "embed", "head")
    if isinstance(probe, Tensor) and probe.ndim == 2:
        names: Collection[str] = ("embed",)
    elif isinstance(probe, dict) and probe and set(probe) <= set(known):
        names = tuple(probe)
    else:
        returned = f"a tensor of shape {tuple(probe.shape)}" if isinstance(probe, Tensor) else type(probe).__name__
        raise InputError(f"{kind} returns {returned}; return (N, D), or a dict with keys of {', '.join(known)}")

    def forward(images: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        output = module(images)
        found = {"embed": output} if isinstance(output, Tensor) else output
        return {name: found[name] for name in names}

    card = card or EncoderCard(
        name=name or kind,
        source=f"module {kind}",
        architecture=Architecture(name=f"module:{kind}"),
        embed="the module's output",
        assumed=PIXELS,
    )
    state = module.state_dict()
    filled = {"weights_sha256": weights_sha256(state), "keys_matched": len(state)}
    return Encoder(card.model_copy(update=filled), module, forward, names)


def built_encoder(spec: str) -> Encoder:
    """`my_package.my_module:build`, a function without arguments that returns an nn.Module or an `Encoder`.

    Raises:
        InputError: it cannot be imported, or returns something else.
    """
    module_name, _, function = spec.partition(":")
    try:
        build = getattr(importlib.import_module(module_name), function)
    except Exception as error:  # a module may do anything while it is imported
        raise InputError(
            f"cannot import {spec} ({_error_with_place(error)}); its folder must be in PYTHONPATH"
        ) from error
    try:
        built = build()
    except Exception as error:
        raise InputError(
            f"{spec} raised {_error_with_place(error)}; it must return a torch.nn.Module without arguments"
        ) from error
    if isinstance(built, Encoder):
        return built
    if isinstance(built, nn.Module):
        return module_encoder(built, name=spec)
    raise InputError(f"{spec} returned {type(built).__name__}; return a torch.nn.Module")


def _error_with_place(error: Exception) -> str:
    """Type, text and place of an exception in the user's code."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}{where}"


def raw_pixels() -> Encoder:
    """Raw pixels, a baseline: embed (N, 3072) is the flattened image, area-averaged to 32x32 pixels if larger."""

    def forward(images: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        small = F.adaptive_avg_pool2d(images, PIXELS_SIDE) if images.shape[-1] > PIXELS_SIDE else images
        return {"embed": small.flatten(1)}

    card = EncoderCard(
        name="raw pixels",
        source="the image itself",
        architecture=Architecture(name="pixels"),
        weights_sha256=weights_sha256({}),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        embed=f"the image at {PIXELS_SIDE}x{PIXELS_SIDE} pixels",
    )
    return Encoder(card, nn.Identity(), forward, ("embed",))


def random_encoder_command(
    architecture: str, images: Path, out: Path, seed: int = 0, size: int = 64, threads: int | None = None
) -> int:
    """Write a randomly initialised encoder with batch-norm statistics of images: the fair control for a trained one.

    Args:
        architecture: such as resnet50, or resnet18-w32-k3-nopool.
        images: image folder; the statistics are those of its train split.
        out: backbone file to write.
        seed: seed of the initialisation.
        size: images are reduced and centre-cropped to this many pixels.
        threads: CPU threads; torch's default otherwise.
    """
    if threads:
        torch.set_num_threads(threads)
    paths = read_image_folder(images, "train").paths
    encoder = random_resnet(parse_architecture(architecture), seed)
    geometry = Geometry(mode="shorter", resize=size, crop=size)
    recalibrated(encoder, (batch for batch, _ in DataLoader(Images(paths, geometry), batch_size=128)))
    write_backbone(out, encoder.module.state_dict(), encoder.card)
    log.info("wrote %s", out)
    return 0

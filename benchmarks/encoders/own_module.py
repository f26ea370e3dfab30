"""One's own `torch.nn.Module`, or a function that builds it, as an encoder."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Collection

import torch
from torch import Tensor, nn

from benchmarks.contract import InputError
from benchmarks.encoders.encoder import FEATURES, Encoder
from pretrain.checkpoint import weights_sha256
from results.schema import Architecture, EncoderCard


def module_encoder(module: nn.Module, card: EncoderCard | None = None, name: str | None = None) -> Encoder:
    """Wraps a module that maps (N, 3, H, W) to (N, D), or to a mapping of output names to tensors.

    Args:
        module: as said; a mapping may have feature1 … feature5 (maps), embed and head.
        card: how its input must look; without one ImageNet's mean and std on [0, 1] RGB are assumed, and the card
            says so.

    Raises:
        InputError: the module gives something else.
    """
    module.eval()
    try:
        with torch.no_grad():
            probe = module(torch.zeros(2, 3, 224, 224))
    except Exception as error:  # of other people's code
        raise InputError(
            f"{type(module).__name__} fails on a (2, 3, 224, 224) batch ({_described(error)}); it must take that"
        ) from error
    if isinstance(probe, Tensor) and probe.ndim == 2:
        names: Collection[str] = ("embed",)
    elif isinstance(probe, dict) and probe and set(probe) <= {*FEATURES, "embed", "head"}:
        names = tuple(probe)
    else:
        kind = f"a tensor of shape {tuple(probe.shape)}" if isinstance(probe, Tensor) else type(probe).__name__
        raise InputError(
            f"{type(module).__name__} gives {kind}; return (N, D), or a dict with keys of "
            f"{', '.join((*FEATURES, 'embed', 'head'))}"
        )

    def forward(images: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        output = module(images)
        found = {"embed": output} if isinstance(output, Tensor) else output
        return {key: found[key] for key in wanted}

    assumed = ("mean", "std", "value_range", "channels")
    kind = type(module).__name__
    card = card or EncoderCard(
        name=name or kind,
        source=f"module {kind}",
        architecture=Architecture(name=f"module:{kind}"),
        embed="the module's output",
        assumed=assumed,
    )
    state = module.state_dict()
    filled = {"weights_sha256": weights_sha256(state), "keys_matched": len(state)}
    return Encoder(card.model_copy(update=filled), module, forward, names)


def _described(error: Exception) -> str:
    """Type, text and the place it was raised at, for a sentence about code of the user's."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}{where}"


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
            f"cannot import {spec} ({_described(error)}); it must be importable from here, see PYTHONPATH"
        ) from error
    try:
        built = build()
    except Exception as error:
        raise InputError(
            f"{spec} raised {_described(error)}; it must return a torch.nn.Module without arguments"
        ) from error
    if isinstance(built, Encoder):
        return built
    if isinstance(built, nn.Module):
        return module_encoder(built, name=spec)
    raise InputError(f"{spec} returned {type(built).__name__}; return a torch.nn.Module")

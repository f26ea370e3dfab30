"""Batch norms folded into the convolutions before them, for the length of a pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from benchmarks.encoders.encoder import Encoder

TOLERANCE = 1e-3  # of an output's largest value: rounding stays below in the deepest nets, a wrong fold does not


@contextmanager
def folded(encoder: Encoder, names: set[str], size: int) -> Iterator[bool]:
    """The encoder with every batch norm in eval mode folded into its convolution, put back afterwards.

    One pass over the maps less per convolution, and in bfloat16 one rounding less, as the fold itself is made in
    float32. Which norm follows which convolution is seen from a blank pass, so any network will do; a convolution
    whose output something else reads too would give other numbers, so the fold is only kept where the outputs
    `names` of a noise image agree before and after. Yields whether it was.
    """
    device = encoder.device
    noise = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = encoder.normalise(noise)
    pairs, plain = _pairs(encoder, batch, names)
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    parents = {
        id(child): (parent, name) for parent in encoder.module.modules() for name, child in parent.named_children()
    }
    try:
        for convolution, norm in pairs:
            merged = fuse_conv_bn_eval(convolution, norm).to(device).to(memory_format=torch.channels_last)
            for old, new in ((convolution, merged), (norm, nn.Identity())):
                parent, name = parents[id(old)]
                replaced.append((parent, name, old))
                setattr(parent, name, new)
        kept = not pairs or _agree(plain, encoder.outputs(batch, names))
        if not kept:
            _restore(replaced)
        yield kept and bool(pairs)
    finally:
        _restore(replaced)


def _restore(replaced: list[tuple[nn.Module, str, nn.Module]]) -> None:
    for parent, name, old in reversed(replaced):
        setattr(parent, name, old)
    replaced.clear()


def _agree(plain: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> bool:
    return all(bool((plain[name] - found[name]).abs().amax() <= TOLERANCE * plain[name].abs().amax()) for name in plain)


def _pairs(
    encoder: Encoder, batch: Tensor, names: set[str]
) -> tuple[list[tuple[nn.Conv2d, nn.BatchNorm2d]], dict[str, Tensor]]:
    """(convolution, norm) where the norm's input is the convolution's output, each called once; and the outputs."""
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # holds the tensor, so that no other takes its id
    calls: dict[nn.Module, int] = {}
    found: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def seen(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        calls[module] = calls.get(module, 0) + 1
        if isinstance(module, nn.Conv2d):
            made[id(output)] = (module, output)
        elif isinstance(module, nn.BatchNorm2d) and id(inputs[0]) in made and module.running_mean is not None:
            found.append((made[id(inputs[0])][0], module))

    known = (nn.Conv2d, nn.BatchNorm2d)
    hooks = [m.register_forward_hook(seen) for m in encoder.module.modules() if type(m) in known]
    try:
        outputs = encoder.outputs(batch, names)
    finally:
        for hook in hooks:
            hook.remove()
    # inplace activations downstream may have written into an output by now, but into neither weights nor norms
    return [(c, n) for c, n in found if calls[c] == calls[n] == 1], dict(outputs)

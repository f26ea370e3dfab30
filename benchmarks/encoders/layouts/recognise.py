"""Which layout a checkpoint has, and which of its tensors are the backbone: from the keys alone."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from benchmarks.contract import InputError
from benchmarks.encoders.layouts.names import renamed
from benchmarks.encoders.layouts.table import LAYOUTS, Layout, Pick
from benchmarks.encoders.weight_files.untrusted import Contents

# Where several mappings of a file fit a layout, as a model and its moving average: the first of these, then any other.
PREFERRED = ("state_dict", "model", "model_state", "model_state_dict", "teacher", "target", "")


@dataclass(frozen=True)
class Found:
    """A checkpoint, recognised.

    Attributes:
        layout: its row of the table.
        name: the layout, and the encoder that was picked where the file has several.
        backbone: tensors in torchvision's or timm's names.
        head: tensors of the projection, without their prefix.
        unused: number of other tensors in the file.
        keys: every key of the mapping that was read, as the file has it.
    """

    layout: Layout
    name: str
    backbone: dict[str, Tensor]
    head: dict[str, Tensor]
    unused: int
    keys: tuple[str, ...]


def recognise(contents: Contents, pick: str | None = None) -> Found:
    """The first layout of the table whose marks the file has all of.

    Args:
        pick: which encoder, where the file has several (`student`, `encoder_k`, …); default the layout's first.

    Raises:
        InputError: no layout fits, the file has no such encoder, or two keys mean the same tensor.
    """
    mappings = {where: _bare(tensors) for where, tensors in contents.tensors.items()}
    for layout in LAYOUTS:
        options = _options(layout, mappings, contents)
        if options:
            return _found(layout, options, mappings, pick, contents)
    total = sum(len(tensors) for tensors in mappings.values())
    names = [f"{where}/{key}".lstrip("/") for where, tensors in mappings.items() for key in tensors]
    raise InputError(
        f"{contents.path} has no backbone in a known layout: {total} tensors, the first are "
        f"{', '.join(names[:3]) or 'none'}; say what it is with --facts architecture=timm:NAME, or wrap it as "
        "my_package.my_module:build"
    )


def unrecognised(contents: Contents, names: Collection[str], pick: str | None = None) -> Found:
    """The mapping of the file that has most of a network's tensor names, where its layout is not in the table.

    Args:
        pick: path of another mapping.
    """
    mappings = {where: _bare(tensors) for where, tensors in contents.tensors.items()} or {"": {}}
    best = pick if pick is not None else max(mappings, key=lambda where: len(set(mappings[where]) & set(names)))
    if best not in mappings:
        raise InputError(f"{contents.path} has no {best!r}; pick one of {', '.join(mappings)}")
    total = sum(len(tensors) for tensors in mappings.values())
    layout = Layout("the network's own names", "", (), {})
    return Found(layout, layout.name, mappings[best], {}, total - len(mappings[best]), tuple(mappings[best]))


def _bare(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefixes that DistributedDataParallel and torch.compile put before every key."""
    bare = dict(tensors)
    for prefix in ("module.", "_orig_mod.", "module."):
        if bare and all(key.startswith(prefix) for key in bare):
            bare = {key.removeprefix(prefix): tensor for key, tensor in bare.items()}
    return bare


def _options(layout: Layout, mappings: Mapping[str, Mapping[str, Tensor]], contents: Contents) -> dict[str, Pick]:
    """The encoders that the file offers under this layout; none where it has another."""
    floating = any(mark.startswith("*/") for mark in layout.marks)
    places = sorted(mappings, key=lambda m: PREFERRED.index(m) if m in PREFERRED else len(PREFERRED))
    fitting = [
        place
        for place in (places if floating else [""])
        if all(_marked(mark, place, mappings, contents) for mark in layout.marks)
    ]
    options: dict[str, Pick] = {}
    for place in fitting:
        for name, pick in layout.picks.items():
            at = place if pick.mapping == "*" else pick.mapping
            if any(key.startswith(pick.prefix) for key in mappings.get(at, ())):
                called = name if len(fitting) == 1 else place or name if len(layout.picks) == 1 else f"{place}.{name}"
                options[called] = Pick(at, pick.prefix, pick.head)
    return options


def _marked(mark: str, place: str, mappings: Mapping[str, Mapping[str, Tensor]], contents: Contents) -> bool:
    if mark.startswith("@"):
        return mark[1:] in contents.keys
    where, _, pattern = mark.rpartition("/")
    return any(fnmatchcase(key, pattern) for key in mappings.get(place if where == "*" else where, ()))


def _found(
    layout: Layout, options: Mapping[str, Pick], mappings: Mapping[str, Mapping[str, Tensor]], pick: str | None,
    contents: Contents,
) -> Found:  # fmt: skip
    chosen = pick or next(iter(options))
    if chosen not in options:
        raise InputError(f"{contents.path} is of the layout {layout.name}, which has no {pick!r}; pick one of "
                         f"{', '.join(options)}")  # fmt: skip
    at = options[chosen]
    here = mappings[at.mapping]
    heads = tuple((at.head or "").split("|")) if at.head else ()
    head = {key.removeprefix(h): t for h in heads for key, t in here.items() if key.startswith(h)}
    backbone: dict[str, Tensor] = {}
    for key, name in _names(layout, at, here, heads):
        if name in backbone:
            raise InputError(f"{contents.path}: two keys mean {name}, one of them is {key}; the file is damaged")
        backbone[name] = here[key]
    used = len(backbone) + len(head)
    total = sum(len(tensors) for tensors in mappings.values())
    label = layout.name if len(options) == 1 else f"{layout.name}: {chosen}"
    return Found(layout, label, backbone, head, total - used, tuple(here))


def _names(layout: Layout, at: Pick, here: Mapping[str, Tensor], heads: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for key in here:
        if not key.startswith(at.prefix) or (heads and key.startswith(heads)):
            continue
        short = key.removeprefix(at.prefix)
        if not any(fnmatchcase(short, pattern) for pattern in layout.ignore):
            yield key, renamed(short, layout.names)


def unfold_statistics(backbone: dict[str, Tensor], eps: float) -> bool:
    """Caffe2's networks: convolutions' zero biases go, and norms folded into scale and bias get neutral statistics.

    Returns whether the statistics were folded. (x - 0) / sqrt(1 - eps + eps) is x, as detectron2's frozen norm has it.
    """
    biases = [name for name in backbone if name.endswith(".bias")]
    norms = [name for name in biases if "bn" in name or "downsample.1" in name]
    for name in set(biases) - set(norms):
        if not backbone[name].any():
            del backbone[name]
    folded = not any(name.endswith("running_mean") for name in backbone)
    if folded:
        for name in norms:
            zeros = torch.zeros_like(backbone[name])
            stem = name.removesuffix("bias")
            backbone[f"{stem}running_mean"], backbone[f"{stem}running_var"] = zeros, zeros + (1 - eps)
    return folded

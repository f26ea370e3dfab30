"""From what the user writes after `--encoder` to an `Encoder`; and the `random-encoder` command."""

from __future__ import annotations

import argparse
import dataclasses
import enum
import functools
import importlib
import logging
import sys
import sysconfig
import traceback
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path, PurePath
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.datasets.images import Images
from benchmarks.datasets.lists import read_image_folder
from benchmarks.encoders.checkpoint import load_checkpoint
from benchmarks.encoders.encoder import Encoder, device_and_dtype, image_sizes, preserved
from benchmarks.encoders.forms import (
    NETWORK,
    PIXELS,
    TORCHVISION_NETWORKS,
    CardOverrides,
    parse_architecture,
    parse_card_overrides,
    parse_form,
    random_form,
)
from benchmarks.encoders.networks import pretrained_torchvision, random_resnet, recalibrated
from benchmarks.encoders.timm_models import efficientnet_lite0, pretrained_timm
from benchmarks.task import FEATURE_MAPS, TOKEN_MAPS, TOKEN_VECTORS, InputError
from pretrain.distributed import DataLoader
from pretrain.weight_files import weights_sha256, write_backbone
from results.schema import Architecture, EncoderCard, Geometry

log = logging.getLogger(__name__)

PIXELS_SIDE = 32
PIXELS_PATCH = 16
CLASSIFIER_WIDTHS = {
    10: "CIFAR-10", 100: "CIFAR-100", 205: "Places205", 365: "Places365", 1000: "ImageNet-1k", 8142: "iNaturalist 2018",
    21841: "ImageNet-21k",
}  # fmt: skip

_PROBE_IMAGES, _PROBE_SIDE = 2, 224
_MODULE_OUTPUTS = (*FEATURE_MAPS, "embed", "head", *TOKEN_MAPS, *TOKEN_VECTORS)
_PLAIN = (
    type(None), bool, int, float, complex, str, bytes, range, slice, type(...), torch.dtype, torch.device,
    torch.memory_format, torch.layout, np.dtype,
)  # fmt: skip
_NAMESPACES = (argparse.Namespace, types.SimpleNamespace)
_NOT_OF_A_CLASS = ("__doc__", "__dict__", "__weakref__", "__module__", "__annotations__", "__abstractmethods__",
                   "_abc_impl", "__slots__")  # fmt: skip


def load_encoder(
    encoder: str | Path | nn.Module | Encoder, name: str | None = None, facts: Sequence[str] = ()
) -> Encoder:
    """The encoder: frozen and on the CPU, or a module that stays as it is, where it is (see `module_encoder`).

    Args:
        encoder: one of `FORMS`, a module (see `module_encoder`), or an `Encoder`.
        name: replaces the name in the card.
        facts: what the keys of a checkpoint do not show, such as `channels=BGR`, `stride_in_1x1=true` and
            `architecture=resnet50`, or which of its encoders to take, such as `pick=teacher` (see
            `benchmarks.encoders.forms`).

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
        return _with_overrides(lambda: module_encoder(encoder), "a module", overrides)
    if not isinstance(encoder, str | Path):
        raise InputError(f"the encoder is a {type(encoder).__name__}; give a torch.nn.Module, an Encoder or a text")
    form = parse_form(str(encoder))
    if form.kind == "function":
        return _with_overrides(lambda: built_encoder(form.text), form.text, overrides)
    if form.kind in ("random", "named"):
        overrides.refuse(list(overrides.values), f"only a checkpoint has them, and {encoder} is not one")
        if form.kind == "random":
            return random_resnet(*random_form(form.text))
        return raw_pixels() if form.text == "pixels" else efficientnet_lite0()
    if form.file is None:
        return (pretrained_timm if form.kind == "timm" else pretrained_torchvision)(form.text, overrides)
    if form.kind == "torchvision" and form.text not in TORCHVISION_NETWORKS:
        # Fixed in torchvision's code, so none of it is assumed.
        network = {"stem_stride": 2, "max_pool": True, "stride_in_1x1": False, "bn_eps": 1e-5}
        return load_checkpoint(form.file, CardOverrides({**network, "architecture": form.text}).then(overrides))
    if form.kind != "checkpoint":
        overrides = overrides.then(CardOverrides({"architecture": f"{form.kind}:{form.text}"}))
    return load_checkpoint(form.file, overrides)


def _with_overrides(build: Callable[[], Encoder], subject: str, overrides: CardOverrides) -> Encoder:
    """An encoder that is not made from a checkpoint, with what the user knows of its input and its training."""
    overrides.refuse(["architecture", "pick", *NETWORK], f"{subject} is not a checkpoint")
    built = build()
    built.card = overrides.apply_to_card(built.card, built.card.assumed)
    return built


def module_encoder(module: nn.Module, card: EncoderCard | None = None, name: str | None = None) -> Encoder:
    """Wrap a module that maps (N, 3, H, W) to (N, D), or to a mapping of output names to tensors.

    The module stays the caller's: it is not changed here, and `Encoder.borrowed` freezes it while it is measured.

    Args:
        module: a mapping that it returns may have feature1 … feature5 and patches (maps), embed,
            head, cls and the other outputs of a ViT (see `Encoder`).
        card: describes its input; without one, ImageNet's mean and std on RGB of 0 to 1 are assumed, and listed as such
            in the card.

    Raises:
        InputError: the module returns something else.
    """
    kind = type(module).__name__
    with preserved(module):
        device, dtype = device_and_dtype(module)
        try:
            module.eval()
            with torch.no_grad():
                probe = module(torch.zeros(_PROBE_IMAGES, 3, _PROBE_SIDE, _PROBE_SIDE, device=device, dtype=dtype))
        except (Exception, SystemExit) as error:  # of the user's code
            raise InputError(
                f"{kind} fails on a ({_PROBE_IMAGES}, 3, 224, 224) batch ({_error_with_place(error)}); it must accept "
                "that"
            ) from error
    if isinstance(probe, Tensor) and probe.ndim == 2:
        names: Collection[str] = ("embed",)
    elif isinstance(probe, dict) and probe and set(probe) <= set(_MODULE_OUTPUTS):
        names = tuple(probe)
    else:
        returned = f"a tensor of shape {tuple(probe.shape)}" if isinstance(probe, Tensor) else type(probe).__name__
        raise InputError(
            f"{kind} returns {returned}; return (N, D), or a dict with keys of {', '.join(_MODULE_OUTPUTS)}"
        )
    outputs = _named_outputs(kind, probe, _PROBE_IMAGES)
    width = outputs["embed"].shape[1] if "embed" in outputs else 0
    if width in CLASSIFIER_WIDTHS:  # a classifier is easily mistaken for a backbone
        log.warning(
            "%s returns %d numbers per image, the number of classes of %s: if they are logits, return the features "
            "before the classifier instead",
            kind, width, CLASSIFIER_WIDTHS[width],
        )  # fmt: skip

    def forward(images: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        try:
            output = module(images)
        except SystemExit as error:
            raise InputError(f"{kind} ended the program ({_error_with_place(error)}); raise an exception") from error
        except (AssertionError, RuntimeError, ValueError) as error:
            side = images.shape[-1]
            if side == _PROBE_SIDE or isinstance(error, torch.OutOfMemoryError):
                raise
            raise InputError(
                f"{kind} fails on images of {side} pixels, but not of {_PROBE_SIDE} ({_error_with_place(error)}); use "
                f"--set geometry.crop={_PROBE_SIDE}"
            ) from error
        found = _named_outputs(kind, output, len(images))
        missing = sorted(set(names) - found.keys())
        if missing:
            raise InputError(f"{kind} returned no {', '.join(missing)} this time; return the same outputs every time")
        return {name: found[name] for name in names}

    card = card or EncoderCard(
        name=name or kind,
        source=f"module {kind}",
        architecture=Architecture(name=f"module:{kind}"),
        embed="the module's output",
        assumed=PIXELS,
    )
    state = module.state_dict()
    identity = module_identity(module)
    filled = {
        "architecture": card.architecture.model_copy(update={"name": f"{card.architecture.name} ({identity})"}),
        "weights_sha256": weights_sha256(state),
        "keys_matched": len(state),
        **image_sizes(module),
    }
    return Encoder(card.model_copy(update=filled), module, forward, names, freeze=False)


def _named_outputs(kind: str, output: object, images: int) -> dict[str, Tensor]:
    """What a module returned, by name, in float32.

    Raises:
        InputError: not one row per image, complex numbers, or a vector or map of the wrong number of dimensions.
    """
    found = {"embed": output} if isinstance(output, Tensor) else output
    if not isinstance(found, dict):
        raise InputError(f"{kind} returned {type(found).__name__} this time; return the same outputs every time")
    for name, value in found.items():
        expected = "(N, C, H, W)" if name in (*FEATURE_MAPS, *TOKEN_MAPS) else "(N, D)"
        if not isinstance(value, Tensor) or value.ndim != len(expected.split(",")):
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InputError(f"{kind} returns {name} as {shape}; return a tensor {expected}")
        if value.shape[0] != images:
            raise InputError(
                f"{kind} returns {name} of shape {tuple(value.shape)} for {images} images; return one row per image"
            )
        if value.is_complex():
            raise InputError(f"{kind} returns complex {name}; return real numbers, such as its absolute value")
    return {name: value.float() for name, value in found.items()}


def built_encoder(spec: str) -> Encoder:
    """`my_package.my_module:build`, a function without arguments that returns an nn.Module or an `Encoder`.

    Raises:
        InputError: it cannot be imported, or returns something else.
    """
    module_name, _, function = spec.partition(":")
    try:
        build = getattr(importlib.import_module(module_name), function)
    except (Exception, SystemExit) as error:  # a module may do anything while it is imported
        raise InputError(
            f"cannot import {spec} ({_error_with_place(error)}); its folder must be in PYTHONPATH"
        ) from error
    try:
        built = build()
    except (Exception, SystemExit) as error:
        raise InputError(
            f"{spec} raised {_error_with_place(error)}; it must return a torch.nn.Module without arguments"
        ) from error
    if isinstance(built, Encoder):
        return built
    if isinstance(built, nn.Module):
        encoder = module_encoder(built, name=spec)
        encoder.module.eval().requires_grad_(False)  # nobody else has it
        return encoder
    raise InputError(f"{spec} returned {type(built).__name__}; return a torch.nn.Module")


def _error_with_place(error: BaseException) -> str:
    """Type, text and place of an exception in the user's code."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}{where}"


def module_identity(module: nn.Module) -> str:
    """Eight hex digits: equal for modules of equal structure, settings and code, whatever their weights.

    A module's weights do not say what it computes: a scale kept as a plain attribute, another pooling, a hook or an
    edited `forward` give other features. So the digits are a hash of the attributes of every submodule and the code of
    every class and function that is not of an installed library, with the global values that this code names. Where
    something cannot be compared for sure, such as an object of an unknown class, they are random, and neither features
    nor records are shared with the module.
    """
    digest = _Digest()
    try:
        digest.add(module)
    except (_UnknownError, RecursionError) as reason:
        log.info(
            "%s: features and records are not shared with other runs, because %s cannot be compared",
            type(module).__name__, reason if isinstance(reason, _UnknownError) else "its structure",
        )  # fmt: skip
        return uuid4().hex[:8]
    return digest.hash.hexdigest()[:8]


class _UnknownError(Exception):
    """Names the kind of object that cannot be compared."""


class _Digest:
    """A hash over objects: what they are, not where they are in memory."""

    def __init__(self) -> None:
        self.hash = sha256()
        self._seen: dict[int, int] = {}
        self._kept: list[object] = []  # an object that is freed would give its id to another one

    def add(self, value: Any) -> None:
        """Hash an object and everything in it.

        Raises:
            _UnknownError: it, or something in it, cannot be compared.
        """
        kind = type(value)
        if kind in _PLAIN or isinstance(value, np.dtype | np.generic | PurePath):
            return self._text(kind.__qualname__, repr(value))
        if isinstance(value, enum.Enum):
            return self._text(kind.__module__, kind.__qualname__, value.name)
        if isinstance(value, logging.Logger):
            return self._text("logger")
        if isinstance(value, types.ModuleType):
            return self._named(value.__name__, value.__name__)
        if kind is not tuple:  # equal tuples may be one object or two
            if id(value) in self._seen:
                return self._text("again", str(self._seen[id(value)]))
            self._seen[id(value)] = len(self._seen)
            self._kept.append(value)
        if isinstance(value, nn.Module):
            return self._module(value)
        self._text(kind.__qualname__)
        for part in self._parts(value):
            self.add(part)
        return None

    def _text(self, *texts: str) -> None:
        for text in texts:
            encoded = text.encode("utf-8", "surrogatepass")
            self.hash.update(len(encoded).to_bytes(8, "little") + encoded)

    def _named(self, module: str | None, name: str) -> None:
        """Something of an installed library: its name and the library's version say what it is."""
        version = _library_version(module or "builtins")
        if version is None:
            raise _UnknownError(f"{module}, a module of your own")
        self._text(str(module), name, version)

    def _module(self, module: nn.Module) -> None:
        self._class(type(module))
        attributes = module.__dict__
        for name in sorted(attributes):
            value = attributes[name]
            if name in ("training", "_parameters", "_buffers"):
                continue  # the other two are part of the hash of the weights
            self._text(name)
            # Hooks are numbered in the order in which anything in the process registered one.
            self.add(list(value.values()) if name.endswith("_hooks") and isinstance(value, dict) else value)
        for name in sorted(module._non_persistent_buffers_set):
            self.add(module._buffers.get(name))

    def _class(self, kind: type) -> None:
        if _library_version(kind.__module__) is not None:
            return self._named(kind.__module__, kind.__qualname__)
        self._text(kind.__qualname__)
        for base in kind.__mro__[1:]:
            self.add(base)
        for name, value in sorted(vars(kind).items()):
            if name not in _NOT_OF_A_CLASS and not isinstance(value, types.GetSetDescriptorType):
                self._text(name)
                self.add(value)
        return None

    def _parts(self, value: Any) -> Iterator[Any]:
        """The objects that an object is made of."""
        kind = type(value)
        if isinstance(value, Tensor) and kind in (Tensor, nn.Parameter) and value.layout == torch.strided:
            yield from (str(value.dtype), tuple(value.shape))
            self.hash.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        elif kind is np.ndarray and not value.dtype.hasobject:
            yield from (value.dtype.str, value.shape, value.tobytes())
        elif isinstance(value, list | tuple | deque):
            yield len(value)
            yield from value
        elif kind in (set, frozenset) and all(type(item) in _PLAIN for item in value):
            yield sorted(map(repr, value))
        elif kind in (dict, OrderedDict, types.MappingProxyType):
            yield len(value)
            for key, item in value.items():
                yield from (key, item)
        elif kind is functools.partial:
            yield from (value.func, value.args, value.keywords)
        elif isinstance(value, types.FunctionType):
            yield from self._function(value)
        elif isinstance(value, types.BuiltinFunctionType):
            owner = value.__self__
            yield from (value.__qualname__, None if isinstance(owner, types.ModuleType) else owner)
        elif isinstance(value, types.MethodType):
            yield from (value.__func__, value.__self__)
        elif isinstance(value, staticmethod | classmethod):
            yield value.__func__
        elif isinstance(value, property):
            yield from (value.fget, value.fset, value.fdel)
        elif isinstance(value, types.CodeType):
            yield from (value.co_code, value.co_names, value.co_freevars, value.co_consts)
        elif isinstance(value, type):
            self._class(value)
        elif kind in _NAMESPACES or (dataclasses.is_dataclass(value) and hasattr(value, "__dict__")):
            yield from (kind, vars(value))
        else:
            raise _UnknownError(f"an object of {kind.__module__}.{kind.__qualname__}")

    def _function(self, function: types.FunctionType) -> Iterator[Any]:
        yield from (function.__defaults__, function.__kwdefaults__)
        for cell in function.__closure__ or ():
            try:
                yield cell.cell_contents
            except ValueError:
                yield "an empty cell"
        if _library_version(function.__module__) is not None:
            self._named(function.__module__, function.__qualname__)
            return
        yield function.__code__
        for name in sorted(set(_names(function.__code__))):
            if name in function.__globals__:
                yield from (name, function.__globals__[name])


def _names(code: types.CodeType) -> Iterator[str]:
    """The names that a function's code, with the functions inside it, may look up among its globals."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


@cache
def _library_version(module: str) -> str | None:
    """The version of the installed library that a module belongs to; None for code of the user's own."""
    root = module.partition(".")[0]
    if root != "__main__" and (root in sys.stdlib_module_names or root in sys.builtin_module_names):
        return sys.version
    file = getattr(sys.modules.get(module), "__file__", None) or getattr(sys.modules.get(root), "__file__", None)
    folders = {Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")}
    if file is None or not any(Path(file).resolve().is_relative_to(folder) for folder in folders):
        return None
    return str(getattr(sys.modules.get(root), "__version__", "without a version"))


def raw_pixels() -> Encoder:
    """Raw pixels, a baseline: embed (N, 3072) is the flattened image, area-averaged to 32x32 pixels if larger.

    patches (N, 768, H // 16, W // 16) are squares of 16 pixels.
    """

    def forward(images: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        outputs = {}
        if "embed" in names:
            small = F.adaptive_avg_pool2d(images, PIXELS_SIDE) if images.shape[-1] > PIXELS_SIDE else images
            outputs["embed"] = small.flatten(1)
        if "patches" in names:
            rows, columns = (side // PIXELS_PATCH for side in images.shape[2:])
            cut = F.unfold(images.contiguous(), PIXELS_PATCH, stride=PIXELS_PATCH)
            outputs["patches"] = cut.unflatten(2, (rows, columns))
        return outputs

    card = EncoderCard(
        name="raw pixels",
        source="the image itself",
        architecture=Architecture(name="pixels"),
        weights_sha256=weights_sha256({}),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        embed=f"the image at {PIXELS_SIDE}x{PIXELS_SIDE} pixels",
    )
    return Encoder(card, nn.Identity(), forward, ("embed", "patches"))


def random_encoder_command(
    architecture: str,
    images: Path,
    out: Path,
    seed: tuple[int, ...] = (0,),
    size: int = 64,
    threads: int | None = None,
) -> int:
    """Write randomly initialised encoders with batch-norm statistics of images: the fair control for trained ones.

    Args:
        architecture: such as resnet50, or resnet18-w32-k3-nopool.
        images: image folder; the statistics are those of its train split.
        out: backbone file to write; "{seed}" in its name stands for the seed, and must be there for several.
        seed: seeds of the initialisation, one encoder for each.
        size: images are reduced and centre-cropped to this many pixels.
        threads: CPU threads; torch's default otherwise.
    """
    if len(set(seed)) > 1 and "{seed}" not in out.name:
        raise InputError(f"--out {out} would be written {len(seed)} times: put {{seed}} into its name")
    if threads:
        torch.set_num_threads(threads)
    paths = read_image_folder(images, "train").paths
    geometry = Geometry(mode="shorter", resize=size, crop=size)
    for number in seed:
        encoder = random_resnet(parse_architecture(architecture), number)
        recalibrated(encoder, (batch for batch, _ in DataLoader(Images(paths, geometry), batch_size=128)))
        file = out.with_name(out.name.replace("{seed}", str(number)))
        write_backbone(file, encoder.module.state_dict(), encoder.card)
        log.info("wrote %s", file)
    return 0

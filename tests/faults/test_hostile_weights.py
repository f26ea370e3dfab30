"""Hostile weight files, states of runs and records: none runs code, takes 1 GB or 10 s, or ends in a traceback."""

# ruff: noqa: E501 - a table of bytes

from __future__ import annotations

import argparse
import io
import json
import math
import pickle
import random
import struct
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save as safetensors_bytes

from benchmarks.__main__ import main
from benchmarks.encoders.encoder import projection_head
from benchmarks.encoders.load import load_encoder
from benchmarks.training.probes import ProbeState
from pretrain.safe_pickle import LEGACY_TORCH
from pretrain.train import load_resume
from pretrain.weight_files import CARD_KEY
from results.errors import InputError
from results.schema import Architecture, EncoderCard
from results.store import unpacked
from tests.faults.guard import Case, check
from tests.pretrain import tiny_runs
from tests.pretrain.test_weight_files import FRAMES, Calls, payloads

CASES: dict[str, Case] = {}

# ---- the bytes of a pickle, written by hand --------------------------------------------------------------------------


def text(content: str) -> bytes:
    encoded = content.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def put(number: int) -> bytes:
    return b"r" + struct.pack("<I", number)


def get(number: int) -> bytes:
    return b"j" + struct.pack("<I", number)


ENCODE = b"c_codecs\nencode\n" + put(1) + text("a" * 5_000_000) + text("latin1") + b"\x86" + put(2) + b"0"
ARRAY = pickle.dumps(np.zeros(1_000_000), 2)[2:-1]
BODIES: dict[str, Callable[[], bytes]] = {
    "chains of codecs.encode": lambda: b"}" + ENCODE + b"(" + b"".join(
        text(f"{n}") + get(1) + get(2) + b"R" for n in range(2000)) + b"u",
    "a bytearray of 4 GB": lambda: b"\x96" + struct.pack("<Q", 4 << 30) + b"abc",
    "a bytearray of 900 MB": lambda: b"\x96" + struct.pack("<Q", 900 << 20) + b"abc",
    "bytes of a terabyte": lambda: b"\x8e" + struct.pack("<Q", 1 << 40) + b"abc",
    "text of a terabyte": lambda: b"\x8d" + struct.pack("<Q", 1 << 40) + b"abc",
    "a frame of a terabyte": lambda: b"\x95" + struct.pack("<Q", 1 << 40) + b"}",
    "a number of a terabyte": lambda: b"\x8b" + struct.pack("<i", 2**31 - 1) + b"abc",
    "a number of 100,000 digits": lambda: b"}" + text("epoch") + b"I" + b"9" * 100_000 + b"\ns",
    "a number of a million bytes": lambda: b"}" + text("epoch") + b"\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6 + b"s",
    "nested shared mappings": lambda: b"}" + put(0) + text("x") + b"]s" + b"".join(
        put(n) + b"0}(" + b"".join(text(f"{k}") + get(n) for k in range(30)) + b"u" for n in range(1, 8)),
    "wide shared mappings": lambda: b"}" + put(0) + b"(" + b"".join(text(f"{k}") + b"K\x01" for k in range(5000)) + b"u"
        + b"".join(put(n) + b"0}(" + b"".join(text(f"{k}") + get(n) for k in range(5000)) + b"u" for n in (1, 2, 3)),
    "nested shared lists": lambda: b"]" + b"".join(put(n) + b"0](" + get(n) + get(n) + b"e" for n in range(60)),
    "keys of nested tuples": lambda: b"})" + b"".join(put(n) + b"0" + get(n) + get(n) + b"\x86" for n in range(60)) + b"K\x01s",
    "a set of nested tuples": lambda: b"\x8f()" + b"".join(put(n) + b"0" + get(n) + get(n) + b"\x86" for n in range(60)) + b"\x90",
    "a mapping that holds itself": lambda: b"}" + put(0) + text("a") + get(0) + b"s",
    "a million nested lists": lambda: b"]" * 1_000_000 + b"a" * 999_999,
    "a million nested mappings": lambda: b"}" + (text("a") + b"}") * 1_000_000 + b"s" * 1_000_000,
    "20 million marks": lambda: b"(" * 20_000_000,
    "20 million sets": lambda: b"\x8f" * 20_000_000,
    "20 million memos": lambda: b"}" + b"\x94" * 20_000_000,
    "a memo at 2**32": lambda: b"}r\xff\xff\xff\xff",
    "mappings copied again and again": lambda: b"}" + b"(" + b"".join(text(f"{k}") + b"K\x01" for k in range(20_000)) + b"u"
        + put(0) + b"0ccollections\nOrderedDict\n" + put(1) + b"0(" + (get(1) + get(0) + b"\x85R") * 20_000 + b"l",
    "namespaces copied again and again": lambda: b"}(" + b"".join(text(f"{k}") + b"K\x01" for k in range(20_000)) + b"u"
        + put(0) + b"0cargparse\nNamespace\n" + put(1) + b"0(" + (get(1) + b")\x81" + get(0) + b"b") * 20_000 + b"l",
    "an array under 3,000 names": lambda: ARRAY + put(500) + b"0}(" + b"".join(text(f"{k}") + get(500) for k in range(3000)) + b"u",
    "scalars of one text": lambda: b"cnumpy.core.multiarray\nscalar\n" + put(1) + b"0cnumpy\ndtype\n" + text("S5000000")
        + b"\x85R" + put(2) + b"0" + text("a" * 5_000_000) + put(3) + b"0("
        + (get(1) + get(2) + get(3) + b"\x86R") * 1000 + b"l",
    "a name of ten megabytes": lambda: b"}" + text("a" * 10_000_000) + ARRAY + b"s",
    "a name of many lines": lambda: b"}" + text("conv1\n\x1b[31mlines\n.weight") + ARRAY + b"s",
    "100,000 arrays": lambda: b"c_codecs\nencode\n" + put(1) + b"0" + ARRAY + put(500) + b"0}("
        + b"".join(text(f"{k}") + b"cnumpy.core.multiarray\n_reconstruct\n(tR" for k in range(100_000)) + b"u",
    "a class of a megabyte": lambda: b"c" + b"a" * 2**20 + b"\nb\n",
    "a line without an end": lambda: b"c" + b"a" * 2**22,
    "an instance": lambda: b"(iargparse\nNamespace\n",
    "attributes of a mapping": lambda: b"ccollections\nOrderedDict\n)R}" + text("items") + b"K\x01sb",
    "a state for a function": lambda: b"c_codecs\nencode\n}" + text("a") + b"K\x01sb",
    "nothing on the stack": lambda: b"R",
    "no end": lambda: b"}" + text("a"),
}  # fmt: skip


@dataclass(frozen=True)
class WeightFileCase:
    """A weight file, and its reading as an encoder.

    Attributes:
        content: of a folder that it may name.
    """

    content: Callable[[Path], bytes]
    name: str

    def write(self, folder: Path) -> Path:
        (folder / self.name).write_bytes(self.content(folder))
        return folder / self.name

    def __call__(self, folder: Path) -> None:
        load_encoder(self.write(folder))


def file(content: Callable[[Path], bytes], name: str = "weights.pth") -> Case:
    return WeightFileCase(content, name)


for frame, framed in FRAMES.items():
    for name, body in BODIES.items():
        CASES[f"{frame}: {name}"] = file(
            lambda _, body=body, framed=framed: framed(b"\x80\x04" + body() + b".")  # type: ignore[misc]
        )
    for name in payloads(Path("ran")):
        CASES[f"{frame}: {name}"] = file(
            lambda folder, name=name, framed=framed: framed(payloads(folder / "ran")[name][0])  # type: ignore[misc]
        )

# ---- tensors and archives --------------------------------------------------------------------------------------------


def saved(content: object, *, old: bool = False) -> bytes:
    opened = io.BytesIO()
    torch.save(content, opened, _use_new_zipfile_serialization=not old)
    return opened.getvalue()


class Attributed(torch.nn.Parameter):
    pass


def with_attribute(folder: Path) -> bytes:
    """A tensor whose `detach` is a call."""
    tensor = torch.zeros(3)
    tensor.detach = Calls(print, "ran")  # type: ignore[assignment]
    return saved({"a": tensor})


def members(*names: str, size: int = 8, packed: bool = False, times: int = 1) -> bytes:
    opened = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(opened, "w", kind) as archive:
        for name in names * times:
            archive.writestr(name, b"\x80\x02}." if name.endswith("pkl") else bytes(size))
    return opened.getvalue()


def directory_of(count: int) -> bytes:
    """A zip file whose list has so many members, all of them the first."""
    whole = members("a/data.pkl")
    at = whole.index(b"PK\x01\x02")
    end = whole.index(b"PK\x05\x06")
    entry = whole[at:end]
    tail = whole[end:]
    return (
        whole[:at]
        + entry * count
        + tail[:8]
        + b"\xff\xff\xff\xff"
        + struct.pack("<II", len(entry) * count, at)
        + b"\0\0"
    )


SAME = torch.zeros(500_000)
CASES |= {
    "a tensor with an attribute that is called": file(with_attribute),
    "a tensor as wide as 2**40": file(lambda _: saved({"a": torch.zeros(1).expand(1 << 40)})),
    "3,000 tensors of one storage": file(lambda _: saved({f"a{n}": SAME[n:] for n in range(3000)})),
    "3,000 tensors of one old storage": file(lambda _: saved({f"a{n}": SAME[n:] for n in range(3000)}, old=True)),
    "20,000 tensors": file(lambda _: saved({f"a{n}": SAME[:1] for n in range(20_000)})),
    "a sparse tensor": file(lambda _: saved({"a": torch.eye(3).to_sparse()})),
    "a sparse tensor of 10**12": file(lambda _: saved({"a": torch.sparse_coo_tensor(torch.zeros(1, 1).long(), torch.ones(1), (10**12,))})),
    "a quantised tensor": file(lambda _: saved({"a": torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.quint8)})),
    "a tensor without numbers": file(lambda _: saved({"a": torch.empty(1 << 40, device="meta")})),
    "a nested tensor": file(lambda _: saved({"a": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])})),
    "a parameter of a class": file(lambda _: saved({"a": Attributed(torch.ones(3))})),
    "a network": file(lambda _: saved(torch.nn.Linear(3, 3))),
    "two pickles": file(lambda _: members("a/data.pkl", "b/data.pkl", "a/version")),
    "a pickle twice": file(lambda _: members("a/data.pkl", "a/data.pkl")),
    "TorchScript": file(lambda _: members("a/data.pkl", "a/constants.pkl", "a/code/x.py")),
    "no pickle": file(lambda _: members("data.pkl")),
    "a member that unfolds": file(lambda _: members("a/data.pkl", "a/data/0", size=300 << 20, packed=True)),
    "a list of two million members": file(lambda _: directory_of(2_000_000)),
    "a list that claims four gigabytes": file(lambda _: members("a/data.pkl")[:-10] + struct.pack("<II", 2**32 - 1, 0) + b"\0\0"),
    "a storage that is not there": file(
        lambda _: FRAMES["zip"](zipfile.ZipFile(io.BytesIO(saved({"a": SAME}))).read("archive/data.pkl"))),
    "an old file without an end": file(lambda _: LEGACY_TORCH),
    "an old file with two object pickles": file(lambda _: LEGACY_TORCH * 5),
}  # fmt: skip

HONEST = {
    "zip": saved({"state_dict": {"conv1.weight": torch.randn(8, 3, 3, 3), "bn1.weight": torch.ones(8)}, "epoch": 3}),
    "legacy": saved({"state_dict": {"conv1.weight": torch.randn(8, 3, 3, 3)},
                     "args": argparse.Namespace(arch="resnet18")}, old=True),
    "pickle": pickle.dumps({"model": {"stem.conv1.weight": np.ones((8, 3, 3, 3), np.float32)}, "__author__": "a"}),
}  # fmt: skip
for frame, whole in HONEST.items():
    for seed in range(8):
        flips = random.Random(f"{frame} {seed}")
        changed = bytearray(whole)
        for _ in range(6):
            changed[flips.randrange(len(changed))] ^= 1 << flips.randrange(8)
        CASES[f"{frame}: flipped bits, {seed}"] = file(lambda _, changed=changed: bytes(changed))  # type: ignore[misc]
        cut = whole[: flips.randrange(len(whole))]
        CASES[f"{frame}: cut at random, {seed}"] = file(lambda _, cut=cut: cut)  # type: ignore[misc]


def tensors_of(header: Callable[[], object], data: bytes = bytes(8), length: int | None = None) -> Case:
    def content(_: Path) -> bytes:
        made = header()
        encoded = made if isinstance(made, bytes) else json.dumps(made).encode()
        return struct.pack("<Q", len(encoded) if length is None else length) + encoded + data

    return file(content, "weights.safetensors")


EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
PLAIN = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
CASES |= {
    "safetensors: offsets": tensors_of(lambda: {"a": {**PLAIN, "data_offsets": [0, 1 << 40]}}),
    "safetensors: shape": tensors_of(lambda: {"a": {**PLAIN, "shape": [1 << 62, 4]}}),
    "safetensors: overlap": tensors_of(lambda: {"a": PLAIN, "b": PLAIN}),
    "safetensors: a header of 2**60": tensors_of(lambda: {"a": PLAIN}, length=1 << 60),
    "safetensors: a header of 90 MB": tensors_of(lambda: b"{" + b" " * (90 << 20) + b"}", b""),
    "safetensors: 100,000 tensors": tensors_of(lambda: {f"a{n}": EMPTY for n in range(100_000)}, b""),
    "safetensors: deep JSON": tensors_of(lambda: b"{" + b'"a":{' * 200_000),
    "safetensors: a card that is none": tensors_of(lambda: {"__metadata__": {CARD_KEY: "[" * 10**5}, "a": PLAIN}),
    "safetensors: names": tensors_of(lambda: {"a\n\x1b[31m": PLAIN}),
}  # fmt: skip

# ---- networks that a file claims to be of ------------------------------------------------------------------------------


def claims(architecture: dict[str, object], **tensors: torch.Tensor) -> Case:
    """A file of this project whose card claims a network."""
    card = EncoderCard(name="a", source="b", architecture=Architecture(name="resnet18"))
    content = {**json.loads(card.model_dump_json()), "architecture": {"name": "resnet18", **architecture}}

    def make(_: Path) -> bytes:
        return safetensors_bytes(tensors or {"conv1.weight": torch.zeros(1)}, {CARD_KEY: json.dumps(content)})

    return file(make, "weights.safetensors")


def named_shapes(sizes: dict[str, tuple[int, ...]]) -> Case:
    """A file of float32 tensors; of no bytes where a size is 0."""
    header, at = {}, 0
    for name, size in sizes.items():
        nbytes = 4 * math.prod(size)
        header[name] = {"dtype": "F32", "shape": list(size), "data_offsets": [at, at + nbytes]}
        at += nbytes
    return tensors_of(lambda: header, bytes(at))


def resnet_claims(width: int, kernel: int = 0) -> dict[str, tuple[int, ...]]:
    names = [f"layer{stage}.{block}.conv{n}.weight" for stage in (1, 2, 3, 4) for block in (0, 1) for n in (1, 2)]
    return {"conv1.weight": (width, 3, kernel, kernel), **dict.fromkeys(names, (64, 64, 1, 1))}


VIT = {"cls_token": (1, 1, 192), "pos_embed": (1, 5, 192), "patch_embed.proj.weight": (192, 3, 16, 16),
       "patch_embed.proj.bias": (192,), "norm.weight": (192,), "norm.bias": (192,)}  # fmt: skip
BLOCK = {
    "norm1.weight": (192,),
    "attn.qkv.weight": (576, 192),
    "mlp.fc1.weight": (768, 192),
    "mlp.fc2.weight": (192, 768),
}


def vit_claims(blocks: Sequence[int], **changes: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    of_blocks = {f"blocks.{n}.{name}": size for n in blocks for name, size in BLOCK.items()}
    return {**VIT, "decoder_embed.weight": (1,), **of_blocks, **{k.replace("__", "."): v for k, v in changes.items()}}


CAPI = {"patch_embed.weight": (64, 3, 14, 14), "registers": (1, 16, 64)}
CAPI_BLOCK = {"residual1.fn.q_proj.weight": (64, 64), "residual1.fn.rope.freqs": (2, 32),
              "residual2.fn.fc1.weight": (256, 64)}  # fmt: skip


def capi_claims(blocks: Sequence[int], **changes: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    of_blocks = {f"encoder.blocks.{n}.{name}": size for n in blocks for name, size in CAPI_BLOCK.items()}
    return {**CAPI, **of_blocks, **{k.replace("__", "."): v for k, v in changes.items()}}


RADIO = {"patch_generator.embedder.weight": (192, 768), "patch_generator.pos_embed": (1, 16, 192),
         "patch_generator.cls_token.token": (1, 192)}  # fmt: skip
BEIT = {"relative_position_bias_table": (10**6, 3), "norm1.weight": (192,), "mlp.fc1.weight": (768, 192)}


def hidden_commands(folder: Path) -> None:
    for text in (
        "resnet18-w1000000",
        "resnet18-w0",
        "resnet50-k99999999",
        "resnet18-s0",
        "resnext50_32x4d-w1",
        "resnet18-w" + "9" * 5000,
        "resnet18-w000000001000",
        "resnet18:" + "9" * 25,
        "resnet18:" + "9" * 5000,
    ):
        with pytest.raises(InputError):
            load_encoder(f"random:{text}")


CASES |= {
    "random: absurd widths, kernels, strides and seeds": hidden_commands,
    "claims: a ResNet of width 10**6": claims({"width": 10**6}),
    "claims: a ResNet of width 10**12": claims({"width": 10**12}),
    "claims: a ResNet of width 0": claims({"width": 0}),
    "claims: a stem of 10**9 pixels": claims({"stem_kernel": 10**9}),
    "claims: a stem of -1 pixels": claims({"stem_kernel": -1}),
    "claims: a stem that stands still": claims({"stem_stride": 0}),
    "claims: padding of 10**9": claims({"stem_padding": 10**9}),
    "claims: a ViT of seven billion": claims({"name": "timm:vit_7b_patch16_dinov3"}),
    "claims: a ViT of 10**9 blocks": claims({"name": "timm:vit_base_patch16_224-l999999999"}),
    "claims: a ViT of 10**30 blocks": claims({"name": "timm:vit_base_patch16_224-l1" + "0" * 30}),
    "claims: a ViT of width 10**6": claims({"name": "timm:vit_base_patch16_224-d1000000"}),
    "claims: a ViT of width 0": claims({"name": "timm:vit_base_patch16_224-d0"}),
    "claims: a ViT of patches of 0": claims({"name": "timm:vit_base_patch16_224-p0"}),
    "claims: a ViT of 10**8 registers": claims({"name": "timm:vit_base_patch16_224-r100000000"}),
    "claims: a ViT of -1 heads": claims({"name": "timm:vit_base_patch16_224", "num_heads": -1}),
    "claims: a ViT of 0 heads": claims({"name": "timm:vit_base_patch16_224", "num_heads": 0}),
    "claims: a model of the net": claims({"name": "timm:hf-hub:evil/model"}),
    "claims: a detector of torchvision": claims({"name": "torchvision:fasterrcnn_resnet50_fpn"}),
    "claims: a giant of torchvision": claims({"name": "torchvision:regnet_y_128gf"}),
    "claims: a giant of timm": claims({"name": "timm:eva_giant_patch14_224"}),
    "claims: CAPI": claims({"name": "capi"}),
    "claims: a module": claims({"name": "module:os:system"}),
    "shapes: a ResNet of width 10**6": named_shapes(resnet_claims(10**6)),
    "shapes: a ResNet of width 0": named_shapes(resnet_claims(0, 7)),
    "shapes: a stem without pixels": named_shapes(resnet_claims(64, 0)),
    "shapes: a ViT with block 10**9": named_shapes(vit_claims([0, 1, 10**9 - 1])),
    "shapes: a ViT with block 10**800": named_shapes({**vit_claims([0]), "blocks.1" + "0" * 800 + ".norm1.weight": (1,)}),
    "shapes: a ViT of 4,000 blocks": named_shapes(
        {**vit_claims([0]), **{f"blocks.{n}.norm1.weight": (1,) for n in range(1, 4000)}}),
    "shapes: a ViT of width 10**9": named_shapes(vit_claims([0, 1], patch_embed__proj__weight=(10**9, 3, 0, 0))),
    "shapes: a ViT of width 0": named_shapes(vit_claims([0, 1], patch_embed__proj__weight=(0, 3, 16, 16))),
    "shapes: patches of 10**9": named_shapes(vit_claims([0, 1], patch_embed__proj__weight=(192, 0, 10**9, 10**9))),
    "shapes: positions without width": named_shapes(vit_claims([0, 1], pos_embed=(1, 10**12, 0))),
    "shapes: positions in one dimension": named_shapes(vit_claims([0, 1], pos_embed=(5,))),
    "shapes: a million registers": named_shapes(vit_claims([0, 1], reg_token=(1, 10**6, 0))),
    "shapes: a token in no dimension": named_shapes(vit_claims([0, 1], cls_token=(), reg_token=())),
    "shapes: a hidden width of 10**9": named_shapes(vit_claims([0, 1], blocks__0__mlp__fc1__weight=(10**9, 0))),
    "shapes: positions of 500 patches a side": named_shapes(
        {**VIT, **{f"blocks.{n}.{f'attn.{name}' if 'rel' in name else name}": size for n in range(4)
                   for name, size in BEIT.items()}}),
    "shapes: CAPI with block 10**9": named_shapes(capi_claims([0, 1, 10**9 - 1])),
    "shapes: CAPI of 6,000 blocks": named_shapes(
        {**capi_claims([0]), **{f"encoder.blocks.{n}.residual1.norm.weight": (1,) for n in range(1, 6000)}}),
    "shapes: CAPI of width 10**9": named_shapes(capi_claims([0], patch_embed__weight=(10**9, 0, 14, 14))),
    "shapes: CAPI of width 0": named_shapes(capi_claims([0], patch_embed__weight=(0, 3, 14, 14))),
    "shapes: CAPI of 10**9 registers": named_shapes(capi_claims([0], registers=(1, 10**9, 0))),
    "shapes: CAPI with a hidden width of 10**9": named_shapes(
        capi_claims([0], encoder__blocks__0__residual2__fn__fc1__weight=(10**9, 0))),
    "shapes: RADIO of one dimension": named_shapes({**RADIO, "patch_generator.embedder.weight": (768,)}),
    "shapes: RADIO with a summary of a million": named_shapes({**RADIO, "summary_idxs": (10**6,)}),
    "shapes: RADIO with a mean in no dimension": named_shapes(
        {**RADIO, "summary_idxs": (1,), "input_conditioner.norm_mean": (3, 1, 0)}),
    "shapes: SigLIP without a width": named_shapes(
        {**vit_claims([0]), "attn_pool.latent": (1, 1, 0), "attn_pool.q.weight": (0, 0)}),
    "shapes: CLIP's projection in one dimension": named_shapes(
        {"visual.conv1.weight": (192, 3, 16, 16), "visual.positional_embedding": (5, 192), "visual.proj": (192,),
         "visual.class_embedding": (192,), "visual.ln_pre.weight": (192,)}),
    "shapes: a head of 10**9 layers": named_shapes(
        {**{f"module.encoder_q.{k}": v for k, v in resnet_claims(64, 7).items()},
         "module.encoder_q.fc.0.weight": (1, 512), "module.encoder_q.fc.999999999.weight": (1, 1)}),
}  # fmt: skip


def test_a_head_of_absurd_layers_is_left_out() -> None:
    """Heads are built of what the file shows of them."""
    odd = torch.zeros(3)
    assert projection_head({"0.weight": torch.zeros(2, 8), "999999999.weight": torch.zeros(2, 2)}, 8) is None
    assert projection_head({"0.weight": torch.zeros(1 << 40, 0)}, 0) is None
    assert projection_head({"0.weight": torch.zeros(8, 8), "1.running_mean": torch.tensor(1.0)}, 8) is None
    assert projection_head({"0.weight": torch.zeros(8, 8), "1.running_mean": odd, "1.running_var": odd}, 8) is not None


# ---- states of runs, and records -------------------------------------------------------------------------------------


def state(content: Callable[[Path], bytes]) -> Case:
    """Read by pretraining and by the probes."""

    def read(folder: Path) -> None:
        path = folder / "resume.pt"
        path.write_bytes(content(folder))
        for reader in (load_resume, lambda path: ProbeState.load(path, "mine")):
            with suppress(InputError):
                reader(path)

    return read


STATE_BODIES = (
    "chains of codecs.encode", "a bytearray of 4 GB", "nested shared lists", "keys of nested tuples",
    "a set of nested tuples", "20 million marks", "20 million sets", "no end",
)  # fmt: skip
CASES |= {
    f"state: {name}": state(lambda _, name=name: FRAMES["zip"](b"\x80\x02" + BODIES[name]() + b"."))  # type: ignore[misc]
    for name in STATE_BODIES
}
CASES |= {
    "state: os.system": state(lambda folder: FRAMES["zip"](payloads(folder / "ran")["os.system"][0])),
    "state: many bytes": state(lambda _: FRAMES["zip"](payloads(Path("ran"))["many bytes"][0])),
    "state: a member that unfolds": state(lambda _: members("a/data.pkl", "a/data/0", size=300 << 20, packed=True)),
    "state: text": state(lambda _: b"x" * 1000),
    "state: empty": state(lambda _: b""),
}


def outcomes(content: Callable[[], bytes]) -> Case:
    """The file of a record whose hash is right."""

    def read(folder: Path) -> None:
        path = folder / "outcomes.npz"
        path.write_bytes(content())
        with suppress(OSError, ValueError, LookupError, zipfile.BadZipFile):  # those of `StoredRecord.outcomes`
            unpacked(path)

    return read


def array(shape: str, data: bytes, kind: str = "|b1") -> bytes:
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}}}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def npz(content: bytes, name: str = "correct/k20.npy") -> bytes:
    opened = io.BytesIO()
    with zipfile.ZipFile(opened, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return opened.getvalue()


CASES |= {
    "outcomes: an array that unfolds": outcomes(lambda: npz(array("(2000000000,)", bytes(600 << 20)))),
    "outcomes: a shape of 10**15": outcomes(lambda: npz(array("(1000000000000000,)", b"a"))),
    "outcomes: objects": outcomes(lambda: npz(array("(1,)", b"cos\nsystem\n.", "|O"))),
    "outcomes: a header that is code": outcomes(lambda: npz(b"\x93NUMPY\x01\x00\x10\x00__import__('os')")),
    "outcomes: a header of 60,000 brackets": outcomes(lambda: npz(b"\x93NUMPY\x01\x00\x60\xea" + b"(" * 60_000)),
    "outcomes: no zip": outcomes(lambda: b"PK\x03\x04 or so"),
}


# ---- the test --------------------------------------------------------------------------------------------------------

QUICK = (
    "zip: os.system", "zip: chains of codecs.encode", "legacy: nested shared mappings", "pickle: a bytearray of 4 GB",
    "pickle: keys of nested tuples", "zip: scalars of one text", "a tensor with an attribute that is called",
    "3,000 tensors of one storage", "two pickles", "TorchScript", "a list of two million members",
    "safetensors: a header of 90 MB", "random: absurd widths, kernels, strides and seeds",
    "claims: a ViT of seven billion", "shapes: a ResNet of width 10**6", "shapes: CAPI with block 10**9", "state: many bytes", "outcomes: a shape of 10**15", "zip: a name of many lines",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """What readers import when they need it must not count as the time of a case."""
    import timm  # noqa: F401
    import torchvision  # noqa: F401


def test_the_corpus_is_large() -> None:
    assert len(CASES) >= 200
    assert set(QUICK) <= CASES.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_a_hostile_file_is_refused(name: str, tmp_path: Path) -> None:
    check(CASES[name], tmp_path)


COMMAND_CASES = (
    *QUICK,
    "zip: eval", "zip: a whole network", "legacy: exec in a key", "legacy: many bytes", "pickle: getattr chain",
    "pickle: setstate of a class", "pickle: os.system", "zip: keys of nested tuples", "legacy: an instance",
    "pickle: no end", "zip: nothing on the stack", "no pickle", "a member that unfolds", "a network", "a nested tensor",
    "a storage that is not there", "an old file without an end", "safetensors: offsets", "safetensors: names",
    "safetensors: 100,000 tensors", "safetensors: a card that is none",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "names", [COMMAND_CASES[:6], pytest.param(COMMAND_CASES[6:], marks=pytest.mark.faults)], ids=["a few", "many"]
)
def test_the_command_line_ends_with_2_and_one_sentence(
    names: Sequence[str], small_data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Many cases through `main` in this process: no earlier one changes what comes of a later one."""
    tried = 0
    for name in names:
        case = CASES[name]
        if not isinstance(case, WeightFileCase):
            continue
        folder = tmp_path / f"{tried}"
        folder.mkdir()
        where = ["--data", str(small_data), "--out", str(folder / "records"), "--features", str(folder / "features")]
        command = ["knn", "--encoder", str(case.write(folder)), *where, "--device", "cpu", "--workers", "0"]
        assert main(command) == 2, name
        printed = capfd.readouterr().err
        assert "Traceback" not in printed, name
        faults = [line for line in printed.splitlines() if line.startswith("encoder-bench: ")]
        assert len(faults) == 1, (name, printed)
        assert case.name in faults[0], name
        assert not (folder / "ran").exists(), name
        assert not list(folder.glob("records/**/*.json")), name
        case.write(folder).unlink()
        tried += 1
    assert tried >= min(25, len(names))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["os.system", "keys of nested tuples", "a bytearray of 4 GB", "text"])
def test_pretraining_with_a_hostile_state_ends_with_2_and_one_sentence(
    name: str, images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """By the command line; nothing in the state runs, and it stays for the user to look at."""
    out = tmp_path / "out"
    out.mkdir()
    with suppress(InputError):
        CASES[f"state: {name}"](out)
    hostile = (out / "resume.pt").read_bytes()
    assert tiny_runs.run(images, out) == 2
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert "resume.pt is damaged or not a resume file of this project" in last
    assert "remove it to start anew" in last
    assert (out / "resume.pt").read_bytes() == hostile
    assert not (out / "ran").exists()


@pytest.mark.faults
@pytest.mark.parametrize("name", sorted(CASES.keys() - set(QUICK)))
def test_every_hostile_file_is_refused(name: str, tmp_path: Path) -> None:
    check(CASES[name], tmp_path)

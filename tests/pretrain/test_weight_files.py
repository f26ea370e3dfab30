"""Malicious and damaged weight files: nothing in them runs, and one sentence says what was found."""

from __future__ import annotations

import argparse
import functools
import io
import json
import operator
import os
import pickle
import resource
import struct
import sys
import tarfile
import types
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.task import InputError
from pretrain.safe_pickle import LEGACY_TORCH
from pretrain.weight_files import read_weights

TENSORS = {"conv1.weight": torch.arange(8.0), "bn1.weight": torch.ones(2)}


class Calls:
    """Pickles as a call of `function` on `args`, whatever that does when the file is loaded."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def payloads(alarm: Path) -> dict[str, tuple[bytes, str]]:
    """Pickles, and what the refusal must name."""
    touch, python = f"touch '{alarm}'", f"open({str(alarm)!r}, 'w')"
    objects = {
        "os.system": (Calls(os.system, touch), "posix.system"),
        "eval": (Calls(eval, python), "eval"),
        "exec in a key": ({Calls(exec, python): 1}, "exec"),
        "partial": (functools.partial(os.system, touch), "functools.partial|posix.system"),
        "import": (Calls(__import__, "antigravity"), "__import__"),
        "open": (Calls(open, str(alarm), "w"), "open"),
        "methodcaller": (Calls(operator.methodcaller, "unlink", alarm), "operator.methodcaller|methodcaller"),
        "a whole network": (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        "a namespace with a class": (types.SimpleNamespace(x=1), "types.SimpleNamespace"),
        "numpy objects": (Calls(np.load, str(alarm)), "numpy.load"),
        "many bytes": (Calls(bytearray, 10**11), "bytearray"),
    }
    made = {name: (pickle.dumps({"x": payload}, protocol=2), names) for name, (payload, names) in objects.items()}
    text = touch.encode()
    get = b"cbuiltins\ngetattr\n"
    by_hand = {
        # getattr(getattr(dict, "__class__"), …): a chain of attributes, called at its end
        "getattr chain": (get + b"(" + get + b"(cbuiltins\ndict\nX\x09\x00\x00\x00__class__tRX\x03\x00\x00\x00mrotR"
                          b"(X" + struct.pack("<I", len(text)) + text + b"tR.", "getattr|calls or changes"),
        # BUILD on a class: __setstate__ called unbound, and attributes set on it
        "setstate of a class": (b"cnumpy\nndarray\n(NtbX\x01\x00\x00\x00x.", "cannot be read|calls or changes"),
        "state of a function": (b"c_codecs\nencode\n(N}X\x0c\x00\x00\x00__defaults__(X\x05\x00\x00\x00utf-8tstb.",
                                "cannot be read|calls or changes"),
        "dotted name": (b"cnumpy\ncore.os.system\n(X\x02\x00\x00\x00lstR.", "numpy.core.os.system"),
        "extension registry": (b"\x82\x01.", "cannot be read"),
        "memo of two billion places": (b"Nr\xff\xff\xff\x7f.", "NoneType"),
        "a string of four gigabytes": (b"X\xff\xff\xff\xffabc.", "cannot be read"),
    }  # fmt: skip
    return {**made, **{name: (b"\x80\x02" + body, names) for name, (body, names) in by_hand.items()}}


def zipped(data: bytes) -> bytes:
    """A file as torch.save writes it, with another pickle in it."""
    honest, made = io.BytesIO(), io.BytesIO()
    torch.save(TENSORS, honest)
    with zipfile.ZipFile(honest) as source, zipfile.ZipFile(made, "w") as target:
        for name in source.namelist():
            target.writestr(name, data if name.endswith("/data.pkl") else source.read(name))
    return made.getvalue()


def legacy(data: bytes) -> bytes:
    """As torch before 1.6 wrote it: magic number, protocol, system, object, keys of the storages."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    return LEGACY_TORCH + pickle.dumps(1001, 2) + pickle.dumps(system, 2) + data + pickle.dumps([], 2)


FRAMES: dict[str, Callable[[bytes], bytes]] = {"zip": zipped, "legacy": legacy, "pickle": lambda data: data}


def refusal(path: Path) -> str:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError) as caught:
        read_weights(path)
    sentence = str(caught.value)
    assert path.name in sentence
    assert "\n" not in sentence
    assert len(sentence) < 500
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 300_000  # KiB
    return sentence


@pytest.mark.parametrize("frame", sorted(FRAMES))
@pytest.mark.parametrize("name", sorted(payloads(Path("alarm"))))
def test_code_in_a_pickle_is_refused_by_name_and_never_run(name: str, frame: str, tmp_path: Path) -> None:
    alarm = tmp_path / "it ran"
    data, names = payloads(alarm)[name]
    (tmp_path / "weights.pth").write_bytes(FRAMES[frame](data))
    sentence = refusal(tmp_path / "weights.pth")
    assert any(part in sentence for part in names.split("|")), sentence
    assert not alarm.exists()
    assert "antigravity" not in sys.modules
    assert read_weights.__defaults__ is None


def test_a_pickle_hidden_in_a_plain_zip_and_a_network_as_torchscript_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "plain.pth", "w") as archive:
        archive.writestr("data.pkl", pickle.dumps(Calls(os.system, "false")))
    assert "torch.save did not write it" in refusal(tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        for member in ("archive/data.pkl", "archive/constants.pkl", "archive/code/x.py", "archive/version"):
            archive.writestr(member, b"\x80\x02}." if member.endswith("pkl") else b"3\n")
    assert "script.pt" in refusal(tmp_path / "script.pt")


def test_a_tar_that_would_write_outside_is_refused(tmp_path: Path) -> None:
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as archive:
        info = tarfile.TarInfo("../escaped")
        archive.addfile(info, io.BytesIO())
    with tarfile.open(tmp_path / "old.tar", "w") as archive:  # as torch 0.1.1 saved
        for name in ("sys_info", "storages", "pickle"):
            info = tarfile.TarInfo(name)
            info.size = len(inner.getvalue())
            archive.addfile(info, io.BytesIO(inner.getvalue()))
    assert "neither a torch, a safetensors nor a pickle file" in refusal(tmp_path / "old.tar")
    assert not (tmp_path.parent / "escaped").exists()


@pytest.mark.slow
def test_bombs_are_refused_before_they_unfold(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", pickle.dumps({}, protocol=2))
        archive.writestr("bomb/data/0", bytes(200 << 20))
    assert (tmp_path / "bomb.pth").stat().st_size < 1 << 20
    assert "declares more data than it has" in refusal(tmp_path / "bomb.pth")
    torch.save({"a": torch.zeros(1).expand(1 << 40)}, tmp_path / "wide.pth")
    assert "declares 1,099,511,627,776 numbers" in refusal(tmp_path / "wide.pth")
    honest = io.BytesIO()
    torch.save({"a": torch.arange(8.0)}, honest)
    with zipfile.ZipFile(honest) as archive:
        data = archive.read("archive/data.pkl")
    longer = data.replace(b"K\x08tq", b"J" + struct.pack("<i", 1 << 30) + b"tq")
    larger = data.replace(b"K\x08\x85", b"J" + struct.pack("<i", 1 << 30) + b"\x85")
    assert data not in (longer, larger)
    for name, changed in (("storage", longer), ("shape", larger)):
        (tmp_path / f"{name}.pth").write_bytes(zipped(changed))
        assert "neither torch.save nor pickle wrote it" in refusal(tmp_path / f"{name}.pth")
    old = io.BytesIO()
    torch.save({"a": torch.arange(8.0)}, old, _use_new_zipfile_serialization=False)
    for name, part in (("old storage", b"K\x08Nt"), ("old shape", b"K\x08\x85")):
        assert part in old.getvalue()
        changed = old.getvalue().replace(part, b"J" + struct.pack("<i", 1 << 30) + part[2:])
        (tmp_path / f"{name}.pth").write_bytes(changed)
        refusal(tmp_path / f"{name}.pth")
    array = pickle.dumps({"a": np.arange(8.0)}, protocol=2)
    assert b"K\x08\x85" in array
    (tmp_path / "array.pkl").write_bytes(array.replace(b"K\x08\x85", b"J" + struct.pack("<i", 1 << 30) + b"\x85"))
    assert "neither torch.save nor pickle wrote it" in refusal(tmp_path / "array.pkl")


def test_a_legacy_file_whose_first_storage_begins_like_a_pickle_is_read(tmp_path: Path) -> None:
    numbers = torch.arange(128.0)  # the length of a storage is written before it, and 128 is 0x80
    torch.save({"a": numbers}, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    assert struct.pack("<q", 128) + struct.pack("<2f", 0, 1) in (tmp_path / "w.pth").read_bytes()
    assert torch.equal(read_weights(tmp_path / "w.pth").tensors[""]["a"], numbers)


@pytest.mark.parametrize("share", [0.1, 0.6, 0.99])
@pytest.mark.parametrize("frame", ["zip", "legacy"])
def test_a_file_cut_short_is_refused(share: float, frame: str, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"a": torch.randn(5000)}, path, _use_new_zipfile_serialization=frame == "zip")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    said = refusal(path)
    assert frame == "legacy" or "is cut short" in said


def test_safetensors_with_a_lying_header(tmp_path: Path) -> None:
    def written(name: str, header: dict[str, Any], data: bytes, length: int | None = None) -> Path:
        text = json.dumps(header).encode()
        (tmp_path / name).write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
        return tmp_path / name

    tensor = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    assert list(read_weights(written("good", {"a": tensor}, bytes(8))).tensors[""]) == ["a"]
    for name, change, length in (
        ("offsets", {"data_offsets": [0, 1 << 40]}, None), ("shape", {"shape": [1 << 40]}, None),
        ("overlap", {"data_offsets": [4, 8]}, None), ("header", {}, 1 << 60), ("dtype", {"dtype": "EVAL"}, None),
    ):  # fmt: skip
        refusal(written(f"{name}.safetensors", {"a": {**tensor, **change}}, bytes(8), length))


def test_a_mapping_that_shadows_its_own_methods_is_read_all_the_same(tmp_path: Path) -> None:
    mapping: OrderedDict[str, Any] = OrderedDict(TENSORS)
    mapping.__dict__.update({"keys": 3, "get": "no", "__iter__": []})
    torch.save({"state_dict": mapping}, tmp_path / "w.pth")
    read = read_weights(tmp_path / "w.pth").tensors["state_dict"]
    assert all(torch.equal(read[name], tensor) for name, tensor in TENSORS.items())


def test_nothing_but_a_mapping_of_dense_numbers_is_read(tmp_path: Path) -> None:
    for content, fault in (
        ([torch.zeros(2)], "holds list, not a mapping"),
        ({"a": torch.eye(3).to_sparse()}, "not a plain tensor"),
        ({"a": torch.empty(3, device="meta")}, "not a plain tensor"),
    ):
        torch.save(content, tmp_path / "w.pth")
        assert fault in refusal(tmp_path / "w.pth")
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"a": np.array(["text"])}))
    assert "is text, not numbers" in refusal(tmp_path / "w.pkl")
    (tmp_path / "o.pkl").write_bytes(pickle.dumps({"a": np.array([object], dtype=object)}))
    assert "o.pkl" in refusal(tmp_path / "o.pkl")
    (tmp_path / "empty.pth").touch()
    assert "neither" in refusal(tmp_path / "empty.pth")


# ---- what honest releases carry --------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", [False, True])
def test_namespaces_and_numpy_scalars_are_read(old: bool, tmp_path: Path) -> None:
    content = {
        "model": TENSORS, "epoch": 3, "best": np.float64(0.5), "count": np.int64(7), "name": np.str_("moco"),
        "args": argparse.Namespace(arch="vit_small", lr=np.float32(0.1), path=Path("x"), nested=[argparse.Namespace()]),
        "rng": np.random.RandomState(0).get_state(),
    }  # fmt: skip
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=not old)
    read = read_weights(tmp_path / "w.pth")
    assert torch.equal(read.tensors["model"]["conv1.weight"], TENSORS["conv1.weight"])
    assert (read.values["epoch"], read.values["best"], read.values["count"]) == (3, 0.5, 7)
    assert read.values["arch"] == "vit_small"


def fake(monkeypatch: pytest.MonkeyPatch, module: str, name: str, base: type = object) -> Any:
    """A class of a library that is not here, as far as pickle can tell."""
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:end]), types.ModuleType(".".join(parts[:end])))
    kind = type(name, (base,), {"__module__": module})
    monkeypatch.setattr(sys.modules[module], name, kind, raising=False)
    return kind


def test_omegaconf_mmengine_and_lightning_objects_stay_inert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as there:
        config = fake(there, "omegaconf.dictconfig", "DictConfig")()
        metadata = fake(there, "omegaconf.base", "ContainerMetadata")()
        metadata.__dict__.update(ref_type=Any, resolver_cache=defaultdict(dict, {"a": {1: 2}}), key_type=int)
        config.__dict__.update(_metadata=metadata, _content={"lr": 0.1})
        history = fake(there, "mmengine.logging.history_buffer", "HistoryBuffer")
        history.mean = lambda self: 0
        history.mean.__qualname__, history.mean.__module__ = "HistoryBuffer.mean", history.__module__
        buffer = history()
        buffer.__dict__.update(_log_history=np.arange(3.0), _statistics_methods={"mean": history.mean})
        attributes = fake(there, "pytorch_lightning.utilities.parsing", "AttributeDict", dict)(lr=0.1)
        callback = fake(there, "pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
        content = {
            "state_dict": TENSORS, "hyper_parameters": attributes, "config": config, "callbacks": {callback: {"a": 1}},
            "message_hub": {"log_scalars": {"loss": buffer}, "runtime_info": {"epoch": 3}},
        }  # fmt: skip
        torch.save(content, tmp_path / "w.ckpt")
    before = set(sys.modules)
    assert set(read_weights(tmp_path / "w.ckpt").tensors) == {"state_dict"}
    assert not {
        name for name in set(sys.modules) - before if name.startswith(("omegaconf", "mmengine", "pytorch_light"))
    }


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_numpy_pickles_of_every_protocol(protocol: int, tmp_path: Path) -> None:
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(6.0).reshape(2, 3).T, "c": np.float32(2),
        "d": np.arange(3, dtype=">f4"), "e": np.zeros((0, 3), np.float16), "f": np.array(5, np.int64),
    }  # fmt: skip
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "me"}, protocol=protocol))
    read = read_weights(tmp_path / "w.pkl")
    assert read.values["__author__"] == "me"
    for name in "abdef":
        assert np.array_equal(read.tensors["model"][name].numpy(), arrays[name])
        assert (
            read.tensors["model"][name].dtype
            == torch.from_numpy(arrays[name].astype(arrays[name].dtype.newbyteorder("="))).dtype
        )

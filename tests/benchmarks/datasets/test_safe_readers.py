"""MATLAB files are read as scipy reads them."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from benchmarks.datasets.safe_readers import MAX_DEPTH, read_mat
from benchmarks.task import InputError
from tests.layouts.mat import header, matrix, part

LIMIT = 2**20
KINDS = ("f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8")


def as_ours(value: Any) -> Any:
    """What scipy gives, in the types of our reader."""
    if isinstance(value, np.ndarray) and value.dtype.names:
        return {name: [as_ours(each) for each in value[name].reshape(-1, order="F")] for name in value.dtype.names}
    if isinstance(value, np.ndarray) and value.dtype == object:
        return [as_ours(each) for each in value.reshape(-1, order="F")]
    if isinstance(value, np.ndarray) and value.dtype.kind == "U":
        return "".join(value.tolist())
    return value


def assert_same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name in expected:
            assert_same(found[name], expected[name])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype
        assert np.array_equal(found, expected)
    else:
        assert found == expected


@pytest.mark.parametrize("packed", [False, True])
def test_variables_are_those_of_scipy(packed: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    written: dict[str, Any] = {f"n{kind}": rng.integers(0, 99, (3, 4, 2)).astype(kind) for kind in KINDS}
    structures = np.array([("a.jpg", 3), ("bä.jpg", 4)], dtype=[("fname", object), ("class", object)])
    written |= {
        "one": 7, "text": "Gänse", "empty": np.zeros((0, 3)), "nothing": "",
        "cells": np.array(["a", np.arange(3), np.array([1.5])], dtype=object),
        "nested": {"inner": {"mask": np.eye(3, dtype=np.uint8), "names": np.array(["x", "yz"], dtype=object)}},
        "structures": structures, "a": 1, "long_name_of_a_variable": np.arange(5.0),
    }  # fmt: skip
    savemat(tmp_path / "a.mat", written, do_compression=packed)
    found = read_mat(tmp_path / "a.mat", tuple(written), LIMIT)
    theirs = loadmat(tmp_path / "a.mat", chars_as_strings=True)
    assert found.keys() == written.keys()
    for name in written:
        assert_same(found[name], as_ours(theirs[name]))


def test_numbers_may_be_stored_in_a_smaller_type_and_in_the_other_byte_order(tmp_path: Path) -> None:
    for order in "<>":
        content = matrix(6, (2, 2), part(2, bytes([1, 2, 3, 4]), order), name=b"x", order=order)
        content += matrix(11, (1, 3), part(4, struct.pack(f"{order}3H", 1, 256, 3), order), name=b"y", order=order)
        (tmp_path / "a.mat").write_bytes(header(order) + content)
        theirs, found = loadmat(tmp_path / "a.mat"), read_mat(tmp_path / "a.mat", ("x", "y"), LIMIT)
        for name in ("x", "y"):
            assert np.array_equal(found[name], theirs[name])
        assert np.array_equal(found["x"], [[1.0, 3.0], [2.0, 4.0]])


def test_other_variables_are_passed_over(tmp_path: Path) -> None:
    savemat(tmp_path / "a.mat", {"f": np.zeros(3, complex), "x": np.arange(3)})
    assert read_mat(tmp_path / "a.mat", ("x",), LIMIT)["x"].tolist() == [[0, 1, 2]]
    with pytest.raises(InputError, match="an array is of complex numbers"):
        read_mat(tmp_path / "a.mat", ("f",), LIMIT)
    with pytest.raises(InputError, match="it has no variable y"):
        read_mat(tmp_path / "a.mat", ("x", "y"), LIMIT)


def test_limits(tmp_path: Path) -> None:
    file = tmp_path / "a.mat"
    savemat(file, {"x": np.zeros(1000, np.uint8)}, do_compression=True)
    assert read_mat(file, ("x",), 1100)["x"].size == 1000
    with pytest.raises(InputError, match="it unfolds to more than 1,000 bytes"):
        read_mat(file, ("x",), 1000)
    file.write_bytes(header() + matrix(6, (1, 800), part(2, bytes(800)), name=b"x"))
    with pytest.raises(InputError, match="its numbers have too many bytes"):
        read_mat(file, ("x",), 4000)
    nested = matrix(9, (1, 1), part(2, b"a"))
    for _ in range(MAX_DEPTH - 1):
        nested = matrix(1, (1, 1), nested)
    file.write_bytes(header() + matrix(1, (1, 1), nested, name=b"x"))
    assert len(read_mat(file, ("x",), LIMIT)["x"]) == 1
    file.write_bytes(header() + matrix(1, (1, 1), matrix(1, (1, 1), nested), name=b"x"))
    with pytest.raises(InputError, match=f"cells deeper than {MAX_DEPTH}"):
        read_mat(file, ("x",), LIMIT)
    with pytest.raises(InputError, match="is missing; unpack the data set again"):
        read_mat(tmp_path / "b.mat", ("x",), LIMIT)

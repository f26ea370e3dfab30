"""The bytes of MATLAB files, written by hand."""

from __future__ import annotations

import struct


def header(order: str = "<") -> bytes:
    mark = b"\x00\x01IM" if order == "<" else b"\x01\x00MI"
    return b"MATLAB 5.0 MAT-file".ljust(124) + mark


def part(kind: int, content: bytes, order: str = "<") -> bytes:
    """An element with its tag, padded."""
    return struct.pack(f"{order}II", kind, len(content)) + content + bytes(-len(content) % 8)


def matrix(kind: int, shape: tuple[int, ...], *parts: bytes, name: bytes = b"", order: str = "<") -> bytes:
    """A variable or a cell; `kind` is MATLAB's number of its class."""
    flags = part(6, struct.pack(f"{order}II", kind, 0), order)
    sizes = part(5, struct.pack(f"{order}{len(shape)}i", *shape), order)
    return part(14, b"".join([flags, sizes, part(1, name, order), *parts]), order)

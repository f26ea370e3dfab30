"""Numerics as plain functions on arrays. A solver knows nothing of protocols, files or progress bars."""

from __future__ import annotations

from typing import Literal

Engine = Literal["auto", "faiss", "torch"]  # of `exact_knn`; here, because naming it must not import torch

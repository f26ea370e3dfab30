"""Attentive pooling of one image by one head, in loops over tokens and parts: slow, plain, float64."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def softmax(scores: list[float]) -> list[float]:
    top = max(scores)
    powers = [math.exp(score - top) for score in scores]
    return [power / sum(powers) for power in powers]


def cross_attention(tokens: Array, query: Array, key: Array, value: Array, parts: int, value_bias: Array) -> Array:
    """Keys and values of every token, then softmax over the tokens, part by part."""
    width = len(query) // parts
    keys, values = [key @ token for token in tokens], [value @ token + value_bias for token in tokens]
    pooled = []
    for part in range(parts):
        at = slice(part * width, (part + 1) * width)
        weights = softmax([float(query[at] @ k[at]) / math.sqrt(width) for k in keys])
        pooled.append(sum(w * v[at] for w, v in zip(weights, values, strict=True)))
    return np.concatenate(pooled)


def layer_norm(x: Array, scale: Array, shift: Array) -> Array:
    return (x - x.mean()) / math.sqrt(x.var() + 1e-5) * scale + shift


def gelu(x: Array) -> Array:
    return np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x])


def mlp(x: Array, w: Mapping[str, Array], name: str) -> Array:
    hidden = w[f"{name}_fc1"] @ layer_norm(x, w[f"{name}_norm2"], w[f"{name}_norm2_bias"]) + w[f"{name}_fc1_bias"]
    return x + w[f"{name}_fc2"] @ gelu(hidden) + w[f"{name}_fc2_bias"]


def ep(tokens: Array, w: Mapping[str, Array], settings: Mapping[str, Any]) -> Array:
    """Before the batch norm."""
    dim, queries = tokens.shape[1], settings["queries"]
    width, values = dim // queries, [w["value"] @ token for token in tokens]
    pooled = []
    for number in range(queries):
        weights = softmax([float(w["query"][number] @ token) / math.sqrt(dim) for token in tokens])
        at = slice(number * width, (number + 1) * width)
        pooled.append(sum(weight * v[at] for weight, v in zip(weights, values, strict=True)))
    return np.concatenate(pooled)


def aim(tokens: Array, w: Mapping[str, Array], settings: Mapping[str, Any]) -> Array:
    """Of tokens after the batch norm."""
    return cross_attention(
        tokens, w["query"], w["key"], w["value"], settings["attention_heads"], np.zeros(len(tokens[0]))
    )


def capi(tokens: Array, w: Mapping[str, Array], settings: Mapping[str, Any]) -> Array:
    return cross_attention(tokens, w["query"], w["key"], w["value"], settings["attention_heads"], w["value_bias"])


def vjepa2(tokens: Array, w: Mapping[str, Array], settings: Mapping[str, Any]) -> Array:
    parts, dim = settings["attention_heads"], tokens.shape[1]
    x = list(tokens)
    for number in range(settings["blocks"]):
        name = f"block{number}"
        normed = [layer_norm(token, w[f"{name}_norm1"], w[f"{name}_norm1_bias"]) for token in x]
        weight, bias = w[f"{name}_qkv"], w[f"{name}_qkv_bias"]
        q, k, v = (weight[i * dim : (i + 1) * dim] for i in range(3))
        bias_q, _, bias_v = (bias[i * dim : (i + 1) * dim] for i in range(3))
        every = np.array(normed)
        attended = [cross_attention(every, q @ token + bias_q, k, v, parts, bias_v) for token in normed]
        x = [
            mlp(token + w[f"{name}_proj"] @ found + w[f"{name}_proj_bias"], w, name)
            for token, found in zip(x, attended, strict=True)
        ]
    normed = np.array([layer_norm(token, w["cross_norm1"], w["cross_norm1_bias"]) for token in x])
    query = w["cross_query"] @ w["query"] + w["cross_query_bias"]
    found = cross_attention(normed, query, w["key"], w["value"], parts, w["value_bias"])
    return mlp(w["query"] + found, w, "cross")


POOLINGS = {"ep": ep, "aim": aim, "capi": capi, "vjepa2": vjepa2}

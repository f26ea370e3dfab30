"""A slow, plain validator for the part of JSON Schema draft 7 that the vendored schemas use."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

KNOWN = {
    *("$schema", "version", "title", "description", "default", "examples", "format", "$comment", "$defs"),
    *("type", "enum", "const", "required", "properties", "additionalProperties", "items", "minItems", "pattern"),
    *("minimum", "maximum", "oneOf", "allOf", "not", "if", "then", "else", "$ref"),
}
TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "null": (type(None),),
    "integer": (int,),
    "number": (int, float),
}


def faults(value: Any, schema: Any, root: Any, where: str = "$") -> Iterator[str]:
    """Every way in which a value breaks a schema; the schema must use known keywords alone."""
    unknown = set(schema) - KNOWN
    assert not unknown, f"the validator does not know {unknown}"
    if "$ref" in schema:
        yield from faults(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root, where)
        return
    if "type" in schema:
        kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        if not any(isinstance(value, TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))
                   for kind in kinds):  # fmt: skip
            yield f"{where}: {value!r} is not of type {kinds}"
            return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{where}: {value!r} is not one of {schema['enum']}"
    if "const" in schema and value != schema["const"]:
        yield f"{where}: {value!r} is not {schema['const']!r}"
    if isinstance(value, str) and "pattern" in schema and not re.search(schema["pattern"], value):
        yield f"{where}: {value!r} does not match {schema['pattern']}"
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        yield f"{where}: {value} is out of range"
    if isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            yield f"{where}: too few items"
        for i, each in enumerate(value):
            yield from faults(each, schema.get("items", {}), root, f"{where}[{i}]")
    if isinstance(value, dict):
        yield from (f"{where}: no {name}" for name in schema.get("required", ()) if name not in value)
        known = schema.get("properties", {})
        for name, each in value.items():
            if name in known:
                yield from faults(each, known[name], root, f"{where}.{name}")
                continue
            extra = schema.get("additionalProperties", True)
            if extra is False:
                yield f"{where}: {name} is not allowed"
            elif isinstance(extra, dict):
                yield from faults(each, extra, root, f"{where}.{name}")
    if "oneOf" in schema and sum(not any(faults(value, one, root)) for one in schema["oneOf"]) != 1:
        yield f"{where}: not exactly one of the choices fits"
    for one in schema.get("allOf", ()):
        yield from faults(value, one, root, where)
    if "not" in schema and not any(faults(value, schema["not"], root)):
        yield f"{where}: what it must not be"
    if "if" in schema:
        branch = "else" if any(faults(value, schema["if"], root)) else "then"
        yield from faults(value, schema.get(branch, {}), root, where)

"""`--set name=value …`: a protocol with other numbers, typed as its harness types them, and an id that says so."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from benchmarks.contract import InputError
from results.schema import Protocol

Columns = Callable[[Protocol], tuple[str, ...]]
Selection = Callable[[Protocol], str]


def parse(protocol: Protocol, texts: Sequence[str], model: type[BaseModel]) -> dict[str, Any]:
    """`epochs=10` and the like to the values that `model` will check; a tuple is written 0.1,1,10 or as JSON.

    Raises:
        InputError: not of this form, a name that the protocol does not have, or the same name twice.
    """
    changes: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set {text}: write name=value, as epochs=10")
        _known(protocol, name)
        if name in changes:
            raise InputError(f"--set {text}: {name} is set twice")
        changes[name] = _value(value.strip(), model.model_fields[name].annotation)
    return changes


def override(
    protocol: Protocol,
    changes: Mapping[str, Any],
    model: type[BaseModel],
    columns: Columns | None = None,
    selection: Selection | None = None,
) -> Protocol:
    """The protocol with some `params` changed; its columns, and what it says of its selection, follow.

    Args:
        changes: what `parse` gives, or values as they are.
        model: what the harness reads `params` with.
        columns: the columns of a protocol, where they depend on its `params`.
        selection: how its figures are chosen, where that depends on them.

    Raises:
        InputError: a name that the protocol does not have, or a value that cannot be.
    """
    for name in changes:
        _known(protocol, name)
    try:
        checked = model.model_validate({**protocol.params, **changes}).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        given = f"{name}={changes[name]!r}: " if name in changes else ""
        raise InputError(f"{protocol.id} cannot have {given or ', '.join(changes) + ': '}{first['msg']}") from error
    new = {name: checked[name] for name in changes if checked[name] != protocol.params[name]}
    changed = protocol.with_overrides(**new)
    if not changed.overrides:
        return changed
    if selection is not None:
        changed = changed.model_copy(update={"selection": selection(changed)})
    if columns is None:
        return changed
    own = columns(changed)
    return changed.model_copy(update={"columns": own, "primary": changed.primary if changed.primary in own else own[0]})


def _known(protocol: Protocol, name: str) -> None:
    if name not in protocol.params:
        known = ", ".join(sorted(protocol.params)) or "nothing that can be set"
        raise InputError(f"{protocol.id} has no {name or 'setting without a name'} to set; it has {known}")


def _value(text: str, annotation: Any) -> Any:
    parts = (annotation, *get_args(annotation))
    if text in ("none", "None") and type(None) in parts:
        return None
    if text[:1] in ("[", "{"):
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"--set …={text}: this is not JSON ({error.msg})") from error
    if any(part is tuple or get_origin(part) is tuple for part in parts):
        return [part.strip() for part in text.split(",") if part.strip()]
    return text

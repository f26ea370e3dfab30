"""`--set name=value …`: a protocol with other numbers, typed as its harness types them, and an id that says so."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from benchmarks.contract import InputError
from results.schema import Protocol

Settings = TypeVar("Settings", bound=BaseModel)
Columns = Callable[[Protocol], tuple[str, ...]]
Wording = Callable[[Protocol], str]


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
        _known(protocol, name, model)
        if name in changes:
            raise InputError(f"--set {text}: {name} is set twice")
        changes[name] = _value(value.strip(), model.model_fields[name].annotation)
    return changes


def override(
    protocol: Protocol,
    changes: Mapping[str, Any],
    model: type[BaseModel],
    columns: Columns | None = None,
    selection: Wording | None = None,
    metric: Wording | None = None,
) -> Protocol:
    """The protocol with some `params` changed; its columns, and what it says of its selection, follow.

    Args:
        changes: what `parse` gives, or values as they are.
        model: what the harness reads `params` with.
        columns: the columns of a protocol, where they depend on its `params`.
        selection: how its figures are chosen, where that depends on them.
        metric: what they are, likewise.

    Raises:
        InputError: a name that the protocol does not have, or a value that cannot be.
    """
    for name in changes:
        _known(protocol, name, model)
    try:
        whole = model.model_validate({**protocol.params, **changes})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        given = f"{name}={changes[name]!r}: " if name in changes else ""
        raise InputError(f"{protocol.id} cannot have {given or ', '.join(changes) + ': '}{_message(first)}") from error
    stated = whole.model_dump()
    absent = {name: model.model_fields[name].default for name in changes if name not in protocol.params}
    protocol = protocol.model_copy(update={"params": {**protocol.params, **absent}})
    checked = {name: stated.get(name, getattr(whole, name)) for name in changes}
    changed = protocol.with_overrides(**{n: value for n, value in checked.items() if value != protocol.params[n]})
    left = {name: value for name, value in changed.params.items() if name in stated}  # as the model writes them
    changed = changed.model_copy(update={"params": left})
    if not changed.overrides:
        return changed
    if selection is not None:
        changed = changed.model_copy(update={"selection": selection(changed)})
    if metric is not None:
        changed = changed.model_copy(update={"metric": metric(changed)})
    if columns is None:
        return changed
    own = columns(changed)
    return changed.model_copy(update={"columns": own, "primary": changed.primary if changed.primary in own else own[0]})


def typed(model: type[Settings], protocol: Protocol) -> Settings:
    """The `params` of a protocol as its harness types them.

    Raises:
        InputError: a value that cannot be, or some that do not go together, in one sentence.
    """
    try:
        return model.model_validate(protocol.params)
    except ValidationError as error:
        raise InputError(f"{protocol.id}: {first_fault(error)}") from error


def first_fault(error: ValidationError) -> str:
    """The first of its faults, with the field that it is in."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {_message(first)}" if where else _message(first)


def _message(fault: Any) -> str:
    text: str = fault["msg"]
    return text.removeprefix("Value error, ")


def settable(protocol: Protocol, model: type[BaseModel]) -> set[str]:
    """What the protocol states, and what it leaves out at a default value; other fields are not the user's to set."""
    unstated = {name for name, field in model.model_fields.items() if field.exclude_if is not None and field.default}
    return {*protocol.params, *unstated}


def _known(protocol: Protocol, name: str, model: type[BaseModel]) -> None:
    names = settable(protocol, model)
    if name not in names:
        known = ", ".join(sorted(names)) or "nothing that can be set"
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

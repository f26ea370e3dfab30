"""The harnesses by the name of their command, imported only when asked for, and their protocols by id."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from pydantic import BaseModel

from benchmarks.contract import InputError, Items, Outcome
from benchmarks.overrides import override, parse, settable
from results.schema import Protocol, Record


@dataclass(frozen=True)
class Harness:
    """One benchmark family.

    Attributes:
        command: as in `python -m benchmarks <command>`.
        protocols: module with `PROTOCOLS`; cheap to import.
        runner: module with `run`.
        on_features: `run` takes stored features of both splits; otherwise the encoder and the images.
        parity: variant that runs when the user names none.
        params: module and class, as `module:Class`, that type the protocols' `params`.
        embedded: variant for the embedded data.
        parts: commands whose protocols this one runs, in one pass over the images where they allow it.
    """

    command: str
    protocols: str
    runner: str
    benchmark: str
    on_features: bool
    parity: str
    params: str
    embedded: str = "demo"
    parts: tuple[str, ...] = ()

    def run(self) -> Callable[..., Any]:
        """The harness's function, imported now."""
        return import_module(self.runner).run

    def required_outputs(self, protocol: Protocol) -> dict[str, Any]:
        """Feature key -> (encoder output, pooling or None) that `protocol` reads."""
        return dict(import_module(self.runner).required_outputs(protocol))

    def together(self, protocols: Sequence[Protocol]) -> Callable[..., Any] | None:
        """What runs these protocols in one pass, for one outcome each; None where nothing can."""
        runner = import_module(self.runner)
        shared = len(protocols) > 1 and hasattr(runner, "can_share") and runner.can_share(protocols)
        return runner.run_together if shared else None

    def cells(self, protocol: Protocol) -> list[Protocol]:
        """The protocols, one for each cell, of a grid that gets a record per cell; none where it is no such grid."""
        find = getattr(import_module(self.runner), "cells", None)
        return find(protocol) if find else []

    def summary(self, protocol: Protocol, records: Sequence[Record], items: Callable[[int], Items]) -> Outcome:
        """The outcome of a grid, from the records of its cells and the per-item arrays of those that are asked for."""
        outcome: Outcome = import_module(self.runner).summary(protocol, records, items)
        return outcome

    def known(self) -> Iterator[Protocol]:
        """The protocols of this harness's benchmark."""
        for protocol in import_module(self.protocols).PROTOCOLS:
            if protocol.harness == self.command:
                yield protocol

    def default(self, embedded: bool, dataset: str | None = None) -> Protocol:
        """The protocol when the user names none: that of the data set where it has one, else the benchmark's own."""
        variant = self.embedded if embedded else self.parity
        known = list(self.known())
        own = (p for p in known if p.dataset == dataset and p.variant == variant)
        # A data set that the published variant knows nothing of may have a protocol of another variant.
        other = (p for p in known if p.dataset == dataset and p.variant != self.embedded)
        same = (p for p in known if p.benchmark == self.benchmark and p.variant == variant)
        found = (
            next(own, None)
            or next(other, None)
            or next(same, None)
            or next((p for p in known if p.variant == variant), None)
        )
        if found is None:
            raise InputError(f"{self.command} has no protocol for the embedded data; name one with --protocol")
        return found

    def unstated(self, protocol: Protocol) -> dict[str, Any]:
        """Settings that a protocol's `params` leave out because they are as they always were, with these values."""
        fields = self._params_model().model_fields
        return {name: fields[name].default for name in settable(protocol, self._params_model()) - set(protocol.params)}

    def _params_model(self) -> type[BaseModel]:
        module, _, name = self.params.partition(":")
        model: type[BaseModel] = getattr(import_module(module), name)
        return model

    def override(self, protocol: Protocol, changes: Sequence[str] | Mapping[str, Any]) -> Protocol:
        """The protocol with some of its `params` changed, and its id saying so.

        Args:
            changes: texts as `epochs=10`, or values by name.

        Raises:
            InputError: a name that the protocol does not have, or a value that cannot be.
        """
        model = self._params_model()
        values = changes if isinstance(changes, Mapping) else parse(protocol, changes, model)
        declared = import_module(self.protocols)
        hooks = (getattr(declared, hook, None) for hook in ("columns", "selection", "metric"))
        return override(protocol, values, model, *hooks)


_LINEAR = "benchmarks.linear.protocols"
_PROBE, _STORED = "benchmarks.linear.settings:ProbeSettings", "benchmarks.linear.settings:StoredSettings"
_TUNE, _TUNED = "benchmarks.finetune.protocols", "benchmarks.finetune.settings:FineTuneSettings"
HARNESSES = (
    Harness("linear", _LINEAR, "benchmarks.linear.harness", "linear_avgpool", False, "moco", _PROBE),
    Harness("multihead", _LINEAR, "benchmarks.linear.harness", "linear_multihead", False, "mmselfsup", _PROBE),
    Harness("linear-stored", _LINEAR, "benchmarks.linear.stored", "linear_stored", True, "imagefolder", _STORED),
    Harness("semi-1pct", _TUNE, "benchmarks.finetune.harness", "semi_supervised_1pct", False, "mmselfsup", _TUNED),
    Harness("semi-10pct", _TUNE, "benchmarks.finetune.harness", "semi_supervised_10pct", False, "mmselfsup", _TUNED),
    Harness("finetune", _TUNE, "benchmarks.finetune.harness", "finetune_imagenet", False, "mocov1", _TUNED),
    Harness("probes", _LINEAR, "benchmarks.linear.harness", "", False, "", _PROBE, parts=("linear", "multihead")),
)  # fmt: skip


def harness(command: str) -> Harness:
    """By its command."""
    for known in HARNESSES:
        if known.command == command:
            return known
    raise InputError(f"no harness {command!r}; known are {', '.join(h.command for h in HARNESSES)}")


def find_protocol(identifier: str) -> Protocol:
    """By id, as `knn.mmselfsup@1`; `@revision` may be left out.

    Raises:
        InputError: unknown.
    """
    every = [p for h in HARNESSES for p in h.known()]
    for protocol in every:
        if identifier in (protocol.id, protocol.id.partition("@")[0]):
            return protocol
    raise InputError(f"no protocol {identifier!r}; known are {', '.join(sorted(p.id for p in every))}")

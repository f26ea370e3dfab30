"""The harnesses by the name of their command, imported only when asked for, and their protocols by id."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from benchmarks.contract import InputError
from results.schema import Protocol


@dataclass(frozen=True)
class Harness:
    """One benchmark family.

    Attributes:
        command: as in `python -m benchmarks <command>`.
        protocols: module with `PROTOCOLS`; cheap to import.
        runner: module with `run`.
        on_features: `run` takes stored features of both splits; otherwise the encoder and the images.
        parity: variant that runs when the user names none.
        embedded: variant for the embedded data.
    """

    command: str
    protocols: str
    runner: str
    benchmark: str
    on_features: bool
    parity: str
    embedded: str = "demo"

    def run(self) -> Callable[..., Any]:
        """The harness's function, imported now."""
        return import_module(self.runner).run

    def required_outputs(self, protocol: Protocol) -> dict[str, Any]:
        """Feature key -> (encoder output, pooling or None) that `protocol` reads."""
        return dict(import_module(self.runner).required_outputs(protocol))

    def known(self) -> Iterator[Protocol]:
        """The protocols of this harness's benchmark."""
        for protocol in import_module(self.protocols).PROTOCOLS:
            if protocol.harness == self.command:
                yield protocol

    def default(self, embedded: bool) -> Protocol:
        """The protocol for a data root when the user names none."""
        variant = self.embedded if embedded else self.parity
        return next(p for p in self.known() if p.benchmark == self.benchmark and p.variant == variant)


_SVM, _LINEAR = "benchmarks.svm.protocols", "benchmarks.linear.protocols"
HARNESSES = (
    Harness("knn", "benchmarks.knn.protocols", "benchmarks.knn.harness", "knn", True, "mmselfsup"),
    Harness("linear", _LINEAR, "benchmarks.linear.harness", "linear_avgpool", False, "moco"),
    Harness("multihead", _LINEAR, "benchmarks.linear.harness", "linear_multihead", False, "mmselfsup"),
    Harness("linear-stored", _LINEAR, "benchmarks.linear.stored", "linear_stored", True, "imagefolder"),
    Harness("voc-svm", _SVM, "benchmarks.svm.full", "voc07_svm", True, "mmselfsup"),
    Harness("low-shot-svm", _SVM, "benchmarks.svm.low_shot", "voc07_low_shot_svm", True, "mmselfsup"),
)


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

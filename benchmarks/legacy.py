"""Bridges a benchmark that has not moved to the task contract yet. Goes with the last of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.harnesses import HARNESSES
from benchmarks.task import FeatureTask, ImageTask, Items, Labels, Outcome, Outputs, RunOptions, Split
from results.schema import Params, Protocol, Record

LEGACY = {row.command: row for row in HARNESSES if not row.parts}


@cache
def legacy_task(name: str) -> Any:
    row = LEGACY[name]
    declared = list(row.known())
    hooks = import_module(row.protocols)
    model: Any = row._params_model()

    def hook(kind: str, protocol: Protocol) -> Any:
        found = getattr(hooks, kind, None)
        return found(protocol) if found else None

    def bound(protocol: Protocol) -> Protocol:
        class Bridged(model, Params):  # type: ignore[misc]
            def columns(self) -> Any:
                return hook("columns", protocol.model_copy(update={"params": self.model_dump()}))

            def selection(self) -> Any:
                return hook("selection", protocol.model_copy(update={"params": self.model_dump()}))

            def metric(self) -> Any:
                return hook("metric", protocol.model_copy(update={"params": self.model_dump()}))

        copy = protocol.model_copy()
        copy._params_type = Bridged
        return copy

    first = [p for p in declared if p.benchmark == row.benchmark and p.variant == row.parity]
    ordered = tuple(bound(p) for p in (*first, *(p for p in declared if p not in first)))
    runner = import_module(row.runner)

    class Mixin:
        Params = model
        protocols = ordered

        def outputs(self, protocol: Protocol) -> Outputs:
            return row.required_outputs(protocol)

    Mixin.name = name  # type: ignore[attr-defined]
    if row.on_features:

        @dataclass(frozen=True)
        class LegacyFeatures(Mixin, FeatureTask[Any]):
            def run(self, protocol: Protocol, train: Split, test: Split, options: RunOptions) -> Outcome:
                return runner.run(protocol, train, test, device=options.device, progress=options.progress)

        LegacyFeatures.__doc__ = name
        return LegacyFeatures

    @dataclass(frozen=True)
    class LegacyImages(Mixin, ImageTask[Any]):
        def run(
            self, protocol: Protocol, encoder: Any, train: Labels, test: Labels, workdir: Path, options: RunOptions
        ) -> Outcome:
            return runner.run(
                protocol, encoder, train, test, device=options.device, workers=options.workers, workdir=workdir,
                seed=options.seed, progress=options.progress,
            )  # fmt: skip

        def shared_pass(self, protocol: Protocol) -> str | None:
            if not hasattr(runner, "can_share"):
                return None
            return f"{row.runner} {protocol.dataset} {protocol.geometry}"

        def run_together(
            self, protocols: Sequence[Protocol], encoder: Any, train: Labels, test: Labels, workdirs: Sequence[Path],
            options: RunOptions,
        ) -> list[Outcome]:  # fmt: skip
            if not runner.can_share(protocols):
                return super().run_together(protocols, encoder, train, test, workdirs, options)
            return runner.run_together(
                protocols, encoder, train, test, device=options.device, workers=options.workers, workdirs=workdirs,
                seed=options.seed, progress=options.progress,
            )  # fmt: skip

        def cells(self, protocol: Protocol) -> tuple[Protocol, ...]:
            return tuple(row.cells(protocol))

        def summarise(self, protocol: Protocol, cells: Sequence[Record], items: Callable[[int], Items]) -> Outcome:
            return row.summary(protocol, cells, items)

    LegacyImages.__doc__ = name
    return LegacyImages

"""The old place of `benchmarks.task`, until every benchmark has moved."""

from __future__ import annotations

from benchmarks.task import InputError as InputError
from benchmarks.task import Items as Items
from benchmarks.task import Labels as Labels
from benchmarks.task import NotApplicableError as NotApplicableError
from benchmarks.task import Outcome as Outcome
from benchmarks.task import Split as Split

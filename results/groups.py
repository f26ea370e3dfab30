"""Records that may stand in one table: same protocol, same version of the same data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from results.schema import Protocol, Record
from results.store import StoredRecord


@dataclass(frozen=True)
class Family:
    """The benchmarks whose name begins with `prefix`, in the order and number format of a model-zoo page."""

    prefix: str
    title: str
    decimals: int = 2
    line: str = ""
    best_layer: bool = False


_POOLED = "Features after global average pooling."
FAMILIES = (
    Family(
        "voc07_svm",
        "VOC07 SVM",
        line="Best Layer is the layer whose features did best on test: 1 is the stem, 2 to 5 are the stages.",
        best_layer=True,
    ),
    Family("voc07_low_shot_svm", "VOC07 low-shot SVM"),
    Family("places205_low_shot_svm", "Places205 low-shot SVM"),
    Family(
        "linear_multihead",
        "Linear evaluation, Feature1 to Feature5",
        line="Maps are pooled to fixed sizes, without global average pooling.",
    ),
    Family("linear_avgpool", "Linear evaluation, AvgPool", line=_POOLED),
    Family("linear_stored", "Linear evaluation on stored features", line=_POOLED),
    Family("knn", "Nearest-neighbour classification", decimals=1, line=_POOLED),
)
SUMMARY = {"knn": "kNN", "linear_avgpool": "Linear", "voc07_svm": "VOC07 SVM"}


@dataclass(frozen=True)
class Group:
    """The records of one table. At least one, successful or failed."""

    records: tuple[StoredRecord, ...]
    failures: tuple[StoredRecord, ...]

    @property
    def example(self) -> Record:
        return (self.records or self.failures)[0].record

    @property
    def protocol(self) -> Protocol:
        return self.example.protocol.resolved

    @property
    def family(self) -> Family:
        matching = [family for family in FAMILIES if self.protocol.benchmark.startswith(family.prefix)]
        return matching[0] if matching else Family(self.protocol.benchmark, self.protocol.benchmark)

    @property
    def title(self) -> str:
        return f"{self.family.title}: {self.example.dataset.id}"

    @property
    def columns(self) -> tuple[str, ...]:
        """What a page shows; top-5 is in the CSV."""
        return tuple(column for column in self.protocol.columns if not column.endswith("top-5"))

    @property
    def decimals(self) -> int:
        """The few test items of the embedded data do not carry a second decimal."""
        if self.protocol.unit == "1":
            return 3
        return 1 if self.example.dataset.embedded else self.family.decimals

    @property
    def line(self) -> str:
        """Protocol, data, sizes, metric and selection in one line."""
        protocol, dataset = self.protocol, self.example.dataset
        unit = ", %" if protocol.unit == "%" else ""
        items = f"{dataset.test_items:,} test and {dataset.train_items:,} training items"
        direction = "higher" if protocol.higher_is_better else "lower"
        return (
            f"{self.example.protocol.id} on {dataset.id} ({items}, fingerprint {dataset.fingerprint[:8]}); "
            f"{protocol.metric}{unit}, {direction} is better; selection: {protocol.selection}."
        )


def grouped(records: Sequence[StoredRecord], failures: Sequence[StoredRecord]) -> list[Group]:
    """All groups in the order of a model-zoo page, what is in no family last."""
    keys = {_key(stored.record) for stored in (*records, *failures)}
    groups = [
        Group(
            tuple(stored for stored in records if _key(stored.record) == key),
            tuple(stored for stored in failures if _key(stored.record) == key),
        )
        for key in sorted(keys)
    ]
    places = {family: place for place, family in enumerate(FAMILIES)}
    return sorted(groups, key=lambda group: places.get(group.family, len(places)))


def _key(record: Record) -> tuple[str, ...]:
    """An edited protocol has another hash, and so a table of its own."""
    resolved = record.protocol.resolved
    return resolved.benchmark, record.dataset.id, resolved.id, record.dataset.fingerprint, resolved.content_sha256()

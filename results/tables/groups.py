"""Records that may stand in one table: same protocol, same version of the same data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from results.schema import Protocol, Record
from results.store import StoredRecord


@dataclass(frozen=True)
class Family:
    """The benchmarks whose name begins with `prefix`, in the order and number format of a model-zoo page.

    Attributes:
        cells: its protocols may be grids with a record of every cell, which the grid's own record sums up.
        outcomes: its harness keeps what happened to each test item.
    """

    prefix: str
    title: str
    decimals: int = 2
    line: str = ""
    best_layer: bool = False
    cells: bool = False
    outcomes: bool = True


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
    Family("semi_supervised_1pct", "Semi-supervised classification, 1% of the labels", cells=True),
    Family("semi_supervised_10pct", "Semi-supervised classification, 10% of the labels", cells=True),
    Family("finetune", "Fine-tuning", cells=True),
    Family("voc0712_det", "VOC07+12 detection", outcomes=False),
    Family("voc07_det", "VOC07 detection", outcomes=False),
    Family("coco_mask_rcnn", "COCO detection and instance segmentation", decimals=1, outcomes=False),
    Family("coco_", "COCO", decimals=1, outcomes=False),
    Family("lvis", "LVIS", decimals=1, outcomes=False),
    Family("cityscapes_mask_rcnn", "Cityscapes instance segmentation", decimals=1, outcomes=False),
    Family("voc12aug_fcn", "VOC2012 semantic segmentation"),
    Family("cityscapes_fcn", "Cityscapes semantic segmentation"),
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
        return family_of(self.protocol)

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


def family_of(protocol: Protocol) -> Family:
    """The first whose prefix fits; a benchmark of none is one of its own."""
    matching = [family for family in FAMILIES if protocol.benchmark.startswith(family.prefix)]
    return matching[0] if matching else Family(protocol.benchmark, protocol.benchmark)


def without_cells(records: Sequence[StoredRecord]) -> list[StoredRecord]:
    """Without the records of a grid's cells, where the record of the grid, which has their figures, is there.

    A cell's protocol is the grid's with one of its own values for each field that differs.
    """
    grids: dict[tuple[str, ...], list[Protocol]] = {}
    for stored in records:
        protocol = stored.record.protocol.resolved
        if not protocol.overrides and family_of(protocol).cells and stored.record.status == "ok":
            grids.setdefault(_asked_of(stored.record), []).append(protocol)
    return [
        stored
        for stored in records
        if not any(_is_cell(stored.record.protocol.resolved, g) for g in grids.get(_asked_of(stored.record), []))
    ]


def _is_cell(protocol: Protocol, grid: Protocol) -> bool:
    changed = {name: value for name, value in protocol.params.items() if value != grid.params.get(name)}
    return bool(changed) and all(
        isinstance(listed := grid.params.get(name), list | tuple)
        and isinstance(value, list | tuple)
        and len(value) == 1
        and value[0] in listed
        for name, value in changed.items()
    )


def _asked_of(record: Record) -> tuple[str, ...]:
    protocol, card = record.protocol.resolved, record.encoder
    about = protocol.benchmark, protocol.variant, str(protocol.revision), record.dataset.fingerprint
    return card.name, card.init or "", card.weights_sha256 or "", *about


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

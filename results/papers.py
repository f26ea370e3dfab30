"""The tables of the MoCo papers from published.csv, with records under the same protocols below the published rows.

The layout is data: which published figure belongs in which cell. A cell is empty if no source establishes its figure:
the MoCo v2 note prints its Tables 1 and 2 as images, six detection figures of its Table 1 are known from nowhere else,
and the curves over K are images too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from results.formats import Cell, Row, Table
from results.published import Figure
from results.rows import FULL, Entry
from results.store import StoredRecord
from results.tables import SPREAD_LINE, Section, score_cell

NOTE = "arXiv:2003.04297 (MoCo v2 note)"
NOTE_TABLES = "arXiv:2003.04297 Tables 1-2 (second-hand)"
PAPER = "arXiv:1911.05722 (second-hand)"
README = "facebookresearch/moco@7397dfe:README.md"
DETECTION = "facebookresearch/moco@7397dfe:detection/README.md"


@dataclass(frozen=True)
class PaperColumn:
    """A column: the figures of a benchmark and metric, from the first source that has them.

    `key` replaces `{}` in the model names of the rows.
    """

    title: str
    benchmark: str
    metrics: tuple[str, ...]
    sources: tuple[str, ...]
    dataset: str = ""
    key: str = ""


@dataclass(frozen=True)
class PaperRow:
    """A row: its label, the names of its model in the sources, and the texts of the descriptive columns."""

    label: str
    models: tuple[str, ...]
    about: tuple[str, ...] = ()
    epochs: float | None = None


@dataclass(frozen=True)
class PaperLayout:
    """A table. `about` are the titles of the descriptive columns; the first one is the title of the labels."""

    name: str
    title: str
    about: tuple[str, ...]
    columns: tuple[PaperColumn, ...]
    rows: tuple[PaperRow, ...]
    lines: tuple[str, ...] = ()
    decimals: int = 1


def _linear(title: str, source: str, metric: str = "top1", key: str = "") -> PaperColumn:
    return PaperColumn(title, "linear_avgpool", (metric,), (source,), key=key)


_VOC = "det_fasterrcnn_r50c4_24k_detectron2"
_TABLE_1 = (
    _linear("ImageNet top-1", NOTE_TABLES),
    PaperColumn("VOC AP50", _VOC, ("AP50_mean_5trials",), (DETECTION,)),
    PaperColumn("VOC AP", _VOC, ("AP_mean_5trials", "AP"), (DETECTION, NOTE_TABLES)),
    PaperColumn("VOC AP75", _VOC, ("AP75_mean_5trials",), (DETECTION,)),
)
_YES = "yes"
MOCO_V2 = (
    PaperLayout(
        "mocov2_table1",
        "MoCo v2, Table 1: ablation of MoCo baselines",
        ("Case", "MLP", "aug+", "cos", "Epochs"),
        _TABLE_1,
        (
            PaperRow("supervised", ("supervised", "supervised IN-1M"), ("", "", "", "")),
            PaperRow("MoCo v1", ("MoCo v1", "MoCo v1 IN-1M"), ("", "", "", "200"), 200),
            PaperRow("(a)", ("(a) MLP",), (_YES, "", "", "200"), 200),
            PaperRow("(b)", ("(b) aug+",), ("", _YES, "", "200"), 200),
            PaperRow("(c)", ("(c) MLP+aug+",), (_YES, _YES, "", "200"), 200),
            PaperRow("(d)", ("(d) MLP+aug+ +cos = MoCo v2", "MoCo v2 IN-1M"), (_YES, _YES, _YES, "200"), 200),
            PaperRow("(e)", ("(e) MLP+aug+ +cos = MoCo v2", "MoCo v2 IN-1M"), (_YES, _YES, _YES, "800"), 800),
        ),
        ("Empty cells: no source establishes the figure. VOC figures are means of 5 trials.",),
    ),
    PaperLayout(
        "mocov2_table2",
        "MoCo v2, Table 2: MoCo against SimCLR",
        ("Case", "Epochs", "Batch"),
        (_linear("ImageNet top-1", NOTE_TABLES, "top1 (Table 2)"),),
        tuple(
            PaperRow(method, (f"{method} batch{batch}",), (str(epochs), str(batch)), epochs)
            for method, epochs, batch in (
                ("MoCo v1", 200, 256),
                ("SimCLR", 200, 256),
                ("SimCLR", 200, 8192),
                ("MoCo v2", 200, 256),
                ("SimCLR", 1000, 4096),
                ("MoCo v2", 800, 256),
            )
        ),
        ("SimCLR's figures were measured under its own linear protocol.",),
    ),
    PaperLayout(
        "mocov2_table3",
        "MoCo v2, Table 3: memory and time on 8 V100 16G GPUs",
        ("Mechanism", "Batch"),
        (
            PaperColumn(
                "Memory per GPU, GB",
                "pretrain_cost_8xV100-16G",
                ("memory_GB_per_GPU", "memory_GB_per_GPU_estimated"),
                (NOTE,),
            ),
            PaperColumn("Time of 200 epochs, h", "pretrain_cost_8xV100-16G", ("hours_200ep",), (NOTE,)),
        ),
        (
            PaperRow("MoCo", ("MoCo batch256",), ("256",), 200),
            PaperRow("end-to-end", ("end-to-end batch256",), ("256",), 200),
            PaperRow("end-to-end", ("end-to-end batch4096",), ("4096",), 200),
        ),
        ("The memory at batch size 4096 is an estimate.",),
    ),
    PaperLayout(
        "mocov2_temperature",
        "MoCo v2: temperature with and without the MLP head",
        ("Head",),
        tuple(_linear(f"tau={tau}", NOTE, key=tau) for tau in ("0.07", "0.1", "0.2", "0.3", "0.4", "0.5")),
        (
            PaperRow("fc", ("MoCo v1 fc-head tau={}",), (), 200),
            PaperRow("MLP", ("MoCo v1 + MLP head tau={}",), (), 200),
        ),
        ("ImageNet linear classification, top-1 accuracy, 200 epochs.",),
    ),
    PaperLayout(
        "moco_trials",
        "MoCo: full trials of pretraining and probe",
        ("Model", "Epochs"),
        (
            _linear("mean", README, "top1_mean_5trials"),
            _linear("std", README, "top1_std_5trials"),
            *(_linear(f"trial {i}", README, f"top1_trial{i}") for i in range(1, 6)),
            _linear("released", README),
        ),
        (
            PaperRow("MoCo v1", ("MoCo v1", "MoCo v1 released ckpt b251726a"), ("200",), 200),
            PaperRow("MoCo v2", ("MoCo v2", "MoCo v2 released ckpt 59fd9945"), ("200",), 200),
            PaperRow("MoCo v2", ("MoCo v2 released ckpt a04e12f8",), ("800",), 800),
        ),
        ("ImageNet linear classification, top-1 accuracy.",),
    ),
)

_K = ("256", "512", "1024", "4096", "16384", "65536")
_INITIALISATIONS = ("random init", "supervised IN-1M", "MoCo IN-1M", "MoCo IG-1B")
_BOX_AND_MASK = tuple(f"{ap}_{kind}" for kind in ("box", "mask") for ap in ("AP", "AP50", "AP75"))
_VOC_COLUMNS = ("AP50", "AP", "AP75")


def _rows(*models: str) -> tuple[PaperRow, ...]:
    return tuple(PaperRow(model, (model,)) for model in models)


def _transfer(
    name: str,
    title: str,
    benchmark: str,
    metrics: Sequence[str],
    models: Sequence[str] = _INITIALISATIONS,
    dataset: str = "",
) -> PaperLayout:
    columns = tuple(PaperColumn(metric, benchmark, (metric,), (PAPER,), dataset) for metric in metrics)
    return PaperLayout(f"mocov1_{name}", f"MoCo v1: {title}", ("Pretraining",), columns, _rows(*models))


_BATCH_NORM = ("supervised IN-1M frozen BN", *(f"{model} tuned BN" for model in _INITIALISATIONS[1:]))
MOCO_V1 = (
    PaperLayout(
        "mocov1_queue",
        "MoCo v1, Figure 3: number of negatives K",
        ("Mechanism",),
        tuple(_linear(f"K={k}", PAPER, key=k) for k in _K),
        (
            PaperRow("MoCo", ("MoCo v1 K={} m=0.999", "MoCo v1 K={}"), (), 200),
            PaperRow("memory bank", ("memory bank K={}",), (), 200),
        ),
        (
            "ImageNet linear classification, top-1 accuracy. The paper shows curves; the cells hold the figures in "
            "its text.",
        ),
    ),
    PaperLayout(
        "mocov1_momentum",
        "MoCo v1: momentum m of the key encoder",
        ("Queue",),
        tuple(_linear(f"m={m}", PAPER, key=m) for m in ("0", "0.9", "0.99", "0.999", "0.9999")),
        (PaperRow("K=4096", ("MoCo v1 K=4096 m={}",), (), 200),),
        ("ImageNet linear classification, top-1 accuracy. Without momentum (m=0) the training diverges.",),
    ),
    PaperLayout(
        "mocov1_linear",
        "MoCo v1, Table 1: linear classification of methods and widths",
        ("Method and encoder",),
        (_linear("ImageNet top-1", PAPER),),
        (
            *_rows("InstDisc R50", "LocalAgg R50", "BigBiGAN R50", "CPC v2 R170 wider (303M)", "CMC R50w2xL+ab (188M)"),
            *_rows("AMDIM large (626M)"),
            PaperRow("MoCo R50", ("MoCo v1 K=65536",)),
            *_rows("MoCo RX50", "MoCo R50w2x (94M)", "MoCo R50w4x (375M)"),
        ),
        ("The figures of the other methods were measured under their own protocols.",),
    ),
    _transfer("voc0712", "VOC07+12 detection, Faster R-CNN C4, 24k", _VOC, _VOC_COLUMNS),
    _transfer(
        "mechanisms",
        "Table 3: mechanisms on VOC07+12 detection",
        _VOC,
        _VOC_COLUMNS,
        ("end-to-end (Table 3)", "memory bank (Table 3)", "MoCo IN-1M"),
    ),
    _transfer("voc07", "VOC07 trainval2007 detection", "det_fasterrcnn_r50c4 trainval2007", _VOC_COLUMNS),
    _transfer("coco_fpn_2x", "COCO, Mask R-CNN FPN, 2x", "det_maskrcnn_r50fpn_2x_detectron2", _BOX_AND_MASK),
    _transfer("coco_c4_2x", "COCO, Mask R-CNN C4, 2x", "det_maskrcnn_r50c4_2x_detectron2", _BOX_AND_MASK),
    _transfer("coco_fpn_1x", "COCO, Mask R-CNN FPN, 1x", "det_maskrcnn_r50fpn_1x_detectron2", ("AP_box",)),
    _transfer("coco_fpn_6x", "COCO, Mask R-CNN FPN, 6x", "det_maskrcnn_6x", ("AP_box",)),
    _transfer("coco_keypoints", "COCO keypoints", "keypoint_rcnn_r50fpn_2x", ("AP_kp",)),
    _transfer("coco_densepose", "COCO DensePose", "densepose_rcnn_r50fpn_s1x", ("AP75_dp",)),
    _transfer("lvis", "LVIS v0.5", "maskrcnn_r50fpn (supervised = frozen BN)", ("AP_mask",)),
    _transfer("lvis_1x", "LVIS v0.5, 1x", "maskrcnn_r50fpn_1x", _BOX_AND_MASK[3:], _BATCH_NORM),
    _transfer("lvis_2x", "LVIS v0.5, 2x", "maskrcnn_r50fpn_2x", _BOX_AND_MASK[3:], _BATCH_NORM),
    _transfer("cityscapes_instances", "Cityscapes instances", "cityscapes_instance_seg", ("AP50_mask",)),
    _transfer("cityscapes", "Cityscapes semantic", "fcn_semantic_seg", ("mIoU",), dataset="Cityscapes"),
    _transfer("voc2012", "VOC2012 semantic", "fcn_semantic_seg", ("mIoU",), dataset="VOC2012"),
    _transfer("inat18", "iNaturalist 2018, fine-tuned", "finetune_100ep", ("top1",)),
    _transfer(
        "imagenet_finetune",
        "ImageNet, fine-tuned end to end",
        "finetune_end_to_end",
        ("top1",),
        ("random init (scratch)", "MoCo IN-1M", "MoCo IG-1B"),
    ),
)
PAPERS = (*MOCO_V2, *MOCO_V1)


# ---- the tables


def paper_tables(figures: Sequence[Figure], records: Sequence[StoredRecord] = ()) -> dict[str, Table]:
    """The tables with at least one figure, by name.

    Args:
        figures: published figures, of all sources or of some.
        records: an encoder gets a row in a table if one of its records has the protocol of a column, on the full data
            set and without overrides.
    """
    section = Section(records, FULL)
    tables = {}
    for layout in PAPERS:
        table = _table(layout, figures, section)
        if table is not None:
            tables[layout.name] = table
    return tables


def _table(layout: PaperLayout, figures: Sequence[Figure], section: Section) -> Table | None:
    found = [{column.title: _figure(column, row, figures) for column in layout.columns} for row in layout.rows]
    used = [figure for cells in found for figure in cells.values() if figure is not None]
    if not used:
        return None
    sources = list(dict.fromkeys(figure.source for figure in used))
    rows = []
    for row, cells in zip(layout.rows, found, strict=True):
        if not any(cells.values()):
            continue
        about = tuple(Cell(text=text) for text in row.about)
        numbers = dict.fromkeys(sources.index(figure.source) + 1 for figure in cells.values() if figure)
        rows.append(Row(row.label, (*about, *(_printed(figure) for figure in cells.values())), tuple(sorted(numbers))))
    measured = [own for entry in section.entries if (own := _measured(layout, entry, found, section)) is not None]
    return Table(
        layout.title,
        (*layout.lines, *([SPREAD_LINE] if measured else [])),
        (*layout.about, *(column.title for column in layout.columns)),
        (*rows, *measured),
        layout.decimals,
        sources=tuple(sources),
    )


def _figure(column: PaperColumn, row: PaperRow, figures: Sequence[Figure]) -> Figure | None:
    models = [model.replace("{}", column.key) for model in row.models]
    for source in column.sources:
        for figure in figures:
            if (
                figure.source == source
                and figure.model in models
                and figure.benchmark == column.benchmark
                and figure.metric in column.metrics
                and (row.epochs is None or figure.epochs in (None, row.epochs))
                and column.dataset in ("", figure.dataset)
            ):
                return figure
    return None


def _printed(figure: Figure | None) -> Cell:
    return Cell() if figure is None else Cell(figure.number, text=figure.text)


def _measured(
    layout: PaperLayout, entry: Entry, found: Sequence[dict[str, Figure | None]], section: Section
) -> Row | None:
    """The row of one encoder under the protocols of the columns; None if it has no score there."""
    records = [stored for group in section.groups for stored in entry.records(group.records)]
    cells, protocols = [], []
    for column in layout.columns:
        figures = [figure for cells_of_row in found if (figure := cells_of_row[column.title]) is not None]
        own = _under(records, figures)
        place = next((figure.place for figure in figures if figure.place), None)
        cells.append(score_cell(section.cache, own, place.column) if own and place else Cell())
        protocols += [stored.record.protocol.id for stored in own]
    if all(cell.value is None for cell in cells):
        return None
    about = (", ".join(dict.fromkeys(protocols)), *[""] * len(layout.about))[: len(layout.about) - 1]
    label = f"{entry.label}, measured" + ("" if about else f" under {', '.join(dict.fromkeys(protocols))}")
    return Row(label, (*(Cell(text=text) for text in about), *cells))


def _under(records: Sequence[StoredRecord], figures: Sequence[Figure]) -> list[StoredRecord]:
    """Records comparable with the figures of a column, of one protocol."""
    fit = [
        stored
        for stored in records
        if stored.record.dataset.id == stored.record.protocol.resolved.dataset
        and any(figure.comparable(stored.record.protocol.id) for figure in figures)
    ]
    return [stored for stored in fit if stored.record.protocol.id == fit[0].record.protocol.id]

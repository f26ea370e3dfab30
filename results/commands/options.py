"""The commands of `python -m results`, as tyro reads them. Light: nothing here loads numpy, pydantic or pandas."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

LOCAL, COMMITTED = Path("work/records"), Path("results/records")
Format = Literal["markdown", "csv", "latex"]


@dataclass(frozen=True)
class Tables:
    """Turns records into tables: prints them, or writes a page and the table of a README.

    Attributes:
        records: folder of the records.
        out: file to write the page to, instead of the terminal.
        format: markdown and latex are pages; csv has one row per record and column at full precision.
        rows: embedded or full data sets only. A csv never holds both.
        encoder: names of encoders, or patterns; all without.
        benchmark: names of benchmarks, or protocol ids, or patterns of them.
        source: where the weights came from, as their cards say, or patterns.
        readme: file whose text between the table markers is replaced by the summary.
        check: write nothing; exit with 1 where --out or --readme differs from what the records give.
        dry_run: say what would be read and written, and stop.
    """

    records: Path = LOCAL
    out: Path | None = None
    format: Format = "markdown"
    rows: Literal["all", "embedded", "full"] = "all"
    encoder: tuple[str, ...] = ("*",)
    benchmark: tuple[str, ...] = ("*",)
    source: tuple[str, ...] = ("*",)
    readme: Path | None = None
    check: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class ZooPage:
    """The page that a model zoo shows of an encoder, or the published pages from published.csv alone.

    Attributes:
        encoder: names of encoders, or patterns; several become rows of the same tables.
        records: folder of the records.
        out: file to write to, instead of the terminal; with --published the folder of the pages.
        format: markdown, latex, or csv with one row per cell.
        benchmark: names of benchmarks, or protocol ids, or patterns of them.
        published: write the page of every source that --source chooses.
        source: with --published, the sources of published.csv, or patterns; else of the figures to set beside.
        against: published models, or patterns, to set beside; without, what the encoder's card says it is.
        weights: checkpoint that the page offers, for its size and sha256.
    """

    encoder: tuple[str, ...] = ()
    records: Path = LOCAL
    out: Path | None = None
    format: Format = "markdown"
    benchmark: tuple[str, ...] = ("*",)
    published: bool = False
    source: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    weights: Path | None = None


@dataclass(frozen=True)
class PaperTables:
    """The MoCo papers' tables from published.csv, with what was measured under the same protocols.

    Attributes:
        records: folder of the records; without, the published figures alone.
        encoder: names of encoders, or patterns; all without.
        source: sources of published.csv, or patterns.
        out: folder, a file per table; without, the terminal.
        format: markdown, latex, or csv with one row per cell.
    """

    records: Path | None = None
    encoder: tuple[str, ...] = ("*",)
    source: tuple[str, ...] = ("*",)
    out: Path | None = None
    format: Format = "markdown"


@dataclass(frozen=True)
class PublishedFigures:
    """The published figures, each with the protocol and column that it belongs to, or the reason why to none.

    Attributes:
        source: sources of published.csv, or patterns.
        encoder: names of models, or patterns.
        benchmark: names of benchmarks there, or protocol ids, or patterns.
        out: file to write to, instead of the terminal.
        format: markdown, latex, or csv.
    """

    source: tuple[str, ...] = ("*",)
    encoder: tuple[str, ...] = ("*",)
    benchmark: tuple[str, ...] = ("*",)
    out: Path | None = None
    format: Format = "csv"


@dataclass(frozen=True)
class PublishRecords:
    """Copies records of this machine to the committed ones, and says what it left out.

    Attributes:
        records: folder of the local records.
        out: folder of the published records.
        encoder: names of encoders, or patterns; all without.
        dry_run: say what would be copied, and stop.
    """

    records: Path = LOCAL
    out: Path = COMMITTED
    encoder: tuple[str, ...] = ("*",)
    dry_run: bool = False


@dataclass(frozen=True)
class Diff:
    """Encoder A against encoder B, or one encoder under two commits, for all they were both measured in.

    Attributes:
        a: encoder name, or a row's label, or a pattern; NAME@COMMIT takes the records of one commit. Several encoders
            count with their mean.
        b: likewise.
        records: folder of the records, or several, as before and after a change.
        benchmark: names of benchmarks, or protocol ids, or patterns of them.
        out: file to write to, instead of the terminal.
        format: markdown, latex, or csv with one row per cell.
    """

    a: tyro.conf.Positional[str]
    b: tyro.conf.Positional[str]
    records: tuple[Path, ...] = (LOCAL,)
    benchmark: tuple[str, ...] = ("*",)
    out: Path | None = None
    format: Format = "markdown"


@dataclass(frozen=True)
class Lint:
    """Checks model-zoo pages against the records and published.csv. Exit code 1 where a figure is contradicted.

    Attributes:
        pages: markdown files.
        records: folder of the records.
    """

    pages: tyro.conf.Positional[tuple[Path, ...]]
    records: Path = COMMITTED


@dataclass(frozen=True)
class Report:
    """Writes everything that the records say as one HTML file that needs no network.

    Attributes:
        records: folder of the records.
        out: the file.
        pretrain: folder with the runs of pretraining, whose logs become curves; one that is not there has none.
        dry_run: say what would be read and written, and stop.
    """

    records: Path = LOCAL
    out: Path = Path("work/report.html")
    pretrain: Path = Path("work/pretrain")
    dry_run: bool = False


@dataclass(frozen=True)
class Explain:
    """Why two protocols of one benchmark give different scores: what each field that they differ in contributes.

    `python -m benchmarks explain` measures the protocols in between. The question is kept beside the records, and the
    report answers it too.

    Attributes:
        a: protocol id, as knn.mmselfsup@1.
        b: likewise.
        records: folder of the records.
        encoder: names of encoders, or patterns; all without.
        column: one that both protocols have; without, A's primary one.
        out: file to write to, instead of the terminal.
        picture: file for the waterfall.
        format: markdown, latex, or csv with one row per cell.
    """

    a: tyro.conf.Positional[str]
    b: tyro.conf.Positional[str]
    records: Path = LOCAL
    encoder: tuple[str, ...] = ("*",)
    column: str | None = None
    out: Path | None = None
    picture: Path | None = None
    format: Format = "markdown"


@dataclass(frozen=True)
class Correlations:
    """Rank correlations of every two columns over published.csv and the records: which number predicts which.

    Attributes:
        records: folder of the records.
        embedded: of the records on the embedded data, and those alone.
        columns: one column of each protocol, or all of them.
        out: file to write to, instead of the terminal.
        picture: file for a heat map of the pairs with five encoders or more.
        format: markdown, latex, or csv with one row per cell.
    """

    records: Path = COMMITTED
    embedded: bool = False
    columns: Literal["headline", "all"] = "headline"
    out: Path | None = None
    picture: Path | None = None
    format: Format = "markdown"


@dataclass(frozen=True)
class Pictures:
    """Draws what the records give: score by layer, kNN against k, low-shot mAP against k; and a table per class.

    Attributes:
        out: folder of the pictures and of per_class.md, below it one folder for the embedded and one for full data.
        records: folder of the records.
        encoder: names of encoders, or patterns; all without.
        benchmark: names of benchmarks, or protocol ids, or patterns of them.
    """

    out: Path
    records: Path = LOCAL
    encoder: tuple[str, ...] = ("*",)
    benchmark: tuple[str, ...] = ("*",)


AnyCommand = (
    Report
    | Correlations
    | Explain
    | Lint
    | Tables
    | ZooPage
    | PaperTables
    | PublishedFigures
    | PublishRecords
    | Diff
    | Pictures
)
COMMANDS = (
    Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Correlations, tyro.conf.subcommand("correlations")]
    | Annotated[Explain, tyro.conf.subcommand("explain")]
    | Annotated[Lint, tyro.conf.subcommand("lint")]
    | Annotated[Tables, tyro.conf.subcommand("tables")]
    | Annotated[ZooPage, tyro.conf.subcommand("zoo-page")]
    | Annotated[PaperTables, tyro.conf.subcommand("paper-tables")]
    | Annotated[PublishedFigures, tyro.conf.subcommand("published")]
    | Annotated[PublishRecords, tyro.conf.subcommand("publish-records")]
    | Annotated[Diff, tyro.conf.subcommand("diff")]
    | Annotated[Pictures, tyro.conf.subcommand("pictures")]
)

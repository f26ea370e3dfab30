"""Options of the commands of `python -m results`. Light: nothing here loads numpy, pydantic or pandas."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

LOCAL, COMMITTED = Path("work/records"), Path(__file__).with_name("records")
Format = Literal["markdown", "csv", "latex"]
A = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="A")]
B = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="B")]
# What several commands take, with its help.
Records = Annotated[Path, tyro.conf.arg(help="folder of the records.")]
RecordPaths = Annotated[
    tyro.conf.Positional[tuple[Path, ...]],
    tyro.conf.arg(metavar="RECORD", help=".json files of records, or folders of them."),
]
Out = Annotated[Path | None, tyro.conf.arg(help="file to write to instead of the terminal.")]
CellFormat = Annotated[Format, tyro.conf.arg(help="markdown, latex, or csv with one row per cell.")]
Encoders = Annotated[tuple[str, ...], tyro.conf.arg(help="names of encoders, or patterns; default: all.")]
Benchmarks = Annotated[
    tuple[str, ...], tyro.conf.arg(help="names of benchmarks, or protocol ids, or patterns of them.")
]


@dataclass(frozen=True)
class Tables:
    """Write tables of the records: to the terminal, to a page, or into a README.

    Attributes:
        out: file to write the page to, instead of the terminal.
        format: markdown and latex are pages; csv has one row per record and column at full precision.
        rows: only embedded, full, or your own data sets. A csv holds one of these kinds.
        source: origin of the weights as in their cards, or patterns.
        readme: file whose text between the table markers is replaced by the summary.
        check: write nothing; exit with 1 if --out or --readme differs from what the records give.
        dry_run: print what would be read and written, and stop.
    """

    records: Records = LOCAL
    out: Path | None = None
    format: Format = "markdown"
    rows: Literal["all", "embedded", "full", "own"] = "all"
    encoder: Encoders = ("*",)
    benchmark: Benchmarks = ("*",)
    source: tuple[str, ...] = ("*",)
    readme: Path | None = None
    check: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class ZooPage:
    """Write the model-zoo page of an encoder, or the published pages from published.csv alone.

    Attributes:
        encoder: names of encoders, or patterns; several become rows of the same tables.
        out: file to write to instead of the terminal; with --published the folder of the pages.
        published: write the page of every source that --source chooses.
        source: sources of published.csv, or patterns: of the published pages, or of the figures to compare with.
        against: published models, or patterns, to compare with; default: the model that the encoder's card names.
        weights: checkpoint that the page offers, to print its size and sha256.
    """

    encoder: tuple[str, ...] = ()
    records: Records = LOCAL
    out: Path | None = None
    format: CellFormat = "markdown"
    benchmark: Benchmarks = ("*",)
    published: bool = False
    source: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    weights: Path | None = None


@dataclass(frozen=True)
class PaperTables:
    """Write the tables of the MoCo papers from published.csv, with measured rows of the same protocols.

    Attributes:
        records: folder of the records; default: only the published figures.
        source: sources of published.csv, or patterns.
        out: folder for one file per table, instead of the terminal.
    """

    records: Path | None = None
    encoder: Encoders = ("*",)
    source: tuple[str, ...] = ("*",)
    out: Path | None = None
    format: CellFormat = "markdown"


@dataclass(frozen=True)
class PublishedFigures:
    """List the published figures, each with its protocol and column, or the reason why it has none.

    Attributes:
        source: sources of published.csv, or patterns.
        encoder: names of models, or patterns.
        benchmark: names of benchmarks there, or protocol ids, or patterns.
        format: markdown, latex, or csv.
    """

    source: tuple[str, ...] = ("*",)
    encoder: tuple[str, ...] = ("*",)
    benchmark: tuple[str, ...] = ("*",)
    out: Out = None
    format: Format = "csv"


@dataclass(frozen=True)
class PublishRecords:
    """Copy records of this machine to the committed ones, and list those left out.

    Attributes:
        records: folder of the local records.
        out: folder of the published records.
        overrides: copy the records of changed protocols, too: of --set, and the steps that `explain` measured.
        dry_run: print what would be copied, and stop.
    """

    records: Path = LOCAL
    out: Path = COMMITTED
    encoder: Encoders = ("*",)
    overrides: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class Diff:
    """Compare two encoders, or one encoder at two commits, in everything that both were measured in.

    Attributes:
        a: encoder name, or a row's label, or a pattern; NAME@COMMIT takes the records of one commit. Several encoders
            count with their mean.
        b: the other encoder, given in the same way.
        records: folders of the records, for example before and after a change.
    """

    a: A
    b: B
    records: tuple[Path, ...] = (LOCAL,)
    benchmark: Benchmarks = ("*",)
    out: Out = None
    format: CellFormat = "markdown"


@dataclass(frozen=True)
class Lint:
    """Check model-zoo pages against the records and published.csv.

    The exit code is 0 if all figures agree, 1 if one is contradicted, 2 if the input cannot be read, and 3 if a page
    has no figure that could be checked.

    Attributes:
        pages: files with tables in markdown, HTML, or plain text with tabs or blanks between the columns.
    """

    pages: tyro.conf.Positional[tuple[Path, ...]]
    records: Records = COMMITTED


@dataclass(frozen=True)
class Report:
    """Write all tables and figures of the records as one HTML file that needs no network.

    Attributes:
        out: the file.
        pretrain: folder with pretraining runs, whose logs become curves.
        dry_run: print what would be read and written, and stop.
    """

    records: Records = LOCAL
    out: Path = Path("work/report.html")
    pretrain: Path = Path("work/pretrain")
    dry_run: bool = False


@dataclass(frozen=True)
class Explain:
    """Explain why two protocols of one benchmark give different scores, field by field.

    `encoder-bench explain` measures the protocols in between. The question is kept beside the records, and the
    report answers it too.

    Attributes:
        a: protocol id, such as knn.mmselfsup@1.
        b: the other protocol id.
        column: one that both protocols have; default: the primary column of A.
        together: fields that were switched together, as iterations,steps; `encoder-bench explain` prints them.
        picture: file for the waterfall.
    """

    a: A
    b: B
    records: Records = LOCAL
    encoder: Encoders = ("*",)
    column: str | None = None
    together: tuple[str, ...] = ()
    out: Out = None
    picture: Path | None = None
    format: CellFormat = "markdown"


@dataclass(frozen=True)
class Correlations:
    """Compute rank correlations of all pairs of columns over published.csv and the records.

    Attributes:
        embedded: use only the records on the embedded data.
        columns: one column of each protocol, or all; cheap sets every label-free measure, kNN and class means against
            one column of each other protocol, cheap-all against all their columns.
        picture: file for a heat map of the pairs with five encoders or more.
    """

    records: Records = COMMITTED
    embedded: bool = False
    columns: Literal["headline", "all", "cheap", "cheap-all"] = "headline"
    out: Out = None
    picture: Path | None = None
    format: CellFormat = "markdown"


@dataclass(frozen=True)
class Pictures:
    """Draw scores by layer, kNN against k and low-shot mAP against k, and write tables per class.

    Attributes:
        out: folder of the pictures and of per_class.md, with one folder below it for each kind of data.
    """

    out: Path
    records: Records = LOCAL
    encoder: Encoders = ("*",)
    benchmark: Benchmarks = ("*",)


@dataclass(frozen=True)
class Export:
    """Export records: Hugging Face model-index or .eval_results, Every Eval Ever, or a model card.

    Attributes:
        to: the format; model-card is a README.md with model-index in its front matter.
        out: folder to write to.
        source_url: where readers find the records, as the address of a pull request.
        source_name: what to call that place; for Every Eval Ever the organisation that measured.
        hub_dataset: data set of the Hugging Face Hub, as OWNER/NAME; eval-results needs it.
        hub_task: task of that data set's benchmark; eval-results needs it.
        developer: who made the encoder.
        relationship: of who measured to who made the encoder.
    """

    records: RecordPaths
    to: Literal["model-index", "eval-results", "every-eval-ever", "model-card"] = "model-card"
    out: Path = Path("work/export")
    source_url: str | None = None
    source_name: str | None = None
    hub_dataset: str | None = None
    hub_task: str | None = None
    developer: str = "unknown"
    relationship: Literal["first_party", "third_party", "collaborative", "other"] = "third_party"


@dataclass(frozen=True)
class Verify:
    """Recompute scores from the outcomes of records, check all hashes, and refuse records that do not match.

    The exit code is 0 if every record is right, and 1 if one is refused.

    Attributes:
        base: git revision, such as main, whose records in the folders must not be deleted, only replaced by newer ones.
    """

    records: RecordPaths
    base: str | None = None


@dataclass(frozen=True)
class Board:
    """Write a static site that ranks the encoders of a folder of records, in groups that cannot be told apart.

    Attributes:
        out: folder of the site.
    """

    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    records: Records = COMMITTED


GROUPS: dict[str, dict[str, type[Any]]] = {
    "Measured": {"tables": Tables, "zoo-page": ZooPage, "pictures": Pictures, "report": Report, "board": Board},
    "Published": {"published": PublishedFigures, "paper-tables": PaperTables, "lint": Lint},
    "Compared": {"diff": Diff, "explain": Explain, "correlations": Correlations},
    "Committed": {"publish-records": PublishRecords, "verify": Verify},
    "Exchanged": {"export": Export},
}

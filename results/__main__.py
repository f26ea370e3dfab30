"""`python -m results tables|publish-records|gain`: what was measured, as pages that nobody typed."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:  # numpy, pydantic and pandas are loaded when a command runs, not for --help
    from results.store import BadRecord, StoredRecord

LOCAL, PUBLISHED = Path("work/records"), Path("results/records")


@dataclass(frozen=True)
class Tables:
    """Turns records into tables: prints them, or writes a page and the table of a README.

    Attributes:
        records: folder of the records.
        out: file to write the page to, instead of the terminal.
        format: markdown and latex are pages; csv has one row per record and column at full precision.
        rows: embedded or full data sets only. A csv never holds both.
        readme: file whose text between the table markers is replaced by the summary.
        check: write nothing; exit with 1 where --out or --readme differs from what the records give.
        dry_run: say what would be read and written, and stop.
    """

    records: Path = LOCAL
    out: Path | None = None
    format: Literal["markdown", "csv", "latex"] = "markdown"
    rows: Literal["all", "embedded", "full"] = "all"
    readme: Path | None = None
    check: bool = False
    dry_run: bool = False


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
    out: Path = PUBLISHED
    encoder: tuple[str, ...] = field(default=("*",))
    dry_run: bool = False


@dataclass(frozen=True)
class GainOf:
    """The paired gain of encoder A over encoder B with its 95 % interval, for all they were both measured in.

    Attributes:
        a: encoder name or pattern, as in the tables; several count with their mean.
        b: likewise.
        records: folder of the records.
    """

    a: tyro.conf.Positional[str]
    b: tyro.conf.Positional[str]
    records: Path = LOCAL


Command = (
    Annotated[Tables, tyro.conf.subcommand("tables")]
    | Annotated[PublishRecords, tyro.conf.subcommand("publish-records")]
    | Annotated[GainOf, tyro.conf.subcommand("gain")]
)


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; 2 and one sentence on stderr where it cannot work."""
    command: Tables | PublishRecords | GainOf = tyro.cli(
        Command, args=arguments, prog="python -m results", description=__doc__
    )
    from results.store import RecordsError

    try:
        if isinstance(command, Tables):
            return _tables(command)
        return _publish(command) if isinstance(command, PublishRecords) else _gain(command)
    except (RecordsError, OSError) as error:
        sys.stderr.write(f"results: {error}\n")
        return 2


def _tables(options: Tables) -> int:
    from results.model_zoo import readme_block, with_block
    from results.store import RecordsError, replace_file

    if options.check and options.out is None and options.readme is None:
        raise RecordsError("--check compares a file with the records: name it with --out or --readme")
    records, bad = _read(options.records)
    if options.rows != "all":
        records = [s for s in records if s.record.dataset.embedded == (options.rows == "embedded")]
    if options.dry_run:
        targets = [str(path) for path in (options.out, options.readme) if path is not None] or ["the terminal"]
        size = sum(stored.path.stat().st_size for stored in records) / 2**20
        sys.stdout.write(
            f"would read {len(records)} records ({size:.1f} MiB) and leave out {len(bad)} unreadable files below "
            f"{options.records}, and write {' and '.join(targets)}: seconds of bootstrap, no further disk\n"
        )
        return 0
    wanted: dict[Path, str] = {}
    if options.readme is not None:
        text = options.readme.read_text(encoding="utf-8")
        wanted[options.readme] = with_block(text, readme_block(records), options.readme.name)
    if options.out is not None or options.readme is None:
        page = _page(options, records, bad)
        if options.out is None:
            sys.stdout.write(page)
        else:
            wanted[options.out] = page
    for found in bad:
        sys.stderr.write(f"results: left out {found.path}: {found.reason}\n")

    stale = [path for path, text in wanted.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    for path in wanted:
        if options.check:
            state = "differs from" if path in stale else "is"
            sys.stderr.write(f"results: {path} {state} what the records in {options.records} give\n")
        else:
            if path in stale:
                replace_file(path, wanted[path].encode())
            sys.stderr.write(f"results: {'wrote' if path in stale else 'unchanged:'} {path}\n")
    return 1 if options.check and stale else 0


def _page(options: Tables, records: list[StoredRecord], bad: list[BadRecord]) -> str:
    from results.model_zoo import latex_page, markdown_page
    from results.store import RecordsError

    if options.format == "markdown":
        return markdown_page(records, bad, options.records)
    if options.format == "latex":
        return latex_page(records)
    if len({stored.record.dataset.embedded for stored in records}) > 1:
        raise RecordsError(
            f"{options.records} holds rows of the embedded data and of full data sets, which never share a table: "
            "choose with --rows embedded or --rows full"
        )
    from results.frame import frame

    return frame(records).to_csv(index=False, lineterminator="\n")


def _publish(options: PublishRecords) -> int:
    from results.publish import publish

    _read(options.records)
    done = publish(options.records, options.out, options.encoder, dry_run=options.dry_run)
    for path in done.replaced:
        sys.stdout.write(f"removed, because a newer record took its place: {path}\n")
    for path, reason in done.left_out:
        sys.stdout.write(f"left out {path}: {reason}\n")
    for path in done.copied:
        sys.stdout.write(f"published {path}\n")
    would = " (nothing was written)" if options.dry_run else ""
    sys.stdout.write(
        f"{len(done.copied)} published, {len(done.unchanged)} there already, {len(done.replaced)} removed, "
        f"{len(done.left_out)} left out, in {options.out}{would}\n"
    )
    return 0


def _gain(options: GainOf) -> int:
    from results.gains import gain_between, require_known
    from results.model_zoo import HEADINGS, sections
    from results.render import markdown
    from results.store import RecordsError

    found = sections(_read(options.records)[0])
    for pattern in (options.a, options.b):
        require_known(found, pattern)
    tables = [(s, table) for s in found if (table := gain_between(s, options.a, options.b)) is not None]
    if not tables:
        raise RecordsError(f"{options.a} and {options.b} have no protocol and data in common with outcomes per item")
    for section, table in tables:
        sys.stdout.write(f"## {HEADINGS[section.embedded][0]}\n\n{markdown(table)}\n")
    return 0


def _read(root: Path) -> tuple[list[StoredRecord], list[BadRecord]]:
    from results.store import RecordsError, read_records

    if not root.is_dir():
        raise RecordsError(f"no folder of records at {root}: run a benchmark first, or name another with --records")
    return read_records(root)


if __name__ == "__main__":
    sys.exit(main())

"""What each command of `python -m results` does."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from results.commands.files import SUFFIX, chosen_records, differs, formatted, name_bad, put, read, read_text, write
from results.commands.options import (
    AnyCommand,
    Correlations,
    Diff,
    Explain,
    Format,
    Lint,
    PaperTables,
    Pictures,
    PublishedFigures,
    PublishRecords,
    Report,
    Tables,
    ZooPage,
)
from results.commands.questions import correlations_command, explain_command, lint_command, report_command
from results.errors import InputError
from results.formats import Cell, Row, Table
from results.published import Figure, chosen, figures
from results.store import BadRecord, StoredRecord
from results.zoo_page import Page

PUBLISHED_PAGES = ("MoCo v2 page *",)


def run(command: AnyCommand) -> int:
    """Returns the exit code.

    Raises:
        InputError: what the user gave cannot be used.
        OSError: a file cannot be read or written.
    """
    match command:
        case Report():
            return report_command(command)
        case Correlations():
            return correlations_command(command)
        case Explain():
            return explain_command(command)
        case Lint():
            return lint_command(command)
        case Tables():
            return _tables(command)
        case ZooPage():
            return _published_pages(command) if command.published else _zoo_page(command)
        case PaperTables():
            return _paper_tables(command)
        case PublishedFigures():
            return _figures(command)
        case PublishRecords():
            return _publish(command)
        case Diff():
            return _diff(command)
        case Pictures():
            return _pictures(command)


def _tables(options: Tables) -> int:
    from results.tables import readme_block, with_block

    if options.check and options.out is None and options.readme is None:
        raise InputError("--check compares a file with the records: name it with --out or --readme")
    found, bad = read(options.records)
    name_bad(bad)
    patterns = {"encoder": options.encoder, "benchmark": options.benchmark, "source": options.source}
    # Before there are records there is a page without rows.
    records = chosen_records(found, options.records, rows=options.rows, **patterns) if found else []
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
        wanted[options.readme] = with_block(read_text(options.readme), readme_block(records), options.readme.name)
    if options.out is not None or options.readme is None:
        page = _page(options, records, bad)
        if options.out is None:
            sys.stdout.write(page)
        else:
            wanted[options.out] = page

    stale = [path for path, text in wanted.items() if differs(path, text)]
    if not options.check:
        for path, text in wanted.items():
            write(path, text)
        return 0
    for path in wanted:
        state = "differs from" if path in stale else "is"
        sys.stderr.write(f"results: {path} {state} what the records in {options.records} give\n")
    return 1 if stale else 0


def _page(options: Tables, records: list[StoredRecord], bad: list[BadRecord]) -> str:
    from results.tables import latex_page, markdown_page

    if options.format == "markdown":
        return markdown_page(records, bad, options.records)
    if options.format == "latex":
        return latex_page(records)
    if len({stored.record.dataset.embedded for stored in records}) > 1:
        raise InputError(
            f"{options.records} holds rows of the embedded data and of full data sets, which never share a table: "
            "choose with --rows embedded or --rows full"
        )
    from results.formats import frame

    return frame(records).to_csv(index=False, lineterminator="\n")


def _published_pages(options: ZooPage) -> int:
    from results.zoo_page import file_name, published_page

    given = [name for name in ("encoder", "against", "weights") if getattr(options, name)]
    if given:
        raise InputError(f"--published writes pages of published.csv alone: leave --{' and --'.join(given)} out")
    sources = list(dict.fromkeys(f.source for f in chosen(figures(), source=options.source or PUBLISHED_PAGES)))
    if not sources:
        raise InputError(f"published.csv has no source {' or '.join(options.source)}")
    for source in sources:
        page = published_page(chosen(figures(), source=[source], benchmark=options.benchmark))
        text = _formatted_page(page, options.format)
        if options.out is None:
            sys.stdout.write(text)
        else:
            write(options.out / f"{file_name(source)}{SUFFIX[options.format]}", text)
    return 0


def _zoo_page(options: ZooPage) -> int:
    from results.zoo_page import measured_page

    if not options.encoder:
        raise InputError("name the encoder with --encoder, or say --published")
    found, bad = read(options.records)
    name_bad(bad)
    records = chosen_records(found, options.records, encoder=options.encoder, benchmark=options.benchmark)
    page = measured_page(records, _beside(options, records), options.weights)
    put(options.out, _formatted_page(page, options.format))
    return 0


def _beside(options: ZooPage, records: Sequence[StoredRecord]) -> list[Figure]:
    """The published figures that a page sets beside the measured ones."""
    source = options.source or ("*",)
    if not chosen(figures(), source=source):
        raise InputError(f"published.csv has no source {' or '.join(source)}")
    if options.against:
        against = chosen(figures(), source=source, model=options.against)
        if not against:
            raise InputError(f"published.csv has no model {' or '.join(options.against)}")
        return against
    cards = [stored.record.encoder for stored in records]
    models = {card.published_as for card in cards if card.published_as}
    known = {figure.model for figure in figures()}
    for model in sorted(models - known):
        near = ", ".join(get_close_matches(model, known, cutoff=0.5))
        hint = f"; near it are {near}" if near else ""
        sys.stderr.write(f"results: published.csv has no model {model}, which a card names{hint}\n")
    return [f for f in chosen(figures(), source=source) if f.model in models]


def _paper_tables(options: PaperTables) -> int:
    from results.papers import paper_tables

    records: list[StoredRecord] = []
    if options.records is not None:
        found, bad = read(options.records)
        name_bad(bad)
        records = chosen_records(found, options.records, encoder=options.encoder)
    elif options.encoder != ("*",):
        raise InputError("--encoder chooses among records: name their folder with --records")
    tables = paper_tables(chosen(figures(), source=options.source), records)
    if not tables:
        raise InputError(f"no table of the papers has a figure from {' or '.join(options.source)}")
    if options.out is None:
        sys.stdout.write(formatted(list(tables.values()), options.format))
        return 0
    for name, table in tables.items():
        write(options.out / f"{name}{SUFFIX[options.format]}", formatted([table], options.format))
    return 0


def _figures(options: PublishedFigures) -> int:
    found = chosen(figures(), source=options.source, model=options.encoder, benchmark=options.benchmark)
    if not found:
        raise InputError("no published figure matches")
    if options.format == "csv":
        from results.formats import figures_frame

        put(options.out, figures_frame(found).to_csv(index=False, lineterminator="\n"))
        return 0
    sources = list(dict.fromkeys(figure.source for figure in found))
    rows = [_figure_row(figure, sources.index(figure.source) + 1) for figure in found]
    columns = ("Model", "Epochs", "Benchmark", "Data", "Metric", "Value", "Protocol", "Column")
    put(options.out, formatted([Table("Published figures", (), columns, tuple(rows), sources=tuple(sources))],
                                 options.format))  # fmt: skip
    return 0


def _figure_row(figure: Figure, source: int) -> Row:
    epochs = "" if figure.epochs is None else f"{figure.epochs:g}"
    place = (figure.place.protocol, figure.place.column) if figure.place else (f"none: {figure.reason}", "")
    about = (epochs, figure.benchmark, figure.dataset, figure.metric)
    value = Cell(figure.number, text=figure.text)
    return Row(figure.model, (*(Cell(text=t) for t in about), value, *(Cell(text=t) for t in place)), (source,))


def _publish(options: PublishRecords) -> int:
    from results.publish import publish

    chosen_records(read(options.records)[0], options.records, encoder=options.encoder)
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


def _diff(options: Diff) -> int:
    from results.compare.diff import diff, side
    from results.tables import HEADINGS

    records: list[StoredRecord] = []
    for root in options.records:
        found, bad = read(root)
        records += found
        name_bad(bad)
    tables = diff(side(records, options.a), side(records, options.b), options.benchmark)
    if not tables:
        raise InputError(f"{options.a} and {options.b} have no protocol and data in common")
    if options.format == "markdown":
        parts = [f"## {HEADINGS[embedded][0]}\n\n{formatted([table], 'markdown')}" for embedded, table in tables]
        put(options.out, "\n".join(parts))
    else:
        put(options.out, formatted([table for _, table in tables], options.format))
    return 0


def _pictures(options: Pictures) -> int:
    from results.plots import write_figures

    found, bad = read(options.records)
    name_bad(bad)
    records = chosen_records(found, options.records, encoder=options.encoder, benchmark=options.benchmark)
    written, left_out = write_figures(records, options.out)
    for path, reason in left_out.items():
        sys.stderr.write(f"results: left out {path}: {reason}\n")
    if not written:
        raise InputError(f"no record in {options.records} matches that a picture or a table per class can show")
    for path in written:
        sys.stdout.write(f"wrote {path}\n")
    return 0


def _formatted_page(page: Page, form: Format) -> str:
    from results.zoo_page import latex_page, markdown_page

    if form == "csv":  # the heading says which rows are of the embedded data
        titled = [replace(table, title=f"{part.title}: {table.title}") for part in page.parts for table in part.tables]
        return formatted(titled, form)
    return markdown_page(page) if form == "markdown" else latex_page(page)

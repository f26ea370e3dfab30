"""What the commands of `python -m results` do: read records, select, and write tables, pages and pictures."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from results.errors import InputError, did_you_mean, without_control
from results.files import MAX_TEXT, read_text, write_file
from results.formats import (
    Cell,
    Table,
    csv_text,
    escape_markdown,
    frame,
    latex,
    markdown,
    sourced_table,
    tables_frame,
)
from results.options import (
    Board,
    Correlations,
    Diff,
    Explain,
    Export,
    Format,
    Lint,
    PaperTables,
    Pictures,
    PublishedFigures,
    PublishRecords,
    Report,
    Tables,
    Verify,
    ZooPage,
)
from results.published import Figure, chosen, figures, figures_frame
from results.rows import data_kind, encoder_names, matching, refuse_ambiguous
from results.store import BadRecord, StoredRecord, printable_path, read_records, record_files
from results.zoo_page import Page

SUFFIX: dict[Format, str] = {"markdown": ".md", "csv": ".csv", "latex": ".tex"}
NOTHING_CHECKED = 3  # exit code of `lint`
PUBLISHED_PAGES = ("MoCo v2 page *",)


def _tables(options: Tables) -> int:
    from results.tables import readme_block, with_block

    if options.check and options.out is None and options.readme is None:
        raise InputError("--check compares a file with the records; name the file with --out or --readme")
    found, bad = _read(options.records)
    _name_bad(bad)
    patterns = {"encoder": options.encoder, "benchmark": options.benchmark, "source": options.source}
    # Before there are records there is a page without rows.
    records = _chosen_records(found, options.records, rows=options.rows, **patterns) if found else []
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
        wanted[options.readme] = with_block(_read_text(options.readme), readme_block(records), options.readme.name)
    if options.out is not None or options.readme is None:
        page = _tables_page(options, records, bad)
        if options.out is None:
            sys.stdout.write(page)
        else:
            wanted[options.out] = page

    stale = [path for path, text in wanted.items() if _differs(path, text)]
    if not options.check:
        for path, text in wanted.items():
            _write(path, text)
        return 0
    for path in wanted:
        state = "differs from" if path in stale else "is"
        sys.stderr.write(f"results: {path} {state} what the records in {options.records} give\n")
    return 1 if stale else 0


def _tables_page(options: Tables, records: list[StoredRecord], bad: list[BadRecord]) -> str:
    from results.tables import latex_page, markdown_page

    if options.format == "markdown":
        return markdown_page(records, bad, options.records, rows=options.rows)
    if options.format == "latex":
        return latex_page(records)
    kinds = sorted({data_kind(stored.record).kind for stored in records})
    if len(kinds) > 1:
        raise InputError(
            f"{options.records} holds rows of several kinds of data ({', '.join(kinds)}), which never share a table: "
            f"choose one with {' or '.join(f'--rows {kind}' for kind in kinds)}"
        )
    return csv_text(frame(records))


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
            _write(options.out / f"{file_name(source)}{SUFFIX[options.format]}", text)
    return 0


def _zoo_page(options: ZooPage) -> int:
    if options.published:
        return _published_pages(options)
    from results.zoo_page import measured_page

    if not any(options.encoder):
        known = sorted({of[-1] for of in encoder_names(read_records(options.records)[0]).values()})
        holds = f"\nencoders in {options.records}: {', '.join(known)}" if known else ""
        raise InputError(f"name the encoder with --encoder, or give --published for the published pages{holds}")
    found = _records(options.records)
    records = _chosen_records(found, options.records, encoder=options.encoder, benchmark=options.benchmark)
    refuse_ambiguous(found, options.encoder)
    page = measured_page(records, _beside(options, records), options.weights)
    _put(options.out, _formatted_page(page, options.format))
    return 0


def _beside(options: ZooPage, records: Sequence[StoredRecord]) -> list[Figure]:
    """The published figures that a page compares the measured ones with."""
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
        hint = did_you_mean(model, known)
        sys.stderr.write(
            without_control(f"results: published.csv has no model {model}, which a card names{hint}") + "\n"
        )
    return [f for f in chosen(figures(), source=source) if f.model in models]


def _paper_tables(options: PaperTables) -> int:
    from results.published_tables import paper_tables

    records: list[StoredRecord] = []
    if options.records is not None:
        records = _chosen_records(_records(options.records), options.records, encoder=options.encoder)
    elif options.encoder != ("*",):
        raise InputError("--encoder chooses among records: name their folder with --records")
    tables = paper_tables(chosen(figures(), source=options.source), records)
    if not tables:
        raise InputError(f"no table of the papers has a figure from {' or '.join(options.source)}")
    if options.out is None:
        sys.stdout.write(_formatted(list(tables.values()), options.format))
        return 0
    for name, table in tables.items():
        _write(options.out / f"{name}{SUFFIX[options.format]}", _formatted([table], options.format))
    return 0


def _figures(options: PublishedFigures) -> int:
    found = chosen(figures(), source=options.source, model=options.encoder, benchmark=options.benchmark)
    if not found:
        raise InputError("no published figure matches")
    if options.format == "csv":
        _put(options.out, csv_text(figures_frame(found)))
        return 0
    columns = ("Model", "Epochs", "Benchmark", "Data", "Metric", "Value", "Protocol", "Column")
    rows = [(figure.model, _figure_cells(figure), [figure.source]) for figure in found]
    _put(options.out, _formatted([sourced_table("Published figures", columns, rows)], options.format))
    return 0


def _figure_cells(figure: Figure) -> tuple[Cell, ...]:
    place = (figure.place.protocol, figure.place.column) if figure.place else (f"none: {figure.reason}", "")
    about = (figure.epochs_text, figure.benchmark, figure.dataset, figure.metric)
    return (*(Cell(text=t) for t in about), figure.cell, *(Cell(text=t) for t in place))


def _publish(options: PublishRecords) -> int:
    from results.publish import publish

    _chosen_records(_read(options.records)[0], options.records, encoder=options.encoder)
    done = publish(options.records, options.out, options.encoder, overrides=options.overrides, dry_run=options.dry_run)
    removed, published = ("would remove", "would publish") if options.dry_run else ("removed", "published")
    for path in done.replaced:
        sys.stdout.write(f"{removed}, because a newer record takes its place: {path}\n")
    for path, reason in done.left_out:
        sys.stdout.write(without_control(f"left out {path}: {reason}") + "\n")
    for path in done.copied:
        sys.stdout.write(f"{published} {path}\n")
    would = " (nothing was written)" if options.dry_run else ""
    sys.stdout.write(
        f"{len(done.copied)} published, {len(done.unchanged)} there already, {len(done.replaced)} removed, "
        f"{len(done.left_out)} left out, in {options.out}{would}\n"
    )
    return 0


def _diff(options: Diff) -> int:
    from results.compare import diff, side

    if not (options.a and options.b):
        raise InputError("name two encoders to compare, as in: python -m results diff 'my encoder' 'another encoder'")
    records = [stored for root in options.records for stored in _records(root)]
    tables = diff(side(records, options.a), side(records, options.b), options.benchmark)
    if not tables:
        raise InputError(f"{options.a} and {options.b} have no protocol and data in common")
    if options.format == "markdown":
        parts = [f"## {escape_markdown(kind.title)}\n\n{_formatted([table], 'markdown')}" for kind, table in tables]
        _put(options.out, "\n".join(parts))
    else:
        _put(options.out, _formatted([table for _, table in tables], options.format))
    return 0


def _pictures(options: Pictures) -> int:
    from results.plots import write_figures

    found = _records(options.records)
    records = _chosen_records(found, options.records, encoder=options.encoder, benchmark=options.benchmark)
    written, left_out = write_figures(records, options.out)
    for path, reason in left_out.items():
        sys.stderr.write(without_control(f"results: left out {path}: {reason}") + "\n")
    if not written:
        raise InputError(f"no record in {options.records} matches that a picture or a table per class can show")
    for path in written:
        sys.stdout.write(f"wrote {path}\n")
    return 0


def _formatted_page(page: Page, form: Format) -> str:
    from results.zoo_page import zoo_latex, zoo_markdown

    if form == "csv":  # the heading says which rows are of the embedded data
        titled = [replace(table, title=f"{part.title}: {table.title}") for part in page.parts for table in part.tables]
        return _formatted(titled, form)
    return zoo_markdown(page) if form == "markdown" else zoo_latex(page)


def _report(options: Report) -> int:
    from results.explain import remembered
    from results.report import read_pretraining_logs, report_html

    records, bad = _read(options.records)
    logs, asked = read_pretraining_logs(options.pretrain), remembered(options.records)
    if options.dry_run:
        sys.stdout.write(
            f"would read {len(records)} records, leave out {len(bad)} unreadable files, draw {len(logs)} logs, and "
            f"write {options.out}: about a minute\n"
        )
        return 0
    _name_bad(bad)
    _write(options.out, report_html(records, bad, logs, figures(), asked))
    return 0


def _correlations(options: Correlations) -> int:
    from results import compare

    if options.picture is not None:
        _check_picture_file(options.picture)
    records = _records(options.records)
    values = compare.measured_values(records, embedded=options.embedded)
    if not options.embedded:
        values = compare.together(compare.published_values(figures()), values)
    runs = compare.checkpoint_runs(records)
    if options.columns in ("cheap", "cheap-all"):
        found = compare.cheap_correlations(values, runs, every_column=options.columns == "cheap-all")
    else:
        columns = compare.headlines(values) if options.columns == "headline" else sorted(values)
        found = compare.correlations(values, columns, runs)
    if not found:
        raise InputError("no two columns have three encoders in common")
    _put(options.out, _formatted([compare.correlation_table(found)], options.format))
    if (said := compare.remark(values)) is not None:
        sys.stderr.write(f"results: {said}\n")
    if options.picture is not None:
        drawn = [one for one in found if len(one.encoders) >= compare.MIN_ENCODERS]
        if not drawn:
            fewest = compare.MIN_ENCODERS
            raise InputError(f"no two columns have {fewest} encoders in common, so there is no heat map")
        compare.draw_heat_map(drawn, options.picture)
    return 0


def _explain(options: Explain) -> int:
    from results.explain import AskedPair, draw_waterfall, explanation_table, explanations, remember

    if options.picture is not None:
        _check_picture_file(options.picture)
    records = _records(options.records)
    refuse_ambiguous(records, options.encoder)
    own = matching(records, encoder=options.encoder)
    found = explanations(own, options.a, options.b, options.column, options.together)
    _put(options.out, _formatted([explanation_table(one) for one in found], options.format))
    if options.picture is not None:
        draw_waterfall(found, options.picture)
    try:
        question = AskedPair(options.a, options.b, options.column, options.encoder, options.together)
        if remember(options.records, question):
            sys.stderr.write(f"results: the report of {options.records} will show it\n")
    except OSError as error:
        sys.stderr.write(f"results: the report will not show it: {error}\n")
    return 0


def _board(options: Board) -> int:
    from results.board import site

    records, bad = _read(options.records)
    _name_bad(bad)
    pages = site(records, bad, figures())
    for name, text in pages.items():
        _write(options.out / name, text)
    for path in sorted(options.out.glob("*.html")):  # pages of records that are gone
        if Path(path.name) not in pages and path.name.startswith(("encoder-", "benchmark-")):
            path.unlink()
            sys.stderr.write(f"results: removed {path}\n")
    return 0


def _export(options: Export) -> int:
    from results.export import exported

    if not options.records:
        raise InputError("name a record to export: a .json file, or a folder of records")
    if options.source_name is not None and options.source_url is None and options.to != "every-eval-ever":
        raise InputError("--source-name needs --source-url: the formats of Hugging Face need an address for a source")
    found = record_files(options.records)
    _name_bad(bad for bad in found if isinstance(bad, BadRecord))
    files = exported([stored for stored in found if isinstance(stored, StoredRecord)], options)
    for path, text in files.items():
        _write(options.out / path, text)
    return 0


def verify_command(options: Verify, declared: Mapping[str, str] | None = None) -> int:
    """Print a line per record; 1 if one is refused. `declared` maps protocol ids to their hashes, see `verify`."""
    from results.publish import deleted_records, verify

    if not options.records:
        raise InputError("name a record to verify: a .json file, or a folder of records")
    refused = 0
    found = record_files(options.records)
    folders = [path for path in options.records if path.is_dir()]
    if options.base is not None:
        if not folders:
            raise InputError("--base finds what was deleted from a folder; name the folder of the records")
        kept = [stored for stored in found if isinstance(stored, StoredRecord)]
        found += [deleted for folder in folders for deleted in deleted_records(folder, options.base, kept)]
    for path in (path for folder in folders for path in sorted(folder.rglob("*.npz"))):
        # NAME.HASH.npz belongs to NAME.json.
        if not path.with_name(f"{path.name.rsplit('.', 2)[0]}.json").exists():
            found.append(BadRecord(path, "the record of these outcomes is missing; add its .json file"))
    for stored in found:
        verdict = verify(stored, declared)
        refused += bool(verdict.faults)
        sys.stdout.write("\n".join(map(without_control, printable_path(verdict.text).split("\n"))) + "\n")
    sys.stdout.write(f"{len(found) - refused} of {len(found)} records hold\n")
    return 1 if refused else 0


def _lint(options: Lint) -> int:
    from results.lint import lint, verdict_text

    records = _records(options.records)
    if not options.pages:
        raise InputError("name at least one page to check, for example results/MODEL_ZOO.md")
    verdicts = [(page, lint(page, records)) for page in options.pages]
    said = "".join(verdict_text(page, verdict) for page, verdict in verdicts)
    sys.stdout.write("\n".join(map(without_control, said.split("\n"))))
    if any(verdict.conflicts for _, verdict in verdicts):
        return 1
    return 0 if all(verdict.checked for _, verdict in verdicts) else NOTHING_CHECKED


def _formatted(tables: Sequence[Table], form: Format) -> str:
    if form == "csv":
        return csv_text(tables_frame(tables))
    return "\n".join((markdown if form == "markdown" else latex)(table) for table in tables)


def _put(out: Path | None, text: str) -> None:
    if out is None:
        sys.stdout.write(text)
    else:
        _write(out, text)


def _write(path: Path, text: str) -> None:
    """Write a file atomically; an unchanged file keeps its time."""
    stale = _differs(path, text)
    if stale:
        write_file(path, text.encode())
    sys.stderr.write(f"results: {'wrote' if stale else 'unchanged:'} {path}\n")


def _differs(path: Path, text: str) -> bool:
    """Whether a file is missing or holds another text."""
    return not path.is_file() or path.read_bytes() != text.encode()


def _read_text(path: Path) -> str:
    """Read a page that the user names.

    Raises:
        InputError: it is not there, or is not text.
        OSError: it cannot be read.
    """
    try:
        return read_text(path, MAX_TEXT)
    except FileNotFoundError as error:
        raise InputError(f"page not found: {path}; name a markdown file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text; name a markdown file") from error


def _chosen_records(
    found: Sequence[StoredRecord], root: Path, *, rows: str = "all", **patterns: Sequence[str]
) -> list[StoredRecord]:
    """Records that match all patterns (of `encoder`, `benchmark`, `source`), of one kind of data.

    Raises:
        InputError: no record matches.
    """
    if not found:
        raise InputError(f"no records in {root}; run a benchmark first, or name another folder with --records")
    records = matching(found, **patterns)
    if rows != "all":
        records = [stored for stored in records if data_kind(stored.record).kind == rows]
    if not records:
        names = {
            "encoder": {stored.record.encoder.name for stored in found},
            "benchmark": {stored.record.protocol.id for stored in found},
            "source": {stored.record.encoder.source for stored in found},
        }
        given = {name: " ".join(texts) for name, texts in patterns.items() if tuple(texts) != ("*",)}
        known = sorted(set().union(*(names[name] for name in given or ("encoder",))))
        given |= {"rows": rows} if rows != "all" else {}
        asked = " ".join(f"--{name} {text}" for name, text in given.items())
        raise InputError(f"no record matches {asked}; the records hold {', '.join(known)}")
    return records


def _check_picture_file(path: Path) -> None:
    """Check the extension of a picture before anything is computed or printed.

    Raises:
        InputError: there is no such format.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    if path.suffix and path.suffix.removeprefix(".") not in known:
        raise InputError(f"{path}: not a picture format\nknown extensions: {', '.join(sorted(known))}")


def _name_bad(bad: Iterable[BadRecord]) -> None:
    for found in bad:
        sys.stderr.write(without_control(f"results: left out {found.name()}: {found.reason}") + "\n")


def _records(root: Path) -> list[StoredRecord]:
    """The records of a folder; what is none is named on stderr."""
    records, bad = _read(root)
    _name_bad(bad)
    return records


def _read(root: Path) -> tuple[list[StoredRecord], list[BadRecord]]:
    if not root.is_dir():
        raise InputError(f"records folder not found: {root}; run a benchmark first, or name another with --records")
    return read_records(root)


_FUNCTIONS: dict[type, Callable[[Any], int]] = {
    Report: _report, Correlations: _correlations, Explain: _explain, Lint: _lint, Tables: _tables, ZooPage: _zoo_page,
    PaperTables: _paper_tables, PublishedFigures: _figures, PublishRecords: _publish, Diff: _diff, Pictures: _pictures,
    Board: _board, Export: _export, Verify: verify_command,
}  # fmt: skip


def run(command: object) -> int:
    """Run the command that the options describe, and return the exit code.

    Raises:
        InputError: what the user gave cannot be used.
        OSError: a file cannot be read or written.
    """
    return _FUNCTIONS[type(command)](command)

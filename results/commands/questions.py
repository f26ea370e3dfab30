"""The commands that ask something of the whole table: report, correlations, explain, lint."""

from __future__ import annotations

import sys

from results.commands.files import formatted, name_bad, picture_file, put, read, write
from results.commands.options import Correlations, Explain, Lint, Report
from results.errors import InputError
from results.published import figures
from results.rows import matching


def report_command(options: Report) -> int:
    from results.compare.explain import remembered
    from results.plots import read_pretraining_logs
    from results.report.page import report_html

    records, bad = read(options.records)
    logs, asked = read_pretraining_logs(options.pretrain), remembered(options.records)
    if options.dry_run:
        sys.stdout.write(
            f"would read {len(records)} records, leave out {len(bad)} unreadable files, draw {len(logs)} logs, and "
            f"write {options.out}: about a minute\n"
        )
        return 0
    name_bad(bad)
    write(options.out, report_html(records, bad, logs, figures(), asked))
    return 0


def correlations_command(options: Correlations) -> int:
    from results.compare import correlations as correlation
    from results.plots import draw_heat_map

    if options.picture is not None:
        picture_file(options.picture)
    records, bad = read(options.records)
    name_bad(bad)
    values = correlation.measured_values(records, embedded=options.embedded)
    if not options.embedded:
        values = correlation.together(correlation.published_values(figures()), values)
    chosen_columns = correlation.headlines(values) if options.columns == "headline" else sorted(values)
    found = correlation.correlations(values, chosen_columns)
    if not found:
        raise InputError("no two columns have three encoders in common")
    put(options.out, formatted([correlation.correlation_table(found)], options.format))
    if (said := correlation.remark(values)) is not None:
        sys.stderr.write(f"results: {said}\n")
    if options.picture is not None:
        drawn = [one for one in found if len(one.encoders) >= correlation.MIN_ENCODERS]
        if not drawn:
            fewest = correlation.MIN_ENCODERS
            raise InputError(f"no two columns have {fewest} encoders in common, so there is no heat map")
        draw_heat_map(drawn, options.picture)
    return 0


def explain_command(options: Explain) -> int:
    from results.compare.explain import Question, explanation_table, explanations, remember
    from results.plots import draw_waterfall

    if options.picture is not None:
        picture_file(options.picture)
    records, bad = read(options.records)
    name_bad(bad)
    found = explanations(matching(records, encoder=options.encoder), options.a, options.b, options.column)
    put(options.out, formatted([explanation_table(one) for one in found], options.format))
    if options.picture is not None:
        draw_waterfall(found, options.picture)
    try:
        if remember(options.records, Question(options.a, options.b, options.column, options.encoder)):
            sys.stderr.write(f"results: the report of {options.records} will show it\n")
    except OSError as error:
        sys.stderr.write(f"results: the report will not show it: {error}\n")
    return 0


def lint_command(options: Lint) -> int:
    from results.lint import lint, verdict_text

    records, bad = read(options.records)
    name_bad(bad)
    if not options.pages:
        raise InputError("name a page to check, as results/MODEL_ZOO.md")
    verdicts = [(page, lint(page, records)) for page in options.pages]
    sys.stdout.write("".join(verdict_text(page, verdict) for page, verdict in verdicts))
    return 1 if any(verdict.conflicts for _, verdict in verdicts) else 0

"""The page `docs/results/processors.md`: experiments that were run again on another processor."""

from __future__ import annotations

from collections.abc import Sequence

from report import render
from report.case_table import table_title
from report.compare import Agreement, Pair, agreements, tables_of
from report.differing import listed, other_settings
from report.experiment import Case, Experiment
from report.grid import MISSING, Cell, Grid, Row, number, score_cell, signed
from report.published import PAPER, load
from report.verdicts import Judgement, judgements

FOLDER = "elsewhere"  # of the kept scores of second runs, below docs/results
_NAMES = ("first", "second")


def _table(title: str, caption: str, header: Sequence[str], rows: list[Row], texts: int = 1) -> str:
    return render.markdown(Grid("", title, caption, tuple(header), tuple(rows), texts=texts))


def _row(*texts: object) -> Row:
    return Row(tuple(Cell(str(text)) for text in texts))


def _agreement(tables: Sequence[Agreement]) -> str:
    """Count the cells of every table that agree."""
    rows = []
    for what, of in (("means over worlds", [t.over_worlds for t in tables]), ("all", tables)):
        of = [table for table in of if table.cells]
        for table in of:
            rows.append(_counts(table.name, what, table))
        cells = [cell for table in of for cell in table.cells]
        if cells:
            rows.append(_counts("together", what, Agreement("", cells, [])))
    header = ("table", "which", "cells", "within one error", "within two", "equal to the byte")
    caption = (
        "Every value of the tables that has an error, and whether both runs agree within the two "
        "errors combined. Where nothing but chance differs, about 68 % agree within one error and "
        "95 % within two. Errors of means over worlds cover another training. Those of a single "
        "world are over its items, and those of Table 3 over draws of DAM's data: they do not."
    )
    return _table("Cells", caption, header, rows, texts=2)


def _counts(name: str, what: str, table: Agreement) -> Row:
    """Count a table's cells that agree, with their share within one error and within two."""
    count = len(table.cells)
    shares = [f"{n} ({100 * n / count:.1f} %)" for n in (table.within(1), table.within(2))]
    return _row(name, what, count, *shares, table.equal)


def _value(text: tuple[str, str]) -> Cell:
    value, error = (float(part) if part else None for part in text)
    return Cell(number(value), "" if error is None else number(error))


def _apart(tables: Sequence[Agreement]) -> str:
    """List the cells that do not agree within two errors, those furthest apart first."""
    means = [table.over_worlds for table in tables]
    shown = means if any(table.cells for table in means) else tables
    found: list[tuple[str, Pair]] = [(table.name, cell) for table in shown for cell in table.apart]
    found.sort(key=lambda entry: -entry[1].errors)
    rows = [
        Row((*_row(name, cell.row, cell.column).cells, _value(cell.first), _value(cell.second),
             Cell(f"{cell.errors:.1f}")))
        for name, cell in found
    ]  # fmt: skip
    caption = "Means over worlds (of one world: all cells) that do not agree within two errors."
    header = ("table", "row", "column", *_NAMES, "errors")
    return _table("Apart", caption, header, rows, texts=3)


def _averages(one: Case, two: Case) -> str:
    """Lay out both runs' averages, in the order of the first."""
    others = {model.id: model for model in two.all_models}
    rows = []
    for model in one.by_average(one.all_models):
        scores = one.average(model), two.average(others[model.id]) if model.id in others else None
        gap = scores[1].value - scores[0].value if scores[0] and scores[1] else None
        cells = Cell(model.label), *map(score_cell, scores)
        rows.append(Row((*cells, Cell(MISSING if gap is None else signed(gap)))))
    caption = f"Averages of {one.title}, in the order of the first run."
    header = ("model", *_NAMES, "second less first")
    return _table(table_title(one.table), caption, header, rows)


def _claims(one: Sequence[Judgement], two: Sequence[Judgement]) -> str:
    rows = []
    for first, second in zip(one, two, strict=True):
        words = [each.verdict if each.findings else MISSING for each in (first, second)]
        same = "yes" if words[0] == words[1] else "no"
        words.append(MISSING if MISSING in words else same)
        rows.append(_row(first.claim.id, first.claim.sentence, *words))
    caption = "The verdicts on the paper's claims in both runs, where both could judge."
    return _table("Claims", caption, ("claim", "sentence", *_NAMES, "same"), rows, texts=5)


def section(one: Experiment, two: Experiment, facts: Sequence[dict[str, str]]) -> str:
    """Compare two runs of one experiment.

    Args:
        one: The first.
        two: The other.
        facts: Of each run, what it is called and where and when it ran.

    Returns:
        Markdown.
    """
    found = agreements(tables_of(one), tables_of(two), _NAMES)
    about = [_row(name, *(each[name] for each in facts)) for name in facts[0]]
    others = {case.id: case for case in two.cases}
    judged = [judgements(experiment, load(PAPER)) for experiment in (one, two)]
    other = other_settings(one.config, two.config)
    warning = f"**Not the same experiment.** More than the processor differs: {listed(other)}.\n"
    parts = [
        f"## `{one.name}`\n",
        *([warning] if other else []),
        _table("Runs", "What was run where.", ("", *_NAMES), about, texts=3),
        _agreement(found),
        _apart(found),
        *(_averages(case, others[case.id]) for case in one.cases if case.id in others),
        _claims(*judged),
    ]
    return "\n".join(parts)

"""The paper's stated values and this experiment's, cell by cell."""

from __future__ import annotations

from collections.abc import Sequence

from report.averages import Score
from report.case_table import has_own_tasks, table_title
from report.experiment import Case, Experiment, is_generated
from report.grid import MISSING, Cell, Grid, Row, score_cell, signed
from report.published import Published
from report.verdicts import Judgement, sentences

_TABLE = "paper/hub.tsv"  # of the checkpoints that the paper merged
_BOTTLE = (
    "The scales differ: the paper's numbers are of {scale}. A score of tiny models on generated "
    "tasks neither confirms nor refutes them."
)
_OTHER = "The paper's numbers are of {scale}."
_STAND_INS = (
    " Scores here are partly of rows that only stand in for a benchmark's own, and do not compare "
    "with the paper's."
)


def _obstacle(experiment: Experiment, case: Case, column: str) -> str:
    """Say why a column's scores do not compare with the paper's; empty where they do."""
    config = experiment.config
    hub, base = config.get("hub") or {}, config["cases"][case.id].get("base") or {}
    columns = case.averaged if column == "Avg" else [c for c in case.columns if c.label == column]
    if not columns:
        return "no such column"
    tasks = {task for one in columns for task in one.tasks}
    limit = (config.get("evaluation") or {}).get("limit")
    reasons = {
        "generated tasks": any(map(is_generated, tasks)),
        "rows that stand in for the benchmark's": bool(tasks & case.stand_ins().keys()),
        # The rehearsal's are stand-ins too.
        "other models": not base.get("hub") or hub.get("table") != _TABLE or "stand_ins" in hub,
        f"{limit} items of each task": bool(limit),
    }
    found = [why for why, so in reasons.items() if so]
    return f"not comparable: {', '.join(found)}" if found else ""


def against(stated: float, ours: Score) -> tuple[float, str]:
    """Compare a score with a value as printed.

    Returns:
        Ours less the paper's, and ``within error`` where that is at most 1.96 standard errors of
        ours and half a unit of the last digit that the paper prints.
    """
    gap = ours.value - stated
    digits = len(f"{stated}".partition(".")[2])
    near = abs(gap) <= 1.96 * ours.stderr + 0.5 * 10**-digits
    return gap, "within error" if near else "different"


def values_grid(experiment: Experiment, published: Published) -> Grid:
    """Lay out every value that the paper states next to the score of each of our rows for it."""
    rows = []
    for case in experiment.cases:
        table = published.tables.get(case.table)
        models = {model.id: model for model in case.models}
        for row in table.rows.values() if table else ():
            for column, value in row.cells.items():
                for model in [models[id] for id in row.ours if id in models]:
                    named = (table_title(case.table), column, row.label, model.label)
                    # As printed in the paper: more decimals would be made up.
                    stated = Cell(str(value).removeprefix("0"))
                    score = case.score(model, column)
                    gap, verdict = MISSING, _obstacle(experiment, case, column)
                    if score and not verdict:
                        difference, verdict = against(value, score)
                        gap = signed(difference)
                    found = stated, score_cell(score), Cell(gap), Cell(verdict or model.status)
                    rows.append(Row((*map(Cell, named), *found), case.table))
    own = any(has_own_tasks(case) for case in experiment.cases)
    caption = (_BOTTLE if own else _OTHER).format(scale=published.scale)
    caption += _STAND_INS if any(case.stand_ins() for case in experiment.cases) else ""
    caption += (
        " A cell of the paper's tables that is not here is unknown to this suite. Within error: "
        "the difference is at most 1.96 standard errors of our score, and what the paper's "
        "rounding hides; the paper states no errors."
    )
    start = "Table", "Column", "The paper's row", "Our row"
    header = (*start, "Paper", "Ours", "Difference", "Verdict")
    return Grid("published", "Stated values", caption, header, tuple(rows), texts=4)


def claims_grid(judged: Sequence[Judgement]) -> Grid:
    """Lay out the paper's claims with the tables that bear on them, and what these say here."""
    found = sentences(judged)
    rows = []
    for claim in (one.claim for one in judged):
        tables = ", ".join(map(table_title, claim.tables))
        cells = (claim.id, claim.sentence, tables, found.get(claim.id, MISSING))
        rows.append(Row(tuple(map(Cell, cells))))
    caption = (
        "What a reproduction can test; the tables named are this page's. Verdicts are for this "
        "experiment, with differences and their 95 % intervals, paired on items and within worlds; "
        "in Table 3, of one world, over seeds and items. Where several rows stand for one of the "
        "paper's, the one with the highest average is taken; it is picked on the same test items, "
        "which favours it. Near, matching and little mean two points of a score. A claim is open "
        "where an interval contains the border; a dash: these tables cannot decide."
    )
    header = ("Claim", "Sentence", "Look at", "Here")
    return Grid("claims", "Claims", caption, header, tuple(rows), texts=4)

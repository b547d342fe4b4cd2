"""The claims as the page's first screen shows them: verdict, effect, interval, worlds."""

from __future__ import annotations

from report.case_table import table_title
from report.experiment import Experiment
from report.grid import MISSING, Cell, Grid, Row, signed
from report.published import Published
from report.verdicts import judgements


def findings_grid(experiment: Experiment, published: Published) -> Grid:
    """Lay out the paper's claims, a row for each comparison that bears on one."""
    rows = []
    for judged in judgements(experiment, published):
        claim = judged.claim
        start = Cell(claim.id), Cell(claim.sentence)
        for one in judged.findings:
            effect, shown = one.effect, one.price
            if effect:
                ends = f"[{signed(effect.low)}, {signed(effect.high)}]"
                shown = f"{signed(effect.value)} {ends}"
            agreeing = f"{one.agree} of {one.repeats} {one.over}" if one.repeats else MISSING
            texts = one.verdict, f"{table_title(one.table)}: {one.compared}", shown, agreeing
            rows.append(Row((*start, *map(Cell, texts)), claim.id))
        if not judged.findings:
            tables = ", ".join(map(table_title, claim.tables))
            rows.append(Row((*start, *map(Cell, (MISSING, tables, MISSING, MISSING))), claim.id))
    caption = (
        "What a reproduction can test. A verdict is for this experiment; a claim is open where the "
        "95 % interval contains its border, and a dash says that these tables cannot decide. "
        "Worlds: in how many the difference has the sign of the mean. “What the paper states” says "
        "how each is judged."
    )
    header = ("Claim", "Sentence", "Verdict", "Compared", "Effect [95 % interval]", "Worlds")
    return Grid("findings", "Claims", caption, header, tuple(rows), texts=4)

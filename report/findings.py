"""The claims as the page's first screen shows them: verdict, effect, interval, worlds."""

from __future__ import annotations

from collections.abc import Sequence

from report.case_table import table_title
from report.grid import MISSING, Cell, Grid, Row, signed
from report.verdicts import Finding, Judgement

_HEADER = ("Claim", "Sentence", "Verdict", "Compared", "Effect [95 % interval]", "Worlds")


def effect_of(finding: Finding) -> str:
    """Write the effect with its interval, or the price."""
    if effect := finding.effect:
        return f"{signed(effect.value)} [{signed(effect.low)}, {signed(effect.high)}]"
    return finding.price or MISSING


def _cells(finding: Finding) -> list[Cell]:
    """Write what was compared, the effect or the price, and in how many worlds it is so."""
    count = f"{finding.agree} of {finding.repeats} {finding.over}" if finding.repeats else MISSING
    compared = f"{table_title(finding.table)}: {finding.compared}"
    return [Cell(compared), Cell(effect_of(finding)), Cell(count)]


def findings_grid(judgements: Sequence[Judgement]) -> Grid:
    """Lay out the paper's claims, each with the comparison that decides on it."""
    rows = []
    for judged in judgements:
        claim, found = judged.claim, judged.findings
        start = [Cell(claim.id), Cell(claim.sentence)]
        if found and judged.deciding:
            compared, effect, worlds = _cells(judged.deciding)
            several = len(found) > 1 and judged.deciding in found
            more = f" (1 of {len(found)} comparisons)" if several else ""
            cells = [Cell(judged.verdict), Cell(compared.text + more), effect, worlds]
        else:
            tables = ", ".join(map(table_title, claim.tables))
            cells = [Cell(MISSING), Cell(tables), Cell(MISSING), Cell(MISSING)]
        rows.append(Row((*start, *cells)))
    caption = (
        "What a reproduction can test. A verdict is for this experiment; a claim is open where the "
        "95 % interval contains its border, and a dash says that these tables cannot decide. Of "
        "several comparisons, one from which the verdict follows is shown. Worlds: in how many the "
        "difference has the sign of the mean. “What the paper states” has every comparison."
    )
    return Grid("findings", "Claims", caption, _HEADER, tuple(rows), texts=4)


def comparisons_grid(judgements: Sequence[Judgement]) -> Grid:
    """Lay out every comparison that bears on one of the paper's claims."""
    rows = [
        Row((Cell(judged.claim.id), Cell(one.verdict), *_cells(one)), judged.claim.id)
        for judged in judgements
        for one in judged.findings
    ]
    caption = "Every comparison that bears on a claim, with its own verdict."
    header = ("Claim", *_HEADER[2:])
    return Grid("comparisons", "Comparisons", caption, header, tuple(rows), texts=3)

"""The claims as the page's first screen shows them: verdict, effect, interval, worlds."""

from __future__ import annotations

import re
from collections.abc import Iterator

from report.case_table import table_title
from report.experiment import Experiment, Model
from report.grid import MISSING, Cell, Grid, Row, signed
from report.published import Published
from report.verdicts import verdicts

_WORDS = {"holds here": "holds", "does not hold here": "does not hold", "stays open here": "open"}
_VERDICT = re.compile(rf"({'|'.join(_WORDS)})(?:, costs are missing)?: ?")
_NUMBER = r"[+-]\d+\.\d+"
_EFFECT = re.compile(
    rf"(?:^|; )([^;]*?)(?:: )?({_NUMBER}) (?:± (\d+\.\d+)|\[({_NUMBER}), ({_NUMBER})\])"
)


def _pairs(experiment: Experiment, table: str) -> tuple[str, dict[str, list[Model]]]:
    """Return what a table's rows are repeated over, and by label its rows in each."""
    if table == "Table 3":
        runs = experiment.ablation.objectives if experiment.ablation else ()
        return "seeds", {entry.label.lower(): list(entry.runs) for entry in runs}
    cases = [case for case in experiment.cases if table_title(case.table) == table]
    models = [model for case in cases for model in case.all_models]
    return "worlds", {model.label.lower(): list(model.worlds.values()) for model in models}


def _agreeing(experiment: Experiment, table: str, compared: str) -> str:
    """Say in how many worlds, or seeds, a difference of averages has the sign of their mean."""
    first, _, second = compared.partition(" less ")
    what, rows = _pairs(experiment, table)
    cases = [case for case in experiment.cases if table_title(case.table) == table]
    if experiment.ablation and table == "Table 3":
        cases = [experiment.ablation.case]
    one, two = rows.get(first.lower(), []), rows.get(second.lower(), [])
    if not cases or not one or len(one) != len(two):
        return MISSING
    gaps = [
        a.value - b.value
        for x, y in zip(one, two, strict=True)
        if (a := x.average(cases[0].averaged)) and (b := y.average(cases[0].averaged))
    ]
    return f"{sum(gap * sum(gaps) > 0 for gap in gaps)} of {len(gaps)} {what}"


def _comparisons(line: str) -> Iterator[tuple[str, str, str, float, float, float]]:
    """Take a verdict's line apart: table, verdict, what was compared, effect and its interval."""
    for part in re.split(r" ?(?=Table \d+: C\d)", line):
        table, _, rest = part.partition(": ")
        before, *found = _VERDICT.split(rest)
        about, first = re.sub(r"^C\d+,? ?", "", before).strip(), ""
        quantity = about.partition("against ")[0]
        for verdict, text in zip(found[::2], found[1::2], strict=True):
            for name, value, width, low, high in _EFFECT.findall(text):
                compared = name or about
                first = compared.partition(" less ")[0] if " less " in compared else first
                compared = f"{first} {compared}" if compared.startswith("less ") else compared
                effect = float(value)
                side = float(width or 0)
                ends = (effect - side, effect + side) if width else (float(low), float(high))
                yield table, _WORDS[verdict], compared, effect, *ends
            about = quantity + text.rpartition("; ")[2].strip()


def findings_grid(experiment: Experiment, published: Published) -> Grid:
    """Lay out the paper's claims, a row for each comparison that bears on one."""
    found, rows = verdicts(experiment, published), []
    for claim in published.claims:
        compared = list(_comparisons(found.get(claim.id, "")))
        start = Cell(claim.id), Cell(claim.sentence)
        for table, verdict, what, effect, low, high in compared:
            agreeing = _agreeing(experiment, table, what)
            shown = f"{signed(effect)} [{signed(low)}, {signed(high)}]"
            texts = verdict, f"{table}: {what}", shown, agreeing
            rows.append(Row((*start, *map(Cell, texts)), claim.id))
        if not compared:
            tables = ", ".join(map(table_title, claim.tables))
            texts = found.get(claim.id, MISSING), tables, MISSING, MISSING
            rows.append(Row((*start, *map(Cell, texts)), claim.id))
    caption = (
        "What a reproduction can test. A verdict is for this experiment; a claim is open where the "
        "95 % interval contains its border, and a dash says that these tables cannot decide. "
        "Worlds: in how many the difference has the sign of the mean. “What the paper states” says "
        "how each is judged."
    )
    header = ("Claim", "Sentence", "Verdict", "Compared", "Effect [95 % interval]", "Worlds")
    return Grid("findings", "Claims", caption, header, tuple(rows), texts=4)

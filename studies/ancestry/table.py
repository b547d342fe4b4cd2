"""Does a method's lead come from one expert's start at an ancestor of the base?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.worlds import seeds_of
from report import fields
from report.experiment import Case
from report.grid import Cell, Grid, Row, difference_cells
from report.load import load_case
from report.paired import Difference, Stratum, compare
from studies.ancestry.settings import WORLD
from studies.dam.load import read_items

_RESAMPLES = 10_000  # p to about .001


@dataclass(frozen=True)
class Lead:
    """How far one row is ahead of another on the column."""

    leader: str  # label of the row whose lead is explained
    other: str  # label of the row it is compared with
    before: Difference  # in the case itself, where all experts start from the base
    after: Difference  # in the case with the ancestor
    change: Difference  # `after` minus `before`, item by item

    def verdict(self) -> str:
        """Judge the claim by the lead, at intervals of 95 %."""
        if self.change.low > 0 and self.after.low > 0:
            return "supports the claim"
        if self.change.low > 0:
            return "moves as claimed, without a clear lead"
        if self.change.high < 0:
            return "speaks against the claim"
        return "is inconclusive"


def load(config: Mapping[str, Any], results: Path) -> Case:
    """Read the case with the ancestor and the rows that are compared, from the results folder."""
    entry = config["studies"]["ancestry"]
    of = config["cases"][entry["case"]]
    expert = of["experts"][entry["expert"]]["label"]
    share = f"{100 * entry['ancestor']:g} %"
    case = of | {
        "table": f"{of['table']}b",
        "title": f"{of['title']}, the {expert} fine-tuned from the base at {share} of its steps",
    }
    rows = [*entry["leaders"], *entry["others"]]
    methods = {
        row: {k: v for k, v in config["methods"][row].items() if k not in ("cases", "table")}
        for row in config["methods"]
        if row in rows
    }
    return load_case({**config, "cases": {WORLD: case}, "methods": methods}, results, WORLD)


def leads(config: Mapping[str, Any], case: Case, results: Path) -> list[Lead]:
    """Compare every leader with every other row, item by item, in both cases.

    Returns:
        A lead for each pair of rows that have scores in both cases.

    Raises:
        UserError: A file of items is damaged, or the cases hold other items.
    """
    entry = config["studies"]["ancestry"]
    column = next(column for column in case.columns if column.label == entry["column"])
    labels = {model.id: model.label for model in case.models if model.status == "ok"}
    scores: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    for world in (entry["case"], WORLD):
        for row in [*entry["leaders"], *entry["others"]]:
            path = results / world / "scores" / "test" / f"{row}.items.jsonl.gz"
            if path.exists():
                scores[world, row] = read_items(path)
    pairs = [
        (leader, other)
        for leader in entry["leaders"]
        for other in entry["others"]
        if all((world, r) in scores for world in (entry["case"], WORLD) for r in (leader, other))
        and leader in labels
        and other in labels
    ]
    if not pairs:
        return []
    strata = []
    for task in column.tasks:
        items = sorted(scores[WORLD, pairs[0][0]][task])
        for (world, row), by_task in scores.items():
            if sorted(by_task[task]) != items:
                raise UserError(f"{world}/{row}: other items of {task}; evaluate it again")
        values = {key: np.array([by[task][i] for i in items]) for key, by in scores.items()}
        before, after = (
            np.array([values[world, leader] - values[world, other] for leader, other in pairs])
            for world in (entry["case"], WORLD)
        )
        # One array, so that a resample draws the same items for both worlds.
        differences = np.concatenate([before, after, after - before])
        strata.append(Stratum(differences, np.arange(len(items)), 1 / len(column.tasks)))
    found = compare(strata, _RESAMPLES, seeds_of(config)[0])
    count = len(pairs)
    return [
        Lead(labels[leader], labels[other], *(found[place + count * part] for part in range(3)))
        for place, (leader, other) in enumerate(pairs)
    ]


def claim_grid(config: Mapping[str, Any], case: Case, found: Sequence[Lead]) -> Grid:
    """Lay out the leads in both cases, and what they say of the claim."""
    entry = config["studies"]["ancestry"]
    expert = case.experts[entry["expert"]]["label"]
    again = f"{entry['case']}b"
    rows = []
    for lead in found:
        cells = [Cell(lead.leader), Cell(lead.other)]
        cells += [
            c for part in (lead.before, lead.after, lead.change) for c in difference_cells(part)
        ]
        rows.append(Row((*cells, Cell(lead.verdict())), lead.leader))
    caption = (
        f"Lead on {entry['column']} of one row over another: in {entry['case']}, where every "
        f"expert starts from the base; in {again}, where the {expert} starts from its ancestor; "
        "and the change from one to the other. [95 %]: interval of a paired bootstrap of the test "
        f"items ({_RESAMPLES:,} draws), which are the same in both cases; p: of a sign-flip "
        "permutation test of items. One world and one seed: what another seed would change is not "
        "covered."
    )
    header = ["Row", "Compared with"]
    for what in (entry["case"], again, "change"):
        header += [f"{what} [95 %]", "p"]
    notes = (
        "C11 says that DARE-TIES leads in Korean because that expert started from another "
        "ancestor than the others. A pair supports it where the lead in the second case and the "
        "change towards it are both clearly above 0, moves as claimed where the change alone is, "
        f"and speaks against it where the change is clearly below. {summary(found)}",
    )
    title = "Claim C11"
    return Grid("claim_c11", title, caption, (*header, "Verdict"), tuple(rows), notes, texts=2)


def summary(found: Sequence[Lead]) -> str:
    """Count the verdicts in one sentence."""
    verdicts = [lead.verdict() for lead in found]
    if not verdicts:
        return "No pair has scores in both cases."
    counted = "; ".join(f"{v}: {verdicts.count(v)}" for v in dict.fromkeys(verdicts))
    return f"{len(verdicts)} pairs; {counted}."


def claim_csv(found: Sequence[Lead]) -> str:
    """Write the leads for programs."""
    header = ["leader", "other"]
    for what in ("before", "after", "change"):
        header += [what, f"{what} low", f"{what} high", f"{what} p"]
    rows = [[*header, "verdict"]]
    for lead in found:
        numbers = [
            fields.decimals(value)
            for part in (lead.before, lead.after, lead.change)
            for value in (part.value, part.low, part.high, part.p)
        ]
        rows.append([lead.leader, lead.other, *numbers, lead.verdict()])
    return fields.text(rows)

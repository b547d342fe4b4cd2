"""What the experts learned: base against expert in each expert's own domain."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from report import fields
from report.experiment import Case, Model
from report.grid import Cell, Grid, Row, number, score_cell


def _expert_rows(cases: Sequence[Case]) -> Iterable[tuple[Case, Model, Model, str, dict]]:
    for case in cases:
        base, models = case.models[0], {model.id: model for model in case.models}
        for expert, about in case.experts.items():
            judged = case.gate.get(expert, {}).get("tasks", {})
            for task in about["domain"]:
                yield case, base, models[expert], task, judged.get(task, {})


def _learned(judged: dict) -> str:
    return {True: "yes", False: "not learned", None: "no gate"}[judged.get("learned")]


def experts_csv(cases: Sequence[Case]) -> str:
    """Write base against experts in the experts' domains for programs."""
    header = ["case", "expert", "task", "seed", "base dev", "expert dev", "learned"]
    rows: list[list[Any]]
    rows = [[*header, *fields.score_titles("base test"), *fields.score_titles("expert test")]]
    for case, base, expert, task, judged in _expert_rows(cases):
        rows.append(
            [
                *(case.id, expert.id, task, "" if expert.seed is None else expert.seed),
                *(fields.decimals(judged.get("base")), fields.decimals(judged.get("expert"))),
                _learned(judged),
                *fields.score_fields(base.tasks.get(task)),
                *fields.score_fields(expert.tasks.get(task)),
            ]
        )
    return fields.text(rows)


def experts_grid(cases: Sequence[Case], seed: int) -> Grid:
    """Lay out base against experts in the experts' domains, with the gate's verdicts."""
    rows = []
    for case, base, expert, task, judged in _expert_rows(cases):
        dev = [Cell(number(judged.get(key))) for key in ("base", "expert")]
        test = [score_cell(model.tasks.get(task)) for model in (base, expert)]
        texts = [Cell(expert.label), Cell(case.task_label(task)), Cell(_learned(judged))]
        rows.append(Row((*texts, *dev, *test), f"{case.id}/{expert.id}"))
    caption = (
        "What every expert learned in its own domain, against the base it started from, seed "
        f"{seed}. An expert passes the gate if its domain's average on dev items beats the "
        "base's by more than two standard errors of the difference; a task is learned if its "
        "own difference does. ± is the standard error over test items."
    )
    header = ("Expert", "Task", "Learned", "Base, dev", "Expert, dev", "Base, test", "Expert, test")
    return Grid("experts", "Experts", caption, header, tuple(rows), texts=3)

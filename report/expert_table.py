"""What the experts learned: base against expert in each expert's own domain."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from report import fields
from report.experiment import Case, Model, worlds_of
from report.grid import Cell, Grid, Row, number, score_cell
from report.intervals import mean


def _expert_rows(cases: Sequence[Case]) -> Iterable[tuple[Case, Model, Model, str, dict]]:
    for _, case in worlds_of(cases):
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


def _on_dev(case: Case, expert: str, task: str) -> tuple[str, list[float | None]]:
    """Say in how many worlds an expert learned a task, and give the mean dev scores."""
    judged = [world.gate.get(expert, {}).get("tasks", {}).get(task) for world in case.each.values()]
    known = [entry for entry in judged if entry]
    if len(case.each) == 1 or not known:
        entry = known[0] if known else {}
        return _learned(entry), [entry.get("base"), entry.get("expert")]
    learned = sum(entry["learned"] for entry in known)
    text = "yes" if learned == len(known) else f"in {learned} of {len(known)} worlds"
    return text, [mean([entry[key] for entry in known]) for key in ("base", "expert")]


def experts_grid(cases: Sequence[Case], seed: int) -> Grid:
    """Lay out base against experts in the experts' domains, with the gate's verdicts."""
    rows = []
    for case in cases:
        models = {model.id: model for model in case.models}
        for expert, about in case.experts.items():
            for task in about["domain"]:
                learned, values = _on_dev(case, expert, task)
                dev = [Cell(number(value)) for value in values]
                test = [score_cell(models[id].tasks.get(task)) for id in ("base", expert)]
                texts = [Cell(about["label"]), Cell(case.task_label(task)), Cell(learned)]
                rows.append(Row((*texts, *dev, *test), f"{case.id}/{expert}"))
    several = any(case.worlds for case in cases)
    where = "means over worlds" if several else f"seed {seed}"
    caption = (
        "What every expert learned in its own domain, against the base it started from, "
        f"{where}. An expert passes the gate if its domain's average on dev items beats the "
        "base's by more than two standard errors of the difference; a task is learned if its "
        f"own difference does. ± is the standard error over {cases[0].errors}."
        + (" Dev scores and verdicts are of all worlds, left-out ones included." * several)
    )
    header = ("Expert", "Task", "Learned", "Base, dev", "Expert, dev", "Base, test", "Expert, test")
    return Grid("experts", "Experts", caption, header, tuple(rows), texts=3)

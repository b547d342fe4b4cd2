"""Tables 1 and 2: one row per model, one column per task or group of tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from report import fields
from report.averages import Score
from report.experiment import Case, Model
from report.grid import Cell, Grid, Row, number, score_cell


def table_title(name: str) -> str:
    """Turn the file name ``table1`` into the title ``Table 1``."""
    return f"Table {name[5:]}" if name.startswith("table") and name[5:].isdigit() else name


def _rows(case: Case) -> list[Model]:
    return [case.chance(), *case.models]


def case_csv(case: Case) -> str:
    """Write a case's table for programs: one row per model.

    Value, standard error and items per column, then the average, then the columns outside it, then
    counted amounts. Nothing measured is in it, so that equal runs give equal bytes.
    """
    about = ("id", "label", "kind", "status", "best_of", "data", "embeddings_and_norms", "seed")
    counted = fields.counted_names(case.models)
    beside = [column for column in case.columns if not column.in_average]
    header = [*about]
    for label in [*(c.label for c in case.averaged), "Avg", *(c.label for c in beside)]:
        header += fields.score_titles(label)
    rows = [[*header, *(f"counted {name}" for name in counted)]]
    for model in _rows(case):
        row = [str("" if (v := getattr(model, key)) is None else v) for key in about]
        scores = [model.column(column) for column in case.averaged]
        scores += [case.average(model), *(model.column(column) for column in beside)]
        for score in scores:
            row += fields.score_fields(score)
        rows.append(
            row + [f"{model.counted[n]:.0f}" if n in model.counted else "" for n in counted]
        )
    return fields.text(rows)


def best(models: Sequence[Model], scores: Sequence[Score | None]) -> set[str]:
    """Return the ids of the merges with the highest score; several where they are equal."""
    values = {
        model.id: score.value
        for model, score in zip(models, scores, strict=True)
        if score is not None and model.kind == "merge" and model.best_of
    }
    top = max(values.values(), default=0.0)
    # Where all score nothing, none is best.
    return {id for id, value in values.items() if top > 0 and value >= top - 1e-12}


def _items(case: Case) -> str:
    counts = sorted({score.items for m in case.models for score in m.tasks.values()})
    if not counts:
        return "no items"
    return f"{counts[0]} items" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} items"


def has_own_tasks(case: Case) -> bool:
    """Return whether the case's tasks are the bottle's own."""
    return any(task.startswith("bottle_") for task in case.tasks)


def what_is_shown(case: Case) -> str:
    """Say what the tasks of a case are and how many items they have."""
    tasks = (
        "the bottle's own generated tasks, shaped after the named benchmarks and not those "
        "benchmarks themselves"
        if has_own_tasks(case)
        else "the named tasks"
    )
    if case.stand_ins():
        tasks += ", some of them with rows that only stand in for the benchmark's own"
    return f"Test scores on {tasks}; {_items(case)} per task."


def _marks(case: Case, tasks: Sequence[str]) -> str:
    dagger = "†" if any(task in case.not_learned() for task in tasks) else ""
    return dagger + ("‡" if all(task in case.held_out() for task in tasks) else "")


def _stand_ins(case: Case) -> list[str]:
    """Name the tasks whose rows are not their benchmark's, with the reason."""
    found: dict[tuple[str, str], list[str]] = {}
    for task, roles in case.stand_ins().items():
        for role, why in sorted(roles.items(), key=lambda entry: entry[0] != "items"):
            found.setdefault((role, why), []).append(case.task_label(task))
    return [
        f"Not the benchmark's own {'examples' if role == 'fewshot' else role}, but "
        f"{why}: {', '.join(labels)}."
        for (role, why), labels in found.items()
    ]


def _backends(case: Case) -> list[str]:
    """Say which backend evaluated which models, unless it was the same for all."""
    by: dict[str, list[str]] = {}
    for model in case.models:
        if model.backend:
            by.setdefault(model.backend, []).append(model.label)
    if len(by) < 2:
        return []
    *few, (most, _) = sorted(by.items(), key=lambda entry: len(entry[1]))
    named = "; ".join(f"by {backend}: {', '.join(labels)}" for backend, labels in few)
    return [f"Evaluated {named}; the others by {most}."]


def footnotes(case: Case) -> list[str]:
    """Explain the marks of a case's tables, and the rows without scores."""
    notes = []
    if missed := case.not_learned():
        named = "; ".join(
            f"{case.task_label(task)} ({', '.join(experts)})" for task, experts in missed.items()
        )
        notes.append(
            f"† Not learned: its own expert does not clearly beat the base on dev items: {named}."
        )
    if held_out := case.held_out():
        named = ", ".join(map(case.task_label, held_out))
        notes.append(f"‡ In no expert's domain: {named}.")
    notes += [*case.notes, *_stand_ins(case), *_backends(case)]
    if any(model.kind == "merge" and not model.best_of for model in case.models):
        notes.append("° Takes no part in the marks for the best merge.")
    notes += _soups(case)
    if any(score.stderr == 0 for m in case.models for score in m.tasks.values()):
        notes.append(
            "±.000 stands where all items are right, or all wrong: the sample then says nothing "
            "about its error, which is not zero."
        )
    notes += [f"{m.label}: {m.status}." for m in case.models if m.status != "ok"]
    return notes


def _soups(case: Case) -> list[str]:
    """Say which experts a greedy soup took; one alone is that expert and no merge at all."""
    notes = []
    for model in case.models:
        search = model.manifest.get("parameters", {}).get("search", {})
        if joined := [case.experts[id]["label"] for id in search.get("joined", ())]:
            what = f"the average of {', '.join(joined)}" if joined[1:] else f"{joined[0]}, alone"
            notes.append(f"{model.label}: {what}.")
    return notes


def _label(model: Model) -> str:
    label = model.label + ("°" if model.kind == "merge" and not model.best_of else "")
    return label if model.status == "ok" else f"{label} ({model.status.split(':')[0]})"


def _scores_grid(
    case: Case, name: str, title: str, caption: str, columns: Sequence[tuple[str, list]]
) -> Grid:
    winners = [best(_rows(case), scores) for _, scores in columns]
    rows = []
    for place, model in enumerate(_rows(case)):
        cells = [Cell(_label(model)), Cell(model.data), Cell(model.embeddings_and_norms)]
        for (_, scores), won in zip(columns, winners, strict=True):
            score = scores[place]
            plain = model.kind == "chance" and score is not None
            strong = model.id in won
            cells.append(Cell(number(score.value)) if plain else score_cell(score, strong))
        group = "merge" if model.kind == "merge" else "reference"
        rows.append(Row(tuple(cells), group))
    header = ("Model", "Data seen", "Embeddings, norms", *(label for label, _ in columns))
    return Grid(name, title, caption, header, tuple(rows), tuple(footnotes(case)), texts=3)


def _columns(case: Case) -> list[tuple[str, list]]:
    """Return titles and scores: averaged columns, Avg, other columns."""
    models = _rows(case)
    columns = [
        (column.label + _marks(case, column.tasks), [model.column(column) for model in models])
        for column in case.columns
    ]
    columns.insert(len(case.averaged), ("Avg", [case.average(model) for model in models]))
    return columns


def case_grid(case: Case, seed: int) -> Grid:
    """Lay out Table 1 or Table 2 for people: random choice, base, experts, merges."""
    caption = (
        f"{case.title}. {what_is_shown(case)} Seed {seed}. Avg is the mean of the "
        f"{len(case.averaged)} "
        "columns before it; a column of several tasks is their mean. ± is the "
        "standard error over test items; a mean of k independent scores has √(Σ SE²)/k. "
        "It does not cover what another seed would change. Bold: the highest among the "
        "merges; the smaller a lead is beside the standard errors, the less it means."
    )
    return _scores_grid(case, case.table, table_title(case.table), caption, _columns(case))


def more_grid(case: Case, seed: int) -> Grid:
    """Lay out a case's merges beyond the paper's, in the columns of its table."""
    table = table_title(case.table)
    caption = (
        f"{case.title}. Methods beyond those of {table}, in its columns. {what_is_shown(case)} "
        f"Seed {seed}. Untuned: where the data seen are none, each has its method's default "
        f"parameters, so that a row compares with the untuned ones of {table}, and tuning can "
        "change the order. ± is the standard error over test items. Bold: the highest among "
        "these merges."
    )
    beyond = case.beyond()
    name, title = f"{case.table}_more", f"{table}, other methods"
    return _scores_grid(beyond, name, title, caption, _columns(beyond))


def has_groups(case: Case) -> bool:
    """Return whether a column of the case holds several tasks, so that it needs a table by task."""
    return any(len(column.tasks) > 1 for column in case.columns)


def tasks_grid(case: Case, seed: int) -> Grid:
    """Lay out a case's scores task by task, where its columns are means over tasks."""
    columns = [
        (case.task_label(task) + _marks(case, [task]), [m.tasks.get(task) for m in _rows(case)])
        for task in case.tasks
    ]
    title = f"{table_title(case.table)}, task by task"
    caption = (
        f"{case.title}. {what_is_shown(case)} Seed {seed}. ± is the standard error over test items."
    )
    return _scores_grid(case, f"{case.table}_tasks", title, caption, columns)


def tasks_csv(case: Case) -> str:
    """Write every task's score for programs: one row per model and task."""
    rows: list[list[Any]]
    rows = [["id", "label", "kind", "seed", "column", "task", "value", "stderr", "items", "chance"]]
    for model in case.models:
        for column in case.columns:
            for task in column.tasks:
                score = model.tasks.get(task)
                chance = "" if score is None else fields.decimals(score.chance)
                seed = "" if model.seed is None else model.seed
                start = [model.id, model.label, model.kind, seed, column.label, task]
                rows.append([*start, *fields.score_fields(score), chance])
    return fields.text(rows)

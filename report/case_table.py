"""Tables 1 and 2: one row per model, one column per task or group of tasks."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from report import fields
from report.averages import Score
from report.experiment import Case, Model, is_generated
from report.footnotes import footnotes
from report.grid import Cell, Grid, Row, number, score_cell
from report.pairs import LEVEL, compared, groups, not_separated, resolution, separated, weights_of


class _Column(NamedTuple):
    title: str
    of: Callable[[Model], Score | None]  # a row's score in it
    weights: Mapping[str, float]  # of its tasks in that score


def table_title(name: str) -> str:
    """Turn the file name ``table1`` into the title ``Table 1``."""
    return f"Table {name[5:]}" if name.startswith("table") and name[5:].isdigit() else name


def _of_task(task: str, model: Model) -> Score | None:
    return model.tasks.get(task)


def _rows(case: Case) -> list[Model]:
    return [case.chance(), *case.models]


def case_csv(case: Case) -> str:
    """Write a case's table for programs: one row per model.

    Value, standard error and items per column, then the average, then the columns outside it, then
    counted amounts, then, of several worlds, each one's value with its error over items. Nothing
    measured is in it, so that equal runs give equal bytes.
    """
    about = ("id", "label", "kind", "status", "best_of", "data", "embeddings_and_norms")
    counted = fields.counted_names(case.models)
    columns = _columns(case)
    header = [*about, "seed"]
    for column in columns:
        header += fields.score_titles(column.title)
    header += [f"counted {name}" for name in counted]
    for seed in case.worlds:
        for column in columns:
            header += [f"{column.title} seed {seed}", f"{column.title} seed {seed} stderr"]
    header += ["Avg below the highest", "Avg p", "Avg p (Holm)"]
    tested = _tested(case)
    rows = [header]
    for model in _rows(case):
        row = [str(getattr(model, key)) for key in about] + [seeds_text(model)]
        row[about.index("status")] += ", edited by hand" if model.edits else ""
        for column in columns:
            row += fields.score_fields(column.of(model))
        row += [f"{model.counted[n]:.0f}" if n in model.counted else "" for n in counted]
        for seed in case.worlds:
            world = model.worlds.get(seed)
            for column in columns:
                row += fields.score_fields(column.of(world) if world else None)[:2]
        row += tested.get(model.id, ["", "", ""])
        rows.append(row)
    return fields.text(rows)


def _tested(case: Case) -> dict[str, list[str]]:
    """Write by row how far its average is below the highest, with p-values."""
    rivals = _rivals(case, case.average)
    if not rivals or not _testable(case):
        return {}
    found = compared(rivals, rivals[0], case.average, _average(case).weights)
    corrected = separated(found)
    return {
        id: [fields.decimals(one.value), fields.decimals(one.p), fields.decimals(corrected[id])]
        for id, one in found.items()
    }


def seeds_text(model: Model) -> str:
    """Write the seeds of the worlds behind a row's scores."""
    return " ".join(map(str, model.worlds or [] if model.seed is None else [model.seed]))


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


def _rivals(case: Case, of: Callable[[Model], Score | None]) -> list[Model]:
    """Return the merges that take part in a column's marks, the highest first."""
    found = [m for m in case.models if m.kind == "merge" and m.best_of and whole(case, of, m)]
    return sorted(found, key=lambda model: -(s.value if (s := of(model)) else 0.0))


def _testable(case: Case) -> bool:
    """Return whether differences between merges can be tested: over worlds, or paired items."""
    return case.several or any(m.answers for m in case.models if m.kind == "merge")


def _best_or_tied(case: Case, column: _Column) -> set[str]:
    """Return the ids of the merges that are not separated from the highest in a column."""
    rivals = _rivals(case, column.of)
    won = best(rivals, [column.of(model) for model in rivals])
    if not won or not _testable(case):
        return won
    return won | not_separated(rivals, rivals[0], column.of, column.weights)


def _items(case: Case) -> str:
    world = next(iter(case.each.values()))
    counts = sorted({score.items for m in world.models for score in m.tasks.values()})
    if not counts:
        return "no items"
    return f"{counts[0]} items" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} items"


def where_from(case: Case, seed: int) -> str:
    """Say from which seeds a table's scores are."""
    if not case.worlds:
        return f"Seed {seed}."
    count, seeds = len(case.worlds), ", ".join(map(str, case.worlds))
    of = f"of the {len(case.each)} " if case.left_out else ""
    mean = "Mean over" if case.several else "Scores of"
    shared = [] if case.own_base else ["the base"]
    if not all(map(is_generated, (task for column in case.columns for task in column.tasks))):
        shared.append("benchmarks' items")
    anew = "experts, merges and generated items" if shared else "data, base, experts and merges"
    same = f", not {' and '.join(shared)}" if shared else ""
    return (
        f"{mean} {count} {of}worlds, of seed{'s' * case.several} {seeds}: {anew} are made anew in "
        f"each{same}."
    )


def _errors(case: Case) -> str:
    """Say what the errors of the scores are."""
    if not case.several:
        return (
            "± is the standard error over test items only; one world, so that what another "
            "training would change is not in it. A mean of k independent scores has √(Σ SE²)/k."
        )
    return (
        "± is the standard error of the mean between worlds and items together (docs/evaluation.md "
        "says how)."
    )


def _bold(case: Case, whose: str) -> str:
    if not _testable(case):
        return f"Bold: the highest among {whose} merges"
    how = (
        "a t test of the differences within worlds"
        if case.several
        else "McNemar's test or sign flips on the items that both answered"
    )
    return (
        f"Bold: the highest among {whose} merges, and those that are not separated from it by "
        f"{how} ({100 * LEVEL:.0f} %, Holm's correction for the comparisons of a column)"
    )


def has_own_tasks(case: Case) -> bool:
    """Return whether all tasks of the case's average are the bottle's own."""
    averaged = [task for column in case.averaged for task in column.tasks]
    return all(map(is_generated, averaged))


def what_is_shown(case: Case) -> str:
    """Say what the tasks of a case are and how many items they have."""
    generated = [column.label for column in case.columns if is_generated(column.tasks[0])]
    if has_own_tasks(case):
        tasks = (
            "the bottle's own generated tasks, shaped after the named benchmarks and not those "
            "benchmarks themselves"
        )
    elif generated:
        tasks = f"the named tasks, of which the bottle generates: {', '.join(generated)}"
    else:
        tasks = "the named tasks"
    if case.stand_ins():
        tasks += ", some of them with rows that only stand in for the benchmark's own"
    return f"Test scores on {tasks}; {_items(case)} per task."


def _marks(case: Case, tasks: Sequence[str]) -> str:
    dagger = "†" if any(task in case.not_learned() for task in tasks) else ""
    return dagger + ("‡" if all(task in case.held_out() for task in tasks) else "")


def whole(case: Case, of: Callable[[Model], Score | None], model: Model) -> bool:
    """Return whether a row's score is a mean over all worlds that the table shows."""
    if not case.worlds:
        return of(model) is not None
    return all(seed in model.worlds and of(model.worlds[seed]) for seed in case.worlds)


def _label(model: Model) -> str:
    label = model.label + ("°" if model.kind == "merge" and not model.best_of else "")
    return label if model.status == "ok" else f"{label} ({model.status.split(':')[0]})"


def _scores_grid(
    case: Case, name: str, title: str, caption: str, columns: Sequence[_Column]
) -> Grid:
    winners = [_best_or_tied(case, column) for column in columns]
    rows = []
    for model in _rows(case):
        cells = [Cell(_label(model)), Cell(model.data), Cell(model.embeddings_and_norms)]
        for column, won in zip(columns, winners, strict=True):
            score = column.of(model)
            plain = Cell(number(score and score.value))
            strong = model.id in won
            cells.append(plain if model.kind == "chance" else score_cell(score, strong))
        group = "merge" if model.kind == "merge" else "reference"
        rows.append(Row(tuple(cells), group))
    header = ("Model", "Data seen", "Embeddings, norms", *(column.title for column in columns))
    return Grid(name, title, caption, header, tuple(rows), tuple(footnotes(case)), texts=3)


def _columns(case: Case, marked: bool = False) -> list[_Column]:
    """Return titles and scores: averaged columns, Avg, other columns."""
    columns = [
        _Column(
            column.label + (_marks(case, column.tasks) if marked else ""),
            operator.methodcaller("column", column),
            weights_of([column]),
        )
        for column in case.columns
    ]
    columns.insert(len(case.averaged), _average(case))
    return columns


def _average(case: Case) -> _Column:
    return _Column("Avg", case.average, weights_of(case.averaged))


def _grouped(case: Case) -> list[list[tuple[Model, Score]]]:
    """Divide the compared merges into groups of near-ties, where differences can be tested."""
    if not _testable(case):
        return []
    return groups(_rivals(case, case.average), case.average, _average(case).weights)


def near_ties(case: Case) -> list[str]:
    """Return the labels of the merges that are not separated from the highest."""
    first = [model.label for group in _grouped(case)[:1] for model, _ in group]
    return first[1:]


def _groups(case: Case) -> list[str]:
    """Say which rows are separated by their averages, and how far apart they had to be."""
    found = _grouped(case)
    if not found:
        return []
    named = "; ".join(
        f"({place}) {', '.join(f'{model.label} {number(score.value)}' for model, score in group)}"
        for place, group in enumerate(found, 1)
    )
    return [
        f"Groups by Avg: {named}. A group's first row is significantly below the first of the "
        "group before; no row is significantly below the first of its group.",
        *_seen(case),
    ]


def _seen(case: Case) -> list[str]:
    """State the smallest difference from the highest average that a table could have seen."""
    rivals = _rivals(case, case.average)
    found = compared(rivals, rivals[0], case.average, _average(case).weights) if rivals else {}
    least = resolution(found)
    if least is None:
        return []
    return [
        f"The smallest difference from the highest Avg that this table separates is about "
        f"{number(least)} (the median over {len(found)} rows)."
    ]


def case_grid(case: Case, seed: int) -> Grid:
    """Lay out Table 1 or Table 2 for people: random choice, base, experts, merges."""
    caption = (
        f"{case.title}. {what_is_shown(case)} {where_from(case, seed)} Avg is the mean of the "
        f"{len(case.averaged)} columns before it; a column of several tasks is their mean. "
        f"{_errors(case)} {_bold(case, 'the')}; the smaller a lead is beside the standard errors, "
        "the less it means."
    )
    columns = _columns(case, marked=True)
    grid = _scores_grid(case, case.table, table_title(case.table), caption, columns)
    return dataclasses.replace(grid, notes=(*grid.notes, *_groups(case)))


def untuned(case: Case) -> str:
    """Return the word for titles of a table of merges beyond the paper's of which none is tuned."""
    kinds = [m.manifest.get("parameters", {}).get("search", {}).get("kind") for m in case.more]
    return "" if "tune" in kinds else ", untuned"


def more_grid(case: Case, seed: int) -> Grid:
    """Lay out a case's merges beyond the paper's, in the columns of its table."""
    table = table_title(case.table)
    chosen = (
        "Untuned: where the data seen are none, each has its method's "
        f"default parameters, so that a row compares with the untuned ones of {table}, and tuning "
        "can change the order."
        if untuned(case)
        else "Where the data seen are dev items, the best of as many candidates was chosen as for "
        f"the tuned rows of {table}; the others have their methods' default parameters."
    )
    caption = (
        f"{case.title}. Methods beyond those of {table}, in its columns. {what_is_shown(case)} "
        f"{where_from(case, seed)} {chosen} {_errors(case)} {_bold(case, 'these')}."
    )
    beyond = case.beyond()
    name, title = f"{case.table}_more", f"{table}, other methods"
    return _scores_grid(beyond, name, title, caption, _columns(beyond, marked=True))


def has_groups(case: Case) -> bool:
    """Return whether a column of the case holds several tasks, so that it needs a table by task."""
    return any(len(column.tasks) > 1 for column in case.columns)


def tasks_grid(case: Case, seed: int) -> Grid:
    """Lay out a case's scores task by task, where its columns are means over tasks."""
    columns = [
        _Column(
            case.task_label(task) + _marks(case, [task]),
            functools.partial(_of_task, task),
            {task: 1.0},
        )
        for task in case.tasks
    ]
    title = f"{table_title(case.table)}, task by task"
    caption = f"{case.title}. {what_is_shown(case)} {where_from(case, seed)} {_errors(case)}"
    return _scores_grid(case, f"{case.table}_tasks", title, caption, columns)


def tasks_csv(case: Case) -> str:
    """Write every task's score for programs: one row per model and task.

    Of several worlds, the mean over them is followed by the score in each.
    """
    rows: list[list[Any]]
    rows = [["id", "label", "kind", "seed", "column", "task", "value", "stderr", "items", "chance"]]
    shown = [each for model in case.models for each in (model, *model.worlds.values())]
    for model in shown:
        for column in case.columns:
            for task in column.tasks:
                score = model.tasks.get(task)
                chance = "" if score is None else fields.decimals(score.chance)
                start = [model.id, model.label, model.kind, seeds_text(model), column.label, task]
                rows.append([*start, *fields.score_fields(score), chance])
    return fields.text(rows)

"""What was tried and how it did: the average of evaluations and their table."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError, nearest
from common.manifest import check_recorded
from search.evaluation import Evaluation
from search.space import Space

TABLE = "search.csv"


def average_of(tasks: Mapping[str, float], groups: Sequence[Sequence[str]]) -> float:
    """Average scores as the tables do: the mean over groups of the mean over their tasks.

    A group is a column of the table, a list of tasks.

    Raises:
        UserError: A group names a task that was not scored.
    """
    check_groups(tasks, groups)
    means = [math.fsum(tasks[task] for task in group) / len(group) for group in groups]
    return math.fsum(means) / len(means)


def check_groups(tasks: Iterable[str], groups: Sequence[Sequence[str]]) -> None:
    """Refuse columns of an average that name a task which is not scored, or none at all.

    Raises:
        UserError: There is such a column.
    """
    known = list(tasks)
    for group in groups:
        if not isinstance(group, list | tuple) or not group:
            raise UserError("the average needs columns, each a list of at least one task")
        for task in group:
            if task not in known:
                raise UserError(f"the average needs task {task!r}{nearest(task, known)}")


def best_of(space: Space, history: Iterable[Evaluation]) -> Evaluation | None:
    """Return the best of some evaluations in the order of the search, None where all failed."""
    best = None
    for evaluation in history:
        if evaluation.average is not None and (best is None or space.replaces(evaluation, best)):
            best = evaluation
    return best


def winner_of(space: Space, history: Sequence[Evaluation]) -> Evaluation:
    """Return the best of some evaluations; see `best_of`.

    Raises:
        UserError: Every candidate failed.
    """
    best = best_of(space, history)
    if best is None:
        raise UserError(
            f"all {len(history)} candidates failed, the first with: {history[0].failure}"
        )
    return best


def _cell(value: Any) -> str:
    """Write a value so that it can be read back: floats with all their digits."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def table(history: Sequence[Evaluation]) -> str:
    """Write evaluations as CSV: index, average, failure, then genes and tasks.

    Numbers have all their digits: read back, they are the same. A column `full_average` follows the
    average where some candidates were scored on all items besides.
    """
    genes = list(dict.fromkeys(g for evaluation in history for g in evaluation.genes))
    tasks = list(dict.fromkeys(t for evaluation in history for t in evaluation.tasks))
    full = ["full_average"] if any(item.full is not None for item in history) else []
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["evaluation", "dev_average", *full, "failure", *genes, *tasks])
    for item in history:
        writer.writerow(
            [
                item.index,
                _cell(item.average),
                *([_cell(item.full)] if full else []),
                item.failure,
                *(_cell(item.genes.get(gene)) for gene in genes),
                *(_cell(item.tasks.get(task)) for task in tasks),
            ]
        )
    return stream.getvalue()


def read_table(folder: Path) -> list[dict[str, str]]:
    """Read the table of a finished search, a mapping for each candidate.

    Raises:
        UserError: The folder holds none, or it is damaged.
    """
    path = folder / TABLE
    check_recorded(path)
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; --of takes the result of `python -m search`"
        ) from None
    if not rows or not {"evaluation", "dev_average"} <= set(rows[0]):
        raise UserError(f"{path}: not a table of candidates; search again")
    return rows


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Compute Spearman's rank correlation, with mean ranks for equal values.

    Returns:
        The correlation in [-1, 1]; None for fewer than two pairs or where all of one are equal.
    """
    import numpy as np

    def ranks(values: Sequence[float]) -> np.ndarray:
        array = np.asarray(values, dtype=float)
        below = (array[None, :] < array[:, None]).sum(1)
        return below + ((array[None, :] == array[:, None]).sum(1) - 1) / 2

    if len(first) < 2:
        return None
    x, y = (part - part.mean() for part in (ranks(first), ranks(second)))
    scale = float(np.sqrt((x**2).sum() * (y**2).sum()))
    return float((x * y).sum()) / scale if scale else None

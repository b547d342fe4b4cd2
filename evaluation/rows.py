"""What a row of a task's file must hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# By kind of task; docs/evaluation.md has an example of each.
COLUMNS = {
    "multiple_choice": ("id", "prompt", "choices", "gold"),
    "generation": ("id", "prompt", "target"),
    "sql": ("id", "prompt", "query", "database"),
}
ANY_COLUMNS = ("*",)
# By kind of task, the first in tables unless an entry names another.
METRICS = {
    "multiple_choice": ("acc", "acc_norm", "acc_bytes", "balanced_acc", "macro_f1", "mcc"),
    "generation": ("exact_match", "last_integer", "rouge2"),
    "sql": ("execution",),
}
# How items' scores become a task's, as `evaluation.metrics.AGGREGATES` has them; named here because
# a task's definition and its data must not depend on how scores are computed.
AGGREGATIONS = ("mean", "bootstrap_median", "balanced_acc", "macro_f1", "mcc")


def row_fault(row: Any, kind: str, columns: Sequence[str] = ()) -> str | None:
    """Say what is wrong with a row (a line of a file, as JSON) of a kind of task.

    Args:
        row: The row.
        kind: multiple_choice, generation or sql.
        columns: What the row must have, whatever its values; empty takes what the kind needs, and
            `ANY_COLUMNS` nothing.

    Returns:
        The fault as the middle of a sentence; None where there is none.
    """
    if not isinstance(row, dict):
        return "not a JSON object"
    needed = () if columns == ANY_COLUMNS else columns or COLUMNS[kind]
    for column in needed:
        if column not in row:
            return f"no {column!r}"
    return None if columns else _value_fault(row)


def _value_fault(row: dict[str, Any]) -> str | None:
    texts = [row["prompt"], row.get("target", ""), row.get("query", "")]
    if not all(isinstance(text, str) for text in texts):
        return "'prompt', 'target' or 'query' is not a text"
    if "choices" not in row:
        return None
    choices, gold = row["choices"], row["gold"]
    if not isinstance(choices, list) or not all(isinstance(c, str) and c for c in choices):
        return "'choices' is not a list of texts, none of them empty"
    if not isinstance(gold, int) or not 0 <= gold < len(choices):
        return "no choice has the number in 'gold'"
    return None

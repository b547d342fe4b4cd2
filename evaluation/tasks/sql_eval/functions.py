"""SQL-Eval for the harness: prompts, and answers run on a database engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from evaluation.ends import ENDS
from evaluation.sql import extraction
from evaluation.sql.sql_eval import SqlEval, dialect_of

if TYPE_CHECKING:
    from evaluation.items import Context

_RESOURCE = "sql_eval"
ENDS["sql"] = ((";", extraction.FENCE), extraction.is_complete)


def _opened(context: Context) -> SqlEval:
    if _RESOURCE not in context.resources:
        context.resources[_RESOURCE] = SqlEval(
            context.data / "databases/sql_eval", context.engine, context.postgres
        )
    return context.resources[_RESOURCE]


def definition(task: str, prompt: str | None, fidelity: str) -> dict[str, Any]:
    """Return what a fidelity changes in a task's definition; there is one prompt."""
    if fidelity == "published":
        return {}
    # No string ends a statement by itself: it may be quoted, or be a fence that is opened again.
    return {"generation_kwargs": {"until": [], "ends": "sql"}}


def prompt(doc: dict[str, Any], context: Context) -> str:
    """Build an item's prompt for the engine of the run."""
    return _opened(context).prompt(doc)


def target(doc: dict[str, Any], context: Context) -> str:
    """Return an item's gold query with its alternatives, for the engine of the run."""
    return dialect_of(doc, context.engine)["query"]


def process_results(
    doc: dict[str, Any], results: Sequence[str], context: Context
) -> dict[str, Any]:
    """Run an answer and compare what it returns with the gold queries' results.

    Returns:
        correct and exact (0 or 1), and category, database, engine, outcome, statement.
    """
    verdict = _opened(context).judge(results[0], doc, context.task.fidelity or "published")
    return {
        "correct": float(verdict.correct),
        "exact": float(verdict.exact),
        "category": doc["query_category"],
        "database": doc["db_name"],
        "engine": context.engine,
        "outcome": verdict.outcome,
        "statement": verdict.statement,
    }

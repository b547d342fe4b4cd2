"""How the gold queries fare against themselves, and SQLite against PostgreSQL."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import read_jsonl
from evaluation.sql import comparison_corrected, gold
from evaluation.sql.engines import Compared, Engine, Result
from evaluation.sql.sql_eval import SqlEval, SqlEvalJudge, dialect_of

FIDELITIES = ("published", "corrected")


@dataclass
class SelfCheck:
    """Gold queries judged as if a model had written them.

    Attributes:
        questions: Questions tried.
        queries: Alternatives tried.
        failures: Item and alternative of each that was not correct, with the outcome.
        empty: Alternatives that return no row.
    """

    questions: int = 0
    queries: int = 0
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    empty: int = 0


def check_gold(engine: Engine, rows: Sequence[dict[str, Any]], fidelity: str) -> SelfCheck:
    """Judge every alternative of every gold query by the published or corrected rule."""
    judge = SqlEvalJudge(engine, fidelity)
    expand = getattr(gold, fidelity)
    check = SelfCheck()
    for row in rows:
        check.questions += 1
        for query in expand(dialect_of(row, engine.name)["query"]):
            check.queries += 1
            verdict = judge.judge(query, row)
            if not verdict.correct:
                check.failures.append((str(row["id"]), query, verdict.outcome))
            check.empty += not engine.execute(row["db_name"], query).rows
    return check


def _plain(result: Result) -> Result:
    """Write dates and times as SQLite has them."""

    def plain(value: Any) -> Any:
        if isinstance(value, datetime.datetime):
            return value.replace(tzinfo=None).isoformat(sep=" ")
        if isinstance(value, datetime.date | datetime.time):
            return value.isoformat()
        return value

    return Result(result.columns, [tuple(map(plain, row)) for row in result.rows])


def disagreements(
    engines: tuple[Engine, Engine], rows: Iterable[dict[str, Any]]
) -> dict[str, list[str]]:
    """Compare what a question's first gold query returns on two engines.

    Returns:
        By category the ids of the items whose results differ, rows taken as a set and numbers to
        1e-5; a category in which none differs has an empty list.
    """
    found: dict[str, list[str]] = {}
    for row in rows:
        differing = found.setdefault(row["query_category"], [])
        results = []
        for engine in engines:
            query = gold.corrected(dialect_of(row, engine.name)["query"])[0]
            results.append(_plain(engine.execute(row["db_name"], query)))
        first, second = results
        match = comparison_corrected.compare(Compared(first, second, "", "", "", ""))
        if not match.exact:
            differing.append(str(row["id"]))
    return found


def report(data: Path, split: str = "test") -> str:
    """Run all gold queries of converted data on both engines; return a few lines a task.

    Raises:
        UserError: The data or PostgreSQL are missing.
    """
    files = sorted((data / split / "sql_eval").glob("*.jsonl"))
    if not files:
        raise UserError(f"{data / split / 'sql_eval'}: no items; convert the data first")
    dumps = data / "databases/sql_eval"
    lines = []
    lite = SqlEval(dumps, "sqlite")
    try:
        post = SqlEval(dumps, "postgres")
        try:
            for file in files:
                lines += _task_lines(file.stem, read_jsonl(file), (lite.engine, post.engine))
        finally:
            post.close()
    finally:
        lite.close()
    return "\n".join(lines)


def _task_lines(name: str, rows: list[dict[str, Any]], engines: tuple[Engine, Engine]) -> list[str]:
    lines = [f"{name}: {len(rows)} questions"]
    for engine in engines:
        for fidelity in FIDELITIES:
            check = check_gold(engine, rows, fidelity)
            good = check.queries - len(check.failures)
            lines.append(
                f"  {engine.name:<9}{fidelity:<10} {good}/{check.queries} gold queries right, "
                f"{check.empty} without rows"
            )
            lines += [f"    {id}: {outcome}: {query}" for id, query, outcome in check.failures]
    found = disagreements(engines, rows)
    sizes = Counter(row["query_category"] for row in rows)
    differing = sum(map(len, found.values()))
    lines.append(f"  first gold result alike on both: {len(rows) - differing}/{len(rows)}")
    for category, ids in found.items():
        alike = sizes[category] - len(ids)
        rest = f"  not: {', '.join(ids)}" if ids else ""
        lines.append(f"    {category:<34}{alike:>3}/{sizes[category]}{rest}")
    return lines

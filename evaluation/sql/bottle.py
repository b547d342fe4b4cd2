"""Judging the bottle's SQL task: the gold query's rows, no alternatives."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from common.errors import UserError
from common.manifest import check_recorded
from evaluation.sql import sqlite
from evaluation.sql.engines import Refused, Verdict
from evaluation.sql.extraction import after_cue

_ORDER_BY = re.compile(r"\border\s+by\b", re.IGNORECASE)


def same_result(rows: list[tuple], gold: list[tuple], ordered: bool) -> bool:
    """Say whether two query results hold the same rows equally often, whatever the columns' names.

    Floats are compared to ten digits, because the order of a sum may change the last ones.
    """

    def normal(result: list[tuple]) -> list[tuple]:
        return [tuple(float(f"{v:.10g}") if isinstance(v, float) else v for v in r) for r in result]

    if ordered:
        return normal(rows) == normal(gold)
    return Counter(normal(rows)) == Counter(normal(gold))


class Judge:
    """Judges generated queries against gold ones, on the SQLite files of a folder."""

    def __init__(self, databases: Path) -> None:
        self._databases = databases
        self._gold: dict[tuple[str, str], list[tuple]] = {}
        self._verdicts: dict[tuple[str, str, str], Verdict] = {}

    def _gold_rows(self, database: str, query: str) -> list[tuple]:
        key = (database, query)
        if key not in self._gold:
            path = self._databases / database
            if Path(database).name != database or not path.is_file():
                raise UserError(f"{path}: no such database; make the data again")
            check_recorded(path)
            try:
                self._gold[key] = sqlite.execute(path, after_cue(query)).rows
            except Refused as error:
                raise UserError(
                    f"{path}: gold query {query!r} {error}; make the data again"
                ) from None
        return self._gold[key]

    def judge(self, answer: str, gold: str, database: str) -> Verdict:
        """Run a model's answer and compare what it returns.

        Args:
            answer: The model's text; a query that fails or is stopped is wrong.
            gold: The gold query; the order of rows counts where it has an ORDER BY.
            database: Name of a file in the folder.

        Raises:
            UserError: The database is missing or the gold query itself fails.
        """
        key = (answer, gold, database)
        if key not in self._verdicts:
            self._verdicts[key] = self._compare(*key)
        return self._verdicts[key]

    def _compare(self, answer: str, gold: str, database: str) -> Verdict:
        expected = self._gold_rows(database, gold)
        statement = after_cue(answer)
        if not statement:
            return Verdict(False, "no statement", statement)
        try:
            rows = sqlite.execute(self._databases / database, statement).rows
        except Refused as error:
            return Verdict(False, str(error), statement)
        correct = same_result(rows, expected, ordered=bool(_ORDER_BY.search(gold)))
        return Verdict(correct, "correct" if correct else "wrong", statement, correct)

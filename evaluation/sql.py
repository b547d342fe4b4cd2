"""Execution of model-written SQL, which is hostile input, and comparison of its result.

A query runs on a fresh connection to a read-only, immutable database. An authorizer admits
reading only, limits bound every string and the memory, and the work is bounded by a number of
steps of SQLite's machine, so that a query is cut at the same place on a slow machine as on a
fast one; the clock is only the last resort.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from common.errors import UserError

MAX_STEPS = 5_000_000  # a few tenths of a second; the gold queries need some thousands
MAX_SECONDS = 5.0
MAX_ROWS = 1_000
MAX_BYTES = 100_000  # of one string, blob or row: functions such as instr() are quadratic in it
MAX_HEAP = 64_000_000  # bytes that SQLite may hold in this process
_STEPS_A_CALL = 1_000

_ALLOWED = {
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
}
# Functions that reach outside the query, or whose value differs between two runs.
_FORBIDDEN_FUNCTIONS = {"load_extension", "fts3_tokenizer", "random", "randomblob"}

_ORDER_BY = re.compile(r"\border\s+by\b", re.IGNORECASE)
# A string, a quoted name or a comment, inside which a semicolon ends nothing.
_OPAQUE = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|--[^\n]*|/\*.*?\*/|;", re.DOTALL)


class Refused(Exception):
    """A query that failed, was not allowed or was stopped; the message says which."""


@dataclass(frozen=True)
class Verdict:
    """How a generated query was judged.

    Attributes:
        correct: Whether its result equals the gold query's.
        outcome: correct, wrong, or why it gave no result.
        statement: The statement that was run.
    """

    correct: bool
    outcome: str
    statement: str


def extract(text: str) -> str:
    """Find the statement in a model's answer.

    Args:
        text: The answer; what stands after the last ``SQL:``, if there is one, is the query.

    Returns:
        The first statement, without its semicolon. A semicolon inside a string, a quoted name
        or a comment does not end it.
    """
    text = text.rpartition("SQL:")[2]
    for match in _OPAQUE.finditer(text):
        if match.group() == ";":
            return text[: match.start()].strip()
    return text.strip()


def _authorize(action: int, first: str | None, second: str | None, *_: str | None) -> int:
    if action not in _ALLOWED:
        return sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _FORBIDDEN_FUNCTIONS:
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK


def _connect(database: Path) -> sqlite3.Connection:
    address = f"file:{quote(str(database.resolve()))}?mode=ro&immutable=1"
    connection = sqlite3.connect(address, uri=True, isolation_level=None)
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute(f"PRAGMA hard_heap_limit = {MAX_HEAP}")
    for limit, value in (
        (sqlite3.SQLITE_LIMIT_LENGTH, MAX_BYTES),
        (sqlite3.SQLITE_LIMIT_SQL_LENGTH, 10_000),
        (sqlite3.SQLITE_LIMIT_EXPR_DEPTH, 50),
        (sqlite3.SQLITE_LIMIT_COMPOUND_SELECT, 10),
        (sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 100),
        (sqlite3.SQLITE_LIMIT_ATTACHED, 0),
        (sqlite3.SQLITE_LIMIT_WORKER_THREADS, 0),
    ):
        connection.setlimit(limit, value)
    connection.set_authorizer(_authorize)
    return connection


def execute(
    database: Path, statement: str, max_steps: int = MAX_STEPS, max_seconds: float = MAX_SECONDS
) -> list[tuple]:
    """Run one statement that may only read.

    Args:
        database: An SQLite file.
        statement: One SQL statement; anything may stand here.
        max_steps: Steps of SQLite's machine before the query is stopped.
        max_seconds: Wall-clock time before the query is stopped.

    Returns:
        The rows.

    Raises:
        Refused: It is not one valid reading statement, or it exceeded a limit.
    """
    connection = _connect(database)
    deadline = time.monotonic() + max_seconds
    calls = 0

    def stop() -> bool:
        nonlocal calls
        calls += 1
        return calls * _STEPS_A_CALL > max_steps or time.monotonic() > deadline

    connection.set_progress_handler(stop, _STEPS_A_CALL)
    try:
        rows = connection.execute(statement).fetchmany(MAX_ROWS + 1)
    except sqlite3.OperationalError as error:
        reason = "stopped: too much work" if str(error) == "interrupted" else f"failed: {error}"
        raise Refused(reason) from None
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
        # ValueError covers a null character and text that is not UTF-8.
        raise Refused(f"failed: {error}") from None
    except MemoryError:
        raise Refused("stopped: too much memory") from None
    finally:
        connection.close()
    if len(rows) > MAX_ROWS:
        raise Refused(f"stopped: more than {MAX_ROWS} rows")
    return rows


def same_result(rows: list[tuple], gold: list[tuple], ordered: bool) -> bool:
    """Compare two query results.

    Args:
        rows: The generated query's rows.
        gold: The gold query's rows.
        ordered: Whether the order of the rows counts.

    Returns:
        Whether both hold the same rows equally often, column by column, names aside. Floats are
        compared to ten digits, because the order of a sum may change the last ones.
    """

    def normal(result: list[tuple]) -> list[tuple]:
        return [tuple(float(f"{v:.10g}") if isinstance(v, float) else v for v in r) for r in result]

    if ordered:
        return normal(rows) == normal(gold)
    return Counter(normal(rows)) == Counter(normal(gold))


class Judge:
    """Judges generated queries against gold ones.

    Args:
        databases: Folder with the SQLite files that the items name.
    """

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
            try:
                self._gold[key] = execute(path, extract(query))
            except Refused as error:
                raise UserError(
                    f"{path}: gold query {query!r} {error}; make the data again"
                ) from None
        return self._gold[key]

    def judge(self, answer: str, gold: str, database: str) -> Verdict:
        """Run a model's answer and compare what it returns.

        Args:
            answer: The model's text.
            gold: The gold query; the order of rows counts where it has an ORDER BY.
            database: Name of a file in the folder.

        Returns:
            The verdict; a query that fails or is stopped is wrong.

        Raises:
            UserError: The database is missing or the gold query itself fails.
        """
        key = (answer, gold, database)
        if key not in self._verdicts:
            self._verdicts[key] = self._compare(*key)
        return self._verdicts[key]

    def _compare(self, answer: str, gold: str, database: str) -> Verdict:
        expected = self._gold_rows(database, gold)
        statement = extract(answer)
        if not statement:
            return Verdict(False, "no statement", statement)
        try:
            rows = execute(self._databases / database, statement)
        except Refused as error:
            return Verdict(False, str(error), statement)
        correct = same_result(rows, expected, ordered=bool(_ORDER_BY.search(gold)))
        return Verdict(correct, "correct" if correct else "wrong", statement)

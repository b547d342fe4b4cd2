"""SQLite for hostile queries.

A query runs on a fresh connection to a read-only, immutable database. An authorizer admits
reading only, limits bound every string and the memory, and the work is bounded by a number of
steps of SQLite's machine, so that a query is cut at the same place on a slow machine as on a
fast one; the clock is only the last resort.
"""

from __future__ import annotations

import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from evaluation.sql.engines import Refused, Result

_STEPS_A_CALL = 1_000

_ALLOWED = {
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
}
# Functions that reach outside the query, or whose value differs between two runs.
_FORBIDDEN_FUNCTIONS = {"load_extension", "fts3_tokenizer", "random", "randomblob"}


@dataclass(frozen=True)
class Limits:
    """Bounds on a query.

    Attributes:
        steps: Steps of SQLite's machine; the default takes a few tenths of a second.
        seconds: Wall-clock time.
        rows: Rows of the result.
        bytes: Bytes of one string, blob or row: functions such as instr() are quadratic in it.
        heap: Bytes that SQLite may hold in this process.
        statement: Characters of the statement.
        depth: Depth of an expression.
        compound: Terms of a compound SELECT.
    """

    steps: int = 5_000_000
    seconds: float = 5.0
    rows: int = 1_000
    bytes: int = 100_000
    heap: int = 64_000_000
    statement: int = 10_000
    depth: int = 50
    compound: int = 10


def _authorize(action: int, first: str | None, second: str | None, *_: str | None) -> int:
    if action not in _ALLOWED:
        return sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _FORBIDDEN_FUNCTIONS:
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK


def _connect(database: Path, limits: Limits) -> sqlite3.Connection:
    address = f"file:{quote(str(database.resolve()))}?mode=ro&immutable=1"
    connection = sqlite3.connect(address, uri=True, isolation_level=None)
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute(f"PRAGMA hard_heap_limit = {limits.heap}")
    for limit, value in (
        (sqlite3.SQLITE_LIMIT_LENGTH, limits.bytes),
        (sqlite3.SQLITE_LIMIT_SQL_LENGTH, limits.statement),
        (sqlite3.SQLITE_LIMIT_EXPR_DEPTH, limits.depth),
        (sqlite3.SQLITE_LIMIT_COMPOUND_SELECT, limits.compound),
        (sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 100),
        (sqlite3.SQLITE_LIMIT_ATTACHED, 0),
        (sqlite3.SQLITE_LIMIT_WORKER_THREADS, 0),
    ):
        connection.setlimit(limit, value)
    connection.set_authorizer(_authorize)
    return connection


def execute(database: Path, statement: str, limits: Limits | None = None) -> Result:
    """Run one statement, which may be any text, on an SQLite file.

    Raises:
        Refused: It is not one valid reading statement, or it exceeded a limit.
    """
    limits = limits or Limits()
    connection = _connect(database, limits)
    deadline = time.monotonic() + limits.seconds
    calls = 0

    def stop() -> bool:
        nonlocal calls
        calls += 1
        return calls * _STEPS_A_CALL > limits.steps or time.monotonic() > deadline

    connection.set_progress_handler(stop, _STEPS_A_CALL)
    try:
        cursor = connection.execute(statement)
        rows = cursor.fetchmany(limits.rows + 1)
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
    if cursor.description is None:  # REINDEX without an index, a comment alone
        raise Refused("failed: not a query")
    if len(rows) > limits.rows:
        raise Refused(f"stopped: more than {limits.rows} rows")
    return Result(tuple(column[0] for column in cursor.description), rows)

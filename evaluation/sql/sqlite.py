"""SQLite for hostile queries.

A query runs on a fresh connection to a read-only, immutable database. An authorizer admits
reading only, limits bound every string and the memory, and the work is bounded by a number of
steps of SQLite's machine, so that a query is cut at the same place on a slow machine as on a
fast one; the clock is only the last resort. `evaluation.sql.functions` says which functions a
query may call, and counts the work of those that can do much in one call.
"""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from evaluation.sql import functions
from evaluation.sql.engines import UNREADABLE, Refused, Result, row_size

_STEPS_A_CALL = 1_000


@dataclass(frozen=True)
class Limits:
    """Bounds on a query.

    Attributes:
        steps: Steps of SQLite's machine; the default takes a few tenths of a second.
        seconds: Wall-clock time.
        rows: Rows of the result.
        bytes: Bytes of one string or blob, and of one row of the result.
        heap: Bytes that SQLite may hold in this process.
        statement: Characters of the statement.
        depth: Depth of an expression.
        compound: Terms of a compound SELECT.
    """

    steps: int = 5_000_000
    seconds: float = 5.0
    rows: int = 1_000
    bytes: int = 20_000
    heap: int = 64_000_000
    statement: int = 10_000
    depth: int = 50
    compound: int = 10


def _limit(connection: sqlite3.Connection, limits: Limits) -> None:
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


def _connect(
    database: Path, plain: sqlite3.Connection, limits: Limits, meter: functions.Meter
) -> sqlite3.Connection:
    address = f"file:{quote(str(database.resolve()))}?mode=ro&immutable=1"
    connection = sqlite3.connect(address, uri=True, isolation_level=None)
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute(f"PRAGMA hard_heap_limit = {limits.heap}")
    _limit(connection, limits)
    _limit(plain, limits)
    functions.replace(connection, plain, meter)
    connection.set_authorizer(functions.authorize)
    connection.set_progress_handler(lambda: meter.spend(_STEPS_A_CALL), _STEPS_A_CALL)
    return connection


def execute(database: Path, statement: str, limits: Limits | None = None) -> Result:
    """Run one statement, which may be any text, on an SQLite file.

    Raises:
        Refused: It is not one valid reading statement, or it exceeded a limit.
    """
    limits = limits or Limits()
    meter = functions.Meter(limits.steps, limits.seconds)
    with (
        contextlib.closing(sqlite3.connect(":memory:")) as plain,
        contextlib.closing(_connect(database, plain, limits, meter)) as connection,
    ):
        try:
            return _fetch(connection, statement, limits)
        except (sqlite3.Error, sqlite3.Warning, *UNREADABLE) as error:
            if meter.over:
                raise Refused("stopped: too much work") from None
            raise Refused(f"failed: {meter.problem or error}") from None
        except MemoryError:
            raise Refused("stopped: too much memory") from None


def _fetch(connection: sqlite3.Connection, statement: str, limits: Limits) -> Result:
    cursor = connection.execute(statement)
    if cursor.description is None:  # REINDEX without an index, a comment alone
        raise Refused("failed: not a query")
    rows: list[tuple] = []
    for row in cursor:
        if len(rows) == limits.rows:
            raise Refused(f"stopped: more than {limits.rows} rows")
        if row_size(row) > limits.bytes:
            raise Refused(f"stopped: a row of more than {limits.bytes} bytes")
        rows.append(row)
    return Result(tuple(column[0] for column in cursor.description), rows)

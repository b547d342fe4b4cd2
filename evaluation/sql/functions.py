"""Which of SQLite's functions a query may call, and how the work of a single call is bounded.

SQLite compares its work with a limit between jumps of its program alone, so that nothing stops one
call of a function. Functions whose work grows faster than their arguments are therefore replaced:
the replacement counts the work first, and then lets SQLite do it on a separate connection.
"""

from __future__ import annotations

import re
import sqlite3
import time
from typing import Any

Value = str | bytes | int | float | None

REFUSED = {
    "reaches outside the query": {"load_extension", "fts3_tokenizer", "sqlite_log"},
    "differs between two runs or two machines": {
        *("random", "randomblob", "sqlite_version", "sqlite_source_id"),
        *("sqlite_compileoption_get", "sqlite_compileoption_used", "fts5_source_id"),
    },
    "reads any bytes as the inside of a search index": {
        *("bm25", "fts5", "highlight", "match", "matchinfo", "offsets", "optimize", "snippet"),
        *("rtreecheck", "rtreedepth", "rtreenode"),
    },
    # A replacement would lose that its result is JSON and not text.
    "has work that grows with the product of its arguments": {"json_patch"},
}

# With the number of arguments (-1 for any) for which they are replaced.
METERED = (
    *(("instr", 2), ("replace", 3), ("trim", 2), ("ltrim", 2), ("rtrim", 2)),
    *(("like", 2), ("like", 3), ("glob", 2), ("printf", -1), ("format", -1)),
)

# Work in proportion to the arguments: at most 6 ms for 20,000 bytes and 120 arguments. A function
# that is in no list is refused, so that a newer SQLite neither opens a hole nor changes a score.
_NAMES = """
-> ->> abs acos acosh asin asinh atan atan2 atanh avg ceil ceiling changes char coalesce cos
cosh count cume_dist current_date current_time current_timestamp date datetime degrees
dense_rank exp first_value floor group_concat hex ifnull iif json json_array json_array_length
json_extract json_group_array json_group_object json_insert json_object json_quote json_remove
json_replace json_set json_type json_valid julianday lag last_insert_rowid last_value lead
length likelihood likely ln log log10 log2 lower ltrim max min mod nth_value ntile nullif
percent_rank pi pow power quote radians rank round row_number rtrim sign sin sinh soundex sqrt
strftime substr substring subtype sum tan tanh time total total_changes trim trunc typeof
unicode unixepoch unlikely upper zeroblob
"""
PLAIN = frozenset(_NAMES.split())
_ALLOWED = PLAIN | {name for name, _ in METERED}

# Tables that SQLite makes itself and that show this process or the file's pages.
_REFUSED_TABLES = {"dbstat", "sqlite_dbpage", "sqlite_stmt", "bytecode", "tables_used"}

_ACTIONS = {
    *(sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ),
    *(sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE),
}

# A step of SQLite's machine takes about 0.1 us, a replaced call 5 us, and the comparison of two
# characters 4 ns in the slowest case (a set of characters in GLOB).
_STEPS_A_CALL = 50
_PAIRS_A_STEP = 25


def authorize(action: int, first: str | None, second: str | None, *_: str | None) -> int:
    """Say whether SQLite may do what a query asks for; see `sqlite3.set_authorizer`."""
    allowed = action in _ACTIONS
    if action == sqlite3.SQLITE_FUNCTION:
        allowed = (second or "").lower() in _ALLOWED
    if action == sqlite3.SQLITE_READ:
        allowed = (first or "").lower() not in _REFUSED_TABLES
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


class Meter:
    """Counts a query's work, that of SQLite's machine and that of replaced functions.

    Attributes:
        problem: Why a replaced function refused its arguments, empty if none did.
    """

    def __init__(self, steps: int, seconds: float) -> None:
        self._left = steps
        self._deadline = time.monotonic() + seconds
        self.problem = ""

    def spend(self, steps: int) -> bool:
        """Count steps; say whether the query must stop."""
        self._left -= steps
        return self.over

    @property
    def over(self) -> bool:
        """Whether the query has used up its steps or its time."""
        return self._left < 0 or time.monotonic() > self._deadline


def _size(value: Value) -> int:
    return len(value) if isinstance(value, str | bytes) else 20


def _work(name: str, arguments: tuple[Value, ...], widest: int) -> int:
    """Count a call's work, in pairs of characters.

    Raises:
        ValueError: A format asks for a width or precision beyond `widest`, or for one from an
            argument.
    """
    if name not in ("printf", "format"):
        return _size(arguments[0]) * _size(arguments[1])
    form = arguments[0] if arguments else ""
    text = form.decode(errors="replace") if isinstance(form, bytes) else str(form)
    widths = [int(digits) for digits in re.findall("[0-9]+", text)]
    if "*" in text or max(widths, default=0) > widest:
        raise ValueError(f"{name}() with a width over {widest}, or from an argument")
    return sum(widths) + sum(map(_size, arguments))


def replace(connection: sqlite3.Connection, plain: sqlite3.Connection, meter: Meter) -> None:
    """Replace a connection's costly functions by ones that count their work before they do it.

    Args:
        connection: Where the query runs.
        plain: Another connection with the same limits, whose own functions do the work.
        meter: What counts.
    """
    widest = connection.getlimit(sqlite3.SQLITE_LIMIT_LENGTH)

    def metered(name: str) -> Any:
        def call(*arguments: Value) -> Value:
            try:
                work = _work(name, arguments, widest)
                if meter.spend(_STEPS_A_CALL + work // _PAIRS_A_STEP):
                    raise ValueError("too much work")
                marks = ",".join("?" * len(arguments))
                return plain.execute(f"SELECT {name}({marks})", arguments).fetchone()[0]
            except Exception as error:
                meter.problem = str(error)  # SQLite itself says only that a function failed
                raise

        return call

    for name, count in METERED:
        connection.create_function(name, count, metered(name), deterministic=True)

"""SQL-Eval's databases: reading the dumps, and building SQLite files from them.

The dumps are PostgreSQL's, and some rows are relative to the day of loading. A value is computed
here from the parsed dump, so that no dialect has to be translated into another.
"""

from __future__ import annotations

import calendar
import datetime
import sqlite3
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import sqlglot
from sqlglot import exp

from common.errors import UserError
from common.manifest import check_recorded

_Type = exp.DataType.Type
_SERIAL = (_Type.SERIAL, _Type.BIGSERIAL)
_UNITS = {
    "SECOND": datetime.timedelta(seconds=1),
    "MIN": datetime.timedelta(minutes=1),
    "MINUTE": datetime.timedelta(minutes=1),
    "HOUR": datetime.timedelta(hours=1),
    "DAY": datetime.timedelta(days=1),
    "WEEK": datetime.timedelta(weeks=1),
}


@dataclass
class Table:
    """A table of a dump.

    Attributes:
        name: Its name without a schema.
        columns: Names of the columns with their types in SQLite.
        rows: The values, as SQLite stores them.
    """

    name: str
    columns: dict[str, str]
    rows: list[tuple]


def dumps(folder: Path) -> dict[str, Path]:
    """Find the dumps `<database>.sql` of a folder, by the databases' names.

    Raises:
        UserError: There is none.
    """
    check_recorded(folder)
    found = {path.stem: path for path in sorted(folder.glob("*.sql"))}
    if not found:
        raise UserError(f"{folder}: no databases (*.sql); convert the data with suite sql_eval")
    return found


def utc_now() -> datetime.datetime:
    """Return the time without a zone, in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).replace(tzinfo=None, microsecond=0)


def _as_time(value: Any) -> datetime.datetime:
    if isinstance(value, str):
        return datetime.datetime.fromisoformat(value)
    if isinstance(value, datetime.datetime):
        return value
    return datetime.datetime.combine(value, datetime.time())


def _shift(value: Any, count: int, unit: str) -> datetime.datetime:
    """Move a time by an interval; a month that is too short gives its last day."""
    time = _as_time(value)
    if unit in _UNITS:
        return time + count * _UNITS[unit]
    if unit not in ("MONTH", "YEAR"):
        raise ValueError(f"an interval in {unit}")
    months = time.year * 12 + time.month - 1 + count * (12 if unit == "YEAR" else 1)
    year, month = divmod(months, 12)
    day = min(time.day, calendar.monthrange(year, month + 1)[1])
    return time.replace(year=year, month=month + 1, day=day)


def _truncate(value: Any, unit: str) -> datetime.datetime:
    midnight = _as_time(value).replace(hour=0, minute=0, second=0, microsecond=0)
    if unit == "WEEK":
        return midnight - datetime.timedelta(days=midnight.weekday())
    if unit == "MONTH":
        return midnight.replace(day=1)
    return midnight.replace(month=1, day=1) if unit == "YEAR" else midnight


def _text_of_time(time: datetime.datetime, format: str) -> str:
    """Write a time in one of the two formats of the dumps."""
    if format == "Month":  # PostgreSQL pads the name, which SQLite's gold queries do not expect
        return calendar.month_name[time.month]
    if format.startswith("%Y%m"):
        # PostgreSQL reads this one as noise; the column's comment asks for yyyyMMdd HH:mm:ss.
        return time.strftime("%Y%m%d %H:%M:%S")
    raise ValueError(f"a time in the format {format!r}")


def _unit(node: Any) -> str:
    if node.unit is None:
        raise ValueError(f"no unit in {node.sql(dialect='postgres')!r}")
    return node.unit.name.upper()


def _value(node: Any, now: datetime.datetime) -> Any:
    """Compute a value of a dump."""
    # Only what the dumps contain is read; anything else is refused at the end.
    if isinstance(node, exp.Literal):
        if node.is_string:
            return node.this
        return int(node.this) if node.this.isdigit() else Decimal(node.this)
    if isinstance(node, exp.Boolean):
        return node.this
    if isinstance(node, exp.Null):
        return None
    if isinstance(node, exp.CurrentDate):
        return now.date()
    if isinstance(node, exp.CurrentTimestamp):
        return now
    if isinstance(node, exp.Neg):
        return -_value(node.this, now)
    if isinstance(node, exp.Paren | exp.Cast):
        return _value(node.this, now)
    if isinstance(node, exp.TimestampTrunc):
        return _truncate(_value(node.this, now), _unit(node))
    if isinstance(node, exp.TimeToStr):
        return _text_of_time(_as_time(_value(node.this, now)), node.args["format"].name)
    if isinstance(node, exp.Extract):
        time = _as_time(_value(node.expression, now))
        if node.name.upper() == "EPOCH":
            return int(time.replace(tzinfo=datetime.UTC).timestamp())
        return getattr(time, node.name.lower())
    if isinstance(node, exp.Add | exp.Sub | exp.Mul):
        left, right = node.this, node.expression
        if isinstance(node, exp.Mul):
            return _value(left, now) * _value(right, now)
        sign = 1 if isinstance(node, exp.Add) else -1
        if isinstance(right, exp.Interval):
            unit = _unit(right).removesuffix("S")
            return _shift(_value(left, now), sign * int(right.this.name), unit)
        return _value(left, now) + sign * _value(right, now)
    raise ValueError(f"cannot read {node.sql(dialect='postgres')!r}")


def _stored(value: Any, kind: Any) -> Any:
    """Convert a value as PostgreSQL does on insertion, into what SQLite stores."""
    if value is None:
        return None
    base = kind.this
    if base == _Type.DATE:
        return _as_time(value).date().isoformat()
    if base == _Type.TIMESTAMP:
        return _as_time(value).isoformat(sep=" ")
    if base in (_Type.BOOLEAN, _Type.INT, _Type.BIGINT, *_SERIAL):
        return int(value)
    if base == _Type.DECIMAL:
        parameters = kind.expressions
        if len(parameters) == 2:
            return float(round(Decimal(value), int(parameters[1].name)))
        return float(value)
    if base in (_Type.DOUBLE, _Type.FLOAT):
        return float(value)
    return str(value)


def _default(column: Any, number: int, now: datetime.datetime) -> Any:
    if column.kind.this in _SERIAL:
        return number
    default = column.find(exp.DefaultColumnConstraint)
    return None if default is None else _value(default.this, now)


def read_dump(path: Path, now: datetime.datetime | None = None) -> list[Table]:
    """Read the tables of a dump: a file of CREATE and INSERT statements for PostgreSQL.

    Relative rows refer to the time `now`, in UTC.

    Raises:
        UserError: The file holds something else.
    """
    now = now or utc_now()
    tables: dict[str, Table] = {}
    definitions: dict[str, dict[str, exp.ColumnDef]] = {}
    try:
        statements: list[Any] = sqlglot.parse(path.read_text(encoding="utf-8"), read="postgres")
        for statement in statements:
            if isinstance(statement, exp.Create) and statement.kind == "TABLE":
                name = statement.this.this.name
                columns = {column.name: column for column in statement.find_all(exp.ColumnDef)}
                types = {n: _sqlite_type(column.kind) for n, column in columns.items()}
                tables[name], definitions[name] = Table(name, types, []), columns
            elif isinstance(statement, exp.Insert):
                name = statement.this.find(exp.Table).name
                # Without a list of columns the values have the table's order.
                given = [column.name for column in statement.this.expressions]
                _insert(tables[name], definitions[name], given, statement.expression, now)
            elif statement is not None and not isinstance(statement, exp.Create):
                raise ValueError(f"a {type(statement).__name__} is among the tables")
    except (sqlglot.errors.SqlglotError, ValueError, KeyError) as error:
        problem = str(error).splitlines()[0]
        raise UserError(
            f"{path}: not a readable dump ({problem}); convert the data again"
        ) from None
    return list(tables.values())


def _sqlite_type(kind: Any) -> str:
    return "INTEGER" if kind.this in _SERIAL else kind.sql(dialect="sqlite")


def _insert(
    table: Table,
    columns: dict[str, exp.ColumnDef],
    given: list[str],
    values: exp.Expression,
    now: datetime.datetime,
) -> None:
    positions = {name.lower(): i for i, name in enumerate(given or columns)}
    for row in values.expressions:
        stored = []
        for name, column in columns.items():
            position = positions.get(name.lower())
            if position is None:
                value = _default(column, len(table.rows) + 1, now)
            else:
                value = _value(row.expressions[position], now)
            stored.append(_stored(value, column.kind))
        table.rows.append(tuple(stored))


def build_sqlite(folder: Path, out: Path, now: datetime.datetime | None = None) -> dict[str, Path]:
    """Build `out/<database>.sqlite` from each dump of a folder; return the files by database.

    Relative rows refer to the time `now`, in UTC.

    Raises:
        UserError: A dump is missing or cannot be read.
    """
    now = now or utc_now()
    files = {}
    for name, dump in dumps(folder).items():
        files[name] = out / f"{name}.sqlite"
        files[name].unlink(missing_ok=True)
        connection = sqlite3.connect(files[name])
        with connection:
            for table in read_dump(dump, now):
                columns = ", ".join(f'"{column}" {kind}' for column, kind in table.columns.items())
                connection.execute(f'CREATE TABLE "{table.name}" ({columns})')
                marks = ", ".join("?" * len(table.columns))
                connection.executemany(f'INSERT INTO "{table.name}" VALUES ({marks})', table.rows)
        connection.close()
    return files

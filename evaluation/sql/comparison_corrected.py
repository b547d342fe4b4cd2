"""The rule without the published one's faults.

Rows are compared as sets, as the published rule means to: no broadcasting, NULL equals NULL alone,
numbers agree to 1e-5 in both degrees. Where the question asks for an order and the gold query
has one, the rows must come in it; rows that tie in the gold query's ORDER BY may change places.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

import sqlglot
from sqlglot import exp

from evaluation.sql.engines import Compared, Match, Result

RELATIVE, ABSOLUTE = 1e-5, 1e-8  # the tolerance of pandas, which the published rule's `correct` has
_MAX_ASSIGNMENTS = 200  # pairings of columns that are tried; a handful is usual

_ASKS_FOR_ORDER = re.compile(r"\b(order|sort|arrange)(e?d|ing)?\b", re.IGNORECASE)


def _number(value: Any) -> int | float | None:
    """Return a value as a number, None if it is not one."""
    if isinstance(value, Decimal):
        value = float(value)
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int) or (isinstance(value, float) and not math.isnan(value)):
        return value
    return None


def _close(left: float, right: float) -> bool:
    if isinstance(left, int) and isinstance(right, int):
        return left == right
    return math.isclose(left, right, rel_tol=RELATIVE, abs_tol=ABSOLUTE)


def _split(row: tuple) -> tuple[tuple, tuple]:
    """Divide a row into what must be equal, and the numbers, which must be close."""
    numbers = tuple(number for value in row if (number := _number(value)) is not None)
    rest = tuple(
        "number" if _number(value) is not None else (type(value).__name__, repr(value))
        for value in row
    )
    return rest, numbers


def _ten_digits(numbers: tuple) -> tuple:
    """Round away what the order of a sum may change."""
    return tuple(n if isinstance(n, int) else float(f"{n:.10g}") for n in numbers)


def _distinct(rows: Sequence[tuple]) -> list[tuple]:
    """Drop rows that came before, heeding ten digits."""

    def key(row: tuple) -> tuple:
        rest, numbers = _split(row)
        return rest, _ten_digits(numbers)

    return list({key(row): row for row in reversed(rows)}.values())[::-1]


def _same_set(left: Sequence[tuple], right: Sequence[tuple]) -> bool:
    if len(left) != len(right):
        return False
    groups: list[dict[tuple, list[tuple]]] = []
    for rows in (left, right):
        group = defaultdict(list)
        for row in rows:
            rest, numbers = _split(row)
            group[rest].append(numbers)
        groups.append(group)
    if groups[0].keys() != groups[1].keys():
        return False
    return all(
        len(mine) == len(groups[1][rest])
        and all(
            all(map(_close, a, b))
            for a, b in zip(
                sorted(mine, key=_ten_digits),
                sorted(groups[1][rest], key=_ten_digits),
                strict=True,
            )
        )
        for rest, mine in groups[0].items()
    )


def _same_rows(gold: Sequence[tuple], answer: Sequence[tuple], keys: list[int] | None) -> bool:
    """Compare rows without their repetitions; with keys, in order up to ties in them."""
    gold, answer = _distinct(gold), _distinct(answer)
    if keys is None or len(gold) != len(answer):
        return _same_set(gold, answer)
    start = 0
    for _, tied in itertools.groupby(gold, key=lambda row: _split(tuple(row[k] for k in keys))):
        count = len(list(tied))
        if not _same_set(gold[start : start + count], answer[start : start + count]):
            return False
        start += count
    return True


def order_keys(query: str, columns: int, dialect: str) -> list[int] | None:
    """Find the result's columns that a query's outermost ORDER BY depends on.

    Args:
        query: The gold query.
        columns: How many columns its result has.
        dialect: sqlite or postgres.

    Returns:
        Positions of the columns, None if there is no ORDER BY. Where a key is not among the
        result's columns ties cannot be found, and all positions are returned.
    """
    everything = list(range(columns))
    try:
        tree: Any = sqlglot.parse_one(query, read=dialect)
    except sqlglot.errors.SqlglotError:
        return everything if re.search(r"\border\s+by\b", query, re.IGNORECASE) else None
    order = tree.args.get("order")
    if order is None:
        return None
    selected = tree.selects
    if len(selected) != columns:  # a star
        return everything
    positions: dict[str, int] = {}
    for position, item in enumerate(selected):
        positions[item.unalias().sql(dialect)] = position
        if item.alias_or_name:
            positions[item.alias_or_name.lower()] = position
    keys: set[int] = set()
    for ordered in order.expressions:
        key = ordered.this
        if isinstance(key, exp.Literal) and key.this.isdigit():
            keys.add(int(key.this) - 1)
            continue
        whole = positions.get(key.sql(dialect), positions.get(key.name.lower()))
        parts = [key] if whole is not None else list(key.find_all(exp.Column))
        for part in parts:
            found = positions.get(part.sql(dialect), positions.get(part.name.lower()))
            if found is None or (key.find(exp.AggFunc) and whole is None):
                return everything
            keys.add(found)
    return sorted(keys) if keys and max(keys) < columns else everything


def _column(result: Result, position: int) -> list[tuple]:
    return _distinct([(row[position],) for row in result.rows])


def _assignments(gold: Result, answer: Result) -> Iterator[tuple[int, ...]]:
    """Yield ways to find every gold column among the answer's, equal names first."""
    candidates = []
    others = [_column(answer, position) for position in range(len(answer.columns))]
    for position, name in enumerate(gold.columns):
        values = _column(gold, position)
        fitting = [i for i, other in enumerate(others) if _same_set(values, other)]
        candidates.append(sorted(fitting, key=lambda i: answer.columns[i] != name))

    # The rarest first: an answer of a thousand equal columns must not hide that one is missing.
    order = sorted(range(len(candidates)), key=lambda position: len(candidates[position]))

    def extend(chosen: dict[int, int]) -> Iterator[tuple[int, ...]]:
        if len(chosen) == len(candidates):
            yield tuple(chosen[position] for position in range(len(candidates)))
            return
        position = order[len(chosen)]
        for candidate in candidates[position]:
            if candidate not in chosen.values():
                yield from extend(chosen | {position: candidate})

    return itertools.islice(extend({}), _MAX_ASSIGNMENTS)


def _take(result: Result, positions: Sequence[int]) -> list[tuple]:
    return [tuple(row[position] for position in positions) for row in result.rows]


def compare(pair: Compared) -> Match:
    """Compare two results by the corrected rule.

    A gold result without rows is matched only by an empty one of as many columns.
    """
    gold, answer = pair.gold, pair.answer
    if len(answer.columns) < len(gold.columns) or bool(gold.rows) != bool(answer.rows):
        return Match(False, False)
    same_width = len(answer.columns) == len(gold.columns)
    if not gold.rows:
        return Match(same_width, same_width)
    keys = None
    if pair.category == "order_by" or _ASKS_FOR_ORDER.search(pair.question):
        keys = order_keys(pair.gold_query, len(gold.columns), pair.dialect)
    for chosen in _assignments(gold, answer):
        if _same_rows(gold.rows, _take(answer, chosen), keys):
            return Match(same_width, True)
    return Match(False, False)

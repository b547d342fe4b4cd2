"""The published rule, faults and all, where pandas and NumPy decide.

Kept as they are: an empty result of one column equals any gold result of one row, one value or
row equals any number of copies of it across rows or columns (broadcasting); where an order is
asked for, both results are sorted again, downwards unless ASC is said; NULL equals -99999;
numbers must agree to the last bit in `exact` but only to 1e-5 in `correct`. What raises an
exception is booked as a wrong answer by the caller.

Source: SQL-Eval, https://github.com/defog-ai/sql-eval, commit b833324.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from evaluation.sql.engines import Compared, Match, Result

if TYPE_CHECKING:  # pandas takes almost a second, and most judges never compare by this rule
    import pandas as pd

_ASKS_FOR_ORDER = re.compile(r"\b(order|sort|arrange)\b", re.IGNORECASE)
_CLAUSE = re.compile(r"ORDER BY[\s\S]*", re.IGNORECASE)
_FIRST_KEY = re.compile(r"(?<=ORDER BY)(.*?)(?=;|,|\)|$)", re.IGNORECASE)
_NOT_COLUMNS = {"desc", "asc", "nulls", "last", "first", "limit"}


def _frame(result: Result) -> pd.DataFrame:
    """Make a frame as pandas 2 read it: text in columns of objects, decimals as floats."""
    import pandas as pd

    frame = pd.DataFrame.from_records(
        result.rows, columns=range(len(result.columns)), coerce_float=True
    )
    for column in frame.columns:
        if isinstance(frame[column].dtype, pd.StringDtype):
            text = frame[column].astype(object)
            frame[column] = text.where(text.notna(), None)
    frame.columns = pd.Index(result.columns, dtype=object)
    return frame


def _order_keys(query: str) -> tuple[list[str], bool] | None:
    """Guess the columns and the direction of the first ORDER BY; None where there is none."""
    clause = _CLAUSE.search(query)
    if clause is None:
        return None
    found = _FIRST_KEY.findall(clause.group())
    words = [word.rpartition(".")[2] for word in found[0].split()] if found else []
    upper = {word.upper() for word in words}
    ascending = "ASC" in upper and "DESC" not in upper
    names = [word.replace(",", "").replace("(", "") for word in words]
    return [name for name in names if name.lower() not in _NOT_COLUMNS], ascending


def _normalised(
    frame: pd.DataFrame, category: str, question: str, query: str | None
) -> pd.DataFrame:
    frame = frame.drop_duplicates()
    frame = frame.reindex(sorted(frame.columns), axis=1)
    if category == "order_by" or _ASKS_FOR_ORDER.search(question):
        keys = _order_keys(query) if query else None
        if keys is not None:
            others = [name for name in frame.columns if name not in keys[0]]
            first = [name for name in keys[0] if name in frame.columns]
            frame = frame.sort_values(by=first + others, ascending=keys[1])[others + first]
    else:
        frame = frame.sort_values(by=list(frame.columns))
    return frame.reset_index(drop=True)


def _exact(gold: pd.DataFrame, answer: pd.DataFrame, pair: Compared) -> bool:
    try:
        if (gold.values == answer.values).all():
            return True
    except Exception:  # shapes that do not broadcast, values that do not compare
        pass
    gold = _normalised(gold, pair.category, pair.question, pair.gold_query)
    answer = _normalised(answer, pair.category, pair.question, pair.answer_query)
    if gold.shape != answer.shape:
        return False
    filled = [frame.astype(object).where(frame.notna(), -99999) for frame in (gold, answer)]
    return bool((filled[0].values == filled[1].values).all())


def _same_values(left: pd.Series, right: pd.Series) -> bool:
    from pandas.testing import assert_series_equal

    try:
        assert_series_equal(
            left.sort_values().reset_index(drop=True),
            right.sort_values().reset_index(drop=True),
            check_dtype=False,
            check_names=False,
        )
    except AssertionError:
        return False
    return True


def _subset(gold: pd.DataFrame, answer: pd.DataFrame, pair: Compared) -> bool:
    from pandas.testing import assert_frame_equal

    if gold.empty:
        return False
    left, matched = list(answer.columns), []
    for name in gold.columns:
        for candidate in left:
            if _same_values(gold[name], answer[candidate]):
                matched.append(candidate)
                left.remove(candidate)
                break
        else:
            return False
    renamed = answer[matched].rename(columns=dict(zip(matched, gold.columns, strict=True)))
    try:
        assert_frame_equal(
            _normalised(gold, pair.category, pair.question, None),
            _normalised(renamed, pair.category, pair.question, None),
            check_dtype=False,
        )
    except AssertionError:
        return False
    return True


def compare(pair: Compared) -> Match:
    """Compare two results by the published rule.

    Raises:
        Exception: Whatever pandas raises, for instance where columns share a name or values of
            several types must be sorted.
    """
    gold, answer = _frame(pair.gold), _frame(pair.answer)
    if _exact(gold, answer, pair):
        return Match(True, True)
    return Match(False, _subset(gold, answer, pair))

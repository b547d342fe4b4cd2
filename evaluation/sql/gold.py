"""The alternatives that a gold query of SQL-Eval stands for.

Semicolons separate alternatives. Braces stand for every non-empty choice of the columns in them,
and ``GROUP BY {}`` for the columns chosen:

    SELECT {u.id, u.name}, COUNT(*) FROM u GROUP BY {}

is one query with u.id, one with u.name and one with both.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from evaluation.sql.extraction import marks, split_statements

_GROUP_BY = "GROUP BY {}"


def _choices(columns: str) -> Iterator[str]:
    """Yield every non-empty choice of a list of columns, short ones first, in their order."""
    options = columns.split(",")
    for size in range(1, len(options) + 1):
        for chosen in itertools.combinations(options, size):
            yield ", ".join(chosen)


def published(gold: str) -> list[str]:
    """Expand a gold query's alternatives as the published SQL-Eval does.

    Any semicolon separates, even one inside a string, and only the first group of braces of an
    alternative is expanded: two faults.
    """
    queries = []
    for alternative in gold.split(";"):
        alternative = alternative.strip()
        start = alternative.find("{")
        end = alternative.find("}", start + 1)
        if start < 0 or end < 0:
            queries.append(alternative)
            continue
        before, columns, after = alternative[:start], *alternative[start + 1 :].split("}", 1)
        queries += [
            before + chosen + after.replace(_GROUP_BY, f"GROUP BY {chosen}")
            for chosen in _choices(columns)
        ]
    return [query for query in queries if query]


def _groups(alternative: str) -> list[tuple[int, int]]:
    """Find the groups of braces outside strings, as positions of their two braces."""
    groups, start = [], None
    for mark, position in marks(alternative):
        if mark == "{":
            start = position
        elif mark == "}" and start is not None:
            groups.append((start, position))
            start = None
    return groups


def corrected(gold: str) -> list[str]:
    """Expand a gold query's alternatives.

    Every group of braces is expanded, and strings are left alone. ``GROUP BY {}`` takes the columns
    chosen in all groups.
    """
    queries = []
    for alternative in split_statements(gold):
        groups = _groups(alternative)
        texts, last = [], 0
        for start, end in groups:
            texts.append(alternative[last:start])
            last = end + 1
        texts.append(alternative[last:])
        columns = [alternative[start + 1 : end] for start, end in groups]
        options: list[list[str | None]] = [
            [*_choices(group)] if group.strip() else [None] for group in columns
        ]
        for chosen in itertools.product(*options):
            every = ", ".join(text for text in chosen if text)
            filled = [every if text is None else text for text in chosen]
            queries.append(
                "".join(itertools.chain.from_iterable(zip(texts, [*filled, ""], strict=True)))
            )
    return queries

"""What the SQL engines and the rules of comparison share: results, refusals, matches, verdicts.

Both rules, published and corrected, know two degrees of agreement: `exact`, and `correct`, which
also accepts columns beyond the gold ones. Neither heeds the columns' names or a row's repetitions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Refused(Exception):
    """A query that failed, was not allowed or was stopped; the message says which."""


# What drivers raise, apart from their own errors, for a statement or a value that they cannot
# convert: text that is not UTF-8, a number or a date out of range, nesting too deep. OSError is not
# among them, because a machine in trouble is no fault of the query.
UNREADABLE = (ValueError, ArithmeticError, LookupError, TypeError, AttributeError, RecursionError)


def row_size(row: tuple) -> int:
    """Return about how many bytes or characters a row has."""
    return sum(len(v) if isinstance(v, str | bytes) else len(repr(v)) for v in row)


@dataclass(frozen=True)
class Result:
    """What a query returned.

    Attributes:
        columns: The columns' names, which may repeat.
        rows: The rows, in the order in which they came.
    """

    columns: tuple[str, ...]
    rows: list[tuple]


@dataclass(frozen=True)
class Match:
    """How a result agrees with a gold one.

    Attributes:
        exact: The same rows, and no column too many.
        correct: The gold rows are there, perhaps among further columns.
    """

    exact: bool
    correct: bool


@dataclass(frozen=True)
class Compared:
    """Two results and what the rules must know of their queries.

    Attributes:
        gold: The gold query's result.
        answer: The generated query's result.
        category: The question's category.
        question: The question's text.
        gold_query: For the published rule the full gold text, for the corrected one the
            alternative that gave the result.
        answer_query: The generated statement.
        dialect: sqlite or postgres.
    """

    gold: Result
    answer: Result
    category: str
    question: str
    gold_query: str
    answer_query: str
    dialect: str = "sqlite"


@dataclass(frozen=True)
class Verdict:
    """How a generated query was judged.

    Attributes:
        correct: Whether its result is accepted.
        outcome: correct, wrong, or why it gave no result.
        statement: The statement that was run.
        exact: Whether the result is the gold query's without columns beyond it.
    """

    correct: bool
    outcome: str
    statement: str
    exact: bool = False


class Engine(Protocol):
    """A set of databases in which hostile queries may be run.

    Attributes:
        name: sqlite or postgres; also the dialect that a prompt asks for.
    """

    name: str

    def execute(self, database: str, statement: str) -> Result:
        """Run one statement, which may be any text, on a database.

        Raises:
            Refused: It is not one valid reading statement, or it exceeded a limit.
            UserError: There is no such database.
        """

    def refresh(self) -> bool:
        """Load the databases again if they were loaded on another day; say whether."""

    def close(self) -> None:
        """Release what the engine holds."""

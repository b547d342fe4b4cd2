"""What the SQL engines have in common: results, refusals, verdicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Refused(Exception):
    """A query that failed, was not allowed or was stopped; the message says which."""


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
        """Run one statement that may only read.

        Args:
            database: The database's name.
            statement: One SQL statement; anything may stand here.

        Returns:
            The result.

        Raises:
            Refused: It is not one valid reading statement, or it exceeded a limit.
            UserError: There is no such database.
        """

    def refresh(self) -> bool:
        """Load the databases again if they were loaded on another day; say whether."""

    def close(self) -> None:
        """Give up what the engine holds."""

"""Does a generated query's result agree with the gold query's, by the published or the mended rule.

Both know two degrees: `exact`, and `correct`, which also accepts columns beyond the gold ones.
Neither heeds the columns' names or how often a row comes.
"""

from __future__ import annotations

from dataclasses import dataclass

from evaluation.sql.engines import Result


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
        gold_query: For the published rule the whole gold text, for the corrected one the
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

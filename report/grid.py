"""A readable table, apart from the form in which it is written."""

from __future__ import annotations

from dataclasses import dataclass

from report.averages import Score

MISSING = "–"


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: What it says.
        error: Its uncertainty, shown small after a plus-minus sign; empty for none.
        strong: Whether it is marked as the best.
    """

    text: str
    error: str = ""
    strong: bool = False


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        cells: As many as the header has.
        group: Rows of different groups are set apart by a rule.
    """

    cells: tuple[Cell, ...]
    group: str = ""


@dataclass(frozen=True)
class Grid:
    """A table for people.

    Attributes:
        name: Name of its files.
        title: Its number or name, such as ``Table 1``.
        caption: Whole sentences.
        header: Column titles.
        rows: The rows.
        notes: Footnotes, each with its mark.
        texts: How many columns at the left hold text; the others hold numbers.
    """

    name: str
    title: str
    caption: str
    header: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    texts: int = 1


def number(value: float | None) -> str:
    """Write a score with three decimals and without the leading zero: ``.830``."""
    if value is None:
        return MISSING
    text = f"{value:.3f}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def score_cell(score: Score | None, strong: bool = False) -> Cell:
    """Write a score with its standard error."""
    if score is None:
        return Cell(MISSING)
    return Cell(number(score.value), number(score.stderr), strong)

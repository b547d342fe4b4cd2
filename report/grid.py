"""A readable table, apart from the form in which it is written."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

from report.averages import Score

if TYPE_CHECKING:
    from report.paired import Difference

MISSING = "–"


@dataclass(frozen=True)
class Cell:
    """One cell."""

    text: str  # what it says
    error: str = ""  # its uncertainty, shown small after a plus-minus sign; empty for none
    strong: bool = False  # whether it is marked as the best


@dataclass(frozen=True)
class Row:
    """One row."""

    cells: tuple[Cell, ...]  # as many as the header has
    group: str = ""  # rows of different groups are set apart by a rule


@dataclass(frozen=True)
class Grid:
    """A table for people."""

    name: str  # name of its files
    title: str  # its number or name, such as ``Table 1``
    caption: str  # whole sentences
    header: tuple[str, ...]  # column titles
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()  # footnotes, each with its mark
    texts: int = 1  # how many columns at the left hold text; the others hold numbers


def letters(text: str) -> int:
    """Count a text's letters, a wide one, such as a Japanese one, as two."""
    return sum(2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in text)


def shortened(text: str, longest: int) -> str:
    """Cut a text so that it takes no more than so many letters; see `letters`."""
    if letters(text) <= longest:
        return text
    while letters(text) > longest - 1:
        text = text[:-1]
    return f"{text}…"


def number(value: float | None) -> str:
    """Write a score with three decimals and without the leading zero: ``.830``."""
    if value is None:
        return MISSING
    text = f"{value:.3f}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def probability(value: float) -> str:
    """Write a p-value with three decimals, ``<.001`` where it is smaller."""
    return "<.001" if value < 0.0005 else number(value)


def signed(value: float) -> str:
    """Write a difference with its sign: ``+.053``."""
    text = number(value)
    return text if text.startswith("-") else f"+{text}"


def difference_cells(difference: Difference) -> list[Cell]:
    """Write a difference with its interval in one cell, ``+.053 [+.042, +.065]``, then its p."""
    interval = f"[{signed(difference.low)}, {signed(difference.high)}]"
    return [
        Cell(f"{signed(difference.value)} {interval}"),
        Cell(probability(difference.p)),
    ]


def score_cell(score: Score | None, strong: bool = False) -> Cell:
    """Write a score with its standard error."""
    if score is None:
        return Cell(MISSING)
    return Cell(number(score.value), number(score.stderr), strong)

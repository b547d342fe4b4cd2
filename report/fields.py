"""Small helpers that the tables' files for programs share."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from report.averages import Score
from report.experiment import Model


def decimals(value: float | None) -> str:
    """Write a number with six decimals, nothing where there is none."""
    return "" if value is None else f"{value:.6f}"


def text(rows: Iterable[Sequence[Any]]) -> str:
    """Write rows as CSV with Unix line ends."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue()


def score_fields(score: Score | None) -> list[str]:
    """Write a score as its value, standard error and number of items."""
    if score is None:
        return ["", "", ""]
    return [decimals(score.value), decimals(score.stderr), str(score.items)]


def score_titles(label: str) -> list[str]:
    """Title the three fields of a score."""
    return [label, f"{label} stderr", f"{label} items"]


def counted_names(models: Iterable[Model]) -> list[str]:
    """Name every amount that any of the models counted; time that was measured is none.

    A search that was resumed keeps its earlier time there (`report.cost`).
    """
    names = {name for model in models for name in model.counted}
    return sorted(name for name in names if not name.startswith("earlier_"))

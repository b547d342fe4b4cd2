"""One candidate of a search and how it did."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Evaluation:
    """One candidate and how it did.

    Attributes:
        index: Its number in the order of the search, from 0.
        genes: Its parameters by name, plain values.
        average: Its dev average in [0, 1]; None where it failed.
        tasks: Scores by task (``suite/task``); empty where it failed.
        failure: Why it failed, else empty.
        genome: What the strategy asked for; `search.space.Space.decode` reads it.
        counted: Amounts for the cost.
        full: Its average over all dev items, where the search looks at some of them only and this
            one was scored again on all.
    """

    index: int
    genes: dict[str, Any]
    average: float | None = None
    tasks: dict[str, float] = field(default_factory=dict)
    failure: str = ""
    genome: list[float] = field(default_factory=list)
    counted: dict[str, float] = field(default_factory=dict)
    full: float | None = None

    @property
    def rank(self) -> float:
        """Its dev average; minus infinity where it failed."""
        return -math.inf if self.average is None else self.average

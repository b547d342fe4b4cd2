"""Means of scores with their standard errors, and of runs over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True)
class Score:
    """A score in [0, 1], of one task or of a mean over tasks."""

    value: float
    stderr: float  # its standard error over items
    items: int  # number of test items behind it
    chance: float = 0.0  # expected score of a uniform random choice
    # Of the squared error, the part of items that all worlds share: more worlds do not lessen it.
    shared: float = 0.0


def mean(scores: Sequence[Score | None]) -> Score | None:
    """Average the scores of independent tasks, or of columns that share no task, unweighted.

    The standard error is sqrt(sum of squared errors) / k. The mean is None where any score is
    missing, because a mean over fewer tasks would not compare with the other rows'.
    """
    known = [score for score in scores if score is not None]
    if not known or len(known) < len(scores):
        return None
    count = len(known)
    return Score(
        value=math.fsum(score.value for score in known) / count,
        stderr=math.sqrt(math.fsum(score.stderr**2 for score in known)) / count,
        items=sum(score.items for score in known),
        chance=math.fsum(score.chance for score in known) / count,
        shared=math.fsum(score.shared for score in known) / count**2,
    )


@final
@dataclass(frozen=True)
class Spread:
    """The mean of one quantity over runs that differ in their seed."""

    mean: float
    deviation: float | None  # sample standard deviation (divisor n - 1), None for a single run
    runs: int  # number of runs, n


def spread(values: Sequence[float | None]) -> Spread | None:
    """Summarise one quantity over seeds by the runs that have a value; None where none has one."""
    present = [value for value in values if value is not None]
    return spread_of(present) if present else None


def spread_of(present: Sequence[float]) -> Spread:
    """Summarise the values of at least one run; see `spread`."""
    centre = math.fsum(present) / len(present)
    deviation = None
    if len(present) > 1:
        deviation = math.sqrt(
            math.fsum((value - centre) ** 2 for value in present) / (len(present) - 1)
        )
    return Spread(centre, deviation, len(present))

"""How candidates are proposed. A strategy gets genomes' averages; it knows nothing of models."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

Average = float | None


class Strategy(abc.ABC):
    """Proposes genomes in generations, whose candidates may be scored in any order."""

    @abc.abstractmethod
    def ask(self) -> list[list[float]]:
        """Return the genomes of the next generation; none where there is nothing left to try."""

    @abc.abstractmethod
    def tell(self, averages: Sequence[Average]) -> None:
        """Take note of how the generation that was asked for last did.

        Args:
            averages: Each genome's dev average; None for a failure, which counts as the worst.
        """

    @abc.abstractmethod
    def state(self) -> dict[str, Any]:
        """Return all that the next `ask` depends on, as plain values that JSON keeps exactly."""

    @abc.abstractmethod
    def restore(self, state: dict[str, Any]) -> None:
        """Resume from a result of `state`."""


class Listed(Strategy):
    """Candidates that are known beforehand, all in one generation.

    Args:
        count: Number of candidates; a genome is a candidate's number.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._told = False

    def ask(self) -> list[list[float]]:
        """Return every candidate's number, once."""
        return [] if self._told else [[float(number)] for number in range(self._count)]

    def tell(self, averages: Sequence[Average]) -> None:
        """Take note that all are done."""
        self._told = True

    def state(self) -> dict[str, Any]:
        """Return whether all are done."""
        return {"told": self._told}

    def restore(self, state: dict[str, Any]) -> None:
        """Resume from a result of `state`."""
        self._told = state["told"]

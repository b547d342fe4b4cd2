"""Greedy soup: experts join a uniform average, best first, while it does not get worse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from search.strategies import Average, Strategy


class Greedy(Strategy):
    """Choose the experts of a uniform soup by the dev average.

    Every expert is scored alone, in one generation. In descending order of these scores (equal ones
    in the order given), each joins the soup if the soup's dev average does not fall. For n experts
    that can be scored these are 2n - 1 evaluations. A genome holds for each expert whether it takes
    part, 1 or 0.

    Args:
        count: Number of experts.

    Source:
        Wortsman et al., Model soups, 2022, arXiv:2203.05482, Recipe 1.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._told: list[Average] = []

    def _walk(self) -> tuple[list[int], list[int]]:
        """Return the soup after all averages so far, and the experts not tried yet."""
        alone, tries = self._told[: self._count], self._told[self._count :]
        scored = {expert: average for expert, average in enumerate(alone) if average is not None}
        order = sorted(scored, key=lambda expert: -scored[expert])
        soup, waiting = order[:1], order[1:]
        best = scored[order[0]] if order else -math.inf
        for average in tries:
            expert = waiting.pop(0)
            if average is not None and average >= best:
                soup, best = [*soup, expert], average
        return soup, waiting

    @property
    def joined(self) -> list[int]:
        """The experts in the soup, in the order in which they joined; empty where all failed."""
        return self._walk()[0]

    def ask(self) -> list[list[float]]:
        """Return each expert alone, then one larger soup at a time."""
        if not self._told:
            chosen = [[expert] for expert in range(self._count)]
        else:
            soup, waiting = self._walk()
            chosen = [[*soup, waiting[0]]] if waiting else []
        return [[float(n in members) for n in range(self._count)] for members in chosen]

    def tell(self, averages: Sequence[Average]) -> None:
        """Let an expert join, or not."""
        self._told += averages

    def state(self) -> dict[str, Any]:
        """Return all averages so far."""
        return {"told": list(self._told)}

    def restore(self, state: dict[str, Any]) -> None:
        """Resume from a result of `state`."""
        self._told = list(state["told"])

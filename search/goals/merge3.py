"""MERGE3: CMA-ES whose candidates answer a few items, from which item responses estimate all."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from common.errors import UserError
from search.evaluation import Evaluation
from search.evolutionary import CmaEs
from search.goals.informed import alone, around
from search.goals.items import ItemWorkbench, Scores
from search.goals.responses import anchors, estimated, fit
from search.record import average_of
from search.space import Gene
from search.strategies import Average, Strategy

CALIBRATION = 10  # candidates that answer all items first; a fit of fewer says little of an item


class Calibrated(Strategy):
    """CMA-ES after a first generation that answers all items.

    The first generation is the start, each expert alone, and draws around the start. CMA-ES learns
    nothing from it.

    Args:
        genes: The genome with starts and bounds.
        inner: CMA-ES on these genes.
        sigma, seed: Of the draws.

    Raises:
        UserError: There are no weights of experts.

    Attributes:
        experts: The numbers of the candidates that are one expert alone.
        calibration: Number of candidates of the first generation.
    """

    def __init__(self, genes: Sequence[Gene], inner: CmaEs, *, sigma: float, seed: int) -> None:
        single = alone(genes)
        if len(single) < 2:
            raise UserError(
                "algorithm merge3 estimates a merge from experts by their weights, which this "
                "method does not have; give another method or algorithm"
            )
        draws = np.random.default_rng(seed)
        self._first = [[gene.start for gene in genes], *single]
        while len(self._first) < CALIBRATION:
            self._first.append(around(draws, genes, sigma))
        self._inner, self._calibrated = inner, False
        self.population = inner.population
        self.experts, self.calibration = list(range(1, 1 + len(single))), len(self._first)

    def ask(self) -> list[list[float]]:
        """Return the first generation, then CMA-ES's."""
        return self._inner.ask() if self._calibrated else self._first

    def tell(self, averages: Sequence[Average]) -> None:
        """Let CMA-ES learn."""
        if self._calibrated:
            self._inner.tell(averages)
            return
        self._inner.ask()  # the start alone
        self._inner.tell(averages[:1])
        self._calibrated = True

    def state(self) -> dict[str, Any]:
        """Return CMA-ES's state, and whether the first generation is done."""
        return {"calibrated": self._calibrated, "inner": self._inner.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Resume from a result of `state`."""
        self._calibrated = state["calibrated"]
        self._inner.restore(state["inner"])


class EstimatingWorkbench(ItemWorkbench):
    """Scores the first candidates on all items, and estimates the others from a few.

    Attributes:
        calibration: How many answer all items.
        experts: The numbers of those that are one expert alone.
        anchors: Items of each task that the others answer.
    """

    calibration: int
    experts: Sequence[int]
    anchors: int

    @functools.cached_property
    def _fitted(self) -> tuple[dict[str, Any], dict[str, list[int]], list[int], Any]:
        """Fit the items; return them, the anchors, the experts' rows and a harness that asks."""
        found: dict[int, Scores] = {}
        for index in range(self.calibration):
            with contextlib.suppress(UserError):  # a candidate that failed has no scores
                found[index] = self.kept.get(index)
        if not all(expert in found for expert in self.experts):
            raise UserError("an expert alone could not be scored, so that nothing is estimated")
        tasks = {
            task: fit(np.array([scores[task] for scores in found.values()]))
            for task in next(iter(found.values()))
        }
        chosen = {task: anchors(items, self.anchors) for task, items in tasks.items()}
        harness = self._all(chosen=lambda task, rows: [rows[n] for n in chosen[task]])
        return tasks, chosen, [list(found).index(n) for n in self.experts], harness

    def close(self) -> None:
        """End what the tasks have opened."""
        super().close()
        if "_fitted" in vars(self):
            self._fitted[-1].close()

    def _score(self, evaluation: Evaluation, harness: Any) -> None:
        # A candidate that is scored again is asked all items by another harness.
        if harness is not self._harness or evaluation.index < self.calibration:
            super()._score(evaluation, harness)
            return
        tasks, chosen, experts, few = self._fitted
        super()._score(evaluation, few)
        evaluation.tasks = estimated(tasks, chosen, self.latest, experts)
        evaluation.average = average_of(evaluation.tasks, self._groups)

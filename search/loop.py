"""The search loop: ask for candidates, score them, save the state, report the averages."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.cost import cpu_seconds
from common.progress import Progress
from search.evaluation import Evaluation
from search.record import best_of, spearman
from search.space import Space
from search.state import State, StateFile
from search.strategies import Strategy
from search.workbench import Workbench

Candidate = tuple[int, list[float]]  # its number in the order of the search, its genome


@dataclass(frozen=True)
class Budget:
    """When a search ends, at the latest.

    Attributes:
        evaluations: Number of candidates that are scored; None for no limit.
        seconds: Wall time, over all runs of a resumed search, after which no
            candidate is begun (but for the first); None for no limit.
    """

    evaluations: int | None = None
    seconds: float | None = None


class Search:
    """Runs a strategy on a space until it has nothing left to try or the budget is spent.

    After every candidate the state is written: strategy with its random state, evaluations, time.
    A killed search that is begun again asks for the same generation and scores only what is
    missing of it, so that it ends as if it had never been interrupted.

    Args:
        space: What the genomes stand for.
        strategy: Proposes them.
        bench: Scores them, one after another.
        budget: When to end.
        file: Where the state is kept; None to keep none.
        what: What to call the search in progress lines.
    """

    def __init__(
        self,
        space: Space,
        strategy: Strategy,
        bench: Workbench,
        budget: Budget,
        file: StateFile | None = None,
        what: str = "searching",
    ) -> None:
        self._space, self._strategy, self._bench = space, strategy, bench
        self._budget, self._file, self._what = budget, file, what
        self._state = (file.load() if file else None) or State()
        self.earlier = (self._state.wall_s, self._state.cpu_s)
        self._began = (time.monotonic(), cpu_seconds())
        if self._state.strategy is not None:
            strategy.restore(self._state.strategy)

    @property
    def history(self) -> list[Evaluation]:
        """All evaluations so far, in the order of the search."""
        return [self._state.evaluations[index] for index in sorted(self._state.evaluations)]

    def save(self) -> None:
        """Write the state down."""
        if self._file is not None:
            self._state.wall_s = self.earlier[0] + time.monotonic() - self._began[0]
            self._state.cpu_s = self.earlier[1] + cpu_seconds() - self._began[1]
            self._file.save(self._state)

    def _spent(self) -> bool:
        seconds = self._budget.seconds
        return (
            seconds is not None
            and bool(self._state.evaluations)
            and self.earlier[0] + time.monotonic() - self._began[0] >= seconds
        )

    def run(self) -> list[Evaluation]:
        """Search.

        Raises:
            UserError: The disk is full; the earlier state is kept.
        """
        state, budget = self._state, self._budget.evaluations
        progress = Progress(budget, self._what)
        if state.evaluations:
            progress.step(len(state.evaluations), note="resumed")
        while budget is None or state.reported < budget:
            state.strategy = self._strategy.state()
            generation = list(enumerate(self._strategy.ask(), start=state.reported))
            asked = generation if budget is None else generation[: budget - state.reported]
            missing = [item for item in asked if item[0] not in state.evaluations]
            for index, genome in missing:
                if self._spent():
                    break
                evaluation = self._bench.evaluate(index, genome)
                self._record(evaluation)
                average = evaluation.average
                progress.step(note="failed" if average is None else f"dev average {average:.4f}")
            done = [state.evaluations[n] for n, _ in generation if n in state.evaluations]
            if not generation or len(done) < len(generation):
                break
            self._strategy.tell([evaluation.average for evaluation in done])
            state.reported += len(generation)
        return self.history

    def _record(self, evaluation: Evaluation) -> None:
        state = self._state
        state.evaluations[evaluation.index] = evaluation
        if best_of(self._space, self.history) is evaluation:
            self._space.keep(self._space.decode(evaluation.genome))
        self.save()


def spread(history: Sequence[Evaluation], count: int) -> list[Evaluation]:
    """Choose `count` candidates, evenly spread over the ranks of their dev averages.

    Failed ones are left out. The result is best first, the best and the worst among them.
    """
    ranked = sorted(
        (item for item in history if item.average is not None),
        key=lambda item: (-item.rank, item.index),
    )
    places = np.linspace(0, len(ranked) - 1, min(count, len(ranked)))
    return [ranked[n] for n in sorted({round(float(place)) for place in places})]


def agreement(chosen: Sequence[Evaluation]) -> float | None:
    """Return Spearman's correlation of averages over some and over all items of candidates."""
    pairs = [(item.rank, item.full) for item in chosen if item.full is not None]
    return spearman([some for some, _ in pairs], [full for _, full in pairs])

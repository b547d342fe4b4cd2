"""What strategies share that look at more of a candidate than its average."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from search.evaluation import Evaluation
from search.space import Gene, reflect
from search.strategies import Average, Strategy

FAILED = -1.0  # a failed candidate in every goal: below all scores, which are 0 or more


def goals_of(evaluation: Evaluation, columns: Sequence[Sequence[str]]) -> list[float]:
    """Return a candidate's scores in the goals.

    Args:
        evaluation: The candidate.
        columns: The goals, each a list of tasks, whose mean it is.
    """
    if evaluation.average is None:
        return [FAILED] * len(columns)
    return [
        math.fsum(evaluation.tasks[task] for task in column) / len(column) for column in columns
    ]


def alone(genes: Sequence[Gene]) -> list[list[float]]:
    """Return for each expert the start with the weights of all other experts at their lowest."""
    experts = dict.fromkeys(gene.expert for gene in genes if gene.parameter == "weights")
    return [
        [
            gene.bounds[0] if gene.parameter == "weights" and gene.expert != expert else gene.start
            for gene in genes
        ]
        for expert in experts
        if expert
    ]


def around(draws: np.random.Generator, genes: Sequence[Gene], sigma: float) -> list[float]:
    """Draw a genome around the start, from normal distributions that bounds reflect."""
    return [
        reflect(gene.start + sigma * float(draws.standard_normal()), *gene.bounds) for gene in genes
    ]


class Informed(Strategy, abc.ABC):
    """A strategy that learns from evaluations.

    Args:
        seed: Of its draws.

    Attributes:
        history: Returns all evaluations so far, in the order of the search; whoever runs the
            strategy sets it.
        draws: The random numbers.
    """

    history: Callable[[], list[Evaluation]]

    def __init__(self, seed: int) -> None:
        self.draws = np.random.default_rng(seed)
        self._told = 0

    @abc.abstractmethod
    def learn(self, evaluations: Sequence[Evaluation]) -> None:
        """Take note of the generation that was asked for last."""

    @abc.abstractmethod
    def memory(self) -> dict[str, Any]:
        """Return what `ask` depends on, but for the draws and the number of evaluations."""

    @abc.abstractmethod
    def recall(self, memory: dict[str, Any]) -> None:
        """Resume from a result of `memory`."""

    def tell(self, averages: Sequence[Average]) -> None:
        """Look the generation's evaluations up and learn from them."""
        first = self._told
        self._told += len(averages)
        self.learn(self.history()[first : self._told])

    def state(self) -> dict[str, Any]:
        """Return what was learnt, the generator's state, and the number of evaluations learnt."""
        draws = self.draws.bit_generator.state
        return {"told": self._told, "draws": draws, "memory": self.memory()}

    def restore(self, state: dict[str, Any]) -> None:
        """Resume from a result of `state`."""
        self._told = state["told"]
        self.draws.bit_generator.state = state["draws"]
        self.recall(state["memory"])

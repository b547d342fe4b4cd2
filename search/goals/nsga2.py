"""NSGA-II: a population that spreads over the merges that no other merge dominates.

It is written here, because no locked package has it and it is short; `pymoo` would bring five
more packages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from search.evaluation import Evaluation
from search.goals.dominance import crowding, fronts
from search.goals.informed import Informed, alone, around, goals_of
from search.space import Gene

POPULATION = 16  # six generations of it in the 96 evaluations of the default experiment
CROSSING = 0.9  # share of pairs that are crossed
CROSSING_INDEX, MUTATION_INDEX = 15.0, 20.0  # the larger, the nearer children are to their parents
_TRIES = 10  # to make a child that was not tried before


def crossed(
    one: np.ndarray, other: np.ndarray, draws: np.random.Generator, index: float = CROSSING_INDEX
) -> tuple[np.ndarray, np.ndarray]:
    """Make two children between and around two parents: simulated binary crossover.

    Each gene is crossed with probability 1/2; the children's mean is the parents'.

    Args:
        one, other: The parents' genes, float64 [genes].
        draws: Random numbers.
        index: How near children are to their parents.

    Source:
        Deb and Agrawal, Simulated binary crossover for continuous search space, Complex Systems
        9(2), 1995.
    """
    u = draws.random(len(one))
    power = 1 / (index + 1)
    spread = np.where(u <= 0.5, (2 * u) ** power, (1 / (2 * (1 - u))) ** power)
    spread = np.where(draws.random(len(one)) < 0.5, spread, 1.0)
    middle, half = (one + other) / 2, spread * (one - other) / 2
    swapped = np.where(draws.random(len(one)) < 0.5, 1.0, -1.0)
    return middle + swapped * half, middle - swapped * half


def mutated(
    genome: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    draws: np.random.Generator,
    index: float = MUTATION_INDEX,
) -> np.ndarray:
    """Change each gene with probability 1/n: polynomial mutation, in units of the gene's range.

    Args:
        genome: The genes, within their bounds, float64 [n].
        low, high: The bounds, float64 [n].
        draws: Random numbers.
        index: How small the changes are.

    Source:
        Deb and Goyal, A combined genetic adaptive search (GeneAS) for engineering design, 1996; the
        form that respects bounds of Deb's NSGA-II code, version 1.1.
    """
    u, power = draws.random(len(genome)), 1 / (index + 1)
    room = np.where(u < 0.5, genome - low, high - genome) / (high - low)
    nearer = np.where(u < 0.5, u, 1 - u)
    step = (2 * nearer + (1 - 2 * nearer) * (1 - room) ** (index + 1)) ** power - 1
    step = np.where(u < 0.5, step, -step) * (high - low)
    chosen = draws.random(len(genome)) < 1 / len(genome)
    return np.clip(np.where(chosen, genome + step, genome), low, high)


def ranked(points: np.ndarray, count: int) -> list[int]:
    """Choose the best of some points, best first: by their front, then the least crowded.

    Args:
        points: Float64 [n, goals].
        count: How many, at most n.

    Returns:
        Their indices.
    """
    chosen: list[int] = []
    for front in fronts(points):
        distance = crowding(points[front])
        # Of equally crowded ones the first.
        chosen += [front[n] for n in np.argsort(-distance, kind="stable")]
    return chosen[:count]


def children(
    genomes: np.ndarray, count: int, low: np.ndarray, high: np.ndarray, draws: np.random.Generator
) -> list[np.ndarray]:
    """Make children of a population: tournaments of two, crossover, mutation.

    Args:
        genomes: The population, best first as `ranked` orders it, float64 [n, genes].
        count: How many.
        low, high: The genes' bounds, float64 [genes].
        draws: Random numbers.
    """
    known = {tuple(genome) for genome in genomes}
    found: list[np.ndarray] = []
    tries = 0
    while len(found) < count:
        # The better of two is the one that comes first.
        pair = [min(draws.integers(len(genomes), size=2)) for _ in range(2)]
        one, other = (genomes[n] for n in pair)
        both = crossed(one, other, draws) if draws.random() < CROSSING else (one, other)
        for child in both[: count - len(found)]:
            made = mutated(np.clip(child, low, high), low, high, draws)
            tries += 1
            if tuple(made) not in known or tries > _TRIES * count:
                known.add(tuple(made))
                found.append(made)
    return found


class Nsga2(Informed):
    """Non-dominated sorting: children of the less dominated and less crowded candidates.

    The first generation is the start, each expert alone (its weights at their start, the others'
    0), and draws around the start.

    Args:
        genes: The genome with starts and bounds.
        columns: The goals; see `goals_of`.
        population: Candidates in a generation.
        sigma: Of the first draws, in units of the genes.
        seed: Of all draws.

    Source:
        Deb et al., A fast and elitist multiobjective genetic algorithm: NSGA-II, IEEE Transactions
        on Evolutionary Computation 6(2), 2002.
    """

    def __init__(
        self,
        genes: Sequence[Gene],
        columns: Sequence[Sequence[str]],
        *,
        population: int = POPULATION,
        sigma: float,
        seed: int,
    ) -> None:
        super().__init__(seed)
        self._genes, self._columns, self._sigma = list(genes), columns, sigma
        self.population = population
        self._low, self._high = (
            np.array([gene.bounds[end] for gene in genes], dtype=float) for end in (0, 1)
        )
        self._kept: list[list[float]] = []
        self._goals: list[list[float]] = []

    def ask(self) -> list[list[float]]:
        """Return the first generation, then as many children as the population has members."""
        if self._kept:
            parents = np.array(self._kept)
            made = children(parents, self.population, self._low, self._high, self.draws)
            return [genome.tolist() for genome in made]
        first = [[gene.start for gene in self._genes], *alone(self._genes)][: self.population]
        missing = self.population - len(first)
        return first + [around(self.draws, self._genes, self._sigma) for _ in range(missing)]

    def learn(self, evaluations: Sequence[Evaluation]) -> None:
        """Keep the best of parents and children."""
        genomes = self._kept + [evaluation.genome for evaluation in evaluations]
        goals = self._goals + [goals_of(item, self._columns) for item in evaluations]
        best = ranked(np.array(goals), self.population)
        self._kept = [genomes[n] for n in best]
        self._goals = [goals[n] for n in best]

    def memory(self) -> dict[str, Any]:
        """Return the population with its goals, best first."""
        return {"kept": self._kept, "goals": self._goals}

    def recall(self, memory: dict[str, Any]) -> None:
        """Resume from a result of `memory`."""
        self._kept, self._goals = memory["kept"], memory["goals"]

"""M2N2: candidates that compete for items, and mates that are good at what a parent lacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from common.errors import UserError
from search.evaluation import Evaluation
from search.goals.informed import Informed, alone
from search.space import Gene

ARCHIVE = 20  # as the authors'


def shares(scores: np.ndarray, alpha: float = 1.0) -> np.ndarray:
    """Divide each item among the candidates that answer it.

    f_ij = s_ij / (sum_i s_ij)^alpha; an item that none answers gives nothing. A candidate's fitness
    is its sum over items.

    Args:
        scores: s_ij in [0, 1], float64 [candidates, items].
        alpha: 0 for no competition.

    Returns:
        Float64 [candidates, items].

    Source:
        Abrantes, Lange and Tang, Competition and attraction improve model fusion, 2025,
        arXiv:2508.16204, section 3: resource competition.
    """
    total = scores.sum(0)
    return scores / np.where(total > 0, total, 1.0) ** alpha


def attraction(gains: np.ndarray, parent: int) -> np.ndarray:
    """Measure what each candidate has that a parent lacks: sum_j max(0, f_bj - f_aj).

    Args:
        gains: `shares`, float64 [candidates, items].
        parent: Its row a.

    Returns:
        Float64 [candidates]; where none has anything, their fitness instead, the parent's 0.

    Source:
        arXiv:2508.16204, section 3: attraction-based mate selection.
    """
    found = np.maximum(gains - gains[parent], 0).sum(1)
    if not found.any():
        found = gains.sum(1)
        found[parent] = 0
    return found


class M2n2(Informed):
    """An archive whose worst member is replaced by a child of two that complement each other.

    A parent is drawn by its fitness, its mate by attraction. The child mixes their genes w : 1 - w
    before a split point and 1 - w : w behind it; w and the split, between two groups of layers, are
    uniform. Mixing is linear in the experts' weights, where the paper mixes checkpoints by
    spherical interpolation: so a child is a genome, and needs no checkpoint. Nothing mutates. The
    first generation is the start and each expert alone; every further one is one child.

    Args:
        genes: The genome with starts and bounds.
        population: Members of the archive.
        seed: Of all draws.

    Attributes:
        items: Returns a candidate's scores by item, float64 [items], from its number; whoever runs
            the strategy sets it.

    Raises:
        UserError: There are no weights of experts.

    Source:
        arXiv:2508.16204.
    """

    items: Callable[[int], np.ndarray]

    def __init__(self, genes: Sequence[Gene], *, population: int = ARCHIVE, seed: int) -> None:
        super().__init__(seed)
        self._genes, self.population = list(genes), population
        if len(alone(genes)) < 2:
            raise UserError(
                "algorithm m2n2 mixes experts by their weights, which this method does not have; "
                "give another method or algorithm"
            )
        groups = list(dict.fromkeys(gene.group for gene in genes))
        self._group = np.array([groups.index(gene.group) for gene in genes])
        self._kept: list[list[float]] = []
        self._scores: list[list[float]] = []

    def _chosen(self, weights: np.ndarray) -> int:
        total = weights.sum()
        if not total > 0:
            return int(self.draws.integers(len(weights)))
        return int(np.searchsorted(np.cumsum(weights), self.draws.random() * total, side="right"))

    def ask(self) -> list[list[float]]:
        """Return the start and each expert alone, then one child."""
        if not self._told:
            return [[gene.start for gene in self._genes], *alone(self._genes)]
        if not self._kept:
            return []
        gains = shares(np.array(self._scores))
        one = self._chosen(gains.sum(1))
        other = self._chosen(attraction(gains, one))
        # At least one group comes before the split.
        split, w = self.draws.integers(1, self._group.max() + 2), self.draws.random()
        share = np.where(self._group < split, w, 1 - w)
        child = share * np.array(self._kept[one]) + (1 - share) * np.array(self._kept[other])
        # Rounding may leave a bound by a bit.
        low, high = (np.array([gene.bounds[end] for gene in self._genes]) for end in (0, 1))
        return [np.clip(child, low, high).tolist()]

    def learn(self, evaluations: Sequence[Evaluation]) -> None:
        """Add the candidates to the archive, and drop the least fit while it is too large."""
        for item in evaluations:
            if item.average is None:
                continue
            self._kept.append(list(item.genome))
            self._scores.append(self.items(item.index).tolist())
            if len(self._kept) > self.population:
                fitness = shares(np.array(self._scores)).sum(1)
                # Of equal ones the newest goes: a copy replaces nothing.
                worst = len(fitness) - 1 - int(np.argmin(fitness[::-1]))
                del self._kept[worst], self._scores[worst]

    def memory(self) -> dict[str, Any]:
        """Return the archive."""
        return {"kept": self._kept, "scores": self._scores}

    def recall(self, memory: dict[str, Any]) -> None:
        """Resume from a result of `memory`."""
        self._kept, self._scores = memory["kept"], memory["scores"]

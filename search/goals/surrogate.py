"""MAP: the scores as quadratic functions of the experts' weights, and the front of these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from common.errors import UserError
from search.evaluation import Evaluation
from search.goals.dominance import representatives
from search.goals.informed import FAILED, Informed, goals_of
from search.goals.nsga2 import children, ranked
from search.space import Gene

POPULATION = 8  # candidates of a generation after the first, which the fits propose
NOISE = 0.1  # standard deviation around one expert alone, and around equal weights
RIDGE = 1e-3  # on all numbers but the constant: with as many samples as numbers a fit would jump
FRONT, GENERATIONS = 60, 50  # of NSGA-II on the fits: smooth functions of few weights
_SAMPLES = 3  # candidates of the first generation for each number of a fit
_STEPS = 50  # of Newton's method at most


def features(weights: np.ndarray) -> np.ndarray:
    """Return what a quadratic function of weights is linear in.

    Args:
        weights: Float64 [n, experts].

    Returns:
        1, the weights, and all their products in pairs, float64 [n, (N + 1) (N + 2) / 2].
    """
    one, other = np.triu_indices(weights.shape[1])
    return np.hstack([np.ones((len(weights), 1)), weights, weights[:, one] * weights[:, other]])


def sigmoid(values: np.ndarray) -> np.ndarray:
    """Compute 1 / (1 + exp(-x)) without overflow."""
    return 0.5 * (1 + np.tanh(values / 2))


def fitted(weights: np.ndarray, scores: np.ndarray, ridge: float = RIDGE) -> np.ndarray:
    """Fit sigmoid(c'Qc + b'c + e) to scores by the likelihood of shares, with a ridge.

    The logistic link's likelihood has one optimum, which Newton's method finds; the authors' code
    fits least squares from a fixed start.

    Args:
        weights: The experts' weights c, float64 [n, experts].
        scores: In [0, 1], float64 [n].
        ridge: On the squares of Q and b.

    Returns:
        The coefficients of `features`, float64.

    Source:
        Li et al., MAP: Low-compute model merging with amortized Pareto fronts via quadratic
        approximation, 2024, arXiv:2406.07529.
    """
    x = features(weights)
    penalty = np.full(x.shape[1], ridge * len(x))
    penalty[0] = 1e-9 * len(x)  # scores that are all 0 or all 1 have no finite constant

    def loss(beta: np.ndarray) -> float:
        values = x @ beta
        return float((np.logaddexp(0, values) - scores * values).sum() + (penalty * beta**2).sum())

    beta = np.zeros(x.shape[1])
    for _ in range(_STEPS):
        shares = sigmoid(x @ beta)
        slope = x.T @ (shares - scores) + 2 * penalty * beta
        curvature = (x.T * (shares * (1 - shares))) @ x + np.diag(2 * penalty)
        step = np.linalg.solve(curvature, slope)
        scale = 1.0
        while loss(beta - scale * step) > loss(beta) and scale > 1e-6:
            scale /= 2
        beta = beta - scale * step
        if float(np.abs(scale * step).max()) < 1e-10 * (1 + float(np.abs(beta).max())):
            break
    return beta


class Surrogate(Informed):
    """Fit each goal to sampled weights, and try what the fits' front proposes.

    One weight for each expert, the same in all groups: c is its share of the gene's highest value,
    from 0 to 1. The first generation is the
    start and samples: around one expert alone, around equal weights, and uniform ones in turn. Each
    further generation fits all evaluations so far, runs NSGA-II on the fits, and tries members of
    its front. Weights beyond the sampled range are never asked for: a quadratic function means
    nothing there.

    Args:
        genes: The genome with starts and bounds; genes other than weights stay at their start.
        columns: The goals; see `goals_of`.
        budget: Evaluations in all.
        population: Candidates of a generation after the first.
        seed: Of all draws.

    Raises:
        UserError: There are no weights, or the budget is too small for a fit.

    Source:
        Li et al. 2024, arXiv:2406.07529; NSGA-II where the paper has NSGA-III (100 members,
        150 generations).
    """

    def __init__(
        self,
        genes: Sequence[Gene],
        columns: Sequence[Sequence[str]],
        *,
        budget: int,
        population: int = POPULATION,
        seed: int,
    ) -> None:
        super().__init__(seed)
        self._genes, self._columns, self.population = list(genes), columns, population
        experts = [gene.expert for gene in genes if gene.parameter == "weights"]
        self._experts = list(dict.fromkeys(experts))
        if not self._experts:
            raise UserError(
                "algorithm map searches for one weight of each expert, which this method does not "
                "have; give another method or algorithm"
            )
        numbers = features(np.zeros((1, len(self._experts)))).shape[1]
        # A third at least is for what the fits propose.
        self.samples = min(_SAMPLES * numbers, 2 * budget // 3)
        if self.samples < numbers:
            raise UserError(
                f"algorithm map fits {numbers} numbers for each goal with {len(self._experts)} "
                f"experts; give a budget of {-(-3 * numbers // 2)} evaluations or more"
            )
        self._weights: list[list[float]] = []
        self._goals: list[list[float]] = []

    def _genome(self, weights: Sequence[float]) -> list[float]:
        given = dict(zip(self._experts, weights, strict=True))
        return [
            float(given[gene.expert]) * gene.bounds[1]
            if gene.parameter == "weights"
            else gene.start
            for gene in self._genes
        ]

    def _sample(self, number: int) -> list[float]:
        """Draw weights: one expert, equal weights, or anything, in turn."""
        count = len(self._experts)
        if number % 3 == 2:
            return self.draws.random(count).tolist()
        about = np.eye(count)[number // 3 % count] if number % 3 == 0 else np.full(count, 1 / count)
        return np.clip(about + NOISE * self.draws.standard_normal(count), 0, 1).tolist()

    def _proposed(self) -> list[list[float]]:
        """Run NSGA-II on the fits and choose members of its front that were not tried."""
        weights, goals = np.array(self._weights), np.array(self._goals)
        fits = [fitted(weights, column) for column in goals.T]

        def predicted(candidates: np.ndarray) -> np.ndarray:
            x = features(candidates)
            return np.stack([sigmoid(x @ beta) for beta in fits], 1)

        low, high = weights.min(0), weights.max(0)
        high = np.where(high > low, high, low + 1e-9)
        members = self.draws.uniform(low, high, size=(FRONT, len(low)))
        for _ in range(GENERATIONS):
            members = members[ranked(predicted(members), FRONT)]
            members = np.vstack([members, children(members, FRONT, low, high, self.draws)])
        members = members[ranked(predicted(members), FRONT)]
        tried = {tuple(row) for row in self._weights}
        new = [row for row in np.unique(members, axis=0) if tuple(row) not in tried]
        values = predicted(np.array(new)).tolist() if new else []
        return [new[n].tolist() for n in representatives(values, self.population)]

    def ask(self) -> list[list[float]]:
        """Return the start and samples, then what the fits propose."""
        if self._told:
            proposed = self._proposed() if self._weights else []
            return [self._genome(weights) for weights in proposed]
        samples = [self._sample(number) for number in range(self.samples - 1)]
        start = [gene.start for gene in self._genes]
        return [start, *(self._genome(weights) for weights in samples)]

    def learn(self, evaluations: Sequence[Evaluation]) -> None:
        """Add a generation's weights and goals to what is fitted."""
        for item in evaluations:
            goals = goals_of(item, self._columns)
            pairs = zip(self._genes, item.genome, strict=True)
            held = {g.expert: value / g.bounds[1] for g, value in pairs if g.parameter == "weights"}
            weights = [held[expert] for expert in self._experts]
            # The start may have other weights in each group; then it is no point of the fit.
            if FAILED not in goals and self._genome(weights) == item.genome:
                self._weights.append(weights)
                self._goals.append(goals)

    def memory(self) -> dict[str, Any]:
        """Return what is fitted."""
        return {"weights": self._weights, "goals": self._goals}

    def recall(self, memory: dict[str, Any]) -> None:
        """Resume from a result of `memory`."""
        self._weights, self._goals = memory["weights"], memory["goals"]

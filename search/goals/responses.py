"""Item response theory: how hard items are, how able models are, and estimates from few answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from search.goals.surrogate import sigmoid

ABILITY, SLOPE, DIFFICULTY = 1.0, 0.5, 1.5  # standard deviations: theta, log a, b


@dataclass(frozen=True)
class Items:
    """A task's items and the models that were asked them.

    Attributes:
        slopes: a, float64 [items], above 0: how sharply an item divides models.
        difficulties: b, float64 [items].
        abilities: theta, float64 [models].
    """

    slopes: np.ndarray
    difficulties: np.ndarray
    abilities: np.ndarray

    def answers(self, ability: np.ndarray | float) -> np.ndarray:
        """Return the probability of each item's right answer, sigmoid(a (theta - b))."""
        return sigmoid(self.slopes * (ability - self.difficulties))


def fit(scores: np.ndarray) -> Items:
    """Fit the two-parameter logistic model by its posterior's mode.

    theta ~ N(0, 1), log a ~ N(0, 0.5), b ~ N(0, 1.5); L-BFGS from 0 with exact gradients.

    Args:
        scores: In [0, 1], float64 [models, items].

    Source:
        Birnbaum 1968, the two-parameter model; for merges Mencattini et al., MERGE3: Efficient
        evolutionary merging on consumer-grade GPUs, 2025, arXiv:2502.10436.
    """
    from scipy.optimize import minimize

    models, items = scores.shape
    ends = [models, models + items]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        theta, log_a, b = np.split(flat, ends)
        a = np.exp(log_a)
        apart = theta[:, None] - b
        values = a * apart
        likelihood = (np.logaddexp(0, values) - scores * values).sum()
        prior = ((theta / ABILITY) ** 2).sum() + ((log_a / SLOPE) ** 2).sum()
        prior += ((b / DIFFICULTY) ** 2).sum()
        wrong = sigmoid(values) - scores
        slope = [
            (wrong * a).sum(1) + theta / ABILITY**2,
            (wrong * values).sum(0) + log_a / SLOPE**2,
            -(wrong * a).sum(0) + b / DIFFICULTY**2,
        ]
        return float(likelihood + prior / 2), np.concatenate(slope)

    start = np.zeros(models + 2 * items)
    best = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500})
    theta, log_a, b = np.split(best.x, ends)
    return Items(np.exp(log_a), b, theta)


def anchors(items: Items, count: int) -> list[int]:
    """Choose items that are evenly spread over the order of their difficulties.

    Returns:
        Their numbers, ascending; all where there are fewer.
    """
    order = np.argsort(items.difficulties, kind="stable")
    count = min(count, len(order))
    # The middles of equal parts, so that each stands for as many items.
    return sorted(int(order[int((n + 0.5) * len(order) / count)]) for n in range(count))


def estimated(
    tasks: Mapping[str, Items],
    chosen: Mapping[str, Sequence[int]],
    answers: Mapping[str, Sequence[float]],
    experts: Sequence[int],
) -> dict[str, float]:
    """Estimate a merged model's score in each task from its answers to the anchors.

    Its ability in a task is a combination of the experts' abilities there, whose factors are the
    same in all tasks: theta = sum_k l_k theta_k. They are fitted to all anchors, with l_k ~
    N(1/K, 1). The estimate is the mean of the anchors' own score and of p-IRT, which is the anchors
    and the probabilities of all other items.

    Args:
        tasks: The fitted items by task.
        chosen: The anchors' numbers by task.
        answers: The merged model's scores of these.
        experts: Which of the fitted models are the experts.

    Returns:
        By task, in [0, 1].

    Source:
        arXiv:2502.10436, the gmp-IRT estimator, with the combination fitted over all tasks at once.
    """
    from scipy.optimize import minimize

    each = 1 / len(experts)

    def probabilities(factors: np.ndarray, task: str) -> np.ndarray:
        return tasks[task].answers(float(tasks[task].abilities[list(experts)] @ factors))

    def loss(factors: np.ndarray) -> float:
        total = float(((factors - each) ** 2).sum()) / 2
        for task, numbers in chosen.items():
            p = np.clip(probabilities(factors, task)[list(numbers)], 1e-12, 1 - 1e-12)
            y = np.asarray(answers[task])
            total -= float((y * np.log(p) + (1 - y) * np.log(1 - p)).sum())
        return total

    factors = minimize(loss, np.full(len(experts), each), method="BFGS").x
    found = {}
    for task, numbers in chosen.items():
        p = probabilities(factors, task)
        seen = np.isin(np.arange(len(p)), numbers)
        own = float(np.mean(answers[task]))
        rest = float(p[~seen].sum()) / len(p)
        found[task] = (own + seen.mean() * own + rest) / 2
    return {task: float(value) for task, value in found.items()}

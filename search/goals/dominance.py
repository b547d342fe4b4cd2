"""Which points are not dominated, how crowded they are, and the volume that they dominate.

A point holds one number for each goal; more is better in each. One point dominates another if it is
nowhere worse and somewhere better.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

Point = Sequence[float]


def fronts(points: np.ndarray) -> list[list[int]]:
    """Sort points into fronts: those that none dominates, those that only these dominate, ...

    Args:
        points: Float64 [n, goals].

    Returns:
        The fronts, best first; in each the points' indices, ascending. Equal points share a front.

    Source:
        Deb et al., A fast and elitist multiobjective genetic algorithm: NSGA-II, IEEE Transactions
        on Evolutionary Computation 6(2), 2002, section III A.
    """
    one, other = points[:, None], points[None]
    dominates = np.all(one >= other, axis=2) & np.any(one > other, axis=2)
    left = np.arange(len(points))
    found = []
    while len(left):
        beaten = dominates[np.ix_(left, left)].any(0)
        found.append(left[~beaten].tolist())
        left = left[beaten]
    return found


def crowding(points: np.ndarray) -> np.ndarray:
    """Measure how far the neighbours of each point of a front are, summed over the goals.

    Args:
        points: One front, float64 [n, goals].

    Returns:
        Float64 [n]: the sides of the box between both neighbours, each as a share of its goal's
        range; infinite for a goal's first and last point.

    Source:
        Deb et al. 2002, section III B.
    """
    found = np.zeros(len(points))
    for goal in points.T:
        order = np.argsort(goal, kind="stable")
        ordered = goal[order]
        if ordered[0] == ordered[-1]:
            continue  # all are equal in this goal
        found[order[[0, -1]]] = math.inf
        found[order[1:-1]] += (ordered[2:] - ordered[:-2]) / (ordered[-1] - ordered[0])
    return found


def _undominated(points: Iterable[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """Keep the points that none dominates, each once, the largest first."""
    kept: list[tuple[float, ...]] = []
    # In descending order a later point can dominate no earlier one.
    for point in sorted(set(points), reverse=True):
        if not any(all(a >= b for a, b in zip(other, point, strict=True)) for other in kept):
            kept.append(point)
    return kept


def _volume(points: list[tuple[float, ...]]) -> float:
    """Return the volume between 0 and undominated points, which are in descending order."""
    if not points:
        return 0.0
    if len(points[0]) == 1:
        return points[0][0]
    if len(points[0]) == 2:
        edges = [*(y for _, y in points)]
        steps = zip(points, [0.0, *edges[:-1]], strict=True)
        return math.fsum(x * (y - below) for (x, y), below in steps)
    # Worst in the first goal first: what it adds to the rest is what the rest leaves of its box.
    return math.fsum(added(point, points[:n]) for n, point in enumerate(points))


def added(point: Point, others: Iterable[Point]) -> float:
    """Return the volume that a point dominates and others do not; see `hypervolume`."""
    own = tuple(point)
    cut = (tuple(map(min, zip(own, other, strict=True))) for other in others)
    return math.prod(own) - _volume(_undominated(cut))


def hypervolume(points: Iterable[Point]) -> float:
    """Compute the volume that points dominate, above 0 in each goal.

    Args:
        points: Numbers of 0 or more, one for each goal.

    Returns:
        The volume; 1 where a point is 1 in every goal and none is above.

    Source:
        While et al., A fast way of calculating exact hypervolumes, IEEE Transactions on
        Evolutionary Computation 16(1), 2012: the recursion over exclusive volumes.
    """
    return _volume(_undominated(tuple(map(float, point)) for point in points))


def growth(points: Iterable[Point]) -> list[float]:
    """Compute the hypervolume of the first 1, 2, ... of some points."""
    total, found = 0.0, []
    kept: list[tuple[float, ...]] = []
    for point in points:
        own = tuple(map(float, point))
        total += added(own, kept)
        kept = _undominated([*kept, own])
        found.append(total)
    return found


def representatives(points: Sequence[Point], count: int) -> list[int]:
    """Choose points that dominate much together: each next one adds the most volume.

    Args:
        points: Numbers of 0 or more, one for each goal.
        count: How many; all where there are fewer.

    Returns:
        Their indices in the order of the choice; of equal ones the first.
    """
    chosen: list[int] = []
    while len(chosen) < min(count, len(points)):
        taken = [points[n] for n in chosen]
        left = [n for n in range(len(points)) if n not in chosen]
        chosen.append(max(left, key=lambda n: added(points[n], taken)))
    return chosen

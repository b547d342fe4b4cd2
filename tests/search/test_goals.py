"""Dominance, hypervolume, NSGA-II and MAP against brute force, hand-counted cases and scipy."""

import itertools
import json
import math

import numpy as np
import pytest

from common.errors import UserError
from search.evaluation import Evaluation
from search.goals.dominance import crowding, fronts, growth, hypervolume, representatives
from search.goals.informed import alone, goals_of
from search.goals.nsga2 import Nsga2, crossed, mutated, ranked
from search.goals.surrogate import Surrogate, features, fitted
from search.space import Gene

COLUMNS = [["s/a"], ["s/b", "s/c"]]


def beats(one, other):
    return all(a >= b for a, b in zip(one, other, strict=True)) and tuple(one) != tuple(other)


def test_fronts_are_those_of_the_definition():
    random = np.random.default_rng(0)
    for _ in range(50):
        points = random.integers(0, 4, size=(random.integers(1, 14), random.integers(1, 4)))
        left, expected = set(range(len(points))), []
        while left:
            first = {n for n in left if not any(beats(points[m], points[n]) for m in left)}
            expected.append(sorted(first))
            left -= first
        assert fronts(points.astype(float)) == expected


def test_crowding_counted_by_hand():
    points = np.array([[0.0, 4.0], [1.0, 3.0], [3.0, 1.0], [4.0, 0.0]])
    # The second: (3 - 0) / 4 in the first goal and (4 - 1) / 4 in the other.
    assert crowding(points).tolist() == [math.inf, 1.5, 1.5, math.inf]
    assert crowding(np.array([[1.0, 2.0], [1.0, 2.0]])).tolist() == [0.0, 0.0]
    points = np.array([[1.0, 1.0], [0.0, 4.0], [1.9, 2.9], [2.0, 2.8], [4.0, 0.0], [2.1, 2.7]])
    # First the front, its ends, then who has most room; the dominated one is last.
    assert ranked(points, 6) == [1, 4, 5, 2, 3, 0]


def test_hypervolumes_counted_by_hand_and_in_cubes():
    assert hypervolume([]) == 0
    assert hypervolume([(0.3,), (0.5,)]) == 0.5
    assert hypervolume([(1, 0.5), (0.5, 1), (0.4, 0.4)]) == 0.75
    # Two boxes of 4 and 2 that share 1.
    assert hypervolume([(2, 2, 1), (1, 1, 2)]) == 5
    random = np.random.default_rng(1)
    for goals in (2, 3, 4):
        points = random.integers(0, 5, size=(9, goals)).tolist()
        cubes = itertools.product(range(5), repeat=goals)
        inside = [
            any(all(c < p for c, p in zip(cube, point, strict=True)) for point in points)
            for cube in cubes
        ]
        assert hypervolume(points) == sum(inside)
        assert growth(points) == [hypervolume(points[: n + 1]) for n in range(len(points))]


def test_representatives_add_most_volume_in_turn():
    points = [(1, 5), (2, 4), (4, 2), (5, 1), (2, 4)]
    # 8 and 8, the first of them; then 2 x 2 for (4, 2); then 1 each, and nothing for the copy.
    assert representatives(points, 3) == [1, 2, 0]
    assert representatives(points, 9) == [1, 2, 0, 3, 4]


def test_children_lie_around_their_parents_and_within_bounds():
    draws = np.random.default_rng(2)
    one, other = np.zeros(4000), np.ones(4000)
    first, second = crossed(one, other, draws)
    assert np.allclose(first + second, 1)
    # Half of the genes are crossed; of these half come nearer to each other (2u <= 1).
    apart = np.abs(first - second)
    assert abs(np.mean(np.isclose(apart, 1)) - 0.5) < 0.03
    assert abs(np.mean(apart < 1 - 1e-9) - 0.25) < 0.03
    # The spread's distribution function at b < 1 is b^(index + 1) / 2.
    closer = apart[apart < 1 - 1e-9]
    assert abs(np.mean(closer < 0.95) - 0.95**16) < 0.04
    low, high = np.full(4000, -1.0), np.full(4000, 3.0)
    for start in (-1.0, 0.5, 3.0):
        moved = [mutated(np.full(4000, start), low, high, draws) for _ in range(50)]
        assert all((genome >= -1).all() and (genome <= 3).all() for genome in moved)
        changed = sum(int((genome != start).sum()) for genome in moved)
        assert 15 < changed < 100  # one in 4000, 50 times; at a bound half of them do not move


def genes(experts=("a", "b"), groups=("layer 0", "rest")):
    return [
        Gene(group, "weights", expert, 1.0, (0.0, 2.0)) for group in groups for expert in experts
    ]


def scored(index, genome):
    """Two goals that no genome serves both: near 0.2 in all weights, or near 1.4."""
    x = np.asarray(genome)
    values = [float(math.exp(-((x - place) ** 2).mean())) for place in (0.2, 1.4)]
    tasks = {"s/a": values[0], "s/b": values[1], "s/c": values[1]}
    return Evaluation(index, {}, sum(values) / 2, tasks, genome=list(genome))


def run(strategy, budget, history):
    strategy.history = lambda: history
    while len(history) < budget:
        asked = strategy.ask()
        if not asked:
            break
        for genome in asked:
            history.append(scored(len(history), genome))
        strategy.tell([item.average for item in history[-len(asked) :]])
    return history


def volume(history, count):
    return hypervolume([goals_of(item, COLUMNS) for item in history[:count]])


def strategies(seed):
    yield Nsga2(genes(), COLUMNS, population=12, sigma=0.3, seed=seed)
    yield Surrogate(genes(), COLUMNS, budget=60, population=12, seed=seed)


def test_it_begins_with_the_start_and_each_expert_alone():
    asked = Nsga2(genes(), COLUMNS, population=8, sigma=0.3, seed=0).ask()
    assert asked[:3] == [[1, 1, 1, 1], [1, 0, 1, 0], [0, 1, 0, 1]] and len(asked) == 8
    assert alone([Gene("layer 0", "t", "", 0.5, (0, 1))]) == []


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_both_dominate_more_than_random_genomes(seed):
    random = np.random.default_rng(seed)
    drawn = [scored(n, random.uniform(0, 2, size=4)) for n in range(96)]
    for strategy, budget in zip(strategies(seed), (96, 30), strict=True):
        found = run(strategy, budget, [])
        assert volume(found, budget) > volume(drawn, 96) + 0.02
        assert all(0 <= value <= 2 for item in found for value in item.genome)


def test_what_is_restored_asks_for_the_same():
    for first, second in zip(strategies(3), strategies(9), strict=True):
        history = run(first, 30, [])
        second.restore(json.loads(json.dumps(first.state())))
        assert second.state() == first.state()
        assert first.ask() == second.ask()
        assert len(run(second, 36, list(history))) > 30


def test_a_failed_candidate_is_dominated_by_all_and_no_point_of_a_fit():
    failed = Evaluation(0, {}, genome=[1.0] * 4, failure="no")
    assert max(goals_of(failed, COLUMNS)) < 0
    surrogate = next(itertools.islice(strategies(0), 1, None))
    asked = surrogate.ask()
    history = [failed, *(scored(n, genome) for n, genome in enumerate(asked) if n)]
    surrogate.history = lambda: history
    surrogate.tell([item.average for item in history])
    assert len(surrogate.memory()["weights"]) == len(asked) - 1
    assert len(surrogate.ask()) == 12


def test_the_surrogate_s_fit_is_the_optimum_that_scipy_finds():
    from scipy.optimize import minimize

    random = np.random.default_rng(4)
    weights = random.random((30, 3))
    beta = random.normal(size=10)
    assert features(np.array([[2.0, 3.0]])).tolist() == [[1, 2, 3, 4, 6, 9]]
    exact = 1 / (1 + np.exp(-features(weights) @ beta))
    # Without a ridge the function is found again.
    assert np.allclose(fitted(weights, exact, 0.0), beta, atol=1e-4)
    scores = np.clip(exact + 0.1 * random.normal(size=30), 0, 1)

    def loss(values):
        p = 1 / (1 + np.exp(-features(weights) @ values))
        likelihood = -(scores * np.log(p) + (1 - scores) * np.log(1 - p)).sum()
        return likelihood + 30 * (0.01 * (values[1:] ** 2).sum() + 1e-9 * values[0] ** 2)

    best = minimize(loss, np.zeros(10), method="BFGS", options={"gtol": 1e-7})
    assert np.allclose(fitted(weights, scores, 0.01), best.x, atol=1e-3)
    # Scores without any difference have a fit too.
    assert np.isfinite(fitted(weights, np.ones(30))).all()


def test_what_map_cannot_fit_is_refused():
    with pytest.raises(UserError, match=r"fits 6 numbers .* 2 experts; give a budget of 9"):
        Surrogate(genes(), COLUMNS, budget=8, seed=0)
    Surrogate(genes(), COLUMNS, budget=9, seed=0)
    slerp = [Gene("layer 0", "t", "", 0.5, (0, 1))]
    with pytest.raises(UserError, match="one weight of each expert"):
        Surrogate(slerp, COLUMNS, budget=50, seed=0)

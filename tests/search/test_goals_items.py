"""Competition for items, mates and item responses: hand-counted cases, simulations, scipy."""

import json

import numpy as np
import pytest

from common.errors import UserError
from search.evaluation import Evaluation
from search.evolutionary import CmaEs
from search.goals.m2n2 import M2n2, attraction, shares
from search.goals.responses import Items, anchors, estimated, fit
from search.space import Gene

SCORES = np.array([[1.0, 1, 0], [0, 1, 1], [0, 0, 1]])


def genes(experts="ab", groups=("layer 0", "layer 1", "rest")):
    return [
        Gene(group, "weights", expert, 1.0, (0.0, 2.0)) for group in groups for expert in experts
    ]


def sigmoid(values):
    return 1 / (1 + np.exp(-values))


def test_shares_and_attraction_counted_by_hand():
    gains = shares(SCORES)
    assert gains.sum(1).tolist() == [1.5, 1.0, 0.5]
    assert attraction(gains, 0).tolist() == [0.0, 0.5, 0.5]
    # Without competition fitness is the plain sum; an item that none answers is worth nothing.
    assert shares(SCORES, alpha=0).sum(1).tolist() == [2, 2, 1]
    assert shares(np.array([[0.0, 0.5]])).tolist() == [[0.0, 1.0]]
    # Who lacks nothing takes the fittest of the others.
    assert attraction(shares(np.array([[1.0, 1], [0, 1], [0, 0]])), 0).tolist() == [0.0, 0.5, 0.0]


def archive(seed, steps, population=4):
    """Run on genomes whose items are right where a weight is near 0 or 2, by group."""
    strategy, history = M2n2(genes(), population=population, seed=seed), []
    strategy.history = lambda: history

    def items(index):
        x = np.array(history[index].genome)
        return np.concatenate([x < 0.5, x > 1.5, np.abs(x - 1) < 0.3]).astype(float)

    strategy.items = items
    for _ in range(steps):
        asked = strategy.ask()
        for genome in asked:
            history.append(Evaluation(len(history), {}, 0.5, genome=genome))
        strategy.tell([0.5] * len(asked))
    return strategy, history


def test_children_mix_two_members_before_and_behind_a_split():
    _, history = archive(0, 40)
    assert [item.genome for item in history[:3]] == [
        [1] * 6,
        [1, 0, 1, 0, 1, 0],
        [0, 1, 0, 1, 0, 1],
    ]
    strategy, history = archive(1, 1, population=20)
    parents = [np.array(item.genome).reshape(3, 2) for item in history]
    pairs = [(a, b) for a in parents for b in parents if not np.allclose(a, b)]
    seen = set()
    for _ in range(30):
        (child,) = (np.array(genome).reshape(3, 2) for genome in strategy.ask())
        ways = set()
        for one, other in pairs:
            # The share of the first parent in each group: w before the split, 1 - w behind it.
            apart = one - other
            share = ((child - other) * apart).sum(1) / (apart**2).sum(1)
            if np.allclose(share[:, None] * apart + other, child):
                expected = {
                    n: np.where(np.arange(3) < n, share[0], 1 - share[0]) for n in (1, 2, 3)
                }
                ways |= {n for n, shares in expected.items() if np.allclose(share, shares)}
        assert ways
        seen |= ways if len(ways) == 1 else set()
    assert seen == {1, 2, 3}


def test_the_archive_keeps_who_has_items_of_their_own():
    strategy, history = archive(2, 60)
    kept = strategy.memory()["kept"]
    assert len(history) == 3 + 59 and len(kept) == 4
    assert all(0 <= value <= 2 for item in history for value in item.genome)
    # Both experts alone answer items that no mixture does; a copy of one replaces nothing.
    assert [1, 0, 1, 0, 1, 0] in kept and [0, 1, 0, 1, 0, 1] in kept
    again = M2n2(genes(), population=4, seed=9)
    again.restore(json.loads(json.dumps(strategy.state())))
    assert again.ask() == strategy.ask()


def test_a_method_without_weights_is_refused():
    from search.goals.merge3 import Calibrated  # loads lm-eval

    slerp = [Gene("layer 0", "t", "", 0.5, (0, 1))]
    with pytest.raises(UserError, match="mixes experts by their weights"):
        M2n2(slerp, seed=0)
    inner = CmaEs(slerp, population=None, sigma=0.3, seed=0)
    with pytest.raises(UserError, match="from experts by their weights"):
        Calibrated(slerp, inner, sigma=0.3, seed=0)


def test_calibration_comes_first_and_cma_es_is_the_usual_one():
    from search.goals.merge3 import CALIBRATION, Calibrated  # loads lm-eval

    inner = CmaEs(genes(), population=6, sigma=0.3, seed=4)
    strategy = Calibrated(genes(), inner, sigma=0.3, seed=4)
    first = strategy.ask()
    assert len(first) == CALIBRATION and first[0] == [1] * 6 and strategy.experts == [1, 2]
    strategy.tell([0.5] * CALIBRATION)
    usual = CmaEs(genes(), population=6, sigma=0.3, seed=4)
    assert usual.ask() == [[1] * 6]
    usual.tell([0.5])
    for step in range(3):
        assert strategy.ask() == usual.ask()
        averages = [0.1 * n + step for n in range(6)]
        strategy.tell(averages)
        usual.tell(averages)
    again = Calibrated(genes(), CmaEs(genes(), population=6, sigma=1, seed=0), sigma=0.3, seed=4)
    again.restore(json.loads(json.dumps(strategy.state())))
    assert again.ask() == usual.ask()


def simulated(seed, models, items=120):
    random = np.random.default_rng(seed)
    theta, b = random.normal(size=models), 1.5 * random.normal(size=items)
    a = np.exp(0.5 * random.normal(size=items))
    p = sigmoid(a * (theta[:, None] - b))
    return (random.random(p.shape) < p).astype(float), theta, b


def test_a_fit_is_the_posterior_s_optimum():
    from scipy.optimize import minimize

    scores, _, _ = simulated(0, 4, 5)

    def loss(flat):  # by loops, without gradients
        theta, log_a, b = flat[:4], flat[4:9], flat[9:]
        total = (theta**2 / 2).sum() + (log_a**2 / 0.5).sum() + (b**2 / 4.5).sum()
        for i in range(4):
            for j in range(5):
                p = sigmoid(np.exp(log_a[j]) * (theta[i] - b[j]))
                total -= np.log(p if scores[i, j] else 1 - p)
        return total

    best = minimize(loss, np.zeros(14), method="BFGS").x
    found = fit(scores)
    flat = np.concatenate([found.abilities, np.log(found.slopes), found.difficulties])
    assert loss(flat) == pytest.approx(loss(best), abs=1e-5)
    assert np.allclose(flat, best, atol=1e-2)


def test_a_fit_orders_items_and_models_as_they_are():
    scores, theta, b = simulated(1, 60)
    found = fit(scores)
    assert np.corrcoef(found.abilities, theta)[0, 1] > 0.9
    assert np.corrcoef(found.difficulties, b)[0, 1] > 0.9
    assert np.isfinite(fit(np.ones((5, 4))).difficulties).all()


def test_anchors_are_spread_over_difficulty():
    difficulties = np.array([5.0, 1, 3, 2, 4, 0])
    items = Items(np.ones(6), difficulties, np.zeros(1))
    # Middles of the three parts 0 1, 2 3, 4 5: the higher of each two.
    assert sorted(difficulties[anchors(items, 3)]) == [1, 3, 5]
    assert anchors(items, 6) == anchors(items, 9) == [0, 1, 2, 3, 4, 5]


def test_an_estimate_counted_by_hand():
    # Both experts have ability 0, so every factor gives 0, and every item is right in half.
    flat = Items(np.ones(4), np.zeros(4), np.zeros(3))
    found = estimated({"t": flat}, {"t": [0]}, {"t": [1.0]}, [1, 2])
    # p-IRT: (1 + 3 * 0.5) / 4 = 0.625; the mean with the anchor's own score 1.
    assert found["t"] == pytest.approx((1 + 0.625) / 2)


def test_estimates_of_few_items_are_nearer_than_their_own_mean():
    plain, estimates = [], []
    for seed in range(12):
        scores, _, _ = simulated(seed, 14)
        known, merged = scores[:10], scores[10:]
        items = fit(known)
        chosen = anchors(items, 8)
        for answers in merged:
            few = answers[chosen]
            found = estimated({"t": items}, {"t": chosen}, {"t": few}, [0, 1, 2])
            plain.append(abs(few.mean() - answers.mean()))
            estimates.append(abs(found["t"] - answers.mean()))
    assert np.mean(estimates) < 0.85 * np.mean(plain)

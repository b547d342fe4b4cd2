"""Paired comparisons against cases counted by hand and against the normal approximation."""

from __future__ import annotations

import numpy as np
import pytest

from report.paired import Stratum, compare


def stratum(*rows, clusters=None, weight=1.0):
    differences = np.array(rows, dtype=float)
    numbers = np.arange(differences.shape[1]) if clusters is None else np.array(clusters)
    return Stratum(differences, numbers, weight)


def test_the_value_is_the_weighted_mean_of_the_tasks_means():
    # Means .5 and -.25 of the first comparison, 0 and 1 of the second; weights 3/4 and 1/4.
    first = stratum([1, 0], [0, 0], weight=0.75)
    second = stratum([0, 0, 0, -1], [1, 1, 1, 1], weight=0.25)
    found = compare([first, second], 50, seed=0)
    assert [entry.value for entry in found] == pytest.approx([0.3125, 0.25])


def test_four_clusters_that_all_rise_have_a_p_of_two_in_sixteen():
    # Of the 16 sign patterns only +++ + and --- - are as far from 0.
    (found,) = compare([stratum([1, 1, 1, 1])], 40_000, seed=1)
    assert found.p == pytest.approx(2 / 16, abs=0.007)
    # Differences 3, 1, 1, 1: a sum of 6 only where all signs agree.
    (found,) = compare([stratum([3, 1, 1, 1])], 40_000, seed=1)
    assert found.p == pytest.approx(2 / 16, abs=0.007)
    # Differences 1, 1, 0, 0: the zeros do not matter, 2 patterns of 4.
    (found,) = compare([stratum([1, 1, 0, 0])], 40_000, seed=1)
    assert found.p == pytest.approx(1 / 2, abs=0.012)


def test_items_of_one_cluster_are_one_observation():
    (found,) = compare([stratum([1, 1, 1, 1], clusters=[0, 0, 0, 0])], 200, seed=0)
    assert (found.p, found.low, found.high) == (1.0, 1.0, 1.0)
    # Two clusters of two: the pattern is as far from 0 in 2 of 4 cases.
    (found,) = compare([stratum([1, 1, 1, 1], clusters=[0, 1, 1, 0])], 40_000, seed=0)
    assert found.p == pytest.approx(1 / 2, abs=0.012)


def test_repeating_every_item_in_its_cluster_changes_nothing():
    values = np.random.default_rng(5).choice([-1, 0, 0, 1, 1], 60)
    once = compare([stratum(values)], 500, seed=3)
    doubled = stratum(np.tile(values, 2), clusters=np.tile(np.arange(60), 2))
    twice = compare([doubled], 500, seed=3)
    for name in ("value", "low", "high", "p"):
        assert getattr(once[0], name) == pytest.approx(getattr(twice[0], name))


def test_nothing_differs_where_all_answers_are_equal():
    (found,) = compare([stratum([0, 0, 0])], 100, seed=0)
    assert (found.value, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_interval_and_p_agree_with_the_normal_approximation():
    generator = np.random.default_rng(2)
    tasks = [generator.choice([-1.0, 0.0, 1.0], size=400, p=(0.1, 0.75, 0.15)) for _ in range(2)]
    (found,) = compare([stratum(task, weight=0.5) for task in tasks], 6_000, seed=4)
    error = np.sqrt(sum(0.25 * task.var(ddof=1) / 400 for task in tasks))
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.04)
    from math import erfc, sqrt

    assert found.p == pytest.approx(erfc(abs(found.value) / error / sqrt(2)), abs=0.012)


def test_draws_follow_the_seed_and_not_the_number_of_comparisons():
    values = np.random.default_rng(0).choice([-1, 0, 1], 80)
    alone = compare([stratum(values)], 300, seed=9)
    among = compare([stratum(values, -values)], 300, seed=9)
    assert among[0] == alone[0]
    assert among[1].value == -among[0].value and among[1].p == among[0].p

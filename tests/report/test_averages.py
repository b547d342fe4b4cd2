"""Means, standard errors and deviations against cases counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from report.averages import Score, mean, spread


def test_mean_of_two_tasks_by_hand():
    # Errors 0.03 and 0.04: sqrt(0.0009 + 0.0016) / 2 = 0.05 / 2.
    result = mean([Score(0.5, 0.03, 100, 0.25), Score(0.9, 0.04, 60, 0.5)])
    assert result.value == pytest.approx(0.7)
    assert result.stderr == pytest.approx(0.025)
    assert result.items == 160
    assert result.chance == pytest.approx(0.375)


def test_average_of_columns_weighs_columns_and_not_tasks():
    # Columns (0.2 + 0.4) / 2 = 0.3 and 0.9; their mean is 0.6, the mean over tasks would be 0.5.
    pair = mean([Score(0.2, 0.03, 10), Score(0.4, 0.04, 10)])
    total = mean([pair, Score(0.9, 0.06, 10)])
    assert total.value == pytest.approx(0.6)
    # Errors 0.025 and 0.06: sqrt(0.000625 + 0.0036) / 2 = 0.065 / 2.
    assert total.stderr == pytest.approx(0.0325)


def test_a_missing_score_leaves_no_mean():
    assert mean([Score(0.5, 0.1, 10), None]) is None
    assert mean([]) is None


def test_spread_by_hand():
    # Deviations -0.1, 0, 0.1: variance 0.02 / 2 = 0.01 with the divisor n - 1.
    result = spread([0.4, 0.5, 0.6])
    assert (result.mean, result.runs) == (pytest.approx(0.5), 3)
    assert result.deviation == pytest.approx(0.1)


def test_spread_of_incomplete_runs():
    assert spread([0.4, None, 0.6]).runs == 2
    assert spread([0.4, None, 0.6]).deviation == pytest.approx(0.02**0.5)
    assert spread([0.4]).deviation is None
    assert spread([None]) is None


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_spread_equals_numpy(values):
    result = spread(values)
    assert result.mean == pytest.approx(np.mean(values), abs=1e-12)
    assert result.deviation == pytest.approx(np.std(values, ddof=1), abs=1e-7)

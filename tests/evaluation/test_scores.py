"""Scores of single items, counted by hand or by the library that defines them."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from evaluation import metrics


@pytest.mark.parametrize(
    "answer,target,value",
    [("猫 ", " 猫", 1.0), ("猫", "猫です", 0.0), ("", "猫", 0.0), ("Cat", "cat", 0.0)],
)
def test_exact_match_ignores_only_outer_space(answer, target, value):
    assert metrics.exact_match(answer, target) == value


@pytest.mark.parametrize(
    "answer,target,value",
    [
        ("3+4=7", "3+4=7", 1.0),
        ("4+3=7", "3+4=7", 1.0),  # only the result counts
        ("3 + 4 = 7.", "7", 1.0),
        ("7", "3+4=7", 0.0),  # a guess without a calculation
        ("3+4=8", "3+4=7", 0.0),
        ("3+4=", "3+4=7", 0.0),
        ("3+4=7\n1+1=2", "3+4=7", 1.0),  # later lines do not count
        ("1+1=2\n3+4=7", "3+4=7", 0.0),
        ("2*3=6+4=10", "2*3=6, 6+4=10", 1.0),
        ("3-7=-4", "-4", 1.0),
        ("3+4=07", "7", 1.0),
        ("3+4=７", "7", 0.0),  # full-width digits never match
        ("=", "7", 0.0),
        ("", "7", 0.0),
    ],
)
def test_last_integer(answer, target, value):
    assert metrics.last_integer(answer, target) == value


def test_rouge2_by_hand():
    # Pairs written: ab bc cd; expected: ab bc ce ef; shared 2: P = 2/3, R = 1/2, F = 4/7.
    assert metrics.rouge2("abcd", "abcef") == pytest.approx(4 / 7)
    # "aaa" has the pair aa twice, "aa" once: clipped to one, P = 1/2, R = 1.
    assert metrics.rouge2("aaa", "aa") == pytest.approx(2 / 3)
    assert metrics.rouge2("ab", "ab") == 1.0
    assert metrics.rouge2("a", "a") == 0.0
    assert metrics.rouge2("", "ab") == 0.0


def test_rouge2_equals_the_library():
    from rouge_score.rouge_scorer import RougeScorer

    class Words:
        def tokenize(self, text):
            return text.split()

    scorer = RougeScorer(["rouge2"], tokenizer=Words())
    draw = random.Random(0)
    for _ in range(200):
        answer, target = (
            [draw.choice("abcd") for _ in range(draw.randint(0, 9))] for _ in range(2)
        )
        expected = scorer.score(" ".join(target), " ".join(answer))["rouge2"].fmeasure
        assert metrics.rouge2(answer, target) == pytest.approx(expected)


def test_mean_and_standard_error():
    values = [1.0, 0.0, 0.0, 1.0, 1.0, 0.25]
    mean, stderr = metrics.mean_and_stderr(values)
    assert mean == pytest.approx(statistics.mean(values))
    assert stderr == pytest.approx(statistics.stdev(values) / math.sqrt(6))
    assert metrics.mean_and_stderr([1.0]) == (1.0, 0.0)
    assert metrics.mean_and_stderr([1.0, 1.0]) == (1.0, 0.0)

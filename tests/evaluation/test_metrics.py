"""Scores of whole tasks, against scikit-learn, rouge_score, lm-eval and cases counted by hand."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from evaluation import metrics, rows


@pytest.fixture(scope="session", autouse=True)
def libraries():
    """Import what takes seconds only when the tests run: collecting them stays quick."""
    global BootstrapAggregator, Score, sklearn
    import sklearn.metrics
    from rouge_score.scoring import BootstrapAggregator, Score


def choice(gold: int, *loglikelihoods: float) -> dict:
    return {
        "gold": gold,
        "loglikelihoods": list(loglikelihoods),
        "lengths": [2, 4, 8, 3, 5][: len(loglikelihoods)],
        "bytes": [6, 12, 8, 3, 5][: len(loglikelihoods)],
    }


def drawn(count: int, classes: int, seed: int = 0) -> tuple[list[dict], list[int], list[int]]:
    """Items of uneven classes, with their gold and predicted classes."""
    draw = random.Random(seed)
    items, golds, predictions = [], [], []
    for _ in range(count):
        gold = min(draw.randrange(classes), draw.randrange(classes))
        values = [draw.uniform(-9, 0) + (3 if i == gold else 0) for i in range(classes)]
        items.append(choice(gold, *values))
        golds.append(gold)
        predictions.append(values.index(max(values)))
    return items, golds, predictions


def test_choices_are_compared_plainly_by_character_and_by_byte():
    # -3, -4, -6: plainly the first; by character -1.5, -1, -0.75: the third; by byte -0.5,
    # -0.33, -0.75: the second.
    for gold, expected in enumerate([(1, 0, 0), (0, 0, 1), (0, 1, 0)]):
        values = metrics.choice_values([-3, -4, -6], [2, 4, 8], [6, 12, 8], gold)
        assert values == dict(zip(("acc", "acc_norm", "acc_bytes"), expected, strict=True))
    # Of equals the first counts.
    assert metrics.choice_values([-1, -1], [1, 1], [1, 1], 0)["acc"] == 1
    assert metrics.choice_values([-1, -1], [1, 1], [1, 1], 1)["acc"] == 0


def test_choice_values_equal_lm_evals():
    from lm_eval.api.task import ConfigurableTask

    draw = random.Random(1)
    rows = []
    for _ in range(60):
        choices = ["あ" * draw.randint(1, 9) + "a" * draw.randint(0, 9) for _ in range(4)]
        rows.append({"q": "問", "choices": choices, "gold": draw.randrange(4)})

    class Rows(list):
        features = rows[0]

    names = ("acc", "acc_norm", "acc_bytes")
    task = ConfigurableTask(
        config={
            "task": "t",
            "custom_dataset": lambda **_: {"test": Rows(rows)},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "q",
            "doc_to_choice": "choices",
            "doc_to_target": "gold",
            "metric_list": [
                {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in names
            ],
        }
    )
    for row in rows:
        values = [draw.uniform(-30, 0) for _ in range(4)]
        lengths = [len(c) for c in row["choices"]]
        sizes = [len(c.encode()) for c in row["choices"]]
        expected = task.process_results(row, [(value, False) for value in values])
        assert metrics.choice_values(values, lengths, sizes, row["gold"]) == expected


def test_balanced_accuracy_f1_and_mcc_by_hand():
    # Gold 0: right, right, wrong; gold 1: wrong. Recalls 2/3 and 0.
    items = [choice(0, 0, -1), choice(0, 0, -1), choice(0, -1, 0), choice(1, 0, -1)]
    assert metrics.confusion(items).tolist() == [[2, 1], [1, 0]]
    assert metrics.aggregate(items, "x", "balanced_acc")["value"] == pytest.approx(1 / 3)
    # F1 of class 0: 2 * 2 / (3 + 3); of class 1: 0.
    assert metrics.aggregate(items, "x", "macro_f1")["value"] == pytest.approx(1 / 3)
    # (4 * 2 - (3 * 3 + 1 * 1)) / sqrt((16 - 10) * (16 - 10)).
    assert metrics.aggregate(items, "x", "mcc")["value"] == pytest.approx(-1 / 3)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_statistics_of_the_confusion_equal_scikit_learns(classes):
    for seed in range(5):
        items, golds, predictions = drawn(70, classes, seed)
        expected = {
            "balanced_acc": sklearn.metrics.balanced_accuracy_score(golds, predictions),
            "macro_f1": sklearn.metrics.f1_score(golds, predictions, average="macro"),
            "mcc": sklearn.metrics.matthews_corrcoef(golds, predictions),
        }
        for name, value in expected.items():
            assert metrics.aggregate(items, name, name)["value"] == pytest.approx(value)
        accuracy = metrics.aggregate(items, "acc")
        share = sklearn.metrics.accuracy_score(golds, predictions)
        assert accuracy["value"] == pytest.approx(share)
        assert accuracy["stderr"] == pytest.approx(math.sqrt(share * (1 - share) / 69))


def test_classes_that_never_occur_count_for_nothing():
    # No gold 2 and never predicted; gold 1 never occurs but is predicted once.
    items = [choice(0, 0, -1, -2), choice(0, -1, 0, -2)]
    assert metrics.aggregate(items, "x", "balanced_acc")["value"] == 0.5
    expected = sklearn.metrics.f1_score([0, 0], [0, 1], average="macro")
    assert metrics.aggregate(items, "x", "macro_f1")["value"] == pytest.approx(expected)
    assert metrics.aggregate(items, "x", "mcc")["value"] == 0


def test_a_gold_choice_beyond_the_choices_is_never_right():
    items = [choice(2, 0, -1), choice(0, 0, -1)]
    assert metrics.aggregate(items, "acc")["value"] == 0.5
    assert metrics.confusion(items).tolist() == [[1, 0, 0], [0, 0, 0], [1, 0, 0]]


@pytest.mark.parametrize("name", ["balanced_acc", "macro_f1", "mcc"])
def test_standard_errors_are_those_of_drawing_items_again(name):
    items, _, _ = drawn(200, 3)
    draw = random.Random(5)
    values = [
        metrics.AGGREGATES[name](draw.choices(items, k=len(items)), name)[0] for _ in range(150)
    ]
    # Two estimates of one spread from 150 and 1000 draws: their ratio has an error of 6 %.
    assert metrics.aggregate(items, name, name)["stderr"] == pytest.approx(np.std(values), rel=0.25)


def test_own_values_of_items_come_before_log_likelihoods():
    items = [choice(0, 0, -1) | {"values": {"acc": 0.25}}, choice(0, 0, -1)]
    assert metrics.aggregate(items, "acc")["value"] == pytest.approx(0.625)


def test_the_bootstrap_median_is_rouge_scores():
    draw = random.Random(3)
    values = [draw.random() ** 3 for _ in range(40)]
    np.random.seed(1234)
    aggregator = BootstrapAggregator()
    for value in values:
        aggregator.add_scores({"rouge2": Score(0.0, 0.0, value)})
    expected = aggregator.aggregate()["rouge2"].mid.fmeasure
    items = [{"values": {"rouge2": value}} for value in values]
    found = metrics.aggregate(items, "rouge2", "bootstrap_median")
    assert found["value"] == pytest.approx(expected, abs=1e-12)
    mean = metrics.aggregate(items, "rouge2")
    assert found["stderr"] == pytest.approx(mean["stderr"], rel=0.1)
    assert abs(found["value"] - mean["value"]) < mean["stderr"]


def test_definitions_may_name_every_aggregate_and_no_other():
    assert tuple(metrics.AGGREGATES) == rows.AGGREGATIONS

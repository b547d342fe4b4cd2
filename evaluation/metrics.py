"""Scores of single items, and of a task from its stored items, without asking a model again.

A multiple-choice item holds the log-likelihoods of its choices, their lengths and the gold
choice; any item may hold `values`, its own value of each metric.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Item = Mapping[str, Any]
_DRAWS = 1000  # rouge_score's number; the standard errors here vary by 2 % at most
_SEED = 1234  # of numpy's generator in the published harness
CHOICE_KEYS = ("loglikelihoods", "lengths", "bytes", "gold")  # as `choice_values` takes them
_INTEGER = re.compile(r"-?[0-9]+")


def exact_match(answer: str, target: str) -> float:
    """Return 1.0 if two texts are equal without the whitespace at their ends, else 0.0."""
    return float(answer.strip() == target.strip())


def last_integer(answer: str, target: str) -> float:
    """Return 1.0 if the last integer of a calculation such as ``3+4=7`` is the target's, else 0.0.

    Only the first line counts, and it must hold an equals sign: a bare number is a guess, not
    a calculation.

    Source: the MGSM task of the JP Language Model Evaluation Harness (last match in the first
    generated line), plus the equals sign.
    """
    line = answer.split("\n", 1)[0]
    found = _INTEGER.findall(line)
    if "=" not in line or not found:
        return 0.0
    return float(int(found[-1]) == int(_INTEGER.findall(target)[-1]))


def rouge2(answer: Sequence[int | str], target: Sequence[int | str]) -> float:
    """ROUGE-2: the F-measure of shared pairs of neighbouring tokens.

    Japanese has no spaces, so the caller chooses the tokens. The harness of the publication in
    effect takes the evaluated model's own; the bottle's models share one tokenizer, whose tokens
    are the words of its texts, so the score compares across models.

    Returns:
        2PR / (P + R) in [0, 1], 0 where either has no pair.

    Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", with clipped
    counts as in the package rouge_score.
    """
    written = Counter(itertools.pairwise(answer))
    expected = Counter(itertools.pairwise(target))
    shared = (written & expected).total()
    if not shared:
        return 0.0
    precision, recall = shared / written.total(), shared / expected.total()
    return 2 * precision * recall / (precision + recall)


def mean_and_stderr(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean of at least one score, and its standard error.

    That is the sample standard deviation divided by sqrt(n); for scores of 0 and 1 that is
    sqrt(p (1 - p) / (n - 1)). 0 for a single item, whose spread is unknown.
    """
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return mean, 0.0
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return mean, math.sqrt(variance / count)


def choice_values(
    loglikelihoods: Sequence[float], lengths: Sequence[int], sizes: Sequence[int], gold: int
) -> dict[str, float]:
    """Score one multiple-choice item in the three usual ways.

    Args:
        loglikelihoods: Of the choices, in nats.
        lengths: Of the choices, in characters.
        sizes: Of the choices, in bytes of UTF-8.
        gold: Index of the right choice.

    Returns:
        Under acc, acc_norm and acc_bytes 1.0 if the right choice has the highest log-likelihood,
        plain, by character and by byte, else 0.0. Of equals the first counts.
    """
    scores = {
        "acc": list(loglikelihoods),
        "acc_norm": [
            value / (size or 1) for value, size in zip(loglikelihoods, lengths, strict=True)
        ],
        "acc_bytes": [
            value / (size or 1) for value, size in zip(loglikelihoods, sizes, strict=True)
        ],
    }
    return {name: float(score.index(max(score)) == gold) for name, score in scores.items()}


def _values(items: Sequence[Item], metric: str) -> list[float]:
    """Return each item's own value of a metric."""
    found = []
    for item in items:
        values = item.get("values", {})
        if metric not in values:
            values = choice_values(*(item[key] for key in CHOICE_KEYS))
        found.append(values[metric])
    return found


def confusion(items: Sequence[Item]) -> np.ndarray:
    """Count multiple-choice items by gold and predicted choice: [gold, predicted], int64."""
    # Where a published definition drops a choice, the gold one may be among what was dropped.
    size = max(max(len(item["loglikelihoods"]), item["gold"] + 1) for item in items)
    counts = np.zeros((size, size), dtype=np.int64)
    for item in items:
        counts[item["gold"], int(np.argmax(item["loglikelihoods"]))] += 1
    return counts


def balanced_accuracy(counts: np.ndarray) -> np.ndarray:
    """Mean of the classes' accuracies, over the classes that occur.

    Args:
        counts: [..., gold, predicted].

    Returns:
        [...] in [0, 1].
    """
    right = np.diagonal(counts, axis1=-2, axis2=-1)
    support = counts.sum(-1)
    return (right / np.maximum(support, 1)).sum(-1) / (support > 0).sum(-1)


def macro_f1(counts: np.ndarray) -> np.ndarray:
    """Unweighted mean of the classes' F1, over the classes that occur or are predicted.

    Args and Returns: as `balanced_accuracy`.
    """
    right = np.diagonal(counts, axis1=-2, axis2=-1)
    either = counts.sum(-1) + counts.sum(-2)
    return (2 * right / np.maximum(either, 1)).sum(-1) / (either > 0).sum(-1)


def matthews(counts: np.ndarray) -> np.ndarray:
    """Matthews' correlation coefficient, in [-1, 1], 0 where gold or predictions do not vary.

    Args: as `balanced_accuracy`.

    Source: Gorodkin 2004, "Comparing two K-category assignments by a K-category correlation
    coefficient", in the form of scikit-learn's user guide.
    """
    counts = counts.astype(np.float64)
    gold, predicted, total = counts.sum(-1), counts.sum(-2), counts.sum((-2, -1))
    right = np.trace(counts, axis1=-2, axis2=-1)
    spread = (total**2 - (gold**2).sum(-1)) * (total**2 - (predicted**2).sum(-1))
    covariance = right * total - (gold * predicted).sum(-1)
    return np.where(spread > 0, covariance / np.sqrt(np.where(spread > 0, spread, 1)), 0.0)


def _of_confusion(
    statistic: Callable[[np.ndarray], np.ndarray],
) -> Callable[[Sequence[Item], str], tuple[float, float]]:
    def aggregate(items: Sequence[Item], metric: str) -> tuple[float, float]:
        counts = confusion(items)
        # Drawing n items with replacement is one multinomial draw over the cells.
        draws = np.random.default_rng(_SEED).multinomial(
            len(items), counts.reshape(-1) / len(items), size=_DRAWS
        )
        spread = statistic(draws.reshape(_DRAWS, *counts.shape)).std(ddof=1)
        return float(statistic(counts)), float(spread)

    return aggregate


def _mean(items: Sequence[Item], metric: str) -> tuple[float, float]:
    return mean_and_stderr(_values(items, metric))


def _bootstrap_median(items: Sequence[Item], metric: str) -> tuple[float, float]:
    """Median of the means of 1000 bootstrap samples, as rouge_score's aggregator has it."""
    values = np.array(_values(items, metric))
    random = np.random.RandomState(_SEED)
    indices = np.arange(len(values))
    means = [values[random.choice(indices, size=len(values))].mean() for _ in range(_DRAWS)]
    return float(np.percentile(means, 50)), float(np.std(means, ddof=1))


AGGREGATES: dict[str, Callable[[Sequence[Item], str], tuple[float, float]]] = {
    "mean": _mean,
    "bootstrap_median": _bootstrap_median,
    "balanced_acc": _of_confusion(balanced_accuracy),
    "macro_f1": _of_confusion(macro_f1),
    "mcc": _of_confusion(matthews),
}


def aggregate(items: Sequence[Item], metric: str, aggregation: str = "mean") -> dict[str, Any]:
    """Compute a task's score from its items.

    Args:
        items: The task's items.
        metric: Name of the metric.
        aggregation: A name of `AGGREGATES`: mean and bootstrap_median are of the items' own
            values of the metric, the others of the table of gold and predicted choices.

    Returns:
        value, and stderr: of a mean, the sample standard deviation over sqrt(n); of the others,
        the standard deviation over 1000 bootstrap samples. Where the metric is not a number for
        an item (its value is None), both are None, and `undefined` says for how many.
    """
    lacking = sum(item.get("values", {}).get(metric, 0.0) is None for item in items)
    if lacking:
        why = f"not a number for {lacking} of {len(items)} items"
        return {"value": None, "stderr": None, "undefined": why}
    value, stderr = AGGREGATES[aggregation](items, metric)
    return {"value": value, "stderr": stderr}

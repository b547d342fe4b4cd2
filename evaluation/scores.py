"""Scores of single items and their mean with its standard error."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence

_INTEGER = re.compile(r"-?[0-9]+")


def exact_match(answer: str, target: str) -> float:
    """Compare two texts without the whitespace at their ends.

    Args:
        answer: What the model wrote.
        target: What was expected.

    Returns:
        1.0 if they are equal, else 0.0.
    """
    return float(answer.strip() == target.strip())


def last_integer(answer: str, target: str) -> float:
    """Compare the last integer of a calculation with the expected one.

    Only the first line counts, and it must hold an equals sign: a bare number is a guess, not
    a calculation.

    Args:
        answer: What the model wrote, such as ``3+4=7``.
        target: Text whose last integer is the expected number.

    Returns:
        1.0 if they are equal, else 0.0.

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

    Args:
        answer: Tokens that the model wrote.
        target: Tokens that were expected.

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
    """Mean of the items' scores and its standard error.

    Args:
        values: One score an item, at least one.

    Returns:
        The mean, and the sample standard deviation divided by sqrt(n); for scores of 0 and 1
        that is sqrt(p (1 - p) / (n - 1)). 0 for a single item, whose spread is unknown.
    """
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return mean, 0.0
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return mean, math.sqrt(variance / count)

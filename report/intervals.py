"""Differences between rows and their 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

from report.averages import Score


def mean(values: Sequence[float]) -> float:
    """Average numbers, of which there must be one at least."""
    return math.fsum(values) / len(values)


def difference(first: Sequence[Score], second: Sequence[Score]) -> tuple[float, float]:
    """Compare two rows over seeds, all of whose runs answered the same items.

    Args:
        first: A row's test averages, one a seed.
        second: Another's.

    Returns:
        The difference of the means, and half the width of its 95 % interval: Welch's t with the
        deviations over seeds, and the items' error once for each row, because more seeds do not
        lessen it. The rows' item errors count as independent, which makes the interval too wide
        rather than too narrow.

    Source:
        Welch 1947; degrees of freedom by Welch and Satterthwaite, infinite for the items' part.
    """
    from scipy.special import stdtrit  # scipy.stats takes a second to import

    parts, items = [], 0.0
    for scores in (first, second):
        values = [score.value for score in scores]
        items += mean([score.stderr**2 for score in scores])
        if len(values) > 1:
            centre = mean(values)
            variance = math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1)
            parts.append((variance / len(values), len(values) - 1))
    # The items' part has infinite degrees of freedom, so it adds nothing to `uncertain`.
    variance = items + sum(part for part, _ in parts)
    uncertain = sum(part**2 / freedom for part, freedom in parts)
    freedom = variance**2 / uncertain if uncertain else math.inf
    between = mean([score.value for score in first]) - mean([score.value for score in second])
    return between, float(stdtrit(freedom, 0.975)) * math.sqrt(variance)

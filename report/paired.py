"""Paired comparison of averages over tasks, by resampling the items that both sides answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_CHUNK = 500  # resamples at a time: memory stays small


@dataclass(frozen=True)
class Stratum:
    """One task's items."""

    differences: np.ndarray  # score minus the reference's score, (comparisons, items), float64
    # For each item, the number of its cluster, (items,), integers from 0. Items of one cluster say
    # the same thing, so they are drawn together.
    clusters: np.ndarray
    weight: float  # of this task's mean in the average; a table's weights add up to 1


@dataclass(frozen=True)
class Difference:
    """A difference of two averages."""

    value: float
    low: float  # ends of its 95 % interval: low and high
    high: float
    p: float  # two-sided p-value of no difference


def _sums(stratum: Stratum) -> tuple[np.ndarray, np.ndarray]:
    """Add up differences and items by cluster: (clusters, comparisons) and (clusters,)."""
    count = int(stratum.clusters.max()) + 1
    sums = np.zeros((count, len(stratum.differences)))
    np.add.at(sums, stratum.clusters, stratum.differences.T)
    return sums, np.bincount(stratum.clusters, minlength=count).astype(float)


def compare(strata: Sequence[Stratum], resamples: int, seed: int) -> list[Difference]:
    """Compare averages with a cluster bootstrap and a sign-flip permutation test.

    The interval is the percentile one of averages whose clusters are drawn with replacement
    within each task. The p-value is the share of random sign flips, one for each cluster, whose
    average is at least as far from 0 as the observed one, which is counted among them.

    Args:
        strata: The tasks, each with the same comparisons; one difference is returned for each.
        resamples: Draws of each kind.
        seed: Of the draws.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapters 13 and 15.
    """
    values = sum(s.weight * s.differences.mean(axis=1) for s in strata)
    drawn = np.zeros((resamples, len(values)))
    flipped = np.zeros((resamples, len(values)))
    generator = np.random.default_rng(seed)
    for stratum in strata:
        sums, sizes = _sums(stratum)
        count, items = len(sizes), sizes.sum()
        for start in range(0, resamples, _CHUNK):
            part = slice(start, min(start + _CHUNK, resamples))
            rows = part.stop - start
            # How often each cluster is drawn says as much as which, in an array of fixed shape.
            times = generator.multinomial(count, np.full(count, 1 / count), size=rows).astype(float)
            drawn[part] += stratum.weight * (times @ sums) / (times @ sizes)[:, None]
            signs = generator.choice((-1.0, 1.0), size=(rows, count))
            flipped[part] += stratum.weight * (signs @ sums) / items
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
    as_far = (np.abs(flipped) >= np.abs(values) - 1e-12).sum(axis=0)
    p = (as_far + 1) / (resamples + 1)
    return [Difference(*map(float, entry)) for entry in zip(values, low, high, p, strict=True)]

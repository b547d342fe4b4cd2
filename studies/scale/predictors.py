"""Which measures that are taken before a merge predict its outcome, and how well."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from studies.scale.load import Cell

COUNT = "experts"  # the number of experts: what any measure has to beat
_DRAWS = 2000  # of worlds, for an interval


@dataclass(frozen=True)
class Sample:
    """A set of experts that was merged.

    Attributes:
        world: Its base's.
        count: Number of experts.
        measures: By name.
        outcome: Held-in score relative to the experts, the mean over methods.
    """

    world: str
    count: int
    measures: Mapping[str, float]
    outcome: float


@dataclass(frozen=True)
class Correlation:
    """A rank correlation within a world, the mean over worlds, signed as in the other worlds.

    Attributes:
        rho: The mean.
        low: Lower end of its 95 % interval, over draws of worlds.
        high: Upper end.
    """

    rho: float
    low: float
    high: float


@dataclass(frozen=True)
class Worth:
    """How well a measure predicts.

    Attributes:
        name: The measure.
        higher: Whether higher values came with better merges in most worlds.
        pooled: Rank correlation with the outcome over all sets of all worlds.
        left_out: The correlation within a world.
        equal: The same among sets of equally many experts; None where there are no two worlds
            with three such sets.
        worlds: Number of worlds.
        sets: Number of sets.
    """

    name: str
    higher: bool
    pooled: float
    left_out: Correlation
    equal: Correlation | None
    worlds: int
    sets: int

    @property
    def earned(self) -> bool:
        """Whether it predicts: its intervals are above 0, among equally many experts too."""
        return self.left_out.low > 0 and (self.equal is None or self.equal.low > 0)

    def as_json(self) -> dict[str, Any]:
        """Return what a record holds of it."""
        return {
            **asdict(self.left_out),
            "equal": None if self.equal is None else asdict(self.equal),
            "higher": self.higher,
            "earned": self.earned,
            "worlds": self.worlds,
        }


def rank_correlation(one: Sequence[float], two: Sequence[float]) -> float:
    """Return Spearman's rank correlation, ties with their mean rank; NaN where one is constant."""
    from scipy.stats import rankdata

    x, y = rankdata(one), rankdata(two)
    x, y = x - x.mean(), y - y.mean()
    whole = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / whole if whole > 0 else float("nan")


def samples_of(cells: Sequence[Cell], method: str | None = None) -> list[Sample]:
    """Return every set of experts with its measures and its outcome.

    Args:
        cells: The cells.
        method: The method whose merges count; None for the mean over all.
    """
    found = []
    for cell in cells:
        outcomes = defaultdict(list)
        for merge in cell.merges:
            if merge.held_in is not None and method in (None, merge.method):
                outcomes[merge.members].append(merge.held_in)
        for members, values in outcomes.items():
            own = cell.measures[members].items()
            measures = {name: value for name, value in own if value is not None}
            measures[COUNT] = float(len(members))
            found.append(Sample(cell.world, len(members), measures, float(np.mean(values))))
    return found


def _within(samples: Sequence[Sample], name: str, equal: bool) -> dict[str, float]:
    """Return the rank correlation in each world, or the mean over equal numbers of experts."""
    groups: dict[str, dict[int, list[Sample]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        if name in sample.measures:
            groups[sample.world][sample.count if equal else 0].append(sample)
    found = {}
    for world, parts in groups.items():
        values = [
            rank_correlation([s.measures[name] for s in part], [s.outcome for s in part])
            for part in parts.values()
            if len(part) > 2
        ]
        known = [value for value in values if not np.isnan(value)]
        if known:
            found[world] = float(np.mean(known))
    return found


def _judged(by_world: Mapping[str, float], seed: int) -> Correlation | None:
    """Give each world's correlation the sign of the mean over the others; None for one world."""
    if len(by_world) < 2:
        return None
    values = np.array(list(by_world.values()))
    signed = values * np.where(values.sum() - values >= 0, 1.0, -1.0)
    draws = np.random.default_rng(seed).integers(0, len(signed), (_DRAWS, len(signed)))
    low, high = np.quantile(signed[draws].mean(axis=1), (0.025, 0.975))
    return Correlation(float(signed.mean()), float(low), float(high))


def worths(samples: Sequence[Sample], seed: int = 0) -> list[Worth]:
    """Judge every measure, best first.

    Args:
        samples: The sets.
        seed: Of the draws.

    Returns:
        A worth for each measure that at least two worlds have.
    """
    found = []
    for name in dict.fromkeys(name for sample in samples for name in sample.measures):
        within = _within(samples, name, equal=False)
        judged = _judged(within, seed)
        if judged is None:
            continue
        own = [sample for sample in samples if name in sample.measures]
        pooled = rank_correlation([s.measures[name] for s in own], [s.outcome for s in own])
        equal = _judged(_within(samples, name, equal=True), seed)
        higher = sum(within.values()) > 0
        found.append(Worth(name, higher, pooled, judged, equal, len(within), len(own)))
    return sorted(found, key=lambda worth: -worth.left_out.rho)

"""Which measures that are taken before a merge predict its outcome, and how well."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from studies.scale.claims import over_worlds
from studies.scale.load import Cell

COUNT = "experts"  # the number of experts: what any measure has to beat


@dataclass(frozen=True)
class Sample:
    """A set of experts that was merged.

    Attributes:
        seed: Of its world.
        base: Its base's name; a world has several.
        count: Number of experts.
        measures: By name.
        outcome: Held-in score relative to the experts, the mean over methods.
    """

    seed: int
    base: str
    count: int
    measures: Mapping[str, float]
    outcome: float


@dataclass(frozen=True)
class Correlation:
    """A rank correlation among sets of one base, signed as in the other worlds.

    Attributes:
        rho: The mean over the bases of a world, then over worlds.
        low: Lower end of its 95 % t interval over worlds.
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
        higher: Whether higher values came with better merges in the mean.
        pooled: Rank correlation with the outcome over all sets of all worlds.
        left_out: The correlation among sets of one base.
        equal: The same among sets of equally many experts; None where there are no two worlds
            with three such sets.
        worlds: Number of worlds.
        bases: Number of bases.
        sets: Number of sets.
    """

    name: str
    higher: bool
    pooled: float
    left_out: Correlation
    equal: Correlation | None
    worlds: int
    bases: int
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
            "bases": self.bases,
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
            outcome = float(np.mean(values))
            found.append(Sample(cell.seed, cell.world, len(members), measures, outcome))
    return found


def _within(samples: Sequence[Sample], name: str, equal: bool) -> dict[tuple[int, str], float]:
    """Return the rank correlation by seed and base, or its mean over equal numbers of experts."""
    groups: dict[Any, dict[int, list[Sample]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        if name in sample.measures:
            groups[sample.seed, sample.base][sample.count if equal else 0].append(sample)
    found = {}
    for base, parts in groups.items():
        values = [
            rank_correlation([s.measures[name] for s in part], [s.outcome for s in part])
            for part in parts.values()
            if len(part) > 2
        ]
        known = [value for value in values if not np.isnan(value)]
        if known:
            found[base] = float(np.mean(known))
    return found


def _judged(by_base: Mapping[tuple[int, str], float]) -> Correlation | None:
    """Give each world's mean the sign of the mean over the others; None for one world.

    The bases of a world share its text and the sets of experts, so that they have no say either.
    """
    by_seed: dict[int, list[float]] = defaultdict(list)
    for (seed, _), value in by_base.items():
        by_seed[seed].append(value)
    if len(by_seed) < 2:
        return None
    values = np.array([np.mean(own) for own in by_seed.values()])
    signed = values * np.where(values.sum() - values >= 0, 1.0, -1.0)
    found = over_worlds(dict(enumerate(signed.tolist())))
    return Correlation(found.value, found.low, found.high)


def worths(samples: Sequence[Sample]) -> list[Worth]:
    """Judge every measure, best first.

    Args:
        samples: The sets.

    Returns:
        A worth for each measure that at least two worlds have.
    """
    found = []
    for name in dict.fromkeys(name for sample in samples for name in sample.measures):
        within = _within(samples, name, equal=False)
        judged = _judged(within)
        if judged is None:
            continue
        own = [sample for sample in samples if name in sample.measures]
        pooled = rank_correlation([s.measures[name] for s in own], [s.outcome for s in own])
        equal = _judged(_within(samples, name, equal=True))
        counts = len({seed for seed, _ in within}), len(within), len(own)
        found.append(Worth(name, sum(within.values()) > 0, pooled, judged, equal, *counts))
    return sorted(found, key=lambda worth: -worth.left_out.rho)

"""Which measures that are taken before a merge predict its outcome, and how well."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
class Worth:
    """How well a measure predicts.

    Attributes:
        name: The measure.
        pooled: Rank correlation with the outcome over all sets of all worlds.
        left_out: Mean rank correlation within a world, with the sign that it has in the others.
        low: Lower end of its 95 % interval, over draws of worlds.
        high: Upper end.
        equal: Mean rank correlation within a world among sets of equally many experts, signed
            likewise; NaN where no world has two such sets.
        worlds: Number of worlds.
        sets: Number of sets.
    """

    name: str
    pooled: float
    left_out: float
    low: float
    high: float
    equal: float
    worlds: int
    sets: int

    @property
    def earned(self) -> bool:
        """Whether it predicts: its interval is above 0."""
        return self.low > 0


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


def _signed(by_world: Mapping[str, float]) -> np.ndarray:
    """Give each world's correlation the sign of the mean over the others."""
    values = np.array(list(by_world.values()))
    others = values.sum() - values
    return values * np.where(others >= 0, 1.0, -1.0)


def worths(samples: Sequence[Sample], seed: int = 0) -> list[Worth]:
    """Judge every measure, best first.

    Args:
        samples: The sets.
        seed: Of the draws.

    Returns:
        A worth for each measure that at least two worlds have.
    """
    names = dict.fromkeys(name for sample in samples for name in sample.measures)
    generator, found = np.random.default_rng(seed), []
    for name in names:
        within = _within(samples, name, equal=False)
        if len(within) < 2:
            continue
        signed = _signed(within)
        drawn = signed[generator.integers(0, len(signed), (_DRAWS, len(signed)))].mean(axis=1)
        low, high = np.quantile(drawn, (0.025, 0.975))
        equal = _within(samples, name, equal=True)
        own = [sample for sample in samples if name in sample.measures]
        found.append(
            Worth(
                name,
                rank_correlation([s.measures[name] for s in own], [s.outcome for s in own]),
                float(signed.mean()),
                float(low),
                float(high),
                float(_signed(equal).mean()) if len(equal) > 1 else float("nan"),
                len(within),
                len(own),
            )
        )
    return sorted(found, key=lambda worth: -worth.left_out)

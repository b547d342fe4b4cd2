"""Tests of differences between rows, on the pairs of items that both answered."""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from report.averages import Score
from report.experiment import Column, Model, is_generated
from report.worlds import moderated

if TYPE_CHECKING:
    from report.paired import Stratum

LEVEL = 0.05  # of significance; intervals hold 95 %
_FLIPS = 20_000  # random signs for a p-value: its Monte Carlo error is .0015 at .05


@dataclass(frozen=True)
class Test:
    """A tested difference."""

    value: float
    low: float  # ends of its 95 % interval: low and high
    high: float
    p: float  # two-sided p-value of no difference
    error: float = 0.0  # its standard error
    freedom: float = math.inf  # degrees of freedom of the interval's t distribution


Of = Callable[[Model], Score | None]


def weights_of(columns: Sequence[Column]) -> dict[str, float]:
    """Return each task's weight in the mean over columns, which are means over their tasks."""
    weights: dict[str, float] = {}
    for column in columns:
        for task in column.tasks:
            part = 1 / (len(columns) * len(column.tasks))
            weights[task] = weights.get(task, 0.0) + part
    return weights


def lined(first: Model, second: Model, weights: Mapping[str, float]) -> list[Stratum] | None:
    """Pair two rows' items, first less second; None unless both answered the same of every task.

    Items that ask for the same fact are one cluster.
    """
    from report.paired import Stratum

    one, two = first.answers, second.answers
    if one is None or two is None:
        return None
    made = []
    for task, weight in weights.items():
        if one.ids.get(task) is None or one.ids[task] != two.ids.get(task):
            return None
        if task not in first.tasks or task not in second.tasks:
            return None
        values, clusters = one.arrays[task]
        gap = values - two.arrays[task][0]
        stated = first.tasks[task].value - second.tasks[task].value
        if abs(gap.mean() - stated) > 1e-6:  # such as an F1, which is no mean over items
            return None
        made.append(Stratum(gap[None, :], clusters, weight))
    return made


def variance(strata: Sequence[Stratum]) -> float:
    """Return the variance of a weighted mean of differences over items, whose clusters vary.

    It is never less than with one item that differs: equal answers to these items do not make the
    next one certain. Infinite for a task of a single cluster.
    """
    import numpy as np

    total = 0.0
    for stratum in strata:
        gap, items = stratum.differences[0], stratum.differences.shape[1]
        groups = int(stratum.clusters.max()) + 1
        if groups < 2:
            return math.inf
        centred = gap - gap.mean()
        if groups < items:  # else each item is a cluster
            sizes = np.bincount(stratum.clusters, minlength=groups)
            sums = np.bincount(stratum.clusters, weights=gap, minlength=groups)
            centred = sums - sizes * gap.mean()
        spread = float((centred**2).sum()) * groups / (groups - 1)
        total += stratum.weight**2 * max(spread, 1.0) / items**2
    return total


def _over_runs(pairs: Sequence[Sequence[Stratum]]) -> list[Stratum]:
    """Average differences over runs that answer the same items."""
    return [
        dataclasses.replace(parts[0], differences=sum(p.differences for p in parts) / len(parts))
        for parts in zip(*pairs, strict=True)
    ]


def _items(
    pairs: Sequence[tuple[Model, Model]], of: Of, weights: Mapping[str, float]
) -> tuple[float, float]:
    """Return what items add to the variance of a mean difference over worlds.

    Args:
        pairs: Two rows in each world.
        of: The score that is compared.
        weights: Of the tasks in that score.

    Returns:
        The mean variance, in one world, of items that each world draws for itself, 0 where they
        cannot be paired; and that of items that all worlds share, on their mean over worlds.
    """
    own = {task: weight for task, weight in weights.items() if is_generated(task)}
    shared = {task: weight for task, weight in weights.items() if task not in own}
    drawn = [lined(one, two, own) for one, two in pairs]
    known = [variance(strata) for strata in drawn if strata is not None]
    separate = math.fsum(known) / len(known) if len(known) == len(pairs) else 0.0
    same = [lined(one, two, shared) for one, two in pairs]
    paired = [strata for strata in same if strata is not None]
    asked = {tuple(map(one.answers.ids.get, shared)) for one, _ in pairs if one.answers}
    if shared and len(paired) == len(pairs) and len(asked) == 1:
        return separate, variance(_over_runs(paired))
    scores = [score for pair in pairs for model in pair if (score := of(model))]
    return separate, math.fsum(score.shared for score in scores) / len(pairs)


def mcnemar(better: int, worse: int) -> float:
    """Return the two-sided p-value of the exact sign test of McNemar.

    Args:
        better: Items that only the first row got right.
        worse: Items that only the second got right.
    """
    from scipy.special import bdtr

    discordant = better + worse
    return min(1.0, 2 * float(bdtr(min(better, worse), discordant, 0.5))) if discordant else 1.0


def sign_flips(strata: Sequence[Stratum], flips: int = _FLIPS, seed: int = 0) -> float:
    """Return the p-value of no difference: exact where each item is right or wrong on its own.

    Else the share of random sign flips, one for each cluster, whose mean is at least as far from
    0 as the observed one, which is counted among them.
    """
    import numpy as np

    if len(strata) == 1 and len(set(strata[0].clusters.tolist())) == len(strata[0].clusters):
        gap = strata[0].differences[0]
        if set(gap.tolist()) <= {-1.0, 0.0, 1.0}:
            return mcnemar(int((gap > 0).sum()), int((gap < 0).sum()))
    parts = []
    for stratum in strata:
        sums = np.bincount(stratum.clusters, weights=stratum.differences[0])
        parts.append(stratum.weight * sums / stratum.differences.shape[1])
    moved = np.concatenate(parts)
    moved = moved[moved != 0]
    if not len(moved):
        return 1.0
    signs = np.random.default_rng(seed).integers(0, 2, (flips, len(moved)), dtype=np.int8)
    found = 2 * (signs @ moved) - moved.sum()
    return (int((np.abs(found) >= abs(moved.sum()) - 1e-12).sum()) + 1) / (flips + 1)


def holm(values: Sequence[float]) -> list[float]:
    """Correct p-values for their number.

    Source: Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    corrected, highest = [0.0] * len(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        highest = max(highest, min(1.0, (len(values) - rank) * values[place]))
        corrected[place] = highest
    return corrected


def _t(gap: float, variance: float, freedom: float) -> Test:
    """Return a difference with its t interval and p-value."""
    from scipy.special import stdtr, stdtrit

    if math.isinf(variance):
        return Test(gap, -math.inf, math.inf, 1.0, math.inf)
    error = math.sqrt(variance)
    reach = float(stdtrit(freedom, 1 - LEVEL / 2)) * error
    p = 2 * float(stdtr(freedom, -abs(gap) / error)) if error else float(gap == 0)
    return Test(gap, gap - reach, gap + reach, p, error, freedom)


def _in_one_world(first: Model, second: Model, of: Of, weights: Mapping[str, float]) -> Test | None:
    one, two = of(first), of(second)
    if one is None or two is None:
        return None
    strata = lined(first, second, weights)
    if strata is None:
        return _t(one.value - two.value, one.stderr**2 + two.stderr**2, math.inf)
    if not strata:  # a quantity that is no mean over items, whose error one world does not show
        return _t(one.value - two.value, math.inf, math.inf)
    freedom = min(int(stratum.clusters.max()) for stratum in strata)
    found = _t(one.value - two.value, variance(strata), max(freedom, 1))
    return dataclasses.replace(found, p=sign_flips(strata))


def _worlds_gaps(models: Sequence[Model], first: Model, of: Of) -> dict[str, dict[int, float]]:
    """Return by row and world how far the first row is above it."""
    found: dict[str, dict[int, float]] = {}
    for model in models:
        for seed in first.worlds:
            one, two = of(first.worlds[seed]), None
            if seed in model.worlds:
                two = of(model.worlds[seed])
            if one and two:
                found.setdefault(model.id, {})[seed] = one.value - two.value
    return found


def compared(
    models: Sequence[Model],
    first: Model,
    of: Of,
    weights: Mapping[str, float],
    only: str | None = None,
) -> Mapping[str, Test]:
    """Compare rows with one of them: the first less the row, by the row's id.

    In one world, items are paired: McNemar's exact test or sign flips within tasks, and a t
    interval with the variance between clusters of items. Without items, the rows' errors count as
    independent. Of several worlds, each is a cluster: three allow no test by resampling, so that
    the test is a t test of the differences in each, whose variance is moderated by the other rows'
    and is never below what the paired items alone make. Items that all worlds share add their
    variance undivided, with infinite degrees of freedom (Welch and Satterthwaite).

    Args:
        models: The rows.
        first: One of them.
        of: The score that is compared, of a row in one world.
        weights: Of the tasks in that score; see `weights_of`.
        only: The row to compare, the others being those that moderate its variance; None for all.
    """
    return _compared(tuple(models), first, of, tuple(weights.items()), only)


@functools.lru_cache(maxsize=64)  # several tables and sentences ask for the same comparisons
def _compared(
    models: tuple[Model, ...],
    first: Model,
    of: Of,
    weighted: tuple[tuple[str, float], ...],
    only: str | None,
) -> Mapping[str, Test]:
    """Do what `compared` says."""
    weights = dict(weighted)
    if not first.worlds:
        alone = {
            m.id: _in_one_world(first, m, of, weights)
            for m in models
            if m.id != first.id and only in (None, m.id)
        }
        return {id: found for id, found in alone.items() if found}
    rows = {model.id: model for model in models if model.id != first.id}
    gaps = _worlds_gaps(list(rows.values()), first, of)
    found: dict[str, Test] = {}
    # Rows that lack worlds are moderated apart: their variances have fewer degrees of freedom.
    for count in {len(values) for values in gaps.values()}:
        alike = {id: values for id, values in gaps.items() if len(values) == count}
        if count == 1:
            for id, values in alike.items():
                if only not in (None, id):
                    continue
                ((seed, _),) = values.items()
                one = _in_one_world(first.worlds[seed], rows[id].worlds[seed], of, weights)
                found |= {id: one} if one else {}
            continue
        between, freedom = moderated(
            [statistics.variance(values.values()) for values in alike.values()], count - 1
        )
        for (id, values), drawn in zip(alike.items(), between, strict=True):
            if only not in (None, id):
                continue
            pairs = [(first.worlds[seed], rows[id].worlds[seed]) for seed in values]
            own, shared = _items(pairs, of, weights)
            worlds = max(drawn, own) / count
            freer = freedom * ((worlds + shared) / worlds) ** 2 if worlds else math.inf
            gap = math.fsum(values.values()) / count
            found[id] = _t(gap, worlds + shared, freer)
    return found


def agreeing(first: Model, second: Model, of: Of, sign: float) -> tuple[int, int]:
    """Count the worlds in which a difference has a sign, and those that have it at all."""
    gaps = _worlds_gaps([second], first, of).get(second.id, {})
    return sum(gap * sign > 0 for gap in gaps.values()), len(gaps)


def separated(found: Mapping[str, Test]) -> dict[str, float]:
    """Return by row the p-values of some differences, corrected by Holm for their number."""
    return dict(zip(found, holm([one.p for one in found.values()]), strict=True))


def not_separated(
    models: Sequence[Model], first: Model, of: Of, weights: Mapping[str, float]
) -> set[str]:
    """Return the rows that the test, with Holm's correction, does not separate from the first."""
    found = compared(models, first, of, weights)
    return {id for id, p in separated(found).items() if p >= LEVEL}


def groups(
    models: Sequence[Model], of: Of, weights: Mapping[str, float]
) -> list[list[tuple[Model, Score]]]:
    """Divide rows into groups of near-ties, the highest first.

    A group begins with the highest row that is separated from the first row of the group before,
    and holds the rows that are not separated from its own first row.
    """
    left = [(model, score) for model in models if (score := of(model))]
    left.sort(key=lambda entry: -entry[1].value)
    made = []
    while left:
        first = left[0][0]
        near = not_separated([model for model, _ in left], first, of, weights) | {first.id}
        made.append([entry for entry in left if entry[0].id in near])
        left = [entry for entry in left if entry[0].id not in near]
    return made


def resolution(found: Mapping[str, Test]) -> float | None:
    """Return the smallest difference that some comparisons would have separated.

    The median over the rows, each at the level of Holm's first comparison; None where
    nothing is compared.
    """
    from scipy.special import stdtrit

    level = LEVEL / 2 / max(len(found), 1)
    least = [float(stdtrit(one.freedom, 1 - level)) * one.error for one in found.values()]
    middle = statistics.median(least) if least else math.inf
    return None if math.isinf(middle) else middle


def over_runs(
    first: Sequence[Model], second: Sequence[Model], of: Of, weights: Mapping[str, float]
) -> Test | None:
    """Compare two rows over runs that differ in a seed and answer the same items.

    The variance is that of the runs' paired differences over their number, and that between items
    of the mean over runs, which more runs do not lessen.

    Args:
        first: A row's runs, in the order of the seeds.
        second: Another's.
        of: The score that is compared.
        weights: Of the tasks in that score.

    Returns:
        The first less the second; None unless both have all runs.

    Source:
        Degrees of freedom by Welch and Satterthwaite, infinite for the items' part.
    """
    pairs = [(of(one), of(two)) for one, two in zip(first, second, strict=True)]
    gaps = [one.value - two.value for one, two in pairs if one and two]
    if len(gaps) < len(first):
        return None
    runs = statistics.variance(gaps) / len(gaps) if len(gaps) > 1 else 0.0
    strata = [lined(one, two, weights) for one, two in zip(first, second, strict=True)]
    known = [each for each in strata if each is not None]
    if len(known) == len(strata):
        items = variance(_over_runs(known))
    else:
        items = math.fsum(one.stderr**2 + two.stderr**2 for one, two in pairs if one and two)
        items /= len(pairs)
    freedom = (items + runs) ** 2 * (len(gaps) - 1) / runs**2 if runs else math.inf
    return _t(math.fsum(gaps) / len(gaps), items + runs, freedom)

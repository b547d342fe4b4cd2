"""Means over worlds with their errors: one case study, made again from several seeds."""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from report.answers import is_an_expert
from report.averages import Score
from report.experiment import Case, Column, Model, is_generated

_ROWS = 3  # of which a common variance can be learned


def prior(variances: Sequence[float], freedom: int) -> tuple[float, float]:
    """Learn from many rows' variances how far a single one can be trusted.

    The true variances are taken as draws from a scaled inverse chi-squared distribution, whose two
    parameters follow from mean and variance of the logarithms.

    Args:
        variances: Sample variances, one a row.
        freedom: Degrees of freedom of each.

    Returns:
        Degrees of freedom and scale of the prior; 0 degrees where there are too few rows, infinite
        ones where the rows differ no more than chance makes them.

    Source:
        Smyth 2004, Linear models and empirical Bayes methods, section 6.2.
    """
    import numpy as np
    from scipy.special import digamma, zeta

    positive = np.array([value for value in variances if value > 0])
    if len(positive) < _ROWS:
        return 0.0, 0.0
    # A variance that is 0 by chance, or nearly so, must not decide over the others'.
    logs = np.log(np.maximum(positive, 1e-5 * np.median(positive)))
    centred = logs - digamma(freedom / 2) + math.log(freedom / 2)
    # Trigamma is zeta(2, .), its derivative -2 zeta(3, .).
    excess = centred.var(ddof=1) - float(zeta(2, freedom / 2))
    if excess <= 0:
        # The plain mean, which is right as well where rows share a world's luck.
        return math.inf, math.fsum(variances) / len(variances)
    # Newton's method for trigamma(half) = excess, which it never overshoots.
    half = 0.5 + 1 / excess
    for _ in range(50):
        trigamma = float(zeta(2, half))
        step = trigamma * (1 - trigamma / excess) / (-2 * float(zeta(3, half)))
        half += step
        if abs(step) < 1e-8 * half:
            break
    return 2 * half, float(np.exp(centred.mean() + digamma(half) - math.log(half)))


def moderated(variances: Sequence[float], freedom: int) -> tuple[list[float], float]:
    """Draw each row's variance towards what the rows have in common.

    Three worlds give a row two degrees of freedom, so that its own variance is often much too small
    or too large by chance. Two give it one, with which rows cannot be seen to differ: there, none
    has less than its own.

    Args:
        variances: Sample variances, one a row.
        freedom: Degrees of freedom of each, at least 1.

    Returns:
        The variances, and the degrees of freedom of an interval with one of them: its own and the
        prior's, of which no more than its own are counted, because rows of one world share luck.
    """
    common, scale = prior(variances, freedom)
    if math.isinf(common):
        drawn = [scale] * len(variances)
    else:
        total = common + freedom
        drawn = [(common * scale + freedom * value) / total for value in variances]
    if freedom < 2:
        drawn = [max(pair) for pair in zip(drawn, variances, strict=True)]
    return drawn, freedom + min(common, freedom)


def over_worlds(table: Sequence[Sequence[Score]]) -> list[Score | None]:
    """Average rows over worlds, with the standard error between worlds and items together.

    The variance of a row's scores over worlds holds that of worlds and that of the items that each
    world draws. It is moderated by the rows that were run in as many worlds, and never below what
    these items alone make. Divided by the number of worlds it is the variance of the mean. The
    variance of items that all worlds share is added undivided.

    Args:
        table: A row's scores, one a world; of one column or average.

    Returns:
        A score for each row, with the items of all worlds; None where it has none.
    """
    counts = [len(scores) for scores in table]
    drawn: dict[int, float] = {}
    for count in {count for count in counts if count > 1}:
        places = [place for place, many in enumerate(counts) if many == count]
        values = [statistics.variance([score.value for score in table[place]]) for place in places]
        drawn |= dict(zip(places, moderated(values, count - 1)[0], strict=True))
    found: list[Score | None] = []
    for place, scores in enumerate(table):
        if not scores:
            found.append(None)
            continue
        count = len(scores)
        shared = math.fsum(score.shared for score in scores) / count
        own = math.fsum(score.stderr**2 - score.shared for score in scores) / count
        found.append(
            Score(
                value=math.fsum(score.value for score in scores) / count,
                stderr=math.sqrt(max(drawn.get(place, 0.0), own) / count + shared),
                items=sum(score.items for score in scores),
                chance=math.fsum(score.chance for score in scores) / count,
                shared=shared,
            )
        )
    return found


def _shared_parts(models: Sequence[Model]) -> dict[str, float]:
    """Estimate by task how much of a score's squared error is common to a row's worlds.

    It is the mean covariance between worlds of the items' scores over the number of items, which
    leaves out what an item adds in one world only. Tasks whose answers are not known, or not of
    the same items in all worlds, are left out.
    """
    import numpy as np

    parts: dict[str, float] = {}
    for task in models[0].tasks if len(models) > 1 else ():
        answers = [model.answers for model in models if model.answers and task in model.tasks]
        asked = {one.ids.get(task, "") for one in answers}
        if is_generated(task) or len(answers) < len(models) or len(asked) > 1:
            continue
        scores = np.array([one.scores[task] for one in answers])
        worlds, items = scores.shape
        if items > 1:
            apart = np.cov(scores)
            parts[task] = (apart.sum() - np.trace(apart)) / (worlds * (worlds - 1) * items)
    return parts


def _sharing(rows: Mapping[int, Model]) -> Mapping[int, Model]:
    """Give a row's scores the shared part of their errors, as far as its answers show it."""
    parts = _shared_parts([model for model in rows.values() if model.status == "ok"])
    if not parts:
        return rows
    found = {}
    for seed, model in rows.items():
        tasks = dict(model.tasks)
        for task in parts.keys() & tasks.keys():
            shared = min(max(parts[task], 0.0), tasks[task].stderr ** 2)
            tasks[task] = dataclasses.replace(tasks[task], shared=shared)
        found[seed] = dataclasses.replace(model, tasks=tasks)
    return found


def _joined(values: Sequence[str]) -> str:
    return " / ".join(dict.fromkeys(values))


def _status(rows: Mapping[int, Model]) -> str:
    """Say of a row in how many worlds it is, and why not in the others."""
    lacking = {seed: model.status for seed, model in rows.items() if model.status != "ok"}
    if not lacking or len(lacking) == len(rows):
        return next(iter(rows.values())).status
    reasons = "; ".join(f"seed {seed} {status}" for seed, status in lacking.items())
    return f"{len(rows) - len(lacking)} of {len(rows)} worlds: {reasons}"


def _row(rows: Mapping[int, Model]) -> Model:
    """Put a row's worlds together; its scores follow in `pooled`."""
    done = {seed: model for seed, model in rows.items() if model.status == "ok"}
    shown = list(done.values()) or list(rows.values())
    names = {name for model in shown for name in model.counted}
    return dataclasses.replace(
        shown[0],
        status=_status(rows),
        # A mean over fewer worlds does not compare with the other rows'.
        best_of=shown[0].best_of and len(done) == len(rows) and not is_an_expert(done),
        seed=None,
        tasks={},
        lacking=_lacking(done),
        data=_joined([model.data for model in shown]),
        embeddings_and_norms=_joined([model.embeddings_and_norms for model in shown]),
        counted={n: sum(m.counted.get(n, 0) for m in shown) / len(shown) for n in sorted(names)},
        worlds=done,
    )


def _lacking(rows: Mapping[int, Model]) -> dict[str, str]:
    """Say which worlds' scores of a task are missing although the row was evaluated there."""
    tasks = dict.fromkeys(task for model in rows.values() for task in model.lacking)
    found = {}
    for task in tasks:
        why = [f"seed {s}: {m.lacking[task]}" for s, m in rows.items() if task in m.lacking]
        found[task] = f"{len(rows) - len(why)} of {len(rows)} worlds ({'; '.join(why)})"
    return found


def _scored(case: Case) -> bool:
    return any(model.status == "ok" for model in case.all_models)


def _why_not(world: Case, stop: bool) -> str:
    """Say why a world is left out of its tables; nothing where it takes part."""
    if stop and world.failed:
        return next(iter(world.failed.values()))
    return "" if _scored(world) else "not run"


def pooled(worlds: Mapping[int, Case], name: str, stop: bool) -> Case:
    """Put a case's worlds together into what its tables show.

    Args:
        worlds: The case as read from each world's folder, by seed.
        name: The case's name in the configuration.
        stop: Whether a world whose experts fail the gate is left out.

    Returns:
        The case, with means over the worlds that take part. Where none does, all do, so that
        their gaps are seen.
    """
    out = {seed: why for seed, world in worlds.items() if (why := _why_not(world, stop))}
    if len(out) == len(worlds):
        out = {}
    kept = {seed: world for seed, world in worlds.items() if seed not in out}
    first = next(iter(kept.values()))

    def rows(table: str) -> list[Model]:
        columns = zip(*(getattr(world, table) for world in kept.values()), strict=True)
        return [_row(_sharing(dict(zip(kept, models, strict=True)))) for models in columns]

    def placed(models: Sequence[Model]) -> tuple[Model, ...]:
        return tuple(filled[model.id] for model in models)

    models, more = rows("models"), rows("more")
    filled = {model.id: model for model in _filled([*models, *more], first)}
    return dataclasses.replace(
        first,
        id=name,
        models=placed(models),
        more=placed(more),
        gate={},
        failed={},
        inspection={},
        worlds=kept,
        left_out={seed: (worlds[seed], why) for seed, why in out.items()},
    )


def _of_task(task: str, model: Model) -> Score | None:
    return model.tasks.get(task)


def _filled(models: Sequence[Model], case: Case) -> list[Model]:
    """Give rows their means over worlds: of every task, every column and the average."""

    def mean_of(of: Callable[[Model], Score | None]) -> list[Score | None]:
        return over_worlds([[s for world in m.worlds.values() if (s := of(world))] for m in models])

    tasks = {task: mean_of(functools.partial(_of_task, task)) for task in case.tasks}
    keys: list[tuple[Column, ...]] = [(column,) for column in case.columns]
    keys.append(tuple(case.averaged))
    means = {key: mean_of(operator.methodcaller("average", key)) for key in keys}
    made = []
    for place, model in enumerate(models):
        scores: dict[str, Any] = {
            task: score for task, found in tasks.items() if (score := found[place])
        }
        average = {key: score for key, found in means.items() if (score := found[place])}
        made.append(dataclasses.replace(model, tasks=scores, means=average))
    return made

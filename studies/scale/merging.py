"""Merges of a set of experts by every method, tuned on dev items, and what predicts them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from checkpoints.likeness import Likeness, linear_cka
from checkpoints.names import is_linear
from merges.engine.run import merge_tensors
from studies.scale.skills import SKILLS

if TYPE_CHECKING:
    from torch import Tensor

    from studies.scale.scoring import Scorer
    from studies.scale.settings import Tried

Weights = Mapping[str, "Tensor"]


def tasks_of(skills: Sequence[str]) -> list[str]:
    """Return the tasks that score some skills."""
    return [task for skill in skills for task in SKILLS[skill].tasks]


def merged_scores(
    tried: Tried,
    merge: Callable[[Mapping[str, Any]], Weights],
    members: Sequence[str],
    dev: Scorer,
    test: Scorer,
) -> dict[str, Any]:
    """Merge with one method and score the result.

    Of several settings, the one with the lowest cross-entropy on the dev items of the experts' own
    tasks is taken: it is finer than the share of right answers, so that few items decide.

    Args:
        tried: The method.
        merge: Merges with given parameters.
        members: The experts.
        dev: Scores dev items.
        test: Scores test items.

    Returns:
        `set`, the parameters, and `scores` on test items by task.
    """
    own, candidates = tasks_of(members), tried.candidates
    best, models = candidates[0], [merge(candidates[0])]
    if len(candidates) > 1:
        models += [merge(candidate) for candidate in candidates[1:]]
        losses = [
            float(np.mean([score.loss for score in dev.scores(model, own).values()]))
            for model in models
        ]
        best = candidates[int(np.argmin(losses))]
        models = [models[int(np.argmin(losses))]]
    scores = {task: asdict(score) for task, score in test.scores(models[0]).items()}
    return {"set": best, "scores": scores}


def by_engine(
    method: str, base: Weights, experts: Mapping[str, Weights], seed: int
) -> Callable[[Mapping[str, Any]], Weights]:
    """Return what merges by a method of the suite's engine, tensor by tensor, in memory."""

    def merge(given: Mapping[str, Any]) -> Weights:
        return merge_tensors(method, base, experts, given, embeddings_and_norms="base", seed=seed)

    return merge


def weight_measures(base: Weights, experts: Mapping[str, Weights]) -> dict[str, np.ndarray]:
    """Return each measure of weights of every two experts; see `Likeness.pairs`."""
    found = Likeness(len(experts))
    for name, origin in base.items():
        start = origin.double().numpy()
        deltas = np.stack([own[name].double().numpy() - start for own in experts.values()])
        if not deltas.any():  # embeddings and norms are frozen
            continue
        found.add(start.ravel(), deltas.reshape(len(deltas), -1))
        if is_linear(name):
            found.add_layer(deltas)
    return found.pairs()


def text_measures(
    experts: Mapping[str, Weights], base: Weights, dev: Scorer
) -> dict[str, np.ndarray]:
    """Return CKA and the loss half-way of every two experts, on dev items.

    CKA compares final hidden states where the answers of all held-in tasks are predicted; the loss
    is that of the tasks of the two, a task's mean counting once.

    Args:
        experts: Weights by skill.
        base: The base's weights; parameters that are frozen have its values.
        dev: Scores dev items.

    Returns:
        `cka` and `midpoint`, float64 [N, N].
    """
    names, every = list(experts), tasks_of(list(experts))
    states, losses = [], []
    for name in names:
        losses.append({t: s.loss for t, s in dev.scores(experts[name], every).items()})
        states.append(np.concatenate([dev.hidden(t)[0].double().numpy() for t in every]))
    cka, midpoint = np.full((2, len(names), len(names)), np.nan)
    for one in range(len(names)):
        for two in range(one):
            cka[one, two] = cka[two, one] = linear_cka(states[one], states[two])
            own = tasks_of([names[one], names[two]])
            first, second = experts[names[one]], experts[names[two]]
            middle = {name: (first[name] + second[name]) / 2 for name in base}
            half = np.mean([score.loss for score in dev.scores(middle, own).values()])
            ends = np.mean([(losses[one][task] + losses[two][task]) / 2 for task in own])
            midpoint[one, two] = midpoint[two, one] = half - ends
    return {"cka": cka, "midpoint": midpoint}

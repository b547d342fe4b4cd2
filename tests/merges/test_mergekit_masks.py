"""Random masks beside mergekit 0.1.5's: others by construction, draws from the same distribution.

The mask is read off each program's result and looked at as a sample of what it should be; the rest
of the formula is computed with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.merges.mergekit_runs import (
    ARCHITECTURES,
    EXPERTS,
    ONE,
    RANDOM,
    SETTINGS,
    TWO,
    UNIT,
    Runs,
    needs_mergekit,
    per_expert,
)

pytestmark = needs_mergekit

Arrays = list[np.ndarray]
_FEW = 10  # roundings of a value on both sides together


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Path]) -> Runs:
    return Runs(
        tmp_path_factory.mktemp("masks"),
        make_model,
        [(method, number) for method in RANDOM for number in (ONE, TWO)],
    )


def _merged(method: str, base: np.ndarray, thinned: Arrays, given: Sequence[float]) -> np.ndarray:
    """Merge task vectors of which parts are dropped, by mergekit's formula of a method."""
    terms = [w * d for w, d in zip(given, thinned, strict=True)]
    if method in ("dare_linear", "della_linear"):
        return base + sum(terms)
    sign = np.where(sum(terms) >= 0, 1.0, -1.0)
    agreeing = [np.sign(term) == sign for term in terms]
    merged = sum(t * a for t, a in zip(terms, agreeing, strict=True))
    if method == "della":
        share = sum(w * a for w, a in zip(given, agreeing, strict=True))
        merged = merged / np.where(share == 0, 1.0, share)
    return base + merged


def _expected(method: str, density: float, epsilon: float, delta: np.ndarray) -> np.ndarray:
    """Return with which probability each value is kept."""
    if method.startswith("dare"):
        return np.full(delta.shape, density)
    rows = np.abs(np.atleast_2d(delta))
    ranks = rows.argsort(axis=1).argsort(axis=1)
    return (density - epsilon + 2 * epsilon * ranks / (rows.shape[1] - 1)).reshape(delta.shape)


def _check_sample(kept: list[np.ndarray], expected: list[np.ndarray]) -> None:
    """Check draws against their probabilities, as a whole and where these are low and high."""
    draws = np.concatenate([k.ravel() for k in kept]).astype(float)
    chances = np.concatenate([e.ravel() for e in expected])
    for group in (chances <= np.median(chances), chances >= np.median(chances)):
        deviation = np.sqrt((chances * (1 - chances))[group].sum())
        assert abs((draws - chances)[group].sum()) <= 4.5 * deviation


@pytest.mark.parametrize("method", RANDOM)
@pytest.mark.parametrize("stored", UNIT)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_expert_thinned_out_keeps_its_sum_of_magnitudes(
    architecture: str, stored: str, method: str, runs: Runs
) -> None:
    """What differs from the base was kept; the factor is worked out from it."""
    inputs = runs.inputs(architecture, stored)
    density = SETTINGS[method][ONE]["models"][0]["parameters"]["density"]
    for result in (
        runs.ours(architecture, stored, method, ONE),
        runs.kit(architecture, stored, method, ONE),
    ):
        masks, chances = [], []
        for name, tensor in result.items():
            base = inputs["base"][name].double().numpy()
            delta = inputs["ja"][name].double().numpy() - base
            found = tensor.double().numpy()
            # Of a difference below half a step of the base nothing can be seen.
            seen = np.abs(delta) > 4 * UNIT[stored] * np.abs(base)
            mask = np.where(seen, found != base, np.abs(delta) < 0)
            rest = _expected(method, density, 0.15, delta)
            factor = np.abs(delta[seen]).sum() / np.abs(delta * mask)[seen].sum()
            unseen = 1.5 * np.abs(delta[~seen]).sum() / np.abs(delta[seen]).sum()
            bound = 8 * UNIT[stored] * (np.abs(found) + factor * np.abs(delta))
            bound += factor * unseen * np.abs(delta)
            wrong = seen & (np.abs(found - base - delta * mask * factor) > bound)
            assert not wrong.any(), (name, found[wrong][:3])
            masks.append(mask[seen])
            chances.append(rest[seen])
        _check_sample(masks, chances)


@pytest.mark.parametrize("method", RANDOM)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_two_experts_thinned_out_are_merged_by_the_formula(
    architecture: str, method: str, runs: Runs
) -> None:
    """Each value is one of four: with or without the one expert, with or without the other."""
    configured = SETTINGS[method][TWO]
    inputs = runs.inputs(architecture, "float32")
    given = per_expert(configured, "weight", 1.0)
    densities = per_expert(configured, "density", 1.0)
    epsilons = per_expert(configured, "epsilon", 0.0)
    for result in (
        runs.ours(architecture, "float32", method, TWO),
        runs.kit(architecture, "float32", method, TWO),
    ):
        kept: tuple[Arrays, ...] = ([], [])
        chances: tuple[Arrays, ...] = ([], [])
        for name, tensor in result.items():
            base = inputs["base"][name].double().numpy()
            deltas = [inputs[e][name].double().numpy() - base for e in EXPERTS[:2]]
            apart = []
            for first in (0, 1):
                for second in (0, 1):
                    thinned = [deltas[0] * first, deltas[1] * second]
                    merged = _merged(method, base, thinned, given)
                    apart.append(np.abs(tensor.double().numpy() - merged))
            bound = _FEW * UNIT["float32"] * (np.abs(base) + sum(map(np.abs, deltas)))
            assert (np.min(apart, axis=0) <= bound).all(), name
            likely = np.argmin(apart, axis=0)
            for number, delta in enumerate(deltas):
                kept[number].append(likely // 2 if number == 0 else likely % 2)
                chances[number].append(
                    _expected(method, densities[number], epsilons[number], delta)
                )
        if method.endswith("linear"):  # an election hides who lost it
            for number in (0, 1):
                _check_sample(kept[number], chances[number])

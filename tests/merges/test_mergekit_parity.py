"""The same YAML through mergekit 0.1.5 itself and through `--from-mergekit`.

Where rounding is all that differs, results differ by at most K roundings of unit u (2^-24 in
float32, 2^-8 in bfloat16, in which mergekit computes what is stored so) relative to the sum of the
magnitudes that enter: each method is a few products and sums per value (`_ROUNDINGS`). Where values
are chosen, by rank of magnitude or by sign of a sum, those that are nearer to the bound than its
roundings may be chosen otherwise; they are worked out in float64 from the inputs and left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.merges.mergekit_runs import (
    ARCHITECTURES,
    CASES,
    EXPERTS,
    SETTINGS,
    UNIT,
    Runs,
    needs_mergekit,
    per_expert,
)

pytestmark = needs_mergekit

Arrays = list[np.ndarray]
BASE_IS_EXPERT = ("linear", "slerp", "karcher")
# Products and sums per value of three experts, of both sides together; where coefficients come
# from inner products, these add their own (their sums are exact to a few units in float32).
_FEW, _COEFFICIENTS = 10, 40
_ROUNDINGS = dict.fromkeys(("slerp", "nuslerp", "multislerp", "karcher"), _COEFFICIENTS) | {
    "model_stock": _COEFFICIENTS,
    "sce": _COEFFICIENTS,
    "breadcrumbs": _COEFFICIENTS,
    "breadcrumbs_ties": _COEFFICIENTS,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Path]) -> Runs:
    return Runs(tmp_path_factory.mktemp("parity"), make_model, CASES)


def _largest(values: np.ndarray, count: int) -> float:
    """Return the count-th largest value; infinity for none, 0 beyond the last."""
    if count < 1:
        return np.inf
    return 0.0 if count > values.size else np.partition(values, -count, axis=None)[-count]


def _near(values: np.ndarray, counts: Sequence[int], unit: np.ndarray | float) -> np.ndarray:
    """Find values that roundings could put to the other side of the counts largest ones."""
    near = np.zeros(values.shape, bool)
    for count in (n for k in counts for n in (k, k + 1)):
        near |= np.abs(values - _largest(values, count)) <= unit
    return near


def _open(
    method: str, configured: dict[str, Any], deltas: Arrays, unit: float
) -> np.ndarray | None:
    """Find the values that roundings could choose otherwise, by rank or by sign; see the module."""
    size = deltas[0].size
    free = np.zeros(deltas[0].shape, bool)
    taken = [np.ones(deltas[0].shape) for _ in deltas]
    if method == "sce":
        density = configured.get("parameters", {}).get("select_topk", 1.0)
        if density < 1:
            variance = np.var(deltas, axis=0)
            spread = np.sqrt(variance) * np.abs(deltas).max(axis=0) + variance
            count = int(density * np.count_nonzero(variance))
            free |= _near(variance, [count], 4 * unit * spread)
            taken = [(variance >= _largest(variance, count)).astype(float)] * len(deltas)
        given = [1.0] * len(deltas)
    elif method in ("ties", "dare_ties", "della", "breadcrumbs", "breadcrumbs_ties"):
        given = per_expert(configured, "weight", 1.0)
        densities = per_expert(configured, "density", 1.0)
        gammas = [0.0] * len(deltas)
        if method.startswith("breadcrumbs"):
            gammas = per_expert(configured, "gamma", configured["parameters"].get("gamma", 0.01))
        for number, (delta, density) in enumerate(zip(deltas, densities, strict=True)):
            if density >= 1:
                continue
            size_of = np.abs(delta)
            # mergekit's k is floor(density n), that of our TIES floor(density n + 1/2)
            counts = {int(density * size), int(density * size + 0.5 * (method == "ties"))}
            top = min(int(gammas[number] * size), size - min(counts))
            free |= _near(size_of, [top, *(top + k for k in counts)], unit * size_of)
            taken[number] = (size_of >= _largest(size_of, top + min(counts))) & (
                size_of < _largest(size_of, top)
            )
    elif method.startswith("ram"):
        epsilon = configured.get("parameters", {}).get("epsilon", 1e-5)
        sizes = [np.abs(delta) for delta in deltas]
        return free | np.any([np.abs(s - epsilon) <= 2 * unit * epsilon for s in sizes], axis=0)
    else:
        return free
    if method == "breadcrumbs":
        return free
    terms = [w * t * d for w, t, d in zip(given, taken, deltas, strict=True)]
    sizes = sum(map(np.abs, terms))
    return free | ((np.abs(sum(terms)) <= 4 * unit * sizes) & (sizes > 0))


def _near_the_fence(base: np.ndarray, expert: np.ndarray) -> np.ndarray:
    """Find values whose importance to Arcee Fusion is within roundings of its bound.

    The divergence of two rows is a small rest of sums of about 1: it has a relative error of
    1e-5 in float32.
    """
    new, old = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) + 1e-8 for x in (expert, base))
    importance = np.abs(expert - base) * (new * np.log(new / old)).sum(-1, keepdims=True)
    ordered = np.sort(importance, axis=None)
    first, median, third = (ordered[int(q * (ordered.size - 1))] for q in (0.25, 0.5, 0.75))
    bound = median + 1.5 * (third - first)
    return np.abs(importance - bound) <= 1e-4 * bound


def _bound(
    method: str, configured: dict[str, Any], base: np.ndarray, experts: Arrays, unit: float
) -> np.ndarray:
    """Bound what roundings of a unit change, but for the one of the result itself."""
    origin = base if "base_model" in configured and method not in BASE_IS_EXPERT else 0.0
    if method in BASE_IS_EXPERT and "base_model" in configured:
        experts = [*experts, base]
    sizes = sum(np.abs(expert - origin) for expert in experts)
    if method == "sce":  # other positions chosen have other squares, of which the weights are made
        deltas = [expert - base for expert in experts]
        squares = sum(map(np.square, deltas))
        chosen = squares[_open("sce", configured, deltas, unit)].sum() / squares.sum()
        density = configured.get("parameters", {}).get("select_topk", 1.0)
        factor = 1.0 + (2 * chosen / density / (_COEFFICIENTS * unit) if density < 1 else 0.0)
        return _COEFFICIENTS * unit * factor * sizes
    # mergekit adds up multiples of the models, not of differences.
    if method in ("model_stock", "nearswap"):
        sizes = sizes + np.abs(base) + sum(map(np.abs, experts)) / len(experts)
    factor = 1.5 if "lambda" in configured.get("parameters", {}) else 1.0
    return _ROUNDINGS.get(method, _FEW) * unit * factor * sizes


def _experts(configured: dict[str, Any]) -> list[str]:
    listed = configured.get("models") or configured["slices"][0]["sources"]
    names = [item["model"] for item in listed]
    return [name for name in names if name != configured.get("base_model")]


def _compare(
    runs: Runs, architecture: str, stored: str, method: str, number: int, wide: bool
) -> dict[str, tuple[np.ndarray, ...]]:
    """Return by tensor: ours, mergekit's, the bound, and what is open; float64 and truth values."""
    configured = SETTINGS[method][number]
    inputs = runs.inputs(architecture, stored)
    ours = runs.ours(architecture, stored, method, number)
    kit = runs.kit(architecture, stored, method, number, wide=wide)
    assert set(ours) == set(kit) == set(inputs["base"])
    unit = UNIT["float32" if wide else stored]
    found = {}
    for name, own in ours.items():
        assert own.dtype == kit[name].dtype == getattr(torch, stored)
        base = inputs["base"][name].double().numpy()
        experts = [inputs[expert][name].double().numpy() for expert in _experts(configured)]
        deltas = [expert - base for expert in experts]
        found[name] = (
            own.double().numpy(),
            kit[name].double().numpy(),
            _bound(method, configured, base, experts, unit),
            _near_the_fence(base, experts[0])
            if method == "arcee_fusion"
            else _open(method, configured, deltas, unit),
        )
    return found


# In bfloat16 the divergence that mergekit's arcee_fusion computes is mostly rounding, so it takes
# other values than its formula; a test below says which it may take.
COMPARABLE = [
    (stored, *case)
    for stored in UNIT
    for case in CASES
    if (stored, case[0]) != ("bfloat16", "arcee_fusion")
]


@pytest.mark.parametrize(("stored", "method", "number"), COMPARABLE)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_results_differ_by_rounding_only(
    architecture: str, stored: str, method: str, number: int, runs: Runs
) -> None:
    left_out, total = 0, 0
    for name, (ours, kit, bound, free) in _compare(
        runs, architecture, stored, method, number, False
    ).items():
        rounding = 2 * UNIT[stored] * np.maximum(np.abs(ours), np.abs(kit))
        wrong = (np.abs(ours - kit) > bound + rounding) & ~free
        assert not wrong.any(), (name, np.argwhere(wrong)[:3], ours[wrong][:3], kit[wrong][:3])
        left_out, total = left_out + free.sum(), total + free.size
    assert left_out <= (0.02 if stored == "float32" else 0.06) * total


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_arcee_fusion_in_bfloat16_takes_the_bases_value_or_the_experts(
    architecture: str, runs: Runs
) -> None:
    inputs = runs.inputs(architecture, "bfloat16")
    compared = _compare(runs, architecture, "bfloat16", "arcee_fusion", 0, False)
    for name, (ours, kit, _, _) in compared.items():
        base, expert = (inputs[model][name].double().numpy() for model in ("base", EXPERTS[0]))
        rounding = 4 * UNIT["bfloat16"] * (np.abs(base) + np.abs(expert))
        nearest = np.minimum(np.abs(kit - base), np.abs(kit - expert))
        assert (nearest <= rounding).all(), name
        assert ((ours == base) | (ours == expert)).all(), name


@pytest.mark.parametrize(("method", "number"), CASES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_stored_in_bfloat16_ours_is_mergekits_formula_in_float32(
    architecture: str, method: str, number: int, runs: Runs
) -> None:
    """mergekit told to compute in float32 and to store bfloat16 (dtype, out_dtype)."""
    unequal, left_out, total = 0, 0, 0
    for name, (ours, kit, bound, free) in _compare(
        runs, architecture, "bfloat16", method, number, True
    ).items():
        neighbour = 2 * UNIT["bfloat16"] * np.maximum(np.abs(ours), np.abs(kit))
        wrong = (np.abs(ours - kit) > bound + neighbour) & ~free
        assert not wrong.any(), (name, np.argwhere(wrong)[:3], ours[wrong][:3], kit[wrong][:3])
        unequal += ((ours != kit) & ~free).sum()
        left_out, total = left_out + free.sum(), total + free.size
    assert unequal <= 0.02 * total  # most are means of two values in the middle of neighbours
    assert left_out <= 0.04 * total

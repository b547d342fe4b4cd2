"""DELLA and DELLA-linear against their formulas in float64 numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from merges.arithmetic.masks import uniform
from merges.arithmetic.task_vectors import order_by_magnitude
from merges.engine.run import merge_tensors
from merges.methods.della import keep_probabilities

NAME = "model.layers.0.mlp.up_proj.weight"
NAMES = ("a", "b", "c")


def models(seed: int, shape: tuple[int, ...], count: int = 3) -> tuple[np.ndarray, list]:
    """Differences have two decimals, so that magnitudes repeat within a row."""
    rng = np.random.default_rng(seed)
    base = rng.integers(-64, 65, shape) / 64
    return base, [base + rng.integers(-40, 41, shape) / 64 for _ in range(count)]


def merged(
    method: str,
    base: np.ndarray,
    experts: list,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    **p: object,
) -> np.ndarray:
    tensors = {n: {NAME: torch.tensor(x).to(dtype)} for n, x in zip(NAMES, experts, strict=False)}
    result = merge_tensors(method, {NAME: torch.tensor(base).to(dtype)}, tensors, p, seed=seed)
    return result[NAME].double().numpy()


def probabilities(delta: np.ndarray, density: float, epsilon: float) -> np.ndarray:
    """The formula, row by row: rank 0 is the smallest magnitude, the last of equal ones lowest."""
    rows = np.atleast_2d(delta).reshape(-1, delta.shape[-1])
    result = np.full(rows.shape, density)
    for number, row in enumerate(rows):
        ascending = np.lexsort((-np.arange(len(row)), np.abs(row)))
        for rank, column in enumerate(ascending):
            if len(row) > 1:
                step = 2 * epsilon * rank / (len(row) - 1)
                result[number, column] = density - epsilon + step
    return result.reshape(delta.shape)


def thinned(
    base: np.ndarray, experts: list, seed: int, density: float, epsilon: float, rescale: str
) -> list[np.ndarray]:
    result = []
    for name, expert in zip(NAMES, experts, strict=False):
        delta = expert - base
        if density == 1:
            result.append(delta)
            continue
        p = probabilities(delta, density, epsilon)
        draws = uniform((seed, name, NAME), 0, base.size).double().numpy().reshape(base.shape)
        sparse = np.where(draws < p, delta, 0)
        if rescale == "probability":
            sparse = sparse / p
        elif rescale == "l1":
            sparse = sparse * (np.abs(delta).sum() / np.abs(sparse).sum())
        result.append(sparse)
    return result


def elected(deltas: list[np.ndarray], weights: list[float], merge: str) -> np.ndarray:
    values = np.stack([w * d for w, d in zip(weights, deltas, strict=True)])
    sign = np.where(values.sum(0) >= 0, 1, -1)
    agree = np.sign(values) == sign
    total = (values * agree).sum(0)
    if merge == "mean":
        share = (np.array(weights).reshape(-1, *[1] * sign.ndim) * agree).sum(0)
        total = total / np.where(share == 0, 1, share)
    return total


def oracle(method: str, base: np.ndarray, experts: list, seed: int, **p: object) -> np.ndarray:
    weights = p.get("weights") or [1.0] * len(experts)
    deltas = thinned(
        base,
        experts,
        seed,
        p.get("density", 0.7),
        p.get("epsilon", 0.07),
        p.get("rescale", "probability"),
    )
    if method == "della":
        total = elected(deltas, weights, p.get("merge", "mean"))
    else:
        total = sum(w * d for w, d in zip(weights, deltas, strict=True))
        total = total / (sum(weights) if p.get("normalize") else 1)
    return base + p.get("scale", 1.0) * total


SETTINGS = [
    {},
    {"density": 0.3, "epsilon": 0.25, "scale": 0.6},
    {"density": 0.5, "epsilon": 0.15, "rescale": "l1", "weights": [0.5, 1.0, 2.0]},
    {"density": 0.8, "epsilon": 0.2, "rescale": "none"},
    {"density": 1.0, "epsilon": 0.15, "scale": 0.5},
    {"density": 0.4, "epsilon": 0.0},
]
SHAPES = [(7, 12), (9,), (3, 4, 5), (6, 1), (70_001,), (130, 700)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("given_settings", SETTINGS)
@pytest.mark.parametrize(
    ("method", "own"),
    [
        ("della", {}),
        ("della", {"merge": "sum"}),
        ("della_linear", {}),
        ("della_linear", {"normalize": True}),
    ],
)
def test_equals_the_formula(
    method: str, own: dict, given_settings: dict, shape: tuple[int, ...]
) -> None:
    base, experts = models(1, shape)
    p = {**given_settings, **own}
    expected = oracle(method, base, experts, 6, **p)
    np.testing.assert_allclose(
        merged(method, base, experts, 6, **p), expected, rtol=1e-11, atol=1e-13
    )
    assert np.abs(expected - base).max() > 0.01


def test_float32_ranks_as_float64_does() -> None:
    """Two ways of sorting: packed integers for float32, a stable sort of numbers for float64."""
    base, experts = models(2, (40, 333))
    p = {"density": 0.5, "epsilon": 0.3}
    found = merged("della", base, experts, 3, dtype=torch.float32, **p)
    np.testing.assert_allclose(found, oracle("della", base, experts, 3, **p), rtol=2e-6, atol=2e-6)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 5),
    st.integers(1, 40),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_order_is_that_of_a_stable_sort(
    seed: int, rows: int, columns: int, dtype: torch.dtype
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(-3, 4, (rows, columns)) * 10.0 ** rng.integers(-44, 38)
    tensor = torch.tensor(values).to(dtype)
    expected = np.argsort(-np.abs(tensor.double().numpy()), axis=-1, kind="stable")
    np.testing.assert_array_equal(order_by_magnitude(tensor).numpy(), expected)


def test_probabilities_counted_by_hand() -> None:
    rows = torch.tensor([[0.5, -2.0, 0.0, 1.0, -0.1], [1.0, 1.0, -1.0, 1.0, 1.0]])
    found = keep_probabilities(rows, 0.5, 0.2)
    expected = torch.tensor([[0.5, 0.7, 0.3, 0.6, 0.4], [0.7, 0.6, 0.5, 0.4, 0.3]])
    torch.testing.assert_close(found, expected)


def test_large_magnitudes_survive_more_often() -> None:
    base = np.zeros((400, 500))
    delta = np.tile(np.arange(1.0, 501.0), (400, 1))
    kept = merged("della_linear", base, [delta], density=0.5, epsilon=0.4, rescale="none") != 0
    # 400 rows: five standard errors of each share; density - epsilon + 2 epsilon r / (n - 1).
    expected = 0.1 + 0.8 * np.arange(500) / 499
    error = 5 * np.sqrt(expected * (1 - expected) / 400)
    assert (np.abs(kept.mean(0) - expected) <= error + 1e-9).mean() > 0.999
    assert abs(kept.mean() - 0.5) < 5 * 0.5 / math.sqrt(kept.size)


def test_is_unbiased_over_seeds() -> None:
    base, experts = models(3, (15, 20), 1)
    p = {"density": 0.5, "epsilon": 0.3}
    mean = sum(merged("della_linear", base, experts, seed, **p) for seed in range(500)) / 500
    delta = experts[0] - base
    q = probabilities(delta, 0.5, 0.3)
    # d / q with probability q: variance d^2 (1 - q) / q; six standard errors of the mean.
    error = 6 * np.abs(delta) * np.sqrt((1 - q) / q / 500)
    assert (np.abs(mean - experts[0]) <= error + 1e-12).all()


@pytest.mark.parametrize("method", ["della", "della_linear"])
def test_algebra(method: str) -> None:
    base, experts = models(4, (8, 11))
    np.testing.assert_array_equal(merged(method, base, experts, scale=0.0), base)
    same = [experts[0]] * 3
    p = {"density": 1.0, **({} if method == "della" else {"normalize": True})}
    np.testing.assert_allclose(merged(method, base, same, **p), experts[0], rtol=1e-13)
    # Powers of two are exact, so the merge of scaled models is the scaled merge to the last bit.
    eighth = merged(method, base / 8, [expert / 8 for expert in experts], 2)
    np.testing.assert_array_equal(eighth, merged(method, base, experts, 2) / 8)
    for rescale in ("probability", "l1", "none"):
        zero = merged(method, base, [base, base], rescale=rescale)
        np.testing.assert_array_equal(zero, base)


def test_density_one_is_ties_without_trim_and_task_arithmetic() -> None:
    base, experts = models(5, (8, 11))
    for method, other, p in [
        ("della", "ties", {"weights": [1.0, 0.5, 2.0]}),
        ("della_linear", "task_arithmetic", {"weights": [1.0, -0.5, 2.0], "scale": 0.3}),
    ]:
        extra = {"density": 1.0} if other == "ties" else {}
        expected = merged(other, base, experts, **p, **extra)
        np.testing.assert_allclose(
            merged(method, base, experts, density=1.0, **p), expected, rtol=1e-13
        )


def test_order_of_experts_changes_no_bit() -> None:
    base, experts = models(6, (8, 11))
    one = {n: {NAME: torch.tensor(x)} for n, x in zip(NAMES, experts, strict=True)}
    other = {n: one[n] for n in ("c", "a", "b")}
    for method in ("della", "della_linear"):
        results = [
            merge_tensors(method, {NAME: torch.tensor(base)}, given, {})[NAME]
            for given in (one, other)
        ]
        assert torch.equal(*results)


@pytest.mark.parametrize("method", ["della", "della_linear"])
@pytest.mark.parametrize(("density", "epsilon"), [(0.9, 0.2), (0.1, 0.1), (0.05, 0.2)])
def test_probabilities_outside_the_unit_interval_are_refused(
    method: str, density: float, epsilon: float
) -> None:
    base, experts = models(7, (3, 4))
    with pytest.raises(UserError, match=r"epsilon.*less than 0\.") as caught:
        merged(method, base, experts, density=density, epsilon=epsilon)
    assert "\n" not in str(caught.value)

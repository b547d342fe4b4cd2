"""SCE against its formula in float64 numpy, in the paper's, mergekit's and the authors' forms."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from merges.arithmetic import selection
from merges.engine import pieces as pieces_module
from merges.engine.run import merge_tensors
from merges.methods.sce import variance

NAME = "model.layers.0.mlp.up_proj.weight"
NAMES = tuple("abcdefgh")


def models(seed: int, shape: tuple[int, ...], count: int = 3) -> tuple[np.ndarray, list]:
    """Experts of different energy; many positions are equal in all or moved by one only."""
    rng = np.random.default_rng(seed)
    base = rng.integers(-64, 65, shape) / 64
    moved = rng.random(shape) < 0.7
    return base, [
        base + moved * rng.integers(-40, 41, shape) / 64 * (1 + number) for number in range(count)
    ]


def merged(base: np.ndarray, experts: list, dtype: torch.dtype = torch.float64, **p) -> np.ndarray:
    tensors = {n: {NAME: torch.tensor(x).to(dtype)} for n, x in zip(NAMES, experts, strict=False)}
    result = merge_tensors("sce", {NAME: torch.tensor(base).to(dtype)}, tensors, p)
    return result[NAME].double().numpy()


def oracle(
    base: np.ndarray,
    experts: list,
    density: float = 0.1,
    scale: float = 1.0,
    select: str = "values",
    negligible: float = 0.0,
) -> np.ndarray:
    deltas = np.stack([(expert - base).ravel() for expert in experts])
    chosen = deltas
    if density < 1:
        var = deltas.var(axis=0)
        # Where all agree the variance is 0, but numpy's mean of equal numbers may be a bit off.
        var[(deltas == deltas[0]).all(axis=0)] = 0
        k = int(density * np.count_nonzero(var))
        # Equal variances that are computed differently differ in their last bits.
        order = np.argsort(-np.round(var, 12), kind="stable")[:k]
        mask = np.zeros(var.shape)
        mask[order] = 1
        chosen = deltas * mask
    squares = (chosen**2).mean(axis=1)
    weights = squares / squares.sum() if squares.sum() > negligible else np.ones(len(squares))
    weights = weights / weights.sum()
    values = chosen if select == "values" else deltas
    agree = np.sign(values) == np.where(values.sum(axis=0) >= 0, 1, -1)
    share = (weights[:, None] * agree).sum(axis=0)
    share = np.maximum(share, negligible)
    total = (weights[:, None] * values * agree).sum(axis=0) / np.where(share == 0, 1, share)
    return base + scale * total.reshape(base.shape)


SETTINGS = [
    {},
    {"density": 0.5, "scale": 0.4},
    {"density": 1.0},
    {"density": 0.3, "select": "weights"},
    {"density": 0.7, "negligible": 0.4},
    {"density": 0.9, "negligible": 1e3},
]


@pytest.mark.parametrize(
    ("shape", "count"),
    [((7, 12), 2), ((40,), 8), ((3, 4, 5), 3), ((70_001,), 2), ((70_001,), 5), ((300, 1000), 3)],
)
@pytest.mark.parametrize("p", SETTINGS)
def test_equals_the_formula(p: dict, shape: tuple[int, ...], count: int) -> None:
    rng = np.random.default_rng(count)
    base = rng.normal(size=shape)
    experts = [base + 0.3 * (1 + n) * rng.normal(size=shape) for n in range(count)]
    expected = oracle(base, experts, **p)
    np.testing.assert_allclose(merged(base, experts, **p), expected, rtol=1e-11, atol=1e-12)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 2, 4, 8]),
    st.lists(st.integers(1, 30), min_size=1, max_size=3).map(tuple),
    st.floats(0.01, 1),
    st.sampled_from(["values", "weights"]),
)
def test_ties_zeros_and_agreeing_experts(
    seed: int, count: int, shape: tuple[int, ...], density: float, select: str
) -> None:
    """Variances of few binary digits and a power of two of experts: ties are exact."""
    base, experts = models(seed, shape, count)
    expected = oracle(base, experts, density=density, select=select)
    with (
        mock.patch.object(selection, "_FEW", 100),
        mock.patch.object(pieces_module, "CPU_SIZE", 64),
    ):
        found = merged(base, experts, density=density, select=select)
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-12)


def test_a_case_counted_by_hand() -> None:
    base = np.zeros(4)
    experts = [np.array([2.0, 1.0, 0.0, -1.0]), np.array([2.0, -3.0, 1.0, 3.0])]
    # Variances 0, 4, 0.25, 4: of three that vary one half is one, and the first of the two fours.
    # Mean squares of what is selected 1/4 and 9/4, weights 0.1 and 0.9; the sum at it is -2.
    assert merged(base, experts, density=0.5).tolist() == [0.0, -3.0, 0.0, 0.0]
    # The selection may act on the weights alone: at the others whole task vectors are merged.
    found = merged(base, experts, density=0.5, select="weights")
    np.testing.assert_allclose(found, [2.0, -3.0, 1.0, 3.0], rtol=1e-15)
    # Two positions agree in sign: weights 6/29 and 23/29.
    np.testing.assert_allclose(merged(base, experts, density=1.0)[0], 2.0, rtol=1e-15)


def test_agreeing_signs_are_averaged_by_energy() -> None:
    base = np.zeros(2)
    experts = [np.array([1.0, 0.0]), np.array([2.0, 1.0])]
    # Mean squares 1/2 and 5/2: weights 1/6 and 5/6.
    np.testing.assert_allclose(merged(base, experts, density=1.0), [11 / 6, 1.0], rtol=1e-15)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.floats(-6, 6))
def test_variance_is_numpys_and_zero_where_all_agree(
    seed: int, count: int, exponent: float
) -> None:
    rng = np.random.default_rng(seed)
    deltas = rng.normal(size=(count, 50)) + 10**exponent
    deltas[:, ::5] = deltas[0, ::5]
    found = variance([torch.tensor(delta) for delta in deltas]).numpy()
    assert (found[::5] == 0).all()
    # Both lose digits to cancellation where the mean is far larger than the spread.
    tolerance = 1e-13 * (1 + 10 ** (2 * exponent) * 1e-3)
    np.testing.assert_allclose(found, deltas.var(axis=0), rtol=1e-10, atol=tolerance)


def test_float32_does_not_lose_a_variance_to_a_large_common_part() -> None:
    rng = np.random.default_rng(1)
    deltas = (1.0 + 1e-4 * rng.normal(size=(4, 1000))).astype(np.float32)
    found = variance([torch.from_numpy(delta) for delta in deltas]).numpy()
    np.testing.assert_allclose(found, deltas.astype(np.float64).var(axis=0), rtol=1e-5)


def test_algebra() -> None:
    base, experts = models(3, (20, 30))
    np.testing.assert_array_equal(merged(base, experts, scale=0.0), base)
    same = merged(base, [experts[0]] * 3, density=1.0)
    np.testing.assert_allclose(same, experts[0], rtol=1e-13, atol=1e-15)
    np.testing.assert_array_equal(merged(base, [experts[0]] * 3, density=0.5), base)
    np.testing.assert_array_equal(merged(base, [base, base]), base)
    np.testing.assert_array_equal(merged(base, [base, base], density=1.0), base)
    np.testing.assert_allclose(
        merged(base, experts[:1], density=1.0), experts[0], rtol=1e-13, atol=1e-15
    )
    scaled = merged(base / 8, [expert / 8 for expert in experts])
    np.testing.assert_array_equal(scaled, merged(base, experts) / 8)


def test_order_of_experts_changes_no_bit() -> None:
    base, experts = models(4, (20, 30))
    one = {n: {NAME: torch.tensor(x)} for n, x in zip("abc", experts, strict=True)}
    other = {n: one[n] for n in ("c", "a", "b")}
    results = [
        merge_tensors("sce", {NAME: torch.tensor(base)}, given, {})[NAME] for given in (one, other)
    ]
    assert torch.equal(*results)

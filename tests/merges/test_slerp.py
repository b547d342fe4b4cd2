"""SLERP over several pieces and at the edges; `test_merges_formulas` has the formula itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from merges.engine.run import merge_tensors


def merged(first: np.ndarray, second: np.ndarray, t: float, dtype: str = "float64") -> np.ndarray:
    kind = getattr(torch, dtype)
    # Named against the alphabet: t counts from the first expert given, not from the first name.
    experts = {"z": {"w": torch.tensor(first).to(kind)}, "a": {"w": torch.tensor(second).to(kind)}}
    return merge_tensors("slerp", None, experts, {"t": t})["w"].double().numpy()


@pytest.mark.parametrize("shape", [(100_000,), (300, 401)])
@pytest.mark.parametrize("t", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("degrees", [3.0, 60.0, 120.0, 177.0])
def test_turns_by_the_share_of_the_angle(shape: tuple[int, ...], t: float, degrees: float) -> None:
    """Two perpendicular unit vectors make the expected arc without any division by a sine."""
    rng = np.random.default_rng(5)
    one, other = rng.normal(size=shape), rng.normal(size=shape)
    one /= np.linalg.norm(one)
    other -= (one * other).sum() * one
    other /= np.linalg.norm(other)
    angle = math.radians(degrees)
    second = math.cos(angle) * one + math.sin(angle) * other
    expected = math.cos(t * angle) * one + math.sin(t * angle) * other
    np.testing.assert_allclose(merged(one, second, t), expected, rtol=0, atol=1e-14)
    small = merged(one, second, t, "float32")
    size = (np.abs(one) + np.abs(second)) / math.sin(angle)
    assert (np.abs(small - expected) <= 6 * 2.0**-24 * size).all()


@pytest.mark.parametrize(("degrees", "straight"), [(1.8, True), (1.82, False), (178.19, True)])
def test_the_line_begins_where_the_cosine_says(degrees: float, straight: bool) -> None:
    """The cosine 0.9995 is that of 1.812 degrees."""
    first = np.array([1.0, 0.0])
    angle = math.radians(degrees)
    second = np.array([math.cos(angle), math.sin(angle)])
    found = merged(first, second, 0.5)
    assert (abs(np.linalg.norm(found) - 1) > 1e-8) == straight
    if straight:
        np.testing.assert_allclose(found, (first + second) / 2, atol=1e-15)


def test_identical_and_zero_tensors() -> None:
    first = np.random.default_rng(6).normal(size=(30, 40))
    np.testing.assert_allclose(merged(first, first, 0.3), first, rtol=1e-15)
    zero = np.zeros_like(first)
    assert (merged(zero, zero, 0.3) == 0).all()
    np.testing.assert_allclose(merged(zero, first, 0.3), 0.3 * first, rtol=1e-15)
    # A norm of 1e-9 is no direction either: along an arc the first value were 0.89.
    found = merged(np.array([1.0, 0.0]), np.array([0.0, 1e-9]), 0.3)
    np.testing.assert_allclose(found, [0.7, 0.3e-9], rtol=1e-15)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_identical_tensors_stay_as_they_are_where_stored_in_16_bits(dtype: str) -> None:
    values = np.random.default_rng(7).normal(size=(300, 401))
    stored = torch.tensor(values).to(getattr(torch, dtype)).double().numpy()
    for t in (0.1, 0.3, 0.7):
        assert (merged(stored, stored, t, dtype) == stored).all()

"""The Karcher mean against its iteration on the tensors themselves, and what defines it."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch

from common.errors import UserError
from merges.engine.run import merge_tensors


def merged(experts: list[np.ndarray], **p: object) -> np.ndarray:
    wrapped = {f"e{n}": {"w": torch.tensor(x)} for n, x in enumerate(experts)}
    return merge_tensors("karcher", None, wrapped, p)["w"].numpy()


def oracle(
    vectors: list[np.ndarray], weights: list[float], steps: int, tolerance: float, lib=math
) -> np.ndarray:
    def norm(v: np.ndarray) -> float:
        return lib.sqrt((v * v).sum())

    norms = [norm(v) for v in vectors]
    units = [v / n for v, n in zip(vectors, norms, strict=True)]
    mean = sum(w * u for w, u in zip(weights, units, strict=True))
    mean = mean / norm(mean)
    for _ in range(steps):
        tangent = 0 * mean
        for w, u in zip(weights, units, strict=True):
            cosine = (mean * u).sum()
            angle = lib.acos(max(-1, min(1, cosine)))
            if angle > tolerance:
                tangent = tangent + w * angle / lib.sin(angle) * (u - cosine * mean)
        length = norm(tangent)
        if length < tolerance or length == 0:
            break
        mean = lib.cos(length) * mean + lib.sin(length) / length * tangent
        mean = mean / norm(mean)
    return mean * sum(w * n for w, n in zip(weights, norms, strict=True))


def models(shape: tuple[int, ...], count: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(count)
    base = rng.normal(size=shape)
    return [(n + 1) * base + 2 * rng.normal(size=shape) for n in range(count)]


@pytest.mark.parametrize("shape", [(9,), (300, 401), (4, 5, 6)])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize(("steps", "tolerance"), [(10, 1e-5), (1, 1e-5), (0, 1e-5), (50, 1e-3)])
def test_equals_the_iteration(
    shape: tuple[int, ...], count: int, steps: int, tolerance: float
) -> None:
    experts = models(shape, count)
    expected = oracle(experts, [1 / count] * count, steps, tolerance)
    found = merged(experts, max_iterations=steps, tolerance=tolerance)
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-12)


def test_weighted_and_converged_it_has_no_pull_left() -> None:
    experts, w = models((40, 50)), [0.2, 0.5, 0.3]
    found = merged(experts, weights=[2.0, 5.0, 3.0], max_iterations=200, tolerance=1e-12)
    length = np.linalg.norm(found)
    expected = sum(c * np.linalg.norm(x) for c, x in zip(w, experts, strict=True))
    np.testing.assert_allclose(length, expected, rtol=1e-12)
    pull = np.zeros_like(found)
    for c, x in zip(w, experts, strict=True):
        unit, mean = x / np.linalg.norm(x), found / length
        away = unit - (unit * mean).sum() * mean
        pull += c * math.acos((unit * mean).sum()) * away / np.linalg.norm(away)
    assert np.linalg.norm(pull) < 1e-10


def test_of_two_it_is_the_middle_of_the_arc() -> None:
    first, second = (x / np.linalg.norm(x) for x in models((30, 40), 2))
    found = merged([first, second])
    middle = (first + second) / np.linalg.norm(first + second)
    np.testing.assert_allclose(found, middle, rtol=0, atol=1e-14)


@pytest.mark.parametrize("spread", [1e-3, 1e-6, 1e-9])
def test_nearly_equal_experts_cancel_no_digits(spread: float) -> None:
    rng = np.random.default_rng(1)
    first = rng.normal(size=30)
    experts = [first + spread * n * rng.normal(size=30) for n in range(3)]
    with mpmath.workdps(60):
        exact = [np.array([mpmath.mpf(value) for value in x]) for x in experts]
        expected = oracle(exact, [1 / mpmath.mpf(3)] * 3, 6, 0, mpmath).astype(float)
    found = merged(experts, max_iterations=6, tolerance=0.0)
    np.testing.assert_allclose(found, expected, rtol=1e-14, atol=1e-15)


def test_opposite_and_zero_tensors() -> None:
    first, second, _ = models((5, 6))
    # Equally near to both ends: it stays with the first, at their mean length.
    np.testing.assert_allclose(merged([first, -3 * first]), 2 * first, rtol=1e-13)
    with_zero = merged([first, second, 0 * first])
    np.testing.assert_allclose(with_zero, 2 / 3 * merged([first, second]), rtol=1e-13)
    assert (merged([0 * first] * 3) == 0).all()
    # Shorter than the tolerance: no direction, but part of the mean length (5 + 1) / 2.
    found = merged([np.array([3.0, 4.0]), np.array([1.0, 0.0])], tolerance=2.0)
    np.testing.assert_allclose(found, [1.8, 2.4], rtol=1e-14)
    tiny = [1e-9 * first, 3e-9 * first]
    np.testing.assert_allclose(merged(tiny), 2e-9 * first, rtol=1e-13)


def test_identical_experts_absent_ones_and_the_order() -> None:
    experts = models((20, 30), 4)
    np.testing.assert_allclose(merged([experts[0]] * 4), experts[0], rtol=1e-14)
    without = merged(experts, weights=[1.0, 0.0, 1.0, 1.0])
    np.testing.assert_allclose(without, merged([experts[n] for n in (0, 2, 3)]), rtol=1e-13)
    names = {"e3": 3, "e0": 0, "e2": 2, "e1": 1}
    shuffled = {name: {"w": torch.tensor(experts[n])} for name, n in names.items()}
    other = merge_tensors("karcher", None, shuffled, {})["w"].numpy()
    assert (other == merged(experts)).all()


def test_weights_that_are_all_zero() -> None:
    with pytest.raises(UserError, match="sum to 0"):
        merged(models((3, 4), 2), weights=[0.0, 0.0])

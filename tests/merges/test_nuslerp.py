"""NuSLERP against its formula, tensor by tensor, row by row and column by column."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from common.errors import UserError
from merges.engine.run import merge_tensors


def merged(
    base: np.ndarray | None, experts: list[np.ndarray], dtype: torch.dtype = torch.float64, **p
) -> np.ndarray:
    wrapped = {
        name: {"w": torch.tensor(x).to(dtype)} for name, x in zip("ab", experts, strict=False)
    }
    start = None if base is None else {"w": torch.tensor(base).to(dtype)}
    return merge_tensors("nuslerp", start, wrapped, p)["w"].double().numpy()


def on_arc(first: np.ndarray, second: np.ndarray, t: float) -> np.ndarray:
    """Interpolate two vectors, the angle from the sides of the triangle that they span."""
    one, two = (v / np.linalg.norm(v) for v in (first, second))
    angle = 2 * math.atan2(np.linalg.norm(one - two), np.linalg.norm(one + two))
    if angle == 0 or angle > math.pi - 1e-4:
        return (1 - t) * first + t * second
    arc = math.sin((1 - t) * angle) * first + math.sin(t * angle) * second
    return arc / math.sin(angle)


def oracle(base: np.ndarray | float, x: list[np.ndarray], t: float, along: str) -> np.ndarray:
    one, two = (v - base for v in x)
    if along == "tensor" or one.ndim == 1:
        return base + on_arc(one.ravel(), two.ravel(), t).reshape(one.shape)
    axis = -1 if along == "rows" else 0
    one, two = np.moveaxis(one, axis, -1), np.moveaxis(two, axis, -1)
    result = np.zeros_like(one)
    for place in np.ndindex(one.shape[:-1]):
        result[place] = on_arc(one[place], two[place], t)
    return base + np.moveaxis(result, -1, axis)


def models(shape: tuple[int, ...], spread: float = 1.0) -> tuple[np.ndarray, list[np.ndarray]]:
    rng = np.random.default_rng(3)
    base = rng.normal(size=shape)
    return base, [base + spread * rng.normal(size=shape) for _ in range(2)]


@pytest.mark.parametrize("along", ["tensor", "rows", "columns"])
@pytest.mark.parametrize("origin", ["zero", "base"])
@pytest.mark.parametrize("shape", [(7,), (1, 5), (300, 401), (6, 5, 4), (210, 40, 9)])
@pytest.mark.parametrize("weights", [None, [0.3, 0.9]])
def test_equals_the_formula(
    along: str, origin: str, shape: tuple[int, ...], weights: list[float] | None
) -> None:
    base, experts = models(shape)
    t = 0.5 if weights is None else 0.75
    expected = oracle(base if origin == "base" else 0.0, experts, t, along)
    found = merged(base, experts, along=along, origin=origin, weights=weights)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
    rounded = merged(base, experts, torch.float32, along=along, origin=origin, weights=weights)
    np.testing.assert_allclose(rounded, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("spread", [1e-3, 1e-6, 1e-9, 1e-12])
@pytest.mark.parametrize("along", ["tensor", "rows", "columns"])
def test_small_angles_cancel_no_digits(spread: float, along: str) -> None:
    base, (first, _) = models((40, 30))
    second = first + spread * base
    expected = oracle(0.0, [first, second], 0.25, along)
    found = merged(None, [first, second], along=along, weights=[0.75, 0.25])
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("along", ["tensor", "rows", "columns"])
def test_without_a_plane_it_is_the_straight_line(along: str) -> None:
    _, (first, _) = models((5, 6))
    given = {"along": along, "weights": [3.0, 1.0]}
    np.testing.assert_allclose(merged(None, [first, -2 * first], **given), 0.25 * first, atol=1e-15)
    np.testing.assert_allclose(merged(None, [first, first], **given), first, rtol=1e-15)
    zero = np.zeros_like(first)
    assert (merged(None, [zero, zero], **given) == 0).all()
    assert (merged(first, [first, first], origin="base", **given) == first).all()


@pytest.mark.parametrize("along", ["tensor", "rows", "columns"])
def test_a_zero_vector_is_perpendicular(along: str) -> None:
    _, (first, _) = models((4, 3))
    found = merged(None, [first, 0 * first], along=along, weights=[2.0, 1.0])
    np.testing.assert_allclose(found, math.sin(math.pi / 3) * first, rtol=1e-13)


def test_ends_and_order() -> None:
    base, experts = models((20, 30))
    assert (merged(None, experts, weights=[0.0, 2.0]) == experts[1]).all()
    assert (merged(None, experts, weights=[0.1, 0.0]) == experts[0]).all()
    assert (merged(None, experts, weights=[1.0, -1.0]) == merged(None, experts)).all()
    one = merged(base, experts, weights=[0.2, 0.8], origin="base")
    swapped = merge_tensors(
        "nuslerp",
        {"w": torch.tensor(base)},
        {"b": {"w": torch.tensor(experts[1])}, "a": {"w": torch.tensor(experts[0])}},
        {"weights": [0.8, 0.2], "origin": "base"},
    )
    assert (swapped["w"].numpy() == one).all()


def test_needs_two_experts_and_the_base_it_starts_from() -> None:
    _, experts = models((3, 4))
    with pytest.raises(UserError, match="exactly 2"):
        merged(None, experts[:1])
    with pytest.raises(UserError, match="origin=base"):
        merged(None, experts, origin="base")
    with pytest.raises(UserError, match="origin=base"):
        merged(None, experts, origin="base", along="rows")

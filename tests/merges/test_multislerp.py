"""Multi-SLERP against its formula on the tensors themselves."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch

from common.errors import UserError
from merges.engine.run import merge_tensors


def merged(base: np.ndarray | None, experts: list[np.ndarray], **p: object) -> np.ndarray:
    wrapped = {f"e{n}": {"w": torch.tensor(x)} for n, x in enumerate(experts)}
    start = None if base is None else {"w": torch.tensor(base)}
    return merge_tensors("multislerp", start, wrapped, p)["w"].numpy()


def oracle(vectors: list[np.ndarray], weights: list[float], epsilon: float, lib=math) -> np.ndarray:
    def norm(v: np.ndarray) -> float:
        return lib.sqrt((v * v).sum())

    units = [v / (norm(v) + epsilon) for v in vectors]
    mean = sum(w * u for w, u in zip(weights, units, strict=True))
    mean = mean / norm(mean)
    tangent = sum(w * (u - (u * mean).sum() * mean) for w, u in zip(weights, units, strict=True))
    angle = norm(tangent) + epsilon
    point = mean * lib.cos(angle) + tangent * (lib.sin(angle) / angle)
    return point * sum(w * norm(v) for w, v in zip(weights, vectors, strict=True))


def models(shape: tuple[int, ...], count: int = 3) -> tuple[np.ndarray, list[np.ndarray]]:
    rng = np.random.default_rng(count)
    base = rng.normal(size=shape)
    return base, [(n + 1) * base + rng.normal(size=shape) for n in range(count)]


@pytest.mark.parametrize("shape", [(9,), (300, 401), (4, 5, 6)])
@pytest.mark.parametrize("origin", ["zero", "base"])
@pytest.mark.parametrize(
    ("weights", "normalize"),
    [(None, True), ([0.5, 0.3, 0.7], True), ([0.5, 0.3, 0.7], False), ([2.0, -0.5, 1.0], True)],
)
@pytest.mark.parametrize("epsilon", [1e-8, 0.1, 0.0])
def test_equals_the_formula(
    shape: tuple[int, ...],
    origin: str,
    weights: list[float] | None,
    normalize: bool,
    epsilon: float,
) -> None:
    base, experts = models(shape)
    w = weights or [1.0, 1.0, 1.0]
    if normalize:
        w = [c / sum(w) for c in w]
    start = base if origin == "base" else 0.0
    expected = start + oracle([x - start for x in experts], w, epsilon)
    found = merged(
        base, experts, weights=weights, normalize=normalize, origin=origin, epsilon=epsilon
    )
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("spread", [1e-3, 1e-6, 1e-9])
def test_nearly_equal_experts_cancel_no_digits(spread: float) -> None:
    rng = np.random.default_rng(1)
    first = rng.normal(size=30)
    experts = [first + spread * n * rng.normal(size=30) for n in range(3)]
    with mpmath.workdps(60):
        exact = [np.array([mpmath.mpf(value) for value in x]) for x in experts]
        w = [mpmath.mpf(c) / 10 for c in (2, 3, 5)]
        expected = oracle(exact, w, mpmath.mpf(1e-8), mpmath).astype(float)
    found = merged(None, experts, weights=[2.0, 3.0, 5.0])
    np.testing.assert_allclose(found, expected, rtol=1e-14, atol=1e-15)


def test_where_there_is_no_mean_direction_it_is_the_weighted_sum() -> None:
    base, (first, *_) = models((5, 6))
    np.testing.assert_allclose(merged(None, [first, -3 * first]), -first, rtol=1e-14)
    turned = [np.array([math.cos(a), math.sin(a)]) for a in (0.0, 2 * math.pi / 3, 4 * math.pi / 3)]
    np.testing.assert_allclose(merged(None, turned), np.zeros(2), atol=1e-15)
    assert (merged(base, [base] * 3, origin="base", weights=[1.0, 5.0, 0.1]) == base).all()
    assert (merged(None, [0 * base] * 3) == 0).all()


def test_zero_tensors_shorten_and_do_not_turn() -> None:
    _, (first, *_) = models((5, 6))
    for epsilon in (1e-8, 0.0):
        found = merged(None, [first, 0 * first, 0 * first], epsilon=epsilon)
        cosine = (found * first).sum() / np.linalg.norm(found) / np.linalg.norm(first)
        assert abs(cosine - 1) < 1e-14
        np.testing.assert_allclose(np.linalg.norm(found), np.linalg.norm(first) / 3, rtol=1e-7)


def test_identical_experts_one_expert_and_their_order() -> None:
    base, experts = models((20, 30), 4)
    np.testing.assert_allclose(merged(None, [experts[0]] * 4), experts[0], rtol=1e-14)
    assert (merged(None, experts[:1], weights=[3.0], normalize=False) == experts[0]).all()
    one = merged(base, experts, origin="base")
    names = {"e3": 3, "e0": 0, "e2": 2, "e1": 1}
    shuffled = {name: {"w": torch.tensor(experts[n])} for name, n in names.items()}
    other = merge_tensors("multislerp", {"w": torch.tensor(base)}, shuffled, {"origin": "base"})
    assert (other["w"].numpy() == one).all()


def test_weights_without_a_sum() -> None:
    _, experts = models((3, 4), 2)
    with pytest.raises(UserError, match="sum to 0"):
        merged(None, experts, weights=[1.0, -1.0])

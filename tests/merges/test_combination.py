"""Sums of multiples: what their rounding is promised to be, and methods that are nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common.errors import UserError
from merges.arithmetic.combination import combine
from merges.engine.run import merge_tensors

MANY = (300, 401)  # more values than a piece holds


def merged(method: str, base: np.ndarray, experts: list[np.ndarray], dtype: str, **given: object):
    kind = getattr(torch, dtype)
    result = merge_tensors(
        method,
        {"w": torch.tensor(base).to(kind)},
        {f"e{n}": {"w": torch.tensor(x).to(kind)} for n, x in enumerate(experts)},
        given,
    )["w"]
    return result.double().numpy()


def models(seed: int, shape: tuple[int, ...], count: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Values that bfloat16 holds exactly, so that no input is rounded."""
    rng = np.random.default_rng(seed)

    def draw(scale: float) -> np.ndarray:
        values = torch.tensor(scale * rng.normal(size=shape)).bfloat16()
        return values.double().numpy()

    base = draw(1.0)
    deltas = [draw(0.1) for _ in range(count)]
    return base, [torch.tensor(base + d).bfloat16().double().numpy() for d in deltas]


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("by_row", [False, True])
def test_combination_keeps_its_bound(count: int, by_row: bool) -> None:
    rng = np.random.default_rng(count)
    vectors = [rng.normal(size=(50, 200)).astype(np.float32) for _ in range(count)]
    factors = [rng.normal(size=(50, 1)) if by_row else float(rng.normal()) for _ in range(count)]
    terms = [c * v.astype(np.float64) for c, v in zip(factors, vectors, strict=True)]
    found = combine(
        [torch.tensor(v) for v in vectors],
        [torch.tensor(c) if by_row else c for c in factors],
    )
    bound = (count + 1) * 2.0**-24 * sum(np.abs(term) for term in terms)
    assert (np.abs(found.double().numpy() - sum(terms)) <= bound * (1 + 1e-6)).all()


def test_combination_works_in_place() -> None:
    vectors = [torch.ones(3), torch.full((3,), 2.0)]
    assert combine(vectors, [2.0, 3.0]) is vectors[0]
    assert vectors[0].tolist() == [8.0, 8.0, 8.0]
    assert vectors[1].tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("weights", [None, [0.5, 0.3, 0.7], [2.0, -1.0, 0.25]])
def test_linear_over_several_pieces(dtype: str, weights: list[float] | None) -> None:
    base, experts = models(1, MANY, 3)
    w = weights or [1.0, 1.0, 1.0]
    terms = [c / sum(w) * x for c, x in zip(w, experts, strict=True)]
    exact = sum(terms)
    found = merged("linear", base, experts, dtype, weights=weights)
    unit = 2.0**-53 if dtype == "float64" else 2.0**-24
    computed = 5 * unit * sum(np.abs(term) for term in terms)
    stored = 0.5 * np.spacing(np.abs(exact)) * 2.0**52 * torch.finfo(getattr(torch, dtype)).eps
    floor = torch.finfo(getattr(torch, dtype)).tiny * 2.0**-10  # float16's subnormals
    assert (np.abs(found - exact) <= computed + stored + floor).all()


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_a_soup_of_one_model_is_the_model(count: int) -> None:
    base, (expert,) = models(2, (40, 50), 1)
    for dtype in ("bfloat16", "float16"):
        found = merged("linear", base, [expert] * count, dtype)
        stored = torch.tensor(expert).to(getattr(torch, dtype)).double().numpy()
        np.testing.assert_array_equal(found, stored)
    close = merged("linear", base, [expert] * count, "float32")
    np.testing.assert_allclose(close, expert, rtol=(count + 1) * 2.0**-24)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_task_arithmetic_gives_exactly_the_base(dtype: str) -> None:
    base, experts = models(3, MANY, 3)
    stored = torch.tensor(base).to(getattr(torch, dtype)).double().numpy()
    nothing = merged("task_arithmetic", base, experts, dtype, scale=0.0, weights=[3.0, -0.1, 7.7])
    np.testing.assert_array_equal(nothing, stored)
    unchanged = merged(
        "task_arithmetic", base, [base] * 3, dtype, scale=1.3, weights=[0.3, 0.7, 9.1]
    )
    np.testing.assert_array_equal(unchanged, stored)


@pytest.mark.parametrize("normalize", [False, True])
def test_task_arithmetic_over_several_pieces(normalize: bool) -> None:
    base, experts = models(4, MANY, 3)
    w = [0.5, -1.0, 2.0]
    shares = [c / sum(w) for c in w] if normalize else w
    exact = base + 0.6 * sum(c * (x - base) for c, x in zip(shares, experts, strict=True))
    found = merged(
        "task_arithmetic", base, experts, "float64", scale=0.6, weights=w, normalize=normalize
    )
    np.testing.assert_allclose(found, exact, rtol=1e-13, atol=1e-14)
    small = merged(
        "task_arithmetic", base, experts, "float32", scale=0.6, weights=w, normalize=normalize
    )
    # The sum with the base rounds relative to the result, all else relative to the task vectors.
    deltas = sum(abs(c) * np.abs(x - base) for c, x in zip(shares, experts, strict=True))
    bound = 2.0**-24 * np.abs(exact) + 6 * 2.0**-24 * 0.6 * deltas
    assert (np.abs(small - exact) <= bound * (1 + 1e-5)).all()


def test_task_arithmetic_of_one_expert_goes_from_base_to_expert() -> None:
    base, (expert,) = models(5, (30, 20), 1)
    found = merged("task_arithmetic", base, [expert], "float64", scale=1.0)
    np.testing.assert_allclose(found, expert, rtol=0, atol=1e-15)


def test_weights_without_a_sum() -> None:
    base, experts = models(6, (3, 4), 2)
    for method in ("linear", "task_arithmetic"):
        with pytest.raises(UserError, match="sum to 0"):
            merged(method, base, experts, "float32", weights=[1.0, -1.0], normalize=True)
